"""Spatial cross-validation: how good a recipe is on every chip, each judged by a model that never saw its place."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from geodino.evaluation.chips import Evaluation, evaluate_folds
from geodino.evaluation.models import HEADS, predictor_of, settings_of
from geodino.evaluation.report import Subject
from geodino.models.loading import load_model
from geodino.training.chipset import ChipSet
from geodino.training.parting import FEW_PLACES, block_places, squares
from geodino.training.recipe import Recipe
from geodino.training.splits import beside, folds
from geodino.training.train import Options, Told, train


def cross_validate(
    chips: ChipSet,
    model: str | Path,
    out: Path,
    *,
    head: str,
    recipe: Recipe,
    count: int,
    column: str = "place",
    options: Options | None = None,
    told: Told = lambda line: None,
) -> Evaluation:
    """Train `count` models, each without one fold of the chips, and evaluate each on its own fold.

    Parameters
    ----------
    chips
        All of them, whatever split they are of.
    out
        Gets a model folder a fold, `fold-1-of-5` and so on. A second call goes on where the first was cut.
    column
        What stays together: `place`, or a column of the splits such as `city`. Ground of few places, such as one lidar
        tile, is parted into blocks, and chips beside a fold are neither learned from nor chosen by.

    Raises
    ------
    ConfigError
        No such column, or fewer groups than folds.
    InputError, ModelError
        As `train`.
    """
    options, table = options or Options(), chips.table
    blocks = column == "place" and table["place"].nunique() < max(count, FEW_PLACES)
    if blocks:
        table = table.assign(place=block_places(chips))
    fold_of = folds(table, count, column, recipe.seed)
    # What a frozen backbone says of the chips is the same in every fold.
    shared = replace(options, cache=options.cache or out / "features")
    predicts, settings = [], []
    for fold in range(count):
        told(f"fold {fold + 1} of {count}")
        folder = out / f"fold-{fold + 1}-of-{count}"
        kept = replace(chips, table=chips.table.assign(split=_splits(chips, fold_of == fold, blocks=blocks)))
        train(kept, model, folder, head=head, recipe=recipe, options=shared, told=told)
        made = load_model(folder, device=options.device, precision=options.precision, head=HEADS[chips.task])
        predicts.append(predictor_of(made, chips.task))
        settings.append(settings_of(made, chips.task))
    columns = {column: table[column].astype(str).tolist()} if column != "place" else {}
    subject = Subject(f"{options.name or out.name}, {count} folds by {'block' if blocks else column}")
    return evaluate_folds(predicts, chips, fold_of, subject=subject, settings=settings, by=columns)


def _splits(chips: ChipSet, held: npt.NDArray[np.bool_], *, blocks: bool) -> list[str]:
    """`val` for what a fold's model may not see: the fold, and what lies beside it where blocks part the ground."""
    unseen = held | beside(squares(chips), held) if blocks else held
    return ["val" if one else "train" for one in unseen.tolist()]
