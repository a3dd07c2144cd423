"""GeoParquet 1.1 written as it comes: row group by row group, however many rows there will be.

What the file must say is that of the specification (https://github.com/opengeospatial/geoparquet, tag v1.1.0,
format-specs/geoparquet.md); sizes and compression follow its advice for files that are passed on
(format-specs/distributing-geoparquet.md). The same tables in the same order give the same bytes: nothing in the file
tells the time.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import shapely
from odc.geo.crs import CRS
from pyproj import CRS as ProjCRS

from geodino import __version__
from geodino.errors import OutputError

SPECIFICATION = "1.1.0"
ROWS_PER_GROUP = 100_000

EDGES = ("xmin", "ymin", "xmax", "ymax")

# Both are "required" in Parquet's words: the specification asks for the same of both, and no row lacks a geometry.
GEOMETRY_FIELDS = (
    pa.field("geometry", pa.binary(), nullable=False),
    pa.field("bbox", pa.struct([pa.field(edge, pa.float64(), nullable=False) for edge in EDGES]), nullable=False),
)


@dataclass(frozen=True)
class GeoProfile:
    """What a file says about itself.

    Attributes
    ----------
    crs
        Of the geometries.
    geometry_type
        The one that all geometries have: "Point", "Polygon". Polygons must come from `counterclockwise`.
    provenance
        Key-value metadata of the file. The file's bytes are the same in every run if these are: leave out the time.
    """

    crs: CRS
    geometry_type: str
    provenance: Mapping[str, str] = field(default_factory=dict)

    def described(self, bounds: Sequence[float] = ()) -> str:
        """The value of the key `geo`; bounds are (minx, miny, maxx, maxy) of all geometries, empty where unknown.

        A `GeoParquetFile` writes it at its end. Who reads a folder of files as one table looks for it in their Arrow
        schema: there it has to be put into the schema's metadata.
        """
        column: dict[str, object] = {
            "encoding": "WKB",
            "geometry_types": [self.geometry_type],
            "crs": projjson(self.crs),
            "edges": "planar",
            "covering": {"bbox": {edge: ["bbox", edge] for edge in EDGES}},
        }
        if self.geometry_type == "Polygon":
            column["orientation"] = "counterclockwise"
        if len(bounds):
            column["bbox"] = list(bounds)
        return json.dumps(
            {
                "version": SPECIFICATION,
                "primary_column": "geometry",
                "columns": {"geometry": column},
                "creator": {"library": "geodino", "version": __version__},
            }
        )


class GeoParquetFile:
    """A file that grows by row groups; a context manager, whole at the end of the block and unreadable before.

    At most one row group is held. Groups are cut every `rows_per_group` rows, however the tables that come are cut.

    Parameters
    ----------
    path
        Written at once, replaced where it exists; the caller removes it where the block raises.
    schema
        Of the tables, `GEOMETRY_FIELDS` among its fields.

    Raises
    ------
    OutputError
        On entering, appending or leaving: the file cannot be written.
    """

    def __init__(
        self, path: Path, schema: pa.Schema, profile: GeoProfile, *, rows_per_group: int = ROWS_PER_GROUP
    ) -> None:
        self.path, self.schema, self.profile, self.rows_per_group = path, schema, profile, rows_per_group
        self.rows = 0
        self._held: list[pa.Table] = []
        self._low, self._high = np.full(2, np.inf), np.full(2, -np.inf)

    def __enter__(self) -> GeoParquetFile:
        try:
            self._writer = pq.ParquetWriter(
                self.path, self.schema, compression="zstd", compression_level=9, write_page_index=True
            )
        except (OSError, pa.ArrowException) as error:
            raise OutputError(f"cannot make {self.path}: {error}") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            with suppress(OSError, pa.ArrowException):
                self._writer.close()
            return
        try:
            self._flush(1)
            bounds = [*self._low.tolist(), *self._high.tolist()] if self.rows else ()
            self._writer.add_key_value_metadata({**self.profile.provenance, "geo": self.profile.described(bounds)})
            self._writer.close()
        except (OSError, pa.ArrowException) as reason:
            raise OutputError(f"cannot finish {self.path}: {reason}: is the disk full?") from reason

    def append(self, table: pa.Table) -> None:
        """Add rows, in the schema's columns."""
        if not table.num_rows:
            return
        west, south, east, north = (pc.min_max(edge) for edge in table["bbox"].combine_chunks().flatten())
        low, high = [west["min"].as_py(), south["min"].as_py()], [east["max"].as_py(), north["max"].as_py()]
        self._low, self._high = np.minimum(self._low, low), np.maximum(self._high, high)
        self.rows += table.num_rows
        self._held.append(table)
        try:
            self._flush(self.rows_per_group)
        except (OSError, pa.ArrowException) as error:
            raise OutputError(f"cannot write {self.path}: {error}: is the disk full?") from error

    def _flush(self, least: int) -> None:
        """Write row groups from what is held, as long as there are `least` rows for one."""
        if sum(table.num_rows for table in self._held) < least:
            return
        rows = pa.concat_tables(self._held)
        while rows.num_rows >= least:
            self._writer.write_table(rows.slice(0, self.rows_per_group), row_group_size=self.rows_per_group)
            rows = rows.slice(self.rows_per_group)
        self._held = [rows.combine_chunks()] if rows.num_rows else []


def geometry_columns(shapes: npt.NDArray[np.object_]) -> tuple[pa.Array, pa.Array]:
    """Geometries, shape (N,), as the columns `geometry` and `bbox`: WKB in x, y order and float64 edges."""
    edges = shapely.bounds(shapes).reshape(-1, 4).T
    boxes = pa.StructArray.from_arrays([pa.array(edge) for edge in edges], fields=list(GEOMETRY_FIELDS[1].type))
    return pa.array(shapely.to_wkb(shapes, byte_order=1), pa.binary()), boxes


def counterclockwise(polygons: npt.NDArray[np.object_]) -> npt.NDArray[np.object_]:
    """The polygons, shape (N,), wound counterclockwise, each from a point that depends on its ground alone."""
    # GEOS normalises outer rings to clockwise.
    return np.asarray(shapely.reverse(shapely.normalize(polygons)), dtype=object)


def projjson(crs: CRS) -> dict[str, object]:
    """The CRS in PROJJSON, without the ids of a datum ensemble's members, which PROJ before 9 does not know."""
    described: dict[str, object] = ProjCRS.from_user_input(str(crs)).to_json_dict()
    for part in (described, described.get("base_crs")):
        ensemble = part.get("datum_ensemble") if isinstance(part, dict) else None
        for member in ensemble["members"] if ensemble else ():
            member.pop("id", None)
    return described
