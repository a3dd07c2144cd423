"""What a file server answers, and what goes wrong with it: pure functions of `fault_server`, which sends them."""

from __future__ import annotations

import gzip
import math
import mimetypes
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from email.utils import formatdate
from enum import Enum, auto
from pathlib import Path
from time import time
from urllib.parse import quote


class Fault(Enum):
    """What may go wrong with one request."""

    SERVER_ERROR = auto()  # 500
    UNAVAILABLE = auto()  # 503
    TOO_MANY = auto()  # 429, Retry-After in seconds
    TOO_MANY_UNTIL = auto()  # 429, Retry-After as a date
    CUT = auto()  # half of the promised body, then closed in good order
    RESET = auto()  # half of the body, then a TCP reset
    HANG = auto()  # not a byte, until the client gives up
    HANG_IN_BODY = auto()  # half of the body, then silence until the client gives up
    SLOW = auto()  # a kilobyte a second
    EXPIRED = auto()  # 403, and the request's token, if it has one, is void from now on
    FALSE_RANGE = auto()  # the right bytes, Content-Range names others
    SHIFTED_BODY = auto()  # other bytes, Content-Range names those asked for
    SHIFTED_RANGE = auto()  # other bytes, and Content-Range admits it
    CHANGED = auto()  # Content-Range has another total and the ETag is another: the file was replaced meanwhile
    NO_RANGES = auto()  # 200 and the whole file
    GZIP = auto()  # the bytes asked for, sent with Content-Encoding: gzip
    LOGIN_PAGE = auto()  # 200 and a page of HTML
    REDIRECT = auto()  # 302 to the same file, which then comes; clients follow it
    CORRUPT = auto()  # 64 bytes in the middle of the body are others, and nothing tells
    NO_HEAD = auto()  # HEAD answered 405
    HEAD_FORBIDDEN = auto()  # HEAD answered 403, as by URLs signed for GET only


# A fault that is not named here may befall any request.
_FITS_RANGED = {Fault.FALSE_RANGE, Fault.SHIFTED_BODY, Fault.SHIFTED_RANGE, Fault.CHANGED}
_FITS_GET = {Fault.CUT, Fault.RESET, Fault.HANG_IN_BODY, Fault.SLOW, Fault.GZIP, Fault.CORRUPT} | _FITS_RANGED
_FITS_HEAD = {Fault.NO_HEAD, Fault.HEAD_FORBIDDEN}
LOGIN_PAGE = b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head><body>" + b"<p>Sign in</p>" * 300
SLOW_BYTES_PER_S = 1000
SHIFT = 7  # bytes; no multiple of a pixel, a block or a page
CORRUPT_BYTES = 64


@dataclass
class Request:
    """One request of the log: what was asked, what was answered, and the bytes of body handed to the socket so far."""

    method: str
    path: str
    query: str
    range: str
    token: str
    fault: Fault | None = None
    status: int = 0
    sent: int = 0

    @property
    def start(self) -> int:
        """The first byte asked for; 0 where no range says."""
        found = re.match(r"bytes=(\d+)-", self.range)
        return int(found[1]) if found else 0

    def fits(self, fault: Fault) -> bool:
        """Whether the fault may befall this request."""
        if fault is Fault.REDIRECT:
            return "redirected" not in self.query
        if fault in _FITS_HEAD:
            return self.method == "HEAD"
        return self.method == "GET" and bool(self.range or fault not in _FITS_RANGED) if fault in _FITS_GET else True


@dataclass(frozen=True)
class Answer:
    """A status, its headers but for Content-Length, and the body."""

    status: int
    headers: dict[str, str]
    body: bytes = b""


def answer_to(request: Request, folder: Path, retry_after_s: int) -> Answer:
    """The answer to a request that has met its fault; faults of the way it is sent do not show in it."""
    if request.fault in _REFUSALS:
        answer = Answer(_REFUSALS[request.fault], {}, b"no")
    else:
        answer = _file_answer(folder, request)
        if request.fault in _SPOILS and answer.status in (200, 206):
            answer = _SPOILS[request.fault](answer, request)
    if request.fault is Fault.TOO_MANY:
        answer.headers["Retry-After"] = str(retry_after_s)
    elif request.fault is Fault.TOO_MANY_UNTIL:
        answer.headers["Retry-After"] = formatdate(math.ceil(time() + retry_after_s), usegmt=True)
    return answer


def _file_answer(folder: Path, request: Request) -> Answer:
    """What an honest server says: 200 or 206 with the file, 404, 405, 416."""
    path = (folder / request.path).resolve()
    if request.method not in ("GET", "HEAD"):
        return Answer(405, {"Allow": "GET, HEAD"}, b"only GET and HEAD")
    if not path.is_relative_to(folder) or not path.is_file():
        return Answer(404, {}, b"no such file")
    facts = path.stat()
    headers = {
        "Accept-Ranges": "bytes",
        "Content-Type": mimetypes.guess_type(path.name)[0] or "application/octet-stream",
        "ETag": f'"{facts.st_mtime_ns:x}-{facts.st_size:x}"',
        "Last-Modified": formatdate(facts.st_mtime, usegmt=True),
    }
    asked = re.fullmatch(r"bytes=(?=.*\d)(\d*)-(\d*)", request.range)
    if request.fault is Fault.NO_RANGES:
        del headers["Accept-Ranges"]
        asked = None
    start, stop = _span(asked[1], asked[2], facts.st_size) if asked else (0, facts.st_size)
    if asked and start >= stop:
        return Answer(416, {"Content-Range": f"bytes */{facts.st_size}"})
    if asked:
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{facts.st_size}"
    if request.method == "HEAD":
        return Answer(206 if asked else 200, headers | {"Content-Length": str(stop - start)})
    shift = SHIFT if request.fault in (Fault.SHIFTED_BODY, Fault.SHIFTED_RANGE) else 0
    with path.open("rb") as file:
        file.seek(start + shift)
        return Answer(206 if asked else 200, headers, file.read(stop - start).ljust(stop - start, b"\0"))


def _span(first: str, last: str, size: int) -> tuple[int, int]:
    """Start and stop of `first-last`, `first-` or `-count`; start >= stop where nothing of it is in the file."""
    if not first:
        return (max(size - int(last), 0), size) if int(last) else (size, size)
    return int(first), min(int(last) + 1, size) if last else size


def _with_range(answer: Answer, shift: int = 0, more: int = 0) -> Answer:
    """The answer with Content-Range moved and its total grown, where it has one."""
    first, last, total = map(int, re.findall(r"\d+", answer.headers["Content-Range"]))
    return replace(
        answer, headers=answer.headers | {"Content-Range": f"bytes {first + shift}-{last + shift}/{total + more}"}
    )


def _corrupted(answer: Answer, request: Request) -> Answer:
    body = bytearray(answer.body)
    start = max(len(body) - CORRUPT_BYTES, 0) // 2
    body[start : start + CORRUPT_BYTES] = (255 - byte for byte in body[start : start + CORRUPT_BYTES])
    return replace(answer, body=bytes(body))


def _redirect(answer: Answer, request: Request) -> Answer:
    query = "&".join(filter(None, [request.query, "redirected=1"]))
    return Answer(302, {"Location": f"/{quote(request.path)}?{query}"}, b"elsewhere")


# Refusals are answered for any file; what spoils an answer does so to a 200 or 206 only.
_REFUSALS: dict[Fault | None, int] = {
    Fault.SERVER_ERROR: 500,
    Fault.UNAVAILABLE: 503,
    Fault.TOO_MANY: 429,
    Fault.TOO_MANY_UNTIL: 429,
    Fault.EXPIRED: 403,
    Fault.NO_HEAD: 405,
    Fault.HEAD_FORBIDDEN: 403,
}
_SPOILS: dict[Fault | None, Callable[[Answer, Request], Answer]] = {
    Fault.FALSE_RANGE: lambda answer, _: _with_range(answer, shift=SHIFT),
    Fault.SHIFTED_RANGE: lambda answer, _: _with_range(answer, shift=SHIFT),
    Fault.CHANGED: lambda answer, _: _with_range(
        replace(answer, headers=answer.headers | {"ETag": '"another"'}), more=4096
    ),
    Fault.GZIP: lambda answer, _: Answer(
        answer.status, answer.headers | {"Content-Encoding": "gzip"}, gzip.compress(answer.body, 1)
    ),
    Fault.LOGIN_PAGE: lambda *_: Answer(200, {"Content-Type": "text/html"}, LOGIN_PAGE),
    Fault.REDIRECT: _redirect,
    Fault.CORRUPT: _corrupted,
}
