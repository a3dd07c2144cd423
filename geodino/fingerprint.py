"""What decides a run's pixels, in plain values: a run that was cut short goes on only where all of it is the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version

import rasterio
import shapely
from pydantic import JsonValue

from geodino import __version__
from geodino.bands import COLS, rows_for
from geodino.errors import ConfigError
from geodino.models.as_run import ModelAsRun
from geodino.plan import Plan
from geodino.progress import BANDS
from geodino.redaction import without_secrets
from geodino.sources.ranges import open_ranges
from geodino.sources.raster import is_remote, local_path
from geodino.sources.scene import Scene
from geodino.stores import Store

NAME = "fingerprint.json"

_MOST_SHOWN = 5
_LOOKING = 16


def fingerprint(plan: Plan, model: ModelAsRun) -> dict[str, JsonValue]:
    """What decides the pixels of a run: pipeline, model, inputs, where windows lie, and versions that move last bits.

    Inputs are told apart by size and, as far as there is one, time or ETag, and not read.
    """
    return {
        "geodino": __version__,
        "torch": version("torch"),
        "gdal": rasterio.__gdal_version__,
        "pipeline": plan.spec.model_dump(mode="json"),
        "model": {
            "name": model.name,
            "weights_sha256": model.weights_sha256,
            "precision": model.precision,
            "device": model.device.partition(":")[0],
            "batch_size": min(model.batch_size, COLS),
            "tta": model.tta,
        },
        "aoi": {"area_ha": round(plan.aoi.area_ha, 4), "sha256": _hash(shapely.to_wkb(plan.needed), plan.geometry.wkb)},
        "grid": {"crs": str(plan.grid.crs), "gsd_m": plan.grid.gsd},
        "windows": {
            "size": plan.tiling.size,
            "overlap": plan.tiling.overlap,
            "margin": plan.tiling.margin,
            "count": len(plan.places),
            "rows_in_a_band": rows_for(len(plan.places)),
            "sha256": _hash(json.dumps(plan.places).encode()),
        },
        "on_read_error": plan.options.on_read_error,
        "scenes": [_plain(scene.summary()) for scene in plan.scenes],
        "files": _files(plan.scenes),
    }


def settle(store: Store, new: Mapping[str, JsonValue], *, resume: bool) -> bool:
    """Whether an earlier run's work in the store is gone on with; else what is there is removed.

    Parameters
    ----------
    resume
        False: whatever is there is of no use.

    Raises
    ------
    ConfigError
        What is there was begun as another run; the differences are named.
    """
    kept = store.get(NAME)
    if kept is not None and resume:
        differences = list(_differences(json.loads(kept), dict(new)))
        if not differences:
            return True
        more = f", and {len(differences) - _MOST_SHOWN} more" if len(differences) > _MOST_SHOWN else ""
        raise ConfigError(
            f"{store} holds an unfinished run that is not this one: {'; '.join(differences[:_MOST_SHOWN])}{more}. "
            "Give --no-resume to begin anew, what it was begun with to go on, or another --out"
        )
    # Not all that is there: workers that join are looked over by an object of their own.
    store.below(BANDS.rstrip("/")).clear()
    store.put(NAME, json.dumps(new, indent=1).encode())
    return False


def _differences(old: JsonValue, new: JsonValue, at: str = "") -> Iterator[str]:
    """Sentences such as `model.weights_sha256 was 12ab and is 34cd`."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in sorted({*old, *new}):
            yield from _differences(old.get(key), new.get(key), f"{at}.{key}" if at else key)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for number, (one, other) in enumerate(zip(old, new, strict=True), start=1):
            yield from _differences(one, other, f"{at}[{number}]")
    elif isinstance(old, list) and isinstance(new, list):
        yield f"{at} had {len(old)} entries and has {len(new)}"
    elif old != new:
        yield f"{at} was {_short(old)} and is {_short(new)}"


def _short(value: JsonValue) -> str:
    text = "not there" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:12]}...{text[-12:]}"


def _files(scenes: Sequence[Scene]) -> dict[str, JsonValue]:
    """Each file of pictures and masks, and what tells whether it is still the same."""
    signs = {band.href: scene.sign for scene in scenes for band in scene.bands}
    signs |= {scene.mask.href: scene.sign for scene in scenes if scene.mask is not None}
    with ThreadPoolExecutor(_LOOKING, thread_name_prefix="geodino-look") as pool:
        said = pool.map(_identity, signs, signs.values())
        return {without_secrets(href): what for href, what in zip(signs, said, strict=True)}


def _identity(href: str, sign: str | None) -> str:
    if is_remote(href):
        found = open_ranges(href, sign)
        return f"{found.size} bytes, version {found.version}" if found.version else f"{found.size} bytes"
    status = local_path(href).stat()
    return f"{status.st_size} bytes, modified {status.st_mtime_ns}"


def _hash(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def _plain(values: Mapping[str, object]) -> JsonValue:
    """As JSON gives it back."""
    plain: JsonValue = json.loads(json.dumps(values))
    return plain
