"""The order of a mosaic: the same for the same scenes, whatever order they came in."""

from __future__ import annotations

import datetime as dt

import pytest
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from odc.geo.crs import CRS

from geodino.errors import ConfigError
from geodino.radiometry import PROFILES
from geodino.sources.order import in_order
from geodino.sources.scene import Band, Facts, Scene
from geodino.sources.search import Search


def scene(name: str, *, cloud: float | None = None, **when: dt.datetime | None) -> Scene:
    red, green, blue = (Band(f"{name}.tif", number) for number in (1, 2, 3))
    return Scene(
        name, (red, green, blue), CRS("EPSG:32633"), Affine(0.6, 0, 0, 0, -0.6, 0), (10, 10), 0.6, "uint8",
        PROFILES["uint8"], facts=Facts(cloud_cover=cloud, **when),
    )  # fmt: skip


def day(text: str) -> dt.datetime:
    return dt.datetime.fromisoformat(text).replace(tzinfo=dt.UTC)


SCENES = (
    scene("spring", cloud=5, datetime=day("2020-04-01T23:59")),
    scene("summer", cloud=20, datetime=day("2020-06-20")),
    scene("summer-too", datetime=day("2020-06-20")),
    scene("year", cloud=0, start=day("2020-01-01"), end=day("2020-12-31")),
    scene("undated", cloud=5),
)


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("newest", ["summer", "summer-too", "spring", "year", "undated"]),
        ("oldest", ["year", "spring", "summer", "summer-too", "undated"]),
        ("least-cloud", ["year", "spring", "undated", "summer", "summer-too"]),
        ("nearest 2020-04-02", ["spring", "summer", "summer-too", "year", "undated"]),
        # Ten days before and ten after: the newer goes first. A year may be any day of it, so it comes after both.
        ("nearest 2020-05-11", ["summer", "summer-too", "spring", "year", "undated"]),
    ],
)
def test_scenes_come_in_the_order_asked_for(order: str, expected: list[str]) -> None:
    assert [found.id for found in in_order(SCENES, order)] == expected


@given(
    shuffled=st.permutations(SCENES + SCENES[:2]),
    order=st.sampled_from(["newest", "oldest", "least-cloud", "nearest 2020-05-11", "nearest 1990-01-01"]),
)
def test_the_order_does_not_depend_on_how_they_came(shuffled: list[Scene], order: str) -> None:
    assert in_order(shuffled, order) == in_order(SCENES, order)


def test_nearest_without_a_date_is_told_that_one_is_needed() -> None:
    with pytest.raises(
        ConfigError, match=r"order nearest must be one of .* or nearest with a date: nearest 2020-06-15"
    ):
        Search(order="nearest ")


@pytest.mark.parametrize("order", ["eldest", "nearest", "nearest 2020-13-01", "nearest soon", "newest 2020-01-01"])
def test_an_order_that_is_none_is_refused_by_name(order: str) -> None:
    with pytest.raises(ConfigError, match=f"order {order}"):
        Search(order=order)
