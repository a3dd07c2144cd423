"""Which three bands are red, green and blue."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from geodino.errors import SourceError

RGB = ("red", "green", "blue")


@dataclass(frozen=True)
class AssetBand:
    """One band as a STAC Item describes it: lower-case names, `raster:scale` and the like; None where unsaid."""

    names: frozenset[str] = frozenset()
    scale: float | None = None
    offset: float | None = None
    nodata: float | None = None


@dataclass(frozen=True)
class BandLabel:
    """What is known of one band: all its names, lower case, and GDAL's colour interpretation."""

    names: frozenset[str] = frozenset()
    colour: str = "undefined"


def choose_rgb(labels: Sequence[BandLabel], wanted: Sequence[str] | None, where: str) -> tuple[int, int, int]:
    """The 1-based numbers of the red, green and blue bands.

    The first of these rules that applies: the bands asked for; the bands' names (STAC common names, or the file's
    descriptions); the colour interpretation; bands 1, 2, 3 of a file that has three and says nothing. A file of more
    bands that says nothing is refused, because vendors order them differently (PlanetScope: blue, green, red, nir).

    Parameters
    ----------
    labels
        One a band.
    wanted
        Three names or 1-based numbers, in the order red, green, blue.
    where
        What messages call the file.

    Raises
    ------
    SourceError
        One or two bands, a palette, an unknown band, or no way to tell.
    """
    if any(label.colour == "palette" for label in labels):
        raise SourceError(f"{where} is a palette image; expand it first: gdal_translate -expand rgb IN OUT")
    if len(labels) < 3:
        count = f"{len(labels)} band" + "s" * (len(labels) != 1)
        raise SourceError(
            f"{where} has {count}; red, green and blue are needed; where each has its own file: "
            "gdalbuildvrt -separate rgb.vrt RED GREEN BLUE, or a STAC Item with three assets"
        )
    if wanted is not None:
        if len(wanted) != 3:
            raise SourceError(f"bands {','.join(wanted)} must be three: red, green, blue")
        red, green, blue = (_find(name, labels, where) for name in wanted)
        return red, green, blue
    for by in (_by_name, _by_colour):
        found = [by(labels, colour) for colour in RGB]
        if all(len(numbers) == 1 for numbers in found):
            return found[0][0], found[1][0], found[2][0]
    # Grey and two undefined bands are what GDAL says of any three bands without a photometric tag.
    if len(labels) == 3:
        return 1, 2, 3
    raise SourceError(
        f"{where} has {len(labels)} bands and does not say which are red, green and blue; name them with bands, "
        f"such as bands 1,2,3 (known: {_known(labels)})"
    )


def _by_name(labels: Sequence[BandLabel], name: str) -> list[int]:
    return [number for number, label in enumerate(labels, 1) if name in label.names]


def _by_colour(labels: Sequence[BandLabel], colour: str) -> list[int]:
    return [number for number, label in enumerate(labels, 1) if label.colour == colour]


def _find(name: str, labels: Sequence[BandLabel], where: str) -> int:
    name = name.strip().lower()
    if name.isdecimal():
        if not 1 <= int(name) <= len(labels):
            raise SourceError(f"{where}: band {name} must be between 1 and {len(labels)}")
        return int(name)
    found = _by_name(labels, name) or _by_colour(labels, name)
    if len(found) != 1:
        fault = f"{len(found)} bands are" if found else "no band is"
        raise SourceError(f"{where}: {fault} named {name}; give a number or one of: {_known(labels)}")
    return found[0]


def _known(labels: Sequence[BandLabel]) -> str:
    return ", ".join(
        f"{number} {'/'.join(sorted(label.names)) or label.colour}" for number, label in enumerate(labels, 1)
    )
