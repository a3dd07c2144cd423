"""The GeoPackage: what QGIS and the standard look for in it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pyogrio
import pytest
from made_trees import GRID, TABLE, made_trees

from geodino.errors import OutputError
from geodino.outputs import geopackage
from geodino.outputs.geopackage import Style, write_geopackage
from geodino.outputs.geoparquet import GeoParquetFile, GeoProfile
from geodino.outputs.tree_table import SCHEMA
from geodino.outputs.vectors import TreePaths, tree_writer
from geodino.trees import Trees

PROFILE = GeoProfile(GRID.crs, "Point", {"GEODINO_MODEL": "nano"})
STYLES = [Style("First", "one way", "<qgis/>"), Style("Second", "another", "<qgis/>")]


@pytest.fixture(scope="module")
def trees() -> Trees:
    return made_trees(2000)


@pytest.fixture(scope="module")
def package(trees: Trees, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("package")
    with GeoParquetFile(folder / "trees.parquet", SCHEMA, PROFILE) as file:
        file.append(TABLE.points(trees))
    target = folder / "trees.gpkg"
    rows = write_geopackage(folder / "trees.parquet", target, "trees", profile=PROFILE, styles=STYLES)
    assert rows == len(trees)
    return target


def ask(package: Path, question: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(package)) as database:
        return database.execute(question).fetchall()


def test_it_is_a_sound_database_that_calls_itself_a_geopackage(package: Path) -> None:
    assert ask(package, "PRAGMA integrity_check") == [("ok",)]
    assert ask(package, "PRAGMA foreign_key_check") == []
    assert ask(package, "PRAGMA application_id") == [(int.from_bytes(b"GPKG", "big"),)]


def test_every_table_of_content_is_listed(package: Path) -> None:
    listed = ask(package, "SELECT table_name, data_type, srs_id FROM gpkg_contents ORDER BY table_name")
    assert listed == [("layer_styles", "attributes", 0), ("trees", "features", 32610)]
    assert ask(package, "SELECT column_name, geometry_type_name, z, m FROM gpkg_geometry_columns") == [
        ("geom", "POINT", 0, 0)
    ]


def test_it_holds_one_row_a_tree_and_knows_where_they_lie(package: Path, trees: Trees) -> None:
    ((*bounds,),) = ask(package, "SELECT min_x, min_y, max_x, max_y FROM gpkg_contents WHERE table_name = 'trees'")
    assert bounds == [trees.x.min(), trees.y.min(), trees.x.max(), trees.y.max()]
    assert ask(package, "SELECT count(*) FROM trees") == [(len(trees),)]


def test_the_spatial_index_finds_what_lies_in_a_box(package: Path, trees: Trees) -> None:
    x, y = float(np.median(trees.x)), float(np.median(trees.y))
    found = pyogrio.read_dataframe(package, layer="trees", bbox=(x - 5, y - 5, x + 5, y + 5))
    inside = (abs(trees.x - x) <= 5) & (abs(trees.y - y) <= 5)
    assert sorted(found.tree_id) == sorted(np.array(trees.tree_ids(GRID))[inside]) and len(found) > 10
    assert ask(package, "SELECT count(*) FROM rtree_trees_geom") == [(len(trees),)]


def test_provenance_is_metadata_of_the_layer(package: Path) -> None:
    ((found,),) = ask(package, "SELECT metadata FROM gpkg_metadata")
    entries = {entry.get("key"): entry.text for entry in ET.fromstring(str(found)).iter("MDI")}
    assert entries == {"GEODINO_MODEL": "nano"}
    assert ask(package, "SELECT reference_scope, table_name FROM gpkg_metadata_reference") == [("table", "trees")]


def test_qgis_finds_the_first_style_as_the_layers_own(package: Path) -> None:
    # The question that QGIS asks (qgsogrprovidermetadata.cpp, loadStyle).
    found = ask(
        package,
        "SELECT styleName FROM layer_styles WHERE f_table_schema = '' AND f_table_name = 'trees'"
        " AND f_geometry_column = 'geom' ORDER BY CASE WHEN useAsDefault THEN 1 ELSE 2 END, update_time DESC",
    )
    assert found == [("First",), ("Second",)]
    columns = [name for _, name, *_ in ask(package, "PRAGMA table_info(layer_styles)")]
    assert columns == ["id", *geopackage._STYLE_SCHEMA.names]


@pytest.mark.parametrize(("known", "first"), [(True, "Height"), (False, "Score")])
def test_trees_are_drawn_by_height_where_any_is_known(tmp_path: Path, known: bool, first: str) -> None:
    trees = made_trees(20)
    if not known:
        trees.height_m[:] = np.nan
    with tree_writer(TreePaths(tmp_path / "a.parquet", tmp_path / "a.gpkg"), TABLE) as writer:
        writer.write(trees)
    assert ask(tmp_path / "a.gpkg", "SELECT styleName FROM layer_styles WHERE useAsDefault") == [(first,)]
    assert ask(tmp_path / "a.gpkg", "SELECT count(*) FROM layer_styles") == [(2,)]


def test_rows_that_did_not_arrive_are_noticed(package: Path, tmp_path: Path) -> None:
    copy = tmp_path / "trees.gpkg"
    copy.write_bytes(package.read_bytes())
    with closing(sqlite3.connect(copy)) as database:
        database.execute("DELETE FROM rtree_trees_geom_rowid")
        database.execute("DROP TABLE rtree_trees_geom")
        database.execute("CREATE TABLE rtree_trees_geom (id INTEGER)")
        database.commit()
    with pytest.raises(OutputError, match="holds 0 of 2000 rows in rtree_trees_geom"):
        geopackage._check(copy, "trees", 2000)


def test_limits_on_the_index_are_taken_back_and_a_users_own_are_kept() -> None:
    memory, threads = geopackage.INDEX_OPTIONS
    with geopackage._index_options():
        assert pyogrio.get_gdal_config_option(memory) == 64 * 2**20
        assert pyogrio.get_gdal_config_option(threads) == "NO"
    assert pyogrio.get_gdal_config_option(memory) is None
    pyogrio.set_gdal_config_options({memory: 5})
    try:
        with geopackage._index_options():
            assert pyogrio.get_gdal_config_option(memory) == 5
            assert pyogrio.get_gdal_config_option(threads) == "NO"
        assert pyogrio.get_gdal_config_option(memory) == 5
        assert pyogrio.get_gdal_config_option(threads) is None
    finally:
        pyogrio.set_gdal_config_options({memory: None})
