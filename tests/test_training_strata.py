"""What a share of the crops is drawn by."""

from __future__ import annotations

import numpy as np
import pytest
from evaluation_chips import SIZE, made_chips

from geodino.training.chipset import ChipSet
from geodino.training.strata import strata

EVERY = np.arange(4)


def chips_of(task: str) -> ChipSet:
    """Four chips: of 0, 3, 3 and 40 m; the last one with a corner of another class, and of another label."""
    tall = np.array([0, 3, 3, 40], np.float32)
    classes = np.zeros((4, SIZE, SIZE), np.uint8)
    classes[3, :4, :4] = 1
    known = {
        "canopy": {"heights": np.broadcast_to(tall[:, None, None], (4, SIZE, SIZE))},
        "trees": {"points": tuple(np.full((k, 2), 8, np.float32) for k in range(4))},
        "segment": {"classes": classes, "class_names": ("road", "water")},
        "classify": {"labels": np.array([0, 0, 1, 0]), "class_names": ("park", "street")},
    }
    return made_chips(task, 4, **known[task])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("task", "groups"),
    [
        ("canopy", [[0], [1, 2], [3]]),
        ("trees", []),
        ("segment", [[0, 1, 2, 3], [3]]),
        ("classify", [[0, 1, 3], [2]]),
    ],
)
def test_what_is_rare_has_a_share_of_its_own(task: str, groups: list[list[int]]) -> None:
    assert [group.tolist() for group in strata(chips_of(task), EVERY)] == groups


def test_only_what_is_learned_from_is_drawn() -> None:
    assert [group.tolist() for group in strata(chips_of("segment"), EVERY[:3])] == [[0, 1, 2]]


def test_a_chip_without_a_known_height_is_of_no_class() -> None:
    labelled = np.ones((2, SIZE, SIZE), np.bool_)
    labelled[0] = False
    heights = np.where(labelled, np.float32(8), np.float32(np.nan))
    chips = made_chips("canopy", 2, heights=heights, labelled=labelled)
    assert [group.tolist() for group in strata(chips, np.arange(2))] == [[1]]
