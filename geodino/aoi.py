"""The area of interest: polygons from a file, WKT or a bbox, checked, then laid over the run's pixels.

A polygon over the antimeridian is held unwrapped (179 to 181 degrees), so that it stays in one piece wherever it is
projected to; only `AOI.geojson` cuts it at 180. Features count from 1 in messages.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NoReturn

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import shapely
from odc.geo.crs import CRS
from pyproj import CRS as ProjCRS
from pyproj import Transformer
from pyproj.exceptions import ProjError
from shapely.geometry import MultiPolygon, Polygon
from shapely.geometry.polygon import orient

from geodino.aoi_files import Drawn, parse_crs, read_drawn
from geodino.errors import AOIError
from geodino.grid import Grid, Window
from geodino.polygons import (
    WGS84,
    Edges,
    Shapes,
    area_m2,
    densified,
    joined,
    leaves,
    made_valid,
    polygons,
    projected,
    same_crs,
    sorted_edges,
    unwrapped,
    wrapped,
)

# National AOIs are often drawn in one UTM zone (all of Italy is up to 6.5 degrees east of zone 32); coordinates in
# the wrong zone or order are tens of degrees away.
AREA_OF_USE_MARGIN_DEG = 10.0


@dataclass(frozen=True, eq=False)
class AOI:
    """The polygons that were asked for. `read_aoi` makes one; the constructor checks nothing.

    Attributes
    ----------
    frame
        One row a feature, index 0..n-1: valid polygons or multipolygons in 2-D, their attributes, and a CRS.
        Longitudes may pass 180.
    origin
        What the user gave: a path, `bbox ...`, `WKT` or `sample:NAME`.
    repaired_area_m2
        Area that the repair changed: of each repaired feature, geodesic area after it less the signed area as drawn
        (0 for a symmetric bow-tie, as its lobes turn in opposite directions). 0.0 when nothing was repaired.
    dropped
        How many points, lines and empty features were left out.
    repairs
        A sentence for each repaired feature: where it crossed itself, and what it covers now.
    kept
        The number in the file of each row's feature, counting from 1; None: all were kept.
    """

    frame: gpd.GeoDataFrame
    origin: str
    repaired_area_m2: float = 0.0
    dropped: int = 0
    repairs: tuple[str, ...] = ()
    kept: npt.NDArray[np.int64] | None = None

    @property
    def numbers(self) -> npt.NDArray[np.int64]:
        """(N,) the number of each row's feature, as messages count them."""
        return np.arange(1, len(self.frame) + 1) if self.kept is None else self.kept

    def geometry(self, crs: CRS) -> Polygon | MultiPolygon:
        """The union of all features in `crs`, in one piece across the antimeridian.

        Raises
        ------
        AOIError
            If `crs` cannot hold the AOI, such as the whole world in one UTM zone.
        """
        return self._placed(np.array([self._union]), _proj_crs(crs))[0]

    def features(self, crs: CRS) -> gpd.GeoDataFrame:
        """`frame` in `crs`, its edges as true as those of `geometry`. Raises AOIError like `geometry`."""
        shapes = self._placed(self.frame.geometry.to_numpy(), _proj_crs(crs))
        return self.frame.set_geometry(gpd.GeoSeries(shapes, index=self.frame.index, crs=_proj_crs(crs)))

    @cached_property
    def lonlat(self) -> Polygon | MultiPolygon:
        """The union in WGS84 longitude and latitude; unwrapped, so longitudes may pass 180."""
        return self._placed(np.array([self._union]), WGS84)[0]

    @cached_property
    def centre(self) -> tuple[float, float]:
        """(lon, lat) of the centroid, degrees, WGS84."""
        point = self.lonlat.centroid
        return wrapped(point.x), point.y

    @cached_property
    def bounds_lonlat(self) -> tuple[float, float, float, float]:
        """(minx, miny, maxx, maxy), degrees, WGS84; minx > maxx over the antimeridian (RFC 7946, section 5.2)."""
        minx, miny, maxx, maxy = self.lonlat.bounds
        return (minx, miny, maxx, maxy) if maxx <= 180 else (wrapped(minx), miny, wrapped(maxx), maxy)

    @cached_property
    def area_ha(self) -> float:
        """Geodesic area of the union on the WGS84 ellipsoid, hectares."""
        # By slices, because the ring around a whole world turns back on itself and has no inside.
        slices = shapely.box(np.arange(-180, 540, 90), -90, np.arange(-90, 630, 90), 90)
        return sum(area_m2(part, WGS84) for part in shapely.intersection(self.lonlat, slices)) / 1e4

    def geojson(self) -> dict[str, object]:
        """The union as a GeoJSON geometry (RFC 7946): WGS84, counter-clockwise, cut at the antimeridian."""
        worlds = shapely.intersection(self.lonlat, shapely.box([-180, 180], -90, [180, 540], 90))
        worlds[1] = shapely.transform(worlds[1], lambda xy: xy - np.array([360.0, 0.0]))
        parts = [orient(part) for world in worlds for part in polygons(world)]
        geometry: dict[str, object] = json.loads(shapely.to_geojson(joined(parts)))
        return geometry

    @cached_property
    def _union(self) -> Polygon | MultiPolygon:
        return shapely.union_all(self.frame.geometry.to_numpy())

    def _placed(self, shapes: Shapes, target: ProjCRS) -> Shapes:
        """Shapes of the frame's CRS in another CRS: edges true, valid, none torn apart."""
        source = _proj_crs(self.frame.crs)
        if same_crs(source, target):
            return shapes
        moved = projected(densified(shapes, source), source, target)
        inside = projected(shapely.point_on_surface(shapes), source, target)
        if not np.isfinite(shapely.get_coordinates(moved)).all():
            self._refuse_to_place(target)
        if target.is_geographic:
            moved = unwrapped(moved, self.origin)
        invalid = ~shapely.is_valid(moved)
        moved[invalid] = [made_valid(shape) for shape in moved[invalid]]
        # A ring that jumps over the edge of a projection encloses all but the AOI.
        if target.is_projected and not shapely.intersects(moved, inside).all():
            self._refuse_to_place(target)
        return moved

    def _refuse_to_place(self, target: ProjCRS) -> NoReturn:
        raise AOIError(
            f"{self.origin}: the AOI spans {self._union.bounds} and does not fit into {_name(target)} in one piece; "
            "draw a smaller AOI or choose another CRS"
        )


def read_aoi(what: str | Path, *, layer: str | None = None, crs: str | None = None, repair: bool = False) -> AOI:
    """Read and check an AOI.

    Parameters
    ----------
    what
        A file of polygons (GeoJSON, GeoPackage, GeoParquet, FlatGeobuf, KML, shapefile, or another that GDAL reads;
        `.wkt` for text), WKT (`SRID=32610;POLYGON ...` declares its CRS), `minx,miny,maxx,maxy`, whose minx may
        be greater than maxx over the antimeridian, or `sample:NAME` for an AOI that geodino ships. A lon/lat edge
        longer than 180 degrees goes the short way round.
    layer
        Which layer, where a file holds several.
    crs
        Of the coordinates, where `what` declares none. GeoJSON, WKT and bbox are WGS84 lon,lat without it.
    repair
        Use the repaired area of polygons that cross themselves. Without it they are refused.

    Raises
    ------
    AOIError
        If there is no such file or layer, no CRS, no polygon with an area, or coordinates that cannot be meant.
    ConfigError
        If no sample has that name.
    """
    aoi = read_polygons(what, layer=layer, crs=crs, repair=repair)
    assert not aoi.lonlat.is_empty  # Also refuses here, not later, what has no place in lon/lat.
    return aoi


def read_polygons(what: str | Path, *, layer: str | None = None, crs: str | None = None, repair: bool = False) -> AOI:
    """As `read_aoi`, for layers of up to millions of polygons: the union of all is not made, nor placed in lon/lat."""
    drawn = read_drawn(what, layer)
    chosen = _chosen_crs(drawn, crs)
    frame, dropped = _only_polygons(drawn)
    shapes = frame.geometry.to_numpy()
    _check_coordinates(shapes, frame.index.to_numpy() + 1, chosen, drawn)
    if chosen.is_geographic:
        shapes = unwrapped(shapes, drawn.origin)
    numbers = frame.index.to_numpy() + 1
    shapes, repaired_area_m2, repairs = _checked_rings(shapes, numbers, chosen, drawn.origin, repair=repair)
    keep = shapely.area(shapes) > 0
    if not keep.any():
        raise AOIError(f"{drawn.origin}: feature {numbers[0]} has no area; draw a polygon")
    frame = gpd.GeoDataFrame(frame.drop(columns=frame.geometry.name), geometry=shapes, crs=chosen)
    dropped += int((~keep).sum())
    return AOI(frame[keep].reset_index(drop=True), drawn.origin, repaired_area_m2, dropped, repairs, numbers[keep])


@dataclass(frozen=True, eq=False)
class AOIMask:
    """Says of any window which pixel centres lie in a geometry; made once a run, called from any thread.

    A pixel's answer depends on the pixel alone, never on the window. A centre exactly on an edge belongs to the
    polygon east or north of it, so polygons that share an edge share no pixel.

    Attributes
    ----------
    geometry
        Valid, in the grid's CRS.
    """

    geometry: Polygon | MultiPolygon
    grid: Grid

    def __call__(self, window: Window) -> npt.NDArray[np.bool_]:
        """Bool, shape (H, W) of the window; the caller's own."""
        # Cheap where no part is near: of areas scattered over a state nearly everywhere.
        if not self._parts.query(shapely.box(*self.grid.bounds(window))).size:
            return np.zeros(window.shape, np.bool_)
        # Even-odd counting along rows. GDAL's rasterize works in pixels of the window, so a centre near an edge may
        # change sides with the window; here every number is a function of the edge and the grid's row.
        first, last, northern, slope = self._edges.crossing(window)
        first, last = np.maximum(first, window.row), np.minimum(last, window.row_stop - 1)
        count = last - first + 1
        edge = np.repeat(np.arange(len(count)), count)
        row = first[edge] + (np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count))
        crossing = np.ceil(northern[edge, 0] + (row - northern[edge, 1]) * slope[edge])
        col = np.clip(crossing - window.col, 0, window.width).astype(np.int64)
        row -= window.row
        if not ((col > 0) & (col < window.width)).any():
            # No edge within the window: each row is all inside or all outside.
            odd = np.bincount(row[col == 0], minlength=window.height) % 2 == 1
            return np.repeat(odd[:, None], window.width, axis=1)
        turns = np.bincount(row * (window.width + 1) + col, minlength=window.height * (window.width + 1))
        turns = turns.reshape(window.height, window.width + 1)[:, : window.width]
        return np.asarray(np.cumsum(turns, axis=1) % 2 == 1)

    def __reduce__(self) -> tuple[type[AOIMask], tuple[Polygon | MultiPolygon, Grid]]:
        return AOIMask, (self.geometry, self.grid)  # The edges are five times as large and soon made again.

    @cached_property
    def _parts(self) -> shapely.STRtree:
        return shapely.STRtree(shapely.get_parts(self.geometry))

    @cached_property
    def _edges(self) -> Edges:
        return sorted_edges(self.geometry, self.grid)


def aoi_mask(geometry: Polygon | MultiPolygon, grid: Grid, window: Window) -> npt.NDArray[np.bool_]:
    """The mask of one window; for several make an `AOIMask`, which walks the outline once."""
    return AOIMask(geometry, grid)(window)


def boxes_meet(geometry: Polygon | MultiPolygon, grid: Grid, windows: Sequence[Window]) -> npt.NDArray[np.bool_]:
    """Which windows' boxes meet the geometry (in the grid's CRS), if only at an edge: bool, shape (len(windows),)."""
    shapely.prepare(geometry)
    bounds = np.array([grid.bounds(window) for window in windows]).reshape(-1, 4)
    return np.asarray(shapely.intersects(geometry, shapely.box(*bounds.T)))


def _chosen_crs(drawn: Drawn, given: str | None) -> ProjCRS:
    crs = None if given is None else parse_crs(given, "--aoi-crs")
    if crs is not None and drawn.declared is not None and not same_crs(crs, drawn.declared):
        raise AOIError(
            f"{drawn.origin}: says its CRS is {_name(drawn.declared)}, but --aoi-crs says {_name(crs)}; "
            "leave out --aoi-crs, or correct the file"
        )
    chosen = drawn.declared or crs or drawn.implied
    if chosen is None:
        raise AOIError(f"{drawn.origin}: names no CRS; say which with --aoi-crs, such as --aoi-crs EPSG:32610")
    return chosen


def _only_polygons(drawn: Drawn) -> tuple[gpd.GeoDataFrame, int]:
    """The rows that hold polygons, their index kept, and how many points, lines and empty features are left out."""
    frame = drawn.frame.reset_index(drop=True)
    drawn_leaves = [leaves(shape) for shape in frame.geometry]
    kinds = sorted({leaf.geom_type for found in drawn_leaves for leaf in found})
    if len(frame) == 0:
        raise AOIError(f"{drawn.origin}: holds no features; draw a polygon")
    if "Polygon" not in kinds:
        held = f"holds {', '.join(kinds)} only" if kinds else f"all {len(frame)} features are empty"
        raise AOIError(f"{drawn.origin}: {held}; an AOI needs polygons")
    areas = [[leaf for leaf in found if leaf.geom_type == "Polygon"] for found in drawn_leaves]
    dropped = sum(max(len(found), 1) - len(kept) for found, kept in zip(drawn_leaves, areas, strict=True))
    shapes = [shapely.force_2d(joined(kept)) if kept else None for kept in areas]
    frame = frame.set_geometry(gpd.GeoSeries(shapes, index=frame.index))
    return frame[frame.geometry.notna()], dropped


def _check_coordinates(shapes: Shapes, numbers: npt.NDArray[np.int64], crs: ProjCRS, drawn: Drawn) -> None:
    """Raise AOIError at the first coordinate that the CRS cannot mean, with a guess at what went wrong."""
    xy, owner = shapely.get_coordinates(shapes, return_index=True)

    def refuse(bad: npt.NDArray[np.bool_], what: str) -> None:
        if bad.any():
            first = int(np.argmax(bad))
            x, y = xy[first]
            raise AOIError(f"{drawn.origin}: feature {numbers[owner[first]]}: ({x:.10g}, {y:.10g}) {what}")

    refuse(~np.isfinite(xy).all(axis=1), "is not a place; correct the file")
    reach = np.abs(xy)
    if crs.is_geographic:
        hint = _degrees_hint(
            reach, "correct the CRS in the file" if drawn.declared else "give their CRS with --aoi-crs"
        )
        refuse((reach[:, 1] > 90) | (reach[:, 0] > 360), f"is outside longitude and latitude: {hint}")
    elif (reach <= (360, 90)).all():
        refuse(reach[:, 0] >= 0, f"looks like degrees, but the CRS is {_name(crs)}; name the CRS it was drawn in")
    try:
        placed = np.column_stack(Transformer.from_crs(crs, WGS84, always_xy=True).transform(*xy.T))
    except ProjError as error:
        raise AOIError(
            f"{drawn.origin}: {_name(crs)} has no place on the earth; name the CRS it is drawn in"
        ) from error
    refuse(~np.isfinite(placed).all(axis=1), f"is nowhere on earth in {_name(crs)}; check the CRS")
    refuse(
        _outside_area_of_use(placed, crs),
        f"lies far outside where {_name(crs)} is used; check the CRS and the order x,y",
    )


def _degrees_hint(reach: npt.NDArray[np.float64], remedy: str) -> str:
    if (reach > 360).any():
        return f"looks like projected metres; {remedy}, such as EPSG:32610"
    if (reach[:, 0] <= 90).all():
        return "looks like lat,lon order; write lon,lat"
    return "longitude comes first, then latitude of -90 to 90"


def _outside_area_of_use(lonlat: npt.NDArray[np.float64], crs: ProjCRS) -> npt.NDArray[np.bool_]:
    if crs.area_of_use is None:
        return np.zeros(len(lonlat), bool)
    west, south, east, north = crs.area_of_use.bounds
    margin = AREA_OF_USE_MARGIN_DEG
    width = (east - west) % 360 or 360.0
    outside = (lonlat[:, 0] - west + margin) % 360 > width + 2 * margin
    if crs.utm_zone is None:  # Landsat uses the northern zones south of the equator too.
        outside |= (lonlat[:, 1] < south - margin) | (lonlat[:, 1] > north + margin)
    return np.asarray(outside)


def _checked_rings(
    shapes: Shapes,
    numbers: npt.NDArray[np.int64],
    crs: ProjCRS,
    origin: str,
    *,
    repair: bool,
) -> tuple[Shapes, float, tuple[str, ...]]:
    """Valid shapes, the area in m2 that repairing them changed, and a sentence for each repair."""
    shapes, changed_m2, repairs = shapes.copy(), 0.0, []
    for at in np.flatnonzero(~shapely.is_valid(shapes)):
        reason, _, place = shapely.is_valid_reason(shapes[at]).rstrip("]").partition("[")
        where = f"{origin}: feature {numbers[at]}: {reason.lower()} at ({', '.join(place.split())})"
        repaired = made_valid(shapes[at])
        after = area_m2(repaired, crs)
        if repaired.is_empty and not repair:
            raise AOIError(f"{origin}: feature {numbers[at]} has no area; draw a polygon")
        if not repair:
            raise AOIError(f"{where}; redraw it, or take the repaired {after / 1e4:.4g} ha with --repair-aoi")
        repairs.append(f"{where}; repaired, it covers {after / 1e4:.4g} ha")
        changed_m2 += abs(after - area_m2(shapes[at], crs))
        shapes[at] = repaired
    return shapes, changed_m2, tuple(repairs)


def _name(crs: ProjCRS) -> str:
    authority = crs.to_authority()
    return ":".join(authority) if authority else str(crs.name)


def _proj_crs(crs: CRS | ProjCRS) -> ProjCRS:
    return ProjCRS.from_user_input(str(crs))
