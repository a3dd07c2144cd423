"""Where the model looks: overlapping square windows on a lattice that hangs on the CRS's origin.

One lattice place (r, c) owns three nested squares, drawn here along one axis:

    window   |---------------------------------------------|   what the model sees: `size` pixels
    support      |-------------------------------------|       where its prediction counts: window less `margin`
    cell         |------------------------------|              stride x stride; cells tile the plane

Support minus cell is the `ramp`: there the prediction fades out while the next one fades in. The cell (0, 0)
starts at pixel (0, 0) of the grid, so the same ground is cut the same way whatever AOI was drawn.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from geodino.errors import ConfigError
from geodino.grid import Window

# An odd number of 16 px patches comes back from the DPT head one patch larger (272 px in, 288 px out), because its
# lowest level halves the patches; so window sides are multiples of two patches.
SIDE_MULTIPLE = 32
PATCH = 16


class Place(NamedTuple):
    """A place on the window lattice: which row and which column of windows."""

    r: int
    c: int


@dataclass(frozen=True)
class Lattice:
    """How windows overlap, in pixels or in coarser units: what stitching needs to know.

    Attributes
    ----------
    size, overlap, margin
        As of a `Tiling`.
    """

    size: int
    overlap: int
    margin: int

    @property
    def stride(self) -> int:
        """From one window to the next; the side of a cell."""
        return self.size - self.overlap

    @property
    def ramp(self) -> int:
        """Over how far a prediction fades into its neighbour's."""
        return self.overlap - 2 * self.margin

    @property
    def support_size(self) -> int:
        """Side of the square in which a window's prediction counts: stride + ramp."""
        return self.stride + self.ramp

    @cached_property
    def taper(self) -> npt.NDArray[np.float32]:
        """Weight of a prediction along one axis of its support, shape (support_size,).

        A raised cosine over the ramp and 1 between. The falling side is one minus the rising side, so the weights of
        neighbours sum to 1 at every pixel; the weight in the plane is the outer product.
        """
        phase = (np.arange(self.ramp) + 0.5) / self.ramp
        rise = (np.sin(0.5 * np.pi * phase) ** 2).astype(np.float32)
        flat = np.ones(self.stride - self.ramp, np.float32)
        return np.concatenate([rise, flat, np.float32(1) - rise])


@dataclass(frozen=True)
class Tiling(Lattice):
    """The lattice of windows: side, overlap of neighbours, and the margin that is thrown away.

    Attributes
    ----------
    size
        Side of a window, pixels; a multiple of 32.
    overlap
        Pixels that two neighbouring windows share; a multiple of 16, at most half of `size`.
    margin
        Pixels at each window edge whose prediction is not used, because the model saw no context beyond them; at
        most half of the overlap, less one pixel. Along the rest of the overlap neighbours are blended.
    """

    margin: int = PATCH

    def __post_init__(self) -> None:
        if self.size < SIDE_MULTIPLE or self.size % SIDE_MULTIPLE:
            raise ConfigError(f"window size {self.size} px must be a positive multiple of {SIDE_MULTIPLE}")
        if self.overlap < PATCH or self.overlap % PATCH:
            raise ConfigError(f"overlap {self.overlap} px must be a positive multiple of {PATCH}")
        if self.overlap > self.size // 2:
            raise ConfigError(f"overlap {self.overlap} px must be at most half of the window size {self.size} px")
        if not 0 <= self.margin < self.overlap // 2:
            raise ConfigError(
                f"margin {self.margin} px must be at least 0 and under half of the overlap {self.overlap} px"
            )

    def coarser(self, px: int) -> Lattice:
        """The same windows in units of `px` pixels; ConfigError where they are not whole ones."""
        if any(value % px for value in (self.size, self.overlap, self.margin)):
            raise ConfigError(
                f"windows of {self.size} px, overlap {self.overlap} px and margin {self.margin} px do not fit maps of "
                f"{px} px a value: give multiples of {px}"
            )
        return Lattice(self.size // px, self.overlap // px, self.margin // px)

    def window(self, place: Place) -> Window:
        """The square that the model sees."""
        return self.support(place).padded(self.margin)

    def support(self, place: Place) -> Window:
        """The square in which the prediction counts."""
        return Window(place.r * self.stride, place.c * self.stride, self.support_size, self.support_size)

    def cell(self, place: Place) -> Window:
        """The square that is final once this place and its western and northern neighbours are done."""
        return Window(place.r * self.stride, place.c * self.stride, self.stride, self.stride)

    def rows(self, extent: Window) -> range:
        """The lattice rows whose support meets the extent."""
        return self._span(extent.row, extent.row_stop)

    def cols(self, extent: Window) -> range:
        """The lattice columns whose support meets the extent."""
        return self._span(extent.col, extent.col_stop)

    def places(self, extent: Window) -> Iterator[Place]:
        """The places whose support meets the extent, row by row from the north-west."""
        cols = self.cols(extent)
        return (Place(r, c) for r in self.rows(extent) for c in cols)

    def _span(self, start: int, stop: int) -> range:
        # Support k covers [k * stride, k * stride + support_size).
        return range((start - self.support_size) // self.stride + 1, (stop - 1) // self.stride + 1)
