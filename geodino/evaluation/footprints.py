"""Sparse heights with a radius (GEDI, ICESat-2, field plots): what a map says of each.

A footprint's height is compared with the 98th percentile of the map's pixels within the radius, as the CHMv2 paper
does for GEDI (12 m) and ICESat-2 (7 m), arXiv:2603.06382.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from geodino.evaluation.canopy import CLASS_EDGES_M, CLASS_NAMES, Heights
from geodino.evaluation.sums import Floats
from geodino.grid import Window
from geodino.training.labels import circle_of

PERCENTILE = 98.0

# Of a footprint's pixels that must be known.
_LEAST_KNOWN = 0.5


def heights_within(heights: Heights, footprints: npt.NDArray[np.floating]) -> Floats:
    """Return the map's 98th percentile within each footprint, metres; NaN where under half of its pixels are known.

    Parameters
    ----------
    heights
        (H, W), metres; NaN where not known.
    footprints
        (M, 3 or more): x and y in pixels from the map's north-west corner, radius in pixels. Pixels whose middle lies
        within the radius count, and always the one that holds the centre; those off the map are not known.
    """
    found, whole = np.full(len(footprints), np.nan), Window(0, 0, *heights.shape)
    for index, (x, y, radius, *_) in enumerate(np.asarray(footprints, np.float64)):
        window, inside = circle_of(x, y, radius)
        here = window.intersection(whole)
        if here.empty:
            continue
        seen = heights[here.slices_in(whole)][inside[here.slices_in(window)]]
        known = seen[np.isfinite(seen)]
        if len(known) and len(known) >= _LEAST_KNOWN * inside.sum():
            found[index] = np.percentile(known, PERCENTILE)
    return found


def footprint_sums(predicted: Floats, measured: Heights, *, constant_m: float) -> dict[str, Floats]:
    """Return the sums by height class, one row; footprints (M,) of which the map knows nothing (NaN) are left out."""
    known = np.isfinite(predicted) & np.isfinite(measured)
    said, truth = predicted[known], np.asarray(measured, np.float64)[known]
    classes = np.searchsorted(CLASS_EDGES_M, truth, side="right")
    values = {
        "n": np.ones_like(truth),
        "error": said - truth,
        "abs": np.abs(said - truth),
        "square": (said - truth) ** 2,
        "truth": truth,
        "truth_square": truth**2,
        "constant_abs": np.abs(truth - constant_m),
    }
    count = len(CLASS_NAMES)
    return {name: np.bincount(classes, array, count)[None].astype(np.float64) for name, array in values.items()}
