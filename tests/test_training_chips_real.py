"""Chips of the development data: every pixel and every point where the data's own tables say."""

from __future__ import annotations

from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import rasterio

from geodino.training.chips import ChipOptions, LabelOptions, build_chips
from geodino.training.splits import folds, split_places


def test_tree_points_lie_at_the_pixels_that_the_data_say_and_images_keep_theirs(
    shared_data: Path, tmp_path: Path
) -> None:
    data = shared_data / "urban-trees"
    options = ChipOptions(labels=LabelOptions(scene_column="chip"), splits=(str(data / "chips.csv"),))
    sources = [str(data / "images" / "riverside_2018_1*.tif"), str(data / "images" / "chico_2020_2*.tif")]
    chips = build_chips("trees", [data / "trees.parquet"], sources, folder=tmp_path, options=options)
    rows = gpd.read_parquet(data / "trees.parquet").drop_duplicates(["chip", "px", "py"])
    assert chips.points is not None and len(chips) > 10
    for name, image, points in zip(chips.table.chip, chips.images, chips.points, strict=True):
        wanted = rows.loc[rows.chip == name, ["px", "py"]].to_numpy()
        np.testing.assert_allclose(np.sort(points, axis=0), np.sort(wanted, axis=0), atol=0.01)
        with rasterio.open(data / "images" / f"{name}.tif") as file:
            assert (image == file.read([1, 2, 3]).astype(np.uint16) * 257).all()
    assert chips.valid[:].all() and chips.labelled[:].all()
    assert set(chips.table.city) == {"riverside", "chico"}
    # The places of the data, which are named after their cities, are within those found here.
    known = pd.read_csv(data / "chips.csv").set_index("chip").loc[chips.table.chip, "place"].to_numpy()
    assert chips.table.groupby(known).place.nunique().max() == 1
    assert (chips.table.place.str.startswith("39.") == (chips.table.city == "chico")).all()


def test_places_of_the_whole_set_keep_to_the_splits_of_its_makers(shared_data: Path, tmp_path: Path) -> None:
    data = shared_data / "urban-trees"
    options = ChipOptions(labels=LabelOptions(scene_column="chip"), splits=(str(data / "chips.csv"),))
    sources = [str(data / "images" / "bishop_*.tif"), str(data / "images" / "eureka_*.tif")]
    chips = build_chips("trees", [data / "trees.parquet"], sources, folder=tmp_path, options=options)
    learn, tune = split_places(chips.table, 0.25)
    assert learn.any() and tune.any() and not chips.table.split[learn | tune].eq("val").any()
    by_city = folds(chips.table, 2, "city")
    assert pd.Series(by_city).groupby(chips.table.city).nunique().max() == 1


def test_canopy_heights_are_those_of_the_scenes(shared_data: Path, tmp_path: Path) -> None:
    data = shared_data / "canopy"
    names = ["autzen_southeast", "ign_farm"]
    labels = [data / "scenes" / f"{name}_chm.tif" for name in names] + [data / "plots" / "OSBS_1*_chm.tif"]
    sources = [str(data / "scenes" / f"{name}_rgb.tif") for name in names] + [str(data / "plots" / "OSBS_1*_rgb.tif")]
    splits = (str(data / "scenes.csv"), str(data / "plots.csv"))
    chips = build_chips("canopy", labels, sources, folder=tmp_path, options=ChipOptions(splits=splits))
    assert chips.heights is not None and set(chips.table.split) == {"train", "val"}
    files = {name: data / "scenes" / f"{name}.tif" for name in ("autzen_southeast_chm", "ign_farm_chm")}
    for number, (chip, scene, west, north) in enumerate(
        chips.table[["chip", "scene", "west", "north"]].itertuples(index=False)
    ):
        path = files.get(scene.replace("_rgb", "_chm"), data / "plots" / f"{scene.replace('_rgb', '_chm')}.tif")
        with rasterio.open(path) as file:
            row, col = round((file.transform.f - north) / 0.6), round((west - file.transform.c) / 0.6)
            window = rasterio.windows.Window(col, row, chips.size, chips.size)
            wanted = file.read(1, window=window, boundless=True, fill_value=-9999)
        known = wanted != -9999
        assert (chips.labelled[number] == known).all(), chip
        assert (chips.heights[number][known] == wanted[known]).all()
