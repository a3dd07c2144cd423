"""How long statistics of many zones take, and how much memory.

    python benchmarks/zones.py --side 16384 --zones 100000 --trees 1000000
    python benchmarks/zones.py --side 4096 --zones 6241 --trees 62500

The map is one of clumped heights with a spread, as a run writes it (tiled float32 COG blocks, ZSTD), the zones a
lattice of slightly turned squares that cover it, each cut by others' borders through its pixels; their trees are
strewn at random. Reading the zones' GeoPackage and writing both tables are part of it.
"""

from __future__ import annotations

import argparse
import math
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import geopandas as gpd
import numpy as np
import rasterio
import shapely
from rasterio.windows import Window
from scipy import ndimage

from geodino.watch import Silent
from geodino.zonal.ground import Layers
from geodino.zonal.statistics import zone_statistics
from geodino.zonal.zones import read_zones

CACHE = Path(tempfile.gettempdir()) / "geodino-benchmarks"
GSD, WEST, NORTH, CRS = 0.6, 600_000.0, 4_800_000.0, "EPSG:32610"


def write_map(path: Path, side: int) -> Path:
    """Heights and spreads, one clump of 2048 px repeated with another scale in each square."""
    spread = path.with_name(f"{path.stem}_spread.tif")
    if path.exists() and spread.exists():
        return spread
    rough = ndimage.gaussian_filter(np.random.default_rng(0).normal(0, 1, (2048, 2048)), 6, mode="wrap")
    rough = rough / rough.std()
    profile = {
        "driver": "GTiff", "dtype": "float32", "count": 1, "height": side, "width": side, "crs": CRS,
        "transform": rasterio.Affine(GSD, 0, WEST, 0, -GSD, NORTH), "nodata": -9999, "tiled": True,
        "blockxsize": 512, "blockysize": 512, "compress": "zstd", "predictor": 3,
    }  # fmt: skip
    chance = np.random.default_rng(1)
    with rasterio.open(path, "w", **profile) as heights, rasterio.open(spread, "w", **profile) as spreads:
        heights.units = spreads.units = ("m",)
        for row in range(0, side, 2048):
            for col in range(0, side, 2048):
                part = (min(2048, side - row), min(2048, side - col))
                tall = np.clip(rough * chance.uniform(4, 12) + chance.uniform(0, 6), 0, 60)[: part[0], : part[1]]
                window = Window(col, row, part[1], part[0])
                heights.write((np.round(tall * 8) / 8).astype(np.float32), 1, window=window)
                spreads.write((np.round((1 + tall / 4) * 8) / 8).astype(np.float32), 1, window=window)
    return spread


def write_zones(path: Path, side: int, count: int) -> None:
    """At least `count` squares that cover the map, turned by a degree."""
    if path.exists():
        return
    across = math.ceil(math.sqrt(count))
    step = side * GSD / across
    col, row = np.meshgrid(np.arange(across), np.arange(across))
    x, y = WEST + col.ravel() * step, NORTH - (row.ravel() + 1) * step
    corners = np.stack([x, y, x + step, y, x + step, y + step, x, y + step, x, y], axis=1).reshape(-1, 5, 2)
    middle, turn = np.array([WEST, NORTH]), np.radians(1)
    turned = (corners - middle) @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]]) + middle
    frame = gpd.GeoDataFrame({"plot": np.arange(len(x))}, geometry=shapely.polygons(turned), crs=CRS)
    # In an order that has nothing to do with the map's.
    frame.sample(frac=1, random_state=0).to_file(path)


def write_trees(path: Path, side: int, count: int) -> None:
    """Points with scores."""
    if path.exists():
        return
    chance = np.random.default_rng(2)
    spots = chance.uniform(0, side * GSD, (count, 2)) * (1, -1) + (WEST, NORTH)
    frame = gpd.GeoDataFrame({"score": chance.uniform(0.3, 1, count)}, geometry=gpd.points_from_xy(*spots.T), crs=CRS)
    frame.to_parquet(path)


def measure(side: int, zones: int, trees: int) -> None:
    """Run one size in this process and print its line."""
    files = [CACHE / f"zones_{side}{end}" for end in (".tif", f"_{zones}.gpkg", f"_{trees}.parquet")]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    spread = files[0].with_name(f"{files[0].stem}_spread.tif")
    began, busy = time.perf_counter(), time.process_time()
    layer = read_zones(files[1])
    read = time.perf_counter() - began
    found = zone_statistics(Layers(files[0], spread, files[2]), layer, watch=Silent())
    swept = time.perf_counter() - began - read
    found.write(CACHE / "statistics.parquet", CACHE / "statistics.csv")
    spent = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    counted = int(found.frame["tree_count"].sum())
    print(
        f"{side:>6} {len(layer):>8,} {trees:>9,} {read:>7.1f} {swept:>8.1f} {spent - read - swept:>7.1f} {spent:>8.1f} "
        f"{time.process_time() - busy:>7.1f} {before:>7.2f} {peak:>7.2f}   {counted:,} trees in zones"
    )


def main() -> None:
    """Make the files, then measure in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=16384)
    parser.add_argument("--zones", type=int, default=100_000)
    parser.add_argument("--trees", type=int, default=1_000_000)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        measure(given.side, given.zones, given.trees)
        return
    CACHE.mkdir(parents=True, exist_ok=True)
    write_map(CACHE / f"zones_{given.side}.tif", given.side)
    write_zones(CACHE / f"zones_{given.side}_{given.zones}.gpkg", given.side, given.zones)
    write_trees(CACHE / f"zones_{given.side}_{given.trees}.parquet", given.side, given.trees)
    heads = ("side", "zones", "trees", "read s", "sweep s", "write s", "all s", "cpu s", "GiB 0", "GiB max")
    widths = (6, 8, 9, 7, 8, 7, 8, 7, 7, 7)
    print(" ".join(f"{head:>{width}}" for head, width in zip(heads, widths, strict=True)), flush=True)
    words = [f"--{name}={getattr(given, name)}" for name in ("side", "zones", "trees")]
    subprocess.run([sys.executable, __file__, "--one", *words], check=True)


if __name__ == "__main__":
    main()
