"""Small imagery and label files with known pixels, for the tests of chips."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import rasterio
import shapely
from affine import Affine
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox

from geodino.sources import Scene
from geodino.sources.geotiff import describe
from geodino.training.chips import ChipOptions, ChipSet, LabelOptions, build_chips
from geodino.training.label_rasters import LabelRaster, describe_raster
from geodino.training.pairing import Cut, Frame, frames_of

UTM = "EPSG:32633"
GSD = 0.6
# Off the lattice of whole pixels, as most imagery is.
WEST, NORTH = 500_004.17, 4_999_998.31
SIDE = 64


def write_image(
    path: Path,
    shape: tuple[int, int] = (SIDE, SIDE),
    *,
    at: tuple[float, float] = (WEST, NORTH),
    gsd: float = GSD,
    crs: str = UTM,
    seed: int = 0,
    pixels: npt.NDArray[np.generic] | None = None,
    **profile: object,
) -> npt.NDArray[np.generic]:
    """An 8-bit RGB GeoTIFF whose north-west corner is `at`; its pixels (3, H, W), noise from 1 to 254 unless given."""
    if pixels is None:
        pixels = np.random.default_rng(seed).integers(1, 255, (3, *shape), dtype=np.uint8)
    write_raster(path, pixels, at=at, gsd=gsd, crs=crs, **profile)
    return pixels


def write_raster(
    path: Path,
    values: npt.NDArray[np.generic],
    *,
    at: tuple[float, float] = (WEST, NORTH),
    gsd: float = GSD,
    crs: str | None = UTM,
    unit: str | None = None,
    scale: float = 1.0,
    tags: Mapping[str, str] | None = None,
    **profile: object,
) -> str:
    """A GeoTIFF of (H, W) or (K, H, W) values; its path."""
    layers = values[None] if values.ndim == 2 else values
    box = {"height": layers.shape[1], "width": layers.shape[2], "count": len(layers), "dtype": layers.dtype.name}
    transform = Affine(gsd, 0, at[0], 0, -gsd, at[1])
    with rasterio.open(path, "w", **{"driver": "GTiff", "crs": crs, "transform": transform, **box, **profile}) as file:
        file.write(layers)
        file.scales = (scale,) * len(layers)
        if unit:
            file.units = (unit,) * len(layers)
        file.update_tags(**(tags or {}))
    return str(path)


def on_ground(spots: Sequence[tuple[float, float]], at: tuple[float, float] = (WEST, NORTH)) -> list[shapely.Point]:
    """Points in UTM at (x, y) pixels right of and below a corner."""
    return [shapely.Point(at[0] + x * GSD, at[1] - y * GSD) for x, y in spots]


def square(x: float, y: float, x_stop: float, y_stop: float) -> shapely.Polygon:
    """A rectangle in UTM from pixels of the scene at the default corner."""
    return shapely.box(WEST + x * GSD, NORTH - y_stop * GSD, WEST + x_stop * GSD, NORTH - y * GSD)


def write_vector(
    path: Path, shapes: Sequence[shapely.Geometry], *, crs: str | None = UTM, to: str | None = None, **columns: object
) -> str:
    """A vector file in the format of its name, reprojected `to` another CRS; its path."""
    frame = gpd.GeoDataFrame(columns, geometry=list(shapes), crs=crs)
    if to:
        frame = frame.to_crs(to)
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_file(path)
    return str(path)


def chips_of(
    task: str, labels: str | Sequence[str], sources: str | Path | Sequence[str], folder: Path, **given: object
) -> ChipSet:
    """Chips of 64 px at 0.6 m; `given` holds fields of ChipOptions, or else of LabelOptions."""
    own = {name: given.pop(name) for name in ("size", "gsd_m", "splits", "search", "watch") if name in given}
    watch = own.pop("watch", None)
    options = ChipOptions(**{"size": SIDE, **own}, labels=LabelOptions(**given))  # type: ignore[arg-type]
    files = [labels] if isinstance(labels, str) else labels
    imagery = [str(sources)] if isinstance(sources, str | Path) else sources
    return build_chips(task, files, imagery, folder=folder / "chips", options=options, watch=watch)  # type: ignore[arg-type]


def frame_at(path: Path, **given: object) -> Frame:
    """The frame of an image that is written to a path."""
    write_image(path, **given)  # type: ignore[arg-type]
    return frame_of(describe(str(path)))


def frame_of(scene: Scene) -> Frame:
    (frame,) = frames_of([scene], GSD)
    return frame


def whole(frame: Frame) -> Cut:
    """The cut of a frame's whole extent."""
    return Cut(frame, frame.extent, (frame.extent,))


def raster_of(path: Path, values: npt.NDArray[np.generic], **given: object) -> LabelRaster:
    return describe_raster(write_raster(path, values, **given))  # type: ignore[arg-type]


def geobox(shape: tuple[int, int], crs: str = UTM) -> GeoBox:
    return GeoBox(shape, Affine(GSD, 0, WEST, 0, -GSD, NORTH), CRS(crs))


def write_green_ground(folder: Path, scenes: int = 12) -> tuple[str, str]:
    """Pairs `s*_chm.tif` and `s*_rgb.tif`, 240 m apart: a square is the taller, the greener it is; their globs."""
    rng = np.random.default_rng(3)
    for k in range(scenes):
        at = (500_000.4 + 240 * k, 4_800_000.6)
        height = np.kron(rng.uniform(0, 30, (4, 4)), np.ones((16, 16))).astype(np.float32)
        image = np.stack([60 - height, 80 + 4 * height, np.full_like(height, 70)]) + rng.normal(0, 4, (3, SIDE, SIDE))
        write_image(folder / f"s{k}_rgb.tif", at=at, crs="EPSG:32610", pixels=image.clip(0, 255).astype(np.uint8))
        write_raster(folder / f"s{k}_chm.tif", height, at=at, crs="EPSG:32610", nodata=-9999)
    return str(folder / "s*_chm.tif"), str(folder / "s*_rgb.tif")
