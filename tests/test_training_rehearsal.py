"""Fine-tuning for one head while another one's chips are rehearsed: nothing is forgotten, and nothing goes unsaid."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import torch
from rasterio.transform import from_origin
from safetensors.torch import load_file
from tiny_models import save_backbone

import geodino
from geodino.errors import ConfigError, ModelError
from geodino.training.augment import Variety
from geodino.training.chips import ChipOptions, ChipSet, build_chips, open_chips
from geodino.training.recipe import Recipe
from geodino.training.rehearsal import rehearsals
from geodino.training.train import Options, train

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = Recipe(
    size=64, batch=4, epochs=30, learning_rate=3e-3, backbone_rate=1e-3, evaluations=2, tuning=0.3, silog=False,
    finetune=True, variety=Variety(free=0.3, colour=0.2), choose="last",
)  # fmt: skip
HEIGHT_M, RADIUS_PX = 15.0, 5


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve photos, their heights, and the trees of all: dark discs on pale ground, each 15 m tall."""
    folder = tmp_path_factory.mktemp("ground")
    rng = np.random.default_rng(4)
    rows, cols = np.indices((64, 64)) + 0.5
    trees = []
    for k in range(12):
        place = from_origin(500_000.4 + 240 * k, 4_800_000.6, 0.6, 0.6)
        crowns = np.zeros((64, 64), np.bool_)
        for quarter_row, quarter_col in ((0, 0), (0, 32), (32, 0), (32, 32)):
            y, x = quarter_row + rng.uniform(8, 24), quarter_col + rng.uniform(8, 24)
            crowns |= (rows - y) ** 2 + (cols - x) ** 2 < RADIUS_PX**2
            trees.append(place * (x, y))
        image = np.where(crowns, 50, 170) + rng.normal(0, 6, (3, 64, 64))
        profile = {
            "driver": "GTiff", "height": 64, "width": 64, "crs": "EPSG:32610", "transform": place, "count": 1,
        }  # fmt: skip
        with rasterio.open(
            folder / f"s{k}_rgb.tif", "w", dtype="uint8", photometric="rgb", **{**profile, "count": 3}
        ) as file:
            file.write(image.clip(0, 255).astype(np.uint8))
        with rasterio.open(folder / f"s{k}_chm.tif", "w", dtype="float32", nodata=-9999, **profile) as file:
            file.write(np.where(crowns, HEIGHT_M, 0).astype(np.float32), 1)
    x, y = np.array(trees).T
    gpd.GeoDataFrame(geometry=gpd.points_from_xy(x, y), crs="EPSG:32610").to_file(folder / "trees.gpkg")
    return folder


@pytest.fixture(scope="module")
def canopy(ground: Path, tmp_path_factory: pytest.TempPathFactory) -> ChipSet:
    return build_chips(
        "canopy", [str(ground / "*_chm.tif")], [str(ground / "*_rgb.tif")], folder=tmp_path_factory.mktemp("chips"),
        options=ChipOptions(size=64),
    )  # fmt: skip


@pytest.fixture(scope="module")
def trees(ground: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a network that was trained to find the trees, its chips beside it."""
    backbone = save_backbone(tmp_path_factory.mktemp("backbone") / "vit")
    out = tmp_path_factory.mktemp("models") / "trees"
    chips = build_chips(
        "trees", [str(ground / "trees.gpkg")], [str(ground / "*_rgb.tif")], folder=out / "work" / "chips",
        options=ChipOptions(size=64),
    )  # fmt: skip
    variety = replace(SMALL.variety, upright=True, mirrored=True)
    options = Options(attribution=("Trees: a forester.",), command="geodino train trees")
    train(chips, backbone, out, head="density", recipe=replace(SMALL, variety=variety), options=options)
    return out


@pytest.fixture(scope="module")
def both(trees: Path, canopy: ChipSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("both") / "both"
    train(canopy, trees, out, head="pyramid", recipe=SMALL, rehearse=[trees])
    return out


def test_the_other_head_goes_on_learning_and_both_are_good(trees: Path, both: Path, canopy: ChipSet) -> None:
    before, record = (json.loads((folder / "training.json").read_text()) for folder in (trees, both))
    assert before["chosen"]["f1"] > 0.8
    assert record["chosen"]["trees_f1"] > before["chosen"]["f1"] - 0.1
    assert record["chosen"]["mae_m"] < 0.7 * record["chosen"]["constant_mae_m"]
    one, other = (load_file(folder / "model.safetensors") for folder in (trees, both))
    for part in ("backbone.", "pyramid.", "heads.trees."):
        assert any(not torch.equal(one[name], other[name]) for name in one if name.startswith(part))
    model = geodino.load_model(both, precision="fp32", device="cpu")
    assert set(model.maps(np.stack([canopy.image(0)]))) == {"canopy", "trees"}


def test_what_was_rehearsed_is_in_record_config_and_card(trees: Path, both: Path) -> None:
    before, record = (json.loads((folder / "training.json").read_text()) for folder in (trees, both))
    (rehearsed,) = record["rehearsed"]
    assert (rehearsed["task"], rehearsed["data"]) == ("trees", before["data"])
    heads = json.loads((both / "config.json").read_text())["heads"]
    assert heads["trees"]["threshold"] == record["chosen"]["trees_threshold"]
    # Each head was looked at as its own training says.
    assert heads["trees"]["upright"] is heads["trees"]["mirrored"] is True
    assert "upright" not in heads["canopy"]
    card = (both / "README.md").read_text()
    assert "it learned trees; it went on learning beside" in card
    assert card.count("Trees: a forester.") == 1


def test_a_rehearsing_training_that_was_cut_ends_with_the_weights_of_one_that_ran_through(
    trees: Path, canopy: ChipSet, tmp_path: Path
) -> None:
    recipe = replace(SMALL, epochs=4)

    class PowerCutError(Exception):
        """The machine went off."""

    def pull_the_plug(line: str) -> None:
        if line.startswith("step"):
            raise PowerCutError

    train(canopy, trees, tmp_path / "whole", head="pyramid", recipe=recipe, rehearse=[trees])
    with pytest.raises(PowerCutError):
        train(canopy, trees, tmp_path / "cut", head="pyramid", recipe=recipe, rehearse=[trees], told=pull_the_plug)
    train(canopy, trees, tmp_path / "cut", head="pyramid", recipe=recipe, rehearse=[trees])
    whole, cut = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


@pytest.mark.parametrize("upright", [False, True])
def test_turned_pictures_are_rehearsed_upright_where_the_new_ones_are(
    upright: bool, trees: Path, canopy: ChipSet, tmp_path: Path
) -> None:
    record = json.loads((trees / "training.json").read_text())
    record["recipe"]["variety"] |= {"upright": False, "mirrored": False}
    (tmp_path / "training.json").write_text(json.dumps(record))
    (tmp_path / "work").symlink_to(trees / "work")
    new = replace(SMALL, batch=3, variety=Variety(free=0.9, upright=upright))
    (found,) = rehearsals([tmp_path], canopy, new)
    before = SMALL.variety
    assert found.recipe == replace(SMALL, batch=3, variety=replace(before, upright=upright, mirrored=upright))


def test_chips_that_were_kept_elsewhere_are_found_beside_the_new_ones(
    trees: Path, ground: Path, canopy: ChipSet, tmp_path: Path
) -> None:
    (tmp_path / "old").mkdir()
    shutil.copy(trees / "training.json", tmp_path / "old")
    shelf = Path(shutil.copytree(trees / "work" / "chips", tmp_path / "shelf"))
    shutil.copytree(canopy.folder, shelf / canopy.folder.name)
    (found,) = rehearsals([tmp_path / "old"], open_chips(shelf / canopy.folder.name), SMALL)
    assert found.chips.folder.parent == shelf


def test_what_cannot_be_rehearsed_is_refused(trees: Path, both: Path, canopy: ChipSet, tmp_path: Path) -> None:
    def attempt(model: Path, rehearse: list[Path], *, finetune: bool = True) -> None:
        recipe = replace(SMALL, finetune=finetune)
        train(canopy, model, tmp_path / "no", head="pyramid", recipe=recipe, rehearse=rehearse)

    with pytest.raises(ModelError, match=r"change what other heads \(trees\) stand on: .* or with --rehearse"):
        attempt(trees, [])
    with pytest.raises(ConfigError, match="to rehearse is for --finetune alone"):
        attempt(trees, [trees], finetune=False)
    with pytest.raises(ConfigError, match="trees learned trees, which another training here learns too"):
        attempt(trees, [trees, trees])
    with pytest.raises(ModelError, match=r"training\.json is no record of a training"):
        attempt(trees, [tmp_path])
    backbone = save_backbone(tmp_path / "vit")
    with pytest.raises(ModelError, match="has no head for trees that could be rehearsed"):
        attempt(backbone, [trees])
    bare = tmp_path / "bare"
    shutil.copytree(trees, bare)
    shutil.rmtree(bare / "work" / "chips")
    with pytest.raises(ModelError, match=r"has the chips .* that .*bare learned from \(held: none\)"):
        attempt(trees, [bare])
    assert not (tmp_path / "no").exists()
