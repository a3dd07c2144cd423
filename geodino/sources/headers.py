"""What a raster's header may claim before anything is decoded, as a scene is data and no program.

GDAL follows the names of other files that a GeoTIFF or a file beside it holds, and takes the memory that a header asks
for. Tried with GDAL 3.10.3 on 2026-11: a tag OVERVIEW_FILE made it call any server or open any local raster, and a file
of 328 bytes took 6 GiB.
"""

from __future__ import annotations

import math

import numpy as np
import rasterio
from rasterio.enums import Interleaving

from geodino.errors import SourceError

# A block is decoded whole, with all its bands where these lie pixel by pixel, in each of some eight reader threads.
# Blocks of COGs are of 256 to 1024 px, so that 256 MiB leave room for a strip of 60,000 px by 1,000 rows.
MAX_BLOCK_BYTES = 256 * 2**20
# Hyperspectral imagery has some hundreds; 65,535 bands took 14 s to describe.
MAX_BANDS = 1024


def check_claims(raster: rasterio.DatasetReader, name: str) -> None:
    """Refuses a raster that names other files or asks for more memory than imagery needs.

    Parameters
    ----------
    raster
        Just opened: once its overviews are counted, GDAL has opened whatever it names.
    name
        What messages call it.

    Raises
    ------
    SourceError
        Says which, and what to do.
    """
    if raster.tags(ns="OVERVIEWS").get("OVERVIEW_FILE"):
        raise SourceError(
            f"{name} names a file of its own for overviews, which may lie anywhere and is not opened; make a COG of it "
            "without: gdal_translate -of COG -nomd IN OUT"
        )
    if raster.count > MAX_BANDS:
        raise SourceError(f"{name} has {raster.count} bands, over {MAX_BANDS}; write one with red, green and blue only")
    together = raster.count if raster.interleaving == Interleaving.pixel else 1
    for (height, width), dtype in zip(raster.block_shapes, raster.dtypes, strict=True):
        size = height * width * together * _itemsize(dtype)
        if size > MAX_BLOCK_BYTES:
            raise SourceError(
                f"{name} has blocks of {height} x {width} px, {math.ceil(size / 2**20)} MiB that are decoded at once; "
                "make a COG of it: gdal_translate -of COG IN OUT"
            )


def _itemsize(dtype: str) -> int:
    """Bytes of a number; of GDAL's complex integers, which NumPy has not, those of complex128."""
    return np.dtype(dtype).itemsize if dtype in np.sctypeDict else 16
