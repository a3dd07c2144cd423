"""Chip sets in memory, for tests of what is measured on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from geodino.training.chipset import FULL, ChipSet, Task
from geodino.training.rows import Rows

SIZE = 64


def made_chips(
    task: Task, count: int, *, per_place: int = 1, step_px: int = SIZE, size: int = SIZE, **known: Any
) -> ChipSet:
    """Chips of noise in a row from west to east, one scene a place, with what is known of them."""
    chance = np.random.default_rng(0)
    images = chance.integers(0, FULL, (count, 3, size, size)).astype(np.uint16)
    everywhere = np.ones((count, size, size), np.bool_)
    number = np.arange(count)
    table = pd.DataFrame(
        {
            "chip": [f"chip-{i:03d}" for i in number],
            "scene": [f"scene-{i // per_place:03d}" for i in number],
            "place": [f"place-{i // per_place:03d}" for i in number],
            "split": "",
            "crs": "EPSG:32610",
            "west": 500_000 + 0.6 * step_px * number,
            "north": 4_000_000.0,
            "date": "2020-07-01",
            "licence": "CC-BY-4.0",
            "image_sha256": "0" * 64,
            "label_sha256": "1" * 64,
        }
    )
    fields: dict[str, Any] = {
        "heights": None, "footprints": None, "points": None, "classes": None, "labels": None, "class_names": (),
        "labelled": everywhere,
    }  # fmt: skip
    fields |= known
    for name in ("labelled", "heights", "classes"):
        if fields[name] is not None:
            fields[name] = Rows(fields[name])
    return ChipSet(
        folder=Path("nowhere"), task=task, size=size, gsd_m=0.6, images=Rows(images), valid=Rows(everywhere),
        table=table, sha256="f" * 64, dropped={"label outside the imagery": 3}, **fields,
    )  # fmt: skip


def says(chips: ChipSet, answers: npt.NDArray[np.float32]) -> Any:
    """A predictor that knows the answer (N, ...) to each chip's image by heart."""
    by_image = {chips.image(i).tobytes(): answers[i] for i in range(len(chips))}

    def predict(images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return np.stack([by_image[image.tobytes()] for image in images])

    return predict


def maps_of_trees(
    points: tuple[npt.NDArray[np.float32], ...], *, size: int = SIZE, cell: int = 4
) -> npt.NDArray[np.float32]:
    """The maps (N, 4, h, w) that say exactly these trees, no two in neighbouring cells."""
    side = size // cell
    found = np.zeros((len(points), 4, side, side), np.float32)
    for maps, trees in zip(found, points, strict=True):
        for x, y in trees:
            row, col = int(y // cell), int(x // cell)
            maps[:, row, col] = 0.9, 1.0, x / cell - col - 0.5, y / cell - row - 0.5
    return found
