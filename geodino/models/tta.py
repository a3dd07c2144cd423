"""Test-time augmentation: a window is seen mirrored and turned too, and what the model says of all views is averaged.

A network answers a little differently to the same ground when it is turned, and those errors partly cancel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from geodino.errors import ModelError

Floats = npt.NDArray[np.float32]
Maps = dict[str, Floats]


class View(NamedTuple):
    """How a window is seen: turned counter-clockwise by so many right angles, then mirrored left to right."""

    quarters: int = 0
    mirrored: bool = False

    def of(self, images: Floats) -> Floats:
        """Rasters (..., H, W) as seen so."""
        turned = np.rot90(images, self.quarters, axes=(-2, -1))
        return np.ascontiguousarray(turned[..., ::-1] if self.mirrored else turned)

    def undone(self, maps: Floats) -> Floats:
        """What was said of the view, (..., H, W), back on the window."""
        straight = maps[..., ::-1] if self.mirrored else maps
        return np.ascontiguousarray(np.rot90(straight, -self.quarters, axes=(-2, -1)))

    def offsets_undone(self, offsets: Floats) -> Floats:
        """Offsets to the right and down, (B, 2, H, W): moved back, and each pointing where it pointed on the ground."""
        right, down = offsets[:, 0], offsets[:, 1]
        if self.mirrored:
            right = -right
        for _ in range(self.quarters):
            right, down = -down, right
        return self.undone(np.stack([right, down], axis=1))


# The most different views first: half a turn, then mirrors, then the lying ones.
VIEWS: Mapping[int, tuple[View, ...]] = {
    1: (View(),),
    2: (View(), View(2)),
    4: (View(), View(2), View(0, True), View(2, True)),
    8: tuple(View(quarters, mirrored) for quarters in range(4) for mirrored in (False, True)),
}

_NORTH_UP = (View(), View(0, True))


def views(count: int) -> tuple[View, ...]:
    """So many views; ModelError for a number that is not 1, 2, 4 or 8."""
    if count not in VIEWS:
        raise ModelError(f"{count} views of a window cannot be averaged: give {', '.join(map(str, VIEWS))}")
    return VIEWS[count]


def views_of(head: Mapping[str, Any], count: int) -> tuple[View, ...]:
    """The views that a head is asked of where `count` of each window are averaged, by what config.json says of it.

    One that learned from upright pictures has never seen a turned one: it is asked of the window as it is and, where
    it learned from mirrored pictures too, of that one's mirror.
    """
    if not head.get("upright"):
        return views(count)
    return _NORTH_UP[: min(count, 2 if head.get("mirrored") else 1)]


def fewer_views(heads: Mapping[str, Mapping[str, Any]], count: int) -> dict[str, int]:
    """Tasks whose heads are asked of fewer than `count` views, and of how many."""
    asked = {task: len(views_of(head, count)) for task, head in heads.items()}
    return {task: number for task, number in asked.items() if number < count}


def averaged(say: Callable[[Floats, Sequence[str]], Maps], images: Floats, seen: Mapping[str, Sequence[View]]) -> Maps:
    """What a model says of some views of windows, averaged.

    Parameters
    ----------
    say
        Images (B, 3, S, S) to the maps of tasks, as `Model.maps` gives them.
    seen
        Task to its views, of which the first is the window as it is.

    Returns
    -------
    dict
        As of `say`. The spread of heights is that of all views' distributions as one: the mean of their variances and
        the variance of their means.
    """
    said = {task: [maps] for task, maps in say(images, list(seen)).items()}
    for view in dict.fromkeys(view for some in seen.values() for view in some[1:]):
        asked = [task for task, some in seen.items() if view in some[1:]]
        for task, maps in say(view.of(images), asked).items():
            said[task].append(_undone(task, maps, view))
    return {task: _mean(task, np.stack(maps)) if len(maps) > 1 else maps[0] for task, maps in said.items()}


def _undone(task: str, maps: Floats, view: View) -> Floats:
    if task == "classify":
        return maps
    if task == "trees":
        return np.concatenate([view.undone(maps[:, :2]), view.offsets_undone(maps[:, 2:])], axis=1)
    return view.undone(maps)


def _mean(task: str, said: Floats) -> Floats:
    mean: Floats = said.mean(axis=0)
    if task == "canopy":
        mean[:, 1] = np.sqrt(np.square(said[:, :, 1]).mean(axis=0) + said[:, :, 0].var(axis=0))
    return mean
