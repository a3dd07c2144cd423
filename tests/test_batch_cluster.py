"""Batches on Dask clusters and on buckets, with real workers, schedulers and processes, some of which are killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import dask.config
import distributed  # noqa: F401  # Its settings are there before one is changed for a test.
import pytest
from batch_work import do, lines, small_batch
from bucket_server import as_environment, bucket_server
from cluster_processes import running, running_worker, until, until_workers

from geodino.batch.asked import Asked, open_batch
from geodino.batch.ledger import read_tracks
from geodino.batch.runner import run_batch
from geodino.batch.status import read_status
from geodino.cluster.machines import Machines
from geodino.errors import ClusterError
from geodino.options import RunOptions
from geodino.stores import Store
from geodino.watch import Fact, Silent, Watch

pytestmark = pytest.mark.slow
HERE = Path(__file__).parent


class Rows(Silent):
    """Keeps what each job tells."""

    def __init__(self) -> None:
        self.told: dict[str, list[str]] = {}
        self.open: set[str] = set()

    @contextmanager
    def part(self, name: str) -> Iterator[Watch]:
        self.open.add(name)
        yield _Row(self.told.setdefault(name, []))
        self.open.remove(name)


class _Row(Silent):
    def __init__(self, told: list[str]) -> None:
        self._told = told

    def warn(self, sentence: str) -> None:
        self._told.append(sentence)

    def begin(self, title: str, total: int) -> None:
        self._told.append(f"{title} {total}")

    def event(self, name: str, facts: Mapping[str, Fact]) -> None:
        self._told.append(f"{name} {facts.get('band')}")


def test_a_poison_job_takes_no_other_along(tmp_path: Path) -> None:
    names = [f"job{number:02}" for number in range(20)]
    batch = small_batch(tmp_path, [*names[:3], "poison", *names[3:], "bad"], lease_s=30)
    # As it is set, Dask lets four workers die before it blames anyone, and each takes seconds to start again.
    with dask.config.set({"distributed.scheduler.allowed-failures": 0}):
        ended = do(batch, machines=Machines(workers=2))
    assert (ended.done, ended.failed) == (20, 2)
    assert sorted(set(lines(tmp_path, "done"))) == names
    assert read_status(batch.store).causes["its process died"].example == "poison"
    # Once among others and once alone.
    assert sum(line.startswith("poison ") for line in lines(tmp_path, "begun")) == 2


def test_a_worker_that_is_killed_costs_no_job(tmp_path: Path) -> None:
    names = [f"job{number:03}" for number in range(100)]
    batch = small_batch(tmp_path, names, lease_s=30)

    def kill_some() -> None:
        for _ in range(2):
            known = len(lines(tmp_path, "begun"))
            while len(lines(tmp_path, "begun")) < known + 10:
                time.sleep(0.02)
            os.kill(int(lines(tmp_path, "begun")[-1].split()[2]), signal.SIGKILL)

    killer = threading.Thread(target=kill_some, daemon=True)
    killer.start()
    ended = do(batch, machines=Machines(workers=2))
    killer.join(1)
    assert (ended.done, ended.failed) == (100, 0)
    assert Counter(lines(tmp_path, "done")).keys() == set(names)


def test_a_scheduler_that_dies_ends_the_command_and_not_the_batch(tmp_path: Path) -> None:
    names = [f"job{number:03}" for number in range(200)]
    out = tmp_path / "out"
    out.mkdir()
    batch = small_batch(out, names)
    file = tmp_path / "scheduler.json"
    options = ("--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(file))
    with ExitStack() as stack:
        scheduler = stack.enter_context(running("dask_scheduler", *options, cwd=HERE))
        until(file.is_file)
        stack.enter_context(running_worker(file, cwd=HERE))
        until_workers(file, 1)

        def kill() -> None:
            while len(lines(out, "done")) <= 10:
                time.sleep(0.02)
            scheduler.kill()

        threading.Thread(target=kill, daemon=True).start()
        with pytest.raises(ClusterError, match="is gone; give the same command again"):
            do(batch, machines=Machines(scheduler=str(file)))
    assert 10 < len(lines(out, "done")) < 200
    ended = do(batch)
    assert (ended.done, ended.failed) == (200, 0)
    assert {track.state for track in read_tracks(batch.store).values()} == {"done"}


def test_workers_of_a_config_do_real_jobs_and_tell_of_them(photo: Path, tiny_model: Path, tmp_path: Path) -> None:
    config = tmp_path / "cluster.yaml"
    config.write_text(
        "kind: cluster\ntitle: Two at home\nclass: distributed.LocalCluster\n"
        "kwargs: {n_workers: 2, threads_per_worker: 1, dashboard_address: '127.0.0.1:0'}\n"
    )
    table = tmp_path / "areas.csv"
    whole = Asked("canopy", RunOptions(model=str(tiny_model)), str(photo))
    (job,) = open_batch(whole, Store(str(tmp_path / "unused")), Silent()).jobs
    table.write_text(f'name,crs,wkt\none,{job.aoi_crs},"{job.aoi}"\ntwo,{job.aoi_crs},"{job.aoi}"\n')
    asked = Asked("canopy", RunOptions(model=str(tiny_model), sources=(str(photo),)), str(table))
    watch = Rows()
    ended = run_batch(
        open_batch(asked, Store(str(tmp_path / "out")), Silent()), watch, machines=Machines(config=str(config))
    )
    assert (ended.done, ended.failed) == (2, 0)
    assert set(watch.told) == {"one", "two"} and not watch.open
    assert not (tmp_path / "out/check").exists()
    for told in watch.told.values():
        assert any(said.startswith("windows ") for said in told) and any("band finished" in said for said in told)
    one, two = ((path / "canopy_height.tif").read_bytes() for path in (tmp_path / "out/jobs").glob("*/*"))
    assert one == two


def test_two_processes_share_a_bucket(photo: Path, tiny_model: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "geodino", "batch", "canopy", "--grid", "70m", "--aoi", _box(photo), "--aoi-crs"]
    words += ["EPSG:26910", "--source", str(photo), "--model", str(tiny_model), "--out", "s3://forest/batch"]
    with bucket_server() as server, as_environment(server):
        server.make_bucket("forest")
        both = [
            subprocess.Popen(words, env=server.environment(), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for _ in range(2)
        ]
        said = [process.communicate(timeout=240)[1] for process in both]
        assert [process.returncode for process in both] == [0, 0], said
        store = Store("s3://forest/batch")
        tracks = read_tracks(store)
        assert {track.state for track in tracks.values()} == {"done"} and len(tracks) > 6
        assert {tuple(track.attempts) for track in tracks.values()} == {(1,)}
        assert {store.get(name) is not None for name in ("collection.json", "items.parquet", "ledger.sqlite")} == {True}
        assert read_status(store).waiting == 0


def _box(photo: Path) -> str:
    import rasterio

    with rasterio.open(photo) as source:
        return ",".join(map(str, source.bounds))
