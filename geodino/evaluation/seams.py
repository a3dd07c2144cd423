"""Seams: whether a map steps where its windows meet.

Windows hang on the CRS's origin, so where they meet is known: a cell begins at each multiple of the stride, and a
prediction has faded out one ramp later (`geodino.windows`). The mean step between neighbouring pixels across those
lines is compared with the mean step across all others; 1 is a map without seams. Lines of any other phase of the
stride differ from 1 too, by the ground they happen to cross: how much is the yardstick beside the figure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rasterio.windows import Window as RasterWindow

from geodino.errors import ConfigError, InputError
from geodino.evaluation.sums import Figure
from geodino.sources.raster import open_raster, read_errors
from geodino.windows import Tiling

Heights = npt.NDArray[np.floating]

# Rows read at once, and pixels that a map's corner may be off the grid.
_STRIP = 2048
_ON_GRID = 1e-2


@dataclass(frozen=True)
class Seams:
    """The steps of a map across the lines where windows meet, against those elsewhere.

    Attributes
    ----------
    ratio
        Mean step across the lines over the mean step elsewhere; NaN where the map has no such line or is flat.
    usual
        The 2.5th and 97.5th percentile of the same ratio for lines of the other phases of the stride: a ratio within
        them is what any lines give on this ground.
    on_m, off_m
        The mean steps, metres.
    """

    ratio: float
    usual: tuple[float, float]
    on_m: float
    off_m: float

    def figure(self) -> Figure:
        """The ratio for a report; in the place of an interval, that of lines elsewhere."""
        low, high = self.usual if np.isfinite(self.usual).all() else (None, None)
        return Figure("seam_ratio", "seams: steps on window borders to elsewhere", "", self.ratio, low, high)


def seams(heights: Heights, tiling: Tiling, *, row: int = 0, col: int = 0) -> Seams:
    """Return the seam figure of a map.

    Parameters
    ----------
    heights
        (H, W), metres; NaN where not known: a step needs both its pixels.
    tiling
        Of the run that made the map.
    row, col
        Where the map's north-west pixel lies on the run's grid, which hangs on the CRS's origin: `Window.row` and
        `Window.col` of `geodino.grid`.
    """
    if heights.ndim != 2:
        raise InputError(f"a map of shape {heights.shape} must be (H, W)")
    return _seams([(heights, row)], tiling, col)


def seams_of_file(path: str | Path, tiling: Tiling) -> Seams:
    """The same of a raster's first band, read in strips.

    Raises
    ------
    ConfigError
        If the raster's pixels are not those of a grid on its CRS's origin, so that it is no map of a run.
    ReadError
        If it cannot be read.
    """
    with open_raster(str(path)) as raster:
        t = raster.transform
        col, row = t.c / t.a, t.f / t.e
        if t.b or t.d or max(abs(col - round(col)), abs(row - round(row))) > _ON_GRID:
            raise ConfigError(f"{path} does not lie on a run's grid: seams are known of the maps of a run only")

        def strips() -> Iterator[tuple[Heights, int]]:
            for start in range(0, raster.height, _STRIP):
                # One row more, so that no line between strips is left out.
                window = RasterWindow(0, start, raster.width, min(_STRIP + 1, raster.height - start))
                with read_errors(str(path)):
                    found = raster.read(1, window=window, masked=True)
                yield found.filled(np.nan) if found.dtype.kind == "f" else found.astype(float).filled(np.nan), start

        return _seams(((heights, round(row) + start) for heights, start in strips()), tiling, round(col))


def _seams(strips: Iterable[tuple[Heights, int]], tiling: Tiling, col: int) -> Seams:
    """Of strips of a map, each with the row it begins at; the last row of one is the first of the next."""
    steps, counts = np.zeros((2, tiling.stride))
    for heights, row in strips:
        # The shared row's steps along it count in each of its strips: one row of thousands.
        for values, start in ((heights, row), (heights.T, col)):
            total, count = _steps(values)
            phases = (start + 1 + np.arange(len(total))) % tiling.stride
            steps += np.bincount(phases, total, tiling.stride)
            counts += np.bincount(phases, count, tiling.stride)
    seam = np.isin(np.arange(tiling.stride), [0, tiling.ramp % tiling.stride])
    on, off = _mean(steps[seam].sum(), counts[seam].sum()), _mean(steps[~seam].sum(), counts[~seam].sum())
    by_phase = steps[~seam & (counts > 0)] / counts[~seam & (counts > 0)]
    if not by_phase.size or not off > 0:
        return Seams(float("nan"), (float("nan"), float("nan")), on, off)
    low, high = np.quantile(by_phase / off, [0.025, 0.975])
    return Seams(on / off, (float(low), float(high)), on, off)


def _steps(heights: Heights) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Of each line between two rows: the sum of the steps across it, and how many there are."""
    apart = np.abs(np.diff(heights.astype(np.float64), axis=0))
    known = np.isfinite(apart)
    return np.where(known, apart, 0).sum(axis=1), known.sum(axis=1).astype(np.float64)


def _mean(total: float, count: float) -> float:
    return float(total / count) if count else float("nan")
