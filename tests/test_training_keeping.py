"""What a training keeps on disk: whole or refused by name, and JSON that any reader takes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluation_chips import SIZE, made_chips
from tiny_models import save_backbone

from geodino.errors import ModelError
from geodino.training.chipset import ChipSet
from geodino.training.parting import parted
from geodino.training.recipe import Recipe
from geodino.training.train import train

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = Recipe(size=SIZE, batch=4, epochs=4, views=2, evaluations=2, tuning=0.3, silog=False)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_backbone(tmp_path_factory.mktemp("backbone") / "vit")


def bare_ground() -> ChipSet:
    """Chips of 5 m, but for those that choose, which are bare: no R2 is told of them."""
    chips = made_chips("canopy", 12, heights=np.full((12, SIZE, SIZE), 5, np.float32))
    heights = np.asarray(chips.heights)
    heights[parted(chips, SMALL)[1]] = 0
    return made_chips("canopy", 12, heights=heights)


def test_weights_that_were_cut_short_are_refused_by_name(backbone: Path, tmp_path: Path) -> None:
    train(bare_ground(), backbone, tmp_path / "m", head="linear", recipe=SMALL)
    best = tmp_path / "m" / "work" / "best.safetensors"
    best.write_bytes(best.read_bytes()[:500])
    with pytest.raises(ModelError, match=r"best\.safetensors is damaged or cut short .*: remove .* to train again"):
        train(bare_ground(), backbone, tmp_path / "m", head="linear", recipe=SMALL)


def test_a_figure_without_a_value_is_null_in_all_that_is_kept(backbone: Path, tmp_path: Path) -> None:
    record = train(bare_ground(), backbone, tmp_path / "m", head="linear", recipe=SMALL)

    def refuse(constant: str) -> Any:
        raise AssertionError(f"{constant} is no JSON")

    kept = [tmp_path / "m" / "training.json", *(tmp_path / "m" / "work").rglob("*.json")]
    assert len(kept) >= 4
    for path in kept:
        json.loads(path.read_text(), parse_constant=refuse)
    for line in (tmp_path / "m" / "work" / "log.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=refuse)
    assert record["chosen"]["r2"] is None and record["curve"][0]["r2"] is None
    # An older training may have left NaN; its record is made whole.
    best = tmp_path / "m" / "work" / "best.json"
    best.write_text(best.read_text().replace("null", "NaN"))
    assert "NaN" in best.read_text()
    assert train(bare_ground(), backbone, tmp_path / "m", head="linear", recipe=SMALL)["chosen"] == record["chosen"]


def test_of_equal_figures_the_later_weights_are_taken_and_doubted(backbone: Path, tmp_path: Path) -> None:
    points = tuple(np.full((1, 2), 20, np.float32) for _ in range(12))
    chips, told = made_chips("trees", 12, points=points), []
    slow = replace(SMALL, learning_rate=1e-7)
    record = train(chips, backbone, tmp_path / "m", head="density", recipe=slow, told=told.append)
    assert [line["f1"] for line in record["curve"]] == [0, 0]
    assert record["chosen"]["step"] == record["curve"][-1]["step"]
    doubt = "no better than without training: F1 0, none of the trees is found"
    assert any(doubt in line for line in record["warnings"])
    assert f"warning: {record['warnings'][-1]}" in told
    assert doubt in (tmp_path / "m" / "README.md").read_text()
