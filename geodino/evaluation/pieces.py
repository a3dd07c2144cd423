"""A map cut into squares, each with the labels that lie on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import shapely
from affine import Affine
from odc.geo.crs import CRS

from geodino.errors import InputError
from geodino.evaluation.scatter import Scatter
from geodino.evaluation.sums import Floats
from geodino.evaluation.tasks import Settings
from geodino.grid import Grid, Window, choose_crs
from geodino.polygons import WGS84
from geodino.radiometry import Radiometry
from geodino.sources.scene import Band, Scene, ground_gsd
from geodino.training.label_files import Labels
from geodino.training.label_rasters import LabelRaster
from geodino.training.labels import Burnt
from geodino.training.pairing import Cut, Frame, moved, outlines
from geodino.training.splits import places
from geodino.training.vector_files import Vectors

PIECE_PX = 250
"""Pixels: a map is judged in squares of this side, hung on its north-west corner; five blocks of block R2."""

TREE_GSD_M = 0.6
"""Metres a pixel of the squares in which a map of points is judged: they are as large as a training chip."""


@dataclass(frozen=True, eq=False)
class MapJob:
    """What is compared, and what is counted on the way.

    Attributes
    ----------
    cuts
        The pieces, each with the context around it that its labels need.
    core
        The same pieces without context: what counts.
    met
        Numbers of the labels that lie on pieces; filled by `burnt`.
    """

    path: Path
    known: Labels
    frame: Frame
    cuts: tuple[Cut, ...]
    core: tuple[Window, ...]
    settings: Settings
    met: set[int] = field(default_factory=set)
    dropped: Counter[str] = field(default_factory=Counter)
    scatter: Scatter = field(default_factory=Scatter.empty)

    def burnt(self) -> Iterator[tuple[int, Cut, Burnt]]:
        """The pieces that have labels, by number."""
        for number, cut in enumerate(self.cuts):
            burnt = self.known.layer.burn(cut)
            if burnt is not None:
                self.met.update(burnt.used.tolist())
                yield number, cut, burnt

    def counted(self, number: int) -> npt.NDArray[np.bool_]:
        """Which pixels of a piece with its context are its own, on the map."""
        cut = self.cuts[number]
        found = np.zeros(cut.window.shape, np.bool_)
        found[self.core[number].intersection(self.frame.extent).slices_in(cut.window)] = True
        return found


def frame_of(path: Path, raster: LabelRaster) -> Frame:
    t = raster.transform
    if t.b or t.d or t.a <= 0 or t.e >= 0:
        raise InputError(f"map {path} is not north up: gdalwarp {path} NEW.tif")
    gsd = ground_gsd(raster.crs, t, raster.shape)
    return Frame(
        path.stem, _scene(path, raster.crs, t, raster.shape, gsd), Grid(raster.crs, gsd), raster.crs, t,
        Window(0, 0, *raster.shape),
    )  # fmt: skip


def _scene(path: Path, crs: CRS, transform: Affine, shape: tuple[int, int], gsd: float) -> Scene:
    """The map as the scene that its labels are laid on; its bands are never read as imagery."""
    band = Band(str(path), 1)
    return Scene(
        path.stem, (band, band, band), crs, transform, shape, gsd, "float32",
        Radiometry((1.0, 1.0, 1.0), (0.0, 0.0, 0.0), "a map"),
    )  # fmt: skip


def frame_of_trees(path: Path, known: Labels, vectors: Vectors) -> tuple[Frame, Floats]:
    """A grid over predicted and labelled trees, and the predicted ones in its pixels."""
    corners = known.layer.boxes()[:, :2]
    lon, lat = ((corners.min(axis=0) + corners.max(axis=0)) / 2).tolist()
    grid = Grid(choose_crs(lon, lat, CRS(vectors.crs.to_wkt())), TREE_GSD_M)
    said = moved(shapely.get_coordinates(vectors.shapes), vectors.crs, grid.crs)
    spread = np.concatenate([said, moved(corners, WGS84, grid.crs)])
    spread = spread[np.isfinite(spread).all(axis=1)]
    extent = grid.window_over((*spread.min(axis=0).tolist(), *spread.max(axis=0).tolist())).padded(PIECE_PX)
    transform = Affine(TREE_GSD_M, 0.0, 0.0, 0.0, -TREE_GSD_M, 0.0)
    scene = _scene(path, grid.crs, transform, extent.shape, TREE_GSD_M)
    frame = Frame(path.stem, scene, grid, grid.crs, transform, extent)
    return frame, frame.pixels(said)


def job_of(path: Path, known: Labels, frame: Frame, context: int, settings: Settings) -> MapJob:
    """The map's squares that may hold labels, each with `context` pixels around it."""
    extent = frame.extent
    found = known.layer.windows(frame, PIECE_PX)
    if not found:
        raise InputError(f"no label lies on {path}: check the CRS of both")
    top, left = min(w.row for w in found), min(w.col for w in found)
    bottom, right = max(w.row_stop for w in found), max(w.col_stop for w in found)
    over = Window(top, left, bottom - top, right - left).intersection(extent)
    rows = range((over.row - extent.row) // PIECE_PX, -(-(over.row_stop - extent.row) // PIECE_PX))
    cols = range((over.col - extent.col) // PIECE_PX, -(-(over.col_stop - extent.col) // PIECE_PX))

    def square(row: int, col: int) -> Window:
        return Window(extent.row + row * PIECE_PX, extent.col + col * PIECE_PX, PIECE_PX, PIECE_PX)

    def cut(row: int, col: int) -> Cut:
        # A footprint belongs to the square whose centre is nearest: one of these, if not of others too.
        beside = (
            square(r, c) for r in range(row - 1, row + 2) if r in rows for c in range(col - 1, col + 2) if c in cols
        )
        return Cut(frame, square(row, col).padded(context), tuple(window.padded(context) for window in beside))

    places = [(row, col) for row in rows for col in cols]
    core = tuple(square(*place) for place in places)
    return MapJob(path, known, frame, tuple(cut(*place) for place in places), core, settings)


def place_of(job: MapJob, numbers: npt.NDArray[np.intp]) -> npt.NDArray[np.str_]:
    """The places of pieces; those that lie side by side are one place."""
    pieces, of_unit = np.unique(numbers, return_inverse=True)
    cuts = [Cut(job.frame, job.core[number], job.core) for number in pieces.tolist()]
    return np.array(places(outlines(cuts)), np.str_)[of_unit]
