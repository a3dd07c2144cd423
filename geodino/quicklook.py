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
from geodino.outputs.preview import Area, Preview, render_preview
from geodino.plan import Plan
from geodino.sheet import Sheet, Site, lay_out
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
    sheet = lay_out(plan)
    coarser = sheet.grid.gsd > plan.grid.gsd
    rgb, valid = np.zeros((3, *sheet.shape), np.float32), np.zeros(sheet.shape, np.bool_)
    with Mosaic(plan.scenes, sheet.grid, resampling="average" if coarser else plan.spec.resampling) as mosaic:
        for site in sheet.sites:
            part = site.part.slices_in(Window(0, 0, *sheet.shape))
            pixels = mosaic.read(site.window)
            rgb[:, *part], valid[part] = pixels.image, pixels.valid
    points, note = (np.empty((0, 2)), "") if trees is None else _points(trees, sheet)
    preview = Preview(
        rgb=rgb,
        valid=valid,
        height=None if heights is None else _read_on(heights, sheet),
        gsd_m=sheet.grid.gsd,
        title=f"{plan.spec.title}, {plan.aoi.area_ha:,.2f} ha",
        outlines=tuple(ring for site in sheet.sites for ring in _outlines(plan, sheet.grid, site)),
        caption=_caption(plan, model, sheet),
        demonstration=model.row.demonstration,
        trees=None if trees is None else points,
        trees_note=note,
        areas=_areas(sheet),
    )
    render_preview(preview, path)


def _areas(sheet: Sheet) -> tuple[Area, ...]:
    """The sites as the picture knows them; none where it is of the whole."""
    if len(sheet.sites) == 1:
        return ()
    west, south, east, north = np.transpose([sheet.grid.bounds(site.window) for site in sheet.sites])
    middles = zip(((west + east) / 2).tolist(), ((south + north) / 2).tolist(), strict=True)
    return tuple(Area(site.part, site.name, middle) for site, middle in zip(sheet.sites, middles, strict=True))


def _caption(plan: Plan, model: ModelAsRun, sheet: Sheet) -> tuple[str, ...]:
    ids = [scene.id for scene in plan.scenes]
    named = ", ".join(ids[:3]) + (f" and {len(ids) - 3} more" if len(ids) > 3 else "")
    licences = sorted({licence for scene in plan.scenes if (licence := scene.facts.licence)})
    lines = (
        f"imagery: {named}; {dates(plan.scenes)}" + (f"; {', '.join(licences)}" if licences else ""),
        f"model: {model.name} ({model.weights_sha256[:8]}), {plan.grid.gsd:g} m a pixel, {plan.grid.crs}",
    )
    if len(sheet.sites) == 1:
        return lines
    drawn = f"{len(sheet.sites)} areas, side by side at one scale"
    left_out = f"; {sheet.left_out:,} smaller ones are not drawn" if sheet.left_out else ""
    numbers = "; their numbers are those of the AOI's features" if any(site.name for site in sheet.sites) else ""
    return (*lines, drawn + left_out + numbers)


def _outlines(plan: Plan, grid: Grid, site: Site) -> tuple[npt.NDArray[np.float64], ...]:
    """The AOI's rings in pixels of the picture, cut to a part of it."""
    left, _, _, top = grid.bounds(site.window)
    shown = shapely.intersection(plan.geometry, shapely.box(*grid.bounds(site.window.padded(2))))
    rings = shapely.get_rings(shapely.get_parts(shown))
    place = (site.col, site.row)
    return tuple((shapely.get_coordinates(ring) - (left, top)) / (grid.gsd, -grid.gsd) + place for ring in rings)


def _points(trees: Path, sheet: Sheet) -> tuple[npt.NDArray[np.float64], str]:
    """Trees as (col, row) of the picture, (N, 2), and what is to be said of them."""
    file = pq.ParquetFile(trees)
    total = file.metadata.num_rows
    every = max(1, -(-total // _MOST_TREES))
    parts = [np.empty((0, 2))]
    for rows in file.iter_batches(columns=["bbox"]):
        corners = rows.column("bbox").flatten()
        parts.append(np.column_stack([corners[0].to_numpy(), corners[1].to_numpy()])[::every])
    points = np.concatenate(parts)
    shown = []
    for site in sheet.sites:
        # A tree may stand a little beside the cell that it was found in.
        west, south, east, north = sheet.grid.bounds(site.window.padded(1))
        x, y = points.T
        own = points[(x >= west) & (x <= east) & (y >= south) & (y <= north)]
        left, _, _, top = sheet.grid.bounds(site.window)
        shown.append((own - (left, top)) / (sheet.grid.gsd, -sheet.grid.gsd) + (site.col, site.row))
    note = f"{total:,} trees" if every == 1 else f"{total:,} trees, one in {every} drawn"
    return np.concatenate(shown), note


def _read_on(heights: Path, sheet: Sheet) -> npt.NDArray[np.float32]:
    """Heights (H, W) on a sheet, each pixel the mean of the valid heights below it; NaN where there is none."""
    out = np.full(sheet.shape, np.nan, np.float32)
    with rasterio.open(heights) as source:
        for site in sheet.sites:
            part = np.full(site.window.shape, np.nan, np.float32)
            reproject(
                rasterio.band(source, 1),
                part,
                dst_transform=sheet.grid.geobox(site.window).transform,
                dst_crs=source.crs,
                dst_nodata=np.nan,
                resampling=Resampling.average,
                warp_mem_limit=64,
            )
            out[site.part.slices_in(Window(0, 0, *sheet.shape))] = part
    return out
