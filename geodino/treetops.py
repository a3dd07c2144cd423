"""Trees on a canopy height map: local maxima in a window that grows with their height, and their crowns.

The law: a cell is a tree top if it is at least the least height, and no other cell within the crown radius that the
allometry gives a tree of its height is higher, nor as high and before it in reading order (row by row from the
north-west). Distances go from centre to centre, and the eight cells around it always count. So what a cell is depends
on the heights within that radius alone. Two cells of one height are never both tops within their radius, nor do they
hide each other; a plateau gives one top, its first cell, and another only where its outline is so winding that none of
it within the radius comes before. So a map in whole metres, all plateaus, has too few trees unless it is smoothed.

The window is that of Popescu and Wynne 2004 (Photogrammetric Engineering & Remote Sensing 70(5):589-604,
doi:10.14358/PERS.70.5.589): its diameter is the mean crown width of trees of that height, as in FUSION's CanopyMaxima.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import groupby

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from geodino.crowns import Crowns, CrownSettings, Tops, draw_crowns, outlines
from geodino.errors import ConfigError
from geodino.grid import Window
from geodino.surface import Surface
from geodino.trees import BLOCK, Bools, Floats, Trees, Wanted, local_maxima, looked_up

Indices = npt.NDArray[np.intp]

# Standard deviations to which the smoothing kernel goes: scipy's own default.
_TRUNCATE = 4.0

# How often the ground around a block is doubled for crowns that are not settled yet. On real canopies one block in a
# hundred asks for more, white noise for one doubling everywhere, whole metres for all of them.
_DOUBLINGS = 4


@dataclass(frozen=True)
class HeightSettings:
    """What counts as a tree on a height map.

    Attributes
    ----------
    min_height_m
        Lower cells are neither tops nor crown.
    allometry
        (a, b, c): a tree of height h has a crown of a + b h + c h^2 metres across on average. The default,
        2.51503 + 0.00901 h^2, is that of Popescu and Wynne 2004 for pines and hardwoods together, fitted in Virginia;
        it is also the default of FUSION's CanopyMaxima. Other forests want their own.
    max_diameter_m
        No tree's crown is taken to be wider on average: the parabola runs away beyond the heights that it was fitted
        to, to 35 m for a tree of 60 m. It bounds what must be known around a tree.
    smoothing_m
        Standard deviation of the Gaussian that the heights are smoothed with first, metres; 0 leaves them as they
        are. It goes to four deviations, and cells without a height take no part in it and stay without. Worth having
        on rough heights, whose every branch is a top, and on whole metres, whose plateaus it breaks.
    crowns
        How crowns are drawn; None: they are not.
    """

    min_height_m: float = 2.0
    allometry: tuple[float, float, float] = (2.51503, 0.0, 0.00901)
    max_diameter_m: float = 20.0
    smoothing_m: float = 0.0
    crowns: CrownSettings | None = field(default_factory=CrownSettings)

    def __post_init__(self) -> None:
        for name in ("min_height_m", "max_diameter_m"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} {getattr(self, name)} must be over 0 and finite")
        if not 0 <= self.smoothing_m < math.inf:
            raise ConfigError(f"smoothing_m {self.smoothing_m} must be at least 0 and finite")
        if len(self.allometry) != 3 or not all(math.isfinite(part) for part in self.allometry):
            raise ConfigError(f"allometry {self.allometry} must be three finite numbers: a, b and c of a + b h + c h^2")

    def diameter_m(self, height_m: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Mean crown diameter of trees of those heights, metres."""
        height = np.asarray(height_m, np.float64)
        a, b, c = self.allometry
        return np.clip(a + b * height + c * height**2, 0.0, self.max_diameter_m)

    @property
    def context_m(self) -> float:
        """Metres that a surface must reach beyond what is wanted, for the same trees at its edge as in its midst.

        For tops that holds to the letter. For crowns see `trees_on_height`.
        """
        crowns = self.crowns.reach * self.max_diameter_m if self.crowns else 0.0
        return self.max_diameter_m / 2 + _TRUNCATE * self.smoothing_m + crowns


def trees_on_height(
    surface: Surface,
    settings: HeightSettings,
    *,
    owned: Window | None = None,
    wanted: Wanted | None = None,
    block: int = BLOCK,
) -> Iterator[Trees]:
    """Yield the trees of a height map, block by block of a lattice that hangs on cell (0, 0), row by row of blocks.

    Parameters
    ----------
    surface
        Its band `height`, metres; of `spread` (metres) and `scene` (the scene's number) each tree takes its cell's.
    owned
        The cells whose trees are wanted, half-open; the surface's extent where left out. Cells around it are context.
    wanted
        Which of them; all where left out. A crown may reach beyond.
    block
        Side of the blocks, cells. The trees of all blocks together do not depend on it, nor do their crowns: where
        those of a block are not settled by the ground around it, more ground is looked at, in four steps to sixteen
        times as much. What is then still unsettled belongs to no crown, and might with larger blocks; it takes a
        chain of humps without tops of their own, over a dozen crown radii long.

    Yields
    ------
    Trees
        One batch a block, empty ones too, its trees in reading order of their cells. `height_m` is that of the top's
        cell, not smoothed; `crown_diameter_m` that of a circle of the crown's area.
    """
    for part in (owned or surface.extent).blocks(block):
        yield height_trees(surface, settings, part, wanted=wanted)


def height_trees(surface: Surface, settings: HeightSettings, owned: Window, *, wanted: Wanted | None = None) -> Trees:
    """The trees of one block; see `trees_on_height`."""
    if settings.crowns is None:
        _, tops = _tops_over(surface, owned, settings)
        asked = _asked(tops, owned, owned, wanted)
        return looked_up(_trees(surface, owned, tops, asked), surface)
    context = 2 * math.ceil(settings.crowns.reach * _widest(settings, surface.grid.gsd))
    for doubling in range(_DOUBLINGS + 1):
        seen = owned.padded(context << doubling)
        height, tops = _tops_over(surface, seen, settings)
        asked = _asked(tops, owned, seen, wanted)
        trees = _trees(surface, seen, tops, asked)
        if not len(trees):
            return replace(trees, crown=np.empty(0, object))
        crowns = draw_crowns(height, tops, asked, settings.crowns, floor_m=settings.min_height_m)
        if crowns.settled:
            break
    return looked_up(_with_crowns(trees, crowns, seen, surface), surface)


def find_treetops(
    height: Floats, gsd: float, settings: HeightSettings, *, owned: Window | None = None
) -> tuple[Indices, Indices]:
    """The tops of a height map, after the law above.

    Parameters
    ----------
    height
        (H, W), metres, smoothed or not; NaN where nothing is known, which is no top and hides none.
    gsd
        Metres a cell.
    owned
        Cells of this array whose tops are wanted, half-open; all of them where left out. Cells outside are context.

    Returns
    -------
    rows, cols
        (N,), in reading order.
    """
    top = local_maxima(height, 1) & (height >= settings.min_height_m)
    if owned is not None:
        keep = np.zeros_like(top)
        keep[max(owned.row, 0) : max(owned.row_stop, 0), max(owned.col, 0) : max(owned.col_stop, 0)] = True
        top &= keep
    rows, cols = np.nonzero(top)
    if not len(rows):
        return rows, cols
    # What is highest of its eight neighbours, ring by ring outwards: most are out after a ring or two.
    squares = _radii(settings, height[rows, cols], gsd) ** 2
    reach = math.floor(math.sqrt(squares.max()))
    known = np.pad(np.where(np.isnan(height), -np.inf, height), reach, constant_values=-np.inf)
    order = np.argsort(-squares, kind="stable")
    squares = squares[order]
    place = ((rows + reach) * known.shape[1] + cols + reach)[order]
    known = known.ravel()
    for square, steps, earlier in _rings(reach, height.shape[1] + 2 * reach):
        asking = int(np.searchsorted(-squares, -square, side="right"))
        if not asking:
            break
        here, there = known[place[:asking], None], known[place[:asking, None] + steps]
        beaten = ((there > here) | ((there == here) & earlier)).any(axis=1)
        if beaten.any():
            stays = np.concatenate([~beaten, np.ones(len(place) - asking, np.bool_)])
            place, squares = place[stays], squares[stays]
    place.sort()
    width = height.shape[1] + 2 * reach
    return place // width - reach, place % width - reach


def smoothed(height: Floats, deviation: float) -> Floats:
    """The heights under a Gaussian of that many cells; what is unknown has no weight and stays NaN.

    A cell's value depends on the heights within four deviations, to the last bit: a window of the map gives the same
    as the whole, but for its border.
    """
    if not deviation:
        return height
    known = ~np.isnan(height)
    kernel = {"sigma": deviation, "mode": "constant", "truncate": _TRUNCATE}
    heights = ndimage.gaussian_filter(np.where(known, height, 0.0).astype(np.float64), **kernel)
    weights = ndimage.gaussian_filter(known.astype(np.float64), **kernel)
    found = np.full(height.shape, np.nan, np.float32)
    found[known] = heights[known] / weights[known]
    return found


def _radii(settings: HeightSettings, height: Floats, gsd: float) -> npt.NDArray[np.float64]:
    """Cells within which a top of that height is the highest; at least the eight around it."""
    return np.maximum(settings.diameter_m(height) / 2 / gsd, math.sqrt(2))


def _widest(settings: HeightSettings, gsd: float) -> float:
    """The largest radius, cells."""
    return max(settings.max_diameter_m / 2 / gsd, math.sqrt(2))


def _rings(reach: int, width: int) -> Iterator[tuple[int, Indices, Bools]]:
    """The cells around one, nearest first, those equally far together; beyond the eight neighbours.

    Yields
    ------
    square
        Of their distance, cells.
    steps
        To them in a raveled array of rows of `width` cells.
    earlier
        Whether they come before it in reading order.
    """
    down, right = (step.ravel() for step in np.mgrid[-reach : reach + 1, -reach : reach + 1])
    squares = down**2 + right**2
    order = np.argsort(squares, kind="stable")[9:]
    for square, ring in groupby(order, key=lambda cell: squares[cell]):
        cells = np.fromiter(ring, np.intp)
        earlier = (down[cells] < 0) | ((down[cells] == 0) & (right[cells] < 0))
        yield int(square), down[cells] * width + right[cells], earlier


def _tops_over(surface: Surface, seen: Window, settings: HeightSettings) -> tuple[Floats, Tops]:
    """The heights over a window, smoothed, and all tops in it."""
    gsd = surface.grid.gsd
    margin = math.ceil(_widest(settings, gsd)) + math.ceil(_TRUNCATE * settings.smoothing_m / gsd + 1)
    height = smoothed(surface.read(seen.padded(margin), ("height",))[0], settings.smoothing_m / gsd)
    rows, cols = find_treetops(height, gsd, settings, owned=Window(margin, margin, *seen.shape))
    heights = height[rows, cols]
    reaches = (settings.crowns.reach if settings.crowns else 0.0) * _radii(settings, heights, gsd)
    inner = np.s_[margin : margin + seen.height, margin : margin + seen.width]
    return height[inner], Tops(rows - margin, cols - margin, heights.astype(np.float64), reaches)


def _asked(tops: Tops, owned: Window, seen: Window, wanted: Wanted | None) -> Indices:
    """The numbers of the tops whose cells are owned and wanted."""
    rows, cols = tops.rows + seen.row - owned.row, tops.cols + seen.col - owned.col
    number = np.flatnonzero((rows >= 0) & (rows < owned.height) & (cols >= 0) & (cols < owned.width))
    return number if wanted is None or not len(number) else number[wanted(owned)[rows[number], cols[number]]]


def _trees(surface: Surface, seen: Window, tops: Tops, asked: Indices) -> Trees:
    return Trees.at(surface, tops.rows[asked] + seen.row, tops.cols[asked] + seen.col)


def _with_crowns(trees: Trees, crowns: Crowns, seen: Window, surface: Surface) -> Trees:
    gsd = surface.grid.gsd
    area = np.bincount(crowns.labels.ravel(), minlength=len(trees) + 1)[1:] * gsd**2
    corner = (seen.row + crowns.row, seen.col + crowns.col)
    return replace(
        trees,
        crown_area_m2=area.astype(np.float32),
        crown_diameter_m=(2 * np.sqrt(area / np.pi)).astype(np.float32),
        crown=outlines(crowns.labels, len(trees), corner, gsd, surface.origin),
    )
