"""The middle of a run: every window read, predicted and stitched once; the finished squares lie in staged rasters."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from geodino.aoi import AOIMask
from geodino.errors import ConfigError, ReadError, SourceError
from geodino.grid import Grid, Window
from geodino.models import Model
from geodino.models.predictor import LAYERS
from geodino.outputs.folder import OutputFolder
from geodino.outputs.stage import StagedRaster
from geodino.plan import Plan
from geodino.products import Products
from geodino.sources import Mosaic
from geodino.sources.raster import is_remote
from geodino.stream import READER_THREADS, Done, Tally, stream_cells
from geodino.watch import Watch

# What trees are found on; its density is not staged, because trees are counted where they stand.
HEAT = ("heat", "right", "down")


@dataclass(frozen=True)
class Stages:
    """What was computed, closed and whole.

    Attributes
    ----------
    maps
        `height` and `spread` within the AOI, if the model says anything of heights, and `scene`, the number of the
        scene that gave the pixel.
    ground
        What is known of the ground of the AOI and around it, where trees are found: `height` and `spread` if there,
        and `scene`.
    heat
        `heat`, `right` and `down` of the same ground, on the model's coarser cells; None where trees are found on
        height, or not at all.
    hidden_shares
        Share of each scene's valid pixels that its mask hid, where they were asked for; None without a mask.
    """

    maps: StagedRaster
    ground: StagedRaster | None
    heat: StagedRaster | None
    hidden_shares: tuple[float | None, ...] = ()


def compute(plan: Plan, products: Products, model: Model, folder: OutputFolder, watch: Watch, tally: Tally) -> Stages:
    """Read, predict and stitch every window of a plan.

    Raises
    ------
    SourceError
        The imagery has no valid pixel in the AOI.
    ReadError
        Imagery cannot be read, and is not to be skipped; or all of it was.
    ConfigError
        The windows do not fit the model's coarser maps.
    """
    stages = _make_stages(plan, products, model, folder)
    inside = AOIMask(plan.geometry, plan.grid)
    watch.begin("windows", len(plan.places))
    with (
        Mosaic(
            plan.scenes,
            plan.grid,
            resampling=plan.spec.resampling,
            verify=plan.options.verify,
            skip_unreadable=plan.options.on_read_error == "skip",
        ) as mosaic,
        closing(
            stream_cells(
                plan.places,
                plan.tiling,
                mosaic,
                model.asked(products.tasks),
                wanted=AOIMask(plan.needed, plan.grid),
                tally=tally,
                batch_size=model.batch_size(plan.tiling.size),
                threads=reader_threads(plan, model),
            )
        ) as squares,
    ):
        for done, square in enumerate(squares, start=1):
            began = time.perf_counter()
            _stage(square, plan.tiling.cell(square.place), products, stages, inside, tally)
            tally.write_s += time.perf_counter() - began
            watch.advance(done + len(tally.windows_empty))
    began = time.perf_counter()
    stages = replace(stages, hidden_shares=mosaic.hidden_shares())
    tally.losses, tally.unverified = sorted(mosaic.losses), mosaic.unverified
    for stage in (stages.maps, stages.ground, stages.heat):
        if stage is not None:
            stage.close()
    tally.write_s += time.perf_counter() - began
    if not tally.pixels_written and tally.losses:
        raise ReadError(f"no pixel of the AOI could be read; {len(tally.losses)} reads failed, as: {tally.losses[0]}")
    if not tally.pixels_written:
        raise SourceError("the imagery has no valid pixel in the AOI; give other dates or other imagery with --source")
    return stages


def reader_threads(plan: Plan, model: Model) -> int:
    """How many threads read: as asked, else enough to hide a network's latency or to keep up with a GPU.

    Beside a model on the CPU each reader takes a core from it: with 8 readers of a local file nano keeps 0.55 of its
    own speed on two cores, with one 0.75 (benchmarks/end_to_end.py, November 2026), and it never waits for that one.
    """
    if plan.options.threads is not None:
        return plan.options.threads
    remote = any(is_remote(band.href) for scene in plan.scenes for band in scene.bands)
    return READER_THREADS if remote or model.device.type != "cpu" else 1


def _make_stages(plan: Plan, products: Products, model: Model, folder: OutputFolder) -> Stages:
    def stage(name: str, names: tuple[str, ...], quantum: float | None, px: int = 1) -> StagedRaster:
        return _create(folder.scratch(name), plan, names, quantum, px)

    heights = LAYERS["canopy"].names if "canopy" in products.tasks else ()
    return Stages(
        maps=stage("stage.tif", (*heights, "scene"), plan.spec.quantum_m),
        ground=stage("ground.tif", (*heights, "scene"), plan.spec.quantum_m) if products.find_on else None,
        heat=stage("heat.tif", HEAT, None, LAYERS["trees"].px) if products.find_on == "heat" else None,
    )


def _create(path: Path, plan: Plan, names: tuple[str, ...], quantum: float | None, px: int) -> StagedRaster:
    """An empty raster over all that the plan needs, on cells of `px` pixels."""
    extent = plan.staged_extent
    block = plan.tiling.stride
    if block % (16 * px):
        raise ConfigError(
            f"windows of {plan.tiling.size} px with {plan.tiling.overlap} px overlap go on by {block} px, and maps of "
            f"{px} px a value need a multiple of {16 * px}: give another overlap"
        )
    coarse = Window(extent.row // px, extent.col // px, extent.height // px, extent.width // px)
    grid = Grid(plan.grid.crs, plan.grid.gsd * px)
    return StagedRaster.create(path, grid, coarse, block=block // px, names=names, quantum=quantum)


def _stage(square: Done, cell: Window, products: Products, stages: Stages, inside: AOIMask, tally: Tally) -> None:
    """Put a finished square where it belongs."""
    mapped = square.wanted & inside(cell)
    tally.count(mapped, square.scene)
    said = dict(zip(products.tasks, square.maps, strict=True))
    heights = said.get("canopy")
    # Numbers to 65 535 are whole in float32, and a multiple of any quantum.
    scene = np.where(square.wanted, square.scene, np.nan).astype(np.float32)[None]
    known = scene if heights is None else np.concatenate([heights, scene])
    if stages.ground is not None and square.wanted.any():
        stages.ground.write(cell, known)
    if stages.heat is not None:
        px = LAYERS["trees"].px
        names = LAYERS["trees"].names
        heat: npt.NDArray[np.float32] = said["trees"][[names.index(name) for name in HEAT]]
        if np.isfinite(heat).any():
            stages.heat.write(Window(cell.row // px, cell.col // px, cell.height // px, cell.width // px), heat)
    if mapped.any():
        known[:, ~mapped] = np.nan
        stages.maps.write(cell, known)
