"""A remote GeoTIFF as a file on this machine of which only what is needed is there.

That file is as long as the remote one and sparse: its header is fetched when it is opened, its blocks when a window
needs them, each once for all threads. GDAL reads it as any local GeoTIFF, and never asks a server. It must open the
file after the blocks are there: what it has open it may have read ahead (a page, by the C library), where nothing was.
"""

from __future__ import annotations

import atexit
import hashlib
import logging
import os
import shutil
import tempfile
import threading
import weakref
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import NamedTuple

import psutil

from geodino.errors import OutputError, ReadError
from geodino.grid import Window
from geodino.redaction import without_secrets
from geodino.sources import ranges
from geodino.sources.ranges import AttemptError, Patience, Ranges, open_ranges, patiently
from geodino.sources.tiff import DamagedError, Directory, read_directories

logger = logging.getLogger(__name__)

_PREFIX = "geodino-remote-"
# Headers are fetched by pages: those of a COG lie together at its start.
PAGE = 16 * 1024
# One request takes blocks that lie at most so far apart, and at most so many bytes.
GAP = 4 * 1024
MOST_BYTES = 8 * 2**20
# A COG keeps the size of each block in the 4 bytes before it, and its last 4 bytes once more behind it; GDAL may look.
AROUND = 4
# Bytes that stay damaged so often are so on the server, and not from the way.
DAMAGED_ATTEMPTS = 3


# A window meets blocks that do not lie together, such as those of the next row: these are asked for side by side.
_FETCHERS = ThreadPoolExecutor(16, thread_name_prefix="geodino-fetch")


class _Key(NamedTuple):
    directory: int
    block: int


def open_remote(href: str, sign: str | None, *, verify: bool = False, patience: Patience | None = None) -> RemoteTiff:
    """A remote GeoTIFF, its header read; ReadError where it cannot be."""
    for attempt in range(1, DAMAGED_ATTEMPTS + 1):
        try:
            return RemoteTiff(open_ranges(href, sign, patience), href, verify=verify)
        except DamagedError as error:
            # A header has no checksum: what was spoilt on the way shows only here.
            if attempt == DAMAGED_ATTEMPTS:
                raise
            logger.info("%s; fetched again", error)
    raise AssertionError("unreachable")


class RemoteTiff:
    """The local file, and what of it is there.

    Parameters
    ----------
    file
        The remote file's bytes.
    what
        What messages call it.
    verify
        Whether the bytes of each block are held against their checksum, where they have one.

    Attributes
    ----------
    path
        Of the local file; it goes when this object does.

    Raises
    ------
    ReadError
        It is no TIFF, or its header is damaged.
    OutputError
        No room for temporary files.
    """

    def __init__(self, file: Ranges, what: str, *, verify: bool = False) -> None:
        self._ranges, self._what, self._verify = file, without_secrets(what), verify
        self._lock = threading.Lock()
        self._pages: set[int] = set()
        self._coming: dict[_Key, Future[None]] = {}
        self._file, name = tempfile.mkstemp(suffix=".tif", dir=_folder())
        self.path = Path(name)
        weakref.finalize(self, _remove, self._file, self.path)
        os.truncate(self._file, file.size)
        _write(self._file, file.start, 0)
        came = len(file.start)
        self._pages.update(range(-(-came // PAGE) if came == file.size else came // PAGE))
        self.directories = read_directories(self._header, file.size, self._what)

    def need(self, shape: tuple[int, int], windows: Sequence[Window]) -> None:
        """Have all blocks of some windows there, of each image of that shape: the picture or an overview, and its mask.

        Parameters
        ----------
        shape
            (height, width) of the image.
        windows
            Of its pixels; what lies outside of the image is not asked for.

        Raises
        ------
        ReadError
            A block cannot be fetched, lies beyond the file's end, or is damaged.
        """
        wanted = [
            _Key(number, block)
            for number, directory in enumerate(self.directories)
            if directory.shape == shape
            for block in _blocks(directory, windows)
            if directory.sizes[block]
        ]
        mine, all_of_them = [], []
        with self._lock:
            for key in wanted:
                future = self._coming.get(key)
                if future is None:
                    future = self._coming[key] = Future()
                    mine.append(key)
                all_of_them.append(future)
        runs = self._runs(mine)
        for run in runs[1:]:
            _FETCHERS.submit(self._settle, run)
        for run in runs[:1]:
            self._settle(run)
        for future in all_of_them:
            future.result()

    def hash_whole(self) -> bytes:
        """SHA-256 of the remote file, which is fetched whole; before any block is needed."""
        found = hashlib.sha256()
        for start in range(0, self._ranges.size, MOST_BYTES):
            body = self._ranges.get(start, min(start + MOST_BYTES, self._ranges.size))
            found.update(body)
            _write(self._file, body, start)
        there: Future[None] = Future()
        there.set_result(None)
        for number, directory in enumerate(self.directories):
            self._coming.update(dict.fromkeys((_Key(number, block) for block in range(len(directory.sizes))), there))
        return found.digest()

    def forget(self, shape: tuple[int, int], windows: Sequence[Window]) -> None:
        """Have the blocks of windows fetched anew by the next who needs them, as they could not be decoded."""
        with self._lock:
            for number, directory in enumerate(self.directories):
                for block in _blocks(directory, windows) if directory.shape == shape else ():
                    future = self._coming.get(_Key(number, block))
                    if future is not None and future.done():
                        del self._coming[_Key(number, block)]

    def _settle(self, run: Sequence[_Key]) -> None:
        """Fetch a run of blocks; whatever happens, whoever waits for them hears of it."""
        error: Exception | None = None
        try:
            self._fetch(run)
        except (ReadError, OutputError) as caught:
            error = caught
        except BaseException as caught:
            error = ReadError(f"{self._what}: fetching a block was interrupted by {type(caught).__name__}: {caught}")
            raise
        finally:
            with self._lock:
                # Where it failed, the next window that needs them may have more luck.
                futures = [self._coming[key] if error is None else self._coming.pop(key) for key in run]
            for future in futures:
                future.set_result(None) if error is None else future.set_exception(error)

    def _fetch(self, run: Sequence[_Key]) -> None:
        start = max(min(self._place(key)[0] for key in run) - AROUND, 0)
        stop = min(max(self._place(key)[1] for key in run) + AROUND, self._ranges.size)
        if any(self._place(key)[1] > self._ranges.size for key in run):
            raise ReadError(f"{self._what} ends at {self._ranges.size} bytes, before its blocks do: it was cut short")

        def attempt(number: int) -> bytes:
            body = self._ranges.get(start, stop)
            for key in run if self._verify else ():
                begin, end = self._place(key)
                damage = self._image(key).damage(body[begin - start : end - start])
                if damage is not None:
                    raise AttemptError(
                        f"block {key.block} of its image of {self._image(key).shape[1]} px width is damaged ({damage})",
                        final=number >= DAMAGED_ATTEMPTS,
                    )
            return body

        body = patiently(self._what, attempt, ranges.PATIENCE) if self._verify else attempt(1)
        _write(self._file, body, start)

    def _runs(self, keys: Sequence[_Key]) -> list[list[_Key]]:
        """Blocks that one request takes together, in the order of the file; holes need none."""
        runs: list[list[_Key]] = []
        end = first = 0
        for key in sorted(keys, key=lambda key: self._place(key)):
            begin, stop = self._place(key)
            if runs and begin <= end + GAP and stop - first <= MOST_BYTES:
                runs[-1].append(key)
            else:
                runs.append([key])
                first = begin
            end = max(end, stop)
        return runs

    def _image(self, key: _Key) -> Directory:
        return self.directories[key.directory]

    def _place(self, key: _Key) -> tuple[int, int]:
        image = self._image(key)
        begin = int(image.offsets[key.block])
        return begin, begin + int(image.sizes[key.block])

    def _header(self, start: int, stop: int) -> bytes:
        """Bytes of the header, fetched by pages; only ever called by the thread that opens the file."""
        first, last = start // PAGE, -(-stop // PAGE)
        missing = [page for page in range(first, last) if page not in self._pages]
        if missing:
            begin, end = missing[0] * PAGE, min((missing[-1] + 1) * PAGE, self._ranges.size)
            _write(self._file, self._ranges.get(begin, end), begin)
            self._pages.update(missing)
        return os.pread(self._file, stop - start, start)


class LocalTiff:
    """A GeoTIFF on this machine, whose blocks are held against their checksums before they are decoded.

    Raises
    ------
    ReadError
        It is no TIFF, or its header is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)
        self._size = os.fstat(self._file).st_size
        self.directories = read_directories(self._read, self._size, str(path))
        self._sound: set[tuple[int, int]] = set()

    def need(self, shape: tuple[int, int], windows: Sequence[Window]) -> None:
        """Look at all blocks of some windows, of each image of that shape; ReadError where one is damaged."""
        for number, directory in enumerate(self.directories):
            for block in _blocks(directory, windows) if directory.shape == shape else ():
                if (number, block) in self._sound:
                    continue
                start, length = int(directory.offsets[block]), int(directory.sizes[block])
                if start + length > self._size:
                    raise ReadError(f"{self.path} ends at {self._size} bytes, before its blocks do: it was cut short")
                damage = directory.damage(self._read(start, start + length)) if length else None
                if damage is not None:
                    raise ReadError(f"{self.path}: block {block} is damaged ({damage}); fetch the file again")
                self._sound.add((number, block))

    def hash_whole(self) -> bytes:
        """SHA-256 of the file."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()

    def _read(self, start: int, stop: int) -> bytes:
        return os.pread(self._file, stop - start, start)


@cache
def _folder() -> Path:
    """A folder of this process alone, so that nobody else can lay a mask or overviews beside its files.

    It goes when the process ends. One that was killed leaves its own, which the next removes.
    """
    for left in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        owner = left.name.removeprefix(_PREFIX).partition("-")[0]
        if owner.isdecimal() and not psutil.pid_exists(int(owner)):
            shutil.rmtree(left, ignore_errors=True)
    made = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-"))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made


def _blocks(directory: Directory, windows: Sequence[Window]) -> Iterable[int]:
    return dict.fromkeys(block for window in windows for block in directory.blocks(window))


def _write(file: int, body: bytes, start: int) -> None:
    view = memoryview(body)
    try:
        while view:
            written = os.pwrite(file, view, start)
            view, start = view[written:], start + written
    except OSError as error:
        raise OutputError(
            f"parts of imagery cannot be kept in {tempfile.gettempdir()}: {error.strerror}; make room there, or set "
            "TMPDIR to another folder"
        ) from error


def _remove(file: int, path: Path) -> None:
    os.close(file)
    path.unlink(missing_ok=True)
