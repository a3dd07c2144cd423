"""Odd rasters: each is read right, to the value, or refused by name with what to do. The tables are the promise."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from odd_rasters import (
    COLS,
    DATE_LINE,
    EUROPE,
    GSD,
    RGB,
    ROWS,
    Odd,
    expected,
    look,
    reflectance,
    turned,
    write_rows,
    write_wide,
)
from rasterio.control import GroundControlPoint
from rasterio.rpc import RPC

from geodino.errors import ReadError, SourceError
from geodino.grid import Grid, Window
from geodino.sources import Mosaic, Search, find_scenes
from geodino.sources.geotiff import describe
from geodino.sources.warp import footprint_window

TILED = {"tiled": True, "blockxsize": 64, "blockysize": 64}


def _scaled(path: Path) -> None:
    with rasterio.open(path, "r+") as raster:
        raster.scales, raster.offsets = (1e-4,) * 3, (-0.1,) * 3


READ = {
    "uint16 reflectance by profile": Odd(dtype="uint16", full=reflectance(1e-4), radiometry="reflectance-10000"),
    "uint16 with the file's own scale and offset": Odd(dtype="uint16", full=reflectance(1e-4), after=_scaled, off=86),
    "uint16 to the full": Odd(dtype="uint16", full=65535, radiometry="uint16-full", off=0.01),
    "float32 reflectance": Odd(dtype="float32", full=reflectance(1), radiometry="reflectance-1", off=0.01),
    "float64 reflectance": Odd(dtype="float64", full=reflectance(1), radiometry="reflectance-1", off=0.01),
    "float32 with NaN and no nodata": Odd(
        dtype="float32", full=reflectance(1), radiometry="reflectance-1", hole=np.nan, off=0.01
    ),
    "float32 with nodata that the header rounds": Odd(
        {"nodata": -3.4e38}, "float32", reflectance(1), "reflectance-1", hole=-3.4e38, off=0.01
    ),
    "bands as blue, green, red": Odd(colours=RGB[::-1]),
    "alpha": Odd(hole="alpha"),
    "alpha in 16 bits": Odd(dtype="uint16", full=65535, radiometry="uint16-full", hole="alpha", off=0.01),
    "mask inside": Odd(TILED, hole="mask"),
    "mask beside (.msk)": Odd(TILED, hole="mask beside"),
    "nodata": Odd({"nodata": 0}, hole=0),
    "overviews inside": Odd(TILED, transform=Affine(0.15, 0, EUROPE.west, 0, -0.15, EUROPE.north), shape=(448, 512),
                            overviews="inside", off=1.2),
    "overviews beside (.ovr)": Odd(TILED, transform=Affine(0.15, 0, EUROPE.west, 0, -0.15, EUROPE.north),
                                   shape=(448, 512), overviews="beside", off=1.2),
    "turned by 30 degrees": Odd(transform=turned(30), shape=(160, 160)),
    "turned by 90 degrees": Odd(transform=turned(90), shape=(160, 160)),
    "south up": Odd(transform=Affine(GSD, 0, EUROPE.west, 0, GSD, EUROPE.north - ROWS * GSD)),
    "east to west": Odd(transform=Affine(-GSD, 0, EUROPE.west + COLS * GSD, 0, -GSD, EUROPE.north)),
    "pixels that are points": Odd(after=lambda path: _tagged(path, AREA_OR_POINT="Point")),
    "oblong pixels": Odd(transform=Affine(0.4, 0, EUROPE.west, 0, -0.8, EUROPE.north), shape=(84, 192)),
    "geographic CRS": Odd(crs="EPSG:4326", transform=Affine(7e-6, 0, 15.00004, 0, -5e-6, 45.1536), shape=(140, 150)),
    "compound CRS": Odd(crs="EPSG:32633+5773"),
    "another UTM zone": Odd(crs="EPSG:32632", transform=Affine(0.5, 0, 971_610, 0, -0.5, 5_017_555), shape=(240, 260)),
    "over the antimeridian in metres": Odd(place=DATE_LINE),
    "strips": Odd({"blockysize": 16, "compress": "deflate"}),
    "one strip": Odd({"blockysize": ROWS, "compress": "lzw"}),
    "strips of a row": Odd({"blockysize": 1}),
    "BigTIFF": Odd({"BIGTIFF": "YES", **TILED}),
    "big endian": Odd({"ENDIANNESS": "BIG"}, dtype="uint16", full=65535, radiometry="uint16-full", off=0.01),
    "JPEG in YCbCr": Odd({**TILED, "compress": "jpeg", "photometric": "ycbcr", "JPEG_QUALITY": 95}, off=4),
    "JPEG in YCbCr with a mask": Odd(
        {**TILED, "compress": "jpeg", "photometric": "ycbcr", "JPEG_QUALITY": 95}, hole="mask", off=4
    ),
    "planes apart": Odd({**TILED, "interleave": "band", "compress": "zstd", "predictor": 2}),
    "planes pixel by pixel": Odd({**TILED, "interleave": "pixel", "compress": "deflate", "predictor": 2}),
    "12 bits in uint16": Odd({"NBITS": 12}, dtype="uint16", full=reflectance(1e-4), radiometry="reflectance-10000"),
    "COG": Odd({"driver": "COG", "blocksize": 128}),
    "JPEG 2000": Odd({"driver": "JP2OpenJPEG", "QUALITY": 100, "REVERSIBLE": "YES"}),
}  # fmt: skip


def _tagged(path: Path, **tags: str) -> None:
    with rasterio.open(path, "r+") as raster:
        raster.update_tags(**tags)


# GeoTIFF, COG and JPEG 2000 write photometric and colours each in its own way.
@pytest.mark.parametrize("what", READ)
def test_an_odd_raster_shows_the_ground(tmp_path: Path, what: str) -> None:
    odd = READ[what]
    suffix = ".jp2" if odd.profile.get("driver") == "JP2OpenJPEG" else ".tif"
    pixels = look(odd.write(tmp_path / f"odd{suffix}"), odd)
    ground, there = expected(odd, pixels.window)
    np.testing.assert_array_equal(pixels.valid, there)
    assert np.abs(pixels.image * 255.0 - ground)[:, there].max() <= odd.off
    assert not pixels.image[:, ~there].any()


def _gcps(path: Path) -> None:
    corners = [(0, 0, 14.99, 45.01), (0, 100, 15.01, 45.01), (100, 0, 14.99, 44.99), (100, 100, 15.01, 44.99)]
    _plain(path, crs="EPSG:4326", gcps=[GroundControlPoint(*corner) for corner in corners])


def _rpcs(path: Path) -> None:
    ones = [1.0] * 20
    _plain(path, rpcs=RPC(0, 1, 45.0, 1, ones, ones, 50, 1, 15.5, 1, ones, ones, 50, 1, None, None))


def _plain(path: Path, *, count: int = 3, dtype: str = "uint8", **profile: object) -> None:
    with rasterio.open(path, "w", driver="GTiff", count=count, height=100, width=100, dtype=dtype, **profile) as raster:
        raster.write(np.ones((count, 100, 100), dtype))


def _palette(path: Path) -> None:
    with rasterio.open(
        path, "w", driver="GTiff", count=1, height=100, width=100, dtype="uint8", crs=EUROPE.crs,
        transform=EUROPE.transform, photometric="palette",
    ) as raster:  # fmt: skip
        raster.write_colormap(1, {number: (number, 0, 0, 255) for number in range(256)})


def _here(path: Path, **more: object) -> None:
    _plain(path, crs=EUROPE.crs, transform=EUROPE.transform, **more)  # type: ignore[arg-type]


def _one_block(path: Path, side: int) -> None:
    """A block of that many pixels a side, in a file of some bytes."""
    with rasterio.open(
        path, "w", driver="GTiff", count=3, height=side, width=side, dtype="uint8", crs=EUROPE.crs, tiled=True,
        transform=EUROPE.transform, blockxsize=side, blockysize=side, SPARSE_OK=True, compress="deflate",
    ):  # fmt: skip
        pass


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "one band": (lambda path: _here(path, count=1), "has 1 band; .*gdalbuildvrt -separate rgb.vrt RED GREEN BLUE"),
    "two bands": (lambda path: _here(path, count=2), "has 2 bands; red, green and blue are needed"),
    "five bands without names": (lambda path: _here(path, count=5), "does not say which are red, green and blue"),
    "palette": (_palette, "is a palette image; expand it first: gdal_translate -expand rgb IN OUT"),
    "complex numbers": (lambda path: _here(path, dtype="complex64"), "holds complex64 numbers; one of uint8"),
    "ground control points": (_gcps, r"4 ground control points; .*gdalwarp -tps -r cubic -t_srs EPSG:32633 IN OUT"),
    "RPCs": (_rpcs, r"has only RPCs; .*gdalwarp -rpc -to RPC_DEM=DEM -r cubic -t_srs EPSG:32633 IN OUT"),
    "no CRS": (lambda path: _plain(path, transform=EUROPE.transform), "has no CRS; .*rio edit-info --crs"),
    "no geotransform": (lambda path: _plain(path, crs=EUROPE.crs), "has no geotransform; .*gdal_translate -a_ullr"),
    "degrees over 180": (
        lambda path: _plain(path, crs="EPSG:4326", transform=Affine(7e-6, 0, 179.9996, 0, -5e-6, 45)),
        "over the 180th meridian in EPSG:4326, .*gdalwarp -r cubic -t_srs EPSG:32660 IN OUT",
    ),
    "degrees below -180": (
        lambda path: _plain(path, crs="EPSG:4326", transform=Affine(7e-6, 0, -180.0004, 0, -5e-6, 45)),
        "over the 180th meridian in EPSG:4326, .*gdalwarp -r cubic -t_srs EPSG:32660 IN OUT",
    ),
    "Web Mercator over 180": (
        lambda path: _plain(path, crs="EPSG:3857", transform=Affine(0.8, 0, 20_037_480, 0, -0.8, 5_621_000)),
        "over the 180th meridian in EPSG:3857, .*gdalwarp -r cubic",
    ),
    "blocks of 1.1 GiB": (lambda path: _one_block(path, 19_200), "1055 MiB that are decoded at once; make a COG of it"),
}


# rasterio says of files without a place that they have none, as we do.
@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize("what", REFUSED)
def test_a_raster_that_cannot_be_read_is_refused_with_what_to_do(tmp_path: Path, what: str) -> None:
    write, message = REFUSED[what]
    write(tmp_path / "odd.tif")
    with pytest.raises(SourceError, match=f"odd.tif .*{message}"):
        find_scenes([str(tmp_path / "odd.tif")], aoi=EUROPE.aoi, search=Search())


def test_a_raster_without_a_pixel_is_valid_nowhere(tmp_path: Path) -> None:
    void = Odd(dtype="uint16")
    pixels = look(write_rows(tmp_path / "void.tif", np.zeros((3, ROWS, COLS), np.uint16), nodata=0), void)
    assert not pixels.valid.any() and not pixels.image.any()


@pytest.mark.parametrize("left", [0.3, 0.9])
def test_a_file_that_was_cut_short_is_named_and_never_read_as_black(tmp_path: Path, left: float) -> None:
    path = Path(Odd(TILED).write(tmp_path / "cut.tif"))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * left)])
    with pytest.raises(ReadError, match=r"cut\.tif"):
        look(str(path), Odd(TILED))


WIDE = """
import resource, sys, time
sys.path.insert(0, sys.argv[1])
from odd_rasters import Odd, look
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
before, began = peak(), time.process_time()
for path in sys.argv[2:]:
    for radiometry in ("auto", "uint16-full"):
        assert look(path, Odd(dtype="uint16", radiometry=radiometry)).valid.all()
print(peak() - before, time.process_time() - began)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts memory in KiB, as Linux does")
def test_a_raster_of_60_000_px_takes_little_memory_and_is_not_read_whole(tmp_path: Path) -> None:
    tiles = write_wide(tmp_path / "tiles.tif", 60_000, "uint16", **TILED | {"blockxsize": 1024, "blockysize": 1024})
    strips = write_wide(tmp_path / "strips.tif", 60_000, "uint16", compress="deflate", blockysize=8)
    command = [sys.executable, "-c", WIDE, str(Path(__file__).parent), tiles, strips]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert not done.returncode, done.stderr
    memory_mib, seconds = map(float, done.stdout.split())
    # Either is 21,600 MB; a row of strips of 128 px is 46 MB. To thin them whole took 11 s and not 2 (2026-11), though
    # nearly all of them is a hole.
    assert memory_mib < 500 and seconds < 6


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("rows", [1, 16])
def test_strips_are_read_once_though_windows_share_them(tmp_path: Path, rows: int) -> None:
    noise = np.random.default_rng(0).integers(1, 255, (3, 1200, 5000), dtype=np.uint8)
    path = write_rows(tmp_path / "strips.tif", noise, blockysize=rows, compress="deflate")
    scene = describe(path)
    grid = Grid(scene.crs, GSD)
    extent = footprint_window(scene, grid)
    windows = [
        Window(extent.row + row, extent.col + col, 416, 416).intersection(extent)
        for row in range(0, extent.height, 352)
        for col in range(0, extent.width, 352)
    ]
    before = _bytes_read()
    with Mosaic([scene], grid) as mosaic, ThreadPoolExecutor(4) as threads:
        assert all(pixels.valid.all() for pixels in threads.map(mosaic.read, windows))
    # 1.00 on 2026-11; windows alone would read each strip over 17 times.
    assert _bytes_read() - before < 1.15 * Path(path).stat().st_size


def _bytes_read() -> int:
    """Bytes that this process has read from files so far, whether the disk was asked or not."""
    return int(Path("/proc/self/io").read_text().split()[1])
