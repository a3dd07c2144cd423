"""What this machine has, and what would be slow or missing: the first thing to ask when a run misbehaves."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
import pyproj
import rasterio
import torch

from geodino import __version__
from geodino.findings import Finding, Findings
from geodino.models.catalog import rows
from geodino.models.hub import access
from geodino.models.precision import choose_device, choose_precision
from geodino.radiometry import PROFILES
from geodino.shipped import config_names, nano_folder, pipeline_names, sample_catalog
from geodino.watch import size

_PACKAGES = ("torch", "transformers", "rasterio", "pyproj", "geopandas", "xarray", "dask", "pystac-client", "odc-geo")

# A run keeps a staged raster beside its outputs; an AOI of 100 km2 at 0.6 m takes about 2 GiB for both.
_LITTLE_DISK = 5 * 2**30
_LITTLE_MEMORY = 4 * 2**30


def examine(folder: Path | None = None) -> Findings:
    """Look at versions, device, memory, disk, shipped files and models; nothing is downloaded."""
    found = [
        Finding("geodino", f"{__version__} on Python {platform.python_version()}, {platform.platform()}"),
        *(_package(name) for name in _PACKAGES),
        Finding("GDAL, PROJ", f"{rasterio.__gdal_version__}, {pyproj.proj_version_str}"),
        _device(),
        _memory(),
        _disk(folder or Path.cwd()),
        _disk(Path(tempfile.gettempdir()), name="temporary files"),
        _shipped(),
        *(_model(name) for name in ("nano", "chmv2")),
    ]
    return Findings(tuple(found))


def _package(name: str) -> Finding:
    try:
        return Finding(name, version(name))
    except PackageNotFoundError:
        return Finding(name, "missing", ok=False, advice="install geodino again: pip install --force-reinstall geodino")


def _device() -> Finding:
    device = choose_device("auto")
    precision = choose_precision("auto", device)
    what = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    slow = device.type == "cpu" and precision == "fp32"
    advice = "this CPU has no native bfloat16, so models run in float32, about half as fast" if slow else ""
    return Finding("device", f"{device} ({what}), {precision}", advice=advice)


def _memory() -> Finding:
    free = psutil.virtual_memory().available
    advice = "ViT-L models need about 3 GiB free; nano needs 1 GiB" if free < _LITTLE_MEMORY else ""
    return Finding("memory", f"{size(free)} free", ok=not advice, advice=advice)


def _disk(folder: Path, name: str = "disk here") -> Finding:
    free = shutil.disk_usage(folder).free
    writable = os.access(folder, os.W_OK)
    advice = "" if free >= _LITTLE_DISK else "a run over 100 km2 needs about 2 GiB beside its outputs"
    if not writable:
        advice = f"{folder} cannot be written; give another folder with --out"
    return Finding(name, f"{size(free)} free in {folder}", ok=not advice, advice=advice)


def _shipped() -> Finding:
    missing = [str(path) for path in (sample_catalog(), nano_folder() / "model.safetensors") if not path.is_file()]
    named = (
        f"pipelines: {', '.join(pipeline_names())}; configs: {', '.join(config_names())}; "
        f"radiometry: auto, {', '.join(sorted(PROFILES))}"
    )
    if missing:
        return Finding("shipped", named, ok=False, advice=f"missing {', '.join(missing)}; install geodino again")
    return Finding("shipped", named)


def _model(name: str) -> Finding:
    row = next(row for row in rows() if row.name == name)
    entry = access(row)
    return Finding(f"model {name}", entry.sentence, ok=entry.usable, advice=entry.command)
