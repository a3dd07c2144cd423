"""The shipped weights: what their card says of them is what `geodino evaluate` says, and is good enough to ship."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from geodino.evaluation.models import evaluate_model
from geodino.models import load_model
from geodino.models.files import sha256_of
from geodino.shipped import nano_folder
from geodino.training.chips import ChipOptions, LabelOptions, build_chips

DOCS = Path(__file__).parents[1] / "docs" / "nano"
# A place resamples one way on every machine; sums of bfloat16 or other kernels may move the third digit.
CLOSE = 0.004


def reported(name: str) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((DOCS / name / "evaluation.json").read_text())
    return report


def value(report: dict[str, Any], figure: str) -> float:
    return float(report["figures"][figure]["value"])


def test_the_weights_are_small_and_those_that_were_trained_and_evaluated() -> None:
    weights = nano_folder() / "model.safetensors"
    sha256 = sha256_of([weights])
    assert weights.stat().st_size <= 25_000_000
    record = json.loads((nano_folder() / "training.json").read_text())
    assert record["weights_sha256"] == sha256
    assert record["task"] == "canopy" and record["start"]["training"]["task"] == "trees"
    assert {reported(name)["subject"]["sha256"] for name in ("trees", "autzen", "neon", "others")} == {sha256}
    assert not any(word in record["command"] for word in ("pycrown", "kootenay")), "GPL data"


def test_the_card_states_the_figures_of_the_evaluations() -> None:
    card = (nano_folder() / "README.md").read_text()
    for name, figures in {
        "trees": {"f1": ".3f", "precision": ".3f", "recall": ".3f", "count_r2": ".2f", "count_bias": "+.1f"},
        "autzen": {"mae_m": ".2f", "rmse_m": ".2f", "bias_m": "+.2f", "r2": ".2f", "block_r2": ".2f"},
        "neon": {"mae_m": ".2f", "bias_m": "+.2f"},
        "others": {"mae_m": ".2f", "bias_m": "+.2f"},
    }.items():
        for figure, form in figures.items():
            assert format(value(reported(name), figure), form) in card, (name, figure)


def test_trees_on_towns_that_nothing_saw(shared_data: Path, tmp_path: Path) -> None:
    data = shared_data / "urban-trees"
    options = ChipOptions(size=256, labels=LabelOptions(scene_column="chip"), splits=(str(data / "chips.csv"),))
    source = [str(data / "stac" / "catalog.json")]
    chips = build_chips("trees", [str(data / "trees.parquet")], source, folder=tmp_path / "chips", options=options)
    chips = chips.subset((chips.table["split"] == "val").to_numpy())
    found = evaluate_model(load_model("nano", precision="fp32", device="cpu"), chips).report
    said = reported("trees")
    assert found.labels.sha256 == said["labels"]["sha256"]
    for figure in ("f1", "precision", "recall", "count_r2"):
        assert found.figure(figure).value == pytest.approx(value(said, figure), abs=CLOSE)
    assert found.figure("f1").value >= 0.76 and abs(found.figure("count_bias").value) <= 3


def test_heights_on_a_scene_that_nothing_saw(shared_data: Path, tmp_path: Path) -> None:
    scenes = shared_data / "canopy" / "scenes"
    labels, source = [str(scenes / "autzen_val_chm.tif")], [str(scenes / "autzen_val_rgb.tif")]
    chips = build_chips("canopy", labels, source, folder=tmp_path / "chips", options=ChipOptions(size=256))
    found = evaluate_model(load_model("nano", precision="fp32", device="cpu"), chips).report
    said = reported("autzen")
    for figure in ("mae_m", "r2", "block_r2"):
        assert found.figure(figure).value == pytest.approx(value(said, figure), abs=0.02)
    assert found.figure("mae_under_constant").value >= 46
