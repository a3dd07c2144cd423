"""What the tests of clusters have workers do; in a module of its own, so that workers can import it."""

from __future__ import annotations

import os
from pathlib import Path

from geodino.cluster.held import held
from geodino.errors import ModelError


def load(path: Path) -> tuple[str, int]:
    """A stand-in for a model: what is in a file, and the process that read it, which leaves a mark beside."""
    text = path.read_text()
    if text == "wrong":
        raise ModelError(f"{path.name} has other weights")
    Path(f"{path}.{os.getpid()}").touch()
    return text, os.getpid()


def break_down() -> None:
    raise ZeroDivisionError("a bug")


def use(name: str, number: int) -> tuple[tuple[str, int], int]:
    return held(name, tuple), number


def torch_threads() -> int:
    import torch

    return torch.get_num_threads()


class Garbage:
    """What nobody but itself holds; says so in a file where Python looks for such things at its end."""

    def __init__(self, path: Path) -> None:
        self.itself, self.path = self, path

    def __del__(self) -> None:
        self.path.touch()


def leave_garbage(path: Path) -> None:
    Garbage(path)
