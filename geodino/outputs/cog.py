"""Cloud-optimised GeoTIFFs: a staged raster becomes one COG a band, read back before it gets its name.

GDAL does not always say that a disk is full and does not notice a damaged block, so the pixels of every COG are
compared with those of the stage first. In memory nodata is NaN, in files -9999; it is never 0, which is bare ground.
"""

from __future__ import annotations

import hashlib
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

import dask.array as da
import numpy as np
import numpy.typing as npt
import rasterio
import rasterio.shutil
import xarray as xr
from odc.geo.geobox import GeoBox
from rasterio.io import DatasetReader
from rasterio.windows import Window as RasterioWindow
from rio_cogeo.cogeo import cog_validate

from geodino.errors import OutputError
from geodino.grid import Window
from geodino.outputs.folder import require_free, scratch_file, whole_file
from geodino.outputs.levels import BLOCK as BLOCK
from geodino.outputs.levels import Kind, Said, Source, Values, describe, scattered, stored_blocks, write_levels
from geodino.outputs.stage import GDAL_ERRORS, NODATA, QUANTUM, Stage, StagedRaster, open_geotiff

COG_STEPS = 3
"""How often `stage_to_cog` tells that it has come farther: looked, packed, compared."""

MIN_BLOCK = 128  # the least that GDAL's COG driver takes
_STRIP_PX = 32_768  # of 512 rows, 64 MiB

# DEFLATE and not ZSTD: 4 % larger, but ArcGIS, Earth Engine and old QGIS builds read it.
COG_OPTIONS: Mapping[str, str | int] = {
    "COMPRESS": "DEFLATE",
    "LEVEL": 4,
    "PREDICTOR": "FLOATING_POINT",
    "OVERVIEW_RESAMPLING": "AVERAGE",
    "BIGTIFF": "IF_SAFER",
    "NUM_THREADS": "ALL_CPUS",
}


@dataclass(frozen=True)
class CogProfile:
    """What a COG says about itself.

    Attributes
    ----------
    description
        The band's name, such as "canopy_height".
    unit
        Unit of the values, such as "m".
    tags
        The file's tags, such as GEODINO_MODEL, TIFFTAG_SOFTWARE, TIFFTAG_DATETIME ("YYYY:MM:DD HH:MM:SS").
    """

    description: str
    unit: str
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Census:
    """What a band holds: counts, moments and a checksum of all pixels in one fixed order.

    Attributes
    ----------
    pixels, valid
        All pixels, and those that are not nodata.
    minimum, maximum, mean, stddev
        Of the valid pixels; NaN where there is none.
    crc32
        Of the values, in the order in which they were read.
    """

    pixels: int
    valid: int
    minimum: float
    maximum: float
    mean: float
    stddev: float
    crc32: int

    @property
    def valid_percent(self) -> float:
        return 100 * self.valid / self.pixels


@dataclass(frozen=True)
class CogReceipt:
    """A finished COG: where it lies, what its bytes are, what its pixels hold."""

    path: Path
    sha256: str
    size_bytes: int
    census: Census


def stage_to_cog(
    stage: Stage,
    name: str,
    target: Path,
    *,
    clip: Window,
    profile: CogProfile,
    told: Callable[[], None] = lambda: None,
) -> CogReceipt:
    """Turn one band of a closed stage into a COG, read it back, and only then give it its name.

    Parameters
    ----------
    stage
        Closed. Never read whole: memory stays within GDAL's block cache.
    name
        Which band.
    target
        Replaced atomically where it exists.
    clip
        The part to keep, on the stage's grid, inside its extent.
    told
        Is called after each of COG_STEPS steps.

    Raises
    ------
    OutputError
        Too little disk, a failed write, an invalid COG, or pixels that are not the stage's.
    """
    band = stage.names.index(name) + 1
    rows, cols = clip.slices_in(stage.extent)
    geobox = stage.geobox[rows, cols]
    few = scattered(stage, clip)
    windows = _strips(clip.shape) if few is None else few
    # The COG, and GDAL's temporary overviews beside it, compress about as well as the stage: twice that is safe.
    require_free(target.parent, 2 * math.ceil(stage.size_bytes / len(stage.names) * 4 / 3))
    source, overviews = Source(stage.path, band, rows.start, cols.start), []
    try:
        with open_geotiff(stage.path) as staged, scratch_file(target) as plain:
            meant = take_census(staged, source, clip.shape, windows)
            told()
            if few is not None:
                first, *overviews = write_levels(
                    plain,
                    geobox,
                    HEIGHTS,
                    blocks=few,
                    read=lambda block: _read(staged, source, block),
                    overviews=pyramid(*clip.shape)[1],
                )
                source = Source(first)
            steps = {} if stage.quantum is None else {"GEODINO_QUANTUM": f"{stage.quantum:g}"}
            tags = {"AREA_OR_POINT": "Area", **steps, **profile.tags}
            said = Said(profile.description, profile.unit, tags, _statistics(meant))
            with whole_file(target) as part:
                copy_to_cog(describe(source, geobox, HEIGHTS, said, overviews=overviews), part, COG_OPTIONS)
                told()
                _check(part, meant, windows, few)
                told()
                sha256, size_bytes = file_sha256(part), part.stat().st_size
    except GDAL_ERRORS as error:
        raise OutputError(f"cannot write {target}: {error}: is the disk full?") from error
    return CogReceipt(target, sha256, size_bytes, meant)


def write_cog(array: xr.DataArray, path: Path | str, *, quantum: float | None = QUANTUM) -> CogReceipt:
    """Write a georeferenced array as a COG, chunk by chunk: never all of it is in memory.

    Parameters
    ----------
    array
        Two dimensions (y, x), numbers, with a GeoBox (`array.odc.geobox`); lazy (then computed by threads of
        this process, each task once) or not. Stored as float32, NaN as nodata. `array.name` names the band, else the
        file's name does; `attrs["units"]` is its unit, if any; the other plain attributes become tags: `model` as
        GEODINO_MODEL, TIFFTAG_SOFTWARE as it is.
    path
        Replaced atomically where it exists.
    quantum
        Values are rounded to a multiple of this, in their own unit: heights to 1/8 m, which takes a third of the room.
        None keeps them as they are, such as fractions or counts.

    Raises
    ------
    ConfigError
        The quantum is not over 0.
    OutputError
        The array has no GeoBox, or the file cannot be written.
    """
    target = Path(path)
    geobox = array.odc.geobox
    if array.ndim != 2 or not isinstance(geobox, GeoBox) or geobox.crs is None:
        raise OutputError(f"array {array.dims} must have two dimensions with coordinates and a CRS")
    height, width = array.shape
    extent = Window(0, 0, math.ceil(height / BLOCK) * BLOCK, math.ceil(width / BLOCK) * BLOCK)
    name = str(array.name or target.stem)
    plain = {key: value for key, value in array.attrs.items() if isinstance(value, str | int | float)}
    profile = CogProfile(name, str(plain.pop("units", "")), as_tags(plain))
    with scratch_file(target) as part:
        whole = GeoBox(extent.shape, geobox.affine, geobox.crs)
        stage = StagedRaster(part, whole, extent, block=BLOCK, names=[name], quantum=quantum)
        # One graph for the whole array: strip by strip, neighbours would compute what they share twice.
        da.store(da.asarray(array.data), _Sink(stage, (height, width)), lock=Lock(), scheduler="threads")
        stage.close()
        return stage_to_cog(stage, name, target, clip=Window(0, 0, height, width), profile=profile)


def as_tags(facts: Mapping[str, str | int | float]) -> dict[str, str]:
    """Facts as tags of a file: `model` as GEODINO_MODEL; names that are TIFF's own stay."""
    return {key if key.startswith("TIFFTAG_") else f"GEODINO_{key.upper()}": str(fact) for key, fact in facts.items()}


def pyramid(height: int, width: int) -> tuple[int, int]:
    """Side of the blocks, pixels, and number of overviews for a raster of this size.

    Blocks of 512 px, and overviews until one fits into a block, as GDAL would choose. But a level that is no wider
    than a block and taller than 512 px looks like strips to rasterio (`is_tiled`), and `rio cogeo validate` refuses
    the file. So a raster that is itself so narrow gets smaller blocks, and the overviews stop before they get there.
    """
    block = BLOCK
    if width <= BLOCK < height:
        block = max(MIN_BLOCK, (width - 1) // 64 * 64)
    overviews = 0
    while max(height, width) > block:
        height, width = math.ceil(height / 2), math.ceil(width / 2)
        if width <= block and height > BLOCK:
            break
        overviews += 1
    return block, overviews


def copy_to_cog(description: str, part: Path, options: Mapping[str, str | int]) -> None:
    """Have GDAL make a COG of what a description says; of one with overviews, only of the blocks that are there."""
    with rasterio.open(description) as virtual:
        block, overviews = pyramid(*virtual.shape)
        if virtual.overviews(1):
            # GDAL looks at each block all the same, 0.2 ms; threads only double that (GDAL 3.10).
            levels: dict[str, str | int] = {"OVERVIEWS": "FORCE_USE_EXISTING", "SPARSE_OK": "YES", "NUM_THREADS": 1}
        elif overviews:
            levels = {"OVERVIEWS": "IGNORE_EXISTING", "OVERVIEW_COUNT": overviews}
        else:
            levels = {"OVERVIEWS": "NONE"}
        rasterio.shutil.copy(virtual, part, driver="COG", BLOCKSIZE=block, **{**options, **levels})


def averaged(values: Values) -> Values:
    """Heights of half the sides: each the mean of those of four pixels that are known."""
    fours = np.stack([values[row::2, col::2] for row in (0, 1) for col in (0, 1)])
    known = fours != NODATA
    count = known.sum(axis=0)
    total = np.where(known, fours, 0).sum(axis=0, dtype=np.float64)
    means = np.divide(total, count, out=np.full(count.shape, NODATA), where=count > 0)
    return np.asarray(means, np.float32)


HEIGHTS = Kind("float32", NODATA, averaged)


def _strips(shape: tuple[int, int]) -> list[Window]:
    """Windows of all pixels that are read one at a time."""
    height, width = shape
    return [
        Window(row, col, min(BLOCK, height - row), min(_STRIP_PX, width - col))
        for row in range(0, height, BLOCK)
        for col in range(0, width, _STRIP_PX)
    ]


def _read(dataset: DatasetReader, source: Source, window: Window) -> npt.NDArray[np.float32]:
    part = RasterioWindow(source.col + window.col, source.row + window.row, window.width, window.height)
    return np.asarray(dataset.read(source.band, window=part))


def take_census(dataset: DatasetReader, source: Source, shape: tuple[int, int], windows: Sequence[Window]) -> Census:
    """Read a raster of that shape by windows, outside of which nothing is known, and say what it holds."""
    valid, crc32, total, squares = 0, 0, 0.0, 0.0
    minimum, maximum = math.inf, -math.inf
    for window in windows:
        values = _read(dataset, source, window)
        crc32 = zlib.crc32(values.data, crc32)
        heights = values[values != NODATA].astype(np.float64)
        if heights.size:
            valid += heights.size
            total, squares = total + heights.sum(), squares + np.square(heights).sum()
            minimum, maximum = min(minimum, heights.min()), max(maximum, heights.max())
    pixels = shape[0] * shape[1]
    if not valid:
        return Census(pixels, 0, math.nan, math.nan, math.nan, math.nan, crc32)
    mean = total / valid
    # Heights of tens of metres in multiples of 1/8: their squares are exact in float64, so this does not cancel.
    stddev = math.sqrt(max(squares / valid - mean * mean, 0.0))
    return Census(pixels, valid, float(minimum), float(maximum), float(mean), stddev, crc32)


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _Sink:
    """Takes an array's chunks in any order and writes strips of 512 rows as soon as they are whole.

    Not `rechunk`: with it dask computes a third of the array before it stores the first strip (2026.8, rows that share
    a task with their neighbours), and three rows of chunks without.
    """

    def __init__(self, stage: StagedRaster, shape: tuple[int, int]) -> None:
        self.stage, self.shape = stage, shape
        self.strips: dict[int, npt.NDArray[np.float32]] = {}
        self.missing_px: dict[int, int] = {}

    def __setitem__(self, place: tuple[slice, slice], chunk: npt.NDArray[np.generic]) -> None:
        rows, cols = place
        for top in range(rows.start // BLOCK * BLOCK, rows.stop, BLOCK):
            first, last = max(rows.start, top), min(rows.stop, top + BLOCK)
            if top not in self.strips:
                self.strips[top] = np.full((BLOCK, self.stage.extent.width), np.nan, np.float32)
                self.missing_px[top] = min(BLOCK, self.shape[0] - top) * self.shape[1]
            self.strips[top][first - top : last - top, cols] = chunk[first - rows.start : last - rows.start]
            self.missing_px[top] -= (last - first) * (cols.stop - cols.start)
            if not self.missing_px[top]:
                self._write(top, self.strips.pop(top))

    def _write(self, top: int, strip: npt.NDArray[np.float32]) -> None:
        for col in range(0, self.stage.extent.width, BLOCK):
            self.stage.write(Window(top, col, BLOCK, BLOCK), strip[None, :, col : col + BLOCK])


def _statistics(census: Census) -> dict[str, str]:
    """GDAL's names; from our own pass, because STATISTICS=YES would read everything once more.

    Nine digits give a float32 back.
    """
    if not census.valid:
        return {}
    return {
        "STATISTICS_MINIMUM": f"{census.minimum:.9g}",
        "STATISTICS_MAXIMUM": f"{census.maximum:.9g}",
        "STATISTICS_MEAN": f"{census.mean:.6f}",
        "STATISTICS_STDDEV": f"{census.stddev:.6f}",
        "STATISTICS_VALID_PERCENT": f"{census.valid_percent:.4g}",
    }


def _check(part: Path, meant: Census, windows: Sequence[Window], few: Sequence[Window] | None) -> None:
    _, problems, _ = cog_validate(part, quiet=True)
    with open_geotiff(part) as cog:
        found = take_census(cog, Source(part), cog.shape, windows)
        # Nothing but the blocks that were compared.
        strays = few is not None and not stored_blocks(cog) <= {(block.row, block.col) for block in few}
        if cog.width <= MIN_BLOCK:  # no block is narrower, see `pyramid`
            problems = [problem for problem in problems if "is not tiled" not in problem]
    if problems:
        raise OutputError(f"GDAL wrote an invalid COG: {'; '.join(problems)}: is the disk full?")
    if strays or found.crc32 != meant.crc32 or found.pixels != meant.pixels:
        raise OutputError(f"{part} does not hold the pixels that were written: is the disk full?")
