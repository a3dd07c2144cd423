"""One row a task: which figures come of its sums, and how they are divided; and a report made of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import numpy.typing as npt

from geodino.errors import ConfigError
from geodino.evaluation import canopy, classes, tree_points
from geodino.evaluation.matching import MATCH_M
from geodino.evaluation.report import Part, Report, Task
from geodino.evaluation.sums import RESAMPLES, Figure, Formula, Sums, Totals, figures, figures_by_class, ratio, resample


@dataclass(frozen=True)
class Settings:
    """All that changes a figure.

    Attributes
    ----------
    threshold
        The least score of a predicted tree, 0..1.
    spacing
        Cells: see `geodino.trees.find_peaks`.
    within_m
        Metres within which a predicted tree may stand for a true one.
    block_px
        Pixels: side of the blocks of block R2.
    resamples, seed
        Of the intervals.
    """

    threshold: float = 0.3
    spacing: int = 1
    within_m: float = MATCH_M
    block_px: int = canopy.BLOCK_PX
    resamples: int = RESAMPLES
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise ConfigError(f"threshold {self.threshold} must lie in 0 to 1")
        if self.block_px < 1 or self.resamples < 1:
            raise ConfigError(f"block of {self.block_px} px and {self.resamples} resamples must be at least 1")


@dataclass(frozen=True)
class TaskRow:
    """A task's figures.

    Attributes
    ----------
    whole, each
        The figures of everything, and of each class.
    by
        What the classes are.
    for_whole, for_each
        What those formulas see of the totals.
    uses
        The settings that matter to the task.
    errors
        How wrong each chip is, (N,), from its sums; NaN where nothing of it is known. For the worst chips.
    """

    whole: tuple[Formula, ...]
    each: tuple[Formula, ...]
    by: str
    for_whole: Callable[[Totals], Totals]
    for_each: Callable[[Totals], Totals]
    uses: tuple[str, ...]
    errors: Callable[[Totals], npt.NDArray[np.float64]]


def _as_it_is(totals: Totals) -> Totals:
    return totals


def _wrong(totals: Totals) -> npt.NDArray[np.float64]:
    confusion = totals["confusion"]
    return ratio(confusion.sum(axis=(1, 2)) - np.trace(confusion, axis1=1, axis2=2), confusion.sum(axis=(1, 2)))


ROWS: Mapping[Task, TaskRow] = {
    "canopy": TaskRow(
        whole=(*canopy.HEIGHT_FORMULAS, *canopy.WHOLE_FORMULAS, *canopy.SPREAD_FORMULAS),
        each=(canopy.SHARE, *canopy.HEIGHT_FORMULAS, *canopy.SPREAD_FORMULAS[:2]),
        by="height class",
        for_whole=canopy.over_classes,
        for_each=canopy.of_classes,
        uses=("block_px", "resamples", "seed"),
        errors=lambda t: ratio(t["abs"].sum(axis=1), t["n"].sum(axis=1)),
    ),
    "trees": TaskRow(
        whole=(*tree_points.TREE_FORMULAS, *tree_points.DENSITY_FORMULAS),
        each=(),
        by="",
        for_whole=_as_it_is,
        for_each=_as_it_is,
        uses=("threshold", "spacing", "within_m", "resamples", "seed"),
        # Trees that were missed or made up; a share would choose chips of one tree.
        errors=lambda t: t["said"] - t["said_hit"] + t["there"] - t["there_hit"],
    ),
    "segment": TaskRow(
        whole=classes.SEGMENT_FORMULAS,
        each=classes.CLASS_FORMULAS,
        by="class",
        for_whole=_as_it_is,
        for_each=_as_it_is,
        uses=("block_px", "resamples", "seed"),
        errors=_wrong,
    ),
    "classify": TaskRow(
        whole=classes.CLASSIFY_FORMULAS,
        each=tuple(formula for formula in classes.CLASS_FORMULAS if formula.name != "iou"),
        by="class",
        for_whole=_as_it_is,
        for_each=_as_it_is,
        uses=("resamples", "seed"),
        errors=_wrong,
    ),
}


def report_on(
    report: Report,
    sums: Sums,
    settings: Settings,
    *,
    class_names: Sequence[str] = (),
    by: Mapping[str, npt.NDArray[np.str_]] | None = None,
) -> Report:
    """The report with its figures, intervals, parts, curve and confusion filled in from sums.

    Parameters
    ----------
    report
        What is known besides: task, subject, labels, counts, dropped, notes.
    class_names
        Of segment and classify; canopy has its own.
    by
        What else to divide by ("fold", "city") -> the part that each unit (U,) belongs to.
    """
    row = ROWS[report.task]
    drawn = resample(sums, resamples=settings.resamples, seed=settings.seed)
    parts: dict[str, tuple[Part, ...]] = {}
    if row.each:
        names = canopy.CLASS_NAMES if report.task == "canopy" else class_names
        found = figures_by_class(row.each, row.for_each(drawn.totals))
        parts[row.by] = tuple(Part(name, of_class) for name, of_class in zip(names, found, strict=True))
    for name, groups in (by or {}).items():
        parts[name] = tuple(
            Part(str(group), _figures(row, sums.where(groups == group), settings)) for group in np.unique(groups)
        )
    confusion = sums.columns["confusion"].sum(axis=0).astype(int) if "confusion" in sums.columns else np.empty((0, 0))
    known = asdict(settings)
    return Report(
        task=report.task,
        subject=report.subject,
        labels=report.labels,
        figures=figures(_titled(row, sums), row.for_whole(drawn.totals)),
        intervals=drawn.over,
        parts=parts,
        counts=report.counts,
        dropped=report.dropped,
        settings={name: known[name] for name in row.uses} | dict(report.settings),
        curve=tree_points.curve_of(sums) if "curve_said" in sums.columns else (),
        confusion=tuple(tuple(int(count) for count in line) for line in confusion),
        notes=(*report.notes, *((canopy.block_note(sums, settings.block_px),) if "block_n" in sums.columns else ())),
    )


def _figures(row: TaskRow, sums: Sums, settings: Settings) -> tuple[Figure, ...]:
    drawn = resample(sums, resamples=settings.resamples, seed=settings.seed)
    return figures(_titled(row, sums), row.for_whole(drawn.totals))


def _titled(row: TaskRow, sums: Sums) -> tuple[Formula, ...]:
    return tuple(replace(formula, title=formula.title.format(piece=sums.piece)) for formula in row.whole)
