"""Statistics of zones against numpy, and the laws of cutting and joining."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproj import Geod
from scipy import stats
from zonal_maps import GSD, PIXEL_HA, box, ground_of, made_heights, write_map, zones

from geodino.errors import ConfigError, InputError, ReadError
from geodino.grid import Window
from geodino.zonal import sweep
from geodino.zonal.cells import Cells
from geodino.zonal.ground import Ground, Layers, layers_of
from geodino.zonal.statistics import Statistics, zone_statistics
from geodino.zonal.sums import Settings, Sums
from geodino.zonal.uncertainty import Correlation
from geodino.zonal.zones import Zones

ROWS, COLS = 90, 120
HEIGHTS = made_heights(ROWS, COLS)
SPREADS = 0.5 + 0.2 * HEIGHTS
EDGES = (2, 5, 10, 15, 20, 30, 40)


@pytest.fixture(scope="module")
def chm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("map")
    write_map(folder / "chm_spread.tif", SPREADS)
    return write_map(folder / "chm.tif", HEIGHTS)


def of(path: Path, *shapes: shapely.Geometry, **options: object) -> pd.DataFrame:
    return zone_statistics(layers_of(path), zones(*shapes), settings=Settings(**options)).frame


def test_a_zone_of_whole_pixels_is_what_numpy_says(chm: Path) -> None:
    row = of(chm, box(10, 20, 35, 50)).iloc[0]
    inside = HEIGHTS[10:45, 20:70]
    assert row["zone"] == 1
    # A pixel is 0.36 m2 on the map; UTM is 0.04 % off that on the ground.
    assert row["area_ha"] == pytest.approx(inside.size * PIXEL_HA, rel=1e-3)
    assert row["seen_percent"] == 100
    assert row["mean_height_m"] == pytest.approx(inside.mean(), rel=1e-6)
    assert row["max_height_m"] == inside.max()
    for name, share in (("p50_height_m", 0.5), ("p95_height_m", 0.95)):
        assert row[name] == np.quantile(inside, share, method="inverted_cdf")
    for least in (2, 5, 10):
        assert row[f"cover_above_{least}m_percent"] == pytest.approx(100 * (inside > least).mean(), rel=1e-6)
    shares = np.histogram(inside, [-1, *(np.nextafter(edge, 99) for edge in EDGES), 99])[0] / inside.size
    names = [name for name in row.index if name.startswith("area_") and name != "area_ha"]
    assert names[0] == "area_0_to_2m_ha" and names[1] == "area_2_to_5m_ha" and names[-1] == "area_over_40m_ha"
    assert row[names].to_numpy(float) == pytest.approx(shares * row["area_ha"], rel=1e-5, abs=1e-12)


def test_pixels_that_a_border_cuts_count_in_part(chm: Path) -> None:
    row = of(chm, box(10.25, 20.5, 1, 2)).iloc[0]
    weights = np.outer([0.75, 0.25], [0.5, 1, 0.5])
    inside = HEIGHTS[10:12, 20:23]
    assert row["mean_height_m"] == pytest.approx((inside * weights).sum() / weights.sum(), rel=1e-6)
    assert row["area_ha"] == pytest.approx(2 * PIXEL_HA, rel=1e-3)
    assert row["max_height_m"] == inside.max()


def test_a_zone_smaller_than_a_pixel_is_part_of_it(chm: Path) -> None:
    row = of(chm, box(30.4, 40.3, 0.2, 0.1)).iloc[0]
    assert row["mean_height_m"] == row["p50_height_m"] == row["max_height_m"] == HEIGHTS[30, 40]
    assert row["seen_percent"] == 100
    assert row["area_ha"] == pytest.approx(0.02 * PIXEL_HA, rel=1e-3)


@settings(max_examples=12)
@given(st.lists(st.floats(1, ROWS - 1), max_size=4), st.lists(st.floats(1, COLS - 1), max_size=4), st.floats(0, 1))
def test_parts_of_a_cut_map_add_up_to_the_whole(chm: Path, down: list[float], right: list[float], tilt: float) -> None:
    whole = shapely.box(0, 0, COLS, ROWS)
    cuts = [shapely.LineString([(-1, at), (COLS + 1, at + tilt)]) for at in down]
    cuts += [shapely.LineString([(at, -1), (at - tilt, ROWS + 1)]) for at in right]
    lines = shapely.union_all([whole.boundary, *cuts])
    parts = [part for part in shapely.polygonize([lines]).geoms if part.within(whole.buffer(1e-6)) and part.area > 1e-6]
    found = of(chm, *map(ground_of, parts))
    every = of(chm, ground_of(whole)).iloc[0]
    assert found["area_ha"].sum() == pytest.approx(every["area_ha"], rel=1e-6)
    for name in [name for name in found if name.startswith("area_")]:
        assert found[name].sum() == pytest.approx(every[name], rel=1e-5, abs=1e-9)
    for name in ("mean_height_m", "cover_above_5m_percent", "cover_above_2m_expected_percent"):
        assert (found[name] * found["area_ha"]).sum() / every["area_ha"] == pytest.approx(every[name], rel=1e-5)
    assert found["max_height_m"].max() == every["max_height_m"]


def test_a_zone_in_two_parts_is_both_together(chm: Path) -> None:
    one, other = box(5, 5, 20, 30), box(40, 60, 10, 12)
    found = of(chm, shapely.union(one, other), one, other)
    joined = np.concatenate([HEIGHTS[5:25, 5:35].ravel(), HEIGHTS[40:50, 60:72].ravel()])
    assert found["mean_height_m"][0] == pytest.approx(joined.mean(), rel=1e-6)
    assert found["p95_height_m"][0] == np.quantile(joined, 0.95, method="inverted_cdf")
    assert found["area_ha"][0] == pytest.approx(found["area_ha"][1:].sum(), rel=1e-9)


def test_squares_and_lots_change_nothing(chm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = [
        box(0, 0, ROWS, COLS),
        box(3.3, 7.7, 50, 60),
        *(box(r, c, 6, 6) for r in range(0, 80, 9) for c in (5, 64)),
    ]
    plain = of(chm, *shapes)
    monkeypatch.setattr(sweep, "SQUARE_PX", 16)
    monkeypatch.setattr(sweep, "_LOT_ZONES", 3)
    cut = of(chm, *shapes)
    for name in plain.columns.drop(["geometry", "intervals"]):
        assert cut[name].to_numpy(float) == pytest.approx(plain[name].to_numpy(float), rel=2e-6, abs=1e-9), name


def test_many_zones_are_taken_lot_by_lot_over_one_read_of_each_square(
    chm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So a million zones take no more memory than their outlines and figures."""
    lots: list[int] = []
    reads: list[Window] = []
    add_up, read = sweep.add_up, Ground.read

    def counted(cells: Cells, *rest: Any) -> Sums:
        lots.append(len(cells.counts))
        return add_up(cells, *rest)

    def noted(ground: Ground, window: Window) -> Any:
        reads.append(window)
        return read(ground, window)

    monkeypatch.setattr(sweep, "SQUARE_PX", 32)
    monkeypatch.setattr(sweep, "add_up", counted)
    monkeypatch.setattr(Ground, "read", noted)
    spots = np.random.default_rng(0).uniform(0, [ROWS - 3, COLS - 3], (3000, 2))
    found = of(chm, *(box(row, col, 2.5, 2.5) for row, col in spots))
    assert sum(lots) == 3000 and max(lots) <= 256 and found["mean_height_m"].notna().all()
    assert len(reads) == 3 * 4
    assert max(max(window.shape) for window in reads) <= 32 + 4


def test_nodata_is_never_bare_ground(tmp_path: Path) -> None:
    heights = HEIGHTS.copy()
    heights[:, 60:] = np.nan
    heights[20:30, 30] = np.nan
    path = write_map(tmp_path / "chm.tif", heights)
    shapes = box(10, 30, 20, 50), box(10, 58, 20, 20), box(0, 70, 9, 9), box(80, 0, 20, 40)
    found = zone_statistics(layers_of(path), zones(*shapes), settings=Settings(least_valid_percent=55))
    frame = found.frame
    assert frame["seen_percent"].to_numpy() == pytest.approx([59, 10, 0, 50], abs=1e-3)
    seen = heights[10:30, 30:60]
    assert frame["mean_height_m"][0] == pytest.approx(np.nanmean(seen), rel=1e-6)
    assert frame["cover_above_2m_percent"][0] == pytest.approx(
        100 * (seen > 2).sum() / np.isfinite(seen).sum(), rel=1e-6
    )
    classes = [name for name in frame if name.startswith("area_") and name != "area_ha"]
    assert frame[classes].sum(axis=1)[0] == pytest.approx(0.59 * frame["area_ha"][0], rel=1e-5)
    # Too little of the others: no number, but their area and what was seen of it.
    assert frame[["mean_height_m", "max_height_m", "cover_above_2m_percent", *classes]][1:].isna().all(axis=None)
    assert frame["area_ha"].notna().all()
    assert any(
        "3 of 4 zones have no figures, because less than 55 % of each was seen, feature 2" in n for n in found.notes
    )
    # The border itself is enough.
    assert of(path, shapes[3], least_valid_percent=50)["mean_height_m"].notna().all()
    assert of(path, shapes[2], least_valid_percent=0)["mean_height_m"].isna().all()


def test_the_area_of_a_zone_is_geodesic_in_every_crs(chm: Path) -> None:
    shape = ground_of(shapely.Polygon([(3, 4), (100, 10), (90, 80), (40, 60), (5, 85)]))
    lonlat = gpd.GeoSeries([shape], crs="EPSG:26910").to_crs("EPSG:4326")
    exact = abs(Geod(ellps="WGS84").geometry_area_perimeter(lonlat[0])[0]) / 1e4
    assert of(chm, shape)["area_ha"][0] == pytest.approx(exact, rel=1e-6)
    for crs in ("EPSG:4326", "EPSG:3857", "EPSG:2992"):
        found = zone_statistics(layers_of(chm), zones(shape, crs=crs)).frame
        assert found["area_ha"][0] == pytest.approx(exact, rel=1e-6)
        assert found["mean_height_m"][0] == pytest.approx(of(chm, shape)["mean_height_m"][0], rel=1e-4)
        assert found.crs == crs


def test_a_map_in_degrees_or_web_mercator_weighs_pixels_by_their_ground(tmp_path: Path) -> None:
    # Ten degrees from north to south: the northern half of the rows has less ground than the southern.
    heights = np.repeat([[4.0], [12.0]], 100, axis=0) * np.ones((1, 50))
    degrees = Affine(0.05, 0, -123, 0, -0.05, 50)
    path = write_map(tmp_path / "chm.tif", heights, crs="EPSG:4326", transform=degrees)
    frame = gpd.GeoDataFrame(geometry=[shapely.box(-123, 40, -120.5, 50)], crs="EPSG:4326")
    found = zone_statistics(layers_of(path), Zones(frame, np.array([1]), "made")).frame
    geod = Geod(ellps="WGS84")
    halves = (shapely.segmentize(shapely.box(-123, low, -120.5, low + 5), 0.01) for low in (45, 40))
    north, south = (abs(geod.geometry_area_perimeter(half)[0]) for half in halves)
    assert found["mean_height_m"][0] == pytest.approx((4 * north + 12 * south) / (north + south), rel=1e-5)
    assert found["area_ha"][0] == pytest.approx((north + south) / 1e4, rel=1e-4)


def test_intervals_follow_the_spread_and_how_far_it_is_shared(chm: Path) -> None:
    def width(errs: Correlation, *shapes: shapely.Geometry) -> npt.NDArray[np.float64]:
        found = of(chm, *shapes, errs=errs)
        assert (found["cover_above_5m_low_percent"] <= found["cover_above_5m_expected_percent"]).all()
        assert (found["cover_above_5m_expected_percent"] <= found["cover_above_5m_high_percent"]).all()
        return (found["cover_above_5m_high_percent"] - found["cover_above_5m_low_percent"]).to_numpy(float)

    large, small = box(0, 0, ROWS, COLS), box(40, 40, 10, 10)
    alone, near, shared = (
        width(errs, large, small) for errs in (Correlation(0, 0), Correlation(6, 0), Correlation(6, 0.3))
    )
    assert (alone < near).all() and (near < shared).all()
    assert near[0] < near[1]
    # Each for itself: the plain sum of the pixels' variances.
    inside = slice(40, 50)
    chance = 1 - stats.norm.cdf((5 - HEIGHTS[inside, inside]) / SPREADS[inside, inside])
    mean, variance = chance.mean(), (chance * (1 - chance)).sum() / chance.size**2
    size = mean * (1 - mean) / variance - 1
    low, high = stats.beta(mean * size, (1 - mean) * size).interval(0.95)
    assert alone[1] == pytest.approx(100 * (high - low), rel=1e-4)


def test_a_pixel_without_a_spread_leaves_its_zone_without_intervals(tmp_path: Path) -> None:
    spreads = SPREADS.copy()
    spreads[5, 5] = np.nan
    write_map(tmp_path / "chm_spread.tif", spreads)
    found = of(write_map(tmp_path / "chm.tif", HEIGHTS), box(0, 0, 10, 10), box(20, 20, 10, 10))
    ends = [name for name in found if "_low_" in name or "_high_" in name]
    assert found.loc[0, ends].isna().all() and found.loc[1, ends].notna().all()
    assert found["mean_height_m"].notna().all()


def test_without_a_spread_there_are_no_intervals(tmp_path: Path) -> None:
    found = of(write_map(tmp_path / "alone.tif", HEIGHTS), box(0, 0, 9, 9))
    assert not [name for name in found if "low" in name or "expected" in name or name == "intervals"]


def test_every_interval_says_that_it_is_not_calibrated(chm: Path) -> None:
    said = of(chm, box(0, 0, 9, 9))["intervals"][0]
    assert said.startswith("nominally 95 %") and "not calibrated and blind to its bias" in said


def test_a_map_of_trees_alone_gives_no_heights(tmp_path: Path) -> None:
    density = write_map(tmp_path / "tree_density.tif", np.full((20, 20), 900.0), unit="trees/ha")
    assert layers_of(tmp_path) == Layers(density, heights=False)
    found = of(tmp_path, box(0, 0, 9, 9), box(15, 15, 10, 10))
    assert found.columns.drop("geometry").to_list() == ["zone", "area_ha", "seen_percent"]
    assert found["seen_percent"].to_numpy() == pytest.approx([100, 25], rel=1e-5)


@pytest.mark.parametrize(
    ("unit", "heights", "message"),
    [
        ("ft", HEIGHTS, r"^heights of \S+ are in ft; multiply by 0.3048"),
        ("cm", HEIGHTS, "is in cm: give canopy heights in metres"),
        ("", HEIGHTS * 5, r"heights cannot be metres of canopy \(0 under -5 m, [\d,]+ over 120 m\); are they in feet"),
        ("m", np.where(HEIGHTS > 20, -99.0, HEIGHTS), r"\([\d,]+ under -5 m.*-99 looks like nodata"),
    ],
)
def test_heights_that_are_not_metres_are_refused(
    tmp_path: Path, unit: str, heights: npt.NDArray[np.float64], message: str
) -> None:
    path = write_map(tmp_path / "chm.tif", heights, unit=unit)
    with pytest.raises(InputError, match=message):
        of(path, box(0, 0, ROWS, COLS))


def test_a_map_without_a_unit_is_taken_for_metres_and_said(tmp_path: Path) -> None:
    path = write_map(tmp_path / "chm.tif", HEIGHTS, unit="")
    found: Statistics = zone_statistics(layers_of(path), zones(box(0, 0, 9, 9)))
    assert found.notes == (f"{path} names no unit: its heights are taken for metres",)
    known = write_map(tmp_path / "known.tif", HEIGHTS, unit="metre")
    assert zone_statistics(layers_of(known), zones(box(0, 0, 9, 9))).notes == ()


def test_maps_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ReadError, match="cannot be read"):
        of(tmp_path / "missing.tif", box(0, 0, 9, 9))
    with pytest.raises(InputError, match=r"holds neither canopy_height\.tif nor tree_density\.tif"):
        layers_of(tmp_path)
    turned = write_map(tmp_path / "turned.tif", HEIGHTS, transform=Affine(0.5, 0.1, 493_800, 0.1, -0.5, 4_878_600))
    with pytest.raises(InputError, match="turned or mirrored"):
        of(turned, box(0, 0, 9, 9))
    other = write_map(tmp_path / "chm_spread.tif", SPREADS[:-1])
    with pytest.raises(InputError, match=f"spread {other} .* lies on other pixels"):
        of(write_map(tmp_path / "chm.tif", HEIGHTS), box(0, 0, 9, 9))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cover_m": (5.0, 2.0)}, "cover 5, 2 m must grow"),
        ({"cover_m": ()}, "cover needs at least one height"),
        ({"classes_m": (-1.0,)}, "classes -1 m must be heights of 0 m or more"),
        ({"least_valid_percent": 101.0}, "least valid share 101 %"),
        ({"level": 1.0}, "level 1 of the intervals"),
    ],
)
def test_settings_that_cannot_be_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Settings(**options)


def test_heights_and_gsd_of_the_tests_are_what_they_say() -> None:
    assert GSD == 0.6 and (np.mod(HEIGHTS * 8, 1) == 0).all() and (HEIGHTS == 0).any() and HEIGHTS.max() > 20
