"""Scenes on the run's grid, each read by window from many threads through the one warp of its whole footprint.

A scene whose pixels lie on the grid is copied. Any other is warped by tiles that hang on its footprint, each once for
all threads, so that a pixel is the same whatever window asks. Nothing is opened before the first read.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from affine import Affine
from pyproj import CRS as ProjCRS
from pyproj import Transformer
from rasterio.io import MemoryFile
from rasterio.windows import Window as RasterWindow

from geodino.errors import ReadError
from geodino.grid import Grid, Window
from geodino.redaction import without_secrets
from geodino.sources.kept import Kept
from geodino.sources.pixels import Asked, PixelFiles, Planes
from geodino.sources.raster import GDAL_ERRORS, LOCAL_OPTIONS, causes
from geodino.sources.scene import Scene, ground_gsd
from geodino.sources.warp import ALPHA_VALID, TILE, Level, Warp, footprint_window, pick_overview, source_window

# Warped tiles that are kept: two rows of them over 20,000 px.
KEPT_BYTES = 128 * 2**20

# The document says where a patch lies; without any transform rasterio warns.
_ANYWHERE = Affine(1.0, 0.0, 1.0, 0.0, -1.0, 0.0)

Seen = tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]


class WarpedScenes:
    """The scenes of a mosaic, each as it lies on the grid.

    Parameters
    ----------
    scenes
        In mosaic order.
    grid
        The run's grid.
    resampling
        How pixels come onto the grid.
    files
        Where their pixels come from; whoever made it closes it.

    Attributes
    ----------
    windows
        The smallest window of the grid that holds each scene's footprint.
    """

    def __init__(self, scenes: Sequence[Scene], grid: Grid, resampling: str, files: PixelFiles) -> None:
        self.scenes, self.grid = tuple(scenes), grid
        self.windows = [footprint_window(scene, grid) for scene in self.scenes]
        self._resampling = resampling
        self._files = files
        self._warps: Kept[int, Warp] = Kept(len(self.scenes), lambda warp: 1)
        self._tiles: Kept[tuple[int, int, int], Seen] = Kept(KEPT_BYTES, lambda seen: seen[0].nbytes + seen[1].nbytes)
        self._local = threading.local()

    def read(self, number: int, part: Window) -> Seen:
        """Digital numbers (3, H, W) and validity (H, W) of a part of a scene's footprint.

        Raises
        ------
        ReadError
            Names the scene, its file, the part and the causes.
        """
        scene = self.scenes[number]
        try:
            warp = self._warps.get(number, partial(self._warp, number))
            if warp.shift is not None:
                return self._copied(scene, warp.level, part, warp.shift)
            return self._assembled(number, warp, part)
        except (ReadError, *GDAL_ERRORS) as error:
            why = str(error) if isinstance(error, ReadError) else causes(error)
            hrefs = ", ".join(dict.fromkeys(without_secrets(band.href) for band in scene.bands))
            west, south, east, north = self.grid.bounds(part)
            where = f"x {west:.0f} to {east:.0f}, y {south:.0f} to {north:.0f}"
            raise ReadError(f"scene {scene.id} ({hrefs}), {where}: {why}") from error

    def clear(self) -> None:
        """Let go of what is kept."""
        self._tiles.clear()

    def _warp(self, number: int) -> Warp:
        scene = self.scenes[number]
        return Warp.of(scene, choose_level(scene, self._files, self.grid.gsd), self.grid, self._resampling)

    def _copied(self, scene: Scene, level: Level, part: Window, shift: tuple[int, int]) -> Seen:
        """Pixels that lie on the grid already."""
        dn, valid = np.zeros((3, *part.shape), np.float32), np.zeros(part.shape, bool)
        here = Window(part.row - shift[0], part.col - shift[1], *part.shape)
        inside = here.intersection(Window(0, 0, *level.shape))
        if not inside.empty:
            rows, cols = inside.slices_in(here)
            values, mask = self._source(scene, level, inside)
            dn[:, rows, cols] = values[:3]
            valid[rows, cols] = _valid(values, mask, scene)
        return dn, valid

    def _assembled(self, number: int, warp: Warp, part: Window) -> Seen:
        dn, valid = np.zeros((3, *part.shape), np.float32), np.zeros(part.shape, bool)
        first_row, first_col = part.row - warp.window.row, part.col - warp.window.col
        for row in range(first_row // TILE, -(-(first_row + part.height) // TILE)):
            for col in range(first_col // TILE, -(-(first_col + part.width) // TILE)):
                tile = Window(row * TILE + warp.window.row, col * TILE + warp.window.col, TILE, TILE)
                tile = tile.intersection(warp.window)
                common = tile.intersection(part)
                if common.empty:
                    continue
                found, known = self._tiles.get((number, row, col), partial(self._tile, number, warp, tile))
                here, there = common.slices_in(part), common.slices_in(tile)
                dn[:, *here], valid[here] = found[:, *there], known[there]
        return dn, valid

    def _tile(self, number: int, warp: Warp, tile: Window) -> Seen:
        """A tile of the warp of a scene."""
        scene, level = self.scenes[number], warp.level
        source = source_window(scene, level, self.grid, tile, self._move(number))
        if source.empty:
            return np.zeros((3, *tile.shape), np.float32), np.zeros(tile.shape, bool)
        values, mask = self._source(scene, level, source)
        bands = values if mask is None else np.concatenate([values, mask[None].astype(values.dtype)])
        window = RasterWindow(tile.col - warp.window.col, tile.row - warp.window.row, tile.width, tile.height)
        height, width = source.shape
        with rasterio.Env(**LOCAL_OPTIONS), MemoryFile() as memory:
            with memory.open(
                driver="GTiff", height=height, width=width, count=len(bands), dtype=bands.dtype, transform=_ANYWHERE
            ) as patch:
                patch.write(bands)
            document = warp.document(memory.name, source, masked=mask is not None)
            with rasterio.open(document, driver="VRT", sharing=False) as raster:
                pixels: npt.NDArray[np.float32] = raster.read(window=window)
        dn, alpha = pixels[:3], pixels[3]
        return dn, (alpha >= ALPHA_VALID) & np.isfinite(dn).all(axis=0)

    def _source(self, scene: Scene, level: Level, window: Window) -> Planes:
        """Red, green, blue and alpha where the scene has it, as in its files."""
        href = scene.bands[0].href
        if all(band.href == href for band in scene.bands):
            bands = tuple(band.index for band in scene.bands) + ((scene.alpha.index,) if scene.alpha else ())
            return self._files.read(Asked(href, scene.sign, level.overview, bands), window)
        planes = [
            self._files.read(Asked(band.href, scene.sign, level.overview, (band.index,)), window)
            for band in scene.bands
        ]
        masks = [plane.mask for plane in planes if plane.mask is not None]
        mask = np.logical_and.reduce(masks) if masks else None
        return Planes(np.concatenate([plane.values for plane in planes]), mask)

    def _move(self, number: int) -> Transformer | None:
        """From the grid to a scene; a transformer belongs to its thread."""
        if self.scenes[number].crs == self.grid.crs:
            return None
        mine: dict[int, Transformer] = self._local.__dict__.setdefault("moves", {})
        if number not in mine:
            theirs = ProjCRS.from_user_input(str(self.scenes[number].crs))
            mine[number] = Transformer.from_crs(ProjCRS.from_user_input(str(self.grid.crs)), theirs, always_xy=True)
        return mine[number]


def choose_level(scene: Scene, files: PixelFiles, gsd: float) -> Level:
    """The coarsest of a scene's overviews that is not coarser than `gsd` metres, or the full raster."""
    full = Level(None, scene.transform, scene.shape)
    if gsd < 2 * scene.gsd * 0.99:
        return full
    found = [
        [
            Level(number, transform, shape)
            for number, (shape, transform) in enumerate(files.overviews(Asked(href, scene.sign, None, (1,))))
        ]
        for href in dict.fromkeys(band.href for band in scene.bands)
    ]
    # Where the bands lie in a file each, only what all of them have under the same number.
    levels = [same[0] for same in zip(*found, strict=False) if all(level == same[0] for level in same)]
    chosen = pick_overview(scene, [ground_gsd(scene.crs, level.transform, level.shape) for level in levels], gsd)
    return full if chosen is None else levels[chosen]


def _valid(values: npt.NDArray[np.generic], mask: npt.NDArray[np.bool_] | None, scene: Scene) -> npt.NDArray[np.bool_]:
    """Where pixels count, by the rules of the warp: not nodata in all three bands, alpha at least half, no NaN."""
    colours = values[:3]
    valid: npt.NDArray[np.bool_] = np.isfinite(colours).all(axis=0)
    if mask is not None:
        valid &= mask
    if scene.alpha is not None:
        valid &= values[3].astype(np.float32) * (255 / scene.alpha.full) >= ALPHA_VALID
    if scene.nodata is not None and not np.isnan(scene.nodata) and _fits(scene.nodata, values.dtype):
        valid &= ~(colours == np.asarray(scene.nodata).astype(values.dtype)).all(axis=0)
    return valid


def _fits(nodata: float, dtype: np.dtype[Any]) -> bool:
    """Whether a file's numbers can be its nodata at all: -9999 is none of uint8."""
    if dtype.kind == "f":
        return True
    limits = np.iinfo(dtype)
    return nodata.is_integer() and limits.min <= nodata <= limits.max
