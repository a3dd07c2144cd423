"""Which assets of a STAC Item hold red, green and blue, and what the Item says of their numbers.

Read are `bands` (STAC 1.1), `eo:bands` and `raster:bands` (1.0). The choice is the same for the same Item:

1. the asset that the config names;
2. one asset with all three bands: of several the one for looking at (`visual`), else `image`, else of role `data`;
3. three assets with one band each, GeoTIFF before JPEG 2000;
4. the only raster asset, where the Item says nothing of bands: then the file decides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import urlsplit

from geodino.errors import SourceError
from geodino.sources.bands import RGB, AssetBand
from geodino.sources.raster import RASTER_SUFFIXES

_NO_PICTURE = frozenset({"thumbnail", "overview", "metadata", "tiles"})
_RASTER_TYPES = ("image/tiff", "image/vnd.stac.geotiff", "image/jp2", "application/x-geotiff")


@dataclass(frozen=True)
class ItemAsset:
    """One asset: its key, its absolute href, its roles and its bands in the file's order."""

    key: str
    href: str
    media_type: str
    roles: frozenset[str]
    bands: tuple[AssetBand, ...]
    checksum: str | None = None

    @property
    def is_raster(self) -> bool:
        """Whether it can hold a picture, by type, or by suffix where it has no type."""
        if self.roles & _NO_PICTURE:
            return False
        if self.media_type:
            return self.media_type.startswith(_RASTER_TYPES)
        return self.suffix in RASTER_SUFFIXES

    @property
    def suffix(self) -> str:
        """Lower case, of a href of whatever scheme, since only the asset that is taken must be one that we read."""
        return PurePosixPath(urlsplit(self.href).path).suffix.lower()

    def has(self, names: Sequence[str]) -> bool:
        """Whether each name is a band's, or a number within the bands."""
        known = frozenset().union(*(band.names for band in self.bands)) if self.bands else frozenset()
        return all(name in known or (name.isdecimal() and 1 <= int(name) <= len(self.bands)) for name in names)


def read_asset(key: str, href: str, fields: Mapping[str, object]) -> ItemAsset:
    """An asset from its JSON object; `href` is absolute. Fields of the wrong type are taken for missing."""
    bands = _list(fields.get("bands")) or _list(fields.get("eo:bands"))
    rasters = _list(fields.get("raster:bands"))
    count = max(len(bands), len(rasters))
    padded = zip(bands + [{}] * (count - len(bands)), rasters + [{}] * (count - len(rasters)), strict=True)
    described = tuple(_band(band, raster, fields) for band, raster in padded)
    roles = fields.get("roles")
    return ItemAsset(
        key,
        href,
        str(fields.get("type") or "").lower(),
        frozenset(str(role) for role in roles) if isinstance(roles, list) else frozenset(),
        described,
        str(fields["file:checksum"]) if isinstance(fields.get("file:checksum"), str) else None,
    )


def choose_assets(
    assets: Sequence[ItemAsset], key: str | None, wanted: Sequence[str], where: str
) -> tuple[ItemAsset, ...]:
    """The one asset that holds all three bands, or the three that hold one each (red, green, blue).

    Parameters
    ----------
    key
        The asset's key, where a config names it.
    wanted
        Red, green and blue by name or number; empty: by their common names.
    where
        What messages call the Item.

    Raises
    ------
    SourceError
        No such asset, none that fits, or several that do; names them and the config key that decides.
    """
    if key is not None:
        named = [asset for asset in assets if asset.key == key]
        if not named:
            raise SourceError(f"{where} has no asset {key}; it has {', '.join(asset.key for asset in assets)}")
        return (named[0],)
    names = [name.strip().lower() for name in wanted] or list(RGB)
    rasters = [asset for asset in assets if asset.is_raster]
    together = _preferred([asset for asset in rasters if asset.has(names)], where)
    if together:
        return (together,)
    apart = [_of_one_band(rasters, name, where) for name in names]
    if all(apart):
        return tuple(asset for asset in apart if asset)
    silent = _preferred([asset for asset in rasters if not any(band.names for band in asset.bands)], where)
    if silent:
        return (silent,)
    raise SourceError(
        f"{where}: no asset of {', '.join(asset.key for asset in assets) or 'none'} holds {', '.join(names)}; "
        "name one in a source config (asset: ..., bands: ...)"
    )


_PREFERENCES: tuple[Callable[[ItemAsset], bool], ...] = (
    lambda asset: asset.key == "visual" or "visual" in asset.roles,
    lambda asset: asset.key == "image",
    lambda asset: "data" in asset.roles,
    lambda asset: True,
)


def _preferred(fit: Sequence[ItemAsset], where: str) -> ItemAsset | None:
    """The first by preference; None of none. SourceError where two are as good."""
    for prefers in _PREFERENCES:
        best = _tiffs_first([asset for asset in fit if prefers(asset)])
        if len(best) > 1:
            raise SourceError(
                f"{where}: assets {', '.join(sorted(asset.key for asset in best))} all fit; "
                "name one in a source config (asset: ...)"
            )
        if best:
            return best[0]
    return None


def _of_one_band(rasters: Sequence[ItemAsset], name: str, where: str) -> ItemAsset | None:
    fit = [asset for asset in rasters if len(asset.bands) <= 1 and (asset.key.lower() == name or asset.has([name]))]
    return _preferred(fit, where)


def _tiffs_first(assets: Sequence[ItemAsset]) -> list[ItemAsset]:
    tiffs = [asset for asset in assets if "jp2" not in asset.media_type and asset.suffix != ".jp2"]
    return tiffs or list(assets)


def _list(value: object) -> list[Mapping[str, object]]:
    return [entry if isinstance(entry, dict) else {} for entry in value] if isinstance(value, list) else []


def _band(band: Mapping[str, object], raster: Mapping[str, object], asset: Mapping[str, object]) -> AssetBand:
    names = (band.get(key) for key in ("name", "common_name", "eo:common_name"))
    return AssetBand(
        frozenset(name.strip().lower() for name in names if isinstance(name, str)),
        _number(raster.get("scale"), band.get("raster:scale"), asset.get("raster:scale")),
        _number(raster.get("offset"), band.get("raster:offset"), asset.get("raster:offset")),
        _number(raster.get("nodata"), band.get("nodata"), asset.get("nodata")),
    )


def _number(*values: object) -> float | None:
    """The first that is a number; STAC writes `nan` and `inf` as strings."""
    for value in values:
        if isinstance(value, str) and value in ("nan", "inf", "-inf"):
            return float(value)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    return None
