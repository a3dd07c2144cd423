"""Time and peak memory of finding trees on a height map, and of drawing their crowns.

    python benchmarks/trees.py --sides 4096 16384

The map is made on the first call, strip by strip, and kept in the temporary folder: a tree stands somewhere in
every 14 x 14 pixels of 0.6 m, 2 to 35 m tall, in a rounded crown as wide as the allometry says on average, rough by a
few decimetres. It is staged as a run stages its heights. Each measurement runs in a process of its own; `peak` is
all the memory of that process, libraries too.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import rasterio
from odc.geo.crs import CRS

from geodino.grid import Grid, Window
from geodino.outputs.stage import StagedRaster
from geodino.sources.raster import LOCAL_OPTIONS
from geodino.surface import RasterSurface
from geodino.treetops import HeightSettings, trees_on_height

CACHE = Path(tempfile.gettempdir()) / "geodino-benchmarks"
GRID = Grid(CRS("EPSG:32610"), 0.6)
CORNER = (-8_000_000, 1_000_000)
APART = 14
BLOCK = 512

Floats = npt.NDArray[np.float32]


def made(side: int) -> Path:
    """A height map of side x side pixels."""
    path = CACHE / f"heights_{side}.tif"
    if path.exists():
        return path
    part = path.with_suffix(".part.tif")
    stage = StagedRaster.create(part, GRID, Window(*CORNER, side, side), block=BLOCK, names=("height",))
    for top in range(0, side, BLOCK):
        for left in range(0, side, BLOCK):
            stage.write(Window(CORNER[0] + top, CORNER[1] + left, BLOCK, BLOCK), heights(top, left)[None])
    stage.close()
    return part.rename(path)


def heights(top: int, left: int) -> Floats:
    """One block: at each pixel the highest of the crowns around it, and a little noise; 0 on open ground."""
    rows, cols = np.mgrid[top : top + BLOCK, left : left + BLOCK]
    row, col = top // APART - 1, left // APART - 1
    trees = forest(row, col, BLOCK // APART + 4)
    found = np.zeros((BLOCK, BLOCK), np.float32)
    for i in (-1, 0, 1):
        for j in (-1, 0, 1):
            near = rows // APART + i - row, cols // APART + j - col
            y, x, tall, wide = (what[near] for what in trees)
            away = ((rows - y) ** 2 + (cols - x) ** 2) / wide**2
            found = np.maximum(found, np.where(away < 1, tall * (1 - 0.6 * away), 0))
    noise = np.random.default_rng((top, left)).normal(0, 0.15, found.shape).astype(np.float32)
    return np.where(found > 0, np.maximum(found + noise, 0), 0).astype(np.float32)


def forest(row: int, col: int, count: int) -> tuple[Floats, ...]:
    """Place, height and crown radius (pixels) of the trees of some lattice squares, each the same whoever asks."""
    i, j = np.mgrid[row : row + count, col : col + count]
    draws = [((np.sin(i * 12.9898 + j * 78.233 + k * 37.719) * 43758.5453) % 1).astype(np.float32) for k in range(4)]
    tall = 2 + 33 * draws[2] ** 2
    wide = HeightSettings().diameter_m(tall) / 2 * (0.7 + 0.6 * draws[3]) / GRID.gsd
    return (i + draws[0]) * APART, (j + draws[1]) * APART, tall, np.minimum(wide, APART)


def measure(side: int, crowns: bool, block: int) -> None:
    """Find the trees of one map in this process and print its line."""
    began = time.perf_counter()
    settings = HeightSettings() if crowns else HeightSettings(crowns=None)
    trees, area = 0, 0.0
    with rasterio.Env(**LOCAL_OPTIONS), RasterSurface(made(side)) as surface:
        for batch in trees_on_height(surface, settings, block=block):
            trees += len(batch)
            area += float(np.nansum(batch.crown_area_m2))
    spent = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    what = "yes" if crowns else "no"
    print(
        f"{side:>6} {what:>7} {trees:>10,} {area / 1e4:>9,.0f} {spent:>8.1f} {time.process_time():>8.1f} {peak:>6.2f}"
    )


def main() -> None:
    """Make the maps and run each measurement in its own process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="+", default=[4096, 16384])
    parser.add_argument("--block", type=int, default=1024)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    CACHE.mkdir(parents=True, exist_ok=True)
    if arguments.one:
        measure(int(arguments.one[0]), arguments.one[1] == "yes", arguments.block)
        return
    print(f"{'side':>6} {'crowns':>7} {'trees':>10} {'crown ha':>9} {'wall s':>8} {'CPU s':>8} {'GiB':>6}", flush=True)
    for side in arguments.sides:
        made(side)
        for crowns in ("no", "yes"):
            asked = ["--one", str(side), crowns, "--block", str(arguments.block)]
            subprocess.run([sys.executable, __file__, *asked], check=True)


if __name__ == "__main__":
    main()
