"""A server of files with byte ranges and of a STAC API of some Items, which keeps to the standard or breaks it."""

from __future__ import annotations

import http.server
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from shapely.geometry import shape
from source_scenes import Item

Asked = dict[str, object]
CORE, SEARCH = "https://api.stacspec.org/v1.0.0/core", "https://api.stacspec.org/v1.0.0/item-search"


@dataclass
class Site:
    """What the server serves: a folder with byte ranges, and a STAC API of some Items.

    Attributes
    ----------
    post
        Whether the API knows POST.
    page_size, matched
        Items a page, and how many it claims to hold; None says nothing.
    pages
        Answers a search instead of the standard.
    collections
        By id; the API lists none where it is empty.
    faults
        Status and headers of the next answers, before any other.
    """

    folder: Path
    items: list[Item] = field(default_factory=list)
    post: bool = True
    page_size: int = 2
    matched: int | None = None
    searches: list[Asked] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    cut_once: set[str] = field(default_factory=set)
    url: str = ""
    pages: Callable[[Asked], object] | None = None
    collections: dict[str, object] = field(default_factory=dict)
    search_path: str = "/api/search"
    root_changes: dict[str, object] = field(default_factory=dict)
    refusal: tuple[int, str] = (404, "")
    faults: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    ranges: bool = True

    def answer(self, wanted: Asked) -> object:
        """A page of Items, and a link to the next, as the standard has it for POST and GET; or the given page."""
        self.searches.append(wanted)
        if self.pages is not None:
            return self.pages(wanted)
        start = int(str(wanted.get("token", 0)))
        area = wanted.get("intersects")
        area = json.loads(area) if isinstance(area, str) else area
        fit = [item for item in self.items if area is None or shape(item["geometry"]).intersects(shape(area))]
        stop = start + min(self.page_size, int(str(wanted.get("limit", self.page_size))))
        links: list[dict[str, object]] = []
        if stop < len(fit):
            following = {"rel": "next", "type": "application/geo+json", "href": f"{self.url}/api/search"}
            if self.post:
                links.append(following | {"method": "POST", "body": {**wanted, "token": stop}})
            else:
                query = f"?collections=aerial&intersects={json.dumps(area)}&token={stop}"
                links.append(following | {"href": following["href"] + query, "method": "GET"})
        counted = {} if self.matched is None else {"numberMatched": self.matched}
        return {"type": "FeatureCollection", "features": fit[start:stop], "links": links, **counted}

    def root(self) -> dict[str, object]:
        methods = ["POST", "GET"] if self.post else ["GET"]
        standard = {
            "type": "Catalog",
            "stac_version": "1.0.0",
            "id": "api",
            "description": "x",
            "conformsTo": [CORE, SEARCH],
            "links": [
                {"rel": "search", "type": "application/geo+json", "href": self.url + self.search_path, "method": method}
                for method in methods
            ],
        }
        return {key: value for key, value in (standard | self.root_changes).items() if value != "left out"}

    def found(self, path: str, query: str) -> object:
        """The JSON at a path of the API, or None where there is none."""
        if path in ("/api", "/api/"):
            return self.root()
        if path == "/api/search":
            return self.answer({key: value[0] for key, value in parse_qs(query).items()})
        if path == "/api/collections" and self.collections:
            return {"collections": list(self.collections.values()), "links": []}
        return self.collections.get(path.removeprefix("/api/collections/"))


@contextmanager
def serving(folder: Path) -> Iterator[Site]:
    """A server on 127.0.0.1 in a thread of its own."""
    served = Site(folder)

    class Answers(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            served.asked.append(parts.path)
            if served.faults:
                return self._send_fault()
            content = served.found(parts.path, parts.query)
            if content is not None:
                return self._send_json(content)
            return self._send_file(served.folder / parts.path.lstrip("/"))

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            served.asked.append(self.path)
            if served.faults:
                return self._send_fault()
            if self.path == "/api/search":
                return self._send_json(served.answer(json.loads(body)))
            return self._send(served.refusal[0], served.refusal[1].encode(), {})

        def _send_fault(self) -> None:
            status, headers = served.faults.pop(0)
            self._send(status, b"", headers)

        def _send_json(self, content: object) -> None:
            self._send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

        def _send_file(self, path: Path) -> None:
            if not path.is_file():
                return self._send(served.refusal[0], served.refusal[1].encode(), {})
            content = path.read_bytes()
            ranged = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            if not ranged or not served.ranges:
                return self._send(200, content, {"Accept-Ranges": "bytes"} if served.ranges else {})
            first, last = int(ranged[1]), min(int(ranged[2]), len(content) - 1)
            headers = {"Content-Range": f"bytes {first}-{last}/{len(content)}", "Accept-Ranges": "bytes"}
            if path.name in served.cut_once and first > 0:
                served.cut_once.discard(path.name)
                self.close_connection = True
                return self._send(206, content[first : last + 1], headers, cut=True)
            return self._send(206, content[first : last + 1], headers)

        def _send(self, code: int, body: bytes, headers: dict[str, str], *, cut: bool = False) -> None:
            self.send_response(code)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                # A reader that has seen enough hangs up.
                with suppress(ConnectionError):
                    self.wfile.write(body[: len(body) // 2] if cut else body)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    served.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
