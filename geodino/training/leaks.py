"""Which chips a model learned from, in its record, so that nobody takes its figures there for honest ones."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import shapely
from pyproj.exceptions import CRSError

from geodino.errors import ModelError
from geodino.training.chipset import ChipSet
from geodino.training.pairing import corners_of

KEY = "learned"
# Hex digits of a chip's hash: two of a million chips share so many once in 500 records.
_DIGITS = 12
# Least share of a chip's ground that tells: neighbours meet on lines, and a little more in another CRS.
_SHARED = 0.01


def training_record(folder: Path | None) -> dict[str, Any]:
    """What training.json of a model's folder says; empty where there is none, as of a model of somebody else's.

    Raises
    ------
    ModelError
        It is not JSON.
    """
    path = None if folder is None else folder / "training.json"
    if path is None or not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path} is not JSON ({error}): repair or remove it") from error
    return found if isinstance(found, dict) else {}


def learned_chips(chips: ChipSet, used: npt.NDArray[np.int64]) -> dict[str, Any]:
    """What a record says, under `KEY`, of the chips that taught or chose the weights.

    Parameters
    ----------
    used
        Their indices.

    Returns
    -------
    dict
        `side_m`, metres; and of each chip the first digits of its imagery's SHA-256, and CRS, west and north of its
        north-west corner: other windows on the same ground have other pixels.
    """
    rows = chips.table.iloc[used]
    return {
        "side_m": chips.size * chips.gsd_m,
        "image_sha256": [str(digest)[:_DIGITS] for digest in rows["image_sha256"]],
        "crs": [str(crs) for crs in rows["crs"]],
        "west": [round(float(west), 2) for west in rows["west"]],
        "north": [round(float(north), 2) for north in rows["north"]],
    }


def learned_from(record: Mapping[str, Any], chips: ChipSet) -> int:
    """How many of the chips taught or chose the weights of a model, or lie on ground that did.

    Parameters
    ----------
    record
        What training.json of the model holds; the trainings that it started from or rehearsed count too. Those before
        records named their chips count as having seen nothing.

    Raises
    ------
    ModelError
        The record's `learned` is not what `learned_chips` wrote.
    """
    table, side_m = chips.table, chips.size * chips.gsd_m
    seen = np.zeros(len(chips), np.bool_)
    ground = shapely.STRtree(_outlines(table, side_m))
    for known in _lineage(record):
        try:
            corners = pd.DataFrame({name: known[name] for name in ("image_sha256", "crs", "west", "north")})
            outlines = _outlines(corners, float(known["side_m"]))
        except (KeyError, TypeError, ValueError, CRSError) as error:
            raise ModelError(f"{KEY} of the record in training.json is damaged ({error}): remove that key") from error
        seen |= table["image_sha256"].str[:_DIGITS].isin(set(corners["image_sha256"])).to_numpy()
        theirs, ours = ground.query(outlines, predicate="intersects")
        own = ground.geometries.take(ours)
        shared = shapely.area(shapely.intersection(own, np.take(outlines, theirs))) / shapely.area(own)
        seen[ours[shared > _SHARED]] = True
    return int(seen.sum())


def _lineage(record: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """What a record and those of the trainings before it say of their chips."""
    if record.get(KEY):
        yield record[KEY]
    for earlier in (record.get("start", {}).get("training"), *record.get("rehearsed", [])):
        if earlier:
            yield from _lineage(earlier)


def _outlines(table: pd.DataFrame, side_m: float) -> npt.NDArray[np.object_]:
    """The ground of chips, longitude and latitude."""
    found: npt.NDArray[np.object_] = shapely.polygons(corners_of(table, side_m))
    return found
