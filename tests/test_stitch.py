"""Laws of stitching: cut then stitch gives the picture back, whoever computes what."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from geodino.bands import cut
from geodino.grid import Window
from geodino.stitch import Cell, Prediction, Spill, blend_band, blend_row, finish_band, finish_row
from geodino.windows import Place, Tiling

TILINGS = st.sampled_from([Tiling(64, 32, 8), Tiling(96, 16, 0), Tiling(64, 16, 7), Tiling(128, 64, 16)])
EXTENTS = st.builds(Window, st.integers(-400, 400), st.integers(-400, 400), st.integers(1, 300), st.integers(1, 300))


def stitch(predictions: Iterable[Prediction], lattice: Tiling) -> Iterator[Cell]:
    """Finished cells of one endless row of bands: rows of windows one after the other, the plain way."""
    above: Spill = {}
    above_row: int | None = None
    for row, group in groupby(predictions, key=lambda prediction: prediction.place.r):
        if above_row is not None and row != above_row + 1:
            above = {}
        spill: Spill = {}
        yield from finish_row(blend_row(group, lattice), above, lattice, spill)
        above, above_row = spill, row


def picture(window: Window) -> npt.NDArray[np.float32]:
    """A field of two bands whose value depends on the place on the ground alone."""
    rows = np.arange(window.row, window.row_stop, dtype=np.float32)[:, None]
    cols = np.arange(window.col, window.col_stop, dtype=np.float32)[None, :]
    return np.stack([20 + np.sin(rows / 9) * 7 + np.cos(cols / 5) * 3, rows * 0.01 + cols * 0.02])


def predictions(tiling: Tiling, places: list[Place], noise: bool = False) -> Iterator[Prediction]:
    for place in places:
        values = picture(tiling.window(place))
        if noise:
            values = values + np.random.default_rng(abs(hash(place))).normal(size=values.shape).astype(np.float32)
        yield Prediction(place, values)


def mosaic(tiling: Tiling, extent: Window, stream: Iterator[Prediction]) -> npt.NDArray[np.float32]:
    out = np.full((2, *extent.shape), np.nan, np.float32)
    for place, values in stitch(stream, tiling):
        cell = tiling.cell(place)
        shared = cell.intersection(extent)
        if not shared.empty:
            out[(slice(None), *shared.slices_in(extent))] = values[(slice(None), *shared.slices_in(cell))]
    return out


@given(TILINGS, EXTENTS)
def test_cutting_then_stitching_gives_the_picture_back(tiling: Tiling, extent: Window) -> None:
    got = mosaic(tiling, extent, predictions(tiling, list(tiling.places(extent))))
    np.testing.assert_allclose(got, picture(extent), atol=1e-4)


@given(TILINGS, EXTENTS)
def test_stitching_equals_the_plain_weighted_mean(tiling: Tiling, extent: Window) -> None:
    places = list(tiling.places(extent))
    weights = np.outer(tiling.taper, tiling.taper).astype(np.float64)
    total, count = np.zeros((2, *extent.shape)), np.zeros(extent.shape)
    for place, values in predictions(tiling, places, noise=True):
        support = tiling.support(place)
        shared = support.intersection(extent)
        rows, cols = shared.slices_in(extent)
        inner = shared.slices_in(support)
        crop = values[:, tiling.margin :, tiling.margin :][(slice(None), *inner)]
        total[:, rows, cols] += crop * weights[inner]
        count[rows, cols] += weights[inner]
    got = mosaic(tiling, extent, predictions(tiling, places, noise=True))
    np.testing.assert_allclose(count, 1.0, atol=1e-6)
    np.testing.assert_allclose(got, total / count, atol=1e-4)


@given(TILINGS, EXTENTS, EXTENTS)
def test_a_larger_extent_never_changes_what_a_smaller_one_said(tiling: Tiling, a: Window, b: Window) -> None:
    whole = a.union(b)
    alone = mosaic(tiling, a, predictions(tiling, list(tiling.places(a)), noise=True))
    among = mosaic(tiling, whole, predictions(tiling, list(tiling.places(whole)), noise=True))
    np.testing.assert_array_equal(among[(slice(None), *a.slices_in(whole))], alone)


@given(TILINGS, EXTENTS, st.data())
def test_windows_without_wanted_pixels_can_be_left_out(tiling: Tiling, extent: Window, data: st.DataObject) -> None:
    places = list(tiling.places(extent))
    wanted = np.zeros(extent.shape, bool)
    for _ in range(data.draw(st.integers(1, 4))):
        row, col = data.draw(st.integers(0, extent.height - 1)), data.draw(st.integers(0, extent.width - 1))
        wanted[row : row + 40, col : col + 40] = True

    def is_needed(place: Place) -> bool:
        shared = tiling.support(place).intersection(extent)
        return bool(wanted[shared.slices_in(extent)].any())

    full = mosaic(tiling, extent, predictions(tiling, places, noise=True))
    sparse = mosaic(tiling, extent, predictions(tiling, [p for p in places if is_needed(p)], noise=True))
    np.testing.assert_array_equal(sparse[:, wanted], full[:, wanted])


@given(TILINGS, EXTENTS, st.randoms(use_true_random=False))
def test_rows_computed_apart_and_in_any_order_give_the_same_bytes(tiling: Tiling, extent: Window, order) -> None:  # type: ignore[no-untyped-def]
    rows = list(tiling.rows(extent))
    cols = tiling.cols(extent)
    streamed = {
        cell.place: cell.values for cell in stitch(predictions(tiling, list(tiling.places(extent)), True), tiling)
    }
    shuffled = rows.copy()
    order.shuffle(shuffled)
    columns = {
        row: list(blend_row(predictions(tiling, [Place(row, c) for c in cols], True), tiling)) for row in shuffled
    }
    spills: dict[int, Spill] = {
        row: {col.place.c: col.values[:, tiling.stride :] for col in done} for row, done in columns.items()
    }
    for row in shuffled:
        for place, values in finish_row(columns[row], spills.get(row - 1, {}), tiling, {}):
            np.testing.assert_array_equal(values, streamed[place])


def test_a_prediction_of_the_wrong_side_is_refused() -> None:
    with pytest.raises(ValueError, match="does not fit windows of 64 px"):
        list(stitch(iter([Prediction(Place(0, 0), np.zeros((1, 80, 80), np.float32))]), Tiling(64, 32, 8)))


@given(TILINGS, EXTENTS, st.integers(1, 5), st.data())
def test_bands_say_to_the_last_bit_what_the_whole_says_however_they_are_cut(
    tiling: Tiling, extent: Window, rows: int, data: st.DataObject
) -> None:
    places = list(tiling.places(extent))
    kept = sorted(data.draw(st.sets(st.sampled_from(places), min_size=1)))
    whole = dict(stitch(predictions(tiling, kept, noise=True), tiling))
    bands = cut(kept, rows)
    own = {
        id_: blend_band(predictions(tiling, list(band.places), noise=True), tiling, band.first, band.last)
        for id_, band in bands.items()
    }
    edges = {id_: unfinished.edges for id_, unfinished in own.items()}
    found = {}
    for id_ in data.draw(st.permutations(list(bands))):
        finished = finish_band(
            own[id_],
            tiling,
            bands[id_].first,
            north=edges.get(id_.north),
            west=edges.get(id_.west),
            northwest=edges.get(id_.northwest),
        )
        found |= dict(finished)
    assert found.keys() == whole.keys()
    for place, values in whole.items():
        np.testing.assert_array_equal(found[place], values)
