"""The bands of one run on the workers of a Dask cluster.

The client hands out keys of bands, a bounded number at a time, and gets receipts; the model, the plan and the imagery
are held by each worker. A worker that dies loses at most what it was at: what it had done lies in the work store, so
that a task which Dask runs again finds it done.
"""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import NamedTuple

import rasterio
from distributed import Client, Future, KilledWorker

from geodino.bands import BandId
from geodino.cluster.answers import Answers, errors_that_travel, patience_s, reached
from geodino.cluster.held import held, register, release
from geodino.cluster.machines import Machines, cluster_config
from geodino.cluster.opening import await_workers, leave_unsaid, task_resources
from geodino.cluster.survey import Computer, Needs, checked
from geodino.compute import Hand, Work
from geodino.errors import ClusterError, GeodinoError, ModelError
from geodino.executors import OF_A_BAND, Told, give_up, model_for
from geodino.models.as_run import ModelAsRun
from geodino.models.loading import find_weights
from geodino.progress import Progress, Receipt, receipt_of
from geodino.sources.raster import LOCAL_OPTIONS
from geodino.watch import Watch, count

# Tasks wait here and not with a worker, so that none is idle at the end while another has some left: one more is handed
# out than can be at work. Where bands take less than this each, no worker is to wait for the client.
_QUICK_S = 1.0
_QUICK_TASKS_A_THREAD = 4
# Finished bands make room in the work store, so they go before new ones.
_FINISH_FIRST = 10


@contextmanager
def on_cluster(machines: Machines, client: Client, work: Work, model: str, watch: Watch) -> Iterator[OnCluster]:
    """Workers that are fit for a run and hold what they need for it; arguments and errors as `executors.executor`."""
    options = work.plan.options
    await_workers(machines, client, watch)
    with ExitStack() as stack:
        with reached(client):
            resources = task_resources(machines, client)
            needs = Needs(options.device, options.precision, resources, work.plan.scenes, work.store)
            computers = stack.enter_context(checked(client, needs, watch))
            name = f"geodino-{_token(work)}"
            make = partial(make_hand, work, model, find_weights(model).sha256())
            stack.callback(release, client, name)
            register(client, name, make, resources=resources)
            crew = OnCluster(client, work, name, resources, computers, watch, machines)
        yield crew


def make_hand(work: Work, model: str, sha256: str) -> Hand:
    """What a worker holds. ModelError where its weights are not those that the client sees under that name."""
    found = find_weights(model).sha256()
    if found != sha256:
        raise ModelError(f"{model} has weights {found[:12]} there and {sha256[:12]} here: give the same files to all")
    return Hand(work, model_for(work.products, work.plan.options, model))


class _Task(NamedTuple):
    """What was asked of the workers."""

    id: BandId
    alone: bool


class OnCluster:
    """Has workers compute the bands of a run; an `executors.Executor`."""

    def __init__(
        self,
        client: Client,
        work: Work,
        name: str,
        resources: Mapping[str, float],
        computers: tuple[Computer, ...],
        watch: Watch,
        machines: Machines,
    ) -> None:
        self._client, self._work, self._name = client, work, name
        self._resources = dict(resources)
        hosts = len({computer.host for computer in computers})
        self.described = f"{count(len(computers), 'worker')} on {count(hosts, 'host')}"
        self.model: ModelAsRun = client.submit(_model_of, name, resources=self._resources, pure=False).result()
        self._answers = Answers(client, watch, patience_s(machines))
        self._running: dict[Future, _Task] = {}
        self._asked: dict[BandId, int] = {}
        # A cluster that grows with its work has to be shown some.
        adapt = None if machines.config is None else cluster_config(machines.config).adapt
        self._least = 2 if adapt is None else adapt.maximum
        self._began, self._answered = time.monotonic(), 0

    def compute(self, progress: Progress, told: Told) -> None:
        """As `Executor` says."""
        try:
            self._compute(progress, told)
        finally:
            self._answers.cancel(self._running)
            self._running.clear()
            # Who joins from now on may find the work store gone.
            leave_unsaid(self._client)

    def _compute(self, progress: Progress, told: Told) -> None:
        self._began = time.monotonic()
        todo = deque(progress.to_predict())
        # Of a worker's death its neighbours in time may be accused too; each is tried again by itself.
        suspects: deque[_Task] = deque()
        for id_ in list(progress.can_finish()):
            self._finish(id_, progress)
        while not progress.done:
            most = self._most_tasks()
            while todo and len(self._running) < most:
                self._predict(todo.popleft().id, progress)
            if not self._running:
                suspect = suspects.popleft().id
                again = self._finish if suspect in progress.receipts else self._predict
                again(suspect, progress, alone=True)
            future = self._answers.next()
            task, error = self._running.pop(future), self._answers.error(future)
            self._answered += 1
            if isinstance(error, KilledWorker) and not task.alone:
                suspects.append(task)
                continue
            if error is not None:
                self._fault(task, error, progress)
                told(None)
            else:
                receipt: Receipt = self._answers.result(future)
                progress.note(receipt)
                told(receipt)
            for id_ in list(progress.can_finish((task.id, *task.id.after))):
                if not self._is_finishing(id_):
                    self._finish(id_, progress)

    def _predict(self, id_: BandId, progress: Progress, *, alone: bool = False) -> None:
        # What it waits for is known where its neighbours were quick: then its core need not be kept.
        around = progress.around(id_) if all(map(progress.settled, id_.before)) else None
        self._submit(_Task(id_, alone), _predict, around, progress.missing(id_), resources=self._resources)

    def _finish(self, id_: BandId, progress: Progress, *, alone: bool = False) -> None:
        self._submit(_Task(id_, alone), _finish, progress.around(id_), progress.missing(id_), priority=_FINISH_FIRST)

    def _submit(self, task: _Task, function: Callable[..., object], *args: object, **how: object) -> None:
        number = self._asked[task.id] = self._asked.get(task.id, 0) + 1
        # Dask shows what comes before the first word with a digit.
        key = f"{function.__name__.strip('_')}-{self._name}-{task.id.key}-{number}"
        future = self._answers.submit(function, self._name, task.id.key, *args, key=key, **how)
        self._running[future] = task

    def _fault(self, task: _Task, error: BaseException, progress: Progress) -> None:
        if isinstance(error, KilledWorker):
            windows = count(len(self._work.bands[task.id].places), "window")
            error = ClusterError(
                f"band {task.id.key} ({windows}) ended every worker that computed it, by itself too; is it too large "
                "for their memory? Give a smaller --batch-size or more memory, or leave it out by --on-band-error skip"
            )
        if not isinstance(error, (GeodinoError, MemoryError)):
            raise ClusterError(f"band {task.id.key} failed on a worker: {type(error).__name__}: {error}") from error
        given_up = isinstance(error, (*OF_A_BAND, ClusterError))
        if not given_up or self._work.plan.options.on_band_error == "fail":
            raise error
        give_up(progress, task.id, error)

    def _is_finishing(self, id_: BandId) -> bool:
        return any(task.id == id_ for task in self._running.values())

    def _most_tasks(self) -> int:
        threads = sum(self._answers.threads().values())
        took_s = time.monotonic() - self._began
        quick = bool(self._answered) and threads * took_s / self._answered < _QUICK_S
        return max(threads * (_QUICK_TASKS_A_THREAD if quick else 1) + 1, self._least)


def _token(work: Work) -> str:
    """The same for the same run in the same folder: should its client die, the next one asks for the same tasks."""
    said = f"{work.store.url} {work.plan.spec.model_dump_json()} {work.plan.places} {work.plan.scenes}"
    return hashlib.sha256(said.encode()).hexdigest()[:12]


def _model_of(name: str) -> ModelAsRun:
    return held(name, Hand).model


@errors_that_travel
def _predict(name: str, key: str, around: dict[BandId, Receipt] | None, missing: tuple[BandId, ...]) -> Receipt:
    """On a worker: predict a band; and finish it, where all is known that it waits for."""
    hand, id_ = held(name, Hand), BandId.of(key)
    kept = receipt_of(hand.work.store, key)
    # Dask runs a task again whose worker died before its receipt was fetched.
    if kept is not None and (kept.final or around is None):
        return kept
    with rasterio.Env(**LOCAL_OPTIONS):
        (computed,) = hand.compute([hand.work.bands[id_]])
        receipt = hand.keep(computed, core=around is None)
        if around is None or receipt.final:
            return receipt
        return hand.finish(computed, around | {id_: receipt}, missing)


@errors_that_travel
def _finish(name: str, key: str, around: dict[BandId, Receipt], missing: tuple[BandId, ...]) -> Receipt:
    """On a worker: finish a band that was kept."""
    hand = held(name, Hand)
    kept = receipt_of(hand.work.store, key)
    if kept is not None and kept.final:
        return kept
    with rasterio.Env(**LOCAL_OPTIONS):
        return hand.finish(hand.fetch(around[BandId.of(key)]), around, missing)
