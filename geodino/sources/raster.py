"""How geodino opens rasters with GDAL: which drivers, which options, and one kind of error.

A file behind a URL is opened with the driver that its name promises and no other. A VRT among them could name any file
of this machine, and GDAL's WMS driver would call any server, so only a `.vrt` that lies on the user's disk is read, and
what lies beside a GeoTIFF (.ovr, .msk) must be a GeoTIFF too. Nothing is looked for beside a file behind a URL.
"""

from __future__ import annotations

import contextlib
import re
import socket
import threading
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from http.client import HTTPException
from ipaddress import IPv6Address, ip_address
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from urllib.parse import unquote, urlsplit
from urllib.request import Request, urlopen

import rasterio
from rasterio._err import CPLE_BaseError
from rasterio.errors import NotGeoreferencedWarning, RasterioError, RasterioIOError

from geodino.errors import ReadError, SourceError
from geodino.redaction import without_secrets
from geodino.sources.headers import check_claims

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
# Beside a local file lie its .msk, .ovr and .aux.xml. TRUE: looked for by name, without a listing of the folder, in
# which GDAL would find .oVr too. Its bytes are in the system's cache; a second one in each open file held 1.5 GiB for
# 16 scenes of 27 MB (2026-11).
LOCAL_OPTIONS = MappingProxyType({**GDAL_OPTIONS, "GDAL_DISABLE_READDIR_ON_OPEN": "TRUE", "VSI_CACHE": False})
# The names under which GDAL looks for overviews and masks beside a local file, and opens them with any driver.
_BESIDE = (".ovr", ".OVR", ".msk", ".MSK")
_FILTERS = threading.RLock()

SCHEMES = MappingProxyType(
    {"https": "/vsicurl/", "http": "/vsicurl/", "s3": "/vsis3/", "gs": "/vsigs/", "az": "/vsiaz/", "abfs": "/vsiaz/"}
)
RASTER_SUFFIXES = MappingProxyType({".tif": "GTiff", ".tiff": "GTiff", ".jp2": "JP2OpenJPEG"})
_LOCAL_ONLY = MappingProxyType({".vrt": "VRT"})

_ASKED_BYTES = 256
_ANSWER_TIMEOUT_S = 10.0
_WEB_PAGE = re.compile(rb"\s*<(!doctype html|html)\b", re.IGNORECASE)

# In a name these make GDAL take it for a document (`<VRTDataset ...`), or are in no URL and no sane file name.
_UNFIT = re.compile(r"[<>\x00-\x1f\x7f]")


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
    """GDAL's name of a path or URL, such as /vsicurl/https://... ; that of a local file is absolute.

    Raises
    ------
    SourceError
        GDAL could take the name for something else than the file: a document, a virtual path, another bucket.
    """
    if _UNFIT.search(href):
        raise SourceError(f"{without_secrets(href)!r} has <, > or a control character in it; rename the file")
    if not is_remote(href):
        # Absolute, so that no part of it is a prefix that GDAL knows, such as GTIFF_DIR: or NETCDF:.
        path = str(local_path(href).absolute())
        # GDAL reads the network through such names, which would slip by the rules for URLs.
        if path.startswith("/vsi"):
            raise SourceError(f"{href}: GDAL's virtual paths are not read; give the URL or the file itself")
        return path
    parts = urlsplit(href)
    if ".." in unquote(parts.path).split("/") or parts.netloc == "..":
        raise SourceError(f"{without_secrets(href)} goes up a folder (..); give the address that it leads to")
    prefix = SCHEMES[parts.scheme.lower()]
    return prefix + (href if prefix == "/vsicurl/" else href.split("://", 1)[1])


def check_link(href: str, via: str) -> None:
    """Refuses an href that leads nearer to this machine than the document that names it.

    A document on the internet may name no local file and no host of a private, loopback or link-local address, where
    the metadata service of a cloud machine answers. One on the user's disk or in the user's own network may.

    Parameters
    ----------
    href
        Absolute.
    via
        Path or URL of the STAC document that names it.

    Raises
    ------
    SourceError
        Names both.

    Notes
    -----
    Hosts are looked up once. A name that leads elsewhere at the next look-up is not seen; then a GeoTIFF is asked for
    where there is none. Where a server sends on to is held against this too, but for JPEG 2000, which GDAL reads.
    """
    if not is_remote(via):
        return
    if not is_remote(href):
        raise SourceError(f"{without_secrets(via)} is remote but points to the local file {href}")
    if _is_inside(href) and not _is_inside(via):
        raise SourceError(
            f"{without_secrets(via)} is on the internet but points to {without_secrets(href)}, an address inside of "
            "this network; if you trust it, save the document and give its path"
        )


def _is_inside(href: str) -> bool:
    """Whether a URL's host is this machine or one of a network that the internet does not reach."""
    parts = urlsplit(href)
    # The hosts of the other schemes are buckets of a service that the user's environment names.
    return parts.scheme.lower() in ("http", "https") and _is_inside_host(parts.hostname or "")


@lru_cache(maxsize=1024)
def _is_inside_host(host: str) -> bool:
    # The system's look-up knows all spellings, such as 2130706433 for 127.0.0.1.
    try:
        found = {str(place[4][0]).partition("%")[0] for place in socket.getaddrinfo(host, None)}
    except (OSError, UnicodeError):
        # Not to be reached but through a proxy, or not at all.
        return False
    addresses = [ip_address(text) for text in found]
    mapped = [address.ipv4_mapped or address if isinstance(address, IPv6Address) else address for address in addresses]
    return not all(address.is_global for address in mapped)


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
    SourceError
        If it, or a mask or overviews beside it, names other files or asks for too much memory.
    """
    level = {} if overview is None else {"overview_level": overview}
    path = gdal_path(href)
    if not is_remote(href):
        for beside in (f"{path}{suffix}" for suffix in _BESIDE if Path(path + suffix).exists()):
            open_beside(beside).close()
    with read_errors(href), environment([href]):
        try:
            raster = rasterio.open(path, driver=driver_of(href), sharing=False, **level)
        except RasterioIOError as error:
            why = _unfit_answer(href) if "not recognized" in str(error) else None
            if why is None:
                raise
            raise ReadError(f"{without_secrets(href)} cannot be read: {why}") from error
        try:
            check_claims(raster, without_secrets(href))
        except SourceError:
            raster.close()
            raise
        return raster


def open_beside(href: str) -> rasterio.DatasetReader:
    """An open mask or overviews that lie beside a raster: as `open_raster`, but they need no place of their own."""
    # Filters of warnings belong to all threads.
    with _FILTERS, warnings.catch_warnings(action="ignore", category=NotGeoreferencedWarning):
        return open_raster(href)


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
        text = text.removesuffix(" See previous exception for details.")
        if text and not any(text in known for known in messages):
            messages.append(text)
        link = link.__cause__ or link.__context__
    return without_secrets("; ".join(messages) or type(error).__name__)
