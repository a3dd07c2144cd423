"""Logs that machines read: a JSON object a line, for a run, each of its jobs and bands, and its speed every minute."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from functools import partial

from geodino.errors import OutputError
from geodino.redaction import without_secrets
from geodino.watch import REMINDER_S, Fact, PlainWatch, Stage, Watch, memory


class JsonLines(logging.Handler):
    """Writes events, and what geodino's modules log, as a JSON object a line.

    Every line has `time` (UTC), `level`, `event` and `run`. What is said in words is in `message`; of what a module
    logs, event `log`, its name is in `logger`.

    Parameters
    ----------
    write
        Takes a line.
    run
        What the run is called.
    """

    def __init__(self, write: Callable[[str], object], run: str) -> None:
        super().__init__()
        self._write, self._run, self._broken = write, run, False

    def emit(self, record: logging.LogRecord) -> None:
        self.write(record.levelname.lower(), "log", {"logger": record.name, "message": record.getMessage()})

    def write(self, level: str, event: str, facts: Mapping[str, Fact]) -> None:
        """One line; a disk that is full ends the log, and no run."""
        line: dict[str, Fact] = {"time": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%fZ}", "level": level, "event": event}
        line |= {"run": self._run}
        line |= {name: without_secrets(value) if isinstance(value, str) else value for name, value in facts.items()}
        self.acquire()
        try:
            if not self._broken:
                self._write(json.dumps(line) + "\n")
        except OSError as error:
            self._broken = True
            print(f"warning: the log cannot be written any more: {error}", file=sys.stderr)
        finally:
            self.release()


class Logged:
    """A watch that passes on what it is told, and writes it as events: note, warning, begin, end, metrics.

    Parameters
    ----------
    inner
        Whom to pass it on to.
    lines
        Where to write; None: nowhere.
    about
        What every event says, such as its job.
    """

    def __init__(self, inner: Watch, lines: JsonLines | None, about: Mapping[str, Fact]) -> None:
        self._inner, self._lines, self._about = inner, lines, about
        self._stage: Stage | None = None

    def note(self, sentence: str) -> None:
        self._inner.note(sentence)
        self._write("note", {"message": sentence})

    def warn(self, sentence: str) -> None:
        self._inner.warn(sentence)
        self._write("warning", {"message": sentence}, level="warning")

    def begin(self, title: str, total: int) -> None:
        self._inner.begin(title, total)
        self._stage = Stage(title, total)
        self._write("begin", {"stage": title, "total": total})

    def advance(self, done: int, *, hectares: float = 0.0) -> None:
        self._inner.advance(done, hectares=hectares)
        if self._stage is None:
            return
        before = self._stage.done
        self._stage.advance(done, hectares)
        if before < self._stage.total <= done:
            self._write("end", self._stage.facts())

    def event(self, name: str, facts: Mapping[str, Fact]) -> None:
        self._inner.event(name, facts)
        self._write(name, facts)

    @contextmanager
    def part(self, name: str) -> Iterator[Watch]:
        with self._inner.part(name) as inner:
            yield Logged(inner, self._lines, {**self._about, "job": name})

    def measure(self) -> None:
        """Write where the stage is and how fast it goes on, and the memory of this process."""
        if isinstance(self._inner, PlainWatch):
            self._inner.remind()
        if self._stage is not None and self._stage.done < self._stage.total:
            self._write("metrics", {**self._stage.facts(), "memory_mib": memory() // 2**20})

    def _write(self, event: str, facts: Mapping[str, Fact], *, level: str = "info") -> None:
        if self._lines is not None:
            self._lines.write(level, event, {**self._about, **facts})


@contextmanager
def logged(inner: Watch, where: str | None, run: str, *, every_s: float = REMINDER_S) -> Iterator[Watch]:
    """A watch that also logs: to a file, which is added to, to standard output for `-`, or nowhere.

    Parameters
    ----------
    inner
        Shows people the same.
    where
        Path of the log, `-` or None.
    run
        What the run is called in each line.
    every_s
        Seconds between two lines of metrics.

    Raises
    ------
    OutputError
        The file cannot be written.
    """
    with ExitStack() as stack:
        lines = None
        if where is not None:
            lines = JsonLines(stack.enter_context(_opened(where)), run)
            stack.enter_context(_listening(lines))
        watch = Logged(inner, lines, {})
        stack.enter_context(_repeated(watch, every_s))
        yield watch


@contextmanager
def _opened(where: str) -> Iterator[Callable[[str], object]]:
    if where == "-":
        yield partial(print, end="", flush=True)
        return
    try:
        # No buffer: each line is there at once, whole among those of other processes, and nothing is left to be written
        # to a full disk at the end.
        file = os.open(where, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    except OSError as error:
        raise OutputError(f"the log {where} cannot be written: {error.strerror}") from error
    try:
        yield lambda line: os.write(file, line.encode())
    finally:
        os.close(file)


@contextmanager
def _listening(lines: JsonLines) -> Iterator[None]:
    """Have what geodino's modules log written too, as much as is shown."""
    logger = logging.getLogger("geodino")
    logger.addHandler(lines)
    try:
        yield
    finally:
        logger.removeHandler(lines)


@contextmanager
def _repeated(watch: Logged, every_s: float) -> Iterator[None]:
    ended = threading.Event()

    def repeat() -> None:
        while not ended.wait(every_s):
            watch.measure()

    thread = threading.Thread(target=repeat, name="geodino-metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
