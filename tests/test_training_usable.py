"""Labels that no crop holds are refused before anything is computed, and what is missing is said."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from evaluation_chips import made_chips

from geodino.errors import InputError
from geodino.training.usable import check_labels

LEARN, TUNE = np.arange(3), np.array([3])


def discs(*each: tuple[float, float, float]) -> tuple[np.ndarray, ...]:
    """One footprint a chip: x, y and radius in pixels, 10 m tall."""
    return tuple(np.array([[x, y, radius, 10]], np.float32) for x, y, radius in each)


def somewhere(*whole: int) -> np.ndarray:
    """Ground that is labelled on these chips alone."""
    found = np.zeros((4, 64, 64), np.bool_)
    found[list(whole)] = True
    return found


NOWHERE = np.zeros((0, 2), np.float32)
TREE = np.array([[30, 30]], np.float32)
CORNER = np.array([[2, 2]], np.float32)


@pytest.mark.parametrize(
    ("task", "known", "said"),
    [
        (
            "canopy", {"footprints": discs(*[(32, 32, 20)] * 4)},
            "crops of 3 chips of 64 px hold no footprint; 4 of 4 footprints are wider than crops of 32 px and teach",
        ),
        (
            "canopy", {"footprints": discs(*[(8, 8, 5)] * 4)},
            "nothing to choose by: the middle 32 px of 1 chip of 64 px hold no footprint; give labels of more ground",
        ),
        (
            "canopy", {"heights": np.ones((4, 64, 64), np.float32), "labelled": somewhere(0, 1)},
            "nothing to choose by: the middle 32 px of 1 chip of 64 px hold no known height",
        ),
        ("trees", {"points": (NOWHERE, NOWHERE, NOWHERE, TREE)}, "nothing to learn from: crops of 3 chips .* no tree"),
        ("trees", {"points": (TREE, TREE, TREE, CORNER)}, "nothing to choose by: .* hold no tree"),
        (
            "segment", {"classes": np.zeros((4, 64, 64), np.uint8), "class_names": ("a",), "labelled": somewhere(3)},
            "nothing to learn from: crops of 3 chips of 64 px hold no known class",
        ),
    ],
)  # fmt: skip
def test_what_no_crop_holds_is_refused(task: Any, known: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        check_labels(made_chips(task, 4, **known), LEARN, TUNE, 32)


def test_what_will_not_be_learned_or_measured_is_said() -> None:
    classes = np.zeros((4, 64, 64), np.uint8)
    classes[3, :, :32] = 1
    chips = made_chips("segment", 4, classes=classes, class_names=("road", "water", "sand"))
    assert check_labels(chips, LEARN, TUNE, 32) == [
        "class water has no label to learn from",
        "class sand has no label to learn from",
        "class sand has no label to choose by",
    ]
    some = made_chips("canopy", 4, footprints=discs((32, 32, 5), (32, 32, 20), (32, 32, 5), (32, 32, 5)))
    assert check_labels(some, LEARN, TUNE, 32) == [
        "1 of 4 footprints are wider than crops of 32 px and teach nothing: raise --size"
    ]
    labels = made_chips("classify", 4, labels=np.array([0, 1, 1, 0]), class_names=("park", "street"))
    assert check_labels(labels, LEARN, TUNE, 32) == ["class street has no label to choose by"]


def test_labels_that_all_say_the_same_are_refused() -> None:
    bare = made_chips("canopy", 4, heights=np.zeros((4, 64, 64), np.float32))
    with pytest.raises(InputError, match=r"nothing to learn from: \d chips? hold heights of 0 m alone; give labels"):
        check_labels(bare, LEARN, TUNE, 32)
    flat = made_chips("canopy", 4, footprints=tuple(np.array([[32, 32, 5, 0]], np.float32) for _ in range(4)))
    with pytest.raises(InputError, match=r"hold heights of 0 m alone"):
        check_labels(flat, LEARN, TUNE, 32)
    parks = made_chips("classify", 4, labels=np.array([0, 0, 0, 1]), class_names=("park", "street"))
    with pytest.raises(InputError, match=r"hold plots of class park alone; give labels that differ"):
        check_labels(parks, np.array([0, 1]), TUNE, 32)
