"""From what a user calls a source to scenes in mosaic order."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

import shapely
from odc.geo.crs import CRS
from shapely.geometry import Polygon, shape
from shapely.geometry.base import BaseGeometry

from geodino.aoi import AOI
from geodino.errors import AOIError, SourceError
from geodino.redaction import without_secrets
from geodino.shipped import sample_catalog
from geodino.sources.config import SourceConfig, resolve
from geodino.sources.geotiff import Hints, describe, expand_folder
from geodino.sources.items import Choice, WantedItem, item_scene, sift, with_mask
from geodino.sources.order import in_order
from geodino.sources.raster import is_remote, local_path
from geodino.sources.scene import Scene
from geodino.sources.search import OFF_AOI, Dropped, Found, Search, sentences
from geodino.sources.stac import stac_items

logger = logging.getLogger(__name__)

# Where `auto` looks once the AOI is off the embedded sample.
DEFAULT_SOURCE = "planetary-computer-naip"
# Headers read at once.
_READERS = 8


def find_scenes(sources: Sequence[str], *, aoi: AOI, search: Search) -> Found:
    """The scenes of all sources that meet the AOI and fit the search, in mosaic order; none is no error.

    Parameters
    ----------
    sources
        Each a GeoTIFF (path or URL), a folder of GeoTIFFs, a static STAC catalog, collection or Item (path or URL), the
        URL of a STAC API, the name of a source config or a YAML file with one, `sample` for the embedded scenes, or
        `auto` for these where the AOI lies on them and the default config elsewhere.

    Raises
    ------
    SourceError
        No such file, a raster without three bands or a CRS, an Item without a fitting asset.
    ReadError
        A source that cannot be reached or decoded.
    ConfigError
        An unknown config, or one with a fault.
    """
    found = _together([_find(source, aoi, search) for source in sources])
    said = sentences(found.dropped)
    logger.info(
        "%d scenes of %s; left out: %s",
        len(found.scenes),
        ", ".join(map(without_secrets, sources)),
        "; ".join(said) or "none",
    )
    return Found(in_order(found.scenes, search.order), said, found.warnings)


def _lies_on_sample(aoi: AOI) -> bool:
    """Whether the embedded scenes, of whatever date, cover the whole AOI: part of it would be a map of little else."""
    if not sample_catalog().is_file():
        return False
    scenes = _find("sample", aoi, Search()).scenes
    covered = shapely.union_all([scene.footprint_in(CRS("EPSG:4326")) for scene in scenes])
    # Two pixels of slack, in degrees: the AOI may have been drawn along the photo's edge.
    return bool(covered.buffer(1e-5).covers(aoi.lonlat))


class _Result(NamedTuple):
    """Of one source: scenes, what was left out, and what is odd about its server."""

    scenes: list[Scene]
    dropped: list[Dropped]
    warnings: tuple[str, ...] = ()


def _together(results: Sequence[_Result]) -> _Result:
    return _Result(
        [scene for result in results for scene in result.scenes],
        [entry for result in results for entry in result.dropped],
        tuple(dict.fromkeys(sentence for result in results for sentence in result.warnings)),
    )


def _find(source: str, aoi: AOI, search: Search) -> _Result:
    if source == "auto":
        return _find("sample" if _lies_on_sample(aoi) else DEFAULT_SOURCE, aoi, search)
    return _configured(resolve(source), aoi, search)


def _configured(config: SourceConfig, aoi: AOI, search: Search) -> _Result:
    # What the user asks for goes before the config.
    wanted = replace(
        search, bands=search.bands or config.bands or (), collections=search.collections or config.collections
    )
    if config.stac is not None:
        return _stac(config.stac, choice_of(config, wanted), aoi, wanted)
    found = _together(
        [
            _folder(path, aoi, wanted)
            if not is_remote(path) and local_path(path).is_dir()
            else _files([path], aoi, wanted, config.sign)
            for path in config.paths
        ]
    )
    if config.mask is None:
        return found
    return found._replace(scenes=[with_mask(scene, config.mask) for scene in found.scenes])


def choice_of(config: SourceConfig, search: Search) -> Choice:
    """How the Items of a configured source become scenes."""
    return Choice(config.asset, search.bands, search.radiometry, config.sign, config.mask)


def _stac(href: str, choice: Choice, aoi: AOI, search: Search) -> _Result:
    area = shape(aoi.geojson())
    answer = stac_items(href, area, search)
    sifted = [sift(content, at, area, search) for at, content in answer.items]
    dropped = [entry for entry in sifted if isinstance(entry, Dropped)]
    wanted, unmasked = _with_mask([entry for entry in sifted if isinstance(entry, WantedItem)], choice)
    dropped += unmasked
    with ThreadPoolExecutor(_READERS) as readers:
        scenes = list(readers.map(lambda item: item_scene(item, choice), wanted))
    warnings = answer.warnings + (_unasked(href, dropped) if answer.searched else ())
    return _over(aoi, scenes, dropped)._replace(warnings=warnings)


def _with_mask(wanted: list[WantedItem], choice: Choice) -> tuple[list[WantedItem], list[Dropped]]:
    """The Items that have the asset of the mask, and those left out; all stay where none has it, an error."""
    key = None if choice.mask is None else choice.mask.asset
    if key is None:
        return wanted, []
    kept: list[WantedItem] = []
    dropped: list[Dropped] = []
    for item in wanted:
        if any(asset.key == key for asset in item.assets):
            kept.append(item)
        else:
            dropped.append(Dropped(item.id, f"without the mask asset {key}"))
    return (kept, dropped) if kept else (wanted, [])


def _unasked(href: str, dropped: Sequence[Dropped]) -> tuple[str, ...]:
    """Says where a server ignores a part of the search, so that its user knows that it sends too much."""
    return tuple(
        f"{without_secrets(href)} ignores a part of the search and sent Items that nobody asked for; left out: {said}"
        for said in sentences(entry for entry in dropped if entry.unasked)
    )


def _files(hrefs: Sequence[str], aoi: AOI, search: Search, sign: str | None = None) -> _Result:
    scenes: list[Scene] = []
    dropped: list[Dropped] = []
    for href in hrefs:
        hints = Hints(radiometry=search.radiometry, sign=sign)
        scene = describe(href, bands=search.bands or None, hints=hints)
        why = search.refusal(scene.facts)
        if why is None:
            scenes.append(scene)
        else:
            dropped.append(Dropped(scene.id, why))
    return _over(aoi, scenes, dropped)


def _folder(folder: str, aoi: AOI, search: Search) -> _Result:
    """The rasters of a folder; what is no picture, such as a height model beside it, is left out."""
    results = []
    for href in expand_folder(folder):
        try:
            results.append(_files([href], aoi, search))
        except SourceError as error:
            logger.warning("left out: %s", error)
            results.append(_Result([], [Dropped(local_path(href).name, "no usable picture")]))
    return _together(results)


def _over(aoi: AOI, scenes: Sequence[Scene], dropped: list[Dropped]) -> _Result:
    """The scenes whose pixels meet the AOI; an Item's outline may say more than its raster holds."""
    meets = [shapely.intersects(_placed(aoi, scene.crs), scene.footprint) for scene in scenes]
    meeting = [scene for scene, met in zip(scenes, meets, strict=True) if met]
    off = [Dropped(scene.id, OFF_AOI) for scene, met in zip(scenes, meets, strict=True) if not met]
    return _Result(meeting, dropped + off)


# A thousand files or Items share a few CRSs, and to project the AOI takes milliseconds.
@lru_cache(maxsize=16)
def _placed(aoi: AOI, crs: CRS) -> BaseGeometry:
    """The AOI in a scene's CRS; empty where that cannot hold it, as the scene then lies elsewhere on the Earth."""
    try:
        return aoi.geometry(crs)
    except AOIError:
        return Polygon()
