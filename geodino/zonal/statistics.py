"""Statistics of polygons: what grows on each of them, how tall, how much of it was seen, and how sure that is."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import geopandas as gpd
import numpy as np

from geodino import __version__
from geodino.errors import InputError
from geodino.watch import Silent, Watch
from geodino.zonal.ground import Ground, Layers, layers_of
from geodino.zonal.points import Counts, count_points, read_points
from geodino.zonal.reference import Mapped, Plots, Reference, estimates, read_plots
from geodino.zonal.sums import Settings
from geodino.zonal.sweep import Harvest, sweep
from geodino.zonal.table import beside_attributes, figures, seen_share, write_csv, write_parquet
from geodino.zonal.zones import Placed, Zones, overlap_note, place, read_zones


@dataclass(frozen=True, eq=False)
class Statistics:
    """Figures of zones.

    Attributes
    ----------
    frame
        One row a zone, in its layer's order and CRS: `zone` (the feature's number), its own attributes, its figures
        with units in their names, its polygon.
    notes
        What was assumed, left out or overlaps, a sentence each.
    provenance
        From which files and with which settings; goes into the GeoParquet's metadata.
    reference
        Design-based estimates; None where there are no plots.
    """

    frame: gpd.GeoDataFrame
    notes: tuple[str, ...]
    provenance: dict[str, str]
    reference: Reference | None = None

    def write(self, parquet: Path, csv: Path) -> None:
        """Write both tables. Raises OutputError where a file cannot be written."""
        write_parquet(self.frame, parquet, self.provenance)
        write_csv(self.frame, csv)


def stats(
    what: str | Path,
    zones: str | Path | gpd.GeoDataFrame,
    *,
    spread: Path | None = None,
    trees: Path | None = None,
    plots: str | Path | None = None,
    plots_crs: str | None = None,
    settings: Settings | None = None,
) -> Statistics:
    """Return what grows on each polygon of a layer; what `geodino stats` calls.

    Parameters
    ----------
    what
        The folder of a finished run, or a raster of canopy heights.
    zones
        Polygons: a file, WKT, `minx,miny,maxx,maxy`, `sample:NAME`, or a GeoDataFrame with a CRS.
    spread, trees
        The heights' standard deviations and the trees, where they are not beside the map.
    plots, plots_crs
        Measured plots, a CSV or a vector file of points (`--reference`), and the CRS of their x and y: adds
        design-based estimates, `Statistics.reference`.

    Raises
    ------
    InputError, ReadError
        As `read_zones`, `read_plots` and `zone_statistics`.
    """
    settings = settings or Settings()
    return zone_statistics(
        layers_of(Path(what), spread=spread, trees=trees),
        read_zones(zones),
        plots=None if plots is None else read_plots(Path(plots), settings.cover_m, crs=plots_crs),
        settings=settings,
    )


def zone_statistics(
    layers: Layers,
    zones: Zones,
    *,
    plots: Plots | None = None,
    settings: Settings | None = None,
    watch: Watch | None = None,
) -> Statistics:
    """Return the statistics of zones over a map.

    A pixel that a zone's border cuts counts with the part that lies in the zone (exactextract), and with its geodesic
    area. Figures are of the ground that was seen: nodata is never bare ground.

    Parameters
    ----------
    layers
        `layers_of` finds those of a run's folder or of a raster of heights.
    zones
        From `read_zones`, or `zones_of` an AOI. They may overlap; in another CRS they are projected.
    plots
        From `read_plots`: with them the zones get design-based estimates too.

    Raises
    ------
    InputError
        No zone meets the map, or a file cannot be used as it is.
    ReadError
        A file cannot be read.
    """
    settings, watch = settings or Settings(), watch or Silent()
    with Ground(layers) as ground:
        placed = place(zones, ground)
        if not placed.meets.any():
            raise InputError(
                f"{zones.origin}: none of {len(zones):,} zones meets the map {layers.seen}: check that both are of the "
                "same ground, and their CRSs"
            )
        harvest = sweep(ground, placed, settings, watch)
        counts = None
        if layers.trees is not None:
            counts = count_points(read_points(layers.trees, ground), placed, harvest.step_m, settings.errs)
        overlaps = overlap_note(placed, zones.numbers)
        notes = (*ground.notes, *zones.notes, *_notes(zones, placed, harvest, counts, settings), *overlaps)
        reference = None
        if plots is not None:
            mapped = Mapped(placed, harvest, zones.numbers)
            reference = estimates(ground, mapped, plots, settings, apart=not overlaps)
            notes = (*notes, *reference.notes)
    table = figures(
        placed, harvest, counts, settings, heights=layers.heights, spread=layers.heights and layers.spread is not None
    )
    if layers.spread is not None or counts is not None:
        table["intervals"] = _basis(settings)
    return Statistics(beside_attributes(zones, table), notes, _provenance(layers, zones, settings), reference)


def _basis(settings: Settings) -> str:
    """What the intervals are, in each row, because a row is what people copy."""
    errs = settings.errs
    return (
        f"nominally {100 * settings.level:g} %: from the model's own doubt, not calibrated and blind to its bias; "
        f"errors correlated over {errs.range_m:g} m, {100 * errs.shared:g} % of their variance shared by all pixels"
    )


def _notes(
    zones: Zones, placed: Placed, harvest: Harvest, counts: Counts | None, settings: Settings
) -> tuple[str, ...]:
    share, notes = seen_share(placed, harvest), []
    off = harvest.sums.met_m2 <= 0
    if off.any():
        notes.append(
            f"{int(off.sum()):,} of {len(zones):,} zones do not meet the map and have no figures, feature "
            f"{zones.numbers[np.argmax(off)]} first"
        )
    little = ~off & (share < settings.least_valid_percent / 100 - 1e-6)
    if little.any():
        notes.append(
            f"{int(little.sum()):,} of {len(zones):,} zones have no figures, because less than "
            f"{settings.least_valid_percent:g} % of each was seen, feature {zones.numbers[np.argmax(little)]} first"
        )
    if counts is not None and np.isnan(counts.variance).any():
        notes.append("the trees have neither scores nor heights with a spread, so their counts have no intervals")
    return tuple(notes)


def _provenance(layers: Layers, zones: Zones, settings: Settings) -> dict[str, str]:
    files = {"map": layers.seen, "spread": layers.spread, "trees": layers.trees}
    said = {name: path.name for name, path in files.items() if path is not None}
    return {
        "geodino": json.dumps(
            {"version": __version__, **said, "zones": Path(zones.origin).name, "settings": asdict(settings)}
        )
    }
