"""Predicted against measured heights, counted in squares: what a scatter plot of millions of pixels is drawn from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

STEP_M = 0.5
HIGHEST_M = 100.0


@dataclass(frozen=True, eq=False)
class Scatter:
    """How many pixels have each pair of heights.

    Attributes
    ----------
    counts
        (N, N) int64, measured by predicted, squares of `STEP_M` from 0 m; what lies beyond is in the outermost. Filled
        by `add`.
    """

    counts: npt.NDArray[np.int64]

    @classmethod
    def empty(cls) -> Scatter:
        side = round(HIGHEST_M / STEP_M)
        return cls(np.zeros((side, side), np.int64))

    def add(self, predicted: npt.NDArray[np.floating], measured: npt.NDArray[np.floating]) -> None:
        """Count more pixels, (N,) metres; pairs with NaN are left out."""
        known = np.isfinite(predicted) & np.isfinite(measured)
        last = len(self.counts) - 1
        row, col = (np.floor(values[known] / STEP_M).astype(np.int64).clip(0, last) for values in (measured, predicted))
        found = np.bincount(row * (last + 1) + col, minlength=self.counts.size)
        self.counts[...] += found.reshape(self.counts.shape)
