"""One run at a time in a folder or a bucket, and none for ever where one is killed.

A folder is locked by the system, which lets go when a process ends. A bucket has objects `00000001`, `00000002` and so
on, each made by one process (`Store.create`); whose is the highest may write. It says a new word every few seconds. Who
finds the word unchanged for a while, by its own clock that only goes forward, takes the next number: no two machines'
clocks are compared. The highest object is never removed, only marked as given back, so that no number is given twice.

A process that was stopped for so long that another took its place learns of that when it next asks, and writes no
more; what it had on its way just then may still arrive.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import socket
import threading
import time
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from geodino.errors import InUseError, OutputError
from geodino.stores import Store

logger = logging.getLogger(__name__)

LOCK_NAME = ".lock"
# Beside the lock, not in it: filelock before 3.25 empties the lock file when a second process asks for it.
HOLDER_NAME = ".lock-holder.json"

BEAT_S = 5.0
# Without a new word for so long, a process is taken for dead.
LEASE_S = 30.0
LOOK_S = 1.0


@dataclass(frozen=True)
class Word:
    """What a holder says: who it is, how often it has spoken, and whether it has given the place back."""

    token: str
    pid: int
    host: str
    started: str
    beat: int = 0
    released: bool = False

    @classmethod
    def first(cls) -> Word:
        started = datetime.now(UTC).isoformat(timespec="seconds")
        return cls(secrets.token_hex(8), os.getpid(), socket.gethostname(), started)

    @classmethod
    def parsed(cls, text: bytes) -> Word:
        """From JSON; ValueError where it is no such word."""
        try:
            return cls(**json.loads(text))
        except TypeError as error:
            raise ValueError(str(error)) from error

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.started}"

    def as_bytes(self) -> bytes:
        return json.dumps(asdict(self)).encode()


class FolderLock:
    """The right to write to a folder, which is made where it does not exist."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._lock = folder, FileLock(folder / LOCK_NAME)

    def acquire(self) -> None:
        """Take it; InUseError where another process holds it, OutputError where it cannot be made or written."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
            (self._folder / HOLDER_NAME).write_bytes(Word.first().as_bytes())
        except Timeout:
            raise InUseError(
                f"{self._folder} is in use by {self._holder()}: wait for it or choose another --out"
            ) from None
        except OSError as error:
            self._lock.release()
            raise OutputError(
                f"cannot write to {self._folder}: {error.strerror or error}: choose another --out"
            ) from error

    def confirm(self) -> None:
        """The system has seen to it."""

    def release(self) -> None:
        """Give it back."""
        # The lock file itself stays, and so does a folder that a failed run made. A run that has opened the file and
        # not yet locked it would, were it removed now, lock a file without a name, and the next run another of this
        # name. Newer filelock notices (no links are left), 3.15 does not; and over NFS what is removed keeps a link.
        try:
            (self._folder / HOLDER_NAME).unlink(missing_ok=True)
        finally:
            self._lock.release()

    def _holder(self) -> str:
        try:
            return str(Word.parsed((self._folder / HOLDER_NAME).read_bytes()))
        except (OSError, ValueError):
            return "another process"  # it has the lock but has not come to write its name


class BucketLock:
    """The right to write to a bucket's folder.

    Parameters
    ----------
    place
        What is written to, for messages.
    store
        Of the lock's own objects.
    """

    def __init__(self, place: Store, store: Store) -> None:
        self._place, self._store = place, store
        self._number, self._word = 0, Word.first()
        self._stop = threading.Event()
        self._speaking = threading.Lock()
        self._thread: threading.Thread | None = None

    def acquire(self) -> None:
        """Take it; InUseError where another process holds it, known after a few seconds.

        A holder that was killed is waited for, for LEASE_S at most.
        """
        self._word = Word.first()
        first, since = self._highest(), time.monotonic()
        number, word = first
        if word is not None and not word.released:
            logger.warning("%s: looking for up to %g s whether %s still writes there", self._place, LEASE_S, word)
        while not self._take_next(number, word, since):
            number, word = self._highest()
            if (number, word) != first and not (word is None or word.released):
                raise InUseError(f"{self._place} is in use by {word}: wait for it or choose another --out")
        self._stop.clear()
        self._thread = threading.Thread(target=self._go_on_speaking, name="geodino-lock", daemon=True)
        self._thread.start()

    def confirm(self) -> None:
        """Raise InUseError where another process has taken the place since."""
        number = self._highest_number()
        if number != self._number:
            raise InUseError(
                f"{self._place} was taken over by {self._read(number)}, because nothing was heard of this run for "
                f"{LEASE_S:g} s: nothing more is written; run it again"
            )

    def release(self) -> None:
        """Give it back; where the store does not answer, the next run waits for LEASE_S."""
        if self._thread is None:
            return
        self._stop.set()
        self._thread.join()
        self._thread = None
        try:
            self._speak(released=True)
        except OutputError as error:
            logger.warning("%s", error)

    def _take_next(self, number: int, word: Word | None, since: float) -> bool:
        """Whether the number after this one became ours, if its holder is gone; waits a little where it may not be."""
        if not (word is None or word.released or time.monotonic() - since > LEASE_S):
            time.sleep(LOOK_S)
            return False
        key = _key(number + 1)
        # Where the answer to a create was lost, its second attempt finds the object that the first one made.
        if not self._store.create(key, self._word.as_bytes()) and self._read(number + 1) != self._word:
            return False
        self._number = number + 1
        if self._highest_number() != self._number:
            self._store.delete(key)
            return False
        for entry in self._store.entries_in():
            if entry.key < key:
                self._store.delete(entry.key)
        return True

    def _go_on_speaking(self) -> None:
        while not self._stop.wait(BEAT_S):
            try:
                self._speak()
            except OutputError as error:
                logger.warning("%s", error)

    def _speak(self, *, released: bool = False) -> None:
        with self._speaking:
            self._word = replace(self._word, beat=self._word.beat + 1, released=released)
            self._store.put(_key(self._number), self._word.as_bytes())

    def _highest(self) -> tuple[int, Word | None]:
        number = self._highest_number()
        return number, self._read(number) if number else None

    def _highest_number(self) -> int:
        return max((int(entry.key) for entry in self._store.entries_in() if entry.key.isdecimal()), default=0)

    def _read(self, number: int) -> Word | None:
        found = self._store.get(_key(number))
        try:
            return None if found is None else Word.parsed(found)
        except ValueError as error:
            raise OutputError(f"{self._store}/{_key(number)} is no lock of ours ({error}): remove it") from error


def _key(number: int) -> str:
    return f"{number:08}"
