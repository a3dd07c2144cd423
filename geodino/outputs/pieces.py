"""A staged raster in pieces: each band of a run writes small GeoTIFFs of its own, and GDAL reads them as one.

They are joined by a VRT and not copied into one file: packing every cell once more takes a twentieth of a run with a
small model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

from odc.geo.geobox import GeoBox

from geodino.grid import Grid, Window
from geodino.outputs.stage import NODATA, STAGE_SUFFIX, StagedRaster, rasterio_crs


@dataclass(frozen=True)
class Layout:
    """What a staged raster is: its grid and cells, its bands, and to what its values are rounded.

    Attributes
    ----------
    block
        Side of a cell, pixels of the grid.
    quantum
        Values are rounded to a multiple of this; None: they are not.
    """

    grid: Grid
    block: int
    names: tuple[str, ...]
    quantum: float | None

    def create(self, path: Path, extent: Window) -> StagedRaster:
        """An empty raster of this kind over an extent of whole cells; errors as for `StagedRaster.create`."""
        return StagedRaster.create(path, self.grid, extent, block=self.block, names=self.names, quantum=self.quantum)


@dataclass(frozen=True)
class Joined:
    """Pieces seen as one raster, `stage.Stage`."""

    path: Path
    geobox: GeoBox
    extent: Window
    held: tuple[Window, ...]
    names: tuple[str, ...]
    quantum: float | None
    size_bytes: int


def join(path: Path, layout: Layout, extent: Window, pieces: Sequence[tuple[Path, Window]]) -> Joined:
    """Describe pieces as one raster over the extent; what no piece covers is nodata.

    Parameters
    ----------
    path
        Ends with STAGE_SUFFIX; the caller removes it.
    """
    assert path.name.endswith(STAGE_SUFFIX), path
    geobox = layout.grid.geobox(extent)
    with path.open("w", encoding="utf-8") as file:
        file.write(f'<VRTDataset rasterXSize="{extent.width}" rasterYSize="{extent.height}">\n')
        file.write(f"<SRS>{escape(rasterio_crs(geobox).to_wkt())}</SRS>\n")
        numbers = ", ".join(repr(float(number)) for number in geobox.affine.to_gdal())
        file.write(f"<GeoTransform>{numbers}</GeoTransform>\n")
        for band, name in enumerate(layout.names, start=1):
            file.write(
                f'<VRTRasterBand dataType="Float32" band="{band}" blockXSize="{layout.block}" '
                f'blockYSize="{layout.block}">\n<Description>{escape(name)}</Description>\n'
                f"<NoDataValue>{NODATA:g}</NoDataValue>\n"
            )
            file.writelines(_source(piece, window, extent, layout, band) for piece, window in pieces)
            file.write("</VRTRasterBand>\n")
        file.write("</VRTDataset>\n")
    size_bytes = sum(piece.stat().st_size for piece, _ in pieces)
    return Joined(path, geobox, extent, tuple(window for _, window in pieces), layout.names, layout.quantum, size_bytes)


def _source(piece: Path, window: Window, extent: Window, layout: Layout, band: int) -> str:
    # With the properties said here GDAL opens a piece when it is read, and not all of them at first.
    size = f'xSize="{window.width}" ySize="{window.height}"'
    return (
        f'<SimpleSource><SourceFilename relativeToVRT="0">{escape(str(piece.resolve()))}</SourceFilename>'
        f"<SourceBand>{band}</SourceBand>"
        f'<SourceProperties RasterXSize="{window.width}" RasterYSize="{window.height}" DataType="Float32" '
        f'BlockXSize="{layout.block}" BlockYSize="{layout.block}"/>'
        f'<SrcRect xOff="0" yOff="0" {size}/>'
        f'<DstRect xOff="{window.col - extent.col}" yOff="{window.row - extent.row}" {size}/></SimpleSource>\n'
    )
