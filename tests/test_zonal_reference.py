"""Plots with the map: what is read, refused and estimated."""

from __future__ import annotations

from pathlib import Path

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from zonal_maps import CRS, GSD, NORTH, WEST, box, made_heights, write_map, zones

from geodino.errors import InputError
from geodino.zonal.ground import Ground, layers_of
from geodino.zonal.reference import map_at, read_plots
from geodino.zonal.statistics import stats, zone_statistics
from geodino.zonal.sums import Settings

ROWS, COLS = 100, 120
TRUTH = made_heights(ROWS, COLS, seed=5)
# A map that halves heights, and sees nothing in its north-west corner.
TOLD = np.round(TRUTH * 0.5 * 8) / 8
TOLD[:20, :20] = np.nan
COVER = (2.0, 5.0, 10.0)


@pytest.fixture(scope="module")
def chm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_map(tmp_path_factory.mktemp("map") / "chm.tif", TOLD)


def plots_at(rows: npt.NDArray[np.int64], cols: npt.NDArray[np.int64]) -> pd.DataFrame:
    """Plots in the middles of pixels, with what really stands there."""
    return pd.DataFrame(
        {"x": WEST + (cols + 0.5) * GSD, "y": NORTH - (rows + 0.5) * GSD, "height_m": TRUTH[rows, cols]}
    )


@pytest.fixture(scope="module")
def everywhere() -> pd.DataFrame:
    rows, cols = np.indices((ROWS, COLS)).reshape(2, -1)
    return plots_at(rows, cols)


def written(path: Path, table: pd.DataFrame) -> Path:
    table.to_csv(path, index=False)
    return path


def estimates(chm: Path, path: Path, *shapes: object, **options: str) -> tuple[pd.DataFrame, tuple[str, ...]]:
    plots = read_plots(path, COVER, **options)
    found = zone_statistics(layers_of(chm), zones(*shapes), plots=plots)
    assert found.reference is not None
    return found.reference.table, found.notes


def test_plots_on_every_pixel_give_the_truth_whatever_the_map_says(
    chm: Path, tmp_path: Path, everywhere: pd.DataFrame
) -> None:
    shapes = box(30, 10, 40, 50), box(30, 60, 40, 30)
    table, notes = estimates(chm, written(tmp_path / "p.csv", everywhere), *shapes, crs=CRS)
    inside = [TRUTH[30:70, 10:60], TRUTH[30:70, 60:90], TRUTH[30:70, 10:90]]
    told = [TOLD[30:70, 10:60], TOLD[30:70, 60:90], TOLD[30:70, 10:90]]
    for zone, truth, said in zip((1, 2, None), inside, told, strict=True):
        mine = table[table["zone"].isna() if zone is None else table["zone"].eq(zone).fillna(False)]
        mine = mine.set_index("quantity")
        for least in COVER:
            row = mine.loc[f"canopy cover above {least:g} m"]
            assert row["estimate"] == pytest.approx(100 * (truth > least).mean(), rel=1e-6)
            assert row["mapped"] == pytest.approx(100 * (said > least).mean(), rel=1e-6)
            area = mine.loc[f"area above {least:g} m"]
            assert area["estimate"] == pytest.approx((truth > least).mean() * truth.size * 0.36 / 1e4, rel=1e-3)
            assert area["unit"] == "ha" and row["unit"] == "percent"
        assert mine.loc["mean height", "estimate"] == pytest.approx(truth.mean(), rel=1e-6)
        assert mine.loc["mean height", "mapped"] == pytest.approx(said.mean(), rel=1e-6)
        classes = [np.digitize(part, np.nextafter(COVER, 99)) for part in (truth, said)]
        right = 100 * (classes[0] == classes[1]).mean()
        assert mine.loc["overall accuracy of height classes", "estimate"] == pytest.approx(right)
        tall = 100 * (classes[1][classes[0] == 3] == 3).mean()
        assert mine.loc["producer's accuracy of over 10 m", "estimate"] == pytest.approx(tall, abs=1e-6)
        assert mine.loc["user's accuracy of 0 to 2 m", "plots"] == truth.size
    assert any("plots lie in no zone and were left out" in note for note in notes)


def test_plots_can_be_given_to_stats(chm: Path, tmp_path: Path, everywhere: pd.DataFrame) -> None:
    path, shape = written(tmp_path / "p.csv", everywhere[::7]), box(30, 10, 40, 50)
    found = stats(chm, gpd.GeoDataFrame(geometry=[shape], crs=CRS), plots=str(path), plots_crs=CRS)
    assert found.reference is not None
    pd.testing.assert_frame_equal(found.reference.table, estimates(chm, path, shape, crs=CRS)[0])
    fewer = stats(chm, shape.wkt.replace("POLYGON", "SRID=26910;POLYGON"), settings=Settings(cover_m=(5.0,)))
    assert fewer.reference is None
    with pytest.raises(InputError, match="name their CRS"):
        stats(chm, gpd.GeoDataFrame(geometry=[shape], crs=CRS), plots=path)


def test_a_sample_is_right_within_its_interval_where_the_map_is_not(chm: Path, tmp_path: Path) -> None:
    chance = np.random.default_rng(8)
    held = 0
    shape, truth = box(20, 20, 80, 100), TRUTH[20:, 20:]
    for _ in range(20):
        table = plots_at(chance.integers(20, ROWS, 150), chance.integers(20, COLS, 150))
        found, _ = estimates(chm, written(tmp_path / "p.csv", table), shape, crs=CRS)
        row = found[found["zone"].eq(1).fillna(False)].set_index("quantity").loc["canopy cover above 5 m"]
        held += row["low"] <= 100 * (truth > 5).mean() <= row["high"]
        # The map is off by more than the interval is wide.
        assert not row["low"] <= row["mapped"] <= row["high"]
    assert held >= 17


def test_plots_that_noted_only_what_is_canopy(chm: Path, tmp_path: Path, everywhere: pd.DataFrame) -> None:
    lonlat = gpd.GeoSeries(gpd.points_from_xy(everywhere["x"], everywhere["y"]), crs=CRS).to_crs("EPSG:4326")
    table = pd.DataFrame({"Lon": lonlat.x, " Lat": lonlat.y, "Above_5m": (everywhere["height_m"] > 5).astype(int)})
    found, _ = estimates(chm, written(tmp_path / "p.csv", table[::7]), box(30, 10, 40, 50))
    assert set(found["quantity"]) == {"canopy cover above 5 m", "area above 5 m"}
    assert found["estimate"][0] == pytest.approx(100 * (TRUTH[30:70, 10:60] > 5).mean(), abs=6)
    points = gpd.GeoDataFrame({"above_5m": table["Above_5m"]}, geometry=lonlat)[::7]
    points.to_file(tmp_path / "p.gpkg")
    same, _ = estimates(chm, tmp_path / "p.gpkg", box(30, 10, 40, 50))
    pd.testing.assert_frame_equal(same, found)


def test_what_cannot_be_estimated_is_said(chm: Path, tmp_path: Path) -> None:
    rows, cols = np.array([5, 50, 51, 52, 90, 3]), np.array([5, 30, 31, 32, 100, 110])
    shapes = box(45, 25, 20, 20), box(80, 90, 15, 20), box(0, 0, 15, 15)
    table, notes = estimates(chm, written(tmp_path / "p.csv", plots_at(rows, cols)), *shapes, crs=CRS)
    assert set(table["zone"].dropna()) == {1}
    assert "1 of 6 plots lie in no zone and were left out" in notes
    assert "1 of 6 plots lie where the map has no height and were left out" in notes
    assert "1 zones have a single plot, of which no estimate can be made" in notes
    # Three plots in one height class or its neighbours: put together until each stratum has two.
    assert table["strata"].max() <= 2
    overlapping = box(45, 25, 20, 20), box(50, 25, 20, 20)
    table, notes = estimates(chm, written(tmp_path / "p.csv", plots_at(rows, cols)), *overlapping, crs=CRS)
    assert table["zone"].notna().all() and "zones overlap, so there is no estimate of all together" in notes


@pytest.mark.parametrize("column", ["height_m", "above_5m"])
def test_plots_with_an_empty_cell_are_left_out_and_counted(
    chm: Path, tmp_path: Path, everywhere: pd.DataFrame, column: str
) -> None:
    table = everywhere[::7].assign(above_5m=lambda all_: (all_["height_m"] > 5).astype(float)).reset_index(drop=True)
    holes = table.copy()
    holes.loc[::9, column] = np.nan
    holes.loc[1] = np.nan  # A row of commas, as spreadsheets leave them.
    shape = box(30, 10, 40, 50)
    found, notes = estimates(chm, written(tmp_path / "holes.csv", holes), shape, crs=CRS)
    same, _ = estimates(chm, written(tmp_path / "full.csv", holes.dropna()), shape, crs=CRS)
    pd.testing.assert_frame_equal(found, same)
    gone = len(table) - len(holes.dropna())
    assert f"{gone:,} of {len(table):,} plots have an empty cell in what was measured and were left out" in notes


@pytest.mark.parametrize(
    ("table", "options", "message"),
    [
        ({"x": [1.0], "y": [2.0], "height_m": [3]}, {}, "give x and y; name their CRS with --reference-crs"),
        ({"east": [1.0], "height_m": [3]}, {}, "no columns x and y, or lon and lat; they have east, height_m"),
        (
            {"lon": [1.0], "lat": [2.0], "cover": [3]},
            {},
            "no column height_m, and none of above_2m, above_5m, above_10m",
        ),
        ({"lon": [1.0], "lat": [2.0], "height_m": [-3.0]}, {}, "height_m of plot 1 is -3; give 0 to 120 m"),
        ({"lon": [1.0, 1.0], "lat": [2.0, 2.1], "height_m": [np.nan, 3]}, {}, "1 of 2 have no empty .* at least 2"),
        ({"lon": [1.0, 1.0], "lat": [2.0, 2.1], "height_m": [np.nan, np.inf]}, {}, "height_m of plot 2 is inf"),
        ({"lon": [1.0], "lat": [2.0], "above_2m": [40]}, {}, "column above_2m must hold 0 to 1"),
        ({"lon": ["a"], "lat": [2.0], "height_m": [3]}, {}, "column lon holds no numbers"),
        ({"lon": [np.nan], "lat": [2.0], "height_m": [3]}, {}, "plot 1 has no place"),
        ({"lon": [], "lat": [], "height_m": []}, {}, "are empty"),
        ({"x": [1.0], "y": [2.0], "height_m": [3]}, {"crs": "EPSG:1"}, "--reference-crs 'EPSG:1' is not a CRS"),
    ],
)
def test_plots_that_cannot_be_used_are_refused(
    tmp_path: Path, table: dict[str, list[object]], options: dict[str, str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        read_plots(written(tmp_path / "p.csv", pd.DataFrame(table)), COVER, **options)


def test_plots_that_lie_elsewhere_are_refused(chm: Path, tmp_path: Path) -> None:
    path = written(tmp_path / "p.csv", pd.DataFrame({"lon": [1.0, 2], "lat": [2.0, 2], "height_m": [3, 4]}))
    with pytest.raises(InputError, match="none of 2 plots lies in a zone where the map has a height"):
        estimates(chm, path, box(30, 10, 40, 50))


def test_the_map_is_read_where_plots_are(chm: Path) -> None:
    with Ground(layers_of(chm)) as ground:
        xy = np.array([[30.2, -50.9], [0.5, -0.5], [119.99, -99.99], [120.0, -5], [-0.1, -5], [5, 0.1]])
        found = map_at(ground, xy)
    assert found[[0, 2]].tolist() == [TOLD[50, 30], TOLD[99, 119]]
    assert np.isnan(found[[1, 3, 4, 5]]).all()
