"""Reads points and polygons of label files, and says at once what is wrong with them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
from pyproj import CRS as ProjCRS

from geodino.aoi_files import read_drawn
from geodino.errors import AOIError, ConfigError, InputError
from geodino.polygons import made_valid
from geodino.shipped import nearest
from geodino.training.labels import Area, Bools, Doubles, Features, Shapes

_POINTS = ("Point", "MultiPoint")
_POLYGONS = ("Polygon", "MultiPolygon")


@dataclass(frozen=True, eq=False)
class Vectors:
    """Features of one file: a geometry each, in a CRS, and their columns."""

    path: str
    crs: ProjCRS
    frame: gpd.GeoDataFrame

    @property
    def shapes(self) -> Shapes:
        return np.asarray(self.frame.geometry.to_numpy())

    @property
    def columns(self) -> list[str]:
        return [str(name) for name in self.frame.columns if name != self.frame.geometry.name]

    def column(self, name: str) -> pd.Series:
        """A column; ConfigError where there is none, with the nearest."""
        if name not in self.columns:
            raise ConfigError(f"labels {self.path} have no column {name}" + nearest(name, self.columns))
        return self.frame[name]

    def numbers(self, name: str) -> Doubles:
        """A column as numbers, NaN where it is empty; InputError where it holds something else."""
        try:
            return np.asarray(pd.to_numeric(self.column(name)), np.float64)
        except (ValueError, TypeError) as error:
            raise InputError(f"labels {self.path}: column {name} holds no numbers: {error}") from error

    def where(self, keep: Sequence[bool] | Bools) -> Vectors:
        return replace(self, frame=self.frame[np.asarray(keep, bool)].reset_index(drop=True))


def read_vectors(path: str, layer: str | None, dropped: Counter[str]) -> Vectors:
    """The features of a file that have a geometry; the others are counted.

    Raises
    ------
    InputError
        No such file or layer, no CRS, nothing in it, coordinates that the CRS cannot have.
    """
    try:
        drawn = read_drawn(Path(path), layer)
    except AOIError as error:
        # The reader of AOIs is used for its care with CRSs and damaged files; only the name of the option differs.
        raise InputError(f"labels {str(error).replace('--aoi-layer', '--label-layer')}") from error
    crs = drawn.declared or drawn.implied
    if crs is None:
        raise InputError(f"labels {path} have no CRS; set it: ogr2ogr -a_srs EPSG:... NEW {path}")
    bounds = shapely.bounds(np.asarray(drawn.frame.geometry.to_numpy()))
    sound = np.isfinite(bounds).all(axis=1)
    dropped["label without a geometry"] += int((~sound).sum())
    found = Vectors(path, crs, drawn.frame).where(sound)
    if not len(found.frame):
        raise InputError(f"labels {path} are empty: no feature has a geometry")
    far = np.abs(bounds[sound]).max(axis=0)
    if crs.is_geographic and (far > (360, 90, 360, 90)).any():
        raise InputError(
            f"labels {path}: coordinates up to {far.max():,.1f} are no degrees of longitude and latitude, as their CRS "
            f"{crs.name} says; give them their own CRS"
        )
    return found


def only_points(vectors: Vectors, what: str) -> Vectors:
    """The points of a file one by one; InputError where it holds anything else."""
    _refuse_others(vectors, _POINTS, f"{what} are points; give each a point, such as its centroid in QGIS")
    return replace(vectors, frame=vectors.frame.explode(ignore_index=True))


def only_polygons(vectors: Vectors, what: str) -> Vectors:
    """The polygons of a file; InputError where it holds anything else."""
    _refuse_others(vectors, _POLYGONS, f"{what} are polygons")
    return _mended(vectors)


def plots(vectors: Vectors) -> Vectors:
    """Points, one by one, or polygons; InputError for lines and for both in one file."""
    kinds = set(vectors.frame.geom_type)
    if kinds <= set(_POLYGONS):
        return _mended(vectors)
    return only_points(vectors, "plots are polygons, or all of them")


def _mended(vectors: Vectors) -> Vectors:
    """Polygons whose outlines do not cross themselves."""
    shapes = vectors.shapes
    broken = ~shapely.is_valid(shapes)
    shapes[broken] = [made_valid(shape) for shape in shapes[broken]]
    return replace(vectors, frame=vectors.frame.set_geometry(list(shapes)))


def _refuse_others(vectors: Vectors, wanted: Sequence[str], rule: str) -> None:
    kinds = Counter(vectors.frame.geom_type)
    others = [(number, kind) for kind, number in kinds.items() if kind not in wanted]
    if others:
        number, kind = max(others)
        raise InputError(f"labels {vectors.path} hold {number:,} of type {kind}, and {rule}")


def once(parts: Sequence[Vectors], columns: Sequence[str], dropped: Counter[str]) -> list[Vectors]:
    """The parts without features that repeat an earlier one: the same geometry, to a millimetre, and columns."""
    seen: set[tuple[object, ...]] = set()
    kept = []
    for part in parts:
        rounded = shapely.transform(part.shapes, lambda xy, d=8 if part.crs.is_geographic else 3: np.round(xy, d))
        values = [part.column(column).tolist() for column in columns]
        fresh, crs = [], str(part.crs)
        for key in zip(shapely.to_wkb(rounded).tolist(), *values, strict=True):
            fresh.append((crs, *key) not in seen)
            seen.add((crs, *key))
        dropped["duplicate label"] += fresh.count(False)
        kept.append(part.where(fresh))
    return kept


def features(parts: Sequence[Vectors], scene_column: str | None, named: frozenset[str] = frozenset()) -> Features:
    """The parts as one, each feature bound to the scene in a column, if one is given."""
    scene = None
    if scene_column is not None:
        scene = np.concatenate([part.column(scene_column).astype(str).to_numpy(object) for part in parts])
    return Features(tuple((part.crs, part.shapes) for part in parts), scene, named)


def read_area(path: str) -> Area:
    """The polygons within which labels are complete."""
    found = only_polygons(read_vectors(path, None, Counter()), "areas that are wholly labelled")
    return Area(found.crs, found.shapes)
