"""Which chips learn, choose and are judged: compact ground where there are few places, and nano's very own chips."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from training_data import chips_of, write_image, write_raster

from geodino.errors import ConfigError, InputError
from geodino.sources import Search
from geodino.training.chips import ChipOptions, LabelOptions, build_chips
from geodino.training.chipset import ChipSet
from geodino.training.label_files import read_labels
from geodino.training.pairing import Cut, frames_of, outlines, scenes_over
from geodino.training.parting import compact_folds, parted, squares
from geodino.training.recipe import Recipe
from geodino.training.splits import beside, draw, places, split_places


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> ChipSet:
    """One scene of 4 x 13 chips of 64 px, as a lidar tile is."""
    folder = tmp_path_factory.mktemp("tile")
    write_image(folder / "a.tif", (4 * 64, 13 * 64))
    chm = write_raster(folder / "chm.tif", np.full((4 * 64, 13 * 64), 9, "f4"))
    return chips_of("canopy", chm, folder / "a.tif", folder)


@pytest.mark.parametrize("k", [2, 3, 5])
def test_folds_of_one_scene_are_even_pieces_whose_models_learn_from_most_of_the_rest(ground: ChipSet, k: int) -> None:
    found = compact_folds(ground, k)
    sizes = np.bincount(found)
    assert len(sizes) == k and sizes.min() >= 0.7 * len(ground) / k and sizes.max() <= 1.5 * len(ground) / k
    for fold in range(k):
        seams = beside(squares(ground), found == fold)
        # No more than a row of chips on each side.
        assert seams.sum() <= 2 * 4 + 2


def test_folds_are_cut_between_places_and_hold_across_continents(ground: ChipSet, tmp_path: Path) -> None:
    for name, crs, east in (("a", "EPSG:32633", 500_000.0), ("b", "EPSG:32610", 500_000.0)):
        write_image(tmp_path / f"{name}.tif", (128, 192), at=(east, 5_000_000.0), crs=crs)
        write_raster(tmp_path / f"{name}_chm.tif", np.full((128, 192), 9, "f4"), at=(east, 5_000_000.0), crs=crs)
    labels, sources = ([str(tmp_path / f"{name}{end}") for name in "ab"] for end in ("_chm.tif", ".tif"))
    chips = chips_of("canopy", labels, sources, tmp_path)
    assert chips.table.groupby(compact_folds(chips, 2)).crs.nunique().tolist() == [1, 1]
    with pytest.raises(ConfigError, match=r"13 folds cannot be made of 12 chips; give 2 to 12"):
        compact_folds(chips, 13)


@pytest.mark.parametrize("share", [1 / 16, 0.25])
def test_the_chips_that_choose_are_the_share_asked_for_and_lie_together(ground: ChipSet, share: float) -> None:
    learn, tune = parted(ground, Recipe(size=64, tuning=share))
    assert len(tune) == np.ceil(share * len(ground))
    near = beside(squares(ground), np.isin(np.arange(len(ground)), tune))
    assert not near[learn].any() and len(learn) + len(tune) + near.sum() == len(ground)
    assert near.sum() <= 14


def test_too_few_chips_are_counted_in_the_refusal(ground: ChipSet) -> None:
    with pytest.raises(InputError, match=r"0 chips to learn from and 1 to choose by, of 2 in all: give labels of more"):
        parted(ground.subset([0, 1]), Recipe(size=64))


def test_the_parts_of_nanos_data_stay_what_they_were(shared_data: Path, tmp_path: Path) -> None:
    trees, canopy = shared_data / "urban-trees", shared_data / "canopy"
    names = ("autzen_north", "autzen_southeast", "ign_farm", "ign_garden")
    heights = build_chips(
        "canopy",
        [canopy / "scenes" / f"{name}_chm.tif" for name in names],
        [str(canopy / "scenes" / f"{name}_rgb.tif") for name in names],
        folder=tmp_path,
        options=ChipOptions(size=384, splits=(str(canopy / "scenes.csv"),)),
    )
    assert heights.sha256.startswith("347cfd700038c360")
    learn, tune = parted(heights, Recipe())
    assert (len(learn), tune.tolist()) == (25, [25, 27])
    # The places of the tree chips, without their pixels.
    rows = pd.read_csv(trees / "chips.csv", dtype=str, keep_default_na=False).set_index("chip")
    known = read_labels(
        "trees", [str(trees / "trees.parquet")], LabelOptions(scene_column="chip"), frozenset(rows.index)
    )
    scenes, _ = scenes_over(known.layer.boxes(), [str(trees / "stac" / "catalog.json")], Search(), whole=True)
    frames = frames_of(scenes, 0.6)
    found = places(outlines([Cut(frame, frame.extent, (frame.extent,)) for frame in frames]))
    table = pd.DataFrame({"place": found, "split": rows.loc[[frame.name for frame in frames], "split"].tolist()})
    learn, tune = split_places(table, Recipe().tuning)
    assert (int(learn.sum()), int(tune.sum())) == (985, 80)
    # The rule that drew them: every place whose lot is under the share.
    lots = table.place.map(lambda place: draw(place, 0))
    assert (lots[tune] < 1 / 16).all() and (lots[learn] >= 1 / 16).all()
