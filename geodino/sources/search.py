"""What is looked for, in which order it counts, and what was left out."""

from __future__ import annotations

import calendar
import datetime as dt
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from geodino.errors import ConfigError
from geodino.settings import check_order
from geodino.sources.scene import Facts, Scene

_LONG_AGO = dt.datetime.min.replace(tzinfo=dt.UTC)
_FAR_AHEAD = dt.datetime.max.replace(tzinfo=dt.UTC)
_MOMENT = re.compile(r"(\d{4})(?:-(\d\d)(?:-(\d\d)(?:[T ](.+))?)?)?")
# The one reason for leaving something out that speaks of the AOI and not of what else was asked for.
OFF_AOI = "off the AOI"
# Ids named in one sentence of what was left out.
_NAMED = 3


class Dropped(NamedTuple):
    """Something that was left out, and why: `over 10 % cloud`; `unasked` where a server should not have sent it."""

    name: str
    why: str
    unasked: bool = False


@dataclass(frozen=True)
class Search:
    """Which scenes are wanted.

    Attributes
    ----------
    datetime
        As in STAC: `2020`, `2020-05/2021-06`, `../2022-01-01`; None for any time. Times without a zone are UTC.
    max_cloud
        Percent; scenes that state more are left out, scenes that state nothing stay. None for any.
    order
        As `order.in_order` takes it: `newest`, `oldest`, `least-cloud` or `nearest 2020-06-15`.
    bands
        Red, green and blue by name or 1-based number; empty: as the source says.
    radiometry
        A profile's name, or `auto`.
    collections
        Of STAC; they go before a source config's. Empty: as the source says. Files that belong to none stay.

    Raises
    ------
    ConfigError
        A datetime that cannot be read, a percentage that is none, an unknown order.
    """

    datetime: str | None = None
    max_cloud: float | None = None
    order: str = "newest"
    bands: tuple[str, ...] = ()
    radiometry: str = "auto"
    collections: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_order(self.order)
        # NaN is in no range, but click lets it through.
        if self.max_cloud is not None and not 0 <= self.max_cloud <= 100:
            raise ConfigError(f"max cloud {self.max_cloud:g} must be 0 to 100 percent")
        self.interval()

    def interval(self) -> tuple[dt.datetime, dt.datetime]:
        """First and last moment that count, aware, UTC."""
        if self.datetime is None:
            return _LONG_AGO, _FAR_AHEAD
        first, slash, last = self.datetime.partition("/")
        start = _LONG_AGO if first.strip() in ("", "..") and slash else _span(first)[0]
        end = (_FAR_AHEAD if last.strip() in ("", "..") else _span(last)[1]) if slash else _span(first)[1]
        if start > end:
            raise ConfigError(f"datetime {self.datetime} ends before it starts")
        return start, end

    def interval_text(self) -> str | None:
        """The interval as a STAC API takes it, RFC 3339 with `..` for an open end; None for any time."""
        start, end = self.interval()
        if (start, end) == (_LONG_AGO, _FAR_AHEAD):
            return None
        first = ".." if start == _LONG_AGO else _rfc3339(start)
        return f"{first}/{'..' if end == _FAR_AHEAD else _rfc3339(end)}"

    def refusal(self, facts: Facts) -> str | None:
        """Why an acquisition is left out, or None where it fits. Called for both files and Items."""
        if self.datetime is not None:
            first = facts.datetime or facts.start
            last = facts.datetime or facts.end or facts.start
            if first is None or last is None:
                return "of unknown date, while a datetime is asked for"
            start, end = self.interval()
            if last < start or first > end:
                return f"outside of {self.datetime}"
        if self.collections and facts.collection is not None and facts.collection not in self.collections:
            return f"of another collection than {', '.join(self.collections)}"
        if self.max_cloud is not None and facts.cloud_cover is not None and facts.cloud_cover > self.max_cloud:
            return f"over {self.max_cloud:g} % cloud"
        return None

    def heeds(self, facts: Facts) -> bool:
        """Whether a server may send this in answer to the search, which tells it of time and collections alone.

        The standard leaves open which of an Item's times counts, so any that fits will do.
        """
        if self.collections and facts.collection is not None and facts.collection not in self.collections:
            return False
        start, end = self.interval()
        spans = ((facts.datetime, facts.datetime), (facts.start, facts.end or facts.start))
        known = [(first, last) for first, last in spans if first is not None and last is not None]
        return not known or any(first <= end and last >= start for first, last in known)


@dataclass(frozen=True)
class Found:
    """Scenes in mosaic order.

    Attributes
    ----------
    dropped
        One sentence for each reason why others were left out.
    warnings
        One for each thing that is odd about what a server sent.
    """

    scenes: tuple[Scene, ...]
    dropped: tuple[str, ...]
    warnings: tuple[str, ...] = ()


def sentences(dropped: Iterable[Dropped]) -> tuple[str, ...]:
    """One sentence a reason: `12 over 10 % cloud (a, b, c, ...)`."""
    by_reason: dict[str, list[str]] = {}
    for entry in dropped:
        by_reason.setdefault(entry.why, []).append(entry.name)
    return tuple(
        f"{len(names)} {why} ({', '.join(names[:_NAMED])}{', ...' if len(names) > _NAMED else ''})"
        for why, names in by_reason.items()
    )


def _rfc3339(moment: dt.datetime) -> str:
    return moment.astimezone(dt.UTC).isoformat().replace("+00:00", "Z")


def _span(text: str) -> tuple[dt.datetime, dt.datetime]:
    """First and last moment of a year, month, day or moment."""
    found = _MOMENT.fullmatch(text.strip())
    try:
        if found is None:
            raise ValueError("not a date")
        year, month, day, clock = found.groups()
        if clock is not None:
            moment = dt.datetime.fromisoformat(text.strip())
            moment = moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)
            return moment, moment
        first = dt.datetime(int(year), int(month or 1), int(day or 1), tzinfo=dt.UTC)
        last_month = int(month or 12)
        last_day = int(day or calendar.monthrange(int(year), last_month)[1])
        return first, dt.datetime(int(year), last_month, last_day, 23, 59, 59, 999_999, tzinfo=dt.UTC)
    except ValueError as error:
        raise ConfigError(
            f"datetime {text} cannot be read ({error}); write 2020, 2020-05, 2020-05-31 or first/last"
        ) from error
