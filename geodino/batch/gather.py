"""The results of a batch out of those of its jobs: catalog, tables, mosaics, trees, summary.

May be called at any time, also while jobs run, and again when more are done: it ends with what it would have written
had it been called but once. One process at a time. Each object is replaced whole, and what leads to others comes after
them.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from geodino.batch.catalog import write_catalog, write_items
from geodino.batch.jobs import STATE, Failed, Finished, shard
from geodino.batch.mosaic import write_mosaics
from geodino.batch.shelf import Shelf, fill
from geodino.batch.summary import Summary
from geodino.batch.tables import JOBS, JobTable, write_statistics
from geodino.batch.tree_parts import write_parts
from geodino.stores import Store
from geodino.watch import Silent, Watch

SUMMARY = "summary.json"
_MOST_NAMED = 10


@dataclass(frozen=True)
class Facts:
    """What the results say of the batch itself.

    Attributes
    ----------
    title
        For people; the collection's id is made of it.
    disjoint
        Whether its jobs never overlap, as the cells of a grid.
    planned
        How many jobs it has.
    pipeline, catalog
        What they are called, which is no place on a disk.
    left_out
        What of the catalog is no job, and why, in sentences.
    """

    title: str
    disjoint: bool
    planned: int
    pipeline: str = ""
    catalog: str = ""
    left_out: tuple[str, ...] = ()


def gather(
    store: Store, finished: Iterable[Finished], failed: Iterable[Failed], facts: Facts, *, watch: Watch | None = None
) -> Summary:
    """Write what a batch's jobs made together.

    Memory does not grow with the number of jobs, but for an index of some hundred bytes a job.

    Parameters
    ----------
    store
        The batch's own; jobs lie below it.
    finished
        In the order of the mosaic: of jobs that overlap, the first has the ground, but for its rim (`ground`).
    failed
        Those that will not be tried again.

    Returns
    -------
    Summary
        What summary.json holds.

    Raises
    ------
    OutputError
        The store or the disk refuses, or a file of a job is gone or is none of this version's.
    """
    watch = watch or Silent()
    summary = Summary(facts.title, facts.pipeline, facts.catalog, facts.left_out, facts.planned)
    with tempfile.TemporaryDirectory(prefix="geodino-gather-") as name:
        scratch = Path(name)
        lines = scratch / "items.jsonl"
        with Shelf(scratch) as shelf:
            watch.begin("reading records", facts.planned)
            missing = fill(shelf, store, finished, lines, watch.advance)
            summary.missing = len(missing)
            for job in missing[:_MOST_NAMED]:
                receipt = f"{STATE}/{shard(job)}/{job}.done"
                watch.warn(f"{job} is done, but its results are gone: remove {receipt} and go on with the batch")
            if len(shelf):
                watch.begin("gathering", len(shelf))
                with JobTable(scratch / JOBS) as table:
                    for mapped, share in write_parts(
                        shelf, store, scratch, disjoint=facts.disjoint, advance=watch.advance
                    ):
                        table.add(mapped, share)
                        summary.add(mapped, share)
                store.upload(JOBS, scratch / JOBS)
                summary.scenes = sum(1 for _ in shelf.scenes())
                summary.statistics_rows = write_statistics(shelf, store, scratch)
                mosaics = write_mosaics(shelf, store, scratch, disjoint=facts.disjoint)
                write_items(lines, store, scratch, summary.id)
                write_catalog(lines, store, summary, mosaics, trees=summary.trees is not None)
        summary.add_failures(failed)
        text = json.dumps(summary.as_dict(), ensure_ascii=False, indent=2, allow_nan=False)
        store.put(SUMMARY, text.encode())
    return summary
