"""What an evaluation found: figures and all they rest on, as JSON and as tables for the terminal."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from geodino import __version__
from geodino.evaluation.sums import Figure
from geodino.evaluation.tree_points import CurvePoint

if TYPE_CHECKING:
    from rich.console import RenderableType

Task = Literal["canopy", "trees", "segment", "classify"]

# What the terminal has room for in a table of parts; JSON has all.
KEY_FIGURES: Mapping[Task, frozenset[str]] = {
    "canopy": frozenset({"share", "mae_m", "rmse_m", "bias_m", "r2", "block_r2", "edge_error", "constant_mae_m"}),
    "trees": frozenset({"precision", "recall", "f1", "count_r2", "count_bias", "density_r2"}),
    "segment": frozenset({"share", "miou", "iou", "f1", "accuracy", "precision", "recall"}),
    "classify": frozenset({"share", "macro_f1", "f1", "accuracy", "precision", "recall"}),
}


@dataclass(frozen=True)
class Subject:
    """What was evaluated.

    Attributes
    ----------
    name
        Of the model or the map.
    sha256
        Of the model's weights, or of the map's file.
    licence
        Of it; empty where unknown.
    """

    name: str
    sha256: str = ""
    licence: str = ""


@dataclass(frozen=True)
class Labels:
    """What it was compared with.

    Attributes
    ----------
    sha256
        Of the imagery, labels and how they were joined; of the labels' files for a map.
    licences
        Of the labels and their imagery.
    """

    sha256: str = ""
    licences: tuple[str, ...] = ()


@dataclass(frozen=True)
class Part:
    """The figures of one height class, class, fold or city."""

    name: str
    figures: tuple[Figure, ...]


@dataclass(frozen=True)
class Report:
    """An evaluation.

    Attributes
    ----------
    figures
        Of everything.
    parts
        What it was divided by ("height class", "fold", "city") -> the figures of each part.
    intervals
        What the intervals are over, or why there are none; a sentence.
    counts
        What the figures rest on: chips, places, pixels, trees.
    dropped
        What was left out, and why -> how many.
    settings
        All that changes a figure: threshold, matching distance, block, seed.
    curve
        Precision and recall over thresholds; trees only.
    confusion
        True class by predicted class, in the order of the parts of "class".
    notes
        What a reader must know beside the figures, a sentence each.
    """

    task: Task
    subject: Subject
    labels: Labels
    figures: tuple[Figure, ...]
    intervals: str
    parts: Mapping[str, tuple[Part, ...]] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    dropped: Mapping[str, int] = field(default_factory=dict)
    settings: Mapping[str, float | int | str] = field(default_factory=dict)
    curve: tuple[CurvePoint, ...] = ()
    confusion: tuple[tuple[int, ...], ...] = ()
    notes: tuple[str, ...] = ()

    def figure(self, name: str) -> Figure:
        """The figure of that name; KeyError where there is none."""
        for figure in self.figures:
            if figure.name == name:
                return figure
        raise KeyError(name)

    @property
    def basis(self) -> str:
        """What the figures rest on: "144 chips, 53 places, 8,266 trees"."""
        # Every name is an English plural in s.
        return ", ".join(f"{count:,} {name[:-1] if count == 1 else name}" for name, count in self.counts.items())

    def as_dict(self) -> dict[str, Any]:
        """As JSON takes it: what has no value is None. No time and no path: the same data gives the same report."""
        found: dict[str, Any] = {
            "task": self.task,
            "subject": {"name": self.subject.name, "sha256": self.subject.sha256, "licence": self.subject.licence},
            "labels": {"sha256": self.labels.sha256, "licences": list(self.labels.licences)},
            "figures": _figures(self.figures),
            "intervals": self.intervals,
            "parts": {by: {part.name: _figures(part.figures) for part in parts} for by, parts in self.parts.items()},
            "counts": dict(self.counts),
            "dropped": dict(self.dropped),
            "settings": dict(self.settings),
            "notes": list(self.notes),
            "geodino": __version__,
        }
        if self.curve:
            names = ("threshold", "precision", "recall", "f1")
            found["curve"] = [{name: _finite(getattr(point, name)) for name in names} for point in self.curve]
        if self.confusion:
            found["confusion"] = [list(row) for row in self.confusion]
        return found

    def as_json(self) -> str:
        return json.dumps(self.as_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def as_renderables(self) -> list[RenderableType]:
        """Tables and lines for a rich console."""
        from rich.table import Table
        from rich.text import Text

        head = f"{self.task}: {self.subject.name}" + (f" ({self.subject.sha256[:12]})" if self.subject.sha256 else "")
        table = Table(title=head, title_justify="left")
        table.add_column("figure")
        table.add_column("value", justify="right")
        table.add_column("95 % interval", justify="right")
        for figure in self.figures:
            table.add_row(figure.title, shown(figure), shown_interval(figure))
        found: list[RenderableType] = [table]
        found += [_part_table(by, parts, KEY_FIGURES[self.task]) for by, parts in self.parts.items() if parts]
        lines = [f"intervals over {self.intervals}" if not self.intervals.startswith("no ") else self.intervals]
        lines += [self.basis] if self.counts else []
        lines += [f"left out, {reason}: {count:,}" for reason, count in self.dropped.items() if count]
        return [*found, *(Text(line) for line in (*lines, *self.notes))]


def shown(figure: Figure) -> str:
    """The value as a reader wants it: "2.26 m", "73.4 %", "-" where it has none."""
    if not math.isfinite(figure.value):
        return "-"
    return f"{_number(figure.value, figure)} {figure.unit}".rstrip()


def shown_interval(figure: Figure) -> str:
    """The interval: "2.1 to 2.4", or nothing."""
    if figure.low is None or figure.high is None:
        return ""
    return f"{_number(figure.low, figure)} to {_number(figure.high, figure)}"


def _number(value: float, figure: Figure) -> str:
    places = {"%": 1, "trees": 1, "m": 2, "chips": 0}.get(figure.unit, 3)
    signed = "+" if "bias" in figure.name else ""
    text = format(value, f"{signed}.{places}f")
    # -0.00 is 0.
    return text.replace("-", "+" if signed else "") if float(text) == 0 else text


def _part_table(by: str, parts: Sequence[Part], names: frozenset[str]) -> RenderableType:
    from rich.table import Table

    table = Table(title=f"by {by}", title_justify="left")
    table.add_column(by, no_wrap=True)
    for figure in _key_figures(parts[0], names):
        table.add_column(figure.title, justify="right")
    for part in parts:
        table.add_row(part.name, *(shown(figure) for figure in _key_figures(part, names)))
    return table


def _key_figures(part: Part, names: frozenset[str]) -> list[Figure]:
    """Those of that name, and how many chips a fold learned from."""
    return [figure for figure in part.figures if figure.name in names or figure.name == "learned_from"]


def _figures(figures: Sequence[Figure]) -> dict[str, dict[str, float | str | None]]:
    return {
        figure.name: {
            "value": _finite(figure.value),
            "low": _finite(figure.low),
            "high": _finite(figure.high),
            "unit": figure.unit,
        }
        for figure in figures
    }


def _finite(value: float | None) -> float | None:
    # Ten digits: what sums in another order differ by must not change a committed report.
    return float(f"{value:.10g}") if value is not None and math.isfinite(value) else None
