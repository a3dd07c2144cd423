"""A batch's jobs: what each runs on, and the lists of them, which are written once and never changed.

The first list is the batch's own. Where its catalog grows, what is new comes into lists with numbers, `.batch/more/2`
and so on, each made by one process. A job is in one list only.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

from pydantic import JsonValue

from geodino.errors import OutputError
from geodino.sources.order import OrderKey
from geodino.stores import Store

STATE = ".batch/state"
_MORE = ".batch/more"
# Beyond this a name is cut: folders, and keys of objects with their prefix, must stay short everywhere.
_MOST_LETTERS = 80
# Jobs without an order of their own keep their places.
_FIRST: OrderKey = (0.0, 0.0, ())
_UNSAFE = re.compile(r"[^A-Za-z0-9_-]+")


@dataclass(frozen=True)
class Job:
    """One run of a batch.

    Attributes
    ----------
    id
        Names its folder and its objects: letters, digits, `_` and `-`; one of a kind in the batch.
    name
        What the user knows it by: the scene's id, the name of the area, row and column of the cell.
    aoi, aoi_crs
        As `run` takes them.
    hectares
        Of the AOI, roughly: the largest jobs go first, so that no machine is left alone with one at the end.
    source
        The one scene that it maps; None: the batch's sources.
    item
        The scene's STAC Item where no address leads to it, as those of a stac-geoparquet file without links.
    order
        What sorts it among the jobs of a catalog, into whichever list it came; its names, which end it, are by what
        it is known again. None: its place in the first list.
    """

    id: str
    name: str
    aoi: str
    aoi_crs: str | None
    hectares: float
    source: str | None = None
    item: dict[str, JsonValue] | None = None
    order: OrderKey | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """What tells it apart from all other jobs of the catalog, whatever its id."""
        return (self.name,) if self.order is None else self.order[2]

    @property
    def key(self) -> str:
        """Its folder, below the batch's."""
        return f"jobs/{shard(self.id)}/{self.id}"


class Finished(NamedTuple):
    """A job that is done, and its folder."""

    id: str
    key: str


class Failed(NamedTuple):
    """A job that has failed: why in a few words, and the whole sentence."""

    id: str
    cause: str
    error: str


def shard(job_id: str) -> str:
    """The folder that a job's objects lie in, one of 256, so that a million of them are four thousand a folder."""
    return hashlib.sha1(job_id.encode(), usedforsecurity=False).hexdigest()[:2]


def with_ids(jobs: Sequence[Job], taken: Collection[str] = ()) -> list[Job]:
    """The jobs with ids made of their names, other than those that are taken.

    A catalog may call a scene `../../etc/x`, or two scenes alike but for their case, which some disks do not tell.
    """
    wanted = [_UNSAFE.sub("-", job.name).strip("-")[:_MOST_LETTERS] for job in jobs]
    seen = Counter(text.lower() for text in (*wanted, *taken))
    made = []
    for text, job in zip(wanted, jobs, strict=True):
        plain = bool(text) and text == job.name and seen[text.lower()] == 1
        what = "\n".join((job.name, *job.names))
        tail = hashlib.sha1(what.encode(), usedforsecurity=False).hexdigest()[:8]
        made.append(replace(job, id=text if plain else f"{text}-{tail}".lstrip("-")))
    return made


def write_jobs(store: Store, jobs: Iterable[Job]) -> tuple[str, str]:
    """Write the list, a JSON object a line; its key and its SHA-256, which two equal lists have in common."""
    packed = _packed(jobs)
    digest = hashlib.sha256(packed).hexdigest()
    key = f".batch/jobs-{digest[:12]}.jsonl.gz"
    store.put(key, packed)
    return key, digest


def add_jobs(store: Store, key: str, sha256: str, listed: Iterable[Job]) -> list[Job]:
    """Add to a batch those of its catalog's jobs that it does not know, under ids of their own; the new ones."""
    while True:
        lists = _lists(store, key, sha256)
        new = unknown([job for jobs in lists for job in jobs], listed)
        # Another process may have been faster, with the same jobs or with others.
        if not new or store.create(f"{_MORE}/{len(lists) + 1}", _packed(new)):
            return new


def unknown(known: Iterable[Job], listed: Iterable[Job]) -> list[Job]:
    """Those of the listed jobs that are not among the known, under ids that these have not."""
    ids = {job.names: job.id for job in known}
    return with_ids([job for job in listed if job.names not in ids], ids.values())


def read_jobs(store: Store, key: str, sha256: str) -> list[Job]:
    """The jobs of a batch in the order of its mosaic. OutputError where a list is not as it was written."""
    return in_order(job for jobs in _lists(store, key, sha256) for job in jobs)


def in_order(jobs: Iterable[Job]) -> list[Job]:
    """Jobs in the order of the mosaic."""
    return sorted(jobs, key=lambda job: job.order or _FIRST)


def _lists(store: Store, key: str, sha256: str) -> list[list[Job]]:
    packed = store.get(key)
    if packed is None or hashlib.sha256(packed).hexdigest() != sha256:
        raise OutputError(f"{store.url}/{key} is missing or damaged: start the batch anew with --overwrite")
    lists = [_unpacked(packed)]
    while (packed := store.get(more := f"{_MORE}/{len(lists) + 1}")) is not None:
        try:
            lists.append(_unpacked(packed))
        except (OSError, EOFError, zlib.error, ValueError) as error:
            raise OutputError(f"{store.url}/{more} is damaged: remove it, and give the command again") from error
    return lists


def _packed(jobs: Iterable[Job]) -> bytes:
    lines = [json.dumps({key: value for key, value in asdict(job).items() if value is not None}) for job in jobs]
    return gzip.compress("\n".join(lines).encode(), mtime=0)


def _unpacked(packed: bytes) -> list[Job]:
    jobs = []
    for line in gzip.decompress(packed).decode().splitlines():
        said = {"aoi_crs": None} | json.loads(line)
        if "order" in said:
            first, second, names = said["order"]
            said["order"] = (first, second, tuple(names))
        jobs.append(Job(**said))
    return jobs
