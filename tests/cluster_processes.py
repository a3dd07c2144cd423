"""Schedulers and workers in processes of their own, for tests."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from distributed import Client

# As in an environment where geodino is not installed.
_STRANGER = (
    "import sys; sys.modules['geodino'] = None; sys.argv[0] = 'dask'; from distributed.cli.{0} import main; main()"
)


@contextmanager
def running(
    command: str, *options: str, has_geodino: bool = True, cwd: Path | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A scheduler or worker, ended with the context."""
    program = ["-m", f"distributed.cli.{command}"] if has_geodino else ["-c", _STRANGER.format(command)]
    process = subprocess.Popen([sys.executable, *program, *options], cwd=cwd, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(20)


@contextmanager
def running_scheduler(folder: Path, *, has_geodino: bool = True) -> Iterator[Path]:
    """A scheduler's file."""
    file = folder / "scheduler.json"
    options = ("--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(file))
    with running("dask_scheduler", *options, has_geodino=has_geodino):
        until(file.is_file)
        yield file


def running_worker(
    file: Path, *options: str, has_geodino: bool = True, cwd: Path | None = None
) -> AbstractContextManager[subprocess.Popen[bytes]]:
    """A worker of the scheduler with that file, which takes one task at a time unless the options say other."""
    given = ("--scheduler-file", str(file), "--nthreads", "1", "--no-dashboard", *options)
    return running("dask_worker", *given, has_geodino=has_geodino, cwd=cwd)


def client_of_one_worker(folder: Path) -> Client:
    """A client, to be closed, with a worker of its own in a thread of this process."""
    return Client(
        processes=False, n_workers=1, threads_per_worker=1, dashboard_address="127.0.0.1:0", local_directory=folder,
        set_as_default=False,
    )  # fmt: skip


def until_workers(file: Path, number: int) -> None:
    """Wait for so many workers."""
    with Client(scheduler_file=str(file), set_as_default=False) as client:
        client.wait_for_workers(number, timeout=30)


def until(true: Callable[[], object], *, seconds: float = 20) -> None:
    """Wait for something to be true."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "nothing came of it"
        time.sleep(0.05)
