"""Trees per hectare on coarse cells: what was counted in each, over the ground that was looked at in it.

The coarse cells hang on the CRS's origin like everything else, so they are the same whatever AOI was drawn. A tree
counts where the middle of its own cell lies. A cell that is only partly wanted, at the AOI's edge or at a gap in the
imagery, is divided by the area of its wanted part; then the sum of density times wanted area is the number of trees, no
more and no less. Such cells may be extreme: one tree on a sliver of 20 m2 is 500 trees per hectare. Hectares are those
of the grid, which a UTM zone keeps to 0.1 %.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from scipy import sparse

from geodino.errors import OutputError
from geodino.grid import Grid, Window
from geodino.outputs.cog import BLOCK, CogProfile, CogReceipt, as_tags, stage_to_cog
from geodino.outputs.folder import scratch_file
from geodino.outputs.stage import StagedRaster
from geodino.trees import Trees, Wanted

if TYPE_CHECKING:
    from geodino.surface import Surface

CELL_M = 10.0
BAND = "tree_density"
SQUARE_METRES = 10_000.0  # a hectare

# Cells of the surface along a side of what is read at once, some 20 MiB in all.
_READ = 1024

# Metres: overlaps below this are the rounding noise of coordinates of millions of metres, and no ground.
_NOISE_M = 1e-6

Integers = npt.NDArray[np.int64]
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class DensityReceipt:
    """A finished tree_density.tif, and what its integral is made of."""

    cog: CogReceipt
    trees: int
    hectares: float


class DensityWriter:
    """Counts trees batch by batch, in any order; `density_writer` makes one.

    Attributes
    ----------
    receipt
        Set when the block of `density_writer` has ended.
    """

    def __init__(self, surface: Surface, cells: Grid, counts: _Plane) -> None:
        self.receipt: DensityReceipt | None = None
        self._down, self._right = _axes(surface, cells)
        self._counts = counts

    def write(self, trees: Trees) -> None:
        """Count a batch.

        Raises
        ------
        ValueError
            A tree lies outside the surface.
        """
        if not len(trees):
            return
        rows, cols = self._down.coarse_of(trees.row), self._right.coarse_of(trees.col)
        top, left = int(rows.min()), int(cols.min())
        window = Window(top, left, int(rows.max()) - top + 1, int(cols.max()) - left + 1)
        flat = np.bincount((rows - top) * window.width + cols - left, minlength=window.height * window.width)
        self._counts.add(window, flat.reshape(window.shape).astype(np.float64))


@contextmanager
def density_writer(
    target: Path,
    surface: Surface,
    band: str,
    *,
    wanted: Wanted | None = None,
    cell_m: float = CELL_M,
    tags: Mapping[str, str] | None = None,
) -> Iterator[DensityWriter]:
    """Make tree_density.tif of the trees that the block gives; it is there when the block has ended without an error.

    Memory does not grow with the surface or the trees: counts and areas lie in scratch files beside the target, 16
    bytes a coarse cell.

    Parameters
    ----------
    surface, band
        What trees were looked for on; read when the block ends. Where the band is NaN no ground was looked at.
    wanted
        Which cells of the surface are wanted, as for the trees; all where left out.
    cell_m
        Side of a coarse cell, metres.
    tags
        Of the file; it says the number of trees and the hectares they stand on besides.

    Raises
    ------
    ConfigError
        The side is not over 0.
    ValueError
        A tree lies where no ground was looked at.
    OutputError
        The disk refuses.
    """
    cells = Grid(surface.grid.crs, cell_m)
    extent = _extent(surface, cells)
    with scratch_file(target) as counts_file, scratch_file(target) as areas_file, scratch_file(target) as stage_file:
        counts = _Plane(counts_file, extent)
        areas = _Plane(areas_file, extent)
        writer = DensityWriter(surface, cells, counts)
        yield writer
        for window, area in _wanted_areas(surface, band, wanted, cells):
            areas.add(window, area)
        stage = StagedRaster.create(stage_file, cells, _padded(extent), block=BLOCK, names=(BAND,), quantum=None)
        trees, area_m2 = _fill(stage, counts, areas)
        hectares = area_m2 / SQUARE_METRES
        profile = CogProfile(
            BAND, "trees/ha", {**(tags or {}), **as_tags({"trees": trees, "mapped_ha": f"{hectares:.4f}"})}
        )
        writer.receipt = DensityReceipt(
            stage_to_cog(stage, BAND, target, clip=extent, profile=profile), trees, hectares
        )


@dataclass(frozen=True)
class _Axis:
    """Fine cells along one direction, east or south, and the coarse cells they lie in.

    Attributes
    ----------
    corner
        Where fine cell 0 begins, metres from where coarse cell 0 begins.
    fine, coarse
        Metres a cell.
    """

    corner: float
    fine: float
    coarse: float

    def coarse_of(self, cells: Integers) -> Integers:
        """Which coarse cell holds the middle of each fine one."""
        middle = self.corner + (cells + 0.5) * self.fine
        return np.asarray(np.floor(middle / self.coarse), dtype=np.int64)

    def span(self, start: int, stop: int) -> tuple[int, int]:
        """The coarse cells [start, stop) that fine cells [start, stop) lie in."""
        begin, end = self.corner + start * self.fine, self.corner + stop * self.fine
        return math.floor((begin + _NOISE_M) / self.coarse), math.ceil((end - _NOISE_M) / self.coarse)

    def overlaps(self, start: int, stop: int) -> sparse.csr_array:
        """Metres that each of the coarse cells of the span (rows) shares with each fine cell (columns)."""
        first, last = self.span(start, stop)
        begin = self.corner + np.arange(start, stop) * self.fine
        at = np.floor((begin + _NOISE_M) / self.coarse).astype(np.int64)
        rows, cols, metres = [], [], []
        for further in range(math.ceil(self.fine / self.coarse) + 1):
            cell = at + further
            shared = np.minimum(begin + self.fine, (cell + 1) * self.coarse) - np.maximum(begin, cell * self.coarse)
            some = np.flatnonzero((shared > _NOISE_M) & (cell < last))
            rows.append(cell[some] - first)
            cols.append(some)
            metres.append(shared[some])
        places = (np.concatenate(rows), np.concatenate(cols))
        return sparse.csr_array((np.concatenate(metres), places), shape=(last - first, stop - start))


class _Plane:
    """Sums on a window's cells, float64 in a file, added to window by window.

    Mapped anew for each access: what is not mapped does not count as this process's memory.
    """

    def __init__(self, path: Path, extent: Window) -> None:
        self.path, self.extent = path, extent
        try:
            with path.open("wb") as file:
                file.truncate(extent.height * extent.width * 8)
        except OSError as error:
            raise OutputError(f"cannot make {path}: {error}") from error

    def add(self, window: Window, values: Doubles) -> None:
        if window.intersection(self.extent) != window:
            raise ValueError(f"{window} is not within {self.extent}")
        mapped = np.memmap(self.path, np.float64, "r+", shape=self.extent.shape)
        mapped[window.slices_in(self.extent)] += values

    def read(self, window: Window) -> Doubles:
        mapped = np.memmap(self.path, np.float64, "r", shape=self.extent.shape)
        return np.array(mapped[window.slices_in(self.extent)])


def _axes(surface: Surface, cells: Grid) -> tuple[_Axis, _Axis]:
    (x, y), fine = surface.origin, surface.grid.gsd
    return _Axis(-y, fine, cells.gsd), _Axis(x, fine, cells.gsd)


def _extent(surface: Surface, cells: Grid) -> Window:
    down, right = _axes(surface, cells)
    return _coarse(surface.extent, down, right)


def _coarse(window: Window, down: _Axis, right: _Axis) -> Window:
    row, row_stop = down.span(window.row, window.row_stop)
    col, col_stop = right.span(window.col, window.col_stop)
    return Window(row, col, row_stop - row, col_stop - col)


def _padded(extent: Window) -> Window:
    height, width = (math.ceil(side / BLOCK) * BLOCK for side in extent.shape)
    return Window(extent.row, extent.col, height, width)


def _wanted_areas(surface: Surface, band: str, wanted: Wanted | None, cells: Grid) -> Iterator[tuple[Window, Doubles]]:
    """Square metres looked at of coarse cells, in pieces that add up."""
    down, right = _axes(surface, cells)
    for window in surface.extent.blocks(_READ):
        asked = None if wanted is None else wanted(window)
        if asked is not None and not asked.any():
            continue
        known = np.isfinite(surface.read(window, (band,))[0])
        if asked is not None:
            known &= asked
        if known.any():
            rows = down.overlaps(window.row, window.row_stop)
            cols = right.overlaps(window.col, window.col_stop)
            area = (cols @ (rows @ known.astype(np.float64)).T).T
            yield _coarse(window, down, right), area


def _fill(stage: StagedRaster, counts: _Plane, areas: _Plane) -> tuple[int, float]:
    """Write the density, and return the number of trees and the square metres that they were looked for on."""
    trees, total_m2 = 0, 0.0
    extent = counts.extent
    for row in range(extent.row, extent.row_stop, BLOCK):
        for col in range(extent.col, extent.col_stop, BLOCK):
            block = Window(row, col, BLOCK, BLOCK)
            inside = block.intersection(extent)
            number, area = counts.read(inside), areas.read(inside)
            if (number[area == 0] > 0).any():
                raise ValueError("a tree lies where no ground was looked at: give the surface it was found on")
            trees, total_m2 = trees + int(number.sum()), total_m2 + float(area.sum())
            if area.any():
                values = np.full((1, BLOCK, BLOCK), np.nan, np.float32)
                density = np.divide(number * SQUARE_METRES, area, out=np.full(area.shape, np.nan), where=area > 0)
                values[0, : inside.height, : inside.width] = density
                stage.write(block, values)
    stage.close()
    return trees, total_m2
