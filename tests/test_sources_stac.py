"""Static STAC on disk, files and folders, and sources by name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
from source_scenes import SIDE, Item, area_of_interest, configured, ids, make_item, write_catalog, write_scene

from geodino.aoi import AOI, read_aoi
from geodino.errors import ConfigError, SourceError
from geodino.grid import Grid
from geodino.shipped import config_names, config_path, sample_aoi
from geodino.sources import Mosaic, Search, find_scenes
from geodino.sources.config import source_config
from geodino.sources.warp import footprint_window


@pytest.fixture(scope="module")
def aoi() -> AOI:
    return area_of_interest()


@pytest.fixture
def catalog(tmp_path: Path) -> str:
    """Good Items, and every kind that is left out."""
    write_scene(tmp_path / "a.tif")
    href = "../a.tif"
    odd = {"no-geometry": "geometry", "no-assets": "assets", "no-version": "stac_version"}
    broken: list[Item] = []
    for name, key in odd.items():
        item = make_item(name, href)
        item[key] = {"geometry": None, "assets": {}, "stac_version": None}[key]
        broken.append(item)
    return write_catalog(
        tmp_path,
        [
            make_item("b-2020", href, **{"eo:cloud_cover": 5}),
            make_item("a-2020", href, **{"eo:cloud_cover": 5, "view:sun_elevation": 51.5}),
            make_item("new", href, datetime="2022-01-01T00:00:00Z"),
            make_item("cloudy", href, **{"eo:cloud_cover": 60, "datetime": "2023-01-01T00:00:00Z"}),
            make_item("year", href, datetime=None, start_datetime="2018-01-01T00:00:00Z",
                      end_datetime="2018-12-31T00:00:00Z"),
            make_item("far", href, shift=5000),
            make_item("no-date", href, datetime=None),
            make_item("bad-date", href, datetime="yesterday"),
            *broken,
        ],
    )  # fmt: skip


def test_items_that_do_not_fit_are_left_out_and_counted(catalog: str, aoi: AOI) -> None:
    found = find_scenes([catalog], aoi=aoi, search=Search(max_cloud=10))
    assert sorted(found.dropped) == [
        "1 off the AOI (far)",
        "1 over 10 % cloud (cloudy)",
        "1 without a datetime (no-date)",
        "1 without a geometry (no-geometry)",
        "1 without assets (no-assets)",
        "2 not a valid Item (bad-date, no-version)",
    ]


def test_a_cloud_cover_that_is_no_number_is_unknown(aoi: AOI, tmp_path: Path) -> None:
    write_scene(tmp_path / "a.tif")
    root = write_catalog(tmp_path, [make_item("odd", "../a.tif", **{"eo:cloud_cover": float("nan")})])
    (scene,) = find_scenes([root], aoi=aoi, search=Search(max_cloud=10)).scenes
    assert scene.cloud_cover is None
    json.dumps(scene.summary(), allow_nan=False)


def _distinct(folder: Path, count: int) -> list[str]:
    for number in range(count):
        write_scene(folder / f"{number}.tif", seed=number)
    return [f"../{number}.tif" for number in range(count)]


@pytest.fixture
def four(tmp_path: Path) -> str:
    """Four scenes over the AOI, of which two are of the same day."""
    a, b, c, d = _distinct(tmp_path, 4)
    return write_catalog(
        tmp_path,
        [
            make_item("y-2020", a, **{"eo:cloud_cover": 1}),
            make_item("x-2020", b, **{"eo:cloud_cover": 5}),
            make_item("unknown-2022", c, datetime="2022-01-01T00:00:00Z"),
            make_item("year-2018", d, datetime=None, start_datetime="2018-01-01T00:00:00Z",
                      end_datetime="2018-12-31T23:59:59Z", **{"eo:cloud_cover": 1}),
        ],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("search", "expected"),
    [
        (Search(), ["unknown-2022", "x-2020", "y-2020", "year-2018"]),
        (Search(order="least-cloud"), ["y-2020", "year-2018", "x-2020", "unknown-2022"]),
        (Search(datetime="2020"), ["x-2020", "y-2020"]),
        (Search(datetime="2020-06-01"), ["x-2020", "y-2020"]),
        (Search(datetime="2018-12/2020-05"), ["year-2018"]),
        (Search(datetime="2020-06-01T00:00:01Z/.."), ["unknown-2022"]),
        (Search(datetime="../2019"), ["year-2018"]),
        (Search(max_cloud=4), ["unknown-2022", "y-2020", "year-2018"]),
    ],
)
def test_scenes_come_in_the_stated_order(four: str, aoi: AOI, search: Search, expected: list[str]) -> None:
    assert ids(find_scenes([four], aoi=aoi, search=search).scenes) == expected


@pytest.mark.parametrize("text", ["20", "2020-13", "2020-02-30", "last week", "2021/2020", "2020-01-01Tnoon"])
def test_a_datetime_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="datetime"):
        Search(datetime=text)


def test_a_scene_tells_what_its_item_tells(tmp_path: Path, aoi: AOI) -> None:
    write_scene(tmp_path / "a.tif")
    root = write_catalog(tmp_path, [make_item("one", "../a.tif", **{
        "eo:cloud_cover": 3, "view:sun_elevation": 51.5, "view:off_nadir": 12, "license": "CC0-1.0",
        "providers": [{"name": "USDA"}],
    })])  # fmt: skip
    (scene,) = find_scenes([root], aoi=aoi, search=Search()).scenes
    summary = scene.summary()
    expected = {
        "id": "one", "collection": "aerial", "datetime": "2020-06-01T00:00:00Z", "cloud_cover_percent": 3.0,
        "sun_elevation_deg": 51.5, "off_nadir_deg": 12.0, "licence": "CC0-1.0", "provider": "USDA",
        "crs": "EPSG:32633", "gsd_m": 0.6, "bands": [1, 2, 3], "hrefs": [str(tmp_path / "a.tif")],
    }  # fmt: skip
    assert {key: summary[key] for key in expected} == expected
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary


def test_the_same_files_named_twice_count_once(four: str, aoi: AOI) -> None:
    assert len(find_scenes([four, four], aoi=aoi, search=Search()).scenes) == 4


def test_files_folders_items_and_catalogs_show_the_same_picture(tmp_path: Path, aoi: AOI) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    write_scene(folder / "a.tif")
    (tmp_path / "stac").mkdir()
    root = write_catalog(tmp_path / "stac", [make_item("one", "../../folder/a.tif")])
    sources = [
        str(folder / "a.tif"), str(folder), root, str(tmp_path / "stac"), str(tmp_path / "stac" / "items" / "0.json"),
    ]  # fmt: skip
    scenes = [find_scenes([source], aoi=aoi, search=Search()).scenes for source in sources]
    assert len({scene.bands for (scene,) in scenes}) == 1


def test_in_a_folder_what_is_no_picture_is_left_out(tmp_path: Path, aoi: AOI) -> None:
    write_scene(tmp_path / "a.tif")
    with rasterio.open(tmp_path / "a.tif") as raster:
        profile = raster.profile | {"count": 1}
    with rasterio.open(tmp_path / "heights.tif", "w", **profile) as raster:
        raster.write(np.ones((1, SIDE, SIDE), np.uint8))
    found = find_scenes([str(tmp_path)], aoi=aoi, search=Search())
    assert ids(found.scenes) == ["a"] and found.dropped == ("1 no usable picture (heights.tif)",)
    with pytest.raises(SourceError, match="1 band"):
        find_scenes([str(tmp_path / "heights.tif")], aoi=aoi, search=Search())


def test_a_file_without_a_date_does_not_pass_a_datetime(tmp_path: Path, aoi: AOI) -> None:
    write_scene(tmp_path / "a.tif")
    found = find_scenes([str(tmp_path / "a.tif")], aoi=aoi, search=Search(datetime="2020"))
    assert not found.scenes and found.dropped == ("1 of unknown date, while a datetime is asked for (a)",)


def test_the_embedded_sample_is_what_auto_takes_where_the_aoi_lies_on_it() -> None:
    on_sample = read_aoi(sample_aoi("autzen"))
    named = find_scenes(["sample"], aoi=on_sample, search=Search()).scenes
    assert named and find_scenes(["auto"], aoi=on_sample, search=Search()).scenes == named


def test_auto_asks_the_default_source_elsewhere(aoi: AOI, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write_scene(tmp_path / "a.tif")
    configured(monkeypatch, paths=[str(tmp_path)])
    assert ids(find_scenes(["auto"], aoi=aoi, search=Search()).scenes) == ["a"]


@pytest.mark.parametrize("name", [name for name in config_names() if not name.endswith("-cluster")])
def test_every_shipped_config_is_valid_and_says_what_it_is(name: str) -> None:
    config = source_config(name)
    assert config.stac is not None and config.stac.startswith("https://") and config.asset
    # An API is not searched without; Maxar's is a static catalog.
    assert config.collections or name == "maxar-open-data"
    assert config_path(name).read_text().startswith("# ")


def test_a_config_that_masks_files_by_an_asset_is_refused(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("kind: source\ntitle: mine\npaths: [a.tif]\nmask: {asset: scl, preset: scl}\n")
    with pytest.raises(ConfigError, match="mask: only STAC Items have an asset"):
        source_config(str(tmp_path / "own.yaml"))


def test_a_mask_of_a_config_is_found_in_an_asset_of_the_item_or_in_the_picture(tmp_path: Path, aoi: AOI) -> None:
    write_scene(tmp_path / "a.tif")
    write_scene(tmp_path / "scl.tif", seed=1)
    item = make_item("one", "../a.tif")
    item["assets"]["scl"] = {"href": "../scl.tif", "type": "image/tiff", "roles": ["data-mask"]}  # type: ignore[index]
    write_catalog(tmp_path, [item])
    own = tmp_path / "own.yaml"
    for place, mask, expected in (
        ("stac: catalog.json", "{asset: scl, preset: scl}", ("scl.tif", (1,))),
        ("stac: catalog.json", "{band: 2, values: [7]}", ("a.tif", (2,))),
        ("paths: [a.tif]", "{band: 2, values: [7]}", ("a.tif", (2,))),
    ):
        own.write_text(f"kind: source\ntitle: mine\nasset: picture\n{place}\nmask: {mask}\n")
        (scene,) = find_scenes([str(own)], aoi=aoi, search=Search()).scenes
        assert scene.mask is not None
        assert (Path(scene.mask.href).name, scene.mask.bands) == expected
    own.write_text("kind: source\ntitle: mine\nstac: catalog.json\nasset: picture\nmask: {asset: qa, preset: scl}\n")
    with pytest.raises(SourceError, match=r"\(mask\) has no asset qa; it has picture, scl, thumbnail"):
        find_scenes([str(own)], aoi=aoi, search=Search())


def test_an_item_without_the_asset_of_the_mask_is_left_out_and_named(tmp_path: Path, aoi: AOI) -> None:
    write_scene(tmp_path / "a.tif")
    write_scene(tmp_path / "scl.tif", seed=1)
    item = make_item("new", "../a.tif")
    item["assets"]["scl"] = {"href": "../scl.tif", "type": "image/tiff", "roles": ["data-mask"]}  # type: ignore[index]
    write_catalog(tmp_path, [item, make_item("old", "../a.tif")])
    own = tmp_path / "own.yaml"
    own.write_text("kind: source\ntitle: mine\nasset: picture\nstac: catalog.json\nmask: {asset: scl, preset: scl}\n")
    found = find_scenes([str(own)], aoi=aoi, search=Search())
    assert (ids(found.scenes), found.dropped) == (["new"], ("1 without the mask asset scl (old)",))


def test_a_users_own_config_names_files_beside_it(tmp_path: Path, aoi: AOI) -> None:
    (tmp_path / "mine").mkdir()
    write_scene(tmp_path / "mine" / "a.tif")
    write_catalog(tmp_path, [make_item("one", "../mine/a.tif")])
    for place, expected in (("paths: [mine/a.tif]", "a"), ("paths: [mine]", "a"), ("stac: catalog.json", "one")):
        (tmp_path / "own.yaml").write_text(f"kind: source\ntitle: mine\n{place}\n")
        assert ids(find_scenes([str(tmp_path / "own.yaml")], aoi=aoi, search=Search()).scenes) == [expected]
    with pytest.raises(ConfigError, match=r"none\.yaml cannot be read"):
        find_scenes([str(tmp_path / "none.yaml")], aoi=aoi, search=Search())


def test_an_unknown_source_is_refused_with_the_nearest_name(aoi: AOI, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean earth-search-naip"):
        find_scenes(["earth-search-nap"], aoi=aoi, search=Search())
    with pytest.raises(SourceError, match="no such file or folder"):
        find_scenes([str(tmp_path / "none")], aoi=aoi, search=Search())


def test_the_urban_tree_catalog_gives_three_years_of_one_place(shared_data: Path) -> None:
    place = read_aoi("-117.4595,33.9594,-117.4585,33.9603")
    root = str(shared_data / "urban-trees" / "stac" / "catalog.json")
    found = find_scenes([root], aoi=place, search=Search())
    assert ids(found.scenes) == ["riverside_2020_45", "riverside_2018_45", "riverside_2016_45"]
    grid = Grid(found.scenes[0].crs, 0.6)
    with Mosaic(found.scenes, grid) as mosaic:
        pixels = mosaic.read(footprint_window(found.scenes[0], grid))
    with rasterio.open(found.scenes[0].bands[0].href) as raster:
        np.testing.assert_array_equal(pixels.image, found.scenes[0].radiometry.apply(raster.read([1, 2, 3])))


@pytest.mark.parametrize("source", ["mine.yaml", "./mine.yaml", "catalog.json", "./catalog.json", "."])
def test_a_source_by_a_relative_path_finds_what_lies_beside_it(
    source: str, tmp_path: Path, aoi: AOI, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_scene(tmp_path / "a.tif")
    write_catalog(tmp_path, [make_item("one", "../a.tif")])
    (tmp_path / "mine.yaml").write_text("kind: source\ntitle: mine\nstac: catalog.json\n")
    monkeypatch.chdir(tmp_path)
    assert ids(find_scenes([source], aoi=aoi, search=Search()).scenes) == ["one"]
