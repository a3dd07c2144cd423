"""One scene on the run's grid, as the VRT document from which GDAL warps any part of it, always to the same pixels.

The document covers the scene's whole footprint, so nothing in it depends on the AOI or on who asks. Written by hand
rather than through `rasterio.vrt.WarpedVRT`, because that

- cannot do without the approximate transformer (tolerance=0 fails in rasterio 1.4.4), whose error depends on where
  a request starts;
- warps every band of the file, and takes a fourth band that GDAL guessed to be alpha at its word;
- cannot lay bands of several files on top of each other.

Format: https://gdal.org/en/stable/drivers/raster/vrt.html, "Warped VRT", and GDAL's data/gdalvrt.xsd.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import MappingProxyType
from xml.sax.saxutils import escape

from affine import Affine
from odc.geo.crs import CRS
from pyproj import CRS as ProjCRS
from pyproj import Transformer

from geodino.errors import SourceError
from geodino.grid import Grid, Window
from geodino.settings import RESAMPLINGS
from geodino.sources.raster import gdal_path
from geodino.sources.scene import Scene, through

# GDAL writes `cubic_spline` as CubicSpline; one has a name of its own.
_GDAL_RESAMPLING = MappingProxyType(
    {name: name.title().replace("_", "") for name in RESAMPLINGS} | {"nearest": "NearestNeighbour"}
)
# The fourth band of a warped scene: how much of a pixel comes from valid pixels, 0..255.
ALPHA = 4
ALPHA_VALID = 128

_GDAL_TYPE = MappingProxyType(
    {
        "uint8": "Byte",
        "int8": "Int8",
        "uint16": "UInt16",
        "int16": "Int16",
        "uint32": "UInt32",
        "int32": "Int32",
        "float32": "Float32",
        "float64": "Float64",
    }
)
# Warped blocks are kept in GDAL's cache at this side; requests that are larger bypass it.
_BLOCK = 256
# Pixels of slack when an overview is chosen: 0.6000001 m is not coarser than 0.6 m.
_SLACK = 1.001
# Pixels; the same slack as in Grid.window_over.
_ON_GRID = 1e-3


@dataclass(frozen=True)
class Level:
    """The pixels that are warped: the full raster (overview None) or one of its overviews, 0-based."""

    overview: int | None
    transform: Affine
    shape: tuple[int, int]


def pick_overview(scene: Scene, gsds: list[float], gsd: float) -> int | None:
    """The coarsest overview that is not coarser than `gsd`, or None for the full raster.

    Coarse enough to spare reading, fine enough to keep all detail that the grid can show.

    Parameters
    ----------
    gsds
        Metres a pixel of each overview.
    """
    fit = [level for level, metres in enumerate(gsds) if scene.gsd < metres <= gsd * _SLACK]
    return max(fit, key=lambda level: gsds[level], default=None)


def footprint_window(scene: Scene, grid: Grid) -> Window:
    """The smallest window of the grid that holds the scene's whole footprint."""
    return grid.window_over(scene.footprint_in(grid.crs).bounds)


def warp_document(scene: Scene, level: Level, hrefs: tuple[str, str, str], grid: Grid, *, resampling: str) -> str:
    """The warped VRT of a scene: float32 red, green, blue and alpha over `footprint_window`.

    Parameters
    ----------
    hrefs
        Of red, green and blue, signed where need be.

    Notes
    -----
    Nodata counts where all three bands have it (UNIFIED_SRC_NODATA): a dark pixel with one band at 0 is no hole.
    XSCALE and YSCALE are given, because GDAL otherwise derives the kernel's width from each request.
    """
    window = footprint_window(scene, grid)
    target = Affine(grid.gsd, 0.0, window.col * grid.gsd, 0.0, -grid.gsd, -window.row * grid.gsd)
    xscale, yscale = _kernel_scale(scene, level, grid)
    bands = "".join(
        f'<VRTRasterBand dataType="Float32" band="{number}" subClass="VRTWarpedRasterBand">'
        f"{'<ColorInterp>Alpha</ColorInterp>' if number == ALPHA else ''}</VRTRasterBand>"
        for number in (1, 2, 3, ALPHA)
    )
    source, numbers, alpha = _source(scene, level, hrefs)
    # GDAL would take the largest number of the band's type for full, and of a float 255.
    full = f'<Option name="SRC_ALPHA_MAX">{scene.alpha.full!r}</Option>' if scene.alpha else ""
    nodata = "" if scene.nodata is None else f"<SrcNoDataReal>{scene.nodata!r}</SrcNoDataReal>"
    mapping = "".join(
        f'<BandMapping src="{number}" dst="{place}">{nodata}</BandMapping>' for place, number in enumerate(numbers, 1)
    )
    return (
        f'<VRTDataset rasterXSize="{window.width}" rasterYSize="{window.height}" subClass="VRTWarpedDataset">'
        f"<SRS>{_wkt(grid.crs)}</SRS><GeoTransform>{_numbers(target)}</GeoTransform>{bands}"
        f"<BlockXSize>{min(_BLOCK, window.width)}</BlockXSize><BlockYSize>{min(_BLOCK, window.height)}</BlockYSize>"
        f"<GDALWarpOptions><WarpMemoryLimit>{64 * 1024 * 1024}</WarpMemoryLimit>"
        f"<ResampleAlg>{_GDAL_RESAMPLING[resampling]}</ResampleAlg><WorkingDataType>Float32</WorkingDataType>"
        '<Option name="INIT_DEST">0</Option><Option name="UNIFIED_SRC_NODATA">YES</Option>'
        f'<Option name="XSCALE">{xscale!r}</Option><Option name="YSCALE">{yscale!r}</Option>'
        f"{full}{source}<Transformer>{_transformer(scene, level, target, grid)}</Transformer>"
        f"<BandList>{mapping}</BandList>{alpha}<DstAlphaBand>{ALPHA}</DstAlphaBand>"
        "</GDALWarpOptions></VRTDataset>"
    )


def _source(scene: Scene, level: Level, hrefs: tuple[str, str, str]) -> tuple[str, list[int], str]:
    """The <SourceDataset> element, the bands' numbers in it, and the <SrcAlphaBand> element."""
    option = "" if level.overview is None else f'<OOI key="OVERVIEW_LEVEL">{level.overview}</OOI>'
    if len({band.href for band in scene.bands}) == 1:
        options = f"<OpenOptions>{option}</OpenOptions>" if option else ""
        alpha = f"<SrcAlphaBand>{scene.alpha.index}</SrcAlphaBand>" if scene.alpha else ""
        name = escape(gdal_path(hrefs[0]))
        source = f'<SourceDataset relativeToVRT="0">{name}</SourceDataset>{options}'
        return source, [band.index for band in scene.bands], alpha
    height, width = level.shape
    stacked = "".join(
        f'<VRTRasterBand dataType="{_GDAL_TYPE[scene.dtype]}" band="{place}"><SimpleSource>'
        f'<SourceFilename relativeToVRT="0">{escape(gdal_path(href))}</SourceFilename>'
        f"{f'<OpenOptions>{option}</OpenOptions>' if option else ''}<SourceBand>{band.index}</SourceBand>"
        "</SimpleSource></VRTRasterBand>"
        for place, (band, href) in enumerate(zip(scene.bands, hrefs, strict=True), 1)
    )
    inner = f'<VRTDataset rasterXSize="{width}" rasterYSize="{height}">{stacked}</VRTDataset>'
    return f'<SourceDataset relativeToVRT="0">{escape(inner)}</SourceDataset>', [1, 2, 3], ""


def _transformer(scene: Scene, level: Level, target: Affine, grid: Grid) -> str:
    """The exact transformer, grid pixel to CRS to CRS to source pixel.

    In the grid's own CRS it counts in grid pixels instead of metres, where a scene on the grid lies at whole numbers
    and keeps its pixels to the last bit: 433880.4 / 0.6 is no whole number in floating point.
    """
    if scene.crs == grid.crs:
        window = footprint_window(scene, grid)
        source = _in_grid_pixels(level, grid)
        return _image_transformer(source, Affine(1.0, 0.0, window.col, 0.0, 1.0, window.row), "")
    reproject = (
        "<ReprojectTransformer><ReprojectionTransformer>"
        f"<SourceSRS>{_wkt(scene.crs)}</SourceSRS><TargetSRS>{_wkt(grid.crs)}</TargetSRS>"
        "</ReprojectionTransformer></ReprojectTransformer>"
    )
    return _image_transformer(level.transform, target, reproject)


def _image_transformer(source: Affine, target: Affine, reproject: str) -> str:
    return (
        "<GenImgProjTransformer>"
        f"<SrcGeoTransform>{_numbers(source)}</SrcGeoTransform>"
        f"<SrcInvGeoTransform>{_numbers(~source)}</SrcInvGeoTransform>"
        f"<DstGeoTransform>{_numbers(target)}</DstGeoTransform>"
        f"<DstInvGeoTransform>{_numbers(~target)}</DstInvGeoTransform>{reproject}</GenImgProjTransformer>"
    )


def _in_grid_pixels(level: Level, grid: Grid) -> Affine:
    """From source (col, row) to grid (col, row), whole numbers where that moves no pixel by a thousandth."""
    t, far = level.transform, max(level.shape)

    def whole(value: float, reach: int) -> float:
        return float(round(value)) if abs(value - round(value)) * reach < _ON_GRID else value

    return Affine(
        whole(t.a / grid.gsd, far), whole(t.b / grid.gsd, far), whole(t.c / grid.gsd, 1),
        whole(-t.d / grid.gsd, far), whole(-t.e / grid.gsd, far), whole(-t.f / grid.gsd, 1),
    )  # fmt: skip


def _kernel_scale(scene: Scene, level: Level, grid: Grid) -> tuple[float, float]:
    """Grid pixels per source pixel along the source's columns and rows, at the scene's centre.

    Under 1 the kernel widens and averages. In a turned or a geographic raster the two axes differ.
    """
    height, width = level.shape
    x, y = through(level.transform, width / 2, height / 2)
    forth = Transformer.from_crs(ProjCRS(str(scene.crs)), ProjCRS(str(grid.crs)), always_xy=True).transform
    back = Transformer.from_crs(ProjCRS(str(grid.crs)), ProjCRS(str(scene.crs)), always_xy=True).transform
    centre = forth(x, y)
    corners = [(centre[0] + dx * grid.gsd, centre[1] + dy * grid.gsd) for dx, dy in ((0, 0), (1, 0), (0, 1))]
    (col, row), (col_x, row_x), (col_y, row_y) = (through(~level.transform, *back(*corner)) for corner in corners)
    cols = math.hypot(col_x - col, col_y - col)
    rows = math.hypot(row_x - row, row_y - row)
    if not (math.isfinite(cols) and math.isfinite(rows) and cols > 0 and rows > 0):
        raise SourceError(f"scene {scene.id} cannot be projected from {scene.crs} to {grid.crs}")
    return 1 / cols, 1 / rows


def _wkt(crs: CRS) -> str:
    return escape(ProjCRS(str(crs)).to_wkt())


def _numbers(transform: Affine) -> str:
    return ",".join(repr(float(value)) for value in transform.to_gdal())
