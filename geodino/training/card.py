"""The model card that a training leaves: what the model is, how good, what it learned from, under which licences."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from geodino.models.catalog import Licence
from geodino.training.licences import NOT_STATED, derives_from_dinov3
from geodino.watch import count, duration

# Figures of so few chips are luck.
FEW_TUNING = 10
# What the log says of a step and the table of figures does not.
_NO_FIGURES = ("step", "elapsed_s", "loss", "rate", "warnings")
# Columns of the splits that say where and when, and how many values of one are spelled out at most.
_WHERE_AND_WHEN = ("country", "region", "state", "city", "site", "source", "year", "season")
_FEW_VALUES = 12


def card(record: Mapping[str, Any], licence: Licence, *, name: str, title: str, evaluation: str) -> str:
    """The card of a record.

    Parameters
    ----------
    record
        What training.json holds.
    name, title
        Of the model, and of what it started from.
    evaluation
        The command that evaluates it.
    """
    task, data = record["task"], record["data"]
    replaced = f" The head for {task} that it had was thrown away." if record["start"].get("replaced") else ""
    if record["start"].get("own"):
        replaced = f" The head for {task} went on learning from what it was."
    return f"""---
license: other
tags: [remote-sensing, {task}]
---

# {name}: {task}

A `{record["head"]}` head for {task} on {title}, trained with geodino on imagery of {data["gsd_m"]:g} m a pixel.
Weights that learned: {", ".join(f"`{prefix}`" for prefix in record["trained"])}.{replaced}

## Figures

{_chosen_by(record)} For figures by class, with 95 % intervals, on ground that nothing saw:

    {evaluation}

| figure | value |
|---|---|
{_table(record["chosen"])}
{_warnings(record)}
## Data

{_data_of(data)}

Attribution:

{_lines(data["attribution"])}

## Training

    {record["command"] or "from Python"}

Took {duration(record["elapsed_s"])}. Everything else is in `training.json`, the ground of the chips among it.
{"".join(_before(record))}
## Licence

{licence.name} {licence.url}
{_derived(licence)}"""


def _chosen_by(record: Mapping[str, Any]) -> str:
    """What the tuning chips are and what they chose."""
    data, chosen = record["data"], record["chosen"]
    where = "other blocks of the same ground" if data.get("tuned_beside") else "places that were not trained on"
    best = record["recipe"]["choose"] == "best"
    choices = [f"the weights (step {chosen['step']})"] * best
    choices += ["the threshold and spacing of peaks"] * (record["task"] == "trees")
    said = f"On {count(data['chosen_by'], 'chip')} of {where}"
    if not best:
        said += f", with the weights of the last step ({chosen['step']})"
    said += f", which **chose** {' and '.join(choices)}, so they flatter." if choices else "."
    return said + (f" **{few_tuning(data['chosen_by'])}**" if data["chosen_by"] < FEW_TUNING else "")


def few_tuning(chips: int) -> str:
    """What is to be thought of figures on few tuning chips."""
    return f"Figures of {count(chips, 'chip')}, and what is chosen by them, are largely luck."


def _warnings(record: Mapping[str, Any]) -> str:
    lines = record.get("warnings", [])
    return "\n" + "\n".join(f"- **Warning**: {line}" for line in lines) + "\n" if lines else ""


def _table(chosen: Mapping[str, Any]) -> str:
    figures = {key: value for key, value in chosen.items() if key not in _NO_FIGURES}
    return "\n".join(f"| {key} | {_figure(value)} |" for key, value in figures.items())


def _figure(value: object) -> str:
    if isinstance(value, int | float) and math.isfinite(value):
        return f"{value:.4g}"
    return value if isinstance(value, str) else "not known"


def _data_of(data: Mapping[str, Any]) -> str:
    """The chips, where and of when they are, what was left out, and what is said of their licences."""
    left = [f"beside the chips that chose: {data['left_beside']}"] * bool(data["left_beside"])
    left += [f"held out: {data['held_out']}"] * bool(data["held_out"])
    left += [f"{reason}: {number}" for reason, number in data["dropped"].items()]
    dates = f", taken {' to '.join(dict.fromkeys(data['dates']))}" if data["dates"] else ""
    chips = (
        f"{count(data['learned_from'], 'chip')} of {data['size_px']} px to learn from and {data['chosen_by']} to "
        f"choose by, of {count(len(data['scenes']), 'scene')} in {count(data['places'], 'place')}{dates}; hash "
        f"{data['sha256']}. Left out: {'; '.join(left) or 'nothing'}."
    )
    by = [f"By {column}: {_counts(values)}." for column, values in data["by"].items()]
    licences = (
        f"Licence stated of the data: {data['licence'] or NOT_STATED}. Imagery and splits state, by chips: "
        f"{_counts(data['licences'])}."
    )
    return "\n\n".join([chips, *by, licences])


def _counts(values: Mapping[str, int]) -> str:
    return ", ".join(f"{value or NOT_STATED} {number}" for value, number in values.items())


def columns_of(table: pd.DataFrame) -> dict[str, dict[str, int]]:
    """How many chips are of each city, year and the like, where the splits say it and there are few."""
    known = [name for name in _WHERE_AND_WHEN if name in table and table[name].nunique() <= _FEW_VALUES]
    return {name: {str(k): int(n) for k, n in table[name].value_counts().sort_index().items()} for name in known}


def _lines(attribution: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in attribution) or f"- {NOT_STATED}"


def _before(record: Mapping[str, Any]) -> Iterator[str]:
    """What the trainings that it stands on learned, from what, and what became of that; the latest of a task first."""
    rehearsed = {one["task"] for one in record["rehearsed"]}
    told: set[str] = set()
    # Task to whether its latest training began with the head that there was.
    later = {record["task"]: record["start"].get("own")}
    for earlier in _earlier(record):
        task, data = earlier.get("task"), earlier.get("data") or {}
        if task is None or data.get("sha256") in told:
            continue
        told |= {data["sha256"]} if "sha256" in data else set()
        if task in later:
            became = "that head went on learning" if later[task] else "that head was thrown away and begun afresh"
        elif task in rehearsed:
            became = "it went on learning beside"
        elif "backbone" in record["trained"]:
            became = "that head was kept, and what it stands on went on learning"
        else:
            became = "these weights did not change"
        later[task] = earlier.get("start", {}).get("own")
        yield (
            f"\nBefore that, in `{earlier.get('command') or 'Python'}`, it learned {task}; {became}. "
            f"Attribution:\n\n{_lines(data.get('attribution', []))}\n"
        )


def _earlier(record: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield from record.get("rehearsed", [])
    before = record.get("start", {}).get("training")
    if before:
        yield before
        yield from _earlier(before)


def _derived(licence: Licence) -> str:
    if not derives_from_dinov3(licence):
        return ""
    where = "The weights derive from DINOv3" if not licence.name.count("if derived") else "If they derive from DINOv3"
    return (
        f"\n{where}: pass them on under the DINOv3 License only, with a copy of it, and acknowledge its use in "
        "publications.\n"
    )
