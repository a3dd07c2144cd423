"""`geodino train`: labels and imagery to a model folder that `--model` takes.

chips -> start -> (features of a frozen backbone) -> fit -> folder: weights, config, record, card, curve
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from geodino.errors import ConfigError, ModelError
from geodino.models.precision import choose_device, choose_precision, normalise
from geodino.training.card import FEW_TUNING, few_tuning
from geodino.training.chipset import ChipSet
from geodino.training.engine import Job, State, fit, load_kept, steps_of
from geodino.training.features import Key, cached_features
from geodino.training.folder import Finished, check_out, held, write_model_folder
from geodino.training.losses import SILOG_UNTIL
from geodino.training.parting import parted
from geodino.training.recipe import Recipe
from geodino.training.rehearsal import Rehearsal, rehearsals
from geodino.training.start import OWN, Start, begin, trained_prefixes
from geodino.training.tasks import TASKS
from geodino.training.usable import check_labels
from geodino.watch import count

Told = Callable[[str], None]

# Seconds of silence at most.
SPEAK_S = 60.0


@dataclass(frozen=True)
class Options:
    """Where and how fast a training runs, and what its card says of the data and of the command that evaluates it."""

    device: str = "auto"
    precision: str = "auto"
    cache: Path | None = None
    name: str | None = None
    data_licence: str = ""
    attribution: tuple[str, ...] = ()
    demonstration: bool = False
    half: bool = False
    command: str = ""
    evaluation: str = ""


def train(
    chips: ChipSet,
    model: str | Path,
    out: Path,
    *,
    head: str,
    recipe: Recipe,
    options: Options | None = None,
    rehearse: Sequence[str | Path] = (),
    told: Told = lambda line: None,
) -> dict[str, Any]:
    """Train a head on labelled chips and write the model folder `out`.

    Parameters
    ----------
    chips
        Those of split "val" are left alone; the rest is parted by place into chips to learn from and
        chips that choose weights and threshold.
    model
        What to start from, see `start.begin`.
    rehearse
        Folders of the trainings that made the other heads of `model`: with `finetune` each step sees as many of their
        chips too, so that these heads go on learning and nothing is forgotten; see `rehearsal`.
    out
        Gets the model; `out/work` the checkpoints and the log. A second call goes on where the first was cut.
        Nothing else may be in it, and one training at a time writes there.
    head
        A kind of `models.heads.KINDS`, or "own": the model's own for the task goes on learning.

    Returns
    -------
    dict
        What training.json holds.

    Raises
    ------
    InputError
        Too few places to learn from and to choose by.
    ModelError
        The start is refused, or a checkpoint or feature cache is another training's.
    OutputError, InUseError
        `out` holds something else or cannot be written; another training is at work there.
    """
    check_out(out)
    options = options or Options()
    learn, tune = parted(chips, recipe)
    warnings = check_labels(chips, learn, tune, recipe.size)
    for warning in warnings:
        told(f"warning: {warning}")
    if rehearse and not recipe.finetune:
        raise ConfigError("to rehearse is for --finetune alone: without it the other heads stay as they are")
    earlier = rehearsals(rehearse, chips, recipe)
    device = choose_device(options.device)
    precision = choose_precision(options.precision, device)
    start = begin(model, chips, head=head, size=recipe.size, seed=recipe.seed)
    head = str(start.network.config.heads[chips.task]["kind"])
    tasks = [chips.task, *(one.chips.task for one in earlier)]
    if missing := [task for task in tasks if task not in start.network.heads]:
        raise ModelError(f"{start.row.name} has no head for {', '.join(missing)} that could be rehearsed")
    trained = trained_prefixes(start, finetune=recipe.finetune, learned=tasks)
    start.network.to(device)
    if recipe.checkpointing:
        start.network.backbone.gradient_checkpointing_enable()
    seen = partial(normalise, row=start.row)
    identity = _identity(chips, start, head, recipe, earlier)
    with held(out):
        features = None
        if "backbone" not in trained:
            key = Key(
                start.sha256, chips.sha256, tuple(start.network.config.taps), recipe.size, recipe.views, recipe.variety,
                recipe.seed,
            )  # fmt: skip
            folder = options.cache or out / "work" / "features"
            features = cached_features(folder, key, chips, start.network.eval(), seen, _every(told, "features"))
        job = Job(
            start.network,
            chips,
            learn,
            tune,
            recipe,
            seen,
            trained,
            out / "work",
            device,
            precision,
            identity,
            features,
        )
        job = replace(job, rehearsed=tuple(_beside(job, one) for one in earlier))
        _tell(job, start, told)
        state = fit(job, _progress(told))
        chosen = load_kept(job)
        if doubt := TASKS[chips.task].doubt(chosen):
            warnings.append(f"no better than without training: {doubt}")
            told(f"warning: {warnings[-1]}")
        done = Finished(
            start, chips, learn, tune, head, recipe, trained, state.log, chosen, options, state.elapsed_s, earlier,
            tuple(warnings),
        )  # fmt: skip
        record = write_model_folder(out, done)
    told(f"licence of the weights, for the card: {record['licence']}")
    return record


def _tell(job: Job, start: Start, told: Told) -> None:
    """Say what will learn, from what, and what is to be thought of it."""
    split = job.chips.table["split"] == "val"
    beside = len(job.chips) - len(job.learn) - len(job.tune) - int(split.sum())
    for one in job.rehearsed:
        told(
            f"beside them {one.chips.task}: {count(len(one.learn), 'chip')} to rehearse, {len(one.tune)} to measure by"
        )
    told(
        f"{count(len(job.learn), 'chip')} to learn from, {len(job.tune)} to choose by"
        + (f", {beside} beside these left out" if beside else "")
        + f"; {count(steps_of(job), 'step')} of {job.recipe.batch}; "
        f"{sum(p.numel() for n, p in start.network.named_parameters() if n.startswith(job.trained)):,} weights learn"
    )
    if job.chips.task == "canopy" and job.recipe.silog and job.chips.footprints is None:
        told(f"the loss is of logarithms first, of metres from {SILOG_UNTIL:.0%} of the steps on: it rises meanwhile")
    if len(job.tune) < FEW_TUNING:
        told(f"warning: {few_tuning(len(job.tune))}")
    if start.replaced:
        told(
            f"warning: the head for {job.chips.task} of {start.row.name} is thrown away, and one begins afresh: "
            f"--head {OWN} goes on with it"
        )


def _beside(job: Job, earlier: Rehearsal) -> Job:
    """The job of a training that is rehearsed, of the same network."""
    learn, tune = parted(earlier.chips, earlier.recipe)
    return replace(job, chips=earlier.chips, learn=learn, tune=tune, recipe=earlier.recipe)


def _identity(chips: ChipSet, start: Start, head: str, recipe: Recipe, earlier: Sequence[Rehearsal]) -> str:
    facts = [chips.sha256, start.sha256, head, recipe.digest(), json.dumps(start.network.config.to_dict(), default=str)]
    facts += [fact for one in earlier for fact in (one.chips.sha256, one.recipe.digest())]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()


def _every(told: Told, what: str) -> Callable[[int, int], None]:
    def tell(done: int, total: int) -> None:
        if done % max(total // 10, 1) < 8 or done == total:
            told(f"{what}: {done} of {total}")

    return tell


def _progress(told: Told) -> Callable[[State, int], None]:
    """A line for each measurement, and one a minute with the time left."""
    measured, spoke = 0, time.monotonic()

    def tell(state: State, total: int) -> None:
        nonlocal measured, spoke
        line = f"step {state.step} of {total}, {_left_min(state, total):.0f} min left"
        if len(state.log) > measured:
            measured = len(state.log)
            figures = {k: v for k, v in state.log[-1].items() if k not in ("step", "elapsed_s", "rate")}
            line += ": " + ", ".join(f"{k} {v:.3g}" for k, v in figures.items() if v is not None)
        elif time.monotonic() - spoke < SPEAK_S:
            return
        spoke = time.monotonic()
        told(line)

    return tell


def _left_min(state: State, total: int) -> float:
    return state.elapsed_s / max(state.step, 1) * (total - state.step) / 60
