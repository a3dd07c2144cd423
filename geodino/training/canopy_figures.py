"""How far predicted heights are from measured ones, in all and by height class."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

Heights = npt.NDArray[np.float32]

CLASSES_M = (0.0, 2.0, 5.0, 10.0, 20.0, 30.0, math.inf)


@dataclass(frozen=True)
class ClassFigures:
    """Figures of the pixels whose measured height is in [low, high) metres; NaN where there are none."""

    low_m: float
    high_m: float
    share: float
    mae_m: float
    bias_m: float


@dataclass(frozen=True)
class Figures:
    """Pixel by pixel figures of one prediction; `bias` is predicted less measured, `r2` is 1 - SSE / SST."""

    pixels: int
    mae_m: float
    rmse_m: float
    bias_m: float
    r2: float
    classes: tuple[ClassFigures, ...]


def figures(predicted: Heights, measured: Heights) -> Figures:
    """Return the figures over the pixels whose measured height is known (not NaN); arrays of one shape, metres."""
    known = np.isfinite(measured)
    truth = measured[known].astype(np.float64)
    apart = predicted[known].astype(np.float64) - truth
    spread = float(((truth - truth.mean()) ** 2).sum())
    return Figures(
        pixels=int(known.sum()),
        mae_m=float(np.abs(apart).mean()),
        rmse_m=float(np.sqrt((apart**2).mean())),
        bias_m=float(apart.mean()),
        r2=1 - float((apart**2).sum()) / spread if spread else math.nan,
        classes=tuple(_class_figures(low, high, truth, apart) for low, high in pairwise(CLASSES_M)),
    )


def constant_figures(constant_m: float, measured: Heights) -> Figures:
    """Return the figures of a predictor that answers one height everywhere."""
    return figures(np.full_like(measured, constant_m), measured)


def predict_whole(
    image: npt.NDArray[np.uint8],
    predict: Callable[[npt.NDArray[np.float32]], Heights],
    *,
    size: int,
    overlap: int,
) -> Heights:
    """Return heights (H, W) of a whole scene from plain overlapping windows, averaged where they overlap.

    Parameters
    ----------
    image
        uint8 (3, H, W), at least `size` pixels on both sides.
    predict
        float32 (1, 3, size, size) in 0..1 to float32 (1, size, size) metres.
    """
    rows, cols = image.shape[1:]
    total = np.zeros((rows, cols), np.float32)
    times = np.zeros((rows, cols), np.float32)
    for row in _starts(rows, size, size - overlap):
        for col in _starts(cols, size, size - overlap):
            where = slice(row, row + size), slice(col, col + size)
            chip = image[:, where[0], where[1]].astype(np.float32) / np.float32(255)
            total[where] += predict(chip[None])[0]
            times[where] += 1
    return total / times


def _starts(length: int, size: int, stride: int) -> list[int]:
    last = length - size
    assert last >= 0, f"a scene of {length} px is narrower than the window of {size} px"
    return sorted({*range(0, last, stride), last})


def _class_figures(
    low: float, high: float, truth: npt.NDArray[np.float64], apart: npt.NDArray[np.float64]
) -> ClassFigures:
    inside = (truth >= low) & (truth < high)
    some = bool(inside.any())
    return ClassFigures(
        low_m=low,
        high_m=high,
        share=float(inside.mean()),
        mae_m=float(np.abs(apart[inside]).mean()) if some else math.nan,
        bias_m=float(apart[inside].mean()) if some else math.nan,
    )
