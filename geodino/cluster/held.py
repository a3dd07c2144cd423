"""What each worker holds for the tasks that come to it, such as the model: made there once, not sent with each task."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import NamedTuple, NoReturn, TypeVar

from distributed import Client, Worker, WorkerPlugin, get_worker

from geodino.errors import GeodinoError

# Where workers that left say why; whoever opened the client passes it on.
TOPIC = "geodino"

Value = TypeVar("Value")


def register(client: Client, name: str, make: Callable[[], object]) -> None:
    """Have every worker make a value once, also those that join or are started again later.

    Parameters
    ----------
    client
        Of the cluster.
    name
        Under which tasks get it; unique to this run, as others may use the same workers.
    make
        Called on each worker, in a thread; sent there by pickle, so it holds a path and not a model. A worker on which
        it raises is not fit: here that is an error, of a worker that joins later a warning, and that worker leaves.

    Raises
    ------
    GeodinoError
        What `make` raised on a worker, of the same class, with the worker's name. Other errors come as they are.
    """
    present = frozenset(client.scheduler_info(n_workers=-1)["workers"])
    client.register_plugin(_Holder(make, present), name=name)
    said = client.run(_fault, name, workers=list(present), on_error="return") if present else {}
    # A worker that died since gives its own error; the one that is started instead of it is looked at when it joins.
    faults = [answer for answer in said.values() if isinstance(answer, _Fault)]
    if faults:
        release(client, name)
        _refuse(faults)


def release(client: Client, name: str) -> None:
    """Have every worker let go of a value; nothing where the scheduler is gone."""
    if client.status == "running":
        client.unregister_worker_plugin(name)


def held(name: str, kind: type[Value]) -> Value:
    """The value that this worker holds; asked for inside a task."""
    value = _holder(get_worker(), name).value()
    if not isinstance(value, kind):
        raise TypeError(f"{name} is a {type(value).__name__}, not a {kind.__name__}")
    return value


def place_of(worker: Worker) -> str:
    """How messages name a worker."""
    return f"worker {worker.address} on {socket.gethostname()}"


class _Fault(NamedTuple):
    """Why a worker is not fit."""

    place: str
    error: BaseException


class _Holder(WorkerPlugin):  # type: ignore[misc]
    """Makes a value when a worker starts.

    Dask takes no notice of what a plugin raises on a worker that joins later, which would then fail each task that
    comes to it, at once, and so draw them all. Such a worker says why and closes; its nanny does not start it again.
    """

    def __init__(self, make: Callable[[], object], present: frozenset[str]) -> None:
        self._make, self._present = make, present
        self._made: asyncio.Future[object] | None = None

    async def setup(self, worker: Worker) -> None:
        # In a thread: a model takes seconds to load, in which the worker has to answer its scheduler.
        self._made = asyncio.ensure_future(asyncio.to_thread(self._make))
        await asyncio.wait([self._made])
        if self.fault() is not None and worker.address not in self._present:
            worker.log_event(TOPIC, f"{place_of(worker)} leaves: {self.fault()}")
            worker.loop.add_callback(worker.close, reason="geodino-unfit")

    def teardown(self, worker: Worker) -> None:
        self._made = None

    def fault(self) -> BaseException | None:
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
    error = _holder(dask_worker, name).fault()
    return None if error is None else _Fault(place_of(dask_worker), error)


def _refuse(faults: list[_Fault]) -> NoReturn:
    first = faults[0].error
    sentence = "; ".join(f"{fault.place}: {fault.error}" for fault in faults)
    if isinstance(first, GeodinoError):
        raise type(first)(sentence) from first
    first.add_note(sentence)
    raise first
