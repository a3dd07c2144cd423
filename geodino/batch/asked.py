"""What the user asks of a batch, settled: the pipeline, the options of all runs, and the list of jobs."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import JsonValue

from geodino.aoi import AOI, read_aoi
from geodino.batch.areas import area_jobs
from geodino.batch.cells import cell_side, cells, grid_of, imagery_crs, read_side
from geodino.batch.jobs import Job, add_jobs, in_order, read_jobs, unknown, write_jobs
from geodino.batch.leases import Pulses
from geodino.batch.listing import Listing, scene_jobs
from geodino.batch.manifest import Manifest, begin, now, read_manifest, require_same, settings_of
from geodino.batch.removal import remove_batch
from geodino.batch.titles import imagery_of
from geodino.errors import ConfigError, ReadError, SourceError
from geodino.grid import Grid
from geodino.models.catalog import rows
from geodino.models.loading import facts_of
from geodino.options import RunOptions
from geodino.products import products_of
from geodino.redaction import without_secrets
from geodino.settings import PipelineSpec, read_pipeline
from geodino.sources import Search
from geodino.sources.config import SourceConfig, resolve
from geodino.sources.raster import is_remote, local_path
from geodino.stores import Store
from geodino.watch import Watch, count

LEASE_S = 300.0
# Below it a busy disk looks like a dead process.
LEAST_LEASE_S = 1.0


@dataclass(frozen=True)
class Asked:
    """A batch as it is asked for.

    Attributes
    ----------
    catalog
        As `run` takes a source, or a stac-geoparquet file, or a CSV of areas. With a grid it is another word for the
        source; None: the options' sources.
    aoi
        Of scenes, what they are cut to; of a grid, what is cut into cells.
    grid
        The side of a cell, such as `10km`.
    lease_s
        After which a process without a sign is dead; of the process that begins the batch.
    """

    pipeline: str | Path
    options: RunOptions
    catalog: str | None = None
    aoi: str | None = None
    grid: str | None = None
    lease_s: float = LEASE_S


@dataclass(frozen=True)
class Batch:
    """A batch that has begun: its place, what it is, its jobs in the order of the mosaic, and how each is run."""

    store: Store
    manifest: Manifest
    jobs: list[Job]
    spec: PipelineSpec
    options: RunOptions
    config: SourceConfig | None = None


@dataclass(frozen=True)
class _Settled:
    """What is asked, checked: `kind` as the manifest's."""

    kind: str
    spec: PipelineSpec
    options: RunOptions
    aoi: AOI | None
    catalog: str | None
    grid: Grid | None = None
    side_px: int = 0
    grid_note: str = ""


def open_batch(asked: Asked, store: Store, watch: Watch) -> Batch:
    """The batch in a folder or bucket, begun where there is none, with what its catalog has come to hold since.

    Raises
    ------
    ConfigError
        What is asked cannot be done, or is not what the batch there was begun with; the difference is shown.
    InputError, ReadError, ModelError, OutputError
        As a single run's, before any of them begins.
    """
    settled = _settle(asked, store)
    settings = _settings(settled)
    manifest = None if asked.options.overwrite else read_manifest(store)
    if manifest is None:
        manifest = _begin(asked, settled, settings, store, watch)
    else:
        require_same(store, manifest, settings)
        # Who joins others at work does not ask the catalog once more.
        if settled.kind != "grid" and not Pulses(store, manifest.lease_s).living():
            _grow(settled, store, manifest, watch)
    return _opened(store, manifest, settled.spec, settled.options, settled.catalog)


def look_ahead(asked: Asked, store: Store, watch: Watch) -> tuple[Batch, int]:
    """The batch as `open_batch` would open it, and how many of its jobs are new; touches nothing."""
    settled = _settle(asked, store)
    settings = _settings(settled)
    store.reach()
    manifest = None if asked.options.overwrite else read_manifest(store)
    if manifest is None:
        listing = _listed(asked, settled, watch)
        manifest, known, new = _manifest(asked, settled, settings, listing, ("", "")), [], listing.jobs
    else:
        require_same(store, manifest, settings)
        known = read_jobs(store, manifest.jobs_key, manifest.jobs_sha256)
        again = None if settled.kind == "grid" else _listed_again(settled, watch)
        new = [] if again is None else unknown(known, again.jobs)
    batch = Batch(store, manifest, in_order([*known, *new]), settled.spec, settled.options, _config(settled.catalog))
    return batch, len(new)


def reopen_batch(store: Store, manifest: Manifest, machine: RunOptions) -> Batch:
    """A batch by what its manifest says, and the options that a machine decides for itself.

    Raises
    ------
    ConfigError
        An address of its imagery holds a signature or password, which are not kept.
    """
    options = replace(manifest.options, device=machine.device, batch_size=machine.batch_size, threads=machine.threads)
    catalog = manifest.settings["catalog"]
    if any("?..." in source for source in (*options.sources, str(catalog))):
        raise ConfigError("the imagery's address holds a secret, which is not kept: give the whole command again")
    return _opened(store, manifest, manifest.pipeline, options, None if catalog is None else str(catalog))


def _opened(store: Store, manifest: Manifest, spec: PipelineSpec, options: RunOptions, catalog: str | None) -> Batch:
    jobs = read_jobs(store, manifest.jobs_key, manifest.jobs_sha256)
    return Batch(store, manifest, jobs, spec, options, _config(catalog))


def _config(catalog: str | None) -> SourceConfig | None:
    """The catalog's config where it says more of its scenes than where they are."""
    if catalog is None or _is_csv(catalog):
        return None
    config = resolve(catalog)
    return config if any((config.asset, config.bands, config.sign, config.mask)) else None


def _settle(asked: Asked, store: Store) -> _Settled:
    spec = read_pipeline(asked.pipeline)
    options = replace(asked.options, model=_model(asked.options.model or spec.model))
    if asked.lease_s < LEAST_LEASE_S:
        raise ConfigError(f"--lease-s {asked.lease_s:g} must be {LEAST_LEASE_S:g} or more")
    products_of(spec, str(options.model))  # refuses a model that cannot do it, before any catalog is read
    aoi = None
    if asked.aoi is not None:
        aoi = read_aoi(asked.aoi, layer=options.aoi_layer, crs=options.aoi_crs, repair=options.repair_aoi)
    if asked.grid is not None:
        return _settle_grid(asked, spec, options, aoi, store)
    if asked.catalog is None:
        raise ConfigError("give --catalog, of scenes or of areas, or --grid with --aoi")
    catalog = _absolute(asked.catalog)
    options = replace(options, aoi_layer=None)
    if _is_csv(catalog):
        if aoi is not None:
            raise ConfigError(f"{asked.catalog} names the areas itself; leave out --aoi")
        return _Settled("areas", spec, _with_sources(options), None, catalog)
    return _Settled("scenes", spec, replace(options, sources=(), aoi_crs=None), aoi, catalog)


def _settle_grid(asked: Asked, spec: PipelineSpec, options: RunOptions, aoi: AOI | None, store: Store) -> _Settled:
    assert asked.grid is not None
    model = str(options.model)
    if aoi is None:
        raise ConfigError(f"--grid {asked.grid} needs --aoi: what is cut into cells")
    if (options.harmonise or spec.harmonise) != "none":
        raise ConfigError(
            "harmonised scenes look different from cell to cell, which would show at every seam; "
            "give --harmonise none, or one run over the whole AOI"
        )
    options = _with_sources(options if asked.catalog is None else replace(options, sources=(asked.catalog,)))
    facts = facts_of(model, "height" if products_of(spec, model).maps else "trees")
    if facts.gsd_m is None and isinstance(spec.gsd_m, str):
        raise ConfigError(f"model {model} does not say its metres a pixel; give gsd_m in the pipeline")
    gsd_m, side_m = spec.gsd(facts.gsd_m or 0.0), read_side(asked.grid)
    coarse_m = None if spec.trees is None else spec.trees.density_cell_m
    side_px, crs, imagery = cell_side(side_m, gsd_m, coarse_m), options.crs or _crs_begun_with(asked, store), None
    if crs is None:
        imagery = imagery_crs(aoi, side_m, options.sources, _search(spec, options))
    grid = grid_of(aoi, crs, gsd_m, imagery)
    note = ""
    if imagery is not None:
        own = f"the UTM zone, as the imagery's {imagery} is not true to scale all over the AOI"
        note = ", the imagery's" if imagery == grid.crs else f", {own}"
    elif crs is None:
        note = ", the UTM zone, as no imagery was found in the AOI's middle"
    options = replace(options, crs=str(grid.crs), aoi_layer=None, aoi_crs=None)
    return _Settled("grid", spec, options, aoi, None, grid, side_px, note)


def _crs_begun_with(asked: Asked, store: Store) -> str | None:
    """The CRS of the cells of the batch that is there: who joins it need not ask the imagery again."""
    manifest = None if asked.options.overwrite else read_manifest(store)
    grid = None if manifest is None else manifest.settings["grid"]
    return str(grid["crs"]) if isinstance(grid, dict) else None


def _settings(settled: _Settled) -> dict[str, JsonValue]:
    grid = settled.grid
    more: dict[str, object] = {
        "kind": settled.kind,
        "catalog": None if settled.catalog is None else without_secrets(settled.catalog),
        "aoi": None if settled.aoi is None else settled.aoi.geojson(),
        "grid": None if grid is None else {"crs": str(grid.crs), "gsd_m": grid.gsd, "cell_px": settled.side_px},
    }
    return settings_of(settled.spec, settled.options, more)  # type: ignore[arg-type]


def _begin(asked: Asked, settled: _Settled, settings: dict[str, JsonValue], store: Store, watch: Watch) -> Manifest:
    listing = _listed(asked, settled, watch)
    if asked.options.overwrite:
        remove_batch(store, asked.lease_s, watch)
    return begin(store, _manifest(asked, settled, settings, listing, write_jobs(store, listing.jobs)))


def _listed(asked: Asked, settled: _Settled, watch: Watch) -> Listing:
    """The jobs, and what there is to tell of them told."""
    listing = _list(settled)
    if asked.grid is not None and settled.grid is not None and settled.spec.trees is not None:
        side_m = settled.side_px * settled.grid.gsd
        if not math.isclose(side_m, read_side(asked.grid)):
            watch.note(f"--grid {asked.grid} becomes {side_m:,.10g} m, whole pixels and density cells")
    for sentence in listing.warnings:
        watch.warn(sentence)
    for sentence in listing.left_out:
        watch.note(f"left out: {sentence}")
    total_ha = sum(job.hectares for job in listing.jobs)
    watch.note(f"{count(len(listing.jobs), 'job')}, {total_ha:,.1f} ha ({_words(settled)})")
    return listing


def _manifest(
    asked: Asked, settled: _Settled, settings: dict[str, JsonValue], listing: Listing, written: tuple[str, str]
) -> Manifest:
    return Manifest(
        kind=settled.kind,
        settings=settings,
        jobs=len(listing.jobs),
        jobs_key=written[0],
        jobs_sha256=written[1],
        lease_s=asked.lease_s,
        began=now(),
        left_out=listing.left_out,
        imagery=imagery_of(settled.catalog, settled.options),
    )


def _grow(settled: _Settled, store: Store, manifest: Manifest, watch: Watch) -> None:
    """Add the jobs that the catalog has come to hold since the batch was begun."""
    listing = _listed_again(settled, watch)
    if listing is None:
        return
    new = add_jobs(store, manifest.jobs_key, manifest.jobs_sha256, listing.jobs)
    if new:
        watch.note(f"{count(len(new), 'new job')}, {sum(job.hectares for job in new):,.1f} ha ({_words(settled)})")
    listed = {job.names for job in listing.jobs}
    known = read_jobs(store, manifest.jobs_key, manifest.jobs_sha256)
    if gone := sum(job.names not in listed for job in known):
        stay = "stays" if gone == 1 else "stay"
        watch.note(f"{count(gone, 'job')} of the batch {stay}, which the catalog no longer lists")


def _listed_again(settled: _Settled, watch: Watch) -> Listing | None:
    """None where the catalog is out of reach or empty, which is no reason not to go on."""
    try:
        return _list(settled)
    except (SourceError, ReadError) as error:
        watch.warn(f"going on without a look for new jobs: {error}")
        return None


def _list(settled: _Settled) -> Listing:
    spec, options = settled.spec, settled.options
    if settled.kind == "grid":
        assert settled.aoi is not None and settled.grid is not None
        return Listing(cells(settled.aoi, settled.grid, settled.side_px))
    assert settled.catalog is not None
    if settled.kind == "areas":
        return Listing(area_jobs(settled.catalog, crs=options.aoi_crs, repair=options.repair_aoi))
    return scene_jobs(resolve(settled.catalog), _search(spec, options), settled.aoi)


def _search(spec: PipelineSpec, options: RunOptions) -> Search:
    return Search(
        collections=options.collections,
        datetime=options.datetime,
        max_cloud=spec.max_cloud_percent if options.max_cloud is None else options.max_cloud,
        order=options.order or spec.order,
        bands=options.bands,
        radiometry=options.radiometry or spec.radiometry,
    )


def _words(settled: _Settled) -> str:
    if settled.grid is None:
        return {"scenes": "a scene each", "areas": "an area each"}[settled.kind]
    return f"cells of {settled.side_px * settled.grid.gsd:,.10g} m in {settled.grid.crs}{settled.grid_note}"


def _model(name: str) -> str:
    if name == "auto":
        raise ConfigError("a batch takes no model auto: name one with --model, such as chmv2 or nano")
    if any(name == known.name for known in rows()):
        return name
    # A folder, or official files with a + between them.
    paths = [Path(part) for part in name.split("+")]
    return "+".join(str(path.absolute()) for path in paths) if all(path.exists() for path in paths) else name


def _with_sources(options: RunOptions) -> RunOptions:
    if "auto" in options.sources:
        raise ConfigError("a batch takes no source auto: name the imagery with --source, such as a config or a folder")
    return replace(options, sources=tuple(_absolute(source) for source in options.sources))


def _absolute(source: str) -> str:
    """A path that means the same on other machines and in other folders; names and addresses as they are."""
    if is_remote(source) or not local_path(source).exists():
        return source
    return str(local_path(source).absolute())


def _is_csv(catalog: str) -> bool:
    return catalog.lower().endswith(".csv")
