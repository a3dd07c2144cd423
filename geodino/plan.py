"""What a run will do, settled before it does any of it: scenes, grid, windows, and what that will cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import shapely
from odc.geo.crs import CRS
from pyproj.exceptions import CRSError
from shapely.geometry import MultiPolygon, Polygon

from geodino.aoi import AOI, boxes_meet, read_aoi
from geodino.errors import AOIError, ConfigError, NoImageryError
from geodino.grid import Grid, Window, by_code, choose_crs, is_metric
from geodino.options import RunOptions
from geodino.redaction import without_secrets
from geodino.settings import PipelineSpec
from geodino.sources import Mosaic, Scene, Search, find_scenes
from geodino.sources.acquisition import of_fitting_gsd, of_fitting_light
from geodino.sources.harmonise import harmonise
from geodino.sources.search import OFF_AOI, Dropped, sentences
from geodino.stream import Tally
from geodino.windows import Place, Tiling

# Two staged and two finished rasters with overviews: 4.2 bytes a pixel measured on the sample, where nodata costs
# next to nothing; and 2 bytes of what bands hand on to their neighbours.
BYTES_WRITTEN_A_PIXEL = 7
# Where trees are found: the ground and the heat staged besides, a quarter of a value a pixel for each band of heat, and
# 215 bytes for each of at most a few hundred trees a hectare.
BYTES_WRITTEN_FOR_TREES = 10


@dataclass(frozen=True)
class Imagery:
    """The scenes of a run in mosaic order, sentences about those left out, the grid, and sentences of warning."""

    scenes: tuple[Scene, ...]
    dropped: tuple[str, ...]
    grid: Grid
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """One run, settled.

    Attributes
    ----------
    aoi, geometry
        What was asked for, and its union in the grid's CRS.
    needed
        The AOI with the ground around it that must be known to find its trees; the AOI itself where none are.
    extent
        The bounds, on the grid, of that part of the AOI which has imagery: what the outputs cover.
    reach
        The same of what is needed.
    scenes
        In mosaic order: the first that has a pixel gives it. After the run, those that gave any.
    scene_shares
        Share of the mapped pixels that each scene gave; empty before the run.
    scene_hidden
        Share of each scene's valid pixels that its mask hid where it was read; None without a mask. Empty before the
        run.
    scenes_dropped
        A sentence for each reason why scenes were left out.
    places
        The windows to compute, in lattice order.
    windows_outside_aoi
        How many places of the extent the AOI does not meet.
    windows_without_imagery
        Places that the AOI meets and no scene's footprint does.
    warnings
        Sentences for the user and the record.
    """

    spec: PipelineSpec
    options: RunOptions
    aoi: AOI
    geometry: Polygon | MultiPolygon
    needed: Polygon | MultiPolygon
    grid: Grid
    extent: Window
    reach: Window
    tiling: Tiling
    scenes: tuple[Scene, ...]
    scene_shares: tuple[float, ...]
    scenes_dropped: tuple[str, ...]
    places: tuple[Place, ...]
    windows_outside_aoi: int
    windows_without_imagery: tuple[Place, ...]
    warnings: tuple[str, ...]
    scene_hidden: tuple[float | None, ...] = ()

    @property
    def staged_extent(self) -> Window:
        """The smallest rectangle of whole cells that holds all that is needed."""
        stride = self.tiling.stride
        row, col = self.reach.row // stride, self.reach.col // stride
        rows, cols = -(-self.reach.row_stop // stride) - row, -(-self.reach.col_stop // stride) - col
        return Window(row * stride, col * stride, rows * stride, cols * stride)

    @property
    def bytes_written(self) -> int:
        """What the outputs and the staged raster may take on disk, at most, for the pixels of the computed cells."""
        more = 0 if self.spec.trees is None else BYTES_WRITTEN_FOR_TREES
        return len(self.places) * self.tiling.stride**2 * (BYTES_WRITTEN_A_PIXEL + more)

    @property
    def pixels_read(self) -> int:
        """Pixels of the grid that the windows read, overlaps counted each time."""
        return len(self.places) * self.tiling.size**2


def make_plan(
    spec: PipelineSpec,
    aoi: str | Path | AOI,
    options: RunOptions,
    *,
    gsd_m: float,
    tiling: Tiling,
    context_m: float = 0.0,
) -> Plan:
    """Settle a run: find the scenes, choose the grid, and list the windows that meet AOI and imagery.

    Parameters
    ----------
    gsd_m, tiling
        The model's own; the pipeline may say otherwise.
    context_m
        Metres around the AOI that must be known to say of it what is asked.

    Raises
    ------
    AOIError, SourceError, ConfigError, ReadError
        What cannot be used, with what would do.
    """
    area = area_of(aoi, options)
    imagery = find_imagery(spec, area, options, gsd_m)
    grid = imagery.grid
    geometry = area.geometry(grid.crs)
    run_tiling = spec.tiling(tiling)
    _check_size(area, geometry, grid)
    footprints = shapely.union_all([scene.footprint_in(grid.crs) for scene in imagery.scenes])
    seen = shapely.intersection(geometry, footprints)
    if not seen.area:
        raise NoImageryError(_nothing_found(area, options, imagery.dropped))
    extent = reach = grid.window_over(seen.bounds)
    needed = geometry
    if context_m:
        needed = shapely.buffer(geometry, context_m, quad_segs=4)
        reach = grid.window_over(shapely.intersection(needed, footprints).bounds)
    inside = places_over(needed, grid, run_tiling)
    with Mosaic(imagery.scenes, grid, resampling=spec.resampling) as mosaic:
        places = [place for place in inside if mosaic.covers(run_tiling.window(place))]
    if not places:
        raise NoImageryError(_nothing_found(area, options, imagery.dropped))
    return Plan(
        spec=spec,
        options=options,
        aoi=area,
        geometry=geometry,
        needed=needed,
        grid=grid,
        extent=extent,
        reach=reach,
        tiling=run_tiling,
        scenes=imagery.scenes,
        scene_shares=(),
        scenes_dropped=imagery.dropped,
        places=tuple(places),
        windows_outside_aoi=_places_in(run_tiling, grid.window_over(needed.bounds)) - len(inside),
        windows_without_imagery=tuple(sorted(set(inside) - set(places))),
        warnings=(*area_warnings(area), *_gap_warnings(seen.area / geometry.area), *imagery.warnings),
    )


def area_of(aoi: str | Path | AOI, options: RunOptions) -> AOI:
    """The AOI, read as the options say; errors as of `read_aoi`."""
    if isinstance(aoi, AOI):
        return aoi
    return read_aoi(aoi, layer=options.aoi_layer, crs=options.aoi_crs, repair=options.repair_aoi)


def find_imagery(spec: PipelineSpec, area: AOI, options: RunOptions, gsd_m: float) -> Imagery:
    """The scenes over the AOI in mosaic order, and the grid they go onto.

    Raises
    ------
    SourceError, ConfigError, ReadError
        No imagery over the AOI, imagery that cannot be used, or a catalog out of reach.
    """
    search = Search(
        collections=options.collections,
        datetime=options.datetime,
        max_cloud=spec.max_cloud_percent if options.max_cloud is None else options.max_cloud,
        order=options.order or spec.order,
        bands=options.bands,
        radiometry=options.radiometry or spec.radiometry,
    )
    found = find_scenes(options.sources, aoi=area, search=search)
    if not found.scenes:
        raise NoImageryError(_nothing_found(area, options, found.dropped))
    grid = Grid(_grid_crs(area, options, found.scenes), spec.gsd(gsd_m))
    fitting = of_fitting_gsd(found.scenes, grid.gsd, force=options.force_gsd)
    judged = of_fitting_light(fitting.scenes, strict=options.strict_acquisition)
    scenes, notes = judged.scenes, judged.warnings
    how = options.harmonise or spec.harmonise
    if how != "none":
        harmonised = harmonise(scenes, grid, how)
        scenes, notes = harmonised.scenes, (*notes, *harmonised.notes)
    dropped = (*found.dropped, *fitting.dropped, *judged.dropped)
    return Imagery(scenes, dropped, grid, (*found.warnings, *fitting.warnings, *_stretch_warnings(scenes), *notes))


def crs_of_most(scenes: Sequence[Scene]) -> CRS:
    """What most scenes share, and not the newest one's: next year's flight near a zone's edge must not change it."""
    shared = Counter(str(by_code(scene.crs)) for scene in scenes)
    return CRS(min(shared, key=lambda crs: (-shared[crs], crs)))


def places_over(geometry: Polygon | MultiPolygon, grid: Grid, tiling: Tiling) -> list[Place]:
    """The places whose support meets the geometry, in lattice order; cheap for parts scattered over a country."""
    candidates: set[Place] = set()
    for part in shapely.get_parts(geometry):
        candidates.update(tiling.places(grid.window_over(part.bounds)))
    ordered = sorted(candidates)
    meets = boxes_meet(geometry, grid, [tiling.support(place) for place in ordered])
    return [place for place, met in zip(ordered, np.asarray(meets).tolist(), strict=True) if met]


def with_scenes_used(plan: Plan, tally: Tally) -> Plan:
    """The plan after its run: only scenes that gave pixels count, for dates, licences and what is said of sources."""
    pixels, hidden = tally.scene_pixels, tally.hidden_shares(len(plan.scenes))
    total = sum(pixels.values())
    used = [number for number in range(1, len(plan.scenes) + 1) if pixels.get(number)]
    unused = [
        Dropped(scene.id, "gave no pixel of the map")
        for number, scene in enumerate(plan.scenes, start=1)
        if not pixels.get(number)
    ]
    return replace(
        plan,
        scenes=tuple(plan.scenes[number - 1] for number in used),
        scene_shares=tuple(round(pixels[number] / total, 6) for number in used),
        scene_hidden=tuple(hidden[number - 1] for number in used),
        scenes_dropped=(*plan.scenes_dropped, *sentences(unused)),
    )


def area_warnings(area: AOI) -> list[str]:
    """What the user should know of how the AOI was read."""
    warnings = []
    if area.repairs:
        others = f", and {len(area.repairs) - 1} more features were repaired" if len(area.repairs) > 1 else ""
        warnings.append(f"{area.repairs[0]}{others}; that changed {area.repaired_area_m2:,.0f} m2")
    if area.dropped:
        warnings.append(f"{area.origin}: left out {area.dropped} points, lines or empty features")
    return warnings


def _places_in(tiling: Tiling, extent: Window) -> int:
    return len(tiling.rows(extent)) * len(tiling.cols(extent))


def _check_size(area: AOI, geometry: Polygon | MultiPolygon, grid: Grid) -> None:
    if geometry.area < grid.gsd**2:
        raise AOIError(
            f"{area.origin}: the AOI of {geometry.area:.2g} m2 is smaller than one pixel of {grid.gsd:g} m; "
            "draw a larger one, or check its units"
        )


def _gap_warnings(covered: float) -> tuple[str, ...]:
    # Half a percent may be the raggedness of footprints.
    if covered > 0.995:
        return ()
    return (f"{1 - covered:.0%} of the AOI has no imagery and will have no height",)


def _stretch_warnings(scenes: Sequence[Scene]) -> tuple[str, ...]:
    """A sentence where colours had to be guessed, because heights depend on them."""
    guessed = [scene.id for scene in scenes if scene.radiometry.note.startswith("stretch")]
    if not guessed:
        return ()
    named = ", ".join(guessed[:3]) + (" and more" if len(guessed) > 3 else "")
    sentence = (
        f"{named}: nothing says how the digital numbers become colours, so the middle 96 % of each scene are stretched "
        "to 0-1 and heights depend on that; name a profile with --radiometry if you know it"
    )
    return (sentence,)


def _grid_crs(area: AOI, options: RunOptions, scenes: Sequence[Scene]) -> CRS:
    lon, lat = area.centre
    if options.crs is None:
        return choose_crs(lon, lat, crs_of_most(scenes))
    crs = _parsed_crs(options.crs)
    if not is_metric(crs, lon, lat):
        raise ConfigError(
            f"CRS {options.crs} is not true to scale in metres at the AOI ({lon:.4f}, {lat:.4f}); "
            "give a UTM zone or a national grid, or leave --crs out"
        )
    return by_code(crs)


def _parsed_crs(text: str) -> CRS:
    try:
        return CRS(text)
    except CRSError as error:
        raise ConfigError(f"CRS {text} is not known; give a code such as EPSG:32610") from error


def _nothing_found(area: AOI, options: RunOptions, dropped: Sequence[str]) -> str:
    """Why there are no scenes: what was left out goes first, as an AOI elsewhere is then not the cause."""
    lon, lat = area.centre
    sources = ", ".join(without_secrets(source) for source in options.sources)
    limits = [f"datetime {options.datetime}"] if options.datetime else []
    limits += [f"collection {', '.join(options.collections)}"] if options.collections else []
    limits += [] if options.max_cloud is None else [f"cloud up to {options.max_cloud:g} %"]
    asked = f"; asked for: {', '.join(limits)}" if limits else ""
    left_out = f"; left out: {'; '.join(dropped[:3])}" + (" ..." if len(dropped) > 3 else "") if dropped else ""
    place = f"the AOI (centre {lon:.5f}, {lat:.5f}, {area.area_ha:,.1f} ha)"
    if any(f" {OFF_AOI} (" not in sentence for sentence in dropped):
        return f"no imagery of {sources} is left for {place}{left_out}{asked}; ask for more, or give other --source"
    advice = "check that the coordinates are lon, lat, or give other imagery with --source"
    if limits:
        advice = f"ask for more, {advice}"
    return f"no imagery of {sources} covers {place}{left_out}{asked}; {advice}"
