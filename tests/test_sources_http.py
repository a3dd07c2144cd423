"""STAC and rasters over a real HTTP server on this machine: byte ranges, faults, names not to be followed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from source_scenes import GSD, SIDE, area_of_interest, ids, make_item, write_catalog, write_scene
from stac_site import Site, serving

from geodino.aoi import AOI
from geodino.errors import ReadError, SourceError
from geodino.grid import Grid
from geodino.sources import Mosaic, Search, find_scenes
from geodino.sources.signing import signed
from geodino.sources.warp import footprint_window


@pytest.fixture(scope="module")
def aoi() -> AOI:
    return area_of_interest()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with serving(tmp_path) as served:
        yield served


# The package planetary-computer 1.0 is written for pydantic 1.
@pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince20")
@pytest.mark.parametrize("answer", ["{}", '["token"]', "<html>", '{"token": 3, "msft:expiry": "never"}'])
def test_an_answer_of_the_signing_service_that_is_no_token_is_a_read_error(
    site: Site, answer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from planetary_computer.settings import Settings

    (site.folder / "account").mkdir()
    (site.folder / "account" / "container").write_text(answer)
    monkeypatch.setattr(Settings.get(), "sas_url", site.url)
    with pytest.raises(ReadError, match=r"container/a\.tif cannot be signed by planetary-computer: "):
        signed("https://account.blob.core.windows.net/container/a.tif", "planetary-computer")


def test_a_catalog_over_http_shows_the_pixels_of_the_disk(site: Site, aoi: AOI) -> None:
    pixels = write_scene(site.folder / "a.tif")
    root = write_catalog(site.folder, [make_item("one", "../a.tif")])
    (remote,) = find_scenes([f"{site.url}/catalog.json"], aoi=aoi, search=Search()).scenes
    (local,) = find_scenes([root], aoi=aoi, search=Search()).scenes
    assert remote.bands[0].href == f"{site.url}/a.tif"
    grid = Grid(local.crs, GSD)
    with Mosaic([remote], grid) as mosaic:
        image = mosaic.read(footprint_window(remote, grid)).image
    np.testing.assert_array_equal(image, local.radiometry.apply(pixels))


def test_a_body_that_ends_early_is_read_again(site: Site, aoi: AOI, caplog: pytest.LogCaptureFixture) -> None:
    pixels = write_scene(site.folder / "cut.tif")
    (scene,) = find_scenes([f"{site.url}/cut.tif"], aoi=aoi, search=Search()).scenes
    site.cut_once.add("cut.tif")
    caplog.set_level("INFO", logger="geodino")
    grid = Grid(scene.crs, GSD)
    with Mosaic([scene], grid) as mosaic:
        image = mosaic.read(footprint_window(scene, grid)).image
    np.testing.assert_array_equal(image, scene.radiometry.apply(pixels))
    assert not site.cut_once and "attempt 1: " in caplog.text


def test_signatures_in_urls_are_in_no_summary_message_or_log(
    site: Site, aoi: AOI, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="geodino")
    write_scene(site.folder / "a.tif")
    item = make_item("one", f"{site.url}/a.tif?sig=SECRET")
    (site.folder / "item.json").write_text(json.dumps(item))
    (scene,) = find_scenes([f"{site.url}/item.json?sig=SECRET"], aoi=aoi, search=Search()).scenes
    assert scene.summary()["hrefs"] == [f"{site.url}/a.tif?..."]
    assert scene.facts.item == scene.summary()["item"] == f"{site.url}/item.json?..."
    gone = replace(scene, bands=tuple(replace(band, href=f"{site.url}/gone.tif?sig=SECRET") for band in scene.bands))
    said = []
    with Mosaic([gone], Grid(scene.crs, GSD)) as mosaic:
        with pytest.raises(ReadError) as caught:
            mosaic.read(footprint_window(gone, mosaic.grid))
        said.append(str(caught.value))
    (site.folder / "odd.json").write_text('{"type": "Odd"}')
    with pytest.raises(SourceError, match="its type is Odd") as odd:
        find_scenes([f"{site.url.replace('://', '://me:SECRET@')}/odd.json?sig=SECRET"], aoi=aoi, search=Search())
    said.append(str(odd.value))
    assert "gone.tif?..." in said[0]
    assert "SECRET" not in caplog.text + "".join(said)


def test_a_server_without_byte_ranges_is_called_one_where_the_file_is_too_large_for_it(site: Site, aoi: AOI) -> None:
    write_scene(site.folder / "small.tif")
    (site.folder / "large.tif").write_bytes((site.folder / "small.tif").read_bytes() + bytes(2_000_000))
    assert ids(find_scenes([f"{site.url}/large.tif"], aoi=aoi, search=Search()).scenes) == ["large"]
    site.ranges = False
    assert ids(find_scenes([f"{site.url}/small.tif"], aoi=aoi, search=Search()).scenes) == ["small"]
    (site.folder / "larger.tif").write_bytes((site.folder / "large.tif").read_bytes())
    with pytest.raises(ReadError, match=r"larger\.tif\?\.\.\. cannot be read: its server sends files whole only"):
        find_scenes([f"{site.url}/larger.tif?sig=SECRET"], aoi=aoi, search=Search())


def test_a_web_page_in_place_of_a_raster_is_called_one(site: Site, aoi: AOI) -> None:
    (site.folder / "login.tif").write_text(PAGE)
    with pytest.raises(ReadError, match=r"login\.tif cannot be read: its server sends a web page"):
        find_scenes([f"{site.url}/login.tif"], aoi=aoi, search=Search())


def test_what_is_not_there_is_a_read_error(site: Site, aoi: AOI) -> None:
    for source in (f"{site.url}/none.json", f"{site.url}/none.tif"):
        with pytest.raises(ReadError, match=r"none\.(json|tif) cannot be read"):
            find_scenes([source], aoi=aoi, search=Search())


PAGE = "<!DOCTYPE html>\n<html>" + "<p>sign in</p>" * 500


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (404, PAGE, "HTTP 404 Not Found"),
        (403, "\n" + PAGE, "HTTP 403 Forbidden"),
        (400, '{"description":\n"no"}', 'HTTP 400 Bad Request: {"description": "no"}'),
        (400, "x" * 5000, "HTTP 400 Bad Request: " + "x" * 200 + "..."),
        (599, "", "HTTP 599"),
    ],
)
def test_a_servers_error_is_its_status_and_never_its_page(
    site: Site, aoi: AOI, status: int, body: str, said: str
) -> None:
    site.refusal, site.search_path = (status, body), "/gone"
    with pytest.raises(ReadError) as read:
        find_scenes([f"{site.url}/none.json"], aoi=aoi, search=Search())
    assert str(read.value) == f"{site.url}/none.json cannot be read: {said}"
    with pytest.raises(ReadError) as searched:
        find_scenes([f"{site.url}/api"], aoi=aoi, search=Search(collections=("aerial",)))
    assert str(searched.value) == f"{site.url}/api cannot be searched: {site.url}/gone cannot be read: {said}"


def test_a_web_page_in_place_of_json_is_called_one(site: Site, aoi: AOI) -> None:
    (site.folder / "login.json").write_text(PAGE)
    with pytest.raises(ReadError, match=r"login\.json cannot be read: it is a web page; give the address"):
        find_scenes([f"{site.url}/login.json"], aoi=aoi, search=Search())


@pytest.mark.parametrize("kind", ["link", "asset"])
def test_a_remote_catalog_cannot_name_local_files(site: Site, aoi: AOI, tmp_path: Path, kind: str) -> None:
    write_scene(site.folder / "a.tif")
    secret = (tmp_path / "a.tif").as_uri()
    write_catalog(site.folder, [make_item("one", secret if kind == "asset" else "../a.tif")])
    if kind == "link":
        path = site.folder / "collection.json"
        path.write_text(path.read_text().replace("./items/0.json", (tmp_path / "items/0.json").as_uri()))
    with pytest.raises(SourceError, match="local file"):
        find_scenes([f"{site.url}/catalog.json"], aoi=aoi, search=Search())


def test_a_remote_file_that_turns_into_a_vrt_is_not_read(site: Site, aoi: AOI) -> None:
    write_scene(site.folder / "turn.tif")
    (scene,) = find_scenes([f"{site.url}/turn.tif"], aoi=aoi, search=Search()).scenes
    secret = site.folder / "secret.tif"
    write_scene(secret, seed=9)
    bands = "".join(
        f'<VRTRasterBand dataType="Byte" band="{band}"><SimpleSource><SourceFilename>{secret}</SourceFilename>'
        f"<SourceBand>{band}</SourceBand></SimpleSource></VRTRasterBand>"
        for band in (1, 2, 3)
    )
    document = f'<VRTDataset rasterXSize="{SIDE}" rasterYSize="{SIDE}">{bands}</VRTDataset>'
    (site.folder / "turned.tif").write_text(document)
    turned = replace(scene, bands=tuple(replace(band, href=f"{site.url}/turned.tif") for band in scene.bands))
    grid = Grid(scene.crs, GSD)
    with (
        Mosaic([turned], grid) as mosaic,
        pytest.raises(ReadError, match=r"turned\.tif cannot be read: it is no TIFF"),
    ):
        mosaic.read(footprint_window(scene, grid))
