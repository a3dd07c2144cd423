"""Label rasters, canopy height models and class maps, on the pixels of a chip."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import rasterio
import shapely
from affine import Affine
from odc.geo.crs import CRS
from pyproj import CRS as ProjCRS
from rasterio.enums import Resampling
from rasterio.transform import array_bounds
from rasterio.warp import reproject
from rasterio.windows import Window as RasterWindow

from geodino.errors import InputError, SourceError
from geodino.grid import Window
from geodino.polygons import WGS84, densified, projected
from geodino.sources.raster import open_raster, read_errors
from geodino.sources.scene import ground_gsd, horizontal_crs, through
from geodino.training.labels import Burnt, Doubles
from geodino.training.pairing import Cut, Frame, tiled

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]

# The tallest tree known has 116 m; lidar puts some ground a little under the ground.
LOWEST_M, HIGHEST_M = -5.0, 120.0
# A raster's pixels are a chip's own where no corner is off by more, px.
_ON_PIXELS = 1e-2
# Rasters within this of the chip's GSD are neither finer nor coarser.
_SAME_GSD = 0.01
_FEET = ("ft", "foot", "feet", "us survey foot", "international foot")
_ROWS = 512


@dataclass(frozen=True)
class LabelRaster:
    """One band of labels as it lies in its file."""

    path: str
    crs: CRS
    transform: Affine
    shape: tuple[int, int]
    gsd: float
    scale: float
    offset: float
    nodata: float | None

    @cached_property
    def outline(self) -> shapely.Geometry:
        bounds = array_bounds(*self.shape, self.transform)
        return shapely.box(*bounds)

    def outline_in(self, crs: CRS | ProjCRS) -> shapely.Geometry:
        """The outline in another CRS; empty where that cannot hold it."""
        source, target = ProjCRS.from_user_input(str(self.crs)), ProjCRS.from_user_input(str(crs))
        (outline,) = projected(densified(np.array([self.outline]), source), source, target)
        return outline if np.isfinite(shapely.get_coordinates(outline)).all() else shapely.Polygon()


def describe_raster(path: str) -> LabelRaster:
    """The one band of a label raster.

    Raises
    ------
    InputError
        It has several bands, no CRS, or says that its unit is feet.
    ReadError
        It cannot be read.
    """
    with closing(open_raster(path)) as raster:
        if raster.count != 1:
            raise InputError(f"labels {path} have {raster.count} bands; give a raster of one band, or is this imagery?")
        if raster.crs is None or raster.transform.is_identity:
            raise InputError(f"labels {path} have no CRS or geotransform; set it: gdal_edit.py -a_srs EPSG:...")
        _refuse_feet(path, raster)
        try:
            crs = horizontal_crs(raster.crs.to_wkt())
            gsd = ground_gsd(crs, raster.transform, raster.shape)
        except SourceError as error:
            raise InputError(f"labels {path}: {error}") from error
        return LabelRaster(
            path, crs, raster.transform, raster.shape, gsd, raster.scales[0], raster.offsets[0], raster.nodata
        )


def _refuse_feet(path: str, raster: rasterio.DatasetReader) -> None:
    tags = {**raster.tags(), **raster.tags(1)}
    said = [raster.units[0], *(value for key, value in tags.items() if key.lower() in ("unit", "units", "unittype"))]
    crs = ProjCRS.from_wkt(raster.crs.to_wkt())
    if crs.is_compound:
        said += [axis.unit_name for axis in crs.sub_crs_list[1].axis_info]
    for unit in said:
        if unit and (unit.strip().lower() in _FEET or "foot" in unit.lower() or "feet" in unit.lower()):
            raise InputError(f"labels {path} are in {unit.strip()}; multiply by 0.3048 and write metres")


@dataclass(frozen=True, eq=False)
class HeightLayer:
    """Canopy height models; where several cover a pixel, the first that knows it counts."""

    rasters: tuple[LabelRaster, ...]

    @property
    def count(self) -> int:
        return len(self.rasters)

    def names(self) -> frozenset[str]:
        return frozenset()

    def bound(self, known: Mapping[str, str]) -> tuple[HeightLayer, int]:
        return self, 0

    def boxes(self) -> Doubles:
        return boxes_of(self.rasters)

    def windows(self, frame: Frame, size: int) -> tuple[Window, ...]:
        return windows_over(self.rasters, frame, size)

    def burn(self, cut: Cut) -> Burnt | None:
        """Heights in metres; what lies up to 5 m under the ground is ground.

        Raises
        ------
        InputError
            Heights that cannot be metres, with their number in the whole raster.
        """
        heights = np.full(cut.window.shape, np.nan, np.float32)
        used = []
        for number, raster in enumerate(self.rasters):
            values, known = onto_chip(raster, cut)
            take = known & np.isnan(heights)
            heights[take] = np.maximum(values[take], 0)
            if take.any():
                used.append(number)
        labelled = np.isfinite(heights)
        return Burnt({"labelled": labelled, "heights": heights}, np.array(used, np.int64)) if used else None


def boxes_of(rasters: Sequence[LabelRaster]) -> Doubles:
    """(M, 4) west, south, east, north of rasters, WGS84 degrees."""
    return np.array([raster.outline_in(WGS84).bounds for raster in rasters])


def windows_over(rasters: Sequence[LabelRaster], frame: Frame, size: int) -> tuple[Window, ...]:
    """The chips of a scene over the rectangle around all rasters that meet it."""
    outlines = [raster.outline_in(frame.crs) for raster in rasters]
    met = shapely.intersection(outlines, shapely.box(*frame.bounds(frame.extent)))
    bounds = shapely.total_bounds(met[shapely.area(met) > 0])
    if not np.isfinite(bounds).all():
        return ()
    return tiled(frame.window_over(tuple(bounds.tolist())), frame.extent, size)


def onto_chip(raster: LabelRaster, cut: Cut) -> tuple[Floats, Bools]:
    """A raster's heights on a chip, metres, and where they are known; nodata never mixes in.

    The raster's own values where it lies on the chip's pixels; else the average of those in a pixel where it is finer
    and bilinear where it is coarser. A pixel is known where at least half of its weight is.

    Raises
    ------
    InputError
        Heights that cannot be metres.
    """
    target = cut.frame.transform_of(cut.window)
    shift = _same_pixels(raster, cut.frame, target)
    if shift is not None:
        return _read(raster, Window(*shift, *cut.window.shape))
    source = _window_under(raster, cut)
    if source.empty:
        return np.zeros(cut.window.shape, np.float32), np.zeros(cut.window.shape, bool)
    values, known = _read(raster, source)
    method = Resampling.average if raster.gsd < cut.frame.grid.gsd * (1 - _SAME_GSD) else Resampling.bilinear
    values[~known] = np.nan
    heights = np.full(cut.window.shape, np.nan, np.float32)
    weight = np.zeros(cut.window.shape, np.float32)
    t, (x, y) = raster.transform, through(raster.transform, source.col, source.row)
    corner = Affine(t.a, t.b, x, t.d, t.e, y)
    placed = {
        "src_transform": corner, "src_crs": str(raster.crs), "dst_transform": target, "dst_crs": str(cut.frame.crs),
        "resampling": method,
    }  # fmt: skip
    reproject(values, heights, src_nodata=math.nan, dst_nodata=math.nan, init_dest_nodata=True, **placed)
    reproject(known.astype(np.float32), weight, **placed)
    return heights, (weight >= 0.5) & np.isfinite(heights)


def _same_pixels(raster: LabelRaster, frame: Frame, target: Affine) -> tuple[int, int] | None:
    """The (row, col) of a chip's corner in a raster that lies on its pixels, else None."""
    t = raster.transform
    if raster.crs != frame.crs or t.b or t.d or not t.a or not t.e:
        return None
    side = max(raster.shape)
    if max(abs(t.a / target.a - 1), abs(t.e / target.e - 1)) * side > _ON_PIXELS:
        return None
    col, row = (target.c - t.c) / t.a, (target.f - t.f) / t.e
    if max(abs(col - round(col)), abs(row - round(row))) > _ON_PIXELS:
        return None
    return round(row), round(col)


def _window_under(raster: LabelRaster, cut: Cut) -> Window:
    """The raster's pixels under a chip and a few around, for the kernel."""
    source, target = ProjCRS.from_user_input(str(cut.frame.crs)), ProjCRS.from_user_input(str(raster.crs))
    chip = shapely.segmentize(shapely.box(*cut.frame.bounds(cut.window)), 20 * cut.frame.grid.gsd)
    (there,) = projected(np.array([chip]), source, target)
    xy = shapely.get_coordinates(there)
    if not np.isfinite(xy).all():
        return Window(0, 0, 0, 0)
    cols, rows = np.array([through(~raster.transform, x, y) for x, y in xy.tolist()]).T
    row, col = math.floor(rows.min()) - 3, math.floor(cols.min()) - 3
    found = Window(row, col, math.ceil(rows.max()) + 3 - row, math.ceil(cols.max()) + 3 - col)
    return found.intersection(Window(0, 0, *raster.shape))


def _read(raster: LabelRaster, window: Window) -> tuple[Floats, Bools]:
    """Heights of a window, which may reach beyond the raster, and where they are known."""
    values = np.zeros(window.shape, np.float32)
    known = np.zeros(window.shape, bool)
    part = window.intersection(Window(0, 0, *raster.shape))
    if part.empty:
        return values, known
    with closing(open_raster(raster.path)) as file, read_errors(raster.path):
        found = file.read(1, window=RasterWindow(part.col, part.row, part.width, part.height), masked=True)
    here = part.slices_in(window)
    heights = found.data.astype(np.float64) * raster.scale + raster.offset
    sound = ~np.ma.getmaskarray(found) & np.isfinite(heights)
    if (sound & ((heights < LOWEST_M) | (heights > HIGHEST_M))).any():
        _refuse_heights(raster)
    values[here] = np.where(sound, heights, 0)
    known[here] = sound
    return values, known


def _refuse_heights(raster: LabelRaster) -> None:
    """Count what cannot be a height in the whole raster, and say what is likely wrong."""
    low = high = total = 0
    lowest = 0.0
    with closing(open_raster(raster.path)) as file, read_errors(raster.path):
        for row in range(0, raster.shape[0], _ROWS):
            window = RasterWindow(0, row, raster.shape[1], min(_ROWS, raster.shape[0] - row))
            found = file.read(1, window=window, masked=True)
            heights = found.compressed().astype(np.float64) * raster.scale + raster.offset
            heights = heights[np.isfinite(heights)]
            low += int((heights < LOWEST_M).sum())
            high += int((heights > HIGHEST_M).sum())
            total += heights.size
            lowest = min(lowest, float(heights.min(initial=0)))
    raise InputError(heights_sentence(f"labels {raster.path}", low, high, total, lowest))


def heights_sentence(what: str, low: int, high: int, total: int, lowest: float) -> str:
    """What is wrong with heights, how many, and the likely cause."""
    if low >= high:
        cause = (
            f"{lowest:g} looks like nodata that is not declared: gdal_edit.py -a_nodata {lowest:g} FILE"
            if lowest <= -99
            else "is the ground's elevation subtracted?"
        )
    else:
        cause = "are they in feet (times 0.3048), in centimetres or decimetres, or elevations instead of heights?"
    return (
        f"{what}: {low + high} of {total} heights cannot be metres of canopy ({low} under {LOWEST_M:g} m, {high} over "
        f"{HIGHEST_M:g} m); {cause}"
    )
