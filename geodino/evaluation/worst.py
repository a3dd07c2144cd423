"""The worst chips side by side: image, labels, prediction. Where a figure is bad, this shows why."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, ListedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Circle, Patch

from geodino.evaluation.chips import Evaluation, Predict, Seen, trees_said
from geodino.evaluation.matching import match_points
from geodino.evaluation.ownership import owned_windows
from geodino.evaluation.pictures import OURS, WRONG, save
from geodino.evaluation.report import Task
from geodino.evaluation.tasks import ROWS
from geodino.evaluation.tree_points import on_ground
from geodino.outputs.preview import FAINT, HEIGHT_COLOURS, INK, NODATA_FACE, top_of_scale

if TYPE_CHECKING:
    from geodino.training.chipset import ChipSet

MISSED, UNCOUNTED = "#ffb000", "#8a8a8a"
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
    """Write `worst_figure` as a PNG and return its path.

    Raises
    ------
    OutputError
        The folder cannot be written.
    """
    return save(worst_figure(evaluation, predict, chips, count=count), path)


def worst_figure(evaluation: Evaluation, predict: Predict, chips: ChipSet, *, count: int = 4) -> Figure:
    """A figure of the worst chips.

    Parameters
    ----------
    predict, chips
        As given to `evaluate_chips`.
    """
    owned = owned_windows(chips.table, chips.size, chips.gsd_m)
    seen = [
        Seen(chips, index, predict(chips.image(index)[None])[0], owned[index], (0, 0), math.nan, evaluation.settings)
        for index in worst_chips(evaluation, count)
    ]
    figure = (_labels_alone if chips.task == "classify" else _side_by_side)(seen)
    figure.suptitle(
        f"{evaluation.report.subject.name}: the worst chips, one a place; {chips.size * chips.gsd_m:.0f} m wide",
        x=0.01, ha="left", fontsize=11, color=INK,
    )  # fmt: skip
    return figure


def _side_by_side(worst: Sequence[Seen]) -> Figure:
    """A row a chip: image, labels, prediction."""
    figure = Figure(figsize=(3 * _PANEL + 1.3, len(worst) * _PANEL + 0.8), facecolor="white", layout="constrained")
    grid = figure.subplots(len(worst), 3, squeeze=False)
    for axes, seen in zip(grid, worst, strict=True):
        for panel in axes:
            _frame(panel, seen)
        axes[0].set_ylabel(_name(seen), fontsize=8, color=INK)
        _photo(axes[0], seen)
        _PANELS[seen.chips.task](figure, axes, seen)
    for panel, title in zip(grid[0], ("image", "labels", "prediction"), strict=True):
        panel.set_title(title, loc="left", fontsize=10, color=INK)
    return figure


def _labels_alone(worst: Sequence[Seen]) -> Figure:
    """An image a chip, with what it is and what was said of it under it: labels have no picture of their own."""
    cols = min(len(worst), 4)
    rows = -(-len(worst) // cols)
    figure = Figure(figsize=(cols * _PANEL, rows * (_PANEL + 0.75) + 0.4), facecolor="white", layout="constrained")
    for panel, seen in zip(figure.subplots(rows, cols, squeeze=False).flat, worst, strict=False):
        _frame(panel, seen)
        _photo(panel, seen)
        assert seen.chips.labels is not None
        names, true = seen.chips.class_names, int(seen.chips.labels[seen.index])
        best = np.argsort(-seen.said)[:2].tolist()
        said = ", ".join(f"{names[i]} {100 * seen.said[i]:.0f}\N{NO-BREAK SPACE}%" for i in best)
        panel.set_title(_name(seen), loc="left", fontsize=8, color=INK)
        panel.set_xlabel(
            textwrap.fill(f"is {names[true]}; said {said}", 40), loc="left", fontsize=8.5,
            color=INK if best[0] == true else WRONG,
        )  # fmt: skip
    for panel in figure.axes[len(worst) :]:
        panel.set_axis_off()
    return figure


def _name(seen: Seen) -> str:
    return str(seen.chips.table["chip"].iloc[seen.index])


def _frame(panel: Axes, seen: Seen) -> None:
    panel.set(xticks=[], yticks=[], xlim=(0, seen.chips.size), ylim=(seen.chips.size, 0))
    panel.spines[:].set(color=FAINT, linewidth=0.6)


def _photo(axes: Axes, seen: Seen, *, faded: bool = False) -> None:
    chips = seen.chips
    picture = np.moveaxis(chips.image(seen.index), 0, -1)
    shown = np.dstack([1 - (1 - picture) * 0.6 if faded else picture, chips.valid[seen.index]])
    axes.set_facecolor(NODATA_FACE)
    axes.imshow(shown, extent=(0, chips.size, chips.size, 0))


def _shade(axes: Axes, seen: Seen) -> None:
    """Cover what does not count: ground that nobody labelled, or that a neighbouring chip owns."""
    cover = np.zeros((*seen.counted.shape, 4))
    cover[~seen.counted] = (*to_rgb(UNCOUNTED), 0.75)
    axes.imshow(cover, extent=(0, seen.chips.size, seen.chips.size, 0), interpolation="nearest")


def _raster(
    axes: Axes, values: npt.NDArray[Any], seen: Seen, colours: Colormap, lowest: float, highest: float
) -> AxesImage:
    axes.set_facecolor(NODATA_FACE)
    extent = (0, seen.chips.size, seen.chips.size, 0)
    return axes.imshow(values, colours, vmin=lowest, vmax=highest, extent=extent, interpolation="nearest")


def _draw_canopy(figure: Figure, axes: npt.NDArray[np.object_], seen: Seen) -> None:
    chips, said = seen.chips, seen.said[0]
    if chips.heights is not None:
        truth = chips.heights[seen.index]
        top = top_of_scale(np.where(np.isfinite(truth), np.fmax(truth, said), np.nan))
        _raster(axes[1], truth, seen, HEIGHT_COLOURS, 0, top)
    else:
        assert chips.footprints is not None
        found = chips.footprints[seen.index]
        top = max(top_of_scale(said), top_of_scale(found[:, 3]))
        _photo(axes[1], seen, faded=True)
        for x, y, radius, height in found.tolist():
            colour = HEIGHT_COLOURS(height / top)
            axes[1].add_patch(Circle((x, y), radius, facecolor=colour, edgecolor=INK, linewidth=0.6))
            axes[2].add_patch(Circle((x, y), radius, facecolor="none", edgecolor=INK, linewidth=0.6))
    known = np.where(chips.valid[seen.index], said, np.nan)
    drawn = _raster(axes[2], known, seen, HEIGHT_COLOURS, 0, top)
    bar = figure.colorbar(drawn, ax=axes[2], pad=0.02, shrink=0.9)
    bar.set_label("height (m)", fontsize=8.5, color=INK)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_linewidth(0.5)


def _draw_trees(figure: Figure, axes: npt.NDArray[np.object_], seen: Seen) -> None:
    """Hits, false and missed trees on the ground that counts: the numbers that the figures rest on."""
    chips, settings = seen.chips, seen.settings
    assert chips.points is not None
    said = trees_said(seen.said, size=chips.size, settings=settings, threshold=settings.threshold)
    found = on_ground(said.points, seen.counted, said.scores)
    true = on_ground(chips.points[seen.index].astype(np.float64), seen.counted)
    pairs = match_points(found.points, true.points, within=settings.within_m / chips.gsd_m)
    hit = np.isin(np.arange(len(found.points)), pairs.predicted)
    met = np.isin(np.arange(len(true.points)), pairs.true)
    for panel in axes[1:]:
        _photo(panel, seen, faded=True)
        _shade(panel, seen)
    axes[1].plot(
        *true.points[true.owned].T, "o", markersize=4, markerfacecolor="none", markeredgecolor=INK, markeredgewidth=1.1
    )
    kinds = [
        ("hit", found.points[hit & found.owned], OURS, "o"),
        ("false", found.points[~hit & found.owned], WRONG, "x"),
        ("missed", true.points[~met & true.owned], MISSED, "o"),
    ]
    signs: list[Artist] = []
    for label, points, colour, marker in kinds:
        full = colour if label == "hit" else "none"
        signs += axes[2].plot(
            *points.T, marker, markersize=4.5, markerfacecolor=full, markeredgecolor=colour, markeredgewidth=1.4,
            linestyle="none", label=f"{len(points)} {label}",
        )  # fmt: skip
    if not seen.counted.all():
        signs.append(Patch(color=UNCOUNTED, label="not counted"))
    axes[2].legend(
        handles=signs, loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize=8.5, handletextpad=0.4
    )


def _draw_segment(figure: Figure, axes: npt.NDArray[np.object_], seen: Seen) -> None:
    chips, index = seen.chips, seen.index
    assert chips.classes is not None
    names = chips.class_names
    colours = ListedColormap([CLASS_COLOURS[i % len(CLASS_COLOURS)] for i in range(len(names))])
    true = np.ma.masked_where(~chips.labelled[index], chips.classes[index])
    best = seen.said.argmax(axis=0)
    for panel, values in ((axes[1], true), (axes[2], np.ma.masked_where(~chips.valid[index], best))):
        _raster(panel, values, seen, colours, -0.5, len(names) - 0.5)
    there = sorted({*np.unique(true.compressed()).tolist(), *np.unique(best).tolist()})
    signs = [Patch(color=colours(i), label=names[i]) for i in there]
    axes[2].legend(handles=signs, loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize=8.5)


_Draw = Callable[[Figure, npt.NDArray[np.object_], Seen], None]
_PANELS: Mapping[Task, _Draw] = {"canopy": _draw_canopy, "trees": _draw_trees, "segment": _draw_segment}
