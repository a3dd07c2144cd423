"""A model's record names the chips that it learned from, so that it is never judged on them in silence."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pyproj import Transformer
from training_data import NORTH, SIDE, WEST, chips_of, write_image, write_raster

from geodino.errors import ModelError
from geodino.training.chipset import ChipSet
from geodino.training.leaks import KEY, learned_chips, learned_from


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A photo of 256 px and its heights."""
    folder = tmp_path_factory.mktemp("scene")
    write_image(folder / "a_rgb.tif", (256, 256))
    heights = np.random.default_rng(1).uniform(0, 20, (256, 256)).astype(np.float32)
    return write_raster(folder / "a_chm.tif", heights), str(folder / "a_rgb.tif")


@pytest.fixture(scope="module")
def chips(scene: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> ChipSet:
    return chips_of("canopy", *scene, tmp_path_factory.mktemp("chips"), size=SIDE)


def test_the_chips_that_taught_are_found_again_and_their_neighbours_are_not(chips: ChipSet) -> None:
    assert len(chips) == 16
    record = {KEY: learned_chips(chips, np.array([0, 5, 6]))}
    assert learned_from(record, chips) == 3
    assert learned_from(record, chips.subset([0, 1, 2])) == 1
    assert learned_from({}, chips) == learned_from({KEY: learned_chips(chips, np.array([], int))}, chips) == 0


def test_other_windows_on_the_same_ground_are_found(scene: tuple[str, str], chips: ChipSet, tmp_path: Path) -> None:
    larger = chips_of("canopy", *scene, tmp_path, size=128)
    west, north = chips.table["west"].min(), chips.table["north"].max()
    corner = ((chips.table["west"] == west) & (chips.table["north"] == north)).to_numpy()
    assert (west, north) == pytest.approx((WEST, NORTH))
    assert learned_from({KEY: learned_chips(chips, np.flatnonzero(corner))}, larger) == 1
    assert learned_from({KEY: learned_chips(larger, np.array([0]))}, chips) == 4


def test_the_same_ground_in_another_crs_is_found(chips: ChipSet) -> None:
    there = Transformer.from_crs("EPSG:32633", "EPSG:32632", always_xy=True)
    west, north = there.transform(chips.table["west"][0], chips.table["north"][0])
    table = chips.table.assign(image_sha256="0" * 64, crs="EPSG:32632", west=west, north=north)
    assert learned_from({KEY: learned_chips(replace(chips, table=table), np.array([0]))}, chips.subset([0])) == 1
    away = replace(chips, table=table.assign(north=north + 1000))
    assert learned_from({KEY: learned_chips(away, np.array([0]))}, chips) == 0


def test_trainings_before_and_beside_count_too(chips: ChipSet) -> None:
    before, beside = ({KEY: learned_chips(chips, np.array([index]))} for index in (3, 4))
    record = {KEY: learned_chips(chips, np.array([0])), "start": {"training": before}, "rehearsed": [beside, {}]}
    assert learned_from(record, chips) == 3


def test_a_damaged_record_is_refused(chips: ChipSet) -> None:
    with pytest.raises(ModelError, match=r"learned of the record in training\.json is damaged"):
        learned_from({KEY: {"side_m": 38.4}}, chips)
