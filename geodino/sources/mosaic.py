"""Several scenes as one lazy picture on the run's grid, read by window from many threads.

The first scene in order gives a pixel, later ones fill what it lacks or what its mask hides, pixel by pixel. A pixel's
value comes from one scene alone and from a warp that knows no window, so it is the same whatever window asks.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import shapely

from geodino.errors import ConfigError, ReadError, SourceError
from geodino.grid import Grid, Window
from geodino.settings import RESAMPLINGS
from geodino.sources.masked import Masks
from geodino.sources.pixels import PixelFiles
from geodino.sources.scene import Scene
from geodino.sources.warped import WarpedScenes

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Pixels:
    """What a window shows.

    Attributes
    ----------
    image
        Float32 (3, H, W), red, green, blue in 0..1; 0 where invalid.
    valid
        Bool (H, W).
    scene
        Uint16 (H, W): the scene a pixel is from, 1-based in `Mosaic.scenes`; 0 where invalid.
    lost
        Bool (H, W): invalid because a read failed and was skipped; None where none did.
    losses
        A sentence for each such read.
    masked
        Of each scene with a mask, by number: how many of its valid pixels were hidden, and how many it has here.
    """

    window: Window
    image: npt.NDArray[np.float32]
    valid: npt.NDArray[np.bool_]
    scene: npt.NDArray[np.uint16]
    lost: npt.NDArray[np.bool_] | None = None
    losses: tuple[str, ...] = ()
    masked: Mapping[int, tuple[int, int]] = field(default_factory=dict)


class Mosaic:
    """A lazy picture of scenes, the first of which wins. Nothing is opened before the first read.

    Parameters
    ----------
    scenes
        In mosaic order, at most 65 535.
    grid
        The run's grid.
    resampling
        How pixels come onto the grid: nearest, bilinear, cubic, cubic_spline, lanczos or average. A scene that lies on
        the grid already keeps its pixels exactly.
    verify
        Whether every block of pictures and masks is checked when it is read, as `PixelFiles` does it.
    skip_unreadable
        Whether a part of a scene that cannot be read becomes nodata and is told of in `Pixels.losses`. No other scene
        fills it: which date a map shows must not hang on the weather of a network.

    Raises
    ------
    SourceError
        No scenes, too many, or one that cannot be projected onto the grid.
    ConfigError
        Unknown resampling.
    """

    def __init__(
        self,
        scenes: Sequence[Scene],
        grid: Grid,
        resampling: str = "cubic",
        *,
        verify: bool = False,
        skip_unreadable: bool = False,
    ) -> None:
        if resampling not in RESAMPLINGS:
            raise ConfigError(f"resampling {resampling} must be one of {', '.join(RESAMPLINGS)}")
        if not 0 < len(scenes) <= np.iinfo(np.uint16).max:
            raise SourceError(f"a mosaic takes 1 to 65535 scenes, not {len(scenes)}")
        self.grid = grid
        self.scenes = tuple(scenes)
        sums = {band.href: band.checksum for scene in self.scenes for band in scene.bands if band.checksum}
        # One for pictures and masks: a mask may be a band of the picture's own file.
        self._files = PixelFiles(verify=verify, checksums=sums)
        self._warped = WarpedScenes(self.scenes, grid, resampling, self._files)
        self._masks = Masks(self.scenes, grid, self._files)
        self._skip = skip_unreadable
        self._footprints = shapely.STRtree([scene.footprint_in(grid.crs) for scene in self.scenes])

    def covers(self, window: Window) -> bool:
        """Whether any footprint meets the window's pixel centres; by outlines alone, without a read."""
        minx, miny, maxx, maxy = self.grid.bounds(window)
        # Half a pixel less on each side, as neighbours that only share an edge share no pixel.
        inset = 0.49 * self.grid.gsd
        box = shapely.box(minx + inset, miny + inset, maxx - inset, maxy - inset)
        return bool(self._footprints.query(box, predicate="intersects").size)

    def read(self, window: Window) -> Pixels:
        """The pixels of a window; invalid where no scene has any.

        Raises
        ------
        ReadError
            If a scene cannot be read and is not skipped; names the scene, its file, the window and the causes.
        """
        image = np.zeros((3, *window.shape), np.float32)
        scene = np.zeros(window.shape, np.uint16)
        lost = np.zeros(window.shape, bool)
        losses: list[str] = []
        masked: dict[int, tuple[int, int]] = {}
        for number, whole in enumerate(self._warped.windows):
            part = window.intersection(whole)
            if part.empty:
                continue
            rows, cols = part.slices_in(window)
            missing = (scene[rows, cols] == 0) & ~lost[rows, cols]
            if not missing.any():
                continue
            try:
                dn, valid = self._warped.read(number, part)
                if self.scenes[number].mask is not None:
                    hidden = valid & self._masks.hidden(number, part)
                    masked[number + 1] = int(hidden.sum()), int(valid.sum())
                    valid = valid & ~hidden
            except ReadError as error:
                if not self._skip:
                    raise
                logger.info("skipped: %s", error)
                losses.append(str(error))
                lost[rows, cols] |= missing
                continue
            take = valid & missing
            picture = self.scenes[number].picture(dn)
            np.copyto(image[:, rows, cols], picture, where=take)
            scene[rows, cols][take] = number + 1
        return Pixels(window, image, scene > 0, scene, lost if lost.any() else None, tuple(losses), masked)

    @property
    def unverified(self) -> list[str]:
        """Sentences about files that were to be verified and hold nothing to be held against."""
        return sorted(self._files.unverified)

    def stop(self) -> None:
        """Have reads under way end soon, with an error: whoever asked for them is gone."""
        self._files.stop()

    def close(self) -> None:
        """Closes all files of all threads; no read may be under way or follow."""
        self._files.close()
        self._warped.clear()
        self._masks.clear()

    def __enter__(self) -> Mosaic:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
