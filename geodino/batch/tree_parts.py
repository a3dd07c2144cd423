"""The trees of all jobs as one layer in parts, each tree once, and how much ground each job adds.

A part is a GeoParquet file with the trees of the jobs whose middle lies in one cell of a quarter of a degree, from
south to north, and those of each job along a Hilbert curve, so that a row group is a small piece of ground and readers
of a box skip the others. All parts have one CRS: the jobs' own where they share one, else longitude and latitude.

A part is written again only where one of its jobs, or a job that overlaps one of them, has changed: `parts.json` says
what each was made of.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import shapely
from odc.geo.crs import CRS
from pyproj import Transformer
from scipy.spatial import KDTree

from geodino.batch.ground import Share, goes_before, open_ground
from geodino.batch.mapped import SCENE, Mapped, digest
from geodino.batch.shelf import Shelf
from geodino.errors import OutputError
from geodino.outputs.geoparquet import GEOMETRY_FIELDS, GeoParquetFile, GeoProfile, geometry_columns
from geodino.outputs.tree_table import SCHEMA
from geodino.products import TREES
from geodino.stores import Store

FOLDER = "trees"
# Readers of folders leave out names with an underscore.
INDEX = ".batch/parts.json"
# Raised when the same jobs come to give other rows.
_MADE_AS = 2

LONLAT = "OGC:CRS84"
# Two trees of jobs with different lattices that are nearer are one: a job itself has none so near, since cells of heat
# are 1.2 m at 0.6 m a pixel and a crown is wider.
SAME_M = 1.0

_JOB = pa.field("job", pa.string(), nullable=False, metadata={"description": "id of the job that found the tree"})
_FIELDS = pa.schema([*(field for field in SCHEMA if field not in GEOMETRY_FIELDS), _JOB, *GEOMETRY_FIELDS])

Doubles = npt.NDArray[np.float64]
# Of each part: what it was made of, and the shares of its jobs.
Index = dict[str, tuple[str, dict[str, Share]]]


def write_parts(
    shelf: Shelf, store: Store, scratch: Path, *, disjoint: bool, advance: Callable[[int], None]
) -> Iterator[tuple[Mapped, Share]]:
    """Write the parts that have changed, and give each job with its share, part by part.

    The index is written, and parts that no job belongs to any more are removed, when all jobs were given.

    Parameters
    ----------
    scratch
        A folder for the part that is being written.
    disjoint
        Whether jobs never overlap, as cells of a grid: then nothing is compared.

    Raises
    ------
    OutputError
        The store or the disk refuses, or a file of a job is gone.
    """
    crss = shelf.crss()
    crs = crss[0] if len(crss) == 1 else LONLAT
    before = _read_index(store)
    kept = {entry.key for entry in store.entries(f"{FOLDER}/")} if before else set()
    made: Index = {}
    done = 0
    for part in shelf.parts():
        key, has_trees = f"{FOLDER}/{part}.parquet", False
        facts: list[object] = [_MADE_AS, crs]
        for mapped in shelf.of_part(part):
            others = [] if disjoint else shelf.overlapping(mapped)
            has_trees |= TREES in mapped.hashes
            ground = [
                (job.hashes.get(SCENE), job.hashes.get(TREES), job.rank < mapped.rank) for job in (mapped, *others)
            ]
            facts.append([mapped.id, mapped.key, ground])
        name = digest(facts)
        known = before.get(part)
        if known is not None and known[0] == name and (key in kept or not has_trees):
            made[part] = known
        else:
            made[part] = (name, _write_part(shelf, store, part, CRS(crs), scratch, disjoint=disjoint, trees=has_trees))
        for mapped in shelf.of_part(part):
            yield mapped, made[part][1][mapped.id]
            done += 1
        advance(done)
    store.put(INDEX, json.dumps(made).encode())
    wanted = {f"{FOLDER}/{part}.parquet" for part in made}
    for key in [entry.key for entry in store.entries(f"{FOLDER}/")]:
        if key not in wanted:
            store.delete(key)


def _write_part(
    shelf: Shelf, store: Store, part: str, crs: CRS, scratch: Path, *, disjoint: bool, trees: bool
) -> dict[str, Share]:
    """Each job's share; the file where there are trees to look for."""
    shares: dict[str, Share] = {}
    if not trees:
        for mapped in shelf.of_part(part):
            shares[mapped.id], _ = _own(store, mapped, [] if disjoint else shelf.overlapping(mapped))
        return shares
    path = scratch / "part.parquet"
    profile = GeoProfile(crs, "Point")
    schema = _FIELDS.with_metadata({"geo": profile.described()})
    with GeoParquetFile(path, schema, profile) as file:
        for mapped in shelf.of_part(part):
            shares[mapped.id], rows = _own(store, mapped, [] if disjoint else shelf.overlapping(mapped))
            file.append(_rows(rows, mapped, crs))
    store.upload(f"{FOLDER}/{part}.parquet", path)
    path.unlink()
    return shares


def _own(store: Store, mapped: Mapped, others: list[Mapped]) -> tuple[Share, pa.Table]:
    """A job's share, and its trees where no job that goes before it has a value.

    A tree stands where the cell stands that it was found in, which its id tells: so it is on the one side of a seam or
    on the other for both jobs, wherever in the cell or beside it each saw the point.
    """
    rows = _trees(store, mapped)
    if not others:
        return Share(mapped.mapped_ha, rows.num_rows), rows
    with open_ground(store, mapped, others) as ground:
        own_ha = ground.hectares()
        if rows.num_rows:
            rows = rows.filter(pa.array(~ground.taken_at(*_cells(rows))))
    for other in others:
        if rows.num_rows:
            rows = rows.filter(pa.array(~_known(rows, mapped, _trees(store, other), other)))
    return Share(own_ha, rows.num_rows), rows


def _known(rows: pa.Table, mapped: Mapped, others: pa.Table, other: Mapped) -> npt.NDArray[np.bool_]:
    """Whether a job that goes before has the tree, though it stands where that job has no value.

    So it may be at the edge of an AOI, where a tree's cell can be in and the pixel at its middle out, and between
    lattices, where a tree is in other cells: there the nearest tree within a metre is the same.
    """
    known = np.zeros(rows.num_rows, bool)
    if not others.num_rows:
        return known
    if other.lattice == mapped.lattice:
        known |= np.asarray(pc.is_in(rows["tree_id"], others["tree_id"].combine_chunks()))
        known[known] = goes_before(other, mapped, *_cells(rows.filter(pa.array(known))))
        return known
    moved = Transformer.from_crs(other.crs, mapped.crs, always_xy=True).transform(*_places(others))
    apart, same = KDTree(np.column_stack(moved)).query(np.column_stack(_places(rows)), distance_upper_bound=SAME_M)
    known |= np.isfinite(apart)
    # At one place for both jobs, so that one of them has it.
    both = others.take(pa.array(same[known])) if other.rank < mapped.rank else rows.filter(pa.array(known))
    known[known] = goes_before(other, mapped, *_places(both))
    return known


def _trees(store: Store, mapped: Mapped) -> pa.Table:
    if TREES not in mapped.hashes:
        return SCHEMA.empty_table()
    found = store.get(f"{mapped.key}/{TREES}")
    if found is None:
        raise OutputError(f"{store}/{mapped.key}/{TREES} is gone: run the job {mapped.id} again")
    return pq.read_table(io.BytesIO(found)).cast(SCHEMA)


def _rows(rows: pa.Table, mapped: Mapped, crs: CRS) -> pa.Table:
    """The rows with their job, in the part's CRS, along a Hilbert curve."""
    if not rows.num_rows:
        return _FIELDS.empty_table()
    x, y = _places(rows)
    order = np.argsort(gpd.GeoSeries.from_xy(x, y).hilbert_distance(), kind="stable")
    rows, x, y = rows.take(pa.array(order)), x[order], y[order]
    rows = rows.append_column(_JOB, pa.repeat(mapped.id, rows.num_rows))
    if str(crs) != str(CRS(mapped.crs)):
        # An id is a place in the job's own CRS, and two zones may have the same.
        own = CRS(mapped.crs)
        ids = pa.array([f"{own.epsg or digest(mapped.crs)}_{id_}" for id_ in rows["tree_id"].to_pylist()])
        lon, lat = Transformer.from_crs(str(own), LONLAT, always_xy=True).transform(x, y)
        columns = dict(zip(("geometry", "bbox"), geometry_columns(shapely.points(lon, lat)), strict=True))
        for name, column in (columns | {"tree_id": ids}).items():
            rows = rows.set_column(rows.schema.get_field_index(name), _FIELDS.field(name), column)
    return rows.select(_FIELDS.names).cast(_FIELDS)


def _cells(rows: pa.Table) -> tuple[Doubles, Doubles]:
    """The middles of the cells that trees were found in."""
    x, y = np.array(pc.split_pattern(rows["tree_id"], "_").to_pylist(), np.float64).reshape(-1, 2).T
    return x, y


def _places(rows: pa.Table) -> tuple[Doubles, Doubles]:
    bbox = rows["bbox"].combine_chunks()
    return bbox.field("xmin").to_numpy(), bbox.field("ymin").to_numpy()


def _read_index(store: Store) -> Index:
    found = store.get(INDEX)
    if found is None:
        return {}
    return {
        part: (name, {job: Share(*share) for job, share in shares.items()})
        for part, (name, shares) in json.loads(found).items()
    }
