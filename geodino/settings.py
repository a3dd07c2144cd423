"""Pipeline files, read into frozen, validated values: what decides the pixels of a run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal, TypeVar, get_args

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from geodino.errors import ConfigError
from geodino.shipped import nearest, pipeline_path
from geodino.windows import PATCH, Tiling

Resampling = Literal["nearest", "bilinear", "cubic", "cubic_spline", "lanczos", "average"]
Order = Literal["newest", "least-cloud"]
Spec = TypeVar("Spec", bound=BaseModel)


def _power_of_two(value: float) -> float:
    if not math.log2(value).is_integer():
        raise ValueError(f"must be a power of two such as 0.125 or 0.25, not {value:g}")
    return value


class WindowSpec(BaseModel):
    """Windows of a pipeline, in pixels of its grid."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    size: int
    overlap: int
    margin: int = PATCH

    @model_validator(mode="after")
    def _fits(self) -> WindowSpec:
        self.tiling()
        return self

    def tiling(self) -> Tiling:
        """The lattice; ConfigError where the three numbers do not fit."""
        return Tiling(self.size, self.overlap, self.margin)


class PipelineSpec(BaseModel):
    """One pipeline: every value that changes the output raster.

    Attributes
    ----------
    name, title
        What `geodino run NAME` calls it, and what a map calls it.
    task
        What the model must be able to do.
    model
        `auto`, a name of the catalog, a hub id or a folder.
    gsd_m
        Metres a pixel, or `model`: what the model was trained at.
    window
        Side, overlap and margin in pixels, or `model`: the model's own.
    resampling
        GDAL's name for how imagery comes onto the grid.
    order
        Which scene gives a pixel where several have it.
    max_cloud_percent
        Scenes that state more cloud are left out.
    radiometry
        `auto`, or a profile by name.
    quantum_m
        Heights are rounded to this power of two, metres.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    title: str
    task: Literal["canopy-height"]
    model: str = "auto"
    gsd_m: Annotated[float, Field(gt=0, allow_inf_nan=False)] | Literal["model"] = "model"
    window: WindowSpec | Literal["model"] = "model"
    resampling: Resampling = "cubic"
    order: Order = "newest"
    max_cloud_percent: Annotated[float, Field(ge=0, le=100)] = 10.0
    radiometry: str = "auto"
    quantum_m: Annotated[float, Field(gt=0, le=1), AfterValidator(_power_of_two)] = 0.125

    def tiling(self, of_model: Tiling) -> Tiling:
        """The run's windows: the pipeline's own, or the model's."""
        return of_model if isinstance(self.window, str) else self.window.tiling()

    def gsd(self, of_model: float) -> float:
        """Metres a pixel: the pipeline's own, or the model's."""
        return of_model if isinstance(self.gsd_m, str) else self.gsd_m


def read_pipeline(what: str | Path) -> PipelineSpec:
    """The pipeline of that name, or in that YAML file.

    Raises
    ------
    ConfigError
        No such pipeline, not YAML, an unknown key (the nearest known one is named) or a value out of range.
    """
    path = Path(what) if str(what).endswith((".yaml", ".yml")) else pipeline_path(str(what))
    return validate(PipelineSpec, read_yaml(path), str(path))


def read_yaml(path: Path) -> dict[str, object]:
    """The mapping in a YAML file; ConfigError where it is missing, not YAML, or not a mapping."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must hold `key: value` lines, not a {type(content).__name__}")
    return content


def validate(kind: type[Spec], content: dict[str, object], where: str) -> Spec:
    """The content as a checked value; ConfigError lists every fault, with the nearest name for an unknown key."""
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        faults = [_fault(kind, detail["loc"], detail["type"], detail["msg"]) for detail in _plain_errors(error)]
        raise ConfigError(f"{where}: " + "; ".join(dict.fromkeys(faults))) from error


def _plain_errors(error: ValidationError) -> list[ErrorDetails]:
    """The faults, less those that say of an alternative such as `model` only that it was not meant."""
    found = error.errors()
    meant = [detail for detail in found if detail["type"] != "literal_error" or len(detail["loc"]) == 1]
    return meant or found


def _fault(kind: type[BaseModel], loc: tuple[int | str, ...], code: str, message: str) -> str:
    # pydantic puts its own names of alternatives between ours, such as `function-after[_fits(), WindowSpec]`.
    fields = {"": sorted(kind.model_fields), "window": sorted(WindowSpec.model_fields)}
    inner = str(loc[0]) in fields and len(loc) > 1
    name = f"{loc[0]}.{loc[-1]}" if inner and str(loc[-1]).isidentifier() else str(loc[0])
    if code == "extra_forbidden":
        return f"unknown key {name}" + nearest(str(loc[-1]), fields[str(loc[0]) if inner else ""])
    if code == "missing":
        return f"key {name} is missing"
    said = message.removeprefix("Value error, ")
    return f"{name}: {said[:1].lower()}{said[1:]}"


RESAMPLINGS: tuple[str, ...] = get_args(Resampling)
ORDERS: tuple[str, ...] = get_args(Order)
