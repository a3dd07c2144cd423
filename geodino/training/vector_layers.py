"""Layers of points and polygons: trees, footprints, class polygons, plots."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import shapely

from geodino.grid import Window
from geodino.training.chipset import UNKNOWN
from geodino.training.labels import Area, Burnt, Doubles, Features, Ints, around, owned, pixels_in, within_chip
from geodino.training.pairing import Cut, Frame, tiled


@dataclass(frozen=True, eq=False)
class TreeLayer:
    """Tree points, complete in `area`; without it in named scenes, or else in the rectangle around the points.

    Attributes
    ----------
    area
        Holds all points.
    """

    features: Features
    area: Area | None = None

    @property
    def count(self) -> int:
        return len(self.features)

    def names(self) -> frozenset[str]:
        return self.features.names()

    def bound(self, known: Mapping[str, str]) -> tuple[TreeLayer, int]:
        features, lost = self.features.bound(known)
        return replace(self, features=features), lost

    def boxes(self) -> Doubles:
        return self.features.boxes() if self.area is None else np.vstack([self.features.boxes(), self.area.boxes()])

    def windows(self, frame: Frame, size: int) -> tuple[Window, ...]:
        return tiled(self._complete(frame), frame.extent, size)

    def burn(self, cut: Cut) -> Burnt | None:
        """Trees, and where all of them are known.

        A chip without a tree counts only where an area or a name says that it was looked at.
        """
        rows, spots = self.features.points_in(cut.frame, cut.window)
        if self.area is not None:
            labelled = self.area.inside(cut)
        else:
            if not len(rows) and cut.frame.name not in self.names():
                return None
            labelled = np.zeros(cut.window.shape, bool)
            labelled[self._complete(cut.frame).intersection(cut.window).slices_in(cut.window)] = True
        points = within_chip(spots, cut)
        cols, lines = np.floor(points).astype(np.int64).T
        if self.area is not None:
            # A tree in the area may stand on a pixel whose centre is not.
            labelled[lines, cols] = True
        inside = labelled[lines, cols]
        return Burnt({"labelled": labelled, "points": points[inside]}, rows[inside])

    def _complete(self, frame: Frame) -> Window:
        if self.area is not None:
            return self.area.window(frame)
        if frame.name in self.names():
            return frame.extent
        return around(self.features.points_in(frame, frame.extent)[1], frame.extent)


@dataclass(frozen=True, eq=False)
class FootprintLayer:
    """Heights in circles: lidar footprints and field plots.

    Attributes
    ----------
    height, radius
        (M,) metres.
    """

    features: Features
    height: Doubles
    radius: Doubles

    @property
    def count(self) -> int:
        return len(self.features)

    def names(self) -> frozenset[str]:
        return self.features.names()

    def bound(self, known: Mapping[str, str]) -> tuple[FootprintLayer, int]:
        features, lost = self.features.bound(known)
        return replace(self, features=features), lost

    def boxes(self) -> Doubles:
        return self.features.boxes()

    def windows(self, frame: Frame, size: int) -> tuple[Window, ...]:
        rows, spots = self.features.points_in(frame, frame.extent)
        if not len(rows):
            return ()
        reach = math.ceil(float(self.radius[rows].max()) / frame.grid.gsd)
        area = around(spots, frame.extent).padded(reach).intersection(frame.extent)
        # So that each circle lies wholly in at least one chip.
        return tiled(area, frame.extent, size, overlap=min(2 * reach + 2, size - 1))

    def burn(self, cut: Cut) -> Burnt | None:
        """Footprints, each in one chip of a scene only; `cut_to_valid` marks their circles as labelled."""
        rows, spots = self.features.points_in(cut.frame, cut.window)
        mine = owned(spots, cut)
        rows, spots = rows[mine], spots[mine]
        if not len(rows):
            return None
        table = np.column_stack([spots, self.radius[rows] / cut.frame.grid.gsd, self.height[rows]])
        return Burnt({"labelled": np.zeros(cut.window.shape, bool), "footprints": within_chip(table, cut)}, rows)


@dataclass(frozen=True, eq=False)
class ClassPolygonLayer:
    """Polygons of a class each; what lies in none, or in two of different classes, is unknown.

    Attributes
    ----------
    value
        (M,) index of the class.
    """

    features: Features
    value: Ints

    @property
    def count(self) -> int:
        return len(self.features)

    def names(self) -> frozenset[str]:
        return self.features.names()

    def bound(self, known: Mapping[str, str]) -> tuple[ClassPolygonLayer, int]:
        features, lost = self.features.bound(known)
        return replace(self, features=features), lost

    def boxes(self) -> Doubles:
        return self.features.boxes()

    def windows(self, frame: Frame, size: int) -> tuple[Window, ...]:
        rows = self.features.shapes_over(frame, frame.extent)
        if not len(rows):
            return ()
        bounds = shapely.total_bounds(self.features.on(frame.crs)[rows])
        return tiled(frame.window_over(tuple(bounds.tolist())), frame.extent, size)

    def burn(self, cut: Cut) -> Burnt | None:
        """Classes of the pixels whose centres lie in polygons."""
        rows = self.features.shapes_over(cut.frame, cut.window)
        if not len(rows):
            return None
        classes = np.full(cut.window.shape, UNKNOWN, np.uint8)
        disputed = np.zeros(cut.window.shape, bool)
        used = []
        for row, shape in zip(rows.tolist(), self.features.on(cut.frame.crs)[rows], strict=True):
            inside = pixels_in(shape, cut)
            disputed |= inside & (classes != UNKNOWN) & (classes != self.value[row])
            classes[inside] = self.value[row]
            used += [row] if inside.any() else []
        classes[disputed] = UNKNOWN
        if (classes == UNKNOWN).all():
            return None
        return Burnt({"labelled": classes != UNKNOWN, "classes": classes}, np.array(used))


@dataclass(frozen=True, eq=False)
class PlotLayer:
    """Points or polygons with a label for the picture around them: one chip each, around the middle.

    Attributes
    ----------
    value
        (M,) index of the label.
    """

    features: Features
    value: Ints
    # Plots by scene and window.
    _cuts: dict[str, dict[Window, list[int]]] = field(default_factory=dict, repr=False)

    @property
    def count(self) -> int:
        return len(self.features)

    def names(self) -> frozenset[str]:
        return self.features.names()

    def bound(self, known: Mapping[str, str]) -> tuple[PlotLayer, int]:
        features, lost = self.features.bound(known)
        return PlotLayer(features, self.value), lost

    def boxes(self) -> Doubles:
        return self.features.boxes()

    def windows(self, frame: Frame, size: int) -> tuple[Window, ...]:
        rows, spots = self.features.points_in(frame, frame.extent)
        found = self._cuts[frame.name] = {}
        for row, spot in zip(rows.tolist(), spots, strict=True):
            found.setdefault(_centred(frame, spot, size), []).append(row)
        return tuple(found)

    def burn(self, cut: Cut) -> Burnt | None:
        """The label of the plot in a chip's middle, and the plot's pixels (of a point all); none where two disagree."""
        rows = np.array(self._cuts[cut.frame.name][cut.window])
        if len(set(self.value[rows].tolist())) != 1:
            nothing = {"labelled": np.zeros(cut.window.shape, bool), "labels": self.value[rows[0]]}
            return Burnt(nothing, rows[:0], {"label that another on the same chip contradicts": rows})
        shapes = self.features.on(cut.frame.crs)[rows]
        labelled = np.zeros(cut.window.shape, bool)
        for shape in shapes[shapely.get_dimensions(shapes) == 2]:
            labelled |= pixels_in(shape, cut)
        if not labelled.any():
            # A point, or a plot that is smaller than a pixel.
            labelled[:] = True
        return Burnt({"labelled": labelled, "labels": self.value[rows[0]]}, rows)


def _centred(frame: Frame, spot: Doubles, size: int) -> Window:
    """The chip around a spot that counts from the extent's corner; within the extent where that is large enough."""
    col, row = np.round(spot - size / 2).astype(int).tolist()
    (window,) = tiled(Window(frame.extent.row + row, frame.extent.col + col, size, size), frame.extent, size)
    return window
