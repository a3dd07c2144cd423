"""The warp document says what GDAL understands."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from odc.geo.crs import CRS
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT

from geodino.grid import Grid
from geodino.settings import RESAMPLINGS
from geodino.sources import Mosaic
from geodino.sources.geotiff import describe
from geodino.sources.warp import footprint_window


@pytest.mark.parametrize("resampling", RESAMPLINGS)
def test_each_resampling_is_the_one_that_rasterio_calls_so(tmp_path: Path, resampling: str) -> None:
    path = tmp_path / "a.tif"
    with rasterio.open(
        path, "w", driver="GTiff", height=90, width=80, count=3, dtype="uint8", crs="EPSG:32633",
        transform=Affine(0.5, 0, 500_004, 0, -0.5, 4_999_998),
    ) as raster:  # fmt: skip
        raster.write(np.random.default_rng(0).integers(1, 255, (3, 90, 80), dtype=np.uint8))
    scene, grid = describe(str(path)), Grid(CRS("EPSG:32633"), 0.6)
    window = footprint_window(scene, grid)
    box = grid.geobox(window)
    with (
        rasterio.open(path) as raster,
        WarpedVRT(
            raster, crs="EPSG:32633", transform=box.transform, height=window.height, width=window.width,
            tolerance=1e-9, resampling=Resampling[resampling], dtype="float32", XSCALE=0.5 / 0.6, YSCALE=0.5 / 0.6,
        ) as warped,
    ):  # fmt: skip
        expected = scene.radiometry.apply(warped.read())
    with Mosaic([scene], grid, resampling=resampling) as mosaic:
        image = mosaic.read(window).image
    inner = (slice(None), slice(4, -4), slice(4, -4))
    np.testing.assert_allclose(image[inner], expected[inner], atol=1e-5)
