"""What chooses among the settings of a tree head."""

from __future__ import annotations

import numpy as np
import pytest

from geodino.training.tasks import F1_TIE, best_setting


@pytest.mark.parametrize(
    ("f1", "found", "best"),
    [
        ([0.70, 0.760, 0.762, 0.74], [130, 104, 92, 80], 1),  # as good as the best, and counts better
        ([0.70, 0.762 - 2 * F1_TIE, 0.762, 0.74], [130, 100, 92, 80], 2),  # counts better, but finds worse
        ([0.70, 0.760, 0.762, 0.761], [130, 92, 108, 108], 1),  # equally far off: the first
    ],
)
def test_of_settings_as_good_as_the_best_the_one_that_counts_best(f1: list[float], found: list[int], best: int) -> None:
    assert best_setting(np.array(f1), np.array(found), 100) == best


def test_nothing_found_is_a_setting_too() -> None:
    assert best_setting(np.zeros(3), np.array([0, 0, 0]), 0) == 0
