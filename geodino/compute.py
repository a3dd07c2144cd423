"""The middle of a run, band by band: predict what its windows say, finish it with what its neighbours spill into it.

Any process can do either for any band. What a band says lies in the run's work store and only receipts travel; so the
result does not depend on who computed what, or in which order, and a run that was cut short goes on from there.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Collection, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import rasterio

from geodino.aoi import AOIMask
from geodino.bands import Band, BandId, cut, rows_for
from geodino.errors import ConfigError, GeodinoError, OutputError
from geodino.grid import Grid, Window
from geodino.models import Model
from geodino.models.as_run import ModelAsRun
from geodino.models.predictor import LAYERS
from geodino.outputs.cog import file_sha256
from geodino.outputs.pieces import Layout
from geodino.outputs.stage import StagedRaster
from geodino.plan import Plan
from geodino.products import Products
from geodino.progress import BANDS, Piece, Receipt, Sum
from geodino.sources import Mosaic
from geodino.sources.raster import LOCAL_OPTIONS, is_remote
from geodino.stitch import Edges, Layer, Unfinished, finish_band
from geodino.stores import Store, part_path
from geodino.stream import READER_THREADS, Computed, Ground, Tally, coarser, compute_bands
from geodino.unfinished import core_from_bytes, core_to_bytes, edges_from_bytes, edges_to_bytes
from geodino.windows import Place

Floats = npt.NDArray[np.float32]

# What trees are found on; its density is not staged, because trees are counted where they stand.
HEAT = ("heat", "right", "down")


@dataclass(frozen=True)
class Work:
    """What a run computes; all that a process needs to compute bands of it, beside the model.

    Attributes
    ----------
    store
        Where bands and receipts are kept.
    """

    plan: Plan
    products: Products
    store: Store

    @cached_property
    def bands(self) -> Mapping[BandId, Band]:
        places = self.plan.places
        return cut(places, rows_for(len(places)))

    @cached_property
    def layouts(self) -> Mapping[str, Layout]:
        """The staged rasters by their kind.

        `maps` holds height and spread within the AOI, if the model says anything of heights, and the number of the
        scene that gave the pixel. Where trees are found, `ground` is the same of the AOI and around it; and `heat`, on
        the model's coarser cells, what they are found on if it is not height.
        """
        plan, products = self.plan, self.products
        names = (*(LAYERS["canopy"].names if "canopy" in products.tasks else ()), "scene")
        fine = Layout(plan.grid, plan.tiling.stride, names, plan.spec.quantum_m)
        _check_block(plan, 1)
        found = {"maps": fine}
        if products.find_on:
            found["ground"] = fine
        if products.find_on == "heat":
            px = LAYERS["trees"].px
            _check_block(plan, px)
            found["heat"] = Layout(Grid(plan.grid.crs, plan.grid.gsd * px), plan.tiling.stride // px, HEAT, None)
        return found

    def extent(self, kind: str) -> Window:
        """What a staged raster covers, on its own grid."""
        return _in_cells_of(self.plan.staged_extent, LAYERS["trees"].px if kind == "heat" else 1)

    @property
    def layers(self) -> tuple[Layer, ...]:
        return tuple(LAYERS[task] for task in self.products.tasks)

    def pixels_of(self, band: Band) -> int:
        """Pixels of the AOI in the cells of a band, with and without imagery."""
        inside = AOIMask(self.plan.geometry, self.plan.grid)
        return sum(int(np.count_nonzero(inside(self.plan.tiling.cell(place)))) for place in band.places)


def reachable(store: Store) -> Store:
    """The same store by a name that means the same to processes in other folders."""
    return store if store.folder is None else Store(str(store.folder.resolve()))


class Hand:
    """One process that computes bands: its model, its open imagery and masks. A context manager."""

    def __init__(self, work: Work, model: Model) -> None:
        plan = work.plan
        self.work = work
        self._model = model
        self._inside = AOIMask(plan.geometry, plan.grid)
        self._needed = AOIMask(plan.needed, plan.grid)
        self._threads = reader_threads(plan, model)
        self._open()

    def _open(self) -> None:
        """Open the imagery, and begin the threads that read it: each has handles of its own, as long as it lives."""
        plan = self.work.plan
        self._opened = ExitStack()
        self._mosaic = self._opened.enter_context(
            Mosaic(
                plan.scenes,
                plan.grid,
                resampling=plan.spec.resampling,
                verify=plan.options.verify,
                skip_unreadable=plan.options.on_read_error == "skip",
            )
        )
        self._readers = self._opened.enter_context(ThreadPoolExecutor(self._threads, "geodino-read"))
        self._passes = self._opened.enter_context(self._model.passes(plan.tiling.size))

    def __enter__(self) -> Hand:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of threads and open files; nothing may be computed any more."""
        self._opened.close()

    @property
    def model(self) -> ModelAsRun:
        """How its model is run."""
        return ModelAsRun.of(self._model, self.work.plan.tiling.size)

    def compute(self, bands: Sequence[Band]) -> Generator[Computed, None, None]:
        """What the windows of each band say, one after the other; errors as for reading and for the model."""
        plan, model = self.work.plan, self._model
        try:
            with closing(
                compute_bands(
                    bands,
                    plan.tiling,
                    self._mosaic,
                    model.asked(self.work.products.tasks),
                    wanted=self._needed,
                    readers=self._readers,
                    passes=self._passes,
                    at_once=model.at_once(plan.tiling.size),
                    batch_size=model.batch_size(plan.tiling.size),
                    threads=self._threads,
                )
            ) as stream:
                for computed in stream:
                    computed.tally.unverified |= set(self._mosaic.unverified)
                    yield computed
        except (GeodinoError, MemoryError):
            # The imagery was told to stop, and would give nothing to the next band.
            self.close()
            self._open()
            raise

    def keep(self, computed: Computed, *, core: bool) -> Receipt:
        """Put what a band says into the store: its edges, and its core where somebody else will finish it.

        Without a core the band is to be finished at once, and the receipt is written then; but for one without any
        imagery, which is final as it is.
        """
        began, store, key = time.perf_counter(), self.work.store, computed.band.id.key
        if not computed.ground:
            receipt = Receipt(key, computed.tally, None, None, {})
            receipt.write(store)
            return receipt
        edges = _put(store, f"{BANDS}{key}.edges", edges_to_bytes([layer.edges for layer in computed.layers]))
        inner = _put(store, f"{BANDS}{key}.core", core_to_bytes(computed)) if core else None
        computed.tally.write_s += time.perf_counter() - began
        receipt = Receipt(key, computed.tally, edges, inner)
        if core:
            receipt.write(store)
        return receipt

    def fetch(self, receipt: Receipt) -> Computed:
        """A band that was kept with its core; OutputError where it is not what was kept."""
        band = self.work.bands[BandId.of(receipt.key)]
        assert receipt.core is not None
        cells, ground = core_from_bytes(_intact(self.work.store, receipt.core), len(self.work.layers))
        layers = tuple(Unfinished(*layer) for layer in zip(cells, self._edges(receipt), strict=True))
        return Computed(band, layers, ground, receipt.tally)

    def finish(self, own: Computed, around: Mapping[BandId, Receipt], missing: Collection[BandId] = ()) -> Receipt:
        """Make a band final and keep it.

        Parameters
        ----------
        around
            Receipts of the band itself and of its neighbours to the north, west and north-west that have windows.
        missing
            Those of them that were given up: what they share with the band is nodata.

        Raises
        ------
        OutputError
            The disk or the store refuses, or what a neighbour kept is damaged.
        """
        began, tally = time.perf_counter(), Tally()
        id_ = own.band.id
        mine = around[id_]
        edges = {before: self._edges(around[before]) for before in id_.before if before in around}
        lost = {place for before in missing for place in self.work.bands[before].places}
        with tempfile.TemporaryDirectory(prefix="geodino-") as folder, rasterio.Env(**LOCAL_OPTIONS):
            writers = _Writers(self.work, own.band, Path(folder))
            of_layers = [
                finish_band(
                    unfinished,
                    self.work.plan.tiling.coarser(layer.px),
                    own.band.first,
                    north=edges[id_.north][number] if id_.north in edges else None,
                    west=edges[id_.west][number] if id_.west in edges else None,
                    northwest=edges[id_.northwest][number] if id_.northwest in edges else None,
                )
                for number, (unfinished, layer) in enumerate(zip(own.layers, self.work.layers, strict=True))
            ]
            for cells in zip(*of_layers, strict=True):
                place = cells[0].place
                ground = self._without(place, own.ground[place], lost, tally)
                said = dict(zip(self.work.products.tasks, (cell.values for cell in cells), strict=True))
                self._write(place, said, ground, writers, tally)
            pieces = writers.close()
        tally.write_s += time.perf_counter() - began
        tally.add(mine.tally)
        names = tuple(sorted(before.key for before in missing))
        receipt = Receipt(id_.key, tally, mine.edges, None, pieces, names)
        receipt.write(self.work.store)
        if mine.core is not None:
            self.work.store.delete(mine.core.name)
        return receipt

    def _edges(self, receipt: Receipt) -> list[Edges]:
        if receipt.edges is None:
            return [Edges() for _ in self.work.layers]
        return edges_from_bytes(_intact(self.work.store, receipt.edges), len(self.work.layers))

    def _without(self, place: Place, ground: Ground, missing: Collection[Place], tally: Tally) -> Ground:
        """The ground less what only neighbours that were given up could have told; their part of it is not zero."""
        ramp = slice(0, self.work.plan.tiling.ramp)
        whole = slice(None)
        wanted = ground.wanted.copy()
        for neighbour, rows, cols in (
            (Place(place.r - 1, place.c), ramp, whole),
            (Place(place.r, place.c - 1), whole, ramp),
            (Place(place.r - 1, place.c - 1), ramp, ramp),
        ):
            if neighbour in missing:
                wanted[rows, cols] = False
        tally.pixels_lost += int(np.count_nonzero(ground.wanted & ~wanted))
        return Ground(wanted, ground.scene)

    def _write(self, place: Place, said: dict[str, Floats], ground: Ground, writers: _Writers, tally: Tally) -> None:
        """Put a finished cell where it belongs."""
        cell = self.work.plan.tiling.cell(place)
        mapped = ground.wanted & self._inside(cell)
        tally.count(mapped, ground.scene)
        # Numbers to 65 535 are whole in float32, and a multiple of any quantum.
        known = np.where(ground.wanted, ground.scene, np.nan).astype(np.float32)[None]
        if "canopy" in said:
            heights = said["canopy"]
            heights[:, ~ground.wanted] = np.nan
            known = np.concatenate([heights, known])
        if ground.wanted.any():
            writers.write("ground", cell, known)
        if "trees" in said:
            px, names = LAYERS["trees"].px, LAYERS["trees"].names
            heat = said["trees"][[names.index(name) for name in HEAT]]
            heat[:, ~coarser(ground.wanted, px)] = np.nan
            if np.isfinite(heat).any():
                writers.write("heat", _in_cells_of(cell, px), heat)
        if mapped.any():
            known[:, ~mapped] = np.nan
            writers.write("maps", cell, known)


class _Writers:
    """The pieces of a band, each begun with its first cell."""

    def __init__(self, work: Work, band: Band, scratch: Path) -> None:
        self._work, self._band = work, band
        # Where a piece will be renamed into its place, and else where there is room.
        store = work.store.folder
        self._folder = scratch if store is None else store / BANDS
        self._folder.mkdir(parents=True, exist_ok=True)
        self._open: dict[str, tuple[StagedRaster, Path]] = {}

    def write(self, kind: str, cell: Window, values: Floats) -> None:
        if kind not in self._work.layouts:
            return
        if kind not in self._open:
            cells = [self._work.plan.tiling.cell(place) for place in self._band.places]
            whole = cells[0]
            for other in cells[1:]:
                whole = whole.union(other)
            extent = _in_cells_of(whole, LAYERS["trees"].px if kind == "heat" else 1)
            path = part_path(self._folder / f"{self._band.id.key}.{kind}.tif")
            self._open[kind] = self._work.layouts[kind].create(path, extent), path
        self._open[kind][0].write(cell, values)

    def close(self) -> dict[str, Piece]:
        """Read back, checked and under their names."""
        pieces = {}
        with ExitStack() as parts:
            for _, path in self._open.values():
                parts.callback(path.unlink, missing_ok=True)
            for kind, (raster, path) in self._open.items():
                raster.close()
                name = f"{BANDS}{self._band.id.key}.{kind}.tif"
                said = Sum(name, path.stat().st_size, file_sha256(path))
                if self._work.store.folder is None:
                    self._work.store.upload(name, path)
                else:
                    path.replace(self._work.store.folder / name)
                extent = raster.extent
                pieces[kind] = Piece(said, (extent.row, extent.col, extent.height, extent.width))
        return pieces


def reader_threads(plan: Plan, model: Model) -> int:
    """How many threads read: as asked, else enough to hide a network's latency or to keep up with a GPU.

    Beside a model on the CPU each reader takes a core from it: with 8 readers of a local file nano keeps 0.55 of its
    own speed on two cores, with one 0.75 (benchmarks/end_to_end.py, November 2026), and it never waits for that one.
    """
    if plan.options.threads is not None:
        return plan.options.threads
    remote = any(is_remote(band.href) for scene in plan.scenes for band in scene.bands)
    return READER_THREADS if remote or model.device.type != "cpu" else 1


def _put(store: Store, name: str, data: bytes) -> Sum:
    store.put(name, data, durable=False)
    return Sum.of(name, data)


def _intact(store: Store, file: Sum) -> bytes:
    data = store.get(file.name)
    if data is None or not file.holds(data):
        raise OutputError(
            f"{store}/{file.name} is not what was written there: is the disk full or failing? "
            "Run the same command again, and it is computed anew"
        )
    return data


def _in_cells_of(window: Window, px: int) -> Window:
    """A window in units of `px` pixels, of which it has whole ones."""
    return Window(window.row // px, window.col // px, window.height // px, window.width // px)


def _check_block(plan: Plan, px: int) -> None:
    block = plan.tiling.stride
    if block % (16 * px):
        raise ConfigError(
            f"windows of {plan.tiling.size} px with {plan.tiling.overlap} px overlap go on by {block} px, and maps of "
            f"{px} px a value need a multiple of {16 * px}: give another overlap"
        )
