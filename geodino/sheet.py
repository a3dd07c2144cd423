"""Where areas go in a picture: one stays whole, many that lie far apart are laid side by side at one scale.

Of 50 plots in a district a picture of the district shows 50 dots. So where the ground between areas would take nearly
all of it, each area is drawn with a little ground around it, in the order of the features, row by row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import shapely

from geodino.grid import Grid, Window
from geodino.plan import Plan

# As many pixels as the larger side of a panel can show.
LARGEST_PX = 1500

# Areas are taken apart where a pixel of the whole would be as many pixels wide, and they fill less than this of it.
_COARSE = 4
_LEAST_FILLED = 1 / 16

_MOST_SITES = 150
_GAP_PX = 10
# Ground shown around an area: this share of its longer side, and at least so many pixels of the map.
_AROUND = 0.1
_LEAST_AROUND_PX = 16


@dataclass(frozen=True)
class Site:
    """A part of a picture: its window on the picture's grid, its place (row, col) in the picture, and its features."""

    window: Window
    row: int
    col: int
    name: str = ""

    @property
    def part(self) -> Window:
        """Its pixels in the picture."""
        return Window(self.row, self.col, *self.window.shape)


@dataclass(frozen=True)
class Sheet:
    """A picture of sites.

    Attributes
    ----------
    grid
        Of its pixels, whole ones of the map.
    shape
        (H, W), pixels.
    sites
        One where the picture is of the whole.
    left_out
        How many sites are not drawn, the smallest ones.
    """

    grid: Grid
    shape: tuple[int, int]
    sites: tuple[Site, ...]
    left_out: int = 0


def lay_out(plan: Plan) -> Sheet:
    """The sheet of a run's areas."""
    coarser = max(1, -(-max(plan.extent.shape) // LARGEST_PX))
    grid = Grid(plan.grid.crs, plan.grid.gsd * coarser)
    window = grid.window_over(plan.grid.bounds(plan.extent))
    whole = Sheet(grid, window.shape, (Site(window, 0, 0),))
    if coarser < _COARSE:
        return whole
    boxes = _boxes(plan)
    filled = float(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1).sum())
    if len(boxes) < 2 or filled > _LEAST_FILLED * window.height * window.width * grid.gsd**2:
        return whole
    return _side_by_side(plan, boxes)


def _boxes(plan: Plan) -> npt.NDArray[np.float64]:
    """(N, 4) bounds of areas that lie apart, with the ground around them, in the grid's CRS."""
    bounds = shapely.bounds(shapely.get_parts(plan.geometry))
    longer = (bounds[:, 2:] - bounds[:, :2]).max(axis=1, keepdims=True)
    around = np.maximum(_AROUND * longer, _LEAST_AROUND_PX * plan.grid.gsd)
    together = shapely.union_all(shapely.box(*np.hstack([bounds[:, :2] - around, bounds[:, 2:] + around]).T))
    return np.asarray(shapely.bounds(shapely.get_parts(together)))


def _side_by_side(plan: Plan, boxes: npt.NDArray[np.float64]) -> Sheet:
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    kept = boxes[np.argsort(-areas, kind="stable")[:_MOST_SITES]]
    named = sorted(_named(plan, kept), key=lambda found: found[:2])
    coarser = max(1, math.floor(math.sqrt(areas.sum()) / plan.grid.gsd / LARGEST_PX))
    while True:
        grid = Grid(plan.grid.crs, plan.grid.gsd * coarser)
        windows = [grid.window_over(box) for *_, box in named]
        places, shape = _packed([window.shape for window in windows])
        if max(shape) <= LARGEST_PX:
            break
        coarser += 1
    sites = (Site(window, *at, name) for window, at, (_, _, name, _) in zip(windows, places, named, strict=True))
    return Sheet(grid, shape, tuple(sites), len(boxes) - len(kept))


_Named = tuple[int, float, str, tuple[float, float, float, float]]


def _named(plan: Plan, boxes: npt.NDArray[np.float64]) -> list[_Named]:
    """Of each box its first feature, how far south it lies, the numbers of its features for people, and its bounds."""
    frame = plan.aoi.features(plan.grid.crs)
    box, feature = shapely.STRtree(frame.geometry.to_numpy()).query(shapely.box(*boxes.T), predicate="intersects")
    found: list[_Named] = []
    for number, bounds in enumerate(boxes):
        own = np.sort(plan.aoi.numbers[feature[box == number]]).tolist()
        name = ", ".join(map(str, own[:3])) + ("..." if len(own) > 3 else "")
        west, south, east, north = bounds.tolist()
        # All areas of one feature have its number, which tells nothing.
        found.append((own[0], -north, name if len(frame) > 1 else "", (west, south, east, north)))
    return found


def _packed(sizes: Sequence[tuple[int, int]]) -> tuple[list[tuple[int, int]], tuple[int, int]]:
    """Places (row, col) of rectangles of those sizes in rows, about as wide as high together, and their shape."""
    whole = sum((height + _GAP_PX) * (width + _GAP_PX) for height, width in sizes)
    across = max(math.ceil(math.sqrt(whole)), max(width for _, width in sizes))
    places: list[tuple[int, int]] = []
    row = col = tallest = widest = 0
    for height, width in sizes:
        if col and col + width > across:
            row, col, tallest = row + tallest + _GAP_PX, 0, 0
        places.append((row, col))
        tallest, widest = max(tallest, height), max(widest, col + width)
        col += width + _GAP_PX
    return places, (row + tallest, widest)
