"""Small files of a training that may be killed at any time: whole or not there, and JSON that any reader takes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from geodino.errors import ModelError


def write_text(path: Path, text: str) -> None:
    """Write a file under a name of its own first, so that its name always means all of it."""
    part = path.with_name(f"{path.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write an object as JSON, whole, `finite` at any depth."""
    write_text(path, json.dumps(finite(content), indent=2, allow_nan=False) + "\n")


def read_json(path: Path, *, remedy: str) -> dict[str, Any]:
    """An object that `write_json` left, `finite`; ModelError with what to do if it is damaged or gone."""
    try:
        found = finite(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} is damaged or missing ({error}): {remedy}") from error
    if not isinstance(found, dict):
        raise ModelError(f"{path} holds {type(found).__name__} and no object: {remedy}")
    return found


def finite(value: Any) -> Any:
    """The value, or whatever lies in it, with None for each number that has no value: JSON knows no NaN."""
    if isinstance(value, Mapping):
        return {name: finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
