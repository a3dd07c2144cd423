"""Classes: of pixels (segment) and of whole chips (classify), from the confusion of what is and what was said."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from geodino.errors import InputError
from geodino.evaluation.canopy import BLOCK_PX
from geodino.evaluation.sums import Floats, Formula, Totals, ratio

Classes = npt.NDArray[np.integer]

UNKNOWN = 255


def segment_sums(
    predicted: Classes, true: Classes, *, classes: int, counted: npt.NDArray[np.bool_], block: int = BLOCK_PX
) -> dict[str, Floats]:
    """Return the confusion of each block that has any counted pixel, (blocks, true class, predicted class).

    Parameters
    ----------
    predicted, true
        (H, W), 0 up to `classes`; true ones of 255 are unknown and left out.
    counted
        (H, W): pixels that count here.

    Raises
    ------
    InputError
        If there is a class that has no name.
    """
    here = counted & (true != UNKNOWN)
    _check(predicted[here], classes, "predicted")
    _check(true[here], classes, "labelled")
    rows, cols = true.shape
    across = -(-cols // block)
    blocks = (np.arange(rows) // block)[:, None] * across + np.arange(cols) // block
    # int64 first: uint8 times the number of classes wraps around.
    index = (blocks[here] * classes + true[here].astype(np.int64)) * classes + predicted[here].astype(np.int64)
    count = -(-rows // block) * across
    found = np.bincount(index, minlength=count * classes**2).reshape(count, classes, classes).astype(np.float64)
    return {"confusion": found[found.sum(axis=(1, 2)) > 0]}


def classify_sums(predicted: int, true: int, *, classes: int) -> dict[str, Floats]:
    """Return the confusion of one chip, (1, true class, predicted class)."""
    _check(np.array([predicted]), classes, "predicted")
    _check(np.array([true]), classes, "labelled")
    found = np.zeros((1, classes, classes))
    found[0, true, predicted] = 1
    return {"confusion": found}


def _right(t: Totals) -> Floats:
    return np.diagonal(t["confusion"], axis1=-2, axis2=-1)


def _there(t: Totals) -> Floats:
    found: Floats = t["confusion"].sum(axis=-1)
    return found


def _said(t: Totals) -> Floats:
    found: Floats = t["confusion"].sum(axis=-2)
    return found


def _iou(t: Totals) -> Floats:
    return ratio(_right(t), _there(t) + _said(t) - _right(t))


def _f1(t: Totals) -> Floats:
    return ratio(2 * _right(t), _there(t) + _said(t))


def _mean_of_labelled(values: Floats, t: Totals) -> Floats:
    """The mean over the classes that the labels have."""
    labelled = _there(t) > 0
    return ratio(np.where(labelled, np.nan_to_num(values), 0).sum(axis=-1), labelled.sum(axis=-1).astype(np.float64))


_ACCURACY = Formula(
    "accuracy", "overall accuracy", "", lambda t: ratio(_right(t).sum(axis=-1), t["confusion"].sum(axis=(-2, -1)))
)
_COMMONEST = Formula(
    "commonest_accuracy",
    "accuracy of the commonest class",
    "",
    lambda t: ratio(_there(t).max(axis=-1), t["confusion"].sum(axis=(-2, -1))),
)

SEGMENT_FORMULAS = (
    Formula("miou", "mean IoU", "", lambda t: _mean_of_labelled(_iou(t), t)),
    _ACCURACY,
    _COMMONEST,
)
CLASSIFY_FORMULAS = (
    Formula("macro_f1", "macro F1", "", lambda t: _mean_of_labelled(_f1(t), t)),
    _ACCURACY,
    _COMMONEST,
)

# Of each class.
CLASS_FORMULAS = (
    Formula("share", "share of labels", "%", lambda t: 100 * ratio(_there(t), _there(t).sum(axis=-1, keepdims=True))),
    Formula("iou", "IoU", "", _iou),
    Formula("f1", "F1", "", _f1),
    Formula("precision", "precision", "", lambda t: ratio(_right(t), _said(t))),
    Formula("recall", "recall", "", lambda t: ratio(_right(t), _there(t))),
)


def _check(values: Classes, classes: int, what: str) -> None:
    wrong = values[(values < 0) | (values >= classes)]
    if len(wrong):
        raise InputError(f"{what} class {int(wrong[0])} is not one of the {classes} known ones, 0 to {classes - 1}")
