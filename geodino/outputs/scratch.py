"""A folder of this machine for what a run writes before it is sent elsewhere, removed even after a run that was killed.

It stands in the temporary folder (TMPDIR) beside a file that its process has locked for as long as it lives.
"""

from __future__ import annotations

import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from geodino.errors import OutputError

_PREFIX = "geodino-out-"


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A new folder, removed at the end of the block; those of processes that are gone are removed first.

    Raises
    ------
    OutputError
        The temporary folder cannot be written.
    """
    home = Path(tempfile.gettempdir())
    for old in home.glob(f"{_PREFIX}*"):
        if old.is_dir():
            _remove_if_left(old)
    folder = home / f"{_PREFIX}{secrets.token_hex(8)}"
    lock = FileLock(_lock_of(folder))
    try:
        lock.acquire(timeout=0)
        folder.mkdir(mode=0o700)
    except OSError as error:
        lock.release()
        raise OutputError(
            f"cannot write to {home}: {error.strerror or error}: set TMPDIR to a folder with room"
        ) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _lock_of(folder).unlink(missing_ok=True)
        lock.release()


def _lock_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")


def _remove_if_left(folder: Path) -> None:
    try:
        # Made before its folder and removed after it, so whose lock is free is dead; another user's is not ours to try.
        with FileLock(_lock_of(folder), timeout=0):
            shutil.rmtree(folder, ignore_errors=True)
            _lock_of(folder).unlink(missing_ok=True)
    except (Timeout, OSError):
        return
