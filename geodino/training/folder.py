"""The folder that a training leaves: a model that `--model` takes, its record, its card and its learning curve."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib.figure
import numpy as np
import torch
import transformers

from geodino.errors import OutputError
from geodino.models.checkpoint import silent_transformers
from geodino.models.files import sha256_of
from geodino.outputs.locks import FolderLock
from geodino.redaction import command_without_secrets
from geodino.training import leaks
from geodino.training.card import card, columns_of
from geodino.training.chipset import ChipSet
from geodino.training.licences import NOT_STATED, licence_of
from geodino.training.recipe import Recipe
from geodino.training.rehearsal import Rehearsal
from geodino.training.start import Start
from geodino.training.whole import write_json

if TYPE_CHECKING:
    from geodino.training.train import Options

# The record; and where chips, checkpoints and features lie meanwhile.
RECORD, WORK = "training.json", "work"
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
    warnings: tuple[str, ...] = ()


def check_out(out: Path) -> None:
    """Raise OutputError for a folder that holds anything and is not a training's: it could be overwritten."""
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out} is a file: give another --out")
    names = {entry.name for entry in out.glob("[!.]*")}
    ours = RECORD in names or any(out.glob(f"{WORK}/checkpoint-*")) or any(out.glob("fold-*-of-*"))
    if not ours and (strange := sorted(names - {WORK, "features"})):
        raise OutputError(
            f"{out} is not empty and no training's, it holds {', '.join(strange[:3])}: give a new folder as --out"
        )


@contextmanager
def held(out: Path) -> Iterator[None]:
    """Keep other trainings out of a folder; InUseError where one is at work there."""
    lock = FolderLock(out / WORK)
    lock.acquire()
    try:
        yield
    finally:
        lock.release()


def write_model_folder(out: Path, done: Finished) -> dict[str, Any]:
    """Write weights, config, preprocessor, record, card and curve; returns the record.

    All are written beside and then renamed, the record last: where it is, the other files belong to it.
    """
    part = out / WORK / "model.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    record = _write(part, out, done)
    (out / RECORD).unlink(missing_ok=True)
    for path in sorted(part.iterdir(), key=lambda path: path.name == RECORD):
        path.replace(out / path.name)
    part.rmdir()
    return record


def _write(folder: Path, out: Path, done: Finished) -> dict[str, Any]:
    network, task = done.start.network, done.chips.task
    _set_head(done, task, done.recipe, "")
    for earlier in done.rehearsed:
        _set_head(done, earlier.chips.task, earlier.recipe, f"{earlier.chips.task}_")
    network.config.architectures = [type(network).__name__]
    with silent_transformers():
        network.to("cpu", torch.float16 if done.options.half else torch.float32).save_pretrained(folder)
    weights = folder / "model.safetensors"
    # safetensors writes for the owner alone, and others must read it.
    weights.chmod(0o644)
    row = done.start.row
    data = [_data_of(done), *(earlier.record["data"] for earlier in done.rehearsed)]
    licence = licence_of(done.start.licence, data)
    record = record_of(done, data[0], licence.name, sha256_of([weights]))
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
        "demonstration": done.options.demonstration or (row.demonstration and _says_what_it_said(done)),
    }
    write_json(folder / "preprocessor_config.json", preprocessor)
    write_json(folder / RECORD, record)
    options = done.options
    evaluation = options.evaluation or f"geodino evaluate {task} --model {out} --labels LABELS --source IMAGERY"
    said = card(record, licence, name=options.name or "model", title=row.title, evaluation=evaluation)
    (folder / "README.md").write_text(said, encoding="utf-8")
    draw_curve(done, folder / "learning_curve.png")
    return record


def _says_what_it_said(done: Finished) -> bool:
    """Whether a head of the model that the training started from is in it still."""
    return done.start.own or len(done.start.network.heads) > 1


def _set_head(done: Finished, task: str, recipe: Recipe, prefix: str) -> None:
    """What config.json says of a head besides its shape; figures that chose it are in the log under a prefix."""
    head = done.start.network.config.heads[task]
    if task == "trees":
        head |= {name: done.chosen[f"{prefix}{name}"] for name in ("threshold", "spacing")}
    for name in ("upright", "mirrored"):
        head.pop(name, None)
    if recipe.variety.upright:
        head |= {"upright": True, "mirrored": recipe.variety.mirrored}


def record_of(done: Finished, data: dict[str, Any], licence: str, weights_sha256: str) -> dict[str, Any]:
    """What training.json holds: everything needed to do it again, and how it went."""
    start = done.start
    return _published({
        "task": done.chips.task,
        "head": done.head,
        "command": done.options.command,
        "start": {
            "model": start.row.name,
            "sha256": start.sha256,
            "licence": "" if start.licence is None else start.licence.name,
            "replaced": start.replaced,
            "own": start.own,
            "training": dict(start.record),
        },
        "trained": list(done.trained),
        "recipe": asdict(done.recipe),
        "licence": licence,
        "data": data,
        leaks.KEY: leaks.learned_chips(done.chips, np.sort(np.concatenate([done.learn, done.tune]))),
        "rehearsed": [
            {name: earlier.record.get(name) for name in ("task", "command", "data", leaks.KEY)}
            for earlier in done.rehearsed
        ],
        "chosen": done.chosen,
        "warnings": list(done.warnings),
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
    })  # fmt: skip


def _data_of(done: Finished) -> dict[str, Any]:
    """What the record says of the chips; scenes, places, dates, licences and columns are of those that were used."""
    chips, table = done.chips, done.chips.table
    used = table.iloc[np.concatenate([done.learn, done.tune])]
    held_out = int((table["split"] == "val").sum())
    dates = sorted(date for date in used["date"].astype(str).unique() if date)
    licences = used["licence"].fillna("").replace("", NOT_STATED).value_counts()
    return {
        "sha256": chips.sha256,
        "chips": len(chips),
        "learned_from": len(done.learn),
        "chosen_by": len(done.tune),
        "left_alone": len(chips) - len(used),
        "held_out": held_out,
        "left_beside": len(chips) - len(used) - held_out,
        # Where ground of few places is parted into blocks.
        "tuned_beside": not set(table["place"].iloc[done.learn]).isdisjoint(table["place"].iloc[done.tune]),
        "scenes": sorted(used["scene"].astype(str).unique()),
        "places": int(used["place"].nunique()),
        "dates": [dates[0], dates[-1]] if dates else [],
        "by": columns_of(used),
        "dropped": dict(chips.dropped),
        "gsd_m": chips.gsd_m,
        "size_px": chips.size,
        "licence": done.options.data_licence,
        "licences": {str(name): int(number) for name, number in licences.items()},
        "attribution": list(done.options.attribution),
    }


def _published(record: dict[str, Any]) -> dict[str, Any]:
    """The record, and those of earlier trainings in it, without what their commands hold of keys and passwords."""
    found = {**record, "command": command_without_secrets(record.get("command") or "")}
    if (start := record.get("start", {})).get("training"):
        found["start"] = {**start, "training": _published(start["training"])}
    if record.get("rehearsed"):
        found["rehearsed"] = [_published(earlier) for earlier in record["rehearsed"]]
    return found


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
