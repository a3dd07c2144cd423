"""Which scenes lie over labels, on which pixels, and how they are cut."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from odc.geo.crs import CRS
from training_data import GSD, NORTH, SIDE, UTM, WEST, frame_at, frame_of, write_image

from geodino.grid import Window
from geodino.polygons import WGS84
from geodino.sources import Search
from geodino.sources.geotiff import describe
from geodino.training.pairing import Cut, frames_of, moved, outlines, scenes_over, tiled


@given(
    row=st.integers(-50, 50), height=st.integers(1, 500), low=st.integers(0, 100), high=st.integers(0, 100),
    size=st.sampled_from([32, 64, 256]), overlap=st.integers(0, 20),
)  # fmt: skip
def test_chips_are_as_few_as_cover_the_area_and_lie_in_the_image(
    row: int, height: int, low: int, high: int, size: int, overlap: int
) -> None:
    area = Window(row, 0, height, size)
    extent = Window(row - low, 0, low + height + high, size)
    rows = [window.row for window in tiled(area, extent, size, overlap)]
    assert all(window.shape == (size, size) and window.col == 0 for window in tiled(area, extent, size, overlap))
    assert rows[0] <= area.row and rows[-1] + size >= area.row_stop
    steps = np.diff(rows)
    assert (size - steps >= overlap).all() and np.ptp(steps) <= 1 if len(steps) else True
    if extent.height >= size:
        assert rows[0] >= extent.row and rows[-1] + size <= extent.row_stop
    else:
        before, after = extent.row - rows[0], rows[-1] + size - extent.row_stop
        assert len(rows) == 1 and before >= 0 and abs(after - before) <= 1
    # One less would leave a gap, or share too little.
    if len(rows) > 1:
        assert (len(rows) - 1) * size - (len(rows) - 2) * overlap < area.height


def test_nothing_is_cut_where_labels_and_image_do_not_meet() -> None:
    assert tiled(Window(3, 3, 0, 5), Window(0, 0, 90, 90), 32) == ()


@pytest.mark.parametrize("gsd", [0.6, 0.6000000000000106, 0.5945])
def test_a_north_up_scene_of_the_wanted_gsd_keeps_its_own_pixels(tmp_path: Path, gsd: float) -> None:
    frame = frame_at(tmp_path / "a.tif", gsd=gsd)
    assert frame.extent == Window(0, 0, SIDE, SIDE)
    assert frame.transform_of(Window(2, 3, 1, 1)) == Affine(gsd, 0, WEST + 3 * gsd, 0, -gsd, NORTH - 2 * gsd)
    np.testing.assert_allclose(frame.pixels(np.array([[WEST, NORTH]])), [[0, 0]], atol=1e-9)


def test_a_turned_or_flipped_scene_comes_onto_the_grid(tmp_path: Path) -> None:
    write_image(tmp_path / "a.tif")
    scene = describe(str(tmp_path / "a.tif"))
    t = scene.transform
    turned = replace(scene, transform=Affine(t.a * 0.8, t.a * 0.6, t.c, t.a * 0.6, -t.a * 0.8, t.f))
    flipped = replace(scene, transform=Affine(t.a, 0, t.c, 0, -t.e, t.f))
    for other in (turned, flipped):
        frame = frame_of(other)
        assert frame.scene == other and frame.transform == Affine(GSD, 0, 0, 0, -GSD, 0)
        minx, miny, maxx, maxy = other.footprint.bounds
        left, bottom, right, top = frame.bounds(frame.extent)
        assert left <= minx and bottom <= miny and right >= maxx and top >= maxy
        assert right - left < maxx - minx + 2 * GSD


def test_web_mercator_goes_to_utm_even_where_its_pixels_seem_to_fit(tmp_path: Path) -> None:
    frame = frame_at(tmp_path / "a.tif", crs="EPSG:3857", at=(1_670_000, 5_640_000))
    assert frame.crs == CRS(UTM) and frame.scene.gsd == pytest.approx(0.42, abs=0.01)


def test_scenes_of_one_name_are_told_apart(tmp_path: Path) -> None:
    write_image(tmp_path / "a.tif")
    scene = describe(str(tmp_path / "a.tif"))
    assert [frame.name for frame in frames_of([scene, scene, scene], GSD)] == ["a", "a#2", "a#3"]


def test_outlines_are_those_of_the_imagery_and_not_of_the_chip(tmp_path: Path) -> None:
    frame = frame_at(tmp_path / "a.tif", shape=(20, 30))
    (ring,) = outlines([Cut(frame, Window(-22, -17, SIDE, SIDE), ())])
    back = moved(ring, WGS84, CRS(UTM))
    south, east = NORTH - 20 * GSD, WEST + 30 * GSD
    np.testing.assert_allclose(back, [(WEST, south), (east, south), (east, NORTH), (WEST, NORTH)], atol=1e-3)


def lonlat_box(at: tuple[float, float], crs: str) -> list[float]:
    (west, south), (east, north) = moved(np.array([at, (at[0] + 30, at[1] + 30)]), CRS(crs), WGS84).tolist()
    return [west, south, east, north]


def test_labels_all_over_the_earth_find_their_scenes(tmp_path: Path) -> None:
    spots = {"EPSG:2193": (1_802_140.0, 5_467_400.0), "EPSG:26910": (494_004.0, 4_878_400.0),
             "EPSG:2154": (770_550.0, 6_277_500.0), "EPSG:32617": (404_886.0, 3_284_400.0)}  # fmt: skip
    for name, at in spots.items():
        write_image(tmp_path / f"{name[5:]}.tif", crs=name, at=(at[0] - 10, at[1] + 25))
    write_image(tmp_path / "elsewhere.tif", crs="EPSG:26910", at=(594_004.0, 4_878_400.0))
    boxes = np.array([lonlat_box(at, crs) for crs, at in spots.items()])
    found, said = scenes_over(boxes, [str(tmp_path)], Search(), whole=False)
    assert [scene.id for scene in found] == ["2154", "2193", "26910", "32617"]
    assert any("off the AOI" in sentence for sentence in said)


def test_named_scenes_are_searched_in_the_whole_rectangle_around_the_labels(tmp_path: Path) -> None:
    boxes = []
    for number in range(3):
        at = (WEST + 3000 * number, NORTH)
        write_image(tmp_path / f"{number}.tif", at=at)
        boxes.append(lonlat_box((at[0], at[1] - 35), UTM))
    ends = np.array([boxes[0], boxes[2]])
    for whole, wanted in ((False, ["0", "2"]), (True, ["0", "1", "2"])):
        found, _ = scenes_over(ends, [str(tmp_path)], Search(), whole=whole)
        assert [scene.id for scene in found] == wanted
