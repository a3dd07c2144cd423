"""Weight files before anything opens them: whether all are there, and are what their names say.

What people have in the place of weights is mostly the same: a Git LFS pointer, a login page, half of a download, or a
pickle, which is never opened. Nothing here needs torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open

from geodino.errors import ModelError


def read_json(path: Path) -> dict[str, object]:
    """A JSON object from a file; ModelError says what is wrong with it."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(
            f"{path.parent} has no {path.name}: a model folder needs config.json and *.safetensors"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{path} is not JSON ({error}): download the model again") from error
    if not isinstance(found, dict):
        raise ModelError(f"{path} holds a {type(found).__name__}, not a JSON object: download the model again")
    return found


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of the folder, in the order of their names; ModelError if one is missing."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        named = read_json(index).get("weight_map")
        if not isinstance(named, dict):
            raise ModelError(f"{index} has no weight_map: download the model again")
        files = [folder / str(name) for name in sorted(set(named.values()))]
    else:
        files = [folder / "model.safetensors"]
    absent = [path.name for path in files if not path.is_file()]
    if not absent:
        return files
    pickles = sorted(path.name for path in folder.glob("*.bin"))
    if pickles:
        raise ModelError(
            f"{folder} has its weights in {pickles[0]}, a pickle, which can run code when opened: "
            "ask its makers for safetensors, or save it again with save_pretrained"
        )
    raise ModelError(f"{folder} lacks {', '.join(absent)}: download the model again")


def check_safetensors(path: Path) -> None:
    """ModelError that says what a file is, if it is not a whole safetensors file."""
    check_not_a_stand_in(path)
    try:
        with safe_open(path, framework="numpy") as opened:
            opened.keys()
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{path} ({path.stat().st_size:,} bytes) is damaged or cut off ({error}): download it again"
        ) from error


def check_not_a_stand_in(path: Path) -> None:
    """ModelError if the file is what is often saved in the place of weights."""
    with path.open("rb") as file:
        start = file.read(256).lstrip()
    if start.startswith(b"version https://git-lfs"):
        raise ModelError(f"{path} is a Git LFS pointer, not the weights: run `git lfs pull` in its repository")
    if start[:1] == b"<":
        raise ModelError(f"{path} is a web page, not the weights: accept the licence, log in, and download it again")


def sha256_of(files: Sequence[Path]) -> str:
    """SHA-256 of one file, in hex; of several, that of their hashes' lines in the order given."""
    digests = []
    for path in files:
        with path.open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()
