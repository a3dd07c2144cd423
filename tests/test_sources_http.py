"""STAC and rasters over a real HTTP server on this machine: APIs, byte ranges, faults, names not to be followed."""

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
from shapely.geometry import shape
from source_scenes import GSD, SIDE, Item, area_of_interest, configured, ids, make_item, write_catalog, write_scene

from geodino.aoi import AOI
from geodino.errors import ConfigError, ReadError, SourceError
from geodino.grid import Grid
from geodino.sources import Mosaic, Search, find_scenes, warped
from geodino.sources.signing import signed
from geodino.sources.warp import footprint_window


@pytest.fixture(scope="module")
def aoi() -> AOI:
    return area_of_interest()


@dataclass
class Site:
    """What the server serves: a folder with byte ranges, and a STAC API of some Items."""

    folder: Path
    items: list[Item] = field(default_factory=list)
    post: bool = True
    searches: list[dict[str, object]] = field(default_factory=list)
    cut_once: set[str] = field(default_factory=set)
    url: str = ""
    page: object = None
    search_path: str = "/api/search"
    root_changes: dict[str, object] = field(default_factory=dict)
    refusal: tuple[int, str] = (404, "")
    ranges: bool = True

    def answer(self, wanted: dict[str, object]) -> object:
        """A page of two Items, and a link to the next, as the standard has it for POST and GET; or the given page."""
        self.searches.append(wanted)
        if self.page is not None:
            return self.page
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
        standard = {
            "type": "Catalog",
            "stac_version": "1.0.0",
            "id": "api",
            "description": "x",
            "conformsTo": ["https://api.stacspec.org/v1.0.0/core", "https://api.stacspec.org/v1.0.0/item-search"],
            "links": [
                {"rel": "search", "type": "application/geo+json", "href": self.url + self.search_path, "method": method}
                for method in methods
            ],
        }
        return {key: value for key, value in (standard | self.root_changes).items() if value != "left out"}


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
            if self.path == "/api/search":
                return self._send_json(served.answer(json.loads(body)))
            return self._send(served.refusal[0], served.refusal[1].encode(), {})

        def _send_json(self, content: object) -> None:
            self._send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

        def _send_file(self, path: Path) -> None:
            if not path.is_file():
                return self._send(served.refusal[0], served.refusal[1].encode(), {})
            content = path.read_bytes()
            ranged = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            if not ranged or not served.ranges:
                return self._send(200, content, {"Accept-Ranges": "bytes"} if served.ranges else {})
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


@pytest.mark.parametrize(
    ("datetime", "asked"),
    [
        ("2020-06-01 10:00/2020-06-01 14:00+02:00", "2020-06-01T10:00:00Z/2020-06-01T12:00:00Z"),
        ("2020-06-01 10:00", "2020-06-01T10:00:00Z/2020-06-01T10:00:00Z"),
        ("2020", "2020-01-01T00:00:00Z/2020-12-31T23:59:59.999999Z"),
        ("2020-06/..", "2020-06-01T00:00:00Z/.."),
        ("../2020-02", "../2020-02-29T23:59:59.999999Z"),
        ("../..", None),
        (None, None),
    ],
)
def test_an_api_is_asked_for_time_as_the_standard_has_it(
    site: Site, aoi: AOI, datetime: str | None, asked: str | None
) -> None:
    find_scenes([f"{site.url}/api"], aoi=aoi, search=Search(datetime=datetime, collections=("aerial",)))
    assert site.searches[0].get("datetime") == asked


def test_an_api_needs_collections_and_either_way_to_name_them_works(site: Site, aoi: AOI, tmp_path: Path) -> None:
    api, own = f"{site.url}/api", tmp_path / "own.yaml"
    write_scene(site.folder / "a.tif")
    site.items.append(make_item("one", f"{site.url}/a.tif"))
    with pytest.raises(ConfigError, match=r"with --collection NAME or in a YAML file .*collections: \[NAME\]"):
        find_scenes([api], aoi=aoi, search=Search())
    own.write_text(f"kind: source\ntitle: mine\nstac: {api}\ncollections: [aerial]\n")
    assert ids(find_scenes([str(own)], aoi=aoi, search=Search()).scenes) == ["one"]
    assert ids(find_scenes([api], aoi=aoi, search=Search(collections=("aerial",))).scenes) == ["one"]
    # This server does not look at collections, as some do not.
    found = find_scenes([str(own)], aoi=aoi, search=Search(collections=("other", "more")))
    assert site.searches[-1]["collections"] == ["other", "more"]
    assert not found.scenes and found.dropped == ("1 of another collection than other, more (one)",)


@pytest.mark.parametrize("page", [[], ["x"], {"features": ["x"]}, {"features": [None]}, {"features": 3}, "x", 3])
def test_a_page_that_is_none_is_a_read_error_that_names_the_server(site: Site, aoi: AOI, page: object) -> None:
    site.page = page
    with pytest.raises(ReadError, match=f"{site.url}/api cannot be searched: .*is it a STAC API"):
        find_scenes([f"{site.url}/api"], aoi=aoi, search=Search(collections=("aerial",)))


@pytest.mark.parametrize(
    "changes",
    [{"id": "left out"}, {"type": "left out"}, {"stac_version": "0.5.0"}, {"stac_version": 1.0}],
)
def test_an_api_with_a_faulty_root_is_a_read_error(site: Site, aoi: AOI, changes: dict[str, object]) -> None:
    site.root_changes = changes
    with pytest.raises(ReadError, match=f"{site.url}/api cannot be searched"):
        find_scenes([f"{site.url}/api"], aoi=aoi, search=Search(collections=("aerial",)))


# Warned of, or raised where warnings are errors; either way no traceback.
@pytest.mark.parametrize("conforms", [None, [], ["https://api.stacspec.org/v1.0.0/core"]])
def test_an_api_that_promises_nothing_is_a_read_error_where_warnings_are_errors(
    site: Site, aoi: AOI, conforms: object
) -> None:
    site.root_changes = {"conformsTo": conforms}
    with pytest.raises(ReadError, match=f"{site.url}/api cannot be searched"):
        find_scenes([f"{site.url}/api"], aoi=aoi, search=Search(collections=("aerial",)))


def test_an_item_with_an_unknown_geometry_does_not_end_the_search(site: Site, aoi: AOI) -> None:
    write_scene(site.folder / "a.tif")
    bad = make_item("bad", f"{site.url}/a.tif") | {"geometry": {"type": "Foo", "coordinates": []}}
    site.page = {"type": "FeatureCollection", "features": [bad, make_item("good", f"{site.url}/a.tif")], "links": []}
    found = find_scenes([f"{site.url}/api"], aoi=aoi, search=Search(collections=("aerial",)))
    assert ids(found.scenes) == ["good"] and found.dropped == ("1 not a valid Item (bad)",)


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
    grid = Grid(scene.crs, GSD)
    with Mosaic([scene], grid) as mosaic:
        image = mosaic.read(footprint_window(scene, grid)).image
    np.testing.assert_array_equal(image, scene.radiometry.apply(pixels))
    assert not site.cut_once and "attempt 1 of 3 failed" in caplog.text


def test_signatures_in_urls_are_in_no_summary_message_or_log(
    site: Site, aoi: AOI, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO", logger="geodino")
    monkeypatch.setattr(warped, "RETRY_DELAY_S", 0.0)
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
    assert "gone.tif?..." in said[0] and "gone.tif?..." in caplog.text
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
    assert str(searched.value) == f"{site.url}/api cannot be searched: {said} (APIError); is it a STAC API?"


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
    # Under another name, because GDAL still remembers the first bytes of the old file.
    document = f'<VRTDataset rasterXSize="{SIDE}" rasterYSize="{SIDE}">{bands}</VRTDataset>'
    (site.folder / "turned.tif").write_text(document)
    turned = replace(scene, bands=tuple(replace(band, href=f"{site.url}/turned.tif") for band in scene.bands))
    grid = Grid(scene.crs, GSD)
    with Mosaic([turned], grid) as mosaic, pytest.raises(ReadError, match=r"turned\.tif.*not recognized"):
        mosaic.read(footprint_window(scene, grid))
