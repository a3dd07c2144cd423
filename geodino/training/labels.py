"""Label layers: what a label file says of the ground, and how it comes onto the pixels of a chip."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt
import shapely
from odc.geo.crs import CRS
from pyproj import CRS as ProjCRS
from rasterio.features import rasterize

from geodino.grid import Window
from geodino.polygons import WGS84
from geodino.training.chipset import Floats
from geodino.training.pairing import Cut, Frame, moved, tiled, window_between

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Burnt:
    """What a layer says of one chip.

    Attributes
    ----------
    arrays
        By name in chipset.ARRAYS or RAGGED; `labelled` always.
    used
        Numbers of the labels that are in it, in the order of the rows of `points` or `footprints` where it has these.
    """

    arrays: Mapping[str, npt.NDArray[np.generic]]
    used: Ints


class Layer(Protocol):
    """Labels of one kind, whatever files they came from."""

    @property
    def count(self) -> int:
        """How many labels it holds."""
        ...

    def boxes(self) -> Doubles:
        """(M, 4) west, south, east, north around the labels, WGS84 degrees."""
        ...

    def names(self) -> frozenset[str]:
        """The scenes that are labelled by name; empty where labels belong to every scene over them."""
        ...

    def bound(self, known: Mapping[str, str]) -> tuple[Layer, int]:
        """The layer with the scenes' own names for those in its files, and how many labels name no scene."""
        ...

    def windows(self, frame: Frame, size: int) -> tuple[Window, ...]:
        """The chips of a scene that may hold labels; none where it has no label."""
        ...

    def burn(self, cut: Cut) -> Burnt | None:
        """The labels in a chip's pixels; None where there are none."""
        ...


@dataclass(frozen=True, eq=False)
class Places:
    """Points of one or several files, with the scene each belongs to.

    Attributes
    ----------
    parts
        The files: CRS, (M, 2) x, y.
    scene
        (M,) names over all parts, as in the imagery; None where each point belongs to every scene over it.
    named
        Scenes that are labelled whether or not a point lies in them.
    """

    parts: tuple[tuple[ProjCRS, Doubles], ...]
    scene: npt.NDArray[np.object_] | None = None
    named: frozenset[str] = frozenset()
    # Coordinates by CRS, and points by scene: looked up for each of thousands of scenes.
    _moved: dict[str, Doubles] = field(default_factory=dict, repr=False)
    _rows: dict[str, Ints] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return sum(len(xy) for _, xy in self.parts)

    def bound(self, known: Mapping[str, str]) -> tuple[Places, int]:
        """With the scenes' own names, and how many points are of none."""
        named = frozenset(known[name] for name in self.named if name in known)
        if self.scene is None:
            return replace(self, named=named, _moved={}, _rows={}), 0
        scene = np.array([known.get(name, "") for name in self.scene], object)
        return replace(self, scene=scene, named=named, _moved={}, _rows={}), int((scene == "").sum())

    def names(self) -> frozenset[str]:
        """The scenes that are labelled by name."""
        return self.named | (frozenset() if self.scene is None else frozenset(self.scene.tolist()))

    def xy(self, crs: CRS | ProjCRS) -> Doubles:
        key = str(crs)
        if key not in self._moved:
            parts = [moved(xy, source, crs) for source, xy in self.parts]
            self._moved[key] = np.concatenate(parts) if parts else np.zeros((0, 2))
        return self._moved[key]

    def of(self, frame: Frame) -> Ints:
        """Numbers of the points that belong to a scene, wherever they lie."""
        if self.scene is None:
            return np.arange(len(self))
        if not self._rows:
            order = self.scene.argsort(kind="stable")
            names, starts = np.unique(self.scene[order], return_index=True)
            self._rows.update(zip(names.tolist(), np.split(order, starts[1:]), strict=True))
        return self._rows.get(frame.name, np.zeros(0, np.int64))

    def within(self, frame: Frame, window: Window) -> tuple[Ints, Doubles]:
        """Numbers of the points of a scene in a window (half-open), and their (x, y) in its pixels."""
        rows = self.of(frame)
        spots = frame.pixels(self.xy(frame.crs)[rows]) - (window.col, window.row)
        inside = ((spots >= 0) & (spots < (window.width, window.height))).all(axis=1)
        return rows[inside], spots[inside]

    def boxes(self) -> Doubles:
        lonlat = self.xy(WGS84)
        return np.column_stack([lonlat, lonlat])


@dataclass(frozen=True, eq=False)
class Area:
    """Polygons within which every label is known to be drawn."""

    crs: ProjCRS
    shapes: npt.NDArray[np.object_]

    def inside(self, cut: Cut) -> Bools:
        """Which pixel centres of a chip lie in it."""
        return burnt_mask(self.on(cut.frame), cut)

    def on(self, frame: Frame) -> npt.NDArray[np.object_]:
        return np.asarray(shapely.transform(self.shapes, lambda xy: moved(xy, self.crs, frame.crs)))


@dataclass(frozen=True, eq=False)
class TreeLayer:
    """Tree points, complete in `area`; without it in named scenes, or else in the rectangle around the points."""

    places: Places
    area: Area | None = None

    @property
    def count(self) -> int:
        return len(self.places)

    def names(self) -> frozenset[str]:
        return self.places.names()

    def bound(self, known: Mapping[str, str]) -> tuple[TreeLayer, int]:
        places, lost = self.places.bound(known)
        return replace(self, places=places), lost

    def boxes(self) -> Doubles:
        return self.places.boxes()

    def windows(self, frame: Frame, size: int) -> tuple[Window, ...]:
        return tiled(self._known(frame), frame.extent, size)

    def burn(self, cut: Cut) -> Burnt | None:
        rows, spots = self.places.within(cut.frame, cut.window)
        if not len(rows) and self.area is None and cut.frame.name not in self.names():
            # Nobody said that there are no trees here.
            return None
        if self.area is not None:
            labelled = self.area.inside(cut)
        else:
            labelled = np.zeros(cut.window.shape, bool)
            known = self._known(cut.frame).intersection(cut.window)
            labelled[known.slices_in(cut.window)] = True
        inside = labelled[pixel_of(spots, 1), pixel_of(spots, 0)]
        return Burnt({"labelled": labelled, "points": within_chip(spots[inside], cut)}, rows[inside])

    def _known(self, frame: Frame) -> Window:
        if self.area is not None:
            return frame.window_over(tuple(shapely.total_bounds(self.area.on(frame)).tolist()))
        if frame.name in self.names():
            return frame.extent
        return around(self.places.within(frame, frame.extent)[1], frame.extent)


@dataclass(frozen=True, eq=False)
class FootprintLayer:
    """Heights in circles: lidar footprints and field plots.

    Attributes
    ----------
    height, radius
        (M,) metres.
    """

    places: Places
    height: Doubles
    radius: Doubles

    @property
    def count(self) -> int:
        return len(self.places)

    def names(self) -> frozenset[str]:
        return self.places.names()

    def bound(self, known: Mapping[str, str]) -> tuple[FootprintLayer, int]:
        places, lost = self.places.bound(known)
        return replace(self, places=places), lost

    def boxes(self) -> Doubles:
        return self.places.boxes()

    def windows(self, frame: Frame, size: int) -> tuple[Window, ...]:
        rows, spots = self.places.within(frame, frame.extent)
        if not len(rows):
            return ()
        reach = float(self.radius[rows].max()) / frame.grid.gsd
        area = around(spots, frame.extent).padded(int(np.ceil(reach))).intersection(frame.extent)
        # So that each circle lies wholly in at least one chip.
        overlap = min(2 * int(np.ceil(reach)) + 2, size - 1)
        return tiled(area, frame.extent, size, overlap)

    def burn(self, cut: Cut) -> Burnt | None:
        rows, spots = self.places.within(cut.frame, cut.window)
        mine = owned(spots, cut)
        rows, spots = rows[mine], spots[mine]
        if not len(rows):
            return None
        table = np.column_stack([spots, self.radius[rows] / cut.frame.grid.gsd, self.height[rows]])
        # `cut_to_valid` marks the circles, as only those that lie wholly on imagery count.
        return Burnt({"labelled": np.zeros(cut.window.shape, bool), "footprints": within_chip(table, cut)}, rows)


def within_chip(table: Doubles, cut: Cut) -> Floats:
    """Rows of x, y and more in float32, whose rounding may not move a point over the chip's edge."""
    narrow = table.astype(np.float32)
    limit = np.nextafter(np.array([cut.window.width, cut.window.height], np.float32), np.float32(0))
    narrow[:, :2] = np.minimum(narrow[:, :2], limit)
    return narrow


def owned(spots: Doubles, cut: Cut) -> Bools:
    """Which spots are this chip's among its siblings: the chip whose centre is nearest, so each is in one only.

    Nearest along the longer axis; of squares of one size it is that which holds most around the spot.
    """
    corners = np.array([(other.col - cut.window.col, other.row - cut.window.row) for other in cut.siblings])
    centres = corners + np.array([cut.window.width, cut.window.height]) / 2
    distance = np.abs(spots[:, None] - centres[None]).max(axis=2)
    mine: Bools = distance.argmin(axis=1) == cut.siblings.index(cut.window)
    return mine


def circle_of(x: float, y: float, radius: float) -> tuple[tuple[int, int], Bools]:
    """The pixels whose centres lie in a circle, as (row, col) of the corner and a mask; at least the one at its centre.

    All in pixels.
    """
    window = window_between(y - radius, x - radius, y + radius, x + radius)
    rows = np.arange(window.row, window.row_stop)[:, None] + 0.5
    cols = np.arange(window.col, window.col_stop)[None] + 0.5
    mask: Bools = (rows - y) ** 2 + (cols - x) ** 2 <= radius**2
    mask[int(np.floor(y)) - window.row, int(np.floor(x)) - window.col] = True
    return (window.row, window.col), mask


def cut_to_valid(burnt: Burnt, valid: Bools) -> Burnt | None:
    """What is left of a chip's labels where there is imagery; None where nothing is."""
    labelled = np.asarray(burnt.arrays["labelled"], bool) & valid
    arrays = dict(burnt.arrays)
    used = burnt.used
    if "points" in arrays:
        spots = arrays["points"]
        keep = valid[pixel_of(spots, 1), pixel_of(spots, 0)]
        arrays["points"], used = spots[keep], used[keep]
    if "footprints" in arrays:
        table = np.asarray(arrays["footprints"], np.float64)
        keep = np.array([_whole(valid, *row[:3]) for row in table.tolist()], bool)
        arrays["footprints"], used = arrays["footprints"][keep], used[keep]
        labelled = _circles(table[keep], valid.shape)
    if "heights" in arrays:
        arrays["heights"] = np.where(labelled, arrays["heights"], np.float32(np.nan))
    if "classes" in arrays:
        arrays["classes"] = np.where(labelled, arrays["classes"], np.uint8(255))
    if not labelled.any():
        return None
    return replace(burnt, arrays={**arrays, "labelled": labelled}, used=used)


def _circles(table: Doubles, shape: tuple[int, ...]) -> Bools:
    """The pixels of circles that lie wholly in a chip."""
    labelled = np.zeros(shape, bool)
    for x, y, radius, _ in table.tolist():
        (top, left), circle = circle_of(x, y, radius)
        labelled[top : top + circle.shape[0], left : left + circle.shape[1]] |= circle
    return labelled


def _whole(valid: Bools, x: float, y: float, radius: float) -> bool:
    (top, left), circle = circle_of(x, y, radius)
    if top < 0 or left < 0 or top + circle.shape[0] > valid.shape[0] or left + circle.shape[1] > valid.shape[1]:
        return False
    return bool(valid[top : top + circle.shape[0], left : left + circle.shape[1]][circle].all())


def pixel_of(spots: npt.NDArray[np.generic], axis: int) -> Ints:
    """The pixel, along an axis (0 x, 1 y), that each spot lies in."""
    return np.floor(np.asarray(spots[:, axis], np.float64)).astype(np.int64)


def around(spots: Doubles, extent: Window) -> Window:
    """The pixels of the rectangle around spots that count from the corner of `extent`."""
    if not len(spots):
        return Window(extent.row, extent.col, 0, 0)
    (left, top), (right, bottom) = np.floor(spots.min(axis=0)), np.floor(spots.max(axis=0))
    return Window(extent.row + int(top), extent.col + int(left), int(bottom - top) + 1, int(right - left) + 1)


def burnt_mask(shapes: Sequence[shapely.Geometry] | npt.NDArray[np.object_], cut: Cut) -> Bools:
    """Which pixel centres of a chip lie in any of the shapes, which are in the frame's CRS."""
    near = [shape for shape in shapes if not shape.is_empty]
    if not near:
        return np.zeros(cut.window.shape, bool)
    burnt = rasterize(near, out_shape=cut.window.shape, transform=cut.frame.transform_of(cut.window), dtype="uint8")
    return np.asarray(burnt, bool)
