"""What a trained folder says of itself: its data's licences, what it learned from, and nothing that is not so."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_models import save_backbone
from training_data import NORTH, WEST, chips_of, write_image, write_raster

from geodino.errors import InUseError, OutputError
from geodino.models.catalog import CC_BY, DINOV3_LICENCE, Licence
from geodino.models.checkpoint import UNTOLD_LICENCE
from geodino.models.loading import facts_of
from geodino.training.chipset import ChipSet
from geodino.training.folder import held
from geodino.training.leaks import learned_from
from geodino.training.licences import licence_of
from geodino.training.recipe import Recipe
from geodino.training.train import Options, train

pytestmark = pytest.mark.usefixtures("one_thread")

IGN, GPL = "MIT (repository), Licence Ouverte 2.0 (IGN products)", "GPL-3.0 (repository)"
QUICK = Recipe(size=64, batch=4, epochs=1, views=1, evaluations=1, tuning=0.3, silog=False)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_backbone(tmp_path_factory.mktemp("backbone") / "vit")


@pytest.fixture(scope="module")
def chips(tmp_path_factory: pytest.TempPathFactory) -> ChipSet:
    """Twelve scenes 240 m apart, the last two held out; ten under the GPL, two of which nobody says a licence."""
    folder = tmp_path_factory.mktemp("ground")
    rows = ["scene,split,licence,city,h_max"]
    for k in range(12):
        at = (WEST + 240 * k, NORTH)
        write_image(folder / f"s{k}_rgb.tif", at=at, seed=k)
        heights = np.random.default_rng(k).uniform(0, 20, (64, 64)).astype(np.float32)
        write_raster(folder / f"s{k}_chm.tif", heights, at=at)
        rows.append(
            f"s{k},{'val' if k > 9 else 'train'},{'GPL-3.0' if k > 1 else ''},{'Ulm' if k % 2 else 'Bern'},{k // 6}"
        )
    (folder / "splits.csv").write_text("\n".join(rows) + "\n")
    labels, images = ([str(folder / f"s{k}_{kind}.tif") for k in range(12)] for kind in ("chm", "rgb"))
    return chips_of("canopy", labels, images, folder, splits=(str(folder / "splits.csv"),))


@pytest.fixture(scope="module")
def block(tmp_path_factory: pytest.TempPathFactory) -> ChipSet:
    """One scene of 8 x 8 chips."""
    folder = tmp_path_factory.mktemp("block")
    write_image(folder / "a_rgb.tif", (512, 512))
    heights = np.random.default_rng(1).uniform(0, 20, (512, 512)).astype(np.float32)
    return chips_of("canopy", write_raster(folder / "a_chm.tif", heights), folder / "a_rgb.tif", folder)


@pytest.fixture(scope="module")
def first(chips: ChipSet, backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("first") / "m"
    url = "https://ada:secret@example.org/a.tif?X-Amz-Signature=abc"
    options = Options(attribution=("A. Surveyor",), command=f"geodino train --labels 's?_chm.tif' --source '{url}'")
    train(chips, backbone, out, head="linear", recipe=QUICK, options=options)
    return out


def read(folder: Path) -> tuple[dict, str]:  # type: ignore[type-arg]
    return json.loads((folder / "training.json").read_text()), (folder / "README.md").read_text()


def test_the_licences_of_the_chips_are_named_and_no_other_is_claimed(first: Path) -> None:
    record, card = read(first)
    used = record["data"]["learned_from"] + record["data"]["chosen_by"]
    assert record["data"]["licences"] == {"GPL-3.0": used - 2, "not stated": 2}
    assert f"Imagery and splits state, by chips: GPL-3.0 {used - 2}, not stated 2" in card
    licence = facts_of(first).licence
    assert licence.name == f"as its start and data: {UNTOLD_LICENCE.name}, GPL-3.0, not stated"
    assert record["licence"] == licence.name and f"## Licence\n\n{licence.name}" in card
    assert "CC-BY" not in card + json.dumps(record)


@pytest.mark.parametrize(
    ("start", "data", "name", "url"),
    [
        (None, {}, "not stated", ""),
        (None, {"licence": "CC-BY-4.0"}, "CC-BY-4.0", CC_BY.url),
        (None, {"licences": {"GPL-3.0": 3}}, "as its data: GPL-3.0, not stated", ""),
        (None, {"licence": "CC-BY-4.0", "licences": {"GPL-3.0": 3}}, "as its data: GPL-3.0, CC-BY-4.0", ""),
        # As of nano's data: the others ask for attribution alone.
        (CC_BY, {"licence": CC_BY.name, "licences": {"CC BY 4.0": 9, IGN: 2}}, CC_BY.name, CC_BY.url),
        (None, {"licence": CC_BY.name, "licences": {GPL: 9}}, f"as its data: {GPL}, CC-BY-4.0", ""),
        (CC_BY, {"licences": {"CC BY 4.0": 9}}, "as its start and data: not stated, CC-BY-4.0", ""),
        (
            DINOV3_LICENCE,
            {"licence": "CC-BY-4.0"},
            "as its start and data: DINOv3 License, CC-BY-4.0",
            DINOV3_LICENCE.url,
        ),
    ],
)  # fmt: skip
def test_the_licence_line_is_what_was_stated_or_all_that_there_is(
    start: Licence | None, data: dict[str, object], name: str, url: str
) -> None:
    assert licence_of(start, [data]) == Licence(name, url)
    # Once more with the same data changes nothing.
    assert set(licence_of(licence_of(start, [data]), [data]).name.rpartition(": ")[2].split(", ")) == set(
        name.rpartition(": ")[2].split(", ")
    )


def test_commands_are_published_without_keys_and_passwords(first: Path, chips: ChipSet, tmp_path: Path) -> None:
    record, card = read(first)
    command = "geodino train --labels 's?_chm.tif' --source 'https://example.org/a.tif?...'"
    assert record["command"] == command and command in card
    old = tmp_path / "old"
    old.mkdir()
    for path in first.glob("*.*"):
        (old / path.name).write_bytes(path.read_bytes())
    record["command"] = "geodino train --source https://example.org/b.tif?sig=abc"
    (old / "training.json").write_text(json.dumps(record))
    train(chips, old, tmp_path / "new", head="linear", recipe=QUICK)
    record, card = read(tmp_path / "new")
    assert "sig=" not in json.dumps(record) + card


def test_a_head_of_the_same_task_is_said_to_be_thrown_away(first: Path, chips: ChipSet, tmp_path: Path) -> None:
    lines: list[str] = []
    options = Options(attribution=("B. Surveyor",))
    train(chips, first, tmp_path / "m", head="linear", recipe=QUICK, options=options, told=lines.append)
    record, card = read(tmp_path / "m")
    assert any("head for canopy of m is thrown away" in line for line in lines)
    assert record["start"]["replaced"] and "The head for canopy that it had was thrown away" in card
    assert "it learned canopy; that head was thrown away and begun afresh" in card
    now, before = card.split("## Training")
    assert "- B. Surveyor" in now and "A. Surveyor" not in now and "- A. Surveyor" in before


def test_the_card_says_only_what_is_so(first: Path, chips: ChipSet) -> None:
    record, card = read(first)
    assert record["trained"] == ["heads.canopy"] and "`pyramid`" not in card
    assert "threshold" not in card and "places that were not trained on" in card
    tuned = record["data"]["chosen_by"]
    assert f"Figures of {tuned} chip" in card and "are largely luck" in card
    assert (
        record["data"]["by"] == {"city": {"Bern": 5, "Ulm": 5}}
        and "held out: 2" in card
        and "imagery of 0.6 m a pixel" in card
        and "By city: Bern 5, Ulm 5" in card
    )
    assert "geodino evaluate canopy --model" in card and "--source" in card
    held_out = (chips.table["split"] == "val").to_numpy()
    assert learned_from(record, chips) == (~held_out).sum() == len(chips) - 2
    assert learned_from(record, chips.subset(held_out)) == 0


def test_chips_left_out_beside_those_that_choose_are_counted_and_said(
    block: ChipSet, backbone: Path, tmp_path: Path
) -> None:
    lines: list[str] = []
    train(block, backbone, tmp_path / "m", head="linear", recipe=QUICK, told=lines.append)
    record, card = read(tmp_path / "m")
    data = record["data"]
    assert data["left_beside"] > 0 and data["left_beside"] == data["left_alone"]
    assert f"beside the chips that chose: {data['left_beside']}" in card and "Left out: nothing" not in card
    assert any(f"{data['left_beside']} beside these left out" in line for line in lines)
    assert "other blocks of the same ground" in card and "places that were not trained on" not in card
    assert "Attribution:\n\n- not stated" in card


def test_the_last_steps_weights_were_chosen_by_nothing(chips: ChipSet, backbone: Path, tmp_path: Path) -> None:
    train(chips, backbone, tmp_path / "m", head="linear", recipe=replace(QUICK, choose="last"))
    assert "**chose**" not in read(tmp_path / "m")[1]


def test_a_folder_that_is_no_trainings_is_left_alone(chips: ChipSet, backbone: Path, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("My notes.")
    with pytest.raises(OutputError, match=r"is not empty and no training's, it holds README\.md: give a new folder"):
        train(chips, backbone, tmp_path, head="linear", recipe=QUICK)
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]
    with pytest.raises(OutputError, match="is a file"):
        train(chips, backbone, tmp_path / "README.md", head="linear", recipe=QUICK)


def test_one_training_at_a_time_writes_into_a_folder(chips: ChipSet, backbone: Path, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / ".DS_Store").touch()
    with held(tmp_path / "m"), pytest.raises(InUseError, match="is in use by"):
        train(chips, backbone, tmp_path / "m", head="linear", recipe=QUICK)
    train(chips, backbone, tmp_path / "m", head="linear", recipe=QUICK)
    # Its own folder is a training's, and goes on from there.
    train(chips, backbone, tmp_path / "m", head="linear", recipe=QUICK)
    assert sorted(path.name for path in (tmp_path / "m").glob("[!.]*")) == [
        "README.md", "config.json", "learning_curve.png", "model.safetensors", "preprocessor_config.json",
        "training.json", "work",
    ]  # fmt: skip
