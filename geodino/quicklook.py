"""The picture of a run: its imagery and heights brought onto one coarser grid, small enough to look at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import rasterio
import shapely
from rasterio.enums import Resampling
from rasterio.warp import reproject

from geodino.errors import GeodinoError
from geodino.grid import Grid, Window
from geodino.models import Model
from geodino.outputs.preview import Preview, render_preview
from geodino.plan import Plan
from geodino.sources import Mosaic
from geodino.sources.raster import GDAL_ERRORS
from geodino.sources.scene import dates

# What reading and drawing raise; matplotlib nearly anything, of a broken font or a configuration of the user's.
PREVIEW_FAULTS = (
    GeodinoError,
    *GDAL_ERRORS,
    ArithmeticError,
    AttributeError,
    ImportError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
)
# As many pixels as the larger side of a panel can show.
_LARGEST_PX = 1500


def draw_preview(plan: Plan, model: Model, heights: Path, path: Path) -> None:
    """Draw `path` (PNG) from the finished height COG and the imagery's overviews; memory is bounded by the picture.

    Raises one of PREVIEW_FAULTS where the imagery cannot be read again or the picture not be drawn.
    """
    coarser = max(1, -(-max(plan.extent.shape) // _LARGEST_PX))
    grid = Grid(plan.grid.crs, plan.grid.gsd * coarser)
    window = grid.window_over(plan.grid.bounds(plan.extent))
    with Mosaic(plan.scenes, grid, resampling="average" if coarser > 1 else plan.spec.resampling) as mosaic:
        pixels = mosaic.read(window)
    preview = Preview(
        rgb=pixels.image,
        valid=pixels.valid,
        height=_read_on(heights, grid, window),
        gsd_m=grid.gsd,
        title=f"{plan.spec.title}, {plan.aoi.area_ha:,.2f} ha",
        outlines=_outlines(plan, grid, window),
        caption=_caption(plan, model),
        demonstration=model.row.demonstration,
    )
    render_preview(preview, path)


def _caption(plan: Plan, model: Model) -> tuple[str, ...]:
    ids = [scene.id for scene in plan.scenes]
    named = ", ".join(ids[:3]) + (f" and {len(ids) - 3} more" if len(ids) > 3 else "")
    licences = sorted({licence for scene in plan.scenes if (licence := scene.facts.licence)})
    return (
        f"imagery: {named}; {dates(plan.scenes)}" + (f"; {', '.join(licences)}" if licences else ""),
        f"model: {model.name} ({model.weights_sha256[:8]}), {plan.grid.gsd:g} m a pixel, {plan.grid.crs}",
    )


def _outlines(plan: Plan, grid: Grid, window: Window) -> tuple[npt.NDArray[np.float64], ...]:
    """The AOI's rings in pixels of the picture, cut to it."""
    left, _, _, top = grid.bounds(window)
    shown = shapely.intersection(plan.geometry, shapely.box(*grid.bounds(window.padded(2))))
    rings = shapely.get_rings(shapely.get_parts(shown))
    return tuple((shapely.get_coordinates(ring) - (left, top)) / (grid.gsd, -grid.gsd) for ring in rings)


def _read_on(heights: Path, grid: Grid, window: Window) -> npt.NDArray[np.float32]:
    """Heights (H, W) on a grid, each pixel the mean of the valid heights below it; NaN where there is none."""
    out = np.full(window.shape, np.nan, np.float32)
    geobox = grid.geobox(window)
    with rasterio.open(heights) as source:
        reproject(
            rasterio.band(source, 1),
            out,
            dst_transform=geobox.transform,
            dst_crs=source.crs,
            dst_nodata=np.nan,
            resampling=Resampling.average,
            warp_mem_limit=64,
        )
    return out
