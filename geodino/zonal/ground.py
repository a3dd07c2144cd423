"""The map that zones are laid over: heights and their spread by window, in metres, and how large its pixels are.

Zones, trees and plots are all brought into the map's pixels: x counts columns from its western edge, y rows from its
northern edge, upwards, so that they are negative.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt
import rasterio
from pyproj import CRS, Geod, Transformer
from rasterio.windows import Window as RasterWindow

from geodino.errors import InputError
from geodino.grid import Window
from geodino.outputs.scene_map import SCENE
from geodino.polygons import WGS84
from geodino.sources.raster import environment, open_raster, read_errors
from geodino.training.label_rasters import LabelRaster, all_values, describe_raster
from geodino.training.raster_layers import HIGHEST_M, LOWEST_M, heights_sentence

Floats = npt.NDArray[np.float64]
Singles = npt.NDArray[np.float32]

HEIGHT, SPREAD, DENSITY, TREES = "canopy_height.tif", "canopy_height_spread.tif", "tree_density.tif", "trees.parquet"
"""What a run calls its files."""

_METRES = ("m", "metre", "metres", "meter", "meters")


@dataclass(frozen=True)
class Layers:
    """The files that say what grows.

    Attributes
    ----------
    seen
        The raster whose valid pixels are the ground that was seen: heights of canopy, one band, metres above ground.
    spread
        Their standard deviations, on the same pixels; None: not known.
    trees
        Points; None: trees are not counted.
    heights
        False where `seen` holds no heights, such as the scenes of a run that maps trees alone: then zones get trees,
        areas and how much of them was seen.
    """

    seen: Path
    spread: Path | None = None
    trees: Path | None = None
    heights: bool = True


def layers_of(what: Path, *, spread: Path | None = None, trees: Path | None = None) -> Layers:
    """Return the layers of a finished run's folder, or of a raster of heights; FILE_spread.tif beside it is its spread.

    Files that are given go before those that are found.

    Raises
    ------
    InputError
        The folder holds no map of a run.
    """
    if not what.is_dir():
        beside = what.with_name(f"{what.stem}_spread{what.suffix}")
        return Layers(what, spread or (beside if beside.is_file() else None), trees)
    found = {name: what / name for name in (HEIGHT, SPREAD, DENSITY, SCENE, TREES) if (what / name).is_file()}
    if HEIGHT not in found and DENSITY not in found:
        raise InputError(f"{what} holds neither {HEIGHT} nor {DENSITY}: give the folder of a finished run, or a raster")
    heights = HEIGHT in found
    # Runs of geodino 0.1 have no map of scenes; the density's cells say more coarsely what was seen.
    seen = next(name for name in (HEIGHT, SCENE, DENSITY) if name in found)
    return Layers(
        found[seen],
        spread or (found.get(SPREAD) if heights else None),
        trees or found.get(TREES),
        heights,
    )


@dataclass(eq=False)
class Ground:
    """The open map; a context manager, for one thread.

    Attributes
    ----------
    layers
        Its files.
    notes
        What was assumed of it, in sentences.

    Raises
    ------
    InputError
        On entering: several bands, no CRS, rows that do not run from west to east and north to south, a unit that is
        not metres, or a spread on other pixels. On reading: heights that cannot be metres of canopy, with their number.
    ReadError
        A file is missing, no raster, or damaged.
    """

    layers: Layers
    notes: tuple[str, ...] = ()
    _files: ExitStack = field(default_factory=ExitStack, repr=False)

    def __enter__(self) -> Ground:
        with ExitStack() as opened:
            opened.enter_context(environment([str(self.layers.seen)]))
            self._raster, self._heights = self._opened(self.layers.seen, opened)
            self._spreads = None
            if self.layers.spread is not None:
                spread, self._spreads = self._opened(self.layers.spread, opened)
                self._refuse_other_pixels(spread)
            if self.layers.heights:
                self.notes = _assumed_unit(self.layers.seen, self._heights)
            self._files = opened.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._files.close()

    @property
    def crs(self) -> CRS:
        """Horizontal."""
        return CRS.from_user_input(str(self._raster.crs))

    @property
    def extent(self) -> Window:
        """All of its pixels."""
        return Window(0, 0, *self._raster.shape)

    def in_pixels(self, xy: Floats) -> Floats:
        """(N, 2) x and y in the map's CRS, as columns to the right and rows upwards."""
        t = self._raster.transform
        return np.column_stack([(xy[:, 0] - t.c) / t.a, (xy[:, 1] - t.f) / -t.e])

    def in_crs(self, pixels: Floats) -> Floats:
        """The other way."""
        t = self._raster.transform
        return np.column_stack([t.c + pixels[:, 0] * t.a, t.f - pixels[:, 1] * t.e])

    def read(self, window: Window) -> tuple[Singles, Singles | None]:
        """Heights and spreads of a window within the extent, metres, NaN where there are none.

        Up to 5 m under the ground is ground.
        """
        heights = _values(self._heights, self.layers.seen, self._raster, window)
        if self.layers.heights:
            if ((heights < LOWEST_M) | (heights > HIGHEST_M)).any():
                self._refuse_heights()
            heights = np.maximum(heights, 0)
        if self._spreads is None or self.layers.spread is None:
            return heights, None
        spreads = _values(self._spreads, self.layers.spread, self._raster, window)
        return heights, np.where(spreads >= 0, spreads, np.float32(np.nan))

    def pixel_areas_m2(self, window: Window) -> Floats:
        """(H,) geodesic area of a pixel of each row, at the window's middle column.

        From an equal-area projection of the ellipsoid, so that pixels of degrees or of Web Mercator count as large as
        they are.
        """
        rows = np.arange(window.row, window.row_stop + 1, dtype=np.float64)
        middle = window.col + window.width / 2
        west, east = (self._equal_area(np.column_stack([np.full(len(rows), middle + d), -rows])) for d in (-0.5, 0.5))
        ring = np.stack([west[:-1], east[:-1], east[1:], west[1:]], axis=1)
        x, y = ring[..., 0] - ring[:, :1, 0], ring[..., 1] - ring[:, :1, 1]
        doubled = (x * np.roll(y, -1, axis=1) - y * np.roll(x, -1, axis=1)).sum(axis=1)
        return np.asarray(np.abs(doubled) / 2)

    def steps_m(self, row: float, col: float) -> tuple[float, float]:
        """Metres on the ground from row to row and from column to column at a pixel."""
        pixels = np.array([[col, -row], [col, -row - 1], [col + 1, -row]])
        lon, lat = Transformer.from_crs(self.crs, WGS84, always_xy=True).transform(*self.in_crs(pixels).T)
        geod = Geod(ellps="WGS84")
        down, right = (geod.inv(lon[0], lat[0], lon[k], lat[k])[2] for k in (1, 2))
        return float(down), float(right)

    @cached_property
    def equal_area(self) -> CRS:
        """A projection that keeps areas on the WGS84 ellipsoid, true to shape in the map's middle."""
        height, width = self._raster.shape
        middle = self.in_crs(np.array([[width / 2, -height / 2]]))
        (lon,), (lat,) = Transformer.from_crs(self.crs, WGS84, always_xy=True).transform(*middle.T)
        return CRS.from_proj4(f"+proj=laea +lat_0={lat:.6f} +lon_0={lon:.6f} +ellps=WGS84 +units=m")

    @cached_property
    def reach_m(self) -> float:
        """How far the map's outline lies from its middle in `equal_area`, metres; infinite where it leaves earth."""
        height, width = self._raster.shape
        along = np.linspace(0, 1, 9)
        ring = np.concatenate([np.column_stack([along * width, np.full(9, -edge)]) for edge in (0.0, height)])
        ring = np.concatenate([ring, *(np.column_stack([np.full(9, edge), -along * height]) for edge in (0.0, width))])
        return float(np.hypot(*self._equal_area(ring).T).max())

    def _equal_area(self, pixels: Floats) -> Floats:
        return np.column_stack(self._to_equal_area.transform(*self.in_crs(pixels).T))

    @cached_property
    def _to_equal_area(self) -> Transformer:
        return Transformer.from_crs(self.crs, self.equal_area, always_xy=True)

    def _opened(self, path: Path, opened: ExitStack) -> tuple[LabelRaster, rasterio.DatasetReader]:
        try:
            # Rasters of labels are read with the care that a map needs; only what they are called differs.
            raster = describe_raster(str(path))
        except InputError as error:
            raise InputError(f"heights of {str(error).removeprefix('labels ')}") from error
        t = raster.transform
        if t.b or t.d or t.a <= 0 or t.e >= 0:
            raise InputError(f"map {path} is turned or mirrored: bring it north up, gdalwarp {path} NEW.tif")
        return raster, opened.enter_context(open_raster(str(path)))

    def _refuse_other_pixels(self, spread: LabelRaster) -> None:
        mine, other = self._raster, spread
        corner = np.abs(np.array(mine.transform[:6]) - np.array(other.transform[:6])) / mine.transform.a
        if mine.shape != other.shape or mine.crs != other.crs or (corner > 1e-3).any():
            raise InputError(
                f"spread {other.path} of {other.shape} px in {other.crs} lies on other pixels than {mine.path} of "
                f"{mine.shape} px in {mine.crs}: give the one that was made with it, or leave it out"
            )

    def _refuse_heights(self) -> None:
        low = high = total = 0
        lowest = 0.0
        for stored in all_values(self._raster):
            heights = stored.astype(np.float64) * self._raster.scale + self._raster.offset
            low, high = low + int((heights < LOWEST_M).sum()), high + int((heights > HIGHEST_M).sum())
            total, lowest = total + heights.size, min(lowest, float(heights.min(initial=0)))
        raise InputError(heights_sentence(f"map {self.layers.seen}", low, high, total, lowest))


def _values(file: rasterio.DatasetReader, path: Path, raster: LabelRaster, window: Window) -> Singles:
    part = RasterWindow(window.col, window.row, window.width, window.height)
    with read_errors(str(path)):
        stored = file.read(1, window=part, masked=True)
    scale, offset = file.scales[0], file.offsets[0]
    values = stored.astype(np.float32).filled(np.nan)
    if (scale, offset) != (1, 0):
        values = (values * scale + offset).astype(np.float32)
    values[np.isinf(values)] = np.nan
    return np.asarray(values)


def _assumed_unit(path: Path, file: rasterio.DatasetReader) -> tuple[str, ...]:
    """A sentence where the raster names no unit; InputError where it names one that is not metres."""
    said = (file.units[0] or "").strip()
    if said and said.lower() not in _METRES:
        raise InputError(f"map {path} is in {said}: give canopy heights in metres")
    if said:
        return ()
    return (f"{path} names no unit: its heights are taken for metres",)
