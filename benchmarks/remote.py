"""Reading windows of remote COGs: geodino's reader beside plain rasterio, odc-stac and async-geotiff.

    pip install odc-stac async-geotiff
    python benchmarks/remote.py [--latency 0.02 --latency 0.1] [--folder DIR]

Four COGs of 4096 x 4096 px, real pixels, behind a server on this machine that waits so long before each answer. Each
reader gets the same windows of 512 px in the same two orders: at random, and row by row as a run of geodino reads them
(with 64 px of overlap). Told are windows a second, and bytes sent as a multiple of the bytes of the blocks that the
windows need. A reader that is not installed is left out.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import rasterio
from made import write_scene
from range_server import range_server
from rasterio.shutil import copy
from rasterio.windows import Window as RasterWindow

from geodino.grid import Window
from geodino.sources.pixels import Asked, PixelFiles
from geodino.sources.raster import GDAL_OPTIONS
from geodino.sources.tiff import read_directories

SIDE, SIZE, STEP, FILES = 4096, 512, 448, 4
RANDOM_WINDOWS = 96

Read = tuple[str, Window]
Reader = Callable[[Sequence[Read]], list[int]]


def make_files(folder: Path) -> list[Path]:
    """Four COGs of as many parts of one long photo."""
    whole = folder / "whole.tif"
    write_scene(whole, FILES * SIDE, SIDE)
    made = []
    for number in range(FILES):
        path = folder / f"{number}.tif"
        if not path.exists():
            with rasterio.open(whole) as raster, rasterio.MemoryFile() as memory:
                window = RasterWindow(0, number * SIDE, SIDE, SIDE)
                profile = raster.profile | {"height": SIDE, "transform": raster.window_transform(window)}
                with memory.open(**profile) as part:
                    part.write(raster.read(window=window))
                copy(memory.name, path, driver="COG", compress="deflate", predictor="YES", blocksize=512)
        made.append(path)
    return made


def windows(order: str, urls: Sequence[str]) -> list[Read]:
    """The windows of an order, each in its file."""
    if order == "random":
        draw = random.Random(0)
        corners = [
            (draw.choice(urls), draw.randrange(SIDE - SIZE), draw.randrange(SIDE - SIZE)) for _ in range(RANDOM_WINDOWS)
        ]
    else:
        steps = range(0, SIDE - SIZE + 1, STEP)
        corners = [(url, row, col) for url in urls for row in steps for col in steps]
    return [(url, Window(row, col, SIZE, SIZE)) for url, row, col in corners]


def needed_bytes(reads: Sequence[Read], paths: Sequence[Path]) -> int:
    """Bytes of the blocks that the windows meet, each once."""
    total = 0
    for path in paths:
        content = path.read_bytes()
        picture = read_directories(lambda start, stop, content=content: content[start:stop], len(content), path.name)[0]
        met = {block for url, window in reads if url.endswith(path.name) for block in picture.blocks(window)}
        total += sum(int(picture.sizes[block]) for block in met)
    return total


def threaded(read: Callable[[str, Window], np.ndarray], threads: int) -> Reader:
    """The sums of all windows, read by so many threads."""

    def all_of_them(reads: Sequence[Read]) -> list[int]:
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(lambda each: int(read(*each).sum(dtype=np.int64)), reads))

    return all_of_them


def geodino_reader(threads: int) -> Reader:
    """geodino's own: blocks fetched once, shared by all threads."""

    def all_of_them(reads: Sequence[Read]) -> list[int]:
        files = PixelFiles()
        try:
            read = threaded(lambda url, window: files.read(Asked(url, None, None, (1, 2, 3)), window).values, threads)
            return read(reads)
        finally:
            files.close()

    return all_of_them


def rasterio_reader(threads: int) -> Reader:
    """Plain rasterio with the same connection settings, a file open in each thread."""

    def all_of_them(reads: Sequence[Read]) -> list[int]:
        local = threading.local()

        def read(url: str, window: Window) -> np.ndarray:
            with rasterio.Env(**GDAL_OPTIONS):
                opened = local.__dict__.setdefault("opened", {})
                raster = opened.get(url) or opened.setdefault(url, rasterio.open(url, sharing=False))
                return raster.read(window=RasterWindow(window.col, window.row, window.width, window.height))

        return threaded(read, threads)(reads)

    return all_of_them


def odc_reader() -> Reader | None:
    """odc-stac, a window at a time on dask's threads."""
    try:
        import dask
        import odc.stac
        import pystac
        from odc.geo.geobox import GeoBox
    except ImportError:
        return None

    def all_of_them(reads: Sequence[Read]) -> list[int]:
        found: list[object] = [None] * len(reads)
        for url in dict.fromkeys(url for url, _ in reads):
            with rasterio.open(url) as raster:
                item = _item(pystac, url, raster)
                box = GeoBox(raster.shape, raster.transform, raster.crs)
            for place, window in ((place, window) for place, (at, window) in enumerate(reads) if at == url):
                rows, cols = window.slices_in(Window(0, 0, *box.shape))
                loaded = odc.stac.load([item], bands=["red", "green", "blue"], geobox=box[rows, cols], chunks={})
                found[place] = loaded.isel(time=0)
        with dask.config.set(scheduler="threads", num_workers=8):
            computed = dask.compute(*found)
        return [sum(int(one[band].sum(dtype=np.int64)) for band in one) for one in computed]

    return all_of_them


def _item(pystac: object, url: str, raster: rasterio.DatasetReader) -> object:
    import datetime as dt

    from rasterio.warp import transform_bounds
    from shapely.geometry import box, mapping

    outline = transform_bounds(raster.crs, "EPSG:4326", *raster.bounds)
    item = pystac.Item("scene", mapping(box(*outline)), list(outline), dt.datetime(2020, 1, 1, tzinfo=dt.UTC), {})
    more = {
        "eo:bands": [{"name": name, "common_name": name} for name in ("red", "green", "blue")],
        "raster:bands": [{"data_type": "uint8"}] * 3,
    }
    asset = pystac.Asset(url, media_type="image/tiff; application=geotiff", roles=["data"], extra_fields=more)
    item.add_asset("image", asset)
    item.stac_extensions += [
        "https://stac-extensions.github.io/eo/v1.1.0/schema.json",
        "https://stac-extensions.github.io/raster/v1.1.0/schema.json",
        "https://stac-extensions.github.io/projection/v1.1.0/schema.json",
    ]
    item.properties |= {
        "proj:epsg": raster.crs.to_epsg(),
        "proj:shape": list(raster.shape),
        "proj:transform": list(raster.transform)[:6],
    }
    return item


def async_reader(most: int) -> Reader | None:
    """async-geotiff on obstore, so many windows in flight."""
    try:
        import async_geotiff
        from obstore.store import HTTPStore
    except ImportError:
        return None

    async def read_all(reads: Sequence[Read]) -> list[int]:
        store = HTTPStore(reads[0][0].rsplit("/", 1)[0], client_options={"allow_http": True})
        opened = {
            url: await async_geotiff.GeoTIFF.open(url.rsplit("/", 1)[1], store=store)
            for url in dict.fromkeys(url for url, _ in reads)
        }
        slots = asyncio.Semaphore(most)

        async def one(url: str, window: Window) -> int:
            async with slots:
                wanted = async_geotiff.Window(window.col, window.row, window.width, window.height)
                found = await opened[url].read(window=wanted)
                return int(np.asarray(found.data).sum(dtype=np.int64))

        return list(await asyncio.gather(*(one(*each) for each in reads)))

    return lambda reads: asyncio.run(read_all(reads))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latency", type=float, action="append", help="seconds before each answer; may be repeated")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "geodino-benchmarks" / "remote")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    options.folder.mkdir(parents=True, exist_ok=True)
    paths = make_files(options.folder)
    readers: dict[str, Reader | None] = {f"geodino, {threads} threads": geodino_reader(threads) for threads in (8, 16)}
    readers |= {f"rasterio, {threads} threads": rasterio_reader(threads) for threads in (1, 8, 16)}
    readers |= {"async-geotiff, 8 in flight": async_reader(8), "async-geotiff, 16 in flight": async_reader(16)}
    readers |= {"odc-stac, 8 threads": odc_reader()}
    columns = f"{'windows/s':>10}{'bytes of needed':>17}{'requests':>10}{'CPU s':>8}"
    print(f"{'order':<8}{'latency ms':>11}  {'reader':<30}{columns}")
    for latency in options.latency or [0.02, 0.1]:
        for order in ("random", "rows"):
            truth = None
            for name, read in readers.items():
                if read is None:
                    print(f"{name} is not installed", file=sys.stderr)
                    continue
                with range_server(options.folder, latency) as server:
                    urls = [f"{server.url}/{path.name}" for path in paths]
                    reads = windows(order, urls)
                    cpu, began = time.process_time(), time.perf_counter()
                    sums = read(reads)
                    took, cpu = time.perf_counter() - began, time.process_time() - cpu
                    paths_told = server.ask("totals")["paths"]
                truth = truth or sums
                if sums != truth:
                    raise SystemExit(f"{name} reads other pixels than geodino")
                sent = sum(told["sent"] for told in paths_told.values())
                asked = sum(told["requests"] for told in paths_told.values())
                print(
                    f"{order:<8}{latency * 1000:>11.0f}  {name:<30}{len(reads) / took:>10.1f}"
                    f"{sent / needed_bytes(reads, paths):>17.2f}{asked:>10}{cpu:>8.1f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
