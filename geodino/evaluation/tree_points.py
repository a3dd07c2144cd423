"""Trees: how many of the predicted ones are there, how many of the true ones were found, and how well they count.

A chip may lie partly on its neighbour. So of each chip only the points on the ground that it owns count, predicted and
true by themselves, while all are matched: precision is the share of owned predictions that have a tree, recall the
share of owned trees that have a prediction. Where chips do not overlap, both count the same pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from geodino.evaluation.matching import MATCH_M, Points, match_points
from geodino.evaluation.sums import Floats, Formula, Sums, r2, ratio

Mask = npt.NDArray[np.bool_]

THRESHOLDS = tuple(round(0.05 * step, 2) for step in range(1, 20))
"""Of the precision-recall curve."""


@dataclass(frozen=True, eq=False)
class Trees:
    """Trees of one chip.

    Attributes
    ----------
    points
        (N, 2), pixels.
    owned
        (N,): whether the point counts here; others only help to match those near the chip's edge.
    scores
        (N,), 0..1; None for true trees.
    """

    points: Points
    owned: Mask
    scores: npt.NDArray[np.floating] | None = None

    def above(self, threshold: float) -> Trees:
        """Those with at least that score."""
        assert self.scores is not None
        keep = self.scores >= threshold
        return Trees(self.points[keep], self.owned[keep], self.scores[keep])


def on_ground(points: Points, counted: Mask, scores: npt.NDArray[np.floating] | None = None) -> Trees:
    """Trees (N, 2) on a chip, of which those on counted pixels, (S, S), are its own; others may match a neighbour's.

    A point that an offset carried off the chip is on its outermost pixel.
    """
    cols, rows = np.floor(points).astype(np.int64).clip(0, len(counted) - 1).T
    return Trees(points, counted[rows, cols], scores)


def density_on(density: npt.NDArray[np.floating], counted: Mask) -> float:
    """How many trees a density (h, w) holds on counted pixels, (S, S): a cell lies where its middle does."""
    cell = len(counted) // len(density)
    return float(density[counted[cell // 2 :: cell, cell // 2 :: cell]].sum())


def tree_sums(
    predicted: Trees, true: Trees, *, gsd_m: float, threshold: float, within_m: float = MATCH_M, curve: bool = False
) -> dict[str, Floats]:
    """Return the sums of one chip, one row.

    Parameters
    ----------
    predicted
        With scores; those under `threshold` count for the curve only.
    gsd_m
        Metres a pixel.
    curve
        Whether to match at each of `THRESHOLDS` too.
    """
    kept = predicted.above(threshold)
    found = match_points(kept.points, true.points, within=within_m / gsd_m)
    metres = found.distances[true.owned[found.true]] * gsd_m
    said, there = float(kept.owned.sum()), float(true.owned.sum())
    columns = {
        "chips": 1.0,
        "said": said,
        "said_hit": float(kept.owned[found.predicted].sum()),
        "there": there,
        "there_hit": float(len(metres)),
        "metres": float(metres.sum()),
        "square_metres": float((metres**2).sum()),
        "there_square": there**2,
        "count_abs": abs(said - there),
        "count_square": (said - there) ** 2,
    }
    rows = {name: np.array([value]) for name, value in columns.items()}
    return rows | (_curve_sums(predicted, true, within_m / gsd_m) if curve else {})


def density_sums(total: float, true: Trees) -> dict[str, Floats]:
    """Return the sums of one chip's density: its integral over the owned ground against the trees there."""
    there = float(true.owned.sum())
    columns = {"density": total, "density_abs": abs(total - there), "density_square": (total - there) ** 2}
    return {name: np.array([value]) for name, value in columns.items()}


TREE_FORMULAS = (
    Formula("precision", "precision", "", lambda t: ratio(t["said_hit"], t["said"])),
    Formula("recall", "recall", "", lambda t: ratio(t["there_hit"], t["there"])),
    Formula("f1", "F1", "", lambda t: f1(ratio(t["said_hit"], t["said"]), ratio(t["there_hit"], t["there"]))),
    Formula("distance_m", "mean distance of matches", "m", lambda t: ratio(t["metres"], t["there_hit"])),
    Formula("distance_rmse_m", "RMSE of matches", "m", lambda t: np.sqrt(ratio(t["square_metres"], t["there_hit"]))),
    Formula("count_mae", "count MAE a {piece}", "trees", lambda t: ratio(t["count_abs"], t["chips"])),
    Formula("count_rmse", "count RMSE a {piece}", "trees", lambda t: np.sqrt(ratio(t["count_square"], t["chips"]))),
    Formula("count_r2", "count R2", "", lambda t: r2(t["count_square"], t["chips"], t["there"], t["there_square"])),
    Formula("count_bias", "count bias", "%", lambda t: 100 * (ratio(t["said"], t["there"]) - 1)),
)

DENSITY_FORMULAS = tuple(
    Formula(name, title, unit, of, "density")
    for name, title, unit, of in (
        ("density_mae", "density MAE a {piece}", "trees", lambda t: ratio(t["density_abs"], t["chips"])),
        ("density_rmse", "density RMSE a {piece}", "trees", lambda t: np.sqrt(ratio(t["density_square"], t["chips"]))),
        ("density_r2", "density R2", "", lambda t: r2(t["density_square"], t["chips"], t["there"], t["there_square"])),
        ("density_bias", "density bias", "%", lambda t: 100 * (ratio(t["density"], t["there"]) - 1)),
    )
)


@dataclass(frozen=True)
class CurvePoint:
    """Precision, recall and F1 at a threshold; NaN where nothing was predicted."""

    threshold: float
    precision: float
    recall: float
    f1: float


def curve_of(sums: Sums) -> tuple[CurvePoint, ...]:
    """The precision-recall curve of units that were summed with `curve=True`."""
    totals = sums.total()
    precision = ratio(totals["curve_said_hit"], totals["curve_said"])[0]
    recall = ratio(totals["curve_there_hit"], totals["there"][:, None])[0]
    both = f1(precision, recall)
    return tuple(
        CurvePoint(threshold, float(precision[k]), float(recall[k]), float(both[k]))
        for k, threshold in enumerate(THRESHOLDS)
    )


def f1(precision: Floats, recall: Floats) -> Floats:
    """Their harmonic mean; 0 where either is 0, also if nothing was predicted; NaN where there is nothing to find."""
    return np.where((precision == 0) | (recall == 0), 0.0, ratio(2 * precision * recall, precision + recall))


def _curve_sums(predicted: Trees, true: Trees, within: float) -> dict[str, Floats]:
    said, said_hit, there_hit = np.zeros((3, 1, len(THRESHOLDS)))
    for k, threshold in enumerate(THRESHOLDS):
        kept = predicted.above(threshold)
        found = match_points(kept.points, true.points, within=within)
        said[0, k] = kept.owned.sum()
        said_hit[0, k] = kept.owned[found.predicted].sum()
        there_hit[0, k] = true.owned[found.true].sum()
    return {"curve_said": said, "curve_said_hit": said_hit, "curve_there_hit": there_hit}
