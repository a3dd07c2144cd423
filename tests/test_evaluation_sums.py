"""Sums, figures and their intervals."""

from __future__ import annotations

import time

import numpy as np
import pytest

from geodino.evaluation.sums import Formula, Sums, collect, figures, r2, ratio, resample

MEAN = Formula("mean", "mean", "m", lambda t: ratio(t["total"], t["n"]))


def sums_of(values: np.ndarray, places: np.ndarray, unit: str = "chips") -> Sums:
    """Units of one measurement each."""
    columns = {"n": np.ones(len(values)), "total": values}
    return Sums(columns, places.astype(np.str_), np.arange(len(values)), unit)


def mean_of(sums: Sums, *, resamples: int = 1000, seed: int = 0) -> tuple[float, float | None, float | None]:
    [figure] = figures([MEAN], resample(sums, resamples=resamples, seed=seed).totals)
    return figure.value, figure.low, figure.high


def test_the_interval_of_a_mean_is_that_of_its_standard_error() -> None:
    values = np.random.default_rng(0).normal(5, 2, 400)
    value, low, high = mean_of(sums_of(values, np.arange(400)), resamples=4000)
    error = values.std() / 400**0.5
    assert value == pytest.approx(values.mean())
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.1 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.1 * error)


def test_units_of_one_place_are_drawn_together() -> None:
    # Ten places whose units are copies of each other: a hundred copies tell no more than one.
    of_places = np.random.default_rng(1).normal(0, 1, 10)
    alone = mean_of(sums_of(of_places, np.arange(10)))
    copied = mean_of(sums_of(np.repeat(of_places, 100), np.repeat(np.arange(10), 100)))
    assert copied == pytest.approx(alone)
    apart = mean_of(sums_of(np.repeat(of_places, 100), np.arange(1000)))
    assert apart[1] is not None and alone[1] is not None and apart[1] > alone[1] + 0.3


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    chance, hits = np.random.default_rng(2), 0
    for _ in range(200):
        places = np.repeat(np.arange(30), 5)
        values = chance.normal(0, 1, 30)[places] + chance.normal(0, 0.3, 150)
        _, low, high = mean_of(sums_of(values, places), resamples=300)
        hits += low is not None and high is not None and low <= 0 <= high
    assert 0.88 <= hits / 200 <= 0.99


def test_too_few_places_give_an_interval_over_units_and_say_so() -> None:
    sums = sums_of(np.arange(40.0), np.repeat(np.arange(4), 10), "blocks of 50 px")
    drawn = resample(sums)
    assert drawn.over.startswith("40 blocks of 50 px, not over places, of which 5 are needed and there are 4:")
    assert figures([MEAN], drawn.totals)[0].low is not None


def test_too_few_units_give_none() -> None:
    drawn = resample(sums_of(np.arange(4.0), np.arange(4)))
    assert drawn.over == "no intervals: 4 places and 4 chips"
    alone = collect([({"n": np.ones(1)}, "here")], unit="squares of 256 px")
    assert resample(alone).over == "no intervals: 1 place and 1 square of 256 px"
    assert mean_of(sums_of(np.arange(4.0), np.arange(4))) == (1.5, None, None)


def test_a_figure_that_most_resamples_lack_has_no_interval() -> None:
    # Only one of ten places has any, and a third of the resamples miss it.
    columns = {"n": np.array([1.0] + [0.0] * 9), "total": np.array([7.0] + [0.0] * 9)}
    sums = Sums(columns, np.arange(10).astype(np.str_), np.arange(10), "chips")
    assert mean_of(sums) == (7.0, None, None)


def test_the_same_seed_gives_the_same_interval() -> None:
    sums = sums_of(np.random.default_rng(0).normal(size=50), np.arange(50))
    assert mean_of(sums, seed=3) == mean_of(sums, seed=3) != mean_of(sums, seed=4)


def test_a_figure_of_some_units_is_that_of_a_set_that_has_no_others() -> None:
    parts = [({"n": np.ones(2), "total": np.array([i, 2.0 * i])}, f"place {i}") for i in range(6)]
    some = collect(parts, unit="chips").where(np.repeat([True, False, True, True, False, True], 2))
    few = collect([parts[i] for i in (0, 2, 3, 5)], unit="chips")
    assert mean_of(some)[0] == mean_of(few)[0]
    assert some.chips.tolist() == [0, 0, 2, 2, 3, 3, 5, 5]


def test_a_thousand_resamples_of_many_blocks_are_quick() -> None:
    units = 20_000
    columns = {"n": np.ones((units, 6)), "total": np.ones((units, 6))}
    sums = Sums(columns, (np.arange(units) // 50).astype(np.str_), np.arange(units), "blocks")
    start = time.process_time()
    resample(sums)
    assert time.process_time() - start < 5


def test_r2_is_what_it_says() -> None:
    truth, said = np.array([1.0, 2, 4, 9]), np.array([2.0, 2, 3, 8])
    found = r2(
        ((said - truth) ** 2).sum(keepdims=True),
        np.array([4.0]),
        truth.sum(keepdims=True),
        (truth**2).sum(keepdims=True),
    )
    assert found[0] == pytest.approx(1 - 3 / ((truth - 4) ** 2).sum())
    flat = r2(np.array([1.0]), np.array([3.0]), np.array([0.3]), np.array([3 * 0.1**2]))
    assert np.isnan(flat[0])
