"""Which scene gives a pixel where several have it: the order of a mosaic."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Iterable

from geodino.settings import nearest_day
from geodino.sources.scene import Facts, Scene

_Key = tuple[tuple[float, ...], float, str, tuple[str, ...]]


def in_order(scenes: Iterable[Scene], order: str) -> tuple[Scene, ...]:
    """Scenes in mosaic order, the same for any order they came in; the same files twice count once.

    Parameters
    ----------
    order
        `newest`, `oldest`, `least-cloud` or `nearest 2020-06-15`. Equal scenes go by the newest, then by id, then by
        their files. What is unknown, a date or the cloud, comes last.

    Raises
    ------
    ConfigError
        No such order.
    """
    day = nearest_day(order)

    def key(scene: Scene) -> _Key:
        age = math.inf if scene.datetime is None else -scene.datetime.timestamp()
        files = tuple(f"{band.href}#{band.index}" for band in scene.bands)
        first: tuple[float, ...] = ()
        if day is not None:
            first = (_days_away(scene.facts, day),)
        elif order == "oldest":
            first = (math.inf if scene.datetime is None else scene.datetime.timestamp(),)
        elif order == "least-cloud":
            first = (math.inf if scene.cloud_cover is None else scene.cloud_cover,)
        return first, age, scene.id, files

    unique = {scene.bands: scene for scene in scenes}.values()
    return tuple(sorted(unique, key=key))


def _days_away(facts: Facts, day: dt.date) -> float:
    """Days (UTC) between a day and the farther end of when a scene may have been taken; infinite where unknown.

    The farther end, because an Item that states a year may be of any day in it.
    """
    ends = [moment for moment in (facts.start or facts.datetime, facts.end or facts.datetime) if moment]
    return max((abs((moment.date() - day).days) for moment in ends), default=math.inf)
