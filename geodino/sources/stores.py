"""Byte ranges of files in object stores (s3, gs, az); `geodino.buckets` says how the environment tells who reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import obstore
from obstore import exceptions

from geodino.buckets import Tries, open_bucket, said
from geodino.errors import SourceError
from geodino.redaction import without_secrets
from geodino.sources import ranges
from geodino.sources.ranges import AttemptError, Patience, patiently

if TYPE_CHECKING:
    from obstore import GetOptions

_REFUSED = (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError)


class StoreRanges:
    """A file in an object store.

    Parameters
    ----------
    href
        Such as s3://bucket/folder/a.tif.

    Raises
    ------
    ReadError
        It cannot be reached.
    """

    start = b""

    def __init__(self, href: str, patience: Patience | None = None) -> None:
        self._href, self._patience = without_secrets(href), patience or ranges.PATIENCE
        parts = urlsplit(href)
        self._key = unquote(parts.path.lstrip("/"))
        if not parts.netloc or not self._key:
            raise SourceError(f"{self._href} names no file in a bucket; it looks like s3://bucket/folder/a.tif")
        # Asking again is ours, so that it is counted and told.
        tries = Tries(0, connect_s=self._patience.connect_s, answer_s=self._patience.total_s)
        self._store = open_bucket(parts.scheme, parts.netloc, tries)
        found = self._patiently("its size", lambda: obstore.head(self._store, self._key))
        self.size: int = found["size"]
        self.version: str = found["e_tag"] or ""

    def get(self, start: int, stop: int) -> bytes:
        """Bytes start to stop of the file, fewer only where it ends before; ReadError where patience ends."""
        stop = min(stop, self.size)
        options: GetOptions = {"range": (start, stop)}
        if self.version:
            options["if_match"] = self.version

        def ask() -> bytes:
            answer = obstore.get(self._store, self._key, options=options)
            body = bytes(answer.bytes())
            if len(body) != stop - start:
                raise AttemptError(f"the body ended after {len(body)} of {stop - start} bytes")
            return body

        body: bytes = self._patiently(f"bytes {start} to {stop}", ask)
        return body

    def _patiently(self, what: str, ask: Any) -> Any:
        def attempt(number: int) -> Any:
            try:
                return ask()
            except FileNotFoundError as error:
                raise AttemptError("there is no such file", final=True) from error
            except exceptions.PreconditionError as error:
                raise AttemptError("the file changed while it was read", final=True) from error
            except _REFUSED as error:
                why = f"access refused ({said(error)}); set credentials, and where the reader pays AWS_REQUEST_PAYER"
                raise AttemptError(why, final=True) from error
            except (exceptions.BaseError, OSError, ValueError) as error:
                raise AttemptError(said(error)) from error

        return patiently(f"{self._href}, {what}", attempt, self._patience)
