"""Made maps for the tests of zonal statistics, and zones given in their pixels."""

from __future__ import annotations

from pathlib import Path

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import rasterio
import shapely
from affine import Affine
from scipy import ndimage

from geodino.zonal.zones import Zones

WEST, NORTH, GSD = 493_800.0, 4_878_600.0, 0.6
CRS = "EPSG:26910"
PIXEL_HA = GSD**2 / 1e4

Floats = npt.NDArray[np.float64]


def made_heights(rows: int, cols: int, seed: int = 0) -> Floats:
    """Clumps of trees on bare ground, on the steps of 1/8 m that geodino's maps have."""
    rough = ndimage.gaussian_filter(np.random.default_rng(seed).normal(0, 1, (rows, cols)), 4)
    return np.round(np.clip(rough / rough.std() * 8 + 3, 0, 60) * 8) / 8


def write_map(path: Path, values: npt.NDArray[np.generic], *, unit: str = "m", **more: object) -> Path:
    """A raster of one band with its north-west corner at (WEST, NORTH), nodata where not finite."""
    stored = np.where(np.isfinite(values), values, -9999).astype(np.float32)
    height, width = stored.shape
    transform = Affine(GSD, 0, WEST, 0, -GSD, NORTH)
    profile = {"driver": "GTiff", "dtype": "float32", "count": 1, "height": height, "width": width, "crs": CRS}
    with rasterio.open(path, "w", **profile | {"transform": transform, "nodata": -9999} | more) as target:
        target.write(stored, 1)
        if unit:
            target.units = (unit,)
    return path


def ground_of(shape: shapely.Geometry) -> shapely.Geometry:
    """A shape given in pixels (columns right, rows down) on the map's ground."""
    return shapely.transform(shape, lambda xy: xy * (GSD, -GSD) + (WEST, NORTH))


def box(row: float, col: float, height: float, width: float) -> shapely.Geometry:
    """A rectangle of pixels on the map's ground."""
    return ground_of(shapely.box(col, row, col + width, row + height))


def zones(*shapes: shapely.Geometry, crs: str = CRS, **columns: object) -> Zones:
    """Zones as `read_zones` gives them."""
    frame = gpd.GeoDataFrame(columns, geometry=list(shapes), crs=CRS).to_crs(crs)
    return Zones(frame, np.arange(1, len(frame) + 1), "made")
