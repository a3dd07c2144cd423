"""The record of a run, `run.json`: everything needed to run it again, and what became of it.

Numbers carry their unit in their name. JSON has no NaN, so a figure that does not exist is null.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from pydantic import JsonValue, TypeAdapter, ValidationError

from geodino.errors import ConfigError
from geodino.outputs.cog import Census
from geodino.watch import count, size

# Raised by one when a field changes its meaning or is removed, not when one is added.
RECORD_VERSION = 1


@dataclass(frozen=True)
class AOIRecord:
    """What was asked for: where it came from, its geodesic area, and its union as a GeoJSON geometry in WGS84.

    `bounds_lonlat` is (minx, miny, maxx, maxy) in degrees; minx > maxx over the antimeridian.
    """

    origin: str
    area_ha: float
    repaired_area_m2: float
    bounds_lonlat: tuple[float, float, float, float]
    geometry: dict[str, JsonValue]


@dataclass(frozen=True)
class GridRecord:
    """The outputs' pixels: the window (row, col, height, width) of the lattice that hangs on the CRS's origin."""

    crs: str
    gsd_m: float
    row: int
    col: int
    height: int
    width: int


@dataclass(frozen=True)
class WindowsRecord:
    """How the ground was cut, and what became of every window.

    `outside_aoi` counts windows that hang over the AOI's bounding box only; `without_imagery` names those over the AOI
    that have no valid pixel, by (row, column) on the lattice. Neither was run. `filled` windows were run with pixels
    missing, which were filled by reflection and are nodata in the outputs.
    """

    size_px: int
    overlap_px: int
    margin_px: int
    run: int
    filled: int = 0
    outside_aoi: int = 0
    without_imagery: tuple[tuple[int, int], ...] = ()

    @property
    def planned(self) -> int:
        """All windows over the AOI's bounding box."""
        return self.run + self.outside_aoi + len(self.without_imagery)


@dataclass(frozen=True)
class ModelRecord:
    """Which weights made the heights, how they were run, and what they may be used for.

    `tta` views of each window were averaged. `reference` is what --model takes to run it again (a name, a hub id, a
    folder), `href` where anybody finds the model, a URN of its weights for one that is on no hub; `licence_url` is
    empty where its makers give none.
    """

    name: str
    title: str
    reference: str
    href: str
    parameters: int
    weights_sha256: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    precision: str
    device: str
    licence: str
    licence_url: str
    demonstration: bool
    tta: int = 1


@dataclass(frozen=True)
class TimingsRecord:
    """Seconds of the computing thread, which sum to the total less what loading and planning took.

    `read_s` is the time it waited for imagery; `decode_s` is the reader threads' own time, most of it beside the rest.
    """

    read_s: float
    forward_s: float
    stitch_s: float
    write_s: float
    total_s: float
    decode_s: float = 0.0


@dataclass(frozen=True)
class StatisticsRecord:
    """What a raster holds, in `unit`; null where no pixel is valid. `gsd_m` where it is not the run's own."""

    valid_percent: float
    minimum: float | None
    maximum: float | None
    mean: float | None
    stddev: float | None
    unit: str = "m"
    gsd_m: float | None = None

    @classmethod
    def of(cls, census: Census, unit: str = "m", gsd_m: float | None = None) -> StatisticsRecord:
        if not census.valid:
            return cls(0.0, None, None, None, None, unit, gsd_m)
        return cls(census.valid_percent, census.minimum, census.maximum, census.mean, census.stddev, unit, gsd_m)


@dataclass(frozen=True)
class TreesRecord:
    """How trees were found, and how many.

    `found_on` is `heat` or `height`, `settings` those of `trees.HeatSettings` or `treetops.HeightSettings`, `mapped_ha`
    the ground that they were looked for on.
    """

    found_on: str
    count: int
    mapped_ha: float
    per_ha: float
    settings: dict[str, JsonValue]


@dataclass(frozen=True)
class FileRecord:
    """One output; `statistics` where it is a raster, the number of `features` where it is a vector layer or table."""

    name: str
    sha256: str
    size_bytes: int
    statistics: StatisticsRecord | None = None
    features: int | None = None


@dataclass(frozen=True)
class RunRecord:
    """A whole run.

    Attributes
    ----------
    pipeline
        The pipeline as it was run, with every default filled in.
    options
        What the user said beside it, by the names of the command line's options.
    scenes
        `Scene.summary()` of each scene in mosaic order, its radiometry included.
    dropped_scenes
        A sentence for each scene that was found and not used: which, and why.
    computed_px
        Pixels in the windows that were run; more than the outputs hold, because windows overlap.
    peak_memory_mib
        The most memory the process held; of the accelerator too where there is one.
    libraries
        Versions by name.
    started, ended
        UTC.
    mapped_percent_of_aoi
        How much of the AOI's pixels were mapped; `valid_percent` of a raster is of its bounding box.
    trees
        What was found of trees; None where they were not looked for.
    lost_ha
        Ground that was asked for and is nodata because its imagery could not be read, or its windows not be computed.
    losses
        What could not be read or computed and why, a sentence for each, the first hundred.
    computed_by
        `this process`, or how many workers on how many hosts.
    windows_from_before
        How many of the windows an earlier run had finished before it was cut short.
    """

    geodino: str
    pipeline: dict[str, JsonValue]
    options: dict[str, JsonValue]
    aoi: AOIRecord
    grid: GridRecord
    windows: WindowsRecord
    model: ModelRecord
    scenes: tuple[dict[str, JsonValue], ...]
    dropped_scenes: tuple[str, ...]
    timings: TimingsRecord
    computed_px: int
    peak_memory_mib: dict[str, float]
    outputs: tuple[FileRecord, ...]
    libraries: dict[str, str]
    started: datetime
    ended: datetime
    warnings: tuple[str, ...] = ()
    mapped_percent_of_aoi: float | None = None
    trees: TreesRecord | None = None
    lost_ha: float = 0.0
    losses: tuple[str, ...] = ()
    computed_by: str = "this process"
    windows_from_before: int = 0
    record_version: int = RECORD_VERSION

    def as_dict(self) -> dict[str, JsonValue]:
        """The record as plain JSON values, in the order of the fields, with counts that a reader would miss."""
        plain: dict[str, JsonValue] = _ADAPTER.dump_python(self, mode="json")
        windows = plain["windows"]
        assert isinstance(windows, dict)
        windows["counts"] = {
            "planned": self.windows.planned,
            "run": self.windows.run,
            "outside_aoi": self.windows.outside_aoi,
            "without_imagery": len(self.windows.without_imagery),
        }
        total_s = self.timings.total_s
        plain["computed_px_per_s"] = round(self.computed_px / total_s) if total_s > 0 else None
        return plain

    def as_text(self) -> str:
        """The record in a few lines for a terminal."""
        lines = [_file_line(file) for file in self.outputs]
        windows, timings = self.windows, self.timings
        if self.mapped_percent_of_aoi is not None:
            lines.append(f"{self.mapped_percent_of_aoi:.1f} % of the AOI ({self.aoi.area_ha:,.2f} ha) mapped")
        if self.losses:
            lines.append(f"{self.lost_ha:,.2f} ha are nodata because imagery could not be read; run.json says which")
        if self.trees is not None:
            found = self.trees
            lines.append(
                f"{count(found.count, 'tree')} on {found.mapped_ha:,.2f} ha, {found.per_ha:.1f} a hectare, found on "
                f"{found.found_on}"
            )
        # Trees need ground around the AOI, so that these can be many where nothing of the AOI is missing.
        outside, bare = windows.outside_aoi, len(windows.without_imagery)
        why = f" ({outside:,} outside the AOI, {bare:,} without imagery)" if outside + bare else ""
        lines.append(
            f"{count(windows.run, 'window')} run, {outside + bare:,} skipped{why}; "
            f"{count(len(self.scenes), 'scene')} used"
        )
        lines.append(
            f"{timings.total_s:.1f} s: read {timings.read_s:.1f}, forward {timings.forward_s:.1f}, "
            f"stitch {timings.stitch_s:.1f}, write {timings.write_s:.1f}"
        )
        if self.model.demonstration:
            lines.append(f"{self.model.name} is a demonstration model: do not rely on these numbers")
        return "\n".join(lines)

    def write(self, path: Path) -> None:
        """Write the record as JSON.

        Raises
        ------
        ValueError
            A number is NaN or infinite.
        OSError
            The file cannot be written.
        """
        text = json.dumps(self.as_dict(), indent=2, ensure_ascii=False, allow_nan=False)
        with path.open("w", encoding="utf-8") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())


def read_record(path: Path | str) -> RunRecord:
    """The record of an earlier run.

    Raises
    ------
    ConfigError
        There is no such file, or it is not a record that this version understands.
    """
    try:
        plain = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read the record {path}: {error}") from error
    version = plain.get("record_version") if isinstance(plain, dict) else None
    if version != RECORD_VERSION:
        raise ConfigError(
            f"{path} is not a record of version {RECORD_VERSION} but of {version}: run it with that geodino"
        )
    try:
        return _ADAPTER.validate_python(plain)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"{path} is no record: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def _file_line(file: FileRecord) -> str:
    line = f"{file.name}  {size(file.size_bytes)}"
    statistics = file.statistics
    if file.features is not None:
        return f"{line}, {count(file.features, 'feature')}"
    # A mean over cells that the AOI's edge cuts is no density of the AOI.
    if statistics is None or statistics.gsd_m is not None:
        return line
    if statistics.mean is None:
        return f"{line}, no valid pixel"
    return f"{line}, mean {statistics.mean:.1f} {statistics.unit}, largest {statistics.maximum:.1f} {statistics.unit}"


_ADAPTER = TypeAdapter(RunRecord)
