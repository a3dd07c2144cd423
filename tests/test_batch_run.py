"""Batches of real runs of a tiny model: gone on with after a kill, failed in part, tried again, shared out by Dask."""

from __future__ import annotations

import json
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import dask.config
import numpy as np
import pytest
import rasterio
from batch_work import do, lines, small_batch
from click.testing import CliRunner

from geodino.batch.asked import Asked, open_batch
from geodino.batch.runner import run_batch
from geodino.batch.status import read_status
from geodino.batch.work import Task, run_job
from geodino.cli import cli
from geodino.cluster.machines import Machines
from geodino.errors import DONE_IN_PART, ModelError
from geodino.options import RunOptions
from geodino.outputs.record import read_record
from geodino.pipeline import run
from geodino.stores import Store
from geodino.watch import Silent


@pytest.fixture(scope="module")
def scenes(photo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of four rasters: halves of the photo that overlap, one of them twice, and no picture at all."""
    folder = tmp_path_factory.mktemp("scenes")
    for name, cols in (("west", (0, 240)), ("east", (180, 420)), ("small", (0, 130))):
        with rasterio.open(photo) as source:
            window = rasterio.windows.Window(cols[0], 0, cols[1] - cols[0], 300)
            profile = source.profile | {"width": window.width, "transform": source.window_transform(window)}
            with rasterio.open(folder / f"{name}.tif", "w", **profile) as target:
                target.write(source.read(window=window))
    (folder / "broken.tif").write_bytes(photo.read_bytes()[:200])
    return folder


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "geodino", "batch", *map(str, words)]


def invoke(*words: object) -> tuple[int, str]:
    done = CliRunner().invoke(cli, ["batch", *map(str, words)])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.output


def states(out: Path) -> dict[str, str]:
    connection = sqlite3.connect(out / "ledger.sqlite")
    found = dict(connection.execute("SELECT name, state FROM jobs"))
    connection.close()
    return found


def folder_of(out: Path, name: str) -> Path:
    (found,) = (out / "jobs").glob(f"*/{name}")
    return found


def test_a_folder_of_scenes_becomes_a_run_each_and_a_catalog(scenes: Path, tiny_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, said = invoke("canopy", "--catalog", scenes, "--model", tiny_model, "--out", out)
    assert code == 0, said
    assert states(out) == {"west": "done", "east": "done", "small": "done"}
    record = read_record(folder_of(out, "east") / "run.json")
    assert [scene["id"] for scene in record.scenes] == ["east"] and record.aoi.origin == "east"
    assert (out / "collection.json").is_file() and (out / "items.parquet").is_file()
    # Again there is nothing left to do.
    before = (folder_of(out, "east") / "run.json").stat().st_mtime_ns
    assert invoke("canopy", "--catalog", scenes, "--model", tiny_model, "--out", out)[0] == 0
    assert (folder_of(out, "east") / "run.json").stat().st_mtime_ns == before
    code, said = invoke("status", out, "--json")
    assert (json.loads(said)["done"], json.loads(said)["failed"]) == (3, 0)


def test_cells_hold_the_pixels_of_one_run_over_all_of_them(photo: Path, tiny_model: Path, tmp_path: Path) -> None:
    with rasterio.open(photo) as source:
        west, south, east, north = source.bounds
    corners = ((west + 9, south + 5), (east - 7, south + 9), (east - 20, north), (west + 9, south + 5))
    aoi = f"SRID=26910;POLYGON (({', '.join(f'{x} {y}' for x, y in corners)}))"
    code, said = invoke(
        "canopy", "--grid", "80m", "--aoi", aoi, "--source", photo, "--model", tiny_model, "--crs", "EPSG:26910",
        "--out", tmp_path / "cells",
    )  # fmt: skip
    assert code == 0, said
    run("canopy", aoi=aoi, out=tmp_path / "one", options=RunOptions(sources=(str(photo),), model=str(tiny_model)))
    with rasterio.open(tmp_path / "one" / "canopy_height.tif") as source:
        whole, left = source.read(1, masked=True), np.ones(source.shape, bool)
        transform = source.transform
    cells = list((tmp_path / "cells" / "jobs").glob("*/*/canopy_height.tif"))
    assert len(cells) > 5
    for path in cells:
        with rasterio.open(path) as source:
            piece = source.read(1, masked=True)
            col, row = ~transform * (source.transform.c, source.transform.f)
        there = (slice(round(row), round(row) + piece.shape[0]), slice(round(col), round(col) + piece.shape[1]))
        ours = ~np.ma.getmaskarray(piece)
        assert np.array_equal(whole[there][ours], piece[ours])
        assert left[there][ours].all()  # no pixel is in two cells
        left[there][ours] = False
    assert not left[~np.ma.getmaskarray(whole)].any()


def test_a_job_that_ended_untold_is_not_run_again(scenes: Path, tiny_model: Path, tmp_path: Path) -> None:
    asked = Asked("canopy", RunOptions(model=str(tiny_model)), str(scenes))
    batch = open_batch(asked, Store(str(tmp_path)), Silent())
    job = min(batch.jobs, key=lambda job: job.hectares)
    task = Task(batch.store.url, job, 1, batch.spec, batch.options)
    first = run_job(task)
    record = tmp_path / job.key / "run.json"
    before = record.stat().st_mtime_ns
    again = run_job(task)
    assert first.done and again.done and record.stat().st_mtime_ns == before
    assert {key: again.receipt[key] for key in ("hectares", "bytes")} == {
        key: first.receipt[key] for key in ("hectares", "bytes")
    }


def test_what_fails_is_told_by_cause_and_tried_again_when_it_is_mended(
    scenes: Path, tiny_model: Path, tmp_path: Path
) -> None:
    mended, out = tmp_path / "scenes", tmp_path / "out"
    shutil.copytree(scenes, mended)
    asked = ("canopy", "--catalog", mended, "--model", tiny_model, "--out", out)
    open_batch(Asked("canopy", RunOptions(model=str(tiny_model)), str(mended)), Store(str(out)), Silent())
    (mended / "east.tif").rename(tmp_path / "away.tif")
    code, said = invoke(*asked)
    assert code == DONE_IN_PART, said
    assert "east failed: " in said
    assert states(out) == {"west": "done", "east": "failed", "small": "done"}
    code, said = invoke("status", out)
    assert code == 0 and "1 job failed: " in said and "such as east" in said
    (tmp_path / "away.tif").rename(mended / "east.tif")
    code, said = invoke("retry", out)
    assert code == 0 and "1 failed job to try again" in said
    assert set(states(out).values()) == {"done"}


def test_other_weights_under_the_same_name_end_the_batch(scenes: Path, tiny_model: Path, tmp_path: Path) -> None:
    asked = Asked("canopy", RunOptions(model=str(tiny_model)), str(scenes))
    batch = open_batch(asked, Store(str(tmp_path)), Silent())
    batch.store.put(".batch/weights.json", json.dumps({"weights_sha256": "0" * 64}).encode())
    with pytest.raises(ModelError, match="not those that the batch was begun with"):
        run_batch(batch, Silent())
    # Given back, so that it counts as no attempt of theirs.
    assert read_status(batch.store).waiting == 3


def test_ctrl_c_gives_back_what_was_under_way(scenes: Path, tiny_model: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(
        command("canopy", "--catalog", scenes, "--model", tiny_model, "--out", tmp_path),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not list(tmp_path.glob(".batch/state/*/*.claim")):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    assert read_status(Store(str(tmp_path))).claimed == 0
    assert not list(tmp_path.glob(".batch/owners/*"))


@pytest.mark.slow
def test_a_real_batch_that_is_killed_goes_on_and_ends_the_same(scenes: Path, tiny_model: Path, tmp_path: Path) -> None:
    def words(out: Path) -> list[str]:
        return command("canopy", "--catalog", scenes, "--model", tiny_model, "--out", out, "--lease-s", 1)

    subprocess.run(words(tmp_path / "quiet"), check=True, capture_output=True)
    for pause_s in (0.0, 0.2, 0.5, 0.9):
        process = subprocess.Popen(words(tmp_path / "killed"), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        while process.poll() is None and not is_at_work(tmp_path / "killed", process.pid):
            time.sleep(0.02)
        time.sleep(pause_s)
        process.kill()
        process.wait()
    subprocess.run(words(tmp_path / "killed"), check=True, capture_output=True)
    assert set(states(tmp_path / "killed").values()) == {"done"}
    for name in ("west", "east", "small"):
        one, other = (folder_of(tmp_path / which, name) / "canopy_height.tif" for which in ("quiet", "killed"))
        with rasterio.open(one) as left, rasterio.open(other) as right:
            assert np.array_equal(left.read(), right.read())


def is_at_work(out: Path, pid: int) -> bool:
    return any(f"-{pid}-" in path.name for path in out.glob(".batch/owners/*.json"))


@pytest.mark.slow
def test_dask_workers_do_the_jobs_and_a_poison_job_takes_no_other_along(tmp_path: Path) -> None:
    names = [f"job{number:02}" for number in range(20)]
    batch = small_batch(tmp_path, [*names[:3], "poison", *names[3:], "bad"], lease_s=30)
    # As it is set, Dask lets four workers die before it blames anyone, and each takes seconds to start again.
    with dask.config.set({"distributed.scheduler.allowed-failures": 0}):
        ended = do(batch, machines=Machines(workers=2))
    assert (ended.done, ended.failed) == (20, 2)
    assert sorted(set(lines(tmp_path, "done"))) == names
    status = read_status(batch.store)
    assert status.causes["its process died"].example == "poison"
    # Once among others and once alone.
    assert sum(line.startswith("poison ") for line in lines(tmp_path, "begun")) == 2


@pytest.mark.slow
def test_a_worker_that_is_killed_costs_no_job(tmp_path: Path) -> None:
    import os
    import threading

    names = [f"job{number:03}" for number in range(100)]
    batch = small_batch(tmp_path, names, lease_s=30)

    def kill_some() -> None:
        for _ in range(2):
            known = len(lines(tmp_path, "begun"))
            while len(lines(tmp_path, "begun")) < known + 10:
                time.sleep(0.02)
            os.kill(int(lines(tmp_path, "begun")[-1].split()[2]), signal.SIGKILL)

    killer = threading.Thread(target=kill_some)
    killer.start()
    ended = do(batch, machines=Machines(workers=2))
    killer.join()
    assert (ended.done, ended.failed) == (100, 0)
    assert Counter(lines(tmp_path, "done")).keys() == set(names)
