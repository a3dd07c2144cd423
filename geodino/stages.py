"""What was computed, gathered: the finished pieces of all bands as staged rasters, of which results are made."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from geodino.compute import Work
from geodino.errors import OutputError
from geodino.outputs.cog import file_sha256
from geodino.outputs.pieces import join
from geodino.outputs.stage import STAGE_SUFFIX, Stage
from geodino.progress import Piece, Progress, Receipt


@dataclass(frozen=True)
class Stages:
    """What was computed, closed and whole; `Work.layouts` says what each holds.

    Attributes
    ----------
    maps
        Heights within the AOI, and the scene that gave each pixel.
    ground
        What is known of the ground of the AOI and around it; None where no trees are found.
    heat
        What trees are found on; None where that is height.
    """

    maps: Stage
    ground: Stage | None
    heat: Stage | None


@contextmanager
def gather(work: Work, progress: Progress) -> Iterator[Stages]:
    """The staged rasters of a run whose bands are all finished or given up; they are gone with the block.

    Raises
    ------
    OutputError
        A piece is not what was written.
    """
    with TemporaryDirectory(prefix="geodino-stages-") as scratch:
        found: dict[str, Stage] = {}
        for kind, layout in work.layouts.items():
            pieces = [
                (_local(work, receipt, piece, Path(scratch)), piece.extent)
                for _, receipt in sorted(progress.receipts.items())
                if (piece := (receipt.pieces or {}).get(kind)) is not None
            ]
            found[kind] = join(Path(scratch) / f"{kind}{STAGE_SUFFIX}", layout, work.extent(kind), pieces)
        yield Stages(found["maps"], found.get("ground"), found.get("heat"))


def _local(work: Work, receipt: Receipt, piece: Piece, scratch: Path) -> Path:
    """A piece as a file. What was kept in a bucket is fetched and held against its checksum."""
    store, name = work.store, piece.file.name
    if store.folder is not None:
        return store.folder / name
    path = scratch / name.replace("/", "-")
    if not store.download(name, path) or file_sha256(path) != piece.file.sha256:
        receipt.forget(store)
        raise OutputError(
            f"{store}/{name} is not what was written there; run the same command again, and it is computed anew"
        )
    return path
