"""Canopy height and trees from satellite and aerial imagery with the DINOv3 models.

    scene  = geodino.open_scene("catalog.json", aoi="area.geojson")   # xarray.Dataset: image, valid; lazy
    model  = geodino.load_model("nano")                               # a catalog name, hub id or local folder
    canopy = geodino.predict(scene, model)                            # xarray.Dataset: height, spread; lazy
    geodino.write_cog(canopy.height, "canopy_height.tif")
    record = geodino.run("canopy", aoi="area.geojson", out="out/",    # what the command line calls
                         options=geodino.RunOptions(model="nano"))
    parcels = geodino.stats("out/", "parcels.gpkg").frame             # geopandas: cover, heights, trees a polygon

These names are what users may rely on; the rest may change. Each is imported when it is first used, so that
`import geodino` costs milliseconds.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from geodino.aoi import read_aoi
    from geodino.models import load_model
    from geodino.options import RunOptions
    from geodino.outputs.cog import write_cog
    from geodino.pipeline import run
    from geodino.shipped import sample_aoi, sample_catalog
    from geodino.xarrays import open_scene, predict
    from geodino.zonal.statistics import stats

    __version__: str

_HOMES = {
    "RunOptions": "geodino.options",
    "load_model": "geodino.models",
    "open_scene": "geodino.xarrays",
    "predict": "geodino.xarrays",
    "read_aoi": "geodino.aoi",
    "run": "geodino.pipeline",
    "sample_aoi": "geodino.shipped",
    "sample_catalog": "geodino.shipped",
    "stats": "geodino.zonal.statistics",
    "write_cog": "geodino.outputs.cog",
}

__all__ = [
    "RunOptions",
    "load_model",
    "open_scene",
    "predict",
    "read_aoi",
    "run",
    "sample_aoi",
    "sample_catalog",
    "stats",
    "write_cog",
]


def __getattr__(name: str) -> object:
    if name == "__version__":
        # Late, because it takes 30 ms and nobody who types Ctrl-C in them should see where.
        return import_module("importlib.metadata").version("geodino")
    if name not in _HOMES:
        raise AttributeError(f"module geodino has no attribute {name}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
