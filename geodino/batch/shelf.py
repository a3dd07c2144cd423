"""Finished jobs on a shelf that holds as many as there are.

It is a SQLite file in the temporary folder, so that memory does not grow with the number of jobs; nobody but this
process reads it, and it is made anew each time.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from pydantic import TypeAdapter

from geodino.batch.jobs import Finished
from geodino.batch.mapped import Mapped, read_mapped
from geodino.stores import Store

# A bucket answers in 10 to 100 ms, however small the object.
_FETCHERS = 16
_CHUNK = 64

_KNOWN = TypeAdapter(Mapped)

Thing = TypeVar("Thing")
Found = TypeVar("Found")


class Shelf:
    """Finished jobs by rank, by part and by where they lie; a context manager. One thread's own."""

    def __init__(self, folder: Path) -> None:
        self._db = sqlite3.connect(folder / "shelf.sqlite", isolation_level=None)
        self._db.executescript(
            "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; BEGIN;"
            "CREATE TABLE jobs (rank INTEGER PRIMARY KEY, part TEXT, south REAL, crs TEXT, gsd REAL, facts TEXT);"
            "CREATE INDEX parts ON jobs (part, south);"
            # Bounds are rounded outwards to float32, so that no overlap is missed. A job has two boxes, one of them
            # beyond the antimeridian where it lies across.
            "CREATE VIRTUAL TABLE boxes USING rtree (id, west, east, south, north);"
            "CREATE TABLE scenes (number INTEGER PRIMARY KEY, id TEXT UNIQUE, first TEXT, last TEXT);"
        )

    def __enter__(self) -> Shelf:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._db.close()

    def __len__(self) -> int:
        (number,) = self._db.execute("SELECT COUNT(*) FROM jobs").fetchone()
        return int(number)

    def add(self, mapped: Mapped) -> None:
        west, south, east, north = mapped.bounds_lonlat
        facts = _KNOWN.dump_json(mapped).decode()
        self._db.execute(
            "INSERT INTO jobs VALUES (?, ?, ?, ?, ?, ?)",
            (mapped.rank, mapped.part, south, mapped.crs, mapped.gsd_m, facts),
        )
        for place, (low, high) in enumerate([(west, east)] if west <= east else [(west, 180), (-180, east)]):
            self._db.execute(
                "INSERT INTO boxes VALUES (?, ?, ?, ?, ?)", (2 * mapped.rank + place, low, high, south, north)
            )
        self._db.executemany("INSERT OR IGNORE INTO scenes (id, first, last) VALUES (?, ?, ?)", mapped.scenes)

    def all(self) -> Iterator[Mapped]:
        """In the mosaic's order."""
        return self._select("SELECT facts FROM jobs ORDER BY rank")

    def jobs(self, crs: str, gsd_m: float, *, last_first: bool = False) -> Iterator[Mapped]:
        """Those on one lattice, in the mosaic's order."""
        order = "DESC" if last_first else "ASC"
        return self._select(f"SELECT facts FROM jobs WHERE crs = ? AND gsd = ? ORDER BY rank {order}", crs, gsd_m)

    def crss(self) -> list[str]:
        """The CRSs of the jobs' grids."""
        return list(dict.fromkeys(crs for crs, _ in self.lattices()))

    def lattices(self) -> list[tuple[str, float]]:
        """CRS and metres a pixel of the jobs' grids."""
        return list(self._db.execute("SELECT DISTINCT crs, gsd FROM jobs ORDER BY crs, gsd"))

    def parts(self) -> list[str]:
        return [row[0] for row in self._db.execute("SELECT DISTINCT part FROM jobs ORDER BY part")]

    def of_part(self, part: str) -> Iterator[Mapped]:
        """A part's jobs from south to north."""
        return self._select("SELECT facts FROM jobs WHERE part = ? ORDER BY south, rank", part)

    def overlapping(self, mapped: Mapped) -> list[Mapped]:
        """The other jobs whose bounds overlap those of one, in the mosaic's order."""
        found = self._select(
            "SELECT facts FROM jobs WHERE rank IN "
            "(SELECT DISTINCT other.id / 2 FROM boxes AS own JOIN boxes AS other "
            "ON other.west < own.east AND other.east > own.west "
            "AND other.south < own.north AND other.north > own.south "
            "WHERE own.id IN (?, ?) AND other.id NOT IN (?, ?)) ORDER BY rank",
            *(2 * mapped.rank, 2 * mapped.rank + 1) * 2,
        )
        return list(found)

    def scenes(self) -> Iterator[tuple[int, str, str, str]]:
        """All scenes that were used: a number of the batch's own, from 1, and id, first and last day."""
        yield from self._db.execute("SELECT number, id, first, last FROM scenes ORDER BY number")

    def scene_numbers(self, ids: Iterable[str]) -> list[int]:
        asked = [self._db.execute("SELECT number FROM scenes WHERE id = ?", (id_,)).fetchone() for id_ in ids]
        return [int(number) for (number,) in asked]

    def _select(self, query: str, *values: object) -> Iterator[Mapped]:
        for (facts,) in self._db.execute(query, values):
            yield _KNOWN.validate_json(facts)


def fill(
    shelf: Shelf, store: Store, finished: Iterable[Finished], items: Path, advance: Callable[[int], None]
) -> list[str]:
    """Put every finished job on the shelf, and its Item into a file, a line each with the job's key before it.

    Returns
    -------
    The ids of jobs whose folder has no record or no Item.

    Raises
    ------
    OutputError
        A record is not one that this version understands, or the store refuses.
    """
    missing: list[str] = []
    pairs = enumerate(finished)
    with items.open("wb") as lines:
        for done, ((_, job), found) in enumerate(fetched(pairs, lambda pair: read_mapped(store, pair[1], pair[0])), 1):
            if found is None:
                missing.append(job.id)
                continue
            mapped, item = found
            shelf.add(mapped)
            lines.write(json.dumps([mapped.key, json.loads(item)], ensure_ascii=False).encode() + b"\n")
            advance(done)
    return missing


def fetched(things: Iterable[Thing], fetch: Callable[[Thing], Found]) -> Iterator[tuple[Thing, Found]]:
    """Each thing with what is fetched of it, in their order, a few at a time: a store answers one by one slowly."""
    left = iter(things)
    with ThreadPoolExecutor(_FETCHERS, thread_name_prefix="geodino-gather") as pool:
        while chunk := list(islice(left, _CHUNK)):
            yield from zip(chunk, pool.map(fetch, chunk), strict=True)
