"""One large AOI cut into the cells of a grid, which hang on the CRS's origin and share no pixel.

Edges of cells lie on edges of pixels, and of the cells that trees are counted in where they are, so that what
two neighbours say fits together without a seam (the windows hang on the same origin in every run).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from fractions import Fraction
from math import gcd

import numpy as np
import shapely
from odc.geo.crs import CRS
from pyproj.exceptions import CRSError

from geodino.aoi import AOI, read_aoi
from geodino.batch.jobs import Job
from geodino.errors import ConfigError
from geodino.grid import Grid, is_metric, utm_crs
from geodino.plan import crs_of_most
from geodino.polygons import joined, polygons, wrapped
from geodino.sources import Search, find_scenes

# A million receipts are a million objects to list; beyond, cells are too small to be worth a run each.
MOST_CELLS = 1_000_000
# Of latitude, on a sphere: how large the middle is that is asked for imagery does not matter to the metre.
METRES_A_DEGREE = 111_320
_LENGTH = re.compile(r"(\d+(?:\.\d+)?)\s*(km|m)")


def read_side(text: str) -> float:
    """Metres of such as `10km` or `500m`. ConfigError for anything else."""
    found = _LENGTH.fullmatch(text.strip().lower())
    side_m = float(found[1]) * (1000 if found[2] == "km" else 1) if found else 0.0
    if not side_m:
        raise ConfigError(f"--grid {text}: give the side of a cell with its unit, such as 10km or 500m")
    return side_m


def cell_side(side_m: float, gsd_m: float, coarse_m: float | None) -> int:
    """Pixels along a cell's side: the nearest to `side_m` that is whole pixels and whole cells of `coarse_m`.

    Parameters
    ----------
    coarse_m
        The side of what pixels are counted in, such as cells of tree density; one that a seam cuts is counted by
        halves, which no mosaic puts together again. None: nothing is.

    Raises
    ------
    ConfigError
        The cell is smaller than a hundred pixels.
    """
    if side_m < 100 * gsd_m:
        raise ConfigError(f"cells of {side_m:g} m are under 100 pixels of {gsd_m:g} m; give a larger --grid")
    if coarse_m is None:
        return round(side_m / gsd_m)
    pixel, coarse = (Fraction(str(length)) for length in (gsd_m, coarse_m))
    shared = Fraction(
        pixel.numerator * coarse.numerator // gcd(pixel.numerator, coarse.numerator),
        gcd(pixel.denominator, coarse.denominator),
    )
    return int(max(round(Fraction(str(side_m)) / shared), 1) * shared / pixel)


def imagery_crs(aoi: AOI, side_m: float, sources: Sequence[str], search: Search) -> CRS | None:
    """The CRS of most scenes over the AOI, or over one cell's worth in its middle where it is larger; None: of none.

    To ask for all scenes of a large AOI would open thousands of files.

    Raises
    ------
    SourceError, ReadError, ConfigError
        As a single run's.
    """
    point = max(shapely.get_parts(aoi.lonlat), key=lambda part: part.area).representative_point()
    tall = side_m / METRES_A_DEGREE
    wide = tall / math.cos(math.radians(point.y))
    middle = shapely.box(point.x - wide / 2, point.y - tall / 2, point.x + wide / 2, point.y + tall / 2)
    within = joined(polygons(shapely.intersection(aoi.lonlat, middle)))
    scenes = find_scenes(sources, aoi=read_aoi(shapely.to_wkt(within, rounding_precision=-1)), search=search).scenes
    return crs_of_most(scenes) if scenes else None


def grid_of(aoi: AOI, crs: str | None, gsd_m: float, imagery: CRS | None = None) -> Grid:
    """The pixels that all cells share: in the CRS that is asked for, else the imagery's, else the AOI's UTM zone.

    Parameters
    ----------
    imagery
        As `imagery_crs` finds it; taken where it is true to scale all over the AOI.

    Raises
    ------
    ConfigError
        The CRS is not known, or not true to scale all over the AOI.
    """
    try:
        chosen = utm_crs(*aoi.centre) if crs is None else CRS(crs)
    except CRSError as error:
        raise ConfigError(f"CRS {crs} is not known; give a code such as EPSG:32610") from error
    if crs is None and imagery is not None and _bent(aoi, imagery) is None:
        return Grid(imagery, gsd_m)
    bent = _bent(aoi, chosen)
    if bent is not None:
        raise ConfigError(
            f"CRS {chosen} is not true to scale in metres at ({bent[0]:.4f}, {bent[1]:.4f}) of the AOI, and all cells "
            "must share one; give a national grid that is with --crs, or a batch for each part of the AOI"
        )
    return Grid(chosen, gsd_m)


def _bent(aoi: AOI, crs: CRS) -> tuple[float, float] | None:
    """A point of the AOI, lon and lat, where the CRS is not true to scale in metres."""
    corners = shapely.get_coordinates(shapely.convex_hull(aoi.lonlat)).tolist()
    points = [(wrapped(lon), lat) for lon, lat in [aoi.centre, *corners]]
    return next((point for point in points if not is_metric(crs, *point)), None)


def cells(aoi: AOI, grid: Grid, side_px: int) -> list[Job]:
    """A job for each cell that the AOI meets, from north-west to south-east; together they are the AOI.

    Raises
    ------
    ConfigError
        There are more than a million.
    """
    geometry = aoi.geometry(grid.crs)
    side_m, crs = side_px * grid.gsd, str(grid.crs)
    # A pixel's area or less cannot be run on, and holds at most the one pixel of a needle's point.
    least_m2 = grid.gsd**2
    jobs: dict[tuple[int, int], list[shapely.Geometry]] = {}
    for part in shapely.get_parts(geometry):
        over = grid.window_over(part.bounds)
        rows = np.arange(over.row // side_px, (over.row_stop - 1) // side_px + 1)
        cols = np.arange(over.col // side_px, (over.col_stop - 1) // side_px + 1)
        if len(jobs) + len(rows) * len(cols) > MOST_CELLS * 4:
            raise _too_many(side_m)
        r, c = (axis.ravel() for axis in np.meshgrid(rows, cols, indexing="ij"))
        boxes = np.asarray(shapely.box(c * side_m, -(r + 1) * side_m, (c + 1) * side_m, -r * side_m))
        shapely.prepare(part)
        met = np.asarray(shapely.intersects(part, boxes))
        # Most cells of a large AOI lie wholly in it, and to cut those takes the longest.
        whole = np.asarray(shapely.contains_properly(part, boxes))
        for row, col, box, inside in zip(r[met].tolist(), c[met].tolist(), boxes[met], whole[met], strict=True):
            jobs.setdefault((row, col), []).append(box if inside else shapely.intersection(part, box))
    if len(jobs) > MOST_CELLS:
        raise _too_many(side_m)
    made = []
    for (row, col), pieces in sorted(jobs.items()):
        area = joined([leaf for piece in pieces for leaf in polygons(piece)])
        if area.area >= least_m2:
            name = f"r{row}c{col}"
            made.append(Job(name, name, shapely.to_wkt(area, rounding_precision=-1), crs, round(area.area / 1e4, 4)))
    return made


def _too_many(side_m: float) -> ConfigError:
    return ConfigError(f"cells of {side_m:g} m are over {MOST_CELLS:,} on this AOI; give a larger --grid")
