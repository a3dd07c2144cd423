"""The training loop for canopy height: steps, averaged weights, checkpoints that survive a kill, a log.

A step depends on the seed, its number and the weights alone, so a training that was cut and goes on ends with the same
weights as one that ran through (with the same thread count). A time limit gives that up: where it bites, the schedule
follows the clock, and the log tells every learning rate that was used.
"""

from __future__ import annotations

import copy
import json
import logging
import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from transformers import CHMv2ForDepthEstimation

from geodino.training.canopy_data import CanopyScene, Chips, ChipSampler
from geodino.training.canopy_figures import Figures, constant_figures, figures, predict_whole
from geodino.training.canopy_loss import canopy_loss

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recipe:
    """What decides the weights, besides the model and the scenes.

    Attributes
    ----------
    size, overlap
        Side of the chips, and overlap of the windows that an evaluation uses, pixels.
    steps
        Length of the schedule.
    minutes
        Limit on the time spent in all runs together; the schedule then ends with it. None: no limit.
    evaluate_every_s
        Seconds between evaluations of the averaged weights on the held-out block, each followed by a checkpoint.
    checkpoint_steps
        Steps between checkpoints.
    """

    size: int
    overlap: int
    batch_size: int
    steps: int
    seed: int
    minutes: float | None = None
    learning_rate: float = 4e-4
    weight_decay: float = 0.05
    warm_up: float = 0.01
    average_decay: float = 0.998
    clip_norm: float = 1.0
    evaluate_every_s: float = 150.0
    checkpoint_steps: int = 200


@dataclass(frozen=True)
class Normalisation:
    """Mean and standard deviation of the colours, 0..1, in the order red, green, blue."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        mean = torch.tensor(self.mean).view(3, 1, 1)
        std = torch.tensor(self.std).view(3, 1, 1)
        return (images - mean) / std


@dataclass(frozen=True)
class Training:
    """All that a training needs besides the model: what to learn from, what chooses the weights, how, and where to."""

    scenes: tuple[CanopyScene, ...]
    held_out: CanopyScene
    recipe: Recipe
    normalise: Normalisation
    folder: Path


@dataclass
class _State:
    # The one mutable thing of a training: what a checkpoint holds.
    model: CHMv2ForDepthEstimation
    average: CHMv2ForDepthEstimation
    optimizer: torch.optim.AdamW
    step: int = 0
    elapsed_s: float = 0.0
    best_mae_m: float = math.inf


def train(model: CHMv2ForDepthEstimation, training: Training) -> None:
    """Train `model`, and leave its averaged weights in the folder: `best.safetensors` and `last.safetensors`.

    `best` is the average with the lowest mean absolute error on the held-out block. `log.jsonl` gets a line for each
    evaluation. Goes on from the newest checkpoint in the folder if there is one. The model is changed.

    Raises
    ------
    FloatingPointError
        The loss is no longer finite.
    """
    recipe = training.recipe
    training.folder.mkdir(parents=True, exist_ok=True)
    state = _State(model, copy.deepcopy(model), _optimizer(model, recipe))
    _resume(state, training.folder)
    sampler = ChipSampler(training.scenes, size=recipe.size, batch_size=recipe.batch_size, seed=recipe.seed)
    started = time.monotonic() - state.elapsed_s
    evaluated = state.elapsed_s
    losses: list[float] = []
    while _progress(state, recipe) < 1:
        losses.append(_step(state, sampler.batch(state.step), recipe, training.normalise))
        state.elapsed_s = time.monotonic() - started
        if not math.isfinite(losses[-1]):
            raise FloatingPointError(f"loss {losses[-1]} at step {state.step}: lower the learning rate")
        due = state.elapsed_s - evaluated >= recipe.evaluate_every_s
        if due:
            _evaluate(state, training, losses)
            evaluated, losses = state.elapsed_s, []
        if due or state.step % recipe.checkpoint_steps == 0:
            _checkpoint(state, training.folder)
    _evaluate(state, training, losses)
    _checkpoint(state, training.folder)
    _save(state.average, training.folder / "last.safetensors")


def heights(model: CHMv2ForDepthEstimation, images: torch.Tensor) -> torch.Tensor:
    """Return heights float32 (B, H, W) in metres from normalised images, in a form that is cheap to differentiate.

    The same value as `model(images).predicted_depth`: after the ReLU the smallest logit is at least 0, so the shift of
    transformers' `_create_outputs_with_mixlog_norm` is 1e-8 for every bin, and one product with (bins, ones) gives the
    weighted sum and the weight. The backbone and the head run in the caller's autocast, the bins in float32.
    """
    found = model.backbone(images)
    patches = images.shape[-2] // model.config.patch_size, images.shape[-1] // model.config.patch_size
    logits = model.head(list(zip(found.feature_maps, found.cls_tokens, strict=True)), *patches)
    with torch.autocast(images.device.type, enabled=False):
        bins = model.features_to_depth._create_mixlog_bins(logits.shape[1], logits.device)
        weights = torch.relu(logits).float()
        sums = torch.nn.functional.conv2d(weights, torch.stack([bins, torch.ones_like(bins)])[:, :, None, None])
        shift = 1e-8
        numerator = sums[:, 0] + shift * bins.sum()
        found_m: torch.Tensor = 8.0 * numerator / (sums[:, 1] + shift * len(bins))
        return found_m


def predict_scene(
    model: CHMv2ForDepthEstimation, scene: CanopyScene, *, size: int, overlap: int, normalise: Normalisation
) -> npt.NDArray[np.float32]:
    """Return heights (H, W) in metres of a whole scene, in float32."""

    def predict(images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        with torch.inference_mode():
            found = model(normalise(torch.from_numpy(images))).predicted_depth
        return np.asarray(found.numpy())

    model.eval()
    return predict_whole(scene.image, predict, size=size, overlap=overlap)


def _step(state: _State, chips: Chips, recipe: Recipe, normalise: Normalisation) -> float:
    # Drop path and the RoPE's random rescaling take torch's global generator: seeded by step, nothing need be kept.
    torch.manual_seed(recipe.seed * 1_000_003 + state.step)
    progress = _progress(state, recipe)
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate(recipe, progress)
    state.model.train()
    with torch.autocast("cpu", torch.bfloat16, enabled=_native_bf16()):
        found = heights(state.model, normalise(chips.images))
    loss = canopy_loss(found, chips.heights, chips.valid, progress=progress)
    state.optimizer.zero_grad()
    torch.autograd.backward(loss)
    torch.nn.utils.clip_grad_norm_(state.model.parameters(), recipe.clip_norm)
    state.optimizer.step()
    state.step += 1
    # A short memory at first: the average must forget the random weights it began with.
    decay = min(recipe.average_decay, (1 + state.step) / (10 + state.step))
    with torch.no_grad():
        for kept, new in zip(state.average.parameters(), state.model.parameters(), strict=True):
            kept.lerp_(new, 1 - decay)
    return float(loss.detach())


def learning_rate(recipe: Recipe, progress: float) -> float:
    """Return the learning rate: a linear warm-up, then half a cosine down to a hundredth."""
    if progress < recipe.warm_up:
        return recipe.learning_rate * (progress + 1e-3) / (recipe.warm_up + 1e-3)
    done = (progress - recipe.warm_up) / (1 - recipe.warm_up)
    return recipe.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(done, 1.0))))


def _progress(state: _State, recipe: Recipe) -> float:
    by_clock = state.elapsed_s / (recipe.minutes * 60) if recipe.minutes else 0.0
    return max(state.step / recipe.steps, by_clock)


def _optimizer(model: CHMv2ForDepthEstimation, recipe: Recipe) -> torch.optim.AdamW:
    # Biases, norms and layer scales are not decayed: the head's positive output bias keeps its bins alive.
    matrices = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98))


def _evaluate(state: _State, training: Training, losses: Sequence[float]) -> None:
    recipe, held_out, folder = training.recipe, training.held_out, training.folder
    predicted = predict_scene(
        state.average, held_out, size=recipe.size, overlap=recipe.overlap, normalise=training.normalise
    )
    found = figures(predicted, held_out.height)
    if found.mae_m < state.best_mae_m:
        state.best_mae_m = found.mae_m
        _save(state.average, folder / "best.safetensors")
    constant = constant_figures(float(np.nanmedian(held_out.height)), held_out.height)
    line = _log_line(state, recipe, found, constant, losses)
    with (folder / "log.jsonl").open("a") as log:
        log.write(json.dumps(line) + "\n")
    _log.info("%s", line)


def _log_line(
    state: _State, recipe: Recipe, found: Figures, constant: Figures, losses: Sequence[float]
) -> dict[str, float]:
    return {
        "step": state.step,
        "elapsed_s": round(state.elapsed_s, 1),
        "learning_rate": learning_rate(recipe, _progress(state, recipe)),
        "loss": float(np.mean(losses)) if losses else math.nan,
        "held_out_mae_m": found.mae_m,
        "held_out_rmse_m": found.rmse_m,
        "held_out_bias_m": found.bias_m,
        "held_out_r2": found.r2,
        "constant_mae_m": constant.mae_m,
        "best_mae_m": state.best_mae_m,
    }


def _checkpoint(state: _State, folder: Path) -> None:
    # A folder is renamed as one, so weights, averages and optimizer state always belong together.
    final = folder / f"checkpoint-{state.step:07d}"
    if final.exists():
        return
    partial = folder / "checkpoint.part"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    save_file(_tensors(state.model), partial / "model.safetensors")
    save_file(_tensors(state.average), partial / "average.safetensors")
    torch.save(state.optimizer.state_dict(), partial / "optimizer.pt")
    place = {"step": state.step, "elapsed_s": state.elapsed_s, "best_mae_m": state.best_mae_m}
    (partial / "place.json").write_text(json.dumps(place))
    partial.rename(final)
    for older in _checkpoints(folder)[:-1]:
        shutil.rmtree(older)


def _resume(state: _State, folder: Path) -> None:
    found = _checkpoints(folder)
    if not found:
        return
    state.model.load_state_dict(load_file(found[-1] / "model.safetensors"))
    state.average.load_state_dict(load_file(found[-1] / "average.safetensors"))
    state.optimizer.load_state_dict(torch.load(found[-1] / "optimizer.pt", weights_only=True))
    place = json.loads((found[-1] / "place.json").read_text())
    state.step, state.elapsed_s, state.best_mae_m = place["step"], place["elapsed_s"], place["best_mae_m"]
    _log.info("going on from %s", found[-1])


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("checkpoint-*"))


def _save(model: CHMv2ForDepthEstimation, path: Path) -> None:
    partial = path.with_suffix(".part")
    save_file(_tensors(model), partial)
    partial.replace(path)


def _tensors(model: CHMv2ForDepthEstimation) -> dict[str, torch.Tensor]:
    return {name: tensor.contiguous() for name, tensor in model.state_dict().items()}


def _native_bf16() -> bool:
    # Without AVX512-BF16 or AMX, bfloat16 is emulated and slower than float32.
    found = torch.cpu.get_capabilities()
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))
