"""What a batch made as a static STAC catalog and as one table of Items (stac-geoparquet).

The Items are the jobs' own and stay as they are, each in its job's folder: `collection.json` leads to them, a thousand
links a file. In `items.parquet` they have the collection's id and hrefs from where that file lies.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterable, Iterator
from datetime import datetime
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pystac
from stac_geoparquet.arrow import parse_stac_ndjson_to_arrow, to_parquet

from geodino.batch.summary import Summary
from geodino.outputs.item import GEOPARQUET
from geodino.products import STATISTICS, STATISTICS_CSV
from geodino.stores import Store

COLLECTION = "collection.json"
ITEMS = "items.parquet"
FOLDER = "catalog"

LINKS_A_FILE = 1000
# Items that are Python objects at a time, some 100 KiB each; and rows of a row group: fewer would make the file's
# footer, which is kept in memory, as large as the rest.
_ITEMS, _ROWS = 128, 1024
_VRT = "application/x-gdal-vrt+xml"  # not registered; what GDAL's own tools write into Items
_GEOJSON = "application/geo+json"


def write_items(lines: Path, store: Store, scratch: Path, collection: str) -> None:
    """Write all Items as one GeoParquet file, by stac-geoparquet; memory holds a part of the Items.

    Parameters
    ----------
    lines
        A job's key and its Item a line, as JSON.
    collection
        The id of the collection.

    Raises
    ------
    OutputError
        The store refuses.
    """
    items, made = scratch / "items.ndjson", scratch / ITEMS
    with items.open("wb") as file:
        for item in _items(lines, collection):
            file.write(json.dumps(item).encode() + b"\n")
    # Reads the Items twice: those of one batch differ here and there, so the schema is that of all of them.
    batches = parse_stac_ndjson_to_arrow(items, chunk_size=_ITEMS)
    to_parquet(pa.RecordBatchReader.from_batches(batches.schema, _row_groups(batches)), made, compression="zstd")
    items.unlink()
    store.upload(ITEMS, made)


def write_catalog(lines: Path, store: Store, summary: Summary, mosaics: list[str], *, trees: bool) -> None:
    """Write the files of links, and the collection that leads to them last; remove those of an earlier time.

    Raises
    ------
    OutputError
        The store refuses.
    """
    written: set[str] = set()
    held: list[pystac.Link] = []
    for link in _links(lines):
        held.append(link)
        if len(held) == LINKS_A_FILE:
            written.add(_shard(store, summary, held, len(written) + 1))
            held = []
    if written and held:
        written.add(_shard(store, summary, held, len(written) + 1))
        held = []
    collection = _collection(summary, mosaics, trees=trees)
    for number, key in enumerate(sorted(written), start=1):
        collection.add_link(pystac.Link("child", f"./{key}", pystac.MediaType.JSON, f"part {number}"))
    for link in held:
        link.target = f"./{link.target}"
        collection.add_link(link)
    _put(store, COLLECTION, collection)
    for key in [entry.key for entry in store.entries(f"{FOLDER}/")]:
        if key not in written:
            store.delete(key)


def _collection(summary: Summary, mosaics: list[str], *, trees: bool) -> pystac.Collection:
    first, last = (datetime.fromisoformat(day + "T00:00:00Z") if day else None for day in summary.days)
    demonstration = " By a demonstration model: do not rely on these numbers." if summary.demonstration else ""
    collection = pystac.Collection(
        id=summary.id,
        title=summary.title,
        description=f"{summary.title}: {summary.own_ha:,.1f} ha of {summary.done:,} jobs.{demonstration}",
        extent=pystac.Extent(
            pystac.SpatialExtent([list(summary.bounds_lonlat)]), pystac.TemporalExtent([[first, last]])
        ),
        license="other",  # of the imagery and of the weights, which summary.json names
        summaries=pystac.Summaries(
            {
                "processing:software": [summary.versions],
                "mlm:name": sorted({model.rpartition(" ")[0] for model in summary.models}),
            }
        ),
    )
    add = collection.add_asset
    add("items", pystac.Asset(f"./{ITEMS}", "All Items, stac-geoparquet", media_type=GEOPARQUET, roles=["metadata"]))
    add("jobs", pystac.Asset("./jobs.parquet", "What each job added", media_type=GEOPARQUET, roles=["metadata"]))
    add("summary", pystac.Asset("./summary.json", "Summary", media_type=pystac.MediaType.JSON, roles=["metadata"]))
    for key in mosaics:
        stem = posixpath.basename(key).removesuffix(".vrt")
        add(stem, pystac.Asset(f"./{key}", f"Mosaic of {stem}", media_type=_VRT, roles=["data"]))
    if trees:
        add("trees", pystac.Asset("./trees/", "All trees, GeoParquet in parts", media_type=GEOPARQUET, roles=["data"]))
    if summary.statistics_rows:
        for key, kind in ((STATISTICS, GEOPARQUET), (STATISTICS_CSV, "text/csv")):
            add(key.replace(".", "_"), pystac.Asset(f"./{key}", "Statistics", media_type=kind, roles=["data"]))
    return collection


def _shard(store: Store, summary: Summary, links: list[pystac.Link], number: int) -> str:
    """A file of links, and its key."""
    catalog = pystac.Catalog(f"{summary.id}-{number:04d}", f"Part {number} of {summary.title}")
    for rel in ("root", "parent"):
        catalog.add_link(pystac.Link(rel, f"../{COLLECTION}", pystac.MediaType.JSON))
    for link in links:
        link.target = f"../{link.target}"
        catalog.add_link(link)
    key = f"{FOLDER}/{number:04d}.json"
    _put(store, key, catalog)
    return key


def _put(store: Store, key: str, catalog: pystac.Catalog) -> None:
    plain = catalog.to_dict(include_self_link=False, transform_hrefs=False)
    store.put(key, json.dumps(plain, ensure_ascii=False, indent=1).encode())


def _row_groups(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    left = iter(batches)
    while held := list(islice(left, _ROWS // _ITEMS)):
        yield from pa.Table.from_batches(held).combine_chunks().to_batches()


def _links(lines: Path) -> Iterator[pystac.Link]:
    with lines.open("rb") as file:
        for line in file:
            key, item = json.loads(line)
            yield pystac.Link("item", f"{key}/item.json", _GEOJSON, str(item["id"]))


def _items(lines: Path, collection: str) -> Iterator[dict[str, object]]:
    """The Items with hrefs from the folder of the batch."""
    with lines.open("rb") as file:
        for line in file:
            key, item = json.loads(line)
            item["collection"] = collection
            for thing in (*item["assets"].values(), *item["links"]):
                thing["href"] = _from(key, thing["href"])
            item["links"] += [
                {"rel": "self", "href": f"./{key}/item.json", "type": _GEOJSON},
                {"rel": "collection", "href": f"./{COLLECTION}", "type": "application/json"},
            ]
            yield item


def _from(key: str, href: str) -> str:
    """A href of a job's folder as one of the batch's folder; URLs, URNs and paths from the root stay."""
    if ":" in href.split("/")[0] or href.startswith("/"):
        return href
    whole = posixpath.normpath(posixpath.join(key, href))
    return whole if whole.startswith("../") else f"./{whole}"
