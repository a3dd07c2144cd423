"""STAC, static and API, on disk and over a real HTTP server on this machine."""

from __future__ import annotations

import http.server
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.enums import Resampling
from rasterio.warp import transform_bounds
from shapely.geometry import box, mapping, shape

from geodino.aoi import AOI, read_aoi
from geodino.errors import ConfigError, ReadError, SourceError
from geodino.grid import Grid
from geodino.shipped import sample_aoi
from geodino.sources import Mosaic, Scene, Search, find_scenes
from geodino.sources import open as sources_open
from geodino.sources.config import SourceConfig, source_config
from geodino.sources.warp import footprint_window

SIDE, GSD = 128, 0.6
WEST, NORTH = 500_004.0, 4_999_998.0
# Over the middle of the scenes, 30 m wide.
AREA = transform_bounds("EPSG:32633", "EPSG:4326", WEST + 20, NORTH - 50, WEST + 50, NORTH - 20)
Item = dict[str, object]


@pytest.fixture(scope="module")
def aoi() -> AOI:
    return read_aoi(",".join(str(value) for value in AREA))


def make_item(scene_id: str, href: str, *, shift: float = 0.0, **properties: object) -> Item:
    """An Item of STAC 1.1 with one RGB asset, `shift` metres east of the others."""
    bounds = (WEST + shift, NORTH - SIDE * GSD, WEST + shift + SIDE * GSD, NORTH)
    outline = box(*transform_bounds("EPSG:32633", "EPSG:4326", *bounds))
    return {
        "type": "Feature",
        "stac_version": "1.1.0",
        "id": scene_id,
        "collection": "aerial",
        "geometry": mapping(outline),
        "bbox": list(outline.bounds),
        "properties": {"datetime": "2020-06-01T00:00:00Z", **properties},
        "links": [],
        "assets": {
            "picture": {
                "href": href,
                "type": "image/tiff; application=geotiff",
                "roles": ["data"],
                "bands": [{"name": "red"}, {"name": "green"}, {"name": "blue"}],
            },
            "thumbnail": {"href": "thumb.png", "type": "image/png", "roles": ["thumbnail"]},
        },
    }


def write_scene(path: Path, seed: int = 0, **profile: object) -> np.ndarray:
    pixels = np.random.default_rng(seed).integers(1, 255, (3, SIDE, SIDE), dtype=np.uint8)
    with rasterio.open(
        path, "w", driver="GTiff", height=SIDE, width=SIDE, count=3, dtype="uint8", crs="EPSG:32633",
        transform=Affine(GSD, 0, WEST, 0, -GSD, NORTH), tiled=True, blockxsize=64, blockysize=64, **profile,
    ) as raster:  # fmt: skip
        raster.write(pixels)
        raster.build_overviews([2], Resampling.average)
    return pixels


def write_catalog(folder: Path, items: list[Item]) -> str:
    """A catalog with one collection that holds the Items; the path of its root."""
    box_all = [10.0, 40.0, 20.0, 50.0]
    collection = {
        "type": "Collection",
        "stac_version": "1.1.0",
        "id": "aerial",
        "description": "x",
        "license": "CC0-1.0",
        "extent": {"spatial": {"bbox": [box_all]}, "temporal": {"interval": [[None, None]]}},
        "links": [{"rel": "item", "href": f"./items/{number}.json"} for number in range(len(items))]
        + [{"rel": "root", "href": "./catalog.json"}, {"rel": "child", "href": "./collection.json"}],
    }
    catalog = {
        "type": "Catalog",
        "stac_version": "1.1.0",
        "id": "root",
        "description": "x",
        "links": [{"rel": "child", "href": "collection.json"}],
    }
    (folder / "items").mkdir()
    for number, item in enumerate(items):
        (folder / "items" / f"{number}.json").write_text(json.dumps(item))
    (folder / "collection.json").write_text(json.dumps(collection))
    (folder / "catalog.json").write_text(json.dumps(catalog))
    return str(folder / "catalog.json")


def ids(scenes: tuple[Scene, ...]) -> list[str]:
    return [scene.id for scene in scenes]


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


# ---- over HTTP


@dataclass
class Site:
    """What the server serves: a folder with byte ranges, and a STAC API of some Items."""

    folder: Path
    items: list[Item] = field(default_factory=list)
    post: bool = True
    searches: list[dict[str, object]] = field(default_factory=list)
    cut_once: set[str] = field(default_factory=set)
    url: str = ""

    def answer(self, wanted: dict[str, object]) -> dict[str, object]:
        """A page of two Items, and a link to the next, as the standard has it for POST and GET."""
        self.searches.append(wanted)
        start = int(str(wanted.get("token", 0)))
        area = wanted.get("intersects")
        area = json.loads(area) if isinstance(area, str) else area
        fit = [item for item in self.items if shape(item["geometry"]).intersects(shape(area))]
        links: list[dict[str, object]] = []
        if start + 2 < len(fit):
            following = {"rel": "next", "type": "application/geo+json", "href": f"{self.url}/api/search"}
            if self.post:
                links.append(following | {"method": "POST", "body": {**wanted, "token": start + 2}})
            else:
                query = f"?collections=aerial&intersects={json.dumps(area)}&token={start + 2}"
                links.append(following | {"href": following["href"] + query, "method": "GET"})
        return {"type": "FeatureCollection", "features": fit[start : start + 2], "links": links}

    def root(self) -> dict[str, object]:
        methods = ["POST", "GET"] if self.post else ["GET"]
        return {
            "type": "Catalog",
            "stac_version": "1.0.0",
            "id": "api",
            "description": "x",
            "conformsTo": ["https://api.stacspec.org/v1.0.0/core", "https://api.stacspec.org/v1.0.0/item-search"],
            "links": [
                {"rel": "search", "type": "application/geo+json", "href": f"{self.url}/api/search", "method": method}
                for method in methods
            ],
        }


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """A server on 127.0.0.1 that knows byte ranges, and may cut a file's body short once."""
    served = Site(tmp_path)

    class Answers(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            if parts.path in ("/api", "/api/"):
                return self._send_json(served.root())
            if parts.path == "/api/search":
                return self._send_json(served.answer({key: value[0] for key, value in parse_qs(parts.query).items()}))
            return self._send_file(served.folder / parts.path.lstrip("/"))

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self._send_json(served.answer(json.loads(body)))

        def _send_json(self, content: dict[str, object]) -> None:
            self._send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

        def _send_file(self, path: Path) -> None:
            if not path.is_file():
                return self._send(404, b"", {})
            content = path.read_bytes()
            ranged = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            if not ranged:
                return self._send(200, content, {"Accept-Ranges": "bytes"})
            first, last = int(ranged[1]), min(int(ranged[2]), len(content) - 1)
            headers = {"Content-Range": f"bytes {first}-{last}/{len(content)}", "Accept-Ranges": "bytes"}
            if path.name in served.cut_once and first > 0:
                served.cut_once.discard(path.name)
                self.close_connection = True
                return self._send(206, content[first : last + 1], headers, cut=True)
            return self._send(206, content[first : last + 1], headers)

        def _send(self, code: int, body: bytes, headers: dict[str, str], *, cut: bool = False) -> None:
            self.send_response(code)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body[: len(body) // 2] if cut else body)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    served.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield served
    server.shutdown()
    server.server_close()
    thread.join()


def configured(monkeypatch: pytest.MonkeyPatch, **content: object) -> str:
    """The name of a source config that exists for this test only."""
    config = SourceConfig.model_validate({"kind": "source", "title": "x", **content})
    monkeypatch.setattr(sources_open, "source_config", lambda name: config)
    return "test-config"


@pytest.mark.parametrize("post", [True, False])
def test_an_api_is_paged_to_the_end_and_sifted_here(
    site: Site, aoi: AOI, post: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.post = post
    for number in range(5):
        write_scene(site.folder / f"{number}.tif", seed=number)
        when = f"20{18 + number}-01-01T00:00:00Z"
        site.items.append(make_item(f"s{number}", f"{site.url}/{number}.tif", datetime=when))
    # This server knows neither datetime nor cloud cover, as some do not.
    site.items.append(make_item("cloudy", f"{site.url}/0.tif", **{"eo:cloud_cover": 90}))
    source = configured(monkeypatch, stac=f"{site.url}/api", collections=["aerial"])
    found = find_scenes([source], aoi=aoi, search=Search(datetime="2019/..", max_cloud=20))
    assert ids(found.scenes) == ["s4", "s3", "s2", "s1"]
    assert sorted(found.dropped) == ["1 outside of 2019/.. (s0)", "1 over 20 % cloud (cloudy)"]
    assert len(site.searches) == 3
    asked = site.searches[0]["collections"]
    assert asked == (["aerial"] if post else "aerial")


def test_an_api_needs_collections(site: Site, aoi: AOI) -> None:
    with pytest.raises(ConfigError, match="name its collections"):
        find_scenes([f"{site.url}/api"], aoi=aoi, search=Search())


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
    grid = Grid(scene.crs, GSD)
    with Mosaic([scene], grid) as mosaic:
        image = mosaic.read(footprint_window(scene, grid)).image
    np.testing.assert_array_equal(image, scene.radiometry.apply(pixels))
    assert not site.cut_once and "attempt 1 of 3 failed" in caplog.text


def test_what_is_not_there_is_a_read_error(site: Site, aoi: AOI) -> None:
    for source in (f"{site.url}/none.json", f"{site.url}/none.tif"):
        with pytest.raises(ReadError, match=r"none\.(json|tif) cannot be read"):
            find_scenes([source], aoi=aoi, search=Search())


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
    # Under another name, because GDAL still remembers the first bytes of the old file.
    document = f'<VRTDataset rasterXSize="{SIDE}" rasterYSize="{SIDE}">{bands}</VRTDataset>'
    (site.folder / "turned.tif").write_text(document)
    turned = replace(scene, bands=tuple(replace(band, href=f"{site.url}/turned.tif") for band in scene.bands))
    grid = Grid(scene.crs, GSD)
    with Mosaic([turned], grid) as mosaic, pytest.raises(ReadError, match=r"turned\.tif.*not recognized"):
        mosaic.read(footprint_window(scene, grid))


# ---- sources by name


def test_the_embedded_sample_is_what_auto_takes_where_the_aoi_lies_on_it() -> None:
    on_sample = read_aoi(sample_aoi("autzen"))
    named = find_scenes(["sample"], aoi=on_sample, search=Search()).scenes
    assert named and find_scenes(["auto"], aoi=on_sample, search=Search()).scenes == named


def test_auto_asks_the_default_source_elsewhere(aoi: AOI, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write_scene(tmp_path / "a.tif")
    configured(monkeypatch, paths=[str(tmp_path)])
    assert ids(find_scenes(["auto"], aoi=aoi, search=Search()).scenes) == ["a"]


@pytest.mark.parametrize("name", ["planetary-computer-naip", "earth-search-naip"])
def test_the_shipped_configs_are_valid(name: str) -> None:
    config = source_config(name)
    assert config.collections == ("naip",) and config.bands == ("1", "2", "3")


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
        pixels = mosaic.read(mosaic.extent)
    with rasterio.open(found.scenes[0].bands[0].href) as raster:
        np.testing.assert_array_equal(pixels.image, found.scenes[0].radiometry.apply(raster.read([1, 2, 3])))
