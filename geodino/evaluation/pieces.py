"""A map cut into pieces, each with the labels that lie on it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
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
"""Pixels: a raster is judged in squares of this side, hung on its north-west corner; five blocks of block R2. The
ground of tree points is divided into equal pieces with sides as near to it as may be: trees are counted by piece, and
a sliver would count as much as a square."""

MOST_PIECES = 200_000
"""Of one evaluation; each takes some kilobytes, and so many squares at 0.6 m are 4,500 km2."""

TREE_GSD_M = 0.6
"""Metres a pixel of the pieces in which a map of points is judged: they are as large as a training chip."""


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

    known: Labels
    frame: Frame
    cuts: tuple[Cut, ...]
    core: tuple[Window, ...]
    settings: Settings
    met: set[int] = field(default_factory=set)
    dropped: Counter[str] = field(default_factory=Counter)
    scatter: Scatter = field(default_factory=Scatter.empty)

    @property
    def unit(self) -> str:
        """What the pieces are: "squares of 250 px", "rectangles of 256 x 300 px"."""
        height, width = self.core[0].shape
        return f"squares of {height} px" if height == width else f"rectangles of {height} x {width} px"

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
    """A grid over predicted trees and labelled ground, and the predicted trees in its pixels."""
    corners = known.layer.boxes().reshape(-1, 2)
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


def lattice(start: int, stop: int, first: int) -> range:
    """Where pieces of `PIECE_PX` begin that hang on `first` and meet a span."""
    at = first + (start - first) // PIECE_PX * PIECE_PX
    return range(at, stop, PIECE_PX)


def evenly(start: int, stop: int, first: int) -> range:
    """Where equal pieces begin that divide a span, as near to `PIECE_PX` as may be; the last may reach just beyond."""
    return range(start, stop, math.ceil((stop - start) / max(1, round((stop - start) / PIECE_PX))))


def job_of(
    known: Labels,
    frame: Frame,
    context: int,
    settings: Settings,
    starts: Callable[[int, int, int], range] = lattice,
) -> MapJob:
    """The map's pieces that may hold labels, each with `context` pixels around it.

    Parameters
    ----------
    starts
        From a span's start and stop and the map's first pixel to where pieces begin: `lattice` or `evenly`.

    Raises
    ------
    InputError
        No label lies on the map, or they span more than `MOST_PIECES`.
    """
    extent = frame.extent
    found = known.layer.windows(frame, PIECE_PX)
    if not found:
        raise InputError(f"no label lies on {frame.scene.bands[0].href}: check the CRS of both")
    top, left = min(w.row for w in found), min(w.col for w in found)
    bottom, right = max(w.row_stop for w in found), max(w.col_stop for w in found)
    over = Window(top, left, bottom - top, right - left).intersection(extent)
    rows = starts(over.row, over.row_stop, extent.row)
    cols = starts(over.col, over.col_stop, extent.col)
    if len(rows) * len(cols) > MOST_PIECES:
        height, width = (round(side * frame.grid.gsd / 1000) for side in over.shape)
        raise InputError(
            f"the labels span {width} x {height} km of {frame.scene.bands[0].href}, {len(rows) * len(cols):,} pieces "
            f"of about {PIECE_PX} px, and at most {MOST_PIECES:,} are judged in one go: give the labels of the mapped "
            "ground alone, or of a part of it"
        )

    def piece(row: int, col: int) -> Window:
        return Window(row, col, rows.step, cols.step)

    def cut(row: int, col: int) -> Cut:
        # A footprint belongs to the piece whose centre is nearest: one of these, if not of others too.
        beside = (
            piece(r, c)
            for r in range(row - rows.step, row + rows.step + 1, rows.step)
            if r in rows
            for c in range(col - cols.step, col + cols.step + 1, cols.step)
            if c in cols
        )
        return Cut(frame, piece(row, col).padded(context), tuple(window.padded(context) for window in beside))

    corners = [(row, col) for row in rows for col in cols]
    core = tuple(piece(*corner) for corner in corners)
    return MapJob(known, frame, tuple(cut(*corner) for corner in corners), core, settings)


def place_of(job: MapJob, numbers: npt.NDArray[np.intp]) -> npt.NDArray[np.str_]:
    """The places of pieces; those that lie side by side are one place."""
    pieces, of_unit = np.unique(numbers, return_inverse=True)
    cuts = [Cut(job.frame, job.core[number], job.core) for number in pieces.tolist()]
    return np.array(places(outlines(cuts)), np.str_)[of_unit]
