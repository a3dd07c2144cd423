"""Where the blocks of a TIFF lie in its file, and whether the bytes of one are whole.

Only structure is read here; pixels are decoded by GDAL. TIFF 6.0, and BigTIFF as libtiff has it
(https://libtiff.gitlab.io/libtiff/specification/bigtiff.html). A header is data from strangers: every number is held
against the length of the file before anything is made of it.
"""

from __future__ import annotations

import contextlib
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from geodino.errors import ReadError
from geodino.grid import Window

Read = Callable[[int, int], bytes]

MOST_DIRECTORIES = 256
MOST_ENTRIES = 4096
# Of one tag's values: offsets of a million blocks are 8 MB.
MOST_VALUE_BYTES = 256 * 2**20
# Of a block as it lies in the file.
MOST_BLOCK_BYTES = 256 * 2**20

_PIECE = 2**20
DEFLATE = (8, 32946)
NONE = 1
_NAMES = {1: "uncompressed", 5: "LZW", 7: "JPEG", 8: "Deflate", 32946: "Deflate", 50000: "ZSTD", 50001: "WebP"}
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_INTEGERS = {1: "u1", 3: "u2", 4: "u4", 13: "u4", 16: "u8", 18: "u8"}
_WIDTH, _HEIGHT, _COMPRESSION, _SAMPLES, _PLANAR, _KIND = 256, 257, 259, 277, 284, 254
_BITS = 258
# Rows of a strip that is parted, where it is not compressed.
_TALL = 64
_STRIPS, _ROWS_A_STRIP, _STRIP_BYTES = 273, 278, 279
_SUBIMAGES, _EXIF = 330, (34665, 34853)
_TILE_WIDTH, _TILE_HEIGHT, _TILES, _TILE_BYTES = 322, 323, 324, 325


class DamagedError(ReadError):
    """Bytes that are no TIFF's, or that cannot be true."""


@dataclass(frozen=True, eq=False)
class Directory:
    """One image of a TIFF: the picture, an overview, or a mask of either.

    Attributes
    ----------
    shape, block
        (height, width) of the image, and of its tiles or strips.
    planes
        1 where bands lie together, else their number.
    offsets, sizes
        Uint64 (planes * rows * cols of blocks): where each lies in the file; size 0: a hole.
    """

    shape: tuple[int, int]
    block: tuple[int, int]
    planes: int
    compression: int
    offsets: npt.NDArray[np.uint64]
    sizes: npt.NDArray[np.uint64]

    @property
    def lattice(self) -> tuple[int, int]:
        """Rows and columns of blocks."""
        return -(-self.shape[0] // self.block[0]), -(-self.shape[1] // self.block[1])

    def blocks(self, window: Window) -> list[int]:
        """The blocks that a window of the image meets, of all planes, in the file's numbering."""
        (rows, cols), (height, width) = self.lattice, self.block
        first_row, stop_row = max(window.row, 0) // height, min(-(-window.row_stop // height), rows)
        first_col, stop_col = max(window.col, 0) // width, min(-(-window.col_stop // width), cols)
        return [
            (plane * rows + row) * cols + col
            for plane in range(self.planes)
            for row in range(first_row, stop_row)
            for col in range(first_col, stop_col)
        ]

    @property
    def codec(self) -> str:
        """The name of the compression."""
        return _NAMES.get(self.compression, f"compression {self.compression}")

    @property
    def has_checksum(self) -> bool:
        """Whether the bytes of a block say themselves whether they are whole."""
        return self.compression in DEFLATE

    def damage(self, block: bytes) -> str | None:
        """What is wrong with the bytes of a block, as far as they tell: Deflate ends with an Adler-32 (RFC 1950).

        libtiff looks at that checksum in some cases only: of a block with 64 bytes zeroed GDAL 3.10 gave 85,286 wrong
        values of 196,608 without a word.
        """
        if self.compression not in DEFLATE:
            return None
        inflater, rest = zlib.decompressobj(), block
        try:
            # By pieces that are thrown away, as some bytes may inflate to gigabytes.
            while rest and not inflater.eof:
                inflater.decompress(rest, _PIECE)
                rest = inflater.unconsumed_tail
        except zlib.error as error:
            return " ".join(str(error).split())
        return None if inflater.eof else "it ends before its checksum"


def read_directories(read: Read, size: int, what: str) -> tuple[Directory, ...]:
    """All images of a TIFF, in the file's order; of each also the tags' values are read, as GDAL will want them.

    Parameters
    ----------
    read
        Gives bytes start to stop of the file.
    size
        Bytes of the file.

    Raises
    ------
    DamagedError
        It is no TIFF, or its header cannot be true.
    """
    head = read(0, min(16, size))
    order = {b"II": "<", b"MM": ">"}.get(head[:2])
    magic = struct.unpack(f"{order}H", head[2:4])[0] if order and len(head) >= 8 else 0
    if order is None or magic not in (42, 43) or (magic == 43 and len(head) < 16):
        if head.lstrip().lower().startswith((b"<!doctype", b"<html")):
            why = "its server sends a web page; check the address, or sign in and download the file"
        else:
            why = f"it is no TIFF, as it begins with {head[:8]!r}"
        raise DamagedError(f"{what} cannot be read: {why}")
    big = magic == 43
    pending = [struct.unpack(f"{order}Q", head[8:16])[0] if big else struct.unpack(f"{order}I", head[4:8])[0]]
    seen: set[int] = set()
    found = []
    try:
        while pending:
            at = pending.pop()
            if at == 0 or at in seen:
                continue
            seen.add(at)
            if len(seen) > MOST_DIRECTORIES:
                raise DamagedError(f"{what} has over {MOST_DIRECTORIES} images in it: its header is damaged or a trap")
            tags, following = _tags(read, size, at, order, big, what)
            # GDAL also takes overviews from SubIFDs.
            pending += [following, *(int(sub) for sub in tags.get(_SUBIMAGES, []))]
            found.append(_directory(tags, what))
            for pointer in _EXIF:
                with contextlib.suppress(DamagedError, struct.error):
                    for place in tags.get(pointer, []):
                        _tags(read, size, int(place), order, big, what)
    except (struct.error, KeyError, IndexError, ValueError) as error:
        raise DamagedError(f"{what} has a damaged header ({type(error).__name__}: {error}); fetch it again") from error
    return tuple(found)


def _tags(
    read: Read, size: int, at: int, order: str, big: bool, what: str
) -> tuple[dict[int, npt.NDArray[np.uint64]], int]:
    """The whole numbers of an image's tags, and where the next image is told of."""
    counter, entry, link = ("Q", 20, "Q") if big else ("H", 12, "I")
    width = struct.calcsize(counter)
    (count,) = struct.unpack(order + counter, _within(read, size, at, width, what))
    if not 0 < count <= MOST_ENTRIES:
        raise DamagedError(f"{what} has an image of {count} tags: its header is damaged or a trap")
    body = _within(read, size, at + width, count * entry + struct.calcsize(link), what)
    tags = {}
    for number in range(count):
        piece = body[number * entry : (number + 1) * entry]
        tag, kind, length = struct.unpack(order + ("HHQ" if big else "HHI"), piece[: 12 if big else 8])
        values = piece[12:] if big else piece[8:]
        total = length * _SIZES.get(kind, 0)
        if total > MOST_VALUE_BYTES:
            raise DamagedError(f"{what} has a tag {tag} of {total} bytes: its header is damaged or a trap")
        if total > len(values):
            (where,) = struct.unpack(order + ("Q" if big else "I"), values)
            values = _within(read, size, where, total, what)
        if kind in _INTEGERS:
            tags[tag] = np.frombuffer(values[:total], order + _INTEGERS[kind]).astype(np.uint64)
    (following,) = struct.unpack(order + link, body[count * entry :])
    return tags, following


def _within(read: Read, size: int, start: int, length: int, what: str) -> bytes:
    if start + length > size:
        raise DamagedError(f"{what} ends at {size} bytes, before bytes {start} to {start + length} of its own header")
    return read(start, start + length)


def _directory(tags: dict[int, npt.NDArray[np.uint64]], what: str) -> Directory:
    def one(tag: int, otherwise: int | None = None) -> int:
        return int(tags[tag][0]) if tag in tags or otherwise is None else otherwise

    height, width = one(_HEIGHT), one(_WIDTH)
    planes = one(_SAMPLES, 1) if one(_PLANAR, 1) == 2 else 1
    compression = one(_COMPRESSION, NONE)
    tiled = _TILES in tags
    block = (one(_TILE_HEIGHT), one(_TILE_WIDTH)) if tiled else (min(one(_ROWS_A_STRIP, height), height), width)
    if not (height and width and all(block)):
        raise DamagedError(f"{what} has an image of {width} x {height} px in blocks of {block[1]} x {block[0]} px")
    offsets = tags[_TILES if tiled else _STRIPS]
    sizes = tags.get(_TILE_BYTES if tiled else _STRIP_BYTES, np.zeros_like(offsets))
    found = Directory((height, width), block, planes, compression, offsets, sizes)
    rows, cols = found.lattice
    if not len(offsets) == len(sizes) == planes * rows * cols:
        raise DamagedError(
            f"{what} tells of {len(offsets)} blocks where {planes * rows * cols} make the picture; it is damaged"
        )
    if compression == NONE:
        bits = tags.get(_BITS, np.ones(1, np.uint64))
        of_pixel = int(bits.sum()) if len(bits) > 1 else int(bits[0]) * one(_SAMPLES, 1)
        return _uncompressed(found, -(-block[1] * (int(bits[0]) if planes > 1 else of_pixel) // 8), tiled)
    if ((sizes == 0) & (offsets != 0)).any():
        raise DamagedError(f"{what} does not say how long its blocks are; make it anew: gdal_translate -of COG IN OUT")
    if int(sizes.max()) > MOST_BLOCK_BYTES:
        raise DamagedError(
            f"{what} has a block of {int(sizes.max())} bytes, which is read whole; make a COG of it: gdal_translate "
            "-of COG IN OUT"
        )
    return found


def _uncompressed(found: Directory, row_bytes: int, tiled: bool) -> Directory:
    """An image whose blocks are as long as their pixels take, whatever the header says, as libtiff does it.

    Tall strips are parted, as each row lies where one can tell: whole files are written as one strip.
    """
    height = found.block[0]
    offsets, starts = found.offsets, np.arange(len(found.offsets)) % found.lattice[0] * height
    if not tiled and height > _TALL:
        alone = found.lattice[0] == 1
        part = _TALL if alone else max(rows for rows in range(1, _TALL + 1) if height % rows == 0)
        inside = np.arange(0, height, part)
        starts = (starts[:, None] + inside).ravel()
        whole = (offsets != 0)[:, None]
        offsets = (
            np.where(whole, offsets[:, None] + (inside * row_bytes).astype(np.uint64), 0).ravel().astype(np.uint64)
        )
        keep = starts < found.shape[0]
        starts, offsets, height = starts[keep], offsets[keep], part
    rows = np.full(len(offsets), height) if tiled else np.minimum(height, found.shape[0] - starts)
    sizes = np.where(offsets != 0, rows * row_bytes, 0).astype(np.uint64)
    return replace(found, block=(height, found.block[1]), offsets=offsets, sizes=sizes)
