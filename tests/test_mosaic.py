"""The mosaic: pixels that depend on no window, true validity, scenes in order. Real small GeoTIFFs throughout."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import rasterio
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.crs import CRS
from rasterio.enums import ColorInterp, Resampling
from rasterio.vrt import WarpedVRT
from rasterio.warp import transform as move

from geodino.errors import ConfigError, ReadError, SourceError
from geodino.grid import Grid, Window
from geodino.sources.geotiff import Hints, describe, describe_separate
from geodino.sources.mosaic import Mosaic
from geodino.sources.pixels import PixelFiles
from geodino.sources.scene import Band, Scene, through
from geodino.sources.warp import footprint_window
from geodino.sources.warped import choose_level

Write = Callable[..., str]
UTM = "EPSG:32633"
GRID = Grid(CRS(UTM), 0.6)
# A multiple of 0.6 and of 0.5 m.
X, Y = 500_004.0, 4_999_998.0


@pytest.fixture(scope="module")
def write(tmp_path_factory: pytest.TempPathFactory) -> Write:
    """Writes a GeoTIFF and returns its path."""
    folder = tmp_path_factory.mktemp("scenes")

    def _write(
        name: str,
        pixels: npt.NDArray[np.generic],
        *,
        gsd: float = 0.6,
        transform: Affine | None = None,
        crs: str = UTM,
        mask: npt.NDArray[np.uint8] | None = None,
        colours: tuple[ColorInterp, ...] = (),
        overviews: tuple[int, ...] = (),
        **profile: object,
    ) -> str:
        path = folder / f"{name}.tif"
        count, height, width = pixels.shape
        where = transform or Affine(gsd, 0, X, 0, -gsd, Y)
        options = {"tiled": True, "blockxsize": 64, "blockysize": 64, "photometric": "MINISBLACK", **profile}
        with (
            rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
            rasterio.open(
                path, "w", driver="GTiff", height=height, width=width, count=count, dtype=pixels.dtype, crs=crs,
                transform=where, **options,
            ) as raster,
        ):  # fmt: skip
            raster.write(pixels)
            if colours:
                raster.colorinterp = colours
            if mask is not None:
                raster.write_mask(mask)
            if overviews:
                raster.build_overviews(list(overviews), Resampling.average)
        return str(path)

    return _write


def noise(*shape: int, seed: int = 0, low: int = 1, high: int = 255, dtype: str = "uint8") -> npt.NDArray[np.generic]:
    return np.random.default_rng(seed).integers(low, high, shape).astype(dtype)


def whole(scene: Scene, grid: Grid = GRID) -> Window:
    return footprint_window(scene, grid)


@pytest.fixture(scope="module")
def scenes(write: Write) -> dict[str, Scene]:
    """One scene for each way onto the grid."""
    lon, lat = (value[0] for value in move(UTM, "EPSG:4326", [X], [Y]))
    cos, sin = 0.6 * math.cos(0.5), 0.6 * math.sin(0.5)
    turned = Affine(cos, sin, X, sin, -cos, Y)
    return {
        "on the grid": describe(write("same", noise(3, 200, 220))),
        "half a metre": describe(write("half", noise(3, 240, 200), gsd=0.5)),
        "another zone": describe(write("zone", noise(3, 240, 200), gsd=0.5, crs="EPSG:25832",
                                       transform=Affine(0.5, 0, 966_000, 0, -0.5, 5_010_000))),
        "degrees": describe(write("degrees", noise(3, 230, 170, high=9999, dtype="uint16"), crs="EPSG:4326",
                                  transform=Affine(7e-6, 0, lon, 0, -5e-6, lat))),
        "turned": describe(write("turned", noise(3, 150, 200), transform=turned)),
        "south up": describe(write("south_up", noise(3, 150, 200), transform=Affine(0.5, 0, X, 0, 0.5, Y - 75))),
        "overviews": describe(write("overviews", noise(3, 701, 805), gsd=0.15, overviews=(2, 4, 8))),
        "coarse": describe(write("coarse", noise(3, 90, 80), gsd=1.2)),
    }  # fmt: skip


KINDS = ["on the grid", "half a metre", "another zone", "degrees", "turned", "south up", "overviews", "coarse"]


@pytest.mark.parametrize("kind", KINDS)
def test_any_window_shows_the_pixels_of_the_whole_whoever_asks(kind: str, scenes: dict[str, Scene]) -> None:
    scene = scenes[kind]
    extent = whole(scene)
    with Mosaic([scene], GRID) as mosaic, ThreadPoolExecutor(8) as threads:
        everything = mosaic.read(extent)
        assert 0.3 < everything.valid.mean() <= 1
        rng = np.random.default_rng(1)
        edges = [np.sort(rng.integers(-20, side + 20, (100, 2))) for side in extent.shape]
        windows = [
            Window(extent.row + top, extent.col + left, bottom - top + 1, right - left + 1)
            for (top, bottom), (left, right) in zip(*(edge.tolist() for edge in edges), strict=True)
        ]
        for pixels in threads.map(mosaic.read, windows):
            shared = pixels.window.intersection(extent)
            if shared.empty:
                assert not pixels.valid.any()
                continue
            here, there = shared.slices_in(pixels.window), shared.slices_in(extent)
            np.testing.assert_array_equal(pixels.image[:, *here], everything.image[:, *there])
            np.testing.assert_array_equal(pixels.valid[here], everything.valid[there])
            assert pixels.valid.sum() == pixels.valid[here].sum()


@settings(max_examples=25)
@given(data=st.data())
def test_any_split_of_a_window_gives_the_same_pixels(scenes: dict[str, Scene], data: st.DataObject) -> None:
    scene = scenes[data.draw(st.sampled_from(KINDS))]
    extent = whole(scene)
    cut_row = data.draw(st.integers(1, extent.height - 1))
    cut_col = data.draw(st.integers(1, extent.width - 1))
    rows = [(extent.row, cut_row), (extent.row + cut_row, extent.height - cut_row)]
    cols = [(extent.col, cut_col), (extent.col + cut_col, extent.width - cut_col)]
    with Mosaic([scene], GRID) as mosaic:
        parts = [[mosaic.read(Window(row, col, height, width)) for col, width in cols] for row, height in rows]
    with Mosaic([scene], GRID) as fresh:
        everything = fresh.read(extent)
    np.testing.assert_array_equal(np.block([[part.image for part in row] for row in parts]), everything.image)
    np.testing.assert_array_equal(np.block([[part.valid for part in row] for row in parts]), everything.valid)


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_are_those_of_gdals_own_warp_of_the_whole_raster(kind: str, scenes: dict[str, Scene]) -> None:
    scene = scenes[kind]
    window = whole(scene)
    level = choose_level(scene, PixelFiles(), GRID.gsd)
    box = GRID.geobox(window)
    open_options = {} if level.overview is None else {"overview_level": level.overview}
    with rasterio.open(scene.bands[0].href, **open_options) as raster:
        (gain_x, gain_y) = _grid_pixels_per_source_pixel(scene, raster.transform, raster.shape)
        with WarpedVRT(
            raster, crs=UTM, transform=box.transform, height=window.height, width=window.width, tolerance=1e-9,
            resampling=Resampling.cubic, dtype="float32", add_alpha=True, XSCALE=gain_x, YSCALE=gain_y,
        ) as warped:  # fmt: skip
            expected = warped.read()
    with Mosaic([scene], GRID) as mosaic:
        pixels = mosaic.read(window)
    same = pixels.valid == (expected[3] > 127)
    # GDAL's own differs from itself on the outermost pixels, by where PROJ's rounding puts the edge.
    assert (~same).sum() <= 2
    picture = scene.radiometry.apply(expected[:3])
    np.testing.assert_allclose(pixels.image[:, pixels.valid & same], picture[:, pixels.valid & same], atol=1e-5)


def _grid_pixels_per_source_pixel(scene: Scene, transform: Affine, shape: tuple[int, int]) -> tuple[float, float]:
    """By finite differences in the source's pixels, unlike the code under test, which starts on the grid."""
    height, width = shape
    spots = [
        through(transform, *spot)
        for spot in ((width / 2, height / 2), (width / 2 + 1, height / 2), (width / 2, height / 2 + 1))
    ]
    xs, ys = move(scene.crs.to_wkt(), UTM, *(list(values) for values in zip(*spots, strict=True)))
    jacobian = np.array([[xs[1] - xs[0], xs[2] - xs[0]], [ys[1] - ys[0], ys[2] - ys[0]]]) / GRID.gsd
    cols, rows = np.linalg.norm(np.linalg.inv(jacobian), axis=1)
    return 1 / cols, 1 / rows


def test_a_scene_on_the_grid_keeps_its_pixels_byte_for_byte(write: Write) -> None:
    for dtype, high in (("uint8", 256), ("uint16", 65536)):
        dn = noise(3, 130, 150, low=0, high=high, dtype=dtype)
        scene = describe(write(f"exact_{dtype}", dn), hints=Hints(radiometry="uint16-full"))
        with Mosaic([scene], GRID) as mosaic:
            pixels = mosaic.read(whole(scene))
        np.testing.assert_array_equal(pixels.image, scene.radiometry.apply(dn))
        assert pixels.valid.all() and whole(scene).shape == (130, 150)


def test_a_south_up_raster_shows_the_same_ground(write: Write) -> None:
    dn = noise(3, 120, 140)
    north = describe(write("north", dn))
    south_up = Affine(0.6, 0, X, 0, 0.6, Y - 120 * 0.6)
    south = describe(write("south", np.ascontiguousarray(dn[:, ::-1]), transform=south_up))
    with Mosaic([north], GRID) as one, Mosaic([south], GRID) as other:
        np.testing.assert_array_equal(one.read(whole(north)).image, other.read(whole(north)).image)


HOLE = (slice(0, 40), slice(0, 50))


def _with_hole(write: Write, how: str, gsd: float) -> Scene:
    """A raster whose north-western 40 x 50 pixels are missing, in each of the ways files have."""
    dn = noise(3, 160, 180, seed=3)
    present = np.full(dn.shape[1:], 255, np.uint8)
    present[HOLE] = 0
    name = f"hole_{how}_{gsd}".replace(" ", "_")
    rgb = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
    if how == "mask band":
        return describe(write(name, dn, gsd=gsd, mask=present, overviews=(2, 4)))
    if how == "alpha":
        pixels = np.concatenate([dn, present[None]])
        return describe(write(name, pixels, gsd=gsd, colours=(*rgb, ColorInterp.alpha), overviews=(2, 4)))
    if how == "nodata 0":
        dn[:, *HOLE] = 0
        return describe(write(name, dn, gsd=gsd, nodata=0, overviews=(2, 4)))
    values = dn.astype(np.float32)
    values[:, *HOLE] = np.nan if "nan" in how else -3.4e38
    nodata = {"nan": None, "nan in header": np.nan, "rounded nodata": -3.4e38}[how]
    return describe(write(name, values, gsd=gsd, nodata=nodata, overviews=(2, 4)))


@pytest.mark.parametrize("gsd", [0.6, 0.5, 0.25])
@pytest.mark.parametrize("how", ["mask band", "alpha", "nodata 0", "nan", "nan in header", "rounded nodata"])
def test_missing_pixels_are_invalid_however_the_file_says_it(write: Write, how: str, gsd: float) -> None:
    scene = _with_hole(write, how, gsd)
    window = whole(scene)
    with Mosaic([scene], GRID) as mosaic:
        pixels = mosaic.read(window)
    ratio = gsd / 0.6
    rows, cols = (np.arange(side) + 0.5 for side in window.shape)
    inside = (rows[:, None] < 40 * ratio) & (cols < 50 * ratio)
    beyond = (rows[:, None] > 160 * ratio) | (cols > 180 * ratio)
    # Within a pixel of the hole's edge either answer is fair, but on the grid the edge is exact.
    slack = 0 if gsd == 0.6 else 1
    near = (np.abs(rows[:, None] - 40 * ratio) < slack) | (np.abs(cols - 50 * ratio) < slack) | beyond
    np.testing.assert_array_equal(pixels.valid[~near], ~inside[~near])
    assert not pixels.image[:, ~pixels.valid].any() and (pixels.scene > 0).sum() == pixels.valid.sum()


@pytest.mark.parametrize("gsd", [0.5, 0.7])
def test_the_number_in_a_hole_does_not_bleed_into_its_neighbours(write: Write, gsd: float) -> None:
    dn = np.full((3, 90, 90), 200, np.uint8)
    present = np.full((90, 90), 255, np.uint8)
    present[30:50, 30:50] = 0
    dn[:, 30:50, 30:50] = 3
    masked = describe(write(f"bleed_mask_{gsd}", dn, gsd=gsd, mask=present))
    nodata = describe(write(f"bleed_nodata_{gsd}", dn, gsd=gsd, nodata=3))
    for scene in (masked, nodata):
        with Mosaic([scene], GRID) as mosaic:
            pixels = mosaic.read(whole(scene))
        assert not pixels.valid.all()
        np.testing.assert_allclose(pixels.image[:, pixels.valid], 200 / 255, atol=1e-6)


def test_a_dark_pixel_with_one_band_at_nodata_is_no_hole(write: Write) -> None:
    dn = noise(3, 64, 64)
    dn[2, 30, 30] = 0
    dn[:, 10, 10] = 0
    scene = describe(write("dark", dn, nodata=0))
    with Mosaic([scene], GRID) as mosaic:
        valid = mosaic.read(whole(scene)).valid
    assert valid[30, 30] and not valid[10, 10] and (~valid).sum() == 1


def test_a_pixel_that_is_nan_in_one_band_is_invalid(write: Write) -> None:
    dn = noise(3, 64, 64).astype(np.float32)
    dn[1, 30, 30] = np.nan
    scene = describe(write("nan_one_band", dn))
    with Mosaic([scene], GRID) as mosaic:
        pixels = mosaic.read(whole(scene))
    assert not pixels.valid[30, 30] and np.isfinite(pixels.image).all()


def test_a_scene_without_a_valid_pixel_is_valid_nowhere(write: Write) -> None:
    scene = describe(write("void", np.zeros((3, 64, 64), np.uint16), nodata=0))
    with Mosaic([scene], GRID) as mosaic:
        assert not mosaic.read(whole(scene)).valid.any()


def test_bands_in_a_file_each_are_the_bands_of_one_file(write: Write) -> None:
    dn = noise(3, 150, 140, seed=5)
    dn[:, :20, :30] = 0
    together = describe(write("together", dn, gsd=0.25, nodata=0, overviews=(2, 4)))
    files = [write(f"band{place}", dn[place][None], gsd=0.25, nodata=0, overviews=(2, 4)) for place in range(3)]
    red, green, blue = (Band(path, 1) for path in files)
    apart = describe_separate((red, green, blue), Hints())
    with Mosaic([together], GRID) as one, Mosaic([apart], GRID) as three:
        expected, found = one.read(whole(together)), three.read(whole(together))
    np.testing.assert_array_equal(found.image, expected.image)
    np.testing.assert_array_equal(found.valid, expected.valid)
    assert 0 < found.valid.sum() < found.valid.size


def test_extra_bands_do_not_change_the_picture(write: Write) -> None:
    dn = noise(4, 100, 100)
    colours = (ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.undefined)
    four = describe(write("four", dn, colours=colours, gsd=0.5))
    three = describe(write("three", dn[:3], gsd=0.5))
    with Mosaic([four], GRID) as one, Mosaic([three], GRID) as other:
        np.testing.assert_array_equal(one.read(whole(four)).image, other.read(whole(four)).image)


def test_the_first_scene_wins_and_later_ones_fill_its_holes(write: Write) -> None:
    first = noise(3, 80, 80, seed=1)
    first[:, 20:40, 20:40] = 0
    above = describe(write("above", first, nodata=0))
    below = describe(write("below", noise(3, 120, 120, seed=2)))
    with Mosaic([above, below], GRID) as mosaic:
        pixels = mosaic.read(whole(below))
    expected = np.full((120, 120), 2, np.uint16)
    expected[:80, :80] = 1
    expected[20:40, 20:40] = 2
    np.testing.assert_array_equal(pixels.scene, expected)
    with Mosaic([below], GRID) as alone:
        hole = alone.read(whole(below)).image[:, 20:40, 20:40]
    np.testing.assert_array_equal(pixels.image[:, 20:40, 20:40], hole)


def test_beyond_all_footprints_a_window_is_empty_and_not_covered(scenes: dict[str, Scene]) -> None:
    extent = whole(scenes["turned"])
    with Mosaic([scenes["turned"]], GRID) as mosaic:
        beside = Window(extent.row, extent.col_stop, 32, 32)
        assert not mosaic.covers(beside) and not mosaic.read(beside).valid.any()
        # In the bounds of the turned raster, but outside of its outline.
        corner = Window(extent.row, extent.col, 8, 8)
        assert not mosaic.covers(corner) and not mosaic.read(corner).valid.any()
        assert mosaic.covers(Window(extent.row + extent.height // 2, extent.col + extent.width // 2, 8, 8))


def test_many_scenes_are_read_with_few_open_files(write: Write) -> None:
    dn = noise(3, 32, 32)
    row = [
        describe(write(f"strip{place}", dn, transform=Affine(0.6, 0, X + place * 19.2, 0, -0.6, Y)))
        for place in range(24)
    ]
    with Mosaic(row, GRID) as mosaic:
        pixels = mosaic.read(whole(row[0]).union(whole(row[-1])))
    assert pixels.valid.all() and np.unique(pixels.scene).tolist() == list(range(1, 25))
    np.testing.assert_array_equal(pixels.image, np.tile(row[0].radiometry.apply(dn), (1, 1, 24)))


def test_the_overview_is_the_coarsest_that_keeps_the_grids_detail(scenes: dict[str, Scene]) -> None:
    scene = scenes["overviews"]
    levels = {gsd: choose_level(scene, PixelFiles(), gsd).overview for gsd in (0.2, 0.3, 0.59, 0.6, 1.0, 5.0)}
    assert levels == {0.2: None, 0.3: 0, 0.59: 0, 0.6: 1, 1.0: 1, 5.0: 2}


def test_a_truncated_file_is_named_with_its_window(write: Write, tmp_path: Path) -> None:
    content = Path(write("full", noise(3, 300, 300))).read_bytes()
    cut = tmp_path / "cut.tif"
    cut.write_bytes(content[: len(content) // 2])
    scene = describe(str(cut))
    named = r"scene cut \(.*cut\.tif\), x \d+ to \d+, y \d+ to \d+: .*cannot be"
    with Mosaic([scene], GRID) as mosaic, pytest.raises(ReadError, match=named):
        mosaic.read(whole(scene))


def test_a_file_that_is_gone_is_a_read_error_and_comes_back(write: Write) -> None:
    path = Path(write("gone", noise(3, 64, 64)))
    scene = describe(str(path))
    hidden = path.rename(path.with_suffix(".hidden"))
    with Mosaic([scene], GRID) as mosaic:
        with pytest.raises(ReadError, match="scene gone"):
            mosaic.read(whole(scene))
        hidden.rename(path)
        assert mosaic.read(whole(scene)).valid.all()


def test_scenes_travel_to_other_processes(scenes: dict[str, Scene]) -> None:
    scene = scenes["degrees"]
    copy = pickle.loads(pickle.dumps(scene))
    assert copy == scene and copy.summary() == scene.summary()


def test_what_makes_no_mosaic_is_refused(scenes: dict[str, Scene]) -> None:
    with pytest.raises(SourceError, match="1 to 65535 scenes, not 0"):
        Mosaic([], GRID)
    with pytest.raises(ConfigError, match="resampling cubist must be one of nearest"):
        Mosaic([scenes["coarse"]], GRID, resampling="cubist")


@settings(max_examples=40)
@given(data=st.data())
def test_a_window_that_is_not_covered_has_no_pixel(scenes: dict[str, Scene], data: st.DataObject) -> None:
    scene = scenes[data.draw(st.sampled_from(KINDS))]
    extent = whole(scene).padded(6)
    row = data.draw(st.integers(extent.row, extent.row_stop))
    col = data.draw(st.integers(extent.col, extent.col_stop))
    window = Window(row, col, data.draw(st.integers(1, 12)), data.draw(st.integers(1, 12)))
    with Mosaic([scene], GRID) as mosaic:
        assert mosaic.covers(window) or not mosaic.read(window).valid.any()
