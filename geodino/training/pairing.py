"""Lays scenes and labels over each other: which scenes, on which pixels, cut into which chips."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
import shapely
from affine import Affine
from odc.geo.crs import CRS
from pyproj import CRS as ProjCRS
from pyproj import Transformer

from geodino.aoi import AOI
from geodino.grid import Grid, Window, by_code, choose_crs
from geodino.polygons import WGS84, same_crs
from geodino.sources import Scene, Search, find_scenes
from geodino.sources.warp import footprint_window

Points = npt.NDArray[np.float64]

# A scene whose pixels are this close to the wanted GSD keeps them: over a chip of 256 px that is 2.5 px, less than
# photos lean, and resampling would blur every one of them.
SAME_GSD = 0.01
# A raster that is larger than a chip by less than this part of it is one chip, in its middle: four would show the same
# ground, and the one leaves out no more than 3 % at each edge.
SPARE = 1 / 16
# Labels are searched for imagery in one go where they span no more than this; farther apart no UTM zone holds them.
REGION_DEG = (12.0, 16.0)
# The area to search is drawn as boxes of a lattice, at most so many.
SEARCH_BOXES = 200
SEARCH_STEP_DEG = 0.01


@dataclass(frozen=True, eq=False)
class Frame:
    """The north-up pixel grid that the chips of one scene are cut from.

    Attributes
    ----------
    name
        The scene's id, made unique.
    scene, grid
        As `Mosaic` reads them. A scene that keeps its own pixels is told to lie at the origin, so that row and col of
        the grid are those of its file.
    crs, transform
        From (col, row) of the grid to the ground.
    extent
        The scene's pixels on the grid.
    """

    name: str
    scene: Scene
    grid: Grid
    crs: CRS
    transform: Affine
    extent: Window

    def transform_of(self, window: Window) -> Affine:
        """From (col, row) of a window to the ground."""
        t = self.transform
        return Affine(t.a, 0.0, t.c + window.col * t.a, 0.0, t.e, t.f + window.row * t.e)

    def pixels(self, xy: Points) -> Points:
        """(M, 2) x, y in `crs` as fractional (col, row) of the grid: (0.5, 0.5) is the centre of pixel (0, 0)."""
        t = self.transform
        return np.column_stack([(xy[:, 0] - t.c) / t.a, (xy[:, 1] - t.f) / t.e])

    def window_over(self, bounds: tuple[float, float, float, float]) -> Window:
        """The pixels of the scene that meet (minx, miny, maxx, maxy) in `crs`; may be empty."""
        minx, miny, maxx, maxy = bounds
        (col, row), (col_stop, row_stop) = self.pixels(np.array([[minx, maxy], [maxx, miny]])).tolist()
        return window_between(row, col, row_stop, col_stop).intersection(self.extent)

    def bounds(self, window: Window) -> tuple[float, float, float, float]:
        """(minx, miny, maxx, maxy) of a window in `crs`."""
        t = self.transform_of(window)
        return t.c, t.f + window.height * t.e, t.c + window.width * t.a, t.f


@dataclass(frozen=True, eq=False)
class Cut:
    """One chip to be: a window of a frame, and all windows of that frame."""

    frame: Frame
    window: Window
    siblings: tuple[Window, ...]


def window_between(row: float, col: float, row_stop: float, col_stop: float) -> Window:
    """The whole pixels that hold a rectangle; a thousandth of a pixel is rounding noise, as in Grid.window_over."""
    slack = 1e-3
    top, left = math.floor(row + slack), math.floor(col + slack)
    return Window(top, left, math.ceil(row_stop - slack) - top, math.ceil(col_stop - slack) - left)


def frames_of(scenes: Sequence[Scene], gsd_m: float) -> list[Frame]:
    """A frame for each scene: its own pixels where they are north up and of the wanted GSD, else geodino's grid."""
    frames: list[Frame] = []
    taken: dict[str, int] = {}
    for scene in scenes:
        taken[scene.id] = taken.get(scene.id, 0) + 1
        name = scene.id if taken[scene.id] == 1 else f"{scene.id}#{taken[scene.id]}"
        frames.append(_frame(name, scene, gsd_m))
    return frames


def _frame(name: str, scene: Scene, gsd_m: float) -> Frame:
    centre = scene.footprint_in(CRS("EPSG:4326")).centroid
    crs = choose_crs(centre.x, centre.y, scene.crs)
    t = scene.transform
    sides = np.array([t.a, -t.e])
    if crs == by_code(scene.crs) and not t.b and not t.d and (np.abs(sides - gsd_m) <= SAME_GSD * gsd_m).all():
        here = replace(scene, transform=Affine(gsd_m, 0.0, 0.0, 0.0, -gsd_m, 0.0))
        return Frame(name, here, Grid(scene.crs, gsd_m), crs, t, Window(0, 0, *scene.shape))
    grid = Grid(crs, gsd_m)
    return Frame(name, scene, grid, crs, Affine(gsd_m, 0.0, 0.0, 0.0, -gsd_m, 0.0), footprint_window(scene, grid))


def tiled(area: Window, extent: Window, size: int, overlap: int = 0, *, spare: float = 0.0) -> tuple[Window, ...]:
    """As few squares of `size` px as cover an area, spread evenly, and within the extent where that is large enough.

    Parameters
    ----------
    area
        Within the extent; nothing comes out where it is empty.
    overlap
        Pixels that neighbours share at least.
    spare
        An area that is larger than a square by less than this part of it is one square, in its middle.
    """
    if area.empty:
        return ()
    alone = size + math.ceil(spare * size) - 1 if spare else size
    rows = _starts(area.row, area.row_stop, extent.row, extent.row_stop, size, overlap, alone)
    cols = _starts(area.col, area.col_stop, extent.col, extent.col_stop, size, overlap, alone)
    return tuple(Window(row, col, size, size) for row in rows for col in cols)


def _starts(first: int, stop: int, low: int, high: int, size: int, overlap: int, alone: int) -> list[int]:
    length = stop - first
    if length <= alone:
        start = first - (size - length) // 2
        # Rather more imagery on one side than none on the other.
        return [min(max(start, low), high - size) if high - low >= size else low - (size - (high - low)) // 2]
    count = math.ceil((length - overlap) / (size - overlap))
    return [first + round(place * (length - size) / (count - 1)) for place in range(count)]


@lru_cache(maxsize=1024)
def _mover(source: str, target: str) -> Transformer | None:
    """The transformer between two CRSs, None where they mean the same; making one takes milliseconds."""
    one, other = ProjCRS.from_user_input(source), ProjCRS.from_user_input(target)
    return None if same_crs(one, other) else Transformer.from_crs(one, other, always_xy=True)


def moved(xy: Points, source: ProjCRS | CRS, target: ProjCRS | CRS) -> Points:
    """(M, 2) x, y of one CRS in another; not finite where PROJ cannot."""
    mover = _mover(str(source), str(target))
    return xy if mover is None else np.column_stack(mover.transform(xy[:, 0], xy[:, 1]))


def scenes_over(
    boxes: npt.NDArray[np.float64], sources: Sequence[str], search: Search, *, whole: bool
) -> tuple[list[Scene], list[str]]:
    """The scenes that lie over labels, each once, and sentences about those left out.

    Parameters
    ----------
    boxes
        (M, 4) west, south, east, north of labels, WGS84 degrees.
    whole
        Search the whole rectangle around a region's labels, as scenes may be named that no label lies on.
    """
    found: dict[tuple[str, str], Scene] = {}
    said: dict[str, None] = {}
    for region in _regions(boxes):
        area = AOI(gpd.GeoDataFrame(geometry=[_search_area(region, whole=whole)], crs=WGS84), "the labels' area")
        result = find_scenes(sources, aoi=area, search=search)
        found.update({(scene.id, scene.bands[0].href): scene for scene in result.scenes})
        said.update(dict.fromkeys(result.dropped))
    # By name and not by date, so that the order of chips does not depend on how regions fell.
    return [found[key] for key in sorted(found)], list(said)


def _regions(boxes: npt.NDArray[np.float64]) -> Iterator[npt.NDArray[np.float64]]:
    """The boxes in groups that one UTM zone can hold, cut at the widest gaps."""
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    spans = np.ptp(centres, axis=0) / REGION_DEG
    axis = int(spans.argmax())
    if spans[axis] <= 1:
        yield boxes
        return
    order = centres[:, axis].argsort(kind="stable")
    cut = int(np.diff(centres[order, axis]).argmax()) + 1
    yield from _regions(boxes[order[:cut]])
    yield from _regions(boxes[order[cut:]])


def span(boxes: npt.NDArray[np.float64]) -> tuple[float, float, float, float]:
    """The bounds of (M, 4) west, south, east, north."""
    west, south = boxes[:, :2].min(axis=0).tolist()
    east, north = boxes[:, 2:].max(axis=0).tolist()
    return west, south, east, north


def _search_area(boxes: npt.NDArray[np.float64], *, whole: bool) -> shapely.Geometry:
    """A polygon that holds all boxes: squares of a lattice, coarse enough to be few."""
    if whole:
        return shapely.box(*span(boxes)).buffer(SEARCH_STEP_DEG / 10, join_style="mitre")
    step = SEARCH_STEP_DEG
    while True:
        first, last = np.floor(boxes[:, :2] / step).astype(int), np.floor(boxes[:, 2:] / step).astype(int)
        if (np.prod(last - first + 1, axis=1)).max() <= SEARCH_BOXES:
            cells = {
                (x, y)
                for (x0, y0), (x1, y1) in zip(first.tolist(), last.tolist(), strict=True)
                for x in range(x0, x1 + 1)
                for y in range(y0, y1 + 1)
            }
            if len(cells) <= SEARCH_BOXES:
                break
        step *= 2
    corners = np.array(sorted(cells), float) * step
    return shapely.union_all(shapely.box(corners[:, 0], corners[:, 1], corners[:, 0] + step, corners[:, 1] + step))


def outlines(cuts: Sequence[Cut]) -> npt.NDArray[np.float64]:
    """(N, 4, 2) longitude, latitude of the corners of each chip's part of its scene, in ring order, WGS84 degrees."""
    rings = np.zeros((len(cuts), 4, 2))
    for number, cut in enumerate(cuts):
        minx, miny, maxx, maxy = cut.frame.bounds(cut.window.intersection(cut.frame.extent))
        rings[number] = [(minx, miny), (maxx, miny), (maxx, maxy), (minx, maxy)]
    return in_degrees(rings, [str(cut.frame.crs) for cut in cuts])


def corners_of(table: pd.DataFrame, side_m: float) -> npt.NDArray[np.float64]:
    """(N, 4, 2) longitude, latitude of the corners of chips, in ring order, WGS84 degrees.

    Parameters
    ----------
    table
        Columns `crs`, and `west` and `north` of the north-west corner.
    """
    steps = np.array([(0, -side_m), (side_m, -side_m), (side_m, 0), (0, 0)])
    rings = table[["west", "north"]].to_numpy(np.float64)[:, None] + steps
    return in_degrees(rings, table["crs"].astype(str).tolist())


def in_degrees(rings: npt.NDArray[np.float64], crs: Sequence[str]) -> npt.NDArray[np.float64]:
    """(N, 4, 2) x, y of rings, each in its CRS, as longitude, latitude, WGS84 degrees."""
    found = np.zeros_like(rings)
    by_crs: dict[str, list[int]] = {}
    for number, name in enumerate(crs):
        by_crs.setdefault(name, []).append(number)
    for name, numbers in by_crs.items():
        xy = moved(rings[numbers].reshape(-1, 2), ProjCRS.from_user_input(name), WGS84)
        found[numbers] = xy.reshape(-1, 4, 2)
    return found
