"""Trees in zones: points counted, and how unsure the count is.

A tree belongs to a zone by a half-open rule: one on a border that two zones share belongs to the zone east of it, or
north of it where the border runs due east, as `AOIMask` has it for pixels. So zones that are cut from one
another share no tree and lose none.

A tree with a score is a tree with that probability; one that was found on height, with the probability that its height
is over LEAST_M, from its height and spread. So the number of those that are trees is a Poisson binomial count, of
variance sum p (1 - p) where each errs for itself, and of what `uncertainty.variances_of_points` says where neighbours
err together. geodino takes the threshold of the best F1 (`training.tasks`), where about as many trees are missed as are
found where there is none, so those that are missed are given the same variance again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import shapely
from pyproj import CRS
from pyproj.exceptions import CRSError
from shapely.errors import GEOSException

from geodino.aoi_files import read_drawn
from geodino.errors import AOIError, InputError
from geodino.polygons import Shapes, projected, same_crs
from geodino.zonal.ground import Ground
from geodino.zonal.sums import chance_above
from geodino.zonal.uncertainty import BLOCKS, Correlation, Layout, variances_of_points
from geodino.zonal.zones import Placed

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

LEAST_M = 2.0
"""Trees that were found on height are over this, as `treetops` has it unless told otherwise."""

SCORE_COLUMNS = ("score", "confidence", "probability")
_COLUMNS = (*SCORE_COLUMNS, "height_m", "height_spread_m")
_ROWS = 500_000
# Zones whose blocks of doubts are in memory at once.
_ZONES = 1024
# Cross products of coordinates in pixels that are zero but for rounding.
_ON_EDGE = 1e-9


@dataclass(frozen=True, eq=False)
class Points:
    """Points in a map's pixels.

    Attributes
    ----------
    xy
        (N, 2) columns to the right, rows upwards.
    chance
        (N,) that there is a tree, NaN where nothing says so.
    """

    xy: Floats
    chance: Floats


@dataclass(frozen=True, eq=False)
class Counts:
    """Trees of Z zones: (Z,) their number, and its variance, NaN where one of them has no probability."""

    count: Ints
    variance: Floats


def read_points(path: Path, ground: Ground) -> Iterator[Points]:
    """Read points, some at a time: trees.parquet of a run, or any vector file of points.

    Raises
    ------
    InputError
        Nothing readable, no CRS, something else than points, or scores outside of 0 to 1.
    """
    parts = _parquet(path) if _is_parquet(path) else _file(path)
    for shapes, columns, crs in parts:
        points, row = shapely.get_parts(shapes, return_index=True)
        if not (shapely.get_type_id(points) == shapely.GeometryType.POINT).all():
            raise InputError(f"trees {path} hold something else than points: give each tree as a point")
        if not same_crs(crs, ground.crs):
            points = projected(points, crs, ground.crs)
        yield Points(ground.in_pixels(shapely.get_coordinates(points)), _chances(path, columns.iloc[row]))


def count_points(parts: Iterator[Points], placed: Placed, step_m: Floats, errs: Correlation) -> Counts:
    """Count points in zones, with the variance of their number; a zone's own `step_m` is metres a pixel."""
    found = [np.empty((0, 5))]
    for points in parts:
        zone, point = within(placed.shapes, points.xy)
        chance = points.chance[point]
        found.append(np.column_stack([zone, points.xy[point], np.sqrt(chance * (1 - chance)), np.isnan(chance)]))
    pairs = np.concatenate(found)
    pairs = pairs[np.argsort(pairs[:, 0], kind="stable")]
    zone = pairs[:, 0].astype(np.int64)
    count = np.bincount(zone, minlength=len(placed.shapes))
    variance = np.zeros(len(count))
    for start in range(0, len(count), _ZONES):
        some = np.arange(start, min(start + _ZONES, len(count)))
        here = slice(*np.searchsorted(zone, [start, start + len(some)]))
        layout = placed.layout.take(some)
        variance[some] = _variance(zone[here] - start, pairs[here], layout, step_m[some], errs)
    return Counts(count, variance)


def within(shapes: Shapes, xy: Floats) -> tuple[Ints, Ints]:
    """Pairs of polygons and the points (N, 2) that belong to them, by the half-open rule."""
    tree = shapely.STRtree(shapely.points(xy))
    zone, point = tree.query(shapes, predicate="intersects")
    inside_zone, inside_point = tree.query(shapes, predicate="contains_properly")
    inside = np.isin(zone * len(xy) + point, inside_zone * len(xy) + inside_point)
    for pair in np.flatnonzero(~inside).tolist():
        inside[pair] = _owns(shapes[zone[pair]], *xy[point[pair]])
    return zone[inside].astype(np.int64), point[inside].astype(np.int64)


def _owns(shape: shapely.Geometry, x: float, y: float) -> bool:
    """Whether a point on a polygon's border is in it once it is moved east, and north, by next to nothing."""
    rings = shapely.get_rings(shapely.get_parts(shape))
    ends, ring = shapely.get_coordinates(rings, return_index=True)
    one, other = ends[:-1][ring[1:] == ring[:-1]], ends[1:][ring[1:] == ring[:-1]]
    # From south to north, so that both owners of an edge compute the same.
    upward = (one[:, 1] <= other[:, 1])[:, None]
    low, high = np.where(upward, one, other), np.where(upward, other, one)
    spans = (low[:, 1] <= y) & (y < high[:, 1])
    low, high = low[spans], high[spans]
    # Negative where the edge lies west of the point.
    side = (low[:, 0] - x) * (high[:, 1] - low[:, 1]) + (high[:, 0] - low[:, 0]) * (y - low[:, 1])
    return int((side <= _ON_EDGE * (high[:, 1] - low[:, 1])).sum()) % 2 == 1


def _variance(zone: Ints, pairs: Floats, layout: Layout, step_m: Floats, errs: Correlation) -> Floats:
    """(Z,) of the points of Z zones, one row a point: zone, x, y, doubt, and 1 where it has no probability."""
    zones, doubt = len(step_m), np.nan_to_num(pairs[:, 3])
    block = layout.block_of(zone, np.floor(-pairs[:, 2]).astype(np.int64), np.floor(pairs[:, 1]).astype(np.int64))
    sums = np.asarray(np.bincount(zone * BLOCKS**2 + block, doubt, zones * BLOCKS**2), np.float64)
    squares = np.asarray(np.bincount(zone, doubt**2, zones), np.float64)[:, None]
    found = variances_of_points(sums.reshape(zones, 1, -1), squares, layout, step_m, errs)[:, 0]
    unknown = np.bincount(zone, pairs[:, 4], zones) > 0
    # Once for those that are found and are none, once for those that are missed.
    return np.where(unknown, np.nan, 2 * found)


def _chances(path: Path, columns: pd.DataFrame) -> Floats:
    """The probability of each tree: its score, else from its height; NaN where it has neither."""

    def numbers(name: str) -> Floats:
        if name not in columns:
            return np.full(len(columns), np.nan)
        try:
            return np.asarray(pd.to_numeric(columns[name]), np.float64)
        except (ValueError, TypeError) as error:
            raise InputError(f"trees {path}: column {name} holds no numbers: {error}") from error

    score = numbers(next((name for name in SCORE_COLUMNS if name in columns), SCORE_COLUMNS[0]))
    if ((score < 0) | (score > 1)).any():
        raise InputError(f"trees {path}: scores of {np.nanmin(score):g} to {np.nanmax(score):g} must lie in 0 to 1")
    height, spread = numbers("height_m"), numbers("height_spread_m")
    on_height = chance_above(
        np.nan_to_num(height).astype(np.float32), np.nan_to_num(spread).astype(np.float32), LEAST_M
    )
    return np.where(np.isnan(score), np.where(np.isfinite(height + spread), on_height, np.nan), score)


def _is_parquet(path: Path) -> bool:
    """By its name, or by its first bytes: a run has not named its files yet when it asks."""
    if path.suffix.lower() in (".parquet", ".geoparquet") or not path.is_file():
        return path.suffix.lower() in (".parquet", ".geoparquet")
    with path.open("rb") as file:
        return file.read(4) == b"PAR1"


def _parquet(path: Path) -> Iterator[tuple[Shapes, pd.DataFrame, CRS]]:
    try:
        with pq.ParquetFile(path) as file:
            said = json.loads((file.metadata.metadata or {})[b"geo"])
            name = said["primary_column"]
            column = said["columns"][name]
            if column["encoding"] != "WKB":
                raise InputError(f"trees {path} hold their points as {column['encoding']}; write them as WKB")
            # A null CRS is unknown; none at all is longitude and latitude (GeoParquet 1.1).
            crs = CRS.from_user_input(column.get("crs", "OGC:CRS84"))
            wanted = [name, *(own for own in _COLUMNS if own in file.schema_arrow.names)]
            for batch in file.iter_batches(_ROWS, columns=wanted):
                columns = batch.to_pandas()
                yield shapely.from_wkb(columns.pop(name).to_numpy()), columns, crs
    except (OSError, pa.ArrowException, ValueError, KeyError, CRSError, GEOSException) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"trees {path} cannot be read as GeoParquet with a CRS: {error}") from error


def _file(path: Path) -> Iterator[tuple[Shapes, pd.DataFrame, CRS]]:
    try:
        drawn = read_drawn(path, None)
    except AOIError as error:
        raise InputError(f"trees {str(error).replace('; choose one with --aoi-layer', '')}") from error
    crs = drawn.declared or drawn.implied
    if crs is None:
        raise InputError(f"trees {path} have no CRS: set it, ogr2ogr -a_srs EPSG:... NEW {path}")
    yield drawn.frame.geometry.to_numpy(), pd.DataFrame(drawn.frame.drop(columns=drawn.frame.geometry.name)), crs
