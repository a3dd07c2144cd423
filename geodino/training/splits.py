"""Which chips lie side by side, which learn, and which are held out: by place, never by chip."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import shapely
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from geodino.errors import ConfigError, InputError
from geodino.shipped import nearest
from geodino.watch import count

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]

# Chips closer than this see the same ground: photos lean and labels are drawn loosely.
PLACE_GAP_M = 30.0
# Metres on the grid and on the ellipsoid differ by so much in UTM; chips a whole 30 m apart are apart.
_SLACK = 0.995
NAME_COLUMNS = ("scene", "chip", "id", "plot", "name")
SPLITS = ("train", "val")
# WGS84: equatorial radius in metres, and eccentricity squared.
_RADIUS_M, _E2 = 6_378_137.0, 0.006_694_379_990_14


def places(corners: npt.NDArray[np.float64], gap_m: float = PLACE_GAP_M) -> list[str]:
    """A name for each chip's place; chips closer than `gap_m`, and their neighbours in turn, share one.

    Parameters
    ----------
    corners
        (N, 4, 2) longitude, latitude of each chip's imagery, in ring order, WGS84 degrees.

    Returns
    -------
    Latitude and longitude of the place's westernmost chip to four digits, such as `34.1269_-117.7162`.
    """
    one, other = _near(corners, gap_m).T
    links = coo_array((np.ones(len(one)), (one, other)), shape=(len(corners),) * 2)
    _, groups = connected_components(links, directed=False)
    # + 0.0 so that there is no -0.0000.
    rounded = pd.DataFrame(np.round(corners.mean(axis=1), 4) + 0.0, columns=["lon", "lat"]).assign(group=groups)
    first = rounded.sort_values(["lon", "lat"]).drop_duplicates("group").set_index("group").sort_index()
    named = [f"{lat:.4f}_{lon:.4f}" for lon, lat in first.itertuples(index=False)]
    return [named[group] for group in groups]


def beside(corners: npt.NDArray[np.float64], chosen: Bools, gap_m: float = PLACE_GAP_M) -> Bools:
    """Which chips are not chosen and closer than `gap_m` to one that is; arguments as of `places`."""
    one, other = _near(corners, gap_m).T
    found = np.zeros(len(corners), bool)
    found[one[chosen[other]]] = True
    found[other[chosen[one]]] = True
    return found & ~chosen


def _near(corners: npt.NDArray[np.float64], gap_m: float) -> npt.NDArray[np.int64]:
    """(P, 2) pairs of chips closer than a gap."""
    centres = corners.mean(axis=1)
    arms = _metres(_turned(corners - centres[:, None]), centres[:, None, 1])
    reach = 2 * float(np.hypot(arms[..., 0], arms[..., 1]).max(initial=0)) + gap_m
    pairs = cKDTree(_on_sphere(centres)).query_pairs(reach * 1.01, output_type="ndarray").reshape(-1, 2)
    origin = centres[pairs[:, 0], None]
    # Both rings in metres around the first one's centre.
    one, other = (_metres(_turned(corners[side] - origin), origin[..., 1]) for side in pairs.T)
    near = shapely.distance(shapely.polygons(one), shapely.polygons(other)) < gap_m * _SLACK
    found: npt.NDArray[np.int64] = pairs[near].astype(np.int64)
    return found


def on_plane(corners: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(N, 2) metres east and north of the first chip's centre, of the centres; true to length near it only."""
    centres = corners.mean(axis=1)
    return _metres(_turned(centres - centres[:1]), float(centres[:, 1].mean()))


def _metres(degrees: npt.NDArray[np.float64], lat: npt.NDArray[np.float64] | float) -> npt.NDArray[np.float64]:
    """Small differences of longitude and latitude in metres east and north, on the WGS84 ellipsoid."""
    phi = np.radians(lat)
    bulge = 1 - _E2 * np.sin(phi) ** 2
    east = _RADIUS_M / np.sqrt(bulge) * np.cos(phi)
    north = _RADIUS_M * (1 - _E2) / bulge**1.5
    found: npt.NDArray[np.float64] = np.stack(
        [np.radians(degrees[..., 0]) * east, np.radians(degrees[..., 1]) * north], axis=-1
    )
    return found


def _turned(degrees: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Differences of longitude the short way round."""
    turned: npt.NDArray[np.float64] = degrees.copy()
    turned[..., 0] = (turned[..., 0] + 180) % 360 - 180
    return turned


def _on_sphere(lonlat: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    lon, lat = np.radians(lonlat).T
    return _RADIUS_M * np.column_stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)])


def read_splits(paths: Sequence[str | Path]) -> pd.DataFrame:
    """The rows of split files: name, split (`train`, `val` or empty), licence, other columns; empty where not said.

    Parameters
    ----------
    paths
        CSV files with a column `split` and one of scene, chip, id, plot, name.

    Raises
    ------
    InputError
        No such file or column, a split that is neither train nor val, a scene in two splits.
    """
    parts = [_split_file(Path(path)) for path in paths]
    rows = pd.concat([pd.DataFrame({"name": [], "split": []}, dtype=object), *parts], ignore_index=True).fillna("")
    mixed = rows.groupby("name")["split"].nunique()
    if (mixed > 1).any():
        raise InputError(f"splits: {mixed.index[mixed > 1][0]} is in train and in val; give it one split")
    return rows.drop_duplicates("name", ignore_index=True)


def _split_file(path: Path) -> pd.DataFrame:
    try:
        rows = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise InputError(f"splits {path} cannot be read as CSV: {str(error).splitlines()[0]}") from error
    names = [column for column in NAME_COLUMNS if column in rows]
    if not names or "split" not in rows:
        raise InputError(
            f"splits {path} has the columns {', '.join(rows.columns)}; it needs split and one of "
            f"{', '.join(NAME_COLUMNS)}"
        )
    splits = rows["split"].str.strip()
    unknown = splits[~splits.isin(["", *SPLITS])]
    if len(unknown):
        first = rows.loc[unknown.index[0], names[0]]
        raise InputError(f"splits {path}: split {unknown.iloc[0]!r} of {first} must be train, val or empty")
    more = rows.drop(columns=["split", "name"], errors="ignore").rename(columns={"license": "licence"})
    return pd.DataFrame({"name": rows[names[0]].str.strip(), "split": splits, **more})


def aliases(scenes: Sequence[str]) -> Mapping[str, str]:
    """What may stand for each scene: its name, and its name without a last `_word` where that is one scene's alone."""
    short = [scene.rpartition("_")[0] for scene in scenes]
    unique = {name: scene for name, scene in zip(short, scenes, strict=True) if name and short.count(name) == 1}
    return {**unique, **{scene: scene for scene in scenes}}


def match_splits(rows: pd.DataFrame, scenes: Sequence[str]) -> tuple[dict[str, int], int]:
    """Which row of the splits is each scene's, and how many rows name no scene.

    Raises
    ------
    InputError
        Some rows name no scene while some scenes have no row: names were mistyped or of another kind.
    """
    known = aliases(scenes)
    found = {known[name]: number for number, name in enumerate(rows["name"]) if name in known}
    lost = [name for name in rows["name"] if name not in known]
    bare = [scene for scene in scenes if scene not in found]
    if lost and bare:
        close = nearest(lost[0], bare) if len(bare) < 1000 else ""
        raise InputError(
            f"splits: {count(len(lost), 'name')} such as {lost[0]} are no scene's, and {count(len(bare), 'scene')} "
            f"such as {bare[0]} have no split{close}; name every scene as in the imagery"
        )
    return found, len(lost)


def split_places(table: pd.DataFrame, fraction: float, seed: int = 0) -> tuple[Bools, Bools]:
    """Masks of the chips to learn from and of those held back for tuning; chips of the split `val` are in neither.

    Places are held back in the order of their lots: those whose lot is under the fraction, and further ones until the
    fraction of the chips is held back. A place that would make it more than twice the fraction is passed over.

    Parameters
    ----------
    table
        Of a ChipSet.
    fraction
        Share of places held back, in 0..1; at least one place is, and at least one learns, where there are two.
    """
    if not 0 < fraction < 1:
        raise ConfigError(f"fraction {fraction} of places to hold back must lie between 0 and 1")
    free = (table["split"] != "val").to_numpy()
    sizes = Counter(table.loc[free, "place"].tolist())
    lots = {place: draw(place, seed) for place in sizes}
    wanted, held, filled = fraction * free.sum(), set[str](), 0
    # The last one learns.
    for place in sorted(lots, key=lambda place: (lots[place], place))[:-1]:
        if (lots[place] < fraction or filled < wanted) and filled + sizes[place] <= 2 * wanted:
            held.add(place)
            filled += sizes[place]
    if len(lots) > 1 and not held:
        held = {min(lots, key=lambda place: (sizes[place], lots[place]))}
    tuning = free & table["place"].isin(held).to_numpy()
    return free & ~tuning, tuning


def draw(place: str, seed: int) -> float:
    """The lot of a place, 0..1, whatever other places there are."""
    return int(hashlib.sha256(f"{seed} {place}".encode()).hexdigest()[:13], 16) / 16**13


def folds(table: pd.DataFrame, k: int, column: str = "place", seed: int = 0) -> npt.NDArray[np.int64]:
    """The fold of each chip, 0..k-1, for cross-validation by whole places or whole values of another column.

    Groups go, the largest first, into the fold with the fewest chips, so folds are about even. Values that share a
    place go together.

    Raises
    ------
    ConfigError
        No such column, or fewer groups than folds.
    """
    if column not in table:
        raise ConfigError(f"the chips have no column {column}" + nearest(column, [str(c) for c in table.columns]))
    group_of = _groups(table["place"].astype(str).tolist(), table[column].astype(str).tolist())
    sizes = Counter(group_of)
    if not 2 <= k <= len(sizes):
        most = f"give 2 to {len(sizes)}" if len(sizes) > 1 else "labels of more ground are needed"
        raise ConfigError(f"{k} folds cannot be made of {count(len(sizes), 'group')} by {column}; {most}")
    fold_of: dict[str, int] = {}
    filled = [0] * k
    for group in sorted(sizes, key=lambda group: (-sizes[group], draw(group, seed))):
        fold_of[group] = min(range(k), key=lambda fold: (filled[fold], fold))
        filled[fold_of[group]] += sizes[group]
    return np.array([fold_of[group] for group in group_of], np.int64)


def _groups(places: Sequence[str], values: Sequence[str]) -> list[str]:
    """For each chip the first of all values that are linked to its own by places they share."""
    place_codes, value_codes = (np.unique(labels, return_inverse=True)[1] for labels in (places, values))
    shape = (place_codes.max() + 1 + value_codes.max() + 1,) * 2
    links = coo_array((np.ones(len(values)), (place_codes, place_codes.max() + 1 + value_codes)), shape=shape)
    _, groups = connected_components(links, directed=False)
    own = groups[place_codes]
    first: dict[int, str] = {}
    for group, value in zip(own.tolist(), values, strict=True):
        first[group] = min(value, first.get(group, value))
    return [first[group] for group in own]
