"""What each worker holds for the tasks that come to it, such as the model: made there once, not sent with each task."""

from __future__ import annotations

import asyncio
import socket
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import NamedTuple, TypeVar

from distributed import Client, Worker, WorkerPlugin, get_worker

from geodino.errors import GeodinoError

# Where workers that left say why; whoever opened the client passes it on.
TOPIC = "geodino"

Value = TypeVar("Value")


def register(
    client: Client, name: str, make: Callable[[], object], *, resources: Mapping[str, float] | None = None
) -> None:
    """Have every worker make a value once, also those that join or are started again later.

    Parameters
    ----------
    client
        Of the cluster.
    name
        Under which tasks get it; unique to this run, as others may use the same workers.
    make
        Called on each worker, in a thread; sent there by pickle, so it holds a path and not a model. What it gives is
        closed in the end, where it has a `close`. A worker on which
        it raises is not fit: here that is an error, of a worker that joins later a warning, and that worker leaves.
    resources
        What a task takes of a worker: those that offer less get no tasks, and make nothing.

    Raises
    ------
    GeodinoError, OSError
        What `make` raised on a worker, of the same class, with the worker's name.
    RuntimeError
        It raised anything else; holds the traceback.
    """
    present = frozenset(client.scheduler_info(n_workers=-1)["workers"])
    client.register_plugin(_Holder(make, present, dict(resources or {})), name=name)
    said = client.run(_fault, name, workers=list(present), on_error="return") if present else {}
    # A worker that died since gives its own error; the one that is started instead of it is looked at when it joins.
    faults = [answer for answer in said.values() if isinstance(answer, _Fault)]
    if faults:
        release(client, name)
        raise faults[0].kind("; ".join(fault.sentence for fault in faults))


def offers(offered: Mapping[str, float], wanted: Mapping[str, float]) -> bool:
    """Whether a worker's resources are enough for a task."""
    return all(offered.get(name, 0) >= amount for name, amount in wanted.items())


def release(client: Client, name: str) -> None:
    """Have every worker let go of a value; nothing where the scheduler is gone."""
    if client.status == "running":
        with suppress(OSError):
            client.unregister_worker_plugin(name)


def held(name: str, kind: type[Value]) -> Value:
    """The value that this worker holds; asked for inside a task."""
    value = _holder(get_worker(), name).value()
    if not isinstance(value, kind):
        raise TypeError(f"{name} is a {type(value).__name__}, not a {kind.__name__}")
    return value


class _Fault(NamedTuple):
    """Why a worker is not fit: what to raise for it. The error itself may hold what cannot be sent."""

    kind: type[Exception]
    sentence: str

    @classmethod
    def of(cls, worker: Worker, error: BaseException) -> _Fault:
        where = f"worker {worker.address} on {socket.gethostname()}"
        if isinstance(error, GeodinoError):
            return cls(type(error), f"{where}: {error}")
        if isinstance(error, OSError):
            return cls(OSError, f"{where}: {error}")
        return cls(RuntimeError, f"{where}:\n{''.join(traceback.format_exception(error))}")


class _Holder(WorkerPlugin):  # type: ignore[misc]
    """Makes a value when a worker starts.

    Dask takes no notice of what a plugin raises on a worker that joins later, which would then fail each task that
    comes to it, at once, and so draw them all. Such a worker says why and closes; its nanny does not start it again.
    """

    def __init__(self, make: Callable[[], object], present: frozenset[str], resources: dict[str, float]) -> None:
        self._make, self._present, self._resources = make, present, resources
        self._made: asyncio.Future[object] | None = None

    async def setup(self, worker: Worker) -> None:
        if not offers(worker.state.total_resources, self._resources):
            return
        # In a thread: a model takes seconds to load, in which the worker has to answer its scheduler.
        self._made = asyncio.ensure_future(asyncio.to_thread(self._make))
        await asyncio.wait([self._made])
        error = self.error()
        if error is not None and worker.address not in self._present:
            worker.log_event(TOPIC, f"{_Fault.of(worker, error).sentence}; it leaves")
            worker.loop.add_callback(worker.close, reason="geodino-unfit")

    def teardown(self, worker: Worker) -> None:
        if self._made is not None and self._made.done() and not self._made.cancelled():
            close = getattr(self._made.result(), "close", None) if self._made.exception() is None else None
            if close is not None:
                close()
        self._made = None

    def error(self) -> BaseException | None:
        return self._made.exception() if self._made is not None else None

    def value(self) -> object:
        """What was made; raises what was raised when it was to be."""
        assert self._made is not None
        return self._made.result()


def _holder(worker: Worker, name: str) -> _Holder:
    holder = worker.plugins[name]
    assert isinstance(holder, _Holder)
    return holder


def _fault(name: str, dask_worker: Worker) -> _Fault | None:
    """Asked of each worker."""
    error = _holder(dask_worker, name).error()
    return None if error is None else _Fault.of(dask_worker, error)
