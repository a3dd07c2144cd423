"""The Items of a stac-geoparquet file, a part of them at a time."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from stac_geoparquet.arrow import stac_table_to_items

from geodino.errors import GeodinoError, ReadError, SourceError
from geodino.redaction import without_secrets
from geodino.sources.ranges import open_ranges
from geodino.sources.raster import is_remote, local_path
from geodino.sources.stac_http import Document, links

SUFFIXES = (".parquet", ".geoparquet")
_NEEDED = ("id", "geometry", "bbox", "assets")
# Rows become JSON objects of some 10 KiB each; a remote file is fetched by so many bytes.
_ROWS, _PIECE = 1000, 8 * 2**20


def table_items(href: str) -> Iterator[Document]:
    """The Items, each with its own address where a link tells it and that is on the web, else with the file's.

    Parameters
    ----------
    href
        Path or URL (http, https, s3, gs, az); a remote file is fetched whole into the temporary folder.

    Raises
    ------
    SourceError
        It is no stac-geoparquet.
    ReadError
        It cannot be reached, or is damaged.
    """
    place = href if is_remote(href) else str(local_path(href).absolute())
    named = without_secrets(href)
    try:
        with _fetched(href) as file, pq.ParquetFile(file) as table:
            _require_items(table.schema_arrow, named)
            for batch in table.iter_batches(_ROWS):
                there = batch["geometry"].is_valid()
                for content in map(_filled, stac_table_to_items(pa.Table.from_batches([batch.filter(there)]))):
                    yield Document(_own(content) or place, content)
                for id_ in batch.filter(pc.invert(there))["id"].to_pylist():
                    yield Document(place, {"id": id_})
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, GeodinoError):
            raise
        raise ReadError(f"{named} cannot be read as stac-geoparquet: {str(error).splitlines()[0]}") from error


def _require_items(schema: pa.Schema, named: str) -> None:
    lacking = [name for name in _NEEDED if name not in schema.names]
    if not lacking and not pa.types.is_struct(schema.field("bbox").type):
        lacking = ["bbox with xmin, ymin, xmax and ymax"]
    if lacking:
        raise SourceError(f"{named} is no stac-geoparquet: it needs the columns {', '.join(lacking)}")


def _filled(content: dict[str, object]) -> dict[str, object]:
    """An Item as it was before it came into a table, where every row has every key."""

    def without_nulls(value: object) -> object:
        if isinstance(value, dict):
            return {key: without_nulls(below) for key, below in value.items() if below is not None}
        return [without_nulls(below) for below in value] if isinstance(value, list) else value

    return {key: without_nulls(value) for key, value in content.items() if value is not None}


def _own(content: dict[str, object]) -> str | None:
    """Where a row says that its Item lies, if that is on the web: paths are those of the machine that wrote them."""
    found = [str(link["href"]) for link in links(content, "self") if is_remote(str(link.get("href")))]
    return found[0] if found else None


@contextmanager
def _fetched(href: str) -> Iterator[Path | BinaryIO]:
    """The file, on this machine."""
    if not is_remote(href):
        yield local_path(href)
        return
    remote = open_ranges(href)
    with tempfile.TemporaryFile() as file:
        for start in range(0, remote.size, _PIECE):
            file.write(remote.get(start, min(start + _PIECE, remote.size)))
        file.seek(0)
        yield file
