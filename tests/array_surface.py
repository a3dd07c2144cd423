"""A surface in memory, and fields of heights to try laws on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from odc.geo.crs import CRS

from geodino.grid import Grid, Window
from geodino.trees import Trees

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ArraySurface:
    """Bands of one shape, whose first cell is (`row`, `col`) of the lattice."""

    bands: Mapping[str, Floats]
    row: int = 0
    col: int = 0
    gsd: float = 1.0
    origin: tuple[float, float] = (0.0, 0.0)
    reads: list[Window] = field(default_factory=list)

    @property
    def grid(self) -> Grid:
        return Grid(CRS("EPSG:32610"), self.gsd)

    @property
    def extent(self) -> Window:
        return Window(self.row, self.col, *next(iter(self.bands.values())).shape)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.bands)

    def read(self, window: Window, names: Sequence[str]) -> Floats:
        self.reads.append(window)
        found = np.full((len(names), *window.shape), np.nan, np.float32)
        inside = window.intersection(self.extent)
        if not inside.empty:
            for values, name in zip(found, names, strict=True):
                values[inside.slices_in(window)] = self.bands[name][inside.slices_in(self.extent)]
        return found


def shapes(most: int) -> st.SearchStrategy[tuple[int, ...]]:
    return hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=most)


def stepped(most: int = 14) -> st.SearchStrategy[Floats]:
    """Fields of few heights, so that ties, plateaus and holes are common."""
    return hnp.arrays(np.float32, shapes(most), elements=st.sampled_from([0.0, 1.0, 2.0, 3.0, 5.0, 8.0, 12.0, np.nan]))


@st.composite
def hilly(draw: st.DrawFn, most: int = 30) -> Floats:
    """Fields of a few cones on low noise, rounded so that some cells tie, with some cells unknown."""
    shape = draw(shapes(most))
    numbers = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    down, right = np.indices(shape)
    height = numbers.uniform(0, 2, shape)
    for _ in range(draw(st.integers(1, 12))):
        top, left = numbers.uniform(0, shape[0]), numbers.uniform(0, shape[1])
        distance = np.hypot(down - top, right - left)
        height = np.maximum(height, numbers.uniform(3, 25) - numbers.uniform(0.5, 3) * distance)
    height = np.round(height / draw(st.sampled_from([0.01, 0.5]))) * 0.5
    height[numbers.random(shape) < draw(st.sampled_from([0.0, 0.03]))] = np.nan
    return height.astype(np.float32)


def cells(trees: Trees) -> list[tuple[int, int]]:
    return list(zip(trees.row.tolist(), trees.col.tolist(), strict=True))


def in_order(trees: Trees) -> Trees:
    """The same trees in reading order of their cells."""
    order = np.lexsort([trees.col, trees.row])
    columns = {name: values if values is None else values[order] for name, values in vars(trees).items()}
    return Trees(**columns)


def assert_same(found: Trees, wanted: Trees) -> None:
    """Equal to the last bit in every column, whatever their order."""
    found, wanted = in_order(found), in_order(wanted)
    for name, values in vars(wanted).items():
        if name != "crown":
            np.testing.assert_array_equal(getattr(found, name), values, err_msg=name)
    assert (found.crown is None) == (wanted.crown is None)
    if found.crown is not None and wanted.crown is not None:
        assert [crown.wkb for crown in found.crown] == [crown.wkb for crown in wanted.crown]
