"""Objects by key in a folder or a bucket: whole or not at all, and made by one process where many ask for the same.

One face for both. A folder's objects are files that are written beside, brought to the disk and renamed; a bucket's
appear when their upload is complete (obstore). `create` is what locks rest on: a hard link in a folder, a conditional
PUT in a bucket.
"""

from __future__ import annotations

import errno
import math
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

import obstore
from obstore import exceptions

from geodino.buckets import AT_ONCE, PATIENT, SCHEMES, Tries, open_bucket, refusal, said
from geodino.errors import ConfigError, OutputError
from geodino.redaction import without_secrets

if TYPE_CHECKING:
    from obstore import ObjectMeta

PART_NAME = re.compile(r"^\..+\.part-\d+-[0-9a-f]{8}")
_KEY = re.compile(r"(?!\.{1,2}(/|$))[^/\\\x00-\x1f]+(/(?!\.{1,2}(/|$))[^/\\\x00-\x1f]+)*")
_HALF_URL = re.compile(r"[a-z][a-z0-9]+:/(?!/)")

# Uploads in pieces, of which S3 takes 10,000 and holds none below 5 MiB; so many at a time are in memory.
_PIECE_BYTES = 8 * 2**20
_MOST_PIECES = 9_000
_PIECES_AT_A_TIME = 4


class Entry(NamedTuple):
    """An object: its key, size in bytes, when the store says it was written, and what changes with its content."""

    key: str
    size: int
    modified: datetime
    version: str = ""


def part_path(target: Path) -> Path:
    """A name in the target's folder that no other process uses and nobody takes for a finished file."""
    return target.with_name(f".{target.name}.part-{os.getpid()}-{secrets.token_hex(4)}")


def sync(path: Path) -> None:
    """Bring a file or a folder's list of names to the disk; raises OSError where that fails."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class _Folder:
    """Objects as files by their keys; errors are the system's."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put(self, key: str, data: bytes, *, durable: bool) -> None:
        with self._part(key) as part:
            part.write_bytes(data)
            if durable:
                _settle(part, self._folder / key)
            else:
                part.replace(self._folder / key)

    def create(self, key: str, data: bytes) -> None:
        with self._part(key) as part:
            part.write_bytes(data)
            sync(part)
            (self._folder / key).hardlink_to(part)

    def upload(self, key: str, path: Path) -> None:
        with self._part(key) as part:
            shutil.copyfile(path, part)
            _settle(part, self._folder / key)

    def get(self, key: str) -> bytes:
        return (self._folder / key).read_bytes()

    def download(self, key: str, part: Path) -> None:
        shutil.copyfile(self._folder / key, part)

    def entry(self, key: str) -> Entry:
        found = (self._folder / key).stat()
        if not stat.S_ISREG(found.st_mode):
            raise FileNotFoundError(key)
        version = f"{found.st_ino:x}-{found.st_mtime_ns:x}-{found.st_size:x}"
        return Entry(key, found.st_size, datetime.fromtimestamp(found.st_mtime, UTC), version)

    def entries(self, prefix: str) -> Iterator[Entry]:
        for folder, _, names in os.walk(self._folder / prefix, onerror=_raise_unless_gone):
            yield from self._files(Path(folder), names)

    def entries_in(self, prefix: str) -> Iterator[Entry]:
        with suppress(FileNotFoundError):
            yield from self._files(self._folder / prefix, [path.name for path in (self._folder / prefix).iterdir()])

    def delete(self, key: str) -> None:
        (self._folder / key).unlink()

    def clear(self) -> None:
        # Renamed first, so that whoever is killed here leaves all of it or nothing under its name.
        gone = part_path(self._folder)
        self._folder.rename(gone)
        shutil.rmtree(gone)

    def _files(self, folder: Path, names: list[str]) -> Iterator[Entry]:
        for name in names:
            # What is removed meanwhile, or is a folder, is no object.
            with suppress(FileNotFoundError):
                if not PART_NAME.match(name):
                    yield self.entry((folder / name).relative_to(self._folder).as_posix())

    @contextmanager
    def _part(self, key: str) -> Iterator[Path]:
        target = self._folder / key
        target.parent.mkdir(parents=True, exist_ok=True)
        part = part_path(target)
        try:
            yield part
        finally:
            part.unlink(missing_ok=True)


def _settle(part: Path, target: Path) -> None:
    # Not the folder, which doubles the time: after a power cut an object may be the old one or none, but never half.
    sync(part)
    part.replace(target)


def _raise_unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


class _Bucket:
    """Objects below a prefix of a bucket; errors are obstore's."""

    def __init__(self, url: str, tries: Tries) -> None:
        parts = urlsplit(url)
        self._prefix = unquote(parts.path).strip("/")
        self._bucket = open_bucket(parts.scheme, parts.netloc, tries)

    def put(self, key: str, data: bytes, *, durable: bool) -> None:
        obstore.put(self._bucket, self._at(key), data, use_multipart=False)

    def create(self, key: str, data: bytes) -> None:
        try:
            obstore.put(self._bucket, self._at(key), data, mode="create", use_multipart=False)
        except exceptions.AlreadyExistsError as error:
            raise FileExistsError(key) from error

    def upload(self, key: str, path: Path) -> None:
        size = path.stat().st_size
        piece = max(_PIECE_BYTES, math.ceil(size / _MOST_PIECES))
        obstore.put(self._bucket, self._at(key), path, chunk_size=piece, max_concurrency=_PIECES_AT_A_TIME)
        if (held := self.entry(key).size) != size:
            raise OSError(f"{held} of {size} bytes are there after the upload")

    def get(self, key: str) -> bytes:
        return bytes(obstore.get(self._bucket, self._at(key)).bytes())

    def download(self, key: str, part: Path) -> None:
        found = obstore.get(self._bucket, self._at(key))
        with part.open("wb") as file:
            for piece in found.stream(min_chunk_size=_PIECE_BYTES):
                file.write(piece)
        if (size := part.stat().st_size) != found.meta["size"]:
            raise OSError(f"{size} of {found.meta['size']} bytes came")

    def entry(self, key: str) -> Entry:
        return self._entry(obstore.head(self._bucket, self._at(key)))

    def entries(self, prefix: str) -> Iterator[Entry]:
        for page in obstore.list(self._bucket, self._at(prefix) or None, chunk_size=1000):
            yield from map(self._entry, page)

    def entries_in(self, prefix: str) -> Iterator[Entry]:
        yield from map(self._entry, obstore.list_with_delimiter(self._bucket, self._at(prefix) or None)["objects"])

    def delete(self, key: str) -> None:
        obstore.delete(self._bucket, self._at(key))

    def clear(self) -> None:
        for page in obstore.list(self._bucket, self._prefix or None, chunk_size=1000):
            obstore.delete(self._bucket, [found["path"] for found in page])

    def _at(self, key: str) -> str:
        return f"{self._prefix}/{key}".strip("/")

    def _entry(self, found: ObjectMeta) -> Entry:
        key = found["path"].removeprefix(self._prefix).lstrip("/")
        return Entry(key, found["size"], found["last_modified"], found["e_tag"] or "")


@dataclass(frozen=True)
class Store:
    """A folder, or the part of a bucket below a prefix; a value that may be sent to other processes.

    Keys are names joined by slashes, none of them `..`. What the disk or the server refuses is an OutputError that
    names the store; a server that is busy or gone is asked again for a minute or two before.

    Attributes
    ----------
    url
        A path, file:///folder, or such as s3://bucket/prefix.

    Raises
    ------
    ConfigError
        It is neither.
    """

    url: str

    def __post_init__(self) -> None:
        if _HALF_URL.match(self.url):
            raise ConfigError(f"{self.url} lacks a slash after its colon: give a URL as text, since a Path drops one")
        scheme, separator, rest = self.url.partition("://")
        if separator and not (self.is_remote or scheme == "file"):
            raise ConfigError(f"{self} cannot be written to: give a folder, or a URL of {', '.join(SCHEMES)}")
        if self.is_remote and not rest.split("/")[0]:
            raise ConfigError(f"{self} names no bucket; it looks like {scheme}://bucket/folder")
        if self.is_remote and {".", ".."} & set(unquote(rest).split("/")):
            raise ConfigError(f"{self} has . or .. in it, which a bucket takes for names: leave them out")

    def __str__(self) -> str:
        return without_secrets(self.url)

    @property
    def is_remote(self) -> bool:
        return self.url.startswith(SCHEMES)

    @property
    def folder(self) -> Path | None:
        """Where the objects are files by their keys; None for a bucket."""
        if self.is_remote:
            return None
        return Path(url2pathname(urlsplit(self.url).path) if self.url.startswith("file://") else self.url)

    def below(self, name: str) -> Store:
        """The part below a name."""
        return Store(f"{self.url.rstrip('/')}/{_checked(name)}")

    def put(self, key: str, data: bytes, *, durable: bool = True) -> None:
        """Write an object, in place of an earlier one.

        Parameters
        ----------
        durable
            False: a folder's disk need not have it before this returns, for what is held against a checksum when it is
            read. After a power cut it may be cut short; waiting takes a disk milliseconds.
        """
        with self._asking(_checked(key)) as place:
            place.put(key, data, durable=durable)

    def create(self, key: str, data: bytes) -> bool:
        """Write an object that must not exist yet; False where it does. Of many who try at once one gets True.

        Where an answer is lost on its way from a bucket, False may also be said to who did make it: to know, put
        something of your own into the data and look.
        """
        try:
            with self._asking(_checked(key), FileExistsError) as place:
                place.create(key, data)
        except FileExistsError:
            return False
        return True

    def upload(self, key: str, path: Path) -> None:
        """Write a file of any size as an object, in place of an earlier one."""
        with self._asking(_checked(key)) as place:
            place.upload(key, path)

    def get(self, key: str) -> bytes | None:
        """An object's bytes; None where there is none."""
        try:
            with self._asking(_checked(key), *_NONE) as place:
                return place.get(key)
        except _NONE:
            return None

    def download(self, key: str, path: Path) -> bool:
        """Write an object of any size to a file, whole or not at all; False where there is none."""
        part = part_path(path)
        try:
            with self._asking(_checked(key), *_NONE) as place:
                part.parent.mkdir(parents=True, exist_ok=True)
                place.download(key, part)
                _settle(part, path)
        except _NONE:
            return False
        finally:
            part.unlink(missing_ok=True)
        return True

    def entry(self, key: str) -> Entry | None:
        """What the store knows of an object; None where there is none."""
        try:
            with self._asking(_checked(key), *_NONE) as place:
                return place.entry(key)
        except _NONE:
            return None

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        """All objects below a prefix, which ends at a slash or is empty; in no order."""
        with self._asking(prefix) as place:
            yield from place.entries(prefix)

    def entries_in(self, prefix: str = "") -> list[Entry]:
        """The objects below a prefix whose names hold no further slash; in no order."""
        with self._asking(prefix) as place:
            return list(place.entries_in(prefix))

    def delete(self, key: str) -> None:
        """Remove an object; nothing where there is none."""
        with suppress(*_NONE), self._asking(_checked(key), *_NONE) as place:
            place.delete(key)

    def clear(self) -> None:
        """Remove every object; of a folder all at once, and the folder with them."""
        with suppress(*_NONE), self._asking("", *_NONE) as place:
            place.clear()

    def reach(self) -> None:
        """Raise OutputError where a bucket does not answer, without asking again; nothing for a folder."""
        if self.is_remote:
            with self._asking("", tries=AT_ONCE) as place:
                list(place.entries_in(""))

    @contextmanager
    def _asking(self, key: str, *passed: type[OSError], tries: Tries | None = None) -> Iterator[_Folder | _Bucket]:
        """The place to ask; what it raises is an OutputError, but for the errors that are `passed` on."""
        folder = self.folder
        try:
            yield _Bucket(self.url, tries or PATIENT) if folder is None else _Folder(folder)
        except passed:
            raise
        except (exceptions.BaseError, OSError) as error:
            why = _why_of_folder(error) if folder else refusal(self.url.partition("://")[0], error)
            raise OutputError(f"{self}{f'/{key}' if key else ''}: {why}") from error


# What asking for an object that is not there raises.
_NONE = (FileNotFoundError, NotADirectoryError, IsADirectoryError)


def _checked(key: str) -> str:
    if not _KEY.fullmatch(key):
        raise ValueError(f"{key!r} is no key: names joined by slashes, none of them empty, . or ..")
    return key


def _why_of_folder(error: Exception) -> str:
    why = getattr(error, "strerror", None) or said(error)
    return f"{why}: make room" if getattr(error, "errno", 0) in (errno.ENOSPC, errno.EDQUOT) else why
