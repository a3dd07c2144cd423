"""The outputs as a STAC Item: what they are, where on Earth, from which scenes, by which model.

STAC 1.1 with the extensions projection, raster, processing, mlm and file. pystac has no class for processing and
older versions of raster and mlm, so their fields are written as they stand in the schemas, which the tests check.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

import pystac
from odc.geo.crs import CRS
from pydantic import JsonValue
from pystac.utils import make_relative_href

from geodino.grid import Grid, Window
from geodino.outputs.record import FileRecord, RunRecord
from geodino.outputs.scene_map import NONE, SCENE, scene_label, scene_table
from geodino.outputs.stage import NODATA
from geodino.outputs.styles import SCENE_COLOURS
from geodino.sources.raster import is_remote, local_path

EXTENSIONS = [
    f"https://stac-extensions.github.io/{name}/schema.json"
    for name in ("projection/v2.0.0", "raster/v2.0.0", "processing/v1.2.0", "mlm/v1.5.2", "file/v2.1.0")
]

COG = "image/tiff; application=geotiff; profile=cloud-optimized"
GEOPARQUET, GEOPACKAGE = "application/vnd.apache.parquet", "application/geopackage+sqlite3"
QML, PMTILES = "application/xml", "application/vnd.pmtiles"
# By file name: asset key, title, media type, roles.
ASSETS: dict[str, tuple[str, str, str, list[str]]] = {
    "canopy_height.tif": ("canopy_height", "Canopy height above ground", COG, ["data"]),
    "canopy_height_spread.tif": ("canopy_height_spread", "Spread of the model's height bins", COG, ["data"]),
    "trees.parquet": ("trees", "Trees, a point each", GEOPARQUET, ["data"]),
    "trees.gpkg": ("trees_gpkg", "The same trees as a GeoPackage with a style for QGIS", GEOPACKAGE, ["data"]),
    "trees.pmtiles": ("trees_pmtiles", "The same trees as tiles for a map in a browser", PMTILES, ["visual"]),
    "crowns.parquet": ("crowns", "Crowns, a polygon a tree", GEOPARQUET, ["data"]),
    "tree_density.tif": ("tree_density", "Trees per hectare", COG, ["data"]),
    "crowns.qml": ("crowns_style", "How QGIS draws the crowns", QML, ["metadata"]),
    "tree_density.qml": ("tree_density_style", "How QGIS draws the density", QML, ["metadata"]),
    SCENE: ("scene", "Which scene each pixel came from", COG, ["data", "metadata"]),
    "scene.qml": ("scene_style", "How QGIS draws the scenes", QML, ["metadata"]),
    "statistics.parquet": ("statistics", "Statistics of each polygon", GEOPARQUET, ["data"]),
    "statistics.csv": ("statistics_csv", "The same statistics without geometry", "text/csv", ["data"]),
    "preview.png": ("preview", "The image beside what was made of it", "image/png", ["overview"]),
    "run.json": ("record", "Everything needed to run it again", "application/json", ["metadata"]),
}

# Claimed only where their fields stand: both schemas ask for one.
VIEW = "https://stac-extensions.github.io/view/v1.1.0/schema.json"
CLASSIFICATION = "https://stac-extensions.github.io/classification/v1.1.0/schema.json"

SHA2_256 = "1220"  # multihash: the function 0x12, and 0x20 bytes of digest

_RGB: list[JsonValue] = ["red", "green", "blue"]


def build_item(record: RunRecord, folder: Path | None) -> pystac.Item:
    """The Item of a run, from its record; assets lie beside it.

    Parameters
    ----------
    record
        Its `outputs` are those that exist so far. The Item names `run.json` without a checksum, because that file
        is written after it.
    folder
        Where the Item will lie; None for a bucket, from which no link leads to Items on this machine.

    Returns
    -------
    pystac.Item
        With the AOI as geometry, and the scenes' dates. Where no scene has a date, the run's, and the description
        says so.
    """
    first, last = _dates(record)
    item = pystac.Item(
        id=_identifier(record),
        geometry=record.aoi.geometry,
        bbox=list(record.aoi.bounds_lonlat),
        datetime=(first or record.started) if first == last else None,
        start_datetime=None if first == last else first,
        end_datetime=None if first == last else last,
        properties=_properties(record, dated=first is not None) | (view := _angles(record.scenes)),
        stac_extensions=[*EXTENSIONS, *([VIEW] if view else [])],
    )
    for file in record.outputs:
        if file.name in ASSETS:
            fields = _file_fields(file) | _raster_fields(file, record) | _scene_fields(file, record)
            item.add_asset(ASSETS[file.name][0], _asset(file.name, fields))
            if "classification:classes" in fields:
                item.stac_extensions.append(CLASSIFICATION)
    item.add_asset("record", _asset("run.json", {}))
    item.add_asset("model", _model_asset(record))
    if record.model.licence_url:
        licence = f"of the weights: {record.model.licence}"
        item.add_link(pystac.Link("license", record.model.licence_url, title=licence))
    for scene in record.scenes:
        if isinstance(href := scene.get("item"), str):
            if folder is None and not is_remote(href):
                continue
            at = href if folder is None else _href_from(folder, href)
            title, angles = str(scene["id"]), _angles([scene])
            item.add_link(pystac.Link("derived_from", at, "application/geo+json", title, extra_fields=dict(angles)))
    return item


def write_item(item: pystac.Item, path: Path) -> None:
    """Write an Item as JSON, with links and hrefs as they are."""
    text = json.dumps(item.to_dict(include_self_link=False, transform_hrefs=False), indent=2, allow_nan=False)
    with path.open("w", encoding="utf-8") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())


def _href_from(folder: Path, href: str) -> str:
    """A local Item relative to the folder, so that both may be moved together and tell of no home folder.

    URLs stay, and so do paths that share nothing but the root: they would not move together.
    """
    if is_remote(href):
        return href
    path, folder = local_path(href).resolve(), folder.resolve()
    if os.path.commonpath([path, folder]) == path.anchor:
        return str(path)
    relative: str = make_relative_href(str(path), str(folder), start_is_dir=True)
    return relative


def _identifier(record: RunRecord) -> str:
    """Safe as a file name; the same run again gives the same one but for the time."""
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", str(record.pipeline.get("name", "run")))[:60]
    digest = record.outputs[0].sha256[:8] if record.outputs else record.model.weights_sha256[:8]
    return f"{name}-{record.started:%Y%m%dT%H%M%SZ}-{digest}"


def _dates(record: RunRecord) -> tuple[datetime | None, datetime | None]:
    """The first and the last moment of all scenes that have a date."""
    starts = [scene.get("start_datetime") or scene.get("datetime") for scene in record.scenes]
    ends = [scene.get("end_datetime") or scene.get("datetime") for scene in record.scenes]
    moments = sorted(datetime.fromisoformat(text) for text in starts + ends if isinstance(text, str))
    return (moments[0], moments[-1]) if moments else (None, None)


def _properties(record: RunRecord, *, dated: bool) -> dict[str, object]:
    what = str(record.pipeline.get("title", "Canopy height"))
    description = f"{what} of {record.aoi.area_ha:,.1f} ha by {record.model.name}."
    if record.trees is not None:
        description += f" {record.trees.count:,} trees, found on {record.trees.found_on}."
    if record.model.demonstration:
        description += " A demonstration model: do not rely on these numbers."
    credits_ = sorted({_credit(scene) for scene in record.scenes} - {""})
    if credits_:
        description += f" Imagery: {'; '.join(credits_)}."
    if not dated:
        description += " The imagery's date is unknown; the datetime is that of the run."
    return {
        "title": what,
        "description": description,
        "created": record.ended.isoformat().replace("+00:00", "Z"),
        "gsd": record.grid.gsd_m,
        **_projection(record),
        "processing:level": "L4",
        "processing:lineage": _lineage(record),
        "processing:software": {"geodino": record.geodino, **record.libraries},
        "bands": [{"name": name, "description": f"{name} of the imagery the model saw"} for name in _RGB],
        **_model_fields(record),
    }


def _angles(scenes: Sequence[Mapping[str, JsonValue]]) -> dict[str, float]:
    """The lowest sun and the most oblique view, so that who filters by them gets only what is within."""
    suns = [angle for scene in scenes if isinstance(angle := scene.get("sun_elevation_deg"), int | float)]
    views = [abs(angle) for scene in scenes if isinstance(angle := scene.get("off_nadir_deg"), int | float)]
    found: dict[str, float] = {}
    if suns:
        found["view:sun_elevation"] = min(suns)
    if views:
        found["view:off_nadir"] = max(views)
    return found


def _credit(scene: dict[str, JsonValue]) -> str:
    """Who made a scene and under which licence, as far as its Item says."""
    return ", ".join(str(scene[key]) for key in ("provider", "licence") if scene.get(key))


def _projection(record: RunRecord) -> dict[str, object]:
    grid, window = _grid_and_window(record)
    left, bottom, right, top = grid.bounds(window)
    code = f"EPSG:{grid.crs.epsg}" if grid.crs.epsg else None
    ring = [[left, bottom], [right, bottom], [right, top], [left, top], [left, bottom]]
    fields: dict[str, object] = {
        "proj:code": code,
        "proj:shape": list(window.shape),
        "proj:transform": [grid.gsd, 0.0, left, 0.0, -grid.gsd, top],
        "proj:bbox": [left, bottom, right, top],
        "proj:geometry": {"type": "Polygon", "coordinates": [ring]},
    }
    if code is None:
        fields["proj:wkt2"] = grid.crs.to_wkt(version="WKT2_2019")
    return fields


def _grid_and_window(record: RunRecord) -> tuple[Grid, Window]:
    grid = record.grid
    return Grid(CRS(grid.crs), grid.gsd_m), Window(grid.row, grid.col, grid.height, grid.width)


def _lineage(record: RunRecord) -> str:
    model, windows = record.model, record.windows
    scenes = ", ".join(str(scene["id"]) for scene in record.scenes)
    views = "" if model.tta == 1 else f", {model.tta} views averaged,"
    return (
        f"{model.title} ({model.name}, weights SHA-256 {model.weights_sha256}, {model.licence}) in {model.precision}"
        f"{views} on windows of {windows.size_px} px with {windows.overlap_px} px overlap at {record.grid.gsd_m:g} m, "
        f"over {scenes}; {windows.run} windows run, {len(windows.without_imagery)} without imagery"
    )


def _model_fields(record: RunRecord) -> dict[str, object]:
    model, side = record.model, record.windows.size_px
    scaling = [
        {"type": "z-score", "mean": mean, "stddev": std} for mean, std in zip(model.mean, model.std, strict=True)
    ]
    structure = {"shape": [-1, 3, side, side], "dim_order": ["batch", "bands", "height", "width"]}
    result = {"shape": [-1, side, side], "dim_order": ["batch", "height", "width"], "data_type": "float32"}
    return {
        "mlm:name": _mlm_name(model.name),
        "mlm:architecture": model.title,
        "mlm:tasks": ["regression"],
        "mlm:framework": "PyTorch",
        "mlm:total_parameters": model.parameters,
        "mlm:input": [
            {
                "name": "red, green, blue as 0..1",
                "bands": _RGB,
                "input": structure | {"data_type": "float32"},
                "value_scaling": scaling,
            }
        ],
        "mlm:output": [
            {"name": _stem(file), "tasks": ["regression"], "result": result}
            for file in record.outputs
            if file.statistics is not None
        ],
        "mlm:hyperparameters": {
            "weights_sha256": model.weights_sha256,
            "precision": model.precision,
            "tta": model.tta,
            "window_px": side,
            "overlap_px": record.windows.overlap_px,
            "margin_px": record.windows.margin_px,
        },
    }


def _mlm_name(name: str) -> str:
    """The name in the letters that the mlm extension takes; a folder's may have others."""
    letters = re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("_.-")
    return letters if re.match(r"[A-Za-z].+[A-Za-z0-9]$", letters) else f"model-{letters or 'unnamed'}"


def _asset(name: str, fields: dict[str, object]) -> pystac.Asset:
    _, title, media_type, roles = ASSETS[name]
    return pystac.Asset(f"./{name}", title=title, media_type=media_type, roles=list(roles), extra_fields=fields)


def _model_asset(record: RunRecord) -> pystac.Asset:
    # The mlm extension asks for an asset that is the model, and by which function its weights were saved.
    saved_by = "torch.save" if record.model.reference.endswith(".pth") else "safetensors.torch.save_file"
    return pystac.Asset(
        record.model.href,
        title=record.model.title,
        roles=["mlm:model"],
        extra_fields={"mlm:artifact_type": saved_by},
    )


def _file_fields(file: FileRecord) -> dict[str, object]:
    return {"file:size": file.size_bytes, "file:checksum": SHA2_256 + file.sha256}


def _raster_fields(file: FileRecord, record: RunRecord) -> dict[str, object]:
    found = file.statistics
    if found is None:
        return {}
    figures = {"valid_percent": found.valid_percent}
    for key, value in (
        ("minimum", found.minimum),
        ("maximum", found.maximum),
        ("mean", found.mean),
        ("stddev", found.stddev),
    ):
        if value is not None:
            figures[key] = value
    band = {
        "name": _stem(file),
        "data_type": "float32",
        "nodata": NODATA,
        "unit": found.unit,
        "statistics": figures,
        "raster:sampling": "area",
        "raster:spatial_resolution": found.gsd_m or record.grid.gsd_m,
    }
    return {"bands": [band]}


def _scene_fields(file: FileRecord, record: RunRecord) -> dict[str, object]:
    """Of the map of scenes: its band, and what each value is."""
    if file.name != SCENE:
        return {}
    band = {
        "name": "scene",
        "data_type": "uint16",
        "nodata": NONE,
        "raster:sampling": "area",
        "raster:spatial_resolution": record.grid.gsd_m,
    }
    classes = [
        {
            "value": entry["value"],
            "name": re.sub(r"[^0-9A-Za-z_-]", "-", str(entry["id"])),
            "title": scene_label(entry),
            "description": f"share of the mapped pixels: {entry.get('share_of_pixels', 0)}",
            "color_hint": SCENE_COLOURS[place % len(SCENE_COLOURS)].removeprefix("#"),
        }
        for place, entry in enumerate(scene_table(record.scenes))
    ]
    return {"bands": [band], "classification:classes": classes}


def _stem(file: FileRecord) -> str:
    return Path(file.name).stem
