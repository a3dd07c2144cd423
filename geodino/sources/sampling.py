"""Some pixels of a whole raster, without reading all of it: what colours and validity are decided from."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import numpy.typing as npt

from geodino.grid import Window
from geodino.sources.pixels import Asked, PixelFiles, Planes

# Side of the thinned raster: about a million pixels.
SIDE = 1024
# A raster that cannot be thinned to such a side from its overviews is sampled in small squares on a lattice: to thin
# 60,000 px reads 10 GB.
MOST_SIDE = 4 * SIDE
_SQUARES, _SQUARE = 8, 64
_READERS = 8


def few(files: PixelFiles, asked: Asked) -> Planes:
    """About a million pixels of a whole raster, (K, h, w): thinned, or small squares side by side."""
    whole = asked._replace(overview=None)
    levels: list[tuple[int | None, tuple[int, int]]] = [(None, files.shape(whole))]
    levels += [(number, shape) for number, (shape, _) in enumerate(files.overviews(whole))]
    # From the finest to the coarsest.
    fit = [level for level in levels if max(level[1]) <= MOST_SIDE]
    if not fit:
        return _squares(files, whole)
    overview, shape = next((level for level in reversed(fit) if max(level[1]) >= SIDE), fit[0])
    planes = files.read(asked._replace(overview=overview), Window(0, 0, *shape))
    step = -(-max(shape) // SIDE)
    mask = None if planes.mask is None else planes.mask[::step, ::step]
    return Planes(planes.values[:, ::step, ::step], mask)


def middle(files: PixelFiles, asked: Asked, side: int) -> npt.NDArray[np.generic]:
    """The middle of a raster, (K, h, w), at most so many pixels a side."""
    height, width = files.shape(asked)
    rows, cols = min(height, side), min(width, side)
    return files.read(asked, Window((height - rows) // 2, (width - cols) // 2, rows, cols)).values


def _squares(files: PixelFiles, asked: Asked) -> Planes:
    height, width = files.shape(asked)
    rows, cols = min(_SQUARE, height), min(_SQUARE, width)
    downs = np.linspace(0, height - rows, _SQUARES).astype(int).tolist()
    acrosses = np.linspace(0, width - cols, _SQUARES).astype(int).tolist()
    windows = [Window(down, across, rows, cols) for down in downs for across in acrosses]
    with ThreadPoolExecutor(_READERS) as pool:
        flat = list(pool.map(partial(files.read, asked), windows))
    found = [flat[start : start + _SQUARES] for start in range(0, len(flat), _SQUARES)]
    values = np.concatenate([np.concatenate([each.values for each in row], axis=2) for row in found], axis=1)
    masks = [[each.mask for each in row if each.mask is not None] for row in found]
    return Planes(values, np.block(masks) if masks[0] else None)
