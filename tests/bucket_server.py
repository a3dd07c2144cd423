"""An S3 server on this machine: its buckets in memory, a list of what it was asked, refusals on request."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import pytest

KEYS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_REGION": "us-east-1"}


@dataclass
class BucketServer:
    """moto behind a gate; `asked` holds each request as `METHOD /bucket/key`."""

    url: str = ""
    asked: list[str] = field(default_factory=list)
    _refusals: list[tuple[re.Pattern[str], int, list[int]]] = field(default_factory=list)

    def refuse(self, pattern: str, status: int, times: int = 10**9) -> None:
        """Answer the next requests that look like this with a status and nothing more."""
        self._refusals.append((re.compile(pattern), status, [times]))

    def allow_all(self) -> None:
        self._refusals.clear()

    def make_bucket(self, name: str) -> None:
        self._client().create_bucket(Bucket=name)

    def unfinished_uploads(self, bucket: str) -> list[str]:
        found = self._client().list_multipart_uploads(Bucket=bucket)
        return [upload["Key"] for upload in found.get("Uploads", [])]

    def environment(self) -> dict[str, str]:
        """Of a process that writes here."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        return kept | KEYS | {"AWS_ENDPOINT_URL": self.url}

    def _client(self) -> Any:
        import boto3

        return boto3.client("s3", endpoint_url=self.url, region_name="us-east-1", aws_access_key_id="testing",
                            aws_secret_access_key="testing")  # fmt: skip

    def _status(self, request: str) -> int | None:
        self.asked.append(request)
        for pattern, status, left in self._refusals:
            if left[0] > 0 and pattern.search(request):
                left[0] -= 1
                return status
        return None


@contextmanager
def bucket_server() -> Iterator[BucketServer]:
    """Serve until the end of the block."""
    pytest.importorskip("moto.server", reason="moto, a local S3 server, is not installed")
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
            pass

    creating = threading.Lock()
    served, moto = BucketServer(), DomainDispatcherApplication(create_backend_app)

    def gate(environ: dict[str, Any], start_response: Any) -> Any:
        query = f"?{environ['QUERY_STRING']}" if environ["QUERY_STRING"] else ""
        status = served._status(f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}{query}")
        if status is None:
            # moto looks and writes in two steps, between which another thread may write; S3 does both at once.
            with creating if "HTTP_IF_NONE_MATCH" in environ else nullcontext():
                return moto(environ, start_response)
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        start_response(f"{status} refused", [("Content-Length", "0")])
        return [b""]

    server = make_server("127.0.0.1", 0, gate, threaded=True, request_handler=Quiet)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    served.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield served
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def as_environment(server: BucketServer) -> Iterator[None]:
    """This process writes to the server until the end of the block."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        for name, value in (KEYS | {"AWS_ENDPOINT_URL": server.url}).items():
            patch.setenv(name, value)
        yield
