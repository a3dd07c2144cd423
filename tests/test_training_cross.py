"""Cross-validation: every chip is judged once, by a model that never saw its place."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_training_engine import SMALL, backbone, canopy  # noqa: F401  (the last two are fixtures)

from geodino.errors import ConfigError, InputError
from geodino.models.loading import load_model
from geodino.training.chipset import ChipSet
from geodino.training.cross import cross_validate
from geodino.training.train import train


def test_each_chip_is_judged_once_and_by_a_model_that_never_saw_its_place(
    canopy: ChipSet,  # noqa: F811
    backbone: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    said: list[str] = []
    found = cross_validate(
        canopy, backbone, tmp_path, head="linear", recipe=replace(SMALL, epochs=1), count=2, told=said.append
    )
    report = found.report
    assert report.counts["chips"] == len(canopy) and {part.name for part in report.parts["fold"]} == {"1", "2"}
    assert [line for line in said if line.startswith("fold")] == ["fold 1 of 2", "fold 2 of 2"]
    # What each fold rests on is said before the first training, and in the report.
    planned = [line for line in said if line.startswith("chips of fold")]
    assert said[:2] == planned and "judged" in planned[0]
    for part in report.as_dict()["parts"]["fold"].values():
        rest = [part[name] for name in ("learned_from", "chosen_by", "judged", "left_out")]
        assert sum(figure["value"] for figure in rest) == len(canopy)
    records = [json.loads((tmp_path / f"fold-{k}-of-2" / "training.json").read_text()) for k in (1, 2)]
    left_alone = [record["data"]["left_alone"] for record in records]
    assert sum(left_alone) >= len(canopy) and min(left_alone) > 0
    assert records[0]["weights_sha256"] != records[1]["weights_sha256"]
    # The pooled error is that of the two models, each on its own fold.
    errors = [part.figures[0].value for part in report.parts["fold"]]
    assert min(errors) <= report.figure("mae_m").value <= max(errors)
    for k in (1, 2):
        assert np.isfinite(load_model(tmp_path / f"fold-{k}-of-2").predict(canopy.image(0)[None])).all()


def test_more_folds_than_groups_are_refused_before_any_training(
    canopy: ChipSet,  # noqa: F811
    backbone: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    with pytest.raises(ConfigError, match="folds cannot be made of"):
        cross_validate(canopy, backbone, tmp_path, head="linear", recipe=SMALL, count=2, column="crs")
    assert not list(tmp_path.iterdir())


def test_a_fold_that_leaves_too_little_is_refused_before_any_training(
    canopy: ChipSet,  # noqa: F811
    backbone: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    few = canopy.subset([0, 1, 2])
    bare = replace(canopy, heights=np.zeros((len(canopy), 64, 64), np.float32))  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"fold 1 of 2: nothing to learn from: \d+ chips hold heights of 0 m alone"):
        cross_validate(bare, backbone, tmp_path, head="linear", recipe=SMALL, count=2)
    with pytest.raises(InputError, match=r"fold \d of 2: \d chips? to learn from and \d to choose by, of \d in all"):
        cross_validate(few, backbone, tmp_path, head="linear", recipe=SMALL, count=2)
    assert not list(tmp_path.iterdir())


def test_folds_of_few_places_have_intervals_over_blocks_of_ground(
    canopy: ChipSet,  # noqa: F811
    backbone: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    few = canopy.subset(range(7))
    report = cross_validate(few, backbone, tmp_path, head="linear", recipe=replace(SMALL, epochs=0.5), count=2).report
    assert report.counts["blocks of 77 m"] == 7 and report.counts["folds"] == 2 and "places" not in report.counts
    assert report.intervals == "7 blocks of 77 m"


def test_folds_from_a_model_that_learned_on_their_ground_say_so(
    canopy: ChipSet,  # noqa: F811
    backbone: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    held = replace(canopy, table=canopy.table.assign(split=["val"] * 2 + ["train"] * (len(canopy) - 2)))
    brief, said = replace(SMALL, epochs=0.5, evaluations=1), list[str]()
    train(held, backbone, tmp_path / "first", head="linear", recipe=brief)
    report = cross_validate(
        held, tmp_path / "first", tmp_path / "folds", head="own", recipe=brief, count=2, told=said.append
    ).report
    leak = f"all folds start from first, and the model learned from, or was chosen by, {len(canopy) - 2} of"
    split = "folds take all chips, 2 of the split val among them"
    assert any(note.startswith(leak) for note in report.notes) and split in report.notes
    assert f"warning: {split}" in said
    clean = cross_validate(canopy, backbone, tmp_path / "clean", head="linear", recipe=brief, count=2).report
    assert not any("all folds start" in note or "split val" in note for note in clean.notes)
