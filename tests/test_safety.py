"""A scene is data, not a program: what it may not make geodino open, ask, hold in memory, or tell."""

from __future__ import annotations

import json
import logging
import re
import resource
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.enums import Resampling
from source_scenes import GSD, SIDE, area_of_interest, make_item, write_catalog, write_scene

from geodino import RunOptions, run
from geodino.errors import GeodinoError, ReadError, SourceError
from geodino.grid import Grid, Window
from geodino.redaction import redact, without_secrets
from geodino.sources import Mosaic, Scene, Search, find_scenes
from geodino.sources.geotiff import describe
from geodino.sources.raster import check_link, gdal_path, open_raster
from geodino.sources.warp import footprint_window

SECRET = "Zm9yYmlkZGVu"


class Server:
    """Files of a folder by byte ranges, in a process of its own, as GDAL waits for some answers with Python stopped."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log = folder, folder.with_name("asked.txt")
        self.log.touch()
        program = [sys.executable, "-c", PROGRAM, str(folder), str(self.log)]
        self._process = subprocess.Popen(program, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.url = f"http://127.0.0.1:{self._process.stdout.readline().strip()}"

    @property
    def asked(self) -> list[str]:
        return self.log.read_text().splitlines()

    def stop(self) -> None:
        self._process.kill()
        self._process.communicate()


PROGRAM = """
import http.server, pathlib, re, sys
folder, log = map(pathlib.Path, sys.argv[1:])
class Answers(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        with log.open("a") as file:
            file.write(self.path + "\\n")
        path = folder / self.path.partition("?")[0].lstrip("/")
        if "forbidden" in self.path or not path.is_file():
            return self.answer(403 if "forbidden" in self.path else 404, b"")
        body = path.read_bytes()
        asked = re.fullmatch(r"bytes=(\\d+)-(\\d+)", self.headers.get("Range", ""))
        if not asked:
            return self.answer(200, body, **{"Accept-Ranges": "bytes"})
        first, last = int(asked[1]), min(int(asked[2]), len(body) - 1)
        self.answer(206, body[first:last + 1], **{"Content-Range": f"bytes {first}-{last}/{len(body)}"})
    do_HEAD = do_GET
    def answer(self, code, body, **headers):
        self.send_response(code)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
    def log_message(self, *_):
        pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
print(server.server_address[1], flush=True)
server.serve_forever()
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "site").mkdir()
    served = Server(tmp_path / "site")
    yield served
    served.stop()


def vrt_of(source: str, bands: int = 3, side: int = SIDE, more: str = "") -> str:
    """A VRT document that shows the pixels of another file."""
    each = "".join(
        f'<VRTRasterBand dataType="Byte" band="{band}"><SimpleSource><SourceFilename>{source}</SourceFilename>'
        f"<SourceBand>{band}</SourceBand></SimpleSource></VRTRasterBand>"
        for band in range(1, bands + 1)
    )
    return (
        f'<VRTDataset rasterXSize="{side}" rasterYSize="{side}"><SRS>EPSG:32633</SRS><GeoTransform>500004,0.6,0,'
        f"4999998,0,-0.6</GeoTransform>{more}{each}</VRTDataset>"
    )


def scenes(*sources: str) -> tuple[Scene, ...]:
    return find_scenes(list(sources), aoi=area_of_interest(), search=Search()).scenes


WMS = "<GDAL_WMS><Service name='TMS'><ServerUrl>{url}/${{z}}</ServerUrl></Service></GDAL_WMS>"


@pytest.mark.parametrize("where", ["local", "remote"])
@pytest.mark.parametrize("document", ["VRT of a local file", "VRT of another host", "WMS", "STACIT"])
def test_a_tif_that_is_a_document_is_not_followed(server: Server, tmp_path: Path, where: str, document: str) -> None:
    write_scene(tmp_path / "private.tif")
    content = {
        "VRT of a local file": vrt_of(str(tmp_path / "private.tif")),
        "VRT of another host": vrt_of(f"/vsicurl/{server.url}/elsewhere.tif"),
        "WMS": WMS.format(url=server.url),
        "STACIT": json.dumps({"stac_version": "1.0.0", "type": "FeatureCollection", "features": [
            {"stac_extensions": ["proj"], "assets": {"a": {"href": f"{server.url}/elsewhere.tif"}}}]}),
    }[document]  # fmt: skip
    (server.folder / "trap.tif").write_text(content)
    with pytest.raises(ReadError, match=r"trap\.tif cannot be read"):
        scenes(f"{server.url}/trap.tif" if where == "remote" else str(server.folder / "trap.tif"))
    assert not [path for path in server.asked if "trap" not in path]


@pytest.mark.parametrize("beside", [".ovr", ".msk", ".OVR", ".ovr.ovr"])
def test_a_document_beside_a_tif_is_not_followed(server: Server, tmp_path: Path, beside: str) -> None:
    path = tmp_path / "a.tif"
    write_plain(path)
    if beside.count(".") == 2:
        with rasterio.Env(TIFF_USE_OVR=True), rasterio.open(path, "r+") as raster:
            raster.build_overviews([2], Resampling.average)
    flags = '<Metadata><MDI key="INTERNAL_MASK_FLAGS_1">2</MDI></Metadata>'
    Path(f"{path}{beside}").write_text(vrt_of(f"/vsicurl/{server.url}/elsewhere.tif", more=flags))
    with pytest.raises(ReadError, match=re.escape(f"a.tif{beside} cannot be read")):
        scenes(str(path))
    assert not server.asked


@pytest.mark.parametrize("where", ["tag", "tag of a remote file", "file beside", "file beside the overviews"])
def test_a_tif_cannot_name_its_overviews_elsewhere(server: Server, tmp_path: Path, where: str) -> None:
    folder = server.folder if "remote" in where else tmp_path
    path = folder / "a.tif"
    write_plain(path)
    target = f"/vsicurl/{server.url}/elsewhere.tif"
    pam = f'<PAMDataset><Metadata domain="OVERVIEWS"><MDI key="OVERVIEW_FILE">{target}</MDI></Metadata></PAMDataset>'
    if where.startswith("tag"):
        with rasterio.open(path, "r+") as raster:
            raster.update_tags(ns="OVERVIEWS", OVERVIEW_FILE=target)
    elif where == "file beside":
        Path(f"{path}.aux.xml").write_text(pam)
    else:
        with rasterio.Env(TIFF_USE_OVR=True), rasterio.open(path, "r+") as raster:
            raster.build_overviews([2], Resampling.average)
        Path(f"{path}.ovr.aux.xml").write_text(pam)
    with pytest.raises(SourceError, match="names a file of its own for overviews"):
        scenes(f"{server.url}/a.tif" if "remote" in where else str(path))
    assert not [asked for asked in server.asked if "elsewhere" in asked]


def write_plain(path: Path) -> None:
    """A scene without overviews."""
    with rasterio.open(
        path, "w", driver="GTiff", height=SIDE, width=SIDE, count=3, dtype="uint8", crs="EPSG:32633",
        transform=rasterio.Affine(GSD, 0, 500_004, 0, -GSD, 4_999_998), photometric="RGB",
    ) as raster:  # fmt: skip
        raster.write(np.full((3, SIDE, SIDE), 99, np.uint8))


def test_a_mask_beside_a_remote_file_is_told_of_and_not_left_out(server: Server) -> None:
    path = server.folder / "a.tif"
    write_plain(path)
    assert scenes(f"{server.url}/a.tif")
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False), rasterio.open(path, "r+") as raster:
        raster.write_mask(np.zeros((SIDE, SIDE), bool))
    (server.folder / "b.tif").write_bytes(path.read_bytes())
    (server.folder / "b.tif.msk").write_bytes(Path(f"{path}.msk").read_bytes())
    with pytest.raises(SourceError, match="has its mask in a file beside it, which is read on a local disk only"):
        scenes(f"{server.url}/b.tif")


HREFS = [
    "ftp://host/a.tif",
    "file://host/a.tif",
    "/vsicurl/http://host/a.tif",
    "/./vsizip/a.zip/a.tif",
    "WMS:http://host/?",
    "https://host/a.tif?<VRTDataset rasterXSize='1'></VRTDataset>",
    "/data/<VRTDataset>/a.tif",
    "https://host/a.tif\n.vrt",
    "/data/a\x00.tif",
    "s3://mine/../theirs/a.tif",
    "s3://mine/%2e%2e/theirs/a.tif",
    "https://host/open/../closed/a.tif",
]


@pytest.mark.parametrize("href", HREFS)
def test_names_that_mean_something_else_to_gdal_are_refused(href: str) -> None:
    with pytest.raises(SourceError):
        gdal_path(href)


@pytest.mark.parametrize("prefix", ["GTIFF_DIR:1:", "NETCDF:", "DERIVED_SUBDATASET:AMPLITUDE:", "STACIT:"])
def test_gdals_prefixes_are_plain_names_of_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefix: str) -> None:
    write_scene(tmp_path / "a.tif")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(GeodinoError, match=r"No such file|scheme"):
        open_raster(f"{prefix}a.tif")


def test_a_file_named_like_a_document_is_not_taken_for_one(tmp_path: Path) -> None:
    write_scene(tmp_path / "a.tif")
    # GDAL reads this name as a document wherever it stands in a path; so it does in a URL.
    trap = (tmp_path / "a.tif").rename(tmp_path / "<VRTDataset>.tif")
    with pytest.raises(SourceError, match="rename the file"):
        scenes(str(trap))


def test_a_vrt_is_read_where_the_user_names_it_and_not_where_an_item_does(tmp_path: Path) -> None:
    write_scene(tmp_path / "a.tif")
    (tmp_path / "a.vrt").write_text(vrt_of(str(tmp_path / "a.tif")))
    assert scenes(str(tmp_path / "a.vrt"))
    with pytest.raises(SourceError, match="is a VRT, which may read any file or server"):
        scenes(write_catalog(tmp_path, [make_item("one", "../a.vrt")]))


PUBLIC = "https://93.184.215.14/item.json"


@pytest.mark.parametrize(
    "href",
    [
        "http://169.254.169.254/latest/meta-data/a.tif", "http://127.0.0.1:8080/a.tif", "http://localhost/a.tif",
        "http://2130706433/a.tif", "http://10.1.2.3/a.tif", "https://192.168.0.1/a.tif", "http://[::1]/a.tif",
        "http://[::ffff:127.0.0.1]/a.tif", "http://0.0.0.0/a.tif", "file:///etc/a.tif", "/etc/a.tif",
    ],
)  # fmt: skip
def test_a_document_of_the_internet_leads_no_nearer_to_this_machine(href: str) -> None:
    with pytest.raises(SourceError, match=r"points to"):
        check_link(href, PUBLIC)
    # The user's own catalog, on this machine or disk, may.
    check_link("http://127.0.0.1:8080/a.tif", "http://127.0.0.1:8080/item.json")
    check_link(href, "/catalog/item.json")


@pytest.mark.parametrize(
    "href", ["https://93.184.215.15/a.tif", "s3://bucket/a.tif", "https://no.such.host.test/a.tif"]
)
def test_a_document_of_the_internet_may_name_others_there(href: str) -> None:
    check_link(href, PUBLIC)


def tiff(*images: dict[int, tuple[int, list[float]]], body: bytes) -> bytes:
    """A little-endian TIFF of images with these tags (type, values), after the bytes of one block at 8."""
    out, link = bytearray(b"II*\0\0\0\0\0" + body + b"\0" * (len(body) % 2)), 4
    for tags in images:
        struct.pack_into("<I", out, link, len(out))
        after, ifd, tail = len(out) + 2 + 12 * len(tags) + 4, struct.pack("<H", len(tags)), b""
        for tag, (kind, values) in sorted(tags.items()):
            raw = struct.pack(f"<{len(values)}{ {3: 'H', 4: 'I', 12: 'd'}[kind] }", *values)
            if len(raw) > 4:
                raw, tail = struct.pack("<I", after + len(tail)), tail + raw
            ifd += struct.pack("<HHI", tag, kind, len(values)) + raw.ljust(4, b"\0")
        link = len(out) + len(ifd)
        out += ifd + b"\0" * 4 + tail
    return bytes(out)


def image(
    side: int, block: int, bytes_here: int, *, bands: int = 3, bits: int = 8, kind: int | None = None
) -> dict[int, tuple[int, list[float]]]:
    """Tags of a square image in Deflate blocks, all of which are the one at byte 8; `kind` 1 overview, 4 mask."""
    blocks = (-(-side // block)) ** 2
    tags: dict[int, tuple[int, list[float]]] = {
        256: (4, [side]), 257: (4, [side]), 258: (3, [bits] * bands), 259: (3, [8]),
        262: (3, [4 if kind == 4 else 2 if bands == 3 else 1]), 277: (3, [bands]), 284: (3, [1]),
        322: (4, [block]), 323: (4, [block]), 324: (4, [8] * blocks), 325: (4, [bytes_here] * blocks),
    }  # fmt: skip
    if kind is not None:
        return tags | {254: (4, [kind])}
    return tags | {
        33550: (12, [GSD, GSD, 0]), 33922: (12, [0, 0, 0, 500_004, 4_999_998, 0]),
        34735: (3, [1, 1, 0, 3, 1024, 0, 1, 1, 1025, 0, 1, 1, 3072, 0, 1, 32633]),
    }  # fmt: skip


FULL = zlib.compress(bytes([99]) * (128 * 128 * 3))
CLAIMS = {
    "a block of 10 GiB": (tiff(image(60_000, 60_000, len(FULL)), body=FULL), "decoded at once"),
    "a block of 6 GiB in 64 bits": (tiff(image(16_384, 16_384, len(FULL), bits=64), body=FULL), "decoded at once"),
    "65,535 bands": (tiff(image(128, 128, len(FULL), bands=65_535), body=FULL), "has 65535 bands, over 1024"),
    "an overview of 10 GiB": (
        tiff(image(128, 128, len(FULL)), image(64, 60_000, len(FULL), kind=1), body=FULL), "decoded at once",
    ),
}  # fmt: skip


@pytest.mark.parametrize("claim", CLAIMS)
def test_a_header_that_asks_for_much_memory_is_refused_before_it_is_taken(tmp_path: Path, claim: str) -> None:
    content, message = CLAIMS[claim]
    (tmp_path / "a.tif").write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(SourceError, match=message):
        scenes(str(tmp_path / "a.tif"))
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 400


def test_a_block_that_unpacks_to_a_gigabyte_takes_no_more_than_it_should(tmp_path: Path) -> None:
    packer = zlib.compressobj(1)
    bomb = b"".join(packer.compress(bytes([99]) * 2**20) for _ in range(1024)) + packer.flush()
    (tmp_path / "a.tif").write_bytes(tiff(image(128, 128, len(bomb)), body=bomb))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    scene = describe(str(tmp_path / "a.tif"))
    with Mosaic([scene], Grid(scene.crs, GSD)) as mosaic:
        mosaic.read(footprint_window(scene, mosaic.grid))
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 200


def test_a_header_that_claims_4_gb_in_a_file_of_some_kb_takes_no_memory_and_is_a_read_error(tmp_path: Path) -> None:
    # All blocks but those at the file's end are said to lie beyond it.
    far = image(20_480, 512, 50_000)
    far[324] = (4, [8 + 2_000_000 * number for number in range(1600)])
    (tmp_path / "a.tif").write_bytes(tiff(far, body=FULL))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ReadError, match=r"a\.tif"):
        scene = describe(str(tmp_path / "a.tif"))
        with Mosaic([scene], Grid(scene.crs, GSD)) as mosaic:
            corner = footprint_window(scene, mosaic.grid)
            mosaic.read(Window(corner.row, corner.col, 2048, 2048))
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 200


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("https://host/a.tif?sv=1&sig=Zm9y", "https://host/a.tif?..."),
        ("https://me:pa@ss@host/a.tif", "https://host/a.tif"),
        ("/vsicurl/https://host/a.tif?sig=Zm9y: HTTP 403", "/vsicurl/https://host/a.tif?... HTTP 403"),
        ("s3://bucket/a.tif", "s3://bucket/a.tif"),
    ],
)
def test_what_may_be_secret_in_urls_is_left_out(text: str, told: str) -> None:
    assert without_secrets(text) == told


def test_a_whole_run_tells_no_signature_password_or_key(
    server: Server, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AZURE_STORAGE_SAS_TOKEN"):
        monkeypatch.setenv(name, SECRET)
    caplog.set_level(logging.DEBUG)
    caplog.handler.addFilter(redact)
    write_scene(server.folder / "a.tif")
    item = make_item("one", f"{server.url}/a.tif?sig={SECRET}")
    (server.folder / "item.json").write_text(json.dumps(item))
    signed = f"{server.url}/item.json?sig={SECRET}".replace("://", f"://me:{SECRET}@")
    options = RunOptions(sources=(signed,), model=str(tiny_model), device="cpu")
    run("canopy", aoi=area_of_interest(), out=tmp_path / "out", options=options)
    outputs = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert {"run.json", "item.json", "canopy_height.tif"} <= {path.name for path in outputs}
    assert "a.tif?..." in (tmp_path / "out" / "run.json").read_text()
    for path in outputs:
        assert SECRET.encode() not in path.read_bytes(), path
    for href in (f"{server.url}/forbidden.tif?sig={SECRET}", f"{server.url}/none.json?sig={SECRET}"):
        with pytest.raises(GeodinoError) as caught:
            run("canopy", aoi=area_of_interest(), out=tmp_path / "none", options=replace(options, sources=(href,)))
        assert SECRET not in str(caught.value)
    assert any(SECRET in asked for asked in server.asked), "the test must use the signature"
    assert "a.tif" in caplog.text and SECRET not in caplog.text
