"""Raster files as scenes: what is read from the header, and what is refused by name."""

from __future__ import annotations

import datetime as dt
import logging
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import rasterio
from affine import Affine
from odc.geo.crs import CRS
from rasterio.control import GroundControlPoint
from rasterio.enums import ColorInterp
from rasterio.shutil import copy

from geodino.errors import ConfigError, ReadError, SourceError
from geodino.grid import Grid
from geodino.sources.bands import AssetBand
from geodino.sources.geotiff import Hints, describe, describe_separate, expand_folder
from geodino.sources.mosaic import Mosaic
from geodino.sources.raster import gdal_path, is_remote, local_path, open_raster
from geodino.sources.scene import Alpha, Band, GsdPolicy, ground_gsd
from geodino.sources.warp import footprint_window

Write = Callable[..., str]
RNG = np.random.default_rng(0)
HERE = Affine(0.6, 0, 500_004, 0, -0.6, 4_999_998)
RGB = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a small GeoTIFF and returns its path."""

    def _write(
        pixels: npt.NDArray[np.generic],
        *,
        name: str = "scene",
        colours: tuple[ColorInterp, ...] = (),
        names: tuple[str, ...] = (),
        tags: dict[str, str] | None = None,
        **profile: object,
    ) -> str:
        path = tmp_path / f"{name}.tif"
        count, height, width = pixels.shape
        options = {"crs": "EPSG:32633", "transform": HERE, "photometric": "MINISBLACK", **profile}
        with rasterio.open(
            path, "w", driver="GTiff", height=height, width=width, count=count, dtype=pixels.dtype, **options
        ) as raster:
            raster.write(pixels)
            if colours:
                raster.colorinterp = colours
            for number, text in enumerate(names, 1):
                raster.set_band_description(number, text)
            raster.update_tags(**(tags or {}))
        return str(path)

    return _write


def noise(count: int, dtype: str = "uint8") -> npt.NDArray[np.generic]:
    return RNG.integers(1, 250, (count, 60, 70)).astype(dtype)


def numbers(path: str, *bands: str, hints: Hints | None = None) -> list[int]:
    return [band.index for band in describe(path, bands=bands or None, hints=hints).bands]


def test_three_bands_that_say_nothing_are_red_green_blue(write: Write) -> None:
    assert numbers(write(noise(3))) == [1, 2, 3]


def test_colour_interpretation_finds_the_bands_in_any_order(write: Write) -> None:
    assert numbers(write(noise(4), colours=(ColorInterp.undefined, *RGB[::-1]))) == [4, 3, 2]


def test_names_go_before_colours_and_the_items_before_the_files(write: Write) -> None:
    path = write(noise(4), names=("Blue", "Green", "Red", "NIR"), colours=(*RGB, ColorInterp.undefined))
    assert numbers(path) == [3, 2, 1]
    hints = Hints(bands=tuple(AssetBand(frozenset({name})) for name in ("nir", "red", "green", "blue")))
    assert numbers(path, hints=hints) == [2, 3, 4]
    assert numbers(path, "nir", "red", "1") == [4, 3, 1]


def test_an_item_that_counts_other_bands_than_the_file_is_not_believed(
    write: Write, caplog: pytest.LogCaptureFixture
) -> None:
    hints = Hints(bands=tuple(AssetBand(frozenset({name})) for name in ("blue", "green")))
    assert numbers(write(noise(3)), hints=hints) == [1, 2, 3]
    assert "3 bands, its Item tells of 2" in caplog.text


@pytest.mark.parametrize(
    ("count", "colours", "bands", "message"),
    [
        (1, (), (), "scene.tif has 1 band; red, green and blue are needed"),
        (2, (), (), "scene.tif has 2 bands; red, green and blue are needed"),
        (5, (), (), "5 bands and does not say which are red, green and blue; name them with bands"),
        (1, (ColorInterp.palette,), (), "palette image; expand it first"),
        (3, (), ("1", "2"), "bands 1,2 must be three"),
        (3, (), ("1", "2", "4"), "band 4 must be between 1 and 3"),
        (4, (*RGB, ColorInterp.undefined), ("red", "green", "bleu"), "no band is named bleu; give a number or one of"),
    ],
)
def test_bands_that_make_no_picture_are_refused_by_name(
    write: Write, count: int, colours: tuple[ColorInterp, ...], bands: tuple[str, ...], message: str
) -> None:
    path = write(noise(count), colours=colours)
    with pytest.raises(SourceError, match=message):
        describe(path, bands=bands or None)


# rasterio says so too.
@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_a_raster_without_crs_or_place_is_refused(write: Write) -> None:
    with pytest.raises(SourceError, match="has no CRS; find out which it is and set it: rio edit-info"):
        describe(write(noise(3), crs=None))
    points = [GroundControlPoint(row, col, col, -row) for row, col in ((0, 0), (0, 60), (50, 0), (50, 60))]
    path = write(noise(3), name="gcps", crs="EPSG:4326", transform=None, gcps=points)
    with pytest.raises(SourceError, match="only 4 ground control points; rectify it: gdalwarp -tps"):
        describe(path)
    path = write(noise(3), name="nowhere", transform=None)
    with pytest.raises(SourceError, match="has no geotransform"):
        describe(path)


def test_complex_numbers_are_refused(write: Write) -> None:
    with pytest.raises(SourceError, match="holds complex64 numbers"):
        describe(write(noise(3, "complex64")))


def test_a_file_that_is_none_is_a_read_error(tmp_path: Path) -> None:
    empty = tmp_path / "empty.tif"
    empty.touch()
    with pytest.raises(ReadError, match=r"empty\.tif is empty .0 bytes."):
        describe(str(empty))
    text = tmp_path / "text.tif"
    text.write_text("<html>sign in</html>")
    with pytest.raises(ReadError, match=r"text\.tif cannot be read: .*not recognized"):
        describe(str(text))
    with pytest.raises(ReadError, match=r"missing\.tif: no such file"):
        describe(str(tmp_path / "missing.tif"))


def test_a_vrt_under_another_name_is_not_opened(write: Write, tmp_path: Path) -> None:
    path = write(noise(3))
    disguised = tmp_path / "disguised.tif"
    copy(path, tmp_path / "plain.vrt", driver="VRT")
    disguised.write_bytes((tmp_path / "plain.vrt").read_bytes())
    with pytest.raises(ReadError, match="disguised"):
        describe(str(disguised))
    assert describe(str(tmp_path / "plain.vrt")).shape == (60, 70)


@pytest.mark.parametrize("href", ["/vsicurl/http://127.0.0.1/a.tif", "ftp://host/a.tif", "WMS:http://host/?"])
def test_names_that_would_reach_around_the_rules_are_refused(href: str) -> None:
    with pytest.raises(SourceError):
        gdal_path(href)


def test_urls_become_gdals_paths() -> None:
    assert gdal_path("https://host/a.tif?sig=1") == "/vsicurl/https://host/a.tif?sig=1"
    assert gdal_path("s3://bucket/a.tif") == "/vsis3/bucket/a.tif"
    assert gdal_path("file:///data/a.tif") == "/data/a.tif" and not is_remote("C:/data/a.tif")


def test_a_failed_read_tells_the_url_without_its_signature() -> None:
    with pytest.raises(ReadError) as caught:
        open_raster("http://127.0.0.1:9/a.tif?sig=SECRET")
    assert "127.0.0.1:9/a.tif?..." in str(caught.value) and "SECRET" not in str(caught.value)


def test_alpha_is_believed_unless_it_looks_like_a_spectral_band(write: Write, caplog: pytest.LogCaptureFixture) -> None:
    picture = noise(3)
    alpha = np.full((1, 60, 70), 255, np.uint8)
    alpha[:, :20] = 0
    colours = (*RGB, ColorInterp.alpha)
    assert describe(write(np.concatenate([picture, alpha]), colours=colours)).alpha == Alpha(4, 255.0)
    assert describe(write(np.concatenate([picture, noise(1)]), colours=colours)).alpha is None
    assert "taken for a spectral band" in caplog.text
    named = Hints(bands=tuple(AssetBand(frozenset({name})) for name in ("red", "green", "blue", "nir")))
    assert describe(write(np.concatenate([picture, alpha]), colours=colours), hints=named).alpha is None


@pytest.mark.parametrize(
    ("dtype", "full"),
    [
        ("uint8", 255),
        ("uint8", 1),
        ("uint16", 65535),
        ("uint16", 255),
        ("uint16", 1023),
        ("float32", 1),
        ("float32", 255),
    ],
)
@pytest.mark.parametrize("where", ["corner", "all but a corner"])
def test_pixels_of_full_alpha_are_valid_whatever_number_full_is(
    write: Write, dtype: str, full: int, where: str
) -> None:
    whole = np.zeros((700, 700), bool)
    whole[600:, 600:] = True
    whole = whole if where == "corner" else ~whole
    picture = RNG.integers(1, 250, (3, 700, 700)).astype(dtype)
    alpha = (whole * full).astype(dtype)
    scene = describe(write(np.concatenate([picture, alpha[None]]), colours=(*RGB, ColorInterp.alpha)))
    grid = Grid(scene.crs, 0.6)
    with Mosaic([scene], grid) as mosaic:
        np.testing.assert_array_equal(mosaic.read(footprint_window(scene, grid)).valid, whole)


def test_dates_come_from_tags_and_are_none_without(write: Write, caplog: pytest.LogCaptureFixture) -> None:
    def date(**tags: str) -> dt.datetime | None:
        return describe(write(noise(3), tags=tags)).datetime

    assert date() is None
    assert date(TIFFTAG_DATETIME="2021:07:03 10:11:12") == dt.datetime(2021, 7, 3, 10, 11, 12, tzinfo=dt.UTC)
    both = date(TIFFTAG_DATETIME="2021:07:03 10:11:12", ACQUISITIONDATE="2020-06-01")
    assert both == dt.datetime(2020, 6, 1, tzinfo=dt.UTC)
    with caplog.at_level(logging.WARNING):
        assert date(TIFFTAG_DATETIME="2021:13:44 10:11:12") is None
    assert "is no date" in caplog.text


def test_radiometry_follows_profile_item_file_then_the_whole_scene(write: Write) -> None:
    dn = RNG.integers(200, 3000, (3, 60, 70)).astype(np.uint16)
    dn[:, :30] = 0
    path = write(dn, nodata=0)
    assert "stretch 2-98 %" in describe(path).radiometry.note
    low, high = np.percentile(dn[:, 30:], [2, 98])
    assert describe(path).radiometry.gain[0] == pytest.approx(1 / (high - low))
    item = Hints(bands=tuple(AssetBand(frozenset({name}), scale=1e-4) for name in ("red", "green", "blue")))
    assert "raster:scale" in describe(path, hints=item).radiometry.note
    asked = Hints(bands=item.bands, radiometry="reflectance-10000")
    assert "profile reflectance-10000" in describe(path, hints=asked).radiometry.note
    with pytest.raises(ConfigError, match="no radiometry profile"):
        describe(path, hints=Hints(radiometry="x"))
    with rasterio.open(path, "r+") as raster:
        raster.scales = (1e-4,) * 3
    assert describe(path).radiometry.gain[0] == pytest.approx(1e-4 / 0.3)


def test_nodata_is_the_files_else_the_items_else_nan_for_floats(write: Write) -> None:
    hints = Hints(bands=(AssetBand(nodata=7.0),) * 3)
    assert describe(write(noise(3), nodata=0), hints=hints).nodata == 0
    assert describe(write(noise(3)), hints=hints).nodata == 7
    assert describe(write(noise(3))).nodata is None
    floats = describe(write(noise(3, "float32")))
    assert floats.nodata is not None and math.isnan(floats.nodata)


def test_files_of_one_band_must_lie_on_the_same_pixels(write: Write) -> None:
    red, green = (write(noise(1), name=name) for name in ("red", "green"))
    blue = write(noise(1), name="blue", transform=Affine(0.6, 0, 500_004.3, 0, -0.6, 4_999_998))
    with pytest.raises(SourceError, match=r"blue\.tif does not lie on the pixels of .*red\.tif"):
        describe_separate((Band(red, 1), Band(green, 1), Band(blue, 1)), Hints())


def test_the_vertical_part_of_a_crs_is_left_away(write: Write) -> None:
    assert describe(write(noise(3), crs="EPSG:32633+5773")).crs == CRS("EPSG:32633")


@pytest.mark.parametrize(
    ("crs", "transform", "expected"),
    [
        ("EPSG:32633", Affine(0.6, 0, 500_000, 0, -0.6, 5_000_000), 0.6),
        # Web Mercator stretches by 1 / cos(latitude), here 60 degrees.
        ("EPSG:3857", Affine(1.2, 0, 1_669_792, 0, -1.2, 8_399_737), 0.6),
        # A degree of latitude is 110.6 km at the equator, one of longitude 111.3 km.
        ("EPSG:4326", Affine(1e-5, 0, 10, 0, -1e-5, 0.005), math.sqrt(1.10574 * 1.11320)),
    ],
)
def test_gsd_is_in_metres_on_the_ground_in_any_crs(crs: str, transform: Affine, expected: float) -> None:
    assert ground_gsd(CRS(crs), transform, (1000, 1000)) == pytest.approx(expected, rel=5e-3)


def test_gsd_far_from_the_models_warns_or_refuses(write: Write) -> None:
    def check(gsd: float, force: bool = False) -> list[str]:
        transform = Affine(gsd, 0, 500_000, 0, -gsd, 5_000_000)
        scene = describe(write(noise(3), transform=transform))
        return GsdPolicy().check([scene, scene], 0.6, force=force)

    assert [len(check(gsd)) for gsd in (0.15, 0.29, 0.3, 0.6, 1.2, 1.21, 3.0)] == [1, 1, 0, 0, 0, 1, 1]
    for gsd in (0.14, 3.1):
        with pytest.raises(SourceError, match=r"outside of 0\.15-3 m.*--force-gsd"):
            check(gsd)
        assert len(check(gsd, force=True)) == 1


def test_a_folder_is_its_rasters_by_name(write: Write, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="holds no raster"):
        expand_folder(str(tmp_path))
    paths = [write(noise(3), name=name) for name in ("b", "a", "c")]
    (tmp_path / "notes.txt").write_text("x")
    assert expand_folder(str(tmp_path)) == sorted(paths)


def test_a_files_url_is_decoded_and_may_name_this_machine(write: Write, tmp_path: Path) -> None:
    (tmp_path / "my dir #1").mkdir()
    path = Path(write(noise(3))).rename(tmp_path / "my dir #1" / "a.tif")
    assert "%20" in path.as_uri()
    for href in (path.as_uri(), path.as_uri().replace("file:///", "file://localhost/")):
        assert local_path(href) == path
        scene = describe(href)
        grid = Grid(scene.crs, 0.6)
        with Mosaic([scene], grid) as mosaic:
            assert mosaic.read(footprint_window(scene, grid)).valid.all()
    # In a plain path %20 is three characters of a name.
    assert local_path("/a%20b.tif") == Path("/a%20b.tif")
    with pytest.raises(SourceError, match="names the machine elsewhere"):
        local_path("file://elsewhere/a.tif")
