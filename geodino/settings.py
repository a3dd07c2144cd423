"""Pipeline files, read into frozen, validated values: what decides the pixels of a run."""

from __future__ import annotations

import math
from datetime import date
from pathlib import Path
from typing import Annotated, Literal, TypeVar, get_args

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from geodino.errors import ConfigError
from geodino.shipped import nearest, pipeline_path
from geodino.windows import PATCH, Tiling

Resampling = Literal["nearest", "bilinear", "cubic", "cubic_spline", "lanczos", "average"]
Harmonise = Literal["none", "histogram", "regression"]
Spec = TypeVar("Spec", bound=BaseModel)
_Height = Annotated[float, Field(ge=0, allow_inf_nan=False)]

ORDERS = ("newest", "oldest", "least-cloud")
"""Which scene gives a pixel where several have it; besides these, `nearest` with a date."""

# Cells: what must be computed beyond the AOI grows with it.
MOST_SPACING = 8


def _power_of_two(value: float) -> float:
    if not math.log2(value).is_integer():
        raise ValueError(f"must be a power of two such as 0.125 or 0.25, not {value:g}")
    return value


def _growing(heights: tuple[float, ...]) -> tuple[float, ...]:
    # What the statistics ask for, said before the hours of a run and not after them.
    if not heights:
        raise ValueError("needs at least one height, such as 2")
    if list(heights) != sorted(set(heights)):
        raise ValueError(f"{', '.join(f'{height:g}' for height in heights)} must grow, each height once")
    return heights


def nearest_day(order: str) -> date | None:
    """The day of an order such as `nearest 2020-06-15`; None for those of ORDERS. ConfigError for any other text."""
    word, _, day = order.partition(" ")
    if order in ORDERS:
        return None
    try:
        if word == "nearest" and day.strip():
            return date.fromisoformat(day.strip())
    except ValueError as error:
        raise ConfigError(f"order {order}: {day.strip()} is no date; write nearest 2020-06-15") from error
    raise ConfigError(
        f"order {order.strip()} must be one of {', '.join(ORDERS)} or nearest with a date: nearest 2020-06-15"
    )


def check_order(order: str) -> str:
    """The order as it came. ConfigError where it is none."""
    nearest_day(order)
    return order


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


class TreesSpec(BaseModel):
    """How a pipeline finds trees.

    Attributes
    ----------
    find_on
        `heat`, the map of a model that has a head for trees; `height`, the tops of its canopy; `auto`: heat where the
        model has it.
    threshold, spacing
        Least heat of a tree, and how many cells around it are cooler; `model`: what its training chose.
    min_height_m, allometry, max_diameter_m, smoothing_m
        Of trees found on height, see `treetops.HeightSettings`.
    crowns, crown_min_share, crown_reach
        Whether trees found on height get crowns, and how far these go, see `crowns.CrownSettings`.
    density_cell_m
        Side of the cells of the density map, metres.
    pmtiles
        Whether trees are also written as tiles for a map in a browser.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    find_on: Literal["auto", "heat", "height"] = "auto"
    threshold: Annotated[float, Field(ge=0, le=1)] | Literal["model"] = "model"
    spacing: Annotated[int, Field(ge=1, le=MOST_SPACING)] | Literal["model"] = "model"
    min_height_m: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 2.0
    allometry: tuple[float, float, float] = (2.51503, 0.0, 0.00901)
    max_diameter_m: Annotated[float, Field(gt=0, le=100)] = 20.0
    smoothing_m: Annotated[float, Field(ge=0, le=20)] = 0.0
    crowns: bool = True
    crown_min_share: Annotated[float, Field(ge=0, le=1)] = 0.3
    crown_reach: Annotated[float, Field(gt=0, le=5)] = 2.0
    density_cell_m: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 10.0
    pmtiles: bool = False


class StatisticsSpec(BaseModel):
    """What a run says of each polygon of the AOI.

    Attributes
    ----------
    cover_m
        Canopy cover is the share of the ground that is higher than each of these, metres.
    least_valid_percent
        A polygon of which less has been seen gets no figure.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    cover_m: Annotated[tuple[_Height, ...], AfterValidator(_growing)] = (2.0, 5.0, 10.0)
    least_valid_percent: Annotated[float, Field(ge=0, le=100)] = 50.0


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
        Which scene gives a pixel where several have it: `newest`, `oldest`, `least-cloud`, or `nearest 2020-06-15`.
    max_cloud_percent
        Scenes that state more cloud are left out.
    harmonise
        Whether each scene is brought to the look of those before it, over the ground that both show: `none`, by
        `histogram` or by `regression`.
    radiometry
        `auto`, or a profile by name.
    quantum_m
        Heights are rounded to this power of two, metres.
    trees
        How trees are found; None: they are not.
    statistics
        What is said of each polygon of the AOI; None: nothing.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    title: str
    task: Literal["canopy-height", "trees"]
    model: str = "auto"
    gsd_m: Annotated[float, Field(gt=0, allow_inf_nan=False)] | Literal["model"] = "model"
    window: WindowSpec | Literal["model"] = "model"
    resampling: Resampling = "cubic"
    order: Annotated[str, AfterValidator(check_order)] = "newest"
    max_cloud_percent: Annotated[float, Field(ge=0, le=100)] = 10.0
    harmonise: Harmonise = "none"
    radiometry: str = "auto"
    quantum_m: Annotated[float, Field(gt=0, le=1), AfterValidator(_power_of_two)] = 0.125
    trees: TreesSpec | None = None
    statistics: StatisticsSpec | None = StatisticsSpec()

    @model_validator(mode="after")
    def _finds_trees(self) -> PipelineSpec:
        if self.task == "trees" and self.trees is None:
            raise ValueError("task trees needs a section trees; `trees: {}` takes every default")
        return self

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
    fields = {"": _keys(kind)} | {name: _keys(part) for name, part in _sections(kind).items()}
    section = str(loc[0]) if loc and str(loc[0]) in fields else ""
    parts = [str(part) for part in loc[1:] if str(part).isidentifier()] if section else []
    name = ".".join([str(part) for part in loc[:1]] + parts[:1])
    if code == "extra_forbidden":
        return f"unknown key {name}" + nearest(parts[0] if parts else str(loc[-1]), fields[section if parts else ""])
    if code == "missing":
        # pydantic counts the values of a short list as missing keys.
        short = isinstance(loc[-1], int)
        return f"{name} needs more than {loc[-1]} values" if short else f"key {name} is missing"
    said = message.removeprefix("Value error, ").replace("a valid tuple", "a list")
    return (f"{name}: " if name else "") + f"{said[:1].lower()}{said[1:]}"


def _keys(kind: type[BaseModel]) -> list[str]:
    return sorted(field.alias or name for name, field in kind.model_fields.items())


def _sections(kind: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """The keys whose values are sections with keys of their own, such as `window`."""
    parts = {name: (field.annotation, *get_args(field.annotation)) for name, field in kind.model_fields.items()}
    return {
        name: part
        for name, alternatives in parts.items()
        for part in alternatives
        if isinstance(part, type) and issubclass(part, BaseModel)
    }


RESAMPLINGS: tuple[str, ...] = get_args(Resampling)
