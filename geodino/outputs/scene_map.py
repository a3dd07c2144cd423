"""The map of where each pixel comes from: numbers of scenes as a COG, with the table that says what they are.

The date of a pixel is that of its scene, so the table holds it and no second band repeats it: a band of days could say
nothing of a scene whose Item states a year, and would be as large again. The table stands in the file's own tag
GEODINO_SCENES (JSON), so it goes where the file goes; a raster attribute table would lie beside it in an .aux.xml that
is lost with the first copy.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import JsonValue
from rasterio.io import DatasetReader
from rasterio.windows import Window as RasterioWindow

from geodino.errors import OutputError
from geodino.grid import Window
from geodino.outputs.cog import COG_OPTIONS, copy_to_cog, file_sha256, pyramid
from geodino.outputs.folder import require_free, scratch_file, whole_file
from geodino.outputs.levels import (
    Kind,
    Said,
    Source,
    Values,
    as_rasterio,
    blocks_of,
    describe,
    scattered,
    write_levels,
)
from geodino.outputs.stage import GDAL_ERRORS, NODATA, Stage, open_geotiff

SCENE = "scene.tif"
"""What a run calls it."""

NONE = 0
"""What stands where no scene gave a pixel."""

_TYPE = np.uint16
# Numbers of scenes must not be averaged, nor predicted as floats.
_OPTIONS = {**COG_OPTIONS, "PREDICTOR": "STANDARD", "OVERVIEW_RESAMPLING": "NEAREST"}
_SCENES = Kind(_TYPE.__name__, NONE, lambda values: values[::2, ::2])


@dataclass(frozen=True)
class SceneMap:
    """A finished map of scenes."""

    path: Path
    sha256: str
    size_bytes: int


def scene_table(scenes: Sequence[Mapping[str, JsonValue]]) -> list[dict[str, JsonValue]]:
    """What each value of the map is: `value`, from 1, and the id, dates and share of pixels of the record's scenes."""
    kept = ("id", "datetime", "start_datetime", "end_datetime", "share_of_pixels")
    return [
        {"value": value} | {key: scene[key] for key in kept if scene.get(key) is not None}
        for value, scene in enumerate(scenes, start=1)
    ]


def scene_label(entry: Mapping[str, JsonValue]) -> str:
    """An entry of the table for a legend: `2020-06-15 m_4412_20200615`, or the days from first to last."""
    first, last = (entry.get(key) or entry.get("datetime") for key in ("start_datetime", "end_datetime"))
    days = [str(moment)[:10] for moment in (first, last) if moment]
    return f"{' to '.join(dict.fromkeys(days)) or 'date unknown'} {entry['id']}"


def write_scene_map(
    stage: Stage,
    target: Path,
    *,
    clip: Window,
    numbers: Mapping[int, int],
    table: Sequence[Mapping[str, JsonValue]],
    tags: Mapping[str, str],
) -> SceneMap:
    """Turn the band `scene` of a closed stage into a COG of uint16, read it back, and only then give it its name.

    Parameters
    ----------
    clip
        The part to keep, on the stage's grid, inside its extent.
    numbers
        From the numbers as they were staged to those of the table.
    table
        What each value is; goes into the tag GEODINO_SCENES.
    tags
        The file's other tags.

    Raises
    ------
    OutputError
        A staged number that no scene has, too little disk, a failed write, or pixels that are not the stage's.
    """
    renumbered = np.zeros(max(numbers, default=0) + 1, _TYPE)
    for staged, number in numbers.items():
        renumbered[staged] = number
    require_free(target.parent, 2 * math.ceil(stage.size_bytes / len(stage.names)))
    few = scattered(stage, clip)
    blocks = blocks_of(clip.shape) if few is None else few
    rows, cols = clip.slices_in(stage.extent)
    geobox = stage.geobox[rows, cols]
    source = Source(stage.path, stage.names.index("scene") + 1, rows.start, cols.start)
    checksums: list[int] = []
    try:
        with open_geotiff(stage.path) as staged, scratch_file(target) as plain, whole_file(target) as part:

            def read(block: Window) -> Values:
                values = _renumbered(staged, source, block, renumbered)
                checksums.append(zlib.crc32(values.data))
                return values

            overviews = 0 if few is None else pyramid(*clip.shape)[1]
            first, *coarser = write_levels(plain, geobox, _SCENES, blocks=blocks, read=read, overviews=overviews)
            said = Said("scene", "", _described(table, tags), {})
            copy_to_cog(describe(Source(first), geobox, _SCENES, said, overviews=coarser), part, _OPTIONS)
            with open_geotiff(part) as cog:
                found = [zlib.crc32(cog.read(1, window=as_rasterio(block))) for block in blocks]
            if found != checksums:
                raise OutputError(f"{part} does not hold the scenes that were written: is the disk full?")
            return SceneMap(target, file_sha256(part), part.stat().st_size)
    except GDAL_ERRORS as error:
        raise OutputError(f"cannot write {target}: {error}: is the disk full?") from error


def _described(table: Sequence[Mapping[str, JsonValue]], tags: Mapping[str, str]) -> dict[str, str]:
    return {"AREA_OR_POINT": "Area", **tags, "GEODINO_SCENES": json.dumps(list(table), ensure_ascii=False)}


def _renumbered(
    staged: DatasetReader, source: Source, block: Window, renumbered: npt.NDArray[np.uint16]
) -> npt.NDArray[np.uint16]:
    window = RasterioWindow(source.col + block.col, source.row + block.row, block.width, block.height)
    values = staged.read(source.band, window=window)
    numbers = np.where(values == NODATA, 0, values).astype(np.int64)
    if numbers.max(initial=0) >= renumbered.size:
        raise OutputError(f"{source.path} names scene {numbers.max()}, and there is none")
    found = np.asarray(renumbered[numbers])
    if ((found == NONE) & (numbers > 0)).any():
        raise OutputError(f"{source.path} names a scene that gave no pixel")
    return found
