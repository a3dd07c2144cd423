"""The map of scenes: each mapped pixel names the scene that gave it, in the numbers of the table beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import rasterio
from odc.geo.crs import CRS
from rio_cogeo.cogeo import cog_validate
from test_outputs_item import complaints
from test_pipeline import GSD, NORTH, WEST, wkt
from tiny_models import CHMV2_STATISTICS, headed_network, save

from geodino.errors import OutputError
from geodino.grid import Grid, Window
from geodino.options import RunOptions
from geodino.outputs.scene_map import scene_table, write_scene_map
from geodino.outputs.stage import StagedRaster
from geodino.pipeline import run
from geodino.zonal.ground import Ground, layers_of

EXTENT = Window(-8_128_000, 823_008, 1024, 1024)


@pytest.fixture
def stage(tmp_path: Path) -> StagedRaster:
    staged = StagedRaster.create(
        tmp_path / "stage.tif", Grid(CRS("EPSG:32610"), 0.6), EXTENT, block=512, names=["scene"]
    )
    west, east = (np.full((1, 512, 512), number, np.float32) for number in (2, 40_000))
    west[0, :100] = np.nan
    staged.write(Window(EXTENT.row, EXTENT.col, 512, 512), west)
    staged.write(Window(EXTENT.row, EXTENT.col + 512, 512, 512), east)
    staged.close()
    return staged


def test_numbers_are_those_of_the_table_and_nodata_is_0(stage: StagedRaster, tmp_path: Path) -> None:
    table = scene_table([{"id": "a", "datetime": "2020-05-04T00:00:00Z"}, {"id": "ü", "share_of_pixels": 0.5}])
    clip = Window(EXTENT.row + 10, EXTENT.col + 20, 700, 900)
    made = write_scene_map(
        stage, tmp_path / "scene.tif", clip=clip, numbers={2: 1, 40_000: 2}, table=table, tags={"GEODINO_MODEL": "m"}
    )
    expected = np.zeros((1024, 1024), np.uint16)
    expected[100:512, :512], expected[:512, 512:] = 1, 2
    with rasterio.open(made.path) as raster:
        np.testing.assert_array_equal(raster.read(1), expected[10:710, 20:920])
        assert (raster.nodata, raster.dtypes, raster.descriptions) == (0, ("uint16",), ("scene",))
        assert raster.transform.c == clip.col * 0.6 and raster.transform.f == -clip.row * 0.6
        assert json.loads(raster.tags()["GEODINO_SCENES"]) == table and raster.tags()["GEODINO_MODEL"] == "m"
        assert raster.overviews(1)
        with rasterio.open(made.path, overview_level=0) as half:
            assert set(np.unique(half.read(1))) == {0, 1, 2}, "numbers of scenes are never averaged"
    assert cog_validate(made.path, quiet=True)[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scene.tif", "stage.tif"]


@pytest.mark.parametrize("numbers", [{2: 1}, {2: 1, 40_001: 2}])
def test_a_staged_number_without_a_scene_is_an_error(
    stage: StagedRaster, tmp_path: Path, numbers: dict[int, int]
) -> None:
    with pytest.raises(OutputError, match="names"):
        write_scene_map(stage, tmp_path / "scene.tif", clip=EXTENT, numbers=numbers, table=[], tags={})


@pytest.fixture(scope="module")
def three(photo: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """The photo with its hole (newest), one of the far east alone, and one of everything (oldest)."""
    folder = tmp_path_factory.mktemp("three")
    with rasterio.open(photo) as source:
        pixels, profile = source.read(), source.profile
        mask = source.dataset_mask()
    hrefs = []
    for name, date, columns in (("east", "2019:06:01 00:00:00", 400), ("old", "2015:06:01 00:00:00", 0)):
        with rasterio.open(folder / f"{name}.tif", "w", **profile) as target:
            target.write(pixels)
            target.update_tags(TIFFTAG_DATETIME=date)
            target.write_mask(np.where(np.arange(420) >= columns, 255, 0).astype(np.uint8)[None].repeat(300, axis=0))
        hrefs.append(str(folder / f"{name}.tif"))
    with rasterio.open(folder / "new.tif", "w", **profile) as target:
        target.write(pixels)
        target.update_tags(TIFFTAG_DATETIME="2022:06:01 00:00:00")
        target.write_mask(mask)
    return (str(folder / "new.tif"), *hrefs)


def mapped(out: Path) -> tuple[npt.NDArray[np.uint16], dict[str, Any]]:
    with rasterio.open(out / "scene.tif") as raster:
        return raster.read(1), json.loads((out / "run.json").read_text())


def test_a_runs_map_of_scenes_agrees_with_its_record_item_and_heights(
    three: tuple[str, ...], tiny_model: Path, tmp_path: Path
) -> None:
    options = RunOptions(sources=three, model=str(tiny_model), precision="fp32", device="cpu", threads=2)
    # The far east is off the AOI's west: its scene gives no pixel, and the old one's number moves from 3 to 2.
    run("canopy", aoi=wkt(150, 90, 330, 200), out=tmp_path / "out", options=options)
    numbers, record = mapped(tmp_path / "out")
    assert [(scene["value"], scene["id"]) for scene in record["scenes"]] == [(1, "new"), (2, "old")]
    with rasterio.open(tmp_path / "out" / "canopy_height.tif") as heights:
        np.testing.assert_array_equal(numbers > 0, heights.read(1) != -9999)
        row, col = round((NORTH - heights.transform.f) / GSD), round((heights.transform.c - WEST) / GSD)
    hole = np.zeros(numbers.shape, bool)
    hole[120 - row : 170 - row, 200 - col : 260 - col] = True
    np.testing.assert_array_equal(numbers, np.where(numbers == 0, 0, np.where(hole, 2, 1)))
    shares = [scene["share_of_pixels"] for scene in record["scenes"]]
    assert shares == [pytest.approx((numbers == value).sum() / (numbers > 0).sum(), abs=1e-6) for value in (1, 2)]
    item = json.loads((tmp_path / "out" / "item.json").read_text())
    titles = [entry["title"] for entry in item["assets"]["scene"]["classification:classes"]]
    assert titles == ["2022-06-01 new", "2015-06-01 old"] and complaints(item) == []
    assert 'value="2"' in (tmp_path / "out" / "scene.qml").read_text()


@pytest.mark.parametrize(("order", "first"), [("oldest", "old"), ("nearest 2019-01-01", "east")])
def test_the_order_asked_for_goes_before_the_pipelines(
    three: tuple[str, ...], tiny_model: Path, tmp_path: Path, order: str, first: str
) -> None:
    options = RunOptions(sources=three, model=str(tiny_model), precision="fp32", device="cpu", order=order)
    run("canopy", aoi=wkt(390, 20, 418, 60), out=tmp_path / "out", options=options)
    _, record = mapped(tmp_path / "out")
    assert record["scenes"][0]["id"] == first and record["options"]["order"] == order


def test_statistics_of_a_run_of_trees_alone_know_what_was_seen_from_its_map_of_scenes(
    photo: Path, tmp_path: Path
) -> None:
    network = headed_network(trees={"kind": "density", "threshold": 0.2, "spacing": 2})
    model = save(network, tmp_path / "model", CHMV2_STATISTICS | {"gsd_m": 0.6})
    options = RunOptions(sources=(str(photo),), model=str(model), precision="fp32", device="cpu")
    run("trees", aoi=wkt(150, 90, 330, 200), out=tmp_path / "out", options=options)
    layers = layers_of(tmp_path / "out")
    assert layers.seen.name == "scene.tif" and not layers.heights
    with Ground(layers) as ground:
        seen, _ = ground.read(ground.extent)
    numbers, _ = mapped(tmp_path / "out")
    np.testing.assert_array_equal(np.isfinite(seen), numbers > 0)
    assert 0 < (numbers > 0).mean() < 1
