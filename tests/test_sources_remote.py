"""Remote GeoTIFFs: each fault of a server or network ends in the right pixels, or in an error that says what it was."""

from __future__ import annotations

import hashlib
import math
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import rasterio
from affine import Affine
from fault_server import FaultServer
from faults import Fault

from geodino.errors import ReadError
from geodino.grid import Grid, Window
from geodino.sources import Mosaic, ranges, remote, signing
from geodino.sources.geotiff import describe
from geodino.sources.pixels import Asked, PixelFiles
from geodino.sources.ranges import HttpRanges, Patience
from geodino.sources.remote import RemoteTiff
from geodino.sources.scene import Band
from geodino.sources.tiff import read_directories

SIDE, BLOCK = 1024, 256
HASTY = Patience(
    attempts=6, first_delay_s=0.01, most_delay_s=0.02, connect_s=2, silence_s=0.3, least_bytes_s=5e4, total_s=20
)
WINDOW = Window(200, 300, 400, 500)
# Past the header, so that a fault meets blocks.
BLOCKS_FROM = 40_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("remote")
    values = np.random.default_rng(3).integers(0, 256, (3, SIDE, SIDE), dtype=np.uint8)
    profile = {
        "driver": "GTiff", "height": SIDE, "width": SIDE, "count": 3, "dtype": "uint8", "crs": "EPSG:32610",
        "transform": Affine(0.6, 0, 490_000.2, 0, -0.6, 4_879_999.8), "tiled": True, "blockxsize": BLOCK,
        "blockysize": BLOCK, "compress": "deflate", "interleave": "pixel", "photometric": "rgb",
    }  # fmt: skip
    for name, change in {
        "a.tif": {},
        "plain.tif": {"compress": "none"},
        "planes.tif": {"interleave": "band"},
        "big.tif": {"BIGTIFF": "YES"},
        "strips.tif": {"tiled": False, "blockysize": 16, "blockxsize": SIDE},
    }.items():
        with rasterio.open(folder / name, "w", **profile | change) as raster:
            raster.write(values)
    with rasterio.open(folder / "a.tif", "r+") as raster:
        raster.build_overviews([2, 4])
    return folder


@pytest.fixture
def server(folder: Path) -> Iterator[FaultServer]:
    with FaultServer(folder) as server:
        yield server


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges, "PATIENCE", HASTY)


def truth(path: Path, window: Window = WINDOW) -> npt.NDArray[np.uint8]:
    with rasterio.open(path) as raster:
        part: npt.NDArray[np.uint8] = raster.read()[:, *window.slices_in(Window(0, 0, SIDE, SIDE))]
        return part


def read(
    href: str, window: Window = WINDOW, *, verify: bool = False, sign: str | None = None
) -> npt.NDArray[np.generic]:
    files = PixelFiles(verify=verify)
    try:
        return files.read(Asked(href, None, None, (1, 2, 3)), window).values
    finally:
        files.close()


PASSING = [
    Fault.SERVER_ERROR, Fault.UNAVAILABLE, Fault.TOO_MANY, Fault.TOO_MANY_UNTIL, Fault.CUT, Fault.RESET, Fault.HANG,
    Fault.HANG_IN_BODY, Fault.SLOW, Fault.FALSE_RANGE, Fault.SHIFTED_BODY, Fault.SHIFTED_RANGE, Fault.GZIP,
    Fault.REDIRECT,
]  # fmt: skip


@pytest.mark.parametrize("from_byte", [0, BLOCKS_FROM], ids=["at the header", "at the blocks"])
@pytest.mark.parametrize("fault", PASSING, ids=lambda fault: fault.name)
def test_what_passes_is_outlived(fault: Fault, from_byte: int, server: FaultServer, folder: Path) -> None:
    # Other bytes under an honest header show only where they make no sense, and that is tried again less often.
    server.plan("big.tif", fault, times=1 if fault is Fault.SHIFTED_BODY else 2, from_byte=from_byte)
    np.testing.assert_array_equal(read(f"{server.url}/big.tif"), truth(folder / "big.tif"))
    assert server.faults()[fault] >= 1


LASTING = {
    Fault.SERVER_ERROR: r"after 6 attempts in \d+ s: HTTP 500 Internal Server Error \(6 times\)",
    Fault.TOO_MANY: r"HTTP 429 Too Many Requests",
    Fault.CUT: r"(IncompleteRead|the body ended)",
    Fault.RESET: r"[Rr]eset",
    Fault.HANG: r"no answer for 0.3 s",
    Fault.SLOW: r"only \d+ bytes came in",
    Fault.SHIFTED_RANGE: r"the server sends bytes \d+ to \d+ in place of \d+ to \d+",
    Fault.GZIP: r"sends gzip in place of the bytes",
    Fault.EXPIRED: r"HTTP 403 Forbidden",
    Fault.NO_RANGES: r"files whole only .*download the file",
    Fault.LOGIN_PAGE: r"sends a web page; check the address",
    Fault.CHANGED: r"the file changed while it was read",
}


@pytest.mark.parametrize("fault", LASTING, ids=lambda fault: fault.name)
def test_what_lasts_ends_in_an_error_that_names_scene_ground_and_cause(fault: Fault, server: FaultServer) -> None:
    scene = describe(f"{server.url}/a.tif")
    server.plan("a.tif", fault, times=math.inf, from_byte=BLOCKS_FROM)
    # The server asks to wait a second each time.
    patience = replace(HASTY, total_s=0.5) if fault is Fault.TOO_MANY else HASTY
    with pytest.MonkeyPatch.context() as patch, Mosaic([scene], Grid(scene.crs, 0.6)) as mosaic:
        patch.setattr(ranges, "PATIENCE", patience)
        window = Window(-8_133_000, 817_000, 256, 256)
        with pytest.raises(ReadError, match=LASTING[fault]) as caught:
            mosaic.read(window)
    said = str(caught.value)
    assert "scene a " in said
    assert f"{server.url}/a.tif" in said
    assert "x 490200 to 490354, y 4879646 to 4879800" in said
    assert caught.value.__cause__ is not None


def test_a_token_that_expires_is_renewed_when_the_server_refuses(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with FaultServer(folder, token_requests=3) as server:
        asked: list[bool] = []

        def sign(href: str, again: bool) -> str:
            asked.append(again)
            return server.signed(href)

        monkeypatch.setitem(signing.SIGNERS, "token", sign)
        files = PixelFiles()
        for row in range(0, SIDE, BLOCK):
            window = Window(row, 0, BLOCK, SIDE)
            found = files.read(Asked(f"{server.url}/strips.tif", "token", None, (1, 2, 3)), window).values
            np.testing.assert_array_equal(found, truth(folder / "strips.tif", window))
        files.close()
    assert asked[0] is False
    assert asked.count(True) >= 1
    assert all(request.fault is None or request.status == 403 for request in server.requests)


def test_without_a_hook_a_refusal_is_final_and_said_at_once(server: FaultServer) -> None:
    server.plan("a.tif", Fault.EXPIRED, times=math.inf)
    with pytest.raises(ReadError, match="HTTP 403"):
        read(f"{server.url}/a.tif")
    assert len(server.requests) == 1


@pytest.mark.parametrize("name", ["a.tif", "plain.tif", "planes.tif", "big.tif", "strips.tif"])
def test_any_layout_gives_the_same_pixels_as_on_disk(name: str, server: FaultServer, folder: Path) -> None:
    np.testing.assert_array_equal(read(f"{server.url}/{name}"), truth(folder / name))


@pytest.mark.parametrize("name", ["a.tif", "plain.tif", "planes.tif", "strips.tif"])
def test_each_block_is_fetched_once_for_all_threads_and_little_else(
    name: str, server: FaultServer, folder: Path
) -> None:
    files = PixelFiles()
    asked = Asked(f"{server.url}/{name}", None, None, (1, 2, 3))
    windows = [Window(row, col, 192, 192) for row in range(0, 832, 64) for col in range(0, 832, 64)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda window: files.read(asked, window).values, windows))
    files.close()
    with rasterio.open(folder / name) as raster:
        whole = raster.read()
    for window, values in zip(windows, found, strict=True):
        np.testing.assert_array_equal(values, whole[:, *window.slices_in(Window(0, 0, SIDE, SIDE))])
    with (folder / name).open("rb") as file:
        size = (folder / name).stat().st_size
        picture = read_directories(lambda start, stop: (file.seek(start), file.read(stop - start))[1], size, name)[0]
    needed = sum(int(picture.sizes[block]) for block in picture.blocks(Window(0, 0, 1024, 1024)))
    assert server.total(name).sent <= 1.15 * needed


def test_a_small_window_asks_for_few_bytes_in_few_requests(server: FaultServer, folder: Path) -> None:
    read(f"{server.url}/big.tif", Window(0, 0, BLOCK, 2 * BLOCK))
    # The header, and one request for two blocks that lie together.
    assert server.total("big.tif").requests == 2
    assert server.total("big.tif").sent < 2 * BLOCK * BLOCK * 3 + 64 * 1024


def test_a_finer_file_is_read_from_the_overview_that_fits(server: FaultServer, folder: Path) -> None:
    scene = describe(f"{server.url}/a.tif")
    server.reset()
    grid = Grid(scene.crs, 2.4)
    with Mosaic([scene], grid) as mosaic:
        remote_image = mosaic.read(Window(-2_033_250, 204_170, 200, 200)).image
    local = replace(scene, bands=tuple(Band(str(folder / "a.tif"), band.index) for band in scene.bands))  # type: ignore[arg-type]
    with Mosaic([local], grid) as mosaic:
        np.testing.assert_array_equal(remote_image, mosaic.read(Window(-2_033_250, 204_170, 200, 200)).image)
    assert remote_image.any()
    assert server.total("a.tif").sent < 0.2 * (folder / "a.tif").stat().st_size


def test_a_damaged_block_is_found_by_its_checksum_where_asked(tmp_path: Path) -> None:
    values = np.random.default_rng(1).integers(0, 16, (3, BLOCK, BLOCK), dtype=np.uint8)
    with rasterio.open(
        tmp_path / "bad.tif", "w", driver="GTiff", height=BLOCK, width=BLOCK, count=3, dtype="uint8", tiled=True,
        blockxsize=BLOCK, blockysize=BLOCK, compress="deflate", zlevel=1, interleave="pixel", crs="EPSG:32610",
        transform=Affine(0.6, 0, 490_000.2, 0, -0.6, 4_879_999.8),
    ) as raster:  # fmt: skip
        raster.write(values)
    content = bytearray((tmp_path / "bad.tif").read_bytes())
    (picture,) = read_directories(lambda start, stop: bytes(content[start:stop]), len(content), "bad.tif")
    start, size = int(picture.offsets[0]), int(picture.sizes[0])
    for at in range(start + 100, start + size - 100, 61):
        spoilt = content[:at] + bytes(4) + content[at + 4 :]
        if "incorrect data check" in str(picture.damage(bytes(spoilt[start : start + size]))):
            break
    else:
        raise AssertionError("no such place")
    content = spoilt
    (tmp_path / "bad.tif").write_bytes(content)
    window = Window(0, 0, BLOCK, BLOCK)
    # This is why: GDAL gives other pixels without a word.
    assert (read(str(tmp_path / "bad.tif"), window) != values).any()
    with pytest.raises(ReadError, match=r"bad.tif: block 0 is damaged .*fetch the file again"):
        read(str(tmp_path / "bad.tif"), window, verify=True)
    with FaultServer(tmp_path) as server, pytest.raises(ReadError, match=r"block 0 .* is damaged \(.*\) \(3 times\)"):
        read(f"{server.url}/bad.tif", window, verify=True)


def test_bytes_that_were_spoilt_on_the_way_are_fetched_again(server: FaultServer, folder: Path) -> None:
    server.plan("a.tif", Fault.CORRUPT, times=2, from_byte=BLOCKS_FROM)
    np.testing.assert_array_equal(read(f"{server.url}/a.tif", verify=True), truth(folder / "a.tif"))
    assert server.faults()[Fault.CORRUPT] == 2


def test_a_file_that_ends_early_is_refused_by_name(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.tif").write_bytes((folder / "plain.tif").read_bytes()[:1_000_000])
    with FaultServer(tmp_path) as server, pytest.raises(ReadError, match="it was cut short"):
        read(f"{server.url}/cut.tif", Window(900, 900, 100, 100))


def test_the_local_part_of_a_remote_file_goes_with_its_readers(server: FaultServer) -> None:
    tiff = RemoteTiff(HttpRanges(f"{server.url}/a.tif"), "a.tif")
    path = tiff.path
    tiff.need((SIDE, SIDE), [WINDOW])
    # Sparse: as long as the remote file, and lighter.
    assert path.stat().st_size == tiff._ranges.size
    assert path.stat().st_blocks * 512 < tiff._ranges.size
    del tiff
    assert not path.exists()


HEADERS: dict[str, tuple[Callable[[bytearray], None], str]] = {
    "no TIFF": (lambda content: content.__setitem__(slice(0, 4), b"PNG\0"), "it is no TIFF"),
    "directory beyond the end": (lambda content: content.__setitem__(slice(4, 8), b"\xf0\xff\xff\x7f"), "ends at"),
}


@pytest.mark.parametrize("kind", HEADERS)
def test_a_header_that_cannot_be_true_is_refused(kind: str, folder: Path, tmp_path: Path) -> None:
    content = bytearray((folder / "plain.tif").read_bytes())
    HEADERS[kind][0](content)
    (tmp_path / "odd.tif").write_bytes(content)
    with FaultServer(tmp_path) as server, pytest.raises(ReadError, match=HEADERS[kind][1]) as caught:
        read(f"{server.url}/odd.tif")
    assert re.search("odd.tif", str(caught.value))


@pytest.mark.parametrize("where", ["local", "remote"])
def test_a_file_without_block_checksums_is_held_against_that_of_its_item(
    where: str, server: FaultServer, folder: Path
) -> None:
    href = f"{server.url}/plain.tif" if where == "remote" else str(folder / "plain.tif")
    right = hashlib.sha256((folder / "plain.tif").read_bytes()).hexdigest()

    def read_with(checksums: dict[str, str]) -> list[str]:
        with closing(PixelFiles(verify=True, checksums=checksums)) as files:
            values = files.read(Asked(href, None, None, (1, 2, 3)), WINDOW).values
            np.testing.assert_array_equal(values, truth(folder / "plain.tif"))
            return files.unverified

    assert read_with({href: f"1220{right}"}) == []
    # Fetched whole to be hashed, and no block a second time.
    assert server.total("plain.tif").sent <= (folder / "plain.tif").stat().st_size + 64 * 1024
    server.reset()
    assert ["uncompressed blocks and its Item hold no checksum" in said for said in read_with({})] == [True]
    with pytest.raises(ReadError, match="not the file that its Item describes"):
        read_with({href: f"1220{right[::-1]}"})


def test_who_waits_for_a_server_is_let_go_when_the_run_stops(
    server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    endless = replace(HASTY, attempts=50, first_delay_s=60, most_delay_s=60, total_s=3600)
    monkeypatch.setattr(ranges, "PATIENCE", endless)
    server.plan("big.tif", Fault.UNAVAILABLE, times=math.inf)
    files, asked = PixelFiles(), Asked(f"{server.url}/big.tif", None, None, (1, 2, 3))
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(files.read, asked, WINDOW)
        while not server.faults():
            time.sleep(0.01)
        files.stop()
        with pytest.raises(ReadError, match="the run stops"):
            reading.result(timeout=10)
    files.close()


def test_the_local_parts_lie_in_a_folder_that_is_nobody_elses(server: FaultServer, tmp_path: Path) -> None:
    remote._folder.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(remote.tempfile, "tempdir", str(tmp_path))
        # What a process left that was killed; no process has such an id.
        (tmp_path / "geodino-remote-4194305-x").mkdir()
        tiff = RemoteTiff(HttpRanges(f"{server.url}/a.tif"), "a.tif")
        assert [folder.name for folder in tmp_path.iterdir()] == [tiff.path.parent.name]
        assert tiff.path.parent.stat().st_mode & 0o777 == 0o700
        del tiff
    remote._folder.cache_clear()
