"""JSON of STAC servers and files: one session that retries and times out, and its errors in plain words."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import responses
from typing import NamedTuple
from urllib.parse import urlsplit

from pystac.utils import make_absolute_href
from pystac_client.exceptions import APIError
from pystac_client.stac_api_io import StacApiIO
from requests.exceptions import SSLError
from urllib3.exceptions import ConnectTimeoutError, NameResolutionError, NewConnectionError, ReadTimeoutError
from urllib3.util import Retry

from geodino.errors import ReadError, SourceError
from geodino.redaction import without_secrets
from geodino.sources.raster import is_remote, local_path

TIMEOUT_S = 30.0
RETRIES = 5
# A server that is not there at all is soon known to be so; one that is busy gets its time.
CONNECT_RETRIES = 2
BACKOFF_S = 0.5
# A search is only a question, so that to ask it again does no harm, be it POST or GET.
RETRY_STATUS = (429, 500, 502, 503, 504)
# Nobody waits for an hour for a page of Items, whatever Retry-After says.
MOST_WAIT_S = 60.0
# Letters kept of what a server says.
_MOST_SAID = 200

JSONObject = dict[str, object]


class Document(NamedTuple):
    """A JSON object, and where it came from."""

    href: str
    content: JSONObject


class _Patience(Retry):
    """urllib3's retries, with an end to what Retry-After may ask; before 2.6 urllib3 knows no limit of its own."""

    def parse_retry_after(self, retry_after: str) -> float:
        return min(super().parse_retry_after(retry_after), MOST_WAIT_S)


@contextmanager
def http() -> Iterator[StacApiIO]:
    """A session that retries and times out, closed at the end."""
    retries = _Patience(
        RETRIES,
        connect=CONNECT_RETRIES,
        status_forcelist=RETRY_STATUS,
        allowed_methods=None,
        backoff_factor=BACKOFF_S,
        # The last answer is kept, so that its status is told.
        raise_on_status=False,
    )
    session = StacApiIO(timeout=TIMEOUT_S, max_retries=retries)
    try:
        yield session
    finally:
        session.session.close()


def read_json(
    href: str,
    session: StacApiIO,
    *,
    method: str = "GET",
    parameters: JSONObject | None = None,
    headers: dict[str, str] | None = None,
) -> JSONObject:
    """The JSON object at a path or URL.

    Parameters
    ----------
    parameters
        Body of a POST, query of a GET; `headers` and `method` are of a URL too.

    Raises
    ------
    ReadError
        It cannot be reached, or is no JSON object.
    SourceError
        It lies in a bucket: pictures are read there, STAC is not.
    """
    where = without_secrets(href)
    if is_remote(href) and urlsplit(href).scheme.lower() not in ("http", "https"):
        raise SourceError(
            f"{where}: STAC JSON is read over http(s) and from disk only; give the https address of the catalog, or "
            "copy it to a folder"
        )
    try:
        text = (
            session.request(href, method=method, parameters=parameters, headers=headers)
            if is_remote(href)
            else local_path(href).read_text(encoding="utf-8")
        )
    except (OSError, APIError, ValueError) as error:
        raise ReadError(f"{where} cannot be read: {said(error)}") from error
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        what = "it is a web page" if _is_markup(text) else f"it is no JSON: {error}"
        raise ReadError(f"{where} cannot be read: {what}; give the address of STAC JSON") from error
    if not isinstance(content, dict):
        raise ReadError(f"{where} holds no JSON object")
    return content


def said(error: Exception) -> str:
    """What went wrong in a few words; a server's status in place of the page that comes with it."""
    words = shown(" ".join(str(error).split()))
    status = getattr(error, "status_code", None)
    if status is None:
        return _network_fault(error) or without_secrets(words)
    answer = f"HTTP {status} {responses.get(status, '')}".rstrip()
    if not words or _is_markup(words):
        return answer
    return f"{answer}: {without_secrets(words)}"


def shown(text: str) -> str:
    """A server's words as a terminal or a record may have them: no control characters, and at most 200 letters."""
    clean = "".join(letter if letter.isprintable() else "?" for letter in text)
    return clean if len(clean) <= _MOST_SAID else f"{clean[:_MOST_SAID]}..."


# What urllib3 tells of a network, which it wraps in the words of three libraries; the first that fits.
_FAULTS: tuple[tuple[type[Exception], str], ...] = (
    (NameResolutionError, "its host name is not known"),
    (SSLError, "its certificate is not trusted, or it speaks no TLS"),
    (NewConnectionError, "no server is there, or the network refuses"),
    (ConnectTimeoutError, "it does not answer"),
    (ReadTimeoutError, "it stopped answering"),
)


def _network_fault(error: BaseException) -> str | None:
    """A fault of the network in our words; None for any other."""
    chain: list[object] = [error]
    for link in chain:
        for kind, words in _FAULTS:
            if isinstance(link, kind):
                return words
        if isinstance(link, BaseException) and len(chain) < 20:
            # requests and urllib3 keep what went wrong as an argument or as `reason`.
            chain += [*link.args, getattr(link, "reason", None), link.__cause__, link.__context__]
    return None


def links(content: JSONObject, *rels: str) -> list[JSONObject]:
    """The links of an object with these relations, all of them without any; those that are no objects left out."""
    every = content.get("links")
    found = [link for link in every if isinstance(link, dict)] if isinstance(every, list) else []
    return [link for link in found if link.get("rel") in rels] if rels else found


def own_href(content: JSONObject, fallback: str) -> str:
    """Where an object says that it lies; `fallback` where it says nothing."""
    own = [link.get("href") for link in links(content, "self")]
    return make_absolute_href(str(own[0]), fallback) if own and isinstance(own[0], str) else fallback


def _is_markup(text: str) -> bool:
    return text.lstrip().startswith("<")
