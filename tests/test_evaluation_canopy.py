"""Figures of canopy height, against plain formulas."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage, stats

from geodino.evaluation.canopy import (
    CLASS_NAMES,
    HEIGHT_FORMULAS,
    SHARE,
    SPREAD_FORMULAS,
    WHOLE_FORMULAS,
    canopy_sums,
    median_height,
    of_classes,
    over_classes,
    with_blocks,
)
from geodino.evaluation.footprints import footprint_sums, heights_within
from geodino.evaluation.sums import Totals, collect, figures, figures_by_class

Heights = npt.NDArray[np.float64]
SMOOTH = 6.0


def scene(seed: int = 0, rows: int = 130, cols: int = 170) -> tuple[Heights, Heights, Heights]:
    """Predicted and measured heights with holes in both, and a spread."""
    chance = np.random.default_rng(seed)
    truth = ndimage.gaussian_filter(chance.normal(0, 1, (rows, cols)), SMOOTH)
    truth = np.maximum(truth / truth.std() * 12 + 6, 0)
    spread = 0.5 + 0.2 * truth
    said = truth + chance.normal(0, 1, truth.shape) * spread + 0.7
    said[20:30, 40:60] = np.nan
    truth[100:, 150:] = np.nan
    return said, truth, spread


def totals(said: Heights, truth: Heights, **more: object) -> Totals:
    found = collect([(canopy_sums(said, truth, constant_m=1.5, **more), "here")], unit="blocks")  # type: ignore[arg-type]
    return with_blocks(found, np.zeros(len(found), int)).total()


def whole(found: Totals) -> dict[str, float]:
    summed = over_classes(found)
    return {figure.name: figure.value for figure in figures((*HEIGHT_FORMULAS, *WHOLE_FORMULAS), summed)}


def test_figures_are_those_of_the_plain_formulas() -> None:
    said, truth, _ = scene()
    found = whole(totals(said, truth))
    known = np.isfinite(said) & np.isfinite(truth)
    error, heights = (said - truth)[known], truth[known]
    assert found["mae_m"] == pytest.approx(np.abs(error).mean())
    assert found["rmse_m"] == pytest.approx(np.sqrt((error**2).mean()))
    assert found["bias_m"] == pytest.approx(error.mean())
    assert found["r2"] == pytest.approx(1 - (error**2).sum() / ((heights - heights.mean()) ** 2).sum())
    assert found["constant_mae_m"] == pytest.approx(np.abs(heights - 1.5).mean())
    assert found["constant_rmse_m"] == pytest.approx(heights.std())
    assert found["mae_under_constant"] == pytest.approx(100 * (1 - found["mae_m"] / found["constant_mae_m"]))


def test_classes_are_by_measured_height_and_half_open() -> None:
    truth = np.array([[-1.0, 0.0, 1.99, 2.0, 5.0, 19.99, 20.0, 30.0, 55.0]])
    found = of_classes(totals(truth + 1, truth))
    counts = dict(zip(CLASS_NAMES, found["n"][0].tolist(), strict=True))
    assert counts == {
        "0 to 2 m": 3,
        "2 to 5 m": 1,
        "5 to 10 m": 1,
        "10 to 20 m": 1,
        "20 to 30 m": 1,
        "over 30 m": 2,
    }


def test_figures_of_a_class_are_those_of_its_pixels() -> None:
    said, truth, _ = scene()
    parts = figures_by_class((SHARE, *HEIGHT_FORMULAS), of_classes(totals(said, truth)))
    known = np.isfinite(said) & np.isfinite(truth)
    inside = known & (truth >= 5) & (truth < 10)
    of_class = {figure.name: figure.value for figure in parts[CLASS_NAMES.index("5 to 10 m")]}
    assert of_class["share"] == pytest.approx(100 * inside.sum() / known.sum())
    assert of_class["mae_m"] == pytest.approx(np.abs(said - truth)[inside].mean())
    assert of_class["bias_m"] == pytest.approx((said - truth)[inside].mean())


def test_block_r2_is_that_of_means_of_whole_blocks() -> None:
    said, truth, _ = scene()
    known = np.isfinite(said) & np.isfinite(truth)
    means = []
    for row in range(0, 130, 50):
        for col in range(0, 170, 50):
            here = np.s_[row : row + 50, col : col + 50]
            if known[here].sum() >= 2250:
                means.append((said[here][known[here]].mean(), truth[here][known[here]].mean()))
    blocks_said, blocks_truth = np.array(means).T
    wanted = 1 - ((blocks_said - blocks_truth) ** 2).sum() / ((blocks_truth - blocks_truth.mean()) ** 2).sum()
    assert 3 <= len(means) <= 6  # those at the eastern and southern edges are cut short
    assert whole(totals(said, truth))["block_r2"] == pytest.approx(wanted)


def test_edge_error_is_none_for_the_truth_and_one_for_a_flat_map() -> None:
    _, truth, _ = scene()
    assert whole(totals(truth, truth))["edge_error"] == 0
    assert whole(totals(np.full_like(truth, 4.0), truth))["edge_error"] == 1
    blurred = ndimage.gaussian_filter(np.nan_to_num(truth), 3)
    assert 0.05 < whole(totals(blurred, truth))["edge_error"] < 0.95


def test_a_hole_makes_no_edge() -> None:
    flat = np.full((60, 60), 8.0)
    holed = flat.copy()
    holed[20:25, 30:33] = np.nan
    assert math.isnan(whole(totals(holed, flat))["edge_error"])


@given(cut=st.integers(1, 129), seed=st.integers(0, 3))
def test_pieces_of_a_map_add_up_to_the_map(cut: int, seed: int) -> None:
    """With a pixel of context for the edges, and cut anywhere, also within blocks."""
    said, truth, spread = scene(seed)
    upper, lower = np.zeros((2, *truth.shape), np.bool_)
    upper[:cut], lower[cut:] = True, True
    pieces = [
        canopy_sums(said[part], truth[part], spread=spread[part], counted=mask[part], constant_m=1.5, corner=(row, 0))
        for row, part, mask in ((0, np.s_[: cut + 1], upper), (cut - 1, np.s_[cut - 1 :], lower))
    ]
    both = collect([(piece, "here") for piece in pieces], unit="blocks")
    joined = with_blocks(both, np.zeros(len(both), int)).total()
    single = totals(said, truth, spread=spread)
    for name in single:
        np.testing.assert_allclose(joined[name], single[name], rtol=1e-9, atol=1e-6, err_msg=name)


def test_a_spread_that_is_the_standard_deviation_is_found_calibrated() -> None:
    chance = np.random.default_rng(0)
    spread = chance.uniform(0.5, 4, (400, 400))
    truth = np.full_like(spread, 10.0)
    said = truth + chance.normal(0, 1, spread.shape) * spread
    found = over_classes(totals(said, truth, spread=spread))
    within, twice, correlation = (figure.value for figure in figures(SPREAD_FORMULAS, found))
    assert within == pytest.approx(68.3, abs=0.5)
    assert twice == pytest.approx(95.4, abs=0.5)
    assert correlation == pytest.approx(stats.pearsonr(spread.ravel(), np.abs(said - truth).ravel())[0])


def test_no_spread_gives_no_figures_of_it() -> None:
    said, truth, _ = scene()
    assert figures(SPREAD_FORMULAS, over_classes(totals(said, truth))) == ()


def test_only_counted_pixels_count() -> None:
    said, truth, _ = scene()
    counted = np.zeros(truth.shape, np.bool_)
    counted[10:50, 5:45] = True
    kept = np.where(counted, said, np.nan)
    ours, theirs = whole(totals(said, truth, counted=counted)), whole(totals(kept, truth))
    assert ours["mae_m"] == theirs["mae_m"]
    assert ours["edge_error"] != theirs["edge_error"]  # their outermost pixels have no edge


@given(st.lists(st.floats(-4, 100).map(lambda height: round(height, 2)), min_size=1, max_size=50))
def test_the_median_is_within_a_centimetre(heights: list[float]) -> None:
    found = median_height([np.array([*heights[:1], np.nan]), np.array(heights[1:])])
    assert sorted(heights)[(len(heights) - 1) // 2] == pytest.approx(found, abs=0.0101)


def test_the_median_of_nothing_has_no_value() -> None:
    assert math.isnan(median_height([np.full((3, 3), np.nan)]))


def test_a_footprint_is_the_98th_percentile_of_the_pixels_within_its_radius() -> None:
    heights = np.random.default_rng(0).uniform(0, 30, (80, 90))
    [found] = heights_within(heights, np.array([[40.2, 33.7, 20.0, 99.0]]))
    inside = [heights[r, c] for r in range(80) for c in range(90) if math.hypot(r + 0.5 - 33.7, c + 0.5 - 40.2) <= 20]
    assert found == pytest.approx(np.percentile(inside, 98))


def test_a_footprint_smaller_than_a_pixel_is_the_pixel_it_lies_in() -> None:
    heights = np.arange(12.0).reshape(3, 4)
    assert heights_within(heights, np.array([[3.9, 1.1, 0.1]])).tolist() == [7.0]


def test_a_footprint_of_which_less_than_half_is_known_is_left_out() -> None:
    heights = np.full((60, 60), 5.0)
    heights[:, 30:] = np.nan
    east, west, beyond = heights_within(heights, np.array([[34.0, 30, 10], [26, 30, 10], [-9, 30, 10]]))
    assert np.isnan(east) and west == 5 and np.isnan(beyond)
    sums = footprint_sums(np.array([np.nan, 5.0]), np.array([4.0, 3.0]), constant_m=0)
    assert sums["n"].sum() == 1 and sums["error"].sum() == 2
