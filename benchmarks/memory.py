"""Peak memory of a run against the size of the scene, above what the loaded model itself takes.

    python benchmarks/memory.py --sides 2048 4096 8192 16384

Each size runs in a process of its own, with a model of four narrow layers, so that what is seen is the pipeline and
not the network. `model` is the process's peak after loading and one forward pass; `run` is its peak at the end.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CACHE = Path(tempfile.gettempdir()) / "geodino-benchmarks"


def measure(side: int) -> None:
    """Run one size in this process and print its line."""
    import numpy as np
    from made import bounds_aoi, tiny, write_scene

    import geodino
    from geodino.options import RunOptions

    scene = CACHE / f"scene_{side}.tif"
    write_scene(scene, side, side)
    folder = str(tiny(CACHE / "tiny"))
    model = geodino.load_model(folder)
    size = model.tiling.size
    model.predict(np.zeros((model.batch_size(size), 3, size, size), np.float32))
    of_model = _peak_gib()
    began = time.perf_counter()
    options = RunOptions(sources=(str(scene),), model=folder, overwrite=True)
    geodino.run("canopy", aoi=bounds_aoi(side, side), out=CACHE / "out", options=options)
    spent = time.perf_counter() - began
    peak = _peak_gib()
    print(
        f"{side:>6} {of_model:>8.2f} {peak:>8.2f} {peak - of_model:>8.2f} {spent:>8.1f} {side**2 / spent / 1e6:>7.2f}"
    )


def _peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    """Run each size in its own process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="+", default=[2048, 4096, 8192, 16384])
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    CACHE.mkdir(parents=True, exist_ok=True)
    if arguments.one:
        measure(arguments.one)
        return
    print(f"{'side':>6} {'model':>8} {'run':>8} {'above':>8} {'seconds':>8} {'Mpx/s':>7}   (GiB)", flush=True)
    for side in arguments.sides:
        subprocess.run([sys.executable, __file__, "--one", str(side)], check=True)


if __name__ == "__main__":
    main()
