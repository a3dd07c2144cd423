"""`geodino train` at the terminal: what does nothing is refused by name, and the command that it names next works."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from tiny_models import save_backbone
from training_data import NORTH, WEST, write_image, write_raster

from geodino.cli import cli

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The beginning of a command: twelve scenes 240 m apart, two of them held out, and a tiny backbone."""
    folder = tmp_path_factory.mktemp("ground")
    for k in range(12):
        at = (WEST + 240 * k, NORTH)
        write_image(folder / f"s{k}_rgb.tif", at=at, seed=k)
        heights = np.random.default_rng(k).uniform(0, 20, (64, 64)).astype(np.float32)
        write_raster(folder / f"s{k}_chm.tif", heights, at=at)
    rows = [f"s{k},{'val' if k > 9 else 'train'}" for k in range(12)]
    (folder / "splits.csv").write_text("\n".join(["scene,split", *rows]) + "\n")
    backbone = save_backbone(folder / "vit")
    return [
        "train", "canopy", "--labels", str(folder / "s*_chm.tif"), "--source", str(folder / "s*_rgb.tif"), "--splits",
        str(folder / "splits.csv"), "--model", str(backbone), "--size", "64", "--epochs", "1", "--views", "1",
        "--evaluations", "1", "--tuning", "0.3", "--device", "cpu",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--folds-by", "city"], "--folds-by does nothing without --folds"),
        (["--mirrored"], "--mirrored does nothing without --upright"),
        (["--checkpointing"], "--checkpointing does nothing without --finetune"),
        (["--backbone-rate", "0.1"], "--backbone-rate does nothing without --finetune"),
        (["--layer-decay", "0.5"], "--layer-decay does nothing without --finetune"),
        (["--sensor", "gedi"], "--sensor does nothing for raster labels"),
        (["--class-column", "kind"], "--class-column does nothing for raster labels"),
        (["--area", "nofile.gpkg"], "'nofile.gpkg' does not exist"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused_by_name(
    more: list[str], message: str, words: list[str], tmp_path: Path
) -> None:
    said = CliRunner().invoke(cli, [*words, *more, "--out", str(tmp_path / "m")])
    assert said.exit_code == 2 and message in " ".join(said.output.split())
    assert not (tmp_path / "m").exists()


def test_a_folder_of_somebody_elses_is_refused_before_chips_are_cut(words: list[str], tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("My notes.")
    said = CliRunner().invoke(cli, [*words, "--out", str(tmp_path)])
    assert "is not empty and no training's" in str(said.exception)
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


def test_the_last_line_is_a_command_that_evaluates_the_model(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["geodino", "train", "--source", "https://a:b@example.org/x.tif?sig=abc"])
    said = CliRunner().invoke(cli, [*words, "--out", str(tmp_path / "m")], catch_exceptions=False)
    command = said.stdout.splitlines()[-1]
    card = (tmp_path / "m" / "README.md").read_text()
    assert command in card
    assert "    geodino train --source 'https://example.org/x.tif?...'\n" in card
    found = CliRunner().invoke(cli, [*shlex.split(command)[1:], "--json", "--device", "cpu"], catch_exceptions=False)
    assert json.loads(found.stdout)["counts"]["chips"] == 2


def test_without_held_out_chips_the_command_leaves_the_ground_to_be_named(words: list[str], tmp_path: Path) -> None:
    at = words.index("--splits")
    said = CliRunner().invoke(cli, [*words[:at], *words[at + 2 :], "--out", str(tmp_path / "m")])
    assert said.stdout.splitlines()[-1] == (
        f"geodino evaluate canopy --model {tmp_path / 'm'} --size 64 --labels LABELS --source IMAGERY"
    )


def test_the_card_of_a_fold_names_its_own_folder(words: list[str], tmp_path: Path) -> None:
    CliRunner().invoke(cli, [*words, "--folds", "2", "--out", str(tmp_path / "m")], catch_exceptions=False)
    fold = tmp_path / "m" / "fold-1-of-2"
    assert (
        f"geodino evaluate canopy --model {fold} --labels LABELS --source IMAGERY\n" in (fold / "README.md").read_text()
    )
