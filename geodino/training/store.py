"""Writes chips into a folder, one after the other, so that memory does not grow with their number."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import pandas as pd

from geodino.training.chipset import ARRAYS, FORMAT, FULL, RAGGED, Floats, Task

# In the table, in this order.
COLUMNS = (
    "chip", "scene", "place", "split", "crs", "west", "north", "date", "licence", "image_sha256", "label_sha256",
)  # fmt: skip


class ChipWriter:
    """An open folder that chips are added to; a context manager, whose `finish` makes the folder whole.

    Parameters
    ----------
    folder
        Empty, and not yet under the name that readers know.
    """

    def __init__(self, folder: Path, task: Task, size: int, gsd_m: float) -> None:
        self._folder, self._task, self._size, self._gsd_m = folder, task, size, gsd_m
        self._files: dict[str, BinaryIO] = {}
        self._ragged: dict[str, list[Floats]] = {}
        self._hashes: list[tuple[str, str]] = []
        self._stack = ExitStack()

    def __enter__(self) -> ChipWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def __len__(self) -> int:
        return len(self._hashes)

    def add(self, image: Floats, valid: npt.NDArray[np.bool_], labels: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """Append a chip.

        Parameters
        ----------
        image
            Float32 (3, S, S) in 0..1, filled where not valid.
        labels
            By name in ARRAYS or RAGGED, `labelled` always among them; the same names for each chip.
        """
        pixels = np.rint(image * np.float32(FULL)).astype(np.uint16)
        shown = self._append({"images": pixels, "valid": valid})
        self._hashes.append((shown, self._append(labels)))

    def finish(self, table: pd.DataFrame, class_names: Sequence[str], dropped: Mapping[str, int]) -> None:
        """Write the table (a row a chip, without its hashes) and close the files; `chips.json` comes last."""
        for file in self._files.values():
            file.flush()
        for name, parts in self._ragged.items():
            empty = np.zeros((0, RAGGED[name]), np.float32)
            np.save(self._folder / f"{name}.npy", np.concatenate([empty, *parts]))
            np.save(self._folder / f"{name}_stops.npy", np.cumsum([len(part) for part in parts]))
        image, label = zip(*self._hashes, strict=True)
        whole = table.assign(image_sha256=image, label_sha256=label)
        more = [column for column in whole if column not in COLUMNS]
        whole[[*COLUMNS, *more]].to_parquet(self._folder / "table.parquet")
        facts = {
            "format": FORMAT, "task": self._task, "size": self._size, "gsd_m": self._gsd_m, "count": len(self),
            "class_names": list(class_names), "arrays": sorted([*self._files, *self._ragged]),
            "dropped": dict(sorted(dropped.items())),
        }  # fmt: skip
        (self._folder / "chips.json").write_text(json.dumps(facts, indent=1))

    def _append(self, arrays: Mapping[str, npt.NDArray[np.generic]]) -> str:
        total = hashlib.sha256()
        for name, values in sorted(arrays.items()):
            dtype = np.float32 if name in RAGGED else np.dtype(ARRAYS[name][0])
            plain = np.ascontiguousarray(values, dtype)
            total.update(f"{name} {plain.shape} ".encode() + plain.tobytes())
            if name in RAGGED:
                self._ragged.setdefault(name, []).append(plain)
            else:
                self._file(name).write(plain.tobytes())
        return total.hexdigest()

    def _file(self, name: str) -> BinaryIO:
        if name not in self._files:
            self._files[name] = self._stack.enter_context((self._folder / f"{name}.bin").open("wb"))
        return self._files[name]
