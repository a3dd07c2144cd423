"""Figures of trees and of classes, on made data with known answers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from geodino.errors import InputError
from geodino.evaluation.classes import (
    CLASS_FORMULAS,
    CLASSIFY_FORMULAS,
    SEGMENT_FORMULAS,
    classify_sums,
    segment_sums,
)
from geodino.evaluation.sums import collect, figures, figures_by_class
from geodino.evaluation.tree_points import (
    DENSITY_FORMULAS,
    TREE_FORMULAS,
    Trees,
    curve_of,
    density_sums,
    tree_sums,
)


def trees(points: list[tuple[float, float]], scores: list[float] | None = None) -> Trees:
    array = np.array(points, np.float64).reshape(-1, 2)
    said = None if scores is None else np.array(scores, np.float32)
    return Trees(array, np.ones(len(array), np.bool_), said)


TRUE = trees([(10, 10), (50, 50), (90, 90), (130, 130)])
# One exact, one 5 px away, one 20 px away, one of low score on the fourth tree.
SAID = trees([(10, 10), (50, 55), (90, 110), (130, 130)], [0.9, 0.8, 0.7, 0.1])


def found(*chips: tuple[Trees, Trees], gsd_m: float = 0.6) -> dict[str, float]:
    parts = [(tree_sums(said, true, gsd_m=gsd_m, threshold=0.5), f"place {i}") for i, (said, true) in enumerate(chips)]
    return {figure.name: figure.value for figure in figures(TREE_FORMULAS, collect(parts, unit="chips").total())}


def test_figures_of_one_chip() -> None:
    values = found((SAID, TRUE))
    assert values["precision"] == pytest.approx(2 / 3)
    assert values["recall"] == pytest.approx(2 / 4)
    assert values["f1"] == pytest.approx(2 * 2 / (3 + 4))
    assert values["distance_m"] == pytest.approx(1.5)
    assert values["distance_rmse_m"] == pytest.approx(3 / 2**0.5)
    assert values["count_bias"] == pytest.approx(-25)


def test_the_distance_is_in_metres_whatever_the_pixel() -> None:
    assert found((SAID, TRUE), gsd_m=0.2)["recall"] == pytest.approx(3 / 4)  # 20 px are 4 m


def test_counts_are_compared_chip_by_chip() -> None:
    none = trees([], [])
    values = found((SAID, TRUE), (none, trees([])), (none, trees([(1, 1), (9, 9)])))
    apart = np.array([3 - 4, 0, 0 - 2])
    assert values["count_mae"] == pytest.approx(1)
    assert values["count_rmse"] == pytest.approx(np.sqrt((apart**2).mean()))
    assert values["count_r2"] == pytest.approx(1 - (apart**2).sum() / ((np.array([4, 0, 2]) - 2) ** 2).sum())


def test_nothing_predicted_has_no_precision_and_finds_nothing() -> None:
    values = found((trees([], []), TRUE))
    assert np.isnan(values["precision"]) and values["recall"] == values["f1"] == 0
    none = found((trees([], []), trees([])))
    assert np.isnan(none["precision"]) and np.isnan(none["recall"]) and np.isnan(none["f1"])


def test_trees_that_two_chips_see_count_once() -> None:
    """A scene of 300 px as two chips of 200 px, each owning 150: as good as the whole in one."""
    chance = np.random.default_rng(0)
    true = chance.uniform(0, 300, (80, 2))
    said = np.concatenate([true[:60] + chance.normal(0, 2, (60, 2)), chance.uniform(0, 300, (20, 2))])
    whole = found((Trees(said, np.ones(80, np.bool_), np.ones(80)), Trees(true, np.ones(80, np.bool_))))
    chips = []
    for start, owned in ((0, (0, 150)), (100, (150, 300))):
        parts = []
        for points in (said, true):
            here = points[(points[:, 0] >= start) & (points[:, 0] < start + 200)]
            parts.append(Trees(here, (here[:, 0] >= owned[0]) & (here[:, 0] < owned[1]), np.ones(len(here))))
        chips.append((parts[0], parts[1]))
    halves = found(*chips)
    for name in ("precision", "recall", "f1", "distance_m", "count_bias"):
        assert halves[name] == pytest.approx(whole[name])


def test_the_curve() -> None:
    said = trees([(10, 10), (50, 55), (200, 200), (130, 130)], [0.92, 0.72, 0.32, 0.52])
    sums = collect([(tree_sums(said, TRUE, gsd_m=0.6, threshold=0.5, curve=True), "here")], unit="chips")
    curve = {point.threshold: point for point in curve_of(sums)}
    assert (curve[0.9].precision, curve[0.9].recall) == (1, 0.25)
    assert (curve[0.7].precision, curve[0.7].recall) == (1, 0.5)
    assert (curve[0.3].precision, curve[0.3].recall) == (0.75, 0.75)
    assert np.isnan(curve[0.95].precision) and curve[0.95].recall == 0


@given(threshold=st.sampled_from([0.1, 0.3, 0.5, 0.8]))
def test_the_curve_holds_the_figures_at_each_threshold(threshold: float) -> None:
    chance = np.random.default_rng(1)
    said = Trees(chance.uniform(0, 256, (90, 2)), np.ones(90, np.bool_), chance.uniform(0, 1, 90))
    true = Trees(chance.uniform(0, 256, (70, 2)), np.ones(70, np.bool_))
    sums = collect([(tree_sums(said, true, gsd_m=0.6, threshold=threshold, curve=True), "here")], unit="chips")
    [point] = [point for point in curve_of(sums) if point.threshold == threshold]
    values = {figure.name: figure.value for figure in figures(TREE_FORMULAS, sums.total())}
    assert (point.precision, point.recall, point.f1) == (values["precision"], values["recall"], values["f1"])


def test_a_density_counts_by_itself() -> None:
    parts = [
        ({**tree_sums(SAID, TRUE, gsd_m=0.6, threshold=0.5), **density_sums(5.0, TRUE)}, "one"),
        ({**tree_sums(SAID, trees([]), gsd_m=0.6, threshold=0.5), **density_sums(1.0, trees([]))}, "other"),
    ]
    values = {figure.name: figure.value for figure in figures(DENSITY_FORMULAS, collect(parts, unit="chips").total())}
    assert values == pytest.approx({"density_mae": 1, "density_rmse": 1, "density_r2": 1 - 2 / 8, "density_bias": 50})


TRUE_CLASSES = np.array([[0, 0, 1, 1], [0, 0, 1, 255], [2, 2, 2, 2]], np.uint8)
SAID_CLASSES = np.array([[0, 1, 1, 1], [0, 0, 0, 0], [2, 2, 2, 1]], np.uint8)


def test_classes_of_pixels() -> None:
    counted = np.ones(TRUE_CLASSES.shape, np.bool_)
    totals = collect([(segment_sums(SAID_CLASSES, TRUE_CLASSES, classes=4, counted=counted), "here")], unit="b").total()
    assert totals["confusion"][0].tolist() == [[3, 1, 0, 0], [1, 2, 0, 0], [0, 1, 3, 0], [0, 0, 0, 0]]
    values = {figure.name: figure.value for figure in figures(SEGMENT_FORMULAS, totals)}
    # The fourth class is in no label, so it is no part of the mean.
    assert values == pytest.approx(
        {"miou": (3 / 5 + 2 / 5 + 3 / 4) / 3, "accuracy": 8 / 11, "commonest_accuracy": 4 / 11}
    )
    first = {figure.name: figure.value for figure in figures_by_class(CLASS_FORMULAS, totals)[0]}
    assert first == pytest.approx({"share": 400 / 11, "iou": 3 / 5, "f1": 3 / 4, "precision": 3 / 4, "recall": 3 / 4})


def test_blocks_of_pixels_add_up() -> None:
    chance = np.random.default_rng(0)
    true, said = chance.integers(0, 200, (2, 120, 90)).astype(np.uint8)
    sums = segment_sums(said, true, classes=200, counted=np.ones(true.shape, np.bool_), block=50)
    assert sums["confusion"].shape == (6, 200, 200)
    wanted = np.zeros((200, 200))
    np.add.at(wanted, (true.ravel(), said.ravel()), 1)
    np.testing.assert_array_equal(sums["confusion"].sum(axis=0), wanted)


def test_classes_of_chips() -> None:
    pairs = [(0, 0), (0, 0), (1, 0), (1, 1)]
    parts = [(classify_sums(said, true, classes=2), str(i)) for i, (true, said) in enumerate(pairs)]
    values = {figure.name: figure.value for figure in figures(CLASSIFY_FORMULAS, collect(parts, unit="chips").total())}
    assert values == pytest.approx({"accuracy": 3 / 4, "macro_f1": (4 / 5 + 2 / 3) / 2, "commonest_accuracy": 1 / 2})


def test_a_class_without_a_name_is_refused() -> None:
    with pytest.raises(InputError, match="predicted class 7 is not one of the 3 known ones, 0 to 2"):
        segment_sums(np.full((2, 2), 7), np.zeros((2, 2), int), classes=3, counted=np.ones((2, 2), np.bool_))
