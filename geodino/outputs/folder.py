"""The folder of a run, here or in a bucket: one writer at a time, and files that appear whole or not at all.

Everything is written under a temporary name in the same folder (`.canopy_height.tif.part-4242-1f00ba11`) and renamed
when all of it is ready. A run that is killed leaves at most such names behind, which the next run clears away. What is
for a bucket is written to the temporary folder (TMPDIR) and sent there when all of it is ready.
The record comes first off and last on: where `run.json` is, every file it names belongs to it and is whole.
"""

from __future__ import annotations

import glob
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType

from geodino.errors import OutputError
from geodino.outputs.locks import LOCK_NAME, BucketLock, FolderLock
from geodino.outputs.scratch import scratch_folder
from geodino.stores import PART_NAME, Store, sync
from geodino.stores import part_path as part_path

RECORD_NAME = "run.json"

# Every name a run may give to a file. `--overwrite` removes these and nothing else.
OUTPUT_NAMES = (
    "canopy_height.tif",
    "canopy_height_spread.tif",
    "trees.parquet",
    "trees.gpkg",
    "trees.pmtiles",
    "crowns.parquet",
    "crowns.qml",
    "tree_density.tif",
    "tree_density.qml",
    "scene.tif",
    "scene.qml",
    "statistics.parquet",
    "statistics.csv",
    "preview.png",
    "item.json",
    RECORD_NAME,
)

# What a run has done so far, from which another goes on where this one dies.
WORK_NAME = ".work"


def require_free(folder: Path, needed_bytes: int) -> None:
    """Raise OutputError unless the folder's disk has that many bytes free."""
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise OutputError(
            f"{folder} has {free / 2**20:.0f} MiB free and {needed_bytes / 2**20:.0f} MiB are needed: "
            "make room or choose another --out (for a bucket, another TMPDIR)"
        )


@contextmanager
def scratch_file(target: Path) -> Iterator[Path]:
    """A temporary path in the target's folder, removed at the end of the block."""
    part = part_path(target)
    try:
        yield part
    finally:
        _remove_with_siblings(part)


@contextmanager
def whole_file(target: Path) -> Iterator[Path]:
    """A temporary path for the block to write; renamed to the target at its end, removed when it raises.

    Raises
    ------
    OutputError
        The folder cannot be written, or the block left nothing.
    """
    with scratch_file(target) as part:
        yield part
        _move(part, target)
        sync(target.parent)


class OutputFolder:
    """A run's folder, held by this process from entering to leaving; a context manager.

    Parameters
    ----------
    out
        A folder, made where it does not exist, parents included; or such as s3://bucket/folder, see `Store`.
    overwrite
        Whether files of an earlier run may be replaced. They stay until `publish`.

    Attributes
    ----------
    path
        Where files are written before they are published; of a bucket's folder only while it is held.

    Raises
    ------
    ConfigError
        `out` is no place to write to.
    InUseError
        On entering: another run holds the folder.
    OutputError
        On entering: the folder cannot be made or written, or it holds outputs already.
    """

    def __init__(self, out: Path | str, *, overwrite: bool = False) -> None:
        self._out = Store(str(out))
        self.overwrite = overwrite
        self._lock = FolderLock(self.local) if self.local else BucketLock(self._out, self._out.below(LOCK_NAME))
        self._staged: dict[str, Path] = {}
        self._scratch: list[Path] = []
        self._held = ExitStack()
        if self.local:
            self.path = self.local

    def __enter__(self) -> OutputFolder:
        with ExitStack() as held:
            self._lock.acquire()
            held.callback(self._lock.release)
            self.check()
            if self.local:
                self._remove_stale_parts()
            else:
                self.path = held.enter_context(scratch_folder())
            self._held = held.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._held:
            for part in [*self._staged.values(), *self._scratch]:
                _remove_with_siblings(part)

    @property
    def url(self) -> str:
        """Where the outputs are, for messages."""
        return str(self._out)

    @property
    def local(self) -> Path | None:
        """The folder of the outputs; None where they are in a bucket."""
        return self._out.folder

    @property
    def work(self) -> Store:
        """Objects that outlive a run which fails or is killed, at OUT/.work; `publish` removes them.

        Nothing is made before the first object is put there.
        """
        return self._out.below(WORK_NAME)

    def staging(self, name: str) -> Path:
        """Where to write the file that `publish` will call `name`, one of OUTPUT_NAMES."""
        if name not in OUTPUT_NAMES:
            raise ValueError(f"{name!r} is not an output of a run, they are {', '.join(OUTPUT_NAMES)}")
        if name not in self._staged:
            self._staged[name] = part_path(self.path / name)
        return self._staged[name]

    def discard(self, name: str) -> None:
        """Forget a staged file, half-written or not yet begun: `publish` gives nothing that name."""
        part = self._staged.pop(name, None)
        if part is not None:
            _remove_with_siblings(part)

    def scratch(self, name: str) -> Path:
        """Where to write a file that is removed with the end of the run."""
        self._scratch.append(part_path(self.path / name))
        return self._scratch[-1]

    def publish(self) -> list[str]:
        """Give every staged file its name, the record last, and remove what is left of an earlier run and of `work`.

        Where it raises, the old record is gone, so that a folder with a record never mixes two runs; `work` stays.

        Returns
        -------
        Where each file is, a path or a URL.

        Raises
        ------
        OutputError
            A staged file was never written, or the disk or the bucket refuses.
        InUseError
            Another run took the bucket's folder.
        """
        if not self.path.is_dir():
            raise OutputError(f"{self.path} was removed while the run wrote to it: run it again")
        missing = [name for name, part in self._staged.items() if not part.is_file()]
        if missing:
            raise OutputError(f"nothing was written for {', '.join(missing)}")
        self._settle(*self._staged.values())
        self._lock.confirm()
        self._out.delete(RECORD_NAME)
        self._settle(self.path)
        for entry in self._out.entries_in():
            if entry.key in OUTPUT_NAMES and entry.key not in self._staged:
                self._out.delete(entry.key)
        published = []
        for name in sorted(self._staged, key=OUTPUT_NAMES.index):
            self._place(self._staged[name], name)
            del self._staged[name]
            published.append(f"{self.url.rstrip('/')}/{name}")
        self._settle(self.path)
        self.work.clear()
        return published

    def check(self) -> None:
        """Raise OutputError where outputs are there that may not be replaced, or a bucket cannot be listed.

        Outputs without a record that lie beside the work of a run are what it had published when it was killed, and
        may be replaced. Touches nothing.
        """
        self._out.reach()
        if self.local:
            present = [name for name in OUTPUT_NAMES if (self.local / name).exists()]
            blocked = [name for name in present if not (self.local / name).is_file()]
        else:
            names = {entry.key for entry in self._out.entries_in()}
            present, blocked = [name for name in OUTPUT_NAMES if name in names], []
        unfinished = RECORD_NAME not in present and next(self.work.entries(), None) is not None
        if present and not (self.overwrite or unfinished):
            held = ", ".join(present)
            raise OutputError(f"{self.url} already holds {held}: give --overwrite to replace them or another --out")
        if blocked:
            raise OutputError(f"{self.url} has a folder where {', '.join(blocked)} should be written: remove it")

    def _place(self, part: Path, name: str) -> None:
        if self.local:
            _move(part, self.local / name)
        else:
            # Asked before each, since an upload of a run that lost its place must not land among another's.
            self._lock.confirm()
            self._out.upload(name, part)

    def _settle(self, *paths: Path) -> None:
        """Bring files and folders to the disk, where that is what keeps them."""
        try:
            for path in paths if self.local else ():
                sync(path)
        except OSError as error:
            raise OutputError(f"cannot write to {self.path}: {error.strerror or error}") from error

    def _remove_stale_parts(self) -> None:
        for entry in list(self.path.iterdir()):
            if PART_NAME.match(entry.name) and entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
            elif PART_NAME.match(entry.name):
                entry.unlink(missing_ok=True)


def _move(part: Path, target: Path) -> None:
    try:
        sync(part)
        part.replace(target)
    except OSError as error:
        raise OutputError(f"cannot write {target}: {error.strerror or error}") from error


def _remove_with_siblings(part: Path) -> None:
    # GDAL writes `<part>.ovr.tmp`, `<part>.msk.ovr.tmp` beside a COG while it makes it.
    for sibling in part.parent.glob(glob.escape(part.name) + "*"):
        sibling.unlink(missing_ok=True)
