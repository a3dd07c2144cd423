"""The workers of a Dask cluster as those who do a batch's jobs, a bounded number at a time."""

from __future__ import annotations

import hashlib
import logging

from distributed import CancelledError, Client, Future, KilledWorker, as_completed

from geodino.batch.lanes import Work
from geodino.batch.ledger import DIED
from geodino.batch.work import Outcome, Task
from geodino.errors import OutputError

logger = logging.getLogger(__name__)


class Workers:
    """The workers of a Dask cluster, a job each and as many again that wait for one.

    A worker that dies takes all that was given to it along, and Dask blames each alike. A job that is blamed often
    enough (four times, as Dask is set) is put aside, and tried once more when nothing else is under way, a job a
    worker: if that worker dies too, the job is to blame, and no other.
    """

    def __init__(self, client: Client, work: Work, resources: dict[str, float]) -> None:
        self._client, self._work, self._resources = client, work, resources
        self._ended = as_completed()
        self._tasks: dict[Future, Task] = {}
        self._suspects: list[Task] = []
        self._alone: set[Future] = set()

    def has_room(self) -> bool:
        # Enough for a worker to have its next job when it ends one, and for a cluster of none to start its first.
        return not self._alone and len(self._tasks) < 2 * max(sum(self._client.nthreads().values()), 1)

    def submit(self, task: Task) -> None:
        self._start(task, "")

    def busy(self) -> bool:
        return bool(self._tasks or self._suspects)

    def next(self) -> tuple[str, Outcome]:
        while True:
            if not self._tasks:
                self._try_alone()
            future: Future = next(self._ended)
            task = self._tasks.pop(future)
            was_alone = future in self._alone
            self._alone.discard(future)
            error = future.exception() if future.status != "cancelled" else CancelledError()
            if error is None:
                return task.job.id, future.result()
            if isinstance(error, CancelledError):
                raise OutputError("the scheduler is gone, and with it what was under way: give the command again")
            if not isinstance(error, KilledWorker):
                raise error
            if was_alone:
                return task.job.id, _died()
            logger.warning("%s: the workers that had it died; it is tried again alone", task.job.name)
            self._suspects.append(task)

    def close(self) -> None:
        if self._tasks and self._client.status == "running":
            self._client.cancel(list(self._tasks))

    def _try_alone(self) -> None:
        threads = self._client.nthreads()
        # One a worker, which none of several threads would promise.
        at_once = len(threads) if set(threads.values()) == {1} else 1
        for task in self._suspects[:at_once]:
            self._alone.add(self._start(task, "-alone"))
        del self._suspects[:at_once]

    def _start(self, task: Task, how: str) -> Future:
        place = hashlib.sha1(task.url.encode(), usedforsecurity=False).hexdigest()[:8]
        key = f"geodino-{place}-{task.job.id}-{task.attempt}{how}"
        future = self._client.submit(self._work, task, key=key, pure=False, resources=self._resources or None)
        self._tasks[future] = task
        self._ended.add(future)
        return future


def _died() -> Outcome:
    sentence = "every worker that ran it died, and it alone: give workers more memory, or leave it out"
    return Outcome(False, {"cause": DIED, "error": sentence, "seconds": 0.0})
