"""The folder that a training leaves: a model that `--model` takes, its record, its card and its learning curve."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib.figure
import numpy as np
import torch
import transformers

from geodino.models.catalog import CC_BY, DINOV3_LICENCE, Licence
from geodino.models.checkpoint import silent_transformers
from geodino.models.files import sha256_of
from geodino.training.chipset import ChipSet
from geodino.training.recipe import Recipe
from geodino.training.rehearsal import Rehearsal
from geodino.training.start import Start

if TYPE_CHECKING:
    from geodino.training.train import Options

# What the curve shows for each task: key in the log, and how it is called.
CURVES = {
    "trees": ("f1", "F1 within 6 m"),
    "canopy": ("mae_m", "MAE, m"),
    "segment": ("miou", "mean IoU"),
    "classify": ("accuracy", "accuracy"),
}


@dataclass(frozen=True, eq=False)
class Finished:
    """A training that is over."""

    start: Start
    chips: ChipSet
    learn: np.ndarray
    tune: np.ndarray
    head: str
    recipe: Recipe
    trained: tuple[str, ...]
    log: list[dict[str, Any]]
    chosen: dict[str, Any]
    options: Options
    elapsed_s: float
    rehearsed: tuple[Rehearsal, ...] = ()


def write_model_folder(out: Path, done: Finished) -> dict[str, Any]:
    """Write weights, config, preprocessor, record, card and curve; returns the record."""
    network, task = done.start.network, done.chips.task
    _set_head(done, task, done.recipe, "")
    for earlier in done.rehearsed:
        _set_head(done, earlier.chips.task, earlier.recipe, f"{earlier.chips.task}_")
    network.config.architectures = [type(network).__name__]
    with silent_transformers():
        network.to("cpu", torch.float16 if done.options.half else torch.float32).save_pretrained(out)
    weights = out / "model.safetensors"
    # safetensors writes for the owner alone, and others must read it.
    weights.chmod(0o644)
    licence = licence_of(done)
    row = done.start.row
    preprocessor = {
        "do_resize": False,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(row.mean),
        "image_std": list(row.std),
        "gsd_m": done.chips.gsd_m,
        "licence": licence.name,
        "licence_url": licence.url,
        "demonstration": done.options.demonstration,
    }
    record = record_of(done, sha256_of([weights]))
    _write_json(out / "preprocessor_config.json", preprocessor)
    _write_json(out / "training.json", record)
    (out / "README.md").write_text(card(done, record, licence), encoding="utf-8")
    draw_curve(done, out / "learning_curve.png")
    return record


def _set_head(done: Finished, task: str, recipe: Recipe, prefix: str) -> None:
    """What config.json says of a head besides its shape; figures that chose it are in the log under a prefix."""
    head = done.start.network.config.heads[task]
    if task == "trees":
        head |= {name: done.chosen[f"{prefix}{name}"] for name in ("threshold", "spacing")}
    if recipe.variety.upright:
        head |= {"upright": True, "mirrored": recipe.variety.mirrored}


def licence_of(done: Finished) -> Licence:
    """DINOv3's where the weights derive from it, else what the caller says of the data."""
    if done.start.row.licence == DINOV3_LICENCE:
        return DINOV3_LICENCE
    stated = done.options.data_licence
    if stated == CC_BY.name:
        return CC_BY
    return Licence(stated, "") if stated else done.start.row.licence


def attribution_of(record: Mapping[str, Any]) -> list[str]:
    """The lines to keep with the weights: of these data, and of those that earlier heads learned from."""
    before = [record.get("start", {}).get("training"), *record.get("rehearsed", [])]
    lines = [line for earlier in before if earlier for line in attribution_of(earlier)]
    lines += record.get("data", {}).get("attribution", [])
    return list(dict.fromkeys(lines))


def record_of(done: Finished, weights_sha256: str) -> dict[str, Any]:
    """What training.json holds: everything needed to do it again, and how it went."""
    table = done.chips.table
    return {
        "task": done.chips.task,
        "head": done.head,
        "command": done.options.command,
        "start": {"model": done.start.row.name, "sha256": done.start.sha256, "training": dict(done.start.record)},
        "trained": list(done.trained),
        "recipe": asdict(done.recipe),
        "data": {
            "sha256": done.chips.sha256,
            "chips": len(done.chips),
            "learned_from": len(done.learn),
            "chosen_by": len(done.tune),
            "left_alone": len(done.chips) - len(done.learn) - len(done.tune),
            "places": int(table["place"].nunique()),
            "dropped": dict(done.chips.dropped),
            "gsd_m": done.chips.gsd_m,
            "licence": done.options.data_licence,
            "attribution": list(done.options.attribution),
        },
        "rehearsed": [
            {name: earlier.record.get(name) for name in ("task", "command", "data")} for earlier in done.rehearsed
        ],
        "chosen": done.chosen,
        "curve": done.log,
        "elapsed_s": round(done.elapsed_s, 1),
        "weights_sha256": weights_sha256,
        "software": {
            "geodino": version("geodino"),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
            "threads": torch.get_num_threads(),
        },
    }


def card(done: Finished, record: dict[str, Any], licence: Licence) -> str:
    """The model card: what it is, how good it is on the chips that chose it, what it learned from."""
    task, name = done.chips.task, done.options.name or "model"
    figures = {k: v for k, v in done.chosen.items() if k not in ("step", "elapsed_s", "loss", "rate")}
    rows = "\n".join(f"| {key} | {value:.4g} |" for key, value in figures.items())
    data = record["data"]
    attribution = "\n".join(f"- {line}" for line in attribution_of(record)) or "- not stated"
    earlier = record["start"]["training"]
    rehearsed = " and ".join(one["task"] for one in record["rehearsed"])
    since = f"it went on learning {rehearsed} beside" if rehearsed else "these weights did not change"
    before = (
        f"\nBefore that, in `{earlier['command']}`, it learned {earlier['task']}; {since}.\n"
        if earlier.get("command")
        else ""
    )
    dinov3 = (
        "\nThe weights derive from DINOv3: pass them on under the DINOv3 License only, with a copy of it, and "
        "acknowledge its use in publications.\n"
        if licence == DINOV3_LICENCE
        else ""
    )
    return f"""---
license: other
tags: [remote-sensing, {task}]
---

# {name}: {task}

A `{done.head}` head for {task} on {done.start.row.title}, trained with geodino. Weights that learned:
{", ".join(f"`{prefix}`" for prefix in done.trained)}.

## Figures

On the {data["chosen_by"]} chips of places that were not trained on but **chose** the weights (step
{done.chosen["step"]}) and the threshold, so they flatter. For figures on ground that nothing saw, run
`geodino evaluate {task} --model FOLDER` on other places.

| figure | value |
|---|---|
{rows}

## Data

{data["learned_from"]} chips to learn from, at {data["gsd_m"]} m a pixel; hash {data["sha256"]}. Left out:
{", ".join(f"{reason}: {count}" for reason, count in data["dropped"].items()) or "nothing"}.

{attribution}

## Training

    {record["command"] or "from Python"}

Took {record["elapsed_s"] / 60:.0f} minutes. Everything else is in `training.json`.
{before}
## Licence

{licence.name} {licence.url}
{dinov3}"""


def draw_curve(done: Finished, path: Path) -> None:
    """The loss of the steps and the figure on the tuning places."""
    key, label = CURVES[done.chips.task]
    steps = [line["step"] for line in done.log]
    figure = matplotlib.figure.Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(steps, [line["loss"] for line in done.log], color="0.6", label="training loss")
    axes.set_xlabel("step")
    axes.set_ylabel("training loss")
    axes.grid(alpha=0.3)
    other = axes.twinx()
    other.plot(steps, [line[key] for line in done.log], color="tab:green", marker="o", label=f"tuning places: {label}")
    other.axvline(done.chosen["step"], color="tab:green", linestyle=":", linewidth=1)
    other.set_ylabel(label)
    lines = [*axes.get_lines(), other.get_lines()[0]]
    axes.legend(
        lines, [str(line.get_label()) for line in lines], loc="upper center", bbox_to_anchor=(0.5, 1.12), ncol=2
    )
    figure.savefig(path, dpi=120)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
