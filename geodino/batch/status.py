"""How far a batch has come, for whoever looks at it from outside."""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import JsonValue

from geodino.batch.index import lossy, select, update_index
from geodino.batch.jobs import read_jobs
from geodino.batch.leases import OWNERS
from geodino.batch.ledger import forgive, read_tracks, revoke
from geodino.batch.manifest import Manifest, the_manifest
from geodino.stores import Store
from geodino.watch import count, duration


@dataclass(frozen=True)
class Cause:
    """Failures of one kind: how many, and the sentence and the job of one."""

    jobs: int
    error: str
    example: str


@dataclass(frozen=True)
class Status:
    """A batch as its objects tell it.

    Attributes
    ----------
    claimed
        Jobs that a process has taken; of one that died, until another process notices.
    empty, lossy
        Of those done, the cells without imagery, and the jobs that lost ground to reading errors: `lost_ha` in all.
    processes
        That have not ended; one that was killed counts until the batch ends.
    hectares
        Mapped by now, the sum over jobs: where jobs overlap, ground counts in each. The summary counts it once.
    job_s
        Seconds that a job took on average.
    ha_per_h
        Hectares an hour by all processes at work now, from what their jobs took so far; None where nothing is under
        way or done.
    left_s
        Until the end at that rate.
    left_out
        What of the catalog is no job, and why, in sentences.
    """

    title: str
    jobs: int
    done: int
    failed: int
    claimed: int
    waiting: int
    empty: int
    lossy: int
    processes: int
    hectares: float
    lost_ha: float
    job_s: float | None
    ha_per_h: float | None
    left_s: float | None
    causes: dict[str, Cause]
    left_out: tuple[str, ...]

    def as_dict(self) -> dict[str, JsonValue]:
        """As plain JSON values."""
        return asdict(self)

    def as_text(self) -> str:
        """In a few lines for a terminal."""
        ended = f"{self.done:,} of {count(self.jobs, 'job')} done ({self.done / max(self.jobs, 1):.1%})"
        lines = [
            self.title,
            f"{ended}, {self.claimed:,} under way, {self.waiting:,} waiting, {self.failed:,} failed",
        ]
        mapped = f"jobs cover {self.hectares:,.1f} ha, overlaps counted in each"
        if self.empty:
            mapped += f", {count(self.empty, 'cell')} without imagery"
        if self.lost_ha:
            mapped += f", {self.lost_ha:,.1f} ha of {count(self.lossy, 'job')} lost to reading errors"
        if self.job_s is not None:
            mapped += f", {duration(self.job_s)} a job"
        lines.append(mapped)
        if self.ha_per_h is not None:
            rate = f"{self.ha_per_h / 100:,.3g} km2 an hour"
            lines.append(rate if self.left_s is None else f"{rate}, {duration(self.left_s)} left")
        elif self.waiting:
            lines.append("nothing is under way: give the command again to go on")
        for cause, found in self.causes.items():
            lines.append(f"{count(found.jobs, 'job')} failed: {cause}, such as {found.example}: {found.error}")
        lines += [f"left out: {sentence}" for sentence in self.left_out]
        return "\n".join(lines)


def read_status(store: Store) -> Status:
    """How far the batch has come; brings its `ledger.sqlite` up to date.

    Raises
    ------
    OutputError
        There is no batch, or its store refuses.
    """
    manifest = the_manifest(store)
    tracks = read_tracks(store)
    states = Counter(track.state for track in tracks.values())
    jobs = read_jobs(store, manifest.jobs_key, manifest.jobs_sha256)
    with tempfile.TemporaryDirectory(prefix="geodino-batch-") as scratch:
        path = update_index(store, jobs, tracks, Path(scratch))
        sums = select(
            path,
            "SELECT coalesce(sum(area_ha) FILTER (WHERE state = 'done' AND empty IS NULL), 0), "
            "coalesce(sum(area_ha) FILTER (WHERE state IN ('waiting', 'claimed')), 0), "
            "coalesce(sum(hectares) FILTER (WHERE state = 'done'), 0), "
            "coalesce(sum(lost_ha) FILTER (WHERE state = 'done'), 0), "
            "sum(seconds) FILTER (WHERE state = 'done' AND empty IS NULL), "
            "count(*) FILTER (WHERE state = 'done' AND empty) FROM jobs",
        )
        lost = len(lossy(path))
        failures = select(
            path,
            "SELECT cause, count(*), min(name), min(error) FROM (SELECT * FROM jobs WHERE state = 'failed' "
            "ORDER BY place) GROUP BY cause ORDER BY count(*) DESC",
        )
    done_ha, left_ha, hectares, lost_ha = (float(str(value)) for value in sums[0][:4])
    seconds = None if sums[0][4] is None else float(str(sums[0][4]))
    empty = int(str(sums[0][5]))
    done, claimed = states["done"], states["claimed"]
    rate = done_ha / seconds * claimed if seconds and claimed else None
    return Status(
        title=manifest.title(),
        jobs=len(jobs),
        done=done,
        failed=states["failed"],
        claimed=claimed,
        waiting=len(jobs) - done - states["failed"] - claimed,
        empty=empty,
        lossy=lost,
        processes=sum(1 for _ in store.entries(f"{OWNERS}/")),
        hectares=round(hectares, 4),
        lost_ha=round(lost_ha, 4),
        job_s=round(seconds / (done - empty), 3) if seconds is not None and done > empty else None,
        ha_per_h=None if rate is None else round(rate * 3600, 3),
        left_s=round(left_ha / rate, 1) if rate else None,
        causes={str(cause): Cause(int(str(jobs_)), str(error), str(name)) for cause, jobs_, name, error in failures},
        left_out=manifest.left_out,
    )


def try_again(store: Store, *, losses: bool = False) -> tuple[Manifest, str]:
    """Let the failed jobs of a batch be tried again; the batch, and in words how many they are.

    Parameters
    ----------
    losses
        Whether also those that are done and lost ground to reading errors.
    """
    manifest = the_manifest(store)
    again = count(len(forgive(store)), "failed job")
    if losses:
        jobs = read_jobs(store, manifest.jobs_key, manifest.jobs_sha256)
        with tempfile.TemporaryDirectory(prefix="geodino-batch-") as scratch:
            found = lossy(update_index(store, jobs, read_tracks(store), Path(scratch)))
        revoke(store, found)
        again += f" and {count(len(found), 'job')} with losses"
    return manifest, again
