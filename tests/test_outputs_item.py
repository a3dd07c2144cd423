"""The STAC Item: valid against the published schemas, and true."""

from __future__ import annotations

import importlib.resources
import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pystac
import pytest
import rasterio
from jsonschema import Draft7Validator
from odc.geo.crs import CRS
from pystac.validation.stac_validator import JsonSchemaSTACValidator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT7
from shapely.geometry import shape

from geodino.grid import Grid, Window
from geodino.outputs.cog import CogProfile, CogReceipt, stage_to_cog
from geodino.outputs.item import ASSETS, CLASSIFICATION, EXTENSIONS, VIEW, build_item, write_item
from geodino.outputs.record import (
    AOIRecord,
    FileRecord,
    GridRecord,
    ModelRecord,
    RunRecord,
    StatisticsRecord,
    TimingsRecord,
    WindowsRecord,
)
from geodino.outputs.stage import StagedRaster

# odc-geo and rasterio multiply affine transforms in the way that affine 3.1 asks its users to leave behind.
pytestmark = pytest.mark.filterwarnings("ignore:Use `@` matmul:PendingDeprecationWarning")

SCHEMAS = Path(__file__).parent / "schemas"
AREA: dict[str, Any] = {
    "type": "Polygon",
    "coordinates": [[[-123.07, 44.05], [-123.06, 44.05], [-123.06, 44.06], [-123.07, 44.05]]],
}
OUTPUTS = (
    FileRecord("canopy_height.tif", "cd" * 32, 1_234_567, StatisticsRecord(98.5, 0.0, 35.125, 12.25, 8.0)),
    FileRecord("canopy_height_spread.tif", "01" * 32, 1_000, StatisticsRecord(0.0, None, None, None, None)),
    FileRecord("scene.tif", "23" * 32, 12_345),
    FileRecord("preview.png", "ef" * 32, 99),
)
RECORD = RunRecord(
    geodino="0.1.0",
    pipeline={"name": "canopy"},
    options={},
    aoi=AOIRecord("area.geojson", 12.5, 0.0, (-123.07, 44.05, -123.06, 44.06), AREA),
    grid=GridRecord("EPSG:32610", 0.6, -8_128_000, 823_000, 611, 1003),
    windows=WindowsRecord(416, 64, 16, run=7, without_imagery=((-11, 4),)),
    model=ModelRecord(
        name="chmv2",
        title="CHMv2: DINOv3 ViT-L/16 with a DPT head",
        reference="chmv2",
        href="https://example.org/chmv2",
        parameters=338_000_000,
        weights_sha256="ab" * 32,
        mean=(0.42, 0.411, 0.296),
        std=(0.213, 0.156, 0.143),
        precision="bf16",
        device="cpu",
        licence="DINOv3 License",
        licence_url="https://example.org/licence",
        demonstration=False,
    ),
    scenes=(
        {"id": "a", "datetime": "2020-05-04T18:30:00Z", "item": "https://example.org/items/a.json"},
        {
            "id": "b",
            "datetime": None,
            "start_datetime": "2019-01-01T00:00:00+00:00",
            "end_datetime": None,
            "item": None,
        },
    ),
    dropped_scenes=(),
    timings=TimingsRecord(0.1, 2.0, 0.1, 0.3, 2.5),
    computed_px=7 * 416**2,
    peak_memory_mib={"process": 812.5},
    outputs=OUTPUTS,
    libraries={"torch": "2.13.0+cpu", "rasterio": "1.4.4"},
    started=datetime(2026, 5, 4, 12, 30, tzinfo=UTC),
    ended=datetime(2026, 5, 4, 12, 31, tzinfo=UTC),
)


def plain(record: RunRecord, folder: Path) -> dict[str, Any]:
    """The Item as a reader gets it from the file."""
    write_item(build_item(record, folder), folder / "item.json")
    item: dict[str, Any] = json.loads((folder / "item.json").read_text(encoding="utf-8"))
    return item


def registry() -> Registry[Any]:
    """The extensions' schemas under the addresses at which they are published; nothing is fetched."""
    known = {}
    for path in SCHEMAS.glob("*.json"):
        name, version = path.stem.rsplit("-", 1)
        known[f"https://stac-extensions.github.io/{name}/{version}/schema.json"] = json.loads(path.read_text())
    geojson = importlib.resources.files("pystac.validation") / "jsonschemas" / "geojson" / "Geometry.json"
    known["https://geojson.org/schema/Geometry.json"] = json.loads(geojson.read_text())
    resources = [(address, Resource(schema, DRAFT7)) for address, schema in known.items()]
    return Registry().with_resources(resources)


def complaints(item: dict[str, Any]) -> list[str]:
    """What the core schema and those of the extensions that the Item claims have against it."""
    JsonSchemaSTACValidator().validate_core(item, pystac.STACObjectType.ITEM, "1.1.0")
    schemas = registry()
    found = []
    for extension in item["stac_extensions"]:
        schema = schemas.contents(extension)
        found += [
            f"{extension}: {error.message}" for error in Draft7Validator(schema, registry=schemas).iter_errors(item)
        ]
    return found


UNDATED = replace(RECORD, scenes=({"id": "a"},))
ONE_DATE = replace(RECORD, scenes=RECORD.scenes[:1])
OWN_CRS = "+proj=laea +lat_0=44 +lon_0=-123 +x_0=0 +y_0=0 +datum=WGS84 +units=m +no_defs"


@pytest.mark.parametrize(
    "record",
    [
        RECORD,
        UNDATED,
        ONE_DATE,
        replace(RECORD, grid=replace(RECORD.grid, crs=OWN_CRS)),
        replace(RECORD, model=replace(RECORD.model, name="my/own model (3)")),
        replace(RECORD, model=replace(RECORD.model, name="7")),
        replace(RECORD, outputs=OUTPUTS[:1]),
    ],
    ids=[
        "two dates",
        "no date",
        "one date",
        "a CRS of one's own",
        "a model of one's own",
        "a model called 7",
        "no spread",
    ],
)
def test_an_item_is_valid_against_the_core_and_every_extension(record: RunRecord, tmp_path: Path) -> None:
    item = plain(record, tmp_path)
    asked = {*EXTENSIONS} | ({CLASSIFICATION} if "scene" in item["assets"] else set())
    assert item["stac_version"] == "1.1.0" and set(item["stac_extensions"]) == asked
    assert complaints(item) == []


def test_an_item_says_what_each_value_of_its_map_of_scenes_is(tmp_path: Path) -> None:
    asset = plain(RECORD, tmp_path)["assets"]["scene"]
    (band,) = asset["bands"]
    assert band["data_type"] == "uint16" and band["nodata"] == 0
    kept = [(entry["value"], entry["name"], entry["title"]) for entry in asset["classification:classes"]]
    assert kept == [(1, "a", "2020-05-04 a"), (2, "b", "2019-01-01 b")]


def test_an_item_states_the_worst_of_its_scenes_angles_and_each_ones_own(tmp_path: Path) -> None:
    low = {"id": "a", "item": "a.json", "sun_elevation_deg": 41.5, "off_nadir_deg": -12.0}
    high = {"id": "b", "item": "b.json", "sun_elevation_deg": 60.0, "off_nadir_deg": None}
    item = plain(replace(RECORD, scenes=(low, high)), tmp_path)
    properties = item["properties"]
    assert properties["view:sun_elevation"] == 41.5 and properties["view:off_nadir"] == 12
    links = {link["title"]: link for link in item["links"] if link["rel"] == "derived_from"}
    assert links["a"]["view:off_nadir"] == 12 and links["b"]["view:sun_elevation"] == 60
    assert "view:off_nadir" not in links["b"] and complaints(item) == [] and VIEW in item["stac_extensions"]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("properties", "proj:code"), 32610),
        (("properties", "mlm:name"), "-"),
        (("properties", "mlm:tasks"), ["guessing"]),
        (("properties", "processing:software"), "geodino"),
        (("assets", "canopy_height", "file:checksum"), "sha256:xyz"),
        (("assets", "canopy_height", "bands"), [{"raster:sampling": "sometimes"}]),
        (("assets", "model", "roles"), ["data"]),
        (("assets", "scene", "classification:classes"), [{"value": "one", "name": "a"}]),
    ],
)
def test_the_schemas_would_notice_a_fault(tmp_path: Path, path: tuple[str, ...], value: object) -> None:
    item = plain(RECORD, tmp_path)
    place = item
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    assert complaints(item)


def test_an_item_says_where_it_lies(tmp_path: Path) -> None:
    item = plain(RECORD, tmp_path)
    assert item["geometry"] == AREA
    assert tuple(item["bbox"]) == shape(AREA).bounds
    properties = item["properties"]
    assert properties["proj:code"] == "EPSG:32610" and properties["proj:shape"] == [611, 1003]
    assert properties["proj:transform"] == [0.6, 0, 823_000 * 0.6, 0, -0.6, 8_128_000 * 0.6]
    assert tuple(properties["proj:bbox"]) == shape(properties["proj:geometry"]).bounds


def test_an_item_spans_the_dates_of_its_scenes(tmp_path: Path) -> None:
    properties = plain(RECORD, tmp_path)["properties"]
    assert properties["datetime"] is None
    assert (
        properties["start_datetime"] == "2019-01-01T00:00:00Z" and properties["end_datetime"] == "2020-05-04T18:30:00Z"
    )
    assert plain(ONE_DATE, tmp_path)["properties"]["datetime"] == "2020-05-04T18:30:00Z"


def test_an_item_without_a_known_date_says_so(tmp_path: Path) -> None:
    properties = plain(UNDATED, tmp_path)["properties"]
    assert properties["datetime"] == "2026-05-04T12:30:00Z"
    assert "date is unknown" in properties["description"]


def test_an_item_names_its_scenes_model_and_licence(tmp_path: Path) -> None:
    item = plain(RECORD, tmp_path)
    links = {link["rel"]: link["href"] for link in item["links"]}
    assert links == {"derived_from": "https://example.org/items/a.json", "license": "https://example.org/licence"}
    scaling = item["properties"]["mlm:input"][0]["value_scaling"]
    assert [band["mean"] for band in scaling] == list(RECORD.model.mean)
    assert [band["stddev"] for band in scaling] == list(RECORD.model.std)
    assert RECORD.model.weights_sha256 in item["properties"]["processing:lineage"]
    assert item["assets"]["model"]["href"] == RECORD.model.href


def test_local_scenes_are_named_relative_to_the_item_and_remote_ones_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, away = tmp_path / "maps" / "out", "/nowhere-near/b.json"
    (tmp_path / "disk" / "maps").mkdir(parents=True)
    out.parent.symlink_to(tmp_path / "disk" / "maps")
    out.mkdir()
    items = {
        "https://example.org/items/a.json?...": "https://example.org/items/a.json?...",
        "s3://bucket/a.json": "s3://bucket/a.json",
        str(tmp_path / "imagery" / "a b.json"): "../../../imagery/a b.json",
        (out / "c.json").as_uri(): "./c.json",
        "imagery/d.json": "../../../imagery/d.json",
        away: away,
    }
    monkeypatch.chdir(tmp_path)
    item = plain(replace(RECORD, scenes=tuple({"id": at, "item": at} for at in items)), out)
    hrefs = {link["title"]: link["href"] for link in item["links"] if link["rel"] == "derived_from"}
    assert hrefs == items
    assert complaints(item) == []
    in_a_bucket = build_item(replace(RECORD, scenes=tuple({"id": at, "item": at} for at in items)), None)
    assert [link.href for link in in_a_bucket.links if link.rel == "derived_from"] == list(items)[:2]


@pytest.mark.parametrize(
    ("reference", "saved_by"),
    [
        ("chmv2", "safetensors.torch.save_file"),
        ("models/mine", "safetensors.torch.save_file"),
        ("a/backbone-0123abcd.pth+a/head-4567cdef.pth", "torch.save"),
    ],
)
def test_an_item_says_by_which_function_the_weights_were_saved(reference: str, saved_by: str, tmp_path: Path) -> None:
    item = plain(replace(RECORD, model=replace(RECORD.model, reference=reference)), tmp_path)
    assert item["assets"]["model"]["mlm:artifact_type"] == saved_by


def test_a_demonstration_model_is_called_one(tmp_path: Path) -> None:
    demonstration = replace(RECORD, model=replace(RECORD.model, demonstration=True))
    assert "demonstration model" in plain(demonstration, tmp_path)["properties"]["description"]
    assert "demonstration" not in plain(RECORD, tmp_path)["properties"]["description"]


def test_assets_lie_beside_the_item_with_their_checksums(tmp_path: Path) -> None:
    assets = plain(RECORD, tmp_path)["assets"]
    made = {f"./{file.name}" for file in RECORD.outputs} | {"./run.json"}
    assert {asset["href"] for key, asset in assets.items() if key != "model"} == made
    assert {name.removeprefix("./") for name in made} <= set(ASSETS)
    height = assets["canopy_height"]
    assert height["file:checksum"] == "1220" + "cd" * 32 and height["file:size"] == 1_234_567
    (band,) = height["bands"]
    assert band["nodata"] == -9999 and band["unit"] == "m" and band["raster:spatial_resolution"] == 0.6
    assert band["statistics"] == {"valid_percent": 98.5, "minimum": 0, "maximum": 35.125, "mean": 12.25, "stddev": 8}
    assert assets["canopy_height_spread"]["bands"][0]["statistics"] == {"valid_percent": 0}


def test_a_name_from_outside_cannot_leave_the_folder(tmp_path: Path) -> None:
    item = build_item(replace(RECORD, pipeline={"name": "../../etc/passwd"}), tmp_path)
    assert "/" not in item.id


def test_the_item_agrees_with_the_file_it_describes(tmp_path: Path) -> None:
    grid = Grid(CRS("EPSG:32610"), 0.6)
    extent = Window(-8_128_176, 823_040, 352, 352)
    stage = StagedRaster.create(tmp_path / "stage.tif", grid, extent, block=176, names=["height"])
    stage.write(Window(extent.row, extent.col, 176, 176), np.full((1, 176, 176), 12.4, np.float32))
    stage.close()
    clip = extent.padded(-16)
    receipt: CogReceipt = stage_to_cog(
        stage, "height", tmp_path / "canopy_height.tif", clip=clip, profile=CogProfile("canopy_height", "m")
    )
    file = FileRecord(receipt.path.name, receipt.sha256, receipt.size_bytes, StatisticsRecord.of(receipt.census))
    box = GridRecord("EPSG:32610", 0.6, clip.row, clip.col, clip.height, clip.width)
    item = plain(replace(RECORD, grid=box, outputs=(file,)), tmp_path)
    with rasterio.open(receipt.path) as written:
        assert item["properties"]["proj:transform"] == pytest.approx(list(written.transform)[:6])
        assert item["properties"]["proj:shape"] == list(written.shape)
        band = item["assets"]["canopy_height"]["bands"][0]
        assert band["nodata"] == written.nodata and band["data_type"] == written.dtypes[0]
        assert band["unit"] == written.units[0]
        assert band["statistics"]["mean"] == pytest.approx(float(written.tags(1)["STATISTICS_MEAN"]))
