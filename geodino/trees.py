"""Trees: a batch of them as plain arrays, and how they are found in a heat map, each one once.

A cell is a peak where no cell of the square around it is hotter, and none as hot comes before it in reading order (row
by row from the north-west). So of two peaks neither lies in the other's square, a row or block of equal cells gives
one peak, and what a cell is depends on the `spacing` cells around it alone: a map cut into pieces gives the same trees
as long as each piece brings `spacing` cells of context and keeps only the peaks whose cell it owns. Pieces own
half-open rectangles of cells, so each peak has exactly one owner; a tree whose offset carries it over the border stays
with the cell it was found in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from geodino.errors import ConfigError
from geodino.grid import Grid, Window

if TYPE_CHECKING:
    from geodino.surface import Surface

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
Wanted = Callable[[Window], Bools]
"""Says which cells of a window are wanted, bool (H, W), such as `geodino.aoi.AOIMask`; a cell's answer depends on the
cell alone."""

BLOCK = 1024
"""Cells: side of the blocks that trees are looked for in, unless told; trees do not depend on it."""


@dataclass(frozen=True, eq=False)
class Trees:
    """One batch of trees, an array a column; N trees.

    Attributes
    ----------
    x, y
        (N,) float64, where the tree stands: metres in the CRS.
    row, col
        (N,) int64, its cell on the surface's absolute lattice. At most one tree a cell; the tree belongs to the
        half-open block its cell lies in, wherever in the cell or beside it the point falls.
    score
        (N,) float32, 0..1, how sure the tree is; NaN where trees were found on height, which says nothing of it.
    height_m, height_spread_m
        (N,) float32, metres; NaN unknown.
    scene
        (N,) uint16, the number of the scene that gave the pixel, counted from 1; 0 unknown.
    crown_area_m2, crown_diameter_m
        (N,) float32; NaN where no crown.
    crown
        (N,) object array of shapely Polygons in the CRS, None where a tree has no crown; None where none were made.

    Raises
    ------
    ValueError
        The columns are not of one length.
    """

    x: npt.NDArray[np.float64]
    y: npt.NDArray[np.float64]
    row: npt.NDArray[np.int64]
    col: npt.NDArray[np.int64]
    score: Floats
    height_m: Floats
    height_spread_m: Floats
    scene: npt.NDArray[np.uint16]
    crown_area_m2: Floats
    crown_diameter_m: Floats
    crown: npt.NDArray[np.object_] | None = None

    def __post_init__(self) -> None:
        columns = (getattr(self, field.name) for field in fields(self))
        lengths = {len(column) for column in columns if column is not None}
        if len(lengths) != 1:
            raise ValueError(f"columns of {sorted(lengths)} trees do not belong together")

    def __len__(self) -> int:
        return len(self.x)

    @classmethod
    def at(cls, surface: Surface, row: npt.NDArray[np.int64], col: npt.NDArray[np.int64]) -> Trees:
        """Trees in the middle of those cells of a surface, of which nothing else is known."""
        x = surface.origin[0] + (col + 0.5).astype(np.float64) * surface.grid.gsd
        y = surface.origin[1] - (row + 0.5).astype(np.float64) * surface.grid.gsd
        unknown = np.full(len(row), np.nan, np.float32)
        scene = np.zeros(len(row), np.uint16)
        return cls(x, y, row, col, unknown, unknown, unknown, scene, unknown, unknown)

    @classmethod
    def concatenated(cls, batches: Sequence[Trees]) -> Trees:
        """The batches' trees in one, in their order; at least one batch, and crowns in all of them or in none."""
        names = [field.name for field in fields(cls) if batches[0].crown is not None or field.name != "crown"]
        return cls(**{name: np.concatenate([getattr(batch, name) for batch in batches]) for name in names})

    def tree_ids(self, grid: Grid, origin: tuple[float, float] = (0.0, 0.0)) -> list[str]:
        """`easting_northing` of each cell's centre to the centimetre: the same for any run, AOI or machine.

        Parameters
        ----------
        grid
            The surface's lattice of cells.
        origin
            (x, y) of the lattice's corner in the CRS, where it does not hang on the CRS's origin.
        """
        eastings = origin[0] + (self.col + 0.5) * grid.gsd
        northings = origin[1] - (self.row + 0.5) * grid.gsd
        return [f"{east:.2f}_{north:.2f}" for east, north in zip(eastings.tolist(), northings.tolist(), strict=True)]


@dataclass(frozen=True, eq=False)
class Peaks:
    """Trees found, in reading order of their cells.

    Attributes
    ----------
    points
        (N, 2) float64, image pixels, x to the right and y down from the map's north-west corner; pixel corners lie
        at whole numbers, so the middle of the first pixel is (0.5, 0.5).
    scores
        (N,) float32, the heat of the peak.
    cells
        (N, 2) int64, row and column of the cell.
    """

    points: npt.NDArray[np.float64]
    scores: Floats
    cells: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.scores)

    def above(self, threshold: float) -> Peaks:
        """The peaks whose score is at least that."""
        keep = self.scores >= threshold
        return Peaks(self.points[keep], self.scores[keep], self.cells[keep])


@dataclass(frozen=True)
class HeatSettings:
    """What counts as a tree on a heat map; a trained head's record says what suits it best.

    Attributes
    ----------
    threshold
        The least heat of a tree, 0..1.
    spacing
        Cells, at least 1: a tree is the hottest of the (2 * spacing + 1) square around it. Also the cells that a
        surface must reach beyond what is wanted, for the same trees to be found at its edge as in its midst.
    """

    threshold: float = 0.3
    spacing: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise ConfigError(f"threshold {self.threshold} must lie in 0 to 1")
        if self.spacing < 1:
            raise ConfigError(f"spacing of {self.spacing} cells between trees must be at least 1")


def trees_on_heat(
    surface: Surface,
    settings: HeatSettings,
    *,
    owned: Window | None = None,
    wanted: Wanted | None = None,
    block: int = BLOCK,
) -> Iterator[Trees]:
    """Yield the trees of a heat map, block by block of a lattice that hangs on cell (0, 0), row by row of blocks.

    Parameters
    ----------
    surface
        Its bands `heat`, 0..1, and `right` and `down`, where a tree stands in its cell: cells from the cell's centre.
    owned
        The cells whose trees are wanted, half-open; the surface's extent where left out. Cells around it are context.
    wanted
        Which of them; all where left out.
    block
        Side of the blocks, cells. The trees of all blocks together do not depend on it.

    Yields
    ------
    Trees
        One batch a block, empty ones too, its trees in reading order of their cells.
    """
    for part in (owned or surface.extent).blocks(block):
        yield heat_trees(surface, settings, part, wanted=wanted)


def heat_trees(surface: Surface, settings: HeatSettings, owned: Window, *, wanted: Wanted | None = None) -> Trees:
    """The trees of one block; see `trees_on_heat`."""
    seen = owned.padded(settings.spacing)
    heat, *offset = surface.read(seen, ("heat", "right", "down"))
    peaks = find_peaks(
        heat,
        np.stack(offset),
        threshold=settings.threshold,
        spacing=settings.spacing,
        cell=1,
        owned=Window(settings.spacing, settings.spacing, *owned.shape),
    )
    rows, cols = peaks.cells.T
    keep = slice(None) if wanted is None else wanted(seen)[rows, cols]
    rows, cols = rows[keep], cols[keep]
    row, col = rows + seen.row, cols + seen.col
    # From the absolute cell, so that the point is the same to the last bit whatever the block.
    x = surface.origin[0] + (col + 0.5 + offset[0][rows, cols].astype(np.float64)) * surface.grid.gsd
    y = surface.origin[1] - (row + 0.5 + offset[1][rows, cols].astype(np.float64)) * surface.grid.gsd
    return replace(Trees.at(surface, row, col), x=x, y=y, score=peaks.scores[keep])


def looked_up(trees: Trees, surface: Surface) -> Trees:
    """The trees with what another surface says where they stand: its bands `height`, `spread` and `scene`, if there.

    A tree takes the cell that its point falls in, or unknown where that cell is nodata or outside the extent. The
    trees should lie near each other, as those of one block do: the rectangle around them is read.
    """
    columns = {"height": "height_m", "spread": "height_spread_m", "scene": "scene"}
    names = [name for name in columns if name in surface.names]
    if not len(trees) or not names:
        return trees
    col = np.floor((trees.x - surface.origin[0]) / surface.grid.gsd).astype(np.int64)
    row = np.floor((surface.origin[1] - trees.y) / surface.grid.gsd).astype(np.int64)
    top, left = int(row.min()), int(col.min())
    window = Window(top, left, int(row.max()) - top + 1, int(col.max()) - left + 1)
    values = surface.read(window, names)[:, row - top, col - left]
    found = dict(zip(names, values, strict=True))
    if "scene" in found:
        found["scene"] = np.nan_to_num(found["scene"]).astype(np.uint16)
    return replace(trees, **{columns[name]: column for name, column in found.items()})


def find_peaks(
    heat: Floats, offset: Floats, *, threshold: float, spacing: int, cell: int, owned: Window | None = None
) -> Peaks:
    """Return the peaks of a heat map.

    A lower threshold only adds peaks: `find_peaks(..., threshold=a).above(b)` is `find_peaks(..., threshold=b)` for
    b >= a.

    Parameters
    ----------
    heat
        (H, W), 0..1; NaN where nothing is known, which is never a peak and hides none.
    offset
        (2, H, W), where the tree stands in its cell: cells to the right and down from the cell's centre.
    threshold
        The least heat of a peak.
    spacing
        Cells: a peak is the hottest of the (2 * spacing + 1) square around it.
    cell
        Image pixels a cell is wide.
    owned
        Cells of this array whose peaks are wanted, half-open; all of them where left out. Cells outside are context.

    Raises
    ------
    ConfigError
        If the spacing is under 1 cell, or the arrays do not belong together.
    """
    if spacing < 1:
        raise ConfigError(f"spacing of {spacing} cells between trees must be at least 1")
    if heat.ndim != 2 or offset.shape != (2, *heat.shape):
        raise ConfigError(f"offsets of shape {offset.shape} do not fit a heat map of shape {heat.shape}")
    top = (heat >= threshold) & local_maxima(heat, spacing)
    if owned is not None:
        keep = np.zeros(heat.shape, np.bool_)
        keep[max(owned.row, 0) : max(owned.row_stop, 0), max(owned.col, 0) : max(owned.col_stop, 0)] = True
        top &= keep
    rows, cols = np.nonzero(top)
    right, down = offset[:, rows, cols].astype(np.float64)
    points = np.stack([cols + 0.5 + right, rows + 0.5 + down], axis=1) * cell
    return Peaks(points, heat[rows, cols].astype(np.float32), np.stack([rows, cols], axis=1))


def local_maxima(values: Floats, reach: int) -> Bools:
    """Which cells are the highest of the (2 * reach + 1) square around them; of equal ones the first in reading order.

    NaN is never a maximum and hides none, and there is nothing beyond the array's edge.
    """
    known = np.where(np.isnan(values), -np.inf, values)
    after = _highest_before(known[::-1, ::-1], reach)[::-1, ::-1]
    return (known > _highest_before(known, reach)) & (known >= after) & np.isfinite(known)


def _highest_before(values: Floats, reach: int) -> Floats:
    """The highest of the cells that come before each cell in its square: the rows above, and its row to the west."""
    wide = ndimage.maximum_filter1d(values, 2 * reach + 1, axis=1, mode="constant", cval=-np.inf)
    return np.maximum(_highest_of_last(wide, reach, axis=0), _highest_of_last(values, reach, axis=1))


def _highest_of_last(values: Floats, count: int, *, axis: int) -> Floats:
    """The highest of the `count` cells before each one along an axis, itself left out; -inf where there is none."""
    ending_here = ndimage.maximum_filter1d(
        values, count, axis=axis, mode="constant", cval=-np.inf, origin=(count - 1) // 2
    )
    found = np.full_like(values, -np.inf)
    if axis == 0:
        found[1:] = ending_here[:-1]
    else:
        found[:, 1:] = ending_here[:, :-1]
    return found
