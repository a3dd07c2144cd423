"""Peaks of a tree heat map, and the trees of a surface, each one once."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from array_surface import ArraySurface, assert_same
from array_surface import cells as cells_of
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from geodino.errors import ConfigError
from geodino.grid import Window
from geodino.trees import HeatSettings, Peaks, Trees, find_peaks, heat_trees, looked_up, trees_on_heat

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
    found = find_peaks(heat, centred(heat), threshold=threshold, spacing=spacing, cell=4)
    assert cells(found) == slow_cells(heat, threshold, spacing)
    assert found.scores.tolist() == [heat[where] for where in cells(found)]


@given(heat=HEATS, spacing=st.integers(1, 3), cut=st.integers(0, 14), width=st.integers(0, 14))
def test_pieces_with_context_find_each_peak_once(
    heat: npt.NDArray[np.float32], spacing: int, cut: int, width: int
) -> None:
    whole = find_peaks(heat, centred(heat), threshold=0.2, spacing=spacing, cell=4)
    rows, cols = heat.shape
    pieces = []
    for row, row_stop in ((0, min(cut, rows)), (min(cut, rows), rows)):
        for col, col_stop in ((0, min(width, cols)), (min(width, cols), cols)):
            top, left = max(row - spacing, 0), max(col - spacing, 0)
            part = heat[top : row_stop + spacing, left : col_stop + spacing]
            if not part.size:
                continue
            owned = Window(row - top, col - left, row_stop - row, col_stop - col)
            found = find_peaks(part, centred(part), threshold=0.2, spacing=spacing, cell=4, owned=owned)
            pieces += [(r + top, c + left) for r, c in cells(found)]
    assert sorted(pieces) == cells(whole)


@given(heat=HEATS, spacing=st.integers(1, 3), down=st.integers(0, 5), right=st.integers(0, 5))
def test_peaks_move_with_the_map(heat: npt.NDArray[np.float32], spacing: int, down: int, right: int) -> None:
    moved = np.full((heat.shape[0] + down + 1, heat.shape[1] + right + 1), np.nan, np.float32)
    moved[down : down + heat.shape[0], right : right + heat.shape[1]] = heat
    before = find_peaks(heat, centred(heat), threshold=0.2, spacing=spacing, cell=4)
    after = find_peaks(moved, centred(moved), threshold=0.2, spacing=spacing, cell=4)
    np.testing.assert_array_equal(after.points, before.points + np.array([right, down]) * 4)


@given(heat=HEATS, spacing=st.integers(1, 3))
def test_a_lower_threshold_only_adds_peaks(heat: npt.NDArray[np.float32], spacing: int) -> None:
    low = find_peaks(heat, centred(heat), threshold=0.2, spacing=spacing, cell=4)
    high = find_peaks(heat, centred(heat), threshold=0.6, spacing=spacing, cell=4)
    assert cells(low.above(0.6)) == cells(high)


def test_points_are_pixels_of_the_image_from_its_corner() -> None:
    heat = np.zeros((4, 6), np.float32)
    heat[1, 3] = 0.9
    offset = centred(heat)
    assert find_peaks(heat, offset, threshold=0.5, spacing=1, cell=4).points.tolist() == [[3.5 * 4, 1.5 * 4]]
    offset[0, 1, 3], offset[1, 1, 3] = 0.25, -0.5
    assert find_peaks(heat, offset, threshold=0.5, spacing=1, cell=8).points.tolist() == [[3.75 * 8, 1.0 * 8]]


def test_a_plateau_gives_one_peak() -> None:
    heat = np.zeros((12, 12), np.float32)
    heat[3:9, 2:11] = 1.0
    assert cells(find_peaks(heat, centred(heat), threshold=0.5, spacing=1, cell=4)) == [(3, 2)]


@pytest.mark.parametrize(("spacing", "shape"), [(0, (2, 4, 4)), (1, (2, 4, 5)), (1, (4, 4))])
def test_what_does_not_belong_together_is_refused(spacing: int, shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"spacing of 0 cells|do not fit"):
        find_peaks(np.zeros((4, 4), np.float32), np.zeros(shape, np.float32), threshold=0.5, spacing=spacing, cell=4)


@st.composite
def heat_surfaces(draw: st.DrawFn) -> ArraySurface:
    heat = draw(HEATS)
    offsets = np.random.default_rng(draw(st.integers(0, 99))).uniform(-0.7, 0.7, (2, *heat.shape)).astype(np.float32)
    row, col = draw(st.integers(-20, 20)), draw(st.integers(-20, 20))
    bands = {"heat": heat, "right": offsets[0], "down": offsets[1]}
    return ArraySurface(bands, row, col, gsd=draw(st.sampled_from([0.6, 1.2])), origin=(0.0, 0.0))


def all_trees(surface: ArraySurface, settings: HeatSettings, **how: object) -> Trees:
    return Trees.concatenated(list(trees_on_heat(surface, settings, **how)))  # type: ignore[arg-type]


@given(surface=heat_surfaces(), spacing=st.integers(1, 3), block=st.integers(1, 16), cut=st.integers(0, 14))
def test_trees_on_heat_do_not_depend_on_blocks_or_on_how_an_area_was_cut(
    surface: ArraySurface, spacing: int, block: int, cut: int
) -> None:
    settings = HeatSettings(0.2, spacing)
    whole = all_trees(surface, settings, block=1000)
    assert_same(all_trees(surface, settings, block=block), whole)
    extent, cut = surface.extent, min(cut, surface.extent.height)
    bands = [
        Window(extent.row, extent.col, cut, extent.width),
        Window(extent.row + cut, extent.col, extent.height - cut, extent.width),
    ]
    owned = [batch for band in bands for batch in trees_on_heat(surface, settings, owned=band, block=block)]
    assert_same(Trees.concatenated([*owned, heat_trees(surface, settings, Window(0, 0, 0, 0))]), whole)

    def odd(window: Window) -> npt.NDArray[np.bool_]:
        rows, cols = np.indices(window.shape)
        return np.asarray((rows + window.row + cols + window.col) % 2 == 1)

    halves = [all_trees(surface, settings, wanted=half, block=block) for half in (odd, lambda window: ~odd(window))]
    assert_same(Trees.concatenated(halves), whole)


@given(surface=heat_surfaces(), spacing=st.integers(1, 3))
def test_trees_on_heat_are_the_peaks_of_the_whole(surface: ArraySurface, spacing: int) -> None:
    heat, right, down = surface.bands.values()
    peaks = find_peaks(heat, np.stack([right, down]), threshold=0.3, spacing=spacing, cell=1)
    trees = all_trees(surface, HeatSettings(0.3, spacing), block=1000)
    assert_same(trees, all_trees(surface, HeatSettings(0.3, spacing), block=5))
    order = np.lexsort([trees.col, trees.row])
    np.testing.assert_array_equal(np.stack([trees.row, trees.col], 1)[order] - (surface.row, surface.col), peaks.cells)
    np.testing.assert_array_equal(trees.score[order], peaks.scores)
    left, top = surface.col * surface.gsd, -surface.row * surface.gsd
    np.testing.assert_allclose(trees.x[order], left + peaks.points[:, 0] * surface.gsd, atol=1e-9)
    np.testing.assert_allclose(trees.y[order], top - peaks.points[:, 1] * surface.gsd, atol=1e-9)


def test_a_tree_whose_point_lies_over_the_border_stays_with_its_cell() -> None:
    heat = np.zeros((4, 8), np.float32)
    heat[1, 3] = 1.0
    surface = ArraySurface({"heat": heat, "right": np.full_like(heat, 0.8), "down": np.zeros_like(heat)})
    west, east = trees_on_heat(surface, HeatSettings(), block=4)
    assert (cells_of(west), west.x.tolist(), len(east)) == ([(1, 3)], [pytest.approx(4.3)], 0)
    assert west.tree_ids(surface.grid) == ["3.50_-1.50"]
    assert np.isnan(west.height_m).all() and west.crown is None


def test_what_another_surface_says_is_looked_up_where_the_tree_stands() -> None:
    heat = np.zeros((4, 4), np.float32)
    heat[0, 0], heat[2, 2] = 0.9, 0.8
    right = np.zeros_like(heat)
    right[0, 0] = 0.4
    surface = ArraySurface({"heat": heat, "right": right, "down": np.zeros_like(heat)}, row=10, col=-4, gsd=1.2)
    trees = all_trees(surface, HeatSettings())
    assert trees.x.tolist() == pytest.approx([-3.1 * 1.2, -1.5 * 1.2])
    # Cells of half the width: the first tree's point falls in column -7, the second's on the corner of four.
    height = np.arange(64, dtype=np.float32).reshape(8, 8)
    scene = np.full((8, 8), 7, np.float32)
    scene[5, 5] = np.nan
    canopy = ArraySurface({"height": height, "scene": scene}, row=20, col=-8, gsd=0.6)
    found = looked_up(trees, canopy)
    assert found.height_m.tolist() == [height[1, 1], height[5, 5]]
    assert found.scene.tolist() == [7, 0] and np.isnan(found.height_spread_m).all()
    apart = ArraySurface({"height": height}, row=500, col=500, gsd=0.6)
    assert np.isnan(looked_up(trees, apart).height_m).all()
    assert looked_up(trees, surface) is trees


@pytest.mark.parametrize(
    ("wrong", "match"),
    [({"threshold": 1.5}, "threshold 1.5 must lie in 0 to 1"), ({"spacing": 0}, "spacing of 0 cells")],
)
def test_heat_settings_that_mean_nothing_are_refused(wrong: dict[str, float], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        HeatSettings(**wrong)  # type: ignore[arg-type]
