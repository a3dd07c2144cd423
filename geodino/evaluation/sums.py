"""Figures with intervals, from sums that are kept for each piece of ground.

Every figure here is a formula of sums: of errors, of squares, of hits. The sums are kept for each unit of ground (a
chip, or a block of pixels), so that a figure of any choice of units costs an addition: of a fold, of a city, or of the
thousand resamples that give its interval.

Neighbouring pixels err together, and so do chips of one place. So places are resampled, with replacement, all units of
a place at once (the cluster bootstrap, Davison and Hinkley 1997, section 3.8), and the interval is between the 2.5th
and the 97.5th percentile of the figures of the resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

Totals = Mapping[str, Floats]
"""Name -> (R, ...): the sums of R choices of units."""

FEWEST = 5
"""Places below which no interval over places is given, and units below which none is given at all."""

RESAMPLES = 1000

# Of a figure's resamples that must have a value: a height class that grows at one place is missing from a third.
_MOST_LOST = 0.1
# Numbers held at once while units are drawn.
_DRAWS = 4_000_000


@dataclass(frozen=True)
class Formula:
    """How a figure comes from sums.

    Attributes
    ----------
    name, title
        In JSON, and in tables and pictures; "{piece}" in a title stands for what a unit of ground is.
    unit
        "m", "%", or "" for a pure number.
    of
        Totals to (R,), or to (R, C) where the totals have classes; NaN where it has no value.
    needs
        A column without which there is no such figure; none in particular where empty.
    """

    name: str
    title: str
    unit: str
    of: Callable[[Totals], Floats]
    needs: str = ""

    def possible(self, totals: Totals) -> bool:
        return not self.needs or self.needs in totals


@dataclass(frozen=True)
class Figure:
    """A figure, with the interval that its resamples fall into 95 times of 100; None where there is none."""

    name: str
    title: str
    unit: str
    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, eq=False)
class Sums:
    """Sums of units of ground.

    Attributes
    ----------
    columns
        Name -> (U, ...) float64, one row a unit.
    places
        (U,) str, the place that each unit lies in.
    chips
        (U,) int, the chip that each unit is part of.
    unit
        What a unit is: "chips", "blocks of 50 px".
    ground
        What the places are: "places", "blocks of 154 m".
    """

    columns: Mapping[str, Floats]
    places: npt.NDArray[np.str_]
    chips: npt.NDArray[np.intp]
    unit: str
    ground: str = "places"

    def __len__(self) -> int:
        return len(self.places)

    @property
    def piece(self) -> str:
        """What one unit is: "chip", "square of 250 px"."""
        noun, *rest = self.unit.split(" ")
        return " ".join([noun.removesuffix("s"), *rest])

    def where(self, keep: npt.NDArray[np.bool_]) -> Sums:
        """The units of a mask (U,)."""
        columns = {name: values[keep] for name, values in self.columns.items()}
        return replace(self, columns=columns, places=self.places[keep], chips=self.chips[keep])

    def total(self) -> Totals:
        """The sums of all units, with a first axis of one."""
        return {name: values.sum(axis=0, keepdims=True) for name, values in self.columns.items()}

    def of_each(self, groups: npt.NDArray[np.str_]) -> tuple[npt.NDArray[np.str_], Totals]:
        """The names of the groups that units (U,) belong to, sorted, and the sums of each."""
        names, group_of = np.unique(groups, return_inverse=True)
        summed = {}
        for name, values in self.columns.items():
            found = np.zeros((len(names), *values.shape[1:]))
            np.add.at(found, group_of, values)
            summed[name] = found
        return names, summed


def collect(parts: Iterable[tuple[Mapping[str, Floats], str]], *, unit: str, ground: str = "places") -> Sums:
    """The sums of many chips: each with its columns, (units of the chip, ...), and its place; in order."""
    columns: dict[str, list[Floats]] = {}
    places: list[str] = []
    counts: list[int] = []
    for part, place in parts:
        for name, values in part.items():
            columns.setdefault(name, []).append(np.asarray(values, np.float64))
        places.append(place)
        counts.append(len(next(iter(part.values()))))
    return Sums(
        {name: np.concatenate(values) for name, values in columns.items()},
        np.repeat(np.array(places, np.str_), counts),
        np.repeat(np.arange(len(counts)), counts),
        unit,
        ground,
    )


@dataclass(frozen=True, eq=False)
class Resampled:
    """All units, and resamples of them.

    Attributes
    ----------
    totals
        (1 + resamples, ...): the first row holds the sums of all units.
    over
        What was resampled, or why nothing was; a sentence for the report.
    """

    totals: Totals
    over: str


def resample(sums: Sums, *, resamples: int = RESAMPLES, seed: int = 0) -> Resampled:
    """Draw places with replacement, as many as there are; units of ground where there are too few places."""
    places, of = np.unique(sums.places), sums.piece if len(sums) == 1 else sums.unit
    if len(places) >= FEWEST:
        over = f"{len(places)} {sums.ground}"
        _, columns = sums.of_each(sums.places)
    elif len(sums) >= FEWEST:
        over = (
            f"{len(sums)} {sums.unit}, not over places, of which {FEWEST} are needed and there "
            f"{'is 1' if len(places) == 1 else f'are {len(places)}'}: neighbours err together, so they are too narrow"
        )
        columns = sums.columns
    else:
        return Resampled(sums.total(), f"no intervals: {_counted(len(places), 'place')} and {len(sums)} {of}")
    drawn = [sums.total(), *_draws(columns, resamples, np.random.default_rng(seed))]
    return Resampled({name: np.concatenate([part[name] for part in drawn]) for name in columns}, over)


def figures(formulas: Sequence[Formula], totals: Totals) -> tuple[Figure, ...]:
    """The figures that the totals allow, in order; their first row holds all units, the others resamples."""
    return tuple(_figure(formula, _values(formula, totals)) for formula in formulas if formula.possible(totals))


def figures_by_class(formulas: Sequence[Formula], totals: Totals) -> tuple[tuple[Figure, ...], ...]:
    """The same of each class, where the formulas give (R, C)."""
    found = [(formula, _values(formula, totals)) for formula in formulas if formula.possible(totals)]
    return tuple(
        tuple(_figure(formula, values[:, index]) for formula, values in found) for index in range(found[0][1].shape[1])
    )


def ratio(over: Floats, under: Floats) -> Floats:
    """Their quotient; NaN where `under` is not positive."""
    found = np.full(np.broadcast(over, under).shape, np.nan)
    np.divide(over, under, out=found, where=under > 0)
    return found


def r2(squares: Floats, count: Floats, total: Floats, total_squares: Floats) -> Floats:
    """1 - SSE / SST from the squared errors and the count, sum and squares of the truth; NaN where SST is nothing."""
    spread = total_squares - ratio(total**2, count)
    # What is left of equal values after rounding is no spread.
    return 1 - ratio(squares, np.where(spread > 1e-9 * total_squares, spread, 0))


def _draws(columns: Totals, resamples: int, chance: np.random.Generator) -> Iterable[Totals]:
    units = len(next(iter(columns.values())))
    lot = max(1, _DRAWS // units)
    for start in range(0, resamples, lot):
        count = min(lot, resamples - start)
        times = chance.multinomial(units, np.full(units, 1 / units), size=count).astype(np.float64)
        yield {name: np.tensordot(times, values, axes=1) for name, values in columns.items()}


def _values(formula: Formula, totals: Totals) -> Floats:
    with np.errstate(invalid="ignore", divide="ignore"):
        return formula.of(totals)


def _figure(formula: Formula, values: Floats) -> Figure:
    low, high = _interval(values[1:]) if np.isfinite(values[0]) else (None, None)
    return Figure(formula.name, formula.title, formula.unit, float(values[0]), low, high)


def _interval(values: Floats) -> tuple[float | None, float | None]:
    known = values[np.isfinite(values)]
    if not len(values) or len(known) < (1 - _MOST_LOST) * len(values):
        return None, None
    low, high = np.quantile(known, [0.025, 0.975])
    return float(low), float(high)


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
