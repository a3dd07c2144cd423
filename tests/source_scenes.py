"""Small scenes over one place with the STAC Items and catalogs that name them, for the tests of sources."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import rasterio
from affine import Affine
from rasterio.enums import Resampling
from rasterio.warp import transform_bounds
from shapely.geometry import box, mapping

from geodino.aoi import AOI, read_aoi
from geodino.sources import Scene
from geodino.sources import config as sources_config
from geodino.sources.config import SourceConfig

SIDE, GSD = 128, 0.6
WEST, NORTH = 500_004.0, 4_999_998.0
AREA = transform_bounds("EPSG:32633", "EPSG:4326", WEST + 20, NORTH - 50, WEST + 50, NORTH - 20)
Item = dict[str, object]


def area_of_interest() -> AOI:
    """A square of 30 m over the middle of the scenes."""
    return read_aoi(",".join(str(value) for value in AREA))


def make_item(scene_id: str, href: str, *, shift: float = 0.0, **properties: object) -> Item:
    """An Item of STAC 1.1 with one RGB asset, `shift` metres east of the others."""
    bounds = (WEST + shift, NORTH - SIDE * GSD, WEST + shift + SIDE * GSD, NORTH)
    outline = box(*transform_bounds("EPSG:32633", "EPSG:4326", *bounds))
    return {
        "type": "Feature",
        "stac_version": "1.1.0",
        "id": scene_id,
        "collection": "aerial",
        "geometry": mapping(outline),
        "bbox": list(outline.bounds),
        "properties": {"datetime": "2020-06-01T00:00:00Z", **properties},
        "links": [],
        "assets": {
            "picture": {
                "href": href,
                "type": "image/tiff; application=geotiff",
                "roles": ["data"],
                "bands": [{"name": "red"}, {"name": "green"}, {"name": "blue"}],
            },
            "thumbnail": {"href": "thumb.png", "type": "image/png", "roles": ["thumbnail"]},
        },
    }


def write_scene(path: Path, seed: int = 0, **profile: object) -> npt.NDArray[np.uint8]:
    pixels = np.random.default_rng(seed).integers(1, 255, (3, SIDE, SIDE), dtype=np.uint8)
    with rasterio.open(
        path, "w", driver="GTiff", height=SIDE, width=SIDE, count=3, dtype="uint8", crs="EPSG:32633",
        transform=Affine(GSD, 0, WEST, 0, -GSD, NORTH), tiled=True, blockxsize=64, blockysize=64, **profile,
    ) as raster:  # fmt: skip
        raster.write(pixels)
        raster.build_overviews([2], Resampling.average)
    return pixels


def write_catalog(folder: Path, items: list[Item]) -> str:
    """A catalog with one collection that holds the Items; the path of its root."""
    box_all = [10.0, 40.0, 20.0, 50.0]
    collection = {
        "type": "Collection",
        "stac_version": "1.1.0",
        "id": "aerial",
        "description": "x",
        "license": "CC0-1.0",
        "extent": {"spatial": {"bbox": [box_all]}, "temporal": {"interval": [[None, None]]}},
        "links": [{"rel": "item", "href": f"./items/{number}.json"} for number in range(len(items))]
        + [{"rel": "root", "href": "./catalog.json"}, {"rel": "child", "href": "./collection.json"}],
    }
    catalog = {
        "type": "Catalog",
        "stac_version": "1.1.0",
        "id": "root",
        "description": "x",
        "links": [{"rel": "child", "href": "collection.json"}],
    }
    (folder / "items").mkdir()
    for number, item in enumerate(items):
        (folder / "items" / f"{number}.json").write_text(json.dumps(item))
    (folder / "collection.json").write_text(json.dumps(collection))
    (folder / "catalog.json").write_text(json.dumps(catalog))
    return str(folder / "catalog.json")


def ids(scenes: tuple[Scene, ...]) -> list[str]:
    return [scene.id for scene in scenes]


def configured(monkeypatch: pytest.MonkeyPatch, **content: object) -> str:
    """The name of a source config that exists for this test only."""
    config = SourceConfig.model_validate({"kind": "source", "title": "x", **content})
    monkeypatch.setattr(sources_config, "source_config", lambda name: config)
    return "test-config"
