"""The table of statistics: figures of zones under names that hold their units, beside the zones' own attributes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import shapely
from odc.geo.crs import CRS

from geodino.errors import OutputError
from geodino.outputs.geoparquet import GEOMETRY_FIELDS, GeoParquetFile, GeoProfile, geometry_columns
from geodino.zonal.points import Counts
from geodino.zonal.sums import QUANTILES, Settings
from geodino.zonal.sweep import Harvest
from geodino.zonal.uncertainty import count_interval, mean_interval, share_interval
from geodino.zonal.zones import Placed, Zones

Floats = npt.NDArray[np.float64]

OF_ZONE = "_zone"
"""What is put behind the name of a zone's own attribute where a figure has that name."""

_NESTED = (list, tuple, dict, np.ndarray)

# A share that is less than this under its bound is at it: coverage is known to seven digits.
_SLACK = 1e-6


def figures(
    placed: Placed, harvest: Harvest, counts: Counts | None, settings: Settings, *, heights: bool, spread: bool
) -> pd.DataFrame:
    """Return the figures of Z zones.

    Those of a zone that was not seen enough are null, but for its area and how much of it was seen. Columns are left
    out where nothing is asked that they would answer: without heights, a spread, or trees.
    """
    share = seen_share(placed, harvest)
    enough = (share > 0) & (share >= settings.least_valid_percent / 100 - _SLACK)
    columns: dict[str, Floats] = {}
    if heights:
        columns |= _heights(harvest, settings, spread=spread) | _classes(placed, harvest, share, settings)
    if counts is not None:
        columns |= _trees(placed, share, counts, settings)
    table = pd.DataFrame({name: np.where(enough, values, np.nan) for name, values in columns.items()})
    for name in [name for name in columns if name.startswith("tree_count")]:
        table[name] = table[name].astype("Int64")
    table.insert(0, "area_ha", placed.area_m2 / 1e4)
    table.insert(1, "seen_percent", 100 * share)
    return table


def seen_share(placed: Placed, harvest: Harvest) -> Floats:
    """(Z,) share of a zone's area with a known value in the map."""
    # A zone within the map is met wholly: then what pixels say of its area is compared with what they say of the rest.
    area = np.where(placed.whole, harvest.sums.met_m2, np.maximum(placed.area_m2, harvest.sums.met_m2))
    share = np.divide(harvest.sums.seen_m2, area, out=np.zeros(len(area)), where=area > 0)
    return np.asarray(np.where(share > 1 - _SLACK, 1.0, share))


def length(height: float) -> str:
    """A height in a column's name: 2m, 2.5m."""
    return f"{height:g}m"


def _heights(harvest: Harvest, settings: Settings, *, spread: bool) -> dict[str, Floats]:
    sums, seen = harvest.sums, harvest.sums.seen_m2

    def of_seen(values: Floats, power: int = 1) -> Floats:
        return np.asarray(np.divide(values, seen**power, out=np.full(len(seen), np.nan), where=seen > 0))

    # What has no spread in some of its pixels has no interval.
    sure = sums.sure_m2 >= seen * (1 - _SLACK)
    mean = of_seen(sums.height_m3)
    columns = {"mean_height_m": mean}
    if spread:
        low, high = mean_interval(mean, np.where(sure, of_seen(harvest.variance[:, -1], 2), np.nan), settings.level)
        columns |= {"mean_height_low_m": low, "mean_height_high_m": high}
    for column, share in enumerate(QUANTILES):
        columns[f"p{round(100 * share)}_height_m"] = harvest.percentiles_m[:, column]
    columns["max_height_m"] = sums.highest_m
    for column, least in enumerate(settings.cover_m):
        name = f"cover_above_{length(least)}"
        columns[f"{name}_percent"] = 100 * of_seen(sums.above_m2[:, column])
        if spread:
            likely = np.where(sure, np.clip(of_seen(sums.likely_m2[:, column]), 0, 1), np.nan)
            low, high = share_interval(likely, of_seen(harvest.variance[:, column], 2), settings.level)
            ends = {"expected": likely, "low": low, "high": high}
            columns |= {f"{name}_{end}_percent": 100 * value for end, value in ends.items()}
    return columns


def _classes(placed: Placed, harvest: Harvest, share: Floats, settings: Settings) -> dict[str, Floats]:
    seen = harvest.sums.seen_m2
    of_zone = np.divide(placed.area_m2 * share, seen, out=np.zeros(len(seen)), where=seen > 0) / 1e4
    edges = settings.classes_m
    names = [f"area_0_to_{length(edges[0])}_ha"]
    names += [f"area_{low:g}_to_{length(high)}_ha" for low, high in pairwise(edges)]
    names.append(f"area_over_{length(edges[-1])}_ha")
    return {name: harvest.sums.class_m2[:, column] * of_zone for column, name in enumerate(names)}


def _trees(placed: Placed, share: Floats, counts: Counts, settings: Settings) -> dict[str, Floats]:
    count = counts.count.astype(np.float64)
    low, high = count_interval(count, counts.variance, settings.level)
    seen_ha = placed.area_m2 * share / 1e4
    density = np.divide(count, seen_ha, out=np.full(len(count), np.nan), where=seen_ha > 0)
    return {"tree_count": count, "tree_count_low": low, "tree_count_high": high, "tree_density_per_ha": density}


def beside_attributes(zones: Zones, table: pd.DataFrame) -> gpd.GeoDataFrame:
    """Put figures behind the zones' own attributes.

    An attribute with the name of a figure gets `_zone` behind it (`area_ha_zone`), one with the name of an earlier
    attribute a number (`name_2`); letter case makes no difference, as it makes none in GeoPackages and shapefiles. The
    column `zone` is the number of the feature in its layer.
    """
    own = zones.frame.drop(columns=zones.frame.geometry.name)
    figures = {name.lower() for name in ("zone", "geometry", "bbox", *table.columns)}
    names: list[str] = []
    for given in map(str, own.columns):
        name = wanted = given + OF_ZONE if given.lower() in figures else given
        taken, number = figures | {name.lower() for name in names}, 1
        while name.lower() in taken:
            number += 1
            name = f"{wanted}_{number}"
        names.append(name)
    own.columns = pd.Index(names)
    numbers = pd.DataFrame({"zone": zones.numbers})
    joined = pd.concat([numbers, own.reset_index(drop=True), table.reset_index(drop=True)], axis=1)
    return gpd.GeoDataFrame(joined, geometry=zones.frame.geometry.to_numpy(), crs=zones.frame.crs)


def write_parquet(frame: gpd.GeoDataFrame, path: Path, provenance: Mapping[str, str]) -> None:
    """Write GeoParquet 1.1; polygons become multipolygons, so that all are of one type.

    Raises
    ------
    OutputError
        The file cannot be written, or an attribute holds what no column can.
    """
    shapes = _multi(frame.geometry.to_numpy())
    try:
        plain = pa.Table.from_pandas(pd.DataFrame(frame.drop(columns=frame.geometry.name)), preserve_index=False)
    except (pa.ArrowException, TypeError) as error:
        raise OutputError(f"cannot write the zones' attributes to {path}: {error}") from error
    table = plain.replace_schema_metadata(None)
    for given, column in zip(GEOMETRY_FIELDS, geometry_columns(shapes), strict=True):
        table = table.append_column(given, column)
    profile = GeoProfile(CRS(frame.crs.to_wkt()), "MultiPolygon", provenance)
    with GeoParquetFile(path, table.schema, profile) as file:
        file.append(table)


def write_csv(frame: pd.DataFrame, path: Path) -> None:
    """Write what a spreadsheet reads: no geometry, ten digits, empty where a figure is null.

    Raises
    ------
    OutputError
        The file cannot be written.
    """
    plain = pd.DataFrame(frame.drop(columns="geometry", errors="ignore"))
    for name in [name for name in plain.columns if plain[name].dtype == np.dtype(object)]:
        plain[name] = [
            json.dumps(value, default=list) if isinstance(value, _NESTED) else value for value in plain[name]
        ]
    try:
        plain.to_csv(path, index=False, float_format="%.10g", lineterminator="\n")
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error


def _multi(shapes: npt.NDArray[np.object_]) -> npt.NDArray[np.object_]:
    parts, owner = shapely.get_parts(shapes, return_index=True)
    return np.asarray(shapely.multipolygons(parts, indices=owner), dtype=object)
