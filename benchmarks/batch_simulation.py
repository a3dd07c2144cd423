"""A batch of very many jobs with everything real but the model: the list, the ledger, the scheduler, the index.

    python benchmarks/batch_simulation.py OUT --jobs 100000 --workers 8 --scale 1000

A job waits for as long as ViT-L would take on an H100 for a NAIP quarter quad, divided by `--scale`, and gives a
receipt like a real one. Printed is a JSON object: what a job costs beside its own time, what the ledger takes on disk,
and the client's memory.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from geodino.batch.asked import Batch
from geodino.batch.index import update_index
from geodino.batch.jobs import Job, write_jobs
from geodino.batch.leases import Pulse, Pulses
from geodino.batch.ledger import read_tracks
from geodino.batch.manifest import Manifest, begin, now, settings_of
from geodino.batch.runner import do_jobs
from geodino.batch.work import Outcome, Task
from geodino.cluster.machines import Machines
from geodino.options import RunOptions
from geodino.settings import read_pipeline
from geodino.stores import Store
from geodino.watch import PlainWatch, Watch


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


def memory_mib() -> float:
    """The most that this process has held."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10, 1)


def main() -> None:
    """Run the batch and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=0, help="Dask workers; 0: this process")
    parser.add_argument("--job-s", type=float, required=True, help="seconds that a real job takes")
    parser.add_argument("--scale", type=float, default=1000.0)
    given = parser.parse_args()
    store = Store(str(Path(given.out).absolute()))
    took: dict[str, float] = {}

    def timed(what: str, began: float) -> None:
        took[what] = round(time.perf_counter() - began, 3)

    began = time.perf_counter()
    batch = make_batch(store, given.jobs)
    timed("list_s", began)
    before_mib = memory_mib()
    began = time.perf_counter()
    machines = Machines(workers=given.workers) if given.workers else Machines()
    with Pulse(store, 300.0) as pulse, PlainWatch(sys.stderr) as watch:
        work = partial(wait, given.job_s / given.scale)
        ended = do_jobs(batch, pulse.owner, Pulses(store, 300.0), watch, machines=machines, work=work)
    timed("jobs_s", began)
    began = time.perf_counter()
    tracks = read_tracks(store)
    timed("listing_s", began)
    with tempfile.TemporaryDirectory() as folder:
        for what in ("index_s", "index_again_s"):
            began = time.perf_counter()
            path = update_index(store, batch.jobs, tracks, Path(folder))
            timed(what, began)
        index_mib = round(path.stat().st_size / 2**20, 1)
    objects = list(store.entries(".batch/"))
    facts = {
        "jobs": given.jobs,
        "workers": given.workers,
        "done": ended.done,
        **took,
        "jobs_per_s": round(given.jobs / took["jobs_s"], 1),
        "ms_beside_the_job": round(
            1e3 * (took["jobs_s"] * max(given.workers, 1) / given.jobs - given.job_s / given.scale), 3
        ),
        "objects": len(objects),
        "objects_mib": round(sum(entry.size for entry in objects) / 2**20, 1),
        "index_mib": index_mib,
        "client_mib_before": before_mib,
        "client_mib": memory_mib(),
    }
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
