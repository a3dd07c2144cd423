"""What is added up over the pixels of zones, window by window, and everything that figures are made of."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields

import numpy as np
import numpy.typing as npt
from scipy import special

from geodino.errors import ConfigError
from geodino.zonal.cells import Cells
from geodino.zonal.uncertainty import BLOCKS, Correlation, Ints, Layout

Floats = npt.NDArray[np.float64]
Singles = npt.NDArray[np.float32]

QUANTILES = (0.5, 0.95)

QUANTUM_M = 1 / 128
"""Heights are rounded to this for percentiles alone: geodino's own maps lie on it, others move by at most 4 mm."""

# Pixels cover a zone to seven digits, so a share of its area that is missing by less is not missing.
_SLACK = 1e-6


@dataclass(frozen=True)
class Settings:
    """What is said of each zone.

    Attributes
    ----------
    cover_m
        Canopy cover is the share of the seen ground that is higher than each of these, metres.
    classes_m
        Heights between which the seen area is split up: up to the first and with it, from there to the second, and so
        on, and over the last.
    least_valid_percent
        A zone of which less has been seen gets no figure.
    errs
        How far pixels err together.
    level
        Of the intervals, 0..1.

    Raises
    ------
    ConfigError
        Values that cannot be.
    """

    cover_m: tuple[float, ...] = (2.0, 5.0, 10.0)
    classes_m: tuple[float, ...] = (2.0, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0)
    least_valid_percent: float = 50.0
    errs: Correlation = field(default_factory=Correlation)
    level: float = 0.95

    def __post_init__(self) -> None:
        for name, heights in (("cover", self.cover_m), ("classes", self.classes_m)):
            if not all(0 <= height < math.inf for height in heights):
                raise ConfigError(f"{name} {_listed(heights)} must be heights of 0 m or more")
            if not heights:
                raise ConfigError(f"{name} needs at least one height, such as 2 m")
            if list(heights) != sorted(set(heights)):
                raise ConfigError(f"{name} {_listed(heights)} must grow, each height once")
        if not 0 <= self.least_valid_percent <= 100:
            raise ConfigError(f"least valid share {self.least_valid_percent:g} % must lie in 0 to 100")
        if not 0 < self.level < 1:
            raise ConfigError(f"level {self.level:g} of the intervals must lie between 0 and 1, such as 0.95")


@dataclass(frozen=True, eq=False)
class Sums:
    """Sums over the pixels of Z zones, each with the area of it that lies in the zone, geodesic.

    Attributes
    ----------
    met_m2, seen_m2, sure_m2
        (Z,) area in the map, of it with a known height, and of that with a known spread.
    height_m3
        (Z,) area times height.
    highest_m
        (Z,) -inf where nothing was seen.
    above_m2
        (Z, T) area higher than each height of `cover_m`.
    class_m2
        (Z, B) area of each class.
    likely_m2
        (Z, T) area times the probability that it is higher.
    doubts
        (Z, T + 1, BLOCKS**2) area times the doubt whether it is higher, and last of its height, over each block.
    doubts2
        (Z, T + 1) sums of their squares, pixel by pixel.
    """

    met_m2: Floats
    seen_m2: Floats
    sure_m2: Floats
    height_m3: Floats
    highest_m: Floats
    above_m2: Floats
    class_m2: Floats
    likely_m2: Floats
    doubts: Floats
    doubts2: Floats

    @classmethod
    def empty(cls, count: int, settings: Settings) -> Sums:
        """Of zones without pixels, and without blocks of doubts."""
        covers, classes = (count, len(settings.cover_m)), (count, len(settings.classes_m) + 1)
        return cls(
            met_m2=np.zeros(count),
            seen_m2=np.zeros(count),
            sure_m2=np.zeros(count),
            height_m3=np.zeros(count),
            highest_m=np.full(count, -np.inf),
            above_m2=np.zeros(covers),
            class_m2=np.zeros(classes),
            likely_m2=np.zeros(covers),
            doubts=np.zeros((count, covers[1] + 1, 0)),
            doubts2=np.zeros((count, covers[1] + 1)),
        )

    def put(self, zones: Ints, found: Sums) -> None:
        """Take in sums of some zones, but for the blocks of their doubts."""
        for part in fields(self):
            if part.name != "doubts":
                getattr(self, part.name)[zones] = getattr(found, part.name)

    def __add__(self, other: Sums) -> Sums:
        """Of the same zones over other pixels."""
        joined = {part.name: getattr(self, part.name) + getattr(other, part.name) for part in fields(self)}
        return Sums(**joined | {"highest_m": np.maximum(self.highest_m, other.highest_m)})


@dataclass(frozen=True, eq=False)
class Pixels:
    """A window of the map.

    Attributes
    ----------
    height
        (H, W) metres, NaN where unknown.
    spread
        The same of their standard deviations; None: not known at all.
    area_m2
        (H,) of a pixel of each row.
    row, col
        Of the window's first pixel in the map.
    """

    height: Singles
    spread: Singles | None
    area_m2: Floats
    row: int
    col: int


def add_up(cells: Cells, pixels: Pixels, layout: Layout, settings: Settings) -> Sums:
    """Sum up the pixels of a window under zones."""
    area = cells.share * pixels.area_m2[cells.row]
    height = pixels.height[cells.row, cells.col]
    known = np.isfinite(height)
    met = cells.total(area)
    highest = cells.highest(np.where(known, height, -np.inf))
    area, height = np.where(known, area, 0), np.where(known, height, 0)
    above = np.zeros((len(met), len(settings.cover_m)))
    for column, least in enumerate(settings.cover_m):
        above[:, column] = cells.total(np.where(height > least, area, 0))
    sure, likely, doubts, doubts2 = _doubts(cells, pixels, layout, settings, (area, height))
    return Sums(
        met_m2=met,
        seen_m2=cells.total(area),
        sure_m2=sure,
        height_m3=cells.total(area * height),
        highest_m=highest,
        above_m2=above,
        class_m2=_by_class(cells, area, height, settings.classes_m),
        likely_m2=likely,
        doubts=doubts,
        doubts2=doubts2,
    )


def distributions(cells: Cells, pixels: Pixels) -> list[Floats]:
    """Of each zone the seen area by height, in steps of QUANTUM_M from 0 up to its highest."""
    height = pixels.height[cells.row, cells.col]
    known = np.isfinite(height)
    step = np.round(np.where(known, height, 0) / QUANTUM_M).astype(np.int64)
    area = np.where(known, cells.share * pixels.area_m2[cells.row], 0)
    stops = np.cumsum(cells.counts)
    return [
        np.asarray(np.bincount(step[stop - count : stop], area[stop - count : stop]), np.float64)
        for stop, count in zip(stops.tolist(), cells.counts.tolist(), strict=True)
    ]


def joined(one: Floats, other: Floats) -> Floats:
    """The sum of two distributions."""
    found = np.zeros(max(len(one), len(other)))
    found[: len(one)] += one
    found[: len(other)] += other
    return found


def percentiles(distribution: Floats) -> list[float]:
    """The lowest heights that QUANTILES of the area are not above, metres; NaN where there is no area.

    As numpy's `inverted_cdf`: no height that is not in the map.
    """
    below = np.cumsum(distribution)
    if not len(below) or below[-1] <= 0:
        return [math.nan] * len(QUANTILES)
    found = np.searchsorted(below, np.array(QUANTILES) * below[-1] * (1 - _SLACK))
    return [float(step * QUANTUM_M) for step in found]


def _by_class(cells: Cells, area: Floats, height: Singles, edges: tuple[float, ...]) -> Floats:
    number = np.searchsorted(np.array(edges), height, side="left")
    count = len(edges) + 1
    flat = np.bincount(cells.zone * count + number, area, len(cells.counts) * count)
    return np.asarray(flat.reshape(-1, count), np.float64)


def _doubts(
    cells: Cells, pixels: Pixels, layout: Layout, settings: Settings, known: tuple[Floats, Singles]
) -> tuple[Floats, Floats, Floats, Floats]:
    """Area with a known spread, likely area, and the doubts and their squares; no figures where there is no spread."""
    zones, covers = len(cells.counts), len(settings.cover_m)
    if pixels.spread is None:
        none = np.zeros(zones)
        return none, np.zeros((zones, covers)), np.zeros((zones, covers + 1, 0)), np.zeros((zones, covers + 1))
    area, height = known
    spread = pixels.spread[cells.row, cells.col]
    sure = np.isfinite(spread)
    area, spread = np.where(sure, area, 0), np.where(sure, spread, np.float32(0))
    zone = cells.zone
    block = zone * BLOCKS**2 + layout.block_of(zone, cells.row + pixels.row, cells.col + pixels.col)
    likely = np.zeros((zones, covers))
    doubts, doubts2 = np.zeros((zones, covers + 1, BLOCKS**2)), np.zeros((zones, covers + 1))

    def put(column: int, doubt: npt.NDArray[np.floating]) -> None:
        weighed = area * doubt
        doubts[:, column] = np.bincount(block, weighed, zones * BLOCKS**2).reshape(zones, -1)
        doubts2[:, column] = cells.total(weighed**2)

    for column, least in enumerate(settings.cover_m):
        chance = chance_above(height, spread, least)
        likely[:, column] = cells.total(area * chance)
        put(column, np.sqrt(chance * (1 - chance)))
    put(covers, spread)
    return cells.total(area), likely, doubts, doubts2


def chance_above(height: Singles, spread: Singles, least: float) -> Singles:
    """The probability that a height is over `least`, for a normal distribution of that mean and standard deviation.

    A spread of 0 leaves no doubt.
    """
    some = spread > 0
    z = (height - np.float32(least)) / np.where(some, spread, np.float32(1))
    return np.asarray(np.where(some, special.ndtr(z), height > least), np.float32)


def _listed(heights: tuple[float, ...]) -> str:
    return ", ".join(f"{height:g}" for height in heights) + " m"
