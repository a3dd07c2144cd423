"""A folder or bucket as it was before any batch: what batches made there is removed, and nothing else."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from geodino.batch import catalog, index, mosaic, tree_parts
from geodino.batch.gather import SUMMARY
from geodino.batch.jobs import STATE, shard
from geodino.batch.leases import OWNERS, Pulse, Pulses, named
from geodino.batch.manifest import KEY, read_manifest
from geodino.batch.tables import JOBS
from geodino.batch.work import SCENE_ITEM
from geodino.errors import InUseError, OutputError
from geodino.outputs.folder import OUTPUT_NAMES, WORK_NAME
from geodino.outputs.locks import HOLDER_NAME, LOCK_NAME
from geodino.products import STATISTICS, STATISTICS_CSV
from geodino.stores import Store
from geodino.watch import Watch, count

_JOB = re.compile(r"jobs/(?P<shard>[0-9a-f]{2})/(?P<id>[A-Za-z0-9_-]+)/(?P<name>.+)")
_OF_JOB = (*OUTPUT_NAMES, SCENE_ITEM, LOCK_NAME, HOLDER_NAME)
_PLACES = (".batch", "jobs", catalog.FOLDER, mosaic.FOLDER, tree_parts.FOLDER)
# What the results of all jobs are called.
_RESULTS = (
    *(re.escape(name) for name in (catalog.COLLECTION, catalog.ITEMS, JOBS, SUMMARY, index.NAME)),
    *(re.escape(name) for name in (STATISTICS, STATISTICS_CSV, mosaic.SCENES_CSV)),
    rf"{catalog.FOLDER}/\d{{4}}\.json",
    rf"{mosaic.FOLDER}/[^/]+\.(vrt|qml)",
    rf"{tree_parts.FOLDER}/\d+\.\d+[NS]_\d+\.\d+[EW]\.parquet",
)
_RESULT = re.compile("|".join(_RESULTS))


def remove_batch(store: Store, lease_s: float, watch: Watch) -> None:
    """Remove what batches made; whoever is killed on the way leaves the old batch with less done, or none.

    Parameters
    ----------
    lease_s
        After which a process without a sign is dead, where no batch there says so.

    Raises
    ------
    InUseError
        Another process is at work there. One that was killed on another machine is waited for, for a lease.
    OutputError
        The store refuses.
    """
    lease_s = _lease_s(store, lease_s)
    if not list(made(store)):
        return
    with Pulse(store, lease_s) as pulse:
        pulses = Pulses(store, lease_s)
        if len(pulses.living()) > 1:
            watch.note(f"looking for up to {lease_s:g} s whether others are at work in {store}")
        if (other := pulses.at_work(pulse.owner)) is not None:
            raise InUseError(f"{named(other)} is at work in {store}: end it, or help it by leaving out --overwrite")
        # Receipts first and the manifest last: without them nothing is taken for done.
        keys = sorted(made(store), key=lambda key: (key == KEY) - key.startswith(f"{STATE}/"))
        for key in keys:
            if key != f"{OWNERS}/{pulse.owner}.json":
                store.delete(key)
    if store.folder is not None:
        for place in _PLACES:
            _remove_empty(store.folder / place)
    watch.note(f"{count(len(keys), 'file')} of an earlier batch removed from {store}")


def made(store: Store) -> Iterator[str]:
    """The keys of what batches made in a folder or bucket."""
    for entry in store.entries_in():
        if _RESULT.fullmatch(entry.key):
            yield entry.key
    for place in _PLACES:
        for entry in store.entries(f"{place}/"):
            if place == ".batch" or _RESULT.fullmatch(entry.key) or _is_of_job(entry.key):
                yield entry.key


def _is_of_job(key: str) -> bool:
    found = _JOB.fullmatch(key)
    if found is None or found["shard"] != shard(found["id"]):
        return False
    return found["name"] in _OF_JOB or found["name"].startswith((f"{WORK_NAME}/", f"{LOCK_NAME}/"))


def _lease_s(store: Store, otherwise_s: float) -> float:
    try:
        manifest = read_manifest(store)
    except OutputError:
        return otherwise_s  # damaged, or another version's: to begin anew is what helps
    return otherwise_s if manifest is None else manifest.lease_s


def _remove_empty(folder: Path) -> None:
    for path, _, _ in os.walk(folder, topdown=False):
        with suppress(OSError):  # it holds something of somebody else
            Path(path).rmdir()
