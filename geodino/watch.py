"""How a run tells what it is doing: a bar with the time left on a terminal, plain lines in a log, or nothing."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Protocol, TextIO

# A log file gets a line at each twentieth of a stage, or every half minute where that is longer.
_PLAIN_STEPS = 20
_PLAIN_PAUSE_S = 30.0


class Watch(Protocol):
    """Somebody who watches a run."""

    def note(self, sentence: str) -> None: ...
    def warn(self, sentence: str) -> None: ...
    def begin(self, title: str, total: int) -> None: ...
    def advance(self, done: int) -> None: ...


class Silent:
    """Shows nothing."""

    def note(self, sentence: str) -> None: ...

    def warn(self, sentence: str) -> None: ...

    def begin(self, title: str, total: int) -> None: ...

    def advance(self, done: int) -> None: ...


class PlainWatch:
    """Lines of text: for log files, batch systems and pipes."""

    def __init__(self, stream: TextIO | None = None, *, quiet: bool = False) -> None:
        self._stream = stream or sys.stderr
        self._quiet = quiet
        self._title, self._total, self._began, self._said_at, self._said_share = "", 0, 0.0, 0.0, 0.0

    def __enter__(self) -> PlainWatch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def note(self, sentence: str) -> None:
        if not self._quiet:
            print(sentence, file=self._stream, flush=True)

    def warn(self, sentence: str) -> None:
        print(f"warning: {sentence}", file=self._stream, flush=True)

    def begin(self, title: str, total: int) -> None:
        self._title, self._total = title, total
        self._began = self._said_at = time.monotonic()
        self._said_share = 0.0

    def advance(self, done: int) -> None:
        share, now = done / max(self._total, 1), time.monotonic()
        step = share - self._said_share >= 1 / _PLAIN_STEPS and now - self._said_at >= _PLAIN_PAUSE_S / 10
        if done >= self._total or step or now - self._said_at >= _PLAIN_PAUSE_S:
            self._said_at, self._said_share = now, share
            left = (now - self._began) * (1 - share) / share if share else 0.0
            tail = f", {duration(left)} left" if done < self._total else f" in {duration(now - self._began)}"
            self.note(f"{self._title}: {done} of {self._total} ({share:.0%}){tail}")


class RichWatch:
    """A bar with the time left, on a terminal."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
        from rich.progress import TimeRemainingColumn as Remaining

        self._console = Console(stderr=True, highlight=False)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            Remaining(),
            console=self._console,
        )
        self._task = self._progress.add_task("", total=None, visible=False)

    def __enter__(self) -> RichWatch:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def note(self, sentence: str) -> None:
        self._console.print(sentence, markup=False, soft_wrap=True)

    def warn(self, sentence: str) -> None:
        self._console.print(f"warning: {sentence}", style="yellow", markup=False, soft_wrap=True)

    def begin(self, title: str, total: int) -> None:
        self._progress.remove_task(self._task)
        self._task = self._progress.add_task(title, total=total)

    def advance(self, done: int) -> None:
        self._progress.update(self._task, completed=done)


def count(number: int, thing: str) -> str:
    """A number of things for people: `1 scene`, `12,000 windows`."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """A length of time for people: `48 s`, `12 min`, `3 h 20 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def size(bytes_: float) -> str:
    """An amount of bytes for people, in powers of 1024: `3.1 MiB`."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if bytes_ < 1024 or unit == "GiB":
            return f"{bytes_:.0f} {unit}" if unit == "bytes" or bytes_ >= 100 else f"{bytes_:.1f} {unit}"
        bytes_ /= 1024
    raise AssertionError
