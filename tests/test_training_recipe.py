"""Settings of a training that cannot be meant are refused by name."""

from __future__ import annotations

import math

import pytest

from geodino.errors import ConfigError
from geodino.training.recipe import Recipe


@pytest.mark.parametrize(
    ("name", "value", "meaning"),
    [
        ("layer_decay", -3, "above 0 and at most 1"),
        ("layer_decay", 1.5, "above 0 and at most 1"),
        ("backbone_rate", -1, "above 0 and at most 1"),
        ("learning_rate", 1e9, "above 0 and at most 1"),
        ("learning_rate", math.nan, "above 0 and at most 1"),
        ("epochs", math.inf, "a number above 0"),
        ("weight_decay", -0.1, "a number of at least 0"),
        ("balance", 1.1, "a share, from 0 to 1"),
        ("warm_up", 1, "a share, at least 0 and under 1"),
        ("average", 1, "a share, at least 0 and under 1"),
        ("tuning", 1, "a share between 0 and 1"),
        ("views", 0, "at least 1"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(name: str, value: float, meaning: str) -> None:
    with pytest.raises(ConfigError, match=f"^{name} {value} must be {meaning}$"):
        Recipe(**{name: value})  # type: ignore[arg-type]


def test_the_ends_of_the_ranges_are_settings() -> None:
    Recipe(layer_decay=1, learning_rate=1, balance=0, warm_up=0, average=0, weight_decay=0, doubt=0, views=1)
