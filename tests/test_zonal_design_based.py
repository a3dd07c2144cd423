"""Design-based estimates against the published example, against scipy, and against many samples of a known ground."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from geodino.zonal.design_based import FEWEST, Sample, merged

# Olofsson et al. (2014), section 5: deforestation, forest gain, stable forest, stable non-forest. Rows of Table 8 are
# map classes, columns reference classes; the map has so many pixels of 30 m of each.
MATRIX = np.array([[66, 0, 5, 4], [0, 55, 8, 12], [1, 0, 153, 11], [2, 1, 9, 313]])
PIXELS = np.array([200_000, 150_000, 3_200_000, 6_450_000])
PIXEL_HA = 0.09


@pytest.fixture(scope="module")
def published() -> tuple[Sample, npt.NDArray[np.int64]]:
    """The example as a sample, and the reference class of each plot."""
    mapped, reference = (np.repeat(index, MATRIX.ravel()) for index in (k.ravel() for k in np.indices(MATRIX.shape)))
    return Sample(mapped, PIXELS / PIXELS.sum()), reference


@pytest.mark.parametrize(
    ("k", "hectares", "reach"), [(0, 21_158, 6_158), (1, 11_686, 3_756), (2, 285_770, 15_510), (3, 581_386, 16_282)]
)
def test_areas_are_the_published_ones(
    published: tuple[Sample, npt.NDArray[np.int64]], k: int, hectares: float, reach: float
) -> None:
    sample, reference = published
    total = PIXELS.sum() * PIXEL_HA
    found = sample.mean((reference == k).astype(float))
    assert found.value * total == pytest.approx(hectares, abs=1)
    # The paper takes 1.96 standard errors; with 640 plots Student's t is next to that.
    assert 1.96 * found.standard_error * total == pytest.approx(reach, abs=1)
    assert (found.high - found.value) * total == pytest.approx(reach, rel=0.03)
    assert found.plots == 640


def test_accuracies_are_the_published_ones(published: tuple[Sample, npt.NDArray[np.int64]]) -> None:
    sample, reference = published
    right = (sample.stratum == reference).astype(float)
    overall = sample.mean(right)
    assert (overall.value, 1.96 * overall.standard_error) == pytest.approx((0.947, 0.018), abs=5e-4)
    users = [sample.ratio(right * (sample.stratum == k), (sample.stratum == k).astype(float)) for k in range(4)]
    assert [round(one.value, 2) for one in users] == [0.88, 0.73, 0.93, 0.96]
    assert [round(1.96 * one.standard_error, 2) for one in users] == [0.07, 0.10, 0.04, 0.02]
    producers = [sample.ratio(right * (reference == k), (reference == k).astype(float)) for k in range(4)]
    assert [round(one.value, 2) for one in producers] == [0.75, 0.85, 0.93, 0.96]
    # Two are printed as 0.23 and 0.01, but the paper's own equation 7 gives 0.25 and 0.02.
    assert [round(1.96 * one.standard_error, 2) for one in producers] == [0.21, 0.25, 0.03, 0.02]


def test_one_stratum_gives_students_interval() -> None:
    values = np.random.default_rng(0).normal(7, 2, 12)
    found = Sample(np.zeros(12, np.int64), np.ones(1), level=0.9).mean(values)
    low, high = stats.t.interval(0.9, 11, values.mean(), stats.sem(values))
    assert (found.low, found.high) == pytest.approx((low, high))


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """Samples of a ground that is known everywhere, by a map that is too low and blind on a tenth of it."""
    chance = np.random.default_rng(1)
    truth = np.where(chance.uniform(size=60_000) < 0.6, 0, chance.gamma(3, 4, 60_000))
    told = np.where(chance.uniform(size=truth.size) < 0.1, 0, 0.7 * truth + chance.normal(0, 1, truth.size).clip(0))
    stratum = np.digitize(told, [2, 5, 10])
    weights = np.bincount(stratum) / len(stratum)
    places = [np.flatnonzero(stratum == k) for k in range(4)]
    held, errors, values = np.zeros(3), [], []
    for _ in range(600):
        plots = np.concatenate(
            [chance.choice(where, count) for where, count in zip(places, (200, 60, 60, 60), strict=True)]
        )
        sample = Sample(stratum[plots], weights)
        found = (
            sample.mean((truth[plots] > 5).astype(float)),
            sample.mean(truth[plots] - told[plots], known=told.mean()),
            sample.mean(truth[plots]),
        )
        for k, (one, true) in enumerate(zip(found, ((truth > 5).mean(), truth.mean(), truth.mean()), strict=True)):
            held[k] += one.low <= true <= one.high
        values.append([one.value for one in found])
        errors.append([one.standard_error for one in found])
    assert (held / 600 > 0.91).all() and (held / 600 < 0.98).all(), held / 600
    spread = np.std(values, axis=0)
    assert np.mean(values, axis=0) == pytest.approx([(truth > 5).mean(), truth.mean(), truth.mean()], abs=0.02)
    assert np.sqrt(np.mean(np.square(errors), axis=0)) == pytest.approx(spread, rel=0.1)
    # The map as a helper: the difference estimator is the surer one.
    assert spread[1] < 0.9 * spread[2]


def test_plots_that_all_agree_give_no_interval() -> None:
    found = Sample(np.array([0, 0, 1, 1]), np.array([0.3, 0.7])).mean(np.array([1.0, 1, 0, 0]))
    assert found.value == pytest.approx(0.3) and found.standard_error == 0
    assert np.isnan([found.low, found.high]).all() and found.agreed == 1
    half = Sample(np.array([0, 0, 1, 1]), np.array([0.3, 0.7])).mean(np.array([1.0, 0, 0, 0]))
    assert half.agreed == 0.7 and half.low < half.value < half.high
    nothing = Sample(np.array([0, 0]), np.ones(1)).ratio(np.zeros(2), np.zeros(2))
    assert np.isnan(nothing.value)


def test_a_stratum_with_one_plot_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\[2, 1\] plots"):
        Sample(np.array([0, 0, 1]), np.array([0.5, 0.5]))


@given(st.lists(st.integers(0, 4), min_size=1, max_size=8))
def test_neighbours_are_put_together_until_each_has_plots_enough(counts: list[int]) -> None:
    groups = merged(np.array(counts))
    assert groups[0] == 0 and set(np.diff(groups)) <= {0, 1}
    together = np.bincount(groups, counts)
    if sum(counts) >= FEWEST:
        assert (together >= FEWEST).all()
    # None is put together without need.
    assert all(len(np.flatnonzero(groups == k)) == 1 for k in groups if min(counts) >= FEWEST)
