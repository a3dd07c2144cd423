"""Two tables of a batch: the statistics of all jobs as one, and what each job mapped and adds to the others."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import geopandas as gpd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from odc.geo.crs import CRS
from pyproj import CRS as ProjCRS

from geodino.batch.ground import Share
from geodino.batch.mapped import Mapped
from geodino.batch.shelf import Shelf, fetched
from geodino.outputs.geoparquet import GEOMETRY_FIELDS, GeoParquetFile, GeoProfile, geometry_columns
from geodino.products import STATISTICS, STATISTICS_CSV
from geodino.stores import Store

JOBS = "jobs.parquet"

_ROWS = 500
_OWN = pa.schema([pa.field("job", pa.string()), pa.field("scene", pa.string())])
_GEOMETRY = tuple(field.name for field in GEOMETRY_FIELDS)

_JOBS = pa.schema(
    [
        ("job", pa.string()),
        ("folder", pa.string()),
        ("crs", pa.string()),
        ("gsd_m", pa.float64()),
        ("scenes", pa.list_(pa.string())),
        ("first_day", pa.string()),
        ("last_day", pa.string()),
        ("aoi_ha", pa.float64()),
        ("mapped_ha", pa.float64()),
        ("own_ha", pa.float64()),
        ("trees", pa.int64()),
        ("own_trees", pa.int64()),
        ("model", pa.string()),
        ("seconds", pa.float64()),
        ("started", pa.string()),
    ]
)


class JobTable:
    """The table of jobs, `own` being what is left without ground that is another's; a context manager."""

    def __init__(self, path: Path) -> None:
        self._writer = pq.ParquetWriter(path, _JOBS, compression="zstd")
        self._rows: list[dict[str, object]] = []

    def __enter__(self) -> JobTable:
        return self

    def __exit__(self, *raised: object) -> None:
        self._flush()
        self._writer.close()

    def add(self, mapped: Mapped, share: Share) -> None:
        days = sorted(day for _, *both in mapped.scenes for day in both if day)
        row = {
            "job": mapped.id,
            "folder": mapped.key,
            "scenes": [id_ for id_, _, _ in mapped.scenes],
            "first_day": days[0] if days else None,
            "last_day": days[-1] if days else None,
            "own_ha": share.own_ha,
            "own_trees": share.trees if mapped.trees is not None else None,
        }
        same = ("crs", "gsd_m", "aoi_ha", "mapped_ha", "trees", "model", "seconds", "started")
        self._rows.append(row | {name: getattr(mapped, name) for name in same})
        if len(self._rows) == _ROWS:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, schema=_JOBS))
        self._rows = []


def write_statistics(shelf: Shelf, store: Store, scratch: Path) -> int:
    """Join the statistics of all jobs, with the job and its scenes in front of each row, as GeoParquet and CSV.

    A row is what its job says of its polygon: where jobs overlap, ground is in the rows of both. Columns that only
    some jobs have, such as attributes of polygons, are null in the others; a column whose types differ becomes text.

    Returns
    -------
    The number of rows; without any no file is written, and earlier ones are removed.

    Raises
    ------
    OutputError
        The store or the disk refuses.
    """
    spools: dict[str, _Spool] = {}
    crs: ProjCRS | None = None
    rows = 0
    for mapped, file in _files(shelf, store):
        given = _crs(file)
        crs = crs or given
        table = _with_job(file.read(use_threads=False), mapped)
        if given is not crs and given != crs:
            table = _moved(table, given, crs)
        key = table.schema.to_string()
        if key not in spools:
            spools[key] = _Spool(scratch / f"statistics_{len(spools)}.parquet", table.schema)
        spools[key].add(table)
        rows += table.num_rows
    for spool in spools.values():
        spool.close()
    if crs is None:
        for name in (STATISTICS, STATISTICS_CSV):
            store.delete(name)
        return 0
    schema = _common([spool.schema for spool in spools.values()])
    profile = GeoProfile(CRS(crs.to_wkt()), "MultiPolygon")
    flat = pa.schema([_flat(field) for field in schema if field.name not in _GEOMETRY])
    made, text = scratch / STATISTICS, scratch / STATISTICS_CSV
    with GeoParquetFile(made, schema, profile) as joined, pa.csv.CSVWriter(text, flat) as lines:
        for spool in spools.values():
            for batch in pq.ParquetFile(spool.path).iter_batches(_ROWS):
                table = _cast(pa.Table.from_batches([batch]), schema)
                joined.append(table)
                lines.write_table(_cast(table.drop_columns(list(_GEOMETRY)), flat))
    store.upload(STATISTICS, made)
    store.upload(STATISTICS_CSV, text)
    return rows


class _Spool:
    """Tables of one schema in a file, many to a row group: a row group a job would take more than the rows."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.path, self.schema = path, schema
        self._writer = pq.ParquetWriter(path, schema)
        self._held: list[pa.Table] = []

    def add(self, table: pa.Table) -> None:
        self._held.append(table)
        if len(self._held) == _ROWS:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        if self._held:
            self._writer.write_table(pa.concat_tables(self._held).combine_chunks())
        self._held = []


def _files(shelf: Shelf, store: Store) -> Iterator[tuple[Mapped, pq.ParquetFile]]:
    """The statistics of the jobs that have any, in the mosaic's order."""
    jobs = (mapped for mapped in shelf.all() if STATISTICS in mapped.hashes)
    for mapped, found in fetched(jobs, lambda mapped: store.get(f"{mapped.key}/{STATISTICS}")):
        if found is not None:
            yield mapped, pq.ParquetFile(io.BytesIO(found))


def _crs(file: pq.ParquetFile) -> ProjCRS:
    geo = json.loads(file.metadata.metadata[b"geo"])
    return _parsed(json.dumps(geo["columns"][geo["primary_column"]].get("crs", "OGC:CRS84")))


@lru_cache(maxsize=16)
def _parsed(described: str) -> ProjCRS:
    # Milliseconds each, and nearly all jobs have the same.
    return ProjCRS.from_user_input(json.loads(described))


def _with_job(table: pa.Table, mapped: Mapped) -> pa.Table:
    # An attribute of that name came with the polygons.
    taken = {name.lower() for name in table.column_names}
    for name, value in (("scene", "; ".join(id_ for id_, _, _ in mapped.scenes)), ("job", mapped.id)):
        if name in taken:
            table = table.rename_columns([f"{own}_zone" if own.lower() == name else own for own in table.column_names])
        table = table.add_column(0, _OWN.field(name), pa.repeat(value, table.num_rows))
    return table.replace_schema_metadata(None)


def _moved(table: pa.Table, given: ProjCRS, wanted: ProjCRS) -> pa.Table:
    shapes = gpd.GeoSeries.from_wkb(table["geometry"].to_pylist(), crs=given).to_crs(wanted)
    for field, column in zip(GEOMETRY_FIELDS, geometry_columns(shapes.to_numpy()), strict=True):
        table = table.set_column(table.schema.get_field_index(field.name), field, column)
    return table


def _common(schemas: list[pa.Schema]) -> pa.Schema:
    """One schema for all, the geometry last."""
    fields: dict[str, pa.Field] = {}
    for field in (field for schema in schemas for field in schema):
        known = fields.get(field.name, field)
        try:
            fields[field.name] = pa.unify_schemas(
                [pa.schema([known]), pa.schema([field])], promote_options="permissive"
            ).field(0)
        except pa.ArrowException:
            fields[field.name] = pa.field(field.name, pa.string())
    last = [fields.pop(name) for name in _GEOMETRY]
    return pa.schema([*fields.values(), *last])


def _flat(field: pa.Field) -> pa.Field:
    return pa.field(field.name, pa.string()) if pa.types.is_nested(field.type) else field


def _cast(table: pa.Table, schema: pa.Schema) -> pa.Table:
    columns = []
    for field in schema:
        if field.name not in table.column_names:
            columns.append(pa.nulls(table.num_rows, field.type))
        elif pa.types.is_string(field.type) and pa.types.is_nested(table.schema.field(field.name).type):
            texts = [
                None if value is None else json.dumps(value, default=str) for value in table[field.name].to_pylist()
            ]
            columns.append(pa.array(texts, pa.string()))
        else:
            columns.append(table[field.name].cast(field.type))
    return pa.table(columns, schema=schema)
