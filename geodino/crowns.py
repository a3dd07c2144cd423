"""Crowns: which cells of a height map belong to which tree, as a flood from the tree tops divides them.

The flood is scikit-image's marker-controlled watershed: it starts at the tops and comes down the heights, the highest
cell first, and a cell falls to the tree whose flood reaches it first. Of equal heights the first in reading order
counts as the higher, so that no two cells are equal and the order of the flood does not depend on the array it runs
in. A tree then keeps those of its cells that lie within its reach and above a share of its height, as far as they hang
together with its top edge to edge. Cells below the least height of a tree belong to none.

Whose a cell is can be told by the heights around it alone, without the whole map: go from the cell to the highest cell
beside all those gone to so far, again and again; the first top met is the cell's tree. So the flood may run in any
window of the map, if what comes from outside is kept apart: here the window's border cells flood too, as "unsettled".
A cell that such a flood reaches might be different in a larger window; every other cell is settled for good. A crown
without an unsettled cell in its reach is the same in every window, whatever else the window holds.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import shapely
from rasterio.features import shapes
from scipy.spatial import KDTree
from skimage.measure import label
from skimage.segmentation import watershed

from geodino.errors import ConfigError

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Indices = npt.NDArray[np.intp]
Labels = npt.NDArray[np.int32]

# rasterio changes the warning filters, which are the whole process's, while it traces outlines: two threads at it would
# take each other's for their own (rasterio 1.4).
_ALONE = threading.Lock()


@dataclass(frozen=True)
class CrownSettings:
    """How far a crown may go.

    Attributes
    ----------
    min_share
        A crown holds no cell lower than this share of its top's height, 0..1. The default 0.3 is the exclusion of
        Silva et al. 2016 (Canadian Journal of Remote Sensing 42(5), doi:10.1080/07038992.2016.1196582).
    reach
        How far from the top a cell may lie, in radii that the allometry gives a tree of that height. Crowns vary
        about the allometry's mean and stand off their top. With the default 2 the crowns on five lidar height maps
        of 0.6 m (parks, riverside, conifers, native forest) hold 0.57 to 0.83 of the canopy above 2 m, with 1 only
        0.25 to 0.43, and their median width is 1.08 to 1.27 times the allometry's.
    """

    min_share: float = 0.3
    reach: float = 2.0

    def __post_init__(self) -> None:
        if not 0 <= self.min_share <= 1:
            raise ConfigError(f"crown min_share {self.min_share} must lie in 0 to 1")
        if not 0 < self.reach < np.inf:
            raise ConfigError(f"crown reach of {self.reach} radii must be over 0 and finite")


class Tops(NamedTuple):
    """Tree tops in a height map, in reading order.

    Attributes
    ----------
    rows, cols
        (N,) int, their cells in the array.
    heights
        (N,) float64, metres.
    reaches
        (N,) float64, cells: how far from the top its crown may go.
    """

    rows: Indices
    cols: Indices
    heights: Doubles
    reaches: Doubles


class Crowns(NamedTuple):
    """Crowns of the tops that were asked for.

    Attributes
    ----------
    labels
        (h, w) int32: k in the crown of the k-th top asked for, counted from 1, and 0 in none. A part of the height
        map: nothing beyond belongs to these crowns.
    row, col
        Where that part begins.
    settled
        Whether these crowns are the same in every larger window.
    """

    labels: Labels
    row: int
    col: int
    settled: bool


def draw_crowns(height: Floats, tops: Tops, asked: Indices, settings: CrownSettings, *, floor_m: float) -> Crowns:
    """Divide a height map among its trees.

    Parameters
    ----------
    height
        (H, W), metres; NaN where nothing is known, which belongs to no crown.
    tops
        All tops in it.
    asked
        (N,), the numbers of the tops whose crowns are wanted, at least one. The others hold their ground against them.
    floor_m
        Over 0: lower cells belong to no crown.
    """
    labels = flood(height, tops, floor_m=floor_m)
    own = Tops(tops.rows[asked], tops.cols[asked], tops.heights[asked], tops.reaches[asked])
    reach = math.ceil(own.reaches.max())
    top, left = max(int(own.rows.min()) - reach, 0), max(int(own.cols.min()) - reach, 0)
    part = np.s_[top : int(own.rows.max()) + reach + 1, left : int(own.cols.max()) + reach + 1]
    labels, height = labels[part], height[part]
    own = own._replace(rows=own.rows - top, cols=own.cols - left)
    settled = not _may_hold_any(height, own, labels == len(tops.rows) + 1, settings)
    renumbered = np.zeros(len(tops.rows) + 2, np.int32)
    renumbered[asked + 1] = np.arange(1, len(asked) + 1)
    crowns = renumbered[labels]
    rows, cols = np.nonzero(crowns)
    lost = ~_may_hold(height, own, crowns[rows, cols].astype(np.intp) - 1, rows, cols, settings)
    crowns[rows[lost], cols[lost]] = 0
    pieces = label(crowns, background=0, connectivity=1)
    with_top = np.zeros(int(pieces.max()) + 1, np.bool_)
    with_top[pieces[own.rows, own.cols]] = True
    crowns[~with_top[pieces]] = 0
    return Crowns(crowns, top, left, settled)


def flood(height: Floats, tops: Tops, *, floor_m: float) -> Labels:
    """The watershed from the tops: 1 + the number of a cell's top, 0 below the floor, N + 1 where it is unsettled."""
    ground = height >= floor_m
    markers = np.zeros(height.shape, np.int32)
    markers[tops.rows, tops.cols] = np.arange(1, len(tops.rows) + 1)
    for border in (markers[0], markers[-1], markers[:, 0], markers[:, -1]):
        border[:] = len(tops.rows) + 1
    markers[~ground] = 0
    found: Labels = watershed(-_rank(height, ground), markers, connectivity=1, mask=ground)
    return found


def outlines(
    labels: Labels, count: int, corner: tuple[int, int], gsd: float, origin: tuple[float, float]
) -> npt.NDArray[np.object_]:
    """The outline of each crown along the edges of its cells, shape (count,); None for a label that is not there.

    Parameters
    ----------
    labels
        1..count, 0 for none; the cells of one label hang together edge to edge.
    corner
        Row and column of the array's first cell on the surface's lattice.
    gsd, origin
        Of that lattice.

    Returns
    -------
    object array
        Polygons in the CRS, holes and all, in shapely's normal form: equal crowns are equal to the last bit.
    """
    found = np.full(count, None, object)
    rings: list[list[tuple[float, float]]] = []
    ring_of, polygon_of = [], []
    with _ALONE:
        traced = list(shapes(labels, mask=labels > 0, connectivity=4))
    for outline, value in traced:
        polygon_of.append(int(value) - 1)
        ring_of += [len(polygon_of) - 1] * len(outline["coordinates"])
        rings += outline["coordinates"]
    if not rings:
        return found
    # Whole cells first, metres last, in the same sums as everywhere: so a corner that two crowns share is one point,
    # and a crown is the same to the last bit whichever array it was drawn from.
    right, down = np.concatenate([np.asarray(ring) for ring in rings]).T
    points = np.stack([origin[0] + (right + corner[1]) * gsd, origin[1] - (down + corner[0]) * gsd], axis=1)
    drawn = shapely.linearrings(points, indices=np.repeat(np.arange(len(rings)), [len(ring) for ring in rings]))
    found[polygon_of] = shapely.normalize(shapely.polygons(drawn, indices=np.array(ring_of)))
    return found


def _rank(height: Floats, ground: Bools) -> Doubles:
    """A number for each cell above the floor, no two alike: by height, of equal ones the first in reading order.

    Positive floats are ordered as their bits are, read as whole numbers. Those are counted from the lowest, and take
    the cell's place below them; so heights of 2 to 96 m leave room for 2^26 cells in the 53 bits of a double.
    """
    bits = height[ground].view(np.int32).astype(np.int64)
    rank = np.zeros(height.shape, np.float64)
    if bits.size:
        bits -= bits.min()
        if (int(bits.max()) + 1) * height.size > 2**53:  # Heights of all sizes; their order is enough.
            bits = np.unique(bits, return_inverse=True)[1].astype(np.int64)
        rank[ground] = bits * height.size + (height.size - 1 - np.flatnonzero(ground))
    return rank


def _may_hold(
    height: Floats, tops: Tops, number: Indices, rows: Indices, cols: Indices, settings: CrownSettings
) -> Bools:
    """Whether each cell lies in the reach of the top of that number, and high enough."""
    near = (rows - tops.rows[number]) ** 2 + (cols - tops.cols[number]) ** 2 <= tops.reaches[number] ** 2
    high = height[rows, cols].astype(np.float64) >= settings.min_share * tops.heights[number]
    return np.asarray(near & high)


def _may_hold_any(height: Floats, tops: Tops, cells: Bools, settings: CrownSettings) -> bool:
    """Whether any of the cells lies in the reach of any of the tops, and high enough."""
    rows, cols = np.nonzero(cells)
    if not len(rows):
        return False
    tree = KDTree(np.stack([tops.rows, tops.cols], axis=1))
    near = tree.query_ball_point(np.stack([rows, cols], axis=1), float(tops.reaches.max()))
    counts = [len(numbers) for numbers in near]
    number = np.concatenate([np.asarray(numbers, np.intp) for numbers in near])
    return bool(_may_hold(height, tops, number, np.repeat(rows, counts), np.repeat(cols, counts), settings).any())
