"""Which machines a run is to use: processes of this one, a scheduler that runs already, or a cluster from a config."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from geodino.errors import ConfigError
from geodino.settings import read_yaml, validate
from geodino.shipped import config_path, nearest

# What a config's class may come from, and what to install for it. A config is read from anywhere and names a class
# that is called with its arguments: these packages start workers, others might start anything.
PACKAGES = {
    "coiled": "coiled",
    "dask_cloudprovider": "dask-cloudprovider",
    "dask_cuda": "dask-cuda",
    "dask_gateway": "dask-gateway",
    "dask_jobqueue": "dask-jobqueue",
    "dask_kubernetes": "dask-kubernetes",
    "distributed": "distributed",
}


@dataclass(frozen=True)
class Machines:
    """Where the bands or jobs of a run are computed; nothing given: in this process.

    Attributes
    ----------
    workers
        Processes to start on this machine; `auto`: one a GPU, else as many as its cores and memory allow.
    scheduler
        Address of a Dask scheduler that runs, such as tcp://10.0.0.1:8786, or the path of its scheduler file.
    config
        Name of a config of kind cluster, or a YAML file.

    Raises
    ------
    ConfigError
        More than one of them is given, or a number of workers under one.
    """

    workers: int | Literal["auto"] | None = None
    scheduler: str | None = None
    config: str | None = None

    def __post_init__(self) -> None:
        given = [
            f"--{name} {value}"
            for name, value in (("workers", self.workers), ("scheduler", self.scheduler), ("config", self.config))
            if value is not None
        ]
        if len(given) > 1:
            raise ConfigError(f"{' and '.join(given)} name different machines; give one of them")
        if isinstance(self.workers, int) and self.workers < 1:
            raise ConfigError(f"--workers {self.workers} must be 1 or more, or auto")

    @property
    def asked(self) -> bool:
        """Whether others than this process are asked for."""
        return self != Machines()

    @staticmethod
    def of(workers: str | None, scheduler: str | None = None, config: str | None = None) -> Machines:
        """From the command line's words; ConfigError where workers is neither a number nor `auto`."""
        if workers is None or workers == "auto":
            return Machines("auto" if workers else None, scheduler, config)
        if not workers.isdecimal():
            raise ConfigError(f"--workers {workers} must be a number, or auto")
        return Machines(int(workers), scheduler, config)


class AdaptSpec(BaseModel):
    """Between how many workers the cluster grows and shrinks with the work that is left."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    minimum: Annotated[int, Field(ge=0)] = 0
    maximum: Annotated[int, Field(ge=1)]

    @model_validator(mode="after")
    def _ordered(self) -> AdaptSpec:
        if self.minimum > self.maximum:
            raise ValueError(f"minimum {self.minimum} must not be over maximum {self.maximum}")
        return self


class ClusterConfig(BaseModel):
    """A cluster to start.

    Attributes
    ----------
    title
        What it is, for people.
    class_
        Dotted name of the class of a Dask cluster, such as dask_jobqueue.SLURMCluster; key `class`.
    kwargs
        Its arguments.
    adapt, scale
        Between how many workers it grows and shrinks, or how many it has; neither: as `kwargs` say.
    resources
        What a task takes of a worker, such as GPU: 1; workers must be started with it.
    wait_s
        How long to wait for the first worker, seconds: longer than the queue lets jobs wait.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["cluster"]
    title: str
    class_: str = Field(alias="class")
    kwargs: dict[str, JsonValue] = {}
    adapt: AdaptSpec | None = None
    scale: Annotated[int, Field(ge=1)] | None = None
    resources: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = {}
    wait_s: Annotated[float, Field(gt=0)] = 3600.0

    @model_validator(mode="after")
    def _consistent(self) -> ClusterConfig:
        if self.adapt is not None and self.scale is not None:
            raise ValueError("give either adapt or scale")
        root, _, rest = self.class_.partition(".")
        if root not in PACKAGES or not rest:
            raise ValueError(
                f"class {self.class_} must be a package's cluster, such as dask_jobqueue.SLURMCluster"
                + nearest(root, sorted(PACKAGES))
            )
        return self


def cluster_config(what: str) -> ClusterConfig:
    """The cluster config of that name in configs/, or in that YAML file.

    Raises
    ------
    ConfigError
        No such config, or one of another kind, or a fault in it.
    """
    path = Path(what) if what.endswith((".yaml", ".yml")) else config_path(what)
    content = read_yaml(path)
    if content.get("kind") != "cluster":
        raise ConfigError(f"{path} has kind {content.get('kind')}; --config takes one of kind cluster")
    return validate(ClusterConfig, content, str(path))
