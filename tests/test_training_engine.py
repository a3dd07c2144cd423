"""Training: made and real labels through the real loop, cut and taken up again, and refused where it would lie."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_models import save_backbone, vit_config
from training_data import chips_of, write_green_ground
from transformers import DINOv3ViTModel

import geodino
from geodino.errors import ConfigError, InputError, ModelError
from geodino.models.checkpoint import UNTOLD_LICENCE
from geodino.models.loading import facts_of
from geodino.training.augment import Variety
from geodino.training.chips import ChipSet
from geodino.training.engine import rate_at
from geodino.training.parting import parted
from geodino.training.recipe import Recipe
from geodino.training.train import Options, train

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = Recipe(
    size=64, batch=4, epochs=4, learning_rate=3e-3, views=2, evaluations=2, tuning=0.3, silog=False,
    variety=Variety(free=0.3, colour=0.2),
)  # fmt: skip


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_backbone(tmp_path_factory.mktemp("backbone") / "vit")


@pytest.fixture(scope="module")
def canopy(tmp_path_factory: pytest.TempPathFactory) -> ChipSet:
    folder = tmp_path_factory.mktemp("ground")
    labels, images = write_green_ground(folder)
    return chips_of("canopy", labels, images, folder, size=64)


@pytest.mark.parametrize("head", ["linear", "dpt", "pyramid"])
def test_each_canopy_head_learns_more_than_the_best_constant(
    head: str, canopy: ChipSet, backbone: Path, tmp_path: Path
) -> None:
    record = train(canopy, backbone, tmp_path / "model", head=head, recipe=replace(SMALL, epochs=40))
    assert record["chosen"]["mae_m"] < 0.7 * record["chosen"]["constant_mae_m"]
    model = geodino.load_model(tmp_path / "model", precision="fp32", device="cpu")
    assert (model.tasks, model.row.heads, model.row.gsd_m) == (("canopy",), ("height", "spread"), 0.6)
    predicted = model.predict(np.stack([canopy.image(i) for i in range(len(canopy))]))
    assert canopy.heights is not None
    truth = np.stack([canopy.heights[i] for i in range(len(canopy))])
    assert np.abs(predicted[:, 0] - truth).mean() < 0.7 * np.abs(truth - np.median(truth)).mean()
    assert (predicted[:, 1] > 0).all()


def test_a_frozen_backbone_stays_as_it_was_and_a_finetuned_one_does_not(
    canopy: ChipSet, backbone: Path, tmp_path: Path
) -> None:
    before = load_file(backbone / "model.safetensors")
    for finetune in (False, True):
        out = tmp_path / f"model{finetune}"
        train(canopy, backbone, out, head="linear", recipe=replace(SMALL, finetune=finetune))
        after = load_file(out / "model.safetensors")
        blocks = [name for name in before if "layer." in name]
        assert blocks and all(torch.equal(after[f"backbone.{name}"], before[name]) != finetune for name in blocks)


def test_a_training_that_was_cut_ends_with_the_weights_of_one_that_ran_through(
    canopy: ChipSet, backbone: Path, tmp_path: Path
) -> None:
    through = train(canopy, backbone, tmp_path / "whole", head="pyramid", recipe=SMALL)

    class PowerCutError(Exception):
        """The machine went off."""

    def pull_the_plug(line: str) -> None:
        if line.startswith("step"):
            raise PowerCutError

    with pytest.raises(PowerCutError):
        train(canopy, backbone, tmp_path / "cut", head="pyramid", recipe=SMALL, told=pull_the_plug)
    assert not (tmp_path / "cut" / "model.safetensors").exists()
    again = train(canopy, backbone, tmp_path / "cut", head="pyramid", recipe=SMALL)
    whole, cut = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    assert [(a["step"], a["mae_m"]) for a in again["curve"]] == [(a["step"], a["mae_m"]) for a in through["curve"]]


def test_a_second_head_leaves_the_first_and_what_it_stands_on_untouched(
    canopy: ChipSet, backbone: Path, tmp_path: Path
) -> None:
    trees = replace(
        canopy, task="trees", heights=None,
        points=tuple(np.full((3, 2), 20 + k, np.float32) for k in range(len(canopy))),
    )  # fmt: skip
    train(trees, backbone, tmp_path / "trees", head="density", recipe=SMALL)
    train(canopy, tmp_path / "trees", tmp_path / "both", head="pyramid", recipe=SMALL)
    one, both = (geodino.load_model(tmp_path / name, head="trees", precision="fp32") for name in ("trees", "both"))
    chips = np.stack([canopy.image(i) for i in range(3)])
    assert set(both.tasks) == {"trees", "canopy"}
    np.testing.assert_array_equal(both.maps(chips, ["trees"])["trees"], one.maps(chips)["trees"])
    assert set(both.maps(chips)) == {"trees", "canopy"}
    with pytest.raises(ModelError, match="would change what other heads"):
        train(canopy, tmp_path / "both", tmp_path / "no", head="pyramid", recipe=replace(SMALL, finetune=True))
    with pytest.raises(ModelError, match="trees has only trees, and canopy is asked of it"):
        facts_of(tmp_path / "trees")


def test_another_trainings_checkpoint_or_features_and_a_cut_checkpoint_are_refused(
    canopy: ChipSet, backbone: Path, tmp_path: Path
) -> None:
    out = tmp_path / "model"
    train(canopy, backbone, out, head="linear", recipe=SMALL)
    with pytest.raises(ModelError, match="is of a training with other data, start or recipe"):
        train(canopy, backbone, out, head="linear", recipe=replace(SMALL, learning_rate=1e-4))
    other = tmp_path / "other"
    shutil.copytree(backbone, other)
    torch.manual_seed(5)
    DINOv3ViTModel(vit_config()).save_pretrained(other)
    with pytest.raises(ModelError, match=r"holds features of backbone_sha256 .*: remove it, or give another folder"):
        train(
            canopy, other, tmp_path / "new", head="linear", recipe=SMALL,
            options=Options(cache=out / "work" / "features"),
        )  # fmt: skip
    weights = next((out / "work").glob("checkpoint-*")) / "average.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match="is damaged or cut short"):
        train(canopy, backbone, out, head="linear", recipe=SMALL)


def test_what_cannot_be_trained_is_refused_before_anything_is_computed(
    canopy: ChipSet, backbone: Path, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="head density is not one for canopy: use linear or dpt or pyramid"):
        train(canopy, backbone, tmp_path, head="density", recipe=SMALL)
    with pytest.raises(ModelError, match="a new backbone is random: train it too, with --finetune"):
        train(canopy, "new", tmp_path, head="linear", recipe=SMALL)
    with pytest.raises(ConfigError, match="crops of 128 px do not fit chips of 64 px"):
        train(canopy, backbone, tmp_path, head="linear", recipe=replace(SMALL, size=128))
    with pytest.raises(InputError, match="1 chip to learn from and 0 to choose by, of 1 in all"):
        train(canopy.subset([0]), backbone, tmp_path, head="linear", recipe=SMALL)
    with pytest.raises(ConfigError, match="size 50 px must be a multiple of 32"):
        Recipe(size=50)
    assert not list(tmp_path.iterdir())


def test_no_place_both_teaches_and_chooses_and_val_does_neither(canopy: ChipSet) -> None:
    table = canopy.table.assign(split=["val"] + ["train"] * (len(canopy) - 1))
    learn, tune = parted(replace(canopy, table=table), SMALL)
    assert not set(table["place"][learn]) & set(table["place"][tune])
    assert 0 not in learn and 0 not in tune and len(learn) + len(tune) == len(canopy) - 1


def test_the_folder_says_where_the_weights_came_from_and_how_good_they_are(
    canopy: ChipSet, backbone: Path, tmp_path: Path
) -> None:
    options = Options(
        name="mine", data_licence="CC-BY-4.0", attribution=("A. Surveyor, 2026",), command="geodino train"
    )
    record = train(canopy, backbone, tmp_path / "m", head="linear", recipe=SMALL, options=options)
    assert record == json.loads((tmp_path / "m" / "training.json").read_text())
    assert record["data"]["sha256"] == canopy.sha256 and record["start"]["model"] == "vit"
    said = (tmp_path / "m" / "README.md").read_text()
    assert "A. Surveyor, 2026" in said and f"| mae_m | {record['chosen']['mae_m']:.4g} |" in said
    assert (tmp_path / "m" / "learning_curve.png").stat().st_size > 5000
    assert facts_of(tmp_path / "m").licence.name == f"as its start and data: {UNTOLD_LICENCE.name}, CC-BY-4.0"
    # A second head does not make the first one's data forgotten.
    again = Options(name="both", attribution=("B. Surveyor, 2027",))
    later = train(canopy, tmp_path / "m", tmp_path / "n", head="linear", recipe=SMALL, options=again)
    assert later["start"]["training"] == record
    said = (tmp_path / "n" / "README.md").read_text()
    assert "- A. Surveyor, 2026" in said and "- B. Surveyor, 2027" in said
    assert "`geodino train`, it learned canopy" in said
    terms = (UNTOLD_LICENCE.name, "not stated", "CC-BY-4.0")
    assert facts_of(tmp_path / "n").licence.name == f"as its start and data: {', '.join(terms)}"


def test_the_rate_rises_then_falls_to_a_hundredth() -> None:
    rates = [rate_at(SMALL, k / 100) for k in range(101)]
    top = int(np.argmax(rates))
    assert top == 5 and rates[top] == 1 and rates[-1] == pytest.approx(0.01)
    assert all(a < b for a, b in pairwise(rates[: top + 1]))
    assert all(a > b for a, b in pairwise(rates[top:]))
