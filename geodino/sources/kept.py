"""What several threads need more than once: made once, kept while there is room."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
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
        with self._lock:
            future = self._held.get(key)
            mine = future is None
            if future is None:
                future = self._held[key] = Future()
            else:
                self._held.move_to_end(key)
        if mine:
            self._make(key, make, future)
        return future.result()

    def clear(self) -> None:
        """Keep nothing; what is being made goes on."""
        with self._lock:
            self._held.clear()
            self._bytes = 0

    def _make(self, key: Key, make: Callable[[], Value], future: Future[Value]) -> None:
        try:
            value = make()
        except BaseException as error:  # noqa: BLE001 - whoever waits must hear of anything
            with self._lock:
                if self._held.get(key) is future:
                    del self._held[key]
            future.set_exception(error)
            return
        future.set_result(value)
        with self._lock:
            if self._held.get(key) is not future:
                return
            self._bytes += self._size(value)
            for old in list(self._held):
                if self._bytes <= self._limit:
                    break
                if self._held[old].done():
                    self._bytes -= self._size(self._held.pop(old).result())
