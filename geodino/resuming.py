"""Goes on with a run that was cut short, keeps what is done of one that is, and says so."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from geodino.compute import Work
from geodino.errors import NoImageryError, OutputError, ReadError
from geodino.fingerprint import fingerprint, settle
from geodino.models.as_run import ModelAsRun
from geodino.progress import BANDS, Progress, read_progress
from geodino.stores import Store
from geodino.stream import Tally
from geodino.watch import Watch, count


def begin(work: Work, model: ModelAsRun, watch: Watch) -> Progress:
    """What is done already: nothing, or what an earlier run with the same fingerprint has left.

    Raises
    ------
    ConfigError
        There is another run's work, and it was not said that it is of no use.
    """
    if not settle(work.store, fingerprint(work.plan, model), resume=work.plan.options.resume):
        return Progress(work.bands)
    progress = read_progress(work.store, work.bands)
    if progress.receipts:
        half = sum(len(work.bands[id_].places) for id_, receipt in progress.receipts.items() if not receipt.final)
        also = f", and {half:,} wait for their neighbours" if half else ""
        watch.note(
            f"going on with an unfinished run: {progress.windows_done:,} of {count(len(work.plan.places), 'window')} "
            f"are done{also}"
        )
    return progress


@contextmanager
def kept_for_later(store: Store, watch: Watch) -> Iterator[None]:
    """Says where what is done lies, should the block not come to its end; removes what nobody could go on with."""
    try:
        yield
    except NoImageryError:
        # Other imagery would be another run.
        store.clear()
        raise
    except BaseException:  # Ctrl-C and being ended among them.
        # A disk or store that refuses has said so already.
        with suppress(OutputError):
            if any(True for _ in store.entries(BANDS)):
                watch.note("what is done is kept: the same command goes on with it")
            else:
                store.clear()
        raise


def tally_of(work: Work, progress: Progress) -> Tally:
    """All that was counted and lost.

    Raises
    ------
    ReadError
        Nothing of the AOI could be read or computed.
    NoImageryError
        The imagery has no valid pixel in the AOI.
    """
    tally = progress.tally()
    for id_, why in progress.skipped.items():
        band = work.bands[id_]
        tally.losses.add(
            f"{count(len(band.places), 'window')} from row {band.first.r}, column {band.first.c} on: {why}"
        )
        tally.pixels_lost += work.pixels_of(band)
    if not tally.pixels_written and tally.losses:
        losses = sorted(tally.losses)
        raise ReadError(f"no pixel of the AOI could be read; {len(losses)} reads failed, as: {losses[0]}")
    if not tally.pixels_written:
        raise NoImageryError("the imagery has no valid pixel in the AOI; give other dates or other --source")
    return tally
