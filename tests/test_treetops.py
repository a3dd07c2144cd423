"""Tree tops on a height map: the law, and that trees do not depend on how the map was cut."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from array_surface import ArraySurface, assert_same, cells, hilly, stepped
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from geodino.crowns import CrownSettings
from geodino.errors import ConfigError
from geodino.grid import Window
from geodino.surface import RasterSurface
from geodino.trees import Trees
from geodino.treetops import HeightSettings, find_treetops, height_trees, smoothed, trees_on_height

Floats = npt.NDArray[np.float32]

# Radii from the eight neighbours alone to seven cells of 1 m.
TOPS = st.sampled_from(
    [
        HeightSettings(),
        HeightSettings(crowns=None, allometry=(0, 0, 0)),
        HeightSettings(crowns=None, allometry=(2, 0.6, 0), max_diameter_m=14),
        HeightSettings(crowns=None, allometry=(9, -1, 0.1), min_height_m=1),
    ]
)


def found(height: Floats, settings: HeightSettings, gsd: float = 1.0) -> list[tuple[int, int]]:
    rows, cols = find_treetops(height, gsd, settings)
    return list(zip(rows.tolist(), cols.tolist(), strict=True))


def slow_tops(height: Floats, settings: HeightSettings, gsd: float = 1.0) -> list[tuple[int, int]]:
    """The law, cell by cell."""
    tops = []
    for row, col in np.ndindex(height.shape):
        here = height[row, col]
        if not here >= settings.min_height_m:
            continue
        radius = max(float(settings.diameter_m(here)) / 2 / gsd, math.sqrt(2))
        reach = math.floor(radius)
        if not any(
            (height[r, c] > here or (height[r, c] == here and (r, c) < (row, col)))
            and (r - row) ** 2 + (c - col) ** 2 <= radius**2
            for r in range(max(row - reach, 0), min(row + reach + 1, height.shape[0]))
            for c in range(max(col - reach, 0), min(col + reach + 1, height.shape[1]))
        ):
            tops.append((row, col))
    return tops


def block_of(path: Path, settings: HeightSettings, block: Window) -> Trees:
    """What one worker finds, which has the file open for itself."""
    with RasterSurface(path, names=("height",)) as surface:
        return height_trees(surface, settings, block)


def all_trees(surface: ArraySurface | RasterSurface, settings: HeightSettings, **how: object) -> Trees:
    return Trees.concatenated(list(trees_on_height(surface, settings, **how)))  # type: ignore[arg-type]


@given(height=st.one_of(stepped(), hilly(20)), settings=TOPS, gsd=st.sampled_from([0.5, 0.6, 1.0, 3.0]))
def test_tops_are_what_the_law_says(height: Floats, settings: HeightSettings, gsd: float) -> None:
    assert found(height, settings, gsd) == slow_tops(height, settings, gsd)


@given(height=stepped(), settings=TOPS)
def test_of_equal_heights_within_a_radius_one_is_a_top_at_most_and_the_highest_always_is(
    height: Floats, settings: HeightSettings
) -> None:
    tops = found(height, settings)
    for k, (row, col) in enumerate(tops):
        for other in tops[k + 1 :]:
            if height[other] == height[row, col]:
                radius = max(float(settings.diameter_m(height[other])) / 2, math.sqrt(2))
                assert math.dist((row, col), other) > radius
    if (height >= settings.min_height_m).any():
        assert np.unravel_index(np.nanargmax(height), height.shape) in tops


def test_a_plateau_gives_its_first_cell_and_another_beyond_the_radius() -> None:
    height = np.zeros((30, 30), np.float32)
    height[4:8, 5:9] = 10.0
    assert found(height, HeightSettings()) == [(4, 5)]
    height[4:6, 5:25] = 10.0
    # 3.4 m across: cells up to 1.7 m away count.
    assert found(height, HeightSettings(), gsd=0.6) == [(4, 5)]
    height[20, 5], height[21, 13] = 10.0, 10.0
    assert found(height, HeightSettings()) == [(4, 5), (20, 5), (21, 13)]


def test_a_lower_top_stands_only_outside_its_own_radius_of_a_higher_cell() -> None:
    settings = HeightSettings(allometry=(0, 1, 0))
    height = np.zeros((1, 40), np.float32)
    height[0, 3] = 20.0
    for away, stands in ((4, False), (5, False), (6, True)):
        height[0, 4:] = 0.0
        height[0, 3 + away] = 10.0
        assert ((0, 3 + away) in found(height, settings)) is stands


@given(
    height=hilly(24),
    deviation=st.sampled_from([0.0, 0.4, 2.0]),
    widest=st.sampled_from([3.0, 8.0]),
    block=st.integers(1, 30),
    crowns=st.sampled_from([None, CrownSettings()]),
)
def test_trees_do_not_depend_on_the_blocks(
    height: Floats, deviation: float, widest: float, block: int, crowns: CrownSettings | None
) -> None:
    surface = ArraySurface({"height": height, "spread": height / 4}, row=-7, col=1005, gsd=0.6)
    settings = HeightSettings(allometry=(2, 0.4, 0), smoothing_m=deviation, max_diameter_m=widest, crowns=crowns)
    whole = all_trees(surface, settings, block=10_000)
    assert_same(all_trees(surface, settings, block=block), whole)


@given(height=hilly(24), row=st.integers(0, 24), col=st.integers(0, 24), block=st.sampled_from([5, 64]))
def test_an_area_cut_in_two_and_joined_gives_the_same_trees(height: Floats, row: int, col: int, block: int) -> None:
    surface = ArraySurface({"height": height}, row=3, col=-11)
    settings = HeightSettings(max_diameter_m=8)

    def first(window: Window) -> npt.NDArray[np.bool_]:
        rows, cols = np.indices(window.shape)
        return np.asarray((rows + window.row - 3) * 3 + (cols + window.col + 11) < row + col)

    def second(window: Window) -> npt.NDArray[np.bool_]:
        return ~first(window)

    whole = all_trees(surface, settings)
    masked = [all_trees(surface, settings, wanted=part, block=block) for part in (first, second)]
    assert_same(Trees.concatenated(masked), whole)
    top, bottom = min(row, height.shape[0]), height.shape[0] - min(row, height.shape[0])
    bands = [Window(3, -11, top, height.shape[1]), Window(3 + top, -11, bottom, height.shape[1])]
    cut = [batch for band in bands for batch in trees_on_height(surface, settings, owned=band, block=block)]
    assert_same(Trees.concatenated(cut), whole)


@given(height=hilly(40), row=st.integers(0, 39), settings=TOPS, deviation=st.sampled_from([0.0, 0.7]))
def test_a_map_that_ends_a_context_beyond_gives_the_same_tops(
    height: Floats, row: int, settings: HeightSettings, deviation: float
) -> None:
    settings = HeightSettings(
        crowns=None,
        allometry=settings.allometry,
        max_diameter_m=min(settings.max_diameter_m, 8),
        smoothing_m=deviation,
    )
    context = math.ceil(settings.context_m)
    row = min(row, height.shape[0])
    whole = ArraySurface({"height": height})
    part = ArraySurface({"height": height[max(row - context, 0) :]}, row=max(row - context, 0))
    owned = Window(row, 0, height.shape[0] - row, height.shape[1])
    assert_same(height_trees(part, settings, owned), height_trees(whole, settings, owned))


@given(height=hilly(25), deviation=st.sampled_from([0.3, 1.0, 1.7]), row=st.integers(0, 24), col=st.integers(0, 24))
def test_smoothing_gives_a_window_what_it_gives_the_whole(height: Floats, deviation: float, row: int, col: int) -> None:
    reach = math.ceil(4 * deviation + 1)
    top, left = max(row - reach, 0), max(col - reach, 0)
    part = smoothed(height[top:, left:], deviation)[row - top :, col - left :]
    np.testing.assert_array_equal(part, smoothed(height, deviation)[row:, col:])


def test_blocks_bring_the_ground_that_smoothing_needs() -> None:
    height = np.random.default_rng(0).uniform(0, 20, (40, 40)).astype(np.float32)
    surface = ArraySurface({"height": height}, gsd=0.6)
    settings = HeightSettings(smoothing_m=2.0, max_diameter_m=3.0, crowns=None)
    assert len(all_trees(surface, settings)) > 5
    assert_same(all_trees(surface, settings, block=3), all_trees(surface, settings))


def test_smoothing_is_a_gaussian_that_leaves_nodata_out() -> None:
    height = np.random.default_rng(1).uniform(0, 30, (40, 50)).astype(np.float32)
    inner = np.s_[8:-8, 8:-8]
    np.testing.assert_allclose(
        smoothed(height, 1.5)[inner], ndimage.gaussian_filter(height.astype(float), 1.5)[inner], rtol=1e-6
    )
    flat = np.full((20, 20), 7.0, np.float32)
    flat[5:9, 6:9] = np.nan
    np.testing.assert_array_equal(np.isnan(smoothed(flat, 1.0)), np.isnan(flat))
    np.testing.assert_allclose(smoothed(flat, 1.0)[~np.isnan(flat)], 7.0, rtol=1e-6)


def test_a_tree_says_what_its_cell_says_and_the_height_is_not_smoothed() -> None:
    height, scene = np.zeros((20, 20), np.float32), np.full((20, 20), 2, np.float32)
    height[6:9, 9:12], height[7, 10], scene[7, 10] = 6.0, 9.0, 3.0
    surface = ArraySurface({"height": height, "spread": height / 3, "scene": scene}, row=-100, col=50, gsd=0.5)
    (trees,) = trees_on_height(surface, HeightSettings(smoothing_m=0.5), block=1000)
    assert cells(trees) == [(-93, 60)]
    assert (trees.x.tolist(), trees.y.tolist()) == ([60.5 * 0.5], [92.5 * 0.5])
    assert (trees.height_m.tolist(), trees.height_spread_m.tolist(), trees.scene.tolist()) == ([9.0], [3.0], [3])
    assert np.isnan(trees.score).all()
    assert trees.tree_ids(surface.grid) == ["30.25_46.25"]


def test_a_lattice_of_its_own_moves_the_points_and_nothing_else() -> None:
    height = np.zeros((9, 9), np.float32)
    height[4, 3] = 8.0
    there = ArraySurface({"height": height}, origin=(400_000.3, 5_000_000.7), gsd=2.0)
    (trees,) = trees_on_height(there, HeightSettings())
    assert trees.tree_ids(there.grid, there.origin) == ["400007.30_4999991.70"]
    assert (float(trees.x[0]), float(trees.y[0])) == (400_007.3, 4_999_991.7)


def test_blocks_come_row_by_row_with_trees_in_reading_order_also_where_there_are_none() -> None:
    height = np.random.default_rng(3).uniform(0, 20, (50, 70)).astype(np.float32)
    height[:, :32] = np.nan
    batches = list(trees_on_height(ArraySurface({"height": height}), HeightSettings(), block=32))
    assert [len(batch) > 0 for batch in batches] == [False, True, True, False, True, True]
    for batch, block in zip(batches, Window(0, 0, 50, 70).blocks(32), strict=True):
        assert cells(batch) == sorted(cells(batch))
        assert all(block.row <= row < block.row_stop and block.col <= col < block.col_stop for row, col in cells(batch))
        assert batch.crown is not None


def test_no_trees_where_nothing_is_high_enough() -> None:
    surface = ArraySurface({"height": np.full((8, 8), 1.9, np.float32)})
    assert not len(all_trees(surface, HeightSettings()))
    assert len(all_trees(surface, HeightSettings(min_height_m=1.5))) > 0


def test_the_default_allometry_is_that_of_popescu_and_wynne() -> None:
    settings = HeightSettings()
    np.testing.assert_allclose(settings.diameter_m([0, 10, 20, 30]), [2.51503, 3.41603, 6.11903, 10.62403])
    assert settings.diameter_m(90.0) == 20.0
    assert HeightSettings(allometry=(-5, 0, 0)).diameter_m(3.0) == 0.0


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"min_height_m": 0.0}, "min_height_m 0.0 must be over 0"),
        ({"max_diameter_m": math.inf}, "max_diameter_m inf must be over 0 and finite"),
        ({"smoothing_m": -1.0}, "smoothing_m -1.0 must be at least 0"),
        ({"allometry": (1.0, math.nan, 0.0)}, "must be three finite numbers"),
        ({"allometry": (1.0, 2.0)}, "must be three finite numbers"),
    ],
)
def test_settings_that_mean_nothing_are_refused(wrong: dict[str, object], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        HeightSettings(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["autzen_val", "pycrown_west", "kootenay"])
def test_real_canopies_give_the_same_trees_in_any_blocks_halves_and_workers(shared_data: Path, name: str) -> None:
    path = shared_data / "canopy" / "scenes" / f"{name}_chm.tif"
    with RasterSurface(path, names=("height",)) as surface:
        settings = HeightSettings(smoothing_m=0.3, crowns=CrownSettings())
        whole = all_trees(surface, settings, block=100_000)
        assert 150 < len(whole) < 5000
        for block in (64, 177):
            assert_same(all_trees(surface, settings, block=block), whole)
        extent = surface.extent
        with ThreadPoolExecutor(3) as workers:
            one_by_one = list(workers.map(partial(block_of, path, settings), reversed(list(extent.blocks(150)))))
        assert_same(Trees.concatenated(one_by_one), whole)
        middle = extent.width // 2
        halves = [
            Window(extent.row, extent.col, extent.height, middle),
            Window(extent.row, extent.col + middle, extent.height, extent.width - middle),
        ]
        cut = [all_trees(surface, settings, owned=half, block=128) for half in halves]
        assert_same(Trees.concatenated(cut), whole)
        height = surface.read(extent, ("height",))[0]
    at = height[whole.row - extent.row, whole.col - extent.col]
    np.testing.assert_array_equal(whole.height_m, at)
