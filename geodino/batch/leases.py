"""Who is alive: each process of a batch renews one small object, and is dead when that has not changed for long.

How long is measured by whoever looks, on its own monotonic clock: two machines' clocks are never compared, and one that
is set back does no harm. A process holds all its jobs by one object, so that a thousand jobs cost no more to hold.
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
from types import TracebackType

from geodino.errors import OutputError
from geodino.stores import Store

logger = logging.getLogger(__name__)

OWNERS = ".batch/owners"
# Four renewals fit into a lease, so that three may be lost.
_BEATS_A_LEASE = 4


class Pulse:
    """This process's sign of life in a batch, from entering to leaving; a context manager.

    Parameters
    ----------
    lease_s
        How long the others wait for a sign before they take over this process's jobs.
    """

    def __init__(self, store: Store, lease_s: float) -> None:
        self.owner = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
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
        self._store.put(_key(self.owner), json.dumps({"owner": self.owner, "beats": beats}).encode())


class Pulses:
    """The others' signs of life, as this process sees them."""

    def __init__(self, store: Store, lease_s: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._store, self._lease_s, self._clock = store, lease_s, clock
        self._seen: dict[str, tuple[bytes, float]] = {}

    def is_dead(self, owner: str) -> bool:
        """Whether it has ended, or has given no sign for as long as a lease since it was first looked at."""
        sign = self._store.get(_key(owner))
        if sign is None:
            return True
        known = self._seen.get(owner)
        if known is None or known[0] != sign:
            self._seen[owner] = (sign, self._clock())
            return False
        return self._clock() - known[1] > self._lease_s


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


def _key(owner: str) -> str:
    return f"{OWNERS}/{owner}.json"
