"""Search of a STAC API, page by page to the end.

A server is asked for collections, area and time, which every STAC API must know, and for nothing else. Cloud cover is
sifted and scenes are put in order here, even where `conformsTo` promises that the server can do it:

- A server may compare numbers as text (pgstac does with a property that nobody typed: 9 is over 20 there), and the
  Items that it then leaves out are lost without a trace. What is sent too much can be sifted; what is not sent cannot.
- Imagery that states no cloud cover, as NAIP does not, stays with us and goes with `eo:cloud_cover <= 20`.
- What would be saved is small: over one area there are tens of Items of half a metre, not thousands.
"""

from __future__ import annotations

import json
import logging
from typing import NamedTuple
from urllib.parse import quote

import shapely
from pystac.utils import make_absolute_href
from pystac_client.exceptions import APIError
from pystac_client.stac_api_io import StacApiIO
from shapely.geometry import mapping
from shapely.geometry.base import BaseGeometry

from geodino.errors import ConfigError, ReadError, SourceError
from geodino.redaction import without_secrets
from geodino.shipped import nearest
from geodino.sources.raster import check_link
from geodino.sources.search import Search
from geodino.sources.stac_http import Document, JSONObject, links, own_href, read_json

logger = logging.getLogger(__name__)

PAGE = 250
# Servers limit the size of a search; an outline of more points is asked for by its convex hull and sifted here.
MAX_POINTS = 500
# Letters of an outline in a URL; beyond it the box is asked for. Many servers stop at 8 KiB, and a quote takes three.
MAX_URL_OUTLINE = 1500
# Pages in a row without one new Item, after which paging does not end by itself.
MOST_BARREN = 3


class Answer(NamedTuple):
    """What a source of Items sent, unsifted.

    Attributes
    ----------
    warnings
        One sentence for each thing about it that is odd.
    searched
        Whether a server was asked for area and time, and should have left out the rest.
    """

    items: list[Document]
    warnings: tuple[str, ...] = ()
    searched: bool = False


class Request(NamedTuple):
    """One question to a server: body of a POST, query of a GET."""

    href: str
    method: str
    parameters: JSONObject
    headers: dict[str, str]


def is_api(root: JSONObject) -> bool:
    """Whether the root of a catalog is that of an API."""
    return "conformsTo" in root or bool(links(root, "search"))


def promises(root: JSONObject, what: str) -> bool:
    """Whether a conformance class of the API ends so, such as `item-search` or `item-search#sort`."""
    classes = root.get("conformsTo")
    return isinstance(classes, list) and any(str(each).rstrip("/").endswith(what) for each in classes)


def search_api(api: Document, session: StacApiIO, area: BaseGeometry, search: Search) -> Answer:
    """All Items of the collections over the area at that time.

    Parameters
    ----------
    area
        WGS84, longitudes within 180.

    Raises
    ------
    ConfigError
        No collections are named, or the API has none of them.
    ReadError
        It cannot be reached, sends no Items, or its paging goes in a circle.
    """
    where = without_secrets(api.href)
    bare = search_request(api)
    asked: JSONObject = {"collections": list(named_collections(api, search)), "limit": PAGE}
    asked |= _outline(area, bare.method)
    if (interval := search.interval_text()) is not None:
        asked["datetime"] = interval
    answer = _all_pages(where, bare._replace(parameters=asked), session)
    if not answer.items:
        _check_collections(api, session, search.collections)
    if not promises(api.content, "item-search"):
        said = f"{where} does not promise a search of Items (conformsTo); it was asked all the same"
        answer = answer._replace(warnings=(said, *answer.warnings))
    return answer


def named_collections(api: Document, search: Search) -> tuple[str, ...]:
    """The collections that are searched; ConfigError where none is named."""
    if not search.collections:
        raise ConfigError(
            f"{without_secrets(api.href)} is a STAC API and holds many collections; say which to search, with "
            "--collection NAME or in a YAML file of your own for --source (kind: source, title: ..., stac: URL, "
            "collections: [NAME])"
        )
    return search.collections


def search_request(api: Document) -> Request:
    """A search without conditions, by POST where the API knows it. ReadError where it names no search."""
    found = {str(link.get("method") or "GET").upper(): link.get("href") for link in links(api.content, "search")}
    method = "POST" if "POST" in found else "GET"
    if not isinstance(found.get(method), str):
        raise ReadError(f"{without_secrets(api.href)} cannot be searched: it names no search; is it a STAC API?")
    return Request(_beside(str(found[method]), api.href), method, {}, {})


def send(request: Request, session: StacApiIO) -> tuple[list[JSONObject], JSONObject]:
    """The Items of one page, and the page. ReadError where it is none."""
    href, method, parameters, headers = request
    if method == "GET":
        parameters = {key: _as_query(value) for key, value in parameters.items()}
    page = read_json(href, session, method=method, parameters=parameters, headers=headers)
    features = page.get("features")
    if not isinstance(features, list) or not all(isinstance(feature, dict) for feature in features):
        raise ReadError(f"{without_secrets(href)} sends no list of Items; is it a STAC API?")
    return features, page


def known_collections(api: Document, session: StacApiIO) -> list[str]:
    """Ids of the API's collections, as far as the first page of them goes; empty where it lists none."""
    try:
        listed = read_json(_collections_href(api), session).get("collections")
    except (ReadError, SourceError):
        return []
    return sorted(str(each["id"]) for each in listed if "id" in each) if isinstance(listed, list) else []


def has_collection(api: Document, session: StacApiIO, name: str) -> bool:
    """False where the API says that it has no such collection; True where it has one, or cannot say."""
    try:
        session.request(f"{_collections_href(api).rstrip('/')}/{quote(name, safe='')}")
    except APIError as error:
        return bool(error.status_code != 404)
    return True


def _all_pages(where: str, first: Request, session: StacApiIO) -> Answer:
    """Follows the links to the next page; an Item that comes twice counts once."""
    items: dict[tuple[str, str], Document] = {}
    asked: set[str] = set()
    matched, repeated, barren = None, 0, 0
    request: Request | None = first
    while request is not None:
        question = json.dumps(request, sort_keys=True)
        if question in asked or barren == MOST_BARREN:
            raise ReadError(
                f"{where} cannot be searched: its pages go in a circle, after {len(items)} Items on {len(asked)} pages"
            )
        asked.add(question)
        try:
            features, page = send(request, session)
        except ReadError as error:
            raise ReadError(f"{where} cannot be searched: {error}") from error
        before = len(items)
        for feature in features:
            name = feature.get("id")
            # What has no id is no Item, and sifted out by that.
            key = (str(feature.get("collection")), name) if isinstance(name, str) else ("", f"{len(items)}")
            repeated += key in items
            items.setdefault(key, Document(own_href(feature, request.href), feature))
        barren = 0 if len(items) > before else barren + 1
        matched = _matched(page) if matched is None else matched
        request = _next(page, request)
    logger.info("%s: %d Items on %d pages", where, len(items), len(asked))
    return Answer(list(items.values()), tuple(_lost(where, len(items), matched, repeated)), searched=True)


def _lost(where: str, count: int, matched: int | None, repeated: int) -> list[str]:
    """What tells that Items were lost between two pages."""
    if matched is not None and matched > count:
        return [f"{where} counts {matched} Items but sent {count}: imagery may be missing; try again"]
    if matched is None and repeated:
        return [f"{where} sent {repeated} Items twice: its pages shift, and imagery may be missing; try again"]
    return []


def _next(page: JSONObject, request: Request) -> Request | None:
    """The request for the next page, as the standard has it: a whole URL, or a body that may be merged into ours."""
    found = links(page, "next")
    if not found or not isinstance(found[0].get("href"), str):
        return None
    link = found[0]
    href = _beside(str(link["href"]), request.href)
    given = link.get("headers")
    headers = {str(key): str(value) for key, value in given.items()} if isinstance(given, dict) else {}
    if str(link.get("method") or "GET").upper() != "POST":
        return Request(href, "GET", {}, headers)
    body = link.get("body")
    body = body if isinstance(body, dict) else {}
    return Request(href, "POST", {**request.parameters, **body} if link.get("merge") else body, headers)


def _beside(href: str, start: str) -> str:
    """An href that a server names, absolute; SourceError where it leads nearer to this machine than the server."""
    target: str = make_absolute_href(href, start)
    check_link(target, start)
    return target


def _matched(page: JSONObject) -> int | None:
    """How many Items the server counts, if it does; older servers say it in `context`."""
    context = page.get("context")
    for count in (page.get("numberMatched"), context.get("matched") if isinstance(context, dict) else None):
        if isinstance(count, int) and not isinstance(count, bool):
            return count
    return None


def _outline(area: BaseGeometry, method: str) -> JSONObject:
    """The area as a server takes it, or one around it; Items beside the area itself are sifted out afterwards."""
    outline = area if shapely.get_num_coordinates(area) <= MAX_POINTS else area.convex_hull
    intersects = mapping(outline)
    if method == "GET" and len(json.dumps(intersects)) > MAX_URL_OUTLINE:
        return {"bbox": list(area.bounds)}
    return {"intersects": intersects}


def _as_query(value: object) -> object:
    if isinstance(value, list):
        return ",".join(str(entry) for entry in value)
    return json.dumps(value, separators=(",", ":")) if isinstance(value, dict) else value


def _check_collections(api: Document, session: StacApiIO, names: tuple[str, ...]) -> None:
    """ConfigError where the API lists collections and knows none of these, so that to find nothing is no wonder."""
    if any(has_collection(api, session, name) for name in names):
        return
    if known := known_collections(api, session):
        said = f"{without_secrets(api.href)} has no collection {', '.join(names)}"
        raise ConfigError(said + nearest(names[0], known))


def _collections_href(api: Document) -> str:
    named = [str(link["href"]) for link in links(api.content, "data") if isinstance(link.get("href"), str)]
    return _beside(named[0], api.href) if named else f"{api.href.rstrip('/')}/collections"
