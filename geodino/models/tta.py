"""Test-time augmentation: a window is seen mirrored and turned too, and what the model says of all views is averaged.

A network answers a little differently to the same ground when it is turned, and those errors partly cancel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

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


def views(count: int) -> tuple[View, ...]:
    """So many views; ModelError for a number that is not 1, 2, 4 or 8."""
    if count not in VIEWS:
        raise ModelError(f"{count} views of a window cannot be averaged: give {', '.join(map(str, VIEWS))}")
    return VIEWS[count]


def averaged(say: Callable[[Floats], Maps], images: Floats, seen: tuple[View, ...]) -> Maps:
    """What a model says of some views of windows, averaged.

    Parameters
    ----------
    say
        Images (B, 3, S, S) to the maps of each task, as `Model.maps` gives them.

    Returns
    -------
    dict
        As of `say`. The spread of heights is that of all views' distributions as one: the mean of their variances and
        the variance of their means.
    """
    if len(seen) == 1:
        return say(images)
    said = [{task: _undone(task, maps, view) for task, maps in say(view.of(images)).items()} for view in seen]
    return {task: _mean(task, np.stack([one[task] for one in said])) for task in said[0]}


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
