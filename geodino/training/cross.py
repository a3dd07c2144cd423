"""Spatial cross-validation: how good a recipe is on every chip, each judged by a model that never saw its place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from geodino.errors import InputError
from geodino.evaluation.chips import Evaluation, evaluate_folds
from geodino.evaluation.models import HEADS, leak_note, predictor_of, settings_of, with_note
from geodino.evaluation.report import Subject
from geodino.evaluation.sums import Figure
from geodino.models.loading import find_weights, load_model
from geodino.training.chipset import ChipSet
from geodino.training.leaks import training_record
from geodino.training.parting import BLOCK_CHIPS, FEW_PLACES, block_places, compact_folds, parted, squares
from geodino.training.recipe import Recipe
from geodino.training.splits import Ints, beside, folds
from geodino.training.start import NEW
from geodino.training.train import Options, Told, train
from geodino.training.usable import check_labels
from geodino.watch import count as counted


@dataclass(frozen=True, eq=False)
class Fold:
    """One fold before its training.

    Attributes
    ----------
    number
        1..; as on screen, in folders and in the report.
    chips
        All, of which the fold and what lies beside it are of the split `val`.
    judged, learned, chosen, left
        Numbers of chips: of the fold, that its model learns from, that choose its weights, and that are none of these
        as they lie beside chips that judge or choose.
    """

    number: int
    chips: ChipSet
    judged: int
    learned: int
    chosen: int
    left: int

    def figures(self) -> tuple[Figure, ...]:
        """The numbers for the report."""
        named = {"learned_from": self.learned, "chosen_by": self.chosen, "judged": self.judged, "left_out": self.left}
        return tuple(Figure(name, name.replace("_", " "), "chips", number) for name, number in named.items())


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
        All of them, whatever split they are of; where that is `val`, or `model` learned from some, a note says so.
    out
        Gets a model folder a fold, `fold-1-of-5` and so on. A second call goes on where the first was cut.
    column
        What stays together: `place`, or a column of the splits such as `city`. Ground of few places, such as one lidar
        tile, is cut into compact pieces, and chips beside a fold are neither learned from nor chosen by.

    Raises
    ------
    ConfigError
        No such column, or fewer groups than folds.
    InputError
        Some fold leaves too few chips or labels to learn from, before any training; else as `train`.
    ModelError
        As `train`.
    """
    options, judged, ground = options or Options(), chips, "places"
    blocks = column == "place" and chips.table["place"].nunique() < max(count, FEW_PLACES)
    if blocks:
        fold_of = compact_folds(chips, count)
        judged = replace(chips, table=chips.table.assign(place=block_places(chips)))
        ground = f"blocks of {BLOCK_CHIPS * chips.size * chips.gsd_m:.0f} m"
    else:
        fold_of = folds(chips.table, count, column, recipe.seed)
    planned = list(_planned(chips, fold_of, recipe, blocks=blocks))
    for fold in planned:
        told(
            f"chips of fold {fold.number} of {count}: {fold.learned} to learn from, {fold.chosen} to choose by, "
            f"{fold.judged} judged, {fold.left} left out beside these"
        )
    notes = _doubts(model, chips)
    for note in notes:
        told(f"warning: {note}")
    # What a frozen backbone says of the chips is the same in every fold.
    shared = replace(options, cache=options.cache or out / "features")
    predicts, settings = [], []
    for fold in planned:
        told(f"fold {fold.number} of {count}")
        folder = out / f"fold-{fold.number}-of-{count}"
        train(fold.chips, model, folder, head=head, recipe=recipe, options=shared, told=told)
        made = load_model(folder, device=options.device, precision=options.precision, head=HEADS[chips.task])
        predicts.append(predictor_of(made, chips.task))
        settings.append(settings_of(made, chips.task))
    columns = {column: chips.table[column].astype(str).tolist()} if column != "place" else {}
    subject = Subject(f"{options.name or out.name}, {count} folds by {'compact ground' if blocks else column}")
    found = evaluate_folds(predicts, judged, fold_of, subject=subject, settings=settings, by=columns, ground=ground)
    return with_note(_with_counts(found, planned), *notes)


def _doubts(model: str | Path, chips: ChipSet) -> list[str]:
    """What makes figures of folds better than they would be elsewhere, or takes ground that was kept for the end."""
    record = {} if str(model) == NEW else training_record(find_weights(model).folder)
    leak, held = leak_note(record, chips), int((chips.table["split"] == "val").sum())
    notes = [f"all folds start from {Path(model).name}, and {leak}"] * bool(leak)
    return notes + [f"folds take all chips, {held} of the split val among them"] * bool(held)


def _planned(chips: ChipSet, fold_of: Ints, recipe: Recipe, *, blocks: bool) -> Iterator[Fold]:
    """The folds in order; InputError where one leaves too little."""
    corners = squares(chips) if blocks else None
    for fold in np.unique(fold_of).tolist():
        held = fold_of == fold
        unseen = held | beside(corners, held) if corners is not None else held
        kept = replace(chips, table=chips.table.assign(split=np.where(unseen, "val", "train")))
        try:
            learn, tune = parted(kept, recipe)
            check_labels(kept, learn, tune, recipe.size)
        except InputError as error:
            raise InputError(
                f"fold {fold + 1} of {fold_of.max() + 1}: {error}, or make other folds (--folds)"
            ) from error
        judged = int(held.sum())
        yield Fold(fold + 1, kept, judged, len(learn), len(tune), len(chips) - judged - len(learn) - len(tune))


def _with_counts(found: Evaluation, planned: Sequence[Fold]) -> Evaluation:
    """The evaluation, of whose folds the report says how many chips each rests on."""
    of = {fold.number: fold.figures() for fold in planned}
    parts = tuple(
        replace(part, figures=(*part.figures, *of[int(part.name)])) for part in found.report.parts.get("fold", ())
    )
    learned = [fold.learned for fold in planned]
    note = (
        f"each fold's model learned from {min(learned)} to {max(learned)} of {counted(len(planned[0].chips), 'chip')}"
    )
    report = found.report
    return replace(
        found,
        report=replace(
            report,
            parts={**report.parts, "fold": parts},
            counts={**report.counts, "folds": len(planned)},
            notes=(*report.notes, note),
        ),
    )
