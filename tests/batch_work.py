"""Batches whose jobs take no time, for tests of who does them: a job leaves a line in a file, waits, or dies."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from geodino.batch.asked import Batch
from geodino.batch.jobs import Job, write_jobs
from geodino.batch.leases import Pulse, Pulses
from geodino.batch.manifest import Manifest, begin, now, settings_of
from geodino.batch.runner import Ended, do_jobs
from geodino.batch.work import Outcome, Task
from geodino.cluster.machines import Machines
from geodino.options import RunOptions
from geodino.settings import read_pipeline
from geodino.stores import Store
from geodino.watch import Silent, Watch


def small_batch(folder: Path, names: list[str], *, lease_s: float = 1.0) -> Batch:
    """A batch of jobs of these names, the first the largest; the same one for all who ask for it."""
    store = Store(str(folder))
    spec, options = read_pipeline("canopy"), RunOptions(model="nano", sources=("sample",))
    jobs = [Job(name, name, "0,0,1,1", None, float(len(names) - place)) for place, name in enumerate(names)]
    key, digest = write_jobs(store, jobs)
    settings = settings_of(spec, options, {"kind": "areas", "catalog": None, "aoi": None, "grid": None})
    manifest = begin(store, Manifest("areas", settings, len(jobs), key, digest, lease_s, now()))
    return Batch(store, manifest, jobs, spec, options)


def do(
    batch: Batch, watch: Watch | None = None, *, machines: Machines | None = None, max_failures: int | None = None
) -> Ended:
    """The jobs of a batch by `leave_a_line`."""
    shown = watch or Silent()
    with Pulse(batch.store, batch.manifest.lease_s) as pulse:
        pulses = Pulses(batch.store, batch.manifest.lease_s)
        return do_jobs(
            batch, pulse.owner, pulses, shown, machines=machines, max_failures=max_failures, work=leave_a_line
        )


def leave_a_line(task: Task, watch: Watch | None = None) -> Outcome:
    """Note that the job was begun and, after a moment, that it was done; what its name says besides.

    `poison` kills its process, `bad` fails for ever, `flaky` fails at its first attempt.
    """
    name, folder = task.job.name, Path(task.url)
    _note(folder / "begun", f"{name} {task.attempt} {os.getpid()}")
    if name.startswith("poison"):
        os.kill(os.getpid(), signal.SIGKILL)
    if name.startswith("bad") or (name.startswith("flaky") and task.attempt == 1):
        again = name.startswith("flaky")
        return Outcome(False, {"cause": "made to fail", "error": f"{name} fails", "seconds": 0.0}, again=again)
    time.sleep(0.02)
    _note(folder / "done", name)
    return Outcome(True, {"hectares": task.job.hectares, "seconds": 0.02, "trees": 3})


def lines(folder: Path, name: str) -> list[str]:
    """What jobs have noted in `begun` or `done`."""
    path = folder / name
    return path.read_text().splitlines() if path.exists() else []


def _note(path: Path, line: str) -> None:
    # One write to a file that is appended to is whole, whoever else writes.
    with path.open("a") as file:
        file.write(f"{line}\n")


if __name__ == "__main__":
    do(small_batch(Path(sys.argv[1]), sys.argv[2].split(","), lease_s=float(sys.argv[3])))
