"""What the training loop needs of each task: its loss, its figures on tuning chips, and when to doubt these."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from geodino.evaluation.classes import CLASSIFY_FORMULAS, SEGMENT_FORMULAS, classify_sums, segment_sums
from geodino.evaluation.ownership import owned_windows
from geodino.evaluation.sums import Floats, Formula, Totals, collect
from geodino.evaluation.tree_points import (
    DENSITY_FORMULAS,
    TREE_FORMULAS,
    density_on,
    density_sums,
    on_ground,
    tree_sums,
)
from geodino.grid import Window
from geodino.models.heads import HeightMaps, TreeMaps
from geodino.models.network import HeadedNetwork
from geodino.models.precision import autocast
from geodino.models.pyramid import CELL
from geodino.training.augment import plain_look
from geodino.training.chipset import Task
from geodino.training.losses import TALL_SHARE, TreeTargets, canopy_loss, enlarged, footprint_loss, tree_loss
from geodino.training.recipe import Recipe
from geodino.training.targets import UNKNOWN_CLASS, Targets, targets
from geodino.trees import find_peaks

if TYPE_CHECKING:
    from geodino.training.engine import Job

THRESHOLDS = np.round(np.arange(0.10, 0.701, 0.02), 2)
# Cells: a tree is the hottest cell of the square of so many around it.
SPACINGS = (1, 2, 3)
# Differences of F1 under this are luck on some dozens of chips, while the counts of such settings are up to 15 % apart.
F1_TIE = 0.003
_BATCH = 8


class Measured(NamedTuple):
    """Figures on the tuning chips, NaN where they have no value, and the one that chooses: the higher the better."""

    figures: dict[str, float]
    score: float


class TaskRow(NamedTuple):
    """One task.

    Attributes
    ----------
    doubt
        How these figures are no better than what needs no training, in a sentence; empty if they are better.
    """

    loss: Callable[[Any, Targets, float, Recipe], torch.Tensor]
    measure: Callable[[HeadedNetwork, Job], Measured]
    doubt: Callable[[Mapping[str, float]], str]


class Seen(NamedTuple):
    """What the network says of the middle of a chip, and what it should.

    Attributes
    ----------
    chip
        Its number in the set.
    counted
        Bool (S, S): labelled, and this chip's own where tuning chips overlap.
    """

    chip: int
    said: Any
    wanted: Targets
    counted: npt.NDArray[np.bool_]


def _canopy_loss(found: HeightMaps, wanted: Targets, progress: float, recipe: Recipe) -> torch.Tensor:
    if "disc" in wanted:
        return footprint_loss(found, wanted["disc"], wanted["tallest"])
    return canopy_loss(found, wanted["height"], wanted["known"], progress, silog=recipe.silog, doubt=recipe.doubt)


def _tree_loss(found: TreeMaps, wanted: Targets, progress: float, recipe: Recipe) -> torch.Tensor:
    return tree_loss(found, TreeTargets(**wanted))


def _segment_loss(found: torch.Tensor, wanted: Targets, progress: float, recipe: Recipe) -> torch.Tensor:
    classes = wanted["classes"]
    logits = functional.interpolate(found, size=tuple(classes.shape[-2:]), mode="bilinear", align_corners=False)
    if not (classes != UNKNOWN_CLASS).any():
        return logits.sum() * 0
    return functional.cross_entropy(logits, classes, ignore_index=UNKNOWN_CLASS)


def _classify_loss(found: torch.Tensor, wanted: Targets, progress: float, recipe: Recipe) -> torch.Tensor:
    return functional.cross_entropy(found, wanted["label"])


def predictions(network: HeadedNetwork, job: Job) -> Iterator[Seen]:
    """What the network says of the tuning chips, one by one."""
    chips, look = job.chips, plain_look(job.chips.size, job.recipe.size)
    top = int(look.centre[1] - look.size / 2)
    here = slice(top, top + look.size)
    owned = owned_windows(chips.table.iloc[job.tune], chips.size, chips.gsd_m)
    for start in range(0, len(job.tune), _BATCH):
        batch = [int(i) for i in job.tune[start : start + _BATCH]]
        images = torch.from_numpy(np.stack([chips.image(i)[:, here, here] for i in batch])).to(job.device)
        with torch.inference_mode(), autocast(job.device, job.precision):
            found = network(job.normalise(images), [chips.task])[chips.task]
        for row, index in enumerate(batch):
            one = (
                type(found)(*(m[row : row + 1].cpu() for m in found)) if isinstance(found, tuple) else found[row].cpu()
            )
            mine = owned[start + row].slices_in(Window(0, 0, chips.size, chips.size))
            counted = np.zeros((chips.size, chips.size), np.bool_)
            counted[mine] = chips.labelled[index][mine]
            yield Seen(index, one, targets(chips, index, look), counted[here, here])


def _measure_trees(network: HeadedNetwork, job: Job) -> Measured:
    """F1 at the best threshold and spacing, and how well the density counts; on labelled ground alone."""
    look = plain_look(job.chips.size, job.recipe.size)
    tried = [(spacing, float(threshold)) for spacing in SPACINGS for threshold in THRESHOLDS]
    parts: list[list[dict[str, Floats]]] = [[] for _ in tried]
    for seen in predictions(network, job):
        assert job.chips.points is not None
        points = look.points(job.chips.points[seen.chip])
        true = on_ground(points[((points >= 0) & (points < look.size)).all(axis=1)], seen.counted)
        heat, offset = seen.said.heat[0].sigmoid().numpy(), seen.said.offset[0].numpy()
        peaks = {s: find_peaks(heat, offset, threshold=float(THRESHOLDS[0]), spacing=s, cell=CELL) for s in SPACINGS}
        said = {s: on_ground(found.points, seen.counted, found.scores) for s, found in peaks.items()}
        density = density_sums(density_on(seen.said.density[0].float().numpy(), seen.counted), true)
        for part, (spacing, threshold) in zip(parts, tried, strict=True):
            part.append(density | tree_sums(said[spacing], true, gsd_m=job.chips.gsd_m, threshold=threshold))
    totals = [_total(part) for part in parts]
    f1 = np.array([_figures(TREE_FORMULAS, total)["f1"] for total in totals])
    best = best_setting(f1, np.array([float(total["said"][0]) for total in totals]), float(totals[0]["there"][0]))
    figures = _figures((*TREE_FORMULAS, *DENSITY_FORMULAS), totals[best])
    return Measured(
        {
            "f1": figures["f1"],
            "spacing": tried[best][0],
            "threshold": tried[best][1],
            "precision": figures["precision"],
            "recall": figures["recall"],
            "count_bias": figures["count_bias"] / 100,
            "density_r2": figures["density_r2"],
            "density_bias": figures["density_bias"] / 100,
        },
        figures["f1"],
    )


def best_setting(f1: np.ndarray, found: np.ndarray, true: float) -> int:
    """Which of the settings, (N,), is best: of those as good as the highest F1, within `F1_TIE`, the best counting one.

    Parameters
    ----------
    found, true
        How many trees each setting finds, (N,), and how many there are.
    """
    return int(np.where(f1 >= f1.max() - F1_TIE, np.abs(found - true), np.inf).argmin())


def _measure_canopy(network: HeadedNetwork, job: Job) -> Measured:
    """MAE, bias and R2 in metres over all known pixels or footprints, beside the MAE of the median."""
    found, wanted = [], []
    for seen in predictions(network, job):
        target = seen.wanted
        height = enlarged(seen.said.height, target["known"].shape)[0]
        if "disc" in target:
            numbers = torch.isfinite(target["tallest"]).nonzero()[:, 0].tolist()
            inside = [height[target["disc"] == k + 1].quantile(TALL_SHARE) for k in numbers]
            found.append(np.array([float(value) for value in inside]))
            wanted.append(target["tallest"][numbers].numpy())
            continue
        known = target["known"] & torch.from_numpy(seen.counted)
        found.append(height[known].numpy())
        wanted.append(target["height"][known].numpy())
    predicted, truth = np.concatenate(found).astype(np.float64), np.concatenate(wanted).astype(np.float64)
    mae = float(np.abs(predicted - truth).mean())
    figures = {
        "mae_m": mae,
        "bias_m": float((predicted - truth).mean()),
        "r2": _r2(predicted, truth),
        "constant_mae_m": float(np.abs(truth - np.median(truth)).mean()),
    }
    return Measured(figures, -mae)


def _measure_segment(network: HeadedNetwork, job: Job) -> Measured:
    parts = []
    for seen in predictions(network, job):
        classes = seen.wanted["classes"]
        size = tuple(classes.shape)
        sized = functional.interpolate(seen.said[None], size=size, mode="bilinear", align_corners=False)
        count = len(job.chips.class_names)
        parts.append(segment_sums(sized[0].argmax(0).numpy(), classes.numpy(), classes=count, counted=seen.counted))
    totals = _total(parts)
    figures = _figures(SEGMENT_FORMULAS, totals)
    # Of the commonest class alone, whose IoU is its share, while that of the others is 0.
    labelled = int((totals["confusion"].sum(axis=-1) > 0).sum())
    figures["commonest_miou"] = figures["commonest_accuracy"] / labelled if labelled else float("nan")
    return Measured(figures, figures["miou"])


def _measure_classify(network: HeadedNetwork, job: Job) -> Measured:
    count = len(job.chips.class_names)
    parts = [
        classify_sums(int(seen.said.argmax()), int(seen.wanted["label"]), classes=count)
        for seen in predictions(network, job)
    ]
    figures = _figures(CLASSIFY_FORMULAS, _total(parts))
    return Measured(figures, figures["accuracy"])


def _total(parts: Sequence[Mapping[str, Floats]]) -> Totals:
    return collect(((part, "") for part in parts), unit="chips").total()


def _figures(formulas: Sequence[Formula], totals: Totals) -> dict[str, float]:
    return {formula.name: float(formula.of(totals)[0]) for formula in formulas}


def _r2(found: np.ndarray, truth: np.ndarray) -> float:
    total = float(((truth - truth.mean()) ** 2).sum())
    return 1 - float(((found - truth) ** 2).sum()) / total if total else float("nan")


def _doubt_canopy(figures: Mapping[str, float]) -> str:
    mae, constant = figures["mae_m"], figures["constant_mae_m"]
    return "" if mae < constant else f"MAE {mae:.2f} m, and {constant:.2f} m of the median height alone"


def _doubt_trees(figures: Mapping[str, float]) -> str:
    return "" if figures["f1"] > 0 else "F1 0, none of the trees is found"


def _doubt_segment(figures: Mapping[str, float]) -> str:
    miou, commonest = figures["miou"], figures["commonest_miou"]
    return "" if miou > commonest else f"mean IoU {miou:.2f}, and {commonest:.2f} of the commonest class alone"


def _doubt_classify(figures: Mapping[str, float]) -> str:
    accuracy, commonest = figures["accuracy"], figures["commonest_accuracy"]
    return "" if accuracy > commonest else f"accuracy {accuracy:.2f}, and {commonest:.2f} of the commonest class alone"


TASKS: Mapping[Task, TaskRow] = {
    "canopy": TaskRow(_canopy_loss, _measure_canopy, _doubt_canopy),
    "trees": TaskRow(_tree_loss, _measure_trees, _doubt_trees),
    "segment": TaskRow(_segment_loss, _measure_segment, _doubt_segment),
    "classify": TaskRow(_classify_loss, _measure_classify, _doubt_classify),
}
