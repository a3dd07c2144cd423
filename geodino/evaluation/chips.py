"""A model against the labels of chips."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from geodino.errors import InputError, ModelError
from geodino.evaluation import canopy, classes
from geodino.evaluation.footprints import footprint_sums, heights_within
from geodino.evaluation.ownership import corners, owned_windows
from geodino.evaluation.report import Labels, Report, Subject, Task
from geodino.evaluation.scatter import Scatter
from geodino.evaluation.sums import Floats, Sums, collect
from geodino.evaluation.tasks import Settings, report_on
from geodino.evaluation.tree_points import Trees, density_on, density_sums, on_ground, tree_sums
from geodino.grid import Window
from geodino.trees import find_peaks

if TYPE_CHECKING:
    from geodino.training.chipset import ChipSet

Array = npt.NDArray[np.float32]

Predict = Callable[[Array], Array]
"""Images (B, 3, S, S) in 0..1 to what a model says of them, as `Model.maps` gives it:

    canopy    (B, 1 or 2, S, S), height and spread, metres
    trees     (B, 4, h, w): heat in 0..1, trees a cell, the tree's place right and down from the cell's centre, cells
    segment   (B, C, S, S), probabilities
    classify  (B, C), probabilities
"""

BATCH = 8


@dataclass(frozen=True, eq=False)
class Evaluation:
    """A report, and what its pictures are drawn from.

    Attributes
    ----------
    sums
        Of each unit; `Sums.chips` is the number of the chip in the set, or of the piece of the map.
    scatter
        Predicted against measured heights; None for other tasks.
    """

    report: Report
    sums: Sums
    settings: Settings
    scatter: Scatter | None = None


@dataclass(frozen=True, eq=False)
class Seen:
    """A chip and what was said of it.

    Attributes
    ----------
    said
        As `Predict` gives it, without the batch.
    owned
        The part of the chip that counts.
    corner
        Row and col of its first pixel among the chips of its scene.
    constant_m
        What the constant predictor answers, of canopy.
    """

    chips: ChipSet
    index: int
    said: Array
    owned: Window
    corner: tuple[int, int]
    constant_m: float
    settings: Settings

    @property
    def counted(self) -> npt.NDArray[np.bool_]:
        """(S, S): labelled and owned."""
        found = np.zeros((self.chips.size, self.chips.size), np.bool_)
        here = slice(self.owned.row, self.owned.row_stop), slice(self.owned.col, self.owned.col_stop)
        found[here] = self.chips.labelled[self.index][here]
        return found


def evaluate_chips(
    predict: Predict,
    chips: ChipSet,
    *,
    subject: Subject,
    settings: Settings | None = None,
    by: Mapping[str, Sequence[object]] | None = None,
    batch: int = BATCH,
) -> Evaluation:
    """Return how good a model is on chips.

    Parameters
    ----------
    subject
        Name, hash and licence of the model, for the report.
    by
        What else to divide by ("fold", "city", "year") -> the part that each chip belongs to.
    batch
        Chips given to `predict` at once.

    Raises
    ------
    InputError
        If there are no chips, or nothing on them is labelled.
    ModelError
        If the model says something of another shape.
    """
    one = np.zeros(len(chips), np.int64)
    return evaluate_folds([predict], chips, one, subject=subject, settings=settings, by=by, batch=batch)


def evaluate_folds(
    predicts: Sequence[Predict],
    chips: ChipSet,
    folds: npt.NDArray[np.int64],
    *,
    subject: Subject,
    settings: Settings | Sequence[Settings] | None = None,
    by: Mapping[str, Sequence[object]] | None = None,
    batch: int = BATCH,
    ground: str = "places",
) -> Evaluation:
    """Return how good a recipe is by spatial cross-validation: each chip goes to the model that never saw its fold.

    Parameters
    ----------
    predicts
        Of each fold, the model that was trained without it.
    folds
        (N,), the fold of each chip, 0..; in the report they are called 1.. as on disk.
    settings
        Of all folds, or one for each, such as the threshold that its model's training chose.
    ground
        What the column `place` of the chips names, for the report.
    """
    each = [settings or Settings()] * len(predicts) if not isinstance(settings, Sequence) else list(settings)
    first = each[0]
    if not len(chips):
        raise InputError("there are no chips to evaluate: check the labels, the source and the split")
    constant = _constant(chips)
    scatter = Scatter.empty() if chips.task == "canopy" else None
    places = chips.table["place"].astype(str).to_numpy()
    starts = [(row, col) for row, col in corners(chips.table, chips.gsd_m).tolist()]

    def parts() -> Iterator[tuple[dict[str, Floats], str]]:
        for index, owned, said in _predicted(predicts, chips, folds, batch):
            seen = Seen(chips, index, said, owned, starts[index], constant, each[int(folds[index])])
            if scatter is not None:
                scatter.add(*_heights(seen))
            yield SUMS[chips.task](seen), places[index]

    sums = collect(parts(), unit=_unit(chips, first), ground=ground)
    if not len(sums):
        raise InputError(f"nothing is labelled on {len(chips)} chips: check that the labels lie on the imagery")
    if "block_row" in sums.columns:
        sums = canopy.with_blocks(sums, chips.table["scene"].to_numpy()[sums.chips], block=first.block_px)
    parts_of = {name: np.array([str(value) for value in values])[sums.chips] for name, values in (by or {}).items()}
    if len(predicts) > 1:
        names = [f"{fold + 1:0{len(str(len(predicts)))}}" for fold in folds.tolist()]
        parts_of = {"fold": np.array(names)[sums.chips], **parts_of}
    report = _blank(chips, sums, subject, constant)
    if any(one != first for one in each):
        own = ", ".join(f"{one.threshold:g}" for one in each)
        report = replace(report, notes=(*report.notes, f"each fold has the threshold that its training chose: {own}"))
    filled = report_on(report, sums, first, class_names=chips.class_names, by=parts_of)
    return Evaluation(filled, sums, first, scatter)


def trees_said(said: Array, *, size: int, settings: Settings, threshold: float) -> Trees:
    """The trees of a chip's maps, (4, h, w), in pixels; all of them owned."""
    peaks = find_peaks(said[0], said[2:4], threshold=threshold, spacing=settings.spacing, cell=size // said.shape[-1])
    return Trees(peaks.points, np.ones(len(peaks), np.bool_), peaks.scores)


def _predicted(
    predicts: Sequence[Predict], chips: ChipSet, folds: npt.NDArray[np.int64], batch: int
) -> Iterator[tuple[int, Window, Array]]:
    """Each chip in order, the part it owns, and what the model of its fold says."""
    owned = owned_windows(chips.table, chips.size, chips.gsd_m)
    for start in range(0, len(chips), batch):
        indices = np.arange(start, min(start + batch, len(chips)))
        said: dict[int, Array] = {}
        for fold in np.unique(folds[indices]):
            of_fold = indices[folds[indices] == fold]
            found = predicts[int(fold)](np.stack([chips.image(int(index)) for index in of_fold]))
            _check_shape(found, chips, len(of_fold))
            said |= dict(zip(of_fold.tolist(), found, strict=True))
        for index in indices.tolist():
            yield index, owned[index], said[index]


def _check_shape(found: Array, chips: ChipSet, count: int) -> None:
    side, known, shape = chips.size, len(chips.class_names), found.shape
    fits = {
        "canopy": len(shape) == 4 and shape[1] in (1, 2) and shape[2:] == (side, side),
        "trees": len(shape) == 4 and shape[1] == 4 and shape[2] == shape[3] and side % shape[3] == 0,
        "segment": shape[1:] == (known, side, side),
        "classify": shape[1:] == (known,),
    }
    if len(found) != count or not fits[chips.task]:
        classes_too = f" of {known} classes" if chips.class_names else ""
        raise ModelError(
            f"the model says {shape} of {count} chips of {side} px, which is no {chips.task}{classes_too}: "
            "it was made for other classes or another task"
        )


def _heights(seen: Seen) -> tuple[Floats, Floats]:
    """Predicted and measured heights of a chip's pixels, or of its footprints."""
    chips = seen.chips
    if chips.heights is not None:
        return seen.said[0][seen.counted].astype(np.float64), chips.heights[seen.index][seen.counted].astype(np.float64)
    assert chips.footprints is not None
    # All of them: a footprint is in one chip of a scene only, see `FootprintLayer.burn`.
    found, known = chips.footprints[seen.index], np.where(chips.valid[seen.index], seen.said[0], np.nan)
    return heights_within(known, found), found[:, 3].astype(np.float64)


def _canopy_sums(seen: Seen) -> dict[str, Floats]:
    chips = seen.chips
    if chips.heights is None:
        said, truth = _heights(seen)
        return footprint_sums(said, truth, constant_m=seen.constant_m)
    return canopy.canopy_sums(
        seen.said[0],
        chips.heights[seen.index],
        constant_m=seen.constant_m,
        spread=seen.said[1] if len(seen.said) > 1 else None,
        counted=seen.counted,
        block=seen.settings.block_px,
        corner=seen.corner,
    )


def _tree_sums(seen: Seen) -> dict[str, Floats]:
    chips, settings = seen.chips, seen.settings
    assert chips.points is not None
    said = trees_said(seen.said, size=chips.size, settings=settings, threshold=min(0.05, settings.threshold))
    counted = seen.counted
    predicted = on_ground(said.points, counted, said.scores)
    true = on_ground(chips.points[seen.index].astype(np.float64), counted)
    return {
        **tree_sums(
            predicted, true, gsd_m=chips.gsd_m, threshold=settings.threshold, within_m=settings.within_m, curve=True
        ),
        **density_sums(density_on(seen.said[1], counted), true),
    }


def _segment_sums(seen: Seen) -> dict[str, Floats]:
    assert seen.chips.classes is not None
    return classes.segment_sums(
        seen.said.argmax(axis=0),
        seen.chips.classes[seen.index],
        classes=len(seen.chips.class_names),
        counted=seen.counted,
        block=seen.settings.block_px,
    )


def _classify_sums(seen: Seen) -> dict[str, Floats]:
    assert seen.chips.labels is not None
    true = int(seen.chips.labels[seen.index])
    return classes.classify_sums(int(seen.said.argmax()), true, classes=len(seen.chips.class_names))


SUMS: Mapping[Task, Callable[[Seen], dict[str, Floats]]] = {
    "canopy": _canopy_sums,
    "trees": _tree_sums,
    "segment": _segment_sums,
    "classify": _classify_sums,
}


def _constant(chips: ChipSet) -> float:
    """The median of the labels: what the best constant predictor answers."""
    if chips.task != "canopy":
        return float("nan")
    if chips.heights is None:
        assert chips.footprints is not None
        return canopy.median_height(found[:, 3] for found in chips.footprints)
    return canopy.median_height(
        np.where(labelled, heights, np.nan) for labelled, heights in zip(chips.labelled, chips.heights, strict=True)
    )


def _unit(chips: ChipSet, settings: Settings) -> str:
    blocks = chips.task == "segment" or (chips.task == "canopy" and chips.heights is not None)
    return f"blocks of {settings.block_px} px" if blocks else "chips"


def _blank(chips: ChipSet, sums: Sums, subject: Subject, constant: float) -> Report:
    """The report without figures."""
    counts = {"chips": len(np.unique(sums.chips)), sums.ground: len(np.unique(sums.places))}
    settings: dict[str, float | int | str] = {"chip_px": chips.size, "gsd_m": chips.gsd_m}
    notes: tuple[str, ...] = ()
    if chips.task == "canopy":
        counts["pixels" if chips.heights is not None else "footprints"] = int(sums.columns["n"].sum())
        settings["constant_m"] = constant
        notes = (f"the constant is the median of these labels, {constant:.2f} m: the best of all constants for MAE",)
    elif chips.task == "trees":
        counts["trees"] = int(sums.columns["there"].sum())
    elif chips.task == "segment":
        counts["pixels"] = int(sums.columns["confusion"].sum())
    licences = sorted({str(value) for value in chips.table["licence"]} - {""}) if "licence" in chips.table else []
    labels = Labels(chips.sha256, tuple(licences))
    return Report(
        chips.task,
        subject,
        labels,
        (),
        "",
        counts=counts,
        dropped=dict(chips.dropped),
        settings=settings,
        notes=notes,
    )
