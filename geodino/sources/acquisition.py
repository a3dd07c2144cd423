"""Which scenes fit a model: by their GSD, and by the light and the angle that its heights were validated for.

The limits of light and angle are those of the CHMv2 paper (arXiv 2603.06382), which compared heights with GEDI and
ICESat-2 only where the sun stood at least 45 degrees high and the view was at most 25 degrees off nadir; a lower sun
gave an RMSE of 7.4 m, one above 50 degrees 6.5 m (ICESat-2, north of 40 °N). Of a season the paper states no limit, so
none is set: it is said.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass

from geodino.errors import SourceError
from geodino.sources.scene import Facts, GsdPolicy, Scene
from geodino.sources.search import Dropped, sentences

MIN_SUN_ELEVATION_DEG = 45.0
MAX_OFF_NADIR_DEG = 25.0

_SEASONS = ("winter", "spring", "summer", "autumn")
# Between the tropics the four seasons say nothing of leaves.
_TROPIC_DEG = 23.4
_STRICT = "--strict-acquisition"


@dataclass(frozen=True)
class Judged:
    """The scenes that stay, sentences about those left out, and warnings."""

    scenes: tuple[Scene, ...]
    dropped: tuple[str, ...]
    warnings: tuple[str, ...]


def of_fitting_light(scenes: Sequence[Scene], *, strict: bool) -> Judged:
    """Scenes by their sun and view: beyond the limits they are warned of, or left out where `strict`.

    A scene that states no angle stays even so, with a warning: most aerial imagery states none, and to refuse it would
    refuse what is as a rule flown at noon and looked at from above. It is never taken for good in silence.

    Raises
    ------
    SourceError
        Strict, and every scene is beyond a limit.
    """
    if not strict:
        warned = (f"{text}, the CHMv2 paper's limit: heights are worse there" for text in _said(scenes))
        return Judged(tuple(scenes), (), tuple(warned))
    beyond = {number: text for number, scene in enumerate(scenes) if (text := "; ".join(beyond_limits(scene.facts)))}
    kept = tuple(scene for number, scene in enumerate(scenes) if number not in beyond)
    if not kept:
        first = scenes[0]
        more = f", and so are the {len(scenes) - 1} others" if len(scenes) > 1 else ""
        raise SourceError(
            f"scene {first.id} is refused by {_STRICT} ({beyond[0]}){more}: give other dates or imagery, or leave "
            f"{_STRICT} out"
        )
    dropped = [Dropped(scenes[number].id, f"refused by {_STRICT} ({text})") for number, text in beyond.items()]
    silent = [scene for scene in kept if unknown_angles(scene.facts)]
    warnings = (f"{_named(silent)}: sun elevation or off-nadir angle unknown, kept unjudged",) if silent else ()
    return Judged(kept, sentences(dropped), warnings)


def of_fitting_gsd(scenes: Sequence[Scene], gsd_m: float, *, force: bool) -> Judged:
    """Scenes that a model of that GSD, metres a pixel, can be run on.

    Raises
    ------
    SourceError
        None is left.
    """
    kept: list[Scene] = []
    refused: list[Dropped] = []
    errors: list[SourceError] = []
    warnings: dict[str, None] = {}
    for scene in scenes:
        try:
            warnings.update(dict.fromkeys(GsdPolicy().check([scene], gsd_m, force=force)))
        except SourceError as error:
            refused.append(Dropped(scene.id, f"of {scene.gsd:.3g} m a pixel, too far from the model's {gsd_m:g} m"))
            errors.append(error)
        else:
            kept.append(scene)
    if errors and not kept:
        raise errors[0]
    return Judged(tuple(kept), sentences(refused), tuple(warnings))


def beyond_limits(facts: Facts) -> tuple[str, ...]:
    """What of an acquisition is beyond the limits, in words; nothing of what is unknown."""
    found = []
    if (sun := _low_sun(facts)) is not None:
        found.append(f"sun {sun:.1f}° high, under {MIN_SUN_ELEVATION_DEG:g}°")
    if (angle := _oblique(facts)) is not None:
        found.append(f"{angle:.1f}° off nadir, over {MAX_OFF_NADIR_DEG:g}°")
    return tuple(found)


def unknown_angles(facts: Facts) -> tuple[str, ...]:
    """Which of the two angles is unknown."""
    angles = {"sun_elevation": facts.sun_elevation, "off_nadir": facts.off_nadir}
    return tuple(name for name, angle in angles.items() if angle is None)


def season(facts: Facts, lat: float) -> str | None:
    """The meteorological season (three whole months) at a latitude, degrees; None where it is unknown or no season.

    None for a scene whose Item states a span over two seasons, such as the year of a flight, and between the tropics.
    """
    moments = [moment for moment in (facts.start or facts.datetime, facts.end or facts.datetime) if moment]
    if not moments or abs(lat) < _TROPIC_DEG or moments[-1] - moments[0] > dt.timedelta(days=92):
        return None
    quarters = {moment.month % 12 // 3 for moment in moments}
    if len(quarters) > 1:
        return None
    return _SEASONS[(quarters.pop() + (2 if lat < 0 else 0)) % 4]


def acquisition_facts(facts: Facts, lat: float) -> dict[str, object]:
    """What the record says of an acquisition beside its angles: season, what is beyond the limits, what is unknown."""
    return {
        "season": season(facts, lat),
        "beyond_limits": list(beyond_limits(facts)),
        "unknown_angles": list(unknown_angles(facts)),
    }


def _said(scenes: Sequence[Scene]) -> list[str]:
    """A sentence for each limit that scenes are beyond."""
    low = [(scene, sun) for scene in scenes if (sun := _low_sun(scene.facts)) is not None]
    oblique = [(scene, angle) for scene in scenes if (angle := _oblique(scene.facts)) is not None]
    said = []
    if low:
        least = min(sun for _, sun in low)
        said.append(f"{_named([scene for scene, _ in low])}: sun {least:.1f}° high, under {MIN_SUN_ELEVATION_DEG:g}°")
    if oblique:
        most = max(angle for _, angle in oblique)
        named = _named([scene for scene, _ in oblique])
        said.append(f"{named}: {most:.1f}° off nadir, over {MAX_OFF_NADIR_DEG:g}°")
    return said


def _low_sun(facts: Facts) -> float | None:
    sun = facts.sun_elevation
    return sun if sun is not None and sun < MIN_SUN_ELEVATION_DEG else None


def _oblique(facts: Facts) -> float | None:
    # Some providers sign the angle by the side that the satellite looks to.
    angle = None if facts.off_nadir is None else abs(facts.off_nadir)
    return angle if angle is not None and angle > MAX_OFF_NADIR_DEG else None


def _named(scenes: Sequence[Scene]) -> str:
    return ", ".join(scene.id for scene in scenes[:3]) + (f" and {len(scenes) - 3} more" if len(scenes) > 3 else "")
