"""The table of trees: what its columns are called, and a batch of trees as its rows."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import shapely

from geodino.grid import Grid
from geodino.outputs.geoparquet import GEOMETRY_FIELDS, counterclockwise, geometry_columns
from geodino.trees import Trees


@dataclass(frozen=True)
class Column:
    """A column: its name with the unit in it, its type, and what it says."""

    name: str
    type: pa.DataType
    description: str

    @property
    def field(self) -> pa.Field:
        """The description goes along as metadata of the field; only the id is never null."""
        return pa.field(
            self.name, self.type, nullable=self.name != "tree_id", metadata={"description": self.description}
        )


COLUMNS = (
    Column("tree_id", pa.string(), "easting_northing of the centre of the tree's cell, in the file's CRS"),
    Column("height_m", pa.float32(), "height above ground, metres"),
    Column("height_spread_m", pa.float32(), "standard deviation of the height as the model states it, metres"),
    Column("score", pa.float32(), "how sure the tree is, 0 to 1; null where trees were found on height"),
    Column("crown_area_m2", pa.float32(), "area of the crown, square metres"),
    Column("crown_diameter_m", pa.float32(), "diameter of the circle with the crown's area, metres"),
    Column("source_date", pa.date32(), "day of the scene that shows the tree; null where its Item knows a span only"),
    Column("scene", pa.string(), "id of the scene that shows the tree"),
)
"""Null is unknown in all of them. Points and crowns have the same columns; the geometry and its bbox come last."""

SCHEMA = pa.schema([*(column.field for column in COLUMNS), *GEOMETRY_FIELDS])


@dataclass(frozen=True)
class SceneRow:
    """A scene that trees may come from: its id, and the day it was taken, if that is known."""

    id: str
    date: dt.date | None


@dataclass(frozen=True)
class TreeTable:
    """Turns batches of trees into rows.

    Attributes
    ----------
    grid, origin
        The surface's cells and the (x, y) they hang on, from which ids are made.
    scenes
        Scene 1, 2 and so on, as `Trees.scene` counts them.
    """

    grid: Grid
    scenes: Sequence[SceneRow] = ()
    origin: tuple[float, float] = (0.0, 0.0)

    def points(self, trees: Trees) -> pa.Table:
        """One row a tree, where it stands.

        Raises
        ------
        ValueError
            A tree is of a scene that is not in the table, or stands nowhere.
        """
        if not (np.isfinite(trees.x).all() and np.isfinite(trees.y).all()):
            raise ValueError("a tree has no place: x and y must be finite")
        return self._rows(trees, shapely.points(trees.x, trees.y))

    def crowns(self, trees: Trees) -> pa.Table:
        """One row a tree that has a crown, with its polygon.

        Raises
        ------
        ValueError
            A tree is of a scene that is not in the table, or a crown is no polygon.
        """
        if trees.crown is None:
            return SCHEMA.empty_table()
        kept = np.flatnonzero([crown is not None for crown in trees.crown])
        shapes = trees.crown[kept]
        if (shapely.get_type_id(shapes) != shapely.GeometryType.POLYGON).any() or shapely.is_empty(shapes).any():
            raise ValueError("a crown is no polygon with an area")
        columns = {field.name: getattr(trees, field.name)[kept] for field in fields(trees)}
        return self._rows(replace(trees, **columns), counterclockwise(shapes))

    def _rows(self, trees: Trees, shapes: npt.NDArray[np.object_]) -> pa.Table:
        if len(trees) and trees.scene.max() > len(self.scenes):
            raise ValueError(f"scene {trees.scene.max()} is not one of the {len(self.scenes)} scenes of the table")
        number = pa.array(trees.scene)
        geometry, bbox = geometry_columns(shapes)
        columns = {
            "tree_id": pa.array(trees.tree_ids(self.grid, self.origin), pa.string()),
            "source_date": pa.array([None, *(scene.date for scene in self.scenes)], pa.date32()).take(number),
            "scene": pa.array([None, *(scene.id for scene in self.scenes)], pa.string()).take(number),
            "geometry": geometry,
            "bbox": bbox,
        }
        for name in ("height_m", "height_spread_m", "score", "crown_area_m2", "crown_diameter_m"):
            values = getattr(trees, name)
            columns[name] = pa.array(values, pa.float32(), mask=np.isnan(values))
        return pa.table([columns[name] for name in SCHEMA.names], schema=SCHEMA)
