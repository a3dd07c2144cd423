"""Mosaics of the maps of all jobs: GDAL virtual rasters, which QGIS opens as one map without a copy of any pixel.

Where jobs overlap, the first in the mosaic's order that has a value gives it, those before all that have it farther in
(`geodino.batch.ground`). GDAL draws sources in the order of the file, and their nodata draws nothing: so the whole maps
stand there last first, then all without the rims on two sides, then all without any rim. Jobs with grids in several
CRSs get a mosaic for each. Paths are relative: the batch's folder can be moved whole.

GDAL reads all of a virtual raster at once, so that one of a hundred thousand sources would take minutes and gigabytes.
Beyond `MOST_SOURCES` the ground is cut into squares with a virtual raster each, and the mosaic's sources are those:
GDAL opens what a picture shows.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree as ET

from odc.geo.crs import CRS

from geodino.batch.mapped import SCENE, Mapped, digest
from geodino.batch.shelf import Shelf
from geodino.grid import Grid, Window
from geodino.outputs.cog import BLOCK
from geodino.outputs.scene_map import NONE
from geodino.outputs.stage import NODATA
from geodino.outputs.styles import density_style
from geodino.products import DENSITY, MAPS
from geodino.stores import Store

FOLDER = "mosaic"
MOST_SOURCES = 2000
# How near to a cell's edge is on it, cells: metres that are no binary numbers do not divide evenly.
_ON_EDGE = 1e-6
# Numbers of the scenes of the whole batch.
SCENES_CSV = f"{FOLDER}/scenes.csv"


class Product(NamedTuple):
    """A map that every job may have: its file, what its values are, and whether they are numbers of scenes."""

    name: str
    unit: str
    type: str
    nodata: float

    @property
    def stem(self) -> str:
        return self.name.removesuffix(".tif")


PRODUCTS = (
    *(Product(name, "m", "Float32", NODATA) for name in MAPS.values()),
    Product(DENSITY, "trees/ha", "Float32", NODATA),
    Product(SCENE, "", "UInt32", NONE),
)


@dataclass(frozen=True)
class Source:
    """A raster of a mosaic: its path, where it lies on the mosaic's lattice, and the type of its values.

    `numbers` says what its values become, from 1; empty: they stay.
    """

    path: str
    window: Window
    type: str
    numbers: tuple[int, ...] = ()


def write_mosaics(
    shelf: Shelf, store: Store, scratch: Path, *, disjoint: bool, most_sources: int = MOST_SOURCES
) -> list[str]:
    """Write all mosaics, those of squares before those that name them, and remove what is left of earlier ones.

    Parameters
    ----------
    scratch
        A folder for lists of sources, so that memory does not hold them.
    disjoint
        Whether jobs never overlap, as cells of a grid: then each is drawn once.
    most_sources
        How many a mosaic has before it is cut into squares.

    Returns
    -------
    The keys of the mosaics.

    Raises
    ------
    OutputError
        The store or the disk refuses.
    """
    made, written = [], {SCENES_CSV}
    store.put(SCENES_CSV, _scenes_csv(shelf))
    lattices = shelf.lattices()
    for product in PRODUCTS:
        for crs, gsd_m in lattices:
            name = product.stem
            if len(lattices) > 1:
                name += f"_{_short(crs)}" + (
                    f"_{gsd_m:g}m" if len({crs for crs, _ in lattices}) < len(lattices) else ""
                )
            drawn = partial(_drawn_parts, shelf, product, crs, gsd_m, disjoint=disjoint)
            keys = _write_mosaic(store, scratch, CRS(crs), name, drawn, product, most_sources)
            if not keys:
                continue
            made.append(keys[-1])
            if product.name == DENSITY:
                keys.append(f"{FOLDER}/{name}.qml")
                store.put(keys[-1], density_style().encode())
            written.update(keys)
    for key in [entry.key for entry in store.entries(f"{FOLDER}/")]:
        if key not in written:
            store.delete(key)
    return made


def _write_mosaic(
    store: Store,
    scratch: Path,
    crs: CRS,
    name: str,
    drawn: Callable[[], Iterable[_Drawn]],
    product: Product,
    most_sources: int,
) -> list[str]:
    """Write one mosaic of what is drawn over each other; its key after those of its squares."""
    number, sides, gsd_m = 0, 0.0, 0.0
    for one in drawn():
        number, sides, gsd_m = number + 1, sides + math.sqrt(one.part.height * one.part.width), one.pixel_m
    if not number:
        return []
    grid, keys, key = Grid(crs, gsd_m), [], f"{FOLDER}/{name}.vrt"
    whole = _VirtualRaster(scratch / "whole.txt", product)
    if number <= most_sources:
        for one in drawn():
            whole.add(one.source, one.part)
    else:
        # As many jobs to a square as squares to the mosaic of a million jobs; those at its borders come on top.
        side = max(math.isqrt(most_sources // 2), 1) * math.ceil(sides / number)
        squares: dict[tuple[int, int], _VirtualRaster] = {}
        for one in drawn():
            for window in one.part.blocks(side):
                place = (window.row // side, window.col // side)
                if place not in squares:
                    squares[place] = _VirtualRaster(scratch / f"{place[0]}_{place[1]}.txt", product)
                squares[place].add(one.source, window)
        for (row, col), square in sorted(squares.items()):
            keys.append(f"{FOLDER}/{name}/{row}_{col}.vrt")
            square.write(store, keys[-1], grid, "../../")
            whole.add(Source(f"{name}/{row}_{col}.vrt", square.extent, product.type), square.extent)
    whole.write(store, key, grid, "" if keys else "../")
    return [*keys, key]


class _VirtualRaster:
    """A virtual raster whose sources come one by one and wait in a file, because its extent is known at the end."""

    def __init__(self, path: Path, product: Product) -> None:
        self._path, self._product, self.extent = path, product, Window(0, 0, 0, 0)
        self._path.write_bytes(b"")

    def add(self, source: Source, part: Window) -> None:
        """Draw a part of a source over those before it."""
        self.extent = part if self.extent.empty else self.extent.union(part)
        windows = [[window.row, window.col, window.height, window.width] for window in (source.window, part)]
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps([source.path, source.type, source.numbers, *windows]) + "\n")

    def write(self, store: Store, key: str, grid: Grid, up: str) -> None:
        """Write the file; `up` leads from where it lies to where its sources' paths begin."""
        product, extent = self._product, self.extent
        root = ET.Element("VRTDataset", rasterXSize=str(extent.width), rasterYSize=str(extent.height))
        epsg = grid.crs.epsg
        ET.SubElement(root, "SRS", dataAxisToSRSAxisMapping="1,2").text = f"EPSG:{epsg}" if epsg else grid.crs.to_wkt()
        left, _, _, top = grid.bounds(extent)
        ET.SubElement(root, "GeoTransform").text = f"{left!r}, {grid.gsd!r}, 0.0, {top!r}, 0.0, {-grid.gsd!r}"
        band = ET.SubElement(root, "VRTRasterBand", dataType=product.type, band="1")
        ET.SubElement(band, "Description").text = product.stem
        ET.SubElement(band, "NoDataValue").text = f"{product.nodata:g}"
        if product.unit:
            ET.SubElement(band, "UnitType").text = product.unit
        end = "</VRTRasterBand></VRTDataset>"
        made = self._path.with_suffix(".vrt")
        with self._path.open(encoding="utf-8") as lines, made.open("w", encoding="utf-8") as file:
            file.write(ET.tostring(root, encoding="unicode").removesuffix(end))
            for line in lines:
                path, type_, numbers, whole, part = json.loads(line)
                source = Source(up + path, Window(*whole), type_, tuple(numbers))
                file.write("\n" + ET.tostring(_drawn(source, Window(*part), extent, product), encoding="unicode"))
            file.write("\n" + end)
        store.upload(key, made)


def _drawn(source: Source, part: Window, extent: Window, product: Product) -> ET.Element:
    """A source's element: https://gdal.org/en/stable/drivers/raster/vrt.html, "VRTRasterBand"."""
    element = ET.Element("ComplexSource")
    ET.SubElement(element, "SourceFilename", relativeToVRT="1").text = source.path
    ET.SubElement(element, "SourceBand").text = "1"
    width, height = str(source.window.width), str(source.window.height)
    # So that GDAL need not open every source to open the mosaic.
    ET.SubElement(
        element, "SourceProperties", RasterXSize=width, RasterYSize=height, DataType=source.type,
        BlockXSize=str(BLOCK), BlockYSize=str(BLOCK),
    )  # fmt: skip
    for name, outer in (("SrcRect", source.window), ("DstRect", extent)):
        rows, cols = part.slices_in(outer)
        offset = {"xOff": str(cols.start), "yOff": str(rows.start)}
        ET.SubElement(element, name, offset | {"xSize": str(part.width), "ySize": str(part.height)})
    ET.SubElement(element, "NODATA").text = f"{product.nodata:g}"
    if source.numbers:
        pairs = [(0, 0), *enumerate(source.numbers, start=1)]
        ET.SubElement(element, "LUT").text = ",".join(f"{value}:{number}" for value, number in pairs)
    return element


class _Drawn(NamedTuple):
    """A part of a source in a mosaic of so many metres a pixel."""

    pixel_m: float
    source: Source
    part: Window


def _drawn_parts(shelf: Shelf, product: Product, crs: str, gsd_m: float, *, disjoint: bool) -> Iterator[_Drawn]:
    """The maps of the jobs on a lattice, the last job first; where jobs may overlap, again what is farther in."""
    for depth in (0,) if disjoint else (0, 1, 2):
        for mapped in shelf.jobs(crs, gsd_m, last_first=True):
            if product.name in mapped.hashes:
                yield from _at_depth(shelf, mapped, product, depth)


def _at_depth(shelf: Shelf, mapped: Mapped, product: Product, depth: int) -> Iterator[_Drawn]:
    path, window = f"{mapped.key}/{product.name}", Window(*mapped.window)
    if product.name == DENSITY:
        cell, _, left, _, _, top, height, width = mapped.density
        source = Source(path, Window(round(-top / cell), round(left / cell), int(height), int(width)), "Float32")
        tall, wide = (_coarse(part, cell / mapped.gsd_m) for part in (mapped.tall, mapped.wide))
    else:
        cell, tall, wide = mapped.gsd_m, mapped.tall, mapped.wide
        source = Source(path, window, product.type)
    if product.name == SCENE:
        numbers = shelf.scene_numbers(id_ for id_, _, _ in mapped.scenes)
        source = Source(path, window, "UInt16", tuple(numbers))
    for part in ((source.window,), (tall, wide), (tall.intersection(wide),))[depth]:
        if not part.empty:
            yield _Drawn(cell, source, part)


def _coarse(window: Window, pixels: float) -> Window:
    """The cells of so many pixels along a side that lie wholly in a window."""
    (row, row_stop), (col, col_stop) = (
        (math.ceil(first / pixels - _ON_EDGE), math.floor(stop / pixels + _ON_EDGE))
        for first, stop in ((window.row, window.row_stop), (window.col, window.col_stop))
    )
    return Window(row, col, max(row_stop - row, 0), max(col_stop - col, 0))


def _scenes_csv(shelf: Shelf) -> bytes:
    """What the values of the mosaic of scenes are."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["value", "scene", "first_day", "last_day"])
    table.writerows(shelf.scenes())
    return text.getvalue().encode()


def _short(crs: str) -> str:
    epsg = CRS(crs).epsg
    return f"epsg{epsg}" if epsg else f"crs{digest(crs)[:8]}"
