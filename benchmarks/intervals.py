"""Whether the intervals of `geodino stats` hold what lidar says, and how far a model's errors go together.

    python benchmarks/intervals.py --photo autzen_val_rgb.tif --lidar autzen_val_chm.tif

The photo is mapped by a whole run. Squares of each size tile the lidar's ground; their cover and mean height, with the
intervals of `geodino stats`, are compared with the same figures of the lidar, which are taken for true. Below that, how
the errors of pixels go together: as correlation of pixels 45 to 60 m apart, and as the range of the exponential
correlation by which the means of blocks of each size would vary as they do. Errors of height are divided by the spread
that the map states there, those of cover are -1, 0 and 1.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import rasterio
import shapely
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT
from scipy.optimize import brentq

import geodino
from geodino.zonal.statistics import Settings
from geodino.zonal.uncertainty import Correlation

Floats = npt.NDArray[np.float64]
SIDES_M = (15.0, 30.0, 60.0)
COVER_M = (2.0, 5.0, 10.0)
BLOCKS_M = (5.0, 15.0, 30.0, 60.0)
FAR_M = range(45, 61, 3)
LEAST_SPREAD_M = 0.1


def main() -> None:
    """Measure and print two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photo", type=Path, required=True)
    parser.add_argument("--lidar", type=Path, required=True, help="canopy heights, metres, in a CRS in metres")
    parser.add_argument("--model", default="nano")
    arguments = parser.parse_args()
    with rasterio.open(arguments.lidar) as lidar:
        bounds, crs = lidar.bounds, lidar.crs.to_string()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        options = geodino.RunOptions(sources=(str(arguments.photo),), model=arguments.model, aoi_crs=crs)
        geodino.run("canopy", aoi=",".join(map(str, bounds)), out=out, options=options)
        row("squares", "", *(f"above {least:g} m" for least in COVER_M), "mean height")
        for side in SIDES_M:
            held(out, arguments.lidar, squares(bounds, side, crs), f"{side:g} m")
        together(out, arguments.lidar)


def row(first: str, second: str, *cells: str) -> None:
    """Print a line of a table."""
    print(f"{first:<14}{second:<13}" + "".join(f"{cell:>13}" for cell in cells), flush=True)


def squares(bounds: tuple[float, float, float, float], side: float, crs: str) -> gpd.GeoDataFrame:
    """Squares that fit into the bounds."""
    west, south, east, north = bounds
    wests = west + side * np.arange((east - west) // side)
    souths = south + side * np.arange((north - south) // side)
    boxes = [shapely.box(x, y, x + side, y + side) for y in souths for x in wests]
    return gpd.GeoDataFrame(geometry=boxes, crs=crs)


def held(out: Path, lidar: Path, zones: gpd.GeoDataFrame, name: str) -> None:
    """Print how many squares' intervals hold the lidar's figure: geodino's, and as if pixels erred each for itself."""
    plain = Settings(cover_m=COVER_M)
    truth = geodino.stats(lidar, zones, settings=plain).frame
    figures = [("mean_height_m", "mean_height_low_m", "mean_height_high_m")]
    for cover in (f"cover_above_{least:g}m" for least in reversed(COVER_M)):
        figures.insert(0, (f"{cover}_percent", f"{cover}_low_percent", f"{cover}_high_percent"))
    for how, errs in (("", plain.errs), ("independent", Correlation(0.0, 0.0))):
        said = geodino.stats(out, zones, settings=replace(plain, errs=errs)).frame
        seen = (said["seen_percent"] > 99) & (truth["seen_percent"] > 99)
        inside = [truth[figure].between(said[low], said[high])[seen].mean() for figure, low, high in figures]
        row(f"{name} ({seen.sum()})", how, *(f"{share:.0%}" for share in inside))


def together(out: Path, lidar: Path) -> None:
    """Print bias, and how far the errors of pixels go together."""
    with rasterio.open(out / "canopy_height.tif") as height, rasterio.open(out / "canopy_height_spread.tif") as spread:
        said, doubt = (raster.read(1, masked=True).filled(np.nan).astype(np.float64) for raster in (height, spread))
        same = {"crs": height.crs, "transform": height.transform, "height": height.height, "width": height.width}
        gsd_m = height.transform.a
    with rasterio.open(lidar) as source, WarpedVRT(source, resampling=Resampling.average, **same) as seen:
        truth = seen.read(1, masked=True).filled(np.nan).astype(np.float64)
    error, known = said - truth, np.where(np.isnan(truth), np.nan, 1.0)
    row("\nbias, MAE", f"{np.nanmean(error):+.2f} m", f"{np.nanmean(np.abs(error)):.2f} m")
    kinds = {"height": error / np.maximum(doubt, LEAST_SPREAD_M)}
    kinds |= {f"above {least:g} m": ((said > least) - 1.0 * (truth > least)) * known for least in COVER_M}
    row("errors of", "past 45 m", *(f"in {side:g} m" for side in BLOCKS_M))
    for name, values in kinds.items():
        far = [correlation(values, round(distance / gsd_m)) for distance in FAR_M]
        ranges = [range_of(share_of_blocks(values, round(side / gsd_m)), side) for side in BLOCKS_M]
        row(name, f"{np.mean(far):.2f}", *(f"{one:.1f} m" for one in ranges))


def correlation(values: Floats, step: int) -> float:
    """Of all pairs so many pixels apart, down and across."""
    whole = values - np.nanmean(values)
    pairs = [(whole[step:] * whole[:-step]).ravel(), (whole[:, step:] * whole[:, :-step]).ravel()]
    return float(np.nanmean(np.concatenate(pairs)) / np.nanmean(whole**2))


def share_of_blocks(values: Floats, side: int) -> float:
    """The variance of the means of whole blocks of so many pixels a side, as a share of that of pixels."""
    rows, cols = (length // side for length in values.shape)
    blocks = values[: rows * side, : cols * side].reshape(rows, side, cols, side)
    return float(np.nanvar(blocks.mean(axis=(1, 3))) / np.nanvar(values))


def range_of(share: float, side: float) -> float:
    """The range, metres, of an exponential correlation that leaves means of blocks that share of the variance."""
    ends = np.random.default_rng(0).uniform(0, side, (2, 200_000, 2))
    apart = np.hypot(*(ends[0] - ends[1]).T)
    return float(brentq(lambda reach: np.exp(-apart / reach).mean() - share, 0.01, 1000 * side))


if __name__ == "__main__":
    main()
