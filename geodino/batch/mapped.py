"""What a finished job made, from its record."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass

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
# A model sees nothing beyond its picture's edge. Heights that `nano` gives half of a picture differ from those of the
# whole one by up to 0.24 m on average within 32 px of the cut, and by 0.01 m at 48 to 64 px (autzen, 2026-11-22).
RIM_PX = 64
_RECORDS = TypeAdapter(RunRecord)


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
    def lattice(self) -> tuple[str, float]:
        """What the pixels of two jobs have in common where they are the same."""
        return self.crs, self.gsd_m

    @property
    def grid(self) -> Grid:
        return Grid(CRS(self.crs), self.gsd_m)

    @property
    def geobox(self) -> GeoBox:
        return self.grid.geobox(Window(*self.window))

    @property
    def tall(self) -> Window:
        """Its maps without their westernmost and easternmost pixels; `empty` where nothing is left."""
        row, col, height, width = self.window
        return Window(row, col + RIM_PX, height, width - 2 * RIM_PX)

    @property
    def wide(self) -> Window:
        """Its maps without their northernmost and southernmost pixels; `empty` where nothing is left."""
        row, col, height, width = self.window
        return Window(row + RIM_PX, col, height - 2 * RIM_PX, width)

    @property
    def part(self) -> str:
        """Which part of the merged trees it belongs to: the south-west corner of the cell its middle lies in."""
        lon, lat = _middle(self.bounds_lonlat)
        west, south = (math.floor(degrees / PART_DEGREES) * PART_DEGREES for degrees in (lon, lat))
        return f"{abs(south):05.2f}{'S' if south < 0 else 'N'}_{abs(west):06.2f}{'W' if west < 0 else 'E'}"


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
