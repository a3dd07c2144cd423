"""The misbehaving server, asked by plain clients: each fault is what its name says, and nothing else goes wrong."""

from __future__ import annotations

import gzip
import math
import random
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from email.utils import parsedate_to_datetime
from pathlib import Path

import pytest
import urllib3
from fault_server import FaultServer, own_process
from faults import CORRUPT_BYTES, LOGIN_PAGE, SHIFT, Fault, Request
from hypothesis import given
from hypothesis import strategies as st

CONTENT = random.Random(5).randbytes(300_000)
START, STOP = 1000, 101_000
RANGE = {"Range": f"bytes={START}-{STOP - 1}"}
ASKED = CONTENT[START:STOP]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    (folder / "deep").mkdir()
    (folder / "deep" / "b c.tif").write_bytes(CONTENT[:500])
    (folder / "a.tif").write_bytes(CONTENT)
    (folder / "empty.json").write_bytes(b"")
    (folder.parent / "secret.txt").write_text("not served")
    return folder


@pytest.fixture
def server(folder: Path) -> Iterator[FaultServer]:
    with FaultServer(folder) as server:
        yield server


@pytest.fixture
def client() -> Iterator[urllib3.PoolManager]:
    with urllib3.PoolManager(retries=False, timeout=5.0) as pool:
        yield pool


Ask = Callable[..., urllib3.BaseHTTPResponse]


@pytest.fixture
def ask(server: FaultServer, client: urllib3.PoolManager) -> Ask:
    """Asks for the range of the file, by GET, as the server is now."""

    def asked(method: str = "GET", path: str = "a.tif", *, whole: bool = False) -> urllib3.BaseHTTPResponse:
        return client.request(method, f"{server.url}/{path}", headers=None if whole else RANGE, redirect=False)

    return asked


def raw(server: FaultServer, method: str = "GET", timeout_s: float = 0.2) -> tuple[bytes, type[OSError] | None]:
    """All that comes over a bare socket for the range, until the end, an error or the time limit, and that error."""
    port = int(server.url.rpartition(":")[2])
    received = b""
    with socket.create_connection(("127.0.0.1", port), timeout=timeout_s) as connection:
        lines = [f"{method} /a.tif HTTP/1.1", "Host: x", f"Range: {RANGE['Range']}", "", ""]
        connection.sendall("\r\n".join(lines).encode())
        try:
            while part := connection.recv(1 << 16):
                received += part
        except OSError as error:
            return received, type(error)
    return received, None


# Without faults


@given(first=st.integers(0, 400_000), length=st.integers(1, 400_000), kind=st.sampled_from(["both", "first", "last"]))
def test_a_range_is_the_slice_of_the_file(any_server: FaultServer, first: int, length: int, kind: str) -> None:
    text = {"both": f"{first}-{first + length - 1}", "first": f"{first}-", "last": f"-{length}"}[kind]
    answer = urllib3.request("GET", f"{any_server.url}/a.tif", headers={"Range": f"bytes={text}"}, retries=False)
    expected = {"both": CONTENT[first : first + length], "first": CONTENT[first:], "last": CONTENT[-length:]}[kind]
    if not expected:
        assert (answer.status, answer.headers["Content-Range"]) == (416, "bytes */300000")
        return
    start = max(len(CONTENT) - length, 0) if kind == "last" else first
    assert answer.status == 206 and answer.data == expected
    assert answer.headers["Content-Range"] == f"bytes {start}-{start + len(expected) - 1}/300000"


@pytest.fixture(scope="module")
def any_server(folder: Path) -> Iterator[FaultServer]:
    with FaultServer(folder) as server:
        yield server


def test_a_file_comes_whole_with_its_headers_and_head_is_the_same_without_a_body(ask: Ask) -> None:
    got, head = ask(whole=True), ask("HEAD", whole=True)
    assert got.status == head.status == 200 and got.data == CONTENT and head.data == b""
    shown = ("Content-Length", "ETag", "Last-Modified", "Accept-Ranges", "Content-Type")
    assert [got.headers[name] for name in shown] == [head.headers[name] for name in shown]
    assert got.headers["Content-Type"] == "image/tiff" and got.headers["Accept-Ranges"] == "bytes"
    ranged = ask("HEAD")
    assert (ranged.status, ranged.headers["Content-Length"]) == (206, "100000")


def test_names_are_unquoted_and_nothing_outside_the_folder_is_served(server: FaultServer, ask: Ask) -> None:
    assert ask(path="deep/b%20c.tif", whole=True).data == CONTENT[:500]
    assert ask(path="empty.json", whole=True).data == b""
    for path in ("none.tif", "deep", "%2e%2e/secret.txt", "%2Fetc/passwd", ""):
        assert ask(path=path).status == 404, path
    assert ask("PUT").status == 405


def test_a_connection_is_kept_and_the_log_says_what_was_sent(server: FaultServer) -> None:
    with urllib3.HTTPConnectionPool("127.0.0.1", int(server.url.rpartition(":")[2]), retries=False) as pool:
        for _ in range(3):
            assert pool.request("GET", "/a.tif?x=1", headers=RANGE).data == ASKED
        assert pool.num_connections == 1
    assert server.requests == [Request("GET", "a.tif", "x=1", RANGE["Range"], "", None, 206, STOP - START)] * 3
    assert (server.total("a.tif").requests, server.total().sent) == (3, 3 * (STOP - START))
    assert server.total("b.tif").requests == 0
    server.reset()
    assert server.requests == []


def test_twenty_connections_are_answered_at_once(folder: Path, client: urllib3.PoolManager) -> None:
    with FaultServer(folder, latency_s=0.3) as server, ThreadPoolExecutor(20) as pool:
        start = time.perf_counter()
        got = list(pool.map(lambda _: urllib3.request("GET", f"{server.url}/a.tif").data, range(20)))
        took = time.perf_counter() - start
    assert got == [CONTENT] * 20
    assert 0.3 <= took < 20 * 0.3 / 2


def test_the_rate_of_a_connection_is_limited(folder: Path, client: urllib3.PoolManager) -> None:
    with FaultServer(folder, bytes_per_s=500_000) as server:
        start = time.perf_counter()
        assert client.request("GET", f"{server.url}/a.tif", headers=RANGE).data == ASKED
        assert time.perf_counter() - start >= 0.2


# Faults by plan

REFUSED = {
    Fault.SERVER_ERROR: 500,
    Fault.UNAVAILABLE: 503,
    Fault.TOO_MANY: 429,
    Fault.TOO_MANY_UNTIL: 429,
    Fault.EXPIRED: 403,
}


@pytest.mark.parametrize("fault", REFUSED)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_refusal_comes_as_often_as_planned_then_the_file(
    server: FaultServer, ask: Ask, fault: Fault, method: str
) -> None:
    server.plan("a.tif", fault, times=2)
    assert ask(path="deep/b%20c.tif").status == 416
    assert [ask(method).status for _ in range(3)] == [REFUSED[fault], REFUSED[fault], 206]
    assert server.faults() == {fault: 2}


def test_retry_after_is_seconds_or_a_date(folder: Path, ask: Ask, server: FaultServer) -> None:
    server.retry_after_s = 3
    server.plan("a.tif", Fault.TOO_MANY)
    server.plan("a.tif", Fault.TOO_MANY_UNTIL)
    assert ask().headers["Retry-After"] == "3"
    wait_s = parsedate_to_datetime(ask().headers["Retry-After"]).timestamp() - time.time()
    assert 1 < wait_s <= 4


@pytest.mark.parametrize("fault", [Fault.CUT, Fault.RESET, Fault.HANG_IN_BODY])
def test_half_a_body_ends_in_its_own_way(server: FaultServer, ask: Ask, fault: Fault) -> None:
    server.plan("a.tif", fault)
    received, error = raw(server)
    header, _, body = received.partition(b"\r\n\r\n")
    assert header.startswith(b"HTTP/1.1 206") and b"Content-Length: 100000" in header
    assert body == ASKED[:50_000]
    ends = {Fault.CUT: None, Fault.RESET: ConnectionResetError, Fault.HANG_IN_BODY: TimeoutError}
    assert error is ends[fault]
    assert server.requests[-1].sent == 50_000
    assert ask().data == ASKED


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_hang_sends_nothing_until_the_client_gives_up(server: FaultServer, ask: Ask, method: str) -> None:
    server.plan("*", Fault.HANG)
    assert raw(server, method) == (b"", TimeoutError)
    assert (server.requests[-1].fault, server.requests[-1].status, server.requests[-1].sent) == (Fault.HANG, 0, 0)
    assert ask().data == ASKED


def test_a_closing_server_ends_what_hangs(folder: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        with FaultServer(folder) as server:
            server.plan("a.tif", Fault.HANG)
            hanging = pool.submit(raw, server, "GET", 5)
            while not server.requests:
                time.sleep(0.01)
        assert hanging.result(2)[0] == b""


def test_a_slow_answer_brings_a_kilobyte_a_second(server: FaultServer) -> None:
    server.plan("a.tif", Fault.SLOW)
    port = int(server.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(f"GET /a.tif HTTP/1.1\r\nRange: {RANGE['Range']}\r\n\r\n".encode())
        received, start = b"", time.perf_counter()
        while len(received.partition(b"\r\n\r\n")[2]) < 700:
            received += connection.recv(1 << 16)
        assert time.perf_counter() - start >= 0.5
    assert received.partition(b"\r\n\r\n")[2] == ASKED[: len(received.partition(b"\r\n\r\n")[2])]


@pytest.mark.parametrize(
    ("fault", "named", "shift"),
    [
        (Fault.FALSE_RANGE, f"bytes {START + SHIFT}-{STOP - 1 + SHIFT}/300000", 0),
        (Fault.SHIFTED_BODY, f"bytes {START}-{STOP - 1}/300000", SHIFT),
        (Fault.SHIFTED_RANGE, f"bytes {START + SHIFT}-{STOP - 1 + SHIFT}/300000", SHIFT),
        (Fault.CHANGED, f"bytes {START}-{STOP - 1}/304096", 0),
    ],
)
def test_ranges_and_the_bytes_that_come_with_them(
    server: FaultServer, ask: Ask, fault: Fault, named: str, shift: int
) -> None:
    tag = ask().headers["ETag"]
    server.plan("a.tif", fault)
    assert ask(whole=True).data == CONTENT and not server.faults()
    answer = ask()
    assert (answer.status, answer.headers["Content-Range"]) == (206, named)
    assert answer.data == CONTENT[START + shift : STOP + shift]
    assert (answer.headers["ETag"] == tag) is (fault is not Fault.CHANGED)
    assert ask().headers["Content-Range"] == f"bytes {START}-{STOP - 1}/300000"


def test_a_server_without_ranges_sends_the_file_whole(server: FaultServer, ask: Ask) -> None:
    server.plan("a.tif", Fault.NO_RANGES, times=math.inf)
    for method, data in (("GET", CONTENT), ("HEAD", b""), ("GET", CONTENT)):
        answer = ask(method)
        assert (answer.status, answer.data) == (200, data)
        assert answer.headers["Content-Length"] == "300000"
        assert "Content-Range" not in answer.headers and "Accept-Ranges" not in answer.headers


def test_an_answer_may_be_compressed(server: FaultServer, client: urllib3.PoolManager) -> None:
    server.plan("a.tif", Fault.GZIP)
    answer = client.request("GET", f"{server.url}/a.tif", headers=RANGE, decode_content=False)
    assert answer.headers["Content-Encoding"] == "gzip" and gzip.decompress(answer.data) == ASKED


def test_a_login_page_comes_as_if_it_were_the_file(server: FaultServer, ask: Ask) -> None:
    server.plan("a.tif", Fault.LOGIN_PAGE)
    answer = ask()
    assert (answer.status, answer.headers["Content-Type"], answer.data) == (200, "text/html", LOGIN_PAGE)


def test_a_redirect_leads_to_the_same_file_however_often(server: FaultServer, client: urllib3.PoolManager) -> None:
    server.plan("*", Fault.REDIRECT, times=math.inf)
    for path, expected in (("a.tif?x=1", ASKED), ("a.tif", ASKED)):
        answer = client.request("GET", f"{server.url}/{path}", headers=RANGE, redirect=True, retries=1)
        assert (answer.status, answer.data) == (206, expected)
    assert [request.status for request in server.requests] == [302, 206] * 2
    assert server.requests[1].query == "x=1&redirected=1"


def test_corrupt_bytes_are_64_in_the_middle_and_nothing_tells(server: FaultServer, ask: Ask) -> None:
    good = ask().headers
    server.plan("a.tif", Fault.CORRUPT)
    bad = ask()
    differ = [at for at, (got, right) in enumerate(zip(bad.data, ASKED, strict=True)) if got != right]
    assert differ == list(range(50_000 - CORRUPT_BYTES // 2, 50_000 + CORRUPT_BYTES // 2))
    assert {name: value for name, value in bad.headers.items() if name != "Date"} == {
        name: value for name, value in good.items() if name != "Date"
    }


@pytest.mark.parametrize(("fault", "status"), [(Fault.NO_HEAD, 405), (Fault.HEAD_FORBIDDEN, 403)])
def test_head_may_be_refused_while_get_is_answered(server: FaultServer, ask: Ask, fault: Fault, status: int) -> None:
    server.plan("a.tif", fault, times=math.inf)
    assert [ask(method).status for method in ("HEAD", "GET", "HEAD")] == [status, 206, status]


def test_plans_spare_other_methods_the_header_of_the_file_and_follow_each_other(
    server: FaultServer, client: urllib3.PoolManager
) -> None:
    def status(method: str, start: int) -> int:
        asked = {"Range": f"bytes={start}-{start + 99}"}
        return client.request(method, f"{server.url}/a.tif", headers=asked).status

    server.plan("a.tif", Fault.UNAVAILABLE, method="GET", from_byte=5000)
    server.plan("a.tif", Fault.SERVER_ERROR, method="GET", from_byte=5000)
    asked = [("HEAD", 9000), ("GET", 0), ("GET", 5000), ("GET", 0), ("GET", 9000), ("GET", 9000)]
    assert [status(*each) for each in asked] == [206, 206, 503, 206, 500, 206]


# Tokens


def test_a_token_serves_so_many_requests_and_a_fresh_one_again(folder: Path, client: urllib3.PoolManager) -> None:
    with FaultServer(folder, token_requests=3) as server:
        url = f"{server.url}/a.tif"
        assert client.request("GET", url).status == client.request("GET", f"{url}?token=guessed").status == 403
        first = server.signed(url)
        assert [client.request("HEAD", first).status for _ in range(5)] == [200, 200, 200, 403, 403]
        second = server.signed(first)
        assert second != first and client.request("GET", second, headers=RANGE).data == ASKED
        server.plan("a.tif", Fault.EXPIRED)
        assert [client.request("GET", second).status for _ in range(2)] == [403, 403]
        assert server.faults() == {Fault.EXPIRED: 1}
        assert client.request("GET", server.signed(url)).status == 200


# Faults by lot


def answers_of(server: FaultServer, order: list[int], times: int) -> dict[int, list[int]]:
    """The statuses of requests for ranges of the file, each asked some times, ranges in this order."""
    statuses: dict[int, list[int]] = {start: [] for start in order}
    with urllib3.PoolManager(retries=False) as pool:
        for _ in range(times):
            for start in order:
                asked = {"Range": f"bytes={start}-{start + 9}"}
                statuses[start].append(pool.request("GET", f"{server.url}/a.tif", headers=asked).status)
    return statuses


def test_a_lot_depends_on_the_seed_and_the_request_and_not_on_the_order(folder: Path) -> None:
    starts = list(range(0, 200, 10))
    shares = {Fault.UNAVAILABLE: 0.2, Fault.SERVER_ERROR: 0.1, Fault.NO_HEAD: 0.1}
    seen = []
    for order, seed in ((starts, 7), (starts[::-1], 7), (starts, 8)):
        with FaultServer(folder) as server:
            server.shares(shares, seed=seed, in_a_row=10)
            seen.append(answers_of(server, order, 5))
            counted = server.faults()
    assert seen[0] == seen[1] != seen[2]
    assert 10 < counted[Fault.UNAVAILABLE] < 35 and 2 < counted[Fault.SERVER_ERROR] < 25 and not counted[Fault.NO_HEAD]
    assert counted.total() == sum(status != 206 for each in seen[2].values() for status in each)


@pytest.mark.parametrize("in_a_row", [1, 2, 3])
def test_the_same_request_fails_so_often_in_a_row_and_no_more(server: FaultServer, in_a_row: int) -> None:
    server.shares({Fault.UNAVAILABLE: 1.0}, in_a_row=in_a_row)
    expected = ([503] * in_a_row + [206]) * 10
    assert answers_of(server, [0, 50], 10) == {0: expected[:10], 50: expected[:10]}


# Its own process


def test_in_its_own_process_it_does_the_same_and_ends_with_its_context(folder: Path) -> None:
    options = ("--share", "UNAVAILABLE=1", "--in-a-row", "1", "--token-requests", "2")
    with own_process(folder, *options) as server, urllib3.PoolManager(retries=False, timeout=5.0) as pool:
        url = f"{server.url}/a.tif?token={server.ask('token')}"
        assert [pool.request("GET", url, headers=RANGE).status for _ in range(3)] == [503, 206, 403]
        totals = {
            "paths": {"a.tif": {"requests": 3, "sent": len(ASKED + b"no" + b"the token has expired")}},
            "faults": {"UNAVAILABLE": 1},
        }
        assert server.ask("totals") == totals
        server.ask("reset")
        assert server.ask("totals") == {"paths": {}, "faults": {}}
    with pytest.raises(OSError), socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), 1):
        pass
