"""One job of a batch: a run like any other, wholly in the process that it is given to, and what came of it."""

from __future__ import annotations

import json
import socket
import tempfile
import time
import traceback
from dataclasses import dataclass, replace
from datetime import datetime
from functools import lru_cache, partial
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml
from pydantic import JsonValue

from geodino.aoi import read_aoi
from geodino.batch.jobs import Job
from geodino.batch.ledger import Receipt
from geodino.errors import (
    AOIError,
    ConfigError,
    GeodinoError,
    InUseError,
    ModelError,
    NoImageryError,
    OutputError,
    ReadError,
    SourceError,
)
from geodino.models import Model, load_model
from geodino.options import RunOptions
from geodino.outputs.folder import RECORD_NAME, WORK_NAME
from geodino.outputs.locks import LOCK_NAME
from geodino.outputs.record import RunRecord, read_record
from geodino.pipeline import run
from geodino.settings import PipelineSpec
from geodino.sources.config import SourceConfig, resolve
from geodino.stores import Store
from geodino.watch import Silent, Watch

WEIGHTS = ".batch/weights.json"
SCENE_ITEM = "source.json"
# What failures are called where they are counted; the first that fits. All else is unforeseen, and told by its class.
CAUSES: tuple[tuple[type[BaseException], str], ...] = (
    (AOIError, "the area cannot be used"),
    (NoImageryError, "there is no imagery"),
    (SourceError, "its imagery cannot be used"),
    (ReadError, "its imagery cannot be reached or decoded"),
    (ConfigError, "an option cannot be met"),
    (ModelError, "the model is refused"),
    (OutputError, "the output is refused"),
    (MemoryError, "out of memory"),
)
# Servers come back, disks are emptied, and a neighbour's memory is freed. torch says in a RuntimeError that none is.
_MAY_PASS = (ReadError, OutputError, MemoryError, OSError)


@dataclass(frozen=True)
class Task:
    """What a process needs to know to do a job: it may be sent to another machine.

    Attributes
    ----------
    url
        The batch's folder or bucket.
    config
        How the job's scene is to be read, where the catalog's config says more than where it is.
    may_be_empty
        Whether to have no imagery is no failure, as of a cell in the sea.
    """

    url: str
    job: Job
    attempt: int
    spec: PipelineSpec
    options: RunOptions
    config: SourceConfig | None = None
    may_be_empty: bool = False


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Attributes
    ----------
    done
        Whether it did; else it failed.
    receipt
        What is kept of it.
    again
        Whether a failure may pass.
    in_use
        It was not begun, because another process writes to its folder.
    ends_batch
        The sentence of a failure that any other job would meet too.
    """

    done: bool
    receipt: Receipt
    again: bool = False
    in_use: bool = False
    ends_batch: str | None = None


class _Attempt:
    """A block whose every error, foreseen or not, is one job's failure: a batch goes on through the night."""

    def __init__(self) -> None:
        self.error: Exception | None = None

    def __enter__(self) -> _Attempt:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self.error = error if isinstance(error, Exception) else None
        return self.error is not None


def run_job(task: Task, watch: Watch | None = None) -> Outcome:
    """Do a job; one that an earlier process finished, but could not tell of, is not done again."""
    began = time.perf_counter()
    with _Attempt() as attempt, tempfile.TemporaryDirectory(prefix="geodino-batch-") as scratch:
        record = _earlier(task, Path(scratch)) or _run(task, Path(scratch), watch or Silent())
        place = Store(task.url).below(task.job.key)
        if place.folder is not None:
            # A run leaves its lock file to those who may be about to lock it; a job that is done nobody begins.
            place.delete(LOCK_NAME)
        return Outcome(True, _receipt(record, time.perf_counter() - began))
    assert attempt.error is not None
    if task.may_be_empty and isinstance(attempt.error, NoImageryError):
        return Outcome(True, {"host": socket.gethostname(), "empty": True, "hectares": 0.0, "seconds": 0.0})
    return _failure(attempt.error, time.perf_counter() - began)


def cause_of(error: Exception) -> str:
    """What a failure is counted under."""
    unforeseen = f"unforeseen, {type(error).__name__}"
    return next((words for kind, words in CAUSES if isinstance(error, kind)), unforeseen)


def _run(task: Task, scratch: Path, watch: Watch) -> RunRecord:
    job, pipeline = task.job, scratch / "pipeline.yaml"
    pipeline.write_text(yaml.safe_dump(task.spec.model_dump(mode="json")), encoding="utf-8")
    area = read_aoi(job.aoi, crs=job.aoi_crs, repair=task.options.repair_aoi)
    store = Store(task.url)

    def load(name_or_path: str | Path, **how: Any) -> Model:
        model = _load_once(name_or_path, **how)
        _require_same_weights(store, model.weights_sha256)
        return model

    place = store.below(job.key)
    # Whatever lies there is of this job, left by a process that died.
    options = replace(task.options, sources=sources_of(task, store, scratch), overwrite=True)
    mapped = partial(run, pipeline, aoi=replace(area, origin=job.name), out=place.url, watch=watch, load=load)
    begun = next(place.below(WORK_NAME).entries(), None) is not None
    try:
        return mapped(options=options)
    except ConfigError:
        # Begun with other libraries, or from a picture that has changed since: nobody will come to go on with that.
        if not begun:
            raise
        return mapped(options=replace(options, resume=False))


@lru_cache(maxsize=1)
def _load_once(name_or_path: str | Path, **how: Any) -> Model:
    return load_model(name_or_path, **how)


def _require_same_weights(store: Store, sha256: str) -> None:
    """ModelError where another process of the batch, on whatever machine, has loaded other weights by the same name."""
    if store.create(WEIGHTS, json.dumps({"weights_sha256": sha256}).encode()):
        return
    first = json.loads(store.get(WEIGHTS) or b"{}").get("weights_sha256")
    if first != sha256:
        raise ModelError(
            f"the weights on {socket.gethostname()} are not those that the batch was begun with (SHA-256 "
            f"{sha256[:12]}, not {str(first)[:12]}): give all machines the same, or choose another --out"
        )


def sources_of(task: Task, store: Store, scratch: Path) -> tuple[str, ...]:
    """The sources of a job's run; what has no address is laid down in the store, or in a folder of this machine."""
    job = task.job
    if job.source is None and job.item is None:
        return task.options.sources
    source = job.source
    if source is None:
        source = _laid_down(job, store, scratch)
    if task.config is None:
        return (source,)
    wanted = resolve(source).model_dump(mode="json", exclude_none=True) | task.config.model_dump(
        mode="json", include={"title", "asset", "bands", "sign", "mask"}, exclude_none=True
    )
    config = scratch / "source.yaml"
    config.write_text(yaml.safe_dump(wanted), encoding="utf-8")
    return (str(config),)


def _laid_down(job: Job, store: Store, scratch: Path) -> str:
    """The path of the scene's Item: beside the results, which link to it, where they are on a disk."""
    content = json.dumps(job.item).encode()
    if store.folder is None:
        path = scratch / SCENE_ITEM
        path.write_bytes(content)
        return str(path)
    key = f"{job.key}/{SCENE_ITEM}"
    store.put(key, content)
    return str(store.folder / key)


def _earlier(task: Task, scratch: Path) -> RunRecord | None:
    """The record of a job whose folder is complete, for the record is published last, and nothing was lost in it."""
    content = Store(task.url).get(f"{task.job.key}/{RECORD_NAME}")
    if content is None:
        return None
    path = scratch / RECORD_NAME
    path.write_bytes(content)
    record = read_record(path)
    return None if record.lost_ha else record


def _receipt(record: RunRecord, seconds: float) -> Receipt:
    mapped = 100.0 if record.mapped_percent_of_aoi is None else record.mapped_percent_of_aoi
    return {
        "host": socket.gethostname(),
        "seconds": round(seconds, 3),
        "hectares": round(record.aoi.area_ha * mapped / 100, 4),
        "area_ha": record.aoi.area_ha,
        "lost_ha": record.lost_ha,
        "trees": None if record.trees is None else record.trees.count,
        "windows": record.windows.run,
        "scenes": len(record.scenes),
        "bytes": sum(file.size_bytes for file in record.outputs),
        "gsd_m": record.grid.gsd_m,
        "crs": record.grid.crs,
        "started": _iso(record.started),
        "ended": _iso(record.ended),
    }


def _failure(error: Exception, seconds: float) -> Outcome:
    foreseen = isinstance(error, (GeodinoError, MemoryError))
    said = " ".join(str(error).split()) or type(error).__name__
    receipt: Receipt = {
        "host": socket.gethostname(),
        "seconds": round(seconds, 3),
        "cause": cause_of(error),
        "error": said,
    }
    if not foreseen:
        receipt["traceback"] = "".join(traceback.format_exception(error))
    return Outcome(
        False,
        receipt,
        in_use=isinstance(error, InUseError),
        again=isinstance(error, _MAY_PASS) or type(error).__name__ == "OutOfMemoryError",
        ends_batch=said if isinstance(error, ModelError) else None,
    )


def _iso(moment: datetime) -> JsonValue:
    return moment.isoformat(timespec="seconds")
