"""Peaks of a tree heat map."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from geodino.errors import ConfigError
from geodino.grid import Window
from geodino.trees import Peaks, find_peaks

# Few values, so that ties and plateaus are common.
HEATS = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=14),
    elements=st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0, np.nan]),
)


def centred(heat: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return np.zeros((2, *heat.shape), np.float32)


def cells(peaks: Peaks) -> list[tuple[int, int]]:
    return [(int(row), int(col)) for row, col in peaks.cells]


def slow_cells(heat: npt.NDArray[np.float32], threshold: float, spacing: int) -> list[tuple[int, int]]:
    """The definition, cell by cell."""
    found = []
    for row, col in np.ndindex(heat.shape):
        here = heat[row, col]
        if not here >= threshold:
            continue
        around = [
            (other, (r, c))
            for r in range(max(row - spacing, 0), min(row + spacing + 1, heat.shape[0]))
            for c in range(max(col - spacing, 0), min(col + spacing + 1, heat.shape[1]))
            if (r, c) != (row, col) and not np.isnan(other := heat[r, c])
        ]
        if all(other < here or (other == here and where > (row, col)) for other, where in around):
            found.append((row, col))
    return found


@given(heat=HEATS, spacing=st.integers(1, 4), threshold=st.sampled_from([0.0, 0.25, 0.6, 1.0]))
def test_peaks_are_what_the_definition_says(heat: npt.NDArray[np.float32], spacing: int, threshold: float) -> None:
    found = find_peaks(heat, centred(heat), threshold=threshold, spacing=spacing)
    assert cells(found) == slow_cells(heat, threshold, spacing)
    assert found.scores.tolist() == [heat[where] for where in cells(found)]


@given(heat=HEATS, spacing=st.integers(1, 3), cut=st.integers(0, 14), width=st.integers(0, 14))
def test_pieces_with_context_find_each_peak_once(
    heat: npt.NDArray[np.float32], spacing: int, cut: int, width: int
) -> None:
    whole = find_peaks(heat, centred(heat), threshold=0.2, spacing=spacing)
    rows, cols = heat.shape
    pieces = []
    for row, row_stop in ((0, min(cut, rows)), (min(cut, rows), rows)):
        for col, col_stop in ((0, min(width, cols)), (min(width, cols), cols)):
            top, left = max(row - spacing, 0), max(col - spacing, 0)
            part = heat[top : row_stop + spacing, left : col_stop + spacing]
            if not part.size:
                continue
            owned = Window(row - top, col - left, row_stop - row, col_stop - col)
            found = find_peaks(part, centred(part), threshold=0.2, spacing=spacing, owned=owned)
            pieces += [(r + top, c + left) for r, c in cells(found)]
    assert sorted(pieces) == cells(whole)


@given(heat=HEATS, spacing=st.integers(1, 3), down=st.integers(0, 5), right=st.integers(0, 5))
def test_peaks_move_with_the_map(heat: npt.NDArray[np.float32], spacing: int, down: int, right: int) -> None:
    moved = np.full((heat.shape[0] + down + 1, heat.shape[1] + right + 1), np.nan, np.float32)
    moved[down : down + heat.shape[0], right : right + heat.shape[1]] = heat
    before = find_peaks(heat, centred(heat), threshold=0.2, spacing=spacing)
    after = find_peaks(moved, centred(moved), threshold=0.2, spacing=spacing)
    np.testing.assert_array_equal(after.points, before.points + np.array([right, down]) * 4)


@given(heat=HEATS, spacing=st.integers(1, 3))
def test_a_lower_threshold_only_adds_peaks(heat: npt.NDArray[np.float32], spacing: int) -> None:
    low = find_peaks(heat, centred(heat), threshold=0.2, spacing=spacing)
    high = find_peaks(heat, centred(heat), threshold=0.6, spacing=spacing)
    assert cells(low.above(0.6)) == cells(high)


def test_points_are_pixels_of_the_image_from_its_corner() -> None:
    heat = np.zeros((4, 6), np.float32)
    heat[1, 3] = 0.9
    offset = centred(heat)
    assert find_peaks(heat, offset, threshold=0.5, spacing=1).points.tolist() == [[3.5 * 4, 1.5 * 4]]
    offset[0, 1, 3], offset[1, 1, 3] = 0.25, -0.5
    assert find_peaks(heat, offset, threshold=0.5, spacing=1, cell=8).points.tolist() == [[3.75 * 8, 1.0 * 8]]


def test_a_plateau_gives_one_peak() -> None:
    heat = np.zeros((12, 12), np.float32)
    heat[3:9, 2:11] = 1.0
    assert cells(find_peaks(heat, centred(heat), threshold=0.5, spacing=1)) == [(3, 2)]


@pytest.mark.parametrize(("spacing", "shape"), [(0, (2, 4, 4)), (1, (2, 4, 5)), (1, (4, 4))])
def test_what_does_not_belong_together_is_refused(spacing: int, shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"spacing of 0 cells|do not fit"):
        find_peaks(np.zeros((4, 4), np.float32), np.zeros(shape, np.float32), threshold=0.5, spacing=spacing)
