"""What Dask costs and gives a run: two workers against one, one against this process, and very many empty bands.

    python benchmarks/cluster.py scaling --model vit-l --turns 2
    python benchmarks/cluster.py scaling --model nano --width 3072 --height 3072
    python benchmarks/cluster.py empty --bands 20000

`scaling` runs the same windows three times a turn, each in a process of its own and with one thread a worker: in this
process, with `--workers 1` and with `--workers 2`. Ratios are taken turn by turn, because machines drift: of the whole
run, from the start of its process to its end, and of its computing stage, in which windows are read, computed,
stitched and staged. `bare` is what the machine itself gives: forward passes of the loaded model in one process, and in
two at once. `others` are the cores that all other processes took meanwhile; a ratio is worth little where it is not
near zero.

`empty` has real workers do bands of one window each over a scene without a valid pixel, each of which is read, found
empty, and given a receipt: what is left of a band when there is nothing to compute.
"""

from __future__ import annotations

import os

# Before torch is loaded: each process computes with one core.
os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import argparse
import json
import multiprocessing
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
import rasterio
from made import GSD, NORTH, WEST, bounds_aoi, vit_large, write_scene
from rasterio.windows import Window

import geodino
from geodino.aoi import read_aoi
from geodino.bands import COLS, rows_for
from geodino.cluster.machines import Machines
from geodino.cluster.opening import connect
from geodino.cluster.run import on_cluster
from geodino.compute import Work
from geodino.models.loading import facts_of
from geodino.options import RunOptions
from geodino.plan import make_plan
from geodino.products import products_of
from geodino.resuming import begin
from geodino.settings import read_pipeline
from geodino.stores import Store
from geodino.watch import Silent
from geodino.windows import Place

CACHE = Path(tempfile.gettempdir()) / "geodino-benchmarks"


class Clock(Silent):
    """Watches when the windows of a run begin and are done."""

    def __init__(self) -> None:
        self.began = self.ended = 0.0
        self._total = -1

    def begin(self, title: str, total: int) -> None:
        if title == "windows":
            self.began, self._total = time.time(), total

    def advance(self, done: int, *, hectares: float = 0.0) -> None:
        if done == self._total and not self.ended:
            self.ended = time.time()


def one(given: argparse.Namespace) -> None:
    """One run; prints the seconds of its stages. No workers: this process."""
    (width, height), watch = given.sides, Clock()
    options = RunOptions(
        sources=(str(_scene(width, height)),),
        model=given.model,
        workers=given.workers or None,
        overwrite=True,
        resume=False,
    )
    record = geodino.run("canopy", aoi=bounds_aoi(height, width), out=CACHE / "out", options=options, watch=watch)
    facts = {
        "windows": record.windows.run,
        "before_s": watch.began - psutil.Process().create_time(),
        "stage_s": watch.ended - watch.began,
        "forward_s": record.timings.forward_s,
    }
    print(json.dumps(facts))


def _scene(width: int, height: int) -> Path:
    return CACHE / f"scene_{width}x{height}.tif"


class Ran(NamedTuple):
    """One run: wall seconds of all, until windows are computed, of computing them, and of forward passes alone."""

    windows: int
    whole_s: float
    before_s: float
    stage_s: float
    forward_s: float
    cpu_s: float
    others: float

    def line(self) -> str:
        after_s = self.whole_s - self.before_s - self.stage_s
        times = (self.whole_s, self.before_s, self.stage_s, after_s, self.forward_s, self.cpu_s)
        return " ".join(f"{seconds:>9.1f}" for seconds in times) + f" {self.others:>7.2f}"


_HEAD = " ".join(f"{name:>9}" for name in ("whole s", "before s", "stage s", "after s", "forward s", "CPU s"))


def timed(model: str, width: int, height: int, workers: int) -> Ran:
    """One run in a process of its own."""
    arguments = [str(value) for value in (model, width, height, workers)]
    began, busy_s, own_s = time.perf_counter(), _busy_s(), _children_s()
    said = subprocess.run([sys.executable, __file__, "one", *arguments], check=True, stdout=subprocess.PIPE, text=True)
    whole_s, cpu_s = time.perf_counter() - began, _children_s() - own_s
    others = (_busy_s() - busy_s - cpu_s) / whole_s
    return Ran(**json.loads(said.stdout.splitlines()[-1]), whole_s=whole_s, cpu_s=cpu_s, others=max(others, 0.0))


def bare(model: str, at_once: int, passes: int) -> float:
    """Seconds for so many forward passes of a batch in each of some processes at once, weights loaded."""
    context = multiprocessing.get_context("spawn")
    ready, took = context.Barrier(at_once), context.SimpleQueue()
    crew = [context.Process(target=_forward, args=(model, passes, ready, took)) for _ in range(at_once)]
    for process in crew:
        process.start()
    slowest = max(took.get() for _ in crew)
    for process in crew:
        process.join()
    return slowest


def _forward(model: str, passes: int, ready: Barrier, took: SimpleQueue[float]) -> None:
    loaded = geodino.load_model(model)
    side = loaded.tiling.size
    chips = np.random.default_rng(0).random((loaded.batch_size(side), 3, side, side), dtype=np.float32)
    loaded.predict(chips)
    ready.wait()
    began = time.perf_counter()
    for _ in range(passes):
        loaded.predict(chips)
    took.put(time.perf_counter() - began)


def scaling(given: argparse.Namespace) -> None:
    """Print a line a run, and the ratios turn by turn."""
    model = "nano" if given.model == "nano" else str(vit_large(CACHE / "vit-l"))
    write_scene(_scene(given.width, given.height), given.height, given.width)
    who = {0: "this process", 1: "1 worker", 2: "2 workers"}
    rows = []
    print(f"{'turn':>4} {'who':>12} {_HEAD} {'others':>7}", flush=True)
    for turn in range(1, given.turns + 1):
        found: dict[int, Ran] = {}
        # Forth and back, so that a drift of the machine does not always fall on the same one.
        for workers in list(who)[:: 1 if turn % 2 else -1]:
            ran = found[workers] = timed(model, given.width, given.height, workers)
            print(f"{turn:>4} {who[workers]:>12} {ran.line()}", flush=True)
        here, alone, both = found[0], found[1], found[2]
        limit = 2 * bare(model, 1, given.passes) / bare(model, 2, given.passes) if given.passes else float("nan")
        rows.append(
            (
                alone.stage_s / both.stage_s,
                alone.whole_s / both.whole_s,
                100 * (alone.stage_s / here.stage_s - 1),
                100 * (alone.whole_s / here.whole_s - 1),
                limit,
            )
        )
        print(f"{turn:>4} {_SAID.format(*rows[-1])}", flush=True)
    medians = [statistics.median(column) for column in zip(*rows, strict=True)]
    print(f"{here.windows} windows, medians: {_SAID.format(*medians)}")


_SAID = (
    "two workers {:.2f} times as fast as one (whole run {:.2f}); one takes {:+.1f} % of this process (whole run "
    "{:+.1f} %); two bare models {:.2f} times as fast as one"
)


def empty(given: argparse.Namespace) -> None:
    """Print what bands cost that hold nothing, and the memory of client and workers while they are done."""
    with tempfile.TemporaryDirectory(prefix="geodino-bands-") as folder:
        work = _work_without_pixels(given.bands, Store(folder))
        machines = Machines(given.workers)
        with (
            connect(machines, Silent()) as client,
            on_cluster(machines, client, work, "nano", Silent()) as crew,
        ):
            progress = begin(work, crew.model, Silent())
            sampled = _Sampled()
            sampled.take(0)

            def told(receipt: object) -> None:
                if progress.bands_done >= len(work.bands) * len(sampled.rows) / given.samples:
                    sampled.take(progress.bands_done)

            began = time.perf_counter()
            crew.compute(progress, told)
            took_s = time.perf_counter() - began
            sampled.take(progress.bands_done)
            empties = len(progress.tally().windows_empty)
        objects = sum(1 for _ in work.store.entries())
    print(f"{'bands':>7} {'s':>6} {'client MiB':>10} {'CPU s':>6}  workers MiB, CPU s")
    for row in sampled.rows:
        workers = ", ".join(f"{mib:.0f} {cpu_s:.1f}" for mib, cpu_s in row.workers)
        print(f"{row.bands:>7} {row.at_s:>6.1f} {row.client_mib:>10.0f} {row.client_cpu_s:>6.1f}  {workers}")
    first, last = sampled.rows[0], sampled.rows[-1]
    own_ms = 1e3 * (last.client_cpu_s - first.client_cpu_s) / last.bands
    theirs_ms = 1e3 * (sum(s for _, s in last.workers) - sum(s for _, s in first.workers)) / last.bands
    print(
        f"{empties} empty windows, {objects} objects, {took_s:.1f} s; a band takes {1e3 * took_s / last.bands:.2f} ms, "
        f"and of CPU {own_ms:.2f} ms of the client and scheduler, {theirs_ms:.2f} ms of workers"
    )


def _work_without_pixels(bands: int, store: Store) -> Work:
    """Bands of one window each, over a scene that has valid pixels in its north-western corner alone."""
    facts, spec, rows, across = facts_of("nano"), read_pipeline("canopy"), rows_for(bands), 100
    down, stride = -(-bands // across), facts.tiling.stride
    height, width = (down + 2) * rows * stride, (across + 2) * COLS * stride
    scene = CACHE / f"nothing_{width}x{height}.tif"
    if not scene.exists():
        _write_nothing(scene, height, width)
    options = RunOptions(sources=(str(scene),), model="nano")
    plan = make_plan(spec, bounds_aoi(512, 512), options, gsd_m=GSD, tiling=facts.tiling)
    first = plan.places[0]
    places = [
        Place((first.r // rows + 1 + r) * rows, (first.c // COLS + 1 + c) * COLS)
        for r in range(down)
        for c in range(across)
    ]
    whole = read_aoi(bounds_aoi(height, width)).geometry(plan.grid.crs)
    plan = replace(plan, geometry=whole, needed=whole, places=tuple(places[:bands]))
    return Work(plan, products_of(spec, "nano"), store)


def _write_nothing(path: Path, height: int, width: int) -> None:
    profile = {
        "driver": "GTiff",
        "dtype": "uint8",
        "count": 3,
        "height": height,
        "width": width,
        "crs": "EPSG:32610",
        "transform": rasterio.Affine(GSD, 0, WEST, 0, -GSD, NORTH),
        "nodata": 0,
        "tiled": True,
        "blockxsize": 512,
        "blockysize": 512,
        "compress": "deflate",
        "photometric": "rgb",
        "sparse_ok": True,
        "bigtiff": True,
    }
    with rasterio.open(path, "w", **profile) as scene:
        scene.write(np.full((3, 512, 512), 100, np.uint8), window=Window(0, 0, 512, 512))


class _Sample(NamedTuple):
    bands: int
    at_s: float
    client_mib: float
    client_cpu_s: float
    workers: tuple[tuple[float, float], ...]


class _Sampled:
    """Memory and CPU time of this process, which holds client, scheduler and nannies, and of the workers."""

    def __init__(self) -> None:
        self.rows: list[_Sample] = []
        self._began = time.perf_counter()

    def take(self, bands: int) -> None:
        own = psutil.Process()
        # A worker is known by its memory: what else there is are the trackers of shared resources.
        others = [child for child in own.children(recursive=True) if child.memory_info().rss > 100 * 2**20]
        workers = tuple((child.memory_info().rss / 2**20, _cpu_s(child)) for child in others)
        at_s = time.perf_counter() - self._began
        self.rows.append(_Sample(bands, at_s, own.memory_info().rss / 2**20, _cpu_s(own), workers))


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _busy_s() -> float:
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system + times.steal)


def _children_s() -> float:
    times = os.times()
    return times.children_user + times.children_system


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    runs = commands.add_parser("scaling", help="two workers, one, and this process")
    runs.add_argument("--model", choices=["nano", "vit-l"], default="vit-l")
    runs.add_argument("--width", type=int, default=1300, help="of the scene, px")
    runs.add_argument("--height", type=int, default=4000)
    runs.add_argument("--turns", type=int, default=2)
    runs.add_argument("--passes", type=int, default=4, help="bare forward passes of a batch to compare with; 0: none")
    runs.set_defaults(measure=scaling)
    bands = commands.add_parser("empty", help="bands that hold nothing")
    bands.add_argument("--bands", type=int, default=20_000)
    bands.add_argument("--workers", type=int, default=2)
    bands.add_argument("--samples", type=int, default=8, help="of memory")
    bands.set_defaults(measure=empty)
    run = commands.add_parser("one")
    run.add_argument("model")
    run.add_argument("sides", type=int, nargs=2)
    run.add_argument("workers", type=int)
    run.set_defaults(measure=one)
    given = parser.parse_args()
    CACHE.mkdir(parents=True, exist_ok=True)
    given.measure(given)


if __name__ == "__main__":
    main()
