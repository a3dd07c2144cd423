"""What must not be said: signatures, names and passwords in URLs."""

from __future__ import annotations

import logging
import re

_SECRET = re.compile(r"(\?)[^\s'\"<>]+")
_URL = re.compile(r"\w+://[^\s'\"<>]+")
_PASSWORD = re.compile(r"(://)[^\s/'\"<>]+@")


def without_secrets(text: str) -> str:
    """The text without the queries of its URLs, which may hold signatures, and without names and passwords in them."""
    return _PASSWORD.sub(r"\1", _SECRET.sub(r"\1...", text))


def command_without_secrets(command: str) -> str:
    """A command whose URLs have no secrets; what else holds a `?`, such as a glob, stays."""
    return _URL.sub(lambda found: without_secrets(found[0]), command)


def redact(record: logging.LogRecord) -> bool:
    """A filter for log handlers: GDAL's and urllib3's own messages hold URLs with their signatures."""
    record.msg, record.args = without_secrets(record.getMessage()), ()
    return True
