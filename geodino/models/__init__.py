"""The models: a catalog of every DINOv3 backbone, strict loading of their weights, and canopy height from them.

The catalog alone costs no torch; the names below import it when they are first asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from geodino.models.catalog import ModelRow, row, rows
    from geodino.models.dinov3 import Backbone
    from geodino.models.hub import Access, access, auto_model
    from geodino.models.loading import facts_of, is_at_hand, load_backbone, load_model
    from geodino.models.precision import choose_device, choose_precision
    from geodino.models.predictor import Model

_HOMES = {
    "Access": "geodino.models.hub",
    "Backbone": "geodino.models.dinov3",
    "Model": "geodino.models.predictor",
    "ModelRow": "geodino.models.catalog",
    "access": "geodino.models.hub",
    "auto_model": "geodino.models.hub",
    "choose_device": "geodino.models.precision",
    "choose_precision": "geodino.models.precision",
    "facts_of": "geodino.models.loading",
    "is_at_hand": "geodino.models.loading",
    "load_backbone": "geodino.models.loading",
    "load_model": "geodino.models.loading",
    "row": "geodino.models.catalog",
    "rows": "geodino.models.catalog",
}

__all__ = [
    "Access",
    "Backbone",
    "Model",
    "ModelRow",
    "access",
    "auto_model",
    "choose_device",
    "choose_precision",
    "facts_of",
    "is_at_hand",
    "load_backbone",
    "load_model",
    "row",
    "rows",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module geodino.models has no attribute {name}")
    return getattr(import_module(_HOMES[name]), name)
