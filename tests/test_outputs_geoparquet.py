"""GeoParquet files against the facts of the specification, version 1.1.0."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shapely
from made_trees import GRID, TABLE, made_trees
from odc.geo.crs import CRS
from pyproj import CRS as ProjCRS

from geodino.outputs.geoparquet import (
    EDGES,
    GEOMETRY_FIELDS,
    GeoParquetFile,
    GeoProfile,
    counterclockwise,
    geometry_columns,
    projjson,
)
from geodino.outputs.tree_table import SCHEMA


def write(path: Path, *tables: pa.Table, geometry_type: str = "Point", rows_per_group: int = 100) -> pq.FileMetaData:
    profile = GeoProfile(GRID.crs, geometry_type, {"GEODINO_MODEL": "nano"})
    with GeoParquetFile(path, SCHEMA, profile, rows_per_group=rows_per_group) as file:
        for table in tables:
            file.append(table)
    return pq.read_metadata(path)


def geo(metadata: pq.FileMetaData) -> Any:
    return json.loads(metadata.metadata[b"geo"])


@pytest.mark.parametrize("count", [0, 1, 250])
def test_metadata_say_what_the_specification_requires(tmp_path: Path, count: int) -> None:
    trees = made_trees(count)
    found = geo(write(tmp_path / "trees.parquet", TABLE.points(trees)))
    assert found["version"] == "1.1.0"
    assert found["primary_column"] == "geometry"
    assert found["columns"].keys() == {"geometry"}
    column = found["columns"]["geometry"]
    assert column["encoding"] == "WKB"
    assert column["geometry_types"] == ["Point"]
    assert column["edges"] == "planar"
    assert "orientation" not in column
    # Each edge is a path into one column, and the second step of it is the edge's own name.
    assert column["covering"] == {"bbox": {edge: ["bbox", edge] for edge in EDGES}}
    if count:
        assert column["bbox"] == [trees.x.min(), trees.y.min(), trees.x.max(), trees.y.max()]
    else:
        assert "bbox" not in column


def test_the_crs_is_projjson_that_gives_the_crs_back(tmp_path: Path) -> None:
    column = geo(write(tmp_path / "trees.parquet"))["columns"]["geometry"]
    assert column["crs"]["$schema"].startswith("https://proj.org/schemas/v0.")
    assert column["crs"]["id"] == {"authority": "EPSG", "code": 32610}
    assert ProjCRS.from_json_dict(column["crs"]) == ProjCRS.from_epsg(32610)
    members = column["crs"]["base_crs"]["datum_ensemble"]["members"]
    assert len(members) > 5 and not any("id" in member for member in members)


def test_a_crs_without_a_code_is_written_whole() -> None:
    local = ProjCRS.from_proj4("+proj=tmerc +lon_0=9.2 +x_0=1000 +ellps=GRS80 +units=m")
    assert ProjCRS.from_json_dict(projjson(CRS(local.to_wkt()))) == local


def test_geometry_and_bbox_are_stored_as_the_specification_asks(tmp_path: Path) -> None:
    write(tmp_path / "trees.parquet", TABLE.points(made_trees(10)))
    columns = {column.path: column for column in pq.ParquetFile(tmp_path / "trees.parquet").schema}
    assert columns["geometry"].physical_type == "BYTE_ARRAY"
    assert columns["geometry"].max_repetition_level == 0
    # A group at the root, its children in this order, as often there as the geometry: always.
    assert [path for path in columns if path.startswith("bbox.")] == [f"bbox.{edge}" for edge in EDGES]
    for path in ("geometry", *(f"bbox.{edge}" for edge in EDGES)):
        assert columns[path].max_definition_level == 0
    assert {columns[f"bbox.{edge}"].physical_type for edge in EDGES} == {"DOUBLE"}


def test_wkb_is_little_endian_and_two_dimensional() -> None:
    geometry, bbox = geometry_columns(np.array([shapely.Point(1.5, -2.25)]))
    assert geometry[0].as_py() == bytes.fromhex("0101000000") + np.array([1.5, -2.25], "<f8").tobytes()
    assert bbox[0].as_py() == {"xmin": 1.5, "ymin": -2.25, "xmax": 1.5, "ymax": -2.25}


def test_the_covering_lets_readers_skip_row_groups(tmp_path: Path) -> None:
    trees = made_trees(1000)
    path = tmp_path / "trees.parquet"
    metadata = write(path, TABLE.points(trees))
    lows = []
    for group in range(metadata.num_row_groups):
        chunks = [metadata.row_group(group).column(number) for number in range(metadata.num_columns)]
        (chunk,) = [chunk for chunk in chunks if chunk.path_in_schema == "bbox.ymin"]
        lows.append(chunk.statistics.min)
    assert lows == sorted(lows, reverse=True) and len(set(lows)) == 10
    box = (trees.x.min(), np.median(trees.y), trees.x.max(), trees.y.max())
    inside = (trees.y >= box[1]).sum()
    assert len(gpd.read_parquet(path, bbox=box)) == inside == 500


def test_polygons_are_wound_counterclockwise_and_start_where_they_always_start(tmp_path: Path) -> None:
    ring, hole = [(0, 0), (0, 9), (9, 9), (9, 0)], [(2, 2), (4, 2), (4, 4), (2, 4)]
    drawn = [
        shapely.Polygon(ring, [hole]),
        shapely.Polygon(ring[::-1], [hole[::-1]]),
        shapely.Polygon(ring[2:] + ring[:2], [hole[1:] + hole[:1]]),
    ]
    wound = counterclockwise(np.array(drawn))
    assert len({polygon.wkb for polygon in wound}) == 1
    assert wound[0].exterior.is_ccw and not wound[0].interiors[0].is_ccw
    assert wound[0].equals(drawn[0])
    column = geo(write(tmp_path / "crowns.parquet", geometry_type="Polygon"))["columns"]["geometry"]
    assert column["orientation"] == "counterclockwise"
    assert column["geometry_types"] == ["Polygon"]


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    first, second = tmp_path / "first.parquet", tmp_path / "second.parquet"
    for path in (first, second):
        write(path, TABLE.points(made_trees(150)))
    assert first.read_bytes() == second.read_bytes()


def test_a_file_that_was_left_by_an_error_cannot_be_read_as_whole(tmp_path: Path) -> None:
    path = tmp_path / "trees.parquet"
    profile = GeoProfile(GRID.crs, "Point")
    with pytest.raises(RuntimeError), GeoParquetFile(path, SCHEMA, profile, rows_per_group=10) as file:
        file.append(TABLE.points(made_trees(30)))
        raise RuntimeError
    assert b"geo" not in (pq.read_metadata(path).metadata if path.exists() else {})


def test_geometry_fields_close_every_schema() -> None:
    assert tuple(SCHEMA)[-2:] == GEOMETRY_FIELDS


def test_a_folder_of_files_whose_schema_is_described_is_read_as_one_layer(tmp_path: Path) -> None:
    profile = GeoProfile(GRID.crs, "Point")
    trees = TABLE.points(made_trees(40))
    for name, rows in (("a", trees.slice(0, 15)), ("b", trees.slice(15))):
        schema = SCHEMA.with_metadata({"geo": profile.described()})
        with GeoParquetFile(tmp_path / f"{name}.parquet", schema, profile) as file:
            file.append(rows)
    layer = gpd.read_parquet(tmp_path)
    assert len(layer) == 40 and layer.crs.to_epsg() == GRID.crs.epsg
    assert len(geo(pq.read_metadata(tmp_path / "a.parquet"))["columns"]["geometry"]["bbox"]) == 4
