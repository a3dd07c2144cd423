"""What the user gave as an AOI (a file, WKT or a bbox), as geometries and the CRS that came with them, unchecked."""

from __future__ import annotations

import contextlib
import json
import re
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import geopandas as gpd
import numpy as np
import pyogrio
import shapely
from pyarrow import ArrowException
from pyogrio.errors import DataLayerError, DataSourceError
from pyproj import CRS
from pyproj.exceptions import CRSError
from shapely.errors import GEOSException
from shapely.geometry import Polygon

from geodino.errors import AOIError
from geodino.polygons import WGS84
from geodino.shipped import sample_aoi

_WKT = re.compile(
    r"\s*(?:SRID=(?P<srid>\d+);)?\s*(?:(MULTI)?(POLYGON|POINT|LINESTRING|SURFACE|CURVE)|CURVEPOLYGON|GEOMETRYCOLLECTION)\b",
    re.IGNORECASE,
)
# A collection of polygons has four brackets in each other. GEOS descends once a bracket and crashes the process where
# they are tens of thousands deep.
_MOST_BRACKETS = 50
_SAMPLE = "sample:"
_HTML = re.compile(rb"\s*<(!doctype html|html)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Drawn:
    """Geometries of any kind as they were read, nothing checked.

    Attributes
    ----------
    frame
        One row a feature in the order of the file, without a CRS of its own.
    origin
        The path, `bbox ...`, `WKT` or `sample:NAME`.
    declared
        The CRS that the file or text itself names; nothing overrides it.
    implied
        The CRS that the format means where none is named: WGS84 for GeoJSON, WKT and bbox.
    """

    frame: gpd.GeoDataFrame
    origin: str
    declared: CRS | None = None
    implied: CRS | None = None


def read_drawn(what: str | Path, layer: str | None) -> Drawn:
    """Read a path, WKT, `minx,miny,maxx,maxy` or `sample:NAME`. Raises AOIError if there is nothing readable."""
    text = str(what)
    if isinstance(what, str) and what.startswith(_SAMPLE):
        return replace(_from_file(sample_aoi(what.removeprefix(_SAMPLE)), layer), origin=what)
    numbers = _numbers(text) if isinstance(what, str) else None
    if numbers is None and not (isinstance(what, str) and _WKT.match(what)):
        path = Path(what)
        with contextlib.suppress(RuntimeError):  # There is no such user; a file of that name may be there.
            path = path.expanduser()
        return _from_file(path, layer)
    if layer is not None:
        raise AOIError(f"layer {layer!r}: a bbox or WKT has no layers; leave out --aoi-layer")
    return _from_wkt(text, "WKT") if numbers is None else _from_bbox(numbers, f"bbox {text}")


def parse_crs(name: str, whose: str) -> CRS:
    """The CRS of a name that a user or a file gave. Raises AOIError if PROJ does not know it."""
    try:
        return CRS.from_user_input(name).to_2d()
    except CRSError as error:
        raise AOIError(f"{whose} {name!r} is not a CRS that PROJ knows; write it like EPSG:32610") from error


def _numbers(text: str) -> list[float] | None:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        return None
    return numbers if len(numbers) > 1 else None


def _from_bbox(numbers: list[float], origin: str) -> Drawn:
    if len(numbers) != 4:
        raise AOIError(f"{origin}: {len(numbers)} numbers, but a bbox has four: minx,miny,maxx,maxy")
    if not np.isfinite(numbers).all():
        raise AOIError(f"{origin}: a number is not finite; write minx,miny,maxx,maxy")
    minx, miny, maxx, maxy = numbers
    if miny > maxy or (minx > maxx and not -180 <= maxx < minx <= 180):
        raise AOIError(f"{origin}: a minimum is greater than its maximum; write minx,miny,maxx,maxy")
    if minx > maxx:
        maxx += 360
    # Quarter by quarter no edge is longer than 180 degrees, so a wide bbox is not taken for one over the antimeridian.
    across = np.linspace(minx, maxx, 5).tolist()
    ring = [(x, miny) for x in across] + [(x, maxy) for x in reversed(across)]
    return Drawn(gpd.GeoDataFrame(geometry=[Polygon(ring)]), origin, implied=WGS84)


def _from_wkt(text: str, origin: str) -> Drawn:
    match = _WKT.match(text)
    srid = match["srid"] if match else None
    letters = np.frombuffer(text.encode(errors="replace"), np.uint8)
    depth = np.max(np.cumsum((letters == ord("(")).astype(int) - (letters == ord(")"))), initial=0)
    if depth > _MOST_BRACKETS:
        raise AOIError(
            f"{origin}: brackets are {depth} deep, at most {_MOST_BRACKETS} are read; write one MULTIPOLYGON"
        )
    try:
        with np.errstate(invalid="ignore"):  # NaN is refused later, with its feature.
            geometry = shapely.from_wkt(text.split(";", 1)[1] if srid else text)
    except (GEOSException, UnicodeEncodeError) as error:
        raise AOIError(f"{origin}: not readable as WKT ({error}); check brackets and that rings are closed") from error
    except NotImplementedError as error:
        raise AOIError(f"{origin}: curves are not read; write them as POLYGON or MULTIPOLYGON") from error
    declared = parse_crs(f"EPSG:{srid}", f"{origin}: SRID") if srid else None
    return Drawn(gpd.GeoDataFrame(geometry=[geometry]), origin, declared, None if declared else WGS84)


def _from_file(path: Path, layer: str | None) -> Drawn:
    origin, suffix = str(path), path.suffix.lower()
    if "\0" in origin:
        raise AOIError(f"{origin!r}: no path holds a zero byte; give a file, WKT or minx,miny,maxx,maxy")
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except IsADirectoryError as error:
        if suffix != ".gdb":
            raise AOIError(f"{origin}: is a folder; name the file in it") from error
        head = b""
    except OSError as error:
        raise AOIError(
            f"{origin}: {(error.strerror or str(error)).lower()}; give a file, WKT or minx,miny,maxx,maxy"
        ) from error
    if _HTML.match(head):
        raise AOIError(f"{origin}: is a web page, perhaps a login page saved in place of the file; download it again")
    if suffix in (".parquet", ".geoparquet", ".wkt") and layer is not None:
        raise AOIError(f"{origin}: layer {layer!r} asked for, but {suffix} has no layers; leave out --aoi-layer")
    if suffix in (".parquet", ".geoparquet"):
        return _from_parquet(path)
    if suffix == ".wkt":
        return _from_wkt(_text(path), origin)
    if suffix in (".geojson", ".json"):
        return _from_geojson(path, layer)
    frame = _from_gdal(path, layer)
    return Drawn(_bare(frame), origin, declared=frame.crs and frame.crs.to_2d())


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise AOIError(f"{path}: byte {error.start} is not UTF-8 text; save the file as UTF-8") from error


def _from_parquet(path: Path) -> Drawn:
    try:
        frame = gpd.read_parquet(path)
    # OSError is also what pyarrow raises of damaged bytes; geopandas raises the others of damaged metadata and curves.
    except (ArrowException, OSError, ValueError, CRSError, GEOSException, NotImplementedError) as error:
        raise AOIError(f"{path}: not readable as GeoParquet: {_line(error)}") from error
    return Drawn(_bare(frame), str(path), declared=frame.crs and frame.crs.to_2d())


def _from_geojson(path: Path, layer: str | None) -> Drawn:
    # GDAL calls a GeoJSON without a crs member WGS84, and also one whose crs member it cannot read; they differ.
    try:
        content = json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise AOIError(f"{path}: cut off or not JSON: {_line(error)}; write or download it again") from error
    except RecursionError as error:
        raise AOIError(
            f"{path}: brackets lie too deep in each other for GeoJSON; write or download it again"
        ) from error
    member = content.get("crs") if isinstance(content, dict) else None
    frame = _bare(_from_gdal(path, layer))
    if member is None:
        return Drawn(frame, str(path), implied=WGS84)
    properties = member.get("properties") if isinstance(member, dict) else None
    name = properties.get("name") if isinstance(properties, dict) else None
    return Drawn(frame, str(path), declared=parse_crs(str(name), f"{path}: crs member"))


def _from_gdal(path: Path, layer: str | None) -> gpd.GeoDataFrame:
    try:
        # GDAL warns of unclosed rings and NaN coordinates; both are refused below, with a better sentence.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return pyogrio.read_dataframe(path, layer=_layer(path, layer), force_2d=True)
    except GEOSException as error:
        raise AOIError(f"{path}: a ring is not closed or has under four points: {_line(error)}") from error
    except (DataSourceError, DataLayerError) as error:
        raise AOIError(f"{path}: not a readable vector file: {_line(error)}") from error


def _layer(path: Path, layer: str | None) -> str:
    """The layer asked for, or the only one with geometry (QGIS adds tables of styles, which have none)."""
    names = [str(name) for name, kind in pyogrio.list_layers(path) if kind is not None]
    listed = ", ".join(map(repr, names))
    if not names:
        raise AOIError(f"{path}: holds no layer with geometry; give a file of polygons")
    if layer is None and len(names) > 1:
        raise AOIError(f"{path}: holds {len(names)} layers, {listed}; choose one with --aoi-layer")
    if layer is not None and layer not in names:
        raise AOIError(f"{path}: has no layer {layer!r}; it holds {listed}")
    return layer or names[0]


def _bare(frame: gpd.GeoDataFrame) -> gpd.GeoDataFrame:
    return frame.set_crs(None, allow_override=True)


def _line(error: Exception) -> str:
    """The first sentence of a library's message, on one line."""
    return str(error).split(";")[0].split("\n")[0].strip()
