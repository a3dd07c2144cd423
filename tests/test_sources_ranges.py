"""Byte ranges over HTTP: how long a server is waited for, through which proxy, and what is no answer at all."""

from __future__ import annotations

import base64
import http.server
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import urllib3
from fault_server import FaultServer
from faults import Fault

from geodino.errors import ReadError
from geodino.sources import ranges, raster
from geodino.sources.ranges import HttpRanges, Patience

HASTY = Patience(attempts=6, first_delay_s=0.01, most_delay_s=0.02, connect_s=2, silence_s=0.3, total_s=20)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a.tif").write_bytes(bytes(50_000))
    return tmp_path


@pytest.fixture
def server(folder: Path) -> Iterator[FaultServer]:
    with FaultServer(folder) as server:
        yield server


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges, "PATIENCE", HASTY)


def test_a_server_is_waited_for_as_long_as_it_asks(folder: Path) -> None:
    waited: list[float] = []
    with FaultServer(folder, retry_after_s=7) as server, pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranges.time, "sleep", waited.append)
        server.plan("a.tif", Fault.TOO_MANY, times=1)
        server.plan("a.tif", Fault.TOO_MANY_UNTIL, times=1)
        HttpRanges(f"{server.url}/a.tif", patience=replace(HASTY, total_s=60))
    assert waited == [7.0, pytest.approx(7, abs=1.5)]


def test_proxies_and_passwords_are_those_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "https_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "http://proxy.example:3128")
    monkeypatch.setenv("no_proxy", "inside.example")
    for proxy in ("http://me:w%40rd@proxy.example:3128", "me:w%40rd@proxy.example:3128"):
        authorised = ranges._pool_through(proxy)
        assert isinstance(authorised, urllib3.ProxyManager)
        assert authorised.proxy_headers["proxy-authorization"] == f"Basic {base64.b64encode(b'me:w@rd').decode()}"
    through = ranges._pool("http://outside.example/a.tif").proxy
    assert through is not None and through.host == "proxy.example"
    assert ranges._pool("http://inside.example/a.tif").proxy is None
    (tmp_path / "netrc").write_text("machine outside.example login me password word\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for url, known in {
        "http://me:w%40rd@elsewhere.example/a.tif": "me:w@rd",
        "http://outside.example/a.tif": "me:word",
        "http://inside.example/a.tif": None,
    }.items():
        said = ranges._headers(url, 0, 10).get("authorization")
        assert said == (known and f"Basic {base64.b64encode(known.encode()).decode()}")


ABSURD = {
    "digits": {"Content-Range": f"bytes 0-1/{'9' * 5000}"},
    "exabytes": {"Content-Range": "bytes 0-32767/900000000000000000"},
    "more than exabytes": {"Content-Range": "bytes 0-32767/9999999999999999999"},
    "no URL": {"Location": "http://[::1"},
    "another scheme": {"Location": "file:///etc/passwd"},
}


@pytest.mark.parametrize("kind", ABSURD)
def test_absurd_answers_are_read_errors_that_name_the_file(kind: str) -> None:
    class Answers(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(302 if "Location" in ABSURD[kind] else 206)
            for name, value in ABSURD[kind].items():
                self.send_header(name, value)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as absurd:
        thread = threading.Thread(target=absurd.serve_forever, args=(0.05,))
        thread.start()
        try:
            with pytest.raises(ReadError, match=r"/a\.tif cannot be read"):
                HttpRanges(f"http://127.0.0.1:{absurd.server_address[1]}/a.tif")
        finally:
            absurd.shutdown()
            thread.join()


def test_a_host_that_is_not_there_is_called_so() -> None:
    with pytest.raises(ReadError, match=r"the host nowhere\.invalid is not known; check the address"):
        HttpRanges("http://nowhere.invalid/a.tif")
    with pytest.raises(ReadError, match=r"the host 127\.0\.0\.1 takes no connection \(.*refused"):
        HttpRanges("http://127.0.0.1:9/a.tif")


def test_a_public_server_sends_nobody_on_to_an_address_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raster, "_is_inside_host", lambda host: host.startswith("169."))
    first = "http://imagery.example/a.tif"
    with pytest.raises(ranges.AttemptError, match="an address inside of this network") as caught:
        ranges._sent_on(first, "http://169.254.169.254/latest/meta-data", first)
    assert caught.value.final
    assert ranges._sent_on(first, "/b.tif", first) == "http://imagery.example/b.tif"
