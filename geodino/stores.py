"""Objects by key in a folder or a bucket: whole or not at all, and made by one process where many ask for the same.

One face for both, by obstore: a folder's objects are files that are written beside and renamed; a bucket's appear when
their upload is complete. `create` is what locks rest on: a hard link in a folder, a conditional PUT in a bucket.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import obstore
from obstore import exceptions
from obstore.store import LocalStore, ObjectStore, from_url

from geodino.errors import OutputError
from geodino.redaction import without_secrets

SCHEMES = ("s3://", "gs://", "az://", "abfs://")


class Entry(NamedTuple):
    """An object: its key, size in bytes, and when the store says that it was written."""

    key: str
    size: int
    modified: datetime


@dataclass(frozen=True)
class Store:
    """A folder, or the part of a bucket below a prefix; a value that may be sent to other processes.

    Attributes
    ----------
    url
        A path, or such as s3://bucket/prefix; credentials come from the environment.
    """

    url: str

    @property
    def is_remote(self) -> bool:
        return self.url.startswith(SCHEMES)

    def below(self, name: str) -> Store:
        """The part below a name."""
        return Store(f"{self.url.rstrip('/')}/{name}")

    def put(self, key: str, data: bytes) -> None:
        """Write an object, in place of an earlier one; OutputError where the store refuses."""
        try:
            obstore.put(self._open(), key, data, use_multipart=False)
        except (exceptions.BaseError, OSError) as error:
            raise self._refused(key, error) from error

    def create(self, key: str, data: bytes) -> bool:
        """Write an object that must not exist yet; False where it does. Of many who try at once one gets True."""
        try:
            obstore.put(self._open(), key, data, mode="create", use_multipart=False)
        except exceptions.AlreadyExistsError:
            return False
        except (exceptions.BaseError, OSError) as error:
            raise self._refused(key, error) from error
        return True

    def get(self, key: str) -> bytes | None:
        """An object's bytes; None where there is none."""
        try:
            return bytes(obstore.get(self._open(), key).bytes())
        except FileNotFoundError:
            return None
        except (exceptions.BaseError, OSError) as error:
            raise self._refused(key, error) from error

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        """All objects below a prefix, which ends at a slash or is empty; in no order."""
        try:
            for page in obstore.list(self._open(), prefix or None):
                for found in page:
                    yield Entry(found["path"], found["size"], found["last_modified"])
        except (exceptions.BaseError, OSError) as error:
            raise self._refused(prefix, error) from error

    def delete(self, key: str) -> None:
        """Remove an object; nothing where there is none."""
        try:
            obstore.delete(self._open(), key)
        except FileNotFoundError:
            return
        except (exceptions.BaseError, OSError) as error:
            raise self._refused(key, error) from error

    def _open(self) -> ObjectStore:
        if self.is_remote:
            return from_url(self.url)
        folder = Path(self.url)
        folder.mkdir(parents=True, exist_ok=True)
        return LocalStore(prefix=os.path.abspath(folder))

    def _refused(self, key: str, error: Exception) -> OutputError:
        said = " ".join(str(error).split("\n")[0].split())
        return OutputError(f"{without_secrets(self.url)}/{key}: {without_secrets(said)}")
