"""Jobs of a batch for tests that nobody ran: what their records say, and maps whose pixels are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import rasterio
from odc.geo.crs import CRS
from rasterio.enums import Resampling

from geodino.batch.mapped import Mapped
from geodino.grid import Grid, Window
from geodino.outputs.stage import NODATA

JOB = Mapped(
    rank=0, id="0", key="jobs/0", crs="EPSG:32610", gsd_m=0.5, window=(-8_000_000, 900_000, 40, 60),
    bounds_lonlat=(-123.0, 44.0, -122.9, 44.1), hashes={"canopy_height.tif": "ab"}, aoi_ha=1.0, mapped_ha=1.0,
    trees=None, density=(), scenes=(), licences=(), model="nano ab", versions={}, demonstration=True, seconds=1.0,
    started="2026-01-01T00:00:00+00:00",
)  # fmt: skip


def write_map(
    folder: Path,
    job: Mapped,
    values: npt.NDArray[np.float32],
    *,
    name: str = "canopy_height",
    overview: float | None = None,
) -> None:
    path = folder / job.key / f"{name}.tif"
    path.parent.mkdir(parents=True, exist_ok=True)
    geobox = Grid(CRS(job.crs), job.gsd_m).geobox(Window(*job.window))
    profile = {"driver": "GTiff", "count": 1, "dtype": "float32", "nodata": NODATA, "crs": job.crs, "tiled": True}
    height, width = values.shape
    with rasterio.open(path, "w", **profile, height=height, width=width, transform=geobox.affine) as raster:
        raster.write(values, 1)
        if overview is not None:
            raster.build_overviews([2, 4], Resampling.nearest)
    if overview is not None:
        # Overviews that say something else show who reads them.
        with rasterio.open(path, "r+", overview_level=1) as level:
            level.write(np.full(level.shape, overview, np.float32), 1)
