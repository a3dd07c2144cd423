"""Canopy height: how far predicted heights are from measured ones, pixel by pixel and by height class.

Block R2 and edge error are the figures of the CHMv2 paper (arXiv:2603.06382, table 2): R2 of means over 50 x 50 px, and
the difference of Sobel gradients. Blocks hang on the north-west corner of a scene's chips, or of a map, whatever chips
or pieces they are read in, and those of which less than `WHOLE` is known are left out: a mean over fewer pixels is
another figure. The paper gives no formula for edges that we have seen. Ours is the sum of
|edge of the map - edge of the truth| over the sum of both edges, an edge being the magnitude of the Sobel gradient: 0
for the same edges, 1 for a flat map or for edges that are all elsewhere. Compare it between our own figures only.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from geodino.evaluation.sums import Floats, Formula, Sums, Totals, r2, ratio

Heights = npt.NDArray[np.floating]
Mask = npt.NDArray[np.bool_]

CLASS_EDGES_M = (2.0, 5.0, 10.0, 20.0, 30.0)
"""Measured height, metres: the first class is all below the first edge, the last all from the last edge on."""

CLASS_NAMES = ("0 to 2 m", *(f"{low:g} to {high:g} m" for low, high in pairwise(CLASS_EDGES_M)), "over 30 m")

BLOCK_PX = 50
WHOLE = 0.9
"""Share of a block's pixels that must be known for block R2: CHMs have small holes."""

# Heights are binned this fine to find their median without holding them all.
_MEDIAN_STEP_M = 0.01
_MEDIAN_RANGE_M = (-10.0, 150.0)


def canopy_sums(
    predicted: Heights,
    measured: Heights,
    *,
    constant_m: float,
    spread: Heights | None = None,
    counted: Mask | None = None,
    block: int = BLOCK_PX,
    corner: tuple[int, int] = (0, 0),
) -> dict[str, Floats]:
    """Return the sums of what a chip or a piece of a map holds of each block, one row a block with any known pixel.

    Two columns say which block; `with_blocks` takes them for the sums of whole blocks.

    Parameters
    ----------
    predicted, measured
        (H, W), metres; NaN where not known. Pixels known in both count.
    constant_m
        What the constant predictor answers.
    spread
        (H, W), metres: what the model says of its own error.
    counted
        (H, W): pixels that count here; others are context for edges only. All where left out.
    block
        Pixels.
    corner
        Row and col of the array's first pixel, from where blocks hang.
    """
    truth, said = measured.astype(np.float64), predicted.astype(np.float64)
    known = np.isfinite(truth) & np.isfinite(said)
    here = known & (True if counted is None else counted)
    squares = _Squares(here, truth, block, corner)
    error = np.where(known, said - truth, 0.0)
    columns = {
        "n": squares.by_class(np.ones_like(error)),
        "error": squares.by_class(error),
        "abs": squares.by_class(np.abs(error)),
        "square": squares.by_class(error**2),
        "truth": squares.by_class(truth),
        "truth_square": squares.by_class(truth**2),
        "constant_abs": squares.by_class(np.abs(truth - constant_m)),
        **_edge_sums(said, truth, known, squares),
        **(_spread_sums(spread, error, squares) if spread is not None else {}),
    }
    columns["block_row"], columns["block_col"] = squares.places()
    some = columns["n"].sum(axis=1) > 0
    return {name: values[some] for name, values in columns.items()}


def with_blocks(sums: Sums, scenes: npt.NDArray[np.generic], *, block: int = BLOCK_PX) -> Sums:
    """The sums with those of block means, over whole blocks, each on the first unit that holds some of it.

    Parameters
    ----------
    sums
        Of `canopy_sums`.
    scenes
        (U,): the scene of each unit, whose blocks have nothing to do with those of others.
    """
    columns = dict(sums.columns)
    rows, cols = columns.pop("block_row"), columns.pop("block_col")
    _, scene = np.unique(scenes, return_inverse=True)
    _, first, of_unit = np.unique(np.stack([scene, rows, cols]), axis=1, return_index=True, return_inverse=True)
    pixels, truth, error = (
        np.bincount(of_unit.ravel(), columns[name].sum(axis=1)).astype(np.float64) for name in ("n", "truth", "error")
    )
    whole = pixels >= WHOLE * block**2
    truth, error = (np.where(whole, ratio(total, pixels), 0.0) for total in (truth, error))
    of_blocks = {
        "block_n": whole.astype(np.float64),
        "block_truth": truth,
        "block_truth_square": truth**2,
        "block_square": error**2,
    }
    for name, values in of_blocks.items():
        columns[name] = np.zeros(len(sums))
        columns[name][first] = values
    return replace(sums, columns=columns)


def block_note(sums: Sums, block: int) -> str:
    """What block R2 rests on."""
    return (
        f"block R2 is over {int(sums.columns['block_n'].sum())} blocks of {block} x {block} px, of which at least "
        f"{100 * WHOLE:.0f} % of the pixels are known"
    )


HEIGHT_FORMULAS = (
    Formula("mae_m", "MAE", "m", lambda t: ratio(t["abs"], t["n"])),
    Formula("rmse_m", "RMSE", "m", lambda t: np.sqrt(ratio(t["square"], t["n"]))),
    Formula("bias_m", "bias", "m", lambda t: ratio(t["error"], t["n"])),
    Formula("edge_error", "edge error", "", lambda t: ratio(t["edge_apart"], t["edge_both"]), "edge_both"),
    Formula("constant_mae_m", "MAE of the constant", "m", lambda t: ratio(t["constant_abs"], t["n"])),
)
"""Of all pixels, and of those of each height class."""

SPREAD_FORMULAS = (
    Formula("within_spread", "errors within the spread", "%", lambda t: _percent(t, "within"), "spread_n"),
    Formula(
        "within_two_spreads", "errors within twice the spread", "%", lambda t: _percent(t, "within_two"), "spread_n"
    ),
    Formula("spread_correlation", "correlation of spread and error", "", lambda t: _correlation(t), "spread_n"),
)

# Within a class heights hardly differ, and an R2 there would say how wide the class is.
WHOLE_FORMULAS = (
    Formula("r2", "R2", "", lambda t: r2(t["square"], t["n"], t["truth"], t["truth_square"])),
    Formula(
        "block_r2",
        "block R2",
        "",
        lambda t: r2(t["block_square"], t["block_n"], t["block_truth"], t["block_truth_square"]),
        "block_n",
    ),
    Formula(
        "mae_under_constant", "MAE under the constant's", "%", lambda t: 100 * (1 - ratio(t["abs"], t["constant_abs"]))
    ),
    Formula("constant_rmse_m", "RMSE of the mean", "m", lambda t: np.sqrt(_variance(t))),
)
"""Of all pixels only."""

SHARE = Formula("share", "share", "%", lambda t: 100 * ratio(t["n"], t["n"].sum(axis=-1, keepdims=True)))


def over_classes(totals: Totals) -> Totals:
    """The totals of all pixels: columns with classes summed over them."""
    return {name: values.sum(axis=-1) if values.ndim > 1 else values for name, values in totals.items()}


def of_classes(totals: Totals) -> Totals:
    """The columns that are kept by height class."""
    return {name: values for name, values in totals.items() if values.ndim > 1}


def median_height(heights: Iterable[Heights]) -> float:
    """The median of many arrays to within a centimetre, NaN left out: the best constant for MAE; NaN of nothing."""
    low, high = _MEDIAN_RANGE_M
    counts = np.zeros(round((high - low) / _MEDIAN_STEP_M), np.int64)
    for array in heights:
        bins = ((array[np.isfinite(array)].astype(np.float64) - low) / _MEDIAN_STEP_M).round().astype(np.int64)
        counts += np.bincount(bins.clip(0, len(counts) - 1), minlength=len(counts))
    if not counts.any():
        return float("nan")
    middle = int(np.searchsorted(np.cumsum(counts), (counts.sum() + 1) // 2))
    return round(low + middle * _MEDIAN_STEP_M, 2)


class _Squares:
    """Where pixels belong: (blocks, classes) sums of arrays (H, W) over the pixels that count."""

    def __init__(self, counted: Mask, truth: Floats, block: int, corner: tuple[int, int]) -> None:
        self.counted = counted
        row, col = ((np.arange(side) + start) // block for side, start in zip(counted.shape, corner, strict=True))
        self._rows, self._cols = np.arange(row[0], row[-1] + 1), np.arange(col[0], col[-1] + 1)
        self.shape = (len(self._rows) * len(self._cols), len(CLASS_NAMES))
        rows, cols = np.nonzero(counted)
        blocks = (row[rows] - row[0]) * len(self._cols) + col[cols] - col[0]
        classes = np.searchsorted(CLASS_EDGES_M, truth[counted], side="right")
        self._index = blocks * self.shape[1] + classes

    def by_class(self, values: Floats) -> Floats:
        found = np.bincount(self._index, values[self.counted], minlength=self.shape[0] * self.shape[1])
        return found.reshape(self.shape).astype(np.float64)

    def places(self) -> tuple[Floats, Floats]:
        """(blocks,): row and col of each block among those of its scene."""
        rows, cols = np.meshgrid(self._rows, self._cols, indexing="ij")
        return rows.ravel().astype(np.float64), cols.ravel().astype(np.float64)


def _edge_sums(said: Floats, truth: Floats, known: Mask, squares: _Squares) -> dict[str, Floats]:
    # An edge needs all nine pixels around it, on the chip and known.
    whole = ndimage.binary_erosion(known, np.ones((3, 3)), border_value=0)
    said_edge, truth_edge = (_edges(np.where(known, values, 0.0)) for values in (said, truth))
    return {
        "edge_apart": squares.by_class(np.where(whole, np.abs(said_edge - truth_edge), 0.0)),
        "edge_both": squares.by_class(np.where(whole, said_edge + truth_edge, 0.0)),
    }


def _edges(heights: Floats) -> Floats:
    found: Floats = np.hypot(ndimage.sobel(heights, axis=0), ndimage.sobel(heights, axis=1))
    return found


def _spread_sums(spread: Heights, error: Floats, squares: _Squares) -> dict[str, Floats]:
    # An error as large as the spread is within it: in files both are rounded, and over bare ground both are 0.
    says = np.isfinite(spread)
    wide = np.where(says, spread.astype(np.float64), 0.0)
    apart = np.where(says, np.abs(error), 0.0)
    return {
        "spread_n": squares.by_class(says.astype(np.float64)),
        "within": squares.by_class((says & (apart <= wide)).astype(np.float64)),
        "within_two": squares.by_class((says & (apart <= 2 * wide)).astype(np.float64)),
        "spread": squares.by_class(wide),
        "spread_square": squares.by_class(wide**2),
        "spread_abs": squares.by_class(wide * apart),
        "told_abs": squares.by_class(apart),
        "told_square": squares.by_class(apart**2),
    }


def _percent(t: Totals, column: str) -> Floats:
    return 100 * ratio(t[column], t["spread_n"])


def _variance(t: Totals) -> Floats:
    return np.maximum(ratio(t["truth_square"], t["n"]) - ratio(t["truth"], t["n"]) ** 2, 0)


def _correlation(t: Totals) -> Floats:
    """Pearson's, of spread and |error|."""
    count = t["spread_n"]
    joint = t["spread_abs"] - ratio(t["spread"] * t["told_abs"], count)
    wide = t["spread_square"] - ratio(t["spread"] ** 2, count)
    apart = t["told_square"] - ratio(t["told_abs"] ** 2, count)
    some = (wide > 1e-9 * t["spread_square"]) & (apart > 1e-9 * t["told_square"])
    return ratio(joint, np.where(some, np.sqrt(np.maximum(wide * apart, 0)), 0))
