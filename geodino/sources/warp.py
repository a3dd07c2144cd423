"""One scene on the run's grid, as the VRT document from which GDAL warps any part of it, always to the same pixels.

The pixels that a part looks at are given to GDAL as a patch in memory, and lie in the document where they lie in the
file: it is the warp of the whole, of which only a part is known. Nothing in the document depends on the AOI or on who
asks. Written by hand rather than through `rasterio.vrt.WarpedVRT`, because that

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

import numpy as np
from affine import Affine
from odc.geo.crs import CRS
from pyproj import CRS as ProjCRS
from pyproj import Transformer

from geodino.errors import SourceError
from geodino.grid import Grid, Window
from geodino.settings import RESAMPLINGS
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
# Side of what is warped at once, px.
TILE = 256
# How far GDAL's widest kernel (Lanczos) reaches, px of the coarser side; and slack, as PROJ may be asked in two ways.
_KERNEL = 3
_SPARE = 32
# Points a side from which the source of a tile is found.
_POINTS = 17
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


@dataclass(frozen=True)
class Warp:
    """The one warp of a scene's whole footprint onto the grid; any part of it is always the same pixels.

    Attributes
    ----------
    window
        The footprint on the grid.
    level
        What of the scene is warped.
    shift
        (rows, columns) to add to a pixel of the level for its place on the grid, where it lies on the grid already;
        then nothing is resampled. None elsewhere.
    """

    window: Window
    level: Level
    shift: tuple[int, int] | None
    _before: str
    _after: str
    _dtype: str
    _has_alpha: bool

    @classmethod
    def of(cls, scene: Scene, level: Level, grid: Grid, resampling: str) -> Warp:
        """The warp of a scene; SourceError where it cannot be projected onto the grid.

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
        # GDAL would take the largest number of the band's type for full, and of a float 255.
        full = f'<Option name="SRC_ALPHA_MAX">{scene.alpha.full!r}</Option>' if scene.alpha else ""
        nodata = "" if scene.nodata is None else f"<SrcNoDataReal>{scene.nodata!r}</SrcNoDataReal>"
        mapping = "".join(f'<BandMapping src="{place}" dst="{place}">{nodata}</BandMapping>' for place in (1, 2, 3))
        alpha = f"<SrcAlphaBand>{ALPHA}</SrcAlphaBand>" if scene.alpha else ""
        before = (
            f'<VRTDataset rasterXSize="{window.width}" rasterYSize="{window.height}" subClass="VRTWarpedDataset">'
            f"<SRS>{_wkt(grid.crs)}</SRS><GeoTransform>{_numbers(target)}</GeoTransform>{bands}"
            f"<BlockXSize>{min(TILE, window.width)}</BlockXSize><BlockYSize>{min(TILE, window.height)}</BlockYSize>"
            f"<GDALWarpOptions><WarpMemoryLimit>{64 * 1024 * 1024}</WarpMemoryLimit>"
            f"<ResampleAlg>{_GDAL_RESAMPLING[resampling]}</ResampleAlg><WorkingDataType>Float32</WorkingDataType>"
            '<Option name="INIT_DEST">0</Option><Option name="UNIFIED_SRC_NODATA">YES</Option>'
            f'<Option name="XSCALE">{xscale!r}</Option><Option name="YSCALE">{yscale!r}</Option>{full}'
        )
        after = (
            f"<Transformer>{_transformer(scene, level, target, grid)}</Transformer>"
            f"<BandList>{mapping}</BandList>{alpha}<DstAlphaBand>{ALPHA}</DstAlphaBand>"
            "</GDALWarpOptions></VRTDataset>"
        )
        shift = _shift(level, grid) if scene.crs == grid.crs else None
        return cls(window, level, shift, before, after, _GDAL_TYPE[scene.dtype], scene.alpha is not None)

    def document(self, patch: str, at: Window, *, masked: bool) -> str:
        """The warped VRT: float32 red, green, blue and alpha over `window`, of which the part below `patch` is known.

        Parameters
        ----------
        patch
            GDAL's name of a raster of red, green, blue, alpha where the scene has it, and a mask where `masked`.
        at
            Where it lies in the level.
        """
        height, width = self.level.shape
        colours = 4 if self._has_alpha else 3

        def band(number: int, attributes: str, dtype: str) -> str:
            return (
                f'<VRTRasterBand dataType="{dtype}"{attributes}><SimpleSource>'
                f'<SourceFilename relativeToVRT="0">{escape(patch)}</SourceFilename><SourceBand>{number}</SourceBand>'
                f'<SrcRect xOff="0" yOff="0" xSize="{at.width}" ySize="{at.height}"/>'
                f'<DstRect xOff="{at.col}" yOff="{at.row}" xSize="{at.width}" ySize="{at.height}"/>'
                "</SimpleSource></VRTRasterBand>"
            )

        bands = "".join(band(number, f' band="{number}"', self._dtype) for number in range(1, colours + 1))
        mask = f"<MaskBand>{band(colours + 1, '', 'Byte')}</MaskBand>" if masked else ""
        inner = f'<VRTDataset rasterXSize="{width}" rasterYSize="{height}">{bands}{mask}</VRTDataset>'
        source = f'<SourceDataset relativeToVRT="0">{escape(inner)}</SourceDataset>'
        return f"{self._before}{source}{self._after}"


def source_window(scene: Scene, level: Level, grid: Grid, part: Window, move: Transformer | None) -> Window:
    """The pixels of a level that the warp of a part of the grid looks at, and some more; empty where there are none.

    Parameters
    ----------
    move
        From the grid's CRS to the scene's; None where they are one.
    """
    across = np.linspace(part.col, part.col_stop, _POINTS) * grid.gsd
    down = -np.linspace(part.row, part.row_stop, _POINTS) * grid.gsd
    x, y = (values.ravel() for values in np.meshgrid(across, down))
    if move is not None:
        x, y = move.transform(x, y)
    there = np.isfinite(x) & np.isfinite(y)
    if not there.any():
        return Window(0, 0, 0, 0)
    back = ~level.transform
    cols = back.a * x[there] + back.b * y[there] + back.c
    rows = back.d * x[there] + back.e * y[there] + back.f
    steps = (max(np.ptp(rows), np.ptp(cols)) / max(min(part.shape), 1), 1.0)
    margin = math.ceil(_KERNEL * max(steps)) + _SPARE
    first_row, first_col = math.floor(rows.min()) - margin, math.floor(cols.min()) - margin
    last_row, last_col = math.ceil(rows.max()) + margin, math.ceil(cols.max()) + margin
    wide = Window(first_row, first_col, last_row - first_row, last_col - first_col)
    return wide.intersection(Window(0, 0, *level.shape))


def _shift(level: Level, grid: Grid) -> tuple[int, int] | None:
    moved = _in_grid_pixels(level, grid)
    if (moved.a, moved.b, moved.d, moved.e) != (1.0, 0.0, 0.0, 1.0):
        return None
    if not (moved.c.is_integer() and moved.f.is_integer()):
        return None
    return int(moved.f), int(moved.c)


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
