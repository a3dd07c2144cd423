"""Trees at random places, one a cell at the most, for tests of what is written of them."""

from __future__ import annotations

import datetime as dt
import math
from dataclasses import fields

import numpy as np
import shapely
from odc.geo.crs import CRS

from geodino.grid import Grid
from geodino.outputs.tree_table import SceneRow, TreeTable
from geodino.trees import Trees

GRID = Grid(CRS("EPSG:32610"), 0.6)
SCENES = (SceneRow("naip-2016", dt.date(2016, 7, 4)), SceneRow("undated", None))
TABLE = TreeTable(GRID, SCENES)

# The corner of the made trees: UTM 10N, some way north of the equator.
ROW, COL = -7_000_000, 900_000


def made_trees(count: int, seed: int = 0, *, crowns: bool = False, row: int = ROW) -> Trees:
    """Trees in reading order of their cells; about a tenth of heights unknown, half of them with crowns if any."""
    numbers = np.random.default_rng(seed)
    side = math.ceil(math.sqrt(3 * count))
    cells = np.sort(numbers.choice(side * side, count, replace=False))
    down, right = cells // max(side, 1) + row, cells % max(side, 1) + COL
    x = (right + 0.5 + numbers.uniform(-0.5, 0.5, count)) * GRID.gsd
    y = -(down + 0.5 + numbers.uniform(-0.5, 0.5, count)) * GRID.gsd
    height = numbers.gamma(3, 4, count).astype(np.float32)
    height[numbers.random(count) < 0.1] = np.nan
    score = numbers.random(count).astype(np.float32)
    scene = numbers.integers(0, len(SCENES) + 1, count).astype(np.uint16)
    unknown = np.full(count, np.nan, np.float32)
    area, diameter, crown = unknown.copy(), unknown.copy(), None
    if crowns:
        crown = np.full(count, None, dtype=object)
        for tree in range(0, count, 2):
            crown[tree] = shapely.box(x[tree] - 1, y[tree] - 2, x[tree] + 1, y[tree] + 2)
            area[tree], diameter[tree] = 8.0, 2 * math.sqrt(8 / math.pi)
    return Trees(x, y, down, right, score, height, unknown, scene, area, diameter, crown)


def cut(trees: Trees, size: int) -> list[Trees]:
    """The trees in batches of that size."""
    columns = {field.name: getattr(trees, field.name) for field in fields(trees)}
    return [
        Trees(**{name: None if values is None else values[first : first + size] for name, values in columns.items()})
        for first in range(0, len(trees), size)
    ]
