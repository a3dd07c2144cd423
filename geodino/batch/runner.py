"""A batch from its first job to its catalog, by one of any number of processes that share it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import JsonValue

from geodino.batch.asked import Batch
from geodino.batch.index import failed, finished, select, update_index
from geodino.batch.jobs import Job, read_jobs
from geodino.batch.lanes import Here, Lanes, Work
from geodino.batch.leases import Pulse, Pulses, named, turn
from geodino.batch.ledger import Ledger, read_tracks
from geodino.batch.work import CAUSES, Outcome, Task, run_job
from geodino.cluster.machines import Machines
from geodino.errors import ModelError, OutputError
from geodino.watch import Fact, Watch, count

# A disk that is full, or a store that refuses, does so to every job; one may be an accident.
_MOST_REFUSALS = 3
_REFUSED = dict(CAUSES)[OutputError]
# Between two looks at what the other processes do, when this one has nothing left: a share of the lease, seconds.
_LEAST_PAUSE_S, _MOST_PAUSE_S = 0.2, 30.0


@dataclass(frozen=True)
class Ended:
    """What came of a batch, or of this process's part in it.

    Attributes
    ----------
    done, failed
        Jobs of the whole batch.
    lost_ha
        Ground of jobs that are done which is nodata, because its imagery could not be read and might be skipped.
    stopped
        Why the batch was left before its end; None: it is at its end.
    summary, text
        What `gather` says of the results; nothing where the batch is not at its end.
    """

    done: int
    failed: int
    lost_ha: float = 0.0
    stopped: str | None = None
    summary: dict[str, JsonValue] | None = None
    text: str = ""


def run_batch(
    batch: Batch, watch: Watch, *, machines: Machines | None = None, max_failures: int | None = None
) -> Ended:
    """Do the jobs that nobody else does, until all are done or have failed; then gather the results.

    Parameters
    ----------
    machines
        Who does them; None: this process.
    max_failures
        The batch is left when more jobs than so many have failed and any are left.

    Raises
    ------
    ModelError, OutputError
        What would befall every job; all that is under way is given back.
    """
    store, lease_s = batch.store, batch.manifest.lease_s
    with Pulse(store, lease_s) as pulse:
        pulses = Pulses(store, lease_s)
        pulses.bury()  # and a first look at the rest
        while True:
            ended = do_jobs(batch, pulse.owner, pulses, watch, machines=machines, max_failures=max_failures)
            if ended.stopped is not None:
                return ended
            with turn(store, "gather", pulse.owner, pulses, pause_s=_pause_s(lease_s)):
                jobs = read_jobs(store, batch.manifest.jobs_key, batch.manifest.jobs_sha256)
                if len(jobs) == len(batch.jobs):
                    gathered = gather_results(batch, watch)
                    break
            batch = replace(batch, jobs=jobs)  # another process has found new ones meanwhile
        pulses.bury()
        return gathered


def do_jobs(
    batch: Batch,
    owner: str,
    pulses: Pulses,
    watch: Watch,
    *,
    machines: Machines | None = None,
    max_failures: int | None = None,
    work: Work = run_job,
) -> Ended:
    """As `run_batch`, without its results; `work` is what is done for a job, here or on a worker."""
    with _lanes(batch, machines or Machines(), work, watch) as lanes:
        ledger = Ledger(batch.store, batch.jobs, owner, pulses)
        if ledger.ended:
            watch.note(f"going on: {ledger.ended:,} of {count(len(batch.jobs), 'job')} are done or have failed")
        watch.begin("jobs", len(batch.jobs))
        watch.advance(ledger.ended, hectares=0.0)
        try:
            stopped = _drive(batch, ledger, lanes, watch, max_failures)
        except KeyboardInterrupt:
            ended = f"{ledger.ended:,} of {count(len(batch.jobs), 'job')} are done or have failed"
            watch.note(f"{ended}: the same command goes on with the rest")
            raise
        finally:
            lanes.close()
            ledger.release()
    return Ended(ledger.ended - ledger.failures, ledger.failures, stopped=stopped)


def gather_results(batch: Batch, watch: Watch) -> Ended:
    """The catalog, mosaics, trees and tables of what is done so far, and the index."""
    from geodino.batch.gather import Facts, gather

    with tempfile.TemporaryDirectory(prefix="geodino-batch-") as scratch:
        path = update_index(batch.store, batch.jobs, read_tracks(batch.store), Path(scratch))
        ((done, bad, lost, empty),) = select(
            path, "SELECT coalesce(sum(state = 'done'), 0), coalesce(sum(state = 'failed'), 0), "
            "coalesce(sum(lost_ha) FILTER (WHERE state = 'done'), 0), coalesce(sum(empty), 0) FROM jobs"
        )  # fmt: skip
        facts = Facts(
            title=batch.manifest.title(),
            disjoint=batch.manifest.kind == "grid",
            planned=len(batch.jobs) - int(str(empty)),
            pipeline=batch.spec.name,
            catalog=batch.manifest.imagery,
            left_out=batch.manifest.left_out,
        )
        summary = gather(batch.store, finished(path), failed(path), facts, watch=watch)
    return Ended(int(str(done)), int(str(bad)), float(str(lost)), None, summary.as_dict(), summary.as_text())


def _drive(batch: Batch, ledger: Ledger, lanes: Lanes, watch: Watch, max_failures: int | None) -> str | None:
    """Hand in and settle jobs until none is left; why that was left off, None where it was not."""
    may_be_empty = batch.manifest.kind == "grid"
    refusals, mapped_ha, put_aside, silent = 0, 0.0, set[str](), set[str]()
    while True:
        while lanes.has_room() and (taken := ledger.claim()) is not None:
            lanes.submit(Task(batch.store.url, *taken, batch.spec, batch.options, batch.config, may_be_empty))
        if not lanes.busy():
            known = ledger.ended
            more = _learn(ledger, _pause_s(batch.manifest.lease_s))
            if ledger.ended != known:
                watch.advance(ledger.ended, hectares=mapped_ha)
            if not more:
                return None
            if not ledger.waiting:
                _tell_silent(ledger, silent, batch.manifest.lease_s, watch)
            continue
        job, outcome = lanes.next()
        if outcome.ends_batch is not None:
            raise ModelError(outcome.ends_batch)
        if outcome.in_use:
            ledger.put_aside(job.id)
            if job.id not in put_aside:
                watch.note(f"{job.name} is put aside: another process writes to its folder")
            put_aside.add(job.id)
            continue
        _settle(ledger, job, outcome, watch)
        mapped_ha += float(str(outcome.receipt.get("hectares", 0.0)))
        watch.advance(ledger.ended, hectares=mapped_ha)
        refusals = refusals + 1 if outcome.receipt.get("cause") == _REFUSED else 0
        if refusals == _MOST_REFUSALS:
            raise OutputError(f"{outcome.receipt['error']}; so it was for {refusals} jobs in a row")
        if max_failures is not None and ledger.failures > max_failures and _is_any_left(batch, ledger):
            return f"{count(ledger.failures, 'job')} failed, more than --max-failures {max_failures}"


def _is_any_left(batch: Batch, ledger: Ledger) -> bool:
    if ledger.ended < len(batch.jobs):
        ledger.refresh()  # the others may have ended the rest
    return ledger.ended < len(batch.jobs)


def _learn(ledger: Ledger, pause_s: float) -> bool:
    """Learn what the others have done; whether anything is left to do, here or there."""
    if ledger.aside:
        time.sleep(pause_s)
    ledger.refresh()
    if ledger.waiting:
        return True
    if not ledger.others():
        return False
    time.sleep(pause_s)
    return True


def _tell_silent(ledger: Ledger, told: set[str], lease_s: float, watch: Watch) -> None:
    """Say once of each process that is waited for why it is."""
    for owner, number, silent_s in ledger.silent():
        if owner not in told:
            held, they = ("is held", "it is") if number == 1 else ("are held", "they are")
            watch.note(
                f"{count(number, 'job')} {held} by {named(owner)}, which gave no sign for {silent_s:.0f} s; "
                f"{they} taken over after {lease_s:g} s"
            )
            told.add(owner)


def _pause_s(lease_s: float) -> float:
    return min(max(lease_s / 8, _LEAST_PAUSE_S), _MOST_PAUSE_S)


def _settle(ledger: Ledger, job: Job, outcome: Outcome, watch: Watch) -> None:
    if outcome.done:
        ledger.done(job.id, outcome.receipt)
    elif ledger.failed(job.id, outcome.receipt, again=outcome.again):
        watch.warn(f"{job.name} failed: {outcome.receipt['error']}")
    else:
        watch.note(f"{job.name} is tried again later: {outcome.receipt['error']}")
    facts: dict[str, Fact] = {"job": job.name}
    facts |= {key: value for key, value in outcome.receipt.items() if isinstance(value, str | int | float)}
    watch.event("job done" if outcome.done else "job failed", facts)


@contextmanager
def _lanes(batch: Batch, machines: Machines, work: Work, watch: Watch) -> Iterator[Lanes]:
    if not machines.asked:
        yield Here(work, watch)
        return
    from geodino.batch.workers import Workers
    from geodino.cluster.answers import patience_s
    from geodino.cluster.opening import open_client, task_resources
    from geodino.cluster.survey import Needs, checked

    options = batch.options
    with open_client(machines, watch) as client:
        resources = task_resources(machines, client)
        needs = Needs(options.device, options.precision, resources=resources, store=batch.store.below(".batch"))
        with checked(client, needs, watch):
            yield Workers(client, work, resources, watch, patience_s(machines))
