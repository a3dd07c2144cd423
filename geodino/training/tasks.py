"""What the training loop needs of each task: its loss, its classes to balance by, its figures on tuning chips."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional

from geodino.evaluation.matching import match_points
from geodino.models.heads import HeightMaps, TreeMaps
from geodino.models.network import HeadedNetwork
from geodino.models.precision import autocast
from geodino.models.pyramid import CELL
from geodino.training.augment import plain_look
from geodino.training.chipset import ChipSet, Task
from geodino.training.losses import TALL_SHARE, TreeTargets, canopy_loss, enlarged, footprint_loss, tree_loss
from geodino.training.recipe import Recipe
from geodino.training.targets import UNKNOWN_CLASS, Targets, targets
from geodino.trees import find_peaks

if TYPE_CHECKING:
    from geodino.training.engine import Job

# Metres; half of the crops are drawn by class first, so that tall trees are not rare.
HEIGHT_CLASSES = (0.0, 2.0, 5.0, 10.0, 20.0, 30.0, np.inf)
THRESHOLDS = np.round(np.arange(0.10, 0.701, 0.02), 2)
MATCH_M = 6.0
# Cells: a tree is the hottest cell of the square of so many around it.
SPACINGS = (1, 2, 3)
# Differences of F1 under this are luck on some dozens of chips, while the counts of such settings are up to 15 % apart.
F1_TIE = 0.003
_BATCH = 8


class Measured(NamedTuple):
    """Figures on the tuning chips, and the one that chooses: the higher the better."""

    figures: dict[str, float]
    score: float


class TaskRow(NamedTuple):
    """One task."""

    loss: Callable[[Any, Targets, float, Recipe], torch.Tensor]
    strata: Callable[[ChipSet, np.ndarray], Sequence[np.ndarray]]
    measure: Callable[[HeadedNetwork, Job], Measured]


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


def _by_height(chips: ChipSet, indices: np.ndarray) -> Sequence[np.ndarray]:
    """Chips by the class of their tall canopy, the 95th percentile of the known heights."""
    tall = _tall_of(chips)[indices]
    return [found for low, high in pairwise(HEIGHT_CLASSES) if len(found := indices[(tall >= low) & (tall < high)])]


_TALL: dict[str, np.ndarray] = {}
_KNOWN: dict[str, np.ndarray] = {}


def known_share(chips: ChipSet) -> np.ndarray:
    """Share of each chip whose ground is known, (N,): chips with little of it are drawn seldom."""
    if chips.sha256 not in _KNOWN:
        _KNOWN[chips.sha256] = np.array([float(np.mean(known)) for known in chips.labelled])
    return _KNOWN[chips.sha256]


def _tall_of(chips: ChipSet) -> np.ndarray:
    if chips.sha256 not in _TALL:
        known: Iterable[np.ndarray] = (
            (h[np.isfinite(h)] for h in chips.heights)
            if chips.heights is not None
            else (discs[:, 3] for discs in chips.footprints or ())
        )
        _TALL[chips.sha256] = np.array([np.percentile(heights, 95) if len(heights) else 0.0 for heights in known])
    return _TALL[chips.sha256]


def _by_label(chips: ChipSet, indices: np.ndarray) -> Sequence[np.ndarray]:
    assert chips.labels is not None
    labels = np.asarray(chips.labels)[indices]
    return [indices[labels == label] for label in np.unique(labels)]


def _none(chips: ChipSet, indices: np.ndarray) -> Sequence[np.ndarray]:
    return ()


def predictions(network: HeadedNetwork, job: Job, indices: np.ndarray) -> Iterator[tuple[int, Any, Targets]]:
    """What the network says of the middle of each chip, one by one, and what it should."""
    task, look = job.chips.task, plain_look(job.chips.size, job.recipe.size)
    top = int(look.centre[1] - look.size / 2)
    here = slice(top, top + look.size)
    for start in range(0, len(indices), _BATCH):
        batch = [int(i) for i in indices[start : start + _BATCH]]
        images = torch.from_numpy(np.stack([job.chips.image(i)[:, here, here] for i in batch])).to(job.device)
        with torch.inference_mode(), autocast(job.device, job.precision):
            found = network(job.normalise(images), [task])[task]
        for row, index in enumerate(batch):
            one = (
                type(found)(*(m[row : row + 1].cpu() for m in found)) if isinstance(found, tuple) else found[row].cpu()
            )
            yield index, one, targets(job.chips, index, look)


def _measure_trees(network: HeadedNetwork, job: Job) -> Measured:
    """F1 within 6 m at the best threshold and spacing, and how well the density counts."""
    look = plain_look(job.chips.size, job.recipe.size)
    tried = [(spacing, float(threshold)) for spacing in SPACINGS for threshold in THRESHOLDS]
    hits, found_n, true_n = np.zeros(len(tried)), np.zeros(len(tried)), 0
    counted, truly = [], []
    for index, maps, _ in predictions(network, job, job.tune):
        assert job.chips.points is not None
        points = look.points(job.chips.points[index])
        points = points[((points >= 0) & (points < look.size)).all(axis=1)]
        heat, offset = maps.heat[0].sigmoid().numpy(), maps.offset[0].numpy()
        peaks = {s: find_peaks(heat, offset, threshold=float(THRESHOLDS[0]), spacing=s, cell=CELL) for s in SPACINGS}
        for k, (spacing, threshold) in enumerate(tried):
            kept = peaks[spacing].above(threshold).points
            hits[k] += len(match_points(kept, points, within=MATCH_M / job.chips.gsd_m))
            found_n[k] += len(kept)
        true_n += len(points)
        counted.append(float(maps.density.sum()))
        truly.append(len(points))
    f1 = 2 * hits / np.maximum(found_n + true_n, 1)
    best = best_setting(f1, found_n, true_n)
    return Measured(
        {
            "f1": float(f1[best]),
            "spacing": tried[best][0],
            "threshold": tried[best][1],
            "precision": float(hits[best] / max(found_n[best], 1)),
            "recall": float(hits[best] / max(true_n, 1)),
            "count_bias": float(found_n[best] / max(true_n, 1) - 1),
            "density_r2": _r2(np.array(counted), np.array(truly, float)),
            "density_bias": sum(counted) / max(sum(truly), 1) - 1,
        },
        float(f1[best]),
    )


def best_setting(f1: np.ndarray, found: np.ndarray, true: int) -> int:
    """Which of the settings, (N,), is best: of those as good as the highest F1, within `F1_TIE`, the best counting one.

    Parameters
    ----------
    found, true
        How many trees each setting finds, (N,), and how many there are.
    """
    return int(np.where(f1 >= f1.max() - F1_TIE, np.abs(found - true), np.inf).argmin())


def _measure_canopy(network: HeadedNetwork, job: Job) -> Measured:
    """MAE, bias and R2 in metres over all known pixels, beside the MAE of the median."""
    found, wanted = [], []
    for _, maps, target in predictions(network, job, job.tune):
        height = enlarged(maps.height, target["known"].shape)[0]
        if "disc" in target:
            numbers = torch.isfinite(target["tallest"]).nonzero()[:, 0].tolist()
            inside = [height[target["disc"] == k + 1].quantile(TALL_SHARE) for k in numbers]
            found.append(np.array([float(value) for value in inside]))
            wanted.append(target["tallest"][numbers].numpy())
            continue
        known = target["known"]
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
    count = len(job.chips.class_names)
    confusion = np.zeros((count, count), np.int64)
    for _, logits, target in predictions(network, job, job.tune):
        classes = target["classes"]
        sized = functional.interpolate(logits[None], size=tuple(classes.shape), mode="bilinear", align_corners=False)
        known = classes != UNKNOWN_CLASS
        np.add.at(confusion, (classes[known].numpy(), sized[0].argmax(0)[known].numpy()), 1)
    both = np.diag(confusion)
    union = confusion.sum(0) + confusion.sum(1) - both
    seen = confusion.sum(1) > 0
    miou = float((both[seen] / union[seen]).mean()) if seen.any() else 0.0
    return Measured({"miou": miou, "accuracy": float(both.sum() / max(confusion.sum(), 1))}, miou)


def _measure_classify(network: HeadedNetwork, job: Job) -> Measured:
    right = [int(logits.argmax()) == int(target["label"]) for _, logits, target in predictions(network, job, job.tune)]
    accuracy = float(np.mean(right))
    return Measured({"accuracy": accuracy}, accuracy)


def _r2(found: np.ndarray, truth: np.ndarray) -> float:
    total = float(((truth - truth.mean()) ** 2).sum())
    return 1 - float(((found - truth) ** 2).sum()) / total if total else float("nan")


TASKS: Mapping[Task, TaskRow] = {
    "canopy": TaskRow(_canopy_loss, _by_height, _measure_canopy),
    "trees": TaskRow(_tree_loss, _none, _measure_trees),
    "segment": TaskRow(_segment_loss, _none, _measure_segment),
    "classify": TaskRow(_classify_loss, _by_label, _measure_classify),
}
