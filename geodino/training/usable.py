"""Whether crops of chips hold any labels: to learn from, and to choose the weights by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from geodino.errors import InputError
from geodino.training.augment import plain_look
from geodino.training.chipset import ChipSet, Task
from geodino.training.strata import held_classes, known_share
from geodino.training.targets import UNKNOWN_CLASS, Targets, targets
from geodino.watch import count

Ints = npt.NDArray[np.int64]


class Labels(NamedTuple):
    """How a task's labels are called, how many of each chip crops of so many pixels may hold, and how many one does."""

    noun: str
    of_chips: Callable[[ChipSet, int], Ints]
    of_crop: Callable[[Targets], int]


def check_labels(chips: ChipSet, learn: Ints, tune: Ints, size: int) -> list[str]:
    """What of these labels crops of `size` px will not teach or not measure, a sentence each.

    Parameters
    ----------
    learn, tune
        Indices of the chips to learn from, anywhere in them, and of those that choose, by their middle.

    Raises
    ------
    InputError
        There is nothing to learn from, or nothing to choose by; or all plots to learn from are of one class, or all
        heights 0 m.
    """
    labels, look = _labels_of(chips), plain_look(chips.size, size)
    taught = int(labels.of_chips(chips, size)[learn].sum())
    asked = sum(labels.of_crop(targets(chips, int(index), look)) for index in tune)
    wide = _too_wide(chips, np.concatenate([learn, tune]), size)
    if not taught or not asked:
        to, where = ("choose by", f"the middle {size} px of {count(len(tune), 'chip')}")
        if not taught:
            to, where = "learn from", f"crops of {count(len(learn), 'chip')}"
        advice = wide or "give labels of more ground, lower --chip or raise --tuning"
        raise InputError(f"nothing to {to}: {where} of {chips.size} px hold no {labels.noun}; {advice}")
    if same := _one_answer(chips, learn):
        raise InputError(f"nothing to learn from: {count(len(learn), 'chip')} hold {same}; give labels that differ")
    return [wide] * bool(wide) + [
        f"class {chips.class_names[number]} has no label to {to}"
        for to, part in (("learn from", learn), ("choose by", tune))
        if chips.class_names
        for number in np.flatnonzero(~held_classes(chips)[part].any(axis=0))
    ]


def _one_answer(chips: ChipSet, learn: Ints) -> str:
    """What all heights or plots to learn from say, where all say the same; else empty."""
    if chips.labels is not None:
        found = np.unique(chips.labels[learn])
        return f"plots of class {chips.class_names[found[0]]} alone" if len(found) == 1 else ""
    heights = chips.heights if chips.heights is not None else chips.footprints
    if heights is None:
        return ""
    # Of a footprint the last column is its height.
    tall = any(
        np.nanmax(heights[index][..., -1:] if chips.heights is None else heights[index], initial=0) > 0
        for index in learn.tolist()
    )
    return "" if tall else "heights of 0 m alone"


def _too_wide(chips: ChipSet, indices: Ints, size: int) -> str:
    """How many footprints no crop can hold whole, which are never learned from; empty if none."""
    if chips.footprints is None:
        return ""
    every = sum(len(chips.footprints[index]) for index in indices)
    held = int(_held_footprints(chips, size)[indices].sum())
    wide = f"{every - held} of {count(every, 'footprint')} are wider than crops of {size} px and teach nothing"
    return f"{wide}: raise --size" if held < every else ""


def _held_footprints(chips: ChipSet, size: int) -> Ints:
    return np.array([int((2 * found[:, 2] <= size).sum()) for found in chips.footprints or ()], np.int64)


def _known_pixels(chips: ChipSet, size: int) -> Ints:
    return (known_share(chips) * chips.size**2).astype(np.int64)


def _trees(chips: ChipSet, size: int) -> Ints:
    return np.array([len(points) for points in chips.points or ()], np.int64)


_FOOTPRINTS = Labels("footprint", _held_footprints, lambda wanted: int(wanted["tallest"].isfinite().sum()))
_LABELS: Mapping[Task, Labels] = {
    "canopy": Labels("known height", _known_pixels, lambda wanted: int(wanted["known"].sum())),
    "trees": Labels("tree", _trees, lambda wanted: int((wanted["stands"] & wanted["known"]).sum())),
    "segment": Labels("known class", _known_pixels, lambda wanted: int((wanted["classes"] != UNKNOWN_CLASS).sum())),
    "classify": Labels("label", lambda chips, size: np.ones(len(chips), np.int64), lambda wanted: 1),
}


def _labels_of(chips: ChipSet) -> Labels:
    return _FOOTPRINTS if chips.footprints is not None else _LABELS[chips.task]
