"""Cloud and shadow masks: which band says what hides the ground, which of its values, and how far around.

A mask makes pixels of its scene invalid before the mosaic is filled, so the next scene in order gives them. It is read
on its own pixels, whatever the GSD, without interpolation; the margin around what it hides is metres on the run's grid.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from affine import Affine
from odc.geo.crs import CRS
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from scipy.ndimage import distance_transform_edt

from geodino.redaction import without_secrets

Bools = npt.NDArray[np.bool_]

# Pixels are read so far around each window; a thousand metres at 0.6 m would be nine times a window of 512 px a side.
MOST_DILATE_M = 500.0
# A warped scene has three bands.
_MOST_BANDS = 3


@dataclass(frozen=True)
class MaskRule:
    """Which values of a mask's bands hide the ground; where any band says so, the pixel is hidden.

    Attributes
    ----------
    values
        Classes that hide the ground.
    keep
        Where given, every other class does, and so does ground that the mask does not cover.
    bits
        Bits, 0 the lowest, any of which hides the ground.
    """

    values: tuple[int, ...] = ()
    keep: tuple[int, ...] = ()
    bits: tuple[int, ...] = ()

    def hides(self, classes: npt.NDArray[np.float32], covered: Bools) -> Bools:
        """Whether the ground is hidden, (H, W), of classes (K, H, W) and of where the mask covers the ground.

        Ground beyond the mask is hidden where the rule names what is clear, and is not where it names what is cloud.
        """
        if self.keep:
            return ~covered | ~np.isin(classes, self.keep).all(axis=0)
        hidden = np.isin(classes, self.values)
        if self.bits:
            # Float32 holds whole numbers to 2^24, and no such file has more bits in use than 16.
            hidden |= (classes.astype(np.int64) & sum(1 << bit for bit in self.bits)) != 0
        return covered & hidden.any(axis=0)


@dataclass(frozen=True)
class MaskBand:
    """A scene's mask as it lies in its file; a description like `Scene`, not an open file.

    Attributes
    ----------
    href, bands
        Where it lies, unsigned (the scene's hook signs it), and the 1-based numbers of its bands, at most three.
    crs, transform, shape, dtype
        Of its pixels, which need not be the scene's.
    dilate_m
        Metres around hidden ground that are hidden too.
    """

    href: str
    bands: tuple[int, ...]
    rule: MaskRule
    crs: CRS
    transform: Affine
    shape: tuple[int, int]
    dtype: str
    dilate_m: float = 0.0

    def margin_px(self, gsd: float) -> int:
        """Pixels of the grid around a window on which the window's own pixels depend."""
        return math.ceil(self.dilate_m / gsd)

    def summary(self) -> dict[str, object]:
        """What the run record keeps, without signatures and passwords in URLs."""
        rule = {key: list(value) for key, value in asdict(self.rule).items() if value}
        return {"href": without_secrets(self.href), "bands": list(self.bands), **rule, "dilate_m": self.dilate_m}


# Where the numbers come from:
# scl: Sentinel-2 L2A scene classification, 1 saturated or defective, 3 cloud shadow, 8 and 9 cloud of medium and high
#   probability, 10 thin cirrus, 11 snow or ice (Sen2Cor ATBD, https://sentiwiki.copernicus.eu/web/s2-processing).
# landsat-qa: QA_PIXEL of Landsat Collection 2, bit 1 dilated cloud, 2 cirrus, 3 cloud, 4 cloud shadow, 5 snow (USGS
#   LSDS-1619, "Landsat 8-9 Collection 2 Level 2 Science Product Guide").
# udm2: Planet's usable data mask, band 1 is 1 where the ground is clear of cloud, haze, shadow and snow
#   (https://docs.planet.com/data/imagery/udm/).
PRESETS = MappingProxyType(
    {
        "scl": MaskRule(values=(1, 3, 8, 9, 10, 11)),
        "landsat-qa": MaskRule(bits=(1, 2, 3, 4, 5)),
        "udm2": MaskRule(keep=(1,)),
    }
)


def _listed(value: object) -> object:
    return (value,) if isinstance(value, int) else value


def _band_numbers(bands: tuple[int, ...]) -> tuple[int, ...]:
    if not 1 <= len(bands) <= _MOST_BANDS or len(set(bands)) != len(bands):
        raise ValueError(f"must be one to {_MOST_BANDS} different bands, not {', '.join(map(str, bands)) or 'none'}")
    return bands


_Whole = Annotated[int, Field(ge=0)]
_Bit = Annotated[int, Field(ge=0, le=15)]


class MaskSpec(BaseModel):
    """The section `mask` of a source config: what hides the ground in its scenes.

    Attributes
    ----------
    preset
        A well-known mask, whose classes need not be listed: `scl`, `landsat-qa` or `udm2`.
    asset
        Key of the Item's asset that holds the mask; None: a band of the picture's own file.
    band
        1-based number of the band, or up to three: ground is hidden where any of them says so.
    values, keep, bits
        One of them, unless a preset is named: classes that hide the ground, classes that do not, or bits (0 the
        lowest) that do.
    dilate_m
        Metres around hidden ground that are hidden too.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    preset: Literal["scl", "landsat-qa", "udm2"] | None = None
    asset: str | None = None
    band: Annotated[
        tuple[Annotated[int, Field(ge=1)], ...], BeforeValidator(_listed), AfterValidator(_band_numbers)
    ] = (1,)
    values: tuple[_Whole, ...] = ()
    keep: tuple[_Whole, ...] = ()
    bits: tuple[_Bit, ...] = ()
    dilate_m: Annotated[float, Field(ge=0, le=MOST_DILATE_M)] = 0.0

    @model_validator(mode="after")
    def _one_rule(self) -> MaskSpec:
        rules = [name for name in ("preset", "values", "keep", "bits") if getattr(self, name)]
        if len(rules) != 1:
            raise ValueError(f"mask needs one of preset, values, keep and bits, not {' and '.join(rules) or 'none'}")
        if self.asset is None and "band" not in self.model_fields_set:
            raise ValueError("mask needs an asset, or the band of the picture's own file")
        return self

    @property
    def rule(self) -> MaskRule:
        """Which values hide the ground."""
        if self.preset is not None:
            return PRESETS[self.preset]
        return MaskRule(self.values, self.keep, self.bits)


def dilated(hidden: Bools, radius_px: float) -> Bools:
    """All pixels whose centre is within `radius_px` of that of a hidden one, (H, W)."""
    if radius_px <= 0 or not hidden.any():
        return hidden
    return np.asarray(distance_transform_edt(~hidden) <= radius_px)
