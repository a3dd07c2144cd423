"""A client of the machines that a run is to use: started here, joined, or asked of a cluster."""

from __future__ import annotations

import json
import logging
import os
import socket
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import dask.config
import psutil
from dask.system import CPU_COUNT
from distributed import Client, Nanny, Scheduler, SpecCluster
from distributed.comm import parse_address, parse_host_port
from distributed.core import Status
from distributed.system import MEMORY_LIMIT
from distributed.versions import VersionMismatchWarning

from geodino.cluster.held import TOPIC
from geodino.cluster.machines import PACKAGES, ClusterConfig, Machines, cluster_config
from geodino.errors import ClusterError, ConfigError
from geodino.sources.raster import causes
from geodino.watch import Watch, duration

# A scheduler that runs answers in milliseconds.
ANSWER_S = 10.0
# Of each worker on this machine, at most.
_START_S = 30.0
# What a worker needs for a ViT-L model and its windows, see `doctor`.
WORKER_BYTES = 4 * 2**30
_WAIT_STEP_S = 60.0
# The topic of what a scheduler notes of workers and clients.
_NOTED = "all"
# What OpenMP, and with it torch, reads once, when it is loaded.
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")

# Results are receipts of some bytes: there is nothing to spill, and a worker that pauses until there is memory again
# may wait for ever. One that takes 95 % of its share is still killed and started again.
_WORKER_SETTINGS: dict[str, object] = {
    f"distributed.worker.memory.{what}": False for what in ("target", "spill", "pause")
}
# Dask looks at itself a hundred times a second, which with two workers on two cores takes 3 % of what they have.
_LOOK_SELDOM: dict[str, object] = {
    "distributed.worker.profile.enabled": False,
    "distributed.admin.tick.interval": "500ms",
    "distributed.admin.system-monitor.interval": "2s",
}


@contextmanager
def open_client(machines: Machines, watch: Watch) -> Iterator[Client]:
    """As `connect`, when workers are there."""
    with connect(machines, watch) as client:
        await_workers(machines, client, watch)
        yield client


@contextmanager
def connect(machines: Machines, watch: Watch) -> Iterator[Client]:
    """A client of the machines; what was started for it ends with it.

    Workers may be on their way, see `await_workers`, and are not looked over, see `survey.check`.

    Parameters
    ----------
    machines
        Of which something is asked for.
    watch
        Is told where the dashboard is, and later of workers that left because they are not fit.

    Raises
    ------
    ConfigError
        Nobody answers, a package is missing, or the cluster refuses its arguments.
    ClusterError
        No workers can be started on this machine.
    """
    with ExitStack() as stack:
        # Its errors are raised as well, `_tell` says which workers died, and the rest says nothing to whoever runs a
        # command: of every connection, of tasks by their keys, in tracebacks.
        stack.enter_context(_silenced(logging.getLogger("distributed.client"), logging.CRITICAL))
        if logging.getLogger().getEffectiveLevel() > logging.INFO:
            stack.enter_context(_unheard(logging.getLogger("distributed")))
        if machines.scheduler is not None:
            client = stack.enter_context(_join(machines.scheduler))
        elif machines.config is not None:
            client = stack.enter_context(_start(machines.config, watch))
        else:
            client = stack.enter_context(_local(machines))
        has_pages = find_spec("bokeh") is not None or machines.scheduler is not None
        watch.note(f"dashboard: {client.dashboard_link}{'' if has_pages else ' (to see it: pip install bokeh)'}")
        client.subscribe_topic(TOPIC, lambda event: watch.warn(str(event[1])))
        client.subscribe_topic(_NOTED, partial(_tell, watch))
        # Else the scheduler shows a traceback when it would tell a client that this one is gone.
        stack.callback(leave_unsaid, client)
        yield client


def leave_unsaid(client: Client) -> None:
    """Say nothing more of workers: whoever dies or joins where nothing is left to do is of no interest."""
    if client.status == "running":
        for topic in (TOPIC, _NOTED):
            client.unsubscribe_topic(topic)


def _tell(watch: Watch, event: tuple[float, Any]) -> None:
    """Of what Dask's scheduler notes: that a worker died."""
    _, noted = event
    if isinstance(noted, Mapping) and noted.get("action") == "remove-worker" and not noted["expected"]:
        watch.warn(f"worker {noted['worker']} is gone, killed or out of memory; what it was at is computed again")


def await_workers(machines: Machines, client: Client, watch: Watch) -> None:
    """Wait for the first worker of a cluster from a config; ConfigError where none comes, or none is there."""
    if machines.config is not None:
        _await_worker(client, cluster_config(machines.config), watch)
    elif not client.scheduler_info(n_workers=-1)["workers"]:
        raise ConfigError(f"scheduler {machines.scheduler} has no workers; start some with `dask worker`")


def task_resources(machines: Machines, client: Client) -> dict[str, float]:
    """What a task takes of a worker: what the config says, else a GPU where some worker has GPUs to give."""
    if machines.config is not None:
        return dict(cluster_config(machines.config).resources)
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    return {"GPU": 1.0} if any(worker["resources"].get("GPU") for worker in workers) else {}


def local_workers(
    count: int, *, cores: int, memory: int, gpus: tuple[str, ...], environ: Mapping[str, str]
) -> dict[int, dict[str, Any]]:
    """How each of some workers on this machine is started, as Dask's SpecCluster takes it.

    Parameters
    ----------
    count
        Of workers; each computes one task at a time.
    cores, memory
        Of the machine, the memory in bytes; they are shared out.
    gpus
        As CUDA_VISIBLE_DEVICES names them; workers take them in turn.
    environ
        Of this process: fewer threads than a worker's share of the cores may be asked for there.
    """
    share = max(1, cores // count)
    asked = environ.get("OMP_NUM_THREADS", "")
    threads = min(share, int(asked)) if asked.isdecimal() and int(asked) else share
    workers = {}
    for index in range(count):
        env = dict.fromkeys(_THREADS, str(threads))
        if gpus:
            env["CUDA_VISIBLE_DEVICES"] = gpus[index % len(gpus)]
        options = {
            "host": "127.0.0.1",
            "nthreads": 1,
            "memory_limit": memory // count,
            "env": env,
            "resources": {"GPU": 1} if gpus else {},
            "silence_logs": logging.WARNING,
        }
        workers[index] = {"cls": Nanny, "options": options}
    return workers


def visible_gpus() -> tuple[str, ...]:
    """The GPUs of this machine that torch can use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = named.split(",") if named else [str(index) for index in range(torch.cuda.device_count())]
    return tuple(names[: torch.cuda.device_count()])


@contextmanager
def _local(machines: Machines) -> Iterator[Client]:
    gpus = visible_gpus()
    if isinstance(machines.workers, int):
        count = machines.workers
    else:
        memory = min(psutil.virtual_memory().available, MEMORY_LIMIT)
        count = len(gpus) or max(1, min(CPU_COUNT, memory // WORKER_BYTES))
    workers = local_workers(count, cores=CPU_COUNT, memory=MEMORY_LIMIT, gpus=gpus, environ=os.environ)
    scheduler = {
        "cls": Scheduler,
        "options": {"host": "127.0.0.1", "port": 0, "dashboard": True, "dashboard_address": "127.0.0.1:0"},
    }
    settings = (
        _WORKER_SETTINGS
        | _LOOK_SELDOM
        | {
            "distributed.worker.preload": ["geodino.cluster.deaf"],
            # Dask gives workers one thread else, and what it sets here is there before anything is imported.
            "distributed.nanny.pre-spawn-environ": {name: workers[0]["options"]["env"][name] for name in _THREADS},
        }
    )
    with _environment_kept(), dask.config.set(settings):
        try:
            cluster = SpecCluster(workers=workers, scheduler=scheduler, silence_logs=False)
        except (OSError, RuntimeError) as error:
            raise ClusterError(f"--workers {count} cannot be started on this machine: {causes(error)}") from error
        with cluster, Client(cluster, set_as_default=False) as client:
            client.wait_for_workers(count, timeout=_START_S * count)
            yield client


@contextmanager
def _environment_kept() -> Iterator[None]:
    """A nanny writes what its worker shall find into the environment of its own process, which is this one."""
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in set(os.environ) - set(before):
            del os.environ[name]
        os.environ.update(before)


@contextmanager
def _silenced(logger: logging.Logger, level: int) -> Iterator[None]:
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextmanager
def _unheard(logger: logging.Logger) -> Iterator[None]:
    """By the handlers of others; its children have levels of their own, which Dask sets."""
    before, nobody = logger.propagate, logging.NullHandler()
    logger.addHandler(nobody)
    logger.propagate = False
    try:
        yield
    finally:
        logger.propagate = before
        logger.removeHandler(nobody)


@contextmanager
def _join(scheduler: str) -> Iterator[Client]:
    address = _address(scheduler)
    _ask(address)
    try:
        with warnings.catch_warnings():
            # `survey.check` says the same of our own packages too, by worker.
            warnings.simplefilter("ignore", VersionMismatchWarning)
            client = Client(address, timeout=ANSWER_S, set_as_default=False)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(
            f"the scheduler at {address} cannot be joined ({causes(error)}); give one such as tcp://10.0.0.1:8786"
        ) from error
    with client:
        yield client


def _address(scheduler: str) -> str:
    """The address itself, or the one in the scheduler's file."""
    if not Path(scheduler).is_file():
        if scheduler.endswith(".json") or ":" not in scheduler:
            raise ConfigError(
                f"scheduler {scheduler} is no file; give the one that `dask scheduler --scheduler-file` wrote, or an "
                "address such as tcp://10.0.0.1:8786"
            )
        return scheduler
    try:
        return str(json.loads(Path(scheduler).read_text())["address"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"scheduler file {scheduler} holds no address; give the one that `dask scheduler --scheduler-file` wrote"
        ) from error


def _ask(address: str) -> None:
    """ConfigError where no scheduler listens: Dask tries again for as long as it may, and others' silence holds it."""
    scheme, place = parse_address(address)
    if scheme not in ("tcp", "tls"):
        return
    try:
        connection = socket.create_connection(parse_host_port(place), timeout=ANSWER_S)
    except (OSError, ValueError) as error:
        why = str(error) if isinstance(error, ValueError) else error.strerror or f"silent for {duration(ANSWER_S)}"
        raise ConfigError(
            f"no Dask scheduler answers at {address} ({why}); start one with `dask scheduler`, give the address that "
            "it says at its start, or see whether a firewall is between"
        ) from error
    # Either end of a Dask connection begins with a word of its own.
    with connection, suppress(OSError):
        if scheme == "tls" or connection.recv(1):
            return
    raise ConfigError(f"what listens at {address} is no Dask scheduler; note that its dashboard has another port")


@contextmanager
def _start(name: str, watch: Watch) -> Iterator[Client]:
    config = cluster_config(name)
    make = _class_of(config, name)
    watch.note(f"starting {config.title}")
    try:
        cluster = make(**config.kwargs)
    except (TypeError, ValueError, OSError, RuntimeError) as error:
        raise ConfigError(f"{name}: {config.class_} cannot be started: {causes(error)}") from error
    with cluster, Client(cluster, set_as_default=False) as client:
        _start_first(cluster, config)
        if config.adapt is not None:
            cluster.adapt(minimum=config.adapt.minimum, maximum=config.adapt.maximum)
        elif config.scale is not None:
            cluster.scale(config.scale)
        yield client


def _start_first(cluster: Any, config: ClusterConfig) -> None:
    """Ask for one worker: Dask only logs it when a queue refuses a job, and waits for ever."""
    if not isinstance(cluster, SpecCluster) or (config.adapt is None and config.scale is None):
        return

    async def asked() -> None:
        cluster.scale(max(1, len(cluster.worker_spec)))
        await cluster

    try:
        with _silenced(logging.getLogger("tornado.application"), logging.CRITICAL):
            cluster.sync(asked)
    except (OSError, RuntimeError, ValueError) as error:
        # Dask asserts at the end that all workers have been started.
        for worker in cluster.workers.values():
            worker.status = Status.failed
        raise ConfigError(f"{config.title}: no worker can be started: {causes(error)}") from error


def _class_of(config: ClusterConfig, name: str) -> Any:
    module, _, last = config.class_.rpartition(".")
    package = PACKAGES[module.partition(".")[0]]
    try:
        found = getattr(import_module(module), last, None)
    except ImportError as error:
        raise ConfigError(
            f"{name}: {config.class_} cannot be imported ({causes(error)}); install it: pip install {package}"
        ) from error
    if not isinstance(found, type):
        raise ConfigError(f"{name}: {module} has no class {last}; see the documentation of {package}")
    return found


def _await_worker(client: Client, config: ClusterConfig, watch: Watch) -> None:
    began = told = time.monotonic()
    # Adaptive clusters that may shrink to nothing start a worker only for a task.
    first = client.submit(os.getpid, resources=config.resources or None, pure=False)
    while not client.scheduler_info(n_workers=-1)["workers"]:
        waited = time.monotonic() - began
        if waited > config.wait_s:
            raise ConfigError(
                f"{config.title} gave no worker within {duration(config.wait_s)}; see its queue and its workers' logs, "
                "or give a longer wait_s in its config"
            )
        if time.monotonic() - told >= _WAIT_STEP_S:
            told = time.monotonic()
            watch.note(f"waiting for the first worker of {config.title} for {duration(waited)}")
        time.sleep(1)
    first.cancel()
