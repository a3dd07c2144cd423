"""Reads label files into layers: their kind is seen from the files, and what is wrong with them is said at once."""

from __future__ import annotations

import glob
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from geodino.errors import ConfigError, InputError
from geodino.training.chipset import UNKNOWN, Task
from geodino.training.label_rasters import LabelRaster, describe_raster
from geodino.training.labels import Doubles, Ints, Layer
from geodino.training.raster_layers import ClassLayer, HeightLayer, Sheets, check_heights
from geodino.training.vector_files import (
    Vectors,
    features,
    once,
    only_points,
    only_polygons,
    plots,
    read_area,
    read_vectors,
)
from geodino.training.vector_layers import ClassPolygonLayer, FootprintLayer, PlotLayer, TreeLayer
from geodino.watch import count

RASTER_SUFFIXES = (".tif", ".tiff", ".vrt", ".jp2")
# What sensors measure, CHMv2's paper (arXiv 2603.06382): the 98th percentile of height within so many metres.
SENSOR_RADIUS_M = {"gedi": 12.0, "icesat-2": 7.0}
# Columns of heights by name, and the sensor whose product calls them so (GEDI L2A rh, ATL08 h_canopy).
HEIGHT_COLUMNS = {
    "height_m": None, "height": None, "rh98": "gedi", "rh_98": "gedi", "h_canopy": "icesat-2", "canopy_height": None,
}  # fmt: skip
RADIUS_COLUMNS = ("radius_m", "radius")
_FEET_NAME = re.compile(r"(^|_)(ft|feet|foot)$", re.IGNORECASE)


@dataclass(frozen=True)
class LabelOptions:
    """What label files cannot say themselves.

    Attributes
    ----------
    layer
        Which layer, where a file holds several.
    scene_column
        Names the scene that a feature belongs to; None: every scene over it.
    class_column
        Class of a polygon, label of a plot.
    height_column
        Metres; None: the first of HEIGHT_COLUMNS.
    radius_column, radius_m, sensor
        Radius of a footprint, metres: a column, one number, or `gedi` (12 m) or `icesat-2` (7 m). All None: a column
        radius_m or radius, or the sensor whose name for heights is used.
    classes
        The class table, one `VALUE=NAME` or `NAME` each. Several values may share a name. Needed for class rasters;
        features hold a value or a name. Without it the values of the class column, sorted, are the classes.
    area
        A file of polygons within which all trees are drawn.
    """

    layer: str | None = None
    scene_column: str | None = None
    class_column: str | None = None
    height_column: str | None = None
    radius_column: str | None = None
    radius_m: float | None = None
    sensor: str | None = None
    classes: tuple[str, ...] = ()
    area: str | None = None

    def __post_init__(self) -> None:
        if self.sensor is not None and self.sensor not in SENSOR_RADIUS_M:
            raise ConfigError(f"sensor {self.sensor} must be one of {', '.join(SENSOR_RADIUS_M)}; or give a radius")
        if self.radius_m is not None and not 0 < self.radius_m <= 100:
            raise ConfigError(f"radius_m {self.radius_m} must lie between 0 and 100 m")


@dataclass(frozen=True, eq=False)
class Labels:
    """A layer, the names of its classes, and what was left out of the files."""

    layer: Layer
    class_names: tuple[str, ...]
    dropped: Mapping[str, int]


def expand(paths: Sequence[str | Path]) -> tuple[str, ...]:
    """The files that paths, globs and folders of rasters name, each once, sorted within each.

    Raises
    ------
    InputError
        One names nothing.
    """
    found: dict[str, None] = {}
    for entry in map(str, paths):
        path = Path(entry).expanduser()
        if path.is_dir() and path.suffix != ".gdb":
            here = sorted(str(file) for file in path.iterdir() if file.suffix.lower() in RASTER_SUFFIXES)
        elif path.exists():
            here = [str(path)]
        else:
            # Path.glob takes no absolute pattern.
            here = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207
        if not here:
            raise InputError(f"labels {entry}: no such file, or a folder without rasters")
        found.update(dict.fromkeys(here))
    if not found:
        raise InputError("no labels given; name files of canopy heights, points or polygons")
    return tuple(found)


def read_labels(task: Task, paths: Sequence[str], options: LabelOptions, named: frozenset[str]) -> Labels:
    """The labels of all files as one layer.

    Parameters
    ----------
    named
        Scenes whose trees are all drawn, whether or not a point lies in them.

    Raises
    ------
    InputError
        Files that are not labels for the task, of mixed kinds, without a CRS, empty, or with heights that cannot be.
    ConfigError
        A column or a class table that is not there.
    """
    if task not in _WANTED:
        raise ConfigError(f"task {task} must be one of {', '.join(_WANTED)}")
    rasters = [Path(path).suffix.lower() in RASTER_SUFFIXES for path in paths]
    if any(rasters) and not all(rasters):
        raise InputError(
            f"labels {paths[rasters.index(True)]} and {paths[rasters.index(False)]} are of two kinds; give rasters or "
            "vector files, not both"
        )
    if rasters[0]:
        if task not in _RASTERS:
            raise InputError(f"labels {paths[0]}: a raster cannot label {task}; {_WANTED[task]}")
        return _RASTERS[task](tuple(describe_raster(path) for path in paths), options)
    dropped: Counter[str] = Counter()
    vectors = [read_vectors(path, options.layer, dropped) for path in paths]
    layer, names = _VECTORS[task](vectors, options, named, dropped)
    return Labels(layer, names, dropped)


def _heights(rasters: tuple[LabelRaster, ...], options: LabelOptions) -> Labels:
    return Labels(HeightLayer(Sheets(rasters)), (), {})


def _class_rasters(rasters: tuple[LabelRaster, ...], options: LabelOptions) -> Labels:
    keys, names = class_table(options.classes)
    if not keys:
        raise ConfigError(f"labels {rasters[0].path}: name the classes of its values: --classes 0=ground,1=tree")
    for raster in rasters:
        if np.dtype(raster.dtype).kind not in "iu":
            raise InputError(f"labels {raster.path} hold {raster.dtype} numbers; classes are whole numbers")
    try:
        table = {int(key): value for key, value in keys.items()}
    except ValueError as error:
        raise ConfigError(f"classes {', '.join(options.classes)}: a raster needs VALUE=NAME, such as 1=tree") from error
    return Labels(ClassLayer(Sheets(rasters), table), names, {})


_Read = tuple[Layer, tuple[str, ...]]


def _trees(parts: Sequence[Vectors], options: LabelOptions, named: frozenset[str], dropped: Counter[str]) -> _Read:
    points = [only_points(part, "trees") for part in parts]
    points = once(points, _columns(options.scene_column), dropped)
    area = None if options.area is None else read_area(options.area)
    if area is not None:
        inside = [area.holds(part.shapes, part.crs) for part in points]
        dropped["label outside the area"] += sum(int((~mask).sum()) for mask in inside)
        points = [part.where(mask) for part, mask in zip(points, inside, strict=True) if mask.any()]
        if not points:
            raise InputError(f"labels {parts[0].path}: no point lies in the area {options.area}; check the CRS of both")
    return TreeLayer(features(points, options.scene_column, named), area), ()


def _footprints(parts: Sequence[Vectors], options: LabelOptions, named: frozenset[str], dropped: Counter[str]) -> _Read:
    kept = []
    for part in parts:
        points = only_points(part, "heights outside of rasters")
        column = _height_column(points, options.height_column)
        height = points.numbers(column)
        radius = _radius(points, options, HEIGHT_COLUMNS.get(column.lower()))
        known = np.isfinite(height) & np.isfinite(radius) & (radius > 0)
        dropped["label without a height or radius"] += int((~known).sum())
        check_heights(f"labels {part.path}, column {column}", height[known])
        frame = points.frame.assign(_height_m=np.maximum(height, 0), _radius_m=radius)
        kept.append(replace(points, frame=frame).where(known))
    kept = once(kept, [*_columns(options.scene_column), "_height_m", "_radius_m"], dropped)
    heights, radii = (np.concatenate([part.numbers(name) for part in kept]) for name in ("_height_m", "_radius_m"))
    if not len(heights):
        raise InputError(f"labels {parts[0].path}: no point has both a height and a radius")
    return FootprintLayer(features(kept, options.scene_column), heights, radii), ()


def _polygons(parts: Sequence[Vectors], options: LabelOptions, named: frozenset[str], dropped: Counter[str]) -> _Read:
    drawn = [only_polygons(part, "classes outside of rasters") for part in parts]
    drawn, value, names = _classed(drawn, options, dropped)
    if len(names) > UNKNOWN:
        raise InputError(f"labels {parts[0].path} hold {len(names)} classes; at most {UNKNOWN} can be told apart")
    return ClassPolygonLayer(features(drawn, options.scene_column), value), names


def _plots(parts: Sequence[Vectors], options: LabelOptions, named: frozenset[str], dropped: Counter[str]) -> _Read:
    found, value, names = _classed([plots(part) for part in parts], options, dropped)
    return PlotLayer(features(found, options.scene_column), value), names


_RASTERS: Mapping[Task, Callable[[tuple[LabelRaster, ...], LabelOptions], Labels]] = {
    "canopy": _heights,
    "segment": _class_rasters,
}
_VECTORS: Mapping[Task, Callable[[Sequence[Vectors], LabelOptions, frozenset[str], Counter[str]], _Read]] = {
    "canopy": _footprints,
    "trees": _trees,
    "segment": _polygons,
    "classify": _plots,
}
_WANTED: Mapping[Task, str] = {
    "canopy": "give a raster of heights, or points with a column of heights",
    "trees": "give a file of points",
    "segment": "give polygons with a column of classes, or a raster of classes",
    "classify": "give points or polygons with a column of labels",
}


def _columns(name: str | None) -> list[str]:
    return [] if name is None else [name]


def _classed(
    parts: Sequence[Vectors], options: LabelOptions, dropped: Counter[str]
) -> tuple[list[Vectors], Ints, tuple[str, ...]]:
    """The features that have a class, its index, and the classes' names."""
    column = options.class_column
    if column is None:
        known = ", ".join(parts[0].columns) or "none"
        raise ConfigError(
            f"labels {parts[0].path}: which column holds the classes? It has {known}: name one with --class-column"
        )
    texts = [[_text(value) for value in part.column(column)] for part in parts]
    dropped["label without a class"] += sum(part.count("") for part in texts)
    kept = [part.where([bool(text) for text in here]) for part, here in zip(parts, texts, strict=True)]
    kept = once(kept, [*_columns(options.scene_column), column], dropped)
    found = [_text(value) for part in kept for value in part.column(column)]
    if not found:
        raise InputError(f"labels {parts[0].path}: column {column} is empty")
    keys, names = class_table(options.classes or tuple(sorted(set(found))))
    # A value or a name: a map's pixels hold the values of classes whose names polygons hold.
    classes = {name: index for index, name in enumerate(names)} | keys
    lacking = Counter(text for text in found if text not in classes)
    if lacking:
        said = ", ".join(f"{text} ({count(number, 'feature')})" for text, number in lacking.most_common(5))
        raise InputError(
            f"labels {parts[0].path}: column {column} holds {said}, and the class table knows {', '.join(keys)} only; "
            "name them in --classes too"
        )
    return kept, np.array([classes[text] for text in found], np.int64), names


def class_table(entries: Sequence[str]) -> tuple[dict[str, int], tuple[str, ...]]:
    """The class of each value, and the classes' names in the order of their first entry."""
    pairs = [(value.strip(), name.strip() or value.strip()) for value, _, name in (e.partition("=") for e in entries)]
    names = tuple(dict.fromkeys(name for _, name in pairs))
    keys = {value: names.index(name) for value, name in pairs}
    if len(keys) < len(pairs) or "" in keys:
        raise ConfigError(f"classes {', '.join(entries)}: each value may be named once, as VALUE=NAME")
    return keys, names


def _text(value: object) -> str:
    """A class as text: 3 and 3.0 are the same; nothing where it is missing."""
    if pd.isna(value):
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def _height_column(part: Vectors, asked: str | None) -> str:
    if asked is None:
        lower = {name.lower(): name for name in part.columns}
        asked = next((lower[name] for name in HEIGHT_COLUMNS if name in lower), None)
    if asked is None:
        feet = [name for name in part.columns if _FEET_NAME.search(name)]
        if not feet:
            known = ", ".join(part.columns) or "none"
            raise ConfigError(
                f"labels {part.path}: which column holds heights in metres? It has {known}: name one with "
                "--height-column"
            )
        asked = feet[0]
    part.column(asked)
    if _FEET_NAME.search(asked):
        raise InputError(f"labels {part.path}: column {asked} is in feet; multiply by 0.3048 and call it height_m")
    return asked


def _radius(part: Vectors, options: LabelOptions, sensor: str | None) -> Doubles:
    """Radius of each footprint, metres: what is asked for, else a column of that name, else the sensor's."""
    if options.radius_column is not None:
        return part.numbers(options.radius_column)
    if options.radius_m is not None:
        return np.full(len(part.frame), options.radius_m)
    own = next((name for name in RADIUS_COLUMNS if name in part.columns), None)
    if options.sensor is None and own is not None:
        return part.numbers(own)
    name = options.sensor or sensor
    if name is None:
        raise ConfigError(
            f"labels {part.path}: nothing says the radius of a footprint: give it in metres with --radius, its column "
            f"with --radius-column, or --sensor {' or '.join(SENSOR_RADIUS_M)}"
        )
    return np.full(len(part.frame), SENSOR_RADIUS_M[name])
