"""What a network must not forget: the chips of earlier trainings, from which it goes on learning beside new ones.

Heads of one network stand on one backbone. Fine-tuned for one of them alone, it would no longer serve the others; so
every step also sees what those learned from, and their heads move along.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from geodino.errors import ConfigError, ModelError
from geodino.training.augment import Variety
from geodino.training.chipset import ChipSet, open_chips
from geodino.training.recipe import Recipe


@dataclass(frozen=True, eq=False)
class Rehearsal:
    """An earlier training: its chips, how it looked at them, and what it left in training.json."""

    chips: ChipSet
    recipe: Recipe
    record: Mapping[str, Any]


def rehearsals(folders: Sequence[str | Path], chips: ChipSet, beside: Recipe) -> tuple[Rehearsal, ...]:
    """The earlier trainings in folders that `train` left.

    Chips are looked at as they were, but upright where the new ones are, and then mirrored east to west if they were
    before: turned looks would cost what the shared network could know of shadows.

    Parameters
    ----------
    chips, beside
        Of the training that they go beside; the crops a step are as many as its own. Where its chips are kept, theirs
        are looked for too.

    Raises
    ------
    ModelError
        A folder has no record, or its chips are gone or others than those it learned from.
    ConfigError
        Two trainings of one task.
    """
    found = tuple(_rehearsal(Path(folder), chips.folder.parent, beside) for folder in folders)
    tasks = [chips.task, *(one.chips.task for one in found)]
    for one, folder in zip(found, folders, strict=True):
        if tasks.count(one.chips.task) > 1:
            raise ConfigError(f"{folder} learned {one.chips.task}, which another training here learns too")
    return found


def _rehearsal(folder: Path, shelf: Path, beside: Recipe) -> Rehearsal:
    path, kept = folder / "training.json", folder / "work" / "chips"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        settings = record["recipe"]
        variety = Variety(**settings["variety"])
        recipe = Recipe(**{**settings, "variety": variety, "batch": beside.batch})
        wanted = record["data"]["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path} is no record of a training ({error}): give a folder that `train` left") from error
    if beside.variety.upright and not variety.upright:
        recipe = replace(recipe, variety=replace(variety, upright=True, mirrored=True))
    held = []
    for place in dict.fromkeys([kept, shelf]):
        for facts in sorted(place.glob(f"{record['task']}-*/chips.json")):
            chips = open_chips(facts.parent)
            if chips.sha256 == wanted:
                return Rehearsal(chips, recipe, record)
            held.append(chips.sha256[:12])
    raise ModelError(
        f"neither {kept} nor {shelf} has the chips {wanted[:12]} that {folder} learned from (held: "
        f"{', '.join(held) or 'none'}): give the --chips of its command in training.json, put its work folder back, or "
        "train it again"
    )
