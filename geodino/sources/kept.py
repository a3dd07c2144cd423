"""What several threads need more than once: made once, kept while there is room."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Kept(Generic[Key, Value]):
    """Values by key, each made by the first thread that asks while the others wait; the least used one makes room.

    Parameters
    ----------
    limit
        How much is kept, as `size` counts; what is being made or used comes on top.
    size
        Of a value, such as its bytes; always the same for the same value.
    """

    def __init__(self, limit: int, size: Callable[[Value], int]) -> None:
        self._limit, self._size = limit, size
        self._lock = threading.Lock()
        self._held: OrderedDict[Key, Future[Value]] = OrderedDict()
        self._bytes = 0

    def get(self, key: Key, make: Callable[[], Value]) -> Value:
        """The value of a key; raises what `make` raises, and keeps nothing then."""
        return self.get_all([key], lambda keys: [make()])[0]

    def get_all(self, keys: Sequence[Key], make: Callable[[list[Key]], list[Value]]) -> list[Value]:
        """The values of keys; `make` is given those that nobody has made or is making, and must not ask here itself."""
        mine = []
        with self._lock:
            futures = []
            for key in keys:
                future = self._held.get(key)
                if future is None:
                    future = self._held[key] = Future()
                    mine.append((key, future))
                else:
                    self._held.move_to_end(key)
                futures.append(future)
        if mine:
            self._make(mine, make)
        return [future.result() for future in futures]

    def clear(self) -> None:
        """Keep nothing; what is being made goes on."""
        with self._lock:
            self._held.clear()
            self._bytes = 0

    def _make(self, mine: list[tuple[Key, Future[Value]]], make: Callable[[list[Key]], list[Value]]) -> None:
        try:
            values = make([key for key, _ in mine])
        except BaseException as error:  # noqa: BLE001 - whoever waits must hear of anything
            with self._lock:
                for key, future in mine:
                    if self._held.get(key) is future:
                        del self._held[key]
            for _, future in mine:
                future.set_exception(error)
            return
        for (_, future), value in zip(mine, values, strict=True):
            future.set_result(value)
        with self._lock:
            self._bytes += sum(
                self._size(value)
                for (key, future), value in zip(mine, values, strict=True)
                if self._held.get(key) is future
            )
            for old in list(self._held):
                if self._bytes <= self._limit:
                    break
                if self._held[old].done():
                    self._bytes -= self._size(self._held.pop(old).result())
