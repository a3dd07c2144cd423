"""Design-based estimates: what plots say of a piece of ground, with the map as the means to make them surer.

Plots are a probability sample (simple random, systematic, or random within strata of the map); the map's classes are
strata, whose shares of the ground are known exactly. The estimators are those of Olofsson et al. (2014, Remote Sensing
of Environment 148, 42-57, doi:10.1016/j.rse.2014.02.015), equations 1 to 11, in the general form of Stehman (2014,
doi:10.1080/01431161.2014.930207), which also serves strata that are not the classes. The map may be as wrong as it
likes: that makes the intervals wider, never the estimates biased.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

FEWEST = 2
"""Plots of a stratum: with one there is no variance."""


@dataclass(frozen=True)
class Estimate:
    """A figure of the ground, from plots.

    Attributes
    ----------
    value, standard_error
        NaN where there are no plots of what is asked.
    low, high
        Ends of the interval, by Student's t; NaN where all plots of each stratum agree, because such a sample cannot
        tell how unsure it is.
    plots
        How many it rests on.
    agreed
        Share of the ground in strata whose plots all have one value. What they missed there is not in the interval:
        with 15 plots in a stratum of which a twentieth is canopy, half of all samples see none.
    """

    value: float
    standard_error: float
    low: float
    high: float
    plots: int
    agreed: float


@dataclass(frozen=True, eq=False)
class Sample:
    """Plots in strata.

    Attributes
    ----------
    stratum
        (N,) of each plot, 0..S-1.
    weights
        (S,) share of the ground in each stratum; they sum to 1.
    level
        Of the intervals, 0..1.

    Raises
    ------
    ValueError
        A stratum that has ground has under FEWEST plots: `merged` puts it to its neighbour.
    """

    stratum: Ints
    weights: Floats
    level: float = 0.95

    def __post_init__(self) -> None:
        if (self.counts[self.weights > 0] < FEWEST).any():
            raise ValueError(f"strata with {self.counts.tolist()} plots: each needs {FEWEST}")

    @property
    def counts(self) -> Ints:
        """(S,) plots."""
        return np.bincount(self.stratum, minlength=len(self.weights))

    def mean(self, values: Floats, *, known: float = 0.0) -> Estimate:
        """Return the mean of a value over the ground, from that of plots (N,).

        `known` is added: with the map's error at plots as values and the map's own mean as what is known, this is the
        difference estimator (Särndal, Swensson and Wretman 1992, section 6.3).
        """
        means, variances = self._moments(values)
        return self._estimate(known + float(self.weights @ means), variances, 1.0)

    def ratio(self, over: Floats, under: Floats) -> Estimate:
        """Return the ratio of two means over the ground, from values at plots (N,); NaN where the second is 0.

        A producer's accuracy is the share of what is canopy that is also mapped as canopy (equations 3 and 7).
        """
        above, below = self._moments(over)[0], self._moments(under)[0]
        total = float(self.weights @ below)
        if total <= 0:
            return Estimate(math.nan, math.nan, math.nan, math.nan, len(over), 1.0)
        value = float(self.weights @ above) / total
        return self._estimate(value, self._moments(over - value * under)[1], total)

    def _moments(self, values: Floats) -> tuple[Floats, Floats]:
        """(S,) means and variances of plots; 0 of strata without any."""
        count, strata = self.counts, len(self.weights)
        means = np.bincount(self.stratum, values, strata) / np.maximum(count, 1)
        squares = np.bincount(self.stratum, (values - means[self.stratum]) ** 2, strata)
        return means, squares / np.maximum(count - 1, 1)

    def _estimate(self, value: float, variances: Floats, scale: float) -> Estimate:
        count = np.maximum(self.counts, FEWEST)
        parts = self.weights**2 * variances / count / scale**2
        error = math.sqrt(float(parts.sum()))
        agreed = float(self.weights[variances <= 1e-12].sum())
        if error <= 1e-12 * max(abs(value), 1):
            return Estimate(value, error, math.nan, math.nan, len(self.stratum), agreed)
        # Satterthwaite's degrees of freedom (Cochran 1977, equation 5.16, for a large population).
        freedom = float(parts.sum()) ** 2 / float((parts**2 / (count - 1)).sum())
        reach = float(stats.t.ppf((1 + self.level) / 2, freedom)) * error
        return Estimate(value, error, value - reach, value + reach, len(self.stratum), agreed)


def merged(counts: Ints) -> Ints:
    """(S,) the stratum that each becomes: neighbours are put together until each has FEWEST plots.

    Strata are in the order of height, so that what is put together is alike; estimates stay unbiased, and their
    variances are those of the larger strata (collapsed strata, Cochran 1977, section 5A.12).
    """
    groups: list[list[int]] = [[]]
    for stratum in range(len(counts)):
        if counts[groups[-1]].sum() >= FEWEST:
            groups.append([])
        groups[-1].append(stratum)
    if len(groups) > 1 and counts[groups[-1]].sum() < FEWEST:
        last = groups.pop()
        groups[-1] += last
    found = np.zeros(len(counts), np.int64)
    for number, group in enumerate(groups):
        found[group] = number
    return found
