"""What came of a batch, in a few lines for a terminal and as summary.json."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, fields

from pydantic import JsonValue

from geodino.batch.ground import Share
from geodino.batch.jobs import Failed
from geodino.batch.mapped import Mapped
from geodino.watch import count

_MOST_CAUSES = 10


@dataclass
class Summary:
    """Counts that grow job by job.

    Attributes
    ----------
    planned, done, missing
        Jobs of the list; those whose results are here; those that are said to be done and whose folder holds none.
    left_out
        What of the catalog is no job, and why, in sentences.
    failed, causes
        Jobs that failed, and how many by what cause.
    scenes
        How many different ones were used.
    mapped_ha, own_ha
        Hectares of all jobs' maps, and the ground of several jobs once.
    trees
        Each once; None where they were not looked for.
    bounds_lonlat
        Of all jobs; the whole globe's longitudes where one lies across the antimeridian.
    days
        First and last day of the imagery, empty where unknown; null in summary.json.
    licences, models
        How many jobs there are of each.
    """

    title: str
    pipeline: str = ""
    catalog: str = ""
    left_out: tuple[str, ...] = ()
    planned: int = 0
    done: int = 0
    failed: int = 0
    missing: int = 0
    causes: dict[str, int] = field(default_factory=dict)
    scenes: int = 0
    aoi_ha: float = 0.0
    mapped_ha: float = 0.0
    own_ha: float = 0.0
    trees: int | None = None
    statistics_rows: int = 0
    seconds: float = 0.0
    bounds_lonlat: tuple[float, float, float, float] = (180.0, 90.0, -180.0, -90.0)
    days: tuple[str, str] = ("", "")
    crss: dict[str, int] = field(default_factory=Counter)
    licences: dict[str, int] = field(default_factory=Counter)
    models: dict[str, int] = field(default_factory=Counter)
    versions: dict[str, str] = field(default_factory=dict)
    demonstration: bool = False

    @property
    def id(self) -> str:
        """The title in letters that an id may have."""
        return re.sub(r"[^A-Za-z0-9_.-]+", "-", self.title).strip("-")[:80] or "batch"

    @property
    def left(self) -> int:
        """Jobs that are neither done nor failed."""
        return max(self.planned - self.done - self.failed - self.missing, 0)

    def add(self, mapped: Mapped, share: Share) -> None:
        """Count a finished job."""
        self.done += 1
        self.aoi_ha += mapped.aoi_ha
        self.mapped_ha += mapped.mapped_ha
        self.own_ha += share.own_ha
        if mapped.trees is not None:
            self.trees = (self.trees or 0) + share.trees
        self.seconds += mapped.seconds
        west, south, east, north = mapped.bounds_lonlat
        if west > east:
            west, east = -180.0, 180.0
        known = self.bounds_lonlat
        self.bounds_lonlat = (min(west, known[0]), min(south, known[1]), max(east, known[2]), max(north, known[3]))
        days = sorted(day for day in (*self.days, *(day for _, *both in mapped.scenes for day in both)) if day)
        self.days = (days[0], days[-1]) if days else ("", "")
        self.crss[mapped.crs] += 1
        self.models[mapped.model] += 1
        for licence in mapped.licences:
            self.licences[licence] += 1
        for name, version in mapped.versions.items():
            known_as = self.versions.setdefault(name, version)
            if version not in known_as.split(", "):
                self.versions[name] = f"{known_as}, {version}"
        self.demonstration |= mapped.demonstration

    def add_failures(self, failures: Iterable[Failed]) -> None:
        """Count failed jobs by their causes, the most frequent first."""
        counted = Counter(failure.cause for failure in failures)
        self.failed, self.causes = counted.total(), dict(counted.most_common())

    def as_dict(self) -> dict[str, JsonValue]:
        """What summary.json holds; numbers carry their unit in their name."""
        plain: dict[str, JsonValue] = {}
        for one in fields(self):
            value = getattr(self, one.name)
            plain[one.name] = round(value, 4) if isinstance(value, float) else _plain(value)
        plain["days"] = [day or None for day in self.days]
        return plain | {"left": self.left, "doubly_mapped_ha": round(self.mapped_ha - self.own_ha, 4)}

    def as_text(self) -> str:
        """The summary for a terminal."""
        lines = [f"{count(self.done, 'job')} of {self.planned:,} done, {self.failed:,} failed, {self.left:,} left"]
        twice = self.mapped_ha - self.own_ha
        also = f" ({twice:,.2f} ha more were mapped by several jobs and count once)" if twice > 0.005 else ""
        if self.done:
            lines.append(f"{self.own_ha:,.2f} ha mapped from {count(self.scenes, 'scene')}{also}")
        if self.trees is not None:
            lines.append(f"{count(self.trees, 'tree')}, each once")
        for cause, number in list(self.causes.items())[:_MOST_CAUSES]:
            lines.append(f"failed: {number:,} x {cause}")
        if len(self.causes) > _MOST_CAUSES:
            lines.append(f"failed: {count(len(self.causes) - _MOST_CAUSES, 'other cause')}; summary.json has all")
        lines += [f"left out: {sentence}" for sentence in self.left_out]
        if self.missing:
            lines.append(f"{count(self.missing, 'job')} done, but the results are gone")
        if self.models:
            lines.append(f"models: {', '.join(self.models)}; licences: {', '.join(self.licences)}")
        if self.demonstration:
            lines.append("by a demonstration model: do not rely on these numbers")
        return "\n".join(lines)


def _plain(value: object) -> JsonValue:
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    assert value is None or isinstance(value, str | int | float | bool), value
    return value
