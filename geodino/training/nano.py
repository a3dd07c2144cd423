"""nano: the canopy height model inside the package, trained from random weights on two CPU cores.

    python -m geodino.training.nano train --data DIR --out RUN --minutes 60
    python -m geodino.training.nano evaluate --data DIR --weights FOLDER
    python -m geodino.training.nano export --run RUN --to FOLDER

`DIR` holds `scenes.csv` (see `canopy_data`). A second `train` with the same `--out` goes on where the first was cut.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click
import numpy as np
import torch
from safetensors.torch import load_file
from transformers import CHMv2Config, CHMv2ForDepthEstimation, DINOv3ViTConfig

from geodino.models.catalog import row
from geodino.training.canopy_data import SHARES, CanopyScene, read_scene, training_scenes
from geodino.training.canopy_figures import Figures, constant_figures, figures
from geodino.training.canopy_training import Normalisation, Recipe, Training, predict_scene, train

NANO = row("nano")

SIZE = 320
OVERLAP = 64
VALIDATION_SCENE = "autzen_val"

# CHMv2's: https://huggingface.co/docs/transformers/model_doc/chmv2, image_processing_chmv2.py
NORMALISATION = Normalisation(mean=(0.420, 0.411, 0.296), std=(0.213, 0.156, 0.143))


def nano_config(*, width: int = 192, layers: int = 8, size: int = SIZE) -> CHMv2Config:
    """Return the configuration: DINOv3's ViT, and CHMv2's head made light.

    The head's last layers run at every pixel and would cost several times the backbone at CHMv2's widths; 64 bins of
    the same mixed scale keep the heights continuous, as a height is the mean over all bins.
    """
    backbone = DINOv3ViTConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=max(width // 64, 1),
        num_register_tokens=4,
        key_bias=True,
        image_size=size,
        layer_norm_eps=1e-6,
        drop_path_rate=0.05,
        # DINOv3's default of 2 blurs positions more than a model for one window size needs.
        pos_embed_rescale=1.25,
        out_indices=[max(layers * k // 4, 1) for k in (1, 2, 3, 4)],
        apply_layernorm=True,
        reshape_hidden_states=True,
        return_class_token=True,
    )
    fusion = width // 4
    return CHMv2Config(
        backbone_config=backbone,
        post_process_channels=[fusion, 2 * fusion, 3 * fusion, 4 * fusion],
        fusion_hidden_size=fusion,
        head_hidden_size=32,
        number_output_channels=64,
    )


def new_model(config: CHMv2Config, *, seed: int) -> CHMv2ForDepthEstimation:
    """Return a model with random weights, its head ready to learn.

    transformers draws every weight with a standard deviation of 0.02, made for wide layers: in the narrow head the
    signal would die. And the head's output goes through a ReLU, where a bin below zero at every pixel never comes back
    (all bins dead means 33 m everywhere, with no gradient): the biases start positive, and larger for lower heights.
    """
    torch.manual_seed(seed)
    model = CHMv2ForDepthEstimation(config)
    for layer in model.head.modules():
        if isinstance(layer, torch.nn.Conv2d | torch.nn.ConvTranspose2d):
            torch.nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    for fusion in model.head.fusion_layers:
        fusion.residual_layer2.convolution2.weight.data.mul_(0.1)
    last = model.head.conv_depth.head[-1]
    bins_m = 8 * model.features_to_depth._create_mixlog_bins(config.number_output_channels, torch.device("cpu"))
    with torch.no_grad():
        last.weight.mul_(0.05)
        last.bias.copy_(0.05 + torch.exp(-bins_m / 8))
    return model


def open_eyes(model: CHMv2ForDepthEstimation, scenes: Sequence[CanopyScene], *, seed: int, patches: int = 6000) -> None:
    """Set the patch embedding to the principal components of real patches, their variances made more alike.

    Random filters answer to the mean colour nearly alone, which has most of the variance of a patch; these answer to
    its texture too. The exponent leaves the finest components, mostly noise, below the coarse ones. What it gains was
    not measured alone.
    """
    embedding = model.backbone.embeddings.patch_embeddings
    side, width = embedding.kernel_size[0], embedding.out_channels
    rng = np.random.default_rng(seed)
    found = []
    for k in range(patches):
        image = scenes[k % len(scenes)].image
        row, col = rng.integers(image.shape[1] - side), rng.integers(image.shape[2] - side)
        found.append(image[:, row : row + side, col : col + side])
    seen = NORMALISATION(torch.from_numpy(np.stack(found)).float() / 255).flatten(1).double()
    mean = seen.mean(0)
    _, singular, components = torch.linalg.svd(seen - mean, full_matrices=False)
    deviation = singular[:width] / patches**0.5
    filters = components[:width] / (deviation[:, None] ** 0.75 * deviation.mean() ** 0.25)
    with torch.no_grad():
        embedding.weight.copy_(filters.view_as(embedding.weight))
        embedding.bias.copy_(-filters @ mean)


def export(weights: Path, folder: Path, *, config: CHMv2Config, record: dict[str, object]) -> None:
    """Write a model folder: config.json, model.safetensors, preprocessor_config.json, training.json."""
    model = CHMv2ForDepthEstimation(config)
    model.load_state_dict(load_file(weights))
    model.save_pretrained(folder)
    # safetensors writes for the owner alone; a wheel keeps the mode, and others must read it.
    (folder / "model.safetensors").chmod(0o644)
    processor = {
        "image_processor_type": "CHMv2ImageProcessor",
        "do_resize": False,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(NORMALISATION.mean),
        "image_std": list(NORMALISATION.std),
        "do_pad": True,
        # Two patches: an odd number of patches comes back one patch larger from the head.
        "size_divisor": 32,
        "size": {"height": SIZE, "width": SIZE},
        # Keys of ours, so that the folder keeps its label and licence wherever it is copied to.
        "gsd_m": NANO.gsd_m,
        "licence": NANO.licence.name,
        "licence_url": NANO.licence.url,
        "demonstration": NANO.demonstration,
    }
    for name, content in (("preprocessor_config.json", processor), ("training.json", record)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")


def evaluate(model: CHMv2ForDepthEstimation, scene: CanopyScene) -> Figures:
    """Return the figures on a scene from plain windows of `SIZE`, `OVERLAP` pixels shared."""
    predicted = predict_scene(model, scene, size=SIZE, overlap=OVERLAP, normalise=NORMALISATION)
    return figures(predicted, scene.height)


@click.group()
def main() -> None:
    """Train, evaluate and export nano."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")


@main.command("train")
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True, help="Folder of scenes.csv.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the run.")
@click.option("--steps", default=4000, show_default=True, help="Length of the schedule.")
@click.option("--minutes", type=float, help="Time limit; the schedule ends with it. [default: none]")
@click.option("--batch-size", default=4, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--seed", default=0, show_default=True)
def train_command(
    data: Path, out: Path, steps: int, minutes: float | None, batch_size: int, threads: int, seed: int
) -> None:
    """Train nano; the weights are left in --out."""
    torch.set_num_threads(threads)
    scenes, held_out = training_scenes(data, seed=seed)
    recipe = Recipe(size=SIZE, overlap=OVERLAP, batch_size=batch_size, steps=steps, seed=seed, minutes=minutes)
    out.mkdir(parents=True, exist_ok=True)
    known = np.concatenate([scene.height[np.isfinite(scene.height)] for scene in scenes])
    record = {
        "recipe": asdict(recipe),
        "shares": dict(SHARES),
        "training_median_m": float(np.median(known)),
        "training_mean_m": float(known.mean()),
        "threads": threads,
        "torch": torch.__version__,
    }
    (out / "recipe.json").write_text(json.dumps(record, indent=2) + "\n")
    training = Training(tuple(scenes), held_out, recipe, NORMALISATION, out)
    model = new_model(nano_config(), seed=seed)
    open_eyes(model, scenes, seed=seed)
    train(model, training)


@main.command("export")
@click.option("--run", type=click.Path(path_type=Path, exists=True), required=True, help="Folder of a training.")
@click.option("--to", "folder", type=click.Path(path_type=Path), required=True, help="Model folder to write.")
def export_command(run: Path, folder: Path) -> None:
    """Write the best averaged weights of a run as a model folder."""
    lines = (run / "log.jsonl").read_text().splitlines()
    record = json.loads((run / "recipe.json").read_text())
    record["log"] = [json.loads(line) for line in lines]
    export(run / "best.safetensors", folder, config=nano_config(), record=record)


@main.command("evaluate")
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True, help="Folder of scenes.csv.")
@click.option("--weights", type=click.Path(path_type=Path, exists=True), required=True, help="Model folder.")
@click.option("--scene", "name", default=VALIDATION_SCENE, show_default=True)
def evaluate_command(data: Path, weights: Path, name: str) -> None:
    """Print the figures of a model folder on a scene as JSON, beside those of constant predictors."""
    scene = read_scene(data, name)
    record = json.loads((weights / "training.json").read_text())
    found = {
        "model": evaluate(CHMv2ForDepthEstimation.from_pretrained(weights), scene),
        "training median": constant_figures(record["training_median_m"], scene.height),
        "training mean": constant_figures(record["training_mean_m"], scene.height),
        "median of this scene": constant_figures(float(np.nanmedian(scene.height)), scene.height),
        "mean of this scene": constant_figures(float(np.nanmean(scene.height)), scene.height),
    }
    click.echo(json.dumps({key: _finite(asdict(value)) for key, value in found.items()}, indent=2))


def _finite(facts: dict[str, object]) -> dict[str, object]:
    # JSON has no infinity: the open class's upper bound becomes null.
    def clean(value: object) -> object:
        if isinstance(value, dict):
            return {key: clean(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [clean(inner) for inner in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return {key: clean(value) for key, value in facts.items()}


if __name__ == "__main__":
    main()
