"""Who does the jobs: this process, one after the other, or others that it hands them to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from geodino.batch.jobs import Job
from geodino.batch.work import Outcome, Task
from geodino.watch import Watch

Work = Callable[..., Outcome]
"""What is done for a task: `work(task)`, or `work(task, watch)` where somebody watches."""


class Lanes(Protocol):
    """Where jobs are handed in, and come out again in any order."""

    def has_room(self) -> bool:
        """Whether another job may be handed in."""

    def submit(self, task: Task) -> None: ...

    def busy(self) -> bool:
        """Whether any job is under way."""

    def next(self) -> tuple[Job, Outcome]:
        """Wait for a job to end: which, and how."""

    def close(self) -> None:
        """Let go of what is under way."""


class Here:
    """This process, a job at a time."""

    def __init__(self, work: Work, watch: Watch) -> None:
        self._work, self._watch = work, watch
        self._task: Task | None = None

    def has_room(self) -> bool:
        return self._task is None

    def submit(self, task: Task) -> None:
        self._task = task

    def busy(self) -> bool:
        return self._task is not None

    def next(self) -> tuple[Job, Outcome]:
        assert self._task is not None
        task, self._task = self._task, None
        with self._watch.part(task.job.name) as part:
            return task.job, self._work(task, part)

    def close(self) -> None: ...
