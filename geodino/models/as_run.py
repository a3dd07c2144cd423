"""What there is to say of a model that computed something: a value without weights, which may be sent and written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from geodino.models.catalog import Licence, ModelRow
from geodino.models.predictor import Model


@dataclass(frozen=True)
class ModelAsRun:
    """A model, and how it was run.

    Attributes
    ----------
    row
        Its facts.
    weights_sha256, heads
        As of `Model`.
    precision, device
        Of the process that computed; `cpu`, `cuda:0`.
    batch_size
        Windows that went through it together, at most.
    tta
        How many views of each were averaged; of heads that learned from upright pictures fewer.
    """

    row: ModelRow
    weights_sha256: str
    precision: str
    device: str
    batch_size: int
    heads: Mapping[str, Mapping[str, Any]]
    tta: int = 1

    @classmethod
    def of(cls, model: Model, side: int) -> ModelAsRun:
        """The model on windows of that side, pixels."""
        device, batch_size = str(model.device), model.batch_size(side)
        return cls(model.row, model.weights_sha256, model.precision, device, batch_size, model.heads, model.tta)

    @property
    def name(self) -> str:
        return self.row.name

    @property
    def mean(self) -> tuple[float, float, float]:
        return self.row.mean

    @property
    def std(self) -> tuple[float, float, float]:
        return self.row.std

    @property
    def licence(self) -> Licence:
        return self.row.licence
