"""Who is alive: each process of a batch renews one small object, and is dead when that has not changed for long.

How long is measured by whoever looks, on its own monotonic clock: two machines' clocks are never compared, and one that
is set back does no harm. A process holds all its jobs by one object, so that a thousand jobs cost no more to hold.
The object also says where the process is to be found, so that who runs on the same machine need not wait.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

from geodino.errors import OutputError
from geodino.stores import Store

logger = logging.getLogger(__name__)

OWNERS = ".batch/owners"
# Ten renewals fit into a lease, so that nine may be lost; who has lost one is told of.
_BEATS_A_LEASE, _TOLD_A_LEASE = 10, 8


@dataclass(frozen=True)
class Process:
    """What tells a process apart from all others, for those who see the same processes as it does.

    Attributes
    ----------
    host, boot, space
        The machine's name, its start (`boot_id` of Linux), and the process-id namespace, as containers have their own;
        two processes that agree on all three see each other by number.
    pid, began
        Its number, and when it was given it: clock ticks since the machine's start, which no setting of a clock moves
        (field 22 of proc_pid_stat(5)).
    """

    host: str
    boot: str
    space: str
    pid: int
    began: int

    @classmethod
    def this(cls) -> Process | None:
        """This process; None where the system does not tell, as other systems than Linux."""
        try:
            boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
            space = str(Path("/proc/self/ns/pid").readlink())
            began = _began(os.getpid())
        except (OSError, ValueError, IndexError):
            return None
        return None if began is None else cls(socket.gethostname(), boot, space, os.getpid(), began)

    def is_gone(self, here: Process | None) -> bool:
        """Whether it has certainly ended, as far as the process `here` can see."""
        if here is None or (self.host, self.boot, self.space) != (here.host, here.boot, here.space):
            return False
        try:
            os.kill(self.pid, 0)  # asks whether it is there, and does nothing
            return _began(self.pid) != self.began
        except ProcessLookupError:
            return True
        except (OSError, ValueError, IndexError):
            return False  # another user's, which may be hidden


def _began(pid: int) -> int | None:
    """When a process began, in ticks since the machine's start; None where it has ended and was not yet waited for."""
    # The name, in brackets, may hold blanks and brackets itself.
    after_name = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    return None if after_name[0] in "ZX" else int(after_name[19])


class Pulse:
    """This process's sign of life in a batch, from entering to leaving; a context manager.

    Parameters
    ----------
    lease_s
        How long the others wait for a sign before they take over this process's jobs.
    """

    def __init__(self, store: Store, lease_s: float) -> None:
        self.owner = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        process = Process.this()
        self._process = None if process is None else asdict(process)
        self._store, self._pause_s = store, lease_s / _BEATS_A_LEASE
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="geodino-pulse", daemon=True)

    def __enter__(self) -> Pulse:
        self._beat(0)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._store.delete(_key(self.owner))

    def _renew(self) -> None:
        beats = 0
        while not self._stop.wait(self._pause_s):
            beats += 1
            try:
                self._beat(beats)
            except OutputError as error:
                # The next may pass; if none does, the others take over, which they would do anyway.
                logger.warning("cannot renew the lease: %s", error)

    def _beat(self, beats: int) -> None:
        # The owner's name is random, so that no number of beats is ever another process's.
        said = {"owner": self.owner, "beats": beats, "process": self._process}
        self._store.put(_key(self.owner), json.dumps(said).encode())


class Pulses:
    """The others' signs of life, as this process sees them."""

    def __init__(self, store: Store, lease_s: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._store, self._lease_s, self._clock = store, lease_s, clock
        self._seen: dict[str, tuple[bytes, float]] = {}
        self._here = Process.this()

    def is_dead(self, owner: str) -> bool:
        """Whether it has ended, or has given no sign for as long as a lease since it was first looked at."""
        sign = self._store.get(_key(owner))
        process = None if sign is None else _process_of(sign)
        if sign is None or (process is not None and process.is_gone(self._here)):
            self._seen.pop(owner, None)
            return True
        known = self._seen.get(owner)
        if known is None or known[0] != sign:
            self._seen[owner] = (sign, self._clock())
            return False
        return self._clock() - known[1] > self._lease_s

    def living(self) -> list[str]:
        """The owners that are not known to be dead: as of a first look, all but those of this machine that ended."""
        return [owner for owner in self._owners() if not self.is_dead(owner)]

    def at_work(self, own: str) -> str | None:
        """Another owner that gives a sign of life; None where none does, for which a lease may have to pass."""
        signs = {owner: self._store.get(_key(owner)) for owner in self.living() if owner != own}
        for owner, sign in signs.items():
            while not self.is_dead(owner):
                if self._store.get(_key(owner)) != sign:
                    return owner
                time.sleep(self._lease_s / _BEATS_A_LEASE / 4)
        return None

    def silent_s(self, owner: str) -> float | None:
        """For how long it has given no sign, as of the last look, where that is longer than it should be."""
        known = self._seen.get(owner)
        silent_s = 0.0 if known is None else self._clock() - known[1]
        return silent_s if silent_s > self._lease_s / _TOLD_A_LEASE else None

    def bury(self) -> None:
        """Remove what is left of the dead."""
        for owner in self._owners():
            if self.is_dead(owner):
                self._store.delete(_key(owner))

    def _owners(self) -> list[str]:
        entries = self._store.entries(f"{OWNERS}/")
        return [entry.key.removeprefix(f"{OWNERS}/").removesuffix(".json") for entry in entries]


def named(owner: str) -> str:
    """An owner in words."""
    host, pid, _ = owner.rsplit("-", 2)
    return f"process {pid} on {host}"


@contextmanager
def turn(store: Store, name: str, owner: str, pulses: Pulses, *, pause_s: float) -> Iterator[None]:
    """The block, by one process of the batch at a time; one that dies in it loses its turn.

    Parameters
    ----------
    name
        Of what is done in the block.
    pause_s
        Between two looks at whether the others are done.
    """
    below = f".batch/turns/{name}"
    while True:
        numbers = [int(entry.key.rsplit("/", 1)[-1]) for entry in store.entries(f"{below}/")]
        newest = max(numbers, default=0)
        holder = (store.get(f"{below}/{newest}") or b"").decode()
        # Whoever is through leaves its number without a name.
        if (not holder or pulses.is_dead(holder)) and store.create(f"{below}/{newest + 1}", owner.encode()):
            break
        time.sleep(pause_s)
    try:
        yield
    finally:
        store.put(f"{below}/{newest + 1}", b"")


def _process_of(sign: bytes) -> Process | None:
    """None where it does not say, as those of earlier versions."""
    try:
        return Process(**json.loads(sign)["process"])
    except (ValueError, TypeError, KeyError):
        return None


def _key(owner: str) -> str:
    return f"{OWNERS}/{owner}.json"
