"""Trees in zones: each counted once, and how unsure the count is."""

from __future__ import annotations

from pathlib import Path

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from zonal_maps import CRS, GSD, NORTH, WEST, box, made_heights, write_map, zones

from geodino.aoi import aoi_mask
from geodino.errors import InputError
from geodino.grid import Grid, Window
from geodino.zonal import points as module
from geodino.zonal.ground import layers_of
from geodino.zonal.points import within
from geodino.zonal.statistics import Statistics, zone_statistics
from geodino.zonal.sums import Settings
from geodino.zonal.uncertainty import Correlation

CHANCE = np.random.default_rng(3)


@pytest.fixture(scope="module")
def chm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_map(tmp_path_factory.mktemp("map") / "chm.tif", made_heights(60, 80))


def write_trees(path: Path, pixels: npt.NDArray[np.float64], crs: str = CRS, **columns: object) -> Path:
    """Trees at (row, col) of the map."""
    spots = gpd.points_from_xy(WEST + pixels[:, 1] * GSD, NORTH - pixels[:, 0] * GSD)
    frame = gpd.GeoDataFrame(columns, geometry=spots, crs=CRS).to_crs(crs)
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_file(path)
    return path


def of(chm: Path, trees: Path, *shapes: shapely.Geometry, **options: object) -> Statistics:
    return zone_statistics(layers_of(chm, trees=trees), zones(*shapes), settings=Settings(**options))


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=40), st.integers(1, 11), st.integers(1, 11))
def test_each_point_belongs_to_one_part_of_a_cut_square(spots: list[tuple[int, int]], across: int, down: int) -> None:
    """Points and cuts on one lattice, so that many lie on borders and corners; the square owns its west and south."""
    whole = shapely.box(0, 0, 12, 12)
    cuts = [shapely.LineString([(across, -1), (across, 13)]), shapely.LineString([(-1, down), (13, down)])]
    cuts.append(shapely.LineString([(0, 0), (12, 12)]))
    lines = shapely.union_all([whole.boundary, *cuts])
    parts = np.array([part for part in shapely.polygonize([lines]).geoms if part.within(whole)])
    xy = np.array(spots, np.float64).reshape(-1, 2)
    _, point = within(parts, xy)
    inside = (xy < 12).all(axis=1)
    assert sorted(point.tolist()) == np.flatnonzero(inside).tolist()
    # Cut or not, the same.
    assert sorted(within(np.array([whole]), xy)[1].tolist()) == sorted(point.tolist())


def test_the_rule_is_that_of_pixels() -> None:
    """A point is in a polygon where a pixel with that centre is."""
    outline = shapely.Polygon([(2, 2), (9, 3), (12, 9), (7, 7), (3, 11)], holes=[[(4, 4), (7, 4), (7, 7), (4, 6)]])
    on_centres = shapely.transform(outline, lambda xy: xy + 0.5)
    window = Window(-14, 0, 14, 14)
    mask = aoi_mask(on_centres, Grid("EPSG:32610", 1.0), window)
    rows, cols = np.indices(window.shape)
    centres = np.column_stack([cols.ravel() + 0.5, -(rows.ravel() + window.row) - 0.5])
    found = np.zeros(mask.size, bool)
    found[within(np.array([on_centres]), centres)[1]] = True
    assert (found == mask.ravel()).all() and 20 < found.sum() < 80


def test_trees_are_counted_and_their_density_is_of_seen_ground(tmp_path: Path) -> None:
    heights = made_heights(60, 80)
    heights[:, 40:] = np.nan
    chm = write_map(tmp_path / "chm.tif", heights)
    pixels = CHANCE.uniform(0, 40, (300, 2))
    trees = write_trees(tmp_path / "trees.parquet", pixels, score=CHANCE.uniform(0.3, 1, 300))
    row = of(chm, trees, box(10, 10, 30, 40), box(40, 41, 9, 9)).frame
    inside = ((pixels >= 10) & (pixels < [40, 50])).all(axis=1).sum()
    assert row["tree_count"][0] == inside
    assert row["seen_percent"][0] == pytest.approx(75)
    assert row["tree_density_per_ha"][0] == pytest.approx(inside / (0.75 * row["area_ha"][0]))
    assert row["tree_count_low"][0] <= inside <= row["tree_count_high"][0]
    # None of the other was seen: no count, not a count of 0.
    assert pd.isna(row["tree_count"][1]) and str(row["tree_count"].dtype) == "Int64"


@pytest.mark.parametrize("suffix", [".parquet", ".gpkg", ".geojson"])
def test_any_file_of_points_in_any_crs_counts_the_same(chm: Path, tmp_path: Path, suffix: str) -> None:
    pixels = CHANCE.uniform(0, 60, (200, 2))
    trees = write_trees(tmp_path / f"trees{suffix}", pixels, "EPSG:4326", confidence=np.full(200, 0.8))
    found = of(chm, trees, box(5, 5, 30, 30)).frame
    assert found["tree_count"][0] == ((pixels >= 5) & (pixels < 35)).all(axis=1).sum()
    assert found["tree_count_low"].notna().all()


def test_a_file_of_trees_is_known_whatever_it_is_called(chm: Path, tmp_path: Path) -> None:
    trees = write_trees(tmp_path / "trees.parquet", np.array([[3.0, 3]]), score=[0.5])
    assert of(chm, trees.rename(tmp_path / ".trees.part-1-00"), box(0, 0, 9, 9)).frame["tree_count"][0] == 1


def test_many_batches_and_lots_count_as_one(chm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trees = write_trees(tmp_path / "t.parquet", CHANCE.uniform(0, 60, (500, 2)), score=CHANCE.uniform(0.3, 1, 500))
    shapes = [box(row, col, 10, 10) for row in range(0, 50, 7) for col in range(0, 50, 7)]
    plain = of(chm, trees, *shapes).frame
    monkeypatch.setattr(module, "_ROWS", 64)
    monkeypatch.setattr(module, "_ZONES", 5)
    cut = of(chm, trees, *shapes).frame
    names = [name for name in plain if name.startswith("tree_")]
    pd.testing.assert_frame_equal(cut[names], plain[names])


def test_the_interval_is_of_scores_that_err_together(chm: Path, tmp_path: Path) -> None:
    pixels = CHANCE.uniform(0, 60, (400, 2))

    def ends(score: float, errs: Correlation) -> tuple[int, int]:
        trees = write_trees(tmp_path / "trees.parquet", pixels, score=np.full(400, score))
        found = of(chm, trees, box(0, 0, 60, 60), errs=errs).frame.iloc[0]
        return int(found["tree_count_low"]), int(found["tree_count_high"])

    # Each for itself: twice the Poisson binomial variance, 2 * 400 * 0.8 * 0.2, about a normal one at such a count.
    low, high = ends(0.8, Correlation(0, 0))
    assert (400 - low, high - 400) == pytest.approx((1.96 * 128**0.5, 1.96 * 128**0.5), abs=3)
    wide = ends(0.8, Correlation(10, 0.1))
    assert wide[0] < low and wide[1] > high
    assert ends(1.0, Correlation(10, 0.1))[0] == 400


def test_trees_found_on_height_are_as_sure_as_their_height(chm: Path, tmp_path: Path) -> None:
    pixels = CHANCE.uniform(0, 60, (100, 2))
    nothing = np.full(100, np.nan)

    def width(height_m: float) -> int:
        columns = {"score": nothing, "height_m": np.full(100, height_m), "height_spread_m": np.full(100, 2.0)}
        found = of(chm, write_trees(tmp_path / "t.parquet", pixels, **columns), box(0, 0, 60, 60)).frame.iloc[0]
        return int(found["tree_count_high"] - found["tree_count_low"])

    assert width(2.5) > 3 * width(15.0)


def test_trees_that_nothing_is_said_of_are_counted_without_an_interval(chm: Path, tmp_path: Path) -> None:
    found = of(chm, write_trees(tmp_path / "t.gpkg", np.array([[3.0, 3], [4, 4]])), box(0, 0, 9, 9), box(20, 20, 9, 9))
    assert found.frame["tree_count"].to_list() == [2, 0]
    assert found.frame["tree_count_low"].isna()[0]
    assert any("no intervals" in note for note in found.notes)
    # Where none was found the end is that of nothing found.
    assert found.frame["tree_count_high"][1] == 4


def test_a_file_without_trees_is_no_trees(chm: Path, tmp_path: Path) -> None:
    trees = write_trees(tmp_path / "t.parquet", np.zeros((0, 2)), score=np.zeros(0))
    assert of(chm, trees, box(0, 0, 9, 9)).frame["tree_count"].to_list() == [0]


def test_files_that_hold_no_trees_are_refused(chm: Path, tmp_path: Path) -> None:
    lines = gpd.GeoDataFrame(geometry=[shapely.LineString([(WEST, NORTH), (WEST + 9, NORTH)])], crs=CRS)
    lines.to_parquet(tmp_path / "lines.parquet")
    with pytest.raises(InputError, match="something else than points"):
        of(chm, tmp_path / "lines.parquet", box(0, 0, 9, 9))
    pd.DataFrame({"x": [1.0]}).to_parquet(tmp_path / "plain.parquet")
    with pytest.raises(InputError, match="cannot be read as GeoParquet with a CRS"):
        of(chm, tmp_path / "plain.parquet", box(0, 0, 9, 9))
    for column, value, message in (("score", 7.0, "scores of 7 to 7 must lie in 0 to 1"), ("score", "x", "no numbers")):
        trees = write_trees(tmp_path / "t.parquet", np.array([[3.0, 3]]), **{column: [value]})
        with pytest.raises(InputError, match=message):
            of(chm, trees, box(0, 0, 9, 9))
    with pytest.raises(InputError, match="no such file"):
        of(chm, tmp_path / "missing.gpkg", box(0, 0, 9, 9))
