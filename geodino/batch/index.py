"""`ledger.sqlite`: what became of every job, made from the receipts, for people and programs to query.

It is an index and no lock: whoever makes it anew makes it whole and puts it in the old one's place. What it knows of
jobs that are done is taken over from the old one, so that only new receipts are read.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

from geodino.batch.jobs import Failed, Finished, Job
from geodino.batch.ledger import Receipt, Track, read_receipt, receipts
from geodino.errors import OutputError
from geodino.stores import Store

logger = logging.getLogger(__name__)

NAME = "ledger.sqlite"
# Receipts read at once: a bucket takes some 50 ms for each, whatever their number.
_READERS = 32
_ROWS = 2000

_TABLE = """
CREATE TABLE IF NOT EXISTS jobs (
    id TEXT PRIMARY KEY, place INTEGER, name TEXT, state TEXT, attempts INTEGER, area_ha REAL, what TEXT,
    seconds REAL, hectares REAL, lost_ha REAL, trees INTEGER, windows INTEGER, bytes INTEGER, host TEXT,
    started TEXT, ended TEXT, cause TEXT, error TEXT, empty INTEGER, key TEXT
) WITHOUT ROWID
"""
_FROM_RECEIPT = (
    "seconds", "hectares", "lost_ha", "trees", "windows", "bytes", "host", "started", "ended", "cause", "error",
    "empty",
)  # fmt: skip


def update_index(store: Store, jobs: Sequence[Job], tracks: dict[str, Track], folder: Path) -> Path:
    """Make the index anew in a folder of this machine, and put it where the batch is.

    Parameters
    ----------
    folder
        For the file itself, which SQLite wants on a disk of its own.

    Raises
    ------
    OutputError
        The store refuses.
    """
    path = folder / NAME
    old = store.get(NAME)
    if old is not None:
        path.write_bytes(old)
    try:
        _fill(path, store, jobs, tracks)
    except sqlite3.DatabaseError as error:
        if old is None:
            raise OutputError(f"cannot write {path}: {error}") from error
        logger.warning("%s/%s is damaged, and made anew: %s", store.url, NAME, error)
        path.unlink()
        _fill(path, store, jobs, tracks)
    store.put(NAME, path.read_bytes())
    return path


def finished(path: Path) -> Iterator[Finished]:
    """The jobs that are done and mapped something, in the order of the mosaic."""
    for row in _rows(path, "SELECT id, key FROM jobs WHERE state = 'done' AND empty IS NULL ORDER BY place"):
        yield Finished(str(row[0]), str(row[1]))


def failed(path: Path) -> Iterator[Failed]:
    """The jobs that have failed, in the order of the mosaic."""
    for row in _rows(path, "SELECT id, cause, error FROM jobs WHERE state = 'failed' ORDER BY place"):
        yield Failed(str(row[0]), str(row[1]), str(row[2]))


def lossy(path: Path) -> list[str]:
    """The jobs that are done but for ground whose imagery could not be read."""
    return [str(job_id) for (job_id,) in _rows(path, "SELECT id FROM jobs WHERE state = 'done' AND lost_ha > 0")]


def select(path: Path, question: str) -> list[tuple[object, ...]]:
    """What the index answers to a question in SQL."""
    return list(_rows(path, question))


def _rows(path: Path, question: str) -> Iterator[tuple[object, ...]]:
    with closing(sqlite3.connect(path)) as index:
        yield from index.execute(question)


def _fill(path: Path, store: Store, jobs: Sequence[Job], tracks: dict[str, Track]) -> None:
    with closing(sqlite3.connect(path)) as index, index:
        index.execute(_TABLE)
        listed = index.execute("SELECT count(*) FROM jobs").fetchone()[0]
        if listed < len(jobs):
            index.executemany(
                "INSERT INTO jobs (id, place, name, area_ha, key) VALUES (?, ?, ?, ?, ?) "
                "ON CONFLICT (id) DO UPDATE SET place = excluded.place",
                ((job.id, place, job.name, job.hectares, job.key) for place, job in enumerate(jobs)),
            )
        states = (
            (track.state, sum("released" not in marks for marks in track.attempts.values()), job_id)
            for job_id, track in tracks.items()
        )
        index.execute("UPDATE jobs SET state = 'waiting', attempts = 0")
        index.executemany("UPDATE jobs SET state = ?, attempts = ? WHERE id = ?", states)
        known = dict(index.execute("SELECT id, what FROM jobs WHERE what IS NOT NULL"))
        new = [pair for pair in receipts(tracks) if known.get(pair[0]) != pair[1]]
        with ThreadPoolExecutor(_READERS) as readers:
            for start in range(0, len(new), _ROWS):
                part = new[start : start + _ROWS]
                read = readers.map(lambda pair: read_receipt(store, *pair), part)
                index.executemany(
                    f"UPDATE jobs SET what = ?, {', '.join(f'{name} = ?' for name in _FROM_RECEIPT)} WHERE id = ?",
                    [_row(*pair, receipt or {}) for pair, receipt in zip(part, read, strict=True)],
                )


def _row(job_id: str, what: str, receipt: Receipt) -> tuple[object, ...]:
    return (what, *(receipt.get(name) for name in _FROM_RECEIPT), job_id)
