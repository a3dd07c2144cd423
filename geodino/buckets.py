"""Buckets of s3, gs and az, opened as the usual environment variables say, for reading and for writing.

- s3: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_REGION, AWS_ENDPOINT_URL, AWS_PROFILE (needs
  boto3), AWS_REQUEST_PAYER=requester for buckets whose reader pays, AWS_NO_SIGN_REQUEST=YES for public ones;
- gs: GOOGLE_APPLICATION_CREDENTIALS, or GS_NO_SIGN_REQUEST=YES, GOOGLE_BASE_URL;
- az: AZURE_STORAGE_ACCOUNT_NAME with AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN, or
  AZURE_NO_SIGN_REQUEST=YES, AZURE_STORAGE_ENDPOINT.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from typing import Any

from obstore import exceptions
from obstore.store import AzureStore, GCSStore, ObjectStore, S3Store

from geodino.errors import ConfigError
from geodino.redaction import without_secrets

SCHEMES = ("s3://", "gs://", "az://", "abfs://")
# Where a server of one's own stands in for the service.
_ENDPOINTS = {"s3": "AWS_ENDPOINT_URL", "gs": "GOOGLE_BASE_URL", "az": "AZURE_STORAGE_ENDPOINT"}
_CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
}
_ENDPOINTS["abfs"], _CREDENTIALS["abfs"] = _ENDPOINTS["az"], _CREDENTIALS["az"]
_SETTINGS = ("AWS_", "AZURE_", "GOOGLE_", "GS_")
_YES = ("1", "on", "true", "yes")
# Asked for credentials where the environment has none; it answers on the clouds' own machines alone.
_METADATA_SERVERS = ("169.254.169.254", "metadata.google.internal", "169.254.170.2")
_REFUSED = (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError)
_TOOK = re.compile(r" in [\d.]+(µs|ms|s)\b")
_XML_MESSAGE = re.compile(r"<Message>([^\n<]*)")


@dataclass(frozen=True)
class Tries:
    """How long a request to a bucket is tried: a busy or absent server is asked again, a refusal is final.

    Attributes
    ----------
    retries
        After the first attempt, with pauses that grow from `first_delay_s` to at most `most_delay_s`.
    connect_s, answer_s
        Without a connection, and for one whole request, an upload's piece included.
    total_s
        Nothing is tried again after it. obstore asks for less than five minutes, in which signatures expire.
    """

    retries: int
    first_delay_s: float = 1.0
    most_delay_s: float = 15.0
    connect_s: float = 10.0
    answer_s: float = 120.0
    total_s: float = 180.0


PATIENT = Tries(retries=12)
AT_ONCE = Tries(retries=0)


def open_bucket(scheme: str, bucket: str, tries: Tries) -> ObjectStore:
    """A bucket, as the environment says; the same one for all who ask in the same way.

    Raises
    ------
    ConfigError
        The environment's settings do not go together, or AWS_PROFILE is set and boto3 is not installed.
    """
    environment = tuple(sorted(item for item in os.environ.items() if item[0].startswith(_SETTINGS)))
    try:
        return _opened(scheme.lower(), bucket, tries, environment)
    except exceptions.BaseError as error:
        raise ConfigError(
            f"{scheme}://{bucket} cannot be opened: {said(error)}: check {_CREDENTIALS[scheme]}"
        ) from error


@lru_cache(maxsize=16)
def _opened(scheme: str, bucket: str, tries: Tries, environment: tuple[tuple[str, str], ...]) -> ObjectStore:
    settings = dict(environment)
    client: Any = {
        "connect_timeout": timedelta(seconds=tries.connect_s),
        "timeout": timedelta(seconds=tries.answer_s),
        "allow_http": settings.get(_ENDPOINTS[scheme], "").startswith("http://"),
    }
    backoff = {
        "init_backoff": timedelta(seconds=tries.first_delay_s),
        "max_backoff": timedelta(seconds=tries.most_delay_s),
    }
    retries: Any = {
        "max_retries": tries.retries,
        "retry_timeout": timedelta(seconds=tries.total_s),
        "backoff": backoff,
    }
    how: Any = {"client_options": client, "retry_config": retries}
    if scheme == "s3":
        how["skip_signature"] = _asked(settings, "AWS_NO_SIGN_REQUEST")
        if settings.get("AWS_REQUEST_PAYER", "").lower() == "requester":
            how["request_payer"] = True
        if settings.get("AWS_PROFILE"):
            how["credential_provider"] = _profile()
        return S3Store(bucket, **how)
    if scheme == "gs":
        return GCSStore(bucket, skip_signature=_asked(settings, "GS_NO_SIGN_REQUEST"), **how)
    return AzureStore(bucket, skip_signature=_asked(settings, "AZURE_NO_SIGN_REQUEST"), **how)


def _profile() -> Any:
    try:
        import boto3
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError as error:
        raise ConfigError(
            "AWS_PROFILE is set, and profiles are read by boto3, which is not installed: pip install boto3"
        ) from error
    return Boto3CredentialProvider(boto3.Session())


def _asked(settings: dict[str, str], name: str) -> bool:
    return settings.get(name, "").lower() in _YES


def refusal(scheme: str, error: Exception) -> str:
    """What a bucket's error means, and what to do."""
    text = str(error)
    if any(server in text for server in _METADATA_SERVERS):
        return f"there are no credentials: set {_CREDENTIALS[scheme]}"
    if "NoSuchBucket" in text or "ContainerNotFound" in text:
        return "there is no such bucket: make it, or check its name"
    if isinstance(error, _REFUSED) or "403 Forbidden" in text or "401 Unauthorized" in text:
        return (
            f"access is refused ({said(error)}): give the credentials the right to list, read, write and delete there"
        )
    if "error sending request" in text:
        return (
            f"the server does not answer ({said(error)}): check the network, the bucket's name and {_ENDPOINTS[scheme]}"
        )
    return said(error)


def said(error: Exception) -> str:
    """What a library said, in a line without secrets."""
    # The Rust side appends debug output after the first line, and says how long each attempt took.
    message = _XML_MESSAGE.search(str(error))
    first = _TOOK.sub("", " ".join(str(error).split("\n")[0].split()))
    if message and "<?xml" in first:
        first = f"{first.partition('<?xml')[0]}{message[1]}"
    return without_secrets(first) or type(error).__name__
