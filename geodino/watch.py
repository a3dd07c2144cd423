"""How a run tells what it is doing: bars with the time left on a terminal, plain lines in a log, or nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

Fact = str | int | float | bool | None
"""What an event of a log may say."""

# A log file gets a line at each twentieth of a stage, or every half minute where that is longer.
_PLAIN_STEPS = 20
_PLAIN_PAUSE_S = 30.0
# Where nothing is done for as long, a log file is told that the run still lives.
REMINDER_S = 60.0


class Watch(Protocol):
    """Somebody who watches a run.

    `begin` starts a stage of so many bands, jobs or the like; `advance` says how many are done and, where ground is
    mapped, how many hectares of it in this stage by now. `event` is for logs that machines read. `part` gives the watch
    of one job of many: its stages are a row below, its notes are not said, and its warnings name it.
    """

    def note(self, sentence: str) -> None: ...
    def warn(self, sentence: str) -> None: ...
    def begin(self, title: str, total: int) -> None: ...
    def advance(self, done: int, *, hectares: float = 0.0) -> None: ...
    def event(self, name: str, facts: Mapping[str, Fact]) -> None: ...
    def part(self, name: str) -> AbstractContextManager[Watch]: ...


class Silent:
    """Shows nothing."""

    def note(self, sentence: str) -> None: ...

    def warn(self, sentence: str) -> None: ...

    def begin(self, title: str, total: int) -> None: ...

    def advance(self, done: int, *, hectares: float = 0.0) -> None: ...

    def event(self, name: str, facts: Mapping[str, Fact]) -> None: ...

    def part(self, name: str) -> AbstractContextManager[Watch]:
        return nullcontext(self)


class Stage:
    """How far a stage is, and how fast it goes on.

    What was done at its first word counts for no speed: of a run that is gone on with that was done before. A stage
    that says so late starts its clock late.
    """

    def __init__(self, title: str, total: int) -> None:
        self.title, self.total = title, total
        self.done, self.hectares = 0, 0.0
        self._first: tuple[int, float, float] | None = None
        self._began = time.monotonic()

    def advance(self, done: int, hectares: float) -> None:
        self.done, self.hectares = done, hectares
        if self._first is None:
            self._first = done, hectares, time.monotonic()

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self._began

    def per_s(self) -> float | None:
        """Bands, jobs or the like a second; None where nothing is known yet."""
        return self._speed(lambda first: self.done - first[0])

    def km2_h(self) -> float | None:
        """Square kilometres mapped an hour; None where no ground is."""
        hectares_s = self._speed(lambda first: self.hectares - first[1])
        return None if hectares_s is None else hectares_s * 36.0

    def left_s(self) -> float | None:
        """Seconds until its end, at the speed so far."""
        per_s = self.per_s()
        return None if per_s is None else (self.total - self.done) / per_s

    def facts(self) -> dict[str, Fact]:
        """All of this that is known, to four digits."""
        facts: dict[str, Fact] = {"stage": self.title, "done": self.done, "total": self.total}
        numbers = {"seconds": self.seconds, "per_s": self.per_s(), "km2_h": self.km2_h(), "left_s": self.left_s()}
        return facts | {name: float(f"{value:.4g}") for name, value in numbers.items() if value is not None}

    def pace(self) -> str:
        """The speed for people: `410 km2/h, 3 h 20 min left`; empty where nothing is known."""
        km2_h, left_s = self.km2_h(), self.left_s()
        parts = [] if km2_h is None else [f"{float(f'{km2_h:.3g}'):,g} km2/h"]
        if self.done < self.total and left_s is not None:
            parts.append(f"{duration(left_s)} left")
        return ", ".join(parts)

    def _speed(self, gained: Callable[[tuple[int, float, float]], float]) -> float | None:
        if self._first is None or gained(self._first) <= 0:
            return None
        return gained(self._first) / max(time.monotonic() - self._first[2], 1e-9)


class PlainWatch:
    """Lines of text: for log files, batch systems and pipes."""

    def __init__(self, stream: TextIO | None = None, *, quiet: bool = False) -> None:
        self._stream = stream or sys.stderr
        self._quiet = quiet
        self._stage = Stage("", 0)
        self._said_at, self._said_share = 0.0, 0.0

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
        self._stage = Stage(title, total)
        self._said_at, self._said_share = time.monotonic(), 0.0

    def advance(self, done: int, *, hectares: float = 0.0) -> None:
        self._stage.advance(done, hectares)
        share, now = done / max(self._stage.total, 1), time.monotonic()
        step = share - self._said_share >= 1 / _PLAIN_STEPS and now - self._said_at >= _PLAIN_PAUSE_S / 10
        if done >= self._stage.total or step or now - self._said_at >= _PLAIN_PAUSE_S:
            self._say()

    def event(self, name: str, facts: Mapping[str, Fact]) -> None: ...

    def part(self, name: str) -> AbstractContextManager[Watch]:
        return nullcontext(_Part(self, name))

    def remind(self) -> None:
        """Say where the stage is, where nothing was said of it for a while."""
        if (
            self._stage.title
            and time.monotonic() - self._said_at >= REMINDER_S
            and self._stage.done < self._stage.total
        ):
            self._say()

    def _say(self) -> None:
        stage, now = self._stage, time.monotonic()
        share = stage.done / max(stage.total, 1)
        self._said_at, self._said_share = now, share
        took = f"in {duration(stage.seconds)}" if stage.done >= stage.total else ""
        tail = [part for part in (stage.pace(), f"{size(memory())} of memory" if not took else "") if part]
        said = f"{stage.title}: {stage.done} of {stage.total} ({share:.0%})"
        self.note(" ".join([said, took]).strip() + "".join(f", {part}" for part in tail))


class _Part(Silent):
    """One job of many in plain text: its warnings alone are said."""

    def __init__(self, whole: Watch, name: str) -> None:
        self._whole, self._name = whole, name

    def warn(self, sentence: str) -> None:
        self._whole.warn(f"{self._name}: {sentence}")


class RichWatch:
    """Bars with the time left, on a terminal: one for what is watched, and one for each of its parts under way."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self._console = Console(stderr=True, highlight=False)
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[pace]}", markup=False),
            console=self._console,
        )
        self._row = _Row(self._progress, "")

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
        self._row.begin(title, total)

    def advance(self, done: int, *, hectares: float = 0.0) -> None:
        self._row.advance(done, hectares)

    def event(self, name: str, facts: Mapping[str, Fact]) -> None: ...

    @contextmanager
    def part(self, name: str) -> Iterator[Watch]:
        row = _Row(self._progress, f"  {name} ")
        try:
            yield _RichPart(self, name, row)
        finally:
            row.end()


class _Row:
    """A bar, there while its stage is; each stage has its own clock."""

    def __init__(self, progress: Progress, before: str) -> None:
        self._progress, self._before = progress, before
        self._task: TaskID | None = None
        self._stage = Stage("", 0)

    def begin(self, title: str, total: int) -> None:
        self.end()
        self._stage = Stage(title, total)
        self._task = self._progress.add_task(f"{self._before}{title}", total=total, pace="")

    def advance(self, done: int, hectares: float) -> None:
        self._stage.advance(done, hectares)
        if self._task is not None:
            self._progress.update(self._task, completed=done, pace=self._stage.pace())

    def end(self) -> None:
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._task = None


class _RichPart(_Part):
    """One job of many on a terminal: a row below the others, and its warnings."""

    def __init__(self, whole: RichWatch, name: str, row: _Row) -> None:
        super().__init__(whole, name)
        self._row = row

    def begin(self, title: str, total: int) -> None:
        self._row.begin(title, total)

    def advance(self, done: int, *, hectares: float = 0.0) -> None:
        self._row.advance(done, hectares)


def memory() -> int:
    """Bytes of memory that this process has."""
    import psutil

    return int(psutil.Process().memory_info().rss)


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
