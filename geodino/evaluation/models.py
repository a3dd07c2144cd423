"""A loaded model, or the map of a run, as what is evaluated: how it is asked, what it is called, what it was set to."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
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
from geodino.training.leaks import learned_from
from geodino.watch import count
from geodino.windows import Tiling
from geodino.zonal import ground

if TYPE_CHECKING:
    from geodino.models.predictor import Model
    from geodino.training.chipset import ChipSet

# What a model must be able to say for a task, as `load_model` calls it.
HEADS: Mapping[Task, str] = {"canopy": "height", "trees": "trees", "segment": "segment", "classify": "classify"}


# The maps of a run, by the names that runs give them.
MAP_NAMES: Mapping[Task, str] = {"canopy": ground.HEIGHT, "trees": ground.TREES}
_MAP_SUFFIXES = (".tif", ".tiff", ".vrt", ".parquet", ".gpkg", ".geojson")


def evaluate_model(
    model: Model,
    chips: ChipSet,
    *,
    settings: Settings | None = None,
    by: tuple[str, ...] = (),
    record: Mapping[str, Any] | None = None,
) -> Evaluation:
    """Return how good a model is on chips.

    Parameters
    ----------
    settings
        The threshold and spacing of trees that training chose, where left out.
    by
        Columns of the chips' table to divide by.
    record
        What training.json of the model's folder holds: the report says how many of the chips it learned from.

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
    found = evaluate_chips(
        predictor_of(model, chips.task, chips.class_names),
        chips,
        subject=Subject(name, model.weights_sha256, model.licence.name),
        settings=settings or settings_of(model, chips.task),
        by={column: chips.table[column].astype(str).tolist() for column in by},
        batch=model.batch_size(chips.size),
    )
    note = leak_note(record or {}, chips)
    return with_note(found, note) if note else found


def leak_note(record: Mapping[str, Any], chips: ChipSet) -> str:
    """How many of the chips the model of a record learned from; empty where none is known to be one."""
    seen = learned_from(record, chips)
    if not seen and record.get("data", {}).get("sha256") == chips.sha256:
        seen = len(chips)
    if not seen:
        return ""
    return (
        f"the model learned from, or was chosen by, {seen} of {count(len(chips), 'chip')}: figures on such ground are "
        "better than elsewhere; evaluate it on places that it never saw"
    )


def predictor_of(model: Model, task: Task, class_names: Sequence[str] = ()) -> Predict:
    """The model as what `evaluate_chips` asks, its classes in the order of the labels' where that is given."""
    known = tuple(_head_of(model, task).get("classes", class_names))
    order = [known.index(name) for name in class_names]

    def predict(images: Array) -> Array:
        said = model.maps(images, (task,))[task]
        return said[:, order] if order else said

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


def map_in(path: Path, task: Task) -> Path:
    """The map: the file itself, or that of the task in a run's folder.

    Raises
    ------
    InputError
        There is no such file, or the folder holds no map of a run for the task.
    """
    if not path.is_dir():
        if not path.exists():
            raise InputError(f"map {path}: no such file")
        return path
    if task in MAP_NAMES and (path / MAP_NAMES[task]).is_file():
        return path / MAP_NAMES[task]
    here = sorted(file.name for file in path.iterdir() if file.suffix in _MAP_SUFFIXES)
    wanted = f"no {MAP_NAMES[task]} in it" if task in MAP_NAMES else f"runs write no map of {task}"
    raise InputError(f"map {path} is a folder, and {wanted}: name the file; there are {', '.join(here) or 'none'}")


def with_note(evaluation: Evaluation, *notes: str) -> Evaluation:
    """The evaluation with more sentences for its reader."""
    report = evaluation.report
    return replace(evaluation, report=replace(report, notes=(*report.notes, *notes)))


def with_seams(evaluation: Evaluation, path: Path) -> Evaluation:
    """The evaluation of a map with its seam figure, or why there is none: a run's record says where windows met."""
    if evaluation.report.task != "canopy":
        return evaluation
    record = _record_beside(path)
    if record is None:
        return with_note(evaluation, f"no seam figure: no {RECORD_NAME} beside the map says where windows met")
    windows = record["windows"]
    tiling = Tiling(windows["size_px"], windows["overlap_px"], windows["margin_px"])
    found = seams_of_file(path, tiling).figure()
    seamed = replace(evaluation, report=replace(evaluation.report, figures=(*evaluation.report.figures, found)))
    return with_note(seamed, "the interval of the seams is that of lines elsewhere on the map: a seam stands out of it")


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
    if set(known) != set(chips.class_names):
        raise ModelError(
            f"{model.name} knows the classes {', '.join(known)}, and the labels are of {', '.join(chips.class_names)}: "
            "name the labels' classes the same: --classes VALUE=NAME,..."
        )
