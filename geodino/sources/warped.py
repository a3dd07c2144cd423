"""Scenes on the run's grid, each read by window from many threads through the one warp of its whole footprint.

Nothing is opened before the first read. What a network does in the meantime is met here: a read that fails is tried
again with the file opened anew.
"""

from __future__ import annotations

import contextlib
import logging
import random
import threading
import time
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import rasterio
from rasterio.windows import Window as RasterWindow

from geodino.errors import ReadError
from geodino.grid import Grid, Window
from geodino.sources.raster import (
    GDAL_ERRORS,
    causes,
    environment,
    forget,
    is_remote,
    open_raster,
    read_errors,
    without_secrets,
)
from geodino.sources.scene import Scene, ground_gsd
from geodino.sources.signing import signed
from geodino.sources.warp import (
    ALPHA_VALID,
    Level,
    footprint_window,
    pick_overview,
    warp_document,
)

logger = logging.getLogger(__name__)

# A body that ends early or a connection that resets is not retried by GDAL (OSGeo/gdal#12933), and the second try of
# the same read went well in each case measured.
REMOTE_ATTEMPTS = 3
RETRY_DELAY_S = 0.5
# Scenes a thread keeps open: a window seldom meets more, and an open one holds decoded blocks. Measured on
# 2026-11 for 8 threads and a stack of 24 scenes in float32 blocks of 1024 px: 1 GiB with 2, 1.4 GiB with 4 or 16, and
# no slower with 2.
HANDLES_PER_THREAD = 2


class WarpedScenes:
    """The scenes of a mosaic, each as it lies on the grid.

    Parameters
    ----------
    scenes
        In mosaic order.
    grid
        The run's grid.
    resampling
        How pixels come onto the grid.

    Attributes
    ----------
    windows
        The smallest window of the grid that holds each scene's footprint.
    """

    def __init__(self, scenes: Sequence[Scene], grid: Grid, resampling: str) -> None:
        self.scenes, self.grid = tuple(scenes), grid
        self.windows = [footprint_window(scene, grid) for scene in self.scenes]
        self._resampling = resampling
        self._levels: dict[int, Level] = {}
        self._local = threading.local()
        self._lock = threading.Lock()
        self._handles: set[rasterio.DatasetReader] = set()
        self._closed = False

    def read(self, number: int, part: Window) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        """Digital numbers (3, H, W) and validity (H, W) of a part of a scene's footprint, tried again if remote."""
        scene = self.scenes[number]
        hrefs = list(dict.fromkeys(band.href for band in scene.bands))
        attempts = REMOTE_ATTEMPTS if any(map(is_remote, hrefs)) else 1
        for attempt in range(1, attempts + 1):
            try:
                with environment(hrefs):
                    return self._warp(number, part)
            except GDAL_ERRORS as error:
                self._drop_handle(number)
                for href in hrefs:
                    forget(signed(href, scene.sign))
                what = f"scene {scene.id} ({', '.join(map(without_secrets, hrefs))}), window {part}"
                if attempt == attempts:
                    tried = f" after {attempts} attempts" if attempts > 1 else ""
                    raise ReadError(f"{what} cannot be read{tried}: {causes(error)}") from error
                logger.warning("%s: attempt %d of %d failed: %s", what, attempt, attempts, causes(error))
                time.sleep(RETRY_DELAY_S * 2 ** (attempt - 1) * random.uniform(0.5, 1.5))
        raise AssertionError("unreachable")

    def _warp(self, number: int, part: Window) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        whole = self.windows[number]
        window = RasterWindow(part.col - whole.col, part.row - whole.row, part.width, part.height)
        pixels: npt.NDArray[np.float32] = self._handle(number).read(window=window)
        dn, alpha = pixels[:3], pixels[3]
        return dn, (alpha >= ALPHA_VALID) & np.isfinite(dn).all(axis=0)

    def _handle(self, number: int) -> rasterio.DatasetReader:
        """This thread's open warp of a scene; the one used longest ago makes room."""
        mine: dict[int, rasterio.DatasetReader] = self._local.__dict__.setdefault("handles", {})
        handle = mine.pop(number, None)
        if handle is None:
            handle = self._open(number)
        mine[number] = handle
        if len(mine) > HANDLES_PER_THREAD:
            self._drop_handle(next(iter(mine)))
        return handle

    def _drop_handle(self, number: int) -> None:
        handle = self._local.__dict__.get("handles", {}).pop(number, None)
        if handle is not None:
            with self._lock:
                self._handles.discard(handle)
            with contextlib.suppress(*GDAL_ERRORS):
                handle.close()

    def _open(self, number: int) -> rasterio.DatasetReader:
        scene = self.scenes[number]
        red, green, blue = (signed(band.href, scene.sign) for band in scene.bands)
        level = self._level(number, red)
        document = warp_document(scene, level, (red, green, blue), self.grid, resampling=self._resampling)
        with contextlib.ExitStack() as checked:
            # Inside the document GDAL opens whatever it finds. While these are open it finds the header that they
            # read, so a remote file cannot have become a VRT of local files since it was described.
            for href in {red, green, blue}:
                checked.enter_context(open_raster(href))
            handle = rasterio.open(document, driver="VRT", sharing=False)
        with self._lock:
            if self._closed:
                handle.close()
                raise ValueError("the mosaic is closed")
            self._handles.add(handle)
        return handle

    def _level(self, number: int, href: str) -> Level:
        """The raster or overview of a scene that is warped; looked up once, the same for all threads."""
        with self._lock:
            if number not in self._levels:
                self._levels[number] = choose_level(self.scenes[number], href, self.grid.gsd)
            return self._levels[number]

    def close(self) -> None:
        """Closes all files of all threads; no read may be under way or follow."""
        with self._lock:
            self._closed = True
            while self._handles:
                self._handles.pop().close()


def choose_level(scene: Scene, href: str, gsd: float) -> Level:
    """The coarsest of a scene's overviews that is not coarser than `gsd` metres, or the full raster.

    Parameters
    ----------
    href
        Of the file to look in, signed where need be.
    """
    full = Level(None, scene.transform, scene.shape)
    if gsd < 2 * scene.gsd * 0.99:
        return full
    gsds = []
    levels = []
    with open_raster(href) as raster:
        count = len(raster.overviews(scene.bands[0].index))
    for overview in range(count):
        with read_errors(href), open_raster(href, overview=overview) as raster:
            levels.append(Level(overview, raster.transform, raster.shape))
            gsds.append(ground_gsd(scene.crs, raster.transform, raster.shape))
    chosen = pick_overview(scene, gsds, gsd)
    return full if chosen is None else levels[chosen]
