"""How much of the bare model's speed `geodino run` keeps, end to end, and how many km2 it maps a minute.

    python benchmarks/end_to_end.py --model nano --pixels 3072
    python benchmarks/end_to_end.py --model nano --pixels 3072 --pipeline trees
    python benchmarks/end_to_end.py --model vit-l --pixels 1344
    python benchmarks/end_to_end.py --model nano --pixels 3072 --latency 0.02

Each pair of runs does the same windows in the same batches: once through `geodino.run` (AOI, plan, reading, model
loading, stitching, COGs, preview, record) and once by the loaded model alone on chips in memory. The ratio of the two
wall times is taken pair by pair, because machines drift; the median is the figure to quote. With a latency the scene
also lies behind a server that waits so long before each answer, and a third run of each pair reads it from there.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from made import bounds_aoi, vit_large, write_scene
from range_server import range_server

import geodino
from geodino.options import RunOptions
from geodino.plan import make_plan
from geodino.products import context_m, products_of
from geodino.settings import read_pipeline


def main() -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=["nano", "vit-l"], default="nano")
    parser.add_argument(
        "--pipeline", choices=["canopy", "trees"], default="canopy", help="trees asks both heads of nano"
    )
    parser.add_argument("--pixels", type=int, default=3072, help="side of the square scene")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--latency", type=float, help="seconds before each answer of a server; else files on disk only")
    parser.add_argument("--threads", type=int, help="reader threads of the run; else the default's")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "geodino-benchmarks")
    arguments = parser.parse_args()
    arguments.cache.mkdir(parents=True, exist_ok=True)
    side = arguments.pixels
    scene = arguments.cache / f"scene_{side}.tif"
    write_scene(scene, side, side)
    name = "nano" if arguments.model == "nano" else str(vit_large(arguments.cache / "vit-l"))
    options = RunOptions(sources=(str(scene),), model=name, threads=arguments.threads, overwrite=True)
    model = geodino.load_model(name)
    spec = read_pipeline(arguments.pipeline)
    products = products_of(spec, name)
    ask = model.asked(products.tasks)
    aoi = bounds_aoi(side, side)
    around_m = context_m(products, spec, 0.6)
    plan = make_plan(spec, aoi, options, gsd_m=0.6, tiling=model.tiling, context_m=around_m)
    batch = model.batch_size(plan.tiling.size)
    chips = np.random.default_rng(0).random((batch, 3, plan.tiling.size, plan.tiling.size), dtype=np.float32)
    ask(chips)
    print(f"{arguments.model}: {len(plan.places)} windows of {plan.tiling.size} px, {side} x {side} px, batch {batch}")
    print(f"{'pair':>4} {'run s':>8} {'bare s':>8} {'kept':>6} {'km2/min':>8}  read/forward/stitch/write s")
    ratios, remote_ratios, km2 = [], [], (0.0006 * side) ** 2
    for pair in range(arguments.pairs):
        began = time.perf_counter()
        record = geodino.run(arguments.pipeline, aoi=aoi, out=arguments.cache / "out", options=options)
        run_s = time.perf_counter() - began
        if arguments.latency is not None:
            with range_server(arguments.cache, arguments.latency) as server:
                began = time.perf_counter()
                far = replace(options, sources=(f"{server.url}/{scene.name}",))
                geodino.run(arguments.pipeline, aoi=aoi, out=arguments.cache / "out", options=far)
                remote_ratios.append((time.perf_counter() - began) / run_s)
        began = time.perf_counter()
        for start in range(0, len(plan.places), batch):
            ask(chips[: min(batch, len(plan.places) - start)])
        bare_s = time.perf_counter() - began
        ratios.append(bare_s / run_s)
        spent = record.timings
        parts = f"{spent.read_s:.1f}/{spent.forward_s:.1f}/{spent.stitch_s:.1f}/{spent.write_s:.1f}"
        beyond = f"beyond forward {run_s - spent.forward_s:.1f}"
        print(
            f"{pair + 1:>4} {run_s:>8.1f} {bare_s:>8.1f} {ratios[-1]:>6.2f} {60 * km2 / run_s:>8.1f}  "
            f"{parts}; {beyond}",
            flush=True,
        )
    print(f"median {statistics.median(ratios):.2f} of the bare model's speed")
    if remote_ratios:
        told = ", ".join(f"{ratio:.3f}" for ratio in remote_ratios)
        print(f"{1000 * arguments.latency:.0f} ms away: {told} of the time with the scene on disk")


if __name__ == "__main__":
    main()
