"""Computes a plan in this process: a few threads read chips ahead, the model runs, finished cells stream out.

    places -> read_chips -> predict_chips -> stitch -> mask -> cells

Every stage is a generator over the one before it, so nothing is held but the chips being read ahead, one batch, and
one row's spill. Memory does not grow with the raster's height.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from itertools import groupby, tee
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from scipy.ndimage import distance_transform_edt

from geodino.grid import Window
from geodino.stitch import Cell, Layer, Prediction, stitch
from geodino.windows import Place, Tiling

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]

# Enough to hide 100 ms of latency, which 8 are not (benchmarks/remote.py, November 2026).
READER_THREADS = 16


class Pixels(Protocol):
    """What a source gives for a window: `image` (3, H, W) in 0-1, `valid` (H, W), `scene` (H, W), 0 where none.

    `lost` (H, W) where imagery is known to be but could not be read, None where there is no such pixel.
    """

    @property
    def image(self) -> Floats: ...
    @property
    def valid(self) -> Bools: ...
    @property
    def scene(self) -> npt.NDArray[np.uint16]: ...
    @property
    def lost(self) -> Bools | None: ...


class Source(Protocol):
    """A lazy picture of the ground, read by window from many threads; a pixel's value never depends on the window."""

    def read(self, window: Window) -> Pixels: ...
    def stop(self) -> None:
        """Have reads under way end soon, with an error."""


class Predictor(Protocol):
    """A model: (B, 3, size, size) float32 in 0-1 -> (B, K, size / px, size / px) float32 for each of its layers."""

    @property
    def layers(self) -> tuple[Layer, ...]: ...
    def __call__(self, images: Floats) -> tuple[Floats, ...]: ...


class Done(NamedTuple):
    """A finished square of the ground, `tiling.cell(place)`.

    Attributes
    ----------
    maps
        For each of the model's layers (K, stride / px, stride / px) float32; NaN where no pixel below is both wanted
        and has imagery.
    wanted
        (stride, stride), pixels asked for that have imagery.
    scene
        (stride, stride), number of the scene that each pixel is of.
    """

    place: Place
    maps: tuple[Floats, ...]
    wanted: Bools
    scene: npt.NDArray[np.uint16]


class Chip(NamedTuple):
    """The pixels of one window, filled where there is no imagery, and which pixels of its cell are wanted."""

    place: Place
    image: Floats
    wanted: Bools
    scene: npt.NDArray[np.uint16]


@dataclass
class Tally:
    """What a stream has done so far; the one thing here that changes while it runs.

    Seconds are wall time of the computing thread, so read + forward + stitch + write add up to the whole; `read_s` is
    the time spent waiting for chips, and `decode_s` the reader threads' own time, most of it behind the model's back.
    `pixels_lost` are wanted pixels whose imagery could not be read, and `losses` says of each failed read why;
    `unverified` says which files hold no checksum to be held against.
    """

    windows_run: int = 0
    windows_empty: list[Place] = field(default_factory=list)
    windows_filled: int = 0
    pixels_written: int = 0
    pixels_lost: int = 0
    read_s: float = 0.0
    decode_s: float = 0.0
    forward_s: float = 0.0
    stitch_s: float = 0.0
    write_s: float = 0.0
    scene_pixels: Counter[int] = field(default_factory=Counter)
    losses: list[str] = field(default_factory=list)
    unverified: list[str] = field(default_factory=list)

    def count(self, mapped: Bools, scene: npt.NDArray[np.uint16]) -> None:
        """Count the pixels of a square that are part of the map, and the scenes that gave them."""
        self.pixels_written += int(np.count_nonzero(mapped))
        numbers, counts = np.unique(scene[mapped], return_counts=True)
        self.scene_pixels.update(dict(zip(numbers.tolist(), counts.tolist(), strict=True)))


def stream_cells(
    places: Sequence[Place],
    tiling: Tiling,
    source: Source,
    predictor: Predictor,
    *,
    wanted: Callable[[Window], Bools],
    tally: Tally,
    batch_size: int = 1,
    threads: int = READER_THREADS,
) -> Generator[Done, None, None]:
    """Compute the places, in lattice order, and yield their squares as they become final.

    Parameters
    ----------
    places
        In lattice order: row by row, west to east.
    wanted
        Which pixels of a window are asked for, (H, W).

    Yields
    ------
    Done
        The caller closes the generator before the source (`contextlib.closing`).
    """
    # Closed whatever happens, and not when the garbage collector finds it: a source must not be closed while threads
    # still read from it, which ends the process.
    with closing(read_chips(places, tiling, source, wanted=wanted, tally=tally, threads=threads)) as chips:
        waiting: deque[Chip] = deque()
        predictions = predict_chips(chips, predictor, waiting, tally, batch_size=batch_size)
        for cells in _timed(stitch_layers(predictions, tiling, predictor.layers), tally):
            chip = waiting.popleft()
            assert all(cell.place == chip.place for cell in cells), (chip.place, cells)
            for cell, layer in zip(cells, predictor.layers, strict=True):
                cell.values[:, ~coarser(chip.wanted, layer.px)] = np.nan
            yield Done(chip.place, tuple(cell.values for cell in cells), chip.wanted, chip.scene)


def stitch_layers(
    predictions: Iterable[tuple[Prediction, ...]], tiling: Tiling, layers: Sequence[Layer]
) -> Iterator[tuple[Cell, ...]]:
    """Finished cells of all layers, side by side, from the predictions of each window."""

    def one(of_all: Iterable[tuple[Prediction, ...]], number: int) -> Iterator[Cell]:
        return stitch((predictions[number] for predictions in of_all), tiling.coarser(layers[number].px))

    # Every layer gives a window's cell as soon as it is told of the window, so `tee` never holds more than one.
    copies = tee(predictions, len(layers))
    return zip(*(one(copy, number) for number, copy in enumerate(copies)), strict=True)


def coarser(mask: Bools, px: int) -> Bools:
    """(H, W) to (H / px, W / px): true where any pixel below is."""
    height, width = mask.shape
    return np.asarray(mask.reshape(height // px, px, width // px, px).any(axis=(1, 3)))


def read_chips(
    places: Sequence[Place],
    tiling: Tiling,
    source: Source,
    *,
    wanted: Callable[[Window], Bools],
    tally: Tally,
    threads: int = READER_THREADS,
) -> Generator[Chip, None, None]:
    """Read windows ahead of their use and yield, in order, the chips that hold a wanted and valid pixel.

    Closing it waits for the reads under way.
    """

    def read(place: Place) -> tuple[_Read, float]:
        began = time.perf_counter()
        return _read_chip(place, tiling, source, wanted), time.perf_counter() - began

    pool = ThreadPoolExecutor(threads, thread_name_prefix="geodino-read")
    pending: deque[tuple[Place, Future[tuple[_Read, float]]]] = deque()
    ahead = iter(places)
    try:
        for place in ahead:
            pending.append((place, pool.submit(read, place)))
            if len(pending) >= 2 * threads:
                break
        while pending:
            began = time.perf_counter()
            done, future = pending.popleft()
            found, decode_s = future.result()
            tally.read_s += time.perf_counter() - began
            tally.decode_s += decode_s
            for place in ahead:
                pending.append((place, pool.submit(read, place)))
                break
            tally.pixels_lost += found.lost_px
            if found.chip is None:
                tally.windows_empty.append(done)
            else:
                tally.windows_filled += found.filled
                yield found.chip
    except BaseException:
        # Whoever asked is gone; a read that waits for a server must not hold them up for minutes.
        source.stop()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def predict_chips(
    chips: Iterable[Chip], predictor: Predictor, waiting: deque[Chip], tally: Tally, *, batch_size: int
) -> Iterator[tuple[Prediction, ...]]:
    """Run the model on batches of chips; each chip is put on `waiting` when its prediction comes out.

    A batch never crosses a lattice row: so what is computed together, down to the last bit, depends on the row alone
    and not on who computes which rows.
    """
    for _, row in groupby(chips, key=lambda chip: chip.place.r):
        for batch in _batches(row, batch_size):
            began = time.perf_counter()
            maps = predictor(np.stack([chip.image for chip in batch]))
            tally.forward_s += time.perf_counter() - began
            tally.windows_run += len(batch)
            for number, chip in enumerate(batch):
                waiting.append(chip)
                yield tuple(Prediction(chip.place, values[number]) for values in maps)


def fill_by_reflection(image: Floats, valid: Bools) -> Floats:
    """Fill what has no imagery by reflecting the valid pixels across their edge; these pixels are never valid.

    Each invalid pixel p looks up its nearest valid pixel q and takes the pixel as far behind the edge as p lies
    before it, 2q - p, or q itself where that is not valid either. Along a straight edge this is plain reflection; it
    also serves holes and ragged edges. `image` (3, H, W), `valid` (H, W) with at least one valid pixel.
    """
    nearest = distance_transform_edt(~valid, return_distances=False, return_indices=True)
    here = np.indices(valid.shape)
    mirrored = 2 * nearest - here
    limits = np.array(valid.shape)[:, None, None]
    inside = ((mirrored >= 0) & (mirrored < limits)).all(axis=0)
    mirrored = np.clip(mirrored, 0, limits - 1)
    usable = inside & valid[mirrored[0], mirrored[1]]
    rows, cols = np.where(usable, mirrored, nearest)
    return image[:, rows, cols]


class _Read(NamedTuple):
    """A chip if it holds what is wanted, whether it was filled, and how many wanted pixels of its cell are lost."""

    chip: Chip | None
    filled: bool = False
    lost_px: int = 0


def _read_chip(place: Place, tiling: Tiling, source: Source, wanted: Callable[[Window], Bools]) -> _Read:
    window = tiling.window(place)
    of_support, of_cell = tiling.support(place).slices_in(window), tiling.cell(place).slices_in(window)
    inside = wanted(window)
    if not inside[of_support].any():
        return _Read(None)
    pixels = source.read(window)
    lost_px = 0 if pixels.lost is None else int((inside & pixels.lost)[of_cell].sum())
    inside &= pixels.valid
    if not inside[of_support].any():
        return _Read(None, lost_px=lost_px)
    filled = not bool(pixels.valid.all())
    image = fill_by_reflection(pixels.image, pixels.valid) if filled else pixels.image
    return _Read(Chip(place, image, inside[of_cell], pixels.scene[of_cell]), filled, lost_px)


def _batches(chips: Iterable[Chip], size: int) -> Iterator[list[Chip]]:
    batch: list[Chip] = []
    for chip in chips:
        batch.append(chip)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _timed(cells: Iterator[tuple[Cell, ...]], tally: Tally) -> Iterator[tuple[Cell, ...]]:
    """Count the time in the stitcher: that of its `next`, less what the stages before it took meanwhile."""
    while True:
        began = time.perf_counter()
        before = tally.read_s + tally.forward_s
        cell = next(cells, None)
        tally.stitch_s += time.perf_counter() - began - (tally.read_s + tally.forward_s - before)
        if cell is None:
            return
        yield cell
