"""Laws of the pixel grid and the choice of its CRS."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from odc.geo.crs import CRS

from geodino.errors import ConfigError
from geodino.grid import Grid, Window, choose_crs, is_metric, utm_crs

WINDOWS = st.builds(
    Window,
    st.integers(-9_000_000, 9_000_000),
    st.integers(-900_000, 900_000),
    st.integers(1, 5000),
    st.integers(1, 5000),
)
GSDS = st.sampled_from([0.3, 0.5, 0.6, 1.0, 1.194])


@given(WINDOWS, GSDS)
def test_a_window_comes_back_from_its_bounds(window: Window, gsd: float) -> None:
    grid = Grid(CRS("EPSG:32610"), gsd)
    assert grid.window_over(grid.bounds(window)) == window


@pytest.mark.parametrize("gsd", [0.0, -0.6, float("nan"), float("inf")])
def test_a_gsd_that_is_no_length_is_refused(gsd: float) -> None:
    with pytest.raises(ConfigError, match=f"GSD {gsd:g} must be over 0 m a pixel and finite"):
        Grid(CRS("EPSG:32610"), gsd)


@given(WINDOWS, GSDS)
def test_the_geobox_has_the_bounds_of_the_window(window: Window, gsd: float) -> None:
    grid = Grid(CRS("EPSG:32610"), gsd)
    box = grid.geobox(window)
    assert box.shape == window.shape
    np.testing.assert_allclose(tuple(box.boundingbox), grid.bounds(window), atol=1e-6)


@given(WINDOWS, st.floats(-0.4, 0.4), GSDS)
def test_the_window_over_bounds_holds_them(window: Window, off: float, gsd: float) -> None:
    grid = Grid(CRS("EPSG:32610"), gsd)
    minx, miny, maxx, maxy = (value + off * gsd for value in grid.bounds(window))
    got = grid.bounds(grid.window_over((minx, miny, maxx, maxy)))
    slack = 2e-3 * gsd
    assert got[0] <= minx + slack and got[1] <= miny + slack and got[2] >= maxx - slack and got[3] >= maxy - slack


@given(WINDOWS, WINDOWS)
def test_intersection_and_union_nest(a: Window, b: Window) -> None:
    whole = a.union(b)
    assert a.intersection(whole) == a and b.intersection(whole) == b
    shared = a.intersection(b)
    assert shared == b.intersection(a)
    assert shared.empty or shared.intersection(a) == shared


@given(WINDOWS, st.integers(0, 50))
def test_a_window_padded_and_cropped_is_itself(window: Window, pixels: int) -> None:
    assert window.padded(pixels).padded(-pixels) == window


@given(
    st.builds(Window, st.integers(-40, 40), st.integers(-40, 40), st.integers(0, 30), st.integers(0, 30)),
    st.integers(1, 25),
)
def test_blocks_hold_each_pixel_once_and_are_the_same_for_any_window(window: Window, side: int) -> None:
    seen = np.zeros(window.shape, int)
    for block in window.blocks(side):
        assert block.row // side == (block.row_stop - 1) // side and block.col // side == (block.col_stop - 1) // side
        seen[block.slices_in(window)] += 1
    assert (seen == 1).all()


def test_rounding_noise_in_a_files_transform_adds_no_pixel() -> None:
    grid = Grid(CRS("EPSG:26911"), 0.6)
    noisy = grid.window_over((433880.40000000363, 3776378.39999999, 434034.0000000036, 3776531.99999999))
    assert noisy.shape == (256, 256)


@pytest.mark.parametrize(
    ("lon", "lat", "code"),
    [
        (-123.07, 44.06, 32610),
        (175.4, -41.2, 32760),
        (-78.5, 37.9, 32617),
        (0.0, 85.0, 32661),
        (10.0, -82.0, 32761),
    ],
)
def test_the_utm_zone_of_a_place(lon: float, lat: float, code: int) -> None:
    assert utm_crs(lon, lat) == CRS(f"EPSG:{code}")


@pytest.mark.parametrize(
    ("crs", "lon", "lat", "metric"),
    [
        ("EPSG:26910", -123.07, 44.06, True),
        ("EPSG:2193", 175.4, -41.2, True),
        ("EPSG:2154", 2.0, 46.0, True),
        ("EPSG:3857", -123.07, 44.06, False),
        ("EPSG:4326", -123.07, 44.06, False),
        ("EPSG:2992", -123.07, 44.06, False),
        ("EPSG:26910", -100.0, 44.06, False),
    ],
)
def test_a_crs_is_metric_where_it_keeps_metres_true(crs: str, lon: float, lat: float, metric: bool) -> None:
    assert is_metric(CRS(crs), lon, lat) is metric


def test_imagery_in_web_mercator_runs_in_utm_and_national_grids_stay() -> None:
    assert choose_crs(175.4, -41.2, CRS("EPSG:3857")) == CRS("EPSG:32760")
    assert choose_crs(175.4, -41.2, CRS("EPSG:2193")) == CRS("EPSG:2193")
    assert choose_crs(-123.07, 44.06, None) == CRS("EPSG:32610")
