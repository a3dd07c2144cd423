"""What chips hold, by which a share of the crops is drawn so that the rare is not seldom seen."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from geodino.evaluation.canopy import CLASS_EDGES_M
from geodino.training.chipset import ChipSet, Task

# Chip sets in use at once: one, and those that are rehearsed beside it.
_SETS = 8


@lru_cache(_SETS)
def known_share(chips: ChipSet) -> npt.NDArray[np.float64]:
    """Share of each chip whose ground is known, (N,): chips with little of it are drawn seldom."""
    return np.array([float(np.mean(known)) for known in chips.labelled])


@lru_cache(_SETS)
def tall_canopy(chips: ChipSet) -> npt.NDArray[np.float64]:
    """The 95th percentile of each chip's known heights, (N,) metres; 0 where none is known."""
    known: Iterable[np.ndarray] = (
        (h[np.isfinite(h)] for h in chips.heights)
        if chips.heights is not None
        else (discs[:, 3] for discs in chips.footprints or ())
    )
    return np.array([np.percentile(heights, 95) if len(heights) else 0.0 for heights in known])


@lru_cache(_SETS)
def held_classes(chips: ChipSet) -> npt.NDArray[np.bool_]:
    """Which classes each chip has, (N, C): its own, or those of its labelled pixels."""
    if chips.labels is not None:
        return _one_each(chips.labels, len(chips.class_names))
    assert chips.classes is not None
    # Where not labelled the class is 255, which is no number of a class.
    return np.array([np.isin(np.arange(len(chips.class_names)), classes) for classes in chips.classes], np.bool_)


def strata(chips: ChipSet, indices: npt.NDArray[np.int64]) -> Sequence[npt.NDArray[np.int64]]:
    """The groups of these chips that crops are drawn from in equal shares; none where the task has no classes.

    Canopy: chips by the height class of their tall canopy. Segment: for each class the chips that have some of it.
    Classify: chips by label. Trees: none, each chip is drawn alike.
    """
    member = _MEMBERS[chips.task](chips)[indices]
    return [indices[of_stratum] for of_stratum in member.T if of_stratum.any()]


def _height_classes(chips: ChipSet) -> npt.NDArray[np.bool_]:
    class_of = np.searchsorted(CLASS_EDGES_M, tall_canopy(chips), side="right")
    # A chip without a known height is none of 0 m, and cannot be drawn by its share of known ground.
    return _one_each(class_of, len(CLASS_EDGES_M) + 1) & (known_share(chips) > 0)[:, None]


def _one_each(class_of: npt.NDArray[np.integer], count: int) -> npt.NDArray[np.bool_]:
    found: npt.NDArray[np.bool_] = np.equal.outer(class_of, np.arange(count))
    return found


def _none(chips: ChipSet) -> npt.NDArray[np.bool_]:
    return np.zeros((len(chips), 0), np.bool_)


# Which chips belong to each stratum, (N, strata).
_MEMBERS: Mapping[Task, Callable[[ChipSet], npt.NDArray[np.bool_]]] = {
    "canopy": _height_classes,
    "trees": _none,
    "segment": held_classes,
    "classify": held_classes,
}
