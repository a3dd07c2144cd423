"""Reading takes bounded memory, however many scenes lie over a window."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.env import getenv

from geodino.sources.pixels import HANDLES_PER_THREAD
from geodino.sources.raster import environment

SIDE, SCENES, THREADS = 2048, 16, 8

# Reads each window of a stack of scenes, none of which is whole, and prints how much memory that took, MiB. Memory is
# looked at in a process of its own, where no other test has left any.
READ_ALL = """
import sys, threading
from concurrent.futures import ThreadPoolExecutor
from geodino.grid import Grid, Window
from geodino.sources import Mosaic
from geodino.sources.geotiff import describe
from geodino.sources.warp import footprint_window

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 2**20

scenes = [describe(path) for path in sys.argv[1:]]
grid = Grid(scenes[0].crs, 0.6)
extent = footprint_window(scenes[0], grid)
before = resident()
with Mosaic(scenes, grid) as mosaic, ThreadPoolExecutor(8) as threads:
    corners = range(0, extent.height, 256)
    windows = [Window(extent.row + row, extent.col + col, 256, 256) for row in corners for col in corners]
    assert not any(pixels.valid.all() for pixels in threads.map(mosaic.read, windows))
    print(resident() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_stack_of_local_scenes_is_read_in_bounded_memory(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(1, 255, (3, SIDE, SIDE), dtype=np.uint8)
    pixels[:, ::2] = 0
    with rasterio.open(
        tmp_path / "0.tif", "w", driver="GTiff", height=SIDE, width=SIDE, count=3, dtype="uint8", crs="EPSG:32633",
        transform=Affine(0.6, 0, 500_004, 0, -0.6, 4_999_998), tiled=True, blockxsize=256, blockysize=256, nodata=0,
    ) as raster:  # fmt: skip
        raster.write(pixels)
    for number in range(1, SCENES):
        (tmp_path / f"{number}.tif").symlink_to(tmp_path / "0.tif")
    paths = [str(tmp_path / f"{number}.tif") for number in range(SCENES)]
    done = subprocess.run([sys.executable, "-c", READ_ALL, *paths], capture_output=True, text=True, check=True)
    # 123 MiB on 2026-11; 671 MiB with a read cache in each open file and 16 files a thread.
    assert float(done.stdout) < 400


def test_the_read_caches_of_remote_files_are_bounded_together() -> None:
    with environment(["https://host/a.tif"]):
        options = getenv()
    assert options["VSI_CACHE"]
    files = 3 * HANDLES_PER_THREAD * THREADS
    assert int(options["GDAL_CACHEMAX"]) + files * int(options["VSI_CACHE_SIZE"]) < 2**30
