"""The stream of a run: every window once, nothing empty read, pixels the same whatever AOI was drawn."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geodino.bands import cut
from geodino.errors import ConfigError, ReadError
from geodino.grid import Window
from geodino.stitch import Edges, Layer, finish_band
from geodino.stream import Bools, Floats, Numbers, Tally, coarser, compute_bands, fill_by_reflection
from geodino.windows import Place, Tiling

TILING = Tiling(64, 32, 8)
NOWHERE = Window(0, 0, 0, 0)


@dataclass(frozen=True)
class Seen:
    image: npt.NDArray[np.float32]
    valid: npt.NDArray[np.bool_]
    scene: npt.NDArray[np.uint16]
    lost: npt.NDArray[np.bool_] | None = None
    losses: tuple[str, ...] = ()
    masked: dict[int, tuple[int, int]] = field(default_factory=dict)


@dataclass
class Field:
    """An endless made field of imagery with a hole, which counts its reads."""

    hole: Window = NOWHERE
    reads: Counter[Window] = field(default_factory=Counter)
    stopped: bool = False

    def stop(self) -> None:
        self.stopped = True

    def read(self, window: Window) -> Seen:
        self.reads[window] += 1
        rows = np.arange(window.row, window.row_stop, dtype=np.float32)[:, None]
        cols = np.arange(window.col, window.col_stop, dtype=np.float32)[None, :]
        plane = 0.5 + 0.25 * np.sin(rows / 11) + 0.25 * np.cos(cols / 7)
        valid = np.ones(window.shape, bool)
        shared = self.hole.intersection(window)
        if not shared.empty:
            valid[shared.slices_in(window)] = False
        image = np.where(valid, np.stack([plane] * 3), 0).astype(np.float32)
        return Seen(image, valid, valid.astype(np.uint16))


@dataclass
class Brightness:
    """A model whose height is the window's own brightness and the window's mean: what it sees shifts what it says."""

    windows: int = 0
    layers: tuple[Layer, ...] = (Layer(("height", "spread")),)

    def __call__(self, images: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], ...]:
        self.windows += len(images)
        mean = images.mean(axis=(1, 2, 3), keepdims=True)
        fine = np.concatenate([images[:, :1] * 30 + mean, images[:, :1]], axis=1)
        return tuple(fine[:, :, :: layer.px, :: layer.px] for layer in self.layers)


class Done(NamedTuple):
    place: Place
    maps: tuple[Floats, ...]
    wanted: Bools
    scene: Numbers


def stream_cells(  # type: ignore[no-untyped-def]
    places: list[Place],
    tiling: Tiling,
    source: Field,
    predictor: Brightness,
    *,
    tally: Tally,
    rows: int = 2,
    at_once: int = 2,
    **how,
) -> Generator[Done, None, None]:
    """The finished cells of all bands, band by band, NaN where nothing is wanted or known."""
    edges: dict[object, list[Edges]] = {}
    bands = list(cut(places, rows).values())
    with (
        ThreadPoolExecutor(at_once) as passes,
        ThreadPoolExecutor(how.get("threads", 16)) as readers,
        closing(
            compute_bands(bands, tiling, source, predictor, readers=readers, passes=passes, at_once=at_once, **how)
        ) as stream,
    ):
        for band, layers, ground, counted in stream:
            tally.add(counted)
            edges[band.id] = [layer.edges for layer in layers]
            north, west, northwest = (edges.get(before, [None] * len(layers)) for before in band.id.before)
            finished = [
                finish_band(
                    own, tiling.coarser(layer.px), band.first, north=north[n], west=west[n], northwest=northwest[n]
                )
                for n, (own, layer) in enumerate(zip(layers, predictor.layers, strict=True))
            ]
            for cells in zip(*finished, strict=True):
                place = cells[0].place
                for cell, layer in zip(cells, predictor.layers, strict=True):
                    cell.values[:, ~coarser(ground[place].wanted, layer.px)] = np.nan
                yield Done(place, tuple(cell.values for cell in cells), *ground[place])


def compute(  # type: ignore[no-untyped-def]
    extent: Window,
    source: Field,
    *,
    aoi: Window | None = None,
    batch: int = 3,
    threads: int = 4,
    rows: int = 2,
    at_once: int = 2,
):
    def wanted(window: Window) -> npt.NDArray[np.bool_]:
        mask = np.zeros(window.shape, bool)
        shared = (aoi or extent).intersection(window)
        if not shared.empty:
            mask[shared.slices_in(window)] = True
        return mask

    out, tally = np.full((2, *extent.shape), np.nan, np.float32), Tally()
    places = list(TILING.places(extent))
    for place, (values,), mapped, scene in stream_cells(
        places, TILING, source, Brightness(), wanted=wanted, tally=tally, batch_size=batch, threads=threads,
        rows=rows, at_once=at_once,
    ):  # fmt: skip
        tally.count(mapped, scene)
        cell = TILING.cell(place)
        shared = cell.intersection(extent)
        if not shared.empty:
            out[(slice(None), *shared.slices_in(extent))] = values[(slice(None), *shared.slices_in(cell))]
    return out, tally


EXTENTS = st.builds(Window, st.integers(-200, 200), st.integers(-200, 200), st.integers(1, 150), st.integers(1, 150))


@settings(max_examples=25)
@given(EXTENTS, EXTENTS, st.integers(1, 5), st.integers(1, 6), st.integers(1, 4), st.integers(1, 3))
def test_a_pixel_says_the_same_whatever_aoi_batch_threads_or_bands(
    a: Window, b: Window, batch: int, threads: int, rows: int, at_once: int
) -> None:
    whole = a.union(b)
    small, _ = compute(a, Field())
    large, _ = compute(whole, Field(), batch=batch, threads=threads, rows=rows, at_once=at_once)
    np.testing.assert_allclose(large[(slice(None), *a.slices_in(whole))], small, atol=1e-5)
    assert np.isfinite(small).all()


def test_every_window_is_read_once_and_computed_once() -> None:
    source = Field()
    _, tally = compute(Window(10, 20, 200, 170), source)
    places = list(TILING.places(Window(10, 20, 200, 170)))
    assert source.reads == Counter({TILING.window(place): 1 for place in places})
    assert tally.windows_run == len(places)
    assert tally.pixels_written == 200 * 170
    assert tally.scene_pixels == {1: 200 * 170}


def test_windows_outside_the_aoi_are_never_read_and_empty_ones_never_run() -> None:
    aoi = Window(0, 0, 40, 40)
    source = Field()
    out, tally = compute(Window(0, 0, 300, 300), source, aoi=aoi)
    assert all(not window.intersection(aoi).empty for window in source.reads)
    assert tally.windows_run == len(source.reads) < len(list(TILING.places(Window(0, 0, 300, 300))))
    assert np.isfinite(out[:, :40, :40]).all() and np.isnan(out[:, 40:]).all() and np.isnan(out[:, :, 40:]).all()

    everywhere_empty = Field(hole=Window(-500, -500, 2000, 2000))
    out, tally = compute(Window(0, 0, 100, 100), everywhere_empty)
    assert tally.windows_run == 0 and sorted(tally.windows_empty) == list(TILING.places(Window(0, 0, 100, 100)))
    assert np.isnan(out).all()


def test_nodata_in_is_nodata_out_and_its_filling_never_shows() -> None:
    hole = Window(40, 40, 30, 500)
    out, tally = compute(Window(0, 0, 120, 120), Field(hole))
    expected = np.ones((120, 120), bool)
    expected[40:70, 40:] = False
    np.testing.assert_array_equal(np.isfinite(out[0]), expected)
    assert tally.windows_filled > 0


def test_layers_of_two_resolutions_come_side_by_side_and_say_the_same_of_the_same_ground() -> None:
    extent, aoi = Window(-30, 10, 150, 130), Window(-21, 17, 99, 83)
    inside = aoi.intersection(extent)

    def wanted(window: Window) -> npt.NDArray[np.bool_]:
        mask = np.zeros(window.shape, bool)
        shared = inside.intersection(window)
        if not shared.empty:
            mask[shared.slices_in(window)] = True
        return mask

    fine, coarse = Layer(("height", "spread")), Layer(("height", "spread"), 2)
    places = list(TILING.places(extent))
    found = {}
    for layers in ((fine,), (fine, coarse), (coarse,)):
        cells = stream_cells(
            places, TILING, Field(), Brightness(layers=layers), wanted=wanted, tally=Tally(), batch_size=4
        )
        found[layers] = list(cells)
    assert len(found[(fine,)]) == len(found[(coarse,)]) == 20
    for alone, both, small in zip(found[(fine,)], found[(fine, coarse)], found[(coarse,)], strict=True):
        np.testing.assert_array_equal(both.maps[0], alone.maps[0])
        np.testing.assert_array_equal(both.maps[1], small.maps[0])
        assert small.maps[0].shape == (2, TILING.stride // 2, TILING.stride // 2)
        squares = alone.wanted.reshape(16, 2, 16, 2)
        np.testing.assert_array_equal(np.isfinite(small.maps[0][0]), squares.any(axis=(1, 3)))
        whole = squares.all(axis=(1, 3))
        # The picture changes by 0.04 a pixel, 30 m for each 1: a value lies a pixel from its cell's first one.
        apart = (small.maps[0] - alone.maps[0][:, ::2, ::2])[:, whole]
        assert not whole.any() or np.abs(apart).max() < 1.5


def test_windows_that_are_not_whole_cells_are_refused() -> None:
    with pytest.raises(ConfigError, match="margin 5 px do not fit maps of 2 px a value"):
        Tiling(64, 32, 5).coarser(2)


def test_a_straight_edge_is_filled_by_plain_reflection() -> None:
    image = np.random.default_rng(1).random((3, 20, 24)).astype(np.float32)
    valid = np.zeros((20, 24), bool)
    valid[:, 9:] = True
    filled = fill_by_reflection(np.where(valid, image, 0), valid)
    np.testing.assert_array_equal(filled[:, :, :9], image[:, :, 18:9:-1])
    np.testing.assert_array_equal(filled[:, valid], image[:, valid])


@given(st.integers(0, 2**32 - 1))
def test_filling_uses_valid_pixels_only(seed: int) -> None:
    rng = np.random.default_rng(seed)
    valid = rng.random((24, 31)) > 0.6
    valid[rng.integers(24), rng.integers(31)] = True
    image = np.where(valid, rng.random((3, 24, 31)) + 1, 0).astype(np.float32)
    assert (fill_by_reflection(image, valid) >= 1).all()


def test_a_read_error_stops_the_stream_and_its_threads() -> None:
    class Torn(Field):
        def read(self, window: Window) -> Seen:
            raise ReadError("scene x cannot be read")

    before = threading.active_count()
    places = list(TILING.places(Window(0, 0, 500, 500)))
    with pytest.raises(ReadError, match="scene x cannot be read"):
        list(stream_cells(places, TILING, Torn(), Brightness(), wanted=lambda w: np.ones(w.shape, bool), tally=Tally()))
    assert threading.active_count() == before


class Slow(Field):
    """A source that takes its time, and knows how many threads are inside."""

    inside = 0

    def read(self, window: Window) -> Seen:
        Slow.inside += 1
        time.sleep(0.05)
        try:
            return super().read(window)
        finally:
            Slow.inside -= 1


class Refusing(Brightness):
    def __call__(self, images: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], ...]:
        raise KeyboardInterrupt


def test_no_read_is_under_way_once_the_model_has_failed() -> None:
    places = list(TILING.places(Window(0, 0, 700, 700)))
    source = Slow()
    cells = stream_cells(
        places, TILING, source, Refusing(), wanted=lambda w: np.ones(w.shape, bool), tally=Tally(), threads=6
    )
    with pytest.raises(KeyboardInterrupt) as caught:
        next(cells)
    # The traceback is kept alive here, as it is in a run: its generators are not collected yet.
    assert Slow.inside == 0, caught
    # Or it would wait for a server as long as its patience goes.
    assert source.stopped


def test_no_read_is_under_way_once_the_caller_has_closed_the_cells() -> None:
    places = list(TILING.places(Window(0, 0, 700, 700)))
    with closing(
        stream_cells(
            places, TILING, Slow(), Brightness(), wanted=lambda w: np.ones(w.shape, bool), tally=Tally(), threads=6
        )
    ) as cells:
        next(cells)
        assert Slow.inside > 0
    assert Slow.inside == 0


@pytest.mark.parametrize("at_once", [1, 3])
def test_what_cannot_be_read_ends_its_own_band_and_none_before(at_once: int) -> None:
    """Bands before it are whole, though batches of them were under way when the read failed."""
    extent = Window(0, 0, 32 * 3, 32 * 20)
    bands = list(cut(TILING.places(extent), 1).values())
    torn = TILING.window(bands[5].places[2])

    class Torn(Field):
        def read(self, window: Window) -> Seen:
            if window == torn:
                raise ReadError("scene x cannot be read")
            return super().read(window)

    whole = []
    with (
        pytest.raises(ReadError, match="scene x"),
        ThreadPoolExecutor(at_once) as passes,
        ThreadPoolExecutor(8) as readers,
        closing(
            compute_bands(
                bands, TILING, Torn(), Brightness(), wanted=lambda w: np.ones(w.shape, bool), readers=readers,
                passes=passes, at_once=at_once, threads=8,
            )
        ) as stream,
    ):  # fmt: skip
        for computed in stream:
            whole.append(computed.band)
            assert len(computed.ground) == len(computed.band.places)
    assert whole == bands[:5]
