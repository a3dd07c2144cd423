"""Which assets of an Item are taken, and what they say of their bands, in STAC 1.0 and 1.1."""

from __future__ import annotations

import math

import pytest

from geodino.errors import ConfigError, SourceError
from geodino.sources.assets import ItemAsset, choose_assets, read_asset
from geodino.sources.signing import signed

TIFF, JP2 = "image/tiff; application=geotiff; profile=cloud-optimized", "image/jp2"
RGBN = [{"common_name": name} for name in ("red", "green", "blue", "nir")]


def asset(key: str, *, bands: object = None, roles: object = ("data",), kind: str = TIFF, **more: object) -> ItemAsset:
    fields = {"type": kind, "roles": list(roles) if isinstance(roles, tuple) else roles, "eo:bands": bands, **more}
    return read_asset(key, f"https://host/{key}.tif", fields)


def chosen(*assets: ItemAsset, key: str | None = None, wanted: tuple[str, ...] = ()) -> list[str]:
    return [each.key for each in choose_assets(assets, key, wanted, "item x")]


PREVIEW = asset("rendered_preview", roles=("overview",), kind="image/png")
THUMBNAIL = asset("thumbnail", bands=RGBN, roles=("thumbnail",))
SENTINEL = [
    asset("visual", bands=RGBN[:3], roles=("visual",)),
    *(asset(name, bands=[{"common_name": name}]) for name in ("red", "green", "blue", "nir")),
    *(asset(f"{name}-jp2", bands=[{"common_name": name}], kind=JP2) for name in ("red", "green", "blue", "nir")),
    asset("scl", bands=[]),
    THUMBNAIL,
]


def test_the_asset_with_all_three_bands_is_taken() -> None:
    assert chosen(PREVIEW, THUMBNAIL, asset("image", bands=RGBN), asset("dem")) == ["image"]


def test_what_is_made_for_looking_at_goes_before_single_bands() -> None:
    assert chosen(*SENTINEL) == ["visual"]
    assert chosen(*reversed(SENTINEL)) == ["visual"]


def test_bands_in_an_asset_each_are_taken_as_tiffs_in_the_order_asked_for() -> None:
    assert chosen(*SENTINEL[1:]) == ["red", "green", "blue"]
    assert chosen(*SENTINEL, wanted=("nir", "red", "green")) == ["nir", "red", "green"]


def test_the_only_raster_is_taken_where_the_item_says_nothing() -> None:
    assert chosen(asset("ortho"), PREVIEW, asset("metadata", roles=None, kind="application/xml")) == ["ortho"]
    assert chosen(asset("ortho", roles=None, kind="")) == ["ortho"]


def test_two_that_fit_as_well_are_refused_by_name() -> None:
    with pytest.raises(SourceError, match=r"assets a, b all fit; name one in a source config \(asset: \.\.\.\)"):
        chosen(asset("b", bands=RGBN), asset("a", bands=RGBN))


def test_an_item_without_a_picture_is_refused() -> None:
    with pytest.raises(SourceError, match="item x: no asset of nir, thumbnail holds red, green, blue"):
        chosen(asset("nir", bands=[{"name": "nir"}]), THUMBNAIL)


def test_the_asset_named_in_a_config_is_taken_or_missed() -> None:
    assert chosen(*SENTINEL, key="scl") == ["scl"]
    with pytest.raises(SourceError, match="has no asset image; it has visual, red"):
        chosen(*SENTINEL, key="image")


def test_both_versions_of_stac_say_the_same_of_a_band() -> None:
    old = asset(
        "image",
        bands=[{"name": "B4", "common_name": "red"}],
        **{"raster:bands": [{"scale": 1e-4, "offset": -0.1, "nodata": 0}]},
    )
    new = asset(
        "image",
        **{
            "bands": [{"name": "B4", "eo:common_name": "red", "raster:scale": 1e-4, "nodata": 0}],
            "raster:offset": -0.1,
        },
    )
    assert old.bands == new.bands
    (band,) = old.bands
    assert band.names == {"b4", "red"} and (band.scale, band.offset, band.nodata) == (1e-4, -0.1, 0)


def test_nodata_may_be_nan_and_nonsense_is_taken_for_missing() -> None:
    (band,) = asset("image", bands=[{"name": 7}], **{"raster:bands": [{"nodata": "nan", "scale": "much"}]}).bands
    assert band.nodata is not None and math.isnan(band.nodata)
    assert band.scale is None and not band.names
    assert asset("image", bands="red", roles="data").bands == ()


# The package planetary-computer 1.0 is written for pydantic 1.
@pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince20")
def test_hrefs_are_signed_by_the_named_hook_only() -> None:
    assert signed("https://host/a.tif", None) == "https://host/a.tif"
    # Not on the Planetary Computer's storage, so nothing to sign and nothing to ask for.
    assert signed("https://host/a.tif", "planetary-computer") == "https://host/a.tif"
    with pytest.raises(ConfigError, match="no signing hook named planetary; did you mean planetary-computer"):
        signed("https://host/a.tif", "planetary")
