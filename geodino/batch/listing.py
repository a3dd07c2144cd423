"""From a catalog to jobs: one for each scene of a STAC API, catalog or stac-geoparquet file, or of a folder's rasters.

Whatever a catalog holds, its Items pass the same sieve as those of a single run, and only headers of files that no
catalog describes are read. Scenes come in the order of the mosaic, so that a job's place says who wins where two meet.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import shapely
from pydantic import JsonValue
from pyproj import CRS
from pystac.utils import make_absolute_href
from shapely.geometry import shape
from shapely.geometry.base import BaseGeometry

from geodino.aoi import AOI
from geodino.batch.item_table import SUFFIXES, table_items
from geodino.batch.jobs import Job, in_order, with_ids
from geodino.errors import ReadError, SourceError
from geodino.polygons import WGS84, area_m2, joined, polygons
from geodino.redaction import without_secrets
from geodino.sources import Search
from geodino.sources.config import SourceConfig
from geodino.sources.geotiff import Hints, describe, expand_folder
from geodino.sources.items import WantedItem, sift
from geodino.sources.order import OrderKey, order_key
from geodino.sources.raster import check_link, is_remote, local_path, suffix_of
from geodino.sources.scene import Scene
from geodino.sources.search import OFF_AOI, Dropped, sentences
from geodino.sources.stac import stac_items
from geodino.sources.stac_http import Document, links

logger = logging.getLogger(__name__)

_WORLD = shapely.box(-180, -90, 180, 90)
# Headers read at once.
_READERS = 8


class Listing(NamedTuple):
    """Jobs in mosaic order, sentences about what was left out, and warnings."""

    jobs: list[Job]
    left_out: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def scene_jobs(config: SourceConfig, search: Search, aoi: AOI | None) -> Listing:
    """A job for each scene that fits the search and meets the AOI, on the scene's outline within it.

    Parameters
    ----------
    aoi
        None: wherever the catalog has scenes.

    Raises
    ------
    SourceError, ReadError, ConfigError
        The catalog is none, cannot be reached, or must be asked for collections; or there is nothing in it.
    """
    search = replace(search, collections=search.collections or config.collections)
    area = _WORLD if aoi is None else shape(aoi.geojson())
    entries: list[Job | Dropped] = []
    warnings: tuple[str, ...] = ()
    hrefs = [config.stac] if config.stac is not None else list(config.paths)
    for href in hrefs:
        if suffix_of(href) in SUFFIXES:
            entries += _of_items(table_items(href), area, search, aoi, {_absolute(href)})
        elif config.stac is not None:
            answer = stac_items(href, area, search)
            warnings += answer.warnings
            entries += _of_items(answer.items, area, search, aoi, _shared(answer.items, href, answer.searched))
        else:
            entries += _of_files(href, search, config.sign, aoi)
    found = {entry.names: entry for entry in entries if isinstance(entry, Job)}
    left_out = sentences(entry for entry in entries if isinstance(entry, Dropped))
    if not found:
        why = f"; left out: {'; '.join(left_out[:3])}" if left_out else ""
        raise SourceError(f"no scene of {', '.join(map(without_secrets, hrefs))} fits{why}; ask for more")
    return Listing(with_ids(in_order(found.values())), left_out, warnings)


def _of_items(
    items: Iterable[Document], area: BaseGeometry, search: Search, aoi: AOI | None, shared: set[str]
) -> Iterator[Job | Dropped]:
    for href, content in items:
        item = sift(content, href, area, search)
        if isinstance(item, Dropped):
            yield item
            continue
        outline = shapely.force_2d(shape(content["geometry"]))
        outline = outline if outline.is_valid else shapely.make_valid(outline)
        within = joined(polygons(outline if aoi is None else outline.intersection(area)))
        if within.is_empty:
            yield Dropped(item.id, OFF_AOI)
            continue
        own = href not in shared
        # What lies in the list of jobs no longer shows where it came from.
        if not own and is_remote(href) and not _is_safe(item, href):
            yield Dropped(item.id, "whose assets are no business of a remote catalog")
            continue
        names = (item.id, item.facts.collection or "", href if own else "")
        source, whole = (href, None) if own else (None, _whole(content, href))
        yield _job(item.id, within, WGS84, source, whole, order_key(item.facts, names, search.order))


def _of_files(href: str, search: Search, sign: str | None, aoi: AOI | None) -> Iterator[Job | Dropped]:
    """The rasters of a folder, or one; of a folder, what is no picture or cannot be read is left out."""
    is_folder = not is_remote(href) and local_path(href).is_dir()
    hrefs = expand_folder(href) if is_folder else [href]
    read = partial(_described, search=search, sign=sign, strict=not is_folder)
    with ThreadPoolExecutor(_READERS) as readers:
        for at, scene in zip(hrefs, readers.map(read, hrefs), strict=True):
            if isinstance(scene, Dropped):
                yield scene
                continue
            why = search.refusal(scene.facts)
            within = scene.footprint if aoi is None else scene.footprint.intersection(aoi.geometry(scene.crs))
            within = joined(polygons(within))
            if why is not None or within.is_empty:
                yield Dropped(scene.id, why or OFF_AOI)
                continue
            key = order_key(scene.facts, (scene.id, at), search.order)
            yield _job(scene.id, within, CRS(str(scene.crs)), _absolute(at), None, key)


def _described(href: str, *, search: Search, sign: str | None, strict: bool) -> Scene | Dropped:
    try:
        return describe(href, bands=search.bands or None, hints=Hints(radiometry=search.radiometry, sign=sign))
    except (SourceError, ReadError) as error:
        if strict:
            raise
        why = "no usable picture" if isinstance(error, SourceError) else "which cannot be read"
        return Dropped(local_path(href).name, why)


def _job(
    name: str,
    outline: BaseGeometry,
    crs: CRS,
    source: str | None,
    item: dict[str, JsonValue] | None,
    order: OrderKey,
) -> Job:
    hectares = round(area_m2(outline, crs) / 1e4, 4)
    named = ":".join(crs.to_authority() or ()) or crs.to_wkt()
    return Job("", name, shapely.to_wkt(outline, rounding_precision=-1), named, hectares, source, item, order)


def _shared(items: list[Document], root: str, searched: bool) -> set[str]:
    """Addresses that are not one Item's own: of a collection of features, or of a search's page."""
    counted = Counter(item.href for item in items)
    shared = {href for href, times in counted.items() if times > 1} | {root}
    if searched:
        shared |= {item.href for item in items if not links(item.content, "self")}
    return shared


def _is_safe(item: WantedItem, via: str) -> bool:
    """Whether a catalog on the internet may lead to these files."""
    try:
        for asset in item.assets:
            check_link(asset.href, via)
    except SourceError as error:
        logger.warning("%s: %s", item.id, error)
        return False
    return True


def _whole(content: dict[str, object], href: str) -> dict[str, JsonValue]:
    """An Item that can lie anywhere: without its links, the addresses of its assets absolute."""
    assets = content["assets"]
    assert isinstance(assets, dict)  # sift has read them
    moved = {key: asset | {"href": make_absolute_href(str(asset["href"]), href)} for key, asset in assets.items()}
    return content | {"links": [], "assets": moved}  # type: ignore[return-value]


def _absolute(href: str) -> str:
    return href if is_remote(href) else str(local_path(href).absolute())
