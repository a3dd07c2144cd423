"""Variances of zones against all pairs of pixels, and intervals against what they must hold."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from geodino.errors import ConfigError
from geodino.zonal.uncertainty import (
    BLOCKS,
    Correlation,
    Layout,
    count_interval,
    mean_interval,
    share_interval,
    variances,
    variances_of_points,
)

Floats = npt.NDArray[np.float64]
CHANCE = np.random.default_rng(0)


def over_pairs(doubt: Floats, step_m: tuple[float, float], errs: Correlation) -> float:
    """The variance of the sum of a field (H, W) of weight times doubt, pair by pair."""
    rows, cols = np.nonzero(doubt)
    value = doubt[rows, cols]
    total = 0.0
    for row, col, one in zip(rows, cols, value, strict=True):
        apart = np.hypot((rows - row) * step_m[0], (cols - col) * step_m[1])
        near = np.exp(-apart / errs.range_m) if errs.range_m else apart == 0
        total += one * float(((errs.shared + (1 - errs.shared) * near) * value).sum())
    return total


def by_blocks(doubt: Floats, step_m: tuple[float, float], errs: Correlation) -> float:
    height, width = doubt.shape
    layout = Layout.of(*(np.array([number]) for number in (0, 0, height, width)))
    rows, cols = np.indices(doubt.shape)
    block = layout.block_of(np.zeros(doubt.size, np.int64), rows.ravel(), cols.ravel())
    sums = np.bincount(block, doubt.ravel(), BLOCKS**2)
    squares = np.array([[(doubt**2).sum()]])
    return float(variances(sums[None, None], squares, layout, np.array([step_m]), errs)[0, 0])


@pytest.mark.parametrize("shape", [(1, 1), (32, 32), (7, 13), (1, 32)])
@pytest.mark.parametrize("errs", [Correlation(3, 0.1), Correlation(0, 0), Correlation(0, 1), Correlation(50, 0)])
def test_a_small_zone_has_the_variance_of_all_its_pairs(shape: tuple[int, int], errs: Correlation) -> None:
    doubt = CHANCE.uniform(0, 2, shape)
    assert by_blocks(doubt, (0.6, 0.9), errs) == pytest.approx(over_pairs(doubt, (0.6, 0.9), errs), rel=1e-9)


@pytest.mark.parametrize("range_m", [0.0, 1.0, 6.0, 30.0])
@pytest.mark.parametrize("outline", ["whole", "ring", "stripe"])
def test_a_large_zone_has_it_within_five_percent(range_m: float, outline: str) -> None:
    rows, cols = np.indices((100, 75))
    far = np.hypot(rows - 50, (cols - 37) * 1.3)
    inside = {
        "whole": np.ones(far.shape, bool),
        "ring": (far < 47) & (far > 30),
        "stripe": np.abs(rows - cols) < 9,
    }[outline]
    doubt = np.where(inside, 1 + np.sin(rows / 9.0) * 0.6, 0)
    errs = Correlation(range_m, 0.0)
    sds = np.sqrt([by_blocks(doubt, (0.6, 0.6), errs), over_pairs(doubt, (0.6, 0.6), errs)])
    assert sds[0] == pytest.approx(sds[1], rel=0.05)


def test_blocks_of_a_thousand_pixels_correlate_as_the_integral_says() -> None:
    """A square of 16384 px: all pairs are out of reach, so the distance between random points of it is."""
    side, step, range_m = 16384, 0.6, 300.0
    level = Layout.of(*(np.array([n]) for n in (0, 0, side, side)))
    whole, squares = np.full((1, 1, BLOCKS**2), 1 / BLOCKS**2), np.array([[1 / side**2]])
    found = variances(whole, squares, level, np.array([[step, step]]), Correlation(range_m, 0.0))[0, 0]
    one, other = CHANCE.uniform(0, side * step, (2, 2_000_000, 2))
    assert found == pytest.approx(np.exp(-np.hypot(*(one - other).T) / range_m).mean(), rel=0.02)


def test_points_are_wholly_correlated_with_themselves_alone() -> None:
    layout = Layout.of(*(np.array([n]) for n in (0, 0, 256, 256)))
    rows, cols = CHANCE.integers(0, 256, (2, 40))
    doubt, errs = CHANCE.uniform(0, 0.5, 40), Correlation(4.0, 0.1)
    block = layout.block_of(np.zeros(40, np.int64), rows, cols)
    sums, squares = np.bincount(block, doubt, BLOCKS**2)[None, None], np.array([[(doubt**2).sum()]])
    found = variances_of_points(sums, squares, layout, np.array([[0.6, 0.6]]), errs)[0, 0]
    apart = np.hypot(rows[:, None] - rows, cols[:, None] - cols) * 0.6
    assert found == pytest.approx(doubt @ (0.1 + 0.9 * np.exp(-apart / 4.0)) @ doubt, rel=0.1)
    assert found >= (doubt**2).sum()


@given(st.integers(1, 40_000), st.integers(1, 40_000))
def test_every_pixel_of_a_zone_has_a_block(height: int, width: int) -> None:
    layout = Layout.of(*(np.array([n]) for n in (7, -9, height, width)))
    rows, cols = np.array([7, 7 + height - 1]), np.array([-9, -9 + width - 1])
    down, right = np.divmod(layout.block_of(np.zeros(2, np.int64), rows, cols), BLOCKS)
    assert (down[0], right[0]) == (0, 0)
    assert (rows[1] - 7) >> layout.level[0] == down[1] and (cols[1] + 9) >> layout.level[0] == right[1]
    # Blocks are no larger than they must be.
    assert layout.level[0] == 0 or max(height, width) > BLOCKS * 2 ** (layout.level[0] - 1)


@given(st.floats(0.001, 0.999), st.floats(0, 1))
def test_the_interval_of_a_share_holds_its_mean_and_stays_in_bounds(mean: float, part: float) -> None:
    low, high = share_interval(np.array([mean]), np.array([part * mean * (1 - mean)]), 0.95)
    assert 0 <= low[0] <= mean <= high[0] <= 1


def test_the_interval_of_a_share_is_that_of_the_beta_distribution() -> None:
    low, high = share_interval(np.array([0.3, 0.0, 0.3, np.nan]), np.array([0.01, 0.0, 0.0, 0.1]), 0.9)
    size = 0.3 * 0.7 / 0.01 - 1
    assert (low[0], high[0]) == pytest.approx(stats.beta(0.3 * size, 0.7 * size).interval(0.9))
    assert (low[1], high[1]) == (0, 0)
    assert (low[2], high[2]) == (0.3, 0.3)
    assert np.isnan(low[3]) and np.isnan(high[3])
    # One pixel that is as likely canopy as not: either none or all of the zone.
    assert [end[0] for end in share_interval(np.array([0.5]), np.array([0.25]), 0.95)] == pytest.approx([0, 1])


def test_next_to_no_chance_has_an_interval_from_nothing_that_holds_it() -> None:
    mean = np.array([2.9e-7, 1e-4, 1 - 1e-4])
    low, high = share_interval(mean, mean * (1 - mean), 0.95)
    assert low[0] == 0 and low[1] == 0
    assert (low <= mean).all() and (mean <= high).all()


@pytest.mark.parametrize("count", [0, 1, 7, 120])
def test_a_count_as_sure_as_a_poisson_one_has_the_exact_interval(count: int) -> None:
    low, high = count_interval(np.array([float(count)]), np.array([float(count)]), 0.95)
    exact = stats.chi2.ppf([0.025, 0.975], [2 * count, 2 * count + 2]) / 2
    assert low[0] == (np.floor(exact[0]) if count else 0)
    assert high[0] == np.ceil(exact[1])


def test_a_count_without_doubt_keeps_its_lower_end_and_a_wider_one_is_wider() -> None:
    low, high = count_interval(np.array([50.0, 50.0, 50.0]), np.array([0.0, 50.0, 500.0]), 0.95)
    assert low[0] == 50
    assert (np.diff(low) < 0).all() and (np.diff(high) > 0).all()


def test_a_mean_is_not_below_the_ground() -> None:
    low, high = mean_interval(np.array([1.0, 10.0]), np.array([1.0, 1.0]), 0.95)
    assert low == pytest.approx([0, 10 - 1.95996]) and high == pytest.approx([2.95996, 11.95996], abs=1e-4)


def test_a_correlation_that_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="error range -1 m"):
        Correlation(range_m=-1)
    with pytest.raises(ConfigError, match=r"shared error 1\.5"):
        Correlation(shared=1.5)
