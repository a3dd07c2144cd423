"""A batch of very many jobs with everything real but the model: the list, the ledger, the scheduler, the index.

    python benchmarks/batch_simulation.py OUT --jobs 100000
    python benchmarks/batch_simulation.py OUT --jobs 100000 --workers 2
    python benchmarks/batch_simulation.py OUT --jobs 2000 --clients 8 --scale 20

A job waits for as long as ViT-L would take on an H100 for a NAIP quarter quad, divided by `--scale`, and gives a
receipt like a real one. Printed is a JSON object: what a job costs beside its own time, what the ledger takes on disk,
how long it takes to go on with the batch and to ask for its status, and at each twentieth of the jobs the seconds and
the memory of the client, which with workers holds Dask's scheduler as well. With `--clients` so many processes share
the batch, as several machines would, and what is printed is how often all of them asked for a job that another had.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing.queues import SimpleQueue
from pathlib import Path

from geodino.batch.asked import Batch
from geodino.batch.index import update_index
from geodino.batch.jobs import STATE, Job, read_jobs, write_jobs
from geodino.batch.leases import Pulse, Pulses
from geodino.batch.ledger import Ledger, read_tracks
from geodino.batch.manifest import Manifest, begin, now, settings_of
from geodino.batch.runner import do_jobs
from geodino.batch.work import Outcome, Task
from geodino.cluster.machines import Machines
from geodino.options import RunOptions
from geodino.settings import read_pipeline
from geodino.stores import Entry, Store
from geodino.watch import PlainWatch, Silent, Watch, memory

# A NAIP quarter quad of 45 km2 at the 92 Mpx/s that were computed, not measured, of ViT-L on an H100: its forward
# passes alone, because what is read and written depends on where the imagery lies.
JOB_S = 1.36


def wait(job_s: float, task: Task, watch: Watch | None = None) -> Outcome:
    """In place of a run."""
    time.sleep(job_s)
    return Outcome(
        True,
        {
            "host": "simulated",
            "seconds": job_s,
            "hectares": task.job.hectares,
            "area_ha": task.job.hectares,
            "lost_ha": 0.0,
            "trees": 123456,
            "windows": 500,
            "scenes": 1,
            "bytes": 10**8,
            "started": now(),
            "ended": now(),
        },
    )


def make_batch(store: Store, number: int) -> Batch:
    """A batch of so many jobs of a quarter quad each, some a little larger."""
    aoi = (
        "POLYGON ((-123.0630264 44.0598535, -123.0630287 44.0620143, -123.0748652 44.0620072, -123.0630264 44.0598535))"
    )
    jobs = [
        Job(
            f"m_4412316_ne_10_060_{place:07}",
            f"scene {place}",
            aoi,
            "EPSG:4326",
            4500.0 + place % 97,
            f"/scenes/{place}.json",
        )
        for place in range(number)
    ]
    spec, options = read_pipeline("canopy"), RunOptions(model="chmv2", sources=())
    key, digest = write_jobs(store, jobs)
    settings = settings_of(spec, options, {"kind": "scenes", "catalog": "simulated", "aoi": None, "grid": None})
    manifest = begin(store, Manifest("scenes", settings, number, key, digest, 300.0, now()))
    return Batch(store, manifest, jobs, spec, options)


class Samples(PlainWatch):
    """Notes the memory of this process and its CPU time as jobs end."""

    def __init__(self, every: int) -> None:
        super().__init__(sys.stderr)
        self.rows: list[dict[str, float]] = []
        self._every = every
        self._began_s = 0.0

    def begin(self, title: str, total: int) -> None:
        super().begin(title, total)
        self._began_s = time.perf_counter()

    def advance(self, done: int, *, hectares: float = 0.0) -> None:
        super().advance(done, hectares=hectares)
        if done >= self._every * len(self.rows):
            passed_s, cpu_s = time.perf_counter() - self._began_s, time.process_time()
            self.rows.append({"jobs": done, "s": round(passed_s, 2), "cpu_s": round(cpu_s, 1), "mib": memory_mib()})


def memory_mib() -> float:
    """What this process holds now."""
    return round(memory() / 2**20, 1)


@dataclass(frozen=True)
class CountingStore(Store):
    """A store that counts what is asked of it."""

    asked: Counter[str] = field(default_factory=Counter, compare=False)

    def create(self, key: str, data: bytes) -> bool:
        made = super().create(key, data)
        self.asked["made" if made else "lost"] += 1
        return made

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        if prefix == f"{STATE}/":
            self.asked["listings"] += 1
        return super().entries(prefix)


def share(batch: Batch, clients: int, job_s: float) -> list[Counter[str]]:
    """What each of several processes asked of the store until the batch was done."""
    context = multiprocessing.get_context("fork")
    said = context.SimpleQueue()
    crew = [context.Process(target=_take_part, args=(batch, job_s, said)) for _ in range(clients)]
    for process in crew:
        process.start()
    found = [said.get() for _ in crew]
    for process in crew:
        process.join()
    return found


def _take_part(batch: Batch, job_s: float, said: SimpleQueue[Counter[str]]) -> None:
    store = CountingStore(batch.store.url)
    with Pulse(store, 300.0) as pulse:
        do_jobs(replace(batch, store=store), pulse.owner, Pulses(store, 300.0), Silent(), work=partial(wait, job_s))
    said.put(store.asked)


def on_disk_mib(store: Store) -> float:
    """The whole blocks that a disk gives for small files."""
    assert store.folder is not None
    blocks = sum(path.stat().st_blocks for path in (store.folder / ".batch").rglob("*"))
    return round(blocks * 512 / 2**20, 1)


def asked_status(store: Store) -> tuple[float, float]:
    """Seconds and peak MiB of `geodino batch status`."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "geodino", "batch", "status", store.url, "--json"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, code, used = os.wait4(process.pid, 0)
    assert code == 0
    return round(time.perf_counter() - began, 2), round(used.ru_maxrss / 2**10, 1)


def main() -> None:
    """Run the batch and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=0, help="Dask workers; 0: this process")
    parser.add_argument("--job-s", type=float, default=JOB_S, help="seconds that a real job takes")
    parser.add_argument("--scale", type=float, default=1000.0)
    parser.add_argument("--clients", type=int, help="processes that share the batch; prints what each asked")
    given = parser.parse_args()
    store = Store(str(Path(given.out).absolute()))
    took: dict[str, float] = {}

    def timed(what: str, began: float) -> None:
        took[what] = round(time.perf_counter() - began, 3)

    if given.clients:
        batch, began = make_batch(store, given.jobs), time.perf_counter()
        asked = sum(share(batch, given.clients, given.job_s / given.scale), Counter())
        took["jobs_s"] = time.perf_counter() - began
        print(json.dumps({"clients": given.clients, "jobs": given.jobs, **took, **asked}))
        return
    mib = {"bare": memory_mib()}
    began = time.perf_counter()
    batch = make_batch(store, given.jobs)
    timed("list_s", began)
    mib["with_list"] = memory_mib()
    began = time.perf_counter()
    machines = Machines(workers=given.workers) if given.workers else Machines()
    samples = Samples(max(1, given.jobs // 20))
    with Pulse(store, 300.0) as pulse, samples as watch:
        work = partial(wait, given.job_s / given.scale)
        ended = do_jobs(batch, pulse.owner, Pulses(store, 300.0), watch, machines=machines, work=work)
    timed("jobs_and_start_s", began)
    mib["after_jobs"] = memory_mib()
    began = time.perf_counter()
    tracks = read_tracks(store)
    timed("names_listed_s", began)
    mib["with_second_tracks"] = memory_mib()
    began = time.perf_counter()
    Ledger(store, read_jobs(store, batch.manifest.jobs_key, batch.manifest.jobs_sha256), "nobody", Pulses(store, 300.0))
    timed("gone_on_with_s", began)
    with tempfile.TemporaryDirectory() as folder:
        for what in ("index_s", "index_again_s"):
            began = time.perf_counter()
            path = update_index(store, batch.jobs, tracks, Path(folder))
            timed(what, began)
        index_mib = round(path.stat().st_size / 2**20, 1)
    took["status_s"], mib["status_peak"] = asked_status(store)
    objects = list(store.entries(".batch/"))
    loop_s = samples.rows[-1]["s"]
    facts = {
        "jobs": given.jobs,
        "workers": given.workers,
        "done": ended.done,
        **took,
        "loop_s": loop_s,
        "jobs_per_s": round(given.jobs / loop_s, 1),
        "ms_beside_the_job": round(1e3 * (loop_s * max(given.workers, 1) / given.jobs - given.job_s / given.scale), 3),
        "objects": len(objects),
        "objects_mib": round(sum(entry.size for entry in objects) / 2**20, 1),
        "on_disk_mib": on_disk_mib(store),
        "list_mib": round(sum(entry.size for entry in objects if "/jobs-" in entry.key) / 2**20, 1),
        "index_mib": index_mib,
        "mib": mib,
        "samples": samples.rows,
    }
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
