"""Tasks under way on a cluster, each given back when it came to an end; and what may befall the cluster meanwhile."""

from __future__ import annotations

import asyncio
import queue
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from distributed import Client, Future

from geodino.cluster.machines import Machines, cluster_config
from geodino.errors import ClusterError, GeodinoError
from geodino.watch import Watch, duration

Asked = ParamSpec("Asked")
Value = TypeVar("Value")

# What a client meets when its scheduler dies, by what it was at.
_GONE = (OSError, CancelledError, asyncio.CancelledError)
# How long a cluster may be without workers; one from a config may wait in a queue as long as that says.
_WITHOUT_WORKERS_S = 600.0
_LOOK_EVERY_S = 15.0
_COUNT_EVERY_S = 2.0


class Answers:
    """Tasks that were given to a cluster, in the order in which they come to an end.

    Parameters
    ----------
    patience_s
        How long the cluster may be without workers.
    """

    def __init__(self, client: Client, watch: Watch, patience_s: float) -> None:
        self._client, self._watch, self._patience_s = client, watch, patience_s
        self._ended: queue.SimpleQueue[Future] = queue.SimpleQueue()
        self._threads: dict[str, int] = {}
        self._counted_at = -_COUNT_EVERY_S

    def submit(self, function: Callable[..., object], *args: object, **how: object) -> Future:
        """Give a task to the cluster, as `Client.submit` does; ClusterError where the scheduler is gone."""
        with reached(self._client):
            future = self._client.submit(function, *args, **how)
        future.add_done_callback(self._ended.put)
        return future

    def next(self) -> Future:
        """The next task that came to an end.

        Raises
        ------
        ClusterError
            The cluster has been without workers for too long, or its scheduler is gone.
        """
        alone_since: float | None = None
        while True:
            with suppress(queue.Empty):
                return self._ended.get(timeout=_LOOK_EVERY_S)
            if self.threads_now():
                alone_since = None
            elif alone_since is None:
                alone_since = time.monotonic()
                self._watch.warn("no worker is left; waiting for one")
            elif time.monotonic() - alone_since > self._patience_s:
                raise ClusterError(
                    f"no worker came for {duration(self._patience_s)}; start some, and give the same command again"
                )

    def error(self, future: Future) -> BaseException | None:
        """What a task that came to an end raised; ClusterError where the scheduler is gone."""
        # Each question to the scheduler takes a millisecond.
        if future.status == "finished":
            return None
        with reached(self._client):
            if future.status == "cancelled":
                raise CancelledError
            error: BaseException | None = future.exception()
            return error

    def result(self, future: Future) -> Any:
        """What a task without an error gave back; ClusterError where the scheduler is gone and with it the result."""
        with reached(self._client):
            return future.result()

    def threads(self) -> dict[str, int]:
        """Of each worker, asked of the scheduler now and then: it is asked for with every task."""
        if time.monotonic() - self._counted_at > _COUNT_EVERY_S:
            self._threads, self._counted_at = self.threads_now(), time.monotonic()
        return self._threads

    def threads_now(self) -> dict[str, int]:
        """Of each worker; ClusterError where the scheduler is gone."""
        with reached(self._client):
            return dict(self._client.nthreads())

    def cancel(self, futures: Iterable[Future]) -> None:
        """Have nobody do what is still under way."""
        with suppress(*_GONE):
            if self._client.status == "running":
                self._client.cancel(list(futures))


@contextmanager
def reached(client: Client) -> Iterator[None]:
    """ClusterError where the scheduler dies within the block; what tasks raise comes as a GeodinoError."""
    try:
        yield
    except GeodinoError:
        raise
    except _GONE as error:
        raise ClusterError(
            f"the scheduler {client.scheduler.address} is gone; give the same command again to go on"
        ) from error


def patience_s(machines: Machines) -> float:
    """How long a cluster may be without workers."""
    return _WITHOUT_WORKERS_S if machines.config is None else cluster_config(machines.config).wait_s


def errors_that_travel(task: Callable[Asked, Value]) -> Callable[Asked, Value]:
    """A task that raises what geodino raises on purpose by its sentence alone: GDAL's errors cannot be pickled."""

    @wraps(task)
    def told_plainly(*args: Asked.args, **kwargs: Asked.kwargs) -> Value:
        try:
            return task(*args, **kwargs)
        except GeodinoError as error:
            failed = type(error)(str(error))
        # Outside the block above: what is raised within has the error that came before for its context.
        raise failed

    return told_plainly
