"""Whether workers are fit for a run, before it begins and as they join: software, device, imagery and store."""

from __future__ import annotations

import hashlib
import os
import platform
import socket
import sys
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path

from dask.system import CPU_COUNT
from distributed import Client

from geodino.cluster.held import offers, register, release
from geodino.errors import ConfigError, GeodinoError
from geodino.redaction import without_secrets
from geodino.sources.pixels import Asked, PixelFiles
from geodino.sources.scene import Scene
from geodino.stores import Store
from geodino.watch import Watch, count, size

# What decides pixels, and what the two ends of a connection must share.
_SAME = (
    "cloudpickle",
    "dask",
    "distributed",
    "msgpack",
    "numpy",
    "odc-geo",
    "pyproj",
    "rasterio",
    "safetensors",
    "scikit-image",
    "scipy",
    "shapely",
    "torch",
    "transformers",
)
# Of the scenes, as many headers are read on each worker.
_SCENES = 3


@dataclass(frozen=True)
class Needs:
    """What a run asks of each worker.

    Attributes
    ----------
    device, precision
        As the options of a run.
    resources
        What a task takes; workers that offer less get none, and are not looked at.
    scenes
        Of the plan; the headers of the first few are read.
    store
        Where receipts and pieces go, or the results of a batch.
    """

    device: str = "auto"
    precision: str = "auto"
    resources: Mapping[str, float] = field(default_factory=dict)
    scenes: tuple[Scene, ...] = ()
    store: Store | None = None


@dataclass(frozen=True)
class Computer:
    """What a worker computes on: `cpu` or `cuda`, the precision, the processor's name, torch's threads, and cores."""

    host: str
    device: str
    precision: str
    processor: str
    threads: int
    cores: int

    @property
    def arithmetic(self) -> tuple[str, str]:
        """What must be the same on all workers, or pixels depend on who computed them."""
        return self.device, self.precision


@contextmanager
def checked(client: Client, needs: Needs, watch: Watch) -> Iterator[tuple[Computer, ...]]:
    """The workers' computers, all found fit; while the context lasts, workers that join are looked at likewise.

    Parameters
    ----------
    client
        Of the cluster, with at least one worker.
    needs
        Of the run.
    watch
        Is told what the workers are, and of what would be slow.

    Raises
    ------
    ConfigError
        Another software, device, imagery or store there, or no worker offers the resources; names worker and host.
    ReadError, OutputError
        Imagery or the store cannot be reached from a worker.
    """
    _check_scheduler(client)
    able = _able_workers(client, needs.resources)
    computers = _computers(client, able, needs)
    _tell(client, able, computers, watch)
    token = uuid.uuid4().hex
    if needs.store is not None:
        needs.store.put(_key(token), token.encode())
    try:
        name = f"geodino-check-{token}"
        look = partial(_look, software(), computers[0].arithmetic, needs, token)
        register(client, name, look, resources=needs.resources)
        try:
            yield computers
        finally:
            release(client, name)
    finally:
        if needs.store is not None:
            needs.store.delete(_key(token))


@cache
def software() -> tuple[tuple[str, str], ...]:
    """Versions of what must be the same on all machines; of geodino also a digest of its source."""
    import rasterio

    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package).as_posix()}\n".encode() + path.read_bytes())
    return (
        ("geodino", f"{version('geodino')} ({digest.hexdigest()[:8]})"),
        ("python", f"{sys.version_info.major}.{sys.version_info.minor}"),
        # torch's builds for CPUs and GPUs differ behind the plus.
        *((name, version(name).partition("+")[0]) for name in _SAME),
        ("GDAL", rasterio.__gdal_version__),
    )


def _look(here: tuple[tuple[str, str], ...], arithmetic: tuple[str, str], needs: Needs, token: str) -> None:
    """On a worker: raises where it is not fit."""
    _check_software(here)
    mine = _computer(needs.device, needs.precision).arithmetic
    if mine != arithmetic:
        raise ConfigError(
            f"computes on {' in '.join(mine)} and others on {' in '.join(arithmetic)}, so that pixels would depend on "
            "who computed them; give --device and --precision, or workers that are alike"
        )
    for scene in needs.scenes[:_SCENES]:
        _check_scene(scene)
    if needs.store is not None:
        _check_store(needs.store, token)


def _check_software(here: tuple[tuple[str, str], ...]) -> None:
    there = dict(software())
    unlike = [f"{name} {there.get(name)} and not {wanted}" for name, wanted in here if there.get(name) != wanted]
    if unlike:
        raise ConfigError(f"has {', '.join(unlike)}; start it in the same environment as this run")


def _check_scene(scene: Scene) -> None:
    red = scene.bands[0]
    files = PixelFiles()
    try:
        with files.open(Asked(red.href, scene.sign, None, (red.index,))) as raster:
            shape = raster.shape
    finally:
        files.close()
    if shape != scene.shape:
        raise ConfigError(f"{without_secrets(red.href)} is {shape} px there and {scene.shape} px here: another file")


def _check_store(store: Store, token: str) -> None:
    where = without_secrets(store.url)
    if store.get(_key(token)) != token.encode():
        raise ConfigError(f"{where} is another place there; give --out a bucket, or a folder that all machines share")
    own = _key(f"{token}-{uuid.uuid4().hex}")
    store.put(own, b"")
    store.delete(own)


def _key(token: str) -> str:
    return f"check/{token}"


def _check_scheduler(client: Client) -> None:
    """Dask's scheduler unpickles tasks too, so it needs what they are made of."""
    try:
        client.run_on_scheduler(_check_software, software())
    except ImportError as error:
        raise ConfigError(
            f"the scheduler {client.scheduler.address} has no geodino ({error}); start it where geodino is installed"
        ) from error
    except ConfigError as error:
        raise ConfigError(f"the scheduler {client.scheduler.address} {error}") from error


def _able_workers(client: Client, resources: Mapping[str, float]) -> list[str]:
    """Addresses of the workers that offer the resources; a task that nobody can take would wait for ever."""
    workers = client.scheduler_info(n_workers=-1)["workers"]
    able = [address for address, worker in workers.items() if offers(worker["resources"], resources)]
    if not able:
        wanted = ", ".join(f"{name}={amount:g}" for name, amount in resources.items())
        offered = sorted({name for worker in workers.values() for name in worker["resources"]})
        raise ConfigError(
            f"no worker offers {wanted or 'itself'}, of {count(len(workers), 'worker')} that offer "
            f"{', '.join(offered) or 'no resources'}; start workers with --resources {wanted}"
        )
    return able


def _computers(client: Client, able: list[str], needs: Needs) -> tuple[Computer, ...]:
    answers = client.run(_computer_or_fault, needs.device, needs.precision, workers=able, on_error="return")
    faults = [f"worker {address}: {said}" for address, said in answers.items() if not isinstance(said, Computer)]
    if faults:
        kind = next((type(said) for said in answers.values() if isinstance(said, GeodinoError)), ConfigError)
        raise kind("; ".join(faults))
    return tuple(answers[address] for address in able)


def _computer_or_fault(device: str, precision: str) -> Computer | GeodinoError:
    """As `_computer`; Dask would log a traceback of what it raises."""
    try:
        return _computer(device, precision)
    except GeodinoError as error:
        return error


def _computer(device: str, precision: str) -> Computer:
    """On a worker: what it computes on."""
    import torch

    from geodino.models.precision import choose_device, choose_precision

    chosen = choose_device(device)
    processor = (
        torch.cuda.get_device_name(chosen)
        if chosen.type == "cuda"
        else f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    )
    return Computer(
        host=socket.gethostname(),
        device=chosen.type,
        precision=choose_precision(precision, chosen),
        processor=processor,
        threads=torch.get_num_threads(),
        cores=CPU_COUNT or os.cpu_count() or 1,
    )


def _tell(client: Client, able: list[str], computers: tuple[Computer, ...], watch: Watch) -> None:
    info = client.scheduler_info(n_workers=-1)["workers"]
    workers = [info[address] for address in able if address in info]
    hosts = Counter(computer.host for computer in computers)
    memory = min((worker["memory_limit"] or 0 for worker in workers), default=0)
    kinds = sorted({f"{computer.processor} in {computer.precision}" for computer in computers})
    watch.note(
        f"{count(len(computers), 'worker')} on {count(len(hosts), 'machine')}: {', '.join(kinds)}, "
        f"{count(computers[0].threads, 'thread')} of torch and {size(memory) if memory else 'all memory'} each"
    )
    if len(kinds) > 1:
        watch.warn(f"workers are unlike ({', '.join(kinds)}): last digits may depend on who computed them")
    if any(worker["nthreads"] > 1 for worker in workers):
        watch.warn("some workers take several tasks at once, each with memory of its own; start them with --nthreads 1")
    for host in hosts:
        there = [computer for computer in computers if computer.host == host and computer.device == "cpu"]
        used = sum(computer.threads for computer in there)
        if there and 2 * used <= there[0].cores:
            watch.warn(
                f"{host} has {there[0].cores} cores and its workers compute with {used}; Dask gives each 1 thread "
                "unless OMP_NUM_THREADS is set before it starts"
            )
