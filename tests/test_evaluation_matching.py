"""One-to-one pairing of trees."""

from __future__ import annotations

import time

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.optimize import linear_sum_assignment
from scipy.spatial import distance

from geodino.errors import ConfigError
from geodino.evaluation.matching import match_points

Points = npt.NDArray[np.float64]
# On a coarse raster, so that equal points and equal distances are common.
POINTS = hnp.arrays(np.float64, st.tuples(st.integers(0, 12), st.just(2)), elements=st.integers(0, 12).map(float))


def papers_pairs(predicted: Points, true: Points, within: float) -> tuple[int, float]:
    """The count and summed distance of the paper's matching: a dense Hungarian with 1e9 for pairs too far apart."""
    if not len(predicted) or not len(true):
        return 0, 0.0
    apart = distance.cdist(predicted, true)
    costs = np.where(apart > within, 1e9, apart)
    chosen = costs[linear_sum_assignment(costs)]
    return int((chosen < 1e9).sum()), float(chosen[chosen < 1e9].sum())


@given(predicted=POINTS, true=POINTS, within=st.sampled_from([1.0, 2.5, 5.0, 30.0]))
def test_pairs_are_as_many_and_as_close_as_the_papers(predicted: Points, true: Points, within: float) -> None:
    found = match_points(predicted, true, within=within)
    count, total = papers_pairs(predicted, true, within)
    assert len(found) == count
    assert found.distances.sum() == pytest.approx(total, abs=1e-6)


@given(predicted=POINTS, true=POINTS)
def test_each_point_is_in_one_pair_at_most(predicted: Points, true: Points) -> None:
    found = match_points(predicted, true, within=3.0)
    assert len(set(found.predicted)) == len(set(found.true)) == len(found)
    assert (np.diff(found.predicted) > 0).all()
    apart = np.hypot(*(predicted[found.predicted] - true[found.true]).T)
    np.testing.assert_allclose(found.distances, apart, atol=1e-9)
    assert (found.distances <= 3.0).all()


@given(points=POINTS)
def test_points_match_themselves_at_no_distance(points: Points) -> None:
    found = match_points(points, points[::-1], within=1.0)
    assert len(found) == len(points)
    assert found.distances.sum() == pytest.approx(0, abs=1e-9)


def test_two_long_pairs_are_better_than_one_short() -> None:
    predicted, true = np.array([[0.0, 0], [9, 0]]), np.array([[1.0, 0], [-5, 0]])
    found = match_points(predicted, true, within=8.0)
    assert found.true.tolist() == [1, 0]
    assert found.distances.tolist() == pytest.approx([5, 8])


def test_the_limit_itself_is_a_match() -> None:
    assert len(match_points(np.array([[0.0, 0]]), np.array([[6.0, 0]]), within=6.0)) == 1
    assert len(match_points(np.array([[0.0, 0]]), np.array([[6.001, 0]]), within=6.0)) == 0


@pytest.mark.parametrize(("trees", "per_hectare"), [(100_000, 30), (10_000, 400)])
def test_a_city_and_a_forest_are_quick(trees: int, per_hectare: int) -> None:
    # At 400 trees a hectare nearly all hang together within 6 m, so they are one problem.
    chance = np.random.default_rng(0)
    side = (trees / per_hectare) ** 0.5 * 100
    true = chance.uniform(0, side, (trees, 2))
    seen, more = true[: trees * 3 // 4], chance.uniform(0, side, (trees // 4, 2))
    predicted = np.concatenate([seen + chance.normal(0, 2, seen.shape), more])
    start = time.process_time()
    found = match_points(predicted, true, within=6.0)
    assert time.process_time() - start < 10
    assert len(found) > 0.7 * trees


@pytest.mark.parametrize(
    ("predicted", "within"),
    [(np.zeros((3, 2)), 0.0), (np.zeros((3, 2)), np.nan), (np.zeros((3, 3)), 1.0), (np.full((1, 2), np.nan), 1.0)],
)
def test_what_cannot_be_matched_is_refused(predicted: Points, within: float) -> None:
    with pytest.raises(ConfigError, match=r"must be"):
        match_points(predicted, np.zeros((2, 2)), within=within)
