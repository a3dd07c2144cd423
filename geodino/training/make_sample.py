"""Makes the embedded sample: COGs, a static STAC catalog and AOIs, from the development data.

    python -m geodino.training.make_sample --data DATA_FOLDER

The scenes are real: the validation block of Autzen (never used for training) and two validation places of the urban
tree data in their three NAIP years. What is written is committed; this file says how it came about.
"""

from __future__ import annotations

import argparse
import datetime as dt
import shutil
from dataclasses import dataclass
from pathlib import Path

import geopandas as gpd
import pystac
import rasterio
from affine import Affine
from rasterio.enums import ColorInterp
from rasterio.io import MemoryFile
from rasterio.shutil import copy as rio_copy
from rasterio.warp import transform_geom
from shapely.geometry import Polygon, box, mapping, shape

from geodino.shipped import sample_folder

NAIP_BANDS = ("red", "green", "blue", "nir")
URBAN_TREES = (
    "J. Ventura et al. (2024), urban-tree-detection-data, CC BY 4.0, "
    "https://github.com/jonathanventura/urban-tree-detection-data; imagery: USDA NAIP"
)
AUTZEN = "Autzen Stadium lidar and photo: Watershed Sciences Inc. via PDAL/data, CC BY 4.0"


@dataclass(frozen=True)
class SampleScene:
    """One file to ship: where it comes from and what its Item says."""

    id: str
    collection: str
    file: str
    bands: tuple[str, ...]
    year: int
    date_note: str


COLLECTIONS = {
    "autzen": ("Autzen, Eugene, Oregon: a campus, groves, offices and parking", AUTZEN),
    "long-beach": ("A neighbourhood of Long Beach, California: NAIP 2016, 2018, 2020", URBAN_TREES),
    "palm-springs": ("A golf course in Palm Springs, California: NAIP 2016, 2018, 2020", URBAN_TREES),
}

_NAIP_NOTE = "NAIP flights of the year; the source gives no day, so the Item spans the year"

SCENES = (
    SampleScene(
        "autzen",
        "autzen",
        "canopy/scenes/autzen_val_rgb.tif",
        NAIP_BANDS[:3],
        2008,
        "the photo is older than the baseball park of 2009 or 2010, its day not known; the year 2008 stands for that",
    ),
    *(
        SampleScene(
            f"{place}_{year}_{number}".replace("_", "-"),
            place.replace("_", "-"),
            f"urban-trees/images/{place}_{year}_{number}.tif",
            NAIP_BANDS,
            year,
            _NAIP_NOTE,
        )
        for place, number in (("long_beach", 9), ("palm_springs", 52))
        for year in (2016, 2018, 2020)
    ),
)


def write_scene(source: Path, target: Path, bands: tuple[str, ...]) -> None:
    """Re-encode a GeoTIFF losslessly as a Deflate COG with its exact 0.6 m transform and named bands."""
    with rasterio.open(source) as src:
        profile = src.profile | {"driver": "GTiff", "compress": None, "tiled": False, "alpha": "no"}
        left, top = round(src.transform.c / 0.6) * 0.6, round(src.transform.f / 0.6) * 0.6
        profile["transform"] = Affine(0.6, 0, left, 0, -0.6, top)
        for key in ("blockxsize", "blockysize"):
            profile.pop(key, None)
        pixels = src.read()
    with MemoryFile() as memory:
        with memory.open(**profile) as plain:
            plain.write(pixels)
            plain.descriptions = bands
            # GDAL takes any fourth 8-bit band for alpha, and viewers then draw the near infrared as transparency.
            plain.colorinterp = [ColorInterp[name] if name != "nir" else ColorInterp.undefined for name in bands]
        with memory.open() as plain:
            rio_copy(
                plain,
                target,
                driver="COG",
                COMPRESS="DEFLATE",
                LEVEL=9,
                PREDICTOR="YES",
                BLOCKSIZE=256,
                OVERVIEW_RESAMPLING="AVERAGE",
            )


def make_item(scene: SampleScene, cog: Path) -> pystac.Item:
    """The STAC Item of a shipped scene."""
    with rasterio.open(cog) as src:
        outline = shape(transform_geom(src.crs, "EPSG:4326", mapping(box(*src.bounds)), precision=7))
        projection = {
            "proj:code": f"EPSG:{src.crs.to_epsg()}",
            "proj:shape": list(src.shape),
            "proj:transform": list(src.transform)[:6],
            "proj:bbox": list(src.bounds),
        }
    year = scene.year
    item = pystac.Item(
        id=scene.id,
        geometry=mapping(outline),
        bbox=list(outline.bounds),
        datetime=None,
        start_datetime=dt.datetime(year, 1, 1, tzinfo=dt.UTC),
        end_datetime=dt.datetime(year, 12, 31, 23, 59, 59, tzinfo=dt.UTC),
        properties={
            "gsd": 0.6,
            "eo:cloud_cover": 0,
            "description": scene.date_note,
            "license": "CC-BY-4.0",
            "providers": [{"name": COLLECTIONS[scene.collection][1], "roles": ["producer"]}],
            **projection,
        },
        stac_extensions=[
            "https://stac-extensions.github.io/projection/v2.0.0/schema.json",
            "https://stac-extensions.github.io/eo/v2.0.0/schema.json",
        ],
    )
    common = {"nir": "nir"} | {name: name for name in NAIP_BANDS[:3]}
    item.add_asset(
        "image",
        pystac.Asset(
            href=str(cog),
            media_type=pystac.MediaType.COG,
            roles=["data"],
            extra_fields={
                "data_type": "uint8",
                "bands": [{"name": name, "eo:common_name": common[name]} for name in scene.bands],
            },
        ),
    )
    return item


def write_aois(folder: Path) -> None:
    """AOIs to run the sample on: a piece of Autzen, two features; and one polygon for each NAIP place."""
    folder.mkdir(parents=True, exist_ok=True)
    # Corners in EPSG:26910, drawn by eye on the photo: the campus with its groves and the offices with young trees.
    plots = {
        "campus and groves": [(494040, 4878540), (494400, 4878530), (494420, 4878740), (494060, 4878750)],
        "offices and car parks": [(494440, 4878560), (494920, 4878550), (494900, 4878740), (494450, 4878745)],
    }
    _write_geojson(
        folder / "autzen.geojson",
        gpd.GeoDataFrame({"name": list(plots)}, geometry=[Polygon(p) for p in plots.values()], crs="EPSG:26910"),
    )
    for place in ("long-beach", "palm-springs"):
        with rasterio.open(next(folder.parent.glob(f"{place}/*.tif"))) as src:
            inner = box(*src.bounds).buffer(-6, join_style="mitre")
            _write_geojson(
                folder / f"{place}.geojson", gpd.GeoDataFrame({"name": [place]}, geometry=[inner], crs=src.crs)
            )


def _write_geojson(path: Path, frame: gpd.GeoDataFrame) -> None:
    frame.to_crs("EPSG:4326").to_file(path, driver="GeoJSON", RFC7946="YES", COORDINATE_PRECISION=7)


def make_sample(data: Path, out: Path) -> None:
    """Write the whole sample folder anew."""
    shutil.rmtree(out, ignore_errors=True)
    catalog = pystac.Catalog("geodino-sample", "Real imagery shipped with geodino, to run it with no network")
    for key, (title, attribution) in COLLECTIONS.items():
        collection = pystac.Collection(
            key,
            title,
            extent=pystac.Extent(pystac.SpatialExtent([[0, 0, 0, 0]]), pystac.TemporalExtent([[None, None]])),
        )
        collection.license = "CC-BY-4.0"
        collection.providers = [pystac.Provider(attribution, roles=[pystac.ProviderRole.PRODUCER])]
        for scene in (scene for scene in SCENES if scene.collection == key):
            cog = out / key / f"{scene.id}.tif"
            cog.parent.mkdir(parents=True, exist_ok=True)
            write_scene(data / scene.file, cog, scene.bands)
            item = make_item(scene, cog.resolve())
            item.set_self_href(str((cog.parent / f"{scene.id}.json").resolve()))
            collection.add_item(item)
        collection.update_extent_from_items()
        catalog.add_child(collection)
    catalog.set_self_href(str((out / "catalog.json").resolve()))
    for collection in catalog.get_collections():
        collection.set_self_href(str((out / collection.id / "collection.json").resolve()))
        for item in collection.get_items():
            item.set_self_href(str((out / collection.id / f"{item.id}.json").resolve()))
    catalog.make_all_asset_hrefs_relative()
    catalog.save(catalog_type=pystac.CatalogType.SELF_CONTAINED)
    write_aois(out / "aois")
    lines = [f"- `{key}/`: {attribution}" for key, (_, attribution) in COLLECTIONS.items()]
    (out / "LICENSE.md").write_text(
        "# Licence and attribution of the sample imagery\n\nCreative Commons Attribution 4.0 International "
        "(https://creativecommons.org/licenses/by/4.0/). NAIP imagery itself is in the US public domain.\n\n"
        + "\n".join(lines)
        + "\n\nChanges made: cropped to the blocks shown and re-encoded losslessly as Cloud Optimized GeoTIFFs.\n"
    )


def main() -> None:
    """Parse the command line and write the sample."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with canopy/ and urban-trees/")
    parser.add_argument("--out", type=Path, default=sample_folder(), help="folder to write anew")
    arguments = parser.parse_args()
    make_sample(arguments.data, arguments.out)


if __name__ == "__main__":
    main()
