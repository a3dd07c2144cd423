"""Whether a source can be reached, searched and read, step by step: what `geodino doctor --source` says.

Without an area it looks at one Item, the newest where the server can sort, goes the way of a run with it, and reads a
few pixels from the middle of its picture. It stops at the first thing that is missing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Iterator
from typing import TypeVar
from urllib.parse import urlsplit

import numpy as np
import shapely
from odc.geo.crs import CRS
from pystac_client.stac_api_io import StacApiIO

from geodino.errors import GeodinoError, ReadError, SourceError
from geodino.findings import Finding, Findings
from geodino.grid import Grid, Window, utm_crs
from geodino.redaction import without_secrets
from geodino.shipped import nearest
from geodino.sources.assets import choose_assets
from geodino.sources.config import SourceConfig, resolve
from geodino.sources.geotiff import Hints, describe, expand_folder
from geodino.sources.items import Choice, WantedItem, item_scene, sift, with_mask
from geodino.sources.mosaic import Mosaic
from geodino.sources.open import DEFAULT_SOURCE, choice_of
from geodino.sources.raster import is_remote, local_path
from geodino.sources.scene import Scene
from geodino.sources.search import Dropped, Search
from geodino.sources.signing import signed
from geodino.sources.stac import kind_of, targets
from geodino.sources.stac_api import has_collection, is_api, known_collections, promises, search_request, send
from geodino.sources.stac_http import Document, JSONObject, http, read_json

T = TypeVar("T")

_LONLAT = CRS("EPSG:4326")
_WORLD = shapely.box(-180, -90, 180, 90)
# Side of what is read, in pixels.
_SIDE = 64
# Documents of a static catalog that are read on the way to an Item.
_MOST_READ = 50


class _Stopped(Exception):  # noqa: N818
    """Something is missing; the finding says what."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.value)
        self.finding = finding


def check_source(source: str) -> Findings:
    """Looks at a source as `--source` of a run takes it; each finding says what to do where it is not ok.

    Raises
    ------
    ConfigError
        No such config, or one with a fault.
    """
    found: list[Finding] = []
    try:
        for finding in _steps(source):
            found.append(finding)
    except _Stopped as stopped:
        found.append(stopped.finding)
    return Findings(tuple(found))


def _steps(source: str) -> Iterator[Finding]:
    config = resolve(DEFAULT_SOURCE if source == "auto" else source)
    place = without_secrets(config.stac or ", ".join(config.paths))
    yield Finding("source", place if config.title in (place, source) else f"{config.title}: {place}")
    search = Search(bands=config.bands or (), collections=config.collections)
    if config.stac is None:
        first, others = _step("file", lambda: _first_file(config.paths))
        if others:
            said = f"{without_secrets(first)}, the first of {others + 1:,}; the others are not looked at"
            yield Finding("file", said)
        scene = _step("header", lambda: _file_scene(first, config))
    else:
        item = yield from _find_item(config.stac, search.collections)
        scene = yield from _scene(item, choice_of(config, search))
    height, width = scene.shape
    yield Finding(
        "header", f"{width} x {height} pixels of {scene.gsd:.3g} m, {scene.crs}, colours from {scene.radiometry.note}"
    )
    begun = time.monotonic()
    share, masked = _step("pixels", lambda: _valid_share(scene))
    took = time.monotonic() - begun
    yield Finding("pixels", f"{_SIDE} x {_SIDE} of the middle read in {took:.1f} s, {share:.0%} of them valid{masked}")


def _first_file(paths: tuple[str, ...]) -> tuple[str, int]:
    """The file that is looked at, and how many are not."""
    files = [
        file
        for path in paths
        for file in (expand_folder(path) if not is_remote(path) and local_path(path).is_dir() else [path])
    ]
    return files[0], len(files) - 1


def _file_scene(href: str, config: SourceConfig) -> Scene:
    scene = describe(href, bands=config.bands, hints=Hints(sign=config.sign))
    return scene if config.mask is None else with_mask(scene, config.mask)


def _find_item(href: str, collections: tuple[str, ...]) -> Generator[Finding, None, WantedItem]:
    """Yields what is found on the way to an Item, and returns the Item."""
    with http() as session:
        begun = time.monotonic()
        root = Document(href, _step("reached", lambda: read_json(href, session)))
        name = str(root.content.get("title") or root.content.get("id") or "")[:80]
        kind = "STAC API" if is_api(root.content) else f"STAC {_step('reached', lambda: kind_of(root))}"
        yield Finding("reached", f"a {kind} ({name}) in {time.monotonic() - begun:.1f} s")
        if is_api(root.content):
            document = yield from _newest(root, session, collections)
        else:
            document = _step("searched", lambda: _first_item(root, session, collections))
            yield Finding("searched", f"an Item at {without_secrets(document.href)}")
    wanted = sift(document.content, document.href, _WORLD, Search())
    if isinstance(wanted, Dropped):
        raise _Stopped(
            Finding("item", f"{wanted.name}: {wanted.why}", ok=False, advice="tell whoever runs the catalog")
        )
    when = wanted.facts.datetime or wanted.facts.start
    yield Finding("item", f"{wanted.id} of {when:%Y-%m-%d}" if when else wanted.id)
    return wanted


def _newest(root: Document, session: StacApiIO, collections: tuple[str, ...]) -> Generator[Finding, None, Document]:
    """Searches an API for one Item."""
    if not promises(root.content, "item-search"):
        yield Finding("search", "conformsTo promises no search of Items; it is asked all the same")
    known = known_collections(root, session)
    if not collections:
        some = f"it has {', '.join(known[:10])}{', ...' if len(known) > 10 else ''}" if known else "it lists none"
        advice = "name one: collections: [NAME] in a config, or --collection NAME of a run"
        raise _Stopped(Finding("collection", f"none is named; {some}", ok=False, advice=advice))
    for name in collections:
        if known and not has_collection(root, session, name):
            advice = f"change `collections` in the config{nearest(name, known)}"
            raise _Stopped(Finding("collection", f"it has no collection {name}", ok=False, advice=advice))
    yield Finding("collection", ", ".join(collections))
    request = search_request(root)
    asked: JSONObject = {"collections": list(collections), "limit": 1}
    if promises(root.content, "item-search#sort"):
        newest = {"field": "properties.datetime", "direction": "desc"}
        asked["sortby"] = [newest] if request.method == "POST" else f"-{newest['field']}"
    begun = time.monotonic()
    items, page = _step("searched", lambda: send(request._replace(parameters=asked), session))
    if not items:
        raise _Stopped(Finding("searched", "it sends no Item", ok=False, advice="look for another collection"))
    count = page.get("numberMatched")
    many = f", it counts {count:,}" if isinstance(count, int) else ""
    which = "the newest Item" if "sortby" in asked else "an Item"
    yield Finding("searched", f"{which} came in {time.monotonic() - begun:.1f} s{many}")
    return Document(request.href, items[0])


def _first_item(root: Document, session: StacApiIO, collections: tuple[str, ...]) -> Document:
    """An Item of a static catalog, of its last collection down, as these tend to be the newest."""
    pending = [root.href]
    for _ in range(_MOST_READ):
        if not pending:
            break
        href = pending.pop()
        here = root if href == root.href else Document(href, read_json(href, session))
        kind = kind_of(here)
        if kind == "Feature":
            return here
        if kind == "FeatureCollection" and here.content["features"]:
            return Document(href, here.content["features"][0])  # type: ignore[index]
        if kind == "Collection" and collections and here.content.get("id") not in collections:
            continue
        pending += [*targets(here, root.href, "child"), *targets(here, root.href, "item")]
    raise SourceError(f"no Item within the first {_MOST_READ} documents of {without_secrets(root.href)}")


def _scene(item: WantedItem, choice: Choice) -> Generator[Finding, None, Scene]:
    """Yields what is found of an Item's assets, and returns its scene."""
    chosen = _step(
        "asset",
        lambda: choose_assets(item.assets, choice.asset, choice.bands, f"item {item.id}"),
        "name one in the config: asset: KEY, and where it says nothing of bands also bands: [1, 2, 3]",
    )
    keys, href = ", ".join(asset.key for asset in chosen), chosen[0].href
    yield Finding("asset", f"{keys}: {without_secrets(href)}")
    if choice.sign is not None:
        _step("signed", lambda: signed(href, choice.sign))
        yield Finding("signed", f"by {choice.sign}")
    return _step("header", lambda: item_scene(item, choice), _access_advice(href))


def _access_advice(href: str) -> str:
    """What a reader of a bucket may be missing in the environment."""
    if urlsplit(href).scheme.lower() != "s3":
        return ""
    known = any(os.environ.get(name) for name in ("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_NO_SIGN_REQUEST"))
    if not known:
        return (
            "no AWS credentials in the environment: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or AWS_PROFILE, "
            "and where the reader pays AWS_REQUEST_PAYER=requester; for a public bucket AWS_NO_SIGN_REQUEST=YES"
        )
    if os.environ.get("AWS_REQUEST_PAYER", "").lower() != "requester":
        return "where the reader pays, set AWS_REQUEST_PAYER=requester; reading then costs you money"
    return ""


def _valid_share(scene: Scene) -> tuple[float, str]:
    """Reads the middle of the scene as a run does; the share of valid pixels, 0..1, and what its mask says."""
    lonlat = scene.footprint_in(_LONLAT).centroid
    crs = utm_crs(lonlat.x, lonlat.y)
    grid = Grid(crs, scene.gsd)
    centre = scene.footprint_in(crs).centroid
    middle = grid.window_over((centre.x, centre.y, centre.x, centre.y))
    window = Window(middle.row - _SIDE // 2, middle.col - _SIDE // 2, _SIDE, _SIDE)
    with Mosaic([scene], grid) as mosaic:
        pixels = mosaic.read(window)
    share = float(np.mean(pixels.valid))
    if scene.mask is None:
        return share, ""
    hidden, seen = pixels.masked.get(1, (0, 0))
    return share, f"; the mask was read{f' and hides {hidden / seen:.0%}' if seen else ''}"


def _step(name: str, look: Callable[[], T], advice: str = "") -> T:
    """What a look gives; a finding with the reason where it fails."""
    try:
        return look()
    except GeodinoError as error:
        raise _Stopped(Finding(name, str(error), ok=False, advice=advice or _advice(error))) from error


# Words of an error and what to do, the first that fits. GDAL says `HTTP response code: 404` and we `HTTP 404`.
_ADVICE = (
    ("host name is not known", "check the address and this machine's network (DNS, proxy)"),
    ("no server is there", "check the address, the port and this machine's firewall or proxy"),
    ("does not answer", "check this machine's firewall or proxy; the server may be down"),
    ("stopped answering", "try again later; the server may be overloaded"),
    ("certificate", "check this machine's clock and certificates; a proxy may stand between"),
    (" 401", "it wants an account; sign in, or take a source that is open"),
    (" 403", "access is refused; it may want an account, a signature (`sign` in the config) or credentials"),
    (" 404", "check the address"),
    (" 429", "it limits how often one may ask; try again later"),
    (" 50", "the server is at fault; try again later"),
)


def _advice(error: GeodinoError) -> str:
    said = str(error)
    for words, advice in _ADVICE:
        if words in said:
            return advice
    # An error that says what to do needs no more.
    lasting = isinstance(error, ReadError) and ";" not in said
    return "try again later; if it lasts, tell whoever runs the source" if lasting else ""
