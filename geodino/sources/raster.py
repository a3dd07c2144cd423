"""How geodino opens rasters with GDAL: which drivers, which options, and one kind of error.

A file behind a URL is opened with the driver that its name promises and no other. A VRT among them could name any file
of this machine, and GDAL's WMS driver would call any server, so only a `.vrt` that lies on the user's disk is read.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from urllib.parse import unquote, urlsplit
from urllib.request import Request, urlopen

import rasterio
from rasterio._err import CPLE_BaseError
from rasterio.errors import RasterioError, RasterioIOError

from geodino.errors import ReadError, SourceError

# What GDAL raises through rasterio. CPLE errors are no RasterioError: a truncated file raises one or the other.
GDAL_ERRORS = (RasterioError, CPLE_BaseError, OSError)

# Measured on 2026-11: opening over HTTP takes 1 request instead of 8 without the directory listing; a server that
# hangs ends in an error instead of a hung run; five tries outlive bursts of 429 and 503. Blocks stay decoded for the
# overlap of the next window. GDAL_CACHEMAX counts bytes here (rasterio), and 256 would switch the cache off.
GDAL_OPTIONS = MappingProxyType(
    {
        "GDAL_CACHEMAX": 64 * 2**20,
        "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
        "GDAL_HTTP_CONNECTTIMEOUT": 10,
        "GDAL_HTTP_LOW_SPEED_LIMIT": 1000,
        "GDAL_HTTP_LOW_SPEED_TIME": 15,
        "GDAL_HTTP_MAX_RETRY": 5,
        "GDAL_HTTP_MERGE_CONSECUTIVE_RANGES": "YES",
        "GDAL_HTTP_RETRY_DELAY": 0.5,
        "GDAL_HTTP_TIMEOUT": 60,
        "GDAL_INGESTED_BYTES_AT_OPEN": 32768,
        # Each open file has such a cache of its own, of 25 MB unless said: too much for a file in each of 8 threads.
        "VSI_CACHE": True,
        "VSI_CACHE_SIZE": 4 * 1024 * 1024,
    }
)
# Beside a local file lie its .msk, .ovr and .aux.xml, which only a directory listing finds. Its bytes are in the
# system's cache; a second one in each open file held 1.5 GiB for 16 scenes of 27 MB (2026-11).
LOCAL_OPTIONS = MappingProxyType({**GDAL_OPTIONS, "GDAL_DISABLE_READDIR_ON_OPEN": "FALSE", "VSI_CACHE": False})

SCHEMES = MappingProxyType(
    {"https": "/vsicurl/", "http": "/vsicurl/", "s3": "/vsis3/", "gs": "/vsigs/", "az": "/vsiaz/", "abfs": "/vsiaz/"}
)
RASTER_SUFFIXES = MappingProxyType({".tif": "GTiff", ".tiff": "GTiff", ".jp2": "JP2OpenJPEG"})
_LOCAL_ONLY = MappingProxyType({".vrt": "VRT"})

_ASKED_BYTES = 256
_ANSWER_TIMEOUT_S = 10.0
_WEB_PAGE = re.compile(rb"\s*<(!doctype html|html)\b", re.IGNORECASE)

_SECRET = re.compile(r"(\?)[^\s'\"<>]+")
_PASSWORD = re.compile(r"(://)[^\s/@'\"<>]+@")


def is_remote(href: str) -> bool:
    """Whether an href is a URL of a scheme that we read. Raises SourceError for any other scheme but `file`."""
    scheme = urlsplit(href).scheme.lower()
    if scheme in SCHEMES:
        return True
    # A single letter is a Windows drive.
    if len(scheme) <= 1 or scheme == "file":
        return False
    raise SourceError(
        f"{without_secrets(href)}: scheme {scheme} is not read; use a path or one of {', '.join(SCHEMES)}"
    )


def local_path(href: str) -> Path:
    """The path of a local href; SourceError for a `file:` URL of another machine."""
    parts = urlsplit(href)
    if parts.scheme.lower() != "file":
        return Path(href)
    if parts.netloc not in ("", "localhost"):
        raise SourceError(f"{href} names the machine {parts.netloc}; a file on this one is file:///folder/a.tif")
    return Path(unquote(parts.path))


def gdal_path(href: str) -> str:
    """GDAL's name of a path or URL, such as /vsicurl/https://... ."""
    if not is_remote(href):
        path = str(local_path(href))
        # GDAL reads the network through such names, which would slip by the rules for URLs.
        if path.startswith("/vsi"):
            raise SourceError(f"{href}: GDAL's virtual paths are not read; give the URL or the file itself")
        return path
    prefix = SCHEMES[urlsplit(href).scheme.lower()]
    return prefix + (href if prefix == "/vsicurl/" else href.split("://", 1)[1])


def suffix_of(href: str) -> str:
    """The lower-case suffix of a path or of a URL without its query: `.tif`."""
    path = urlsplit(href).path if is_remote(href) else href
    return PurePosixPath(path).suffix.lower()


def driver_of(href: str) -> str:
    """The one GDAL driver that may open an href: GTiff where the name says nothing else."""
    suffix = suffix_of(href)
    local = _LOCAL_ONLY.get(suffix) if not is_remote(href) else None
    return local or RASTER_SUFFIXES.get(suffix, "GTiff")


def environment(hrefs: Iterable[str]) -> rasterio.Env:
    """GDAL's options for reading these files, as a context."""
    remote = any(is_remote(href) for href in hrefs)
    return rasterio.Env(**(GDAL_OPTIONS if remote else LOCAL_OPTIONS))


def open_raster(href: str, *, overview: int | None = None) -> rasterio.DatasetReader:
    """An open raster of an allowed driver; `overview` is 0-based, None the full raster.

    Raises
    ------
    ReadError
        If it cannot be reached, or is not what its name says.
    """
    level = {} if overview is None else {"overview_level": overview}
    with read_errors(href), environment([href]):
        try:
            return rasterio.open(gdal_path(href), driver=driver_of(href), sharing=False, **level)
        except RasterioIOError as error:
            why = _unfit_answer(href) if "not recognized" in str(error) else None
            if why is None:
                raise
            raise ReadError(f"{without_secrets(href)} cannot be read: {why}") from error


def _unfit_answer(href: str) -> str | None:
    """Why GDAL recognizes nothing behind a URL, as far as one more request tells.

    GDAL does not say through rasterio that a server ignores Range; it calls the file, of over some 0.2 MB (GDAL 3.10),
    one of no known format.
    """
    if urlsplit(href).scheme.lower() not in ("http", "https"):
        return None
    request = Request(href, headers={"Range": f"bytes=0-{_ASKED_BYTES - 1}"})
    try:
        with urlopen(request, timeout=_ANSWER_TIMEOUT_S) as answer:
            status, head = answer.status, answer.read(_ASKED_BYTES)
    except (OSError, HTTPException, ValueError):
        return None
    if _WEB_PAGE.match(head):
        return "its server sends a web page; check the address, or sign in and download the file"
    if status != 206:
        return f"its server sends files whole only (HTTP {status} to a request for a byte range); download the file"
    return None


def forget(href: str) -> None:
    """Drops what GDAL remembers of a remote file, such as a body that ended early; does nothing for a local one."""
    if not is_remote(href):
        return
    # GDAL drops its blocks of a file when one that was opened as not to be cached is closed.
    with rasterio.Env(**GDAL_OPTIONS, CPL_VSIL_CURL_NON_CACHED=gdal_path(href)), contextlib.suppress(*GDAL_ERRORS):
        rasterio.open(gdal_path(href), driver=driver_of(href), sharing=False).close()


@contextmanager
def read_errors(what: str) -> Iterator[None]:
    """Turns GDAL's errors into a ReadError that names `what` and the chain of causes, without signatures in URLs."""
    try:
        yield
    except GDAL_ERRORS as error:
        if isinstance(error, ReadError):
            raise
        raise ReadError(f"{without_secrets(what)} cannot be read: {causes(error)}") from error


def causes(error: BaseException) -> str:
    """The messages of an error and of what caused it, the outermost first."""
    messages: list[str] = []
    link: BaseException | None = error
    while link is not None:
        text = " ".join(str(getattr(link, "errmsg", None) or link).split())
        if text and text not in messages:
            messages.append(text)
        link = link.__cause__ or link.__context__
    return without_secrets("; ".join(messages) or type(error).__name__)


def without_secrets(text: str) -> str:
    """The text without the queries of its URLs, which may hold signatures, and without names and passwords in them."""
    return _PASSWORD.sub(r"\1", _SECRET.sub(r"\1...", text))
