"""Laws of the window lattice."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from geodino.errors import ConfigError
from geodino.grid import Window
from geodino.windows import Place, Tiling


@st.composite
def tilings(draw: st.DrawFn) -> Tiling:
    size = 32 * draw(st.integers(2, 12))
    overlap = 16 * draw(st.integers(1, size // 32))
    return Tiling(size, overlap, margin=draw(st.integers(0, overlap // 2 - 1)))


@st.composite
def extents(draw: st.DrawFn) -> Window:
    corner = st.integers(-3000, 3000)
    side = st.integers(1, 1500)
    return Window(draw(corner), draw(corner), draw(side), draw(side))


@given(tilings(), extents())
def test_weights_of_all_windows_sum_to_one_at_every_pixel(tiling: Tiling, extent: Window) -> None:
    for start, length, places in (
        (extent.row, extent.height, tiling.rows(extent)),
        (extent.col, extent.width, tiling.cols(extent)),
    ):
        total = np.zeros(length + 2 * tiling.support_size, np.float64)
        for k in places:
            at = k * tiling.stride - start + tiling.support_size
            total[at : at + tiling.support_size] += tiling.taper
        inside = total[tiling.support_size : tiling.support_size + length]
        np.testing.assert_allclose(inside, 1.0, atol=1e-6)


@given(tilings(), extents())
def test_places_are_exactly_those_whose_support_meets_the_extent(tiling: Tiling, extent: Window) -> None:
    def meets(k: int, start: int, stop: int) -> bool:
        return k * tiling.stride < stop and k * tiling.stride + tiling.support_size > start

    for span, start, stop in (
        (tiling.rows(extent), extent.row, extent.row_stop),
        (tiling.cols(extent), extent.col, extent.col_stop),
    ):
        assert all(meets(k, start, stop) for k in span)
        assert not meets(span.start - 1, start, stop)
        assert not meets(span.stop, start, stop)


@given(tilings(), st.integers(-50, 50), st.integers(-50, 50))
def test_cell_support_and_window_are_nested_and_cells_tile_the_plane(tiling: Tiling, r: int, c: int) -> None:
    place = Place(r, c)
    cell, support, window = tiling.cell(place), tiling.support(place), tiling.window(place)
    assert cell.intersection(support) == cell
    assert support.intersection(window) == support
    assert window.shape == (tiling.size, tiling.size)
    assert tiling.cell(Place(r, c + 1)).col == cell.col_stop
    assert tiling.cell(Place(r + 1, c)).row == cell.row_stop


@given(tilings(), st.integers(-50, 50))
def test_cells_lie_on_the_patch_lattice_and_hang_on_the_origin(tiling: Tiling, k: int) -> None:
    assert tiling.cell(Place(0, 0)) == Window(0, 0, tiling.stride, tiling.stride)
    assert tiling.cell(Place(k, k)).row % 16 == 0
    assert tiling.window(Place(k, 0)).width % 32 == 0


@given(tilings(), extents(), extents())
def test_a_larger_extent_keeps_every_window_of_a_smaller_one(tiling: Tiling, a: Window, b: Window) -> None:
    assert set(tiling.places(a)) <= set(tiling.places(a.union(b)))


@pytest.mark.parametrize(
    ("size", "overlap", "margin", "message"),
    [
        (500, 64, 16, "window size 500 px must be a positive multiple of 32"),
        (0, 64, 16, "window size 0 px"),
        (512, 40, 16, "overlap 40 px must be a positive multiple of 16"),
        (512, 0, 0, "overlap 0 px must be a positive multiple of 16"),
        (512, 272, 16, "overlap 272 px must be at most half of the window size 512 px"),
        (512, 64, 32, "margin 32 px must be at least 0 and under half of the overlap 64 px"),
    ],
)
def test_a_tiling_that_cannot_work_is_refused_with_its_numbers(
    size: int, overlap: int, margin: int, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        Tiling(size, overlap, margin)
