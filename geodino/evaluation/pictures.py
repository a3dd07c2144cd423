"""Pictures of an evaluation: predicted against true, errors by class, the precision-recall curve, confusion."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from geodino.evaluation.chips import Evaluation
from geodino.evaluation.report import Part, Report, Task, shown, shown_interval
from geodino.evaluation.scatter import STEP_M
from geodino.evaluation.sums import Figure as Found
from geodino.outputs.folder import whole_file
from geodino.outputs.preview import FAINT, HEIGHT_COLOURS, INK

DOTS_PER_INCH = 130
# Shares of 1: thresholds along a curve are written where they are so far apart.
_APART = 0.07
OURS, OTHER, WRONG = "#0c6a4c", "#b9b9b9", "#c8500a"


def draw_pictures(evaluation: Evaluation, folder: Path) -> tuple[Path, ...]:
    """Write the pictures of a task as PNG files and return their paths; those that have nothing to show are left out.

    Raises
    ------
    OutputError
        The folder cannot be written.
    """
    paths = []
    for name, draw in PICTURES[evaluation.report.task].items():
        figure = draw(evaluation)
        if figure is not None:
            paths.append(save(figure, folder / name))
    return tuple(paths)


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG, whole or not at all; the same figure gives the same bytes."""
    with whole_file(path) as part:
        figure.savefig(part, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
    return path


def blank(width: float, height: float, report: Report, title: str) -> tuple[Figure, Axes]:
    """A figure of one plot, inches, with the title and what was evaluated over it."""
    figure = Figure(figsize=(width, height), facecolor="white", layout="constrained")
    axes = figure.add_subplot()
    head(axes, title, _subject(report))
    clean(axes)
    return figure, axes


def head(axes: Axes, title: str, under: str = "") -> None:
    lines = textwrap.wrap(under, 62)
    axes.set_title("\n".join([title, *lines]) if lines else title, loc="left", fontsize=10.5, color=INK)


def clean(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(colors=FAINT, labelcolor=INK, labelsize=9)
    axes.xaxis.label.set(color=INK, fontsize=10)
    axes.yaxis.label.set(color=INK, fontsize=10)


def _subject(report: Report) -> str:
    return f"{report.subject.name}: {report.basis}"


def _heights(evaluation: Evaluation) -> Figure | None:
    """Predicted against measured heights, a square as dark as it has pixels."""
    scatter = evaluation.scatter
    if scatter is None or not scatter.counts.any():
        return None
    report = evaluation.report
    figure, axes = blank(6.4, 5.9, report, "Predicted against measured height")
    some = np.flatnonzero(scatter.counts.any(axis=0) | scatter.counts.any(axis=1))
    side = max(10, math.ceil((int(some[-1]) + 1) * STEP_M / 5) * 5)
    edges = np.arange(round(side / STEP_M) + 1) * STEP_M
    counts = scatter.counts[: len(edges) - 1, : len(edges) - 1].T.astype(float)
    drawn = axes.pcolormesh(
        edges, edges, np.where(counts > 0, counts, np.nan), norm=LogNorm(1, max(counts.max(), 2)), cmap=HEIGHT_COLOURS
    )
    axes.plot([0, side], [0, side], color=INK, linewidth=0.9, linestyle=(0, (5, 3)))
    _name_diagonal(axes, side)
    axes.set(xlim=(0, side), ylim=(0, side), aspect="equal")
    axes.set(xlabel="measured height (m)", ylabel="predicted height (m)")
    axes.set_facecolor("#fbfbfb")
    bar = figure.colorbar(drawn, ax=axes, shrink=0.8, pad=0.02)
    what = "footprints" if "footprints" in report.counts else "pixels"
    bar.set_label(f"{what} a square of {STEP_M:g} m", fontsize=9.5, color=INK)
    bar.outline.set_linewidth(0.5)
    _write(axes, report, ("mae_m", "rmse_m", "bias_m", "r2", "block_r2"))
    return figure


def _errors(evaluation: Evaluation) -> Figure | None:
    """MAE of each height class beside the constant's, and the bias."""
    parts = evaluation.report.parts.get("height class", ())
    known = [part for part in parts if math.isfinite(_of(part, "mae_m").value)]
    if not known:
        return None
    figure, axes = blank(7.2, 4.4, evaluation.report, "Error by measured height")
    places = np.arange(len(known))
    constant = evaluation.report.settings.get("constant_m", math.nan)
    bars = [("mae_m", -0.2, OURS, "MAE"), ("constant_mae_m", 0.2, OTHER, f"MAE of the constant {constant:.2f} m")]
    for name, shift, colour, label in bars:
        axes.bar(places + shift, [_of(part, name).value for part in known], 0.38, color=colour, label=label)
    _whiskers(axes, places - 0.2, [_of(part, "mae_m") for part in known], INK)
    bias = [_of(part, "bias_m").value for part in known]
    axes.plot(places - 0.2, bias, "D", color=WRONG, markersize=5.5, label="bias, predicted less measured", zorder=4)
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.set_xticks(places, [f"{part.name}\n{shown(_of(part, 'share'))}" for part in known])
    axes.set_xlabel("measured height, and its share of the labels")
    axes.set_ylabel("error (m)")
    handles, labels = axes.get_legend_handles_labels()
    order = [1, 2, 0]
    axes.legend([handles[i] for i in order], [labels[i] for i in order], frameon=False, fontsize=9, loc="upper left")
    axes.margins(y=0.08)
    return figure


def _counts(evaluation: Evaluation) -> Figure | None:
    """Trees of each chip, predicted against true."""
    sums, report = evaluation.sums, evaluation.report
    if "said" not in sums.columns:
        return None
    there, said = sums.columns["there"], sums.columns["said"]
    figure, axes = blank(5.6, 5.5, report, f"Trees in each {sums.piece}, predicted against labelled")
    side = max(5.0, 1.05 * float(max(there.max(), said.max())))
    axes.plot([0, side], [0, side], color=INK, linewidth=0.9, linestyle=(0, (5, 3)), zorder=1)
    _name_diagonal(axes, side)
    axes.scatter(there, said, s=22, color=OURS, alpha=0.45, linewidths=0, zorder=2)
    axes.set(xlim=(-0.02 * side, side), ylim=(-0.02 * side, side), aspect="equal")
    axes.set(xlabel="labelled trees", ylabel="predicted trees")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(6, integer=True))
    _write(axes, report, ("count_mae", "count_rmse", "count_r2", "count_bias"))
    return figure


def _curve(evaluation: Evaluation) -> Figure | None:
    """Precision over recall, thresholds along it, and lines of equal F1."""
    report = evaluation.report
    points = [point for point in report.curve if math.isfinite(point.precision)]
    if not points:
        return None
    figure, axes = blank(6.0, 5.7, report, f"Precision and recall within {report.settings['within_m']:g} m")
    recall = np.linspace(0.01, 1, 200)
    for level in (0.2, 0.4, 0.6, 0.7, 0.8, 0.9):
        # F = 2 P R / (P + R), solved for P.
        precision = level * recall / (2 * recall - level)
        drawn = (precision > 0) & (precision <= 1)
        axes.plot(recall[drawn], precision[drawn], color="#dddddd", linewidth=0.8, zorder=1)
        axes.text(1.004, level / (2 - level), f"F1 {level:g}", fontsize=8, color=FAINT, va="center", clip_on=False)
    axes.plot([p.recall for p in points], [p.precision for p in points], "-o", color=OURS, markersize=3.5, zorder=3)
    last = (math.inf, math.inf)
    for point in points[1::4]:
        here = (point.recall, point.precision)
        if math.dist(here, last) < _APART:
            continue
        last = here
        # Right of the plot stand the names of the lines.
        left = point.recall > 0.94
        axes.annotate(
            f"{point.threshold:g}", here, (-5 if left else 5, 5), textcoords="offset points", fontsize=8, color=OURS,
            ha="right" if left else "left",
        )  # fmt: skip
    used = {figure.name: figure for figure in report.figures}
    axes.plot(used["recall"].value, used["precision"].value, "D", color=WRONG, markersize=7, zorder=4)
    # Each fold has a threshold of its own.
    threshold = "of each fold" if "fold" in report.parts else f"{report.settings['threshold']:g}"
    axes.annotate(
        f"used: {threshold}, F1 {shown(used['f1'])}",
        (used["recall"].value, used["precision"].value), (-9, -9), textcoords="offset points", fontsize=9, color=WRONG,
        ha="right", va="top",
    )  # fmt: skip
    # Room for what is written over points of precision 1.
    axes.set(xlim=(0, 1), ylim=(0, 1.06), aspect="equal", yticks=np.linspace(0, 1, 6))
    axes.set_xlabel("recall: share of the labelled trees that were found")
    axes.set_ylabel("precision: share of the predicted trees that are there")
    return figure


def _confusion(evaluation: Evaluation) -> Figure | None:
    """Of each true class, the share that was said to be each class."""
    report = evaluation.report
    counts = np.array(report.confusion, float)
    if not counts.size:
        return None
    names = [part.name for part in report.parts["class"]]
    side = max(3.2, 0.62 * len(names))
    longest = 0.085 * max(map(len, names))
    figure, axes = blank(side + longest + 1.9, side + longest + 1.3, report, "Labelled and predicted classes")
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, totals, out=np.zeros_like(counts), where=totals > 0)
    drawn = axes.imshow(shares, cmap=HEIGHT_COLOURS, vmin=0, vmax=1)
    for row, col in np.ndindex(shares.shape):
        if totals[row, 0] and (counts[row, col] or row == col):
            colour = "white" if shares[row, col] > 0.45 else INK
            axes.text(col, row, f"{100 * shares[row, col]:.0f}", ha="center", va="center", fontsize=8.5, color=colour)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="predicted class", ylabel="labelled class")
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(drawn, ax=axes, shrink=0.8, pad=0.02, format=lambda share, _: f"{100 * share:.0f}")
    bar.set_label("% of the labelled class", fontsize=9.5, color=INK)
    bar.outline.set_linewidth(0.5)
    return figure


PICTURES: Mapping[Task, Mapping[str, Callable[[Evaluation], Figure | None]]] = {
    "canopy": {"heights.png": _heights, "errors_by_height.png": _errors},
    "trees": {"counts.png": _counts, "precision_recall.png": _curve},
    "segment": {"confusion.png": _confusion},
    "classify": {"confusion.png": _confusion},
}


def _name_diagonal(axes: Axes, side: float) -> None:
    axes.text(0.96 * side, 0.93 * side, "1:1", rotation=45, ha="center", va="center", fontsize=9, color=INK)


def _of(part: Part, name: str) -> Found:
    return next(figure for figure in part.figures if figure.name == name)


def _whiskers(axes: Axes, places: npt.NDArray[Any], found: list[Found], colour: str) -> None:
    for place, figure in zip(places, found, strict=True):
        if figure.low is not None and figure.high is not None:
            axes.plot([place, place], [figure.low, figure.high], color=colour, linewidth=1.2, zorder=3)


def _write(axes: Axes, report: Report, names: tuple[str, ...]) -> None:
    """Figures with their intervals, in the upper left corner."""
    lines = []
    for figure in report.figures:
        if figure.name in names and math.isfinite(figure.value):
            interval = shown_interval(figure)
            lines.append(f"{figure.title}: {shown(figure)}" + (f" ({interval})" if interval else ""))
    axes.text(
        0.03, 0.975, "\n".join(lines), transform=axes.transAxes, va="top", fontsize=8.5, color=INK, linespacing=1.4,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 2},
    )  # fmt: skip
