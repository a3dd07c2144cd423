"""One acquisition: where its three bands lie, on which pixels, and how its numbers become a picture.

A `Scene` is a description, not an open file: it can be compared, pickled, sent to a worker and written to a record.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt
import shapely
from affine import Affine
from odc.geo.crs import CRS
from pyproj import CRS as ProjCRS
from pyproj import Geod, Transformer
from shapely.geometry import Polygon

from geodino.errors import SourceError
from geodino.grid import is_metric
from geodino.radiometry import Radiometry
from geodino.redaction import without_secrets
from geodino.sources.mask import MaskBand

# Imagery over twice as fine or coarse as the model's GSD is resampled with a warning, and under a quarter or over five
# times refused unless forced: 0.3-1.2 m and 0.15-3 m for a model of 0.6 m. CHMv2 is offered for "approximately 0.6 m
# GSD" (arXiv 2603.06382, section 2); the limits are our policy around it.
WARN_RATIO = (0.5, 2.0)
REFUSE_RATIO = (0.25, 5.0)

_EDGE_POINTS = 21


@dataclass(frozen=True)
class Band:
    """Where one band lies: a file (path or URL, unsigned), the band's 1-based number in it, and the file's checksum.

    That is a multihash in hexadecimal digits, as STAC's `file:checksum` has it; None where the Item gives none.
    """

    href: str
    index: int
    checksum: str | None = None


@dataclass(frozen=True)
class Alpha:
    """The band that says which pixels are valid: its 1-based number in red's file, and the value of a whole pixel."""

    index: int
    full: float


@dataclass(frozen=True)
class Look:
    """What brings a scene's colours to those of the scenes before it, decided once before a run.

    Attributes
    ----------
    how
        `histogram` or `regression`.
    onto
        Ids of the scenes that it was fitted to.
    pixels
        Pairs of thinned pixels that it was fitted on; of the band with the fewest.
    knots
        For red, green and blue the values before and after, 0..1 and rising; straight between them.
    """

    how: str
    onto: tuple[str, ...]
    pixels: int
    knots: tuple[tuple[tuple[float, ...], tuple[float, ...]], ...]

    def apply(self, picture: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """A picture (3, H, W) in 0..1 as it would look; what leaves 0..1 is cut off."""
        bands = [np.interp(band, before, after) for band, (before, after) in zip(picture, self.knots, strict=True)]
        return np.asarray(np.clip(np.stack(bands), 0.0, 1.0), np.float32)

    def summary(self) -> dict[str, object]:
        """What the run record keeps."""
        kept: dict[str, object] = {"how": self.how, "onto": list(self.onto), "pixels": self.pixels}
        if self.how == "regression":
            offset = [after[0] for _, after in self.knots]
            return kept | {"gain": [after[-1] - after[0] for _, after in self.knots], "offset": offset}
        return kept | {"knots": [[list(before), list(after)] for before, after in self.knots]}


@dataclass(frozen=True)
class Facts:
    """What is known of an acquisition beside its pixels; None where unknown.

    Attributes
    ----------
    datetime, start, end
        Aware, UTC. A composite may have only a start and an end.
    cloud_cover
        Percent.
    sun_elevation, off_nadir
        Degrees.
    item
        Where the STAC Item lies, without what may be secret in the URL.
    """

    collection: str | None = None
    datetime: dt.datetime | None = None
    start: dt.datetime | None = None
    end: dt.datetime | None = None
    cloud_cover: float | None = None
    sun_elevation: float | None = None
    off_nadir: float | None = None
    licence: str | None = None
    provider: str | None = None
    item: str | None = None


@dataclass(frozen=True)
class Scene:
    """One acquisition as it lies in its files.

    Attributes
    ----------
    bands
        Red, green, blue; in one file, or each in its own on the same pixels.
    alpha
        The band that says which pixels are valid, if there is one.
    crs, transform, shape
        The pixels of the bands: (height, width), and (col, row) to the CRS.
    gsd
        Metres a pixel on the ground at the scene's centre, whatever the CRS.
    dtype, nodata
        As in the file. `nodata` is NaN where NaN alone marks missing pixels, None where nothing does.
    radiometry
        How digital numbers become 0..1.
    sign
        Name of the hook that signs hrefs when they are opened, or None. Signed hrefs are never kept.
    mask
        What says where clouds and shadows hide the ground, if anything does.
    look
        What brings its colours to those of other scenes, where that was asked for.
    """

    id: str
    bands: tuple[Band, Band, Band]
    crs: CRS
    transform: Affine
    shape: tuple[int, int]
    gsd: float
    dtype: str
    radiometry: Radiometry
    nodata: float | None = None
    alpha: Alpha | None = None
    sign: str | None = None
    facts: Facts = field(default_factory=Facts)
    mask: MaskBand | None = None
    look: Look | None = None

    @property
    def collection(self) -> str | None:
        return self.facts.collection

    @property
    def datetime(self) -> dt.datetime | None:
        """When it was taken; the start of a composite."""
        return self.facts.datetime or self.facts.start

    @property
    def cloud_cover(self) -> float | None:
        """Percent, or None where unknown."""
        return self.facts.cloud_cover

    def picture(self, dn: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
        """Digital numbers (3, H, W) as a picture in 0..1; NaN stays NaN."""
        picture = self.radiometry.apply(dn)
        return picture if self.look is None else self.look.apply(picture)

    @cached_property
    def footprint(self) -> Polygon:
        """The outline of the pixels in the scene's CRS; an edge is 20 pieces, to stay true when projected."""
        height, width = self.shape
        along, zeros = np.linspace(0, 1, _EDGE_POINTS)[:-1], np.zeros(_EDGE_POINTS - 1)
        cols = np.concatenate([along, zeros + 1, 1 - along, zeros]) * width
        rows = np.concatenate([zeros, along, zeros + 1, 1 - along]) * height
        moved = [through(self.transform, col, row) for col, row in zip(cols.tolist(), rows.tolist(), strict=True)]
        return Polygon(moved)

    def footprint_in(self, crs: CRS) -> Polygon:
        """The outline of the pixels in another CRS.

        Raises
        ------
        SourceError
            If the scene cannot be projected there.
        """
        if crs == self.crs:
            return self.footprint
        move = Transformer.from_crs(_proj(self.crs), _proj(crs), always_xy=True).transform
        moved = shapely.transform(self.footprint, lambda xy: np.column_stack(move(xy[:, 0], xy[:, 1])))
        if not np.isfinite(shapely.get_coordinates(moved)).all():
            raise SourceError(f"scene {self.id} cannot be projected from {self.crs} to {crs}")
        return moved

    def summary(self) -> dict[str, object]:
        """What the run record keeps: plain JSON values, without signatures and passwords in URLs."""
        hrefs = list(dict.fromkeys(without_secrets(band.href) for band in self.bands))
        facts = self.facts
        return {
            "id": self.id,
            "collection": facts.collection,
            "datetime": _iso(facts.datetime),
            "start_datetime": _iso(facts.start),
            "end_datetime": _iso(facts.end),
            "cloud_cover_percent": facts.cloud_cover,
            "sun_elevation_deg": facts.sun_elevation,
            "off_nadir_deg": facts.off_nadir,
            "licence": facts.licence,
            "provider": facts.provider,
            "item": facts.item,
            "hrefs": hrefs,
            "bands": [band.index for band in self.bands],
            "crs": str(self.crs),
            "shape": list(self.shape),
            "gsd_m": round(self.gsd, 6),
            "dtype": self.dtype,
            "nodata": None if self.nodata is None or math.isnan(self.nodata) else self.nodata,
            "radiometry": {
                "note": self.radiometry.note,
                "gain": list(self.radiometry.gain),
                "offset": list(self.radiometry.offset),
            },
            "mask": None if self.mask is None else self.mask.summary(),
            "look": None if self.look is None else self.look.summary(),
        }


def dates(scenes: Sequence[Scene]) -> str:
    """When the scenes were taken, from first to last day: `2016-07-01`, or `2016-01-01 to 2016-12-31`.

    An Item that states a span, such as the year of a NAIP flight, is not known better than that.
    """
    facts = [scene.facts for scene in scenes]
    moments = [
        moment for fact in facts for moment in (fact.start or fact.datetime, fact.end or fact.datetime) if moment
    ]
    if not moments:
        return "date unknown"
    first, last = f"{min(moments):%Y-%m-%d}", f"{max(moments):%Y-%m-%d}"
    return first if first == last else f"{first} to {last}"


def radiometry_notes(scenes: Sequence[Scene]) -> str:
    """How the scenes' numbers became colours, each way once."""
    return "; ".join(sorted({scene.radiometry.note for scene in scenes}))


def ground_gsd(crs: CRS, transform: Affine, shape: tuple[int, int]) -> float:
    """Metres a pixel on the ground at the centre of a raster, the geometric mean of its two sides.

    The transform's own where the CRS is in metres and true to scale; geodesic (WGS84) elsewhere, so that a pixel of
    Web Mercator or of degrees counts as large as it is.
    """
    height, width = shape
    col, row = width / 2, height / 2
    points = [through(transform, *place) for place in ((col, row), (col + 1, row), (col, row + 1))]
    to_lonlat = Transformer.from_crs(_proj(crs), "EPSG:4326", always_xy=True).transform
    (lon, lat), east, south = (to_lonlat(x, y) for x, y in points)
    if not all(math.isfinite(value) for value in (lon, lat, *east, *south)):
        raise SourceError(f"the raster's centre {points[0]} lies outside of {crs}; its CRS or transform is wrong")
    if is_metric(crs, lon, lat):
        return math.sqrt(abs(transform.determinant))
    geod = Geod(ellps="WGS84")
    sides = [geod.inv(lon, lat, *corner)[2] for corner in (east, south)]
    return math.sqrt(sides[0] * sides[1])


@dataclass(frozen=True)
class GsdPolicy:
    """Which imagery a model may be run on, as ratios of the imagery's GSD to the model's.

    Attributes
    ----------
    warn, refuse
        Lowest and highest ratio without a warning, and without a refusal.
    """

    warn: tuple[float, float] = WARN_RATIO
    refuse: tuple[float, float] = REFUSE_RATIO

    def check(self, scenes: Sequence[Scene], model_gsd: float, *, force: bool = False) -> list[str]:
        """One warning for each GSD that is far from the model's, metres a pixel.

        Raises
        ------
        SourceError
            A scene is beyond `refuse` and not forced; it is named.
        """
        warnings: dict[str, None] = {}
        for scene in scenes:
            ratio = scene.gsd / model_gsd
            if _between(ratio, self.warn):
                continue
            if not (force or _between(ratio, self.refuse)):
                raise SourceError(
                    f"scene {scene.id}: {scene.gsd:.3g} m a pixel is outside of {_range(self.refuse, model_gsd)}, and "
                    f"a model of {model_gsd:g} m cannot see trees in it; use other imagery, or --force-gsd to try"
                )
            warnings[
                f"imagery of {scene.gsd:.3g} m a pixel is outside of {_range(self.warn, model_gsd)}: "
                "expect larger errors than the model's card states"
            ] = None
        return list(warnings)


def _between(ratio: float, limits: tuple[float, float]) -> bool:
    # A thousandth of slack: 0.29999 m is 0.3 m.
    return limits[0] * 0.999 <= ratio <= limits[1] * 1.001


def _range(limits: tuple[float, float], model_gsd: float) -> str:
    return f"{limits[0] * model_gsd:.3g}-{limits[1] * model_gsd:.3g} m"


def horizontal_crs(wkt: str) -> CRS:
    """The CRS of a raster's pixels: without a vertical part, and by its EPSG code where it is exactly that one."""
    crs = ProjCRS.from_wkt(wkt)
    if crs.is_compound:
        crs = crs.sub_crs_list[0]
    code = crs.to_epsg(min_confidence=100)
    return CRS(crs.to_wkt() if code is None else f"EPSG:{code}")


def through(transform: Affine, first: float, second: float) -> tuple[float, float]:
    """A point through an affine transform: (col, row) to (x, y), or back through the inverse.

    Written out, because affine 3 warns of `transform * point` and affine 2 knows no `transform @ point`.
    """
    return (
        transform.a * first + transform.b * second + transform.c,
        transform.d * first + transform.e * second + transform.f,
    )


def _iso(moment: dt.datetime | None) -> str | None:
    return None if moment is None else moment.isoformat().replace("+00:00", "Z")


def _proj(crs: CRS) -> ProjCRS:
    return ProjCRS.from_user_input(str(crs))
