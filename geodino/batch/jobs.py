"""A batch's jobs: what each runs on, and their list, which is written once."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

from pydantic import JsonValue

from geodino.errors import OutputError
from geodino.stores import Store

STATE = ".batch/state"
# Beyond this a name is cut: folders, and keys of objects with their prefix, must stay short everywhere.
_MOST_LETTERS = 80
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
    """

    id: str
    name: str
    aoi: str
    aoi_crs: str | None
    hectares: float
    source: str | None = None
    item: dict[str, JsonValue] | None = None

    @property
    def key(self) -> str:
        """Its folder, below the batch's."""
        return f"jobs/{shard(self.id)}/{self.id}"


class Finished(NamedTuple):
    """A job that is done: its folder, and its place in the order of the mosaic, the first wins."""

    id: str
    key: str
    rank: int


class Failed(NamedTuple):
    """A job that has failed: why in a few words, and the whole sentence."""

    id: str
    cause: str
    error: str


def shard(job_id: str) -> str:
    """The folder that a job's objects lie in, one of 256, so that a million of them are four thousand a folder."""
    return hashlib.sha1(job_id.encode(), usedforsecurity=False).hexdigest()[:2]


def with_ids(named: Sequence[tuple[str, Job]]) -> list[Job]:
    """The jobs with ids made of their names; `named` says what tells apart jobs of the same name, such as an address.

    A catalog may call a scene `../../etc/x`, or two scenes alike but for their case, which some disks do not tell.
    """
    wanted = [_UNSAFE.sub("-", job.name).strip("-")[:_MOST_LETTERS] for _, job in named]
    seen: dict[str, int] = {}
    for text in wanted:
        seen[text.lower()] = seen.get(text.lower(), 0) + 1
    made = []
    for text, (what, job) in zip(wanted, named, strict=True):
        plain = bool(text) and text == job.name and seen[text.lower()] == 1
        tail = hashlib.sha1(f"{job.name}\n{what}".encode(), usedforsecurity=False).hexdigest()[:8]
        made.append(Job(**(asdict(job) | {"id": text if plain else f"{text}-{tail}".lstrip("-")})))
    return made


def write_jobs(store: Store, jobs: Iterable[Job]) -> tuple[str, str]:
    """Write the list, a JSON object a line; its key and its SHA-256, which two equal lists have in common."""
    lines = [json.dumps({key: value for key, value in asdict(job).items() if value is not None}) for job in jobs]
    packed = gzip.compress("\n".join(lines).encode(), mtime=0)
    digest = hashlib.sha256(packed).hexdigest()
    key = f".batch/jobs-{digest[:12]}.jsonl.gz"
    store.put(key, packed)
    return key, digest


def read_jobs(store: Store, key: str, sha256: str) -> list[Job]:
    """The jobs of a batch in the order of its mosaic. OutputError where the list is not as it was written."""
    packed = store.get(key)
    if packed is None or hashlib.sha256(packed).hexdigest() != sha256:
        raise OutputError(f"{store.url}/{key} is missing or damaged: start the batch anew in another --out")
    lines = gzip.decompress(packed).decode().splitlines()
    return [Job(**({"aoi_crs": None} | json.loads(line))) for line in lines]
