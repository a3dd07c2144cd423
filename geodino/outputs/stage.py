"""Finished cells on their way to a COG: a plain tiled GeoTIFF, filled cell by cell.

A COG cannot be written in pieces, so cells are staged first, each exactly one TIFF block. Values are rounded to a
power of two of a metre on the way: 1/8 m is far under any canopy model's error and takes 4096 x 4096 pixels of
float32 with DEFLATE from 53 to 17 MB; rounding to 0.1 m, which is not a short binary number, only to 32 MB.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import rasterio
from odc.geo.geobox import GeoBox
from rasterio._err import CPLE_BaseError  # GDAL's own errors are no RasterioError and have no public name
from rasterio.crs import CRS
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader, DatasetWriter
from rasterio.windows import Window as RasterioWindow

from geodino.errors import ConfigError, OutputError
from geodino.grid import Grid, Window

NODATA = -9999.0
QUANTUM = 0.125

GDAL_ERRORS = (RasterioError, CPLE_BaseError)

STAGE_SUFFIX = ".stage.vrt"
"""Ends the name of a run's own description of pieces, the one kind of VRT that is opened."""


class Stage(Protocol):
    """Finished cells of a run as one raster, of which files are made: closed, and opened by `open_geotiff`."""

    @property
    def path(self) -> Path: ...
    @property
    def geobox(self) -> GeoBox: ...
    @property
    def extent(self) -> Window: ...
    @property
    def held(self) -> Collection[Window]:
        """Windows on its grid outside of which all is nodata."""
        ...

    @property
    def names(self) -> tuple[str, ...]: ...
    @property
    def quantum(self) -> float | None: ...
    @property
    def size_bytes(self) -> int: ...


class StagedRaster:
    """A tiled GeoTIFF that is filled cell by cell; use from one thread.

    Pixels that were never written are nodata. At most one cell and GDAL's block cache are in memory.
    """

    def __init__(
        self,
        path: Path,
        geobox: GeoBox,
        extent: Window,
        *,
        block: int,
        names: Sequence[str],
        quantum: float | None = QUANTUM,
    ) -> None:
        if block <= 0 or block % 16:
            raise ValueError(f"block {block} px must be a positive multiple of 16")
        if extent.height % block or extent.width % block or extent.empty:
            raise ValueError(f"extent {extent.shape} px must be a multiple of the block of {block} px")
        if quantum is not None and not 0 < quantum < math.inf:
            raise ConfigError(f"quantum {quantum:g} must be over 0 and finite, or None to keep values as they are")
        self.path, self.geobox, self.extent, self.block, self.quantum = path, geobox, extent, block, quantum
        self.names = tuple(names)
        self._checksums: dict[Window, int] = {}
        self._dataset = self._create()

    @classmethod
    def create(
        cls,
        path: Path,
        grid: Grid,
        extent: Window,
        *,
        block: int,
        names: Sequence[str],
        quantum: float | None = QUANTUM,
    ) -> StagedRaster:
        """An empty raster over `extent`, all nodata.

        Parameters
        ----------
        path
            Written at once; the caller removes it.
        extent
            On the grid; a multiple of `block` in both directions.
        block
            Side of a cell and of a TIFF block, pixels; a multiple of 16.
        names
            One a band.
        quantum
            Values are rounded to a multiple of this; a power of two compresses best. None: they are not.

        Raises
        ------
        ConfigError
            The quantum is no step.
        OutputError
            The file cannot be made.
        """
        return cls(path, grid.geobox(extent), extent, block=block, names=names, quantum=quantum)

    @property
    def size_bytes(self) -> int:
        """Of the file."""
        return self.path.stat().st_size

    @property
    def held(self) -> Collection[Window]:
        """The cells that were written."""
        return self._checksums.keys()

    def write(self, cell: Window, values: npt.NDArray[np.float32]) -> None:
        """Write one cell, shape (K, block, block), NaN = nodata.

        Raises
        ------
        ValueError
            The cell is not a whole block of the extent, or was written before.
        OutputError
            The values are infinite, or the disk refuses.
        """
        row, col = cell.row - self.extent.row, cell.col - self.extent.col
        if cell.shape != (self.block, self.block) or row % self.block or col % self.block:
            raise ValueError(f"{cell} is not one block of {self.block} px of {self.extent}")
        if cell in self._checksums:
            raise ValueError(f"{cell} was written before")
        if np.isinf(values).any():
            raise OutputError(f"infinite values at {cell}: the model did not give heights there")
        rounded = values if self.quantum is None else np.round(values / self.quantum) * self.quantum
        # Adding zero turns -0.0 into 0.0.
        stored = np.where(np.isnan(rounded), np.float32(NODATA), rounded + 0.0).astype(np.float32)
        try:
            self._dataset.write(stored, window=RasterioWindow(col, row, self.block, self.block))
        except GDAL_ERRORS as error:
            raise OutputError(f"cannot write {self.path}: {error}") from error
        self._checksums[cell] = zlib.crc32(stored.data)

    def close(self) -> None:
        """Finish the file and read every cell back.

        Raises
        ------
        OutputError
            A cell is not what was written: the disk is full or fails.
        """
        try:
            self._dataset.close()
            with open_geotiff(self.path) as staged:
                for cell, checksum in self._checksums.items():
                    row, col = cell.row - self.extent.row, cell.col - self.extent.col
                    kept = staged.read(window=RasterioWindow(col, row, self.block, self.block))
                    if zlib.crc32(kept.data) != checksum:
                        raise OutputError(f"{self.path} does not hold what was written at {cell}: is the disk full?")
        except GDAL_ERRORS as error:
            raise OutputError(f"cannot finish {self.path}: {error}: is the disk full?") from error

    def _create(self) -> DatasetWriter:
        try:
            dataset = rasterio.open(
                self.path,
                "w",
                driver="GTiff",
                dtype="float32",
                count=len(self.names),
                height=self.extent.height,
                width=self.extent.width,
                crs=rasterio_crs(self.geobox),
                transform=self.geobox.affine,
                nodata=NODATA,
                tiled=True,
                blockxsize=self.block,
                blockysize=self.block,
                interleave="band",
                compress="ZSTD",
                zstd_level=1,
                predictor=3,
                bigtiff="IF_SAFER",
                sparse_ok=True,  # a block that is never written takes no space and reads as nodata
            )
            dataset.descriptions = self.names
        except GDAL_ERRORS as error:
            raise OutputError(f"cannot make {self.path}: {error}") from error
        return dataset


def open_geotiff(path: Path) -> DatasetReader:
    """The file, opened by GDAL's GTiff driver and no other; but for what a run has staged in pieces."""
    return rasterio.open(path, driver="VRT" if path.name.endswith(STAGE_SUFFIX) else "GTiff")


def rasterio_crs(geobox: GeoBox) -> CRS:
    """The GeoBox's CRS as rasterio's."""
    return CRS.from_user_input(str(geobox.crs))
