"""Maps that can be read by window, larger than memory: what a run has staged, or a GeoTIFF that somebody else made."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol

import numpy as np
import numpy.typing as npt
from odc.geo.crs import CRS
from rasterio.io import DatasetReader
from rasterio.windows import Window as RasterioWindow

from geodino.errors import ConfigError, InputError, ReadError
from geodino.grid import MAX_SCALE_ERROR, Grid, Window, by_code, is_metric
from geodino.outputs.stage import GDAL_ERRORS, open_geotiff

Floats = npt.NDArray[np.float32]

# Share of a cell that a file's corner may lie off the grid's lattice and still hang on it: the rounding noise of a
# file's transform, as in `Grid.window_over`.
_SLACK = 1e-3


class Surface(Protocol):
    """A map on a lattice of square cells, read by window.

    Attributes
    ----------
    grid
        Of its cells, each `grid.gsd` metres wide.
    origin
        (x, y) in the CRS of the north-west corner of cell (0, 0); (0, 0) for a lattice that hangs on the CRS's origin,
        as all of geodino's own do.
    extent
        The cells that it has, on that lattice.
    names
        Of its bands.
    """

    @property
    def grid(self) -> Grid: ...
    @property
    def origin(self) -> tuple[float, float]: ...
    @property
    def extent(self) -> Window: ...
    @property
    def names(self) -> tuple[str, ...]: ...

    def read(self, window: Window, names: Sequence[str]) -> Floats:
        """Shape (K, H, W) of the named bands; NaN where there is nodata and outside the extent."""
        ...


class RasterSurface:
    """A surface in a GeoTIFF; use from one thread, and close it (it is a context manager).

    Where the file's cells hang on the CRS's origin, to a thousandth of a cell, so does the surface: the same ground
    has the same row and column in every such file. Somebody else's raster may hang anywhere. Then the lattice hangs on
    the file's own north-west corner, which is its `origin`: results do not depend on how that file is read, but two
    files of one ground that hang on different corners may differ.

    Nodata is what the file says is nodata (its value, mask or alpha band), and what is not finite. A scale and offset
    that the file states are applied.

    Parameters
    ----------
    path
        Read by GDAL's GeoTIFF driver and no other.
    names
        What its bands are, in their order; as the file describes them, or else `band 1` and so on, where left out.

    Raises
    ------
    ReadError
        The file is missing or no GeoTIFF.
    InputError
        Its CRS is missing or does not keep metres, or its cells are not square and north up.
    ConfigError
        The names are not one a band.
    """

    def __init__(self, path: Path | str, *, names: Sequence[str] | None = None) -> None:
        self.path = Path(path)
        try:
            self._dataset = open_geotiff(self.path)
        except GDAL_ERRORS as error:
            raise ReadError(f"{path} cannot be read as a GeoTIFF: {error}") from error
        try:
            self.grid, self.origin, self.extent = _lattice(self._dataset, self.path)
            self.names = _names(self._dataset, names, self.path)
        except (InputError, ConfigError):
            self.close()
            raise

    def read(self, window: Window, names: Sequence[str]) -> Floats:
        """Shape (K, H, W) of the named bands; NaN where there is nodata and outside the file.

        Raises
        ------
        ConfigError
            There is no band of that name.
        ReadError
            The file is damaged.
        """
        unknown = [name for name in names if name not in self.names]
        if unknown:
            raise ConfigError(f"{self.path} has no band {', '.join(unknown)}: it has {', '.join(self.names)}")
        found = np.full((len(names), *window.shape), np.nan, np.float32)
        inside = window.intersection(self.extent)
        if inside.empty or not names:
            return found
        bands = [self.names.index(name) for name in names]
        part = RasterioWindow(inside.col - self.extent.col, inside.row - self.extent.row, inside.width, inside.height)
        try:
            values = self._dataset.read([band + 1 for band in bands], window=part, masked=True)
        except GDAL_ERRORS as error:
            raise ReadError(f"{self.path} cannot be read: {error}") from error
        known = values.astype(np.float32).filled(np.nan)
        scales, offsets = np.array(self._dataset.scales)[bands], np.array(self._dataset.offsets)[bands]
        if (scales != 1).any() or (offsets != 0).any():
            known = (known * scales[:, None, None] + offsets[:, None, None]).astype(np.float32)
        known[np.isinf(known)] = np.nan
        found[:, *inside.slices_in(window)] = known
        return found

    def close(self) -> None:
        """Close the file."""
        self._dataset.close()

    def __enter__(self) -> RasterSurface:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _lattice(dataset: DatasetReader, path: Path) -> tuple[Grid, tuple[float, float], Window]:
    """The grid of the file's cells, the corner it hangs on, and the cells that the file has."""
    transform = dataset.transform
    gsd = float(transform.a)
    # A last row or column may be off by a hundredth of a cell.
    uneven = abs(transform.a + transform.e) * max(dataset.shape) > 0.01 * gsd
    if dataset.crs is None:
        raise InputError(f"{path} has no CRS, so nothing says where it lies: give it one with gdal_edit.py -a_srs")
    if transform.b or transform.d or gsd <= 0 or uneven:
        raise InputError(
            f"{path} has cells of {transform.a:g} by {-transform.e:g} that are not square and north up: "
            "bring it onto a square grid with gdalwarp -tr"
        )
    crs = by_code(CRS(dataset.crs.to_wkt()))
    if not is_metric(crs, *dataset.lnglat()):
        raise InputError(
            f"{path} is in {crs}, which is not in metres true to {MAX_SCALE_ERROR:.1%} there: "
            "bring it into its UTM zone with gdalwarp -t_srs"
        )
    col, row = transform.c / gsd, -transform.f / gsd
    hangs = max(abs(col - round(col)), abs(row - round(row))) <= _SLACK
    top, left = (round(row), round(col)) if hangs else (0, 0)
    origin = (0.0, 0.0) if hangs else (float(transform.c), float(transform.f))
    return Grid(crs, gsd), origin, Window(top, left, dataset.height, dataset.width)


def _names(dataset: DatasetReader, given: Sequence[str] | None, path: Path) -> tuple[str, ...]:
    if given is None:
        return tuple(name or f"band {band}" for band, name in enumerate(dataset.descriptions, start=1))
    if len(given) != dataset.count or len(set(given)) != len(given):
        raise ConfigError(f"{path} has {dataset.count} bands: {', '.join(given)} must be one name a band, each once")
    return tuple(given)
