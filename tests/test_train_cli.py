"""`geodino train` on a small piece of real data: better than a trivial baseline, in less than a minute."""

from __future__ import annotations

import json
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner

import geodino
from geodino.cli import cli
from geodino.evaluation.matching import match_points
from geodino.models.pyramid import CELL
from geodino.training.chips import open_chips
from geodino.trees import find_peaks

CITY = "claremont_2020"


@pytest.fixture(scope="module")
def some_chips(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[str]]:
    """Labels and splits of one city and year: 12 chips of its val places, 40 others."""
    folder = tmp_path_factory.mktemp("city")
    chips = pd.read_csv(shared_data / "urban-trees" / "chips.csv")
    chips = chips[chips["chip"].str.startswith(CITY)]
    chosen = pd.concat([chips[chips["split"] == "val"].head(12), chips[chips["split"] == "train"].head(40)])
    chosen[["chip", "split"]].to_csv(folder / "splits.csv", index=False)
    trees = gpd.read_parquet(shared_data / "urban-trees" / "trees.parquet")
    trees[trees["chip"].isin(chosen["chip"])].to_parquet(folder / "trees.parquet")
    return folder, shared_data / "urban-trees" / "images", list(chosen["chip"])


def test_trees_are_learned_from_a_city_and_found_where_nothing_was_learned(
    some_chips: tuple[Path, Path, list[str]], tmp_path: Path
) -> None:
    folder, images, names = some_chips
    torch.manual_seed(0)
    sources = [part for name in names for part in ("--source", str(images / f"{name}.tif"))]
    words = [
        "train", "trees", "--model", "new", "--finetune", "--labels", str(folder / "trees.parquet"),
        "--scene-column", "chip", "--splits", str(folder / "splits.csv"), "--out", str(tmp_path / "model"),
        "--epochs", "5", "--batch", "4", "--learning-rate", "0.002", "--shift", "0", "--free", "0", "--colour", "0.3",
        "--evaluations", "2", "--tuning", "0.15", "--json", *sources,
    ]  # fmt: skip
    said = CliRunner().invoke(cli, words, catch_exceptions=False)
    assert said.exit_code == 0, said.output
    record = json.loads(said.stdout)
    data = record["data"]
    assert data["learned_from"] + data["chosen_by"] + data["left_alone"] == data["chips"] <= len(names)
    model = geodino.load_model(tmp_path / "model", head="trees", device="cpu")
    chips = open_chips(next((tmp_path / "model" / "work" / "chips").glob("trees-*")))
    val = chips.subset(chips.table["split"].to_numpy() == "val")
    assert len(val) == data["left_alone"] > 5 and val.points is not None
    hits, found, hits_of_grid, of_grid, true = 0, 0, 0, 0, 0
    each = round(float(np.mean([len(points) for points in val.points])) ** 0.5)
    step = (np.arange(each) + 0.5) * chips.size / each
    grid = np.stack(np.meshgrid(step, step), axis=-1).reshape(-1, 2)
    for index in range(len(val)):
        heat, _, *offset = model.maps(val.image(index)[None])["trees"][0]
        peaks = find_peaks(heat, np.stack(offset), threshold=record["chosen"]["threshold"], spacing=2, cell=CELL)
        hits += len(match_points(peaks.points, val.points[index], within=10))
        hits_of_grid += len(match_points(grid, val.points[index], within=10))
        found, of_grid, true = found + len(peaks), of_grid + len(grid), true + len(val.points[index])
    f1, f1_of_grid = 2 * hits / (found + true), 2 * hits_of_grid / (of_grid + true)
    assert f1 > f1_of_grid + 0.1, (f1, f1_of_grid)


def test_the_command_line_says_what_is_wrong(some_chips: tuple[Path, Path, list[str]], tmp_path: Path) -> None:
    folder, images, names = some_chips
    words = [
        "train", "trees", "--model", "new", "--finetune", "--labels", str(folder / "trees.parquet"),
        "--source", str(images / f"{names[0]}.tif"), "--out", str(tmp_path / "model"),
    ]  # fmt: skip
    said = CliRunner().invoke(cli, [*words, "--scene-column", "chips"])
    assert said.exit_code != 0 and "chips" in str(said.exception)
    said = CliRunner().invoke(cli, [*words, "--scene-column", "chip", "--size", "100"])
    assert "size 100 px must be a multiple of 32" in str(said.exception)
