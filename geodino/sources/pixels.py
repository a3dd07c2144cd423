"""Pixels of raster files as they lie in them, each block fetched and decoded once for all threads that read.

Windows of a run overlap and share blocks, and several threads read them. So whole blocks are decoded and kept in
bounded memory, and windows are put together from them.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import rasterio
from rasterio.enums import MaskFlags
from rasterio.windows import Window as RasterWindow

from geodino.errors import ReadError, SourceError
from geodino.grid import Window
from geodino.redaction import without_secrets
from geodino.sources import ranges
from geodino.sources.kept import Kept
from geodino.sources.ranges import AttemptError, patiently
from geodino.sources.raster import (
    GDAL_ERRORS,
    causes,
    driver_of,
    environment,
    forget,
    is_remote,
    local_path,
    open_raster,
)
from geodino.sources.remote import DAMAGED_ATTEMPTS, LocalTiff, RemoteTiff, open_remote
from geodino.sources.signing import signed

logger = logging.getLogger(__name__)

# Decoded blocks that are kept: two rows of blocks of 512 px in three 8-bit bands, 21,000 px wide.
KEPT_BYTES = 64 * 2**20
# Smaller blocks are decoded some at a time, px a side; strips have the whole width anyway.
LEAST_SIDE = 256
LEAST_STRIP = 64
# How a multihash begins that is a SHA-256 of 32 bytes (https://github.com/multiformats/multihash).
SHA2_256 = "1220"
# Files that a thread keeps open, and remote files of which parts lie on disk.
HANDLES_PER_THREAD = 4
REMOTE_FILES = 128
# Headers of files and overviews that are remembered.
MOST_HEADERS = 4096


class Asked(NamedTuple):
    """Which pixels: a file (unsigned), its signing hook, its overview (None: the full raster), and bands by number."""

    href: str
    sign: str | None
    overview: int | None
    bands: tuple[int, ...]


class Planes(NamedTuple):
    """Values (K, H, W) as in the file, and where its mask says valid (H, W); None where it has none."""

    values: npt.NDArray[np.generic]
    mask: npt.NDArray[np.bool_] | None


class _Header(NamedTuple):
    """What is known of a file or overview without its pixels: (height, width), and each band's blocks likewise."""

    shape: tuple[int, int]
    blocks: tuple[tuple[int, int], ...]


class PixelFiles:
    """Windows of files, read from many threads.

    Parameters
    ----------
    verify
        Whether the bytes of blocks are held against their checksums, where they have them, and otherwise the file's
        against `checksums`.
    checksums
        By href, multihashes in hexadecimal digits.

    Attributes
    ----------
    unverified
        Sentences about files that were to be verified and have nothing to be held against.
    """

    def __init__(self, *, verify: bool = False, checksums: Mapping[str, str] | None = None) -> None:
        self._verify, self._checksums = verify, checksums or {}
        self.unverified: list[str] = []
        self._kept: Kept[tuple[Asked, Window], Planes] = Kept(KEPT_BYTES, _bytes_of)
        self._tiffs: Kept[tuple[str, str | None], RemoteTiff | LocalTiff] = Kept(REMOTE_FILES, lambda tiff: 1)
        self._headers: Kept[tuple[str, str | None, int | None], _Header] = Kept(MOST_HEADERS, lambda header: 1)
        self._local = threading.local()
        self._lock = threading.Lock()
        self._open: set[rasterio.DatasetReader] = set()
        self._closed = False
        self._stop = threading.Event()
        self._patience = replace(ranges.PATIENCE, stop=self._stop)

    def stop(self) -> None:
        """Have reads under way end soon, with an error, however much patience they have."""
        self._stop.set()

    def read(self, asked: Asked, window: Window) -> Planes:
        """The pixels of a window that lies within the image.

        Raises
        ------
        ReadError
            The file cannot be reached, read or decoded; says why.
        """
        header = self._header(asked)
        height, width = _unit(header, asked)
        image = Window(0, 0, *header.shape)
        units = [
            Window(row, col, height, width).intersection(image)
            for row in range(window.row // height * height, window.row_stop, height)
            for col in range(window.col // width * width, window.col_stop, width)
        ]
        keys = [(asked, unit) for unit in units]
        found = self._kept.get_all(keys, lambda keys: self._decode(asked, [unit for _, unit in keys]))
        values = np.empty((len(asked.bands), *window.shape), found[0].values.dtype)
        mask = None if found[0].mask is None else np.empty(window.shape, bool)
        for unit, planes in zip(units, found, strict=True):
            part = unit.intersection(window)
            here, there = part.slices_in(window), part.slices_in(unit)
            values[:, *here] = planes.values[:, *there]
            if mask is not None and planes.mask is not None:
                mask[here] = planes.mask[there]
        return Planes(values, mask)

    def open(self, asked: Asked) -> rasterio.DatasetReader:
        """The file or overview itself, for its header; of a remote file no pixel may be read from it."""
        return self._plain(asked, asked.overview)

    def shape(self, asked: Asked) -> tuple[int, int]:
        """(height, width) of the file or overview."""
        return self._header(asked).shape

    def overviews(self, asked: Asked) -> list[tuple[tuple[int, int], rasterio.Affine]]:
        """(height, width) and transform of each overview of a file's first asked band."""
        with self._plain(asked, None) as raster:
            count = len(raster.overviews(asked.bands[0]))
        found = []
        for overview in range(count):
            with self._plain(asked, overview) as raster:
                found.append((raster.shape, raster.transform))
        return found

    def close(self) -> None:
        """Closes all files of all threads; no read may be under way or follow."""
        with self._lock:
            self._closed = True
            while self._open:
                self._open.pop().close()
        self._kept.clear()
        self._tiffs.clear()

    def _decode(self, asked: Asked, units: list[Window]) -> list[Planes]:
        """Whole blocks, decoded; fetched again where what came cannot be decoded."""

        def attempt(number: int) -> list[Planes]:
            shape, tiff = self._header(asked).shape, self._tiff(asked)
            if tiff is not None:
                tiff.need(shape, units)
            try:
                with environment([asked.href]):
                    if not isinstance(tiff, RemoteTiff):
                        return [_planes(self._handle(asked), asked, unit) for unit in units]
                    # Opened after its blocks came: see `remote`.
                    with _reopened(tiff, asked.overview) as raster:
                        return [_planes(raster, asked, unit) for unit in units]
            except GDAL_ERRORS as error:
                self._drop(asked)
                if isinstance(tiff, RemoteTiff):
                    tiff.forget(shape, units)
                elif is_remote(asked.href):
                    forget(signed(asked.href, asked.sign, again=number > 1))
                final = number >= DAMAGED_ATTEMPTS or not is_remote(asked.href)
                raise AttemptError(causes(error), final=final) from error

        first, last = units[0], units[-1]
        where = f"rows {first.row} to {last.row_stop}, columns {first.col} to {last.col_stop}"
        return patiently(f"{without_secrets(asked.href)}, {where}", attempt, self._patience)

    def _header(self, asked: Asked) -> _Header:
        def read(raster: rasterio.DatasetReader) -> _Header:
            with raster:
                return _Header(raster.shape, tuple(raster.block_shapes))

        return self._headers.get(asked[:3], lambda: read(self.open(asked)))

    def _handle(self, asked: Asked) -> rasterio.DatasetReader:
        """This thread's open file; the one used longest ago makes room."""
        mine: OrderedDict[tuple[str, int | None], rasterio.DatasetReader] = self._local.__dict__.setdefault(
            "handles", OrderedDict()
        )
        key = (asked.href, asked.overview)
        if key not in mine:
            raster = self.open(asked)
            with self._lock:
                if self._closed:
                    raster.close()
                    raise ValueError("the files are closed")
                self._open.add(raster)
            mine[key] = raster
        mine.move_to_end(key)
        while len(mine) > HANDLES_PER_THREAD:
            self._shut(mine.popitem(last=False)[1])
        return mine[key]

    def _drop(self, asked: Asked) -> None:
        raster = self._local.__dict__.get("handles", {}).pop((asked.href, asked.overview), None)
        if raster is not None:
            self._shut(raster)

    def _shut(self, raster: rasterio.DatasetReader) -> None:
        with self._lock:
            self._open.discard(raster)
        with contextlib.suppress(*GDAL_ERRORS):
            raster.close()

    def _tiff(self, asked: Asked) -> RemoteTiff | LocalTiff | None:
        """Where the bytes of a TIFF come from; None where GDAL reads them itself: local files, and other formats."""
        if driver_of(asked.href) != "GTiff":
            return None
        if is_remote(asked.href) or self._verify:
            return self._tiffs.get(asked[:2], lambda: self._begun(asked.href, asked.sign))
        return None

    def _begun(self, href: str, sign: str | None) -> RemoteTiff | LocalTiff:
        if is_remote(href):
            tiff: RemoteTiff | LocalTiff = open_remote(href, sign, verify=self._verify, patience=self._patience)
        else:
            tiff = LocalTiff(local_path(href))
        if self._verify and not all(directory.has_checksum for directory in tiff.directories):
            said = self._checksums.get(href, "")
            name = without_secrets(href)
            if not said.startswith(SHA2_256):
                codecs = ", ".join(
                    sorted({directory.codec for directory in tiff.directories if not directory.has_checksum})
                )
                self.unverified.append(f"{name} cannot be verified: {codecs} blocks and its Item hold no checksum")
            elif tiff.hash_whole().hex() != said.removeprefix(SHA2_256).lower():
                raise ReadError(f"{name} is not the file that its Item describes: another SHA-256; fetch it again")
        return tiff

    def _plain(self, asked: Asked, overview: int | None) -> rasterio.DatasetReader:
        tiff = self._tiff(asked)
        if tiff is not None:
            try:
                return open_raster(str(tiff.path), overview=overview)
            except (ReadError, SourceError) as error:
                said = str(error).replace(str(tiff.path), without_secrets(asked.href))
                raise type(error)(said) from error
        return open_raster(signed(asked.href, asked.sign), overview=overview)


def _reopened(tiff: RemoteTiff, overview: int | None) -> rasterio.DatasetReader:
    """A file that was opened and checked before."""
    level = {} if overview is None else {"overview_level": overview}
    return rasterio.open(tiff.path, driver="GTiff", sharing=False, **level)


def _unit(header: _Header, asked: Asked) -> tuple[int, int]:
    """Rows and columns that are decoded together: whole blocks."""
    height, width = header.blocks[asked.bands[0] - 1]
    if width >= header.shape[1]:
        return height * -(-LEAST_STRIP // height), header.shape[1]
    return height * -(-LEAST_SIDE // height), width * -(-LEAST_SIDE // width)


def _planes(raster: rasterio.DatasetReader, asked: Asked, unit: Window) -> Planes:
    window = RasterWindow(unit.col, unit.row, unit.width, unit.height)
    values = raster.read(list(asked.bands), window=window)
    flags = raster.mask_flag_enums[asked.bands[0] - 1]
    if MaskFlags.per_dataset not in flags or MaskFlags.alpha in flags:
        return Planes(values, None)
    return Planes(values, raster.read_masks(asked.bands[0], window=window) > 0)


def _bytes_of(planes: Planes) -> int:
    return planes.values.nbytes + (0 if planes.mask is None else planes.mask.nbytes)
