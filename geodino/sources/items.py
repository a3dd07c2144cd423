"""STAC Items as scenes: what they tell of the acquisition, and whether they are wanted at all."""

from __future__ import annotations

import datetime as dt
import logging
import math
import re
from dataclasses import dataclass, replace
from urllib.parse import unquote

import pystac
import shapely
from pystac.utils import make_absolute_href
from shapely.errors import ShapelyError
from shapely.geometry import shape
from shapely.geometry.base import BaseGeometry

from geodino.errors import SourceError
from geodino.redaction import without_secrets
from geodino.sources.assets import ItemAsset, choose_assets, read_asset
from geodino.sources.bands import AssetBand
from geodino.sources.geotiff import Hints, describe, describe_separate
from geodino.sources.mask import MaskSpec
from geodino.sources.masked import describe_mask
from geodino.sources.raster import check_link
from geodino.sources.scene import Band, Facts, Scene
from geodino.sources.search import OFF_AOI, Dropped, Search
from geodino.sources.stac_http import shown

logger = logging.getLogger(__name__)

# What pystac and shapely raise for JSON that is no Item; a bad one must not end the search among thousands.
_MALFORMED = (
    pystac.STACError,
    pystac.STACTypeError,
    ShapelyError,
    AttributeError,
    KeyError,
    TypeError,
    ValueError,
)


@dataclass(frozen=True)
class WantedItem:
    """An Item that passed the search, with its assets' hrefs absolute."""

    id: str
    facts: Facts
    assets: tuple[ItemAsset, ...]


@dataclass(frozen=True)
class Choice:
    """How an Item becomes a scene: asset key, bands by name or number, radiometry, hook that signs, and mask."""

    asset: str | None = None
    bands: tuple[str, ...] = ()
    radiometry: str = "auto"
    sign: str | None = None
    mask: MaskSpec | None = None


def sift(content: dict[str, object], href: str, area: BaseGeometry, search: Search) -> WantedItem | Dropped:
    """The Item if it is one, meets the area and fits the search; else why not.

    Parameters
    ----------
    content
        JSON of the Item.
    href
        Where it came from; its assets' hrefs are relative to it.
    area
        WGS84, longitudes within 180.
    """
    name = shown(str(content.get("id") or without_secrets(href)))
    try:
        if content.get("geometry") is None:
            return Dropped(name, "without a geometry")
        # pystac refuses this too, but with a message about the specification.
        properties = content.get("properties")
        if isinstance(properties, dict) and not properties.get("datetime") and not properties.get("start_datetime"):
            return Dropped(name, "without a datetime")
        item = pystac.Item.from_dict(content, migrate=False, preserve_dict=True)
        outline = shape(item.geometry)
        if not shapely.is_valid(outline):
            outline = shapely.make_valid(outline)
        if not outline.intersects(area):
            # Servers that know only boxes send what lies within the AOI's own.
            return Dropped(name, OFF_AOI, unasked=not outline.intersects(area.envelope))
        facts = _facts(item, href)
        why = search.refusal(facts)
        if why is not None:
            return Dropped(name, why, unasked=not search.heeds(facts))
        if not item.assets:
            return Dropped(name, "without assets")
        if name != item.id:
            raise ValueError("its id is too long, or holds characters that cannot be printed")
        return WantedItem(item.id, facts, tuple(_assets(content, href)))
    except _MALFORMED as error:
        logger.warning("%s is no STAC Item: %s", name, shown(str(error)))
        return Dropped(name, "not a valid Item")


def item_scene(item: WantedItem, choice: Choice) -> Scene:
    """The scene of an Item: its assets chosen, its file's header read.

    Raises
    ------
    SourceError
        No asset fits, or its raster cannot be used.
    ReadError
        The raster cannot be reached.
    """
    where = f"item {item.id}"
    chosen = choose_assets(item.assets, choice.asset, choice.bands, where)
    for asset in chosen:
        _check_href(asset, item.facts.item, where)
    if len(chosen) == 1:
        (asset,) = chosen
        scene = describe(asset.href, bands=choice.bands or None, hints=_hints(item, asset.bands, choice))
    else:
        bands = [(asset.bands or (AssetBand(),))[0] for asset in chosen]
        red, green, blue = (Band(asset.href, 1) for asset in chosen)
        scene = describe_separate((red, green, blue), _hints(item, tuple(bands), choice))
    sums = {asset.href: asset.checksum for asset in chosen}
    red, green, blue = (replace(band, checksum=sums[band.href]) for band in scene.bands)
    scene = replace(scene, bands=(red, green, blue))
    return scene if choice.mask is None else _masked(scene, choice.mask, item)


def _masked(scene: Scene, mask: MaskSpec, item: WantedItem) -> Scene:
    """The scene with its mask: in an asset of the Item, or in the picture's own file."""
    if mask.asset is None:
        return with_mask(scene, mask)
    where = f"item {item.id}"
    (asset,) = choose_assets(item.assets, mask.asset, (), f"{where} (mask)")
    _check_href(asset, item.facts.item, where)
    return replace(scene, mask=describe_mask(asset.href, mask, scene.sign))


def with_mask(scene: Scene, mask: MaskSpec) -> Scene:
    """The scene with the mask that its own file holds, as a source config describes it."""
    return replace(scene, mask=describe_mask(scene.bands[0].href, mask, scene.sign))


def _check_href(asset: ItemAsset, item_href: str | None, where: str) -> None:
    """SourceError for an asset that leads elsewhere than it says: another scheme, `..`, a local file of a remote Item.

    A relative href may climb with `..`, as catalogs on a disk do, and is resolved by now. In a whole one it names
    another place than it shows; GDAL's name of s3://mine/../yours/a.tif would leave the bucket.
    """
    said = f"{where}: asset {asset.key}"
    if ".." in re.split(r"[/\\]", unquote(asset.href.partition("?")[0])):
        raise SourceError(f"{said} has .. in its URL or path, {without_secrets(asset.href)}; give the place itself")
    if item_href:
        check_link(asset.href, item_href)


def _hints(item: WantedItem, bands: tuple[AssetBand, ...], choice: Choice) -> Hints:
    return Hints(item.id, bands, choice.radiometry, choice.sign, item.facts)


def _assets(content: dict[str, object], href: str) -> list[ItemAsset]:
    assets = content["assets"]
    if not isinstance(assets, dict):
        raise TypeError("assets must be an object")
    for key, fields in assets.items():
        # A line break in a URL is dropped by whoever parses it, and what is then left is another URL.
        if not (key.isprintable() and str(fields["href"]).isprintable()):
            raise ValueError("an asset's name or href holds characters that cannot be printed")
    return [
        read_asset(key, make_absolute_href(str(fields["href"]), href), fields) for key, fields in sorted(assets.items())
    ]


def _facts(item: pystac.Item, href: str) -> Facts:
    common = item.common_metadata
    providers = [provider.name for provider in common.providers or []]
    return Facts(
        collection=item.collection_id,
        datetime=_utc(item.datetime),
        start=_utc(common.start_datetime),
        end=_utc(common.end_datetime),
        cloud_cover=_number(item.properties.get("eo:cloud_cover")),
        sun_elevation=_number(item.properties.get("view:sun_elevation")),
        off_nadir=_number(item.properties.get("view:off_nadir")),
        licence=shown(common.license) if common.license else None,
        provider=shown(", ".join(providers)) or None,
        item=without_secrets(href),
    )


def _utc(moment: dt.datetime | None) -> dt.datetime | None:
    if moment is None:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)).astimezone(dt.UTC)


def _number(value: object) -> float | None:
    number = math.nan if value is None else float(str(value))
    return number if math.isfinite(number) else None
