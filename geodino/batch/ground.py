"""Whose ground is whose: of jobs that overlap, the first in the mosaic's order that mapped a pixel has it.

A job that goes later gives the ground that those before it have no value for, and its trees count there only. So no
ground and no tree is in the result twice, though two pictures may show one tree on both sides of such a seam, or on
neither: they were not taken from the same place.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import rasterio
from rasterio.enums import Resampling
from rasterio.io import DatasetReader
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window as RasterioWindow

from geodino.batch.mapped import SCENE, Mapped
from geodino.errors import OutputError
from geodino.grid import Window
from geodino.outputs.stage import GDAL_ERRORS, rasterio_crs
from geodino.sources.raster import LOCAL_OPTIONS
from geodino.stores import Store

BLOCK = 512

Mask = npt.NDArray[np.bool_]


class Ground:
    """Which pixels of a job are its own, and which an earlier job's; `open_ground` makes one."""

    def __init__(self, mapped: Mapped, own: DatasetReader, earlier: Sequence[tuple[Mapped, DatasetReader]]) -> None:
        self._mapped, self._own = mapped, own
        self._window = Window(*mapped.window)
        lattice = (mapped.crs, mapped.gsd_m)
        self._aligned = [
            (raster, Window(*other.window)) for other, raster in earlier if (other.crs, other.gsd_m) == lattice
        ]
        self._warped = [raster for other, raster in earlier if (other.crs, other.gsd_m) != lattice]

    def taken(self, window: Window) -> Mask:
        """Whether an earlier job has a value in the pixels of a window of the job's lattice, within its maps."""
        taken = np.zeros(window.shape, bool)
        for raster, extent in self._aligned:
            shared = window.intersection(extent)
            if not shared.empty:
                taken[shared.slices_in(window)] |= self._read(raster, shared, extent)
        for raster in self._warped:
            taken |= self._read(raster, window, self._window)
        return taken

    def hectares(self) -> float:
        """Ground that the job has a value for and no earlier job has, on its grid."""
        blocks = self._window.blocks(BLOCK)
        pixels = sum(int((self._read(self._own, block, self._window) & ~self.taken(block)).sum()) for block in blocks)
        return pixels * self._mapped.gsd_m**2 / 1e4

    def taken_at(self, x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> Mask:
        """Whether an earlier job has a value at points in the job's CRS, shape (N,).

        A point on the edge of two pixels counts to the one in the east or north, as in `AOIMask`.
        """
        gsd, extent, slack = self._mapped.gsd_m, self._window, 1e-2
        rows = np.clip(np.ceil(-y / gsd - slack).astype(np.int64) - 1, extent.row, extent.row_stop - 1)
        cols = np.clip(np.floor(x / gsd + slack).astype(np.int64), extent.col, extent.col_stop - 1)
        taken = np.zeros(len(x), bool)
        blocks = np.stack([rows // BLOCK, cols // BLOCK], axis=1)
        for row, col in np.unique(blocks, axis=0):
            here = np.flatnonzero((blocks == (row, col)).all(axis=1))
            block = Window(int(row) * BLOCK, int(col) * BLOCK, BLOCK, BLOCK).intersection(extent)
            taken[here] = self.taken(block)[rows[here] - block.row, cols[here] - block.col]
        return taken

    def _read(self, raster: DatasetReader, window: Window, extent: Window) -> Mask:
        rows, cols = window.slices_in(extent)
        part = RasterioWindow(cols.start, rows.start, window.width, window.height)
        try:
            return np.asarray(raster.read(1, window=part) != 0)
        except GDAL_ERRORS as error:
            raise OutputError(
                f"cannot read {SCENE} of {self._mapped.id} or of a job that it overlaps: {error}"
            ) from error


class Share(NamedTuple):
    """What a job adds to those before it: its own ground in hectares, and how many of its trees stand there."""

    own_ha: float
    trees: int


@contextmanager
def open_ground(store: Store, mapped: Mapped, earlier: Sequence[Mapped]) -> Iterator[Ground]:
    """The ground of a job among the jobs before it that it may overlap.

    Their maps of scenes are held as they lie in the store, compressed.

    Raises
    ------
    OutputError
        One of them is gone or cannot be read.
    """
    with ExitStack() as opened:
        opened.enter_context(rasterio.Env(**LOCAL_OPTIONS))
        own = _open(opened, store, mapped)
        rasters = []
        geobox = mapped.geobox
        for other in earlier:
            raster = _open(opened, store, other)
            if (other.crs, other.gsd_m) != (mapped.crs, mapped.gsd_m):
                # The tolerance, pixels, keeps neighbours apart; GDAL takes no 0.
                raster = opened.enter_context(
                    WarpedVRT(
                        raster, crs=rasterio_crs(geobox), transform=geobox.affine, height=geobox.shape[0],
                        width=geobox.shape[1], resampling=Resampling.nearest, src_nodata=0, nodata=0, tolerance=0.01,
                    )
                )  # fmt: skip
            rasters.append((other, raster))
        yield Ground(mapped, own, rasters)


def _open(opened: ExitStack, store: Store, mapped: Mapped) -> DatasetReader:
    found = store.get(f"{mapped.key}/{SCENE}")
    if found is None:
        raise OutputError(f"{store}/{mapped.key}/{SCENE} is gone: run the job {mapped.id} again")
    try:
        return opened.enter_context(opened.enter_context(rasterio.MemoryFile(found)).open())
    except GDAL_ERRORS as error:
        raise OutputError(
            f"cannot read {store}/{mapped.key}/{SCENE}: {error}: run the job {mapped.id} again"
        ) from error
