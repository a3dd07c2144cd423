"""Computes bands of windows: a few threads read chips ahead, the model runs, and what a band says is blended.

    bands -> read_chips -> batches -> answers of the model -> blend -> Computed

Every stage is a generator over the one before it, so nothing is held but the chips being read ahead, the batches that
are computed side by side, and one band. Memory does not grow with the raster's height, nor with its width.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, wait
from contextlib import closing
from dataclasses import dataclass, field
from itertools import groupby, islice
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from scipy.ndimage import distance_transform_edt

from geodino.bands import Band
from geodino.errors import GeodinoError
from geodino.grid import Window
from geodino.stitch import Layer, Prediction, Unfinished, blend_band
from geodino.windows import Place, Tiling

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
Numbers = npt.NDArray[np.uint16]

# Enough to hide 100 ms of latency, which 8 are not (benchmarks/remote.py, November 2026).
READER_THREADS = 16


class Pixels(Protocol):
    """What a source gives for a window: `image` (3, H, W) in 0-1, `valid` (H, W), `scene` (H, W), 0 where none.

    `lost` (H, W) where imagery is known to be but could not be read, None where there is no such pixel, and `losses`
    says why. `masked` says of each scene with a mask, by number, how many valid pixels it hid, and out of how many.
    """

    @property
    def image(self) -> Floats: ...
    @property
    def valid(self) -> Bools: ...
    @property
    def scene(self) -> Numbers: ...
    @property
    def lost(self) -> Bools | None: ...
    @property
    def losses(self) -> Sequence[str]: ...
    @property
    def masked(self) -> Mapping[int, tuple[int, int]]: ...


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


class Ground(NamedTuple):
    """What is known of a cell: which of its pixels are asked for and have imagery, and of which scene each is."""

    wanted: Bools
    scene: Numbers


class Chip(NamedTuple):
    """The pixels of one window, filled where there is no imagery, and what is known of its cell."""

    place: Place
    image: Floats
    ground: Ground


@dataclass
class Tally:
    """What was done; the one thing here that changes while it runs.

    Seconds are wall time of the computing thread, so read + forward + stitch + write add up to the whole; `read_s` is
    the time spent waiting for chips, and `decode_s` the reader threads' own time, most of it behind the model's back.
    Of several processes they are sums. `pixels_lost` are wanted pixels whose imagery could not be read, and `losses`
    says of each failed read why; `unverified` says which files hold no checksum to be held against. `hidden_px` and
    `seen_px` count the valid pixels of each scene with a mask, by number: those it hid, and all.
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
    hidden_px: Counter[int] = field(default_factory=Counter)
    seen_px: Counter[int] = field(default_factory=Counter)
    losses: set[str] = field(default_factory=set)
    unverified: set[str] = field(default_factory=set)

    def add(self, other: Tally) -> None:
        """Count what another did to this one's."""
        for name, value in vars(other).items():
            mine = getattr(self, name)
            if isinstance(mine, set):
                mine |= value
            elif isinstance(mine, Counter):
                mine.update(value)
            else:
                setattr(self, name, mine + value)

    def count(self, mapped: Bools, scene: Numbers) -> None:
        """Count the pixels of a cell that are part of the map, and the scenes that gave them."""
        self.pixels_written += int(np.count_nonzero(mapped))
        numbers, counts = np.unique(scene[mapped], return_counts=True)
        self.scene_pixels.update(dict(zip(numbers.tolist(), counts.tolist(), strict=True)))

    def hidden_shares(self, scenes: int) -> tuple[float | None, ...]:
        """Share of each scene's valid pixels that its mask hid; None without a mask or a read."""
        return tuple(
            self.hidden_px[number] / self.seen_px[number] if self.seen_px[number] else None
            for number in range(1, scenes + 1)
        )


class Computed(NamedTuple):
    """What the windows of a band say: for each of the model's layers, and of the ground of each computed cell."""

    band: Band
    layers: tuple[Unfinished, ...]
    ground: dict[Place, Ground]
    tally: Tally


class _Batch(NamedTuple):
    """Chips that go through the model together, none at the end of a band; and what was counted of the band so far."""

    band: Band
    chips: tuple[Chip, ...]
    tally: Tally


def compute_bands(
    bands: Sequence[Band],
    tiling: Tiling,
    source: Source,
    predictor: Predictor,
    *,
    wanted: Callable[[Window], Bools],
    readers: Executor,
    passes: Executor,
    at_once: int = 1,
    batch_size: int = 1,
    threads: int = READER_THREADS,
) -> Generator[Computed, None, None]:
    """Compute bands one after the other; the chips of the next are read, and predicted, while one is used.

    Parameters
    ----------
    wanted
        Which pixels of a window are asked for, (H, W).
    passes, at_once
        Where the model runs, and on how many batches side by side.

    Yields
    ------
    Computed
        Of each band in turn. The caller closes the generator before the source (`contextlib.closing`).
    """
    places = [place for band in bands for place in band.places]
    # Closed whatever happens, and not when the garbage collector finds it: a source must not be closed while threads
    # still read from it, which ends the process.
    with (
        closing(read_chips(places, tiling, source, wanted=wanted, readers=readers, threads=threads)) as reads,
        closing(_answers(_batches(bands, reads, batch_size), predictor, passes, at_once)) as answers,
    ):
        for band in bands:
            yield _blend(band, _of_one_band(answers), tiling, predictor.layers)


def _batches(bands: Iterable[Band], reads: Iterator[Read], size: int) -> Iterator[_Batch]:
    """Batches of chips, band by band.

    A batch never crosses a row of a band: so what is computed together, down to the last bit, depends on the band
    alone and not on who computes which bands.
    """
    for band in bands:
        tally = Tally()
        for _, row in groupby(_chips(islice(reads, len(band.places)), tally), key=lambda chip: chip.place.r):
            while batch := tuple(islice(row, size)):
                yield _Batch(band, batch, tally)
        yield _Batch(band, (), tally)


def _answers(
    batches: Iterable[_Batch], predictor: Predictor, passes: Executor, at_once: int
) -> Generator[tuple[_Batch, tuple[Floats, ...]], None, None]:
    """What the model says of each batch, in order; one more than can go side by side waits its turn."""
    pending: deque[tuple[_Batch, Future[tuple[Floats, ...]] | None]] = deque()

    def first() -> tuple[_Batch, tuple[Floats, ...]]:
        batch, future = pending.popleft()
        began = time.perf_counter()
        maps = () if future is None else future.result()
        batch.tally.forward_s += time.perf_counter() - began
        batch.tally.windows_run += len(batch.chips)
        return batch, maps

    coming = iter(batches)
    failure: GeodinoError | MemoryError | None = None
    try:
        while True:
            try:
                batch = next(coming, None)
            except (GeodinoError, MemoryError) as error:
                # What could not be read may be of a later band than what is still being computed.
                failure = error
                break
            if batch is None:
                break
            images = [chip.image for chip in batch.chips]
            pending.append((batch, passes.submit(predictor, np.stack(images)) if images else None))
            while sum(future is not None for _, future in pending) > at_once:
                yield first()
        while pending:
            yield first()
        if failure is not None:
            raise failure
    finally:
        for _, future in pending:
            if future is not None:
                future.cancel()


def _of_one_band(
    answers: Iterator[tuple[_Batch, tuple[Floats, ...]]],
) -> Iterator[tuple[_Batch, tuple[Floats, ...]]]:
    """The answers up to the end of a band, without a look at the next one, which may be an error."""
    for batch, maps in answers:
        yield batch, maps
        if not batch.chips:
            return


def _blend(
    band: Band, answers: Iterable[tuple[_Batch, tuple[Floats, ...]]], tiling: Tiling, layers: Sequence[Layer]
) -> Computed:
    ground: dict[Place, Ground] = {}
    # One pass gives all layers: the first is blended as they come, the others, which are coarser, wait.
    later: list[list[Prediction]] = [[] for _ in layers[1:]]
    tally, spent = Tally(), 0.0

    def first() -> Iterator[Prediction]:
        nonlocal tally, spent
        waited = time.perf_counter()
        for batch, maps in answers:
            spent += time.perf_counter() - waited
            tally = batch.tally
            for number, chip in enumerate(batch.chips):
                ground[chip.place] = chip.ground
                for waiting, values in zip(later, maps[1:], strict=True):
                    waiting.append(Prediction(chip.place, values[number]))
                yield Prediction(chip.place, maps[0][number])
            waited = time.perf_counter()

    began = time.perf_counter()
    blended = tuple(
        blend_band(of_layer, tiling.coarser(layer.px), band.first, band.last)
        for of_layer, layer in zip((first(), *later), layers, strict=True)
    )
    tally.stitch_s = time.perf_counter() - began - spent
    return Computed(band, blended, ground, tally)


def coarser(mask: Bools, px: int) -> Bools:
    """(H, W) to (H / px, W / px): true where any pixel below is."""
    height, width = mask.shape
    return np.asarray(mask.reshape(height // px, px, width // px, px).any(axis=(1, 3)))


class Read(NamedTuple):
    """A place that was read: its chip if it holds what is wanted, and what reading it cost and lost."""

    place: Place
    chip: Chip | None = None
    filled: bool = False
    lost_px: int = 0
    losses: Sequence[str] = ()
    masked: Mapping[int, tuple[int, int]] = {}
    decode_s: float = 0.0


def read_chips(
    places: Sequence[Place],
    tiling: Tiling,
    source: Source,
    *,
    wanted: Callable[[Window], Bools],
    readers: Executor,
    threads: int = READER_THREADS,
) -> Generator[Read, None, None]:
    """Read windows ahead of their use and yield all of them in order.

    Closing it waits for the reads under way.
    """

    def read(place: Place) -> Read:
        began = time.perf_counter()
        found = _read_chip(place, tiling, source, wanted)
        return found._replace(decode_s=time.perf_counter() - began)

    pending: deque[Future[Read]] = deque()
    ahead = iter(places)
    try:
        pending.extend(readers.submit(read, place) for place in islice(ahead, 2 * threads))
        while pending:
            found = pending.popleft().result()
            pending.extend(readers.submit(read, place) for place in islice(ahead, 1))
            yield found
    finally:
        if pending:
            # Whoever asked is gone; a read that waits for a server must not hold them up for minutes.
            source.stop()
        for read_ahead in pending:
            read_ahead.cancel()
        wait(pending)


def _chips(reads: Iterable[Read], tally: Tally) -> Iterator[Chip]:
    """The chips that hold a wanted and valid pixel; the others are counted."""
    waiting = iter(reads)
    while True:
        began = time.perf_counter()
        read = next(waiting, None)
        tally.read_s += time.perf_counter() - began
        if read is None:
            return
        tally.decode_s += read.decode_s
        tally.pixels_lost += read.lost_px
        tally.losses |= set(read.losses)
        for number, (hidden, seen) in read.masked.items():
            tally.hidden_px[number] += hidden
            tally.seen_px[number] += seen
        if read.chip is None:
            tally.windows_empty.append(read.place)
        else:
            tally.windows_filled += read.filled
            yield read.chip


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


def _read_chip(place: Place, tiling: Tiling, source: Source, wanted: Callable[[Window], Bools]) -> Read:
    window = tiling.window(place)
    of_support, of_cell = tiling.support(place).slices_in(window), tiling.cell(place).slices_in(window)
    inside = wanted(window)
    if not inside[of_support].any():
        return Read(place)
    pixels = source.read(window)
    lost_px = 0 if pixels.lost is None else int((inside & pixels.lost)[of_cell].sum())
    read = Read(place, lost_px=lost_px, losses=pixels.losses, masked=pixels.masked)
    inside &= pixels.valid
    if not inside[of_support].any():
        return read
    filled = not bool(pixels.valid.all())
    image = fill_by_reflection(pixels.image, pixels.valid) if filled else pixels.image
    return read._replace(chip=Chip(place, image, Ground(inside[of_cell], pixels.scene[of_cell])), filled=filled)
