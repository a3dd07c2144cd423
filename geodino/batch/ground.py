"""Whose ground is whose: of jobs that overlap, the first in the mosaic's order that mapped a pixel has it.

But not in its rim, the outermost pixels of its maps, where a model sees little of what lies around: there a job goes
behind those that have the pixel farther in. A pixel is in the rim on none, one or both of two accounts, west to east
and north to south, and the fewer come first. So a seam between two pictures lies within both where they share enough.

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
import shapely
from pyproj import CRS as ProjCRS
from rasterio.enums import Resampling
from rasterio.io import DatasetReader
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window as RasterioWindow

from geodino.batch.mapped import SCENE, Mapped
from geodino.errors import OutputError
from geodino.grid import Window
from geodino.outputs.stage import GDAL_ERRORS, rasterio_crs
from geodino.polygons import densified, projected
from geodino.sources.raster import LOCAL_OPTIONS
from geodino.stores import Store

BLOCK = 512

Mask = npt.NDArray[np.bool_]
Doubles = npt.NDArray[np.float64]
Whole = npt.NDArray[np.int64]
Depths = npt.NDArray[np.uint8]


class _Depth:
    """How far in a job has pixels of its own lattice or of another job's: 2, less 1 for each account of its rim."""

    def __init__(self, job: Mapped, lattice: Mapped) -> None:
        parts = [part for part in (job.tall, job.wide) if not part.empty]
        shapes = np.array([shapely.box(*job.grid.bounds(part)) for part in parts], object)
        if job.crs != lattice.crs:
            crs = ProjCRS(job.crs)
            shapes = projected(densified(shapes, crs), crs, ProjCRS(lattice.crs))
        self._grid, self._shapes = lattice.grid, shapes
        shapely.prepare(self._shapes)

    def at(self, rows: Whole, cols: Whole) -> Depths:
        """Of the middles of pixels."""
        x, y = (cols + 0.5) * self._grid.gsd, -(rows + 0.5) * self._grid.gsd
        depths = np.zeros(x.shape, np.uint8)
        for shape in self._shapes:
            depths += shapely.contains_xy(shape, x, y)
        return depths

    def over(self, window: Window) -> Depths:
        """Of all pixels of a window."""
        around = shapely.box(*self._grid.bounds(window))
        whole = int(shapely.contains(self._shapes, around).sum())
        if whole == int(shapely.intersects(self._shapes, around).sum()):
            return np.full(window.shape, whole, np.uint8)
        rows, cols = np.mgrid[window.row : window.row_stop, window.col : window.col_stop]
        return self.at(rows, cols)


class _Other(NamedTuple):
    """A job that another overlaps: its map of scenes on that one's lattice, and the pixels that this covers."""

    job: Mapped
    raster: DatasetReader
    extent: Window
    depth: _Depth


class Ground:
    """Which pixels of a job are its own, and which another's; `open_ground` makes one."""

    def __init__(self, mapped: Mapped, own: DatasetReader, others: Sequence[tuple[Mapped, DatasetReader]]) -> None:
        self._mapped, self._own, self._depth = mapped, own, _Depth(mapped, mapped)
        self._window = Window(*mapped.window)
        self._others = [
            _Other(job, raster, Window(*job.window) if job.lattice == mapped.lattice else self._window,
                   _Depth(job, mapped))
            for job, raster in others
        ]  # fmt: skip

    def taken(self, window: Window) -> Mask:
        """Whether a job that goes before this one there has a value in the pixels of a window of this one's lattice."""
        taken, depths = np.zeros(window.shape, bool), self._depth.over(window)
        for other in self._others:
            shared = window.intersection(other.extent)
            if shared.empty:
                continue
            here = shared.slices_in(window)
            ahead = _goes_before(other.job, self._mapped, other.depth.over(shared), depths[here])
            if ahead.any():
                taken[here] |= ahead & self._read(other.raster, shared, other.extent)
        return taken

    def hectares(self) -> float:
        """Ground that the job has a value for and that is no other's, on its grid."""
        blocks = self._window.blocks(BLOCK)
        pixels = sum(int((self._read(self._own, block, self._window) & ~self.taken(block)).sum()) for block in blocks)
        return pixels * self._mapped.gsd_m**2 / 1e4

    def taken_at(self, x: Doubles, y: Doubles) -> Mask:
        """Whether a job that goes before this one has a value at points in this one's CRS, shape (N,)."""
        rows, cols = _pixels(self._mapped, x, y)
        taken = np.zeros(len(x), bool)
        blocks = np.stack([rows // BLOCK, cols // BLOCK], axis=1)
        for row, col in np.unique(blocks, axis=0):
            here = np.flatnonzero((blocks == (row, col)).all(axis=1))
            block = Window(int(row) * BLOCK, int(col) * BLOCK, BLOCK, BLOCK)
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


def goes_before(other: Mapped, mapped: Mapped, x: Doubles, y: Doubles) -> Mask:
    """Whether a job goes before another at points, shape (N,), in the CRS of whichever is the earlier of the two."""
    first = min(other, mapped, key=lambda job: job.rank)
    theirs, own = (_Depth(job, first).at(*_pixels(first, x, y)) for job in (other, mapped))
    return _goes_before(other, mapped, theirs, own)


def _goes_before(other: Mapped, mapped: Mapped, theirs: Depths, own: Depths) -> Mask:
    return theirs >= own if other.rank < mapped.rank else theirs > own


def _pixels(mapped: Mapped, x: Doubles, y: Doubles) -> tuple[Whole, Whole]:
    """The rows and columns of points on a job's lattice.

    A point on the edge of two pixels counts to the one in the east or north, as in `AOIMask`.
    """
    gsd, slack = mapped.gsd_m, 1e-2
    return np.ceil(-y / gsd - slack).astype(np.int64) - 1, np.floor(x / gsd + slack).astype(np.int64)


class Share(NamedTuple):
    """What a job adds to the others: its own ground in hectares, and how many of its trees stand there."""

    own_ha: float
    trees: int


@contextmanager
def open_ground(store: Store, mapped: Mapped, others: Sequence[Mapped]) -> Iterator[Ground]:
    """The ground of a job among the other jobs that it may overlap.

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
        for other in others:
            raster = _open(opened, store, other)
            if other.lattice != mapped.lattice:
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
