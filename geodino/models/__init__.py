"""The models: a catalog of every DINOv3 backbone, strict loading of their weights, and canopy height from them.

The catalog alone costs no torch; `load_model` imports it when it is first asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from geodino.models.loading import load_model

__all__ = ["load_model"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module geodino.models has no attribute {name}")
    return getattr(import_module("geodino.models.loading"), name)
