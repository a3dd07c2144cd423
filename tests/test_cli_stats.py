"""`geodino stats`, on made maps, on a run's folder and on real scenes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import click
import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import rasterio
import shapely
from click.testing import CliRunner, Result
from exactextract import exact_extract
from zonal_maps import CRS, GSD, NORTH, WEST, box, made_heights, write_map

from geodino.cli_stats import stats
from geodino.errors import ConfigError, InputError, OutputError

HEIGHTS = made_heights(60, 80, seed=2)


def call(*words: str | Path | float) -> Result:
    return CliRunner().invoke(stats, [str(word) for word in words], catch_exceptions=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run leaves behind."""
    path = tmp_path_factory.mktemp("run")
    write_map(path / "canopy_height.tif", HEIGHTS)
    write_map(path / "canopy_height_spread.tif", 1 + HEIGHTS / 5)
    spots = np.random.default_rng(0).uniform(0, 60, (80, 2))
    trees = gpd.GeoDataFrame(
        {"score": np.full(80, 0.7)},
        geometry=gpd.points_from_xy(WEST + spots[:, 0] * GSD, NORTH - spots[:, 1] * GSD),
        crs=CRS,
    )
    trees.to_parquet(path / "trees.parquet")
    return path


@pytest.fixture(scope="module")
def plots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("zones") / "plots.gpkg"
    frame = gpd.GeoDataFrame({"owner": ["a", "b"]}, geometry=[box(0, 0, 30, 30), box(30, 30, 30, 50)], crs=CRS)
    frame.to_file(path)
    return path


def test_a_runs_folder_gives_heights_trees_and_intervals(folder: Path, plots: Path, tmp_path: Path) -> None:
    told = call(folder, "--zones", plots, "--out", tmp_path / "out")
    assert told.exit_code == 0
    table = pd.read_csv(tmp_path / "out" / "statistics.csv")
    assert table["owner"].to_list() == ["a", "b"]
    assert table["mean_height_m"][0] == pytest.approx(HEIGHTS[:30, :30].mean(), rel=1e-6)
    assert {"tree_count", "tree_count_low", "cover_above_2m_low_percent", "mean_height_high_m"} <= set(table)
    assert len(gpd.read_parquet(tmp_path / "out" / "statistics.parquet")) == 2
    assert str(tmp_path / "out" / "statistics.csv") in told.output and "2 zones" in told.output


def test_options_reach_the_figures(folder: Path, plots: Path, tmp_path: Path) -> None:
    words = [folder / "canopy_height.tif", "--zones", plots, "--cover", "1.5, 3", "--classes", "4", "--level", 80]
    told = call(*words, "--error-range", 0, "--error-shared", 0, "--json", "--out", tmp_path / "out", "-q")
    said = json.loads(told.stdout)
    zone = said["zones"][0]
    assert zone["cover_above_1.5m_percent"] == pytest.approx(100 * (HEIGHTS[:30, :30] > 1.5).mean(), rel=1e-6)
    assert {"area_0_to_4m_ha", "area_over_4m_ha", "cover_above_3m_high_percent"} <= set(zone)
    assert "tree_count" not in zone
    assert zone["intervals"].startswith("nominally 80 %") and "over 0 m, 0 %" in zone["intervals"]
    assert said["notes"] == [] and len(said["files"]) == 2


def test_plots_add_a_table_of_estimates(folder: Path, plots: Path, tmp_path: Path) -> None:
    rows, cols = np.random.default_rng(1).integers(0, 30, (2, 60))
    measured = pd.DataFrame(
        {"x": WEST + (cols + 0.5) * GSD, "y": NORTH - (rows + 0.5) * GSD, "height_m": HEIGHTS[rows, cols]}
    )
    measured.to_csv(tmp_path / "measured.csv", index=False)
    words = [folder, "--zones", plots, "--reference", tmp_path / "measured.csv", "--reference-crs", CRS]
    told = call(*words, "--out", tmp_path / "out", "--json", "-q")
    table = pd.read_csv(tmp_path / "out" / "estimates.csv")
    assert table["quantity"][0] == "canopy cover above 2 m" and table["zone"][0] == 1
    assert table["estimate"][0] == pytest.approx(100 * (HEIGHTS[:30, :30] > 2).mean(), abs=5)
    assert len(json.loads(told.stdout)["estimates"]) == len(table)


def test_tables_are_not_replaced_unless_asked(folder: Path, plots: Path, tmp_path: Path) -> None:
    words = [folder, "--zones", plots, "--out", tmp_path]
    assert call(*words).exit_code == 0
    first = (tmp_path / "statistics.csv").read_bytes()
    with pytest.raises(OutputError, match=r"already holds statistics\.parquet, statistics\.csv: give --overwrite"):
        call(*words)
    assert call(*words, "--overwrite").exit_code == 0
    assert (tmp_path / "statistics.csv").read_bytes() == first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["statistics.csv", "statistics.parquet"]


def test_one_zone_is_one_zone(folder: Path, tmp_path: Path) -> None:
    told = call(folder, "--zones", box(0, 0, 9, 9).wkt, "--zones-crs", CRS, "--out", tmp_path)
    assert told.stdout.startswith("1 zone, 0.00 ha\n")


def test_nothing_is_written_where_something_is_wrong(folder: Path, plots: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(InputError, match="none of 1 zones meets the map"):
        call(folder, "--zones", "0,0,1,1", "--out", out)
    assert not list(out.iterdir())
    with pytest.raises(ConfigError, match="must grow"):
        call(folder, "--zones", plots, "--cover", "5,2", "--out", tmp_path / "other")
    assert not (tmp_path / "other").exists()
    refused = CliRunner().invoke(stats, [str(folder), "--zones", str(plots), "--cover", "two", "--out", str(out)])
    assert refused.exit_code == click.UsageError.exit_code and "give heights in metres" in refused.output


def test_asking_for_help_loads_nothing_heavy() -> None:
    program = (
        "import sys\n"
        "from geodino.cli_stats import stats\n"
        "stats(['--help'], standalone_mode=False)\n"
        "heavy = {'torch', 'transformers', 'rasterio', 'numpy', 'geopandas', 'exactextract'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


def test_no_figure_needs_torch() -> None:
    program = "import sys, geodino.zonal.statistics, geodino.zonal.reference\nassert 'torch' not in sys.modules\n"
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


def test_a_real_scene_agrees_with_exactextracts_own_figures(shared_data: Path, tmp_path: Path) -> None:
    chm = shared_data / "canopy" / "scenes" / "autzen_val_chm.tif"
    with rasterio.open(chm) as raster:
        west, south, east, north = raster.bounds
        crs, heights = raster.crs, raster.read(1)
    chance = np.random.default_rng(0)
    middles = chance.uniform([west, south], [east, north], (30, 2))
    shapes = shapely.buffer(shapely.points(middles), chance.uniform(5, 60, 30), quad_segs=6)
    frame = gpd.GeoDataFrame({"plot": range(30)}, geometry=shapes, crs=crs)
    frame.to_crs("EPSG:4326").to_file(tmp_path / "zones.geojson")
    told = call(chm, "--zones", tmp_path / "zones.geojson", "--least-valid", 0, "--out", tmp_path, "-q", "--json")
    said = json.loads(told.stdout)
    table = pd.DataFrame(said["zones"])
    assert "names no unit" in said["notes"][0] and any("overlap" in note for note in said["notes"])
    with rasterio.open(chm) as raster:
        theirs = exact_extract(raster, frame, ["mean", "max", "values", "coverage"], output="pandas")
    inside = shapely.area(shapely.intersection(shapes, shapely.box(west, south, east, north))) / shapely.area(shapes)
    assert (heights >= 0).all()
    assert table["seen_percent"].to_numpy() == pytest.approx(100 * inside, abs=0.01)
    assert table["area_ha"].to_numpy() == pytest.approx(shapely.area(shapes) / 1e4, rel=1e-3)
    assert table["mean_height_m"].to_numpy() == pytest.approx(theirs["mean"].to_numpy(), rel=1e-4, abs=1e-4)
    assert table["max_height_m"].to_numpy() == pytest.approx(theirs["max"].to_numpy())
    # Ours are rounded to 1/128 m. Its own quantiles lie between two heights of the map, 1 m up where half is bare.
    for name, share in (("p50_height_m", 0.5), ("p95_height_m", 0.95)):
        exact = [
            np.quantile(row["values"], share, weights=row["coverage"], method="inverted_cdf")
            for _, row in theirs.iterrows()
        ]
        assert table[name].to_numpy() == pytest.approx(np.array(exact), abs=1 / 256 + 1e-6)


def test_real_trees_are_counted_once_in_parts_of_their_chip(shared_data: Path, tmp_path: Path) -> None:
    """Points in longitude and latitude, a chip in UTM that is cut into 25 pieces, some aslant."""
    data = shared_data / "urban-trees"
    trees = gpd.read_parquet(data / "trees.parquet")
    name = "santa_monica_2020_0"
    mine = trees[trees["chip"] == name]
    mine.to_parquet(tmp_path / "trees.parquet")
    with rasterio.open(data / "images" / f"{name}.tif") as image:
        crs, transform = image.crs.to_string(), image.transform
    write_map(tmp_path / "canopy_height.tif", np.ones((256, 256)), crs=crs, transform=transform)
    edge = np.linspace(0, 256, 6)
    corner = np.array([[[x + 7 * np.sin(y), y] if 0 < x < 256 else [x, y] for x in edge] for y in edge])
    corner = corner * (transform.a, transform.e) + (transform.c, transform.f)
    pieces = [
        shapely.Polygon([corner[r, c], corner[r, c + 1], corner[r + 1, c + 1], corner[r + 1, c]])
        for r in range(5)
        for c in range(5)
    ]
    gpd.GeoDataFrame(geometry=pieces, crs=crs).to_file(tmp_path / "pieces.gpkg")
    told = call(tmp_path, "--zones", tmp_path / "pieces.gpkg", "--out", tmp_path / "out", "--json", "-q")
    table = pd.DataFrame(json.loads(told.stdout)["zones"])
    assert len(mine) > 30 and table["tree_count"].sum() == len(mine)
    col, row = mine["px"].to_numpy(), mine["py"].to_numpy()
    straight = ((row < 256 / 5) & (col < 256)).sum()
    assert table["tree_count"][:5].sum() == straight
