"""What decides the weights, besides the start and the data: one frozen table of settings."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Literal

from geodino.errors import ConfigError
from geodino.training.augment import Variety
from geodino.windows import SIDE_MULTIPLE


@dataclass(frozen=True)
class Recipe:
    """How a training goes.

    Attributes
    ----------
    size
        Side of the crops, pixels; a multiple of 32.
    batch
        Crops a step.
    epochs
        Times that every chip is seen, on average.
    learning_rate, backbone_rate
        Largest rates, of the head (and pyramid) and of the backbone's last block; used with `finetune` only.
    layer_decay
        Factor on the backbone's rate from each block to the one before it.
    weight_decay, warm_up, average, clip
        Of AdamW; share of the steps at which the rate rises; decay of the averaged weights (EMA); norm of the gradient.
    finetune
        Train the backbone too. Else it is frozen, and its features are computed once and cached.
    checkpointing
        Recompute the backbone's activations on the way back: less memory, a third more time.
    views
        Looks at each chip whose features are cached, where the backbone is frozen.
    variety
        How far the looks differ from the chips.
    balance
        Share of the crops drawn by class rather than by chip, each class as often as any: height classes of canopy,
        classes of segment, labels of classify; trees have none. See `strata`.
    silog
        Whether canopy begins with the log loss of the published schedule.
    doubt
        Weight of a term that makes the spread of heights as large as their errors; 0: the spread is what falls out.
    seed
        Of everything random.
    evaluations
        How often the averaged weights are measured on the tuning places.
    tuning
        Share of the training places that choose weights and threshold and are not trained on.
    choose
        "best" takes the averaged weights that did best on these, "last" those of the end: where few places tune,
        the best is a matter of luck.
    """

    size: int = 256
    batch: int = 16
    epochs: float = 40.0
    learning_rate: float = 1e-3
    backbone_rate: float = 3e-4
    layer_decay: float = 1.0
    weight_decay: float = 0.05
    warm_up: float = 0.05
    average: float = 0.998
    clip: float = 5.0
    finetune: bool = False
    checkpointing: bool = False
    views: int = 4
    variety: Variety = field(default_factory=Variety)
    balance: float = 0.5
    silog: bool = True
    doubt: float = 0.0
    seed: int = 0
    evaluations: int = 10
    tuning: float = 1 / 16
    choose: Literal["best", "last"] = "best"

    def __post_init__(self) -> None:
        if self.size < SIDE_MULTIPLE or self.size % SIDE_MULTIPLE:
            raise ConfigError(f"size {self.size} px must be a multiple of {SIDE_MULTIPLE}")
        for names, (fits, meaning) in _LIMITS.items():
            for name in names:
                if not fits(getattr(self, name)):
                    raise ConfigError(f"{name} {getattr(self, name)} must be {meaning}")

    def digest(self) -> str:
        """A hash of all settings."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


# Settings, and what they must be; NaN is none of it.
_LIMITS: Mapping[tuple[str, ...], tuple[Callable[[float], bool], str]] = {
    ("batch", "views", "evaluations"): (lambda value: value >= 1, "at least 1"),
    ("epochs", "clip"): (lambda value: 0 < value < math.inf, "a number above 0"),
    # The rates are AdamW's steps: above 1 nothing ever learned.
    ("learning_rate", "backbone_rate", "layer_decay"): (lambda value: 0 < value <= 1, "above 0 and at most 1"),
    ("weight_decay", "doubt"): (lambda value: 0 <= value < math.inf, "a number of at least 0"),
    ("balance",): (lambda value: 0 <= value <= 1, "a share, from 0 to 1"),
    ("warm_up", "average"): (lambda value: 0 <= value < 1, "a share, at least 0 and under 1"),
    ("tuning",): (lambda value: 0 < value < 1, "a share between 0 and 1"),
}
