"""ONE run, the straight line: aoi -> grid -> plan -> read -> predict -> stitch -> write -> record."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import rasterio

from geodino.aoi import AOI
from geodino.compute import Work, reachable
from geodino.errors import ConfigError, ModelError
from geodino.estimate import Estimate, measure
from geodino.executors import Load, executor, machines_at_hand, machines_of, model_for
from geodino.models import load_model
from geodino.models.catalog import row
from geodino.models.hub import auto_model
from geodino.models.loading import facts_of, is_at_hand
from geodino.models.precision import choose_device, choose_precision
from geodino.options import RunOptions
from geodino.outputs.folder import OutputFolder, require_free
from geodino.outputs.item import build_item, write_item
from geodino.outputs.record import RunRecord
from geodino.plan import Plan, area_of, make_plan, with_scenes_used
from geodino.products import Products, context_m, products_of
from geodino.progress import Progress, Receipt
from geodino.provenance import Finished, file_record, make_record
from geodino.results import write_results
from geodino.resuming import begin, kept_for_later, tally_of
from geodino.settings import PipelineSpec, read_pipeline
from geodino.sources.raster import LOCAL_OPTIONS
from geodino.stages import gather
from geodino.stream import Tally
from geodino.watch import Fact, Silent, Watch, count


def run(
    pipeline: str | Path = "canopy",
    *,
    aoi: str | Path | AOI,
    out: str | Path,
    options: RunOptions | None = None,
    watch: Watch | None = None,
    load: Load = load_model,
) -> RunRecord:
    """Map an area of interest and write the results into a folder.

    Parameters
    ----------
    pipeline
        A shipped pipeline's name, or a YAML file.
    aoi
        A polygon file, WKT, `minx,miny,maxx,maxy`, `sample:NAME`, or an AOI.
    out
        A folder, or a place in a bucket such as s3://bucket/site. Holds run.json, item.json, preview.png, scene.tif and
        what the pipeline makes when this returns, and none of it where it raises. Statistics of each polygon:
        statistics.parquet and statistics.csv. Heights: canopy_height.tif and canopy_height_spread.tif. Trees:
        trees.parquet, trees.gpkg, tree_density.tif, and crowns.parquet where they are found on height. A preview that
        cannot be drawn is left out with a warning. Where a run is cut short, what it had done is kept below .work, and
        the same run goes on from there.
    options
        Sources, model and the rest; the command line's defaults.
    watch
        Is told of progress and warnings.
    load
        Gives the model; whoever makes many runs hands in one that keeps what it loaded.

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
    machines_of(options)
    OutputFolder(out, overwrite=options.overwrite).check()
    name, said = choose_model(spec, options, watch)
    products = products_of(spec, name)
    area = area_of(aoi, options)
    with ExitStack() as stack:
        # Before the plan: a search may take a minute, in which workers start or wait in a queue.
        client = stack.enter_context(machines_at_hand(options, watch))
        plan = settle(spec, area, replace(options, model=name), name, products, watch)
        plan = replace(plan, warnings=(*said, *plan.warnings))
        for sentence in plan.scenes_dropped:
            watch.note(f"left out: {sentence}")
        folder = stack.enter_context(OutputFolder(out, overwrite=options.overwrite))
        stack.enter_context(rasterio.Env(**LOCAL_OPTIONS))
        require_free(folder.path, plan.bytes_written)
        work = Work(plan, products, reachable(folder.work))
        with executor(work, name, load, watch, client) as crew, kept_for_later(work.store, watch):
            progress = begin(work, crew.model, watch)
            before = progress.windows_done
            watch.begin("windows", len(plan.places))
            crew.compute(progress, partial(_tell, progress, plan, watch))
            tally = tally_of(work, progress)
            written = time.perf_counter()
            # Trees name their scene by its number before the unused ones are left out.
            numbered, plan = plan.scenes, with_scenes_used(plan, tally)
            with gather(work, progress) as stages:
                results = write_results(
                    stages,
                    plan,
                    products,
                    crew.model,
                    folder,
                    numbered=numbered,
                    mapped_ha=tally.pixels_written * plan.grid.gsd**2 / 1e4,
                    watch=watch,
                )
            plan = replace(plan, warnings=(*plan.warnings, *results.warnings, *_of_losses(tally, plan, watch)))
            tally.write_s += time.perf_counter() - written
            total_s = time.perf_counter() - began
            done = Finished(
                plan, crew.model, name, tally, results.files, started, total_s, results.trees, crew.described, before
            )
            record = make_record(done)
            write_item(build_item(record, folder.local), folder.staging("item.json"))
            record = replace(record, outputs=(*results.files, file_record(folder.staging("item.json"), "item.json")))
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
    if machines_of(options).asked:
        watch.note("the estimate is for this process alone; other workers are not asked")
    name, _ = choose_model(spec, options, watch)
    products = products_of(spec, name)
    plan = settle(spec, aoi, options, name, products, watch)
    if not is_at_hand(name):
        raise ModelError(f"the weights of {name} are not on this machine, and a dry run downloads nothing: fetch them")
    began = time.perf_counter()
    model = model_for(products, options, name)
    return measure(plan, products, model, load_s=time.perf_counter() - began)


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


def settle(
    spec: PipelineSpec, aoi: str | Path | AOI, options: RunOptions, name: str, products: Products, watch: Watch
) -> Plan:
    """The plan, from the model's facts alone: nothing large is loaded before the AOI and the imagery are known good."""
    facts = facts_of(name, "height" if products.maps else "trees")
    if facts.gsd_m is None and isinstance(spec.gsd_m, str):
        raise ConfigError(
            f"model {name} does not say at how many metres a pixel it was trained; give gsd_m in the pipeline"
        )
    gsd_m = facts.gsd_m or spec.gsd(0)
    around_m = context_m(products, spec, spec.gsd(gsd_m))
    plan = make_plan(spec, aoi, options, gsd_m=gsd_m, tiling=facts.tiling, context_m=around_m)
    for sentence in plan.warnings:
        watch.warn(sentence)
    watch.note(
        f"{plan.aoi.area_ha:,.2f} ha, {count(len(plan.scenes), 'scene')}, "
        f"{count(len(plan.places), 'window')} of {plan.tiling.size} px, "
        f"{plan.grid.crs} at {plan.grid.gsd} m"
    )
    return plan


def _tell(progress: Progress, plan: Plan, watch: Watch, receipt: Receipt | None) -> None:
    if receipt is not None:
        tally = receipt.tally
        facts: dict[str, Fact] = {
            "band": receipt.key,
            "windows": tally.windows_run,
            "read_s": round(tally.read_s, 3),
            "forward_s": round(tally.forward_s, 3),
            "write_s": round(tally.write_s, 3),
        }
        watch.event("band finished" if receipt.final else "band predicted", facts)
    watch.advance(progress.windows_done, hectares=progress.pixels_done * plan.grid.gsd**2 / 1e4)


def _of_losses(tally: Tally, plan: Plan, watch: Watch) -> tuple[str, ...]:
    """The warnings where something could not be read, or not be verified."""
    said = sorted(tally.unverified)
    if tally.losses:
        lost_ha = tally.pixels_lost * plan.grid.gsd**2 / 1e4
        first = min(tally.losses)
        said.append(f"{lost_ha:,.2f} ha are nodata: {count(len(tally.losses), 'failure')}, as: {first}")
    for sentence in said:
        watch.warn(sentence)
    return tuple(said)
