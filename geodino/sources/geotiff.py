"""Describes raster files as scenes: reads the header, checks it, decides the radiometry once."""

from __future__ import annotations

import contextlib
import logging
import math
import re
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import PurePosixPath
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt
import rasterio
from odc.geo.crs import CRS
from pyproj import CRS as ProjCRS
from pyproj import Transformer
from rasterio.enums import ColorInterp, MaskFlags

from geodino.errors import GeodinoError, ReadError, SourceError
from geodino.grid import utm_crs
from geodino.radiometry import Radiometry, as_triple, decide, profile, stretch
from geodino.redaction import without_secrets
from geodino.sources.bands import AssetBand, BandLabel, choose_rgb
from geodino.sources.pixels import Asked, PixelFiles
from geodino.sources.ranges import open_ranges
from geodino.sources.raster import RASTER_SUFFIXES, is_remote, local_path
from geodino.sources.sampling import few, middle
from geodino.sources.scene import Alpha, Band, Facts, Scene, ground_gsd, horizontal_crs, through

logger = logging.getLogger(__name__)

DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64")
# Real alpha is 0 or full almost everywhere; a fourth band that GDAL took for alpha, such as near infrared, is not.
ALPHA_SIDE = 512
ALPHA_GREY_SHARE = 0.1
# What full alpha is in files: yes/no, 8, 10, 12, 15 and 16 bits, whatever type holds them.
_ALPHA_FULL = (1.0, 255.0, 1023.0, 4095.0, 32767.0, 65535.0)

_SPECTRAL_NAMES = frozenset({"nir", "nir08", "near infrared", "near-infrared", "infrared", "rededge", "swir16"})


@dataclass(frozen=True)
class Hints:
    """What is known from elsewhere, such as a STAC Item; it goes before what the file says.

    Attributes
    ----------
    id
        The scene's name; the file's stem where None.
    bands
        What the Item says of the file's bands in order (of red, green and blue where they lie in a file each); used
        where there are as many as in the file.
    radiometry
        A profile's name, or `auto`.
    """

    id: str | None = None
    bands: tuple[AssetBand, ...] = ()
    radiometry: str = "auto"
    sign: str | None = None
    facts: Facts = field(default_factory=Facts)


def describe(href: str, *, bands: Sequence[str] | None = None, hints: Hints | None = None) -> Scene:
    """The scene in one file that holds all three bands.

    Parameters
    ----------
    href
        Path or URL.
    bands
        Names or 1-based numbers of red, green and blue, where the file cannot say it itself.

    Raises
    ------
    SourceError
        The raster cannot be used: too few bands, palette, no CRS, complex numbers.
    ReadError
        It cannot be reached or decoded.
    """
    hints = hints or Hints()
    with closing(PixelFiles()) as files, _opened(href, hints, files) as raster:
        numbers = choose_rgb(_labels(raster, hints), bands, without_secrets(href))
        red, green, blue = (Band(href, number) for number in numbers)
        trusted = _trusted(raster, hints)
        said = tuple(trusted[number - 1] for number in numbers if trusted)
        return _scene(raster, (red, green, blue), hints, said, files)


def describe_separate(bands: tuple[Band, Band, Band], hints: Hints) -> Scene:
    """The scene whose red, green and blue lie in a file each, on the same pixels.

    Raises
    ------
    SourceError
        As `describe`, and where the three files differ in CRS, transform, shape, dtype or nodata.
    """
    with closing(PixelFiles()) as files, _opened(bands[0].href, hints, files) as raster:
        scene = _scene(raster, bands, hints, hints.bands, files)
    for place, band in enumerate(bands[1:], 1):
        with closing(PixelFiles()) as files, _opened(band.href, hints, files) as raster:
            _check_header(raster, band.href)
            ours = (scene.shape, scene.dtype, scene.crs)
            theirs = (raster.shape, raster.dtypes[band.index - 1], horizontal_crs(raster.crs.to_wkt()))
            hint = hints.bands[place] if hints.bands else None
            same_nodata = str(_nodata(raster, band.index, hint)) == str(scene.nodata)
            if ours != theirs or not raster.transform.almost_equals(scene.transform, 1e-6) or not same_nodata:
                one, other = without_secrets(band.href), without_secrets(bands[0].href)
                raise SourceError(f"{one} does not lie on the pixels of {other}, or is of another kind")
    return scene


def expand_folder(folder: str) -> list[str]:
    """The rasters directly in a local folder, by name. SourceError where there are none."""
    found = sorted(str(path) for path in local_path(folder).iterdir() if path.suffix.lower() in RASTER_SUFFIXES)
    if not found:
        raise SourceError(f"folder {folder} holds no raster ({', '.join(RASTER_SUFFIXES)})")
    return found


def _opened(href: str, hints: Hints, files: PixelFiles) -> rasterio.DatasetReader:
    """A raster whose header may be read; its pixels are to be read through `files`."""
    if not is_remote(href):
        path = local_path(href)
        if not path.is_file():
            raise ReadError(f"{href}: no such file")
        if not path.stat().st_size:
            raise ReadError(f"{href} is empty (0 bytes); fetch it again")
        if path.suffix.lower() == ".vrt" and hints.facts.item:
            raise SourceError(f"{href} is a VRT, which may read any file or server; give it itself with --source")
    whole = Asked(href, hints.sign, None, (1,))
    raster = files.open(whole)
    try:
        # Each overview is opened, as its header claims sizes of its own.
        if not files.overviews(whole):
            _check_beside(raster, href, hints)
    except GeodinoError:
        raster.close()
        raise
    return raster


def _scene(
    raster: rasterio.DatasetReader,
    bands: tuple[Band, Band, Band],
    hints: Hints,
    rgb: tuple[AssetBand, ...],
    files: PixelFiles,
) -> Scene:
    """The scene whose red band lies in `raster`; `rgb` is what the Item says of the three bands, or nothing."""
    href, index = bands[0].href, bands[0].index
    _check_header(raster, href)
    crs = horizontal_crs(raster.crs.to_wkt())
    _check_longitudes(raster, crs, href)
    facts = hints.facts
    if facts.datetime is None and facts.start is None:
        facts = replace(facts, datetime=_file_date(raster, href))
    dtype = raster.dtypes[index - 1]
    alpha = _alpha(raster, bands, hints, files) if _together(bands) else None
    scene = Scene(
        id=hints.id or PurePosixPath(urlsplit(href).path if is_remote(href) else local_path(href).name).stem,
        bands=bands,
        crs=crs,
        transform=raster.transform,
        shape=raster.shape,
        gsd=ground_gsd(crs, raster.transform, raster.shape),
        dtype=dtype,
        radiometry=Radiometry((0.0,) * 3, (0.0,) * 3, "not decided"),
        nodata=_nodata(raster, index, rgb[0] if rgb else None),
        alpha=alpha,
        sign=hints.sign,
        facts=facts,
    )
    return replace(scene, radiometry=_radiometry(raster, scene, hints.radiometry, rgb, files))


def _check_header(raster: rasterio.DatasetReader, href: str) -> None:
    """Refuses, by name, what cannot be laid over the ground or is no picture."""
    name = without_secrets(href)
    if raster.crs is None or raster.transform.is_identity or not raster.transform.determinant:
        raise SourceError(f"{name} {_misplaced(raster)}")
    for dtype in raster.dtypes:
        if dtype not in DTYPES:
            raise SourceError(f"{name} holds {dtype} numbers; one of {', '.join(DTYPES)} is needed")


def _misplaced(raster: rasterio.DatasetReader) -> str:
    """Why a raster lies nowhere on the ground, and the command that would place it."""
    points, crs = raster.gcps
    if points and crs is not None:
        move = Transformer.from_crs(ProjCRS.from_wkt(crs.to_wkt()), "EPSG:4326", always_xy=True).transform
        zone = utm_crs(*move(np.mean([point.x for point in points]), np.mean([point.y for point in points])))
        return f"has only {len(points)} ground control points; rectify it: gdalwarp -tps -r cubic -t_srs {zone} IN OUT"
    if raster.rpcs is not None:
        zone = utm_crs(raster.rpcs.long_off, raster.rpcs.lat_off)
        command = f"gdalwarp -rpc -to RPC_DEM=DEM -r cubic -t_srs {zone} IN OUT"
        return f"has only RPCs; rectify it with a height model of the ground: {command}"
    if raster.crs is None:
        return "has no CRS; find out which it is and set it: rio edit-info --crs EPSG:... FILE"
    return "has no geotransform; place it: gdal_translate -a_ullr WEST NORTH EAST SOUTH IN OUT"


def _check_longitudes(raster: rasterio.DatasetReader, crs: CRS, href: str) -> None:
    """Refuses a raster over the 180th meridian in a CRS that jumps there; one in UTM zone 1 or 60 is read."""
    height, width = raster.shape
    corners = [through(raster.transform, col, row) for col in (0, width) for row in (0, height)]
    forth = Transformer.from_crs(ProjCRS.from_user_input(str(crs)), "EPSG:4326", always_xy=True)
    lons, lats = zip(*(forth.transform(*corner) for corner in corners), strict=True)
    if crs.geographic:
        beyond = max(abs(x) for x, _ in corners) > 180 + 1e-6
    else:
        back = forth.transform(lons, lats, direction="INVERSE")
        beyond = any(abs(x - there) > 1e6 for (x, _), there in zip(corners, back[0], strict=True))
    if beyond:
        zone = utm_crs((lons[0] + 180) % 360 - 180, lats[0])
        raise SourceError(
            f"{without_secrets(href)} reaches over the 180th meridian in {crs}, which jumps there; project it: "
            f"gdalwarp -r cubic -t_srs {zone} IN OUT"
        )


def _check_beside(raster: rasterio.DatasetReader, href: str, hints: Hints) -> None:
    """Refuses a remote file whose mask lies beside it: that is not read, and missing ground would be taken for black.

    Asked only of a file that says nothing of missing pixels and has no overviews, as a COG has its mask within.
    """
    if not is_remote(href) or raster.mask_flag_enums[0] != [MaskFlags.all_valid]:
        return
    path, question, query = href.partition("?")
    with contextlib.suppress(ReadError):
        open_ranges(f"{path}.msk{question}{query}", hints.sign)
        name = without_secrets(href)
        raise SourceError(
            f"{name} has its mask in a file beside it, which is read on a local disk only; make one COG of both, or "
            "download both"
        )


def _labels(raster: rasterio.DatasetReader, hints: Hints) -> list[BandLabel]:
    hinted = _trusted(raster, hints)
    labels = []
    for place, (description, colour) in enumerate(zip(raster.descriptions, raster.colorinterp, strict=True)):
        names = hinted[place].names if hinted else frozenset()
        own = frozenset({description.strip().lower()} if description else ())
        labels.append(BandLabel(names or own, colour.name))
    return labels


def _trusted(raster: rasterio.DatasetReader, hints: Hints) -> tuple[AssetBand, ...]:
    """The Item's bands, where they are as many as the file's."""
    if not hints.bands or len(hints.bands) == raster.count:
        return hints.bands
    logger.warning(
        "%s has %d bands, its Item tells of %d, which are not used",
        hints.id or "a file", raster.count, len(hints.bands),
    )  # fmt: skip
    return ()


def _nodata(raster: rasterio.DatasetReader, index: int, hint: AssetBand | None) -> float | None:
    """The number that marks missing pixels: the file's, else the Item's; NaN for floats that name none."""
    nodata = raster.nodatavals[index - 1]
    if nodata is None and hint is not None:
        nodata = hint.nodata
    if nodata is None and raster.dtypes[index - 1].startswith("float"):
        return math.nan
    return None if nodata is None else float(nodata)


def _together(bands: tuple[Band, Band, Band]) -> bool:
    return len({band.href for band in bands}) == 1


def _alpha(
    raster: rasterio.DatasetReader, bands: tuple[Band, Band, Band], hints: Hints, files: PixelFiles
) -> Alpha | None:
    """The band that says which pixels are valid, unless it is a spectral band that GDAL took for alpha.

    GDAL writes any fourth 8-bit band as alpha unless told otherwise, so four-band aerial imagery often says so of its
    near infrared. It is told by its name, or by having grey values where alpha is 0 or full.
    """
    found = [number for number, colour in enumerate(raster.colorinterp, 1) if colour == ColorInterp.alpha]
    if not found or found[0] in [band.index for band in bands]:
        return None
    number = found[0]
    if _labels(raster, hints)[number - 1].names & _SPECTRAL_NAMES:
        return None
    asked = Asked(bands[0].href, hints.sign, None, (number,))
    values = np.nan_to_num(middle(files, asked, ALPHA_SIDE))
    if not values.any():
        values = np.nan_to_num(few(files, asked).values)
    most = float(values.max())
    # 8-bit alpha is often widened to 16 bits or to floats without scaling, so the type does not tell what full is.
    full = next((full for full in _ALPHA_FULL if most <= full), most)
    grey = float(np.mean((values != 0) & (values != full)))
    if grey > ALPHA_GREY_SHARE:
        logger.warning(
            "%s: band %d says alpha, but %.0f %% of it is neither 0 nor full; it is taken for a spectral band",
            without_secrets(bands[0].href), number, 100 * grey,
        )  # fmt: skip
        return None
    return Alpha(number, full)


def _radiometry(
    raster: rasterio.DatasetReader, scene: Scene, name: str, rgb: tuple[AssetBand, ...], files: PixelFiles
) -> Radiometry:
    """The scene's line: a profile, what the Item and the file say, or a stretch over the whole scene."""
    if name != "auto":
        return profile(name)
    places = [band.index - 1 for band in scene.bands] if _together(scene.bands) else [scene.bands[0].index - 1] * 3
    scale = [raster.scales[place] for place in places]
    offset = [raster.offsets[place] for place in places]
    if any(band.scale is not None or band.offset is not None for band in rgb):
        scale = [1.0 if band.scale is None else band.scale for band in rgb]
        offset = [0.0 if band.offset is None else band.offset for band in rgb]
    return decide(scene.dtype, as_triple(scale), as_triple(offset)) or stretch(*_thinned(scene, files))


def _thinned(scene: Scene, files: PixelFiles) -> tuple[npt.NDArray[np.generic], npt.NDArray[np.bool_]]:
    """A million pixels of the whole scene (from overviews where it has them), and where they are valid."""
    planes = [few(files, Asked(band.href, scene.sign, None, (band.index,))) for band in scene.bands]
    samples = np.concatenate([plane.values for plane in planes])
    valid = np.isfinite(samples).all(axis=0)
    for plane in planes:
        if plane.mask is not None:
            valid &= plane.mask
    if scene.alpha is not None:
        alpha = few(files, Asked(scene.bands[0].href, scene.sign, None, (scene.alpha.index,))).values[0]
        valid &= alpha.astype(np.float64) > 0
    if scene.nodata is not None and not math.isnan(scene.nodata):
        # After the cast to the file's type: -3.4e38 in the header is rounded otherwise than in a float32 pixel.
        valid &= ~np.all(samples == np.asarray(scene.nodata).astype(samples.dtype), axis=0)
    return samples, valid


def _file_date(raster: rasterio.DatasetReader, href: str) -> datetime | None:
    """The acquisition date in a file's tags, UTC; None where no tag holds one.

    ACQUISITIONDATE goes before TIFFTAG_DATETIME, which many programs set to when the file was written.
    """
    tags = raster.tags()
    for name in ("ACQUISITIONDATE", "ACQUISITION_DATE", "TIFFTAG_DATETIME"):
        found = re.match(r"(\d{4})[-:](\d\d)[-:](\d\d)(?:[T ](\d\d):(\d\d):(\d\d))?", tags.get(name, "").strip())
        if found:
            try:
                return datetime.strptime(" ".join(found.groups(default="00")), "%Y %m %d %H %M %S").replace(tzinfo=UTC)
            except ValueError:
                logger.warning("%s: tag %s is no date: %s", without_secrets(href), name, tags[name])
    return None
