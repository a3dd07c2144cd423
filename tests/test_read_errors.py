"""What cannot be read ends a run, or is nodata that is counted and named where the user said so."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from click.testing import CliRunner
from fault_server import FaultServer
from faults import Fault

from geodino.cli import cli
from geodino.errors import DONE_IN_PART, ReadError
from geodino.grid import Grid, Window
from geodino.options import RunOptions
from geodino.pipeline import run
from geodino.sources import Mosaic, ranges
from geodino.sources.geotiff import describe
from geodino.sources.ranges import Patience
from geodino.sources.scene import Scene

SIDE, BLOCK, GSD = 768, 128, 0.6
EAST, NORTH = 490_000.2, 4_879_999.8
AOI = f"SRID=32610;POLYGON(({EAST} {NORTH}, {EAST + 460} {NORTH}, {EAST + 460} {NORTH - 460}, {EAST} {NORTH - 460}, {EAST} {NORTH}))"  # noqa: E501
WHOLE = Window(round(-NORTH / GSD), round(EAST / GSD), SIDE, SIDE)
# Of the picture's last third, beyond its header.
SPOILT_FROM = 2 * SIDE * SIDE


def write(path: Path, seed: int) -> None:
    values = np.random.default_rng(seed).integers(1, 256, (3, SIDE, SIDE), dtype=np.uint8)
    with rasterio.open(
        path, "w", driver="GTiff", height=SIDE, width=SIDE, count=3, dtype="uint8", crs="EPSG:32610", tiled=True,
        transform=Affine(GSD, 0, EAST, 0, -GSD, NORTH), blockxsize=BLOCK, blockysize=BLOCK, interleave="pixel",
    ) as raster:  # fmt: skip
        raster.write(values)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultServer]:
    monkeypatch.setattr(ranges, "PATIENCE", Patience(attempts=2, first_delay_s=0.01, silence_s=0.5))
    for seed, name in enumerate(("first.tif", "second.tif")):
        write(tmp_path / name, seed)
    with FaultServer(tmp_path) as server:
        yield server


@pytest.fixture
def scenes(server: FaultServer) -> list[Scene]:
    return [describe(f"{server.url}/{name}.tif") for name in ("first", "second")]


def test_a_failed_read_ends_the_reading_by_default(server: FaultServer, scenes: list[Scene]) -> None:
    server.plan("first.tif", Fault.SERVER_ERROR, times=math.inf, from_byte=SPOILT_FROM)
    with Mosaic(scenes, Grid(scenes[0].crs, GSD)) as mosaic, pytest.raises(ReadError, match=r"scene first .*HTTP 500"):
        mosaic.read(Window(WHOLE.row_stop - BLOCK, WHOLE.col, BLOCK, SIDE))


def test_skipped_ground_is_nodata_and_no_other_scene_fills_it(
    server: FaultServer, scenes: list[Scene], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="geodino.sources.mosaic")
    server.plan("first.tif", Fault.SERVER_ERROR, times=math.inf, from_byte=SPOILT_FROM)
    with Mosaic(scenes, Grid(scenes[0].crs, GSD), skip_unreadable=True) as mosaic:
        rows = [mosaic.read(Window(WHOLE.row + row, WHOLE.col, BLOCK, SIDE)) for row in range(0, SIDE, BLOCK)]
        lost = [pixels.lost is not None and bool(pixels.lost.all()) for pixels in rows]
    # A run says it once at its end, not at each window.
    assert not [record for record in caplog.records if record.levelname == "WARNING"] and "skipped: " in caplog.text
    assert not any(lost[:3])
    assert lost[-1]
    for pixels, gone in zip(rows, lost, strict=True):
        assert pixels.valid.all() != gone
        assert (pixels.scene == (0 if gone else 1)).all()
        assert len(pixels.losses) == gone
        assert all("scene first" in said and "HTTP 500" in said for said in pixels.losses)


def test_a_file_that_is_gone_for_good_is_not_waited_for_at_each_window(
    server: FaultServer, scenes: list[Scene], monkeypatch: pytest.MonkeyPatch
) -> None:
    server.plan("first.tif", Fault.SERVER_ERROR, times=math.inf, from_byte=SPOILT_FROM)
    server.requests.clear()
    monkeypatch.setattr(ranges, "PATIENCE", Patience(attempts=5, first_delay_s=0.01, silence_s=0.5))
    with Mosaic(scenes, Grid(scenes[0].crs, GSD), skip_unreadable=True) as mosaic:
        windows = [Window(WHOLE.row_stop - BLOCK, WHOLE.col + col, BLOCK, BLOCK) for col in range(0, SIDE, BLOCK)]
        losses = [said for window in windows for said in mosaic.read(window).losses]
    refused = [request for request in server.requests if request.status == 500]
    assert len(losses) == SIDE // BLOCK
    # Each window asks for two rows of blocks, five times at first, and once when it is clear that nothing comes.
    assert len(refused) < 0.7 * 2 * 5 * (SIDE // BLOCK)


def test_a_run_counts_and_names_what_it_skipped(server: FaultServer, tiny_model: Path, tmp_path: Path) -> None:
    server.plan("first.tif", Fault.SERVER_ERROR, times=math.inf, from_byte=SPOILT_FROM)
    options = RunOptions(sources=(f"{server.url}/first.tif",), model=str(tiny_model), precision="fp32", device="cpu")
    with pytest.raises(ReadError, match="HTTP 500"):
        run("canopy", aoi=AOI, out=tmp_path / "failed", options=options)
    assert not (tmp_path / "failed" / "run.json").exists()
    record = run("canopy", aoi=AOI, out=tmp_path / "part", options=replace(options, on_read_error="skip"))
    with rasterio.open(tmp_path / "part" / "canopy_height.tif") as raster:
        missing = int((raster.read_masks(1) == 0).sum())
    assert missing > 0
    assert record.lost_ha == pytest.approx(missing * GSD**2 / 1e4, abs=0.02)
    assert len(record.losses) > 0
    assert all("first.tif" in said and "HTTP 500" in said for said in record.losses)
    assert any("ha are nodata" in said for said in record.warnings)
    assert "could not be read" in record.as_text()
    assert json.loads((tmp_path / "part" / "run.json").read_text())["losses"]


def test_nothing_readable_at_all_is_an_error_even_where_skipping(
    server: FaultServer, tiny_model: Path, tmp_path: Path
) -> None:
    options = RunOptions(
        sources=(f"{server.url}/first.tif",), model=str(tiny_model), device="cpu", on_read_error="skip"
    )
    server.plan("first.tif", Fault.SERVER_ERROR, times=math.inf, from_byte=40_000)
    with pytest.raises(ReadError, match=r"no pixel of the AOI could be read; \d+ reads failed"):
        run("canopy", aoi=AOI, out=tmp_path / "none", options=options)


def test_done_in_part_has_an_exit_code_of_its_own(server: FaultServer, tiny_model: Path, tmp_path: Path) -> None:
    server.plan("first.tif", Fault.SERVER_ERROR, times=math.inf, from_byte=SPOILT_FROM)
    command = ["run", "canopy", "--aoi", AOI, "--source", f"{server.url}/first.tif", "--model", str(tiny_model)]
    done = CliRunner().invoke(cli, [*command, "--out", str(tmp_path / "out"), "--on-read-error", "skip"])
    assert done.exit_code == DONE_IN_PART, done.output
    assert "nodata because imagery could not be read" in done.output
