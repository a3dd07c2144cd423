"""Places, splits and folds: neighbours never on two sides, answers that do not depend on who else is there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from pyproj import CRS
from training_data import GSD, NORTH, SIDE, WEST, chips_of, on_ground, write_image, write_raster, write_vector

from geodino.errors import ConfigError, InputError
from geodino.polygons import WGS84
from geodino.training.pairing import moved
from geodino.training.splits import aliases, beside, draw, folds, match_splits, places, read_splits, split_places

WIDE = SIDE * GSD


def rings(corners: list[tuple[float, float]], zone: int = 33, side: float = WIDE) -> npt.NDArray[np.float64]:
    """Outlines of squares by their south-west corners in a UTM zone."""
    xy = np.array([shapely.get_coordinates(shapely.box(x, y, x + side, y + side, ccw=False))[:4] for x, y in corners])
    return moved(xy.reshape(-1, 2), CRS(f"EPSG:326{zone}"), WGS84).reshape(-1, 4, 2)


@pytest.mark.parametrize(("gap", "together"), [(0, True), (29.5, True), (30.0, False), (35, False)])
@pytest.mark.parametrize("direction", [(1, 0), (0, 1)])
def test_chips_closer_than_30_m_are_one_place(gap: float, together: bool, direction: tuple[int, int]) -> None:
    x, y = 500_000 + direction[0] * (WIDE + gap), 5_000_000 + direction[1] * (WIDE + gap)
    one, other = places(rings([(500_000, 5_000_000), (x, y)]))
    assert (one == other) is together


def test_places_chain_and_hold_across_zones_and_the_antimeridian() -> None:
    row = rings([(500_000 + number * (WIDE + 20), 5_000_000) for number in range(4)])
    assert len(set(places(row))) == 1
    assert len(set(places(row[[0, 3]]))) == 2
    here = rings([(756_000, 5_000_000)], 32)
    xy = moved(here[0, :1], WGS84, CRS("EPSG:32633"))[0]
    there = rings([(xy[0] + 5, xy[1] + 5)], 33)
    assert len(set(places(np.concatenate([here, there])))) == 1
    date_line = np.array([[(179.9995, 10), (179.99999, 10), (179.99999, 10.0005), (179.9995, 10.0005)]] * 2)
    date_line[1, :, 0] = [-179.9999, -179.9995, -179.9995, -179.9999]
    assert len(set(places(date_line))) == 1


@given(
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=1, max_size=14),
    st.sampled_from([55.0, 68.0, 75.0]),
)
def test_places_are_the_components_of_nearness_whatever_the_order(cells: list[tuple[int, int]], step: float) -> None:
    corners = [(400_000 + col * step, 5_000_000 + row * step) for row, col in cells]
    found = places(rings(corners))
    squares = shapely.union_all(
        [shapely.box(x, y, x + WIDE, y + WIDE).buffer(15, join_style="round") for x, y in corners]
    )
    parts = shapely.get_parts(squares)
    owner = [int(np.flatnonzero(shapely.contains_xy(parts, x + 1, y + 1))[0]) for x, y in corners]
    assert len(set(zip(found, owner, strict=True))) == len(set(found)) == len(set(owner))
    assert places(rings(corners[::-1])) == found[::-1]


def test_what_lies_beside_the_chosen_is_told() -> None:
    row = rings([(500_000 + x, 5_000_000) for x in (0, 60, 200, 260)])
    assert beside(row, np.array([True, False, False, False])).tolist() == [False, True, False, False]
    assert beside(row, np.array([False, False, True, True])).tolist() == [False] * 4
    assert beside(row, np.zeros(4, bool)).tolist() == [False] * 4


def csv(folder: Path, text: str, name: str = "splits.csv") -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def test_split_files_of_several_kinds_are_read_as_one(tmp_path: Path) -> None:
    one = csv(tmp_path, "scene,split,license,city\na,train,CC0,x\nb,val,,y\n", "1.csv")
    two = csv(tmp_path, "plot,site,split\nc,z,\na,q,train\n", "2.csv")
    rows = read_splits([one, two])
    assert rows[["name", "split", "licence", "city", "site"]].to_numpy().tolist() == [
        ["a", "train", "CC0", "x", ""], ["b", "val", "", "y", ""], ["c", "", "", "", "z"]
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("scene,split\na,test\n", r"split 'test' of a must be train, val or empty"),
        (
            "scene,part\na,train\n",
            r"has the columns scene, part; it needs split and one of scene, chip, id, plot, name",
        ),
        ("tile,split\na,train\n", r"has the columns tile, split; it needs split and one of"),
        ("scene,split\na,train\na,val\n", r"splits: a is in train and in val; give it one split"),
        ("", r"cannot be read as CSV"),
    ],
)
def test_split_files_that_cannot_be_are_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        read_splits([csv(tmp_path, text)])
    with pytest.raises(InputError, match=r"none.csv cannot be read as CSV"):
        read_splits([tmp_path / "none.csv"])


def test_a_name_may_lack_the_scenes_last_word_and_a_mistyped_one_is_refused() -> None:
    assert aliases(["a_rgb", "b_1", "b_2"]) == {"a": "a_rgb", "a_rgb": "a_rgb", "b_1": "b_1", "b_2": "b_2"}
    rows = pd.DataFrame({"name": ["north", "south", "far"], "split": ["train", "val", "val"]})
    assert match_splits(rows, ["north_rgb", "south_rgb"]) == ({"north_rgb": 0, "south_rgb": 1}, 1)
    assert match_splits(rows.iloc[:1], ["north_rgb", "south_rgb"]) == ({"north_rgb": 0}, 0)
    with pytest.raises(
        InputError, match=r"1 name such as far are no scene's, and 1 scene such as farm_rgb have no split"
    ):
        match_splits(rows, ["north_rgb", "south_rgb", "farm_rgb"])


def test_chips_beside_the_held_out_are_left_out_in_whatever_year(tmp_path: Path) -> None:
    """a is held out; b shares its ground in another year, c lies 20 m away and d 40 m."""
    for name, east in {"a": 0.0, "b": 10.0, "c": WIDE + 20, "d": WIDE + 40}.items():
        write_image(tmp_path / f"{name}.tif", at=(WEST + east, NORTH))
    path = write_raster(tmp_path / "chm.img.tif", np.ones((SIDE, SIDE * 3), "f4"))
    splits = csv(tmp_path, "scene,split,city\na,val,x\nb,train,x\nc,,x\nd,train,y\n")
    sources = [str(tmp_path / f"{name}.tif") for name in "abcd"]
    chips = chips_of("canopy", path, sources, tmp_path, splits=(splits,))
    assert chips.table[["scene", "split", "city"]].to_numpy().tolist() == [["a", "val", "x"], ["d", "train", "y"]]
    assert chips.table.place.nunique() == 2
    assert chips.dropped == {"chip within 30 m of one of the split val": 2}
    free = chips_of("canopy", path, sources, tmp_path)
    assert len(free) == 4 and free.table.place.nunique() == 1 and free.dropped == {}


def table(places: list[str], splits: list[str] | None = None, **more: list[str]) -> pd.DataFrame:
    return pd.DataFrame({"place": places, "split": splits or [""] * len(places), **more})


@given(st.lists(st.integers(0, 60), min_size=2, max_size=90), st.floats(0.02, 0.9), st.integers(0, 5))
def test_tuning_places_are_whole_never_of_the_split_val_and_those_whose_lots_are_lowest(
    numbers: list[int], fraction: float, seed: int
) -> None:
    rows = table([f"p{number}" for number in numbers], ["val" if number % 5 == 0 else "train" for number in numbers])
    learn, tune = split_places(rows, fraction, seed)
    val = (rows.split == "val").to_numpy()
    assert not (learn & tune).any() and (learn | tune | val).all() and not ((learn | tune) & val).any()
    assert not set(rows.place[learn]) & set(rows.place[tune])
    sizes = rows.place[~val].value_counts().to_dict()
    if len(sizes) < 2:
        return
    assert learn.any() and tune.any()
    wanted = fraction * sum(sizes.values())
    assert tune.sum() <= max(2 * wanted, min(sizes.values()))
    # Whoever has a lot under the fraction is held back, in whatever company, where there is room for all of those.
    lots = {place: draw(place, seed) for place in sizes}
    under = {place for place in sizes if lots[place] < fraction}
    if len(under) < len(sizes) and sum(sizes[place] for place in under) <= 2 * wanted:
        assert under <= set(rows.place[tune])
    # What is short of the share could not be met: the next place in line is too large, or the last one.
    left = sorted(set(sizes) - set(rows.place[tune]), key=lambda place: (lots[place], place))
    assert tune.sum() >= wanted or all(tune.sum() + sizes[place] > 2 * wanted for place in left[:-1])


def test_places_are_drawn_until_they_hold_the_share_and_a_giant_is_passed_over() -> None:
    rows = table([f"p{number}" for number in range(43)])
    assert split_places(rows, 1 / 16)[1].sum() >= 43 / 16
    lots = {place: draw(place, 0) for place in rows.place}
    giant = min(lots, key=lambda place: lots[place])
    learn, tune = split_places(table([*rows.place, *[giant] * 100]), 1 / 16)
    assert 142 / 16 <= tune.sum() <= 142 / 8 and rows.place[learn[:43]].eq(giant).any()


def test_the_share_of_tuning_places_is_about_the_fraction() -> None:
    rows = table([f"p{number}" for number in range(4000)])
    shares = [split_places(rows, fraction)[1].mean() for fraction in (1 / 16, 0.25)]
    np.testing.assert_allclose(shares, [1 / 16, 0.25], atol=0.02)
    with pytest.raises(ConfigError, match="fraction 1 of places"):
        split_places(rows, 1)


@given(st.lists(st.integers(0, 40), min_size=5, max_size=120), st.integers(2, 5))
def test_folds_hold_whole_places_and_are_about_even(numbers: list[int], k: int) -> None:
    rows = table([f"p{number}" for number in numbers])
    if rows.place.nunique() < k:
        with pytest.raises(ConfigError, match=rf"{k} folds cannot be made of {rows.place.nunique()} groups? by place"):
            folds(rows, k)
        return
    found = folds(rows, k)
    assert set(found.tolist()) == set(range(k))
    assert (pd.Series(found).groupby(rows.place).nunique() == 1).all()
    counts = np.bincount(found)
    assert np.ptp(counts) <= rows.place.value_counts().max()


def test_folds_by_city_keep_cities_whole_and_places_too() -> None:
    rows = table(["a", "b", "c", "d", "d", "e"], city=["x", "x", "y", "y", "z", "w"])
    found = folds(rows, 3, "city")
    assert found[0] == found[1] and found[2] == found[3] == found[4] and len(set(found.tolist())) == 3
    with pytest.raises(ConfigError, match=r"the chips have no column town"):
        folds(rows, 2, "town")


def test_a_split_of_a_scene_that_is_not_there_is_counted(tmp_path: Path) -> None:
    write_image(tmp_path / "a.tif")
    path = write_vector(tmp_path / "t.gpkg", on_ground([(5, 5)]))
    splits = csv(tmp_path, "scene,split\na,val\nb,train\n")
    chips = chips_of("trees", path, tmp_path / "a.tif", tmp_path, splits=(splits,))
    assert chips.dropped == {"split of a scene that is not in the imagery": 1}
    assert chips.table.split.tolist() == ["val"]
