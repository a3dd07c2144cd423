"""Reads label files into layers: their kind is seen from the files, and what is wrong with them is said at once."""

from __future__ import annotations

import glob
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
import shapely
from pyproj import CRS as ProjCRS

from geodino.aoi_files import read_drawn
from geodino.errors import AOIError, ConfigError, InputError
from geodino.shipped import nearest
from geodino.training.chipset import Task
from geodino.training.label_rasters import HIGHEST_M, LOWEST_M, HeightLayer, describe_raster, heights_sentence
from geodino.training.labels import Area, Doubles, FootprintLayer, Layer, Places, TreeLayer

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
        Names the scene that a point belongs to; None: every scene over it.
    class_column
        Class of a polygon, label of a plot.
    height_column
        Metres; None: the first of HEIGHT_COLUMNS.
    radius_column, radius_m, sensor
        Radius of a footprint, metres: a column, one number, or `gedi` (12 m) or `icesat-2` (7 m). All None: a column
        radius_m or radius, or the sensor whose name for heights is used.
    classes
        The class table: `VALUE=NAME`, or just the names. Several values may share a name.
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


@dataclass(frozen=True, eq=False)
class Labels:
    """A layer, the names of its classes, and what was left out of the files."""

    layer: Layer
    class_names: tuple[str, ...]
    dropped: Counter[str]


@dataclass(frozen=True, eq=False)
class Vectors:
    """Features of one file: geometries without None and empty ones, in a CRS, and their columns."""

    path: str
    crs: ProjCRS
    frame: gpd.GeoDataFrame


def expand(paths: Sequence[str | Path]) -> tuple[str, ...]:
    """The files that paths, globs and folders name, each once, sorted within each.

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
        Scenes that are known to be labelled whole, whether or not a point lies in them.

    Raises
    ------
    InputError
        Files that are not labels for the task, mixed kinds, no CRS, empty layers, heights that cannot be metres.
    ConfigError
        A column that is not there.
    """
    rasters = [Path(path).suffix.lower() in RASTER_SUFFIXES for path in paths]
    if any(rasters) and not all(rasters):
        raise InputError(
            f"labels {paths[rasters.index(False)]} and {paths[rasters.index(True)]} are of two kinds; give rasters or "
            "vector files"
        )
    kind = "raster" if rasters[0] else "vector"
    if (task, kind) not in _READERS:
        raise InputError(f"labels {paths[0]}: a {kind} cannot label {task}; {_WANTED[task]}")
    return _READERS[task, kind](paths, options, named)


def _heights(paths: Sequence[str], options: LabelOptions, named: frozenset[str]) -> Labels:
    return Labels(HeightLayer(tuple(describe_raster(path) for path in paths)), (), Counter())


def _trees(paths: Sequence[str], options: LabelOptions, named: frozenset[str]) -> Labels:
    dropped: Counter[str] = Counter()
    parts = [_points(_read(path, options.layer, dropped), "trees") for path in paths]
    parts = _once(parts, [column for column in [options.scene_column] if column], dropped)
    scene = _scene_names(parts, options.scene_column)
    places = Places(tuple((part.crs, _xy(part)) for part in parts), scene, named)
    area = None if options.area is None else read_area(options.area)
    return Labels(TreeLayer(places, area), (), dropped)


def _footprints(paths: Sequence[str], options: LabelOptions, named: frozenset[str]) -> Labels:
    dropped: Counter[str] = Counter()
    parts = [_points(_read(path, options.layer, dropped), "canopy footprints") for path in paths]
    kept = []
    for part in parts:
        column = _height_column(part, options.height_column)
        radius = _radius(part, options, HEIGHT_COLUMNS.get(column.lower()))
        height = _numbers(part, column)
        known = np.isfinite(height) & (radius > 0) & np.isfinite(radius)
        dropped["label without a height or radius"] += int((~known).sum())
        _check_heights(part.path, height[known])
        kept.append(
            Vectors(part.path, part.crs, part.frame[known].assign(_height=height[known], _radius=radius[known]))
        )
    kept = _once(kept, [*([options.scene_column] if options.scene_column else []), "_height"], dropped)
    heights = np.concatenate([part.frame["_height"].to_numpy(float) for part in kept])
    radii = np.concatenate([part.frame["_radius"].to_numpy(float) for part in kept])
    if not len(heights):
        raise InputError(f"labels {paths[0]}: no point has a height and a radius")
    places = Places(tuple((part.crs, _xy(part)) for part in kept), _scene_names(kept, options.scene_column))
    return Labels(FootprintLayer(places, np.maximum(heights, 0), radii), (), dropped)


_READERS = {
    ("canopy", "raster"): _heights,
    ("canopy", "vector"): _footprints,
    ("trees", "vector"): _trees,
}
_WANTED = {
    "canopy": "give a raster of heights, or points with a column of heights",
    "trees": "give a file of points",
    "segment": "give polygons with a column of classes, or a raster of classes",
    "classify": "give points or polygons with a column of labels",
}


def read_area(path: str) -> Area:
    """The polygons within which labels are complete."""
    vectors = _read(path, None, Counter())
    if not set(vectors.frame.geom_type) <= {"Polygon", "MultiPolygon"}:
        raise InputError(f"{path}: the labelled area must be polygons")
    return Area(vectors.crs, vectors.frame.geometry.to_numpy())


def _read(path: str, layer: str | None, dropped: Counter[str]) -> Vectors:
    try:
        drawn = read_drawn(Path(path), layer)
    except AOIError as error:
        # The reader of AOIs is used for its care with CRSs and damaged files; only the name of the option differs.
        raise InputError(f"labels {str(error).replace('--aoi-layer', '--layer')}") from error
    crs = drawn.declared or drawn.implied
    if crs is None:
        raise InputError(f"labels {path} have no CRS; set it: ogr2ogr -a_srs EPSG:... NEW {path}")
    frame = drawn.frame
    empty = (frame.geometry.isna() | frame.geometry.is_empty).to_numpy()
    bounds = frame.geometry.bounds.to_numpy()
    broken = ~empty & ~np.isfinite(bounds).all(axis=1)
    dropped["label without a geometry"] += int((empty | broken).sum())
    frame = frame[~(empty | broken)].reset_index(drop=True)
    if not len(frame):
        raise InputError(f"labels {path} are empty: no feature has a geometry")
    if crs.is_geographic and not (np.abs(frame.total_bounds) <= [360, 90, 360, 90]).all():
        raise InputError(
            f"labels {path}: coordinates up to {np.abs(frame.total_bounds).max():,.0f} are no degrees; their CRS "
            f"{crs.name} is wrong"
        )
    return Vectors(path, crs, frame)


def _points(vectors: Vectors, what: str) -> Vectors:
    """The file's points one by one, or the refusal of what is none."""
    kinds = Counter(vectors.frame.geom_type)
    other = {kind: number for kind, number in kinds.items() if kind not in ("Point", "MultiPoint")}
    if other:
        kind, number = max(other.items(), key=lambda pair: pair[1])
        raise InputError(
            f"labels {vectors.path} hold {number} {kind}s, and {what} are points; give each a point, such as its "
            "centroid in QGIS"
        )
    if "MultiPoint" in kinds:
        vectors = Vectors(vectors.path, vectors.crs, vectors.frame.explode(ignore_index=True))
    return vectors


def _once(parts: Sequence[Vectors], columns: Sequence[str], dropped: Counter[str]) -> list[Vectors]:
    """The parts without features that repeat an earlier one's place, to a millimetre, and the values of columns."""
    seen: set[tuple[object, ...]] = set()
    kept = []
    for part in parts:
        for column in columns:
            _require(part, column)
        xy = np.round(_xy(part), 8 if part.crs.is_geographic else 3)
        keys = zip(*xy.T.tolist(), *(part.frame[column].tolist() for column in columns), strict=True)
        keep = []
        for key in keys:
            keep.append((part.crs.to_wkt(), key) not in seen)
            seen.add((part.crs.to_wkt(), key))
        dropped["duplicate label"] += len(keep) - sum(keep)
        kept.append(Vectors(part.path, part.crs, part.frame[keep]))
    return kept


def _xy(part: Vectors) -> Doubles:
    xy: Doubles = shapely.get_coordinates(part.frame.geometry.to_numpy())
    return xy


def _scene_names(parts: Sequence[Vectors], column: str | None) -> npt.NDArray[np.object_] | None:
    if column is None:
        return None
    return np.concatenate([_require(part, column).astype(str).to_numpy(object) for part in parts])


def _require(part: Vectors, column: str) -> pd.Series:
    if column not in part.frame or column == part.frame.geometry.name:
        known = [str(name) for name in part.frame.columns if name != part.frame.geometry.name]
        raise ConfigError(f"labels {part.path} have no column {column}" + nearest(column, known))
    return part.frame[column]


def _numbers(part: Vectors, column: str) -> Doubles:
    try:
        return np.asarray(pd.to_numeric(_require(part, column)), np.float64)
    except (ValueError, TypeError) as error:
        raise InputError(f"labels {part.path}: column {column} holds no numbers: {error}") from error


def _height_column(part: Vectors, asked: str | None) -> str:
    if asked is None:
        lower = {str(name).lower(): str(name) for name in part.frame.columns}
        asked = next((lower[name] for name in HEIGHT_COLUMNS if name in lower), None)
    if asked is None:
        known = ", ".join(str(name) for name in part.frame.columns if name != part.frame.geometry.name) or "none"
        raise ConfigError(f"labels {part.path}: which column holds heights in metres? It has {known}; name one")
    if _FEET_NAME.search(asked):
        raise InputError(f"labels {part.path}: column {asked} is in feet; multiply by 0.3048 and call it height_m")
    _require(part, asked)
    return asked


def _radius(part: Vectors, options: LabelOptions, sensor: str | None) -> Doubles:
    if options.radius_column is not None:
        return _numbers(part, options.radius_column)
    if options.radius_m is not None:
        return np.full(len(part.frame), options.radius_m)
    if options.sensor is None:
        own = next((column for column in RADIUS_COLUMNS if column in part.frame), None)
        if own is not None:
            return _numbers(part, own)
    name = (options.sensor or sensor or "").lower()
    if name not in SENSOR_RADIUS_M:
        said = f"sensor {options.sensor} is not known" if options.sensor else "nothing says the radius of a footprint"
        raise ConfigError(f"labels {part.path}: {said}; give a radius in metres, its column, or one of "
                          f"{', '.join(SENSOR_RADIUS_M)}")  # fmt: skip
    return np.full(len(part.frame), SENSOR_RADIUS_M[name])


def _check_heights(path: str, heights: Doubles) -> None:
    low, high = int((heights < LOWEST_M).sum()), int((heights > HIGHEST_M).sum())
    if low or high:
        lowest = float(heights.min(initial=0))
        raise InputError(heights_sentence(f"labels {path}", low, high, len(heights), lowest))
