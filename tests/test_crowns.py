"""Crowns on a height map: the law of the flood, where crowns end, and that they do not depend on the window."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import shapely
from array_surface import ArraySurface, assert_same, cells, hilly, stepped
from hypothesis import given
from hypothesis import strategies as st
from rasterio.features import rasterize

from geodino import treetops
from geodino.crowns import CrownSettings, Tops, draw_crowns, flood, outlines
from geodino.errors import ConfigError
from geodino.grid import Window
from geodino.surface import RasterSurface
from geodino.trees import Trees
from geodino.treetops import HeightSettings, find_treetops, height_trees, trees_on_height

Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int32]

FLOOR = 2.0
# Radii of 1.5 to 3 cells of 1 m, so that floods meet and windows are soon too small.
SMALL = HeightSettings(allometry=(2, 0.3, 0), max_diameter_m=6, crowns=CrownSettings(reach=1.5))


def tops_of(height: Floats, settings: HeightSettings = SMALL) -> Tops:
    rows, cols = find_treetops(height, 1.0, settings)
    heights = height[rows, cols].astype(np.float64)
    assert settings.crowns
    return Tops(rows, cols, heights, settings.crowns.reach * np.maximum(settings.diameter_m(heights) / 2, math.sqrt(2)))


def walled(height: Floats) -> Floats:
    """The map with nothing around it, so that all of it is settled."""
    return np.pad(height, 1, constant_values=np.nan)


def slow_flood(height: Floats, tops: Tops) -> Labels:
    """Whose each cell is, told from the cell: on to the highest cell beside those gone to so far, until a top."""
    number = {cell: k + 1 for k, cell in enumerate(zip(tops.rows.tolist(), tops.cols.tolist(), strict=True))}
    found = np.zeros(height.shape, np.int32)
    for start in np.ndindex(height.shape):
        if not height[start] >= FLOOR:
            continue
        gone, beside = set[tuple[int, int]](), {start}
        while beside:
            here = min(beside, key=lambda cell: (-height[cell], cell))
            beside.remove(here)
            gone.add(here)
            if here in number:
                found[start] = number[here]
                break
            for down, right in ((-1, 0), (1, 0), (0, -1), (0, 1)):
                cell = (here[0] + down, here[1] + right)
                inside = 0 <= cell[0] < height.shape[0] and 0 <= cell[1] < height.shape[1]
                if inside and height[cell] >= FLOOR and cell not in gone:
                    beside.add(cell)
    return found


def drawn(height: Floats, settings: HeightSettings = SMALL) -> tuple[Tops, Labels]:
    """All crowns of a map, as labels of its own shape."""
    tops = tops_of(walled(height), settings)
    labels = np.zeros(walled(height).shape, np.int32)
    if len(tops.rows):
        assert settings.crowns
        crowns = draw_crowns(walled(height), tops, np.arange(len(tops.rows)), settings.crowns, floor_m=FLOOR)
        assert crowns.settled
        rows, cols = crowns.labels.shape
        labels[crowns.row : crowns.row + rows, crowns.col : crowns.col + cols] = crowns.labels
    return tops._replace(rows=tops.rows - 1, cols=tops.cols - 1), labels[1:-1, 1:-1]


def all_trees(surface: ArraySurface | RasterSurface, settings: HeightSettings, block: int) -> Trees:
    return Trees.concatenated(list(trees_on_height(surface, settings, block=block)))


@given(height=st.one_of(stepped(), hilly(14)))
def test_a_cell_falls_to_the_first_top_on_its_way_up(height: Floats) -> None:
    tops = tops_of(walled(height))
    np.testing.assert_array_equal(flood(walled(height), tops, floor_m=FLOOR), slow_flood(walled(height), tops))


@given(height=st.one_of(stepped(16), hilly(20)), row=st.integers(0, 10), col=st.integers(0, 10))
def test_what_is_settled_in_a_window_is_so_in_the_whole(height: Floats, row: int, col: int) -> None:
    whole_tops = tops_of(walled(height))
    whole = flood(walled(height), whole_tops, floor_m=FLOOR)
    part = np.s_[row : row + 9, col : col + 9]
    inside = np.zeros(whole.shape, np.bool_)
    inside[part] = True
    kept = np.flatnonzero(inside[whole_tops.rows, whole_tops.cols])
    tops = Tops(*(column[kept] for column in whole_tops))
    if not walled(height)[part].size:
        return
    found = flood(walled(height)[part], tops._replace(rows=tops.rows - row, cols=tops.cols - col), floor_m=FLOOR)
    settled = found <= len(kept)
    number = np.concatenate([[0], kept + 1])
    np.testing.assert_array_equal(number[found[settled]], whole[part][settled])


@given(height=st.one_of(stepped(), hilly(20)), share=st.sampled_from([0.0, 0.3, 0.8]))
def test_crowns_lie_in_their_reach_and_height_and_hang_together(height: Floats, share: float) -> None:
    settings = HeightSettings(allometry=(2, 0.3, 0), max_diameter_m=6, crowns=CrownSettings(share, 1.5))
    tops, labels = drawn(height, settings)
    whole = flood(walled(height), tops_of(walled(height), settings), floor_m=FLOOR)[1:-1, 1:-1]
    rows, cols = np.indices(height.shape)
    for k, (row, col, top, reach) in enumerate(zip(*(column.tolist() for column in tops), strict=True)):
        crown = labels == k + 1
        near = np.hypot(rows - row, cols - col) <= reach
        may = (whole == k + 1) & near & (height >= max(share * top, FLOOR))
        assert crown[row, col] and not (crown & ~may).any()
        # Nothing beside the crown that could be in it is left out, and it is one piece.
        grown = np.zeros_like(crown)
        grown[row, col] = True
        while True:
            more = grown.copy()
            more[1:] |= grown[:-1]
            more[:-1] |= grown[1:]
            more[:, 1:] |= grown[:, :-1]
            more[:, :-1] |= grown[:, 1:]
            more &= may
            if (more == grown).all():
                break
            grown = more
        np.testing.assert_array_equal(crown, grown)


@given(height=hilly(40), block=st.sampled_from([3, 7, 11, 16]))
def test_crowns_do_not_depend_on_the_blocks(height: Floats, block: int) -> None:
    surface = ArraySurface({"height": height}, row=-5, col=800)
    assert_same(all_trees(surface, SMALL, block), all_trees(surface, SMALL, 10_000))


def test_more_ground_is_looked_at_until_a_crown_is_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    # Beside a tree, over a saddle, a ridge begins that climbs away to the east and has no top, because a higher tree
    # stands cornerwise beside its end. So all of it falls to the first tree, as far as that reaches.
    height = np.full((40, 140), np.nan, np.float32)
    height[20, 10:101] = [6.0, 4.0, *np.linspace(5.0, 5.5, 89)]
    height[21, 101] = 20.0
    surface = ArraySurface({"height": height})
    owned = Window(15, 5, 10, 10)
    settings = HeightSettings(allometry=(2, 0.3, 0), max_diameter_m=6, crowns=CrownSettings(reach=3.0))
    trees = height_trees(surface, settings, owned)
    assert trees.crown_area_m2.tolist() == [6.0]
    assert max(window.width for window in surface.reads) > 100
    (whole,) = trees_on_height(surface, settings)
    assert [cells(trees)[0], (21, 101)] == cells(whole)
    monkeypatch.setattr(treetops, "_DOUBLINGS", 0)
    assert height_trees(surface, settings, owned).crown_area_m2.tolist() == [2.0]


def test_two_cones_part_in_the_valley_between_them() -> None:
    rows, cols = np.indices((21, 31))
    left, right = 12 - np.hypot(rows - 10, cols - 9), 11.5 - np.hypot(rows - 10, cols - 21)
    settings = HeightSettings(allometry=(8, 0, 0), crowns=CrownSettings(min_share=0.0, reach=2.0))
    tops, labels = drawn(np.maximum(left, right).astype(np.float32), settings)
    assert list(zip(tops.rows.tolist(), tops.cols.tolist(), strict=True)) == [(10, 9), (10, 21)]
    assert (labels[left > right + 1][labels[left > right + 1] > 0] == 1).all()
    assert (labels[right > left + 1][labels[right > left + 1] > 0] == 2).all()
    assert (labels == 1).sum() > 120 and (labels == 2).sum() > 120


@given(height=st.one_of(stepped(), hilly(16)), row=st.integers(-999, 999), gsd=st.sampled_from([0.5, 0.6, 1.194]))
def test_outlines_hold_exactly_the_cells_of_their_crown(height: Floats, row: int, gsd: float) -> None:
    surface = ArraySurface({"height": height}, row=row, col=-row, gsd=gsd)
    trees = all_trees(surface, SMALL, 10_000)
    assert trees.crown is not None
    assert all(crown.is_valid and crown.geom_type == "Polygon" for crown in trees.crown)
    np.testing.assert_allclose(trees.crown_area_m2, shapely.area(trees.crown), rtol=1e-5)
    np.testing.assert_allclose(np.pi * (trees.crown_diameter_m / 2) ** 2, trees.crown_area_m2, rtol=1e-5)
    assert shapely.contains_xy(trees.crown, trees.x, trees.y).all()
    if len(trees):
        transform = surface.grid.geobox(surface.extent).affine
        burnt = rasterize(zip(trees.crown, range(1, len(trees) + 1), strict=True), height.shape, transform=transform)
        counts = np.bincount(burnt.ravel(), minlength=len(trees) + 1)[1:]
        np.testing.assert_allclose(counts * gsd**2, trees.crown_area_m2, rtol=1e-5)  # No two crowns share a cell.


def test_outlines_have_holes_and_missing_labels_have_none() -> None:
    labels = np.zeros((7, 9), np.int32)
    labels[1:6, 1:6] = 3
    labels[3, 3] = 0
    labels[2, 7] = 1
    one, two, three = outlines(labels, 3, (10, 20), 0.5, (100.0, 200.0))
    assert two is None
    assert one.equals(shapely.box(100 + 27 * 0.5, 200 - 13 * 0.5, 100 + 28 * 0.5, 200 - 12 * 0.5))
    assert len(three.interiors) == 1 and three.area == 24 * 0.25


def test_heights_of_all_sizes_are_still_told_apart() -> None:
    # More different heights and cells than a double has room for.
    height = np.zeros((2100, 3002), np.float32)
    height[100, 1:-1] = np.geomspace(1e-30, 1e30, 3000)
    tops = Tops(np.array([100]), np.array([3000]), np.array([1e30]), np.array([1.0]))
    assert (flood(height, tops, floor_m=1e-35)[100, 1:-1] == 1).all()


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"min_share": 1.1}, "min_share 1.1 must lie in 0 to 1"),
        ({"reach": 0.0}, "reach of 0.0 radii must be over 0"),
        ({"reach": math.inf}, "reach of inf radii must be over 0 and finite"),
    ],
)
def test_settings_that_mean_nothing_are_refused(wrong: dict[str, float], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        CrownSettings(**wrong)


def test_real_crowns_are_the_same_where_the_map_ends_a_context_beyond(shared_data: Path) -> None:
    with RasterSurface(shared_data / "canopy" / "scenes" / "autzen_southeast_chm.tif", names=("height",)) as surface:
        extent = surface.extent
        height = surface.read(extent, ("height",))[0]
        whole = ArraySurface({"height": height}, row=extent.row, col=extent.col, gsd=surface.grid.gsd)
    settings = HeightSettings()
    context = math.ceil(settings.context_m / whole.gsd)
    owned = Window(extent.row + 300, extent.col + 250, 200, 250)
    seen = owned.padded(context)
    part = ArraySurface({"height": height[seen.slices_in(extent)]}, row=seen.row, col=seen.col, gsd=whole.gsd)
    found, wanted = height_trees(part, settings, owned), height_trees(whole, settings, owned)
    assert len(found) > 100
    assert_same(found, wanted)


def test_the_crowns_of_a_real_canopy_cover_most_of_it_once(shared_data: Path) -> None:
    path = shared_data / "canopy" / "scenes" / "pycrown_west_chm.tif"
    with RasterSurface(path, names=("height",)) as surface:
        trees = all_trees(surface, HeightSettings(), 1024)
        canopy = float((surface.read(surface.extent, ("height",)) >= 2).sum()) * surface.grid.gsd**2
    area = float(trees.crown_area_m2.sum())
    assert 0.7 * canopy < area <= canopy
    assert trees.crown is not None
    assert math.isclose(shapely.union_all(trees.crown).area, area, rel_tol=1e-5)
