"""Which pixels lie under zones, and what share of each: exactextract's coverage, as flat arrays."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import shapely
from exactextract import exact_extract
from exactextract.feature import FeatureSource, JSONFeature
from exactextract.raster import NumPyRasterSource

from geodino.grid import Window
from geodino.polygons import Shapes

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

# Less of a pixel than this is the rounding of coordinates: a border along a pixel's edge does not meet the next one.
_NOISE = 1e-6


@dataclass(frozen=True, eq=False)
class Cells:
    """Pixels of a window under Z zones, zone after zone.

    Attributes
    ----------
    counts
        (Z,) how many pixels each zone meets.
    row, col
        (N,) of a pixel in the window.
    share
        (N,) of the pixel that lies in the zone, over 0 and up to 1.
    """

    counts: Ints
    row: Ints
    col: Ints
    share: Floats

    @property
    def zone(self) -> Ints:
        """(N,) the zone of each."""
        return np.repeat(np.arange(len(self.counts)), self.counts)

    def total(self, values: npt.NDArray[np.floating]) -> Floats:
        """(Z,) the sums of values (N,) over each zone's pixels."""
        return self._reduced(np.add, values, 0.0)

    def highest(self, values: npt.NDArray[np.floating]) -> Floats:
        """(Z,) the highest of values (N,) of each zone's pixels; -inf where it has none."""
        return self._reduced(np.maximum, values, -np.inf)

    def _reduced(self, how: np.ufunc, values: npt.NDArray[np.floating], empty: float) -> Floats:
        found = np.full(len(self.counts), empty)
        some = self.counts > 0
        if some.any():
            starts = (np.cumsum(self.counts) - self.counts)[some]
            found[some] = how.reduceat(values, starts, dtype=np.float64)
        return found


def cells_under(shapes: Shapes, window: Window) -> Cells:
    """Find the pixels of a window under zones, given in the map's pixels (x columns, y rows upwards).

    Coverage is computed by exactextract (`feature-sequential`, which takes no more memory than one zone's pixels): its
    own `raster-sequential` strategy holds all zones and all values of each to the end, because percentiles need them.
    """
    height, width = window.shape
    # Only where pixels lie is asked for, so one byte a pixel will do: values come from the map's own arrays.
    pixels = NumPyRasterSource(
        np.broadcast_to(np.uint8(0), (height, width)), window.col, -window.row_stop, window.col_stop, -window.row
    )
    found = exact_extract(pixels, _Shapes(shapes), ["cell_id", "coverage"], output="geojson")
    parts = [feature["properties"] for feature in found]
    flat = np.concatenate([np.empty(0, np.int64), *(part["cell_id"] for part in parts)])
    share = np.concatenate([np.empty(0), *(part["coverage"] for part in parts)])
    zone = np.repeat(np.arange(len(parts)), [len(part["cell_id"]) for part in parts])
    real = share > _NOISE
    row, col = np.divmod(flat[real], width)
    return Cells(np.bincount(zone[real], minlength=len(parts)), row, col, share[real])


class _Shape(JSONFeature):  # type: ignore[misc]
    """A polygon that goes to exactextract as WKB, not as text."""

    def __init__(self, wkb: bytes) -> None:
        super().__init__()
        self._wkb = wkb

    def geometry(self) -> bytes:
        return self._wkb


class _Shapes(FeatureSource):  # type: ignore[misc]
    def __init__(self, shapes: Shapes) -> None:
        super().__init__()
        self._wkbs = shapely.to_wkb(shapes)

    def count(self) -> int:
        return len(self._wkbs)

    def __iter__(self) -> Iterator[_Shape]:
        return (_Shape(wkb) for wkb in self._wkbs)

    def srs_wkt(self) -> None:
        return None
