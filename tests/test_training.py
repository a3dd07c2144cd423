"""Training of nano: chips, loss, figures, checkpoints, and the weights that are shipped."""

import csv
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import CHMv2Config, CHMv2ForDepthEstimation

from geodino.errors import InputError
from geodino.training.canopy_data import SHARES, CanopyScene, ChipSampler, read_scene, training_scenes
from geodino.training.canopy_figures import constant_figures, figures, predict_whole
from geodino.training.canopy_loss import canopy_loss
from geodino.training.canopy_training import Recipe, Training, heights, predict_scene, train
from geodino.training.nano import NORMALISATION, evaluate, export, main, nano_config, new_model, open_eyes

WEIGHTS = Path(__file__).parents[1] / "geodino" / "weights" / "nano"
GPL_SCENES = {"pycrown_west", "kootenay"}
RECIPE = Recipe(size=64, overlap=32, batch_size=4, steps=80, seed=3, learning_rate=2e-3, average_decay=0.9)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny models: threads that wait for each other on a busy machine cost 30 times the work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def config() -> CHMv2Config:
    return nano_config(width=64, layers=4, size=64)


@pytest.fixture(scope="module")
def scene() -> CanopyScene:
    return made_scene(seed=1)


@pytest.fixture(scope="module")
def trained(config: CHMv2Config, scene: CanopyScene, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    train(new_model(config, seed=3), made_training(scene, folder, RECIPE))
    return folder


def made_scene(*, seed: int) -> CanopyScene:
    """Dark crowns of 4 to 24 m on bright ground, the taller the darker; a corner without heights."""
    rng = np.random.default_rng(seed)
    height = np.zeros((160, 192), np.float32)
    rows, cols = np.mgrid[:160, :192]
    for row, col, radius in zip(*rng.uniform([[0], [0], [6]], [[160], [192], [16]], (3, 40)), strict=True):
        crown = (rows - row) ** 2 + (cols - col) ** 2 < radius**2
        height[crown] = np.maximum(height[crown], 1.5 * radius)
    bright = 220 - 7 * height + rng.normal(0, 5, height.shape)
    image = np.stack([bright, bright, 0.8 * bright]).clip(0, 255).astype(np.uint8)
    height[:20, :20] = np.nan
    return CanopyScene("autzen_north", image, height)


def made_training(scene: CanopyScene, folder: Path, recipe: Recipe) -> Training:
    return Training((scene,), made_scene(seed=2), recipe, NORMALISATION, folder)


def test_a_short_training_beats_every_constant_on_a_scene_it_did_not_see(trained: Path, config: CHMv2Config) -> None:
    unseen = made_scene(seed=5)
    model = CHMv2ForDepthEstimation(config)
    model.load_state_dict(load_file(trained / "best.safetensors"))
    found = figures(predict_scene(model, unseen, size=64, overlap=32, normalise=NORMALISATION), unseen.height)
    assert found.mae_m < 0.6 * constant_figures(float(np.nanmedian(unseen.height)), unseen.height).mae_m
    assert found.rmse_m < 0.6 * constant_figures(float(np.nanmean(unseen.height)), unseen.height).rmse_m


def test_a_training_that_was_cut_ends_with_the_weights_of_one_that_ran_through(
    config: CHMv2Config, scene: CanopyScene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(RECIPE, steps=12, checkpoint_steps=4)
    through, cut = (made_training(scene, tmp_path / name, recipe) for name in ("through", "cut"))
    train(new_model(config, seed=3), through)

    whole_batch = ChipSampler.batch
    with monkeypatch.context() as patch:

        def cut_at_step_7(self: ChipSampler, step: int) -> object:
            if step == 7:
                raise KeyboardInterrupt
            return whole_batch(self, step)

        patch.setattr(ChipSampler, "batch", cut_at_step_7)
        with pytest.raises(KeyboardInterrupt):
            train(new_model(config, seed=3), cut)
    assert not (cut.folder / "last.safetensors").exists()
    # A kill while a checkpoint is written leaves its unfinished folder behind.
    (cut.folder / "checkpoint.part").mkdir()
    train(new_model(config, seed=4), cut)

    wanted, found = (load_file(training.folder / "last.safetensors") for training in (through, cut))
    assert wanted.keys() == found.keys()
    for name in wanted:
        assert torch.equal(wanted[name], found[name]), name


def test_an_exported_folder_loads_strictly_and_predicts_the_same(
    trained: Path, config: CHMv2Config, tmp_path: Path
) -> None:
    export(trained / "best.safetensors", tmp_path, config=config, record={"seed": 3})
    loaded, report = CHMv2ForDepthEstimation.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    model = CHMv2ForDepthEstimation(config).eval()
    model.load_state_dict(load_file(trained / "best.safetensors"))
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(loaded.eval()(images).predicted_depth, model(images).predicted_depth)
    assert json.loads((tmp_path / "training.json").read_text()) == {"seed": 3}
    assert (tmp_path / "model.safetensors").stat().st_mode & 0o777 == 0o644


def test_the_heights_that_are_trained_are_those_that_transformers_predicts(config: CHMv2Config) -> None:
    model = new_model(config, seed=0).eval()
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(heights(model, images), model(images).predicted_depth, atol=1e-4, rtol=1e-5)
        # All bins dead: both must say the mean bin, and stay finite.
        model.head.conv_depth.head[-1].bias.fill_(-1e6)
        torch.testing.assert_close(heights(model, images), model(images).predicted_depth, atol=1e-2, rtol=1e-3)


def test_a_new_model_has_no_dead_bin(config: CHMv2Config) -> None:
    model = new_model(config, seed=0).eval()
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    head = model.head.conv_depth.head[-1]
    logits: list[torch.Tensor] = []
    head.register_forward_hook(lambda _module, _inputs, output: logits.append(output))
    with torch.inference_mode():
        model(images)
    assert (logits[0] > 0).any(dim=0).any(dim=-1).any(dim=-1).all()


def test_training_scenes_are_free_of_gpl_and_share_no_ground_with_the_held_out_block(shared_data: Path) -> None:
    folder = shared_data / "canopy"
    scenes, held_out = training_scenes(folder, seed=0)
    with (folder / "scenes.csv").open(newline="") as lines:
        rows = {row["scene"]: row for row in csv.DictReader(lines)}
    assert {name for name, row in rows.items() if "GPL" in row["licence"]} == GPL_SCENES
    names = {scene.name for scene in scenes}
    assert names == set(SHARES)
    assert not names & GPL_SCENES
    assert all(rows[name]["split"] == "train" for name in names - {"plots"})
    whole = read_scene(folder, held_out.name)
    (kept,) = [scene for scene in scenes if scene.name == held_out.name]
    apart = whole.height.shape[1] - kept.height.shape[1] - held_out.height.shape[1]
    assert apart >= 50  # 30 m at 0.6 m
    np.testing.assert_array_equal(kept.image, whole.image[:, :, : kept.image.shape[2]])
    np.testing.assert_array_equal(held_out.image, whole.image[:, :, -held_out.image.shape[2] :])


def test_a_scene_whose_licence_turns_gpl_is_refused(shared_data: Path, tmp_path: Path) -> None:
    text = (shared_data / "canopy" / "scenes.csv").read_text()
    (tmp_path / "scenes.csv").write_text(text.replace("CC BY 4.0", "GPL-3.0"))
    with pytest.raises(InputError, match=r"is under GPL-3\.0"):
        training_scenes(tmp_path, seed=0)


def test_the_evaluation_scene_is_refused_as_a_training_scene(shared_data: Path, tmp_path: Path) -> None:
    text = (shared_data / "canopy" / "scenes.csv").read_text()
    (tmp_path / "scenes.csv").write_text(text.replace("autzen_north,train", "autzen_north,val"))
    with pytest.raises(InputError, match="'autzen_north' must be in"):
        training_scenes(tmp_path, seed=0)


def test_a_batch_depends_on_the_seed_and_the_step_alone(scene: CanopyScene) -> None:
    first, second, other = (
        ChipSampler([scene], size=64, batch_size=3, seed=seed).batch(step) for seed, step in ((1, 9), (1, 9), (1, 10))
    )
    assert torch.equal(first.images, second.images)
    assert torch.equal(first.heights, second.heights)
    assert not torch.equal(first.images, other.images)


def test_chips_stay_registered_with_their_heights_however_they_are_turned(scene: CanopyScene) -> None:
    sampler = ChipSampler([scene], size=64, batch_size=16, seed=0)
    for step in range(4):
        chips = sampler.batch(step)
        assert float(chips.images.min()) >= 0
        assert float(chips.images.max()) <= 1
        for image, height, valid in zip(chips.images, chips.heights, chips.valid, strict=True):
            # Crowns are dark: brightness and height run against each other, whatever the colours became.
            pairs = torch.stack([image.mean(0)[valid], height[valid]])
            if pairs[1].std() > 2:
                assert float(torch.corrcoef(pairs)[0, 1]) < -0.7


def test_opened_eyes_answer_to_texture_and_not_to_the_mean_colour_alone(
    config: CHMv2Config, scene: CanopyScene
) -> None:
    images = torch.from_numpy(scene.image[None].astype(np.float32) / 255)
    dimensions = []
    for opened in (False, True):
        model = new_model(config, seed=0)
        if opened:
            open_eyes(model, [scene], seed=0, patches=500)
        with torch.inference_mode():
            answers = model.backbone.embeddings.patch_embeddings(NORMALISATION(images))
        power = torch.linalg.svdvals(answers.flatten(2)[0].T - answers.mean((0, 2, 3))) ** 2
        # The number of directions that carry variance.
        dimensions.append(float(power.sum() ** 2 / (power**2).sum()))
    assert dimensions[1] > 3 * dimensions[0]


def test_only_pixels_with_a_known_height_count_in_the_loss() -> None:
    generator = torch.Generator().manual_seed(0)
    found, target = torch.rand(2, 3, 16, 16, generator=generator) * 20
    valid = torch.rand(3, 16, 16, generator=generator) > 0.3
    elsewhere = torch.where(valid, target, torch.tensor(77.0))
    for progress in (0.0, 0.3, 1.0):
        loss = canopy_loss(found, target, valid, progress=progress)
        assert float(loss) == float(canopy_loss(found, elsewhere, valid, progress=progress))
        assert float(loss) > float(canopy_loss(target + 0.1, target, valid, progress=progress))
        assert math.isfinite(float(canopy_loss(found, target, torch.zeros_like(valid), progress=progress)))


def test_figures_are_those_of_the_definition() -> None:
    measured = np.array([[0, 0, 4], [8, 25, np.nan]], np.float32)
    predicted = np.array([[1, 0, 2], [8, 20, 50]], np.float32)
    found = figures(predicted, measured)
    assert found.pixels == 5
    assert found.mae_m == pytest.approx((1 + 0 + 2 + 0 + 5) / 5)
    assert found.rmse_m == pytest.approx(math.sqrt((1 + 4 + 25) / 5))
    assert found.bias_m == pytest.approx((1 - 2 - 5) / 5)
    assert found.r2 == pytest.approx(1 - 30 / np.var([0, 0, 4, 8, 25]) / 5)
    assert [part.share for part in found.classes] == pytest.approx([0.4, 0.2, 0.2, 0.0, 0.2, 0.0])
    assert found.classes[4].bias_m == pytest.approx(-5)
    assert math.isnan(found.classes[5].mae_m)


@settings(deadline=None, max_examples=30)
@given(st.integers(64, 150), st.integers(64, 150), st.sampled_from([0, 16, 32]))
def test_windows_of_a_whole_scene_join_to_what_each_of_them_says(rows: int, cols: int, overlap: int) -> None:
    image = np.random.default_rng(rows * cols).integers(0, 256, (3, rows, cols), np.uint8)

    def red_share(chips: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        assert chips.shape == (1, 3, 64, 64)
        return chips[:, 0]

    found = predict_whole(image, red_share, size=64, overlap=overlap)
    np.testing.assert_allclose(found, image[0] / 255, atol=1e-6)


def test_the_shipped_weights_load_strictly_and_are_small() -> None:
    model, report = CHMv2ForDepthEstimation.from_pretrained(WEIGHTS, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert (WEIGHTS / "model.safetensors").stat().st_size < 25e6
    assert model.config.to_dict()["backbone_config"]["hidden_size"] == nano_config().backbone_config.hidden_size
    processor = json.loads((WEIGHTS / "preprocessor_config.json").read_text())
    assert processor["image_mean"] == list(NORMALISATION.mean)
    assert processor["image_std"] == list(NORMALISATION.std)


def test_the_shipped_weights_beat_every_constant_on_the_validation_scene(shared_data: Path) -> None:
    scene = read_scene(shared_data / "canopy", "autzen_val")
    found = evaluate(CHMv2ForDepthEstimation.from_pretrained(WEIGHTS), scene)
    assert found.mae_m < constant_figures(float(np.nanmedian(scene.height)), scene.height).mae_m
    assert found.rmse_m < constant_figures(float(np.nanmean(scene.height)), scene.height).rmse_m


def test_the_figures_on_the_card_are_those_that_the_evaluation_prints(shared_data: Path) -> None:
    result = CliRunner().invoke(main, ["evaluate", "--data", str(shared_data / "canopy"), "--weights", str(WEIGHTS)])
    assert result.exit_code == 0, result.output
    model = json.loads(result.stdout)["model"]
    card = (WEIGHTS / "README.md").read_text()
    line = f"| nano | {model['mae_m']:.2f} | {model['rmse_m']:.2f} | {model['bias_m']:+.2f} | {model['r2']:.2f} |"
    assert line in card


def test_a_run_is_exported_with_its_recipe_and_its_log(tmp_path: Path) -> None:
    run, folder = tmp_path / "run", tmp_path / "model"
    run.mkdir()
    model = new_model(nano_config(), seed=7)
    save_file(model.state_dict(), run / "best.safetensors")
    (run / "recipe.json").write_text('{"recipe": {"seed": 7}}')
    (run / "log.jsonl").write_text('{"step": 1}\n{"step": 2}\n')
    result = CliRunner().invoke(main, ["export", "--run", str(run), "--to", str(folder)])
    assert result.exit_code == 0, result.output
    record = json.loads((folder / "training.json").read_text())
    assert record == {"recipe": {"seed": 7}, "log": [{"step": 1}, {"step": 2}]}
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    loaded = CHMv2ForDepthEstimation.from_pretrained(folder)
    with torch.inference_mode():
        assert torch.equal(loaded.eval()(images).predicted_depth, model.eval()(images).predicted_depth)
