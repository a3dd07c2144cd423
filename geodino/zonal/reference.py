"""Plots with a measured height or cover, and the design-based estimates that they and the map make together."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import shapely
from pyproj import CRS

from geodino.aoi_files import parse_crs, read_drawn
from geodino.errors import AOIError, InputError
from geodino.grid import Window
from geodino.polygons import WGS84, projected, same_crs
from geodino.zonal.design_based import FEWEST, Estimate, Sample, merged
from geodino.zonal.ground import Ground
from geodino.zonal.points import within
from geodino.zonal.sums import Settings
from geodino.zonal.sweep import SQUARE_PX, Harvest
from geodino.zonal.table import length
from geodino.zonal.zones import Placed

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_PLACES = (("x", "y"), ("lon", "lat"), ("longitude", "latitude"))


@dataclass(frozen=True, eq=False)
class Plots:
    """Plots where somebody measured.

    Attributes
    ----------
    xy
        (N, 2) in `crs`.
    height_m
        (N,) canopy height; None: only whether it is over a height was noted.
    above
        By height of `cover_m`, (N,) the share of the plot's canopy over it, 0..1; 0 or 1 for a point.
    notes
        How many were left out for an empty cell, in a sentence.
    """

    xy: Floats
    crs: CRS
    height_m: Floats | None
    above: dict[float, Floats]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Reference:
    """Design-based estimates.

    Attributes
    ----------
    table
        One row an estimate: `zone` (null: all zones together), `quantity`, `unit`, `mapped` (what the map says),
        `estimate`, `standard_error`, `low`, `high`, `plots`, `strata`, `agreed_percent` (see `design_based.Estimate`).
    notes
        What was left out, in sentences.
    """

    table: pd.DataFrame
    notes: tuple[str, ...]


def read_plots(path: Path, cover_m: tuple[float, ...], *, crs: str | None = None) -> Plots:
    """Read plots from a CSV, or from any vector file of points.

    A CSV has columns x and y, in `crs`, or lon and lat (WGS84). What was measured stands in `height_m`, canopy height
    in metres, or in columns such as `above_2m`, for each height of `cover_m`: 0, 1, or the share of the plot.
    A plot with an empty cell in one of them is left out.

    Raises
    ------
    InputError
        Nothing readable, no places, no CRS, values that cannot be, or too few plots left.
    """
    table, xy, own = _csv(path, crs) if path.suffix.lower() in (".csv", ".txt") else _vectors(path, crs)
    if not len(table):
        raise InputError(f"plots {path} are empty")
    table.columns = table.columns.str.strip().str.lower()
    height = _numbers(path, table, "height_m") if "height_m" in table else None
    if height is not None and ((height < 0) | (height > 120)).any():
        row = int(np.argmax((height < 0) | (height > 120)))
        raise InputError(f"plots {path}: height_m of plot {row + 1} is {height[row]:g}; give 0 to 120 m for each")
    above = {}
    for least in cover_m:
        name = f"above_{length(least)}"
        if name in table:
            above[least] = _numbers(path, table, name)
            if ((above[least] < 0) | (above[least] > 1)).any():
                raise InputError(f"plots {path}: column {name} must hold 0 to 1 for each plot")
        elif height is not None:
            above[least] = (height > least).astype(np.float64)
    if not above:
        names = ", ".join(f"above_{length(least)}" for least in cover_m)
        raise InputError(f"plots {path} have no column height_m, and none of {names}: say what was measured")
    return _measured(path, Plots(xy, own, height, above))


def _measured(path: Path, plots: Plots) -> Plots:
    """Those with a value in every column that is used; each of them has a place."""
    values = list(plots.above.values()) + ([] if plots.height_m is None else [plots.height_m])
    full = np.asarray(np.isfinite(values).all(axis=0))
    nowhere = full & ~np.isfinite(plots.xy).all(axis=1)
    if nowhere.any():
        raise InputError(f"plots {path}: plot {int(np.argmax(nowhere)) + 1} has no place")
    if full.all():
        return plots
    if full.sum() < FEWEST:
        raise InputError(
            f"plots {path}: {full.sum():,} of {len(full):,} have no empty cell in what was measured; "
            f"give at least {FEWEST} such plots"
        )
    note = f"{(~full).sum():,} of {len(full):,} plots have an empty cell in what was measured and were left out"
    height = None if plots.height_m is None else plots.height_m[full]
    return Plots(
        plots.xy[full], plots.crs, height, {least: share[full] for least, share in plots.above.items()}, (note,)
    )


def estimates(ground: Ground, mapped: Mapped, plots: Plots, settings: Settings, *, apart: bool) -> Reference:
    """Return what plots say of zones, each by the plots in it, and of all zones together where they are `apart`.

    Strata are the map's height classes between the heights of `cover_m`; a plot is in that of the pixel it lies in.
    This is right for plots that were drawn at random, on a grid, or at random within those classes. The estimates are
    of the ground that was seen.

    Raises
    ------
    InputError
        No plot lies on seen ground in a zone.
    """
    shapes = shapely.points(plots.xy)
    if not same_crs(plots.crs, ground.crs):
        shapes = projected(shapes, plots.crs, ground.crs)
    pixels = ground.in_pixels(shapely.get_coordinates(shapes))
    told = map_at(ground, pixels)
    zone, plot = within(mapped.placed.shapes, pixels)
    here = np.unique(plot)
    left_out = {
        "lie in no zone": len(told) - len(here),
        "lie where the map has no height": int(np.isnan(told[here]).sum()),
    }
    notes = list(plots.notes)
    notes += [f"{n:,} of {len(told):,} plots {why} and were left out" for why, n in left_out.items() if n]
    seen = np.isfinite(told[plot])
    zone, plot = zone[seen], plot[seen]
    if not len(plot):
        raise InputError(f"none of {len(told):,} plots lies in a zone where the map has a height: check their CRS")
    survey = _Survey(plots, told, settings)
    rows: list[dict[str, object]] = []
    by_zone = [(index, plot[zone == index]) for index in np.unique(zone).tolist()]
    for index, mine in by_zone:
        if len(mine) >= FEWEST:
            rows += survey.rows(int(mapped.numbers[index]), mapped.share(np.array([index])), mine)
    few = sum(len(mine) < FEWEST for _, mine in by_zone)
    if few:
        notes.append(f"{few:,} zones have a single plot, of which no estimate can be made")
    every = np.unique(plot)
    if not apart:
        notes.append("zones overlap, so there is no estimate of all together")
    elif len(every) >= FEWEST:
        rows += survey.rows(None, mapped.share(np.arange(len(mapped.numbers))), every)
    table = pd.DataFrame(rows)
    if len(table):
        table["zone"] = table["zone"].astype("Int64")
    return Reference(table, tuple(notes))


def map_at(ground: Ground, pixels: Floats) -> Floats:
    """(N,) heights of the map at points in its pixels (x columns, y rows upwards); NaN off it and where it has none."""
    found = np.full(len(pixels), np.nan)
    row, col = np.floor(-pixels[:, 1]).astype(np.int64), np.floor(pixels[:, 0]).astype(np.int64)
    extent = ground.extent
    on = np.flatnonzero((row >= 0) & (row < extent.height) & (col >= 0) & (col < extent.width))
    square = (row // SQUARE_PX) * (extent.width // SQUARE_PX + 1) + col // SQUARE_PX
    for number in np.unique(square[on]).tolist():
        here = on[square[on] == number]
        first = int(row[here].min()), int(col[here].min())
        window = Window(*first, int(row[here].max()) - first[0] + 1, int(col[here].max()) - first[1] + 1)
        heights, _ = ground.read(window)
        found[here] = heights[row[here] - window.row, col[here] - window.col]
    return found


@dataclass(frozen=True, eq=False)
class Share:
    """What the map says of some zones together: seen hectares, the share of each height class, and the mean height."""

    seen_ha: float
    weights: Floats
    mean_m: float


@dataclass(frozen=True, eq=False)
class Mapped:
    """What the map says of zones, and the numbers of their features."""

    placed: Placed
    harvest: Harvest
    numbers: Ints

    def share(self, zones: Ints) -> Share:
        """Of some zones together."""
        sums = self.harvest.sums
        seen = sums.seen_m2[zones].sum()
        above = np.concatenate([[seen], sums.above_m2[zones].sum(axis=0), [0.0]])
        return Share(seen / 1e4, -np.diff(above) / seen, float(sums.height_m3[zones].sum() / seen))


@dataclass(frozen=True, eq=False)
class _Survey:
    """Plots, what the map tells of each (N,), and how to make estimates of them."""

    plots: Plots
    told: Floats
    settings: Settings

    def rows(self, zone: int | None, share: Share, mine: Ints) -> list[dict[str, object]]:
        """The estimates of one piece of ground by some of the plots."""
        strata = merged(np.bincount(self._class(self.told[mine]), minlength=len(share.weights)))
        weights = np.bincount(strata, share.weights)
        sample = Sample(strata[self._class(self.told[mine])], weights / weights.sum(), self.settings.level)
        return [
            {"zone": zone, "quantity": name, "unit": unit, "mapped": said, **found, "strata": len(weights)}
            for name, unit, said, found in self._quantities(share, sample, mine)
        ]

    def _class(self, heights: Floats) -> Ints:
        """Heights up to the first of `cover_m` are the first class, as in the map's cover."""
        return np.searchsorted(np.array(self.settings.cover_m), heights, side="left")

    def _quantities(
        self, share: Share, sample: Sample, mine: Ints
    ) -> Iterator[tuple[str, str, float, dict[str, object]]]:
        """Name, unit, what the map says, and the estimate."""
        over = 1 - np.cumsum(share.weights)
        for column, least in enumerate(self.settings.cover_m):
            if least in self.plots.above:
                found = sample.mean(self.plots.above[least][mine])
                yield f"canopy cover above {least:g} m", "percent", 100 * over[column], _plain(found, 100)
                yield f"area above {least:g} m", "ha", share.seen_ha * over[column], _plain(found, share.seen_ha)
        if self.plots.height_m is None:
            return
        truth, told = self.plots.height_m[mine], self.told[mine]
        yield "mean height", "m", share.mean_m, _plain(sample.mean(truth - told, known=share.mean_m), 1, most=math.inf)
        real, said = self._class(truth), self._class(told)
        right = (real == said).astype(np.float64)
        yield "overall accuracy of height classes", "percent", math.nan, _plain(sample.mean(right), 100)
        for number, name in enumerate(_classes(self.settings.cover_m)):
            for whose, which in (("user's", said), ("producer's", real)):
                of_class = (which == number).astype(np.float64)
                found = sample.ratio(right * of_class, of_class)
                yield f"{whose} accuracy of {name}", "percent", math.nan, _plain(found, 100)


def _classes(edges: tuple[float, ...]) -> list[str]:
    inner = [f"{low:g} to {high:g} m" for low, high in pairwise(edges)]
    return [f"0 to {edges[0]:g} m", *inner, f"over {edges[-1]:g} m"]


def _plain(found: Estimate, factor: float, *, most: float = 1.0) -> dict[str, object]:
    """The columns of an estimate in its unit, its interval within what can be."""
    return {
        "estimate": factor * found.value,
        "standard_error": factor * found.standard_error,
        "low": factor * max(found.low, 0.0) if math.isfinite(found.low) else math.nan,
        "high": factor * min(found.high, most) if math.isfinite(found.high) else math.nan,
        "plots": found.plots,
        "agreed_percent": 100 * found.agreed,
    }


def _csv(path: Path, crs: str | None) -> tuple[pd.DataFrame, Floats, CRS]:
    try:
        table = pd.read_csv(path, skipinitialspace=True)
    except (OSError, ValueError, pd.errors.ParserError) as error:
        raise InputError(f"plots {path} cannot be read as CSV: {error}") from error
    names = {str(name).strip().lower(): name for name in table.columns}
    for east, north in _PLACES:
        if east in names and north in names:
            break
    else:
        raise InputError(f"plots {path} have no columns x and y, or lon and lat; they have {', '.join(names)}")
    if east == "x" and crs is None:
        raise InputError(f"plots {path} give x and y; name their CRS with --reference-crs, such as EPSG:32610")
    own = parse_crs(crs, "--reference-crs") if east == "x" and crs is not None else WGS84
    xy = np.column_stack([_numbers(path, table, names[name]) for name in (east, north)])
    return table, xy, own


def _vectors(path: Path, crs: str | None) -> tuple[pd.DataFrame, Floats, CRS]:
    try:
        drawn = read_drawn(path, None)
        own = drawn.declared or (parse_crs(crs, "--reference-crs") if crs else drawn.implied)
    except AOIError as error:
        raise InputError(f"plots {str(error).replace('; choose one with --aoi-layer', '')}") from error
    if own is None:
        raise InputError(f"plots {path} have no CRS: name it with --reference-crs, such as EPSG:32610")
    shapes = drawn.frame.geometry.to_numpy()
    if not (shapely.get_type_id(shapes) == shapely.GeometryType.POINT).all():
        raise InputError(f"plots {path} hold something else than points: give each plot's middle")
    return pd.DataFrame(drawn.frame.drop(columns=drawn.frame.geometry.name)), shapely.get_coordinates(shapes), own


def _numbers(path: Path, table: pd.DataFrame, name: str) -> Floats:
    try:
        return np.asarray(pd.to_numeric(table[name]), np.float64)
    except (ValueError, TypeError) as error:
        raise InputError(f"plots {path}: column {name} holds no numbers: {error}") from error
