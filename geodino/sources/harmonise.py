"""Scenes of one mosaic brought to one look: each further scene to those before it, over the ground that both show.

Flights of different days differ in haze, season and in how their colours were made, and a model sees that as a
difference of the ground. What is fitted belongs to the scene, is decided once before the run on whole footprints, from
overviews, and changes no pixel otherwise than by its own value: so it knows no window and makes no seam.

Two ways. `regression` fits a line for each band by the reduced major axis, the line of equal variance that noise in
neither scene flattens (unlike least squares), to the pairs that fit it: what grew, was built or lay in shadow on one of
the dates falls out, and what stays is called pseudo-invariant elsewhere (Schott et al. 1988). `histogram` makes the
quantiles of each band those of the scenes before it, and can bend where a line cannot.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from geodino.grid import Grid, Window
from geodino.sources.mosaic import Mosaic
from geodino.sources.scene import Look, Scene
from geodino.sources.warp import footprint_window

Floats = npt.NDArray[np.float64]

# Pairs are means over 4 x 4 pixels at least, so that what two flights show a metre apart is the same.
_LEAST_COARSER = 4
# Side of the thinned overlap, pixels.
_SIDE = 512
# Fewer pairs say nothing certain of a gain.
LEAST_PAIRS = 200
# A lower correlation means that the two show different things there, such as a cloud: a line through that is worse than
# none.
LEAST_CORRELATION = 0.5
_GAIN = (0.25, 4.0)
# Pairs further from the line than so many standard deviations (from the median absolute deviation) are left out.
_OUTLIER = 2.5
_MAD_TO_STD = 1.4826
# A quarter of an 8-bit step; nearer than that is the same.
_LEAST_AWAY = 1e-3
_ROUNDS = 20
_QUANTILES = np.linspace(0.0, 1.0, 65)


@dataclass(frozen=True)
class Harmonised:
    """Scenes with their looks, and a sentence about each that stays as it is though it was asked for."""

    scenes: tuple[Scene, ...]
    notes: tuple[str, ...]


def harmonise(scenes: Sequence[Scene], grid: Grid, how: Literal["histogram", "regression"]) -> Harmonised:
    """Scenes in mosaic order, each but the first with the look that brings it to those before it.

    A scene that shares no ground with any before it stays as it is, and is named; so is one whose overlap says nothing.

    Raises
    ------
    ReadError
        A scene cannot be read.
    """
    done: list[Scene] = list(scenes[:1])
    notes: list[str] = []
    for scene in scenes[1:]:
        pairs, onto = _pairs(scene, done, grid)
        look, why = _FITS[how](pairs, onto) if onto else (None, "shares no ground with a scene before it")
        if look is None:
            notes.append(f"scene {scene.id} {why} and is not harmonised")
        done.append(replace(scene, look=look))
    return Harmonised(tuple(done), tuple(notes))


def _pairs(scene: Scene, before: Sequence[Scene], grid: Grid) -> tuple[tuple[Floats, Floats], tuple[str, ...]]:
    """Values (3, N) in 0..1 of the scene and of those before it where both have a pixel, and which of them gave it."""
    footprint = scene.footprint_in(grid.crs)
    met = [other for other in before if other.footprint_in(grid.crs).intersection(footprint).area > 0]
    nothing = np.empty((3, 0)), np.empty((3, 0))
    if not met:
        return nothing, ()
    window = _shared_window(scene, met, grid)
    coarser = _LEAST_COARSER
    while max(window.shape) > coarser * _SIDE:
        coarser *= 2
    thin = Grid(grid.crs, grid.gsd * coarser)
    part = thin.window_over(grid.bounds(window))
    # Averages, so that a pair is of the same ground and not of two points of it.
    with Mosaic([scene], thin, "average") as one, Mosaic(met, thin, "average") as others:
        mine, theirs = one.read(part), others.read(part)
    both = mine.valid & theirs.valid
    if not both.any():
        return nothing, ()
    onto = tuple(met[number - 1].id for number in np.unique(theirs.scene[both]).tolist())
    return (mine.image[:, both].astype(np.float64), theirs.image[:, both].astype(np.float64)), onto


def _shared_window(scene: Scene, met: Sequence[Scene], grid: Grid) -> Window:
    mine = footprint_window(scene, grid)
    shared = [mine.intersection(footprint_window(other, grid)) for other in met]
    window = shared[0]
    for other in shared[1:]:
        window = window.union(other)
    return window


def _by_regression(pairs: tuple[Floats, Floats], onto: tuple[str, ...]) -> tuple[Look | None, str]:
    knots, counts = [], []
    for mine, theirs in zip(*pairs, strict=True):
        # What is black or white is cut off there, and its true value unknown.
        whole = (mine > 0) & (mine < 1) & (theirs > 0) & (theirs < 1)
        line, why = robust_line(mine[whole], theirs[whole])
        if line is None:
            return None, why
        knots.append(((0.0, 1.0), (line.offset, line.gain + line.offset)))
        counts.append(line.pairs)
    return Look("regression", onto, min(counts), tuple(knots)), ""


@dataclass(frozen=True)
class Line:
    """y = gain * x + offset, and the number of pairs that fit it."""

    gain: float
    offset: float
    pairs: int


def robust_line(x: Floats, y: Floats) -> tuple[Line | None, str]:
    """The reduced major axis of the pairs that fit it, or None and why there is none.

    It starts from quartiles, which a little changed ground hardly moves, and drops what lies far from the line until
    the same pairs stay.
    """
    if len(x) < LEAST_PAIRS:
        return None, f"shares only {len(x)} usable pixels with those before it"
    gain, offset = _through_medians(x, y)
    keep = np.ones(len(x), bool)
    for _ in range(_ROUNDS):
        away = np.abs(y - gain * x - offset)
        now = away <= max(_OUTLIER * _MAD_TO_STD * float(np.median(away)), _LEAST_AWAY)
        if not x[now].std() or not y[now].std():
            return None, "shares with those before it only ground of one shade"
        gain = float(y[now].std() / x[now].std())
        offset = float(y[now].mean() - gain * x[now].mean())
        settled, keep = bool((now == keep).all()), now
        if settled:
            break
    correlation = float(np.corrcoef(x[keep], y[keep])[0, 1])
    if correlation < LEAST_CORRELATION:
        return None, f"shows other things than those before it (correlation {correlation:.2f})"
    if not _GAIN[0] <= gain <= _GAIN[1]:
        return None, f"would need a gain of {gain:.2g}"
    return Line(gain, offset, int(keep.sum())), ""


def _through_medians(x: Floats, y: Floats) -> tuple[float, float]:
    """Gain from the quartiles' distances and offset from the medians; a gain of 1 where half of x is one shade."""
    (x_low, x_mid, x_high), (y_low, y_mid, y_high) = (np.quantile(side, (0.25, 0.5, 0.75)) for side in (x, y))
    gain = float((y_high - y_low) / (x_high - x_low)) if x_high > x_low and y_high > y_low else 1.0
    return gain, float(y_mid - gain * x_mid)


def _by_histogram(pairs: tuple[Floats, Floats], onto: tuple[str, ...]) -> tuple[Look | None, str]:
    mine, theirs = pairs
    pixels = mine.shape[1]
    if pixels < LEAST_PAIRS:
        return None, f"shares only {pixels} usable pixels with those before it"
    return Look("histogram", onto, pixels, tuple(_matched(x, y) for x, y in zip(mine, theirs, strict=True))), ""


def _matched(x: Floats, y: Floats) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Knots from the quantiles of x to those of y, each x once; beyond the outermost it goes on by their difference."""
    at, first = np.unique(np.quantile(x, _QUANTILES), return_index=True)
    to = np.quantile(y, _QUANTILES)[first]
    knots = list(zip(at.tolist(), to.tolist(), strict=True))
    (x_low, y_low), (x_high, y_high) = knots[0], knots[-1]
    if x_low > 0:
        knots.insert(0, (0.0, y_low - x_low))
    if x_high < 1:
        knots.append((1.0, y_high + 1 - x_high))
    return tuple(knot[0] for knot in knots), tuple(knot[1] for knot in knots)


_FITS = {"regression": _by_regression, "histogram": _by_histogram}
