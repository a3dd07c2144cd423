"""Scenes beyond the limits of sun and view are warned of, or refused; what is unknown is called so."""

from __future__ import annotations

import datetime as dt

import pytest
from test_order import day, scene

from geodino.errors import SourceError
from geodino.sources.acquisition import acquisition_facts, beyond_limits, of_fitting_light, season
from geodino.sources.scene import Facts, Scene


def taken(name: str, sun: float | None, view: float | None) -> Scene:
    return scene(name, sun_elevation=sun, off_nadir=view)  # type: ignore[arg-type]


GOOD, EDGE = taken("good", 60.0, 3.0), taken("edge", 45.0, -25.0)
LOW, OBLIQUE, SILENT = taken("low", 44.9, 3.0), taken("oblique", 60.0, -31.0), taken("silent", None, 10.0)


def test_the_limits_are_those_of_the_paper() -> None:
    assert not beyond_limits(GOOD.facts) and not beyond_limits(EDGE.facts) and not beyond_limits(SILENT.facts)
    assert beyond_limits(LOW.facts) == ("sun 44.9° high, under 45°",)
    assert beyond_limits(OBLIQUE.facts) == ("31.0° off nadir, over 25°",)


def test_without_strict_all_stay_and_each_limit_is_one_warning() -> None:
    judged = of_fitting_light((GOOD, LOW, taken("lower", 30.0, 40.0), SILENT), strict=False)
    assert [kept.id for kept in judged.scenes] == ["good", "low", "lower", "silent"] and judged.dropped == ()
    sun, view = judged.warnings
    assert sun.startswith("low, lower: sun 30.0° high, under 45°")
    assert view.startswith("lower: 40.0° off nadir")


def test_strict_leaves_out_what_is_beyond_and_says_what_it_cannot_judge() -> None:
    judged = of_fitting_light((LOW, GOOD, OBLIQUE, SILENT, EDGE), strict=True)
    assert [kept.id for kept in judged.scenes] == ["good", "silent", "edge"]
    assert judged.dropped == (
        "1 refused by --strict-acquisition (sun 44.9° high, under 45°) (low)",
        "1 refused by --strict-acquisition (31.0° off nadir, over 25°) (oblique)",
    )
    assert judged.warnings == ("silent: sun elevation or off-nadir angle unknown, kept unjudged",)


def test_strict_ends_where_nothing_is_left() -> None:
    with pytest.raises(SourceError, match=r"scene low is refused by --strict-acquisition .* and so are the 1 others"):
        of_fitting_light((LOW, OBLIQUE), strict=True)


@pytest.mark.parametrize(
    ("facts", "lat", "expected"),
    [
        (Facts(datetime=day("2020-07-15")), 44.0, "summer"),
        (Facts(datetime=day("2020-07-15")), -33.0, "winter"),
        (Facts(datetime=day("2020-12-01")), 60.0, "winter"),
        (Facts(datetime=day("2020-11-30")), -60.0, "spring"),
        (Facts(datetime=day("2020-07-15")), 10.0, None),
        (Facts(start=day("2020-06-03"), end=day("2020-08-30")), 44.0, "summer"),
        (Facts(start=day("2020-05-30"), end=day("2020-06-02")), 44.0, None),
        (Facts(start=day("2020-01-01"), end=day("2020-12-31")), 44.0, None),
        (Facts(), 44.0, None),
    ],
)
def test_the_season_is_said_where_it_is_known(facts: Facts, lat: float, expected: str | None) -> None:
    assert season(facts, lat) == expected


def test_the_record_says_what_is_beyond_and_what_is_unknown() -> None:
    facts = Facts(datetime=dt.datetime(2020, 1, 5, tzinfo=dt.UTC), sun_elevation=20.0)
    assert acquisition_facts(facts, 50.0) == {
        "season": "winter",
        "beyond_limits": ["sun 20.0° high, under 45°"],
        "unknown_angles": ["off_nadir"],
    }
