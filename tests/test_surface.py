"""Maps read by window from GeoTIFFs: where they lie, what is nodata, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st
from odc.geo.crs import CRS
from rasterio import Affine

from geodino.errors import ConfigError, InputError, ReadError
from geodino.grid import Grid, Window
from geodino.outputs.stage import StagedRaster
from geodino.surface import RasterSurface

HEIGHTS = np.arange(60, dtype=np.float32).reshape(6, 10)


def written(path: Path, *, transform: Affine, values: np.ndarray = HEIGHTS, **profile: object) -> Path:
    values = values if values.ndim == 3 else values[None]
    shape = {"count": values.shape[0], "height": values.shape[1], "width": values.shape[2], "dtype": values.dtype}
    profile = {"crs": "EPSG:32610", "nodata": None} | profile
    with rasterio.open(path, "w", driver="GTiff", transform=transform, **shape, **profile) as target:
        target.write(values)
    return path


def at(west: float, north: float, gsd: float = 0.6) -> Affine:
    return Affine(gsd, 0, west, 0, -gsd, north)


@pytest.fixture(scope="module")
def hung(tmp_path_factory: pytest.TempPathFactory) -> RasterSurface:
    """Column 723134 and row -8000000 of the grid, with the rounding noise of a file's transform."""
    path = written(tmp_path_factory.mktemp("hung") / "a.tif", transform=at(433880.40000000363, 4_800_000.0))
    return RasterSurface(path, names=("height",))


def test_a_file_on_the_grid_has_the_grids_rows_and_columns(hung: RasterSurface) -> None:
    assert hung.origin == (0.0, 0.0) and hung.grid == Grid(CRS("EPSG:32610"), 0.6)
    assert hung.extent == Window(-8_000_000, 723_134, 6, 10)


@given(row=st.integers(-9, 9), col=st.integers(-12, 12), height=st.integers(0, 20), width=st.integers(0, 25))
def test_a_window_is_the_files_pixels_and_nan_beyond(
    hung: RasterSurface, row: int, col: int, height: int, width: int
) -> None:
    window = Window(hung.extent.row + row, hung.extent.col + col, height, width)
    wanted = np.pad(HEIGHTS, 40, constant_values=np.nan)[40 + row : 40 + row + height, 40 + col : 40 + col + width]
    np.testing.assert_array_equal(hung.read(window, ("height",)), wanted[None])


def test_what_a_run_has_staged_is_read_as_it_was_written(tmp_path: Path) -> None:
    grid, extent = Grid(CRS("EPSG:32719"), 1.2), Window(-64, 32, 32, 64)
    stage = StagedRaster.create(tmp_path / "s.tif", grid, extent, block=32, names=("heat", "right"), quantum=None)
    values = np.random.default_rng(0).normal(size=(2, 32, 32)).astype(np.float32)
    values[0, :5] = np.nan
    stage.write(Window(-64, 64, 32, 32), values)
    stage.close()
    with RasterSurface(tmp_path / "s.tif") as surface:
        assert (surface.grid, surface.extent, surface.names) == (grid, extent, ("heat", "right"))
        found = surface.read(extent, ("right", "heat"))
    np.testing.assert_array_equal(found[::-1, :, 32:], values)
    assert np.isnan(found[:, :, :32]).all()


def test_a_file_off_the_grid_hangs_on_its_own_corner(tmp_path: Path) -> None:
    path = written(tmp_path / "a.tif", transform=at(500_000.3, 4_000_000.0, gsd=1.0))
    with RasterSurface(path, names=("height",)) as surface:
        assert (surface.origin, surface.extent) == ((500_000.3, 4_000_000.0), Window(0, 0, 6, 10))
        np.testing.assert_array_equal(surface.read(surface.extent, ("height",))[0], HEIGHTS)


def test_nodata_is_what_the_file_says_and_what_is_not_finite(tmp_path: Path) -> None:
    values = HEIGHTS.copy()
    values[0, 0], values[1, 1], values[2, 2] = -9999, np.inf, np.nan
    path = written(tmp_path / "a.tif", transform=at(0.6, 0.0), values=values, nodata=-9999)
    with RasterSurface(path, names=("height",)) as surface:
        found = surface.read(surface.extent, ("height",))[0]
    assert np.argwhere(np.isnan(found)).tolist() == [[0, 0], [1, 1], [2, 2]]


def test_a_mask_and_a_scale_of_whole_numbers_are_applied(tmp_path: Path) -> None:
    path = written(tmp_path / "a.tif", transform=at(0.0, 0.0), values=np.full((2, 4, 5), 30, np.uint8))
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as target:
        target.scales, target.offsets, target.descriptions = (0.5, 1.0), (1.0, 0.0), ("height", None)
        mask = np.full((4, 5), 255, np.uint8)
        mask[3] = 0
        target.write_mask(mask)
    with RasterSurface(path) as surface:
        assert surface.names == ("height", "band 2")
        found = surface.read(surface.extent, surface.names)
    np.testing.assert_array_equal(found[0], [[16.0] * 5] * 3 + [[np.nan] * 5])
    np.testing.assert_array_equal(found[1, :3], 30.0)


@pytest.mark.parametrize(
    ("transform", "profile", "match"),
    [
        (at(0, 0), {"crs": None}, "has no CRS"),
        (Affine(0.6, 0.1, 0, 0, -0.6, 0), {}, "not square and north up"),
        (Affine(0.6, 0, 0, 0, 0.6, 0), {}, "not square and north up"),
        (Affine(0.6, 0, 0, 0, -0.61, 0), {}, "not square and north up"),
        (Affine(1e-5, 0, 10, 0, -1e-5, 50), {"crs": "EPSG:4326"}, "EPSG:4326, which is not in metres"),
        (at(0, 6_000_000), {"crs": "EPSG:3857"}, "EPSG:3857, which is not in metres true to 0.5%"),
        (at(2_000_000, 1_000_000), {"crs": "EPSG:2263"}, "EPSG:2263, which is not in metres"),
    ],
)
def test_a_raster_whose_cells_are_no_metres_is_refused(
    tmp_path: Path, transform: Affine, profile: dict[str, object], match: str
) -> None:
    path = written(tmp_path / "a.tif", transform=transform, **profile)
    with pytest.raises(InputError, match=match):
        RasterSurface(path)


def test_what_is_no_geotiff_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_text("not a raster")
    with pytest.raises(ReadError, match=r"a\.tif cannot be read as a GeoTIFF"):
        RasterSurface(tmp_path / "a.tif")
    with pytest.raises(ReadError, match=r"none\.tif cannot be read as a GeoTIFF"):
        RasterSurface(tmp_path / "none.tif")


def test_a_damaged_file_is_an_error_and_no_nodata(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    path = written(tmp_path / "a.tif", transform=at(0, 0), values=noise, compress="deflate")
    content = bytearray(path.read_bytes())
    content[2000:9000] = bytes(7000)
    path.write_bytes(content)
    with RasterSurface(path) as surface, pytest.raises(ReadError, match=r"a\.tif cannot be read"):
        surface.read(surface.extent, surface.names)


def test_names_must_fit_the_bands(hung: RasterSurface) -> None:
    with pytest.raises(ConfigError, match="has 1 bands: heat, right must be one name a band"):
        RasterSurface(hung.path, names=("heat", "right"))
    with pytest.raises(ConfigError, match="has no band heat: it has height"):
        hung.read(hung.extent, ("heat",))
