"""Digital numbers to the 0..1 that models are fed: one straight line per band, decided once per scene.

The satellite models were trained on 8-bit natural-colour mosaics, so 0..1 means "black to white of a picture", not
reflectance. What a file holds is brought there by the first of these rules that applies:

1. a profile that was asked for by name;
2. uint8 is a picture already: divided by 255;
3. a STAC `raster:scale` / `raster:offset` (or the file's own scale and offset) gives reflectance, and reflectance
   0..WHITE becomes 0..1;
4. a 2-98 % stretch over the whole scene.

The line belongs to the scene, never to a window, so the same ground gets the same numbers however it is cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from geodino.errors import ConfigError
from geodino.shipped import nearest

Triple = tuple[float, float, float]

# The reflectance that is shown white: our choice, in want of a standard. ESA's true-colour images of surface
# reflectance saturate at 0.2 (Sentinel-2 user guide, Definitions), made for 10 m pixels; at 0.6 m sunlit roofs and bare
# soil reach 0.3, and forest (0.03-0.06 in red and blue, to 0.1 in green) still gets a third of the range.
WHITE = 0.3

# Percentiles of the stretch: the darkest and the brightest 2 % of all valid samples saturate.
STRETCH_PERCENT = (2.0, 98.0)


@dataclass(frozen=True)
class Radiometry:
    """A scene's line from digital numbers to 0..1: `clip(dn * gain + offset, 0, 1)`, band by band.

    Attributes
    ----------
    gain, offset
        For red, green and blue; `gain` per digital number, `offset` in 0..1.
    note
        How the line was decided, for the record.
    """

    gain: Triple
    offset: Triple
    note: str

    def apply(self, dn: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
        """Digital numbers as a picture.

        Parameters
        ----------
        dn
            Shape (3, H, W), any real dtype.

        Returns
        -------
        float32 (3, H, W) in 0..1; NaN stays NaN.
        """
        # In float64, because uint16 * (1 / 65535) in float32 is off by more than half an ulp.
        gain = np.asarray(self.gain)[:, None, None]
        offset = np.asarray(self.offset)[:, None, None]
        picture: npt.NDArray[np.float64] = np.multiply(dn, gain, dtype=np.float64)
        picture += offset
        np.clip(picture, 0.0, 1.0, out=picture)
        return picture.astype(np.float32)


def _same(gain: float, note: str) -> Radiometry:
    return Radiometry((gain,) * 3, (0.0,) * 3, note)


# What `radiometry: NAME` may ask for. PlanetScope's and most vendors' surface reflectance are `reflectance-10000`.
PROFILES = MappingProxyType(
    {
        "uint8": _same(1 / 255, "profile uint8"),
        "uint16-full": _same(1 / 65535, "profile uint16-full"),
        "reflectance-10000": _same(1e-4 / WHITE, f"profile reflectance-10000, white at {WHITE:g}"),
        "reflectance-1": _same(1 / WHITE, f"profile reflectance-1, white at {WHITE:g}"),
    }
)


def profile(name: str) -> Radiometry:
    """The profile of that name; ConfigError names the known ones."""
    if name not in PROFILES:
        raise ConfigError(f"no radiometry profile named {name}" + nearest(name, ["auto", *PROFILES]))
    return PROFILES[name]


def decide(dtype: str, scale: Triple | None, offset: Triple | None) -> Radiometry | None:
    """The line that follows from the file and its STAC metadata alone; None where the scene must be stretched.

    Parameters
    ----------
    dtype
        NumPy name of the file's data type.
    scale, offset
        Reflectance = dn * scale + offset, band by band; None where nothing states them. A scale of 1 with an offset
        of 0 is GDAL's default and states nothing.
    """
    if dtype == "uint8":
        return _same(1 / 255, "uint8")
    scale, offset = scale or (1.0,) * 3, offset or (0.0,) * 3
    if all(factor == 1 for factor in scale) and not any(offset):
        return None
    red, green, blue = (factor / WHITE for factor in scale)
    shift = offset[0] / WHITE, offset[1] / WHITE, offset[2] / WHITE
    return Radiometry((red, green, blue), shift, f"raster:scale/offset as reflectance, white at {WHITE:g}")


def stretch(samples: npt.NDArray[np.generic], valid: npt.NDArray[np.bool_]) -> Radiometry:
    """The 2-98 % stretch of a scene, one line for all three bands.

    One line, because three would pull every scene's mean colour to grey: a forest's green, and the ratio of blue to
    green that tells haze and water, are what the backbone was trained to see.

    Parameters
    ----------
    samples
        Digital numbers of the whole scene, thinned, shape (3, H, W).
    valid
        Which pixels count, shape (H, W). A scene with none gets the zero line.
    """
    seen = np.asarray(samples[:, valid], np.float64)
    seen = seen[np.isfinite(seen)]
    if not seen.size:
        return _same(0.0, "stretch of a scene without valid pixels")
    low, high = (float(value) for value in np.percentile(seen, STRETCH_PERCENT))
    if high <= low:
        return Radiometry((0.0,) * 3, (0.5,) * 3, f"stretch of a scene that is {low:g} everywhere")
    gain = 1 / (high - low)
    return Radiometry((gain,) * 3, (-low * gain,) * 3, f"stretch 2-98 % of the scene, {low:g} to {high:g}")


def as_triple(values: Sequence[float]) -> Triple:
    """Three numbers as red, green, blue."""
    red, green, blue = (float(value) for value in values)
    return red, green, blue
