"""The run's pixel grid: an endless lattice of square pixels that hangs on the CRS's origin.

Pixel (row, col) covers x in [col, col + 1) * gsd and y in (-row - 1, -row] * gsd, whatever AOI was drawn. So the
same ground always falls into the same pixels, and everything downstream (windows, reads, outputs) speaks
in whole numbers. Rows grow southwards; north of the CRS's origin they are negative.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from affine import Affine
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox
from pyproj import CRS as ProjCRS
from pyproj import Proj
from pyproj.aoi import AreaOfInterest
from pyproj.database import query_utm_crs_info

from geodino.errors import ConfigError

# A CRS whose linear scale is further than this from 1 at the AOI is not used for metres: UTM stays within
# 0.04 % in its zone and national grids within 0.1 %, Web Mercator is 40 % off at 45 degrees latitude.
MAX_SCALE_ERROR = 0.005


@dataclass(frozen=True)
class Window:
    """A rectangle of whole pixels on the grid; half-open: [row, row + height) x [col, col + width)."""

    row: int
    col: int
    height: int
    width: int

    @property
    def row_stop(self) -> int:
        return self.row + self.height

    @property
    def col_stop(self) -> int:
        return self.col + self.width

    @property
    def shape(self) -> tuple[int, int]:
        return self.height, self.width

    @property
    def empty(self) -> bool:
        return self.height <= 0 or self.width <= 0

    def padded(self, pixels: int) -> Window:
        """The window grown by `pixels` on all four sides (shrunk where negative)."""
        return Window(self.row - pixels, self.col - pixels, self.height + 2 * pixels, self.width + 2 * pixels)

    def intersection(self, other: Window) -> Window:
        """What two windows share; `empty` where they do not meet."""
        row, col = max(self.row, other.row), max(self.col, other.col)
        height = min(self.row_stop, other.row_stop) - row
        width = min(self.col_stop, other.col_stop) - col
        return Window(row, col, max(height, 0), max(width, 0))

    def union(self, other: Window) -> Window:
        """The smallest window that holds both."""
        row, col = min(self.row, other.row), min(self.col, other.col)
        height = max(self.row_stop, other.row_stop) - row
        return Window(row, col, height, max(self.col_stop, other.col_stop) - col)

    def blocks(self, side: int) -> Iterator[Window]:
        """The window cut along the lattice of squares of `side` pixels that hangs on pixel (0, 0), row by row."""
        for row in range(self.row // side * side, self.row_stop, side):
            for col in range(self.col // side * side, self.col_stop, side):
                yield Window(row, col, side, side).intersection(self)

    def slices_in(self, outer: Window) -> tuple[slice, slice]:
        """The (row, col) slices of this window in an array that covers `outer`, which must hold it."""
        row, col = self.row - outer.row, self.col - outer.col
        assert 0 <= row <= outer.height - self.height and 0 <= col <= outer.width - self.width, (self, outer)
        return slice(row, row + self.height), slice(col, col + self.width)


@dataclass(frozen=True)
class Grid:
    """An endless pixel lattice: a projected CRS in metres and a GSD, hung on the CRS's origin.

    Attributes
    ----------
    crs
        Projected, in metres.
    gsd
        Ground sampling distance: metres a pixel, the same along x and y.

    Raises
    ------
    ConfigError
        A GSD of 0, below it, or not finite.
    """

    crs: CRS
    gsd: float

    def __post_init__(self) -> None:
        if not 0 < self.gsd < math.inf:
            raise ConfigError(f"GSD {self.gsd:g} must be over 0 m a pixel and finite")

    def geobox(self, window: Window) -> GeoBox:
        """The window as a georeferenced box."""
        transform = Affine(self.gsd, 0.0, window.col * self.gsd, 0.0, -self.gsd, -window.row * self.gsd)
        return GeoBox(window.shape, transform, self.crs)

    def bounds(self, window: Window) -> tuple[float, float, float, float]:
        """(minx, miny, maxx, maxy) of the window in the grid's CRS, metres."""
        return (
            window.col * self.gsd,
            -window.row_stop * self.gsd,
            window.col_stop * self.gsd,
            -window.row * self.gsd,
        )

    def window_over(self, bounds: tuple[float, float, float, float]) -> Window:
        """The smallest window that holds (minx, miny, maxx, maxy), given in the grid's CRS.

        Bounds within a thousandth of a pixel of a pixel edge count as on it, so that the rounding noise of a file's
        transform (433880.40000000363) does not add a row of empty pixels.
        """
        minx, miny, maxx, maxy = bounds
        slack = 1e-3
        col, row = math.floor(minx / self.gsd + slack), math.floor(-maxy / self.gsd + slack)
        col_stop, row_stop = math.ceil(maxx / self.gsd - slack), math.ceil(-miny / self.gsd - slack)
        return Window(row, col, max(row_stop - row, 1), max(col_stop - col, 1))


def is_metric(crs: CRS, lon: float, lat: float) -> bool:
    """Whether the CRS is projected in metres and true to scale (within 0.5 %) at the point."""
    proj = ProjCRS.from_user_input(str(crs))
    if not proj.is_projected or any(axis.unit_name != "metre" for axis in proj.axis_info[:2]):
        return False
    factors = Proj(proj).get_factors(lon, lat)
    scales = (factors.meridional_scale, factors.parallel_scale)
    return all(abs(scale - 1) <= MAX_SCALE_ERROR for scale in scales)


def utm_crs(lon: float, lat: float) -> CRS:
    """The WGS84 UTM zone (or UPS beyond 84 N and 80 S) of a point in degrees."""
    if not -80 <= lat <= 84:
        return CRS("EPSG:32661" if lat > 0 else "EPSG:32761")
    found = query_utm_crs_info(datum_name="WGS 84", area_of_interest=AreaOfInterest(lon, lat, lon, lat), contains=False)
    return CRS(f"EPSG:{min(found, key=lambda info: info.code).code}")


def by_code(crs: CRS) -> CRS:
    """The same CRS by its EPSG code where it has one, so that it prints in a word and not as a page of WKT."""
    return CRS(f"EPSG:{crs.epsg}") if crs.epsg else crs


def choose_crs(lon: float, lat: float, scene_crs: CRS | None) -> CRS:
    """The CRS of a run: the imagery's own where it keeps true metres at the AOI, else the UTM zone of the AOI."""
    if scene_crs is not None and is_metric(scene_crs, lon, lat):
        return by_code(scene_crs)
    return utm_crs(lon, lat)
