"""A loaded model, or the map of a run, as what is evaluated: how it is asked, what it is called, what it was set to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geodino.errors import InputError, ModelError
from geodino.evaluation.chips import Array, Evaluation, Predict, evaluate_chips
from geodino.evaluation.report import Subject, Task
from geodino.evaluation.seams import seams_of_file
from geodino.evaluation.tasks import Settings
from geodino.models.files import sha256_of
from geodino.models.tta import views_of
from geodino.outputs.folder import RECORD_NAME
from geodino.shipped import nearest
from geodino.windows import Tiling

if TYPE_CHECKING:
    from geodino.models.predictor import Model
    from geodino.training.chipset import ChipSet

# What a model must be able to say for a task, as `load_model` calls it.
HEADS: Mapping[Task, str] = {"canopy": "height", "trees": "trees", "segment": "segment", "classify": "classify"}


def evaluate_model(
    model: Model, chips: ChipSet, *, settings: Settings | None = None, by: tuple[str, ...] = ()
) -> Evaluation:
    """Return how good a model is on chips.

    Parameters
    ----------
    settings
        The threshold and spacing of trees that training chose, where left out.
    by
        Columns of the chips' table to divide by.

    Raises
    ------
    InputError
        If there are no chips, nothing on them is labelled, or a column is not there.
    ModelError
        If the model has no head for the chips' task, or one for other classes.
    """
    for column in by:
        if column not in chips.table:
            known = [str(name) for name in chips.table.columns]
            raise InputError(
                f"the chips have no column {column}{nearest(column, known)}; they have {', '.join(known)}, and the "
                "columns of the splits"
            )
    _check_classes(model, chips)
    views = len(views_of(model.heads.get(chips.task, {}), model.tta))
    name = f"{model.name}, {views} views averaged" if views > 1 else model.name
    return evaluate_chips(
        predictor_of(model, chips.task),
        chips,
        subject=Subject(name, model.weights_sha256, model.licence.name),
        settings=settings or settings_of(model, chips.task),
        by={column: chips.table[column].astype(str).tolist() for column in by},
        batch=model.batch_size(chips.size),
    )


def predictor_of(model: Model, task: Task) -> Predict:
    """The model as what `evaluate_chips` asks."""

    def predict(images: Array) -> Array:
        return model.maps(images, (task,))[task]

    return predict


def settings_of(model: Model, task: Task, settings: Settings | None = None) -> Settings:
    """The settings with the threshold and the spacing that the model's folder holds."""
    settings = settings or Settings()
    head = _head_of(model, task)
    chosen = {name: kind(head[name]) for name, kind in (("threshold", float), ("spacing", int)) if name in head}
    return replace(settings, **chosen)  # type: ignore[arg-type]


def subject_of_map(path: Path) -> Subject:
    """A map by its name and hash, with the model and its licence where the record of its run lies beside it."""
    record = _record_beside(path)
    if record is None:
        return Subject(path.name, sha256_of([path]))
    model = record["model"]
    return Subject(f"{path.name} by {model['name']}", sha256_of([path]), str(model["licence"]))


def with_seams(evaluation: Evaluation, path: Path) -> Evaluation:
    """The evaluation of a map with its seam figure, where the record of its run lies beside it."""
    record = _record_beside(path)
    if record is None or evaluation.report.task != "canopy":
        return evaluation
    windows = record["windows"]
    tiling = Tiling(windows["size_px"], windows["overlap_px"], windows["margin_px"])
    report = evaluation.report
    note = "the interval of the seams is that of lines elsewhere on the map: a seam stands out of it"
    return replace(
        evaluation,
        report=replace(
            report, figures=(*report.figures, seams_of_file(path, tiling).figure()), notes=(*report.notes, note)
        ),
    )


def _record_beside(path: Path) -> dict[str, Any] | None:
    """The record of the run that made a map; None where there is none or it is of other files."""
    beside = path.with_name(RECORD_NAME)
    if not beside.is_file():
        return None
    try:
        record = json.loads(beside.read_text())
        ours = any(file["name"] == path.name for file in record["outputs"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{beside} is no record of a run ({error!r}): move it away, or run the map again") from error
    return dict(record) if ours else None


def _head_of(model: Model, task: Task) -> Mapping[str, Any]:
    return model.heads.get(task, {})


def _check_classes(model: Model, chips: ChipSet) -> None:
    known = tuple(_head_of(model, chips.task).get("classes", chips.class_names))
    if known != chips.class_names:
        raise ModelError(
            f"{model.name} knows the classes {', '.join(known)}, and the labels are of {', '.join(chips.class_names)}: "
            "name the labels' classes the same, in the same order"
        )
