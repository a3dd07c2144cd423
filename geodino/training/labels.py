"""What a layer of labels is, and how labels come onto a chip and are cut to its imagery."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt
import shapely
from odc.geo.crs import CRS
from pyproj import CRS as ProjCRS

from geodino.aoi import AOIMask
from geodino.grid import Window
from geodino.polygons import WGS84, densified
from geodino.training.chipset import UNKNOWN, Floats
from geodino.training.pairing import Cut, Frame, moved, window_between

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
Doubles = npt.NDArray[np.float64]
Shapes = npt.NDArray[np.object_]


@dataclass(frozen=True, eq=False)
class Burnt:
    """What a layer says of one chip.

    Attributes
    ----------
    arrays
        By name in chipset.ARRAYS or RAGGED; `labelled` always.
    used
        Numbers of the labels that are in it, in the order of the rows of `points` or `footprints` where it has these.
    left
        Numbers of the labels that lie here and cannot be used, by reason.
    """

    arrays: Mapping[str, npt.NDArray[np.generic]]
    used: Ints
    left: Mapping[str, Ints] = field(default_factory=dict)


class Layer(Protocol):
    """Labels of one kind, whatever files they came from. Read from several threads once `windows` was asked for."""

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
class Features:
    """Points or polygons of one or several files, with the scene each belongs to.

    Attributes
    ----------
    parts
        The files: CRS, (M,) geometries.
    scene
        (M,) names over all parts, as in the imagery; None where each belongs to every scene over it.
    named
        Scenes that are labelled whether or not a feature lies in them.
    """

    parts: tuple[tuple[ProjCRS, Shapes], ...]
    scene: Shapes | None = None
    named: frozenset[str] = frozenset()
    # Geometries and coordinates by CRS, and features by scene: asked for again for each of thousands of scenes.
    _shapes: dict[str, Shapes] = field(default_factory=dict, repr=False)
    _xy: dict[str, Doubles] = field(default_factory=dict, repr=False)
    _trees: dict[str, shapely.STRtree] = field(default_factory=dict, repr=False)
    _rows: dict[str, Ints] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return sum(len(shapes) for _, shapes in self.parts)

    def bound(self, known: Mapping[str, str]) -> tuple[Features, int]:
        """With the scenes' own names, and how many features are of none."""
        named = frozenset(known[name] for name in self.named if name in known)
        if self.scene is None:
            return replace(self, named=named), 0
        scene = np.array([known.get(name, "") for name in self.scene], object)
        return replace(self, scene=scene, named=named, _rows={}), int((scene == "").sum())

    def names(self) -> frozenset[str]:
        """The scenes that are labelled by name."""
        return self.named | (frozenset() if self.scene is None else frozenset(self.scene.tolist()))

    def on(self, crs: CRS | ProjCRS) -> Shapes:
        """The geometries in a CRS, edges true; not finite where PROJ cannot."""
        key = str(crs)
        if key not in self._shapes:
            self._shapes[key] = np.concatenate([placed(shapes, source, crs) for source, shapes in self.parts])
        return self._shapes[key]

    def xy(self, crs: CRS | ProjCRS) -> Doubles:
        """(M, 2) coordinates of points, or of polygons' centroids, in a CRS."""
        key = str(crs)
        if key not in self._xy:
            self._xy[key] = shapely.get_coordinates(shapely.centroid(self.on(crs)))
        return self._xy[key]

    def of(self, frame: Frame) -> Ints:
        """Numbers of the features that belong to a scene, wherever they lie."""
        if self.scene is None:
            return np.arange(len(self))
        if not self._rows:
            order = self.scene.argsort(kind="stable")
            names, starts = np.unique(self.scene[order], return_index=True)
            self._rows.update(zip(names.tolist(), np.split(order, starts[1:]), strict=True))
        return self._rows.get(frame.name, np.zeros(0, np.int64))

    def points_in(self, frame: Frame, window: Window) -> tuple[Ints, Doubles]:
        """Numbers of the points (or centroids) of a scene in a window (half-open), and their (x, y) in its pixels."""
        rows = self.of(frame)
        spots = frame.pixels(self.xy(frame.crs)[rows]) - (window.col, window.row)
        inside = ((spots >= 0) & (spots < (window.width, window.height))).all(axis=1)
        return rows[inside], spots[inside]

    def shapes_over(self, frame: Frame, window: Window) -> Ints:
        """Numbers, in order, of the geometries of a scene whose bounds meet a window."""
        key = str(frame.crs)
        if key not in self._trees:
            self._trees[key] = shapely.STRtree(self.on(frame.crs))
        met = np.sort(self._trees[key].query(shapely.box(*frame.bounds(window))))
        return np.asarray(met if self.scene is None else np.intersect1d(met, self.of(frame)))

    def boxes(self) -> Doubles:
        """(M, 4) bounds in WGS84 degrees."""
        return np.asarray(shapely.bounds(self.on(WGS84)))


def placed(shapes: Shapes, source: ProjCRS, target: CRS | ProjCRS) -> Shapes:
    """Geometries in another CRS, their edges as true as their corners."""
    edged = densified(shapes, source) if shapely.get_dimensions(shapes).max(initial=0) else shapes
    return np.asarray(shapely.transform(edged, lambda xy: moved(xy, source, target)))


@dataclass(frozen=True, eq=False)
class Area:
    """Polygons within which every label is known to be drawn."""

    crs: ProjCRS
    shapes: Shapes

    def window(self, frame: Frame) -> Window:
        """The pixels of a scene that meet its bounds; may be empty."""
        bounds = shapely.total_bounds(placed(self.shapes, self.crs, frame.crs))
        return frame.window_over(tuple(bounds.tolist())) if np.isfinite(bounds).all() else Window(0, 0, 0, 0)

    def holds(self, shapes: Shapes, crs: ProjCRS) -> Bools:
        """Which points of a CRS lie in it."""
        ground = shapely.union_all(placed(self.shapes, self.crs, crs))
        shapely.prepare(ground)
        return np.asarray(shapely.intersects(ground, shapes), bool)

    def boxes(self) -> Doubles:
        """(M, 4) bounds of its polygons in WGS84 degrees."""
        return np.asarray(shapely.bounds(placed(self.shapes, self.crs, WGS84)))

    def inside(self, cut: Cut) -> Bools:
        """Which pixel centres of a chip lie in it."""
        inside = np.zeros(cut.window.shape, bool)
        for shape in placed(self.shapes, self.crs, cut.frame.crs):
            inside |= pixels_in(shape, cut)
        return inside


def pixels_in(shape: shapely.Geometry, cut: Cut) -> Bools:
    """Which pixel centres of a chip lie in a polygon of the frame's CRS.

    By geodino's own mask and not by rasterio's, which in several threads warns of datasets that it makes for itself.
    """
    near = shapely.clip_by_rect(shape, *cut.frame.bounds(cut.window.padded(2)))
    if near.is_empty:
        return np.zeros(cut.window.shape, bool)
    gsd = cut.frame.grid.gsd
    return AOIMask(shapely.transform(near, lambda xy: cut.frame.pixels(xy) * (gsd, -gsd)), cut.frame.grid)(cut.window)


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


def around(spots: Doubles, extent: Window) -> Window:
    """The pixels of the rectangle around spots that count from the corner of `extent`; empty where there are none."""
    if not len(spots):
        return Window(extent.row, extent.col, 0, 0)
    (left, top), (right, bottom) = np.floor(spots.min(axis=0)), np.floor(spots.max(axis=0))
    return Window(extent.row + int(top), extent.col + int(left), int(bottom - top) + 1, int(right - left) + 1)


def circle_of(x: float, y: float, radius: float) -> tuple[Window, Bools]:
    """The pixels whose centres lie in a circle, and at least the one that holds its centre: a window and a mask.

    All in pixels.
    """
    window = window_between(y - radius, x - radius, y + radius, x + radius)
    rows = np.arange(window.row, window.row_stop)[:, None] + 0.5
    cols = np.arange(window.col, window.col_stop)[None] + 0.5
    mask: Bools = (rows - y) ** 2 + (cols - x) ** 2 <= radius**2
    mask[int(np.floor(y)) - window.row, int(np.floor(x)) - window.col] = True
    return window, mask


def cut_to_valid(burnt: Burnt, valid: Bools) -> Burnt | None:
    """What is left of a chip's labels where there is imagery; None where nothing is.

    Of footprints only those stay that lie wholly on imagery, as a height within a circle needs all of it; their
    circles are what is labelled.
    """
    labelled = np.asarray(burnt.arrays["labelled"], bool) & valid
    arrays, used = dict(burnt.arrays), burnt.used
    if "points" in arrays:
        cols, rows = np.floor(arrays["points"].astype(np.float64)).astype(np.int64).T
        keep = valid[rows, cols]
        arrays["points"], used = arrays["points"][keep], used[keep]
    if "footprints" in arrays:
        keep, labelled = _circles(arrays["footprints"].astype(np.float64), valid)
        arrays["footprints"], used = arrays["footprints"][keep], used[keep]
    if "heights" in arrays:
        arrays["heights"] = np.where(labelled, arrays["heights"], np.float32(np.nan))
    if "classes" in arrays:
        arrays["classes"] = np.where(labelled, arrays["classes"], np.uint8(UNKNOWN))
    if not labelled.any():
        return None
    return Burnt({**arrays, "labelled": labelled}, used)


def _circles(table: Doubles, valid: Bools) -> tuple[Bools, Bools]:
    """Which circles (rows of x, y, radius) lie wholly on valid pixels, and the pixels of those."""
    chip = Window(0, 0, *valid.shape)
    keep, labelled = np.zeros(len(table), bool), np.zeros(valid.shape, bool)
    for number, (x, y, radius) in enumerate(table[:, :3].tolist()):
        window, circle = circle_of(x, y, radius)
        if window.intersection(chip) == window and valid[window.slices_in(chip)][circle].all():
            keep[number] = True
            labelled[window.slices_in(chip)] |= circle
    return keep, labelled
