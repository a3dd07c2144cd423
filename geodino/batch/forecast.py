"""What a batch would do, before it does any of it; nothing is computed and nothing written."""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pydantic import JsonValue

from geodino.aoi import read_aoi
from geodino.batch.asked import Batch
from geodino.batch.jobs import Job
from geodino.batch.ledger import Track, read_tracks
from geodino.batch.work import Task, sources_of
from geodino.errors import NoImageryError, ReadError, SourceError
from geodino.models.loading import is_at_hand
from geodino.pipeline import settle
from geodino.products import products_of
from geodino.stores import Store
from geodino.watch import Silent, Watch, count, size


@dataclass(frozen=True)
class Example:
    """A job as its run is planned.

    Attributes
    ----------
    output_mib
        At most.
    fails
        Why it would fail, which ends no batch; then nothing else is known.
    """

    name: str
    hectares: float
    crs: str | None = None
    gsd_m: float | None = None
    scenes: int = 0
    windows: int = 0
    window_px: int = 0
    output_mib: float = 0.0
    fails: str | None = None


@dataclass(frozen=True)
class Forecast:
    """What `batch --dry-run` says.

    Attributes
    ----------
    out
        Where it would go.
    jobs, new
        Of the whole batch, and those of them that `out` does not know yet.
    done, failed, claimed
        What `out` says of the others; claimed is what a process has taken.
    overwrite
        Whether what a batch made in `out` would be removed.
    hectares
        Of all jobs' areas; where they overlap it counts in each.
    largest
        Its CRS is that of all where they are cells of a grid, else other jobs may have another.
    smallest
        Its name and hectares.
    weights_here
        Whether the model's weights are on this machine.
    """

    title: str
    out: str
    kind: str
    jobs: int
    new: int
    done: int
    failed: int
    claimed: int
    overwrite: bool
    hectares: float
    largest: Example
    smallest: tuple[str, float]
    model: str
    weights_here: bool
    left_out: tuple[str, ...]

    def as_dict(self) -> dict[str, JsonValue]:
        """As plain JSON values."""
        return asdict(self)

    def as_text(self) -> str:
        """In a few lines for a terminal."""
        there = f"{self.new:,} new, {self.done:,} done, {self.failed:,} failed, {self.claimed:,} under way"
        if self.overwrite:
            there = "all that a batch made there would be removed"
        one, (name, hectares) = self.largest, self.smallest
        what = f"{count(one.scenes, 'scene')}, {count(one.windows, 'window')} of {one.window_px} px"
        lines = {
            "batch": self.title,
            "out": f"{self.out} ({there})",
            "jobs": f"{self.jobs:,}, {self.hectares:,.1f} ha",
            "largest": f"{one.name}, {one.hectares:,.2f} ha, {what if one.fails is None else f'but {one.fails}'}",
            "smallest": f"{name}, {hectares:,.2f} ha",
            "model": f"{self.model}, {'at hand' if self.weights_here else 'whose weights are not on this machine'}",
        }
        if one.fails is None:
            share = self.hectares / max(one.hectares, 1e-9)
            lines["grid"] = f"{one.crs} at {one.gsd_m} m{'' if self.kind == 'grid' else ', of the largest'}"
            lines["to write"] = f"about {size(one.output_mib * share * 2**20)}, if all is like the largest"
        left_out = [f"left out  {sentence}" for sentence in self.left_out[:10]]
        return "\n".join([*(f"{key:<9} {value}" for key, value in lines.items()), *left_out, "nothing was written"])


def foresee(batch: Batch, new: int, watch: Watch) -> Forecast:
    """What doing a batch would mean; its largest job is planned as `run` would.

    Parameters
    ----------
    batch, new
        Of `look_ahead`.

    Raises
    ------
    ConfigError, ModelError, OutputError
        What every job would meet.
    """
    overwrite, model = batch.options.overwrite, str(batch.options.model)
    tracks = {} if overwrite else read_tracks(batch.store)
    states = Counter(tracks.get(job.id, Track()).state for job in batch.jobs)
    largest, smallest = (pick(batch.jobs, key=lambda job: job.hectares) for pick in (max, min))
    watch.note(f"looking at the imagery of {largest.name}")
    return Forecast(
        title=batch.manifest.title(),
        out=str(batch.store),
        kind=batch.manifest.kind,
        jobs=len(batch.jobs),
        new=new,
        done=states["done"],
        failed=states["failed"],
        claimed=states["claimed"],
        overwrite=overwrite,
        hectares=round(sum(job.hectares for job in batch.jobs), 4),
        largest=_planned(batch, largest),
        smallest=(smallest.name, smallest.hectares),
        model=model,
        weights_here=is_at_hand(model),
        left_out=batch.manifest.left_out,
    )


def _planned(batch: Batch, job: Job) -> Example:
    model = str(batch.options.model)
    with tempfile.TemporaryDirectory(prefix="geodino-batch-") as scratch:
        task = Task(scratch, job, 1, batch.spec, batch.options, batch.config)
        options = replace(batch.options, sources=sources_of(task, Store(scratch), Path(scratch)))
        try:
            area = read_aoi(job.aoi, crs=job.aoi_crs, repair=options.repair_aoi)
            plan = settle(batch.spec, area, options, model, products_of(batch.spec, model), Silent())
        except (NoImageryError, SourceError, ReadError) as error:
            return Example(job.name, job.hectares, fails=str(error))
    return Example(
        job.name,
        job.hectares,
        str(plan.grid.crs),
        plan.grid.gsd,
        len(plan.scenes),
        len(plan.places),
        plan.tiling.size,
        round(plan.bytes_written / 2**20, 1),
    )
