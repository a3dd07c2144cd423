"""Trees through the whole run: each one counted once, wherever the AOI ends, and every file says the same of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
from test_outputs_item import complaints
from tiny_models import CHMV2_STATISTICS, headed_network, save

import geodino
from geodino.errors import ConfigError, ModelError
from geodino.options import RunOptions
from geodino.outputs.record import read_record
from geodino.pipeline import run

WEST, NORTH, GSD = 494004.0, 4878762.6, 0.6
FILES = {
    "scene.tif",
    "scene.qml",
    "statistics.parquet",
    "statistics.csv",
    "trees.parquet",
    "trees.gpkg",
    "tree_density.tif",
    "tree_density.qml",
    "preview.png",
    "item.json",
    "run.json",
}
MAPS = {"canopy_height.tif", "canopy_height_spread.tif"}


def box(left: float, top: float, right: float, bottom: float) -> str:
    """Pixel bounds of the photo as an AOI."""
    shape = shapely.box(WEST + left * GSD, NORTH - bottom * GSD, WEST + right * GSD, NORTH - top * GSD)
    return f"SRID=26910;{shape.wkt}"


@pytest.fixture(scope="module")
def headed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with both heads whose random heat has many peaks."""
    network = headed_network(
        trees={"kind": "density", "threshold": 0.2, "spacing": 2},
        canopy={"kind": "pyramid", "bins": 8, "highest_m": 40.0},
    )
    return save(network, tmp_path_factory.mktemp("model") / "headed", CHMV2_STATISTICS | {"gsd_m": 0.6})


@pytest.fixture(scope="module")
def options(photo: Path, headed: Path) -> RunOptions:
    # One window at a time: a batch of another size may round the last bit another way.
    return RunOptions(sources=(str(photo),), model=str(headed), precision="fp32", device="cpu", threads=2, batch_size=1)


@pytest.fixture(scope="module")
def on_height(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped pipeline, its trees found on height, with small crowns so that little context is needed."""
    text = (Path(__file__).parents[1] / "pipelines" / "trees.yaml").read_text()
    path = tmp_path_factory.mktemp("pipeline") / "tops.yaml"
    path.write_text(text.replace("find_on: auto", "find_on: height").replace("max_diameter_m: 20", "max_diameter_m: 4"))
    return path


@pytest.fixture(scope="module")
def whole(options: RunOptions, on_height: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same ground by both ways to trees."""
    folder = tmp_path_factory.mktemp("whole")
    for name, pipeline in (("heat", "trees"), ("height", on_height)):
        run(pipeline, aoi=box(20, 15, 400, 280), out=folder / name, options=options)
    return {name: folder / name for name in ("heat", "height")}


def test_a_run_of_trees_leaves_its_files_and_nothing_else(whole: dict[str, Path]) -> None:
    held = {name: {path.name for path in folder.iterdir()} - {".lock"} for name, folder in whole.items()}
    assert held == {"heat": FILES | MAPS, "height": FILES | MAPS | {"crowns.parquet", "crowns.qml"}}


@pytest.mark.parametrize("way", ["heat", "height"])
@pytest.mark.parametrize("cut", [193.0, 233.5])
def test_an_aoi_cut_in_two_has_the_same_trees_as_the_whole(
    way: str, cut: float, whole: dict[str, Path], options: RunOptions, on_height: Path, tmp_path: Path
) -> None:
    pipeline = "trees" if way == "heat" else on_height
    parts = []
    for name, (left, right) in {"west": (20, cut), "east": (cut, 400)}.items():
        run(pipeline, aoi=box(left, 15, right, 280), out=tmp_path / name, options=options)
        parts.append(gpd.read_parquet(tmp_path / name / "trees.parquet"))
    both = {tree.tree_id: tree for part in parts for tree in part.itertuples()}
    assert len(both) == len(parts[0]) + len(parts[1]), "a tree was found on both sides"
    trees = gpd.read_parquet(whole[way] / "trees.parquet")
    assert len(trees) > 150
    assert set(both) == set(trees["tree_id"])
    same = 0
    for tree in trees.itertuples():
        other = both[tree.tree_id]
        assert tree.geometry.equals(other.geometry)
        assert tree.height_m == other.height_m or (np.isnan(tree.height_m) and np.isnan(other.height_m))
        assert tree.score == other.score or way == "height"
        same += tree.crown_area_m2 == other.crown_area_m2
    # Random heights are one plateau with dents: humps hang together right across, and a crown at the cut may need more
    # ground than is computed around the AOI. Heights of real trees fall off between them.
    assert way == "heat" or same >= 0.97 * len(trees)


@pytest.mark.parametrize("way", ["heat", "height"])
def test_points_density_package_record_and_item_tell_one_number(way: str, whole: dict[str, Path]) -> None:
    folder = whole[way]
    trees, record = gpd.read_parquet(folder / "trees.parquet"), read_record(folder / "run.json")
    assert record.trees is not None
    assert record.trees.count == len(trees) == len(gpd.read_file(folder / "trees.gpkg", layer="trees"))
    assert trees["tree_id"].is_unique and record.trees.found_on == way
    (zone,) = gpd.read_parquet(folder / "statistics.parquet").itertuples()
    assert abs(zone.tree_count - len(trees)) <= 0.02 * len(trees), "points at the edge may stand just outside"
    assert zone.seen_percent == pytest.approx(100 * record.mapped_percent_of_aoi / 100, abs=1)
    assert zone.tree_count_low < zone.tree_count < zone.tree_count_high
    with rasterio.open(folder / "tree_density.tif") as raster:
        assert int(raster.tags()["GEODINO_TREES"]) == len(trees)
        density = raster.read(1, masked=True)
        assert raster.transform.a == 10 and raster.transform.c % 10 == 0
    assert (density.filled(0) > 0).any()
    aoi_ha = 380 * 265 * GSD**2 / 1e4
    hole_ha = 50 * 60 * GSD**2 / 1e4
    assert record.trees.mapped_ha == pytest.approx(aoi_ha - hole_ha, rel=0.02)
    item = json.loads((folder / "item.json").read_text())
    assert not complaints(item)
    assert item["assets"]["trees"]["type"] == "application/vnd.apache.parquet"
    assert f"{len(trees):,} trees" in item["properties"]["description"]
    (band,) = item["assets"]["tree_density"]["bands"]
    assert (band["unit"], band["raster:spatial_resolution"]) == ("trees/ha", 10.0)


def test_a_tree_stands_in_the_aoi_on_imagery_and_has_the_height_of_its_pixel(whole: dict[str, Path]) -> None:
    trees = gpd.read_parquet(whole["height"] / "trees.parquet")
    aoi = shapely.from_wkt(box(20, 15, 400, 280).partition(";")[2])
    hole = shapely.box(WEST + 200 * GSD, NORTH - 170 * GSD, WEST + 260 * GSD, NORTH - 120 * GSD)
    assert trees.within(aoi).all() and not trees.within(hole).any()
    with rasterio.open(whole["height"] / "canopy_height.tif") as raster:
        at = [value[0] for value in raster.sample(list(zip(trees.geometry.x, trees.geometry.y, strict=True)))]
    np.testing.assert_array_equal(at, trees["height_m"])
    assert (trees["height_m"] >= 2).all() and trees["height_spread_m"].notna().all() and trees["score"].isna().all()
    crowns = gpd.read_parquet(whole["height"] / "crowns.parquet")
    assert set(crowns["tree_id"]) == set(trees["tree_id"])
    np.testing.assert_allclose(crowns.area, crowns["crown_area_m2"], rtol=1e-5)
    heat = gpd.read_parquet(whole["heat"] / "trees.parquet")
    # A point may stand up to an offset away from the cell that is its own.
    assert heat.distance(aoi).max() < 4 * GSD
    assert heat["score"].between(0.2, 1).all() and heat["height_m"].notna().mean() > 0.95
    # The point of a tree at the edge of the imagery may fall where there is none.
    assert set(heat["scene"].dropna()) == {"photo"} and heat["scene"].notna().mean() > 0.95


def test_statistics_of_other_polygons_are_asked_of_the_folder(whole: dict[str, Path]) -> None:
    once = geodino.stats(whole["heat"], box(20, 15, 400, 280)).frame
    run_said = gpd.read_parquet(whole["heat"] / "statistics.parquet")
    assert once["tree_count"].tolist() == run_said["tree_count"].tolist()
    assert once["mean_height_m"].tolist() == run_said["mean_height_m"].tolist()
    halves = [geodino.stats(whole["heat"], box(*edges)).frame for edges in ((20, 15, 211, 280), (211, 15, 400, 280))]
    assert sum(int(half["tree_count"].iloc[0]) for half in halves) == int(once["tree_count"].iloc[0])


def test_a_model_of_trees_alone_says_how_much_was_seen(
    photo: Path, options: RunOptions, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    network = headed_network(trees={"kind": "density", "threshold": 0.2, "spacing": 2})
    model = save(network, tmp_path_factory.mktemp("model") / "trees", CHMV2_STATISTICS | {"gsd_m": 0.6})
    stripes = tmp_path / "stripes.tif"
    with rasterio.open(photo) as source:
        profile, pixels = source.profile, source.read()
    pixels[:, :, (np.arange(420) // 6) % 2 == 0] = 0
    with rasterio.open(stripes, "w", **{**profile, "nodata": 0}) as target:
        target.write(pixels)
    only = replace(options, sources=(str(stripes),), model=str(model))
    record = run("trees", aoi=box(20, 15, 200, 115), out=tmp_path / "out", options=only)
    (zone,) = gpd.read_parquet(tmp_path / "out" / "statistics.parquet").itertuples()
    assert record.mapped_percent_of_aoi == pytest.approx(50, abs=1)
    assert zone.seen_percent == pytest.approx(record.mapped_percent_of_aoi, abs=0.5)
    assert record.trees is not None
    assert zone.tree_density_per_ha == pytest.approx(record.trees.per_ha, rel=0.03)


def test_heights_beside_trees_are_those_of_a_run_of_heights(
    whole: dict[str, Path], options: RunOptions, tmp_path: Path
) -> None:
    run("canopy", aoi=box(20, 15, 400, 280), out=tmp_path / "canopy", options=options)
    for name in MAPS:
        with rasterio.open(whole["heat"] / name) as beside, rasterio.open(tmp_path / "canopy" / name) as alone:
            assert beside.transform == alone.transform
            np.testing.assert_array_equal(beside.read(), alone.read())


def test_tiles_for_a_browser_hold_the_trees_where_they_stand(
    whole: dict[str, Path], options: RunOptions, tmp_path: Path
) -> None:
    text = (Path(__file__).parents[1] / "pipelines" / "trees.yaml").read_text()
    (tmp_path / "tiles.yaml").write_text(text.replace("pmtiles: false", "pmtiles: true"))
    run(tmp_path / "tiles.yaml", aoi=box(20, 15, 120, 115), out=tmp_path / "out", options=options)
    tiles = gpd.read_file(tmp_path / "out" / "trees.pmtiles", layer="trees")
    trees = gpd.read_parquet(tmp_path / "out" / "trees.parquet").set_index("tree_id")
    assert len(tiles) == len(trees) > 10
    apart = tiles.to_crs(trees.crs).set_index("tree_id").geometry.distance(trees.geometry, align=True)
    assert apart.max() < 0.3


def test_an_aoi_without_a_tree_gives_whole_and_empty_files(options: RunOptions, tmp_path: Path) -> None:
    text = (Path(__file__).parents[1] / "pipelines" / "trees.yaml").read_text()
    (tmp_path / "sure.yaml").write_text(
        text.replace("threshold: model", "threshold: 1").replace("pmtiles: false", "pmtiles: true")
    )
    record = run(tmp_path / "sure.yaml", aoi=box(20, 15, 120, 115), out=tmp_path / "out", options=options)
    assert record.trees is not None and record.trees.count == 0
    assert len(gpd.read_parquet(tmp_path / "out" / "trees.parquet")) == 0
    assert not (tmp_path / "out" / "trees.pmtiles").exists()
    with rasterio.open(tmp_path / "out" / "tree_density.tif") as raster:
        assert raster.read(1, masked=True).max() == 0


def test_a_model_without_a_head_for_trees_finds_them_on_height_or_is_refused(
    options: RunOptions, tiny_model: Path, tmp_path: Path
) -> None:
    canopy = replace(options, model=str(tiny_model))
    record = run("trees", aoi=box(20, 15, 120, 115), out=tmp_path / "auto", options=canopy)
    assert record.trees is not None and record.trees.found_on == "height"
    text = (Path(__file__).parents[1] / "pipelines" / "trees.yaml").read_text()
    (tmp_path / "heat.yaml").write_text(text.replace("find_on: auto", "find_on: heat"))
    with pytest.raises(ModelError, match="trees is asked of it"):
        run(tmp_path / "heat.yaml", aoi=box(20, 15, 120, 115), out=tmp_path / "heat", options=canopy)
    (tmp_path / "odd.yaml").write_text(
        text.replace("window: model", "window: {size: 128, overlap: 48, margin: 8}").replace("auto", "auto")
    )
    with pytest.raises(ConfigError, match="give another overlap"):
        run(tmp_path / "odd.yaml", aoi=box(20, 15, 120, 115), out=tmp_path / "odd", options=options)
