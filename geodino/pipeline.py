"""ONE run, the straight line: aoi -> grid -> plan -> read -> predict -> stitch -> write -> record."""

from __future__ import annotations

import logging
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import rasterio

from geodino.aoi import AOI, AOIMask
from geodino.errors import ConfigError, ModelError, SourceError
from geodino.estimate import Estimate, measure
from geodino.models import Model, load_model
from geodino.models.catalog import row
from geodino.models.hub import auto_model
from geodino.models.loading import facts_of, is_at_hand
from geodino.models.precision import choose_device, choose_precision
from geodino.outputs.cog import CogProfile, stage_to_cog
from geodino.outputs.folder import OutputFolder, require_free
from geodino.outputs.item import build_item, write_item
from geodino.outputs.record import FileRecord, RunRecord, StatisticsRecord
from geodino.outputs.stage import StagedRaster
from geodino.plan import Plan, RunOptions, make_plan, with_scenes_used
from geodino.provenance import Finished, file_record, make_record, provenance_tags
from geodino.quicklook import PREVIEW_FAULTS, draw_preview
from geodino.settings import PipelineSpec, read_pipeline
from geodino.sources import Mosaic
from geodino.sources.raster import LOCAL_OPTIONS, causes, is_remote
from geodino.stream import READER_THREADS, Tally, stream_cells
from geodino.watch import Silent, Watch, count

logger = logging.getLogger(__name__)

FILES = {"height": "canopy_height.tif", "spread": "canopy_height_spread.tif"}
PREVIEW = "preview.png"


def run(
    pipeline: str | Path = "canopy",
    *,
    aoi: str | Path | AOI,
    out: str | Path,
    options: RunOptions | None = None,
    watch: Watch | None = None,
) -> RunRecord:
    """Map an area of interest and write the results into a folder.

    Parameters
    ----------
    pipeline
        A shipped pipeline's name, or a YAML file.
    aoi
        A polygon file, WKT, `minx,miny,maxx,maxy`, `sample:NAME`, or an AOI.
    out
        Holds canopy_height.tif, canopy_height_spread.tif, preview.png, item.json and run.json when this returns, and
        none of them where it raises. A preview that cannot be drawn is left out with a warning.
    options
        Sources, model and the rest; the command line's defaults.
    watch
        Is told of progress and warnings.

    Returns
    -------
    RunRecord
        What run.json holds.

    Raises
    ------
    GeodinoError
        A subclass for each cause; `errors.py` shows the tree.
    """
    began, started = time.perf_counter(), datetime.now(UTC)
    watch, options = watch or Silent(), options or RunOptions()
    spec = read_pipeline(pipeline)
    OutputFolder(out, overwrite=options.overwrite).check()
    name, said = choose_model(spec, options, watch)
    plan = settle(spec, aoi, replace(options, model=name), name, watch)
    plan = replace(plan, warnings=(*said, *plan.warnings))
    with OutputFolder(out, overwrite=options.overwrite) as folder, rasterio.Env(**LOCAL_OPTIONS):
        require_free(folder.path, plan.bytes_written)
        model = load_model(name, precision=options.precision, device=options.device, batch_size=options.batch_size)
        tally = Tally()
        stage = _compute(plan, model, folder, watch, tally)
        plan = with_scenes_used(plan, tally.scene_pixels)
        written = time.perf_counter()
        outputs, left_out = _write_outputs(stage, plan, model, folder, started=started, watch=watch)
        plan = replace(plan, warnings=(*plan.warnings, *left_out))
        tally.write_s += time.perf_counter() - written
        record = make_record(Finished(plan, model, name, tally, outputs, started, time.perf_counter() - began))
        write_item(build_item(record, folder.path), folder.staging("item.json"))
        record = replace(record, outputs=(*outputs, file_record(folder.staging("item.json"), "item.json")))
        record.write(folder.staging("run.json"))
        folder.publish()
    return record


def estimate(
    pipeline: str | Path = "canopy",
    *,
    aoi: str | Path | AOI,
    options: RunOptions | None = None,
    watch: Watch | None = None,
) -> Estimate:
    """What `run` would do and how long it would take, measured on one batch of windows; writes nothing."""
    watch, options = watch or Silent(), options or RunOptions()
    spec = read_pipeline(pipeline)
    name, _ = choose_model(spec, options, watch)
    plan = settle(spec, aoi, options, name, watch)
    if not is_at_hand(name):
        raise ModelError(f"the weights of {name} are not on this machine, and a dry run downloads nothing: fetch them")
    began = time.perf_counter()
    model = load_model(name, precision=options.precision, device=options.device, batch_size=options.batch_size)
    return measure(plan, model, load_s=time.perf_counter() - began)


def choose_model(spec: PipelineSpec, options: RunOptions, watch: Watch) -> tuple[str, tuple[str, ...]]:
    """The model's name, hub id or folder, and the warning where `auto` had to take a lesser one.

    Raises
    ------
    ConfigError
        The device or precision that was asked for is not there.
    """
    choose_precision(options.precision, choose_device(options.device))
    asked = options.model or spec.model
    if asked != "auto":
        return asked, ()
    name, sentence = auto_model()
    if row(name).demonstration:
        watch.warn(sentence)
        return name, (sentence,)
    watch.note(sentence)
    return name, ()


def settle(spec: PipelineSpec, aoi: str | Path | AOI, options: RunOptions, name: str, watch: Watch) -> Plan:
    """The plan, from the model's facts alone: nothing large is loaded before the AOI and the imagery are known good."""
    facts = facts_of(name)
    if facts.gsd_m is None and isinstance(spec.gsd_m, str):
        raise ConfigError(
            f"model {name} does not say at how many metres a pixel it was trained; give gsd_m in the pipeline"
        )
    plan = make_plan(spec, aoi, options, gsd_m=facts.gsd_m or spec.gsd(0), tiling=facts.tiling)
    for sentence in plan.warnings:
        watch.warn(sentence)
    watch.note(
        f"{plan.aoi.area_ha:,.2f} ha, {count(len(plan.scenes), 'scene')}, "
        f"{count(len(plan.places), 'window')} of {plan.tiling.size} px, "
        f"{plan.grid.crs} at {plan.grid.gsd} m"
    )
    return plan


def reader_threads(plan: Plan, model: Model) -> int:
    """How many threads read: as asked, else enough to hide a network's latency or to keep up with a GPU.

    Beside a model on the CPU each reader takes a core from it: with 8 readers of a local file nano keeps 0.55 of its
    own speed on two cores, with one 0.75 (benchmarks/end_to_end.py, November 2026), and it never waits for that one.
    """
    if plan.options.threads is not None:
        return plan.options.threads
    remote = any(is_remote(band.href) for scene in plan.scenes for band in scene.bands)
    return READER_THREADS if remote or model.device.type != "cpu" else 1


def _compute(plan: Plan, model: Model, folder: OutputFolder, watch: Watch, tally: Tally) -> StagedRaster:
    """Read, predict and stitch every window; the finished cells lie in the staged raster."""
    stage = StagedRaster.create(
        folder.scratch("stage.tif"),
        plan.grid,
        plan.staged_extent,
        block=plan.tiling.stride,
        names=model.outputs,
        quantum=plan.spec.quantum_m,
    )
    watch.begin("windows", len(plan.places))
    with (
        Mosaic(plan.scenes, plan.grid, resampling=plan.spec.resampling) as mosaic,
        closing(
            stream_cells(
                plan.places,
                plan.tiling,
                mosaic,
                model.asked(("canopy",)),
                wanted=AOIMask(plan.geometry, plan.grid),
                tally=tally,
                batch_size=model.batch_size(plan.tiling.size),
                threads=reader_threads(plan, model),
            )
        ) as cells,
    ):
        for done, square in enumerate(cells, start=1):
            (heights,) = square.maps
            if np.isfinite(heights).any():
                began = time.perf_counter()
                stage.write(plan.tiling.cell(square.place), heights)
                tally.write_s += time.perf_counter() - began
            watch.advance(done + len(tally.windows_empty))
    began = time.perf_counter()
    stage.close()
    tally.write_s += time.perf_counter() - began
    if not tally.pixels_written:
        raise SourceError("the imagery has no valid pixel in the AOI; give other dates or other imagery with --source")
    return stage


def _write_outputs(
    stage: StagedRaster, plan: Plan, model: Model, folder: OutputFolder, *, started: datetime, watch: Watch
) -> tuple[tuple[FileRecord, ...], tuple[str, ...]]:
    """COGs and preview, under the temporary names that `publish` will turn into their own; and what is missing."""
    watch.begin("writing", len(FILES) + 1)
    tags = provenance_tags(plan, model, started)

    def write(output: str) -> FileRecord:
        name = FILES[output]
        profile = CogProfile(name.removesuffix(".tif"), "m", tags)
        # GDAL's options belong to a thread.
        with rasterio.Env(**LOCAL_OPTIONS):
            receipt = stage_to_cog(stage, output, folder.staging(name), clip=plan.extent, profile=profile)
        return FileRecord(name, receipt.sha256, receipt.size_bytes, StatisticsRecord.of(receipt.census))

    # Side by side, because compressing and checking are a fifth of a run with a small model.
    with ThreadPoolExecutor(len(FILES), thread_name_prefix="geodino-write") as pool:
        futures = [pool.submit(write, output) for output in FILES]
        made = []
        left_out: tuple[str, ...] = ()
        for done, future in enumerate(futures, start=1):
            made.append(future.result())
            if done == 1:
                left_out = _draw_preview(plan, model, folder, watch)
            watch.advance(done)
    if not left_out:
        made.append(file_record(folder.staging(PREVIEW), PREVIEW))
    watch.advance(len(FILES) + 1)
    return tuple(made), left_out


def _draw_preview(plan: Plan, model: Model, folder: OutputFolder, watch: Watch) -> tuple[str, ...]:
    """The preview; a sentence where it cannot be drawn, because hours of finished heights do not hang on a picture."""
    try:
        draw_preview(plan, model, folder.staging(FILES["height"]), folder.staging(PREVIEW))
    except PREVIEW_FAULTS as error:
        logger.info("%s cannot be drawn", PREVIEW, exc_info=True)
        folder.discard(PREVIEW)
        sentence = f"{PREVIEW} cannot be drawn and is left out: {causes(error)}"
        watch.warn(sentence)
        return (sentence,)
    return ()
