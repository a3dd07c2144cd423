"""Features of a frozen backbone, computed once: each chip in a few looks, kept on disk as float16.

The folder belongs to one set of weights, chips and looks; its key says which, and another's is refused.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from geodino.errors import ModelError
from geodino.models.dinov3 import Tap
from geodino.models.network import HeadedNetwork
from geodino.training.augment import Look, Variety, draw_look, plain_look, recolour, see
from geodino.training.chipset import ChipSet
from geodino.training.whole import read_json, write_json, write_text

_BATCH = 8


@dataclass(frozen=True)
class Key:
    """What cached features depend on."""

    backbone_sha256: str
    chips_sha256: str
    taps: tuple[int, ...]
    size: int
    views: int
    variety: Variety
    seed: int


@dataclass(frozen=True, eq=False)
class Features:
    """Tokens of every look: a memory map (N, views, taps, tokens, D); the first token is [CLS]."""

    tokens: np.memmap

    def taps(self, chips: list[int], views: list[int]) -> list[Tap]:
        """What the backbone said of these looks, a Tap a level."""
        found = torch.from_numpy(np.stack([self.tokens[c, v] for c, v in zip(chips, views, strict=True)])).float()
        return [Tap(level[:, 1:], level[:, 0]) for level in found.unbind(dim=1)]


def look_at(
    chips: ChipSet, index: int, rng: np.random.Generator, variety: Variety, size: int, *, plain: bool = False
) -> tuple[torch.Tensor, Look]:
    """A crop of a chip, (3, size, size) in 0..1, and how it was looked at."""
    look = plain_look(chips.size, size) if plain else draw_look(rng, variety, chips.size, size)
    image = see(torch.from_numpy(chips.image(index)), look)
    return (image if plain else recolour(image, rng, variety.colour)), look


def view_rng(key_seed: int, index: int, view: int) -> np.random.Generator:
    """What a cached look is drawn with, and drawn again."""
    return np.random.default_rng((key_seed, 7, index, view))


def cached_features(
    folder: Path,
    key: Key,
    chips: ChipSet,
    network: HeadedNetwork,
    normalise: Callable[[torch.Tensor], torch.Tensor],
    told: Callable[[int, int], None] = lambda done, total: None,
) -> Features:
    """The features of all looks, from the folder or computed into it; goes on where a computation was cut.

    The first view of each chip is the plain one.

    Raises
    ------
    ModelError
        The folder holds features of other weights, chips or looks, or a file of it is damaged or cut short; or there
        is no room for them.
    """
    tokens_a_look = (key.size // network.config.patch_size) ** 2 + 1
    shape = (len(chips), key.views, len(key.taps), tokens_a_look, network.config.backbone_config.hidden_size)
    place = folder / "done.txt"
    if not _is_held(folder, key):
        _begin(folder, key, shape)
    tokens = _tokens(folder, shape)
    looks = [(index, view) for index in range(len(chips)) for view in range(key.views)]
    for start in range(_done(place, len(looks)), len(looks), _BATCH):
        batch = looks[start : start + _BATCH]
        seen = [look_at(chips, i, view_rng(key.seed, i, v), key.variety, key.size, plain=v == 0)[0] for i, v in batch]
        with torch.inference_mode():
            levels = network.taps(normalise(torch.stack(seen)))
        for row, (i, v) in enumerate(batch):
            for level, tap in enumerate(levels):
                tokens[i, v, level, 0] = tap.cls[row].float().cpu().numpy()
                tokens[i, v, level, 1:] = tap.patches[row].float().cpu().numpy()
        tokens.flush()
        write_text(place, str(start + len(batch)))
        told(start + len(batch), len(looks))
    return Features(np.load(folder / "tokens.npy", mmap_mode="r"))


def _is_held(folder: Path, key: Key) -> bool:
    """Whether the folder holds features of this key, complete or not; ModelError if of another."""
    stated = folder / "key.json"
    if not stated.is_file():
        return False
    held, wanted = read_json(stated, remedy=f"remove {folder}, its features are computed anew"), _plain(key)
    if held != wanted:
        apart = ", ".join(f"{name} {held.get(name)}" for name in wanted if held.get(name) != wanted[name])
        raise ModelError(f"{folder} holds features of {apart}: remove it, or give another folder with --cache")
    return True


def _begin(folder: Path, key: Key, shape: tuple[int, ...]) -> None:
    """Make room for the features of a key; the key comes last, so that without it nothing in the folder counts."""
    folder.mkdir(parents=True, exist_ok=True)
    path, size_bytes = folder / "tokens.npy", 2 * math.prod(shape)
    path.unlink(missing_ok=True)
    free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
    if free < size_bytes:
        raise ModelError(f"features take {size_bytes / 1e9:.1f} GB and {folder} has {free / 1e9:.1f}: fewer --views")
    np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape).flush()
    write_text(folder / "done.txt", "0")
    write_json(folder / "key.json", _plain(key))


def _tokens(folder: Path, shape: tuple[int, ...]) -> np.memmap:
    """The file of features, to write into; ModelError unless it is as long as it says and as large as it must be."""
    path, remedy = folder / "tokens.npy", f"remove {folder}, its features are computed anew"
    try:
        # Opened to read first: opened to write, a short file would grow and its end be zeros.
        found = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise ModelError(f"{path} is damaged or cut short ({error}): {remedy}") from error
    if found.shape != shape or found.dtype != np.float16:
        raise ModelError(f"{path} holds {found.dtype} {found.shape} and not float16 {shape}: {remedy}")
    return np.lib.format.open_memmap(path, mode="r+")


def _done(place: Path, looks: int) -> int:
    """How many looks are computed."""
    said = place.read_text() if place.is_file() else ""
    if not (said.strip().isdecimal() and int(said) <= looks):
        raise ModelError(
            f"{place} says {said!r} and not how many of {looks} looks are computed: "
            f"remove {place.parent}, its features are computed anew"
        )
    return int(said)


def _plain(key: Key) -> dict[str, Any]:
    """The key as JSON gives it back."""
    found: dict[str, Any] = json.loads(json.dumps(asdict(key)))
    return found
