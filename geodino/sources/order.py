"""Which scene gives a pixel where several have it: the order of a mosaic."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Iterable

from geodino.settings import nearest_day
from geodino.sources.scene import Facts, Scene

OrderKey = tuple[float, float, tuple[str, ...]]


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
    unique = {scene.bands: scene for scene in scenes}.values()
    return tuple(
        sorted(
            unique,
            key=lambda scene: order_key(
                scene.facts, (scene.id, *(f"{band.href}#{band.index}" for band in scene.bands)), order
            ),
        )
    )


def order_key(facts: Facts, names: tuple[str, ...], order: str) -> OrderKey:
    """What sorts acquisitions into mosaic order, from their facts and, where these are equal, their names."""
    day = nearest_day(order)
    moment = facts.datetime or facts.start
    age = math.inf if moment is None else -moment.timestamp()
    first = 0.0
    if day is not None:
        first = _days_away(facts, day)
    elif order == "oldest":
        first = math.inf if moment is None else moment.timestamp()
    elif order == "least-cloud":
        first = math.inf if facts.cloud_cover is None else facts.cloud_cover
    return first, age, names


def _days_away(facts: Facts, day: dt.date) -> float:
    """Days (UTC) between a day and the farther end of when a scene may have been taken; infinite where unknown.

    The farther end, because an Item that states a year may be of any day in it.
    """
    ends = [moment for moment in (facts.start or facts.datetime, facts.end or facts.datetime) if moment]
    return max((abs((moment.date() - day).days) for moment in ends), default=math.inf)
