"""Layers of label rasters: canopy height models and class maps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NoReturn

import numpy as np
import numpy.typing as npt
import shapely
from odc.geo.crs import CRS
from pyproj import CRS as ProjCRS

from geodino.errors import InputError
from geodino.grid import Window
from geodino.polygons import WGS84
from geodino.training.chipset import UNKNOWN
from geodino.training.label_rasters import (
    LabelRaster,
    all_values,
    read_window,
    resampled,
    same_pixels,
    sample_points,
    spots_in,
    window_under,
)
from geodino.training.labels import Burnt
from geodino.training.pairing import SPARE, Cut, Frame, tiled

Doubles = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

# The tallest tree known has 116 m; lidar puts some ground a little under the ground.
LOWEST_M, HIGHEST_M = -5.0, 120.0
# Values under this are seldom anything but nodata.
_LIKE_NODATA = -99.0


@dataclass(frozen=True, eq=False)
class Sheets:
    """Rasters in order: where several cover a pixel, the first that knows it counts."""

    rasters: tuple[LabelRaster, ...]
    # Outlines by CRS, asked for again for each of thousands of scenes.
    _outlines: dict[str, npt.NDArray[np.object_]] = field(default_factory=dict, repr=False)

    def on(self, crs: CRS | ProjCRS) -> npt.NDArray[np.object_]:
        """Their outlines in a CRS."""
        key = str(crs)
        if key not in self._outlines:
            self._outlines[key] = np.array([raster.outline_in(crs) for raster in self.rasters], object)
        return self._outlines[key]

    def boxes(self) -> Doubles:
        bounds = shapely.bounds(self.on(WGS84))
        return np.asarray(bounds[np.isfinite(bounds).all(axis=1)])

    def windows(self, frame: Frame, size: int) -> tuple[Window, ...]:
        """The chips of a scene over the rectangle around all rasters that meet it."""
        met = shapely.intersection(self.on(frame.crs), shapely.box(*frame.bounds(frame.extent)))
        met = met[shapely.area(met) > 0]
        if not len(met):
            return ()
        return tiled(frame.window_over(tuple(shapely.total_bounds(met).tolist())), frame.extent, size, spare=SPARE)

    def under(self, cut: Cut) -> list[int]:
        """The rasters that may have pixels in a chip."""
        box = shapely.box(*cut.frame.bounds(cut.window))
        meets = shapely.intersects(self.on(cut.frame.crs), box)
        found: list[int] = np.flatnonzero(meets).tolist()
        return found


@dataclass(frozen=True, eq=False)
class HeightLayer:
    """Canopy height models."""

    sheets: Sheets

    @property
    def count(self) -> int:
        return len(self.sheets.rasters)

    def names(self) -> frozenset[str]:
        return frozenset()

    def bound(self, known: Mapping[str, str]) -> tuple[HeightLayer, int]:
        return self, 0

    def boxes(self) -> Doubles:
        return self.sheets.boxes()

    def windows(self, frame: Frame, size: int) -> tuple[Window, ...]:
        return self.sheets.windows(frame, size)

    def burn(self, cut: Cut) -> Burnt | None:
        """Heights in metres; what lies up to 5 m under the ground is ground.

        Raises
        ------
        InputError
            Heights that cannot be metres, with their number in the whole raster.
        """
        heights = np.full(cut.window.shape, np.nan)
        used = []
        for number in self.sheets.under(cut):
            values, known = heights_on(self.sheets.rasters[number], cut)
            take = known & np.isnan(heights)
            heights[take] = np.maximum(values[take], 0)
            if known.any():
                used.append(number)
        labelled = np.isfinite(heights)
        return _burnt(used, labelled=labelled, heights=heights.astype(np.float32))


@dataclass(frozen=True, eq=False)
class ClassLayer:
    """Class maps: `table` gives the class of each value that a pixel may have."""

    sheets: Sheets
    table: Mapping[int, int]

    @property
    def count(self) -> int:
        return len(self.sheets.rasters)

    def names(self) -> frozenset[str]:
        return frozenset()

    def bound(self, known: Mapping[str, str]) -> tuple[ClassLayer, int]:
        return self, 0

    def boxes(self) -> Doubles:
        return self.sheets.boxes()

    def windows(self, frame: Frame, size: int) -> tuple[Window, ...]:
        return self.sheets.windows(frame, size)

    def burn(self, cut: Cut) -> Burnt | None:
        """Classes: the nearest pixel's, or what most of a finer map's pixels have.

        Raises
        ------
        InputError
            Values that the table lacks, with their number in the whole raster.
        """
        classes = np.full(cut.window.shape, UNKNOWN, np.uint8)
        used = []
        for number in self.sheets.under(cut):
            found = classes_on(self.sheets.rasters[number], cut, self.table)
            take = (classes == UNKNOWN) & (found != UNKNOWN)
            classes[take] = found[take]
            if (found != UNKNOWN).any():
                used.append(number)
        return _burnt(used, labelled=classes != UNKNOWN, classes=classes)


def _burnt(used: list[int], **arrays: npt.NDArray[np.generic]) -> Burnt | None:
    return Burnt(arrays, np.array(used, np.int64)) if used else None


def heights_on(raster: LabelRaster, cut: Cut) -> tuple[Doubles, Bools]:
    """A raster's heights on a chip, metres, and where they are known.

    Its own values where it lies on the chip's pixels; else see `resampled`.
    """
    own = same_pixels(raster, cut.frame, cut.window)
    if own is not None:
        return _heights(raster, own)
    spots = spots_in(raster, cut)
    window = window_under(raster, spots)
    if window.empty:
        return np.full(cut.window.shape, np.nan), np.zeros(cut.window.shape, bool)
    values, known = _heights(raster, window)
    return resampled(values, known, _from_corner(spots, window))


def _heights(raster: LabelRaster, window: Window) -> tuple[Doubles, Bools]:
    stored, known = read_window(raster, window)
    heights = stored.astype(np.float64) * raster.scale + raster.offset
    if (known & ((heights < LOWEST_M) | (heights > HIGHEST_M))).any():
        _refuse_heights(raster)
    return heights, known


def _refuse_heights(raster: LabelRaster) -> NoReturn:
    """Count what cannot be a height in the whole raster, and say what is likely wrong."""
    low = high = total = 0
    lowest = 0.0
    for stored in all_values(raster):
        heights = stored.astype(np.float64) * raster.scale + raster.offset
        low += int((heights < LOWEST_M).sum())
        high += int((heights > HIGHEST_M).sum())
        total += heights.size
        lowest = min(lowest, float(heights.min(initial=0)))
    raise InputError(heights_sentence(f"labels {raster.path}", low, high, total, lowest))


def check_heights(what: str, heights: Doubles) -> None:
    """Raise InputError for heights that cannot be metres of canopy, with their number."""
    low, high = int((heights < LOWEST_M).sum()), int((heights > HIGHEST_M).sum())
    if low or high:
        raise InputError(
            heights_sentence(
                what,
                low,
                high,
                len(heights),
                float(heights.min(initial=0)),
                declare="empty these cells, or leave the features out",
            )
        )


def heights_sentence(
    what: str, low: int, high: int, total: int, lowest: float, *, declare: str = "gdal_edit.py -a_nodata {:g} FILE"
) -> str:
    """What is wrong with heights, how many, and the likely cause; `declare` is how nodata is said."""
    if high > low:
        cause = "are they in feet (times 0.3048), in centimetres or decimetres, or elevations instead of heights?"
    elif lowest <= _LIKE_NODATA:
        cause = f"{lowest:g} looks like nodata that is not declared: {declare.format(lowest)}"
    else:
        cause = "they lie under the ground: were surface and ground subtracted the wrong way round?"
    return (
        f"{what}: {low + high:,} of {total:,} heights cannot be metres of canopy ({low:,} under {LOWEST_M:g} m, "
        f"{high:,} over {HIGHEST_M:g} m); {cause}"
    )


def classes_on(raster: LabelRaster, cut: Cut, table: Mapping[int, int]) -> npt.NDArray[np.uint8]:
    """A raster's classes on a chip, 255 where unknown."""
    own = same_pixels(raster, cut.frame, cut.window)
    if own is not None:
        return _classes(raster, own, table)
    spots = spots_in(raster, cut)
    window = window_under(raster, spots)
    if window.empty:
        return np.full(cut.window.shape, UNKNOWN, np.uint8)
    classes = _classes(raster, window, table)
    spots = _from_corner(spots, window)
    # The last row counts what is unknown.
    votes = np.zeros((len(set(table.values())) + 1, *cut.window.shape), np.uint16)
    ground = np.indices(cut.window.shape)
    for rows, cols in sample_points(spots):
        inside = (rows >= 0) & (rows < window.height) & (cols >= 0) & (cols < window.width)
        seen = np.where(inside, classes[np.where(inside, rows, 0), np.where(inside, cols, 0)], UNKNOWN)
        votes[np.minimum(seen, len(votes) - 1), ground[0], ground[1]] += 1
    known = 2 * votes[-1] <= votes.sum(axis=0)
    return np.where(known, votes[:-1].argmax(axis=0), UNKNOWN).astype(np.uint8)


def _classes(raster: LabelRaster, window: Window, table: Mapping[int, int]) -> npt.NDArray[np.uint8]:
    stored, known = read_window(raster, window)
    values, places = np.unique(stored, return_inverse=True)
    lacking = np.isin(stored, [value for value in values.tolist() if value not in table]) & known
    if lacking.any():
        _refuse_classes(raster, table)
    classes = np.array([table.get(value, UNKNOWN) for value in values.tolist()], np.uint8)
    return np.where(known, classes[places.reshape(stored.shape)], np.uint8(UNKNOWN))


def _refuse_classes(raster: LabelRaster, table: Mapping[int, int]) -> NoReturn:
    counts: Counter[int] = Counter()
    for stored in all_values(raster):
        counts.update(dict(zip(*(part.tolist() for part in np.unique(stored, return_counts=True)), strict=True)))
    lacking = {value: count for value, count in sorted(counts.items()) if value not in table}
    said = ", ".join(f"{value:g} ({count:,} pixels)" for value, count in list(lacking.items())[:5])
    first = next(iter(lacking))
    raise InputError(
        f"labels {raster.path} hold {said}, and the class table knows {', '.join(map(str, sorted(table)))} only; name "
        f"them in it ({first:g}=NAME), or declare nodata: gdal_edit.py -a_nodata {first:g} FILE"
    )


def _from_corner(spots: Doubles, window: Window) -> Doubles:
    return spots - np.array([window.row, window.col], np.float64)[:, None, None]
