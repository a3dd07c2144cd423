"""How far a run has come: receipts in its work store, each written when what it tells of is there and whole.

A band is first predicted (its windows have been through the model), then finished (its neighbours' spills are added and
its pixels are final). Whoever goes on with a run that was cut short trusts receipts alone, and of these only such whose
files are as they say.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from pydantic import TypeAdapter, ValidationError

from geodino.bands import Band, BandId
from geodino.grid import Window
from geodino.outputs.cog import file_sha256
from geodino.stores import Store
from geodino.stream import Tally

BANDS = "bands/"
_RECEIPT = ".json"


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
class Piece:
    """A finished part of a staged raster: (row, col, height, width) on its own grid."""

    file: Sum
    window: tuple[int, int, int, int]

    @property
    def extent(self) -> Window:
        return Window(*self.window)


@dataclass(frozen=True, slots=True)
class Receipt:
    """A band whose windows have been through the model.

    Attributes
    ----------
    edges
        What its neighbours need of it; None where none of its windows holds anything.
    core
        The rest of it; None once it is finished.
    pieces
        Where its pixels are final: by staged raster, none where no pixel is wanted. None before.
    without
        Neighbours that were given up: the ground that they share is nodata.
    """

    key: str
    tally: Tally
    edges: Sum | None
    core: Sum | None
    pieces: dict[str, Piece] | None = None
    without: tuple[str, ...] = ()

    @property
    def final(self) -> bool:
        """Whether its pixels are."""
        return self.pieces is not None

    def write(self, store: Store) -> None:
        store.put(BANDS + self.key + _RECEIPT, _ADAPTER.dump_json(self), durable=False)

    def forget(self, store: Store) -> None:
        """Remove the receipt of what turned out to be damaged."""
        store.delete(BANDS + self.key + _RECEIPT)


@dataclass
class Progress:
    """What is done of a run's bands; changes as they are computed.

    Attributes
    ----------
    receipts
        Of the bands that are predicted or final; those of final ones without their tally, which is counted here.
    skipped
        Bands that were given up, and why.
    windows_done, bands_done
        Of the bands that are final or given up.
    pixels_done
        Of the map, in those that are final.
    """

    bands: Mapping[BandId, Band]
    receipts: dict[BandId, Receipt] = field(default_factory=dict)
    skipped: dict[BandId, str] = field(default_factory=dict)
    windows_done: int = 0
    bands_done: int = 0
    pixels_done: int = 0
    _total: Tally = field(default_factory=Tally)

    def note(self, receipt: Receipt) -> None:
        """Note what was done to a band."""
        id_ = BandId.of(receipt.key)
        if receipt.final:
            self._total.add(receipt.tally)
            self.pixels_done += receipt.tally.pixels_written
            self._count(id_)
            # A run over a country has very many of them.
            receipt = replace(receipt, tally=_COUNTED)
        self.receipts[id_] = receipt

    def give_up(self, id_: BandId, why: str) -> None:
        """Note that a band will not be computed."""
        self.skipped[id_] = why
        self._count(id_)

    def to_predict(self) -> list[Band]:
        """Bands that nothing is known of, in lattice order."""
        return [band for id_, band in self.bands.items() if id_ not in self.receipts and id_ not in self.skipped]

    def can_finish(self, ids: Iterable[BandId] | None = None) -> Iterator[BandId]:
        """Those of the bands (all of them if None) that are predicted, not final, and wait for no neighbour."""
        for id_ in self.bands if ids is None else ids:
            receipt = self.receipts.get(id_)
            waits = receipt is not None and not receipt.final and id_ not in self.skipped
            if waits and all(self.settled(before) for before in id_.before):
                yield id_

    def settled(self, id_: BandId) -> bool:
        """Whether all that a band will ever say is known."""
        return id_ not in self.bands or id_ in self.receipts or id_ in self.skipped

    def around(self, id_: BandId) -> dict[BandId, Receipt]:
        """Receipts of a band and of those whose predictions reach into it."""
        return {near: self.receipts[near] for near in (id_, *id_.before) if near in self.receipts}

    def missing(self, id_: BandId) -> tuple[BandId, ...]:
        """Those whose predictions would reach into a band, and that were given up."""
        return tuple(before for before in id_.before if before in self.skipped)

    @property
    def done(self) -> bool:
        return self.bands_done == len(self.bands)

    def tally(self) -> Tally:
        """All that was counted; of bands that are not final, what their predictions did."""
        total = Tally()
        total.add(self._total)
        for receipt in self.receipts.values():
            if not receipt.final:
                total.add(receipt.tally)
        return total

    def _count(self, id_: BandId) -> None:
        self.bands_done += 1
        self.windows_done += len(self.bands[id_].places)


def read_progress(store: Store, bands: Mapping[BandId, Band]) -> Progress:
    """What an earlier run has left that can be trusted.

    Files in a folder are held against their checksums, which takes a second a gigabyte; those of a bucket by their size
    here, and by their checksums when they are fetched. A band that was finished without a neighbour which had been
    given up is computed anew. Receipts that cannot be trusted are removed.
    """
    found = {entry.key: entry.size for entry in store.entries(BANDS)}
    progress = Progress(bands)

    def intact(file: Sum | None) -> bool:
        if file is None:
            return True
        if found.get(file.name) != file.size:
            return False
        return store.folder is None or file_sha256(store.folder / file.name) == file.sha256

    for id_ in bands:
        if BANDS + id_.key + _RECEIPT not in found:
            continue
        receipt = receipt_of(store, id_.key)
        rest = [] if receipt is None else [receipt.core, *(piece.file for piece in (receipt.pieces or {}).values())]
        if receipt and not receipt.without and intact(receipt.edges) and all(map(intact, rest)):
            progress.note(receipt)
        else:
            store.delete(BANDS + id_.key + _RECEIPT)
    return progress


def receipt_of(store: Store, key: str) -> Receipt | None:
    """The receipt of a band; None where there is none that can be read."""
    data = store.get(BANDS + key + _RECEIPT)
    try:
        return None if data is None else _ADAPTER.validate_json(data)
    except ValidationError:
        return None


_ADAPTER = TypeAdapter(Receipt)
_COUNTED = Tally()
