"""Headers as strangers write them: where blocks lie, whatever the counts in the header say."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from fault_server import FaultServer

from geodino.errors import ReadError
from geodino.grid import Grid, Window
from geodino.sources import Mosaic
from geodino.sources.geotiff import Hints, describe, describe_separate
from geodino.sources.pixels import Asked, PixelFiles
from geodino.sources.scene import Band

HEIGHT, WIDTH = 700, 500
STRIP_BYTES = 279
WINDOW = Window(300, 100, 200, 300)


def write(path: Path, values: np.ndarray, **more: object) -> None:
    with rasterio.open(
        path, "w", driver="GTiff", height=HEIGHT, width=WIDTH, count=len(values), dtype=values.dtype, crs="EPSG:32610",
        transform=Affine(0.6, 0, 490_000.2, 0, -0.6, 4_879_999.8), **more,
    ) as raster:  # fmt: skip
        raster.write(values)


@pytest.fixture
def noise() -> np.ndarray:
    return np.random.default_rng(2).integers(1, 256, (3, HEIGHT, WIDTH), dtype=np.uint8)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FaultServer]:
    with FaultServer(tmp_path) as server:
        yield server


def entry(content: bytearray, tag: int) -> int:
    """Where the 12 bytes of a tag lie in the first directory of a little-endian TIFF."""
    (at,) = struct.unpack_from("<I", content, 4)
    (count,) = struct.unpack_from("<H", content, at)
    places = (at + 2 + 12 * number for number in range(count))
    return next(place for place in places if struct.unpack_from("<H", content, place)[0] == tag)


def with_count(value: int) -> Callable[[bytearray], None]:
    return lambda content: struct.pack_into("<I", content, entry(content, STRIP_BYTES) + 8, value)


def without_counts(content: bytearray) -> None:
    # A private tag in its place, which must still rise: 279 -> 279 is between its neighbours as an unknown type.
    struct.pack_into("<H", content, entry(content, STRIP_BYTES) + 2, 99)


@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize(
    "change", [with_count(0), with_count(1000), without_counts], ids=["no length", "too short", "not told"]
)
def test_uncompressed_blocks_are_as_long_as_their_pixels_whatever_the_header_says(
    change: Callable[[bytearray], None], verify: bool, noise: np.ndarray, server: FaultServer, tmp_path: Path
) -> None:
    write(tmp_path / "one.tif", noise, blockysize=HEIGHT, interleave="pixel")
    content = bytearray((tmp_path / "one.tif").read_bytes())
    change(content)
    (tmp_path / "one.tif").write_bytes(content)
    files = PixelFiles(verify=verify)
    found = files.read(Asked(f"{server.url}/one.tif", None, None, (1, 2, 3)), WINDOW).values
    files.close()
    np.testing.assert_array_equal(found, noise[:, 300:500, 100:400])


# GDAL takes a small plane of one strip for one block.
@pytest.mark.parametrize(
    ("interleave", "rows"), [("pixel", HEIGHT), *((way, rows) for way in ("pixel", "band") for rows in (140, 96, 67))]
)
def test_of_a_tall_strip_only_the_rows_that_are_needed_are_fetched(
    rows: int, interleave: str, noise: np.ndarray, server: FaultServer, tmp_path: Path
) -> None:
    write(tmp_path / "tall.tif", noise, blockysize=rows, interleave=interleave)
    files = PixelFiles()
    for window in (Window(0, 0, 40, WIDTH), Window(330, 10, 10, 20), Window(HEIGHT - 5, 0, 5, WIDTH)):
        found = files.read(Asked(f"{server.url}/tall.tif", None, None, (1, 2, 3)), window).values
        np.testing.assert_array_equal(found, noise[:, *window.slices_in(Window(0, 0, HEIGHT, WIDTH))])
    files.close()
    assert server.total("tall.tif").sent < 0.65 * (tmp_path / "tall.tif").stat().st_size


def test_a_compressed_block_without_a_length_is_refused(noise: np.ndarray, server: FaultServer, tmp_path: Path) -> None:
    write(tmp_path / "odd.tif", noise, blockysize=HEIGHT, interleave="pixel", compress="deflate")
    content = bytearray((tmp_path / "odd.tif").read_bytes())
    with_count(0)(content)
    (tmp_path / "odd.tif").write_bytes(content)
    with pytest.raises(ReadError, match="does not say how long its blocks are; make it anew"):
        describe(f"{server.url}/odd.tif")


def test_bands_in_a_file_each_are_read_from_overviews_that_all_of_them_have(tmp_path: Path) -> None:
    rows, cols = np.mgrid[:HEIGHT, :WIDTH]
    picture = np.stack([cols * 200 / WIDTH, rows * 200 / HEIGHT, (rows + cols) * 0.1]).astype(np.uint8) + 1
    write(tmp_path / "all.tif", picture)
    for name, plane, overviews in zip(("red", "green", "blue"), picture, ([2, 4], [4, 8], []), strict=True):
        write(tmp_path / f"{name}.tif", plane[None])
        with rasterio.open(tmp_path / f"{name}.tif", "r+") as raster:
            raster.build_overviews(overviews)
    red, green, blue = (Band(str(tmp_path / f"{name}.tif"), 1) for name in ("red", "green", "blue"))
    apart, together = describe_separate((red, green, blue), Hints()), describe(str(tmp_path / "all.tif"))
    grid = Grid(together.crs, 1.3)
    window = Window(-3_753_800, 376_960, 100, 100)
    with Mosaic([apart], grid) as one, Mosaic([together], grid) as other:
        assert other.read(window).valid.all()
        np.testing.assert_array_equal(one.read(window).image, other.read(window).image)
