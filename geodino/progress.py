"""How far a run has come: receipts in its work store, each written when what it tells of is there and whole.

A band is first predicted (its windows have been through the model), then finished (its neighbours' spills are added and
its pixels are final). Whoever goes on with a run that was cut short trusts receipts alone, and of these only such whose
files are as they say.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from geodino.bands import Band, BandId
from geodino.grid import Window
from geodino.outputs.cog import file_sha256
from geodino.stores import Store
from geodino.stream import Tally

BANDS = "bands/"
Receipt = TypeVar("Receipt", "Predicted", "Finished")

_PREDICTED, _FINISHED = ".predicted.json", ".finished.json"


@dataclass(frozen=True)
class Sum:
    """An object of the work store, and what its bytes are."""

    name: str
    size: int
    sha256: str

    @classmethod
    def of(cls, name: str, data: bytes) -> Sum:
        return cls(name, len(data), hashlib.sha256(data).hexdigest())

    def holds(self, data: bytes | None) -> bool:
        """Whether these are the bytes."""
        return data is not None and Sum.of(self.name, data) == self


@dataclass(frozen=True)
class Piece:
    """A finished part of a staged raster: (row, col, height, width) on its own grid."""

    file: Sum
    window: tuple[int, int, int, int]

    @property
    def extent(self) -> Window:
        return Window(*self.window)


@dataclass(frozen=True)
class Predicted:
    """A band whose windows have been through the model.

    Attributes
    ----------
    edges
        What its neighbours need of it.
    core
        The rest of it; None where it was finished at once.
    """

    key: str
    tally: Tally
    edges: Sum
    core: Sum | None

    def write(self, store: Store) -> None:
        store.put(BANDS + self.key + _PREDICTED, _AS_PREDICTED.dump_json(self))


@dataclass(frozen=True)
class Finished:
    """A band whose pixels are final.

    Attributes
    ----------
    pieces
        By staged raster; none where no pixel is wanted.
    without
        Neighbours that were given up: the ground that they share is nodata.
    """

    key: str
    tally: Tally
    pieces: dict[str, Piece]
    without: tuple[str, ...] = ()

    def write(self, store: Store) -> None:
        store.put(BANDS + self.key + _FINISHED, _AS_FINISHED.dump_json(self))

    def forget(self, store: Store) -> None:
        """Remove the receipt of what turned out to be damaged."""
        store.delete(BANDS + self.key + _FINISHED)


@dataclass
class Progress:
    """What is done of a run's bands; changes as they are computed.

    Attributes
    ----------
    skipped
        Bands that were given up, and why.
    windows_done
        Of the bands that are finished or given up.
    """

    bands: Mapping[BandId, Band]
    predicted: dict[BandId, Predicted] = field(default_factory=dict)
    finished: dict[BandId, Finished] = field(default_factory=dict)
    skipped: dict[BandId, str] = field(default_factory=dict)
    windows_done: int = 0

    def __post_init__(self) -> None:
        self.windows_done = sum(len(self.bands[id_].places) for id_ in self.finished)

    def finish(self, receipt: Finished) -> None:
        """Note that a band is final."""
        id_ = BandId.of(receipt.key)
        self.finished[id_] = receipt
        self.windows_done += len(self.bands[id_].places)

    def give_up(self, id_: BandId, why: str) -> None:
        """Note that a band will not be computed."""
        self.skipped[id_] = why
        self.windows_done += len(self.bands[id_].places)

    def to_predict(self) -> list[Band]:
        """Bands that nothing is known of, in lattice order."""
        known = self.predicted.keys() | self.skipped.keys()
        return [band for id_, band in self.bands.items() if id_ not in known]

    def can_finish(self, ids: Collection[BandId] | None = None) -> Iterator[BandId]:
        """Those of the bands (all of them if None) that are predicted, not finished, and wait for no neighbour."""
        for id_ in self.bands if ids is None else ids:
            waits = id_ in self.predicted and id_ not in self.finished
            if waits and all(self.settled(before) for before in id_.before):
                yield id_

    def settled(self, id_: BandId) -> bool:
        """Whether all that a band will ever say is known."""
        return id_ not in self.bands or id_ in self.predicted or id_ in self.skipped

    @property
    def done(self) -> bool:
        return len(self.finished) + len(self.skipped) == len(self.bands)

    def tally(self) -> Tally:
        """All that was counted, band by band in lattice order, so that sums do not depend on who was first."""
        total = Tally()
        for id_ in self.bands:
            for receipt in (self.predicted.get(id_), self.finished.get(id_)):
                if receipt is not None:
                    total.add(receipt.tally)
        return total


def read_progress(store: Store, bands: Mapping[BandId, Band]) -> Progress:
    """What an earlier run has left that can be trusted.

    Files in a folder are held against their checksums, which takes a second a gigabyte; those of a bucket by their size
    here, and by their checksums when they are fetched. A band that was finished without a neighbour which had been
    given up is computed anew. Receipts that cannot be trusted are removed.
    """
    found = {entry.key: entry.size for entry in store.entries(BANDS)}
    progress = Progress(bands)

    def intact(file: Sum) -> bool:
        if found.get(file.name) != file.size:
            return False
        folder = store.folder
        return folder is None or file_sha256(folder / file.name) == file.sha256

    for id_ in bands:
        has_finished, has_predicted = (BANDS + id_.key + suffix in found for suffix in (_FINISHED, _PREDICTED))
        predicted = predicted_of(store, id_.key) if has_predicted else None
        finished = finished_of(store, id_.key) if has_finished else None
        known = predicted is not None and intact(predicted.edges)
        final = known and finished is not None and not finished.without
        if final and finished and all(intact(piece.file) for piece in finished.pieces.values()):
            progress.finish(finished)
        elif has_finished:
            store.delete(BANDS + id_.key + _FINISHED)
        if predicted and (id_ in progress.finished or (known and predicted.core and intact(predicted.core))):
            progress.predicted[id_] = predicted
        elif has_predicted:
            store.delete(BANDS + id_.key + _PREDICTED)
    return progress


def predicted_of(store: Store, key: str) -> Predicted | None:
    """The receipt of a band that has been predicted; None where there is none that can be read."""
    return _read(store, BANDS + key + _PREDICTED, _AS_PREDICTED)


def finished_of(store: Store, key: str) -> Finished | None:
    """The receipt of a band that is final; None where there is none that can be read."""
    return _read(store, BANDS + key + _FINISHED, _AS_FINISHED)


def _read(store: Store, name: str, adapter: TypeAdapter[Receipt]) -> Receipt | None:
    data = store.get(name)
    try:
        return None if data is None else adapter.validate_json(data)
    except ValidationError:
        return None


_AS_PREDICTED = TypeAdapter(Predicted)
_AS_FINISHED = TypeAdapter(Finished)
