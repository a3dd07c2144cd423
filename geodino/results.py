"""The end of a run: maps, trees and picture out of what was staged, under the names that `publish` will change."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path
from textwrap import shorten
from threading import Lock
from typing import Any

import rasterio

from geodino import __version__
from geodino.aoi import AOIMask
from geodino.models.as_run import ModelAsRun
from geodino.outputs.cog import COG_STEPS, CogProfile, stage_to_cog
from geodino.outputs.density import density_writer
from geodino.outputs.folder import OutputFolder
from geodino.outputs.pmtiles import write_pmtiles
from geodino.outputs.record import FileRecord, StatisticsRecord, TreesRecord
from geodino.outputs.scene_map import SCENE, scene_label, scene_table, write_scene_map
from geodino.outputs.styles import crown_style, density_style, scene_style
from geodino.outputs.tree_table import SceneRow, TreeTable
from geodino.outputs.vectors import TreePaths, tree_writer
from geodino.plan import Plan
from geodino.products import (
    CROWNS,
    CROWNS_STYLE,
    DENSITY,
    DENSITY_STYLE,
    PREVIEW,
    SCENE_STYLE,
    STATISTICS,
    STATISTICS_CSV,
    TILES,
    TREES,
    TREES_PACKAGE,
    Products,
    heat_settings,
    height_settings,
)
from geodino.provenance import file_record, provenance_tags, scene_records
from geodino.quicklook import PREVIEW_FAULTS, draw_preview
from geodino.redaction import without_secrets
from geodino.settings import TreesSpec
from geodino.sources import Scene
from geodino.sources.raster import LOCAL_OPTIONS
from geodino.sources.scene import Facts
from geodino.stages import Stages
from geodino.surface import RasterSurface, Surface
from geodino.trees import BLOCK, Trees, heat_trees, looked_up
from geodino.treetops import height_trees
from geodino.watch import Watch
from geodino.zonal.ground import Layers
from geodino.zonal.statistics import zone_statistics
from geodino.zonal.sums import Settings
from geodino.zonal.zones import zones_of

logger = logging.getLogger(__name__)

# Letters of why there is no preview: a path and a reason.
_LONGEST_CAUSE = 240


@dataclass(frozen=True)
class Results:
    """The finished files, what was found of trees, and sentences that a user must know."""

    files: tuple[FileRecord, ...]
    trees: TreesRecord | None
    warnings: tuple[str, ...]


def write_results(
    stages: Stages,
    plan: Plan,
    products: Products,
    model: ModelAsRun,
    folder: OutputFolder,
    *,
    numbered: Sequence[Scene],
    mapped_ha: float,
    watch: Watch,
) -> Results:
    """Write all that a run makes but its Item and record.

    Parameters
    ----------
    numbered
        The scenes as they were numbered when the ground was staged.
    mapped_ha
        How much of the AOI has imagery, hectares of the grid.

    Raises
    ------
    OutputError
        The disk refuses, or does not hold what was written.
    """
    tags = provenance_tags(plan, model)
    names, steps = products.maps, _Steps(watch)
    # Side by side, because compressing and checking are a fifth of a run with a small model.
    with ThreadPoolExecutor(max(len(names), 1), thread_name_prefix="geodino-write") as pool:
        maps = [pool.submit(_write_map, stages, plan, band, name, folder, tags, steps) for band, name in names.items()]
        found, trees = _write_trees(stages, plan, products, model, folder, numbered, tags, mapped_ha, watch)
        steps.begin("maps", len(maps) * COG_STEPS)
        files = [future.result() for future in maps]
    files += found
    watch.begin("scenes", 1)
    files += _write_scenes(stages, plan, folder, numbered, tags)
    watch.advance(1)
    tables, notes = _write_statistics(stages, plan, products, folder, watch)
    files += tables
    watch.begin("preview", 1)
    left_out = _draw(plan, products, model, folder, watch)
    if not left_out:
        files.append(file_record(folder.staging(PREVIEW), PREVIEW))
    watch.advance(1)
    return Results(tuple(files), trees, (*notes, *left_out))


class _Steps:
    """Counts what several threads do, and tells of it once somebody begins a stage of it."""

    def __init__(self, watch: Watch) -> None:
        self._watch, self._lock = watch, Lock()
        self._done, self._begun = 0, False

    def begin(self, title: str, total: int) -> None:
        with self._lock:
            self._begun = total > 0
            if self._begun:
                self._watch.begin(title, total)
                self._watch.advance(self._done)

    def step(self) -> None:
        with self._lock:
            self._done += 1
            if self._begun:
                self._watch.advance(self._done)


def _write_map(
    stages: Stages, plan: Plan, band: str, name: str, folder: OutputFolder, tags: dict[str, str], steps: _Steps
) -> FileRecord:
    profile = CogProfile(name.removesuffix(".tif"), "m", tags)
    # GDAL's options belong to a thread.
    with rasterio.Env(**LOCAL_OPTIONS):
        receipt = stage_to_cog(
            stages.maps, band, folder.staging(name), clip=plan.extent, profile=profile, told=steps.step
        )
    return FileRecord(name, receipt.sha256, receipt.size_bytes, StatisticsRecord.of(receipt.census))


def _write_scenes(
    stages: Stages, plan: Plan, folder: OutputFolder, numbered: Sequence[Scene], tags: dict[str, str]
) -> list[FileRecord]:
    """Which scene each pixel came from, by its place in the record's list of scenes."""
    places = {scene.bands: place for place, scene in enumerate(plan.scenes, start=1)}
    numbers = {number: places[scene.bands] for number, scene in enumerate(numbered, 1) if scene.bands in places}
    table = scene_table(scene_records(plan))
    made = write_scene_map(
        stages.maps, folder.staging(SCENE), clip=plan.extent, numbers=numbers, table=table, tags=tags
    )
    style = scene_style([scene_label(entry) for entry in table])
    return [FileRecord(SCENE, made.sha256, made.size_bytes), _text(folder, SCENE_STYLE, style)]


def _write_trees(
    stages: Stages,
    plan: Plan,
    products: Products,
    model: ModelAsRun,
    folder: OutputFolder,
    numbered: Sequence[Scene],
    tags: dict[str, str],
    mapped_ha: float,
    watch: Watch,
) -> tuple[list[FileRecord], TreesRecord | None]:
    """Points, GeoPackage, crowns and density, block by block; nothing where the pipeline finds no trees."""
    spec = plan.spec.trees
    if products.find_on is None or spec is None or stages.ground is None:
        return [], None
    with_crowns = products.find_on == "height" and spec.crowns
    paths = TreePaths(
        folder.staging(TREES), folder.staging(TREES_PACKAGE), folder.staging(CROWNS) if with_crowns else None
    )
    with ExitStack() as opened:
        ground = opened.enter_context(RasterSurface(stages.ground.path))
        heat = opened.enter_context(RasterSurface(stages.heat.path)) if stages.heat else None
        surface: Surface = heat or ground
        wanted = AOIMask(plan.geometry, surface.grid)
        scenes = [SceneRow(scene.id, _day(scene.facts)) for scene in numbered]
        table = TreeTable(surface.grid, scenes)
        band = "heat" if heat else "height"
        with (
            density_writer(
                folder.staging(DENSITY), surface, band, wanted=wanted, cell_m=spec.density_cell_m, tags=tags
            ) as density,
            tree_writer(paths, table, provenance=tags) as writer,
        ):
            for batch in _found(surface, ground, plan, products, spec, model, wanted, watch):
                writer.write(batch)
                density.write(batch)
    receipt = density.receipt
    assert receipt is not None
    files = [
        file_record(paths.points, TREES, features=writer.trees),
        file_record(paths.geopackage, TREES_PACKAGE, features=writer.trees),
        FileRecord(
            DENSITY,
            receipt.cog.sha256,
            receipt.cog.size_bytes,
            StatisticsRecord.of(receipt.cog.census, "trees/ha", spec.density_cell_m),
        ),
    ]
    files.append(_text(folder, DENSITY_STYLE, density_style()))
    # Tiles without a tree have no bounds, and GDAL makes none.
    if spec.pmtiles and writer.trees:
        part = folder.staging(TILES)
        # GDAL knows the format by the name.
        made = part.with_name(f"{part.name}.pmtiles")
        write_pmtiles(paths.points, made, "trees", crs=plan.grid.crs)
        made.replace(part)
        files.append(file_record(part, TILES, features=writer.trees))
    if paths.crowns is not None:
        files.append(file_record(paths.crowns, CROWNS, features=writer.crowns))
        files.append(_text(folder, CROWNS_STYLE, crown_style()))
    settings = heat_settings(spec, model) if heat else height_settings(spec)
    return files, _trees_record(products.find_on, writer.trees, mapped_ha, asdict(settings))


def _found(
    surface: Surface,
    ground: Surface,
    plan: Plan,
    products: Products,
    spec: TreesSpec,
    model: ModelAsRun,
    wanted: AOIMask,
    watch: Watch,
) -> Iterator[Trees]:
    """The trees of the AOI, block by block of those that it meets."""
    owned = surface.grid.window_over(plan.grid.bounds(plan.extent))
    blocks = [block for block in owned.blocks(BLOCK) if wanted(block).any()]
    watch.begin("trees", len(blocks))
    for done, block in enumerate(blocks, start=1):
        if products.find_on == "heat":
            yield looked_up(heat_trees(surface, heat_settings(spec, model), block, wanted=wanted), ground)
        else:
            yield height_trees(surface, height_settings(spec), block, wanted=wanted)
        watch.advance(done)


def _text(folder: OutputFolder, name: str, text: str) -> FileRecord:
    folder.staging(name).write_text(text, encoding="utf-8")
    return file_record(folder.staging(name), name)


def _trees_record(found_on: str, number: int, hectares: float, settings: dict[str, Any]) -> TreesRecord:
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in settings.items()}
    return TreesRecord(found_on, number, round(hectares, 4), round(number / hectares if hectares else 0.0, 2), plain)


def _day(facts: Facts) -> date | None:
    """The day a scene was taken; None where its Item states a longer span, such as the year of a flight."""
    first, last = facts.start or facts.datetime, facts.end or facts.datetime
    return first.date() if first and last and first.date() == last.date() else None


def _write_statistics(
    stages: Stages, plan: Plan, products: Products, folder: OutputFolder, watch: Watch
) -> tuple[list[FileRecord], tuple[str, ...]]:
    """What the run says of each polygon of its AOI; nothing where the pipeline asks for nothing."""
    spec = plan.spec.statistics
    if spec is None:
        return [], ()
    names = {"map": products.maps.get("height", DENSITY)}
    if products.maps:
        names["spread"] = products.maps["spread"]
    if products.find_on:
        names["trees"] = TREES
    at = {key: folder.staging(name) for key, name in names.items()}
    # The density's cells are too coarse to say what was seen.
    layers = Layers(
        at["map"] if products.maps else stages.maps.path, at.get("spread"), at.get("trees"), heights=bool(products.maps)
    )
    settings = Settings(cover_m=spec.cover_m, least_valid_percent=spec.least_valid_percent)
    zones = zones_of(plan.aoi)
    found = zone_statistics(layers, zones, settings=settings, watch=watch)
    # Under the names that the files will have; of the AOI's path the name, so that equal runs make equal files.
    said = {"version": __version__, **names, "zones": Path(plan.aoi.origin).name, "settings": asdict(settings)}
    found = replace(found, provenance={"geodino": json.dumps(said)})
    found.write(folder.staging(STATISTICS), folder.staging(STATISTICS_CSV))
    # What was mended of the AOI was said when it was read.
    notes = tuple(sentence for sentence in found.notes if sentence not in zones.notes)
    for sentence in notes:
        watch.warn(sentence)
    rows = len(found.frame)
    return [
        file_record(folder.staging(name), name, features=rows) for name in (STATISTICS, STATISTICS_CSV)
    ], found.notes


def _draw(plan: Plan, products: Products, model: ModelAsRun, folder: OutputFolder, watch: Watch) -> tuple[str, ...]:
    """The preview; a sentence where it cannot be drawn, because hours of finished maps do not hang on a picture."""
    heights: Path | None = folder.staging(products.maps["height"]) if products.maps else None
    trees = folder.staging(TREES) if products.find_on else None
    try:
        draw_preview(plan, model, heights, folder.staging(PREVIEW), trees=trees)
    except PREVIEW_FAULTS as error:
        logger.info("%s cannot be drawn", PREVIEW, exc_info=True)
        folder.discard(PREVIEW)
        # Errors name what caused them; all of the chain would say everything twice.
        why = shorten(without_secrets(str(error) or type(error).__name__), _LONGEST_CAUSE, placeholder=" ...")
        sentence = f"{PREVIEW} cannot be drawn and is left out, all else is whole: {why}; run with -v to see more"
        watch.warn(sentence)
        return (sentence,)
    return ()
