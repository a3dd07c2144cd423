"""Joins the predictions of overlapping windows: each window computed once, its weights summing to 1 at every pixel.

Within a row each support hands its eastern ramp on to its neighbour (`blend_row`); what hangs below the cells, the
row's spill, goes to the next row (`finish_row`). Both additions are of exactly two numbers in a fixed order, own plus
western and then plus northern, so the result does not depend, down to the last bit, on who computed what, or when.

A band of windows that is computed by itself lacks what its northern and western neighbours spill into it. `blend_band`
keeps the parts that wait for them, and `finish_band` adds them in that same order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
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
"""Lattice column -> the (K, ramp, stride) pixels that hang below a row's cell; or row -> those that hang beside it."""


@dataclass(frozen=True)
class Edges:
    """What a band's neighbours need of it, and what waits for them, in one layer.

    Attributes
    ----------
    west
        Lattice row -> (K, support_size, ramp), the western ramp of the band's first column before its neighbour's
        eastern one is added.
    east
        Lattice row -> (K, support_size, ramp), what the band's last column spills into its eastern neighbour.
    south
        Lattice column -> (K, ramp, stride), what the band's last row spills below its cells. In the band's first
        column the western ramp of it lacks what `west` lacks.
    """

    west: Spill = field(default_factory=dict)
    east: Spill = field(default_factory=dict)
    south: Spill = field(default_factory=dict)


class Unfinished(NamedTuple):
    """What the windows of one band say in one layer: its cells, (K, stride, stride), and its edges."""

    cells: dict[Place, Array]
    edges: Edges


def blend_band(predictions: Iterable[Prediction], lattice: Lattice, first: Place, last: Place) -> Unfinished:
    """Blend the windows of one band, which come row by row; cells beside its northern and western edge lack a part.

    Parameters
    ----------
    first, last
        The north-western and the south-eastern place of the band, computed or not.
    """
    ramp = lattice.ramp
    cells: dict[Place, Array] = {}
    edges = Edges()
    above: Spill = {}
    above_row: int | None = None
    for row, group in groupby(predictions, key=lambda prediction: prediction.place.r):
        spill: Spill = {}
        eastern: Spill = {}
        for cell in finish_row(
            _keeping_west(blend_row(group, lattice, eastern), first.c, ramp, edges.west),
            above if above_row is not None and row == above_row + 1 else {},
            lattice,
            spill,
        ):
            cells[cell.place] = cell.values
        if last.c in eastern:
            edges.east[row] = eastern[last.c].copy()
        above, above_row = spill, row
    if above_row == last.r:
        edges.south.update(above)
    return Unfinished(cells, edges)


def finish_band(
    own: Unfinished, lattice: Lattice, first: Place, *, north: Edges | None, west: Edges | None, northwest: Edges | None
) -> Iterator[Cell]:
    """The band's finished cells in lattice order; None for a neighbour without windows.

    The arrays of `own` are changed.
    """
    ramp, stride = lattice.ramp, lattice.stride
    nothing = Edges()
    north, west, northwest = north or nothing, west or nothing, northwest or nothing
    strips = {row: _sum(values, west.east.get(row)) for row, values in own.edges.west.items()}
    if first.r - 1 in north.west:
        strips[first.r - 1] = _sum(north.west[first.r - 1], northwest.east.get(first.r - 1))
    for place, cell in own.cells.items():
        beside = place.c == first.c
        if place.r == first.r and place.c in north.south:
            inner = slice(ramp if beside else 0, None)
            cell[:, :ramp, inner] += north.south[place.c][:, :, inner]
        if beside:
            cell[:, :, :ramp] = strips[place.r][:, :stride]
            if place.r - 1 in strips:
                cell[:, :ramp, :ramp] += strips[place.r - 1][:, stride:]
        yield Cell(place, cell)


def _sum(own: Array, western: Array | None) -> Array:
    return own if western is None else own + western


def _keeping_west(columns: Iterable[Column], col: int, ramp: int, west: Spill) -> Iterator[Column]:
    for column in columns:
        if column.place.c == col:
            west[column.place.r] = column.values[:, :, :ramp].copy()
        yield column


def blend_row(predictions: Iterable[Prediction], lattice: Lattice, eastern: Spill | None = None) -> Iterator[Column]:
    """Blend one row of windows from west to east; a window that was not computed leaves a gap.

    What each window spills eastwards, (K, support_size, ramp), also goes into `eastern` under its column.

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
        if eastern is not None:
            eastern[place.c] = spill


def finish_row(columns: Iterable[Column], above: Spill, lattice: Lattice, spill: Spill) -> Iterator[Cell]:
    """Add the row above's spill to each column's cell, which is then final; this row's spill goes into `spill`."""
    for place, values in columns:
        cell = values[:, : lattice.stride].copy()
        if place.c in above:
            cell[:, : lattice.ramp] += above[place.c]
        spill[place.c] = values[:, lattice.stride :].copy()
        yield Cell(place, cell)


def _support(values: Array, lattice: Lattice) -> Array:
    """The part of a window's prediction that counts: the window less its margin."""
    margin, side = lattice.margin, lattice.support_size
    if values.shape[1:] != (lattice.size, lattice.size):
        raise ValueError(f"prediction of {values.shape[1:]} px does not fit windows of {lattice.size} px")
    return values[:, margin : margin + side, margin : margin + side]
