"""Byte ranges of files in object stores (s3, gs, az), by obstore; who reads is said by the usual environment variables.

- s3: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_REGION, AWS_ENDPOINT_URL, AWS_PROFILE (needs
  boto3), AWS_REQUEST_PAYER=requester for buckets whose reader pays, AWS_NO_SIGN_REQUEST=YES for public ones;
- gs: GOOGLE_APPLICATION_CREDENTIALS, or GS_NO_SIGN_REQUEST=YES, GOOGLE_BASE_URL;
- az: AZURE_STORAGE_ACCOUNT_NAME with AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN, or
  AZURE_NO_SIGN_REQUEST=YES, AZURE_STORAGE_ENDPOINT.
"""

from __future__ import annotations

import os
import re
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import obstore
from obstore import exceptions
from obstore.store import AzureStore, GCSStore, ObjectStore, S3Store

from geodino.errors import ConfigError, ReadError, SourceError
from geodino.redaction import without_secrets
from geodino.sources import ranges
from geodino.sources.ranges import AttemptError, Patience, patiently

if TYPE_CHECKING:
    from obstore import GetOptions

_REFUSED = (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError)
_TOOK = re.compile(r" in [\d.]+(µs|ms|s)\b")
# Where a server of one's own stands in for the service.
_ENDPOINTS = {"s3": "AWS_ENDPOINT_URL", "gs": "GOOGLE_BASE_URL", "az": "AZURE_STORAGE_ENDPOINT"}
_ENDPOINTS["abfs"] = _ENDPOINTS["az"]
_YES = ("1", "on", "true", "yes")


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
        try:
            self._store = _store(parts.scheme.lower(), parts.netloc, self._patience)
        except exceptions.BaseError as error:
            raise ConfigError(f"{self._href} cannot be opened: {_said(error)}") from error
        found = self._patiently("its size", lambda: obstore.head(self._store, self._key))
        self.size: int = found["size"]
        self._version: str | None = found["e_tag"]

    def get(self, start: int, stop: int) -> bytes:
        """Bytes start to stop of the file, fewer only where it ends before; ReadError where patience ends."""
        stop = min(stop, self.size)
        options: GetOptions = {"range": (start, stop)}
        if self._version:
            options["if_match"] = self._version

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
                why = f"access refused ({_said(error)}); set credentials, and where the reader pays AWS_REQUEST_PAYER"
                raise AttemptError(why, final=True) from error
            except (exceptions.BaseError, OSError, ValueError) as error:
                raise AttemptError(_said(error)) from error

        return patiently(f"{self._href}, {what}", attempt, self._patience)


def _store(scheme: str, bucket: str, patience: Patience) -> ObjectStore:
    client: Any = {
        "connect_timeout": timedelta(seconds=patience.connect_s),
        "timeout": timedelta(seconds=patience.total_s),
        "allow_http": os.environ.get(_ENDPOINTS[scheme], "").startswith("http://"),
    }
    # Retries are ours, so that they are counted and told.
    retries: Any = {"max_retries": 0, "retry_timeout": timedelta(seconds=patience.total_s)}
    if scheme == "s3":
        more: dict[str, Any] = {"skip_signature": _asked("AWS_NO_SIGN_REQUEST")}
        if os.environ.get("AWS_REQUEST_PAYER", "").lower() == "requester":
            more["request_payer"] = True
        if os.environ.get("AWS_PROFILE"):
            more["credential_provider"] = _profile()
        return S3Store(bucket, client_options=client, retry_config=retries, **more)
    if scheme == "gs":
        return GCSStore(
            bucket, client_options=client, retry_config=retries, skip_signature=_asked("GS_NO_SIGN_REQUEST")
        )
    return AzureStore(
        bucket, client_options=client, retry_config=retries, skip_signature=_asked("AZURE_NO_SIGN_REQUEST")
    )


def _profile() -> Any:
    try:
        import boto3
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError as error:
        raise ReadError(
            "AWS_PROFILE is set, and profiles are read by boto3, which is not installed: pip install boto3"
        ) from error
    return Boto3CredentialProvider(boto3.Session())


def _asked(name: str) -> bool:
    return os.environ.get(name, "").lower() in _YES


def _said(error: Exception) -> str:
    # The Rust side appends debug output after the first line, and says how long each attempt took.
    first = _TOOK.sub("", " ".join(str(error).split("\n")[0].split()))
    return without_secrets(first) or type(error).__name__
