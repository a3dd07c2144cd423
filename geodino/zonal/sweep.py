"""Goes over a map once, square by square, and brings home what is needed of every zone.

Zones that are smaller than a square are done together: all whose north-west corner lies in one square of the map, with
one read of the pixels that they meet. A larger one is done alone, square by square, and its sums are added up. So what
is in memory does not grow with the map, and with the number of zones only by their outlines and figures.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import shapely

from geodino.grid import Window
from geodino.watch import Watch
from geodino.zonal.cells import cells_under
from geodino.zonal.ground import Ground
from geodino.zonal.sums import QUANTILES, Pixels, Settings, Sums, add_up, distributions, joined, percentiles
from geodino.zonal.uncertainty import variances
from geodino.zonal.zones import Placed

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

SQUARE_PX = 1024
"""Side of a square. 20 % more is read than there is for zones of 100 px."""

# Of one lot of zones at once: their blocks of doubts take 32 KB a zone, and each pixel of theirs some 100 bytes.
_LOT_ZONES = 256
_LOT_PIXELS = 500_000


@dataclass(frozen=True, eq=False)
class Harvest:
    """What figures of Z zones are made of.

    Attributes
    ----------
    sums
        Their sums, without blocks of doubts.
    percentiles_m
        (Z, Q) of QUANTILES.
    variance
        (Z, T + 1) of `sums.likely_m2` and of `sums.height_m3`.
    step_m
        (Z, 2) metres on the ground from row to row and column to column; 1 where a zone does not meet the map.
    """

    sums: Sums
    percentiles_m: Floats
    variance: Floats
    step_m: Floats


def sweep(ground: Ground, placed: Placed, settings: Settings, watch: Watch) -> Harvest:
    """Bring home what figures of zones are made of.

    Raises
    ------
    InputError, ReadError
        As of `Ground.read`.
    """
    count = len(placed.shapes)
    found = Harvest(
        Sums.empty(count, settings),
        np.full((count, len(QUANTILES)), np.nan),
        np.zeros((count, len(settings.cover_m) + 1)),
        np.ones((count, 2)),
    )
    run = _Sweep(ground, placed, settings, found)
    meets = np.flatnonzero(placed.meets)
    large = np.maximum(placed.height, placed.width)[meets] > SQUARE_PX
    watch.begin("zones", len(meets))
    done = 0
    for window, lots in _lots(placed, meets[~large]):
        run.together(window, lots)
        done += sum(map(len, lots))
        watch.advance(done)
    for zone in meets[large].tolist():
        run.alone(zone)
        done += 1
        watch.advance(done)
    return found


def _lots(placed: Placed, zones: Ints) -> Iterator[tuple[Window, list[Ints]]]:
    """Zones by the square of their north-west corner, each square's with the window around them all."""
    square = np.stack([placed.row[zones], placed.col[zones]]) // SQUARE_PX
    order = np.lexsort((zones, square[1], square[0]))
    zones, square = zones[order], square[:, order]
    breaks = np.flatnonzero((np.diff(square, axis=1) != 0).any(axis=0)) + 1
    for group in np.split(zones, breaks) if len(zones) else ():
        row, col = int(placed.row[group].min()), int(placed.col[group].min())
        height, width = int(placed.row_stop[group].max()) - row, int(placed.col_stop[group].max()) - col
        pixels = np.cumsum(placed.height[group] * placed.width[group])
        lot = np.maximum(pixels // _LOT_PIXELS, np.arange(len(group)) // _LOT_ZONES)
        # A lot ends where either limit is passed.
        yield Window(row, col, height, width), np.split(group, np.flatnonzero(np.diff(lot)) + 1)


@dataclass(frozen=True, eq=False)
class _Sweep:
    """A sweep under way: the map, the zones on it, and what has been found."""

    ground: Ground
    placed: Placed
    settings: Settings
    found: Harvest

    def together(self, window: Window, lots: list[Ints]) -> None:
        """Take the zones of a square, lot by lot, over one read of it."""
        pixels = self._pixels(window)
        for zones in lots:
            cells = cells_under(self.placed.shapes[zones], window)
            sums = add_up(cells, pixels, self.placed.layout.take(zones), self.settings)
            self._keep(zones, sums, distributions(cells, pixels))

    def alone(self, zone: int) -> None:
        """Take one zone, square by square."""
        box, shape = self.placed.window(zone), self.placed.shapes[[zone]]
        zones = np.array([zone])
        layout = self.placed.layout.take(zones)
        shapely.prepare(shape)
        total, share = None, np.zeros(0)
        for row in range(box.row, box.row_stop, SQUARE_PX):
            for col in range(box.col, box.col_stop, SQUARE_PX):
                window = Window(row, col, SQUARE_PX, SQUARE_PX).intersection(box)
                if not shapely.intersects(shape[0], shapely.box(col, -window.row_stop, window.col_stop, -row)):
                    continue
                pixels, cells = self._pixels(window), cells_under(shape, window)
                sums = add_up(cells, pixels, layout, self.settings)
                total = sums if total is None else total + sums
                share = joined(share, distributions(cells, pixels)[0])
        # A zone whose box alone meets the map has none.
        if total is not None:
            self._keep(zones, total, [share])

    def _pixels(self, window: Window) -> Pixels:
        height, spread = self.ground.read(window)
        return Pixels(height, spread, self.ground.pixel_areas_m2(window), window.row, window.col)

    def _keep(self, zones: Ints, sums: Sums, shares: list[Floats]) -> None:
        found = self.found
        found.sums.put(zones, sums)
        found.percentiles_m[zones] = [percentiles(share) for share in shares]
        found.step_m[zones] = self.ground.steps_m(*self.placed.middle_of(zones))
        if sums.doubts.shape[-1]:
            layout = self.placed.layout.take(zones)
            found.variance[zones] = variances(
                sums.doubts, sums.doubts2, layout, found.step_m[zones], self.settings.errs
            )
