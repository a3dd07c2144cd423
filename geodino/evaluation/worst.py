"""The worst chips side by side: image, labels, prediction. Where a figure is bad, this shows why."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, ListedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Circle, Patch

from geodino.evaluation.chips import Array, Evaluation, Predict, trees_said
from geodino.evaluation.matching import match_points
from geodino.evaluation.pictures import OURS, WRONG, save
from geodino.evaluation.report import Task
from geodino.evaluation.tasks import ROWS
from geodino.outputs.preview import FAINT, HEIGHT_COLOURS, INK, NODATA_FACE, top_of_scale

if TYPE_CHECKING:
    from geodino.training.chipset import ChipSet

MISSED = "#ffb000"
_PANEL = 2.9
# Twelve that can be told apart, also by most who see colours otherwise (Paul Tol's "muted", and three more).
CLASS_COLOURS = (
    "#332288", "#117733", "#ddcc77", "#88ccee", "#cc6677", "#44aa99", "#882255", "#999933", "#aa4499", "#666666",
    "#e8601c", "#f1eef6",
)  # fmt: skip


def worst_chips(evaluation: Evaluation, count: int) -> list[int]:
    """The numbers of the chips with the largest errors, at most one a place, the worst first."""
    sums = evaluation.sums
    names, totals = sums.of_each(sums.chips.astype(np.str_))
    errors = ROWS[evaluation.report.task].errors(totals)
    found: dict[str, int] = {}
    for index in np.argsort(-np.nan_to_num(errors, nan=-np.inf), kind="stable"):
        chip = int(names[index])
        if np.isfinite(errors[index]):
            found.setdefault(str(sums.places[sums.chips == chip][0]), chip)
    return list(found.values())[:count]


def draw_worst(evaluation: Evaluation, predict: Predict, chips: ChipSet, path: Path, *, count: int = 4) -> Path:
    """Write a PNG of the worst chips and return its path.

    Parameters
    ----------
    predict, chips
        As given to `evaluate_chips`.

    Raises
    ------
    OutputError
        The folder cannot be written.
    """
    indices = worst_chips(evaluation, count)
    said = [predict(chips.image(index)[None])[0] for index in indices]
    rows = len(indices)
    figure = Figure(figsize=(3 * _PANEL + 1.3, rows * _PANEL + 0.8), facecolor="white", layout="constrained")
    grid = figure.subplots(rows, 3, squeeze=False)
    draw = _PANELS[chips.task]
    for axes, index, maps in zip(grid, indices, said, strict=True):
        for panel in axes:
            panel.set(xticks=[], yticks=[], xlim=(0, chips.size), ylim=(chips.size, 0))
            panel.spines[:].set(color=FAINT, linewidth=0.6)
        axes[0].set_ylabel(str(chips.table["chip"].iloc[index]), fontsize=8, color=INK)
        _photo(axes[0], chips, index)
        draw(figure, axes, evaluation, chips, index, maps)
    for panel, title in zip(grid[0], ("image", "labels", "prediction"), strict=True):
        panel.set_title(title, loc="left", fontsize=10, color=INK)
    side_m = chips.size * chips.gsd_m
    figure.suptitle(
        f"{evaluation.report.subject.name}: the worst chips, one a place; {side_m:.0f} m wide", x=0.01, ha="left",
        fontsize=11, color=INK,
    )  # fmt: skip
    return save(figure, path)


def _photo(axes: Axes, chips: ChipSet, index: int, *, faded: bool = False) -> None:
    picture = np.moveaxis(chips.image(index), 0, -1)
    seen = np.dstack([1 - (1 - picture) * 0.6 if faded else picture, chips.valid[index]])
    axes.set_facecolor(NODATA_FACE)
    axes.imshow(seen, extent=(0, chips.size, chips.size, 0))


def _raster(
    axes: Axes, values: npt.NDArray[Any], chips: ChipSet, colours: Colormap, lowest: float, highest: float
) -> AxesImage:
    axes.set_facecolor(NODATA_FACE)
    extent = (0, chips.size, chips.size, 0)
    return axes.imshow(values, colours, vmin=lowest, vmax=highest, extent=extent, interpolation="nearest")


def _draw_canopy(
    figure: Figure, axes: npt.NDArray[np.object_], evaluation: Evaluation, chips: ChipSet, index: int, said: Array
) -> None:
    if chips.heights is not None:
        truth = chips.heights[index]
        top = top_of_scale(np.where(np.isfinite(truth), np.fmax(truth, said[0]), np.nan))
        _raster(axes[1], truth, chips, HEIGHT_COLOURS, 0, top)
    else:
        assert chips.footprints is not None
        top = top_of_scale(said[0])
        _photo(axes[1], chips, index, faded=True)
        for x, y, radius, height in chips.footprints[index].tolist():
            colour = HEIGHT_COLOURS(height / top)
            axes[1].add_patch(Circle((x, y), radius, facecolor=colour, edgecolor=INK, linewidth=0.6))
    known = np.where(chips.valid[index], said[0], np.nan)
    drawn = _raster(axes[2], known, chips, HEIGHT_COLOURS, 0, top)
    bar = figure.colorbar(drawn, ax=axes[2], pad=0.02, shrink=0.9)
    bar.set_label("height (m)", fontsize=8.5, color=INK)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_linewidth(0.5)


def _draw_trees(
    figure: Figure, axes: npt.NDArray[np.object_], evaluation: Evaluation, chips: ChipSet, index: int, said: Array
) -> None:
    assert chips.points is not None
    settings, true = evaluation.settings, chips.points[index].astype(np.float64)
    found = trees_said(said, size=chips.size, settings=settings, threshold=settings.threshold).points
    pairs = match_points(found, true, within=settings.within_m / chips.gsd_m)
    wrong = np.delete(found, pairs.predicted, axis=0)
    missed = np.delete(true, pairs.true, axis=0)
    for panel in axes[1:]:
        _photo(panel, chips, index, faded=True)
    axes[1].plot(*true.T, "o", markersize=4, markerfacecolor="none", markeredgecolor=INK, markeredgewidth=1.1)
    kinds = [("hit", found[pairs.predicted], OURS, "o"), ("false", wrong, WRONG, "x"), ("missed", missed, MISSED, "o")]
    for label, points, colour, marker in kinds:
        full = colour if label == "hit" else "none"
        axes[2].plot(
            *points.T, marker, markersize=4.5, markerfacecolor=full, markeredgecolor=colour, markeredgewidth=1.4,
            linestyle="none", label=f"{len(points)} {label}",
        )  # fmt: skip
    axes[2].legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize=8.5, handletextpad=0.2)


def _draw_segment(
    figure: Figure, axes: npt.NDArray[np.object_], evaluation: Evaluation, chips: ChipSet, index: int, said: Array
) -> None:
    assert chips.classes is not None
    names = chips.class_names
    colours = ListedColormap([CLASS_COLOURS[i % len(CLASS_COLOURS)] for i in range(len(names))])
    true = np.ma.masked_where(~chips.labelled[index], chips.classes[index])
    best = said.argmax(axis=0)
    for panel, values in ((axes[1], true), (axes[2], np.ma.masked_where(~chips.valid[index], best))):
        _raster(panel, values, chips, colours, -0.5, len(names) - 0.5)
    seen = sorted({*np.unique(true.compressed()).tolist(), *np.unique(best).tolist()})
    signs = [Patch(color=colours(i), label=names[i]) for i in seen]
    axes[2].legend(handles=signs, loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize=8.5)


def _draw_classify(
    figure: Figure, axes: npt.NDArray[np.object_], evaluation: Evaluation, chips: ChipSet, index: int, said: Array
) -> None:
    assert chips.labels is not None
    best = np.argsort(-said)[:3]
    lines = (
        [chips.class_names[int(chips.labels[index])]],
        [f"{chips.class_names[int(i)]} {100 * said[i]:.0f} %" for i in best],
    )
    for panel, text in zip(axes[1:], lines, strict=True):
        panel.text(0.08 * chips.size, 0.5 * chips.size, "\n".join(text), fontsize=11, color=INK, va="center")


_Draw = Callable[[Figure, npt.NDArray[np.object_], Evaluation, "ChipSet", int, Array], None]
_PANELS: Mapping[Task, _Draw] = {
    "canopy": _draw_canopy,
    "trees": _draw_trees,
    "segment": _draw_segment,
    "classify": _draw_classify,
}
