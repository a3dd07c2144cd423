"""The Python face: lazy xarray Datasets in, lazy xarray Datasets out, over the same windows as the command line.

    scene  = open_scene("catalog.json", aoi="area.geojson")     # image (band, y, x), valid (y, x), aoi (y, x)
    canopy = predict(scene, load_model("nano"))                 # height (y, x), spread (y, x), metres

Nothing is read or computed before it is asked for. The scene reaches a halo beyond the AOI, so that the windows at
its edge see real ground and `predict` says the same as `geodino run`; its result is cut to the AOI. A halo too narrow
for the windows is refused.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, reduce
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import dask
import dask.array as da
import numpy as np
import numpy.typing as npt
import shapely
import xarray as xr
from dask.delayed import Delayed
from dask.utils import SerializableLock
from odc.geo.geobox import GeoBox
from odc.geo.xr import xr_coords
from shapely.geometry import MultiPolygon, Polygon

from geodino.aoi import AOIMask, read_aoi
from geodino.errors import ConfigError
from geodino.grid import Grid, Window
from geodino.options import RunOptions
from geodino.plan import area_warnings, find_imagery, places_over
from geodino.polygons import joined, polygons
from geodino.settings import PipelineSpec
from geodino.sources import Mosaic, Pixels, Scene
from geodino.sources.scene import dates, radiometry_notes
from geodino.stitch import Column, Prediction, Spill, blend_row, finish_row
from geodino.stream import fill_by_reflection
from geodino.windows import Place, Tiling

if TYPE_CHECKING:
    from geodino.models import Model

logger = logging.getLogger(__name__)

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
Objects = npt.NDArray[np.object_]

# A window that touches the AOI with its last pixel hangs over it by nearly its side; the catalog's models have windows
# of at most this.
HALO_PX = 512
_CHUNK_PX = 512

LONG_NAMES = {
    "height": "canopy height",
    "spread": "standard deviation of the model's height distribution",
}

_AS_SHIPPED = PipelineSpec(name="scene", title="Scene", task="canopy-height")


def open_scene(
    source: str | Path | Sequence[str | Path],
    *,
    aoi: str | Path,
    options: RunOptions | None = None,
    gsd_m: float = 0.6,
    halo_px: int = HALO_PX,
) -> xr.Dataset:
    """Imagery over an area of interest as a lazy Dataset.

    Parameters
    ----------
    source
        A GeoTIFF, folder, STAC Item, catalog or API, or the name of a config; or several.
    aoi
        A polygon file, WKT, `minx,miny,maxx,maxy` or `sample:NAME`.
    options
        Dates, cloud, bands and the rest of what `geodino run` takes.
    gsd_m
        Metres a pixel of the result.
    halo_px
        How far the scene reaches beyond the AOI's bounds, pixels; `predict` needs nearly a window's side.

    Returns
    -------
    Dataset
        `image` (band, y, x) float32 in 0-1, `valid` (y, x) whether there is imagery, `aoi` (y, x) whether the AOI
        holds the pixel's centre, `scene` (y, x) uint16, which of `attrs["scenes"]` gave the pixel, 1-based, 0 where
        there is none.
        Chunks of 512 px; a pixel's value does not depend on the chunk. Variables that are computed together, as by
        `scene.compute()`, read each chunk once. The dataset can be pickled: workers open the files themselves.

    Raises
    ------
    AOIError, SourceError, ConfigError, ReadError
        What cannot be used, with what would do.
    """
    if halo_px < 0:
        raise ConfigError(f"halo {halo_px} px must be at least 0")
    given = [source] if isinstance(source, str | Path) else source
    sources = tuple(str(one) for one in given)
    chosen = replace(options or RunOptions(), sources=sources)
    area = read_aoi(aoi, layer=chosen.aoi_layer, crs=chosen.aoi_crs, repair=chosen.repair_aoi)
    found = find_imagery(_AS_SHIPPED, area, chosen, gsd_m)
    for sentence in (*area_warnings(area), *found.warnings):
        logger.warning("%s", sentence)
    grid = found.grid
    geometry = area.geometry(grid.crs)
    extent = grid.window_over(geometry.bounds).padded(halo_px)
    geobox = grid.geobox(extent)
    coords = xr_coords(geobox)
    dims = tuple(geobox.dimensions)
    image, valid, aoi, numbers = _lazy_arrays(_Ground(found.scenes, grid, geometry), extent)
    dataset = xr.Dataset(
        {"image": (("band", *dims), image), "valid": (dims, valid), "aoi": (dims, aoi), "scene": (dims, numbers)},
        coords={"band": ["red", "green", "blue"], **coords},
        attrs={
            "scenes": [scene.id for scene in found.scenes],
            "scene_dates": dates(found.scenes),
            "radiometry": radiometry_notes(found.scenes),
            "resampling": _AS_SHIPPED.resampling,
            "gsd_m": gsd_m,
            "halo_px": halo_px,
            "aoi_wkt": shapely.to_wkt(geometry, rounding_precision=-1),
        },
    )
    dataset["image"].attrs = {"long_name": "red, green and blue after radiometry, 0-1"}
    return dataset


def predict(scene: xr.Dataset, model: Model, *, tiling: Tiling | None = None) -> xr.Dataset:
    """Run a model over a scene, lazily: one task for each row of windows, each window computed once.

    Parameters
    ----------
    scene
        As `open_scene` gives it; or any Dataset with `image` (band, y, x) float32 in 0-1 on a north-up grid in metres,
        and, if some pixels have no imagery, `valid` (y, x). With `attrs["aoi_wkt"]` the result is cut to that polygon.
    tiling
        Windows; None: the model's own.

    Returns
    -------
    Dataset
        `height` and `spread` (y, x), float32 metres, NaN outside the AOI and where there is no imagery. Compute
        them together, by `compute()` of the Dataset: one after the other runs the model twice.

    Raises
    ------
    ConfigError
        The scene has no georeference, is not north-up with square pixels, is not on a whole pixel of its grid, or
        lies beside its AOI; or the windows reach beyond the halo that it was opened with.
    """
    from geodino.models.as_run import ModelAsRun  # Late, because both import torch.
    from geodino.provenance import made_by

    grid, extent = _grid_of(scene)
    frame = shapely.box(*grid.bounds(extent))
    area = shapely.from_wkt(scene.attrs["aoi_wkt"]) if "aoi_wkt" in scene.attrs else frame
    shown = joined(polygons(area.intersection(frame)))
    if shown.is_empty:
        raise ConfigError("the scene holds nothing of its AOI; crop it to some of scene.aoi, or drop attrs['aoi_wkt']")
    out = grid.window_over(shown.bounds).intersection(extent)
    run_tiling = tiling or model.tiling
    places = places_over(shown, grid, run_tiling)
    _check_halo(scene, extent, places, run_tiling)
    image = scene["image"].data
    valid = scene["valid"].data if "valid" in scene else da.isfinite(image).all(axis=0)
    values = _Rows(model, run_tiling, extent, out, AOIMask(area, grid)).compute_lazily(places, image, valid)
    geobox = grid.geobox(out)
    # On each variable, because what is written or plotted is one of them.
    provenance = made_by(ModelAsRun.of(model, run_tiling.size), run_tiling)
    kept = ("scene_dates", "radiometry", "resampling")
    provenance |= {key: scene.attrs[key] for key in kept if key in scene.attrs}
    provenance["scenes"] = ", ".join(scene.attrs.get("scenes", []))
    dims = tuple(geobox.dimensions)
    variables = {
        name: (dims, values[index], {"units": "m", "long_name": LONG_NAMES[name]} | provenance)
        for index, name in enumerate(model.outputs)
    }
    return xr.Dataset(variables, coords=xr_coords(geobox), attrs=provenance)


@dataclass(frozen=True)
class _Ground:
    """What is read where: values only, so it goes to other processes, which open the files there.

    Two are the same only if they come from one `open_scene`: a file may have been written anew since an earlier one.
    """

    scenes: tuple[Scene, ...] = field(compare=False)
    grid: Grid = field(compare=False)
    area: Polygon | MultiPolygon = field(compare=False)
    key: str = field(default_factory=lambda: uuid4().hex)


@lru_cache(maxsize=8)
def _opened(ground: _Ground) -> tuple[Mosaic, AOIMask]:
    """One of each a process: a mosaic keeps its files open, a mask its edges."""
    return Mosaic(ground.scenes, ground.grid, _AS_SHIPPED.resampling), AOIMask(ground.area, ground.grid)


@dataclass(frozen=True)
class _Rows:
    """The rows of windows of one prediction: `predict(row)`, then `finish(row)` with what the row above spills.

    Attributes
    ----------
    extent, out
        What the scene covers, and what the prediction does.
    inside
        The AOI.
    lock
        Dask runs rows side by side, and two forward passes at once are slower than one after the other and hold
        twice the memory.
    """

    model: Model
    tiling: Tiling
    extent: Window
    out: Window
    inside: AOIMask
    lock: SerializableLock = field(default_factory=SerializableLock)

    def compute_lazily(self, places: Sequence[Place], image: da.Array, valid: da.Array) -> da.Array:
        """(K, H, W) over `out`, in one chunk for each lattice row, of `image` and `valid` over `extent`."""
        blocks = []
        above: Delayed | dict[Place, Floats] = {}
        for row in self.tiling.rows(self.out):
            members = [place for place in places if place.r == row]
            strip = self.strip(row)
            rows, _ = strip.slices_in(self.extent)
            columns = dask.delayed(self.predict_row)(members, strip, _delayed(image[:, rows]), _delayed(valid[rows]))
            shared = self.tiling.cell(Place(row, 0))
            shared = Window(shared.row, self.out.col, shared.height, self.out.width).intersection(self.out)
            if not shared.empty:
                seen = _delayed(valid[shared.slices_in(self.extent)])
                done = dask.delayed(self.finish_row)(columns, above, shared, seen)
                blocks.append(da.from_delayed(done, (len(self.model.outputs), *shared.shape), np.float32))
            above = columns
        return da.concatenate(blocks, axis=1)

    def predict_row(self, places: list[Place], strip: Window, image: Floats, valid: Bools) -> dict[Place, Floats]:
        """The blended columns of one row: own and western neighbours, not yet the row above."""
        with self.lock:
            return dict(blend_row(self._predictions(places, strip, image, valid), self.tiling))

    def finish_row(
        self, columns: dict[Place, Floats], above: dict[Place, Floats], shared: Window, valid: Bools
    ) -> Floats:
        """The row's finished pixels within `shared`, NaN where nothing is wanted or known."""
        spill: Spill = {place.c: column[:, self.tiling.stride :] for place, column in above.items()}
        out = np.full((len(self.model.outputs), *shared.shape), np.nan, np.float32)
        own = (Column(place, values) for place, values in columns.items())
        for place, values in finish_row(own, spill, self.tiling, {}):
            cell = self.tiling.cell(place)
            part = cell.intersection(shared)
            if not part.empty:
                kept = values[(slice(None), *part.slices_in(cell))]
                out[(slice(None), *part.slices_in(shared))] = kept
        out[:, ~(valid & self.inside(shared))] = np.nan
        return out

    def strip(self, row: int) -> Window:
        """What the scene has of all windows of a row."""
        window = self.tiling.window(Place(row, 0))
        return Window(window.row, self.extent.col, window.height, self.extent.width).intersection(self.extent)

    def _predictions(self, places: list[Place], strip: Window, image: Floats, valid: Bools) -> Iterator[Prediction]:
        """One batch of chips at a time."""
        chips = self._chips(places, strip, image, valid)
        while batch := list(islice(chips, self.model.batch_size(self.tiling.size))):
            values = self.model.predict(np.stack([pixels for _, pixels in batch]))
            for (place, _), value in zip(batch, values, strict=True):
                yield Prediction(place, value)

    def _chips(self, places: list[Place], strip: Window, image: Floats, valid: Bools) -> Iterator[tuple[Place, Floats]]:
        """The windows whose support holds a pixel that is wanted and valid, filled where they have no imagery."""
        for place in places:
            window = self.tiling.window(place)
            pixels, seen = _cut(image, valid, strip, window)
            if (seen & self.inside(window))[self.tiling.support(place).slices_in(window)].any():
                yield place, pixels if seen.all() else fill_by_reflection(pixels, seen)


def _lazy_arrays(ground: _Ground, extent: Window) -> tuple[da.Array, da.Array, da.Array, da.Array]:
    """`image`, `valid`, `aoi` and `scene` over the extent; computed together, a block is read once for all."""
    chunks = da.core.normalize_chunks(_CHUNK_PX, extent.shape)
    of_blocks = tuple((1,) * len(sizes) for sizes in chunks)
    nothing = np.empty((0, 0), object)
    blocks = da.map_blocks(_window_of, extent, chunks=of_blocks, dtype=object, meta=nothing)
    pixels = blocks.map_blocks(_read, ground, dtype=object, meta=nothing)

    def part(get: Callable[..., npt.NDArray[np.generic]], of: da.Array, dtype: str, *args: _Ground) -> da.Array:
        return of.map_blocks(get, *args, chunks=chunks, dtype=dtype, meta=np.empty((0, 0), dtype))

    image = pixels.map_blocks(
        _image, new_axis=0, chunks=((3,), *chunks), dtype="float32", meta=np.empty((0, 0, 0), "float32")
    )
    return (
        image,
        part(_valid, pixels, "bool"),
        part(_inside, blocks, "bool", ground),
        part(_scene, pixels, "uint16"),
    )


def _window_of(extent: Window, block_info: dict[None, dict[str, tuple[int, int]]]) -> Objects:
    row, col = (_CHUNK_PX * number for number in block_info[None]["chunk-location"])
    return _boxed(Window(extent.row + row, extent.col + col, _CHUNK_PX, _CHUNK_PX).intersection(extent))


def _read(block: Objects, ground: _Ground) -> Objects:
    return _boxed(_opened(ground)[0].read(block[0, 0]))


def _inside(block: Objects, ground: _Ground) -> Bools:
    return _opened(ground)[1](block[0, 0])


def _image(block: Objects) -> Floats:
    pixels: Pixels = block[0, 0]
    return pixels.image


def _valid(block: Objects) -> Bools:
    pixels: Pixels = block[0, 0]
    return pixels.valid


def _scene(block: Objects) -> npt.NDArray[np.uint16]:
    pixels: Pixels = block[0, 0]
    return pixels.scene


def _boxed(thing: object) -> Objects:
    """An array of one thing, as dask's blocks are arrays."""
    box = np.empty((1, 1), object)
    box[0, 0] = thing
    return box


def _delayed(array: da.Array) -> Delayed:
    """An array as one delayed value; given to `dask.delayed` as it is, its reads would be fused and done again."""
    return dask.delayed(np.block)(array.to_delayed(optimize_graph=False).tolist())


def _cut(image: Floats, valid: Bools, strip: Window, window: Window) -> tuple[Floats, Bools]:
    """The pixels of a window from a strip that may end inside it; what lies beyond the strip is invalid."""
    pixels, seen = np.zeros((3, *window.shape), np.float32), np.zeros(window.shape, bool)
    shared = window.intersection(strip)
    if not shared.empty:
        here, there = shared.slices_in(window), shared.slices_in(strip)
        seen[here] = valid[there]
        pixels[(slice(None), *here)] = np.where(valid[there], image[(slice(None), *there)], 0)
    return pixels, seen


def _check_halo(scene: xr.Dataset, extent: Window, places: Sequence[Place], tiling: Tiling) -> None:
    """Refuse, or warn of, a scene of `open_scene` that ends within its windows though there may be more imagery."""
    needed = reduce(Window.union, map(tiling.window, places))
    if "halo_px" not in scene.attrs or needed.intersection(extent) == needed:
        return
    halo_px = int(scene.attrs["halo_px"])
    if halo_px < tiling.size - tiling.margin - 1:
        raise ConfigError(
            f"a halo of {halo_px} px is too narrow for windows of {tiling.size} px; "
            f"open the scene with halo_px={tiling.size}"
        )
    logger.warning(
        "the scene was cropped: within %d px of where it cuts the AOI, predictions rest on reflected pixels "
        "and differ from those of geodino run; crop the prediction instead",
        tiling.size,
    )


def _grid_of(scene: xr.Dataset) -> tuple[Grid, Window]:
    geobox = scene["image"].odc.geobox
    if not isinstance(geobox, GeoBox) or geobox.crs is None:
        raise ConfigError("the scene has no georeference; open it with geodino.open_scene or give it an odc geobox")
    transform = geobox.transform
    gsd = transform.a
    if transform.b or transform.d or abs(transform.e + gsd) > 1e-9:
        raise ConfigError(f"the scene's grid {tuple(transform)[:6]} must be north-up with square pixels")
    grid = Grid(geobox.crs, round(gsd, 9))
    extent = Window(round(-transform.f / gsd), round(transform.c / gsd), *geobox.shape)
    off = max(abs(extent.col * gsd - transform.c), abs(-extent.row * gsd - transform.f)) / gsd
    if off > 0.01:
        raise ConfigError(f"the scene lies {off:.2f} px off its CRS's pixel lattice; open it with geodino.open_scene")
    return grid, extent
