"""The folder of a run: one writer at a time, and files that appear whole or not at all.

Everything is written under a temporary name in the same folder (`.canopy_height.tif.part-4242-1f00ba11`) and renamed
when all of it is ready. A run that is killed leaves at most such names behind, which the next run clears away.
The record comes first off and last on: where `run.json` is, every file it names belongs to it and is whole.
"""

from __future__ import annotations

import glob
import json
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

from filelock import FileLock, Timeout

from geodino.errors import OutputError
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

LOCK_NAME = ".lock"
# Beside the lock, not in it: filelock before 3.25 empties the lock file when a second process asks for it.
HOLDER_NAME = ".lock-holder.json"

# What a run has done so far, from which another goes on where this one dies.
WORK_NAME = ".work"


def require_free(folder: Path, needed_bytes: int) -> None:
    """Raise OutputError unless the folder's disk has that many bytes free."""
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise OutputError(
            f"{folder} has {free / 2**20:.0f} MiB free and {needed_bytes / 2**20:.0f} MiB are needed: "
            "make room or choose another --out"
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
    path
        Made where it does not exist, parents included.
    overwrite
        Whether files of an earlier run may be replaced. They stay until `publish`.

    Raises
    ------
    OutputError
        On entering: the folder cannot be made or written, another run holds it, or it holds outputs already.
    """

    def __init__(self, path: Path | str, *, overwrite: bool = False) -> None:
        self.path = Path(path)
        self.overwrite = overwrite
        self._lock = FileLock(self.path / LOCK_NAME)
        self._staged: dict[str, Path] = {}
        self._scratch: list[Path] = []

    def __enter__(self) -> OutputFolder:
        self._acquire()
        try:
            self.check()
            self._remove_stale_parts()
        except BaseException:
            self._release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            for part in [*self._staged.values(), *self._scratch]:
                _remove_with_siblings(part)
        finally:
            self._release()

    @property
    def url(self) -> str:
        """Where the outputs are, for messages."""
        return str(self.path)

    @property
    def work(self) -> Store:
        """Objects that outlive a run which fails or is killed, at OUT/.work; `publish` removes them.

        Nothing is made before the first object is put there.
        """
        return Store(self.url).below(WORK_NAME)

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

    def publish(self) -> list[Path]:
        """Give every staged file its name, the record last, and remove what is left of an earlier run.

        Returns
        -------
        The published paths.

        Raises
        ------
        OutputError
            A staged file was never written, or the disk refuses. The old record is gone then, so that a folder with
            a record never mixes two runs.
        """
        missing = [name for name, part in self._staged.items() if not part.is_file()]
        if missing:
            raise OutputError(f"nothing was written for {', '.join(missing)}")
        try:
            for part in self._staged.values():
                sync(part)
            (self.path / RECORD_NAME).unlink(missing_ok=True)
            sync(self.path)
            for name in OUTPUT_NAMES:
                if name not in self._staged:
                    (self.path / name).unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(f"cannot publish into {self.path}: {error}") from error
        published = []
        for name in sorted(self._staged, key=OUTPUT_NAMES.index):
            _move(self._staged.pop(name), self.path / name)
            published.append(self.path / name)
        sync(self.path)
        self._remove_work()
        return published

    def _remove_work(self) -> None:
        # Renamed first, so that a run that is killed here leaves all of it or nothing under its name.
        part = part_path(self.path / WORK_NAME)
        try:
            (self.path / WORK_NAME).rename(part)
            shutil.rmtree(part)
        except FileNotFoundError:
            return
        except OSError as error:
            raise OutputError(f"cannot remove {self.path / WORK_NAME}: {error.strerror or error}") from error

    def _acquire(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
        except Timeout:
            raise OutputError(
                f"{self.path} is in use by {self._holder()}: wait for it or choose another --out"
            ) from None
        except OSError as error:
            raise OutputError(
                f"cannot write to {self.path}: {error.strerror or error}: choose another --out"
            ) from error
        started = datetime.now(UTC).isoformat(timespec="seconds")
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "started": started}
        try:
            (self.path / HOLDER_NAME).write_text(json.dumps(holder))
        except OSError as error:
            self._release()
            raise OutputError(
                f"cannot write to {self.path}: {error.strerror or error}: choose another --out"
            ) from error

    def _release(self) -> None:
        # The lock file itself stays, and so does a folder that a failed run made. A run that has opened the file and
        # not yet locked it would, were it removed now, lock a file without a name, and the next run another of this
        # name. Newer filelock notices (no links are left), 3.15 does not; and over NFS what is removed keeps a link.
        try:
            (self.path / HOLDER_NAME).unlink(missing_ok=True)
        finally:
            self._lock.release()

    def _holder(self) -> str:
        try:
            holder = json.loads((self.path / HOLDER_NAME).read_text())
            return f"process {holder['pid']} on {holder['host']} since {holder['started']}"
        except (OSError, ValueError, KeyError, TypeError):
            return "another process"  # it has the lock but has not come to write its name

    def check(self) -> None:
        """Raise OutputError where the folder already holds outputs that may not be replaced; touches nothing."""
        present = [name for name in OUTPUT_NAMES if (self.path / name).exists()]
        if present and not self.overwrite:
            held = ", ".join(present)
            raise OutputError(f"{self.path} already holds {held}: give --overwrite to replace them or another --out")
        blocked = [name for name in present if not (self.path / name).is_file()]
        if blocked:
            raise OutputError(f"{self.path} has a folder where {', '.join(blocked)} should be written: remove it")

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
