"""Items of STAC catalogs: static ones, on disk or over HTTP, and APIs.

Servers disagree quietly (some compare cloud cover as text, some ignore a filter they do not know), so an API is asked
only by collection, area and time, and every Item is sifted again here.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import responses
from typing import NamedTuple

import shapely
from pystac import STACError, STACTypeError
from pystac.utils import make_absolute_href
from pystac_client import Client
from pystac_client.errors import ClientTypeError
from pystac_client.exceptions import APIError, ParametersError
from pystac_client.stac_api_io import StacApiIO
from pystac_client.warnings import PystacClientWarning
from shapely.geometry import mapping
from shapely.geometry.base import BaseGeometry

from geodino.errors import ConfigError, ReadError, SourceError
from geodino.sources.raster import is_remote, local_path, without_secrets
from geodino.sources.search import Search

logger = logging.getLogger(__name__)

TIMEOUT_S = 30.0
RETRIES = 5
# Items read at once from a static catalog, and Items a page of an API.
READERS = 8
PAGE = 250
# Servers limit the size of a search; an outline of more points is asked for by its convex hull and sifted here.
MAX_POINTS = 500
# Letters kept of what a server says about an error.
_MOST_SAID = 200

# What pystac and pystac-client raise for a server that does not keep to the standard; the latter also raises warnings.
_API_FAULTS = (
    APIError,
    ParametersError,
    ClientTypeError,
    PystacClientWarning,
    STACError,
    STACTypeError,
    NotImplementedError,
    AttributeError,
    KeyError,
    TypeError,
    ValueError,
    OSError,
)

JSONObject = dict[str, object]


class Document(NamedTuple):
    """A JSON object, and where it came from."""

    href: str
    content: JSONObject


@contextmanager
def http() -> Iterator[StacApiIO]:
    """A session that retries and times out, closed at the end."""
    session = StacApiIO(timeout=TIMEOUT_S, max_retries=RETRIES)
    try:
        yield session
    finally:
        session.session.close()


def stac_items(href: str, area: BaseGeometry, search: Search) -> list[Document]:
    """What a catalog, collection, Item or API holds over the area, unsifted but for collections.

    Parameters
    ----------
    href
        Path or URL.
    area
        WGS84, longitudes within 180.
    search
        Without collections a static catalog is read whole, and an API refused.

    Raises
    ------
    ReadError
        It cannot be reached, or is not JSON.
    SourceError
        It is no STAC.
    ConfigError
        An API without collections.
    """
    with http() as session:
        root = read_json(href, session)
        if "conformsTo" in root or any(link.get("rel") == "search" for link in _links(root)):
            return _search(Document(href, root), session, area, search)
        kind = root.get("type")
        if kind == "Feature":
            return [Document(href, root)]
        if kind in ("Catalog", "Collection"):
            return _walk(Document(href, root), session, area, search.collections)
        if kind == "FeatureCollection" and isinstance(root.get("features"), list):
            return [Document(href, feature) for feature in root["features"] if isinstance(feature, dict)]  # type: ignore[attr-defined]
        raise SourceError(f"{without_secrets(href)} is no STAC catalog, collection, Item or API: its type is {kind}")


def read_json(href: str, session: StacApiIO) -> JSONObject:
    """The JSON object at a path or URL. ReadError where it cannot be reached or is none."""
    try:
        text = session.request(href) if is_remote(href) else local_path(href).read_text(encoding="utf-8")
    except (OSError, APIError, ValueError) as error:
        raise ReadError(f"{without_secrets(href)} cannot be read: {_said(error)}") from error
    try:
        content = json.loads(text)
    except ValueError as error:
        what = "it is a web page" if _is_markup(text) else f"it is no JSON: {error}"
        raise ReadError(f"{without_secrets(href)} cannot be read: {what}; give the address of STAC JSON") from error
    if not isinstance(content, dict):
        raise ReadError(f"{without_secrets(href)} holds no JSON object")
    return content


def _walk(root: Document, session: StacApiIO, area: BaseGeometry, collections: tuple[str, ...]) -> list[Document]:
    """All Items below a catalog, but for collections that are off the area or not asked for; cycles are cut."""
    href = root.href
    seen = {href}
    pending = [root]
    items: list[str] = []
    while pending:
        here, content = pending.pop()
        if content.get("type") == "Collection" and not _may_hold(content, area, collections):
            logger.info("collection %s is off the AOI or not asked for", content.get("id"))
            continue
        for link in _links(content):
            if link.get("rel") not in ("child", "item") or not isinstance(link.get("href"), str):
                continue
            target = make_absolute_href(str(link["href"]), here)
            if target in seen:
                continue
            seen.add(target)
            if is_remote(href) and not is_remote(target):
                raise SourceError(f"{without_secrets(here)} is remote but links to the local file {target}")
            if link["rel"] == "item":
                items.append(target)
            else:
                pending.append(Document(target, read_json(target, session)))
    with ThreadPoolExecutor(READERS) as readers:
        return [
            Document(*pair) for pair in zip(items, readers.map(lambda at: read_json(at, session), items), strict=True)
        ]


def _may_hold(collection: JSONObject, area: BaseGeometry, collections: tuple[str, ...]) -> bool:
    if collections and collection.get("id") not in collections:
        return False
    extent = collection.get("extent")
    spatial = extent.get("spatial") if isinstance(extent, dict) else None
    boxes = spatial.get("bbox") if isinstance(spatial, dict) else None
    if not isinstance(boxes, list) or not all(isinstance(box, list) and len(box) in (4, 6) for box in boxes):
        return True
    # The first box is the whole; over the antimeridian its west is east of its east.
    flat = [(box[0], box[1], box[len(box) // 2], box[len(box) // 2 + 1]) for box in boxes[:1]]
    return any(
        west > east or area.intersects(shapely.box(west, south, east, north)) for west, south, east, north in flat
    )


def _search(api: Document, session: StacApiIO, area: BaseGeometry, search: Search) -> list[Document]:
    href, root = api
    if not search.collections:
        raise ConfigError(
            f"{without_secrets(href)} is a STAC API and holds many collections; say which to search, with --collection "
            "NAME or in a YAML file of your own for --source (kind: source, title: ..., stac: URL, collections: [NAME])"
        )
    methods = [link.get("method", "GET") for link in _links(root) if link.get("rel") == "search"]
    outline = area if shapely.get_num_coordinates(area) <= MAX_POINTS else area.convex_hull
    try:
        client = Client.open(href, stac_io=session)
        pages = client.search(
            method="POST" if "POST" in methods else "GET",
            collections=list(search.collections),
            intersects=mapping(outline),
            datetime=search.interval_text(),
            limit=PAGE,
        ).items_as_dicts()
        return [Document(_self_href(content, href), content) for content in pages]
    except _API_FAULTS as error:
        raise ReadError(
            f"{without_secrets(href)} cannot be searched: {_said(error)} ({type(error).__name__}); is it a STAC API?"
        ) from error


def _said(error: Exception) -> str:
    """What went wrong in a few words; a server's status in place of the page that comes with it."""
    words = " ".join(str(error).split())
    status = getattr(error, "status_code", None)
    if status is None:
        return without_secrets(words)
    answer = f"HTTP {status} {responses.get(status, '')}".rstrip()
    if not words or _is_markup(words):
        return answer
    return f"{answer}: {without_secrets(words[:_MOST_SAID])}{'...' if len(words) > _MOST_SAID else ''}"


def _is_markup(text: str) -> bool:
    return text.lstrip().startswith("<")


def _self_href(content: JSONObject, fallback: str) -> str:
    own = [link.get("href") for link in _links(content) if link.get("rel") == "self"]
    return make_absolute_href(str(own[0]), fallback) if own and isinstance(own[0], str) else fallback


def _links(content: JSONObject) -> list[JSONObject]:
    links = content.get("links")
    return [link for link in links if isinstance(link, dict)] if isinstance(links, list) else []
