"""What finished jobs made, from their records, on a shelf that holds as many as there are.

The shelf is a SQLite file in the temporary folder, so that memory does not grow with the number of jobs; nobody but
this process reads it, and it is made anew each time.
"""

from __future__ import annotations

import hashlib
import json
import math
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import numpy as np
import rasterio
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox
from pydantic import TypeAdapter, ValidationError

from geodino.batch.jobs import Finished
from geodino.errors import OutputError
from geodino.grid import Grid, Window
from geodino.outputs.record import RunRecord
from geodino.products import DENSITY, MAPS, TREES
from geodino.stores import Store

HEIGHT = MAPS["height"]
SCENE = "scene.tif"

# A part of the merged trees: some 28 km by 20 km at 45 degrees, the size of five to ten NAIP quarter quads.
PART_DEGREES = 0.25
# A bucket answers in 10 to 100 ms, however small the object.
_FETCHERS = 16
_CHUNK = 64

_RECORDS = TypeAdapter(RunRecord)

Thing = TypeVar("Thing")
Found = TypeVar("Found")


@dataclass(frozen=True)
class Mapped:
    """A finished job.

    Attributes
    ----------
    rank
        Its place in the mosaic, the first wins.
    window
        (row, col, height, width) of its maps on the lattice of its CRS.
    bounds_lonlat
        (minx, miny, maxx, maxy), degrees; minx > maxx over the antimeridian.
    hashes
        SHA-256 of its files by name.
    mapped_ha
        Ground that its maps have a value for, hectares of its grid.
    density
        The tree density's affine transform (6 numbers), height and width; empty where there is none.
    scenes
        (id, first day, last day) in the order of scene.tif's values, days empty where unknown.
    """

    rank: int
    id: str
    key: str
    crs: str
    gsd_m: float
    window: tuple[int, int, int, int]
    bounds_lonlat: tuple[float, float, float, float]
    hashes: dict[str, str]
    aoi_ha: float
    mapped_ha: float
    trees: int | None
    density: tuple[float, ...]
    scenes: tuple[tuple[str, str, str], ...]
    licences: tuple[str, ...]
    model: str
    versions: dict[str, str]
    demonstration: bool
    seconds: float
    started: str

    @property
    def grid(self) -> Grid:
        return Grid(CRS(self.crs), self.gsd_m)

    @property
    def geobox(self) -> GeoBox:
        return self.grid.geobox(Window(*self.window))

    @property
    def part(self) -> str:
        """Which part of the merged trees it belongs to: the south-west corner of the cell its middle lies in."""
        lon, lat = _middle(self.bounds_lonlat)
        west, south = (math.floor(degrees / PART_DEGREES) * PART_DEGREES for degrees in (lon, lat))
        return f"{abs(south):05.2f}{'S' if south < 0 else 'N'}_{abs(west):06.2f}{'W' if west < 0 else 'E'}"


_KNOWN = TypeAdapter(Mapped)


def read_mapped(store: Store, finished: Finished, rank: int) -> tuple[Mapped, bytes] | None:
    """A finished job and its Item; None where its folder no longer holds both its record and its Item.

    Raises
    ------
    OutputError
        The record is not one that this version understands, or the store refuses.
    """
    found, item = store.get(f"{finished.key}/run.json"), store.get(f"{finished.key}/item.json")
    if found is None or item is None:
        return None
    try:
        record = _RECORDS.validate_json(found)
    except ValidationError as error:
        raise OutputError(
            f"{store}/{finished.key}/run.json is no record of this version of geodino: run that job again"
        ) from error
    files = {file.name: file for file in record.outputs}
    grid, model = record.grid, record.model
    mapped_ha = record.trees.mapped_ha if record.trees is not None else 0.0
    if record.trees is None and HEIGHT in files and (census := files[HEIGHT].statistics) is not None:
        mapped_ha = census.valid_percent / 100 * grid.height * grid.width * grid.gsd_m**2 / 1e4
    licences = {str(scene["licence"]) for scene in record.scenes if scene.get("licence")}
    mapped = Mapped(
        rank=rank,
        id=finished.id,
        key=finished.key,
        crs=grid.crs,
        gsd_m=grid.gsd_m,
        window=(grid.row, grid.col, grid.height, grid.width),
        bounds_lonlat=record.aoi.bounds_lonlat,
        hashes={name: file.sha256 for name, file in files.items()},
        aoi_ha=record.aoi.area_ha,
        mapped_ha=mapped_ha,
        trees=files[TREES].features if TREES in files else None,
        density=_density(store, f"{finished.key}/{DENSITY}") if DENSITY in files else (),
        scenes=tuple((str(scene["id"]), _day(scene, "start_datetime"), _day(scene, "end_datetime"))
                     for scene in record.scenes),
        licences=(*sorted(licences), f"weights: {model.licence}"),
        model=f"{model.name} {model.weights_sha256[:12]}",
        versions={"geodino": record.geodino} | {name: record.libraries[name] for name in sorted(record.libraries)},
        demonstration=model.demonstration,
        seconds=record.timings.total_s,
        started=record.started.isoformat(),
    )  # fmt: skip
    return mapped, item


class Shelf:
    """Finished jobs by rank, by part and by where they lie; a context manager. One thread's own."""

    def __init__(self, folder: Path) -> None:
        self._db = sqlite3.connect(folder / "shelf.sqlite", isolation_level=None)
        self._db.executescript(
            "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; BEGIN;"
            "CREATE TABLE jobs (rank INTEGER PRIMARY KEY, part TEXT, south REAL, crs TEXT, gsd REAL, facts TEXT);"
            "CREATE INDEX parts ON jobs (part, south);"
            # Bounds are rounded outwards to float32, so that no overlap is missed. A job has two boxes, one of them
            # beyond the antimeridian where it lies across.
            "CREATE VIRTUAL TABLE boxes USING rtree (id, west, east, south, north);"
            "CREATE TABLE scenes (number INTEGER PRIMARY KEY, id TEXT UNIQUE, first TEXT, last TEXT);"
        )

    def __enter__(self) -> Shelf:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._db.close()

    def __len__(self) -> int:
        (number,) = self._db.execute("SELECT COUNT(*) FROM jobs").fetchone()
        return int(number)

    def add(self, mapped: Mapped) -> None:
        west, south, east, north = mapped.bounds_lonlat
        facts = _KNOWN.dump_json(mapped).decode()
        self._db.execute(
            "INSERT INTO jobs VALUES (?, ?, ?, ?, ?, ?)",
            (mapped.rank, mapped.part, south, mapped.crs, mapped.gsd_m, facts),
        )
        for place, (low, high) in enumerate([(west, east)] if west <= east else [(west, 180), (-180, east)]):
            self._db.execute(
                "INSERT INTO boxes VALUES (?, ?, ?, ?, ?)", (2 * mapped.rank + place, low, high, south, north)
            )
        self._db.executemany("INSERT OR IGNORE INTO scenes (id, first, last) VALUES (?, ?, ?)", mapped.scenes)

    def all(self) -> Iterator[Mapped]:
        """In the mosaic's order."""
        return self._select("SELECT facts FROM jobs ORDER BY rank")

    def jobs(self, crs: str, gsd_m: float, *, last_first: bool = False) -> Iterator[Mapped]:
        """Those on one lattice, in the mosaic's order."""
        order = "DESC" if last_first else "ASC"
        return self._select(f"SELECT facts FROM jobs WHERE crs = ? AND gsd = ? ORDER BY rank {order}", crs, gsd_m)

    def crss(self) -> list[str]:
        """The CRSs of the jobs' grids."""
        return list(dict.fromkeys(crs for crs, _ in self.lattices()))

    def lattices(self) -> list[tuple[str, float]]:
        """CRS and metres a pixel of the jobs' grids."""
        return list(self._db.execute("SELECT DISTINCT crs, gsd FROM jobs ORDER BY crs, gsd"))

    def parts(self) -> list[str]:
        return [row[0] for row in self._db.execute("SELECT DISTINCT part FROM jobs ORDER BY part")]

    def of_part(self, part: str) -> Iterator[Mapped]:
        """A part's jobs from south to north."""
        return self._select("SELECT facts FROM jobs WHERE part = ? ORDER BY south, rank", part)

    def before(self, mapped: Mapped) -> list[Mapped]:
        """The jobs that go before one in the mosaic and whose bounds overlap its own."""
        found = self._select(
            "SELECT facts FROM jobs WHERE rank IN "
            "(SELECT DISTINCT other.id / 2 FROM boxes AS own JOIN boxes AS other "
            "ON other.west < own.east AND other.east > own.west "
            "AND other.south < own.north AND other.north > own.south "
            "WHERE own.id IN (?, ?) AND other.id < ?) ORDER BY rank",
            *(2 * mapped.rank, 2 * mapped.rank + 1, 2 * mapped.rank),
        )
        return list(found)

    def scenes(self) -> Iterator[tuple[int, str, str, str]]:
        """All scenes that were used: a number of the batch's own, from 1, and id, first and last day."""
        yield from self._db.execute("SELECT number, id, first, last FROM scenes ORDER BY number")

    def scene_numbers(self, ids: Iterable[str]) -> list[int]:
        asked = [self._db.execute("SELECT number FROM scenes WHERE id = ?", (id_,)).fetchone() for id_ in ids]
        return [int(number) for (number,) in asked]

    def _select(self, query: str, *values: object) -> Iterator[Mapped]:
        for (facts,) in self._db.execute(query, values):
            yield _KNOWN.validate_json(facts)


def fill(
    shelf: Shelf, store: Store, finished: Iterable[Finished], items: Path, advance: Callable[[int], None]
) -> list[str]:
    """Put every finished job on the shelf, and its Item into a file, a line each with the job's key before it.

    Returns
    -------
    The ids of jobs whose folder has no record or no Item.

    Raises
    ------
    OutputError
        A record is not one that this version understands, or the store refuses.
    """
    missing: list[str] = []
    pairs = enumerate(finished)
    with items.open("wb") as lines:
        for done, ((_, job), found) in enumerate(fetched(pairs, lambda pair: read_mapped(store, pair[1], pair[0])), 1):
            if found is None:
                missing.append(job.id)
                continue
            mapped, item = found
            shelf.add(mapped)
            lines.write(json.dumps([mapped.key, json.loads(item)], ensure_ascii=False).encode() + b"\n")
            advance(done)
    return missing


def fetched(things: Iterable[Thing], fetch: Callable[[Thing], Found]) -> Iterator[tuple[Thing, Found]]:
    """Each thing with what is fetched of it, in their order, a few at a time: a store answers one by one slowly."""
    left = iter(things)
    with ThreadPoolExecutor(_FETCHERS, thread_name_prefix="geodino-gather") as pool:
        while chunk := list(islice(left, _CHUNK)):
            yield from zip(chunk, pool.map(fetch, chunk), strict=True)


def digest(*facts: object) -> str:
    """A short name of facts, the same for the same."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:24]


def _density(store: Store, key: str) -> tuple[float, ...]:
    """Where the cells of a density lie: they hang on the CRS's origin, and reach beyond the run's own pixels."""
    found = store.get(key)
    if found is None:
        return ()
    with rasterio.MemoryFile(found) as memory, memory.open() as raster:
        return (*tuple(raster.transform)[:6], float(raster.height), float(raster.width))


def _day(scene: object, key: str) -> str:
    assert isinstance(scene, dict)
    return str(scene.get(key) or scene.get("datetime") or "")[:10]


def _middle(bounds: tuple[float, float, float, float]) -> tuple[float, float]:
    west, south, east, north = bounds
    lon = (west + east) / 2 if west <= east else (west + east + 360) / 2
    return float(np.where(lon > 180, lon - 360, lon)), (south + north) / 2
