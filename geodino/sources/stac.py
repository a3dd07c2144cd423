"""Items of STAC catalogs: static ones, on disk or over HTTP, and APIs.

Whatever is asked of an API, every Item is sifted again here, as servers disagree in silence.
"""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor

import shapely
from pystac.utils import make_absolute_href
from pystac_client.stac_api_io import StacApiIO
from shapely.geometry.base import BaseGeometry

from geodino.errors import SourceError
from geodino.redaction import without_secrets
from geodino.sources.raster import check_link
from geodino.sources.search import Search
from geodino.sources.stac_api import Answer, is_api, search_api
from geodino.sources.stac_http import Document, JSONObject, http, links, read_json

logger = logging.getLogger(__name__)

# Items and collections read at once from a static catalog.
READERS = 8


def stac_items(href: str, area: BaseGeometry, search: Search) -> Answer:
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
        An API without collections, or with others only.
    """
    with http() as session:
        root = Document(href, read_json(href, session))
        if is_api(root.content):
            return search_api(root, session, area, search)
        kind = kind_of(root)
        if kind == "Feature":
            return Answer([root])
        if kind == "FeatureCollection":
            features = root.content["features"]
            assert isinstance(features, list)
            return Answer([Document(href, feature) for feature in features if isinstance(feature, dict)])
        return Answer(_walk(root, session, area, search.collections))


def kind_of(root: Document) -> str:
    """Catalog, Collection, Feature or FeatureCollection; SourceError for anything else."""
    kind = root.content.get("type")
    listed = isinstance(root.content.get("features"), list)
    if kind in ("Catalog", "Collection", "Feature") or (kind == "FeatureCollection" and listed):
        return str(kind)
    raise SourceError(
        f"{without_secrets(root.href)} is no STAC catalog, collection, Item or API: its type is {str(kind)[:40]}"
    )


def targets(here: Document, root: str, *rels: str) -> list[str]:
    """Absolute hrefs of the links with these relations; SourceError where a remote catalog names a local file."""
    found = []
    for link in links(here.content, *rels):
        if not isinstance(link.get("href"), str):
            continue
        target = make_absolute_href(str(link["href"]), here.href)
        check_link(target, root)
        found.append(target)
    return found


def _walk(root: Document, session: StacApiIO, area: BaseGeometry, collections: tuple[str, ...]) -> list[Document]:
    """All Items below a catalog, but for collections that are off the area or not asked for; cycles are cut."""
    seen = {root.href}
    level = [root]
    items: list[str] = []
    with ThreadPoolExecutor(READERS) as readers:

        def read(hrefs: list[str]) -> list[Document]:
            return [Document(*pair) for pair in zip(hrefs, readers.map(one, hrefs), strict=True)]

        def one(href: str) -> JSONObject:
            return read_json(href, session)

        while level:
            below: list[str] = []
            for here in level:
                if here.content.get("type") == "Collection" and not _may_hold(here.content, area, collections):
                    logger.info("collection %s is off the AOI or not asked for", here.content.get("id"))
                    continue
                for rel, into in (("item", items), ("child", below)):
                    new = [href for href in dict.fromkeys(targets(here, root.href, rel)) if href not in seen]
                    seen.update(new)
                    into.extend(new)
            level = read(below)
        return read(items)


def _may_hold(collection: JSONObject, area: BaseGeometry, collections: tuple[str, ...]) -> bool:
    if collections and collection.get("id") not in collections:
        return False
    extent = collection.get("extent")
    spatial = extent.get("spatial") if isinstance(extent, dict) else None
    boxes = spatial.get("bbox") if isinstance(spatial, dict) else None
    if not isinstance(boxes, list) or not all(_is_box(box) for box in boxes):
        return True
    # The first box is the whole; over the antimeridian its west is east of its east.
    flat = [(box[0], box[1], box[len(box) // 2], box[len(box) // 2 + 1]) for box in boxes[:1]]
    return any(
        west > east or area.intersects(shapely.box(west, south, east, north)) for west, south, east, north in flat
    )


def _is_box(box: object) -> bool:
    return isinstance(box, list) and len(box) in (4, 6) and all(isinstance(value, int | float) for value in box)
