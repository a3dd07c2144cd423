"""The results of a batch of real runs: as one run over the whole ground gives them, each tree and hectare once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow.dataset as ds
import pystac
import pytest
import rasterio
from batch_results import SIDE, WEST, box, gather_all, map_area, polygon
from bucket_server import as_environment, bucket_server
from pystac.validation.stac_validator import JsonSchemaSTACValidator
from rasterio.windows import from_bounds
from stac_geoparquet.arrow import stac_table_to_items

from geodino.batch.gather import Facts, gather
from geodino.batch.jobs import Failed, Finished
from geodino.batch.mapped import RIM_PX
from geodino.batch.summary import Summary
from geodino.stores import Store

MAPS = ("canopy_height", "canopy_height_spread", "tree_density")


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run over all of the ground."""
    out = tmp_path_factory.mktemp("one") / "out"
    map_area(box(0, 0, SIDE, SIDE), out)
    return out


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ground as four cells, gathered."""
    folder, half = tmp_path_factory.mktemp("cells"), SIDE / 2
    for west in (0.0, half):
        for south in (0.0, half):
            map_area(box(west, south, west + half, south + half), folder / f"jobs/0/{west:g}-{south:g}")
    gather_all(folder, disjoint=True)
    return folder


@pytest.fixture(scope="module")
def areas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ground as two areas that overlap, with a seam that is not straight; not gathered."""
    folder = tmp_path_factory.mktemp("areas")
    map_area(box(0, 0, 72, SIDE), folder / "jobs/0/a")
    map_area(polygon([(48, 0), (SIDE, 0), (SIDE, SIDE), (30, SIDE), (48, 0)]), folder / "jobs/1/b")
    return folder


@pytest.fixture
def batch(areas: Path, tmp_path: Path) -> Path:
    """The two areas, to be gathered by the test."""
    return shutil.copytree(areas, tmp_path / "batch")


def trees(path: Path) -> gpd.GeoDataFrame:
    return gpd.read_parquet(path).sort_values("tree_id").reset_index(drop=True)


def pixels(path: Path, like: Path) -> npt.NDArray[np.generic]:
    with rasterio.open(like) as wanted, rasterio.open(path) as given:
        if wanted.bounds == given.bounds:
            return np.asarray(given.read(1))
        window = from_bounds(*wanted.bounds, given.transform).round_offsets().round_lengths()
        return np.asarray(given.read(1, window=window))


def test_trees_of_cells_are_those_of_one_run(one: Path, cells: Path) -> None:
    whole, parts = trees(one / "trees.parquet"), trees(cells / "trees")
    assert len(whole) > 20
    assert parts["job"].nunique() == 4
    pd.testing.assert_frame_equal(parts.drop(columns="job"), whole)
    assert ds.dataset(cells / "trees", format="parquet").count_rows() == len(whole)


@pytest.mark.parametrize("name", MAPS)
def test_pixels_of_cells_are_those_of_one_run(one: Path, cells: Path, name: str) -> None:
    whole = one / f"{name}.tif"
    np.testing.assert_array_equal(pixels(cells / f"mosaic/{name}.vrt", whole), pixels(whole, whole))


def test_mosaics_say_what_their_values_are_and_move_with_the_folder(cells: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(cells, tmp_path / "elsewhere")
    with rasterio.open(moved / "mosaic/canopy_height.vrt") as raster:
        assert (raster.nodata, raster.units[0], raster.crs.to_epsg()) == (-9999, "m", 26911)
        assert all(str(cells) not in name for name in raster.files)
        assert raster.read(1, masked=True).count() == raster.width * raster.height
    assert (moved / "mosaic/tree_density.qml").is_file()


def test_areas_that_overlap_give_each_tree_and_pixel_once(one: Path, batch: Path) -> None:
    found = gather_all(batch, disjoint=False)
    whole = trees(one / "trees.parquet")
    pd.testing.assert_frame_equal(trees(batch / "trees").drop(columns="job"), whole)
    for name in MAPS[:2]:
        path = one / f"{name}.tif"
        np.testing.assert_array_equal(pixels(batch / f"mosaic/{name}.vrt", path), pixels(path, path))
    assert found.trees == len(whole)
    assert found.own_ha == pytest.approx(SIDE**2 / 1e4)
    assert found.mapped_ha > found.own_ha + 0.3


def test_neighbours_in_a_part_are_neighbours_on_the_ground(batch: Path) -> None:
    shutil.rmtree(batch / "jobs/1/b")
    gather_all(batch, disjoint=False)

    merged = gpd.read_parquet(batch / "trees")
    first = merged[merged["job"] == "a"]
    in_reading_order = gpd.read_parquet(batch / "jobs/0/a/trees.parquet")
    assert len(first) == len(in_reading_order) > 20
    assert first.hilbert_distance().is_monotonic_increasing
    assert not in_reading_order.hilbert_distance().is_monotonic_increasing


def test_the_first_job_has_the_ground_that_two_pictures_show_but_for_its_rim(areas: Path, tmp_path: Path) -> None:
    shutil.copytree(areas / "jobs/0/a", tmp_path / "jobs/0/a")
    map_area(box(30, 0, SIDE, SIDE), tmp_path / "jobs/1/b", year=2016)
    gather_all(tmp_path, disjoint=False)
    table = pd.read_csv(tmp_path / "mosaic/scenes.csv")
    assert table["scene"].tolist() == ["long-beach-2020-9", "long-beach-2016-9"]
    assert table["first_day"].tolist() == ["2020-01-01", "2016-01-01"]
    with rasterio.open(tmp_path / "mosaic/scene.vrt") as raster:
        scenes = raster.read(1)
    wanted = np.full(scenes.shape, 2)
    wanted[:, : round(72 / 0.6)] = 1
    # From west to east the first is all rim, and the second is not.
    wanted[:, round(30 / 0.6) + RIM_PX : -RIM_PX] = 2
    np.testing.assert_array_equal(scenes, wanted)
    height = tmp_path / "jobs/0/a/canopy_height.tif"
    both, first = pixels(tmp_path / "mosaic/canopy_height.vrt", height), pixels(height, height)
    its_own = wanted[:, : first.shape[1]] == 1
    np.testing.assert_array_equal(both[its_own], first[its_own])
    assert (both != first)[~its_own].any()
    merged, edge = trees(tmp_path / "trees"), 389_670 + 72
    second = merged[merged["job"] == "b"].geometry
    assert len(second)
    # Of a tree's cell, 1.2 m wide, the point may lie in any corner.
    rim_m = RIM_PX * 0.6 - 1.2
    farther_in = second.x.between(WEST + 30 + rim_m, WEST + SIDE - rim_m)
    assert ((second.x > edge - 1.2) | farther_in).all()
    assert merged["tree_id"].is_unique


def test_jobs_in_two_zones_get_a_mosaic_each_and_trees_in_degrees(areas: Path, one: Path, tmp_path: Path) -> None:
    shutil.copytree(areas / "jobs/0/a", tmp_path / "jobs/0/a")
    map_area(box(48, 0, SIDE, SIDE), tmp_path / "jobs/1/b", crs="EPSG:32610")
    found = gather_all(tmp_path, disjoint=False)
    assert found.own_ha == pytest.approx(SIDE**2 / 1e4, rel=5e-3)
    for code in (26911, 32610):
        with rasterio.open(tmp_path / f"mosaic/canopy_height_epsg{code}.vrt") as raster:
            assert raster.crs.to_epsg() == code
    merged, whole = trees(tmp_path / "trees"), trees(one / "trees.parquet")
    assert merged.crs.to_authority() == ("OGC", "CRS84")
    assert set(merged["tree_id"].str.split("_").str[0]) == {"26911", "32610"}
    assert len(merged) == pytest.approx(len(whole), abs=3)
    points = merged.geometry.to_crs(26911)
    assert min(points.drop(index).distance(point).min() for index, point in points.items()) > 1


def test_gathering_again_after_more_jobs_ends_as_gathering_once(areas: Path, batch: Path, tmp_path: Path) -> None:
    gather_all(batch, disjoint=False)
    later = tmp_path / "later"
    shutil.copytree(areas / "jobs/1/b", later / "jobs/1/b")
    gather_all(later, disjoint=False)
    (part,) = (later / "trees").glob("*.parquet")
    before = part.stat().st_mtime_ns
    gather_all(later, disjoint=False)
    assert part.stat().st_mtime_ns == before, "a part was written again though nothing had changed"
    shutil.copytree(areas / "jobs/0/a", later / "jobs/0/a")
    gather_all(later, disjoint=False)
    for path in [path for path in batch.rglob("*") if path.is_file()]:
        assert (later / path.relative_to(batch)).read_bytes() == path.read_bytes(), path.name
    shutil.rmtree(later / "jobs")
    assert gather_all(later, disjoint=False).done == 0


def test_statistics_of_all_jobs_are_one_table(cells: Path) -> None:
    table, text = gpd.read_parquet(cells / "statistics.parquet"), pd.read_csv(cells / "statistics.csv")
    assert list(table.columns[:2]) == list(text.columns[:2]) == ["job", "scene"]
    assert sorted(table["job"]) == ["0-0", "0-60", "60-0", "60-60"]
    assert set(table["scene"]) == {"long-beach-2020-9"}
    assert table["tree_count"].sum() == text["tree_count"].sum() == len(trees(cells / "trees"))
    assert table.crs.to_epsg() == 26911
    jobs = pd.read_parquet(cells / "jobs.parquet")
    assert jobs["own_ha"].tolist() == jobs["mapped_ha"].tolist() == pytest.approx([0.36] * 4)


def test_the_catalog_is_valid_and_leads_to_every_item(cells: Path) -> None:
    collection = pystac.Collection.from_file(cells / "collection.json")
    collection.validate(validator=JsonSchemaSTACValidator())
    items = list(collection.get_items(recursive=True))
    assert len(items) == 4
    for asset in collection.assets.values():
        assert (cells / asset.href).exists(), asset.href
    rows = gpd.read_parquet(cells / "items.parquet")
    assert sorted(rows["id"]) == sorted(item.id for item in items)
    for plain in stac_table_to_items(ds.dataset(cells / "items.parquet").to_table()):
        item = pystac.Item.from_dict(plain)
        assert item.collection_id == collection.id
        for key in ("canopy_height", "trees", "record"):
            assert (cells / item.assets[key].href).is_file()


def test_a_bucket_gets_the_same_bytes_as_a_folder(batch: Path) -> None:
    with bucket_server() as server, as_environment(server):
        server.make_bucket("forest-gather")
        bucket = Store("s3://forest-gather/batch")
        for path in [path for path in batch.rglob("*") if path.is_file()]:
            bucket.upload(path.relative_to(batch).as_posix(), path)
        gather_all(batch, disjoint=False)
        finished = [Finished("a", "jobs/0/a"), Finished("b", "jobs/1/b")]
        for _ in range(2):
            gather(bucket, finished, (), Facts("Trees of Long Beach", disjoint=False, planned=2))
        files = {path.relative_to(batch).as_posix() for path in batch.rglob("*") if path.is_file()}
        assert {entry.key for entry in bucket.entries()} == files
        assert all(bucket.get(key) == (batch / key).read_bytes() for key in files)


def test_the_summary_counts_failures_by_their_causes(batch: Path) -> None:
    failed = (Failed("x", "no imagery", "a"), Failed("y", "no imagery", "b"), Failed("z", "out of memory", "c"))
    found = gather_all(batch, disjoint=False, failed=failed)
    assert found.causes == {"no imagery": 2, "out of memory": 1}
    plain = json.loads((batch / "summary.json").read_text())
    assert plain == found.as_dict()
    assert (plain["planned"], plain["done"], plain["failed"], plain["left"]) == (5, 2, 3, 0)
    assert plain["licences"] == {"CC-BY-4.0": 2, "weights: CC-BY-4.0": 2}
    assert plain["days"] == ["2020-01-01", "2020-12-31"]
    assert Summary("of pictures without a date").as_dict()["days"] == [None, None]
    text = found.as_text()
    assert "failed: 2 x no imagery" in text and "demonstration" in text and "1.44 ha mapped from 1 scene" in text


def test_a_job_whose_folder_is_gone_is_counted_and_not_fatal(batch: Path) -> None:
    (batch / "jobs/1/b/run.json").write_text("")
    (batch / "jobs/1/b/item.json").unlink()
    found = gather_all(batch, disjoint=False)
    assert "1 job done, but the results are gone" in found.as_text()
    assert (found.done, found.missing, found.left) == (1, 1, 0)
