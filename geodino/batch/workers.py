"""The workers of a Dask cluster as those who do a batch's jobs, a bounded number at a time."""

from __future__ import annotations

import hashlib
import logging

from distributed import Client, Future, KilledWorker

from geodino.batch.afar import Rows, work_afar
from geodino.batch.jobs import Job
from geodino.batch.lanes import Work
from geodino.batch.ledger import DIED
from geodino.batch.work import Outcome, Task
from geodino.cluster.answers import Answers
from geodino.watch import Watch

logger = logging.getLogger(__name__)


class Workers:
    """The workers of a Dask cluster, a job each and as many again that wait for one.

    A worker that dies takes all that was given to it along, and Dask blames each alike. A job that is blamed often
    enough (four times, as Dask is set) is put aside, and tried once more when nothing else is under way, one
    after the other: if that worker dies too, the job is to blame, and no other.

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
        self._work, self._resources = work, resources
        self._rows = Rows(client, watch)
        self._answers = Answers(client, watch, patience_s)
        self._tasks: dict[Future, Task] = {}
        self._suspects: list[Task] = []
        self._alone: Future | None = None

    def has_room(self) -> bool:
        # Enough for a worker to have its next job when it ends one, and for a cluster of none to start its first.
        return self._alone is None and len(self._tasks) < 2 * max(sum(self._answers.threads().values()), 1)

    def submit(self, task: Task) -> None:
        self._start(task, "")

    def busy(self) -> bool:
        return bool(self._tasks or self._suspects)

    def next(self) -> tuple[Job, Outcome]:
        while True:
            if not self._tasks:
                self._try_alone()
            future = self._answers.next()
            task = self._tasks.pop(future)
            self._rows.end(task.job)
            was_alone = future is self._alone
            self._alone = None
            error = self._answers.error(future)
            if error is None:
                return task.job, self._answers.result(future)
            if not isinstance(error, KilledWorker):
                raise error
            if was_alone:
                return task.job, _died()
            logger.warning("%s: the workers that had it died; it is tried again alone", task.job.name)
            self._suspects.append(task)

    def close(self) -> None:
        self._rows.close()
        self._answers.cancel(self._tasks)

    def _try_alone(self) -> None:
        # Of several Dask may give two to one worker, while another starts again.
        self._alone = self._start(self._suspects.pop(0), "-alone")

    def _start(self, task: Task, how: str) -> Future:
        place = hashlib.sha1(task.url.encode(), usedforsecurity=False).hexdigest()[:8]
        key = f"geodino-{place}-{task.job.id}-{task.attempt}{how}"
        self._rows.begin(task.job)
        how_often_s = self._rows.pause_s(len(self._answers.threads()))
        future = self._answers.submit(
            work_afar, self._work, task, self._rows.topic, how_often_s,
            key=key, pure=False, resources=self._resources or None,
        )  # fmt: skip
        self._tasks[future] = task
        return future


def _died() -> Outcome:
    sentence = "every worker that ran it died, and it alone: give workers more memory, or leave it out"
    return Outcome(False, {"cause": DIED, "error": sentence, "seconds": 0.0})
