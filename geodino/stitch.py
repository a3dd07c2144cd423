"""Joins the predictions of overlapping windows: each window computed once, its weights summing to 1 at every pixel.

Predictions arrive row by row of the lattice. Within a row each support hands its eastern ramp on to its
neighbour (`blend_row`); what hangs below the cells, the row's spill, waits for the next row (`finish_row`). Both
additions are of exactly two numbers in a fixed order, own plus western and then plus northern, so the result does
not depend on who computed which row, or when. Only one row's spill is kept: memory grows with the width, never with
the height.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from geodino.windows import Lattice, Place

Array = npt.NDArray[np.float32]


class Layer(NamedTuple):
    """Maps that a model gives together, at one resolution: their names, and how many image pixels a value is wide."""

    names: tuple[str, ...]
    px: int = 1


class Prediction(NamedTuple):
    """What a model said of one window in one layer: `values` has shape (K, size, size)."""

    place: Place
    values: Array


class Column(NamedTuple):
    """A cell of one row and the spill below it: `values` has shape (K, support_size, stride)."""

    place: Place
    values: Array


class Cell(NamedTuple):
    """A finished square: `values` has shape (K, stride, stride), each pixel a full weighted mean."""

    place: Place
    values: Array


Spill = dict[int, Array]
"""Lattice column -> the (K, ramp, stride) pixels that hang below a row's cell."""


def blend_row(predictions: Iterable[Prediction], lattice: Lattice) -> Iterator[Column]:
    """Blend one row of windows from west to east; a window that was not computed leaves a gap.

    Only pixels that some computed window supports carry meaning. A place whose support holds no pixel asked for
    is never computed, and what its neighbours say of that ground is never looked at.
    """
    taper = lattice.taper
    weights = taper[:, None] * taper[None, :]
    stride, ramp = lattice.stride, lattice.ramp
    spill: Array | None = None
    spill_col = 0
    for place, values in predictions:
        weighted = _support(values, lattice) * weights
        if spill is not None and spill_col == place.c:
            weighted[:, :, :ramp] += spill
        yield Column(place, weighted[:, :, :stride])
        spill, spill_col = weighted[:, :, stride:], place.c + 1


def finish_row(columns: Iterable[Column], above: Spill, lattice: Lattice, spill: Spill) -> Iterator[Cell]:
    """Add the row above's spill to each column's cell, which is then final; this row's spill goes into `spill`."""
    for place, values in columns:
        cell = values[:, : lattice.stride].copy()
        if place.c in above:
            cell[:, : lattice.ramp] += above[place.c]
        spill[place.c] = values[:, lattice.stride :].copy()
        yield Cell(place, cell)


def stitch(predictions: Iterable[Prediction], lattice: Lattice) -> Iterator[Cell]:
    """Stream finished cells from predictions in lattice order (row by row, west to east)."""
    above: Spill = {}
    above_row: int | None = None
    for row, group in groupby(predictions, key=lambda prediction: prediction.place.r):
        if above_row is not None and row != above_row + 1:
            above = {}
        spill: Spill = {}
        yield from finish_row(blend_row(group, lattice), above, lattice, spill)
        above, above_row = spill, row


def _support(values: Array, lattice: Lattice) -> Array:
    """The part of a window's prediction that counts: the window less its margin."""
    margin, side = lattice.margin, lattice.support_size
    if values.shape[1:] != (lattice.size, lattice.size):
        raise ValueError(f"prediction of {values.shape[1:]} px does not fit windows of {lattice.size} px")
    return values[:, margin : margin + side, margin : margin + side]
