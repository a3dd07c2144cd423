"""How the windows of a run are shared out: bands of a few rows and columns of the lattice, each computed by one task.

Bands hang on the lattice as windows hang on the CRS's origin, and how they are cut follows from the plan alone. So the
same windows are always computed together, whoever computes them and in whatever order, and a run that was cut short
finds its own bands again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from geodino.windows import Place

COLS = 8
"""Windows in one row of a band; what goes through the model together lies in one such row."""

# Taller bands read less twice (rows of blocks that two bands share) and hand less on; a small run is cut finer, so
# that there is work for several workers and little is lost when one dies. Windows of a run for each row of a band.
_WINDOWS_A_ROW = 256
_MOST_ROWS = 4


@dataclass(frozen=True, order=True, slots=True)
class BandId:
    """A band's place on the lattice of bands."""

    r: int
    c: int

    @property
    def key(self) -> str:
        """Safe in file names, and read back by `of`."""
        return f"{self.r}_{self.c}"

    @classmethod
    def of(cls, key: str) -> BandId:
        r, c = key.split("_")
        return cls(int(r), int(c))

    @property
    def north(self) -> BandId:
        return BandId(self.r - 1, self.c)

    @property
    def west(self) -> BandId:
        return BandId(self.r, self.c - 1)

    @property
    def northwest(self) -> BandId:
        return BandId(self.r - 1, self.c - 1)

    @property
    def before(self) -> tuple[BandId, BandId, BandId]:
        """Whose predictions reach into this band."""
        return self.north, self.west, self.northwest

    @property
    def after(self) -> tuple[BandId, BandId, BandId]:
        """Into which bands this one's predictions reach."""
        return BandId(self.r + 1, self.c), BandId(self.r, self.c + 1), BandId(self.r + 1, self.c + 1)


@dataclass(frozen=True)
class Band:
    """Windows that are computed by one task.

    Attributes
    ----------
    rows
        Rows of windows in every band of the run.
    places
        The windows to compute, in lattice order; at least one.
    """

    id: BandId
    rows: int
    places: tuple[Place, ...]

    @property
    def first(self) -> Place:
        """The north-western place of the band, computed or not."""
        return Place(self.id.r * self.rows, self.id.c * COLS)

    @property
    def last(self) -> Place:
        """The south-eastern place of the band, computed or not."""
        return Place(self.first.r + self.rows - 1, self.first.c + COLS - 1)


def cut(places: Iterable[Place], rows: int) -> dict[BandId, Band]:
    """The bands that hold the places, in lattice order of bands; places in lattice order within each."""
    found: dict[BandId, list[Place]] = {}
    for place in places:
        found.setdefault(BandId(place.r // rows, place.c // COLS), []).append(place)
    return {id_: Band(id_, rows, tuple(sorted(found[id_]))) for id_ in sorted(found)}


def rows_for(windows: int) -> int:
    """Rows of windows in each band of a run of so many windows."""
    return max(1, min(_MOST_ROWS, windows // _WINDOWS_A_ROW))
