"""A whole run into a bucket of a real S3 server: the same bytes as into a folder, and after any kill."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from bucket_server import BucketServer, as_environment, bucket_server

from geodino.options import RunOptions
from geodino.pipeline import run
from geodino.stores import Store

AOI = "494016,4878640,494160,4878752"
# What holds no time of day.
STEADY = ("canopy_height.tif", "canopy_height_spread.tif", "scene.tif", "statistics.parquet", "statistics.csv")
RUN = """
import sys
from geodino.options import RunOptions
from geodino.outputs import locks
from geodino.pipeline import run
locks.BEAT_S, locks.LEASE_S, locks.LOOK_S = 0.1, 0.5, 0.05
out, photo, model, aoi = sys.argv[1:]
print("begins", flush=True)
run("canopy", aoi=aoi, out=out,
    options=RunOptions(sources=(photo,), model=model, precision="fp32", device="cpu", aoi_crs="EPSG:26910"))
"""


@pytest.fixture(scope="module")
def server() -> Iterator[BucketServer]:
    with bucket_server() as server, as_environment(server):
        server.make_bucket("forest")
        yield server


@pytest.fixture(scope="module")
def whole(photo: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run into a folder."""
    out = tmp_path_factory.mktemp("whole") / "out"
    run("canopy", aoi=AOI, out=out, options=options(photo, tiny_model))
    return out


def options(photo: Path, tiny_model: Path) -> RunOptions:
    return RunOptions(
        sources=(str(photo),), model=str(tiny_model), precision="fp32", device="cpu", aoi_crs="EPSG:26910"
    )


def assert_same(out: str, whole: Path) -> None:
    store = Store(out)
    names = {entry.key for entry in store.entries() if not entry.key.startswith(".lock/")}
    assert names == {path.name for path in whole.iterdir()} - {".lock"}
    for name in STEADY:
        assert store.get(name) == (whole / name).read_bytes(), name


def test_a_run_into_a_bucket_gives_the_bytes_of_one_into_a_folder_and_leaves_nothing_here(
    whole: Path, server: BucketServer, photo: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    record = run("canopy", aoi=AOI, out="s3://forest/maps/one", options=options(photo, tiny_model))
    assert_same("s3://forest/maps/one", whole)
    held = Store("s3://forest/maps/one").get("run.json")
    assert held is not None and json.loads(held) == json.loads(json.dumps(record.as_dict()))
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith("geodino-out")]


def attempt(program: list[str], limit_s: float | None) -> tuple[float, int]:
    """Seconds of a run that is killed after a while, its start not counted, and its return code."""
    process = subprocess.Popen(program, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "begins\n"
    began = time.monotonic()
    with suppress(subprocess.TimeoutExpired):
        process.wait(limit_s)
    process.kill()
    process.communicate()
    assert process.returncode in (0, -signal.SIGKILL)
    return time.monotonic() - began, process.returncode


@pytest.mark.slow
def test_a_run_into_a_bucket_that_is_killed_anywhere_goes_on_to_the_same_bytes(
    whole: Path, server: BucketServer, photo: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    moments, out = random.Random(14), "s3://forest/maps/killed"
    program = [sys.executable, "-c", RUN, out, str(photo), str(tiny_model), AOI]
    took, killed = attempt(program, None)[0], 0
    for _ in range(2):
        Store(out).clear()
        # Killed twice, then let go; a record that is there ends it too.
        for limit_s in (moments.uniform(0.1, 0.5) * took, moments.uniform(0.5, 1.0) * took, None):
            killed += attempt(program, limit_s)[1] == -signal.SIGKILL
            if Store(out).get("run.json") is not None:
                break
        # Left where it was killed after its record was there.
        Store(out).below(".work").clear()
        assert_same(out, whole)
    assert killed >= 2
