"""Polygons between CRSs: kept valid, true to their edges, and in one piece across the antimeridian.

And their edges on a grid, sorted so that a window finds those in its rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import shapely
from pyproj import CRS, Geod, Transformer
from shapely.geometry import MultiPolygon, Polygon
from shapely.geometry.base import BaseGeometry
from shapely.geometry.polygon import orient

from geodino.errors import AOIError
from geodino.grid import Grid, Window

WGS84 = CRS("EPSG:4326")
# A straight edge is cut into pieces this long before it is projected. A chord of 1 km strays from its parallel by
# length^2 * tan(latitude) / (8 * earth radius): 3 cm at 60 degrees, a twentieth of the finest pixel we read.
SEGMENT_M = 1000.0
SEGMENT_DEG = 0.01

Shapes = npt.NDArray[np.object_]


def leaves(shape: BaseGeometry | None) -> list[BaseGeometry]:
    """The points, lines and polygons of a geometry, collections opened; none if it is None or empty."""
    if shape is None or shape.is_empty:
        return []
    if hasattr(shape, "geoms"):
        return [leaf for part in shape.geoms for leaf in leaves(part)]
    return [shape]


def polygons(shape: BaseGeometry | None) -> list[Polygon]:
    """The polygons of a geometry, without its points and lines."""
    return [leaf for leaf in leaves(shape) if leaf.geom_type == "Polygon"]


def joined(parts: Sequence[Polygon]) -> Polygon | MultiPolygon:
    """A Polygon of one part, a MultiPolygon of several or none."""
    return parts[0] if len(parts) == 1 else MultiPolygon(parts)


def made_valid(shape: Polygon | MultiPolygon) -> Polygon | MultiPolygon:
    """The repaired polygons; empty where nothing with an area is left.

    By structure, not by linework: what two parts both cover stays covered.
    """
    return joined(polygons(shapely.make_valid(shape, method="structure", keep_collapsed=False)))


def same_crs(one: CRS, other: CRS) -> bool:
    """Whether two CRSs mean the same x and y (all our coordinates are x, y, whatever the axis order says)."""
    return bool(one.equals(other, ignore_axis_order=True))


def densified(shapes: Shapes, crs: CRS) -> Shapes:
    """Shapes whose edges have a vertex at least every kilometre or so."""
    step = SEGMENT_DEG if crs.is_geographic else SEGMENT_M / crs.axis_info[0].unit_conversion_factor
    return np.asarray(shapely.segmentize(shapes, step))


def projected(shapes: Shapes, source: CRS, target: CRS) -> Shapes:
    """Shapes with each vertex moved from one CRS to another; not finite where PROJ cannot."""
    move = Transformer.from_crs(source, target, always_xy=True).transform
    return np.asarray(shapely.transform(shapes, lambda xy: np.column_stack(move(*xy.T))))


class Edges(NamedTuple):
    """Edges that cross a row of pixel centres, by how many rows they cross (in powers of two), then from the north.

    Of edges that cross under 2**k rows, those that meet a window begin at most 2**k rows north of it: a slice.
    """

    first: npt.NDArray[np.int64]  # (N,) grid rows
    last: npt.NDArray[np.int64]
    northern: npt.NDArray[np.float64]  # (N, 2) end as (col, row), counted in pixel centres
    slope: npt.NDArray[np.float64]  # (N,) columns a row
    west: npt.NDArray[np.float64]  # (N,) column
    sizes: tuple[tuple[int, slice], ...]  # rows that are not reached, and the edges that do not reach them

    def crossing(
        self, window: Window
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """First and last row, northern end and slope of the edges in the window's rows, none wholly east of it."""
        found = [np.empty(0, np.int64)]
        for rows, alike in self.sizes:
            north, south = np.searchsorted(self.first[alike], [window.row - rows, window.row_stop])
            found.append(np.arange(alike.start + north, alike.start + south))
        near = np.concatenate(found)
        near = near[(self.last[near] >= window.row) & (self.west[near] <= window.col_stop)]
        return self.first[near], self.last[near], self.northern[near], self.slope[near]


def sorted_edges(geometry: Polygon | MultiPolygon, grid: Grid) -> Edges:
    """The edges of a geometry in the grid's CRS."""
    # By parts, because get_rings looks into polygons only and gives nothing for a multipolygon.
    rings = shapely.get_rings(shapely.get_parts(geometry))
    xy, ring = shapely.get_coordinates(rings, return_index=True)
    at = xy / (grid.gsd, -grid.gsd) - 0.5
    one, other = (ends[ring[1:] == ring[:-1]] for ends in (at[:-1], at[1:]))
    northward = (one[:, 1] > other[:, 1])[:, None]
    start, stop = np.where(northward, other, one), np.where(northward, one, other)
    first, last = (np.floor(end[:, 1]).astype(np.int64) for end in (start, stop))
    first += 1
    size = np.frexp(last - first + 1)[1]  # 2 ** (size - 1) <= rows < 2 ** size
    order = np.lexsort((first, size))
    order = order[last[order] >= first[order]]
    start, stop = start[order], stop[order]
    sizes = np.unique(size[order])
    begin, end = (np.searchsorted(size[order], sizes, side) for side in ("left", "right"))
    alike = [(2**k, slice(b, e)) for k, b, e in np.column_stack([sizes, begin, end]).tolist()]
    slope = (stop[:, 0] - start[:, 0]) / (stop[:, 1] - start[:, 1])
    return Edges(first[order], last[order], start, slope, np.minimum(start[:, 0], stop[:, 0]), tuple(alike))


def area_m2(shape: Polygon | MultiPolygon, crs: CRS) -> float:
    """Geodesic area on the WGS84 ellipsoid; of an invalid ring the signed sum of its lobes, without the sign."""
    geod, total = Geod(ellps="WGS84"), 0.0
    for part in polygons(shape):
        # Ring by ring, because GEOS drops lobes of an invalid polygon when it densifies it.
        rings = projected(densified(shapely.get_rings(part), crs), crs, WGS84)
        total += abs(geod.geometry_area_perimeter(orient(Polygon(rings[0], rings[1:])))[0])
    return total


def wrapped(lon: float) -> float:
    """A longitude in [-180, 180]."""
    return lon if -180 <= lon <= 180 else (lon + 180) % 360 - 180


def unwrapped(shapes: Shapes, origin: str) -> Shapes:
    """Lon/lat shapes in one piece across the antimeridian: longitudes from -180 up to 540 at most.

    Not by the antimeridian package: it cuts at 180, which leaves a seam in every other CRS, and of a polygon from 179
    to 181 it leaves holes where they were (0.4.9, `fix_polygon_to_list`).

    Raises
    ------
    AOIError
        If a ring runs around a pole, or is wider than the world.
    """
    parts, owner = shapely.get_parts(shapes, return_index=True)
    jumping = _jumping(parts)
    for at in np.flatnonzero(jumping):
        parts[at] = _unwrapped_polygon(parts[at], origin)
    west, east = shapely.bounds(parts).T[[0, 2]]
    if (east - west > 360).any():
        raise AOIError(f"{origin}: a polygon is {(east - west).max():.10g} degrees wide; a world has 360")
    turns = _turns(west, east)
    moved = jumping | (turns != 0)
    for at in np.flatnonzero(turns):
        offset = np.array([360 * turns[at], 0.0])
        parts[at] = shapely.transform(parts[at], lambda xy, offset=offset: xy + offset)
    whole = shapes.copy()
    for at in np.unique(owner[moved]):
        own = parts[slice(*np.searchsorted(owner, [at, at + 1]))]
        # Parts that were cut at 180 meet again along it; a MultiPolygon of them would not be valid.
        whole[at] = shapely.union_all(own) if shapely.is_valid(own).all() else joined(own.tolist())
    return whole


def _turns(west: npt.NDArray[np.float64], east: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """By how many times 360 degrees to move each part: to start in -180..180, and all parts near each other."""
    turns = -np.floor((west + 180) / 360)
    if np.ptp([west + 360 * turns, east + 360 * turns]) <= 180:
        return turns
    nearer = turns + (west + east + 720 * turns < 0)
    return nearer if np.ptp([west + 360 * nearer, east + 360 * nearer]) < 180 else turns


def _jumping(parts: Shapes) -> npt.NDArray[np.bool_]:
    """Which polygons have an edge longer than 180 degrees; one of 360 runs along a pole, as in Antarctica's outline."""
    xy, owner = shapely.get_coordinates(parts, return_index=True)
    step = np.abs(np.diff(xy[:, 0]))
    jumps = (step > 180) & (step != 360) & (owner[1:] == owner[:-1])
    return np.isin(np.arange(len(parts)), owner[1:][jumps])


def _unwrapped_polygon(polygon: Polygon, origin: str) -> Polygon:
    rings = [shapely.get_coordinates(ring) for ring in (polygon.exterior, *polygon.interiors)]
    for xy in rings:
        step = np.diff(xy[:, 0])
        xy[1:, 0] -= 360 * np.cumsum(np.where(np.abs(step) == 360, 0, np.round(step / 360)))
        if abs(xy[-1, 0] - xy[0, 0]) > 1:
            raise AOIError(f"{origin}: a polygon runs around a pole; leave the pole out")
    west = rings[0][:, 0].min()
    for hole in rings[1:]:
        hole[:, 0] += 360 * np.ceil((west - hole[:, 0].min()) / 360)
    return Polygon(rings[0], rings[1:])
