"""A GeoPackage out of a GeoParquet file, with styles that QGIS draws it with at once.

It is made when the Parquet file is whole, in one pass over its row groups: appending to a GeoPackage while a run goes
on opens it anew each time and updates its index row by row, and this reads back what was written besides.
"""

from __future__ import annotations

import datetime as dt
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pyogrio
from pyogrio.errors import CRSError, DataLayerError, DataSourceError, FeatureError, FieldError, GeometryError
from pyproj import CRS as ProjCRS

from geodino.errors import OutputError
from geodino.outputs.geoparquet import GeoProfile

BATCH_ROWS = 10_000

# GDAL builds the spatial index in memory, some 55 bytes a row, up to a tenth of the machine's; what is beyond the limit
# is built on the disk, which takes twice the time. This is a million rows. In a thread beside, as by default, it takes
# more (November 2026: 336 MiB in all for three million rows within 32 MiB, 289 without the thread, 283 without an
# index), and fails now and then on macOS (https://github.com/OSGeo/gdal/pull/9685).
INDEX_OPTIONS: Mapping[str, str | int] = {
    "OGR_GPKG_MAX_RAM_USAGE_RTREE": 64 * 2**20,
    "OGR_GPKG_ALLOW_THREADED_RTREE": "NO",
}

# QGIS's own, in its order (src/core/providers/ogr/qgsogrutils.cpp, saveStyle).
_STYLE_SCHEMA = pa.schema(
    [
        ("f_table_catalog", pa.string()),
        ("f_table_schema", pa.string()),
        ("f_table_name", pa.string()),
        ("f_geometry_column", pa.string()),
        ("styleName", pa.string()),
        ("styleQML", pa.string()),
        ("styleSLD", pa.string()),
        ("useAsDefault", pa.bool_()),
        ("description", pa.string()),
        ("owner", pa.string()),
        ("ui", pa.string()),
        ("update_time", pa.timestamp("ms", tz="UTC")),
    ]
)
GEOMETRY_COLUMN = "geom"

PYOGRIO_ERRORS = (CRSError, DataLayerError, DataSourceError, FeatureError, FieldError, GeometryError)


@dataclass(frozen=True)
class Style:
    """One way to draw a layer: its name, what it shows, and QML."""

    name: str
    description: str
    qml: str


def write_geopackage(parquet: Path, target: Path, layer: str, *, profile: GeoProfile, styles: Sequence[Style]) -> int:
    """Write all rows of a GeoParquet file as a layer, with spatial index, and return how many there are.

    Parameters
    ----------
    parquet
        Its columns `geometry` and `bbox` become geometries and the index; all others stay.
    target
        Must not exist; its name must end in .gpkg, as the standard asks. The caller removes it where this raises.
    profile
        The provenance goes into `gpkg_metadata`, in GDAL's form.
    styles
        Go into `layer_styles`, the first as the one that QGIS takes.

    Raises
    ------
    OutputError
        The disk refuses, or the file does not hold what was written.
    """
    try:
        with pq.ParquetFile(parquet) as source, _index_options():
            rows = source.metadata.num_rows
            pyogrio.write_arrow(
                rows_of(source),
                target,
                layer=layer,
                driver="GPKG",
                geometry_name="geometry",
                geometry_type=profile.geometry_type,
                crs=ProjCRS.from_user_input(str(profile.crs)).to_wkt(),
                layer_metadata=dict(profile.provenance),
                layer_options={"GEOMETRY_NAME": GEOMETRY_COLUMN},
            )
        _write_styles(target, layer, styles)
        _check(target, layer, rows)
    except (OSError, pa.ArrowException, sqlite3.Error, *PYOGRIO_ERRORS) as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(f"cannot write {target}: {error}: is the disk full?") from error
    return int(rows)


def rows_of(source: pq.ParquetFile) -> pa.RecordBatchReader:
    """The rows of a GeoParquet file as GDAL takes them, a few thousand at a time: all columns but `bbox`."""
    fields = [field for field in source.schema_arrow if field.name != "bbox"]
    # Field metadata and "not null" are Parquet's; GDAL would make a constraint of the latter.
    schema = pa.schema([pa.field(field.name, field.type) for field in fields])
    return pa.RecordBatchReader.from_batches(schema, _batches(source, schema))


def _batches(source: pq.ParquetFile, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    # Not iter_batches over all: it keeps something of each row group, 25 bytes a row (pyarrow 26).
    for group in range(source.num_row_groups):
        for batch in source.read_row_group(group, columns=schema.names).to_batches(BATCH_ROWS):
            yield pa.RecordBatch.from_arrays(batch.columns, schema=schema)


def _write_styles(target: Path, layer: str, styles: Sequence[Style]) -> None:
    now = dt.datetime.now(dt.UTC)
    rows = [
        {
            "f_table_catalog": "",
            "f_table_schema": "",
            "f_table_name": layer,
            "f_geometry_column": GEOMETRY_COLUMN,
            "styleName": style.name,
            "styleQML": style.qml,
            "styleSLD": "",
            "useAsDefault": number == 0,
            "description": style.description,
            "owner": "",
            "update_time": now,
        }
        for number, style in enumerate(styles)
    ]
    table = pa.Table.from_pylist(rows, schema=_STYLE_SCHEMA)
    pyogrio.write_arrow(table, target, layer="layer_styles", driver="GPKG", layer_options={"FID": "id"})


def _check(target: Path, layer: str, rows: int) -> None:
    with closing(sqlite3.connect(target)) as database:
        for table in (layer, f"rtree_{layer}_{GEOMETRY_COLUMN}"):
            (found,) = database.execute(f'SELECT count(*) FROM "{table}"').fetchone()
            if found != rows:
                raise OutputError(f"{target} holds {found} of {rows} rows in {table}: is the disk full?")


@contextmanager
def _index_options() -> Iterator[None]:
    """GDAL's `INDEX_OPTIONS` for the block, except those that the user has set."""
    ours = {name: value for name, value in INDEX_OPTIONS.items() if pyogrio.get_gdal_config_option(name) is None}
    pyogrio.set_gdal_config_options(ours)
    try:
        yield
    finally:
        pyogrio.set_gdal_config_options(dict.fromkeys(ours))
