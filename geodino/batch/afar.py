"""What a job on a worker tells whoever watches the batch: its stages as a row of its own, its warnings and events."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress

from distributed import Client, get_worker

from geodino.batch.jobs import Job
from geodino.batch.lanes import Work
from geodino.batch.work import Outcome, Task
from geodino.watch import Fact, Silent, Watch

# All workers together tell so often a second how far they are: the scheduler passes it on, and nobody reads faster.
_TOLD_A_S = 10.0
_LEAST_PAUSE_S = 1.0


class Rows:
    """The jobs under way as parts of a watch, as far as their workers have told of them.

    Dask brings what they tell in a thread of its own.
    """

    def __init__(self, client: Client, watch: Watch) -> None:
        self._client, self._watch = client, watch
        self.topic = f"geodino-jobs-{client.id}"
        self._jobs: dict[str, Job] = {}
        self._parts: dict[str, tuple[ExitStack, Watch]] = {}
        self._lock = threading.Lock()
        client.subscribe_topic(self.topic, lambda event: self._hear(*event[1]))

    def begin(self, job: Job) -> None:
        """A job was handed in: from now on it is heard."""
        with self._lock:
            self._jobs[job.id] = job

    def end(self, job: Job) -> None:
        """A job has ended: what it told may still be on its way."""
        with self._lock:
            self._jobs.pop(job.id, None)
            stack, _ = self._parts.pop(job.id, (ExitStack(), None))
            stack.close()

    def close(self) -> None:
        """Hear no more."""
        for job in list(self._jobs.values()):
            self.end(job)
        with suppress(ValueError):
            self._client.unsubscribe_topic(self.topic)

    def pause_s(self, workers: int) -> float:
        """After how many seconds a job may tell again how far it is."""
        return max(_LEAST_PAUSE_S, workers / _TOLD_A_S)

    def _hear(self, job_id: str, what: str, said: str, number: int, hectares: float, facts: dict[str, Fact]) -> None:
        with self._lock:
            job = self._jobs.get(job_id)
            if job is None:
                return
            if job_id not in self._parts:
                stack = ExitStack()
                self._parts[job_id] = stack, stack.enter_context(self._watch.part(job.name))
            _, part = self._parts[job_id]
            if what == "warn":
                part.warn(said)
            elif what == "begin":
                part.begin(said, number)
            elif what == "event":
                part.event(said, facts)
            else:
                part.advance(number, hectares=hectares)


class _Afar(Silent):
    """The watch of a job on a worker."""

    def __init__(self, topic: str, job_id: str, pause_s: float) -> None:
        self._worker = get_worker()
        self._topic, self._job_id, self._pause_s = topic, job_id, pause_s
        self._total, self._told_at = 0, 0.0

    def warn(self, sentence: str) -> None:
        self._tell("warn", said=sentence)

    def begin(self, title: str, total: int) -> None:
        self._total = total
        self._tell("begin", said=title, number=total)

    def advance(self, done: int, *, hectares: float = 0.0) -> None:
        if done >= self._total or time.monotonic() - self._told_at >= self._pause_s:
            self._told_at = time.monotonic()
            self._tell("advance", number=done, hectares=hectares)

    def event(self, name: str, facts: Mapping[str, Fact]) -> None:
        self._tell("event", said=name, facts=facts)

    def _tell(
        self,
        what: str,
        *,
        said: str = "",
        number: int = 0,
        hectares: float = 0.0,
        facts: Mapping[str, Fact] | None = None,
    ) -> None:
        self._worker.log_event(self._topic, [self._job_id, what, said, number, hectares, dict(facts or {})])


def work_afar(work: Work, task: Task, topic: str, pause_s: float) -> Outcome:
    """On a worker: do a job, and tell of it."""
    return work(task, _Afar(topic, task.job.id, pause_s))
