"""The training loop: steps, averaged weights, checkpoints that survive a kill, a log.

A step depends on the seed, its number and the weights alone, so a training that was cut and goes on ends with the same
weights as one that ran through, with the same number of threads on the same machine.
"""

from __future__ import annotations

import copy
import json
import math
import shutil
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from geodino.errors import ModelError
from geodino.models.dinov3 import Tap
from geodino.models.network import HeadedNetwork
from geodino.models.precision import Precision, autocast
from geodino.training.chipset import ChipSet
from geodino.training.features import Features, look_at, view_rng
from geodino.training.recipe import Recipe
from geodino.training.strata import known_share, strata
from geodino.training.targets import Targets, targets
from geodino.training.tasks import TASKS, Measured
from geodino.training.whole import finite, read_json, write_json, write_text

Normalise = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, eq=False)
class Job:
    """All that a training needs: what learns, from what, what chooses the weights, how, and where to.

    Attributes
    ----------
    network
        Changed in place.
    learn, tune
        Indices of the chips to learn from and of those that choose weights and threshold.
    trained
        Prefixes of the weights that learn; the others stay as they are.
    features
        Cached tokens where the backbone is frozen.
    identity
        Of data, start and recipe; a checkpoint of another is refused.
    rehearsed
        Of the same network, for its other tasks: each step learns from a batch of each of them too. Of these only
        the chips, their indices and how they are looked at count.
    """

    network: HeadedNetwork
    chips: ChipSet
    learn: np.ndarray
    tune: np.ndarray
    recipe: Recipe
    normalise: Normalise
    trained: tuple[str, ...]
    folder: Path
    device: torch.device
    precision: Precision
    identity: str
    features: Features | None = None
    rehearsed: tuple[Job, ...] = ()


@dataclass
class State:
    """The one thing here that changes: what a checkpoint holds."""

    average: HeadedNetwork
    optimizer: torch.optim.AdamW
    step: int = 0
    elapsed_s: float = 0.0
    best: float = -math.inf
    log: list[dict[str, Any]] = field(default_factory=list)


def steps_of(job: Job) -> int:
    """How many steps the recipe takes."""
    return max(1, math.ceil(len(job.learn) * job.recipe.epochs / job.recipe.batch))


def fit(job: Job, told: Callable[[State, int], None] = lambda state, total: None) -> State:
    """Train, and leave the averaged weights: `last.safetensors`, and `best.safetensors` by the tuning chips.

    `log.jsonl` gets a line for each measurement. Goes on from the checkpoint in the folder if there is one.

    Raises
    ------
    ModelError
        The loss is no longer finite, or the checkpoint is of another training or cut short.
    """
    recipe, total = job.recipe, steps_of(job)
    job.folder.mkdir(parents=True, exist_ok=True)
    state = State(copy.deepcopy(job.network), make_optimizer(job))
    resume(state, job)
    every = max(1, total // recipe.evaluations)
    losses: list[float] = []
    started = time.monotonic() - state.elapsed_s
    with closing(_batches(job, state.step, total)) as batches:
        for drawn in batches:
            losses.append(_step(state, job, drawn, total))
            state.elapsed_s = time.monotonic() - started
            if not math.isfinite(losses[-1]):
                raise ModelError(f"loss {losses[-1]} at step {state.step}: lower the learning rate")
            if state.step % every == 0 or state.step == total:
                _measure(state, job, losses)
                losses = []
                _checkpoint(state, job)
            told(state, total)
    return state


def make_optimizer(job: Job) -> torch.optim.AdamW:
    """AdamW over the weights that learn, with a rate for each block of the backbone; freezes all others."""
    recipe, depth = job.recipe, job.network.config.backbone_config.num_hidden_layers
    groups: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
    for name, weight in job.network.named_parameters():
        learns = name.startswith(job.trained)
        weight.requires_grad_(learns)
        if not learns:
            continue
        rate = recipe.learning_rate
        if name.startswith("backbone."):
            rate = recipe.backbone_rate * recipe.layer_decay ** (depth - 1 - _block(name, depth))
        decay = recipe.weight_decay if weight.ndim > 1 else 0.0
        groups.setdefault((rate, decay), []).append(weight)
    if not groups:
        raise ModelError(f"nothing of the network learns: no weight begins with {', '.join(job.trained)}")
    return torch.optim.AdamW(
        [{"params": held, "base": rate, "weight_decay": decay} for (rate, decay), held in groups.items()],
        lr=recipe.learning_rate,
        betas=(0.9, 0.98),
    )


def rate_at(recipe: Recipe, progress: float) -> float:
    """The factor on all learning rates: a linear warm-up, then half a cosine down to a hundredth."""
    if progress < recipe.warm_up:
        return max(progress / recipe.warm_up, 1e-3)
    done = min((progress - recipe.warm_up) / (1 - recipe.warm_up), 1.0)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done))


@dataclass(frozen=True, eq=False)
class Batch:
    """What a step learns from; `taps` where the tokens come from the cache."""

    images: torch.Tensor
    taps: list[Tap] | None
    wanted: Targets


def draw(job: Job, step: int) -> Batch:
    """The batch of a step; depends on the seed and the step alone."""
    recipe = job.recipe
    rng = np.random.default_rng((recipe.seed, 1, step))
    chosen = [int(i) for i in _chosen(job, step, rng)]
    views = [int(rng.integers(recipe.views)) for _ in chosen] if job.features else [-1] * len(chosen)
    images, wanted = [], []
    for place, (index, view) in enumerate(zip(chosen, views, strict=True)):
        own = np.random.default_rng((recipe.seed, 2, step, place)) if view < 0 else view_rng(recipe.seed, index, view)
        image, look = look_at(job.chips, index, own, recipe.variety, recipe.size, plain=view == 0)
        images.append(image)
        wanted.append(targets(job.chips, index, look))
    taps = job.features.taps(chosen, views) if job.features else None
    return Batch(torch.stack(images), taps, {name: torch.stack([w[name] for w in wanted]) for name in wanted[0]})


def _chosen(job: Job, step: int, rng: np.random.Generator) -> np.ndarray:
    """Chips of a step: by turns, in a new order every epoch, a share of them by class where the task has classes.

    Where pixels are labelled and not chips, a chip is drawn as often as it has labelled ground.
    """
    recipe = job.recipe
    if job.chips.heights is not None or job.chips.classes is not None:
        chosen = _by_share(job, job.learn, rng, recipe.batch)
    else:
        turns = np.arange(step * recipe.batch, (step + 1) * recipe.batch)
        orders = [
            np.random.default_rng((recipe.seed, 3, int(epoch))).permutation(job.learn)
            for epoch in range(int(turns[0]) // len(job.learn), int(turns[-1]) // len(job.learn) + 1)
        ]
        first = int(turns[0]) // len(job.learn)
        chosen = np.array([orders[turn // len(job.learn) - first][turn % len(job.learn)] for turn in turns.tolist()])
    groups = strata(job.chips, job.learn)
    if groups:
        for place in np.flatnonzero(rng.random(len(chosen)) < recipe.balance):
            chosen[place] = _by_share(job, groups[int(rng.integers(len(groups)))], rng, 1)[0]
    return chosen


def _by_share(job: Job, indices: np.ndarray, rng: np.random.Generator, count: int) -> np.ndarray:
    share = known_share(job.chips)[indices]
    drawn: np.ndarray = rng.choice(indices, size=count, p=share / share.sum())
    return drawn


def _batches(job: Job, start: int, stop: int) -> Generator[list[Batch], None, None]:
    """The batches of the steps, of each task one, drawn while those of the step before are learned from."""

    def of_step(step: int) -> list[Batch]:
        return [draw(one, step) for one in (job, *job.rehearsed)]

    with ThreadPoolExecutor(1, thread_name_prefix="geodino-draw") as pool:
        ahead = pool.submit(of_step, start) if start < stop else None
        for step in range(start, stop):
            assert ahead is not None
            drawn = ahead.result()
            ahead = pool.submit(of_step, step + 1) if step + 1 < stop else None
            yield drawn


def _step(state: State, job: Job, drawn: Sequence[Batch], total: int) -> float:
    recipe, network = job.recipe, job.network
    # Drop path and the RoPE's random rescaling take torch's global generator: seeded by step, nothing need be kept.
    torch.manual_seed(recipe.seed * 1_000_003 + state.step)
    progress = state.step / total
    for group in state.optimizer.param_groups:
        group["lr"] = group["base"] * rate_at(recipe, progress)
    set_training(network, job.trained)
    state.optimizer.zero_grad(set_to_none=True)
    loss = sum(_learn(one, batch, progress) for one, batch in zip((job, *job.rehearsed), drawn, strict=True))
    torch.nn.utils.clip_grad_norm_([p for p in network.parameters() if p.requires_grad], recipe.clip)
    state.optimizer.step()
    state.step += 1
    # A short memory at first: the average must forget the random weights it began with.
    decay = min(recipe.average, (1 + state.step) / (10 + state.step))
    with torch.no_grad():
        kept, new = state.average.state_dict(), network.state_dict()
        for name, value in kept.items():
            if value.is_floating_point():
                value.lerp_(new[name], 1 - decay)
            else:
                value.copy_(new[name])
    return loss


def _learn(job: Job, batch: Batch, progress: float) -> float:
    """Add the gradients of a batch to those that are there; its loss."""
    images, task = job.normalise(batch.images.to(job.device)), job.chips.task
    with autocast(job.device, job.precision):
        taps = [Tap(p.to(job.device), c.to(job.device)) for p, c in batch.taps] if batch.taps else _taps(job, images)
        found = job.network.read(images, taps, [task])[task]
    wanted = {name: value.to(job.device) for name, value in batch.wanted.items()}
    loss = TASKS[task].loss(found, wanted, progress, job.recipe)
    torch.autograd.backward(loss)
    return float(loss.detach())


def _taps(job: Job, images: torch.Tensor) -> list[Tap]:
    with torch.set_grad_enabled(any(name.startswith("backbone") for name in job.trained)):
        return job.network.taps(images)


def set_training(network: HeadedNetwork, trained: Sequence[str]) -> None:
    """Training mode for what learns; the rest, its batch norms above all, stays as it is."""
    network.eval()
    for name, module in network.named_modules():
        if f"{name}.".startswith(tuple(f"{prefix}." for prefix in trained)):
            module.train()


def _measure(state: State, job: Job, losses: Sequence[float]) -> None:
    state.average.eval()
    found: Measured = TASKS[job.chips.task].measure(state.average, job)
    others = {one.chips.task: TASKS[one.chips.task].measure(state.average, one).figures for one in job.rehearsed}
    line = {
        "step": state.step,
        "elapsed_s": round(state.elapsed_s, 1),
        "loss": float(np.mean(losses)),
        "rate": job.recipe.learning_rate * rate_at(job.recipe, state.step / steps_of(job)),
        **found.figures,
        **{f"{task}_{name}": value for task, figures in others.items() for name, value in figures.items()},
    }
    if not math.isfinite(found.score):
        raise ModelError(f"the tuning chips cannot be measured by at step {state.step}: {line}")
    names = ["last"]
    # The later of equals: where nothing is learned for long, the first would be the random weights of the start.
    if found.score >= state.best:
        state.best = found.score
        names.append("best")
    for name in names:
        save(state.average, job.folder / f"{name}.safetensors")
        write_json(job.folder / f"{name}.json", line)
    state.log.append(finite(line))


def load_kept(job: Job) -> dict[str, Any]:
    """Take up the weights that `recipe.choose` names; what was measured of them, a line of the log.

    Raises
    ------
    ModelError
        Their file is damaged, cut short or gone.
    """
    path = job.folder / f"{job.recipe.choose}.safetensors"
    remedy = f"remove the folders {job.folder / 'checkpoint-*'} to train again"
    line = read_json(path.with_suffix(".json"), remedy=remedy)
    try:
        job.network.load_state_dict(load_file(path))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{path} is damaged or cut short ({error}): {remedy}") from error
    return line


def save(network: HeadedNetwork, path: Path) -> None:
    """The weights, whole or not at all."""
    part = path.with_suffix(".part")
    save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, part)
    part.replace(path)


def _checkpoint(state: State, job: Job) -> None:
    # A folder is renamed as one, so weights, averages and optimizer state always belong together.
    final = job.folder / f"checkpoint-{state.step:07d}"
    part = job.folder / "checkpoint.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    save(job.network, part / "network.safetensors")
    save(state.average, part / "average.safetensors")
    torch.save(state.optimizer.state_dict(), part / "optimizer.pt")
    place = {"identity": job.identity, "step": state.step, "elapsed_s": state.elapsed_s, "best": state.best}
    write_json(part / "place.json", {**place, "log": state.log})
    shutil.rmtree(final, ignore_errors=True)
    part.rename(final)
    write_text(job.folder / "log.jsonl", "".join(json.dumps(line, allow_nan=False) + "\n" for line in state.log))
    for older in sorted(job.folder.glob("checkpoint-*"))[:-1]:
        shutil.rmtree(older)


def resume(state: State, job: Job) -> None:
    """Take up the newest checkpoint of the folder, if any; ModelError if it is another training's or damaged."""
    found = sorted(job.folder.glob("checkpoint-*"))
    if not found:
        return
    newest = found[-1]
    try:
        place = json.loads((newest / "place.json").read_text())
        if place["identity"] != job.identity:
            raise ModelError(
                f"{newest} is of a training with other data, start or recipe: give another --out, or remove it"
            )
        job.network.load_state_dict(load_file(newest / "network.safetensors"))
        state.average.load_state_dict(load_file(newest / "average.safetensors"))
        state.optimizer.load_state_dict(torch.load(newest / "optimizer.pt", weights_only=True))
    except (OSError, ValueError, KeyError, RuntimeError, EOFError, SafetensorError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"{newest} is damaged or cut short ({error}): remove it to begin again") from error
    state.step, state.elapsed_s = int(place["step"]), float(place["elapsed_s"])
    state.best, state.log = float(place["best"]), finite(place["log"])


def _block(name: str, depth: int) -> int:
    """Which block of the backbone a weight is in: the embedding counts as before the first, the norm as the last."""
    parts = name.split(".")
    numbers = [int(part) for part in parts if part.isdecimal()]
    if "layer" in parts and numbers:
        return numbers[0]
    return -1 if "embeddings" in parts else depth - 1
