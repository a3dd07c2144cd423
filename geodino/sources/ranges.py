"""Byte ranges of remote files, fetched with patience: what a network does wrong is met here, and nowhere else.

GDAL retries some answers (429, 500, 503) and not others (a body that ends early, a connection reset: OSGeo/gdal#12933),
does not look at what range it was sent, and does not say that a signature expired. So geodino fetches the bytes itself,
checks each answer against what was asked, and GDAL only ever decodes what lies on this machine.
"""

from __future__ import annotations

import logging
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from functools import cache
from http.client import responses
from typing import Any, NamedTuple, Protocol, TypeVar
from urllib.parse import unquote, urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

import urllib3
from requests.utils import get_netrc_auth
from urllib3.exceptions import HTTPError, NameResolutionError, NewConnectionError
from urllib3.exceptions import TimeoutError as SilentError

from geodino.errors import ConfigError, ReadError, SourceError
from geodino.redaction import without_secrets
from geodino.sources.raster import check_link
from geodino.sources.signing import signed

logger = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class Patience:
    """How long a read is tried.

    Attributes
    ----------
    attempts
        Of one range.
    first_delay_s, most_delay_s
        Pause before the second attempt, doubled for each further one, and its limit; each is drawn between half and
        one and a half of it, so that many readers do not come back at once. A server's Retry-After goes before it.
    connect_s, silence_s
        Without a connection, and without a byte.
    least_bytes_s
        A body that comes more slowly than this, after `silence_s`, is given up.
    total_s
        For all attempts together.
    stop
        Where set, nothing is tried again: whoever waits is told so at once.
    """

    attempts: int = 6
    first_delay_s: float = 0.5
    most_delay_s: float = 20.0
    connect_s: float = 10.0
    silence_s: float = 10.0
    least_bytes_s: float = 2000.0
    total_s: float = 300.0
    stop: threading.Event | None = None


PATIENCE = Patience()
# Connections kept open to one host: more readers than this wait for each other.
CONNECTIONS = 32
MOST_REDIRECTS = 5
# After so many ranges of a file in a row for which patience ended, the next are asked for once, until one comes: a run
# that skips what cannot be read would otherwise wait minutes for each window of a server that is gone.
LOST_IN_A_ROW = 3
# To learn how long a file is takes a request, which may as well bring what is needed next: the header of a small COG.
FIRST_BYTES = 32 * 1024
# A server that knows no ranges may send a file as small as this whole.
MOST_WHOLE_BYTES = 2**20
_PIECE = 64 * 1024
_RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})
_REFUSED = frozenset({401, 403})
_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)")
# No file of imagery is larger; a number beyond it is a trap or a mistake.
MOST_FILE_BYTES = 2**50


class AttemptError(Exception):
    """What went wrong with one attempt.

    Attributes
    ----------
    final
        Whether another attempt would end the same way.
    refused
        Whether a fresh signature may help.
    wait_s
        What the server asked to wait; None where it did not say.
    """

    def __init__(self, why: str, *, final: bool = False, refused: bool = False, wait_s: float | None = None) -> None:
        super().__init__(without_secrets(why))
        self.final, self.refused, self.wait_s = final, refused, wait_s


class Answer(NamedTuple):
    """Bytes, how long the whole file is, and what tells one version of it from another ("" where nothing does)."""

    body: bytes
    size: int
    version: str


class Ranges(Protocol):
    """A remote file, read by byte range from many threads."""

    def get(self, start: int, stop: int) -> bytes:
        """Bytes start to stop of the file, fewer only where it ends before; ReadError where patience ends."""

    @property
    def size(self) -> int:
        """Bytes of the whole file."""

    @property
    def version(self) -> str:
        """What tells one version of the file from another, such as its ETag; "" where nothing does."""

    @property
    def start(self) -> bytes:
        """Its first bytes, as far as they came by the way."""


def patiently(what: str, attempt: Callable[[int], T], patience: Patience) -> T:
    """What `attempt(number)` gives, tried again while its faults may pass.

    Raises
    ------
    ReadError
        It was final, or attempts or time ran out; says `what`, and each cause with how often it came.
    """
    began = time.monotonic()
    causes: Counter[str] = Counter()
    number = 0
    while True:
        number += 1
        try:
            return attempt(number)
        except AttemptError as fault:
            causes[str(fault)] += 1
            delay = min(patience.first_delay_s * 2 ** (number - 1), patience.most_delay_s) * random.uniform(0.5, 1.5)
            delay = delay if fault.wait_s is None else fault.wait_s
            late = time.monotonic() - began + delay > patience.total_s
            if fault.final or number >= patience.attempts or late:
                tried = "" if number == 1 else f" after {number} attempts in {time.monotonic() - began:.0f} s"
                said = "; ".join(f"{cause} ({count} times)" if count > 1 else cause for cause, count in causes.items())
                raise ReadError(f"{without_secrets(what)} cannot be read{tried}: {said}") from fault
            logger.info("%s: attempt %d: %s; again in %.1f s", without_secrets(what), number, fault, delay)
        if patience.stop is None:
            time.sleep(delay)
        elif patience.stop.wait(delay):
            raise ReadError(f"{without_secrets(what)} was not read to the end: the run stops")


class HttpRanges:
    """A file behind http or https.

    Parameters
    ----------
    href
        Unsigned.
    sign
        Name of the hook that signs it when it is opened, and again when the server refuses.
    """

    def __init__(self, href: str, sign: str | None = None, patience: Patience | None = None) -> None:
        self.href, self._sign = href, sign
        self._patience = patience or PATIENCE
        self._url = signed(href, sign)
        self._lost = 0
        self.size, self.version = -1, ""
        self.start = self.get(0, FIRST_BYTES)

    def get(self, start: int, stop: int) -> bytes:
        def attempt(number: int) -> Answer:
            url = self._url
            try:
                found = _ask(url, start, stop, self._patience, number)
                self._check(found)
            except AttemptError as fault:
                if not fault.refused or self._sign is None:
                    raise
                # Another thread may have had it signed meanwhile.
                if url == self._url:
                    self._url = signed(self.href, self._sign, again=True)
                raise AttemptError(str(fault), wait_s=0.0 if number == 1 else None) from fault
            return found

        patience = self._patience if self._lost < LOST_IN_A_ROW else replace(self._patience, attempts=1)
        try:
            what = self.href if self.size < 0 else f"{self.href}, bytes {start} to {stop}"
            found = patiently(what, attempt, patience)
        except ReadError:
            self._lost += 1
            raise
        self._lost = 0
        self.size, self.version = found.size, found.version
        return found.body

    def _check(self, found: Answer) -> None:
        """Faults where this is no longer the file that was begun."""
        if self.size >= 0 and found.size != self.size:
            why = f"the file changed while it was read, from {self.size} to {found.size} bytes"
            raise AttemptError(why, final=True)
        if self.version and found.version and found.version != self.version:
            # Mirrors behind one name may differ in their dates, and the next answer may be the first one's again.
            raise AttemptError(f"the file changed while it was read, on {found.version}")


def open_ranges(href: str, sign: str | None = None, patience: Patience | None = None) -> Ranges:
    """The bytes of a remote file, by its scheme.

    Raises
    ------
    ReadError
        It cannot be reached, or its server does not know ranges.
    """
    if urlsplit(href).scheme.lower() in ("http", "https"):
        return HttpRanges(href, sign, patience)
    from geodino.sources.stores import StoreRanges

    return StoreRanges(href, patience)


def _pool(url: str) -> urllib3.PoolManager:
    """Connections to a host, through the proxy that the environment names for it (http_proxy, no_proxy and so on)."""
    parts = urlsplit(url)
    proxy = None if proxy_bypass(parts.hostname or "") else getproxies().get(parts.scheme)
    return _pool_through(proxy)


@cache
def _pool_through(proxy: str | None) -> urllib3.PoolManager:
    how: dict[str, Any] = {"num_pools": 16, "maxsize": CONNECTIONS, "block": True, "retries": False}
    if proxy is None:
        return urllib3.PoolManager(**how)
    # As curl and requests have it, a proxy may be named without a scheme.
    proxy = proxy if "://" in proxy else f"http://{proxy}"
    parts = urlsplit(proxy)
    if parts.scheme not in ("http", "https"):
        raise ConfigError(f"proxy {without_secrets(proxy)}: only http and https proxies are used; set another")
    known = f"{unquote(parts.username)}:{unquote(parts.password or '')}" if parts.username else None
    headers = urllib3.make_headers(proxy_basic_auth=known) if known else None
    return urllib3.ProxyManager(proxy, proxy_headers=headers, **how)


def _headers(url: str, start: int, stop: int) -> dict[str, str]:
    """Of a request for a range; with name and password where the URL or the user's .netrc has them for this host."""
    headers = {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity", "User-Agent": "geodino"}
    parts = urlsplit(url)
    known = (unquote(parts.username), unquote(parts.password or "")) if parts.username else get_netrc_auth(url)
    return headers | (urllib3.make_headers(basic_auth=":".join(known)) if known else {})


def _ask(url: str, start: int, stop: int, patience: Patience, number: int = 1) -> Answer:
    """One request for a range, its answer checked; AttemptError for whatever is wrong with it."""
    first = url
    timeout = urllib3.Timeout(connect=patience.connect_s, read=patience.silence_s)
    try:
        for _ in range(MOST_REDIRECTS + 1):
            headers = _headers(url, start, stop)
            response = _pool(url).request(
                "GET", url, headers=headers, timeout=timeout, redirect=False, preload_content=False
            )
            target = response.get_redirect_location()
            if not target:
                break
            response.close()
            response.release_conn()
            url = _sent_on(url, target, first)
        else:
            raise AttemptError(f"the server sent on more than {MOST_REDIRECTS} times", final=True)
        assert isinstance(response, urllib3.HTTPResponse)
        return _read(response, start, stop, patience)
    except NameResolutionError as error:
        raise AttemptError(
            f"the host {urlsplit(url).hostname} is not known; check the address and the network", final=number > 1
        ) from error
    except NewConnectionError as error:
        raise AttemptError(f"the host {urlsplit(url).hostname} takes no connection ({_cause(error)})") from error
    except SilentError as error:
        raise AttemptError(f"no answer for {patience.silence_s:g} s ({type(error).__name__})") from error
    except (HTTPError, OSError) as error:
        raise AttemptError(" ".join(str(error).split()) or type(error).__name__) from error


def _cause(error: BaseException) -> str:
    """What the system said, without urllib3's own words around it."""
    return " ".join(str(error.__cause__ or error).split())


def _sent_on(url: str, target: str, first: str) -> str:
    """Where a server sends on to, if it may."""
    try:
        url = urljoin(url, target)
    except ValueError as error:
        raise AttemptError(f"the server sends on to {target}, which is no URL", final=True) from error
    if urlsplit(url).scheme not in ("http", "https"):
        raise AttemptError(f"the server sends on to {url}, which is not read", final=True)
    try:
        check_link(url, first)
    except SourceError as error:
        raise AttemptError(str(error), final=True) from error
    return url


def _read(response: urllib3.HTTPResponse, start: int, stop: int, patience: Patience) -> Answer:
    whole = False
    try:
        total = _checked_head(response, start, stop)
        is_whole = response.status == 200
        wanted = total if is_whole else min(stop, total) - start
        body = bytearray()
        began = time.monotonic()
        # read1 gives what has come; read and stream would wait for a whole piece of a body that only trickles.
        while piece := response.read1(_PIECE, decode_content=False):
            body += piece
            took = time.monotonic() - began
            if patience.stop is not None and patience.stop.is_set():
                raise AttemptError("the run stops", final=True)
            if took > patience.silence_s and len(body) < took * patience.least_bytes_s:
                raise AttemptError(f"only {len(body)} bytes came in {took:.0f} s")
            if len(body) > wanted:
                raise AttemptError(f"more than the {wanted} bytes that were asked for came")
        if len(body) != wanted:
            raise AttemptError(f"the body ended after {len(body)} of {wanted} bytes")
        whole = True
    finally:
        # A connection with unread bytes cannot be used again, and its place in the pool can.
        if not whole:
            response.close()
        response.release_conn()
    return Answer(bytes(body[start:stop] if is_whole else body), total, response.headers.get("Last-Modified", ""))


def _checked_head(response: urllib3.HTTPResponse, start: int, stop: int) -> int:
    """Bytes of the whole file, once status and headers say that exactly this range follows."""
    status = response.status
    if status in _RETRIED:
        raise AttemptError(_status(status), wait_s=_retry_after(response.headers.get("Retry-After")))
    if status in _REFUSED:
        raise AttemptError(_status(status), final=True, refused=True)
    if status == 200:
        if "html" in response.headers.get("Content-Type", ""):
            raise AttemptError(
                "its server sends a web page; check the address, or sign in and download the file", final=True
            )
        length = response.headers.get("Content-Length", "")
        if length.isdecimal() and int(length) <= max(MOST_WHOLE_BYTES, stop - start):
            return int(length)
        raise AttemptError(
            "its server sends files whole only (HTTP 200 to a request for a byte range); download the file", final=True
        )
    if status == 416 and start == 0:
        raise AttemptError("it is empty (0 bytes)", final=True)
    if status != 206:
        raise AttemptError(_status(status), final=True)
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise AttemptError(f"the server sends {response.headers['Content-Encoding']} in place of the bytes themselves")
    said = response.headers.get("Content-Range", "")
    found = _CONTENT_RANGE.fullmatch(said.strip())
    if found is None or found[3] == "*":
        why = f"the server does not say which bytes it sends (Content-Range: {said or 'none'})"
        raise AttemptError(why, final=not said)
    first, last, total = int(found[1]), int(found[2]), int(found[3])
    if total > MOST_FILE_BYTES:
        raise AttemptError(f"the server says that the file has {total} bytes, which none has", final=True)
    if (first, last + 1) != (start, min(stop, total)):
        raise AttemptError(f"the server sends bytes {first} to {last + 1} in place of {start} to {stop}")
    return total


def _status(status: int) -> str:
    return f"HTTP {status} {responses.get(status, '')}".rstrip()


def _retry_after(said: str | None) -> float | None:
    """Seconds to wait: a number, or until a date (RFC 9110, 10.2.3)."""
    if not said:
        return None
    if said.strip().isdecimal():
        return float(said)
    try:
        return max(0.0, parsedate_to_datetime(said).timestamp() - time.time())
    except ValueError:
        return None
