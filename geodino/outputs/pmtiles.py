"""Trees as PMTiles, for a map in a browser: one file that any web server serves, written by GDAL's own driver.

Tiles are for looking. GDAL (https://gdal.org/drivers/vector/pmtiles.html) moves points onto the tile's lattice, 0.15 m
at the finest zoom on the equator, and leaves some out of coarse tiles that hold very many: count trees.parquet.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pyogrio
from odc.geo.crs import CRS
from pyproj import CRS as ProjCRS

from geodino.errors import OutputError
from geodino.outputs.geopackage import PYOGRIO_ERRORS, rows_of

# Web Mercator tiles: at zoom 16 a tile is 600 m wide at the equator, in 4096 steps.
MIN_ZOOM, MAX_ZOOM = 8, 16


def write_pmtiles(parquet: Path, target: Path, layer: str, *, crs: CRS) -> None:
    """Write the points of a GeoParquet file as vector tiles of zoom 8 to 16.

    Parameters
    ----------
    parquet
        Its column `geometry` becomes the tiles' points, all others but `bbox` their attributes.
    target
        Must not exist; its name must end in .pmtiles.

    Raises
    ------
    OutputError
        GDAL cannot write it.
    """
    try:
        with pq.ParquetFile(parquet) as source:
            pyogrio.write_arrow(
                rows_of(source),
                target,
                layer=layer,
                driver="PMTiles",
                geometry_name="geometry",
                geometry_type="Point",
                crs=ProjCRS.from_user_input(str(crs)).to_wkt(),
                dataset_options={"MINZOOM": str(MIN_ZOOM), "MAXZOOM": str(MAX_ZOOM)},
            )
    except (OSError, pa.ArrowException, *PYOGRIO_ERRORS) as error:
        raise OutputError(f"cannot write {target}: {error}: is the disk full?") from error
