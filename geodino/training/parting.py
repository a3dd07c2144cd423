"""Which chips of a set learn, choose and are judged: whole places, or compact ground where these are few."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from geodino.errors import ConfigError, InputError
from geodino.training.chipset import ChipSet
from geodino.training.pairing import corners_of
from geodino.training.recipe import Recipe
from geodino.training.splits import Bools, Ints, beside, draw, on_plane, split_places
from geodino.watch import count

Doubles = npt.NDArray[np.float64]


# Fewer chips than this tell nothing on either side.
FEWEST = 2
# Ground of fewer places than this is parted itself, with a gap between; its blocks are of so many chips a side.
FEW_PLACES = 8
BLOCK_CHIPS = 2
# A group may differ from its share of the chips by this part of it, so that it ends between two rows of chips.
_UNEVEN = 0.25


def parted(chips: ChipSet, recipe: Recipe) -> tuple[Ints, Ints]:
    """Indices to learn from and to choose by: whole places, and none of split "val".

    Of ground of few places, such as one lidar tile, the chips around one block choose, and those closer than 30 m to
    them are left out.

    Raises
    ------
    ConfigError
        Crops larger than chips.
    InputError
        Too few chips on either side.
    """
    if recipe.size > chips.size:
        raise ConfigError(
            f"crops of {recipe.size} px do not fit chips of {chips.size} px: lower --size or raise --chip"
        )
    free = (chips.table["split"] != "val").to_numpy()
    if chips.table.loc[free, "place"].nunique() < FEW_PLACES:
        learn_mask, tune_mask = _parted_ground(chips, free, recipe)
    else:
        learn_mask, tune_mask = split_places(chips.table, recipe.tuning, recipe.seed)
    learn, tune = np.flatnonzero(learn_mask), np.flatnonzero(tune_mask)
    if len(learn) < FEWEST or len(tune) < 1:
        raise InputError(
            f"{count(len(learn), 'chip')} to learn from and {len(tune)} to choose by, of {int(free.sum())} in all: "
            "give labels of more ground, smaller chips (--chip), or raise --tuning"
        )
    return learn, tune


def _parted_ground(chips: ChipSet, free: Bools, recipe: Recipe) -> tuple[Bools, Bools]:
    """Masks of the free chips that learn and that choose; those that lie between are in neither."""
    tune = np.zeros(len(chips), np.bool_)
    if free.any():
        blocks, corners = np.array(block_places(chips)), squares(chips)
        first = blocks == min(set(blocks[free].tolist()), key=lambda block: draw(block, recipe.seed))
        spots = on_plane(corners)
        away = np.linalg.norm(spots - spots[first & free].mean(axis=0), axis=1)
        # The block that is drawn, then what lies around it: together, so that little lies beside them.
        order = np.lexsort((away, ~first, ~free))
        tune[order[: min(math.ceil(recipe.tuning * free.sum()), int(free.sum()) - 1)]] = True
        return free & ~tune & ~beside(corners, tune), tune
    return free, tune


def block_places(chips: ChipSet) -> list[str]:
    """Where each chip lies on a lattice of `BLOCK_CHIPS` chips."""
    side = BLOCK_CHIPS * chips.size * chips.gsd_m
    rows = chips.table[["place", "crs", "west", "north"]].itertuples(index=False)
    return [f"{place} {crs} {int(west // side)} {int(north // side)}" for place, crs, west, north in rows]


def squares(chips: ChipSet) -> Doubles:
    """(N, 4, 2) longitude, latitude of the corners of each chip, in ring order, WGS84 degrees."""
    return corners_of(chips.table, chips.size * chips.gsd_m)


def compact_folds(chips: ChipSet, k: int) -> Ints:
    """(N,) fold of each chip, 0..k-1: pieces of ground of about as many chips each, so that few lie beside another's.

    Raises
    ------
    ConfigError
        Fewer chips than folds.
    """
    if k > len(chips):
        raise ConfigError(f"{k} folds cannot be made of {count(len(chips), 'chip')}; give 2 to {len(chips)}")
    return compact_groups(on_plane(squares(chips)), k)


def compact_groups(spots: Doubles, k: int) -> Ints:
    """(N,) group of each spot, 0..k-1, by halving across the longer axis, where the gap near the middle is wide.

    Parameters
    ----------
    spots
        (N, 2), at least k.
    """
    groups = np.zeros(len(spots), np.int64)
    if k == 1:
        return groups
    below = k // 2
    axis = int(np.ptp(spots, axis=0).argmax())
    order = spots[:, axis].argsort(kind="stable")
    cut = _cut(np.diff(spots[order, axis]), below, k)
    groups[order[:cut]] = compact_groups(spots[order[:cut]], below)
    groups[order[cut:]] = below + compact_groups(spots[order[cut:]], k - below)
    return groups


def _cut(gaps: Doubles, below: int, k: int) -> int:
    """How many of the sorted spots go below the cut, for `below` of k groups."""
    spots = len(gaps) + 1
    even, slack = spots * below / k, _UNEVEN * spots / k
    cuts = np.arange(max(below, math.ceil(even - slack)), min(spots - k + below, math.floor(even + slack)) + 1)
    if not len(cuts):
        return min(max(below, round(even)), spots - k + below)
    wide = cuts[gaps[cuts - 1] >= gaps[cuts - 1].max() / 2]
    return int(wide[np.abs(wide - even).argmin()])
