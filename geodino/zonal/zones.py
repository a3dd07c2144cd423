"""Zones: polygons with their attributes, read and checked as an AOI is, then laid into a map's pixels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
import shapely
from pyproj import CRS
from shapely.geometry import MultiPolygon, Polygon

from geodino.aoi import AOI, read_polygons
from geodino.aoi_files import read_drawn
from geodino.errors import AOIError, InputError
from geodino.grid import Window
from geodino.polygons import Shapes, area_m2, densified, joined, made_valid, polygons, projected, same_crs, unwrapped
from geodino.zonal.ground import Ground
from geodino.zonal.uncertainty import Ints, Layout

Floats = npt.NDArray[np.float64]

# What the reader of AOIs says, in the words of zones.
_WORDS = (
    ("--aoi-layer", "--zones-layer"),
    ("--aoi-crs", "--zones-crs"),
    ("--repair-aoi", "--repair-zones"),
    ("an AOI needs polygons", "zones are polygons"),
    ("draw a smaller AOI or choose another CRS", "give smaller zones, or a map in another CRS"),
)
# And in those of somebody who gives a frame.
_FRAME = "GeoDataFrame"
_FRAME_WORDS = (("with --repair-aoi", "of its make_valid()"), *_WORDS)
# So far from the map's middle its equal-area projection is torn sooner or later, metres.
_FAR_M = 5e6
# Of the map's longer side: how much around it is kept of a zone that is cut to it, and into how many chords that
# outline is cut; each strays from its arc by far less than what is kept.
_AROUND, _CHORDS = 0.02, 512
# Pixels by which a border on a pixel's edge may be off it: the rounding noise of coordinates.
_NOISE = 1e-6
# Neighbours whose borders were drawn apart by a rounding share slivers; zones that overlap share more of the smaller.
_SLIVER = 1e-6


@dataclass(frozen=True, eq=False)
class Zones:
    """Polygons to make statistics of.

    Attributes
    ----------
    frame
        One row a zone: valid polygons or multipolygons in 2-D, their attributes, and a CRS.
    numbers
        (Z,) of their features, counting from 1 as messages do.
    origin
        Where they come from.
    notes
        What was left out or repaired, in sentences.
    """

    frame: gpd.GeoDataFrame
    numbers: Ints
    origin: str
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.frame)


def read_zones(
    what: str | Path | gpd.GeoDataFrame, *, layer: str | None = None, crs: str | None = None, repair: bool = False
) -> Zones:
    """Read polygons from whatever `read_aoi` takes, or check those of a GeoDataFrame; zones may overlap.

    Flat polygons are left out as points and lines are.

    Parameters
    ----------
    what
        A frame has a CRS; its features are numbered by its rows from 1, and its index is not kept.
    layer, crs, repair
        As of `read_aoi`.

    Raises
    ------
    InputError
        Nothing readable, no CRS, no polygon, or one that crosses itself and is not to be repaired, by its number.
    """
    framed = isinstance(what, gpd.GeoDataFrame)
    try:
        aoi = _of_frame(what, crs, repair=repair) if framed else _of_file(what, layer, crs, repair=repair)
    except AOIError as error:
        text = str(error)
        for old, new in _FRAME_WORDS if framed else _WORDS:
            text = text.replace(old, new)
        raise InputError(text) from error
    notes = list(aoi.repairs)
    if aoi.dropped:
        notes.append(
            f"{aoi.origin}: {aoi.dropped} points, lines and features without an area are no zones and were left out"
        )
    return replace(zones_of(aoi), notes=tuple(notes))


def _of_file(what: str | Path, layer: str | None, crs: str | None, *, repair: bool) -> AOI:
    """As `read_polygons`, but flat polygons are left out, where it refuses all for the first of them."""
    try:
        return read_polygons(what, layer=layer, crs=crs, repair=repair)
    except AOIError:
        drawn = read_drawn(what, layer)
        own = drawn.declared or (drawn.implied if crs is None else None)
        if (own or crs) is None or not _flat(drawn.frame.geometry.to_numpy()).any():
            raise
    return _checked(drawn.frame.set_crs(own), drawn.origin, crs, repair=repair)


def _of_frame(frame: gpd.GeoDataFrame, crs: str | None, *, repair: bool) -> AOI:
    if frame.active_geometry_name is None:
        raise AOIError(f"{_FRAME}: has no geometry; name its column with set_geometry")
    if frame.crs is None and crs is None:
        raise AOIError(f"{_FRAME}: has no CRS; name the one it was drawn in with set_crs")
    return _checked(frame, _FRAME, crs, repair=repair)


def _checked(frame: gpd.GeoDataFrame, origin: str, crs: str | None, *, repair: bool) -> AOI:
    """The polygons of a frame but for flat ones, as `read_polygons` has those of a file. Raises AOIError as it does."""
    shapes = frame.geometry.to_numpy().copy()
    shapes[_flat(shapes)] = None
    # The reader takes files, so that is what geometries go through; the attributes stay as they are.
    with TemporaryDirectory() as folder:
        path = Path(folder) / "zones.parquet"
        gpd.GeoDataFrame(geometry=shapes, crs=frame.crs).to_parquet(path)
        try:
            aoi = read_polygons(path, crs=crs, repair=repair)
        except AOIError as error:
            raise AOIError(str(error).replace(str(path), origin)) from error
    own = frame.drop(columns=frame.active_geometry_name).iloc[aoi.numbers - 1].reset_index(drop=True)
    placed = gpd.GeoDataFrame(pd.DataFrame(own), geometry=aoi.frame.geometry.to_numpy(), crs=aoi.frame.crs)
    repairs = tuple(sentence.replace(str(path), origin) for sentence in aoi.repairs)
    return replace(aoi, frame=placed, origin=origin, repairs=repairs)


def _flat(shapes: Shapes) -> npt.NDArray[np.bool_]:
    """(N,) which polygons have no area; none where all have none, which the reader of files refuses itself."""
    flat = np.zeros(len(shapes), dtype=bool)
    drawn = np.isin(shapely.get_type_id(shapes), (shapely.GeometryType.POLYGON, shapely.GeometryType.MULTIPOLYGON))
    for at in np.flatnonzero(drawn & ~shapely.is_valid(shapes)).tolist():
        flat[at] = np.isfinite(shapely.get_coordinates(shapes[at])).all() and made_valid(shapes[at]).is_empty
    return flat & ~flat.all()


def zones_of(aoi: AOI) -> Zones:
    """The features of an AOI; what was repaired or left out of it is said by whoever read it."""
    return Zones(aoi.frame, aoi.numbers, aoi.origin)


@dataclass(frozen=True, eq=False)
class Placed:
    """Zones in a map's pixels: x counts columns, y rows upwards.

    Attributes
    ----------
    shapes
        (Z,) polygons; of one that the map's CRS cannot hold, what of it is near the map, empty if nothing is.
    area_m2
        (Z,) geodesic areas.
    row, col, row_stop, col_stop
        (Z,) the pixels that a zone's box meets, half-open, cut to the map; none where it does not meet it.
    whole
        (Z,) whether the box of the whole zone lies in the map.
    """

    shapes: Shapes
    area_m2: Floats
    row: Ints
    col: Ints
    row_stop: Ints
    col_stop: Ints
    whole: npt.NDArray[np.bool_]

    @cached_property
    def height(self) -> Ints:
        return self.row_stop - self.row

    @cached_property
    def width(self) -> Ints:
        return self.col_stop - self.col

    @property
    def meets(self) -> npt.NDArray[np.bool_]:
        """(Z,) whether the box of a zone meets the map."""
        return (self.height > 0) & (self.width > 0)

    @cached_property
    def layout(self) -> Layout:
        """How the zones are laid out in blocks."""
        return Layout.of(self.row, self.col, self.height, self.width)

    def middle_of(self, zones: Ints) -> tuple[float, float]:
        """Row and column in the middle of some zones."""
        row, col = self.row[zones] + self.row_stop[zones], self.col[zones] + self.col_stop[zones]
        return float(row.mean() / 2), float(col.mean() / 2)

    def window(self, zone: int) -> Window:
        """The pixels that the zone's box meets."""
        return Window(int(self.row[zone]), int(self.col[zone]), int(self.height[zone]), int(self.width[zone]))


def place(zones: Zones, ground: Ground) -> Placed:
    """Lay zones over a map.

    An edge is straight in the CRS that the zone was drawn in: longer ones are cut into kilometres before they are
    projected. Borders that two zones share stay shared. A zone too large for the map's CRS, a country in a UTM zone, is
    cut to the map's surroundings first.
    """
    source, target = CRS.from_user_input(str(zones.frame.crs)), ground.crs
    drawn = zones.frame.geometry.to_numpy()
    edged = densified(drawn, source)
    flat = projected(edged, source, ground.equal_area)
    away = np.abs(np.nan_to_num(shapely.bounds(flat), nan=np.inf)).max(axis=1)
    areas = shapely.area(flat)
    for zone in np.flatnonzero(away > _FAR_M).tolist():
        areas[zone] = _wide_area_m2(drawn[zone], source)
    shapes = edged if same_crs(source, target) else projected(edged, source, target)
    lost = ~np.isfinite(shapely.bounds(shapes)).all(axis=1)
    # What lies on the other side of the earth may be folded onto the map.
    lost |= target.is_projected & (away > max(_FAR_M, 1.5 * ground.reach_m))
    shapes[lost] = _near(drawn[lost], source, ground)
    shapes = shapely.transform(shapes, ground.in_pixels)
    torn = ~shapely.is_valid(shapes)
    shapes[torn] = [made_valid(shape) for shape in shapes[torn]]
    extent = ground.extent
    west, south, east, north = np.nan_to_num(shapely.bounds(shapes), nan=-1e9).T
    row, row_stop = _edges(-north, -south, extent.height)
    col, col_stop = _edges(west, east, extent.width)
    whole = (np.minimum(west, -north) >= -_NOISE) & (east <= extent.width + _NOISE) & (-south <= extent.height + _NOISE)
    whole &= ~lost & ~shapely.is_empty(shapes)
    return Placed(shapes, np.asarray(areas), row, col, row_stop, col_stop, whole)


def _near(drawn: Shapes, source: CRS, ground: Ground) -> Shapes:
    """What of zones lies around the map, in the map's CRS; empty where nothing does."""
    around = _surroundings(ground, source)
    cut = [joined(polygons(part)) for part in shapely.intersection(drawn, around)]
    found = projected(densified(np.array(cut, dtype=object), source), source, ground.crs)
    found[~np.isfinite(shapely.bounds(found)).all(axis=1)] = Polygon()
    return found


def _surroundings(ground: Ground, source: CRS) -> Polygon | MultiPolygon:
    """The map's outline and a little more in the CRS of zones; empty where that CRS has no place for it."""
    height, width = ground.extent.shape
    more = _AROUND * max(height, width) + 1
    ring = shapely.segmentize(shapely.box(-more, -height - more, width + more, more), max(height, width) / _CHORDS)
    outline = shapely.transform(ring, ground.in_crs)
    moved = projected(np.array([outline]), ground.crs, source)
    back = projected(moved, source, ground.crs)
    off = shapely.get_coordinates(shapely.transform(back[0], ground.in_pixels)) - shapely.get_coordinates(ring)
    # Far from where it is used a CRS may fold one side of the earth onto the other.
    if not (np.abs(off) < 1).all():
        return Polygon()
    if not source.is_geographic:
        return made_valid(moved[0])
    try:
        (lonlat,) = unwrapped(moved, str(ground.layers.seen))
    except AOIError:  # The map holds a pole.
        return Polygon()
    # Zones over the antimeridian pass 180 degrees, whichever side of it the map is on.
    turns = [shapely.transform(lonlat, lambda xy, at=at: xy + np.array([at, 0.0])) for at in (-360, 0, 360)]
    return shapely.union_all([made_valid(turn) for turn in turns])


def _wide_area_m2(shape: Polygon | MultiPolygon, crs: CRS) -> float:
    """Geodesic area, also of a shape whose ring in degrees runs around the world and so has no inside."""
    if not crs.is_geographic:
        return area_m2(shape, crs)
    slices = shapely.box(np.arange(-180, 540, 90), -90, np.arange(-90, 630, 90), 90)
    return sum(area_m2(part, crs) for part in shapely.intersection(shape, slices))


def overlap_note(placed: Placed, numbers: Ints) -> tuple[str, ...]:
    """A sentence where zones overlap, with the first two."""
    solid = np.flatnonzero(~shapely.is_empty(placed.shapes))
    shapes = placed.shapes[solid]
    one, other = shapely.STRtree(shapes).query(shapes, predicate="intersects")
    ahead = one < other
    one, other = one[ahead], other[ahead]
    inside = ~shapely.touches(shapes[one], shapes[other])
    one, other = one[inside], other[inside]
    shared = shapely.area(shapely.intersection(shapes[one], shapes[other]))
    over = shared > _SLIVER * np.minimum(shapely.area(shapes[one]), shapely.area(shapes[other]))
    if not over.any():
        return ()
    count = len(np.unique(np.concatenate([one[over], other[over]])))
    first = numbers[solid[[one[over][0], other[over][0]]]]
    said = (
        f"{count:,} zones overlap others, features {first[0]} and {first[1]} among them: each is counted for itself, "
        "so what they share is in the figures of both"
    )
    return (said,)


def _edges(low: Floats, high: Floats, stop: int) -> tuple[Ints, Ints]:
    """Whole pixels from `low` to `high`, cut to 0..stop."""
    first = np.clip(np.floor(low + _NOISE), 0, stop).astype(np.int64)
    last = np.clip(np.ceil(high - _NOISE), 0, stop).astype(np.int64)
    return first, np.maximum(last, first)
