"""The models: a catalog of every DINOv3 backbone, strict loading of their weights, and canopy height from them.

The catalog alone costs no torch; the names below import it when they are first asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from geodino.models.dinov3 import Backbone
    from geodino.models.hub import auto_model
    from geodino.models.loading import load_backbone, load_model
    from geodino.models.predictor import Model

_HOMES = {
    "Backbone": "geodino.models.dinov3",
    "Model": "geodino.models.predictor",
    "auto_model": "geodino.models.hub",
    "load_backbone": "geodino.models.loading",
    "load_model": "geodino.models.loading",
}

__all__ = ["Backbone", "Model", "auto_model", "load_backbone", "load_model"]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module geodino.models has no attribute {name}")
    return getattr(import_module(_HOMES[name]), name)
