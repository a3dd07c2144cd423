"""How unsure a figure of a zone is: doubts of its pixels, which err together, summed up, and intervals from that.

The variance of a sum of pixels is the sum over all pairs of them,

    var(sum w_i e_i) = sum_i sum_j  w_i w_j  s_i s_j  rho(d_ij),    rho(d) = shared + (1 - shared) exp(-d / range),

with s_i the doubt of a pixel and d_ij the metres between two: the propagation of errors that differ from pixel to pixel
and are correlated over a short and a long range (Hugonnet et al. 2022, doi:10.1109/JSTARS.2022.3188922; Rolstad et al.
2009, doi:10.3189/002214309789470950). `shared` is the long range, longer than any zone: what a whole scene has too high
or too low does not average out however large the zone is.

Pairs of millions of pixels are too many. So each zone is laid out in at most 32 x 32 square blocks of whole pixels, and
the sum goes over pairs of blocks, with the mean correlation of all pairs of pixels between two blocks: exact for zones
of at most 32 pixels a side. In larger ones the doubts of a block lie in its doubtful part, which is taken for a square;
the standard deviation comes out within 5 % (tests/test_zonal_uncertainty.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy import fft, special

from geodino.errors import ConfigError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

BLOCKS = 32
"""Blocks a side that a zone is laid out in at most."""

# Parts a side of a block between which correlation is taken from the middles, for blocks that do not touch.
_PARTS = 8


@dataclass(frozen=True)
class Correlation:
    """How far pixels err together.

    The defaults are what the errors of a first nano had on `autzen_val` (0.23 km2 of Eugene, Oregon, lidar against the
    map, November 2026): means of blocks of 5 to 60 m varied as if heights were correlated over 9 to 10 m, and whether a
    pixel is over 2, 5 or 10 m over 6 to 14 m; beyond 45 m a correlation of 0.03 to 0.15 stayed. Those of nano as it
    is go together over 2 to 5 m and 0.02 there, beside the photo that it learned from; the defaults stay the wider
    ones, as other ground is not like that. Measure your own where it matters (benchmarks/intervals.py). No interval of
    this kind knows a bias.

    Attributes
    ----------
    range_m
        Metres over which correlation falls to 1/e; 0 for pixels that err each for itself.
    shared
        Share of the variance that all pixels have in common, 0..1.

    Raises
    ------
    ConfigError
        Values that cannot be.
    """

    range_m: float = 10.0
    shared: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.range_m < math.inf:
            raise ConfigError(f"error range {self.range_m:g} m must be 0 or more and finite")
        if not 0 <= self.shared <= 1:
            raise ConfigError(f"shared error {self.shared:g} must lie in 0 to 1")


@dataclass(frozen=True, eq=False)
class Layout:
    """How each of Z zones is laid out in blocks.

    Attributes
    ----------
    row, col
        (Z,) pixel of the zone's north-west corner.
    level
        (Z,) a block is 2**level pixels a side.
    """

    row: Ints
    col: Ints
    level: Ints

    @classmethod
    def of(cls, row: Ints, col: Ints, height: Ints, width: Ints) -> Layout:
        """For zones of that many pixels from north to south and from west to east."""
        most = np.maximum(np.maximum(height, width), 1)
        # The smallest level whose blocks are enough: 2**level * BLOCKS >= most.
        level = np.maximum(np.frexp((most - 1) / BLOCKS)[1], 0)
        return cls(row, col, level.astype(np.int64))

    def take(self, zones: npt.NDArray[np.int64] | slice) -> Layout:
        """Of some of the zones."""
        return Layout(self.row[zones], self.col[zones], self.level[zones])

    def block_of(self, zone: Ints, row: Ints, col: Ints) -> Ints:
        """(N,) the block in 0..BLOCKS**2 - 1 that a pixel of the zone lies in; pixels off the zone go to its edge."""
        down = (row - self.row[zone]) >> self.level[zone]
        right = (col - self.col[zone]) >> self.level[zone]
        return np.asarray(np.clip(down, 0, BLOCKS - 1) * BLOCKS + np.clip(right, 0, BLOCKS - 1))


def variances(sums: Floats, squares: Floats, layout: Layout, step_m: Floats, errs: Correlation) -> Floats:
    """Return (Z, K) variances of sums over the pixels of zones.

    Parameters
    ----------
    sums
        (Z, K, BLOCKS**2), of weight times doubt, over the pixels of each block.
    squares
        (Z, K) sums of their squares over all pixels of the zone.
    layout
        Of the Z zones.
    step_m
        (Z, 2) metres on the ground from row to row and from column to column.
    """
    found = _between_blocks(sums, layout, step_m, errs)
    own = (sums**2).sum(axis=2)
    # How many pixels of a block its doubt lies in: all where it is even, few where the zone cuts the block.
    held = np.log2(np.maximum(own / np.where(squares > 0, squares, np.inf), 1)) / 2
    for zones, level, down_m, right_m in _alike(layout, step_m):
        near = [_block_correlation(finer, down_m, right_m, errs.range_m)[0, 0] for finer in range(level + 1)]
        within = np.exp(np.interp(held[zones], np.arange(level + 1), np.log(near)))
        found[zones] += (1 - errs.shared) * own[zones] * (within - near[level])
    return found


def variances_of_points(sums: Floats, squares: Floats, layout: Layout, step_m: Floats, errs: Correlation) -> Floats:
    """Return (Z, K) variances of sums over points; parameters as in `variances`.

    Points are strewn over a block, not gathered in a part of it, and each is wholly correlated with itself alone.
    """
    found = _between_blocks(sums, layout, step_m, errs)
    for zones, level, down_m, right_m in _alike(layout, step_m):
        other = 1 - _block_correlation(level, down_m, right_m, errs.range_m)[0, 0]
        found[zones] += (1 - errs.shared) * other * squares[zones]
    return found


def _between_blocks(sums: Floats, layout: Layout, step_m: Floats, errs: Correlation) -> Floats:
    """(Z, K) variances where the doubt of each block lies evenly in it."""
    near = np.zeros(sums.shape[:2])
    for zones, level, down_m, right_m in _alike(layout, step_m):
        grids = sums[zones].reshape(len(zones), -1, BLOCKS, BLOCKS)
        waves = fft.rfft2(grids, s=(2 * BLOCKS, 2 * BLOCKS))
        spectrum = _spectrum(level, down_m, right_m, errs.range_m)
        near[zones] = np.einsum("zkij,ij->zk", waves.real**2 + waves.imag**2, spectrum)
    return np.asarray(np.maximum(errs.shared * sums.sum(axis=2) ** 2 + (1 - errs.shared) * near, 0))


def share_interval(mean: Floats, variance: Floats, level: float) -> tuple[Floats, Floats]:
    """Return the central interval of a share in 0..1 of that mean and variance, by the beta distribution that has them.

    A share of pixels that are all sure, 0 or 1, is itself. An interval holds its mean also where that distribution
    is so skewed that its middle part does not: next to no chance of anything. NaN where the mean is.
    """
    most = mean * (1 - mean)
    sure = (variance <= 1e-12) | (most <= 1e-12)
    size = np.maximum(most / np.where(sure, 1.0, variance) - 1, 1e-9)
    ends = []
    for tail in ((1 - level) / 2, (1 + level) / 2):
        end = special.betaincinv(mean * size, (1 - mean) * size, tail)
        # Below that scipy gives the least number there is.
        ends.append(np.where(sure, mean, np.where(end < 1e-12, 0.0, end)))
    return np.minimum(ends[0], mean), np.maximum(ends[1], mean)


def count_interval(count: Floats, variance: Floats, level: float) -> tuple[Floats, Floats]:
    """Return the interval of a count of that variance, by gamma distributions (Fay and Feuer 1997, Stat. Med. 16, 791).

    With the count itself as its variance it is the exact interval of a Poisson count; where nothing was counted the
    upper end is the Poisson one, 3.7 for 95 %. Ends are whole numbers, rounded outwards; NaN where the variance is.
    """
    tail = (1 - level) / 2
    some = (count > 0) & (variance > 0)
    spread = np.where(some, variance / np.maximum(count, 1), 1.0)
    low = np.where(some, special.gammaincinv(count / spread, tail) * spread, count)
    wide = (variance + 1) / (count + 1)
    high = special.gammaincinv((count + 1) / wide, 1 - tail) * wide
    known = ~np.isnan(variance)
    return np.where(known, np.floor(low + 1e-9), np.nan), np.where(known, np.ceil(high - 1e-9), np.nan)


def mean_interval(mean: Floats, variance: Floats, level: float) -> tuple[Floats, Floats]:
    """Return the normal interval of a mean that cannot be under 0."""
    reach = special.ndtri((1 + level) / 2) * np.sqrt(variance)
    return np.maximum(mean - reach, 0), mean + reach


def _alike(layout: Layout, step_m: Floats) -> Iterator[tuple[Ints, int, float, float]]:
    """Zones whose blocks and pixels are of one size, to three digits, so that zones of one map share their tables."""
    digit = 10.0 ** (np.floor(np.log10(step_m)) - 2)
    steps = np.round(step_m / digit) * digit
    sizes, which = np.unique(np.column_stack([layout.level, steps]), axis=0, return_inverse=True)
    for index, (level, down_m, right_m) in enumerate(sizes.tolist()):
        yield np.flatnonzero(which.ravel() == index), int(level), down_m, right_m


@lru_cache(maxsize=256)
def _spectrum(level: int, down_m: float, right_m: float, range_m: float) -> Floats:
    """(2 BLOCKS, BLOCKS + 1): the correlation between blocks as weights of squared Fourier terms of their sums."""
    quarter = _block_correlation(level, down_m, right_m, range_m)
    lags = np.abs(fft.fftfreq(2 * BLOCKS, 1 / (2 * BLOCKS))).astype(int)
    # A lag of BLOCKS joins no two blocks of a zone.
    inside = np.minimum(lags, BLOCKS - 1)
    whole = quarter[np.ix_(inside, inside)] * np.outer(lags < BLOCKS, lags < BLOCKS)
    found = fft.rfft2(whole).real / (2 * BLOCKS) ** 2
    # Of a real field only half of the terms are kept; the others are their mirror images.
    found[:, 1:BLOCKS] *= 2
    return np.asarray(found)


@lru_cache(maxsize=256)
def _block_correlation(level: int, down_m: float, right_m: float, range_m: float) -> Floats:
    """(BLOCKS, BLOCKS): mean of exp(-d / range) over the pairs of pixels of two blocks so many rows, columns apart."""
    side = 2**level
    parts = min(side, _PARTS)
    steps = np.arange(-parts + 1, parts)
    share = (parts - np.abs(steps)) / parts**2
    apart = (np.arange(BLOCKS)[:, None] + steps / parts) * side
    down, right = apart * down_m, apart * right_m
    distance = np.hypot(down[:, None, :, None], right[None, :, None, :])
    found = np.einsum("klab,a,b->kl", _decayed(distance, range_m), share, share)
    if side <= _PARTS:
        return np.asarray(found)
    # Blocks that touch have pairs nearer than their parts tell: they come from the blocks of half their side.
    finer = _block_correlation(level - 1, down_m, right_m, range_m)
    for k in (0, 1):
        for m in (0, 1):
            lags = [np.abs(2 * lag + np.array([-1, 0, 1])) for lag in (k, m)]
            found[k, m] = np.einsum("ab,a,b->", finer[np.ix_(*lags)], [0.25, 0.5, 0.25], [0.25, 0.5, 0.25])
    return np.asarray(found)


def _decayed(distance: Floats, range_m: float) -> Floats:
    if range_m == 0:
        return np.asarray(distance == 0, np.float64)
    return np.asarray(np.exp(-distance / range_m))
