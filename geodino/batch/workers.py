"""The workers of a Dask cluster as those who do a batch's jobs, a bounded number at a time."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import queue
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress

from distributed import Client, Future, KilledWorker
from distributed.comm import CommClosedError

from geodino.batch.afar import Rows, work_afar
from geodino.batch.jobs import Job
from geodino.batch.lanes import Work
from geodino.batch.ledger import DIED
from geodino.batch.work import Outcome, Task
from geodino.cluster.machines import Machines, cluster_config
from geodino.errors import ClusterError
from geodino.watch import Watch

logger = logging.getLogger(__name__)

# What a client meets when its scheduler dies, by what it was at.
_GONE = (CommClosedError, CancelledError, asyncio.CancelledError)
_LOOK_EVERY_S, _COUNT_EVERY_S = 15.0, 2.0
_WITHOUT_WORKERS_S = 600.0


class Workers:
    """The workers of a Dask cluster, a job each and as many again that wait for one.

    A worker that dies takes all that was given to it along, and Dask blames each alike. A job that is blamed often
    enough (four times, as Dask is set) is put aside, and tried once more when nothing else is under way, a job a
    worker: if that worker dies too, the job is to blame, and no other.

    Parameters
    ----------
    resources
        What a job takes of a worker.
    patience_s
        How long the cluster may be without workers.
    """

    def __init__(
        self, client: Client, work: Work, resources: dict[str, float], watch: Watch, patience_s: float
    ) -> None:
        self._client, self._work, self._resources = client, work, resources
        self._watch, self._patience_s = watch, patience_s
        self._rows = Rows(client, watch)
        self._answers: queue.SimpleQueue[Future] = queue.SimpleQueue()
        self._tasks: dict[Future, Task] = {}
        self._suspects: list[Task] = []
        self._alone: set[Future] = set()
        self._counted: dict[str, int] = {}
        self._counted_at = -_COUNT_EVERY_S

    def has_room(self) -> bool:
        # Enough for a worker to have its next job when it ends one, and for a cluster of none to start its first.
        return not self._alone and len(self._tasks) < 2 * max(sum(self._threads_of_late().values()), 1)

    def submit(self, task: Task) -> None:
        self._start(task, "")

    def busy(self) -> bool:
        return bool(self._tasks or self._suspects)

    def next(self) -> tuple[Job, Outcome]:
        while True:
            if not self._tasks:
                self._try_alone()
            future = self._answer()
            task = self._tasks.pop(future)
            self._rows.end(task.job)
            was_alone = future in self._alone
            self._alone.discard(future)
            error = None if future.status == "finished" else self._error(future)
            if error is None:
                return task.job, future.result()
            if not isinstance(error, KilledWorker):
                raise error
            if was_alone:
                return task.job, _died()
            logger.warning("%s: the workers that had it died; it is tried again alone", task.job.name)
            self._suspects.append(task)

    def close(self) -> None:
        self._rows.close()
        with suppress(*_GONE):
            if self._client.status == "running":
                self._client.cancel(list(self._tasks))

    def _try_alone(self) -> None:
        threads = self._threads()
        # One a worker, which none of several threads would promise.
        at_once = max(len(threads), 1) if set(threads.values()) == {1} else 1
        for task in self._suspects[:at_once]:
            self._alone.add(self._start(task, "-alone"))
        del self._suspects[:at_once]

    def _start(self, task: Task, how: str) -> Future:
        place = hashlib.sha1(task.url.encode(), usedforsecurity=False).hexdigest()[:8]
        key = f"geodino-{place}-{task.job.id}-{task.attempt}{how}"
        self._rows.begin(task.job)
        how_often_s = self._rows.pause_s(len(self._threads_of_late()))
        with self._reached():
            future = self._client.submit(
                work_afar, self._work, task, self._rows.topic, how_often_s,
                key=key, pure=False, resources=self._resources or None,
            )  # fmt: skip
        self._tasks[future] = task
        future.add_done_callback(self._answers.put)
        return future

    def _answer(self) -> Future:
        """The next task that came to an end."""
        alone_since: float | None = None
        while True:
            with suppress(queue.Empty):
                return self._answers.get(timeout=_LOOK_EVERY_S)
            if self._threads():
                alone_since = None
            elif alone_since is None:
                alone_since = time.monotonic()
                self._watch.warn("no worker is left; waiting for one")
            elif time.monotonic() - alone_since > self._patience_s:
                raise ClusterError(
                    f"no worker came for {self._patience_s:.0f} s; start some, and give the same command"
                )

    def _threads(self) -> dict[str, int]:
        """Of each worker."""
        with self._reached():
            return dict(self._client.nthreads())

    def _threads_of_late(self) -> dict[str, int]:
        """As `_threads`, asked of the scheduler now and then: it is asked for with every job."""
        if time.monotonic() - self._counted_at > _COUNT_EVERY_S:
            self._counted, self._counted_at = self._threads(), time.monotonic()
        return self._counted

    def _error(self, future: Future) -> BaseException | None:
        with self._reached():
            if future.status == "cancelled":
                raise CancelledError
            error: BaseException | None = future.exception()
            return error

    @contextmanager
    def _reached(self) -> Iterator[None]:
        try:
            yield
        except _GONE as error:
            raise ClusterError(
                f"the scheduler {self._client.scheduler.address} is gone; give the same command again to go on"
            ) from error


def patience_s(machines: Machines) -> float:
    """How long a cluster may be without workers; one from a config may wait in a queue as long as that says."""
    return _WITHOUT_WORKERS_S if machines.config is None else cluster_config(machines.config).wait_s


def _died() -> Outcome:
    sentence = "every worker that ran it died, and it alone: give workers more memory, or leave it out"
    return Outcome(False, {"cause": DIED, "error": sentence, "seconds": 0.0})
