"""Where a number came from: a plan, a model and what was done, as the tags of a raster and the record of a run."""

from __future__ import annotations

import resource
import sys
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import rasterio
import torch
from pydantic import JsonValue

from geodino import __version__
from geodino.models.as_run import ModelAsRun
from geodino.models.tta import fewer_views
from geodino.outputs.cog import as_tags, file_sha256
from geodino.outputs.record import (
    AOIRecord,
    FileRecord,
    GridRecord,
    ModelRecord,
    RunRecord,
    TimingsRecord,
    TreesRecord,
    WindowsRecord,
)
from geodino.plan import Plan
from geodino.redaction import without_secrets
from geodino.sources.acquisition import acquisition_facts
from geodino.sources.scene import dates, radiometry_notes
from geodino.stream import Tally
from geodino.windows import Tiling

# Sentences of what could not be read that a record keeps.
_MOST_LOSSES = 100
_LIBRARIES = ("torch", "transformers", "rasterio", "pyproj", "odc-geo", "numpy")


def made_by(model: ModelAsRun, tiling: Tiling) -> dict[str, str]:
    """By which model heights were made, and how: attributes of an array, which `write_cog` turns into tags.

    When they were made is not among them, so that the same run gives the same bytes; its record says it.
    """
    return {
        "TIFFTAG_SOFTWARE": f"geodino {__version__}",
        "model": model.name,
        "weights_sha256": model.weights_sha256,
        "weights_licence": f"{model.licence.name}, {model.licence.url}".removesuffix(", "),
        "demonstration": "yes: do not rely on these numbers" if model.row.demonstration else "no",
        "mean": ", ".join(f"{value:g}" for value in model.mean),
        "std": ", ".join(f"{value:g}" for value in model.std),
        "precision": model.precision,
        "tta": _views(model),
        "window": f"{tiling.size} px, overlap {tiling.overlap} px, margin {tiling.margin} px",
    }


def _views(model: ModelAsRun) -> str:
    if model.tta == 1:
        return "no"
    fewer = fewer_views(model.heads, model.tta)
    return f"{model.tta} views of each window, averaged" + "".join(f"; {n} for {task}" for task, n in fewer.items())


def provenance_tags(plan: Plan, model: ModelAsRun) -> dict[str, str]:
    """The tags of an output raster: enough to know, years later and without the record, what made it."""
    more = f" and {len(plan.scenes) - 50} more, see run.json" if len(plan.scenes) > 50 else ""
    facts = made_by(model, plan.tiling) | {
        "pipeline": plan.spec.name,
        "scenes": ", ".join(scene.id for scene in plan.scenes[:50]) + more,
        "scene_dates": dates(plan.scenes),
        "radiometry": radiometry_notes(plan.scenes),
        "resampling": plan.spec.resampling,
    }
    looks = sorted({scene.look.how for scene in plan.scenes if scene.look})
    return as_tags(facts | ({"harmonised": f"by {looks[0]}, see run.json"} if looks else {}))


@dataclass(frozen=True)
class Finished:
    """What a run has done, for its record.

    `reference` is what --model takes to do it again; `windows_from_before` are those that an earlier run had finished
    before it was cut short.
    """

    plan: Plan
    model: ModelAsRun
    reference: str
    tally: Tally
    outputs: tuple[FileRecord, ...]
    started: datetime
    total_s: float
    trees: TreesRecord | None = None
    computed_by: str = "this process"
    windows_from_before: int = 0


def make_record(done: Finished) -> RunRecord:
    """The record of a finished run."""
    plan, tally = done.plan, done.tally
    extent, mapped_m2 = plan.extent, tally.pixels_written * plan.grid.gsd**2
    return RunRecord(
        geodino=__version__,
        pipeline=plan.spec.model_dump(mode="json"),
        options=_plain(asdict(plan.options) | {"sources": [without_secrets(text) for text in plan.options.sources]}),
        aoi=_aoi_record(plan),
        grid=GridRecord(str(plan.grid.crs), plan.grid.gsd, extent.row, extent.col, extent.height, extent.width),
        windows=_windows_record(plan, tally),
        model=_model_record(done.model, done.reference),
        scenes=scene_records(plan),
        dropped_scenes=plan.scenes_dropped,
        timings=TimingsRecord(
            read_s=round(tally.read_s, 3),
            forward_s=round(tally.forward_s, 3),
            stitch_s=round(tally.stitch_s, 3),
            write_s=round(tally.write_s, 3),
            total_s=round(done.total_s, 3),
            decode_s=round(tally.decode_s, 3),
        ),
        computed_px=tally.windows_run * plan.tiling.size**2,
        peak_memory_mib=_peak_memory(done.model),
        outputs=done.outputs,
        libraries={"gdal": rasterio.__gdal_version__} | {name: version(name) for name in _LIBRARIES},
        started=done.started,
        ended=datetime.now(UTC),
        warnings=plan.warnings,
        mapped_percent_of_aoi=round(min(100 * mapped_m2 / plan.geometry.area, 100.0), 2),
        trees=done.trees,
        lost_ha=round(tally.pixels_lost * plan.grid.gsd**2 / 1e4, 4),
        losses=tuple(sorted(tally.losses)[:_MOST_LOSSES]),
        computed_by=done.computed_by,
        windows_from_before=done.windows_from_before,
    )


def scene_records(plan: Plan) -> tuple[dict[str, JsonValue], ...]:
    """What the record says of each scene used; `value` is its number in the map of scenes."""
    _, lat = plan.aoi.centre
    hidden = plan.scene_hidden or (None,) * len(plan.scenes)
    return tuple(
        {"value": value}
        | _plain(scene.summary() | acquisition_facts(scene.facts, lat))
        | {"share_of_pixels": share, "hidden_by_mask": None if masked is None else round(masked, 6)}
        for value, (scene, share, masked) in enumerate(zip(plan.scenes, plan.scene_shares, hidden, strict=True), 1)
    )


def _aoi_record(plan: Plan) -> AOIRecord:
    return AOIRecord(
        origin=plan.aoi.origin,
        area_ha=round(plan.aoi.area_ha, 4),
        repaired_area_m2=plan.aoi.repaired_area_m2,
        bounds_lonlat=plan.aoi.bounds_lonlat,
        geometry=_plain(plan.aoi.geojson()),
    )


def _windows_record(plan: Plan, tally: Tally) -> WindowsRecord:
    without = sorted({*plan.windows_without_imagery, *tally.windows_empty})
    return WindowsRecord(
        size_px=plan.tiling.size,
        overlap_px=plan.tiling.overlap,
        margin_px=plan.tiling.margin,
        run=tally.windows_run,
        filled=tally.windows_filled,
        outside_aoi=plan.windows_outside_aoi,
        without_imagery=tuple((place.r, place.c) for place in without),
    )


def file_record(path: Path, name: str, *, features: int | None = None) -> FileRecord:
    """A finished file that holds no raster, under the name it will have."""
    return FileRecord(name, file_sha256(path), path.stat().st_size, features=features)


def _model_record(model: ModelAsRun, reference: str) -> ModelRecord:
    return ModelRecord(
        name=model.name,
        title=model.row.title,
        reference=reference,
        href=f"https://huggingface.co/{model.row.hub_id}" if model.row.hub_id else _urn(model),
        parameters=model.row.parameters,
        weights_sha256=model.weights_sha256,
        mean=model.mean,
        std=model.std,
        precision=model.precision,
        device=model.device,
        licence=model.licence.name,
        licence_url=model.licence.url,
        demonstration=model.row.demonstration,
        tta=model.tta,
    )


def _urn(model: ModelAsRun) -> str:
    """A name for weights that lie nowhere on the web: the Item's schema asks for the model as an asset."""
    return f"urn:sha256:{model.weights_sha256}"


def _peak_memory(model: ModelAsRun) -> dict[str, float]:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts KiB, macOS bytes.
    held = {"process": round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)}
    # Where others computed, nothing was taken of the one that may be here.
    if model.device.startswith("cuda") and torch.cuda.is_available():
        held["accelerator"] = round(torch.cuda.max_memory_allocated() / 2**20, 1)
    return held


def _plain(values: dict[str, object]) -> dict[str, JsonValue]:
    """Tuples as lists, so that what is written is what is read back."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}  # type: ignore[misc]
