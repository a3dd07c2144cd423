"""Which ground each chip owns, where chips of one scene overlap: so that no pixel and no tree counts twice."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pandas as pd

from geodino.grid import Window


def corners(table: pd.DataFrame, gsd_m: float) -> npt.NDArray[np.int64]:
    """(N, 2), row and col of each chip's first pixel from the north-west corner of its scene's chips.

    Parameters
    ----------
    table
        Of a ChipSet: scene, west, north (CRS units of the north-west corner).
    gsd_m
        CRS units a pixel.
    """
    scenes = table.groupby("scene")
    down = scenes["north"].transform("max") - table["north"]
    across = table["west"] - scenes["west"].transform("min")
    found: npt.NDArray[np.int64] = np.round(np.stack([down, across], axis=1) / gsd_m).astype(np.int64)
    return found


def owned_windows(table: pd.DataFrame, size: int, gsd_m: float) -> list[Window]:
    """Return the part of each chip, in its own pixels, that it owns.

    Two chips of a scene that overlap share what both see half and half, along rows and along columns: so the owned
    parts of a scene's chips cover what the chips cover, each pixel once. Chips of other scenes are not looked at: the
    same ground on another date is another measurement.

    Parameters
    ----------
    table
        Of a ChipSet: scene, west, north (CRS units of the north-west corner).
    size
        Side of a chip, pixels.
    gsd_m
        CRS units a pixel.
    """
    found = [Window(0, 0, size, size)] * len(table)
    places = corners(table, gsd_m)
    for chips in table.reset_index(drop=True).groupby("scene", sort=False).indices.values():
        rows, cols = places[chips].T
        down, across = _spans(rows, size), _spans(cols, size)
        for index, row, col in zip(chips.tolist(), rows.tolist(), cols.tolist(), strict=True):
            (top, bottom), (left, right) = down[row], across[col]
            found[index] = Window(top - row, left - col, bottom - top, right - left)
    return found


def _spans(starts: npt.NDArray[np.int64], size: int) -> dict[int, tuple[int, int]]:
    """Of each start, the half-open span that is owned."""
    ordered = sorted(set(starts.tolist()))
    # Halfway through what two neighbours share; where they share nothing, each ends as it does.
    edges = {start: (start, start + size) for start in ordered}
    for one, other in pairwise(ordered):
        if other < one + size:
            middle = (other + one + size) // 2
            edges[one] = (edges[one][0], middle)
            edges[other] = (middle, edges[other][1])
    return edges
