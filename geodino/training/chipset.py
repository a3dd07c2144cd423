"""Chips of imagery with what is known of their ground: the one thing between label files and training.

A set is a folder: plain arrays that are memory-mapped, `table.parquet` with a row a chip, and `chips.json`, which is
written last. `build_chips` makes the folder, `open_chips` opens it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt
import pandas as pd

from geodino.errors import InputError
from geodino.training.rows import Rows

Task = Literal["canopy", "trees", "segment", "classify"]
Floats = npt.NDArray[np.float32]

# Raised whenever the same inputs give other chips or other files.
FORMAT = 1
# What full scale 1.0 is in `images`: 257 * 255, so that 8-bit pixels are kept exactly.
FULL = 65535
# No class is known here.
UNKNOWN = 255

# Name in the folder, dtype, and what a chip of S x S pixels holds of it.
ARRAYS: Mapping[str, tuple[str, str]] = {
    "images": ("uint16", "3SS"),
    "valid": ("bool", "SS"),
    "labelled": ("bool", "SS"),
    "heights": ("float32", "SS"),
    "classes": ("uint8", "SS"),
    "labels": ("int64", ""),
}
# Tables of a few rows a chip, by name: columns.
RAGGED: Mapping[str, int] = {"points": 2, "footprints": 4}
_Scalar = TypeVar("_Scalar", bound=np.generic)


@dataclass(frozen=True, eq=False)
class ChipSet:
    """Square chips of imagery with what is known of their ground.

    Arrays are memory-mapped from `folder`; indexing their first axis reads. Coordinates in chips are pixels from the
    north-west corner: x to the right, y down, the first pixel's centre at (0.5, 0.5).

    Attributes
    ----------
    size
        Side of a chip, px.
    gsd_m
        Metres a pixel.
    images
        (N, 3, S, S) uint16: red, green, blue; 0..65535 stands for 0..1 after radiometry.
    valid
        (N, S, S): there is imagery. Elsewhere the image is filled by reflection.
    labelled
        (N, S, S): there is imagery and the ground is known.
    heights
        Canopy from CHMs: (N, S, S) metres, NaN where not labelled.
    footprints
        Canopy from points: per chip (M, 4) x px, y px, radius px, height m; each lies wholly on valid pixels.
    points
        Trees: per chip (M, 2) x px, y px.
    classes
        Segment: (N, S, S), index into `class_names`, 255 where not labelled.
    labels
        Classify: (N,), index into `class_names`.
    table
        One row a chip: chip (unique), scene, place, split (`train`, `val` or empty), crs, west, north (CRS units, of
        the north-west corner), date, licence, image_sha256, label_sha256; then the other columns of the splits.
    sha256
        Of task, size, GSD, classes, imagery, labels and splits; the same on any machine, and of the same chips in
        whatever larger set.
    dropped
        What was left out: reason to count.
    """

    folder: Path
    task: Task
    size: int
    gsd_m: float
    images: Rows[np.uint16]
    valid: Rows[np.bool_]
    labelled: Rows[np.bool_]
    heights: Rows[np.float32] | None
    footprints: tuple[Floats, ...] | None
    points: tuple[Floats, ...] | None
    classes: Rows[np.uint8] | None
    labels: npt.NDArray[np.int64] | None
    class_names: tuple[str, ...]
    table: pd.DataFrame
    sha256: str
    dropped: Mapping[str, int]

    def __len__(self) -> int:
        return len(self.table)

    def image(self, index: int) -> Floats:
        """The picture of a chip: float32 (3, S, S), red, green, blue in 0..1."""
        return self.images[index].astype(np.float32) / np.float32(FULL)

    def subset(self, indices: Sequence[int] | npt.NDArray[np.generic]) -> ChipSet:
        """These chips, by number or by a mask of all, on the same memory maps."""
        rows = np.asarray(indices)
        rows = np.flatnonzero(rows) if rows.dtype == np.bool_ else rows.astype(np.int64)
        table = self.table.iloc[rows].reset_index(drop=True)
        return replace(
            self,
            images=self.images.take(rows),
            valid=self.valid.take(rows),
            labelled=self.labelled.take(rows),
            heights=None if self.heights is None else self.heights.take(rows),
            footprints=None if self.footprints is None else tuple(self.footprints[row] for row in rows),
            points=None if self.points is None else tuple(self.points[row] for row in rows),
            classes=None if self.classes is None else self.classes.take(rows),
            labels=None if self.labels is None else self.labels[rows],
            table=table,
            sha256=hash_of(self.task, self.size, self.gsd_m, self.class_names, table),
        )


def open_chips(folder: str | Path) -> ChipSet:
    """The chips in a folder that `build_chips` made; nothing is read but the table.

    Raises
    ------
    InputError
        It holds no chips, chips of another format, or a file cut short.
    """
    path = Path(folder)
    try:
        facts = json.loads((path / "chips.json").read_text())
        table = pd.read_parquet(path / "table.parquet")
    except (OSError, ValueError) as error:
        raise InputError(f"{path} holds no chips ({error}); build them again") from error
    if facts.get("format") != FORMAT:
        raise InputError(f"{path} holds chips of format {facts.get('format')}, not {FORMAT}; build them again")
    held = set(facts["arrays"])
    names = tuple(facts["class_names"])
    count, size = len(table), int(facts["size"])

    def rows(name: str, dtype: type[_Scalar]) -> Rows[_Scalar]:
        return Rows(_mapped(path, name, count, size, dtype))

    return ChipSet(
        folder=path,
        task=facts["task"],
        size=size,
        gsd_m=facts["gsd_m"],
        images=rows("images", np.uint16),
        valid=rows("valid", np.bool_),
        labelled=rows("labelled", np.bool_),
        heights=rows("heights", np.float32) if "heights" in held else None,
        footprints=_ragged(path, "footprints", count) if "footprints" in held else None,
        points=_ragged(path, "points", count) if "points" in held else None,
        classes=rows("classes", np.uint8) if "classes" in held else None,
        labels=np.array(_mapped(path, "labels", count, size, np.int64)) if "labels" in held else None,
        class_names=names,
        table=table,
        sha256=hash_of(facts["task"], size, facts["gsd_m"], names, table),
        dropped=facts["dropped"],
    )


def hash_of(task: str, size: int, gsd_m: float, class_names: Sequence[str], table: pd.DataFrame) -> str:
    """The SHA-256 of a set from that of its chips' imagery and labels."""
    about = {"format": FORMAT, "task": task, "size": size, "gsd_m": gsd_m, "class_names": list(class_names)}
    total = hashlib.sha256(json.dumps(about).encode())
    for row in table[["chip", "split", "image_sha256", "label_sha256"]].itertuples(index=False):
        total.update("\0".join(map(str, row)).encode() + b"\n")
    return total.hexdigest()


def shape_of(name: str, size: int) -> tuple[int, ...]:
    """What one chip holds of an array: (3, S, S), (S, S) or ()."""
    return tuple(3 if letter == "3" else size for letter in ARRAYS[name][1])


def _mapped(folder: Path, name: str, count: int, size: int, dtype: type[_Scalar]) -> npt.NDArray[_Scalar]:
    path = folder / f"{name}.bin"
    shape = (count, *shape_of(name, size))
    needed = int(np.prod(shape)) * np.dtype(dtype).itemsize
    present = path.stat().st_size if path.is_file() else 0
    if present != needed:
        raise InputError(f"{path} has {present} bytes and not {needed}: it was cut short; build the chips again")
    return np.memmap(path, dtype, "r", shape=shape)


def _ragged(folder: Path, name: str, count: int) -> tuple[Floats, ...]:
    try:
        values, stops = np.load(folder / f"{name}.npy"), np.load(folder / f"{name}_stops.npy")
    except (OSError, ValueError) as error:
        raise InputError(f"{folder / name}.npy cannot be read ({error}); build the chips again") from error
    if len(stops) != count or (count and stops[-1] != len(values)):
        raise InputError(f"{folder / name}.npy does not belong to the other files; build the chips again")
    return tuple(np.split(values, stops[:-1])) if count else ()
