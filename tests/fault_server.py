"""A file server that misbehaves on request: faults by plan or by lot, latency, tokens that expire, and a log.

In a thread of a test, or as a process of its own for soak tests and benchmarks:

    with FaultServer(folder) as server:
        server.plan("a.tif", Fault.CUT, times=2)
        read(server.url + "/a.tif")
        assert server.total("a.tif").sent < 1_000_000

    with own_process(folder, "--latency", "0.02", "--share", "CUT=0.02") as server:
        read(server.url + "/a.tif")

Latency is waited for once a request, before the first byte of its answer. A new connection costs nothing here, where
a real one costs one more journey to and fro, and two or three with TLS.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import socket
import struct
import subprocess
import sys
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from urllib.request import urlopen

from faults import SLOW_BYTES_PER_S, Answer, Fault, Request, answer_to

_PIECE = 1 << 18  # bytes handed to the socket at a time, so that the log is near the truth where a client hangs up


@dataclass(frozen=True)
class Total:
    """The requests of one file, or of all, and the bytes of body sent."""

    requests: int
    sent: int


@dataclass
class _Plan:
    fault: Fault
    left: float
    method: str | None
    from_byte: int


@dataclass(frozen=True)
class _Lot:
    """Faults by lot: a request's draw depends on the seed, the request and how often it came, not on the order."""

    shares: dict[Fault, float] = field(default_factory=dict)
    seed: int = 0
    in_a_row: int = 2

    def draw(self, request: Request, times_before: int) -> Fault | None:
        key = f"{self.seed} {request.method} {request.path} {request.range} {times_before}"
        left = random.Random(key).random()
        for fault, share in self.shares.items():
            left -= share
            if left < 0:
                return fault if request.fits(fault) else None
        return None


class FaultServer:
    """Serves a folder on a free port of 127.0.0.1, from a thread, while its context is open.

    Parameters
    ----------
    folder
        Its files, at any depth, are served.
    latency_s
        Waited for before each answer; may be set again at any time.
    bytes_per_s
        The most that each connection gets; None for no limit.
    token_requests
        If given, each request needs `?token=` with a token of `token()`, which serves that many requests, then 403.
    retry_after_s
        What `Fault.TOO_MANY` and `TOO_MANY_UNTIL` ask for.
    """

    def __init__(
        self,
        folder: Path,
        *,
        latency_s: float = 0.0,
        bytes_per_s: float | None = None,
        token_requests: int | None = None,
        retry_after_s: int = 1,
    ) -> None:
        self.folder = folder.resolve()
        self.latency_s = latency_s
        self.bytes_per_s = bytes_per_s
        self.token_requests = token_requests
        self.retry_after_s = retry_after_s
        self.requests: list[Request] = []
        self.url = ""
        self._lock = threading.Lock()
        self._plans: dict[str, list[_Plan]] = defaultdict(list)
        self._lot = _Lot()
        self._seen: Counter[tuple[str, str, str]] = Counter()
        self._in_a_row: Counter[tuple[str, str, str]] = Counter()
        self._tokens: dict[str, int] = {}
        self._tokens_made = 0
        self._thread: threading.Thread | None = None
        self._stop: Callable[[], object] = lambda: None

    # What tests ask for.

    def plan(
        self,
        path: str,
        fault: Fault,
        *,
        times: float = 1,
        method: str | None = None,
        from_byte: int = 0,
    ) -> None:
        """Let the next requests of a file that the fault fits go wrong; plans of one file come one after another.

        Parameters
        ----------
        path
            Relative to the folder, or `*` for any file.
        times
            How many requests; `math.inf` for all from now on.
        method
            Only requests of this method.
        from_byte
            Only ranges that start here or later, so that the header of a file is spared.
        """
        with self._lock:
            self._plans[path].append(_Plan(fault, times, method, from_byte))

    def shares(self, shares: dict[Fault, float], *, seed: int = 0, in_a_row: int = 2) -> None:
        """Let each request draw a fault by these probabilities, whose sum is at most 1.

        The draw depends on the seed, the request (method, path, range) and how often it came before, so that threads
        in any order meet the same faults. One that does not fit the request is none. After `in_a_row` faults the same
        request is answered well; but a read of a window is several requests, and each may fail as often.
        """
        assert sum(shares.values()) <= 1
        with self._lock:
            self._lot = _Lot(dict(shares), seed, in_a_row)

    def token(self) -> str:
        """A fresh token, good for `token_requests` requests."""
        with self._lock:
            self._tokens_made += 1
            token = f"t{self._tokens_made}"
            self._tokens[token] = self.token_requests or sys.maxsize
            return token

    def signed(self, url: str) -> str:
        """The URL with a fresh token in place of the one it has."""
        return f"{url.partition('?')[0]}?token={self.token()}"

    def total(self, path: str | None = None) -> Total:
        """The requests and bytes of body sent since the start or `reset`, of one file or of all."""
        counted = [request for request in list(self.requests) if path in (None, request.path)]
        return Total(len(counted), sum(request.sent for request in counted))

    def faults(self) -> Counter[Fault]:
        """How many requests met each fault."""
        return Counter(request.fault for request in list(self.requests) if request.fault)

    def reset(self) -> None:
        """Forget the log, the plans and what each request has drawn; tokens and shares stay."""
        with self._lock:
            self.requests = []
            self._plans.clear()
            self._seen.clear()
            self._in_a_row.clear()

    # The life of the server.

    def __enter__(self) -> FaultServer:
        ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(ready)), daemon=True)
        self._thread.start()
        assert ready.wait(10)
        return self

    def __exit__(self, *error: object) -> None:
        self._stop()
        assert self._thread is not None
        self._thread.join(10)

    async def _serve(self, ready: threading.Event) -> None:
        loop, stopped = asyncio.get_running_loop(), asyncio.Event()
        connections: set[asyncio.Task[None]] = set()

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            connections.add(task)
            try:
                await self._converse(reader, writer)
            except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                pass  # the client hung up, or the server is closing
            finally:
                connections.discard(task)
                writer.close()

        server = await asyncio.start_server(connected, "127.0.0.1", 0, backlog=256)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self._stop = lambda: loop.call_soon_threadsafe(stopped.set)
        ready.set()
        await stopped.wait()
        server.close()
        for task in list(connections):
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection, one after another."""
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        writer.transport.set_write_buffer_limits(high=_PIECE)
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            method, target, version = head[0].split()
            headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in head)}
            parts = urlsplit(target)
            token = parse_qs(parts.query).get("token", [""])[0]
            path = unquote(parts.path).lstrip("/")
            request = Request(method, path, parts.query, headers.get("range", ""), token)
            if path.startswith(".server/"):
                answer = self._control(path.removeprefix(".server/"))
            else:
                if self.latency_s:
                    await asyncio.sleep(self.latency_s)
                answer = self._answer(request)
            close = "close" in headers.get("connection", "").lower() or version == "HTTP/1.0"
            if await self._send(request, answer, reader, writer) or close:
                return

    # What is answered.

    def _answer(self, request: Request) -> Answer:
        """Log the request, choose its fault, and make the answer, as it is if it is sent well."""
        with self._lock:
            self.requests.append(request)
            allowed = self._token_serves(request)
            request.fault = self._fault_of(request) if allowed else None
            if request.fault is Fault.EXPIRED:
                self._tokens[request.token] = 0
        if allowed:
            answer = answer_to(request, self.folder, self.retry_after_s)
        else:
            answer = Answer(403, {}, b"the token has expired")
        request.status = 0 if request.fault is Fault.HANG else answer.status
        return answer

    def _token_serves(self, request: Request) -> bool:
        if self.token_requests is None:
            return True
        left = self._tokens.get(request.token, 0)
        self._tokens[request.token] = max(left - 1, 0)
        return left > 0

    def _fault_of(self, request: Request) -> Fault | None:
        """The fault by plan, else by lot."""
        for plan in self._plans[request.path] + self._plans["*"]:
            fits = request.fits(plan.fault) and plan.method in (None, request.method)
            if plan.left > 0 and fits and request.start >= plan.from_byte:
                plan.left -= 1
                return plan.fault
        key = (request.method, request.path, request.range)
        fault = self._lot.draw(request, self._seen[key]) if self._in_a_row[key] < self._lot.in_a_row else None
        self._seen[key] += 1
        self._in_a_row[key] = self._in_a_row[key] + 1 if fault else 0
        return fault

    def _control(self, name: str) -> Answer:
        """What another process asks: the log's sums, a token, to forget the log."""
        said: object = None
        if name == "totals":
            paths = sorted({request.path for request in self.requests})
            totals = {path: vars(self.total(path)) for path in paths}
            said = {"paths": totals, "faults": {fault.name: count for fault, count in self.faults().items()}}
        elif name == "token":
            said = self.token()
        elif name == "reset":
            self.reset()
        return Answer(200, {"Content-Type": "application/json"}, json.dumps(said).encode())

    # How it is sent.

    async def _send(
        self, request: Request, answer: Answer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        """Send the answer, badly where its fault says so; whether the connection is at its end."""
        fault, body = request.fault, memoryview(answer.body if request.method != "HEAD" else b"")
        if fault is Fault.HANG:
            await _silence(reader)
            return True
        headers = {"Content-Length": str(len(answer.body)), "Date": formatdate(usegmt=True)} | answer.headers
        lines = [f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}", *map(": ".join, headers.items())]
        writer.write("\r\n".join([*lines, "", ""]).encode("latin-1"))
        halved = fault in (Fault.CUT, Fault.RESET, Fault.HANG_IN_BODY)
        rate = SLOW_BYTES_PER_S if fault is Fault.SLOW else self.bytes_per_s
        await self._send_body(request, body[: len(body) // 2] if halved else body, rate, writer)
        if fault is Fault.RESET:
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        if fault is Fault.HANG_IN_BODY:
            await _silence(reader)
        return halved

    async def _send_body(
        self, request: Request, body: memoryview, rate: float | None, writer: asyncio.StreamWriter
    ) -> None:
        piece = min(_PIECE, max(int(rate / 10), 1)) if rate else _PIECE
        for start in range(0, len(body), piece):
            part = body[start : start + piece]
            if rate:
                await asyncio.sleep(len(part) / rate)
            request.sent += len(part)
            writer.write(part)
            await writer.drain()


async def _silence(reader: asyncio.StreamReader) -> None:
    while await reader.read(1 << 16):
        pass


@dataclass(frozen=True)
class OwnProcess:
    """A fault server in another process."""

    url: str

    def ask(self, name: str) -> Any:
        """The answer of `/.server/NAME`: `totals` of the log, a fresh `token`, `reset` to forget the log."""
        with urlopen(f"{self.url}/.server/{name}") as answer:
            return json.load(answer)


@contextmanager
def own_process(folder: Path, *options: str) -> Iterator[OwnProcess]:
    """Start this file as a program, with its options, until the context closes or this process ends."""
    command = [sys.executable, __file__, str(folder), *options]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdin is not None
        yield OwnProcess(process.stdout.readline().strip())
        process.stdin.close()


def main() -> None:
    """Serve a folder; prints the URL, and ends when its standard input does."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before each answer")
    parser.add_argument("--bytes-per-s", type=float, help="the most that each connection gets")
    parser.add_argument("--token-requests", type=int, help="requests that a token serves; without, no token is needed")
    parser.add_argument("--share", action="append", default=[], metavar="FAULT=P", help="the probability of a fault")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--in-a-row", type=int, default=2, help="faults that one request meets one after another")
    given = parser.parse_args()
    server = FaultServer(
        given.folder, latency_s=given.latency, bytes_per_s=given.bytes_per_s, token_requests=given.token_requests
    )
    shares = {Fault[name]: float(share) for name, share in (text.split("=") for text in given.share)}
    server.shares(shares, seed=given.seed, in_a_row=given.in_a_row)
    with server:
        print(server.url, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
