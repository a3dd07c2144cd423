"""Levels of scattered rasters: those of their blocks that hold something, and overviews made of these.

GDAL's COG driver averages, compresses and writes every block. For an AOI of 50 squares of 120 m, 30 km apart, that was
five minutes and 3 GiB for 80 blocks of 9,600 (2026-11). So the levels of such a raster are written here first, each a
plain GeoTIFF in which empty blocks take no space, and GDAL copies what is there (SPARSE_OK). GDAL and libtiff read
blocks that are not there as nodata. Some other readers refuse them, so rasters that are mostly full keep all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

import numpy as np
import numpy.typing as npt
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio.io import DatasetReader
from rasterio.windows import Window as RasterioWindow

from geodino.grid import Window
from geodino.outputs.stage import Stage, open_geotiff, rasterio_crs

BLOCK = 512

# A raster is scattered from as many blocks on, 14 km square at 0.6 m, where no more than this share may hold something.
_LEAST_BLOCKS = 2048
_MOST_HELD = 0.25

Values = npt.NDArray[np.generic]


@dataclass(frozen=True)
class Kind:
    """What the pixels of a raster are.

    Attributes
    ----------
    dtype, nodata
        Of all levels.
    halve
        From a block of even sides to one of half the sides.
    """

    dtype: str
    nodata: float
    halve: Callable[[Values], Values]


@dataclass(frozen=True)
class Source:
    """Where GDAL's description of a raster takes its pixels from: a band of a file, from this row and column on."""

    path: Path
    band: int = 1
    row: int = 0
    col: int = 0


@dataclass(frozen=True)
class Said:
    """What a raster says of itself: its band's name and unit, tags of the file, and tags of the band."""

    description: str
    unit: str
    tags: Mapping[str, str]
    band_tags: Mapping[str, str]


def blocks_of(shape: tuple[int, int]) -> list[Window]:
    """All blocks of a raster of that shape, in its own pixels, row by row."""
    return list(Window(0, 0, *shape).blocks(BLOCK))


def scattered(stage: Stage, clip: Window) -> list[Window] | None:
    """The blocks of the clip that may hold something, in the clip's own pixels; None where they are not few of many."""
    rows, cols = (math.ceil(side / BLOCK) for side in clip.shape)
    # One column of blocks is of smaller ones, see `cog.pyramid`.
    if rows * cols < _LEAST_BLOCKS or cols == 1:
        return None
    whole = Window(0, 0, *clip.shape)
    found: set[tuple[int, int]] = set()
    for held in stage.held:
        here = Window(held.row - clip.row, held.col - clip.col, *held.shape).intersection(whole)
        if not here.empty:
            found.update((block.row // BLOCK * BLOCK, block.col // BLOCK * BLOCK) for block in here.blocks(BLOCK))
        if len(found) > _MOST_HELD * rows * cols:
            return None
    return [Window(row, col, BLOCK, BLOCK).intersection(whole) for row, col in sorted(found)]


def write_levels(
    first: Path,
    geobox: GeoBox,
    kind: Kind,
    *,
    blocks: Sequence[Window],
    read: Callable[[Window], Values],
    overviews: int,
) -> list[Path]:
    """Write a raster and overviews of it as plain GeoTIFFs; memory is that of a few blocks.

    Parameters
    ----------
    first
        Path of the raster; those of the overviews have numbers behind it, and the caller removes all.
    blocks
        Those that may hold something, in the raster's pixels.
    read
        Gives the pixels of a block.
    """
    paths = [first]
    shape = (geobox.shape[0], geobox.shape[1])
    held = _write(first, geobox, 0, kind, shape, blocks, read)
    for level in range(1, overviews + 1):
        finer, shape = shape, (math.ceil(shape[0] / 2), math.ceil(shape[1] / 2))
        paths.append(first.with_name(f"{first.name}.{level}"))
        whole = Window(0, 0, *shape)
        places = sorted({(block.row // (2 * BLOCK), block.col // (2 * BLOCK)) for block in held})
        blocks = [Window(r * BLOCK, c * BLOCK, BLOCK, BLOCK).intersection(whole) for r, c in places]
        with open_geotiff(paths[-2]) as raster:

            def halved(block: Window, raster: DatasetReader = raster, finer: tuple[int, int] = finer) -> Values:
                below = Window(2 * block.row, 2 * block.col, 2 * block.height, 2 * block.width)
                values = np.full(below.shape, kind.nodata, kind.dtype)
                inside = below.intersection(Window(0, 0, *finer))
                values[: inside.height, : inside.width] = raster.read(1, window=as_rasterio(inside))
                return kind.halve(values)

            held = _write(paths[-1], geobox, level, kind, shape, blocks, halved)
    return paths


def describe(source: Source, geobox: GeoBox, kind: Kind, said: Said, *, overviews: Sequence[Path] = ()) -> str:
    """GDAL's description (VRT) of a band with all that a COG of it is to say; it reads the source block by block."""
    height, width = geobox.shape
    size = f'xSize="{width}" ySize="{height}"'
    coarser = "".join(f"<Overview>{_named(path)}<SourceBand>1</SourceBand></Overview>\n" for path in overviews)
    unit = f"<UnitType>{escape(said.unit)}</UnitType>\n" if said.unit else ""
    return f"""<VRTDataset rasterXSize="{width}" rasterYSize="{height}">
<SRS>{escape(rasterio_crs(geobox).to_wkt())}</SRS>
<GeoTransform>{", ".join(repr(float(number)) for number in geobox.affine.to_gdal())}</GeoTransform>
{_metadata(said.tags)}
<VRTRasterBand dataType="{_GDAL_NAMES[kind.dtype]}" band="1">
<Description>{escape(said.description)}</Description>
{unit}<NoDataValue>{kind.nodata:g}</NoDataValue>
{_metadata(said.band_tags)}
<SimpleSource>
{_named(source.path)}
<SourceBand>{source.band}</SourceBand>
<SrcRect xOff="{source.col}" yOff="{source.row}" {size}/>
<DstRect xOff="0" yOff="0" {size}/>
</SimpleSource>
{coarser}</VRTRasterBand>
</VRTDataset>"""


def stored_blocks(raster: DatasetReader) -> set[tuple[int, int]]:
    """Row and column of the first pixel of each block that is in a GeoTIFF."""
    (height, width) = raster.block_shapes[0]
    rows, cols = math.ceil(raster.height / height), math.ceil(raster.width / width)
    return {
        (row * height, col * width)
        for row in range(rows)
        for col in range(cols)
        if raster.get_tag_item(f"BLOCK_OFFSET_{col}_{row}", "TIFF", bidx=1)
    }


def _write(
    path: Path,
    geobox: GeoBox,
    level: int,
    kind: Kind,
    shape: tuple[int, int],
    blocks: Sequence[Window],
    read: Callable[[Window], Values],
) -> list[Window]:
    """Write a level; the blocks that hold something."""
    held = []
    a, b, c, d, e, f = geobox.affine[:6]
    coarser = Affine(a * 2**level, b * 2**level, c, d * 2**level, e * 2**level, f)
    with rasterio.open(
        path, "w", driver="GTiff", dtype=kind.dtype, count=1, height=shape[0], width=shape[1], nodata=kind.nodata,
        crs=rasterio_crs(geobox), transform=coarser, tiled=True, blockxsize=BLOCK, blockysize=BLOCK, compress="ZSTD",
        zstd_level=1, bigtiff="IF_SAFER", sparse_ok=True,
    ) as raster:  # fmt: skip
        for block in blocks:
            values = read(block)
            if (values != kind.nodata).any():
                raster.write(values, 1, window=as_rasterio(block))
                held.append(block)
    return held


def as_rasterio(window: Window) -> RasterioWindow:
    """A window as rasterio's."""
    return RasterioWindow(window.col, window.row, window.width, window.height)


def _named(path: Path) -> str:
    return f'<SourceFilename relativeToVRT="0">{escape(str(path.resolve()))}</SourceFilename>'


def _metadata(entries: Mapping[str, str]) -> str:
    lines = (f"<MDI key={quoteattr(key)}>{escape(value)}</MDI>" for key, value in entries.items())
    return f"<Metadata>{''.join(lines)}</Metadata>"


_GDAL_NAMES = {"float32": "Float32", "uint16": "UInt16"}
