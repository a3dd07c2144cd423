"""What a dry run says of a batch, and that it leaves nothing behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import rasterio
from batch_scenes import invoke, write_pieces
from click.testing import CliRunner

from geodino.cli import cli
from geodino.errors import ConfigError


@pytest.fixture
def scenes(photo: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "scenes"
    folder.mkdir()
    write_pieces(photo, folder)
    return folder


def test_a_dry_run_tells_what_a_batch_would_do_and_leaves_nothing(
    scenes: Path, tiny_model: Path, tmp_path: Path
) -> None:
    asked = ("canopy", "--catalog", scenes, "--model", tiny_model, "--out", tmp_path / "out", "--dry-run")
    code, said = invoke(*asked)
    assert code == 0 and not (tmp_path / "out").exists()
    assert f"{tmp_path / 'out'} (3 new, 0 done, 0 failed, 0 under way)" in said
    assert "smallest  small, " in said and "left out  1 which cannot be read (broken.tif)" in said
    assert said.endswith("nothing was written\n")
    found = json.loads(invoke(*asked, "--json", "-q")[1])
    assert (found["jobs"], found["largest"]["scenes"], found["largest"]["crs"]) == (3, 1, "EPSG:26910")
    assert found["largest"]["windows"] > 1 and found["weights_here"]


def test_a_dry_run_knows_what_is_done_and_what_would_join(scenes: Path, tiny_model: Path, tmp_path: Path) -> None:
    out, away = tmp_path / "out", tmp_path / "east.tif"
    (scenes / "east.tif").rename(away)
    (scenes / "west.tif").unlink()
    asked = ("canopy", "--catalog", scenes, "--model", tiny_model, "--out", out)
    assert invoke(*asked)[0] == 0
    away.rename(scenes / "east.tif")
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert "(1 new, 1 done, 0 failed, 0 under way)" in invoke(*asked, "--dry-run")[1]
    assert "all that a batch made there would be removed" in invoke(*asked, "--dry-run", "--overwrite")[1]
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    other = CliRunner().invoke(cli, ["batch", *map(str, asked), "--max-cloud", "5", "--dry-run"])
    assert isinstance(other.exception, ConfigError) and "max_cloud was None and is 5" in str(other.exception)


def test_cells_share_a_crs_and_one_without_imagery_is_told_of(photo: Path, tiny_model: Path, tmp_path: Path) -> None:
    words = ("canopy", "--grid", "100m", "--source", photo, "--model", tiny_model, "--out", tmp_path, "--dry-run")
    with rasterio.open(photo) as source:
        west, south, east, north = source.bounds
    box = f"{west},{south},{east},{north}"
    code, said = invoke(*words, "--aoi-crs", "EPSG:26910", "--aoi", box, "--crs", "EPSG:26910")
    assert code == 0 and "EPSG:26910 at 0.6 m\n" in said
    code, said = invoke(*words, "--aoi", "-120.01,44,-120,44.01")
    assert code == 0 and "ha, but " in said and "to write" not in said
