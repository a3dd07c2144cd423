"""A head that goes on learning from what it is: CHMv2's, or that of an earlier training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_models import CHMV2_STATISTICS, canopy_network, save, save_backbone
from training_data import chips_of, write_green_ground

import geodino
from geodino.errors import ModelError
from geodino.models.canopy import canopy_forward
from geodino.models.loading import facts_of
from geodino.training.augment import Variety
from geodino.training.chips import ChipSet
from geodino.training.recipe import Recipe
from geodino.training.start import begin
from geodino.training.train import Options, train

pytestmark = pytest.mark.usefixtures("one_thread")

RECIPE = Recipe(
    size=64, batch=4, epochs=2, learning_rate=3e-3, views=2, evaluations=2, tuning=0.3, silog=False,
    variety=Variety(free=0.0, colour=0.1),
)  # fmt: skip


@pytest.fixture(scope="module")
def chips(tmp_path_factory: pytest.TempPathFactory) -> ChipSet:
    folder = tmp_path_factory.mktemp("ground")
    labels, images = write_green_ground(folder, 10)
    return chips_of("canopy", labels, images, folder, size=64)


@pytest.fixture(scope="module")
def chmv2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CHMv2 in small: its head as wide, to its backbone, as the published one."""
    network = canopy_network(post_process_channels=[4, 8, 16, 32], fusion_hidden_size=8, head_hidden_size=32)
    return save(network, tmp_path_factory.mktemp("chmv2") / "model", CHMV2_STATISTICS)


def test_chmv2s_own_head_says_what_it_said_before_it_goes_on_learning(chmv2: Path, chips: ChipSet) -> None:
    start = begin(chmv2, chips, head="own", size=64, seed=0)
    assert (start.own, start.replaced, start.fresh) == (True, False, ("heads.canopy",))
    pixels = torch.randn((2, 3, 64, 64), generator=torch.Generator().manual_seed(1))
    network = canopy_network(post_process_channels=[4, 8, 16, 32], fusion_hidden_size=8, head_hidden_size=32)
    with torch.inference_mode():
        height, spread = canopy_forward(network, pixels)
        found = start.network.eval()(pixels)["canopy"]
    torch.testing.assert_close(found.height, height)
    torch.testing.assert_close(found.spread, spread)


def test_chmv2s_own_head_learns_on_a_frozen_backbone(chmv2: Path, chips: ChipSet, tmp_path: Path) -> None:
    record = train(chips, chmv2, tmp_path / "model", head="own", recipe=replace(RECIPE, epochs=20))
    assert (record["head"], record["trained"], record["start"]["own"]) == ("dpt", ["heads.canopy"], True)
    assert chips.heights is not None
    images, truth = (np.stack([of(k) for k in range(len(chips))]) for of in (chips.image, chips.heights.__getitem__))
    wrong = [
        np.abs(geodino.load_model(folder, precision="fp32", device="cpu").predict(images)[:, 0] - truth).mean()
        for folder in (chmv2, tmp_path / "model")
    ]
    assert wrong[1] < 0.7 * wrong[0]
    before, after = load_file(chmv2 / "model.safetensors"), load_file(tmp_path / "model" / "model.safetensors")
    assert all(torch.equal(after[name], before[name]) for name in before if name.startswith("backbone.layer"))
    heads = [name for name in after if name.startswith("heads.canopy.head.")]
    assert heads and any(not torch.equal(after[name], before[name.removeprefix("heads.canopy.")]) for name in heads)
    assert "went on learning from what it was" in (tmp_path / "model" / "README.md").read_text()


def test_a_trained_head_goes_on_from_where_it_was(chips: ChipSet, tmp_path: Path) -> None:
    backbone = save_backbone(tmp_path / "vit")
    first = train(chips, backbone, tmp_path / "first", head="linear", recipe=replace(RECIPE, epochs=40))
    briefly = replace(RECIPE, epochs=0.5, learning_rate=1e-5, evaluations=1)
    mae = {
        head: train(chips, tmp_path / "first", tmp_path / head, head=head, recipe=briefly)["chosen"]["mae_m"]
        for head in ("own", "linear")
    }
    cards = {head: (tmp_path / head / "README.md").read_text() for head in mae}
    assert "it learned canopy; that head went on learning" in cards["own"]
    assert "it learned canopy; that head was thrown away and begun afresh" in cards["linear"]
    assert mae["own"] == pytest.approx(first["chosen"]["mae_m"], rel=0.15) and mae["linear"] > 1.5 * mae["own"]


def test_a_model_without_a_head_of_its_own_is_refused(chmv2: Path, chips: ChipSet, tmp_path: Path) -> None:
    backbone = save_backbone(tmp_path / "vit")
    for model, said in ((backbone, "no head for canopy of its own"), ("new", "a new network has no head of its own")):
        with pytest.raises(ModelError, match=said):
            begin(model, chips, head="own", size=64, seed=0)
    trees = begin(chmv2, replace(chips, task="trees"), head="density", size=64, seed=0)
    assert not trees.own
    with pytest.raises(ModelError, match="no head for trees of its own: use density"):
        begin(chmv2, replace(chips, task="trees"), head="own", size=64, seed=0)
    other = save(canopy_network(), tmp_path / "other", CHMV2_STATISTICS)
    with pytest.raises(ModelError, match=r"another shape than CHMv2's \(post_process_channels, "):
        begin(other, chips, head="own", size=64, seed=0)


def test_what_a_demonstration_said_stays_one(chips: ChipSet, tmp_path: Path) -> None:
    backbone = save_backbone(tmp_path / "vit")
    brief = replace(RECIPE, epochs=0.5, evaluations=1)
    train(chips, backbone, tmp_path / "shown", head="linear", recipe=brief, options=Options(demonstration=True))
    for head, stays in (("own", True), ("linear", False)):
        train(chips, tmp_path / "shown", tmp_path / head, head=head, recipe=brief)
        assert facts_of(str(tmp_path / head)).demonstration == stays
