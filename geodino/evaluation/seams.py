"""Seams: whether a map steps where its windows meet.

Windows hang on the CRS's origin, so where they meet is known: a cell begins at each multiple of the stride, and a
prediction has faded out one ramp later (`geodino.windows`). The mean step between neighbouring pixels across those
lines is compared with the mean step across all others; 1 is a map without seams. Lines of any other phase of the
stride differ from 1 too, by the ground they happen to cross: how much is the yardstick beside the figure.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from geodino.errors import InputError
from geodino.windows import Tiling

Heights = npt.NDArray[np.floating]


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
    lines
        Lines that cross the map, across and down.
    """

    ratio: float
    usual: tuple[float, float]
    on_m: float
    off_m: float
    lines: int


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
    steps, counts = np.zeros((2, tiling.stride))
    lines = 0
    seam_phases = sorted({0, tiling.ramp % tiling.stride})
    for values, start in ((heights, row), (heights.T, col)):
        total, count = _steps(values)
        phases = (start + 1 + np.arange(len(total))) % tiling.stride
        steps += np.bincount(phases, total, tiling.stride)
        counts += np.bincount(phases, count, tiling.stride)
        lines += int((np.isin(phases, seam_phases) & (count > 0)).sum())
    seam = np.isin(np.arange(tiling.stride), seam_phases)
    on, off = _mean(steps[seam].sum(), counts[seam].sum()), _mean(steps[~seam].sum(), counts[~seam].sum())
    by_phase = steps[~seam & (counts > 0)] / counts[~seam & (counts > 0)]
    if not by_phase.size or not off > 0:
        return Seams(float("nan"), (float("nan"), float("nan")), on, off, lines)
    low, high = np.quantile(by_phase / off, [0.025, 0.975])
    return Seams(on / off, (float(low), float(high)), on, off, lines)


def _steps(heights: Heights) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Of each line between two rows: the sum of the steps across it, and how many there are."""
    apart = np.abs(np.diff(heights.astype(np.float64), axis=0))
    known = np.isfinite(apart)
    return np.where(known, apart, 0).sum(axis=1), known.sum(axis=1).astype(np.float64)


def _mean(total: float, count: float) -> float:
    return float(total / count) if count else float("nan")
