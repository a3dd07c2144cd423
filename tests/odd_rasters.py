"""One piece of ground, written in every odd way that rasters come in, and what of it must be seen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import rasterio
from affine import Affine
from pyproj import Transformer
from rasterio.enums import ColorInterp, Resampling
from rasterio.windows import Window as RasterWindow

from geodino.aoi import AOI, read_aoi
from geodino.grid import Grid, Window
from geodino.radiometry import WHITE
from geodino.sources import Mosaic, Search, find_scenes
from geodino.sources.mosaic import Pixels

GSD, ROWS, COLS = 0.6, 112, 128
RGB = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
# Pixels that are missing where a raster has a hole.
HOLE = (slice(40, 60), slice(50, 75))


@dataclass(frozen=True)
class Place:
    """Where the ground lies: the run's CRS and the north-western corner, a multiple of 0.6 m."""

    crs: str
    west: float
    north: float

    @property
    def transform(self) -> Affine:
        return Affine(GSD, 0, self.west, 0, -GSD, self.north)

    @property
    def grid(self) -> Grid:
        from odc.geo.crs import CRS

        return Grid(CRS(self.crs), GSD)

    def shown(self, x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """What lies at x, y: 0..255 in three bands that rise evenly, which no resampling changes."""
        east, south = (x - self.west) / (COLS * GSD), (self.north - y) / (ROWS * GSD)
        return np.stack([30 + 190 * east, 30 + 190 * south, 220 - 90 * (east + south)])

    @property
    def box(self) -> tuple[float, float, float, float]:
        """What is asked for: the middle of the ground, metres."""
        return self.west + 12, self.north - 54, self.west + 63, self.north - 12

    @property
    def aoi(self) -> AOI:
        minx, miny, maxx, maxy = self.box
        ring = ", ".join(f"{x} {y}" for x, y in [(minx, miny), (maxx, miny), (maxx, maxy), (minx, maxy), (minx, miny)])
        return read_aoi(f"SRID={self.crs.partition(':')[2]};POLYGON(({ring}))")


EUROPE = Place("EPSG:32633", 500_004.0, 4_999_998.0)
# The middle of the ground lies at 180 degrees, 45 north, as far as multiples of 0.6 m go.
_X, _Y = Transformer.from_crs("EPSG:4326", "EPSG:32660", always_xy=True).transform(180.0, 45.0)
DATE_LINE = Place(
    "EPSG:32660", round(_X / GSD - COLS / 2) * GSD, round(_Y / GSD + ROWS / 2) * GSD
)  # fmt: skip


@dataclass(frozen=True)
class Odd:
    """A way to write the ground.

    Attributes
    ----------
    profile
        Creation options of GDAL.
    full
        The digital number of 255.
    radiometry
        Asked for by name.
    crs, transform, shape
        Of the file, where it is not the ground's own.
    hole
        How the file says which pixels are missing: `alpha`, `mask`, `mask beside`, or the number they have.
    overviews
        `inside` or `beside`: the file is fine and shows something else, its overviews of 0.6 m the ground.
    colours
        The order of the file's bands.
    off
        How far a value may be from the ground's, of 255.
    """

    profile: Mapping[str, object] = field(default_factory=dict)
    dtype: str = "uint8"
    full: float = 255
    radiometry: str = "auto"
    place: Place = EUROPE
    crs: str | None = None
    transform: Affine | None = None
    shape: tuple[int, int] = (ROWS, COLS)
    hole: str | float | None = None
    overviews: str | None = None
    colours: tuple[ColorInterp, ...] = RGB
    off: float = 0.51
    after: Callable[[Path], object] = lambda path: None

    def write(self, path: Path) -> str:
        transform, crs = self.transform or self.place.transform, self.crs or self.place.crs
        height, width = self.shape
        picture = self._pixels(transform, crs)
        if isinstance(self.hole, float | int):
            picture[:, *HOLE] = self.hole
        bands = picture[[RGB.index(colour) for colour in self.colours]]
        present = np.full(self.shape, 255 if self.dtype == "uint8" else self.full, self.dtype)
        present[HOLE] = 0
        if self.hole == "alpha":
            bands = np.concatenate([bands, present[None]])
        photometric = "RGB" if self.colours == RGB else "MINISBLACK"
        options = {"photometric": photometric, "driver": "GTiff", **self.profile}
        if self.hole == "alpha":
            options["ALPHA"] = "YES"
        with (
            rasterio.Env(GDAL_TIFF_INTERNAL_MASK=self.hole == "mask", TIFF_USE_OVR=self.overviews == "beside"),
            rasterio.open(
                path, "w", height=height, width=width, count=len(bands), dtype=self.dtype, crs=crs,
                transform=transform, **options,
            ) as raster,
        ):  # fmt: skip
            raster.write(bands)
            raster.colorinterp = (*self.colours, ColorInterp.alpha)[: len(bands)]
            if self.hole in ("mask", "mask beside"):
                raster.write_mask(present > 0)
            if self.overviews:
                raster.build_overviews([2, 4], Resampling.average)
        if self.overviews:
            with rasterio.open(path, "r+") as raster:
                raster.write(np.zeros_like(bands))
        self.after(path)
        return str(path)

    def _pixels(self, transform: Affine, crs: str) -> npt.NDArray[np.generic]:
        height, width = self.shape
        cols, rows = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
        x = transform.a * cols + transform.b * rows + transform.c
        y = transform.d * cols + transform.e * rows + transform.f
        if crs != self.place.crs:
            x, y = Transformer.from_crs(crs, self.place.crs, always_xy=True).transform(x, y)
        shown = self.place.shown(x, y) * (self.full / 255)
        return (shown if self.dtype.startswith("float") else np.round(shown)).clip(0).astype(self.dtype)


def look(source: str, odd: Odd) -> Pixels:
    """What a run sees of the ground: found as any source is, and read as a window of the mosaic."""
    place = odd.place
    found = find_scenes([source], aoi=place.aoi, search=Search(radiometry=odd.radiometry))
    assert len(found.scenes) == 1, found.dropped
    with Mosaic(found.scenes, place.grid) as mosaic:
        return mosaic.read(place.grid.window_over(place.box))


def expected(odd: Odd, window: Window) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """0..255 (3, H, W), and which pixels are there."""
    place = odd.place
    cols, rows = np.meshgrid(np.arange(window.col, window.col_stop) + 0.5, np.arange(window.row, window.row_stop) + 0.5)
    there = np.ones(window.shape, bool)
    if odd.hole is not None:
        hole = Window(round(-place.north / GSD) + 40, round(place.west / GSD) + 50, 20, 25)
        there[hole.slices_in(window)] = False
    return place.shown(cols * GSD, -rows * GSD), there


def turned(degrees: float) -> Affine:
    """A raster of half a metre that is turned, and covers what is asked for."""
    centre = (EUROPE.west + 38.4, EUROPE.north - 33.6)
    return (
        Affine.translation(*centre) * Affine.rotation(degrees) * Affine.scale(0.5, -0.5) * Affine.translation(-80, -80)
    )


def write_rows(path: Path, values: npt.NDArray[np.generic], **profile: object) -> str:
    """A raster of three bands as it is, at 0.6 m, its last rows in the south."""
    count, height, width = values.shape
    with rasterio.open(
        path, "w", driver="GTiff", count=count, height=height, width=width, dtype=values.dtype, crs=EUROPE.crs,
        transform=EUROPE.transform, photometric="RGB", **profile,
    ) as raster:  # fmt: skip
        raster.write(values)
    return str(path)


def write_wide(path: Path, side: int, dtype: str, **profile: object) -> str:
    """A raster of `side` x `side` px of which only the north-western corner was ever written."""
    with rasterio.open(
        path, "w", driver="GTiff", count=3, height=side, width=side, dtype=dtype, crs=EUROPE.crs, nodata=0,
        transform=EUROPE.transform, photometric="RGB", SPARSE_OK=True, BIGTIFF="YES", **profile,
    ) as raster:  # fmt: skip
        picture = Odd(dtype=dtype)._pixels(EUROPE.transform, EUROPE.crs)
        raster.write(picture, window=RasterWindow(0, 0, COLS, ROWS))
    return str(path)


def reflectance(scale: float) -> float:
    """The digital number of 255 where reflectance is dn * scale and white at 0.3."""
    return WHITE / scale
