"""The picture of a run: its imagery and heights brought onto one coarser grid, small enough to look at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import rasterio
import shapely
from rasterio.enums import Resampling
from rasterio.warp import reproject

from geodino.errors import GeodinoError
from geodino.grid import Grid, Window
from geodino.models.as_run import ModelAsRun
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
# More are a carpet.
_MOST_TREES = 20_000


def draw_preview(plan: Plan, model: ModelAsRun, heights: Path | None, path: Path, *, trees: Path | None = None) -> None:
    """Draw `path` (PNG) from the finished files and the imagery's overviews; memory is bounded by the picture.

    Parameters
    ----------
    heights
        The COG of heights, if the run made one.
    trees
        The GeoParquet file of trees, if the run made one; of very many only some are drawn, and the picture says so.

    Raises one of PREVIEW_FAULTS where the imagery cannot be read again or the picture not be drawn.
    """
    coarser = max(1, -(-max(plan.extent.shape) // _LARGEST_PX))
    grid = Grid(plan.grid.crs, plan.grid.gsd * coarser)
    window = grid.window_over(plan.grid.bounds(plan.extent))
    with Mosaic(plan.scenes, grid, resampling="average" if coarser > 1 else plan.spec.resampling) as mosaic:
        pixels = mosaic.read(window)
    points, note = (np.empty((0, 2)), "") if trees is None else _points(trees, grid, window)
    preview = Preview(
        rgb=pixels.image,
        valid=pixels.valid,
        height=None if heights is None else _read_on(heights, grid, window),
        gsd_m=grid.gsd,
        title=f"{plan.spec.title}, {plan.aoi.area_ha:,.2f} ha",
        outlines=_outlines(plan, grid, window),
        caption=_caption(plan, model),
        demonstration=model.row.demonstration,
        trees=None if trees is None else points,
        trees_note=note,
    )
    render_preview(preview, path)


def _caption(plan: Plan, model: ModelAsRun) -> tuple[str, ...]:
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


def _points(trees: Path, grid: Grid, window: Window) -> tuple[npt.NDArray[np.float64], str]:
    """Trees as (col, row) of the picture, (N, 2), and what is to be said of them."""
    left, _, _, top = grid.bounds(window)
    file = pq.ParquetFile(trees)
    total = file.metadata.num_rows
    every = max(1, -(-total // _MOST_TREES))
    parts = []
    for rows in file.iter_batches(columns=["bbox"]):
        corners = rows.column("bbox").flatten()
        parts.append(np.column_stack([corners[0].to_numpy(), corners[1].to_numpy()])[::every])
    points = np.concatenate(parts) if parts else np.empty((0, 2))
    note = f"{total:,} trees" if every == 1 else f"{total:,} trees, one in {every} drawn"
    return (points - (left, top)) / (grid.gsd, -grid.gsd), note


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
