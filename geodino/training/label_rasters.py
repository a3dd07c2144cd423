"""Label rasters as they lie in their files, and how one band comes onto the pixels of a chip."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import rasterio
import shapely
from affine import Affine
from odc.geo.crs import CRS
from pyproj import CRS as ProjCRS
from rasterio.transform import array_bounds
from rasterio.windows import Window as RasterWindow
from scipy.ndimage import map_coordinates

from geodino.errors import InputError, SourceError
from geodino.grid import Window
from geodino.polygons import densified
from geodino.sources.raster import open_raster, read_errors
from geodino.sources.scene import ground_gsd, horizontal_crs
from geodino.training.pairing import Cut, Frame, moved

Doubles = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

# A raster's pixels are a chip's own where no corner is off by more, px.
_ON_PIXELS = 1e-2
# A raster whose pixels are so much smaller than a chip's is finer.
_FINER = 1.01
# Up to this many pixels a side in one of the chip, sample points lie twice as dense, for pixels that are cut in two.
_FEW = 4
_ROWS = 512
_FEET = re.compile(r"foot|feet|(^|[^a-z])(us[-_ ]?)?ft([-_ ]?us)?([^a-z]|$)")
# Tags that say the unit of heights, and not that of the ground.
_UNIT_TAG = re.compile(r"(z|vertical|height|elevation|band|value)?[-_ ]?unit(s|type)?")


@dataclass(frozen=True)
class LabelRaster:
    """One band of labels as it lies in its file; true value = stored value * scale + offset."""

    path: str
    crs: CRS
    transform: Affine
    shape: tuple[int, int]
    dtype: str
    scale: float
    offset: float

    def outline_in(self, crs: CRS | ProjCRS) -> shapely.Geometry:
        """The outline of the pixels in another CRS; empty where that cannot hold it."""
        box = np.array([shapely.box(*array_bounds(*self.shape, self.transform))])
        (edged,) = densified(box, ProjCRS.from_user_input(str(self.crs)))
        outline = shapely.transform(edged, lambda xy: moved(xy, self.crs, crs))
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
            raise InputError(f"labels {path} have no CRS or geotransform; set it: gdal_edit.py -a_srs EPSG:... {path}")
        _refuse_feet(path, raster)
        try:
            crs = horizontal_crs(raster.crs.to_wkt())
            ground_gsd(crs, raster.transform, raster.shape)
        except SourceError as error:
            raise InputError(f"labels {path}: {error}") from error
        (dtype,) = raster.dtypes
        return LabelRaster(path, crs, raster.transform, raster.shape, dtype, raster.scales[0], raster.offsets[0])


def _refuse_feet(path: str, raster: rasterio.DatasetReader) -> None:
    """Refuse a unit of feet, in GDAL's field, a tag, or the vertical part of the CRS."""
    tags = {**raster.tags(), **raster.tags(1)}
    said = [raster.units[0], *(value for key, value in tags.items() if _UNIT_TAG.fullmatch(key.lower()))]
    # After east and north: the vertical part of a compound CRS, the third axis of a three-dimensional one.
    said += [axis.unit_name for axis in ProjCRS.from_wkt(raster.crs.to_wkt()).axis_info[2:]]
    for unit in said:
        word = (unit or "").strip().lower()
        if _FEET.search(word):
            raise InputError(f"labels {path} are in {word}; multiply by 0.3048 and write metres")


def same_pixels(raster: LabelRaster, frame: Frame, window: Window) -> Window | None:
    """The window of a raster that is a chip's window where it lies on the frame's pixels, else None."""
    t, target = raster.transform, frame.transform_of(window)
    if raster.crs != frame.crs or t.b or t.d:
        return None
    if max(abs(t.a / target.a - 1), abs(t.e / target.e - 1)) * max(raster.shape) > _ON_PIXELS:
        return None
    col, row = (target.c - t.c) / t.a, (target.f - t.f) / t.e
    if max(abs(col - round(col)), abs(row - round(row))) > _ON_PIXELS:
        return None
    return Window(round(row), round(col), *window.shape)


def spots_in(raster: LabelRaster, cut: Cut) -> Doubles:
    """(2, S, S) fractional row and col in the raster of each pixel centre of a chip; not finite where PROJ cannot."""
    t, (height, width) = cut.frame.transform_of(cut.window), cut.window.shape
    x = t.c + (np.arange(width) + 0.5) * t.a
    y = t.f + (np.arange(height) + 0.5) * t.e
    xy = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
    there = moved(xy, cut.frame.crs, raster.crs)
    back = ~raster.transform
    rows = back.d * there[:, 0] + back.e * there[:, 1] + back.f
    cols = back.a * there[:, 0] + back.b * there[:, 1] + back.c
    return np.stack([rows, cols]).reshape(2, height, width)


def window_under(raster: LabelRaster, spots: Doubles) -> Window:
    """The raster's pixels under a chip's, and some around for the edges of the outermost; may be empty."""
    finite = np.isfinite(spots).all(axis=0)
    if not finite.any():
        return Window(0, 0, 0, 0)
    (low_row, low_col), (row, col) = (np.array([edge(axis[finite]) for axis in spots]) for edge in (np.min, np.max))
    reach = math.ceil(side_of(spots)) + 1
    first = Window(math.floor(low_row), math.floor(low_col), math.ceil(row - low_row), math.ceil(col - low_col))
    return first.padded(reach).intersection(Window(0, 0, *raster.shape))


def side_of(spots: Doubles) -> float:
    """How many raster pixels a chip's pixel is wide, the geometric mean over both axes, at the chip's centre."""
    middle = spots[:, spots.shape[1] // 2 - 1 :, spots.shape[2] // 2 - 1 :]
    down, right = middle[:, 1, 0] - middle[:, 0, 0], middle[:, 0, 1] - middle[:, 0, 0]
    return math.sqrt(abs(float(down[0] * right[1] - down[1] * right[0])))


def sample_points(spots: Doubles) -> Iterator[npt.NDArray[np.int64]]:
    """(2, S, S) raster pixels under points that lie evenly in each pixel of a chip, one point after the other.

    Their mean is that of the pixel's area: exact where a whole number of raster pixels makes one of the chip. Where
    the raster is not finer there is one point, the pixel's centre.
    """
    side = side_of(spots)
    count = 1 if side <= _FINER else math.ceil(side - 1e-6) * (1 if side > _FEW else 2)
    down, right = np.gradient(spots, axis=1), np.gradient(spots, axis=2)
    offsets = (np.arange(count) + 0.5) / count - 0.5
    for step_down in offsets:
        for step_right in offsets:
            yield np.floor(np.nan_to_num(spots + step_down * down + step_right * right, nan=-1e9)).astype(np.int64)


def resampled(values: Doubles, known: Bools, spots: Doubles) -> tuple[Doubles, Bools]:
    """Values at a chip's pixels: the average of finer ones, bilinear between coarser ones.

    What is not known has no weight, so nodata never mixes in. A pixel is known where half of its weight is.

    Parameters
    ----------
    spots
        (2, S, S) row and col in `values`; the centre of its first pixel is (0.5, 0.5).
    """
    solid = np.where(known, values, 0.0)
    if side_of(spots) > _FINER:
        total, weight, points = np.zeros(spots.shape[1:]), np.zeros(spots.shape[1:]), 0
        for rows, cols in sample_points(spots):
            inside = (rows >= 0) & (rows < values.shape[0]) & (cols >= 0) & (cols < values.shape[1])
            here = np.where(inside, rows, 0), np.where(inside, cols, 0)
            total += solid[here] * inside
            weight += known[here] & inside
            points += 1
        weight /= points
        total /= points
    else:
        places = np.nan_to_num(spots - 0.5, nan=-1e9)
        total = map_coordinates(solid, places, order=1, mode="grid-constant")
        weight = map_coordinates(known.astype(np.float64), places, order=1, mode="grid-constant")
    # Weights are sums of rounded ones; a half that is 0.49999999 is a half.
    sound = weight >= 0.5 - 1e-9
    return np.where(sound, total / np.where(sound, weight, 1.0), np.nan), sound


def read_window(raster: LabelRaster, window: Window) -> tuple[npt.NDArray[np.generic], Bools]:
    """Stored values of a window that may reach beyond the raster, and where there are any."""
    values = np.zeros(window.shape, raster.dtype)
    known = np.zeros(window.shape, bool)
    part = window.intersection(Window(0, 0, *raster.shape))
    if not part.empty:
        with closing(open_raster(raster.path)) as file, read_errors(raster.path):
            found = file.read(1, window=RasterWindow(part.col, part.row, part.width, part.height), masked=True)
        here = part.slices_in(window)
        values[here] = found.data
        known[here] = ~np.ma.getmaskarray(found) & np.isfinite(found.data)
    return values, known


def all_values(raster: LabelRaster) -> Iterator[npt.NDArray[np.generic]]:
    """The known stored values of the whole raster, some rows at a time."""
    for row in range(0, raster.shape[0], _ROWS):
        values, known = read_window(raster, Window(row, 0, min(_ROWS, raster.shape[0] - row), raster.shape[1]))
        yield values[known]
