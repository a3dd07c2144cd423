"""Masks on the run's grid: what hides the ground of a scene, read by window from many threads."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace

import numpy as np

from geodino.errors import SourceError
from geodino.grid import Grid, Window
from geodino.radiometry import PROFILES
from geodino.redaction import without_secrets
from geodino.sources.mask import Bools, MaskBand, MaskSpec, dilated
from geodino.sources.pixels import Asked, PixelFiles
from geodino.sources.scene import Band, Scene, horizontal_crs
from geodino.sources.warped import WarpedScenes

DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32")


def describe_mask(href: str, spec: MaskSpec, sign: str | None = None) -> MaskBand:
    """The mask in a file, as a source config describes it; reads the header.

    Parameters
    ----------
    href
        Path or URL, unsigned: of the asset that the config names, or of the picture itself.
    sign
        Name of the hook that signs hrefs when they are opened.

    Raises
    ------
    SourceError
        No such band, no CRS, or numbers that are no classes.
    ReadError
        It cannot be reached or decoded.
    """
    where = f"mask {without_secrets(href)}"
    with closing(PixelFiles()) as files, files.open(Asked(href, sign, None, (1,))) as raster:
        if max(spec.band) > raster.count:
            raise SourceError(f"{where}: band {max(spec.band)} must be between 1 and {raster.count}")
        if raster.crs is None or raster.transform.is_identity:
            raise SourceError(f"{where} has no CRS or no geotransform; set them with gdal_edit.py")
        dtype = raster.dtypes[spec.band[0] - 1]
        if dtype not in DTYPES:
            raise SourceError(f"{where} holds {dtype} numbers; one of {', '.join(DTYPES)} is needed")
        crs = horizontal_crs(raster.crs.to_wkt())
        return MaskBand(href, spec.band, spec.rule, crs, raster.transform, raster.shape, dtype, spec.dilate_m)


class Masks:
    """The masks of a mosaic's scenes, each as it lies on the grid; nothing is opened before the first read.

    Parameters
    ----------
    scenes
        In mosaic order, with and without masks.
    files
        Where their pixels come from; whoever made it closes it.
    """

    def __init__(self, scenes: Sequence[Scene], grid: Grid, files: PixelFiles) -> None:
        self._grid = grid
        with_masks = [number for number, scene in enumerate(scenes) if scene.mask is not None]
        self._place = {number: place for place, number in enumerate(with_masks)}
        self._bands = [mask for scene in scenes if (mask := scene.mask) is not None]
        stand_ins = [_as_scene(scenes[number], mask) for number, mask in zip(with_masks, self._bands, strict=True)]
        self._warped = WarpedScenes(stand_ins, grid, "nearest", files)

    def hidden(self, number: int, window: Window) -> Bools:
        """Where a scene's ground is hidden, (H, W); the same for a pixel whatever the window.

        Raises
        ------
        ReadError
            If the mask cannot be read.
        """
        place = self._place.get(number)
        if place is None:
            return np.zeros(window.shape, bool)
        mask = self._bands[place]
        around = window.padded(mask.margin_px(self._grid.gsd))
        classes = np.zeros((3, *around.shape), np.float32)
        covered = np.zeros(around.shape, bool)
        part = around.intersection(self._warped.windows[place])
        if not part.empty:
            rows, cols = part.slices_in(around)
            classes[:, rows, cols], covered[rows, cols] = self._warped.read(place, part)
        hidden = mask.rule.hides(classes, covered)
        return dilated(hidden, mask.dilate_m / self._grid.gsd)[window.slices_in(around)]

    def clear(self) -> None:
        """Let go of what is kept."""
        self._warped.clear()


def _as_scene(scene: Scene, mask: MaskBand) -> Scene:
    """A mask in the clothes of a scene, so that it is opened, warped and tried again as pictures are.

    Without nodata, because 0 is a class as any other. Its GSD is infinite, so that no overview is ever taken for it:
    those of classes may have been averaged.
    """
    first, *others = (Band(mask.href, number) for number in mask.bands)
    bands = (first, others[0] if others else first, others[-1] if others else first)
    return replace(
        scene,
        id=f"{scene.id} (mask)",
        bands=bands,
        crs=mask.crs,
        transform=mask.transform,
        shape=mask.shape,
        gsd=float("inf"),
        dtype=mask.dtype,
        radiometry=PROFILES["uint8"],
        nodata=None,
        alpha=None,
        mask=None,
    )
