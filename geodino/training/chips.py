"""Builds chips from label files and imagery, once: the same inputs find them in their folder again."""

from __future__ import annotations

import glob
import hashlib
import json
import logging
import shutil
from collections import Counter, deque
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from filelock import FileLock

from geodino.errors import ConfigError, GeodinoError, InputError, OutputError, SourceError
from geodino.outputs.folder import part_path
from geodino.sources import Mosaic, Search
from geodino.sources.raster import is_remote, local_path, without_secrets
from geodino.stream import fill_by_reflection
from geodino.training.chipset import FORMAT, ChipSet, Floats, Task, open_chips
from geodino.training.label_files import LabelOptions, Labels, expand, read_labels
from geodino.training.labels import Bools, Burnt, Layer, cut_to_valid
from geodino.training.pairing import Cut, Frame, frames_of, outlines, scenes_over, span
from geodino.training.splits import aliases, beside, match_splits, places, read_splits
from geodino.training.store import ChipWriter
from geodino.watch import Silent, Watch

__all__ = ["ChipOptions", "ChipSet", "LabelOptions", "Task", "build_chips", "open_chips"]

logger = logging.getLogger(__name__)

READERS = 4


@dataclass(frozen=True)
class ChipOptions:
    """How chips are cut.

    Attributes
    ----------
    size
        Side, px, a multiple of 32.
    gsd_m
        Metres a pixel; scenes within 1 % of it keep their own pixels.
    resampling
        How other imagery comes onto the grid.
    search
        Which scenes of the sources, their bands and radiometry.
    labels
        What the label files cannot say.
    splits
        CSV files that say train or val of each scene.
    """

    size: int = 256
    gsd_m: float = 0.6
    resampling: str = "cubic"
    search: Search = field(default_factory=Search)
    labels: LabelOptions = field(default_factory=LabelOptions)
    splits: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.size <= 0 or self.size % 32:
            raise ConfigError(f"chip size {self.size} px must be a multiple of 32")
        if not 0.01 <= self.gsd_m <= 100:
            raise ConfigError(f"gsd_m {self.gsd_m} must lie between 0.01 and 100 m")


@dataclass(frozen=True, eq=False)
class _Job:
    """What is to be built."""

    task: Task
    known: Labels
    frames: Sequence[Frame]
    splits: pd.DataFrame
    options: ChipOptions
    watch: Watch


def build_chips(
    task: Task,
    labels: Sequence[str | Path],
    sources: Sequence[str],
    *,
    folder: str | Path,
    options: ChipOptions | None = None,
    watch: Watch | None = None,
) -> ChipSet:
    """The chips of labels and imagery, from the folder where they were built before.

    Parameters
    ----------
    labels
        Files, globs, or folders of rasters. Canopy: rasters of heights, or points with a height and a radius. Trees:
        points. Segment: polygons or rasters of classes. Classify: points or polygons with a label.
    sources
        Imagery as `find_scenes` takes it; globs of GeoTIFFs too.
    folder
        Where sets of chips are kept, each in a folder named by a hash of its inputs. A set appears whole or not at all.

    Raises
    ------
    InputError
        Labels or imagery that cannot be used, or do not meet.
    ConfigError
        An option that cannot be, a column that is not there.
    ReadError
        Imagery or labels that cannot be reached or decoded.
    OutputError
        The folder cannot be written.
    """
    options, watch = options or ChipOptions(), watch or Silent()
    paths = expand(labels)
    splits = read_splits(options.splits)
    known = read_labels(task, paths, options.labels, frozenset(splits["name"]))
    watch.note(f"{known.layer.count} labels for {task}")
    frames = _frames(known, sources, options)
    target = Path(folder) / f"{task}-{_key(task, paths, frames, options)[:16]}"
    job = _Job(task, known, frames, splits, options, watch)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_name(f".{target.name}.lock")):
            if not target.is_dir():
                # What a killed build left; none can be under way while we hold the lock.
                for stale in target.parent.glob(f".{target.name}.part-*"):
                    shutil.rmtree(stale)
                part = part_path(target)
                part.mkdir()
                try:
                    _build(part, job)
                    part.replace(target)
                finally:
                    shutil.rmtree(part, ignore_errors=True)
    except OSError as error:
        if isinstance(error, GeodinoError):
            raise
        raise OutputError(f"cannot write chips into {folder}: {error.strerror or error}") from error
    return open_chips(target)


def _frames(known: Labels, sources: Sequence[str], options: ChipOptions) -> list[Frame]:
    boxes = known.layer.boxes()
    named = bool(known.layer.names())
    scenes, said = scenes_over(boxes, _expanded(sources), options.search, whole=named)
    if not scenes:
        west, south, east, north = span(boxes)
        left_out = f"; left out: {'; '.join(said[:3])}" if said else ""
        raise SourceError(
            f"no imagery of {', '.join(map(without_secrets, sources))} lies over the labels (longitude {west:.4f} to "
            f"{east:.4f}, latitude {south:.4f} to {north:.4f}){left_out}; check the CRS of both"
        )
    return frames_of(scenes, options.gsd_m)


def _expanded(sources: Sequence[str]) -> list[str]:
    """Sources with globs of local files written out."""
    found: list[str] = []
    for source in sources:
        if is_remote(source) or not glob.has_magic(source) or local_path(source).exists():
            found.append(source)
            continue
        # Path.glob takes no absolute pattern.
        files = sorted(glob.glob(source, recursive=True))  # noqa: PTH207
        if not files:
            raise SourceError(f"source {source}: no file fits")
        found += files
    return found


def _key(task: Task, paths: Sequence[str], frames: Sequence[Frame], options: ChipOptions) -> str:
    """A hash of what chips are made from: files by name, size and time, so that no pixel is read for it."""
    hrefs = {band.href for frame in frames for band in frame.scene.bands}
    files = sorted({*paths, *options.splits, *([options.labels.area] if options.labels.area else []), *hrefs})
    about = {
        "format": FORMAT,
        "task": task,
        "options": asdict(options),
        "files": [_stamp(href) for href in files],
        "scenes": [frame.scene.summary() for frame in frames],
    }
    return hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()


def _stamp(href: str) -> tuple[str, int, int]:
    if is_remote(href):
        return without_secrets(href), 0, 0
    path = local_path(href).resolve()
    stat = path.stat()
    return str(path), stat.st_size, stat.st_mtime_ns


def _build(folder: Path, job: _Job) -> None:
    """Write all chips into an empty folder."""
    known, frames, options = job.known, job.frames, job.options
    dropped = Counter(known.dropped)
    names = [frame.name for frame in frames]
    rows, lost_rows = match_splits(job.splits, names)
    dropped["split of a scene that is not in the imagery"] += lost_rows
    layer, lost = known.layer.bound(aliases(names))
    dropped["label of a scene that is not in the imagery"] += lost
    if lost and lost == layer.count:
        raise InputError(
            f"labels: column {options.labels.scene_column} names none of {len(names)} scenes, which are called such as "
            f"{names[0]}; name scenes as in the imagery"
        )
    row_of = {frame.name: job.splits.iloc[rows[frame.name]] for frame in frames if frame.name in rows}
    cuts = _without_leaks(_cuts(layer, frames, options.size), row_of, dropped)
    seen, used, kept = set[int](), set[int](), list[Cut]()
    job.watch.begin("chips", len(cuts))
    with (
        ChipWriter(folder, job.task, options.size, options.gsd_m) as writer,
        closing(_read(cuts, layer, options.resampling)) as chips,
    ):
        for done, (cut, found) in enumerate(chips, start=1):
            job.watch.advance(done)
            seen.update(found.seen)
            if found.picture is None or found.labels is None:
                dropped["chip without a label" if found.picture is None else "chip without imagery"] += 1
                continue
            used.update(found.labels.used.tolist())
            kept.append(cut)
            writer.add(*found.picture, found.labels.arrays)
        dropped["label outside the imagery"] += layer.count - lost - len(seen)
        dropped["label not wholly on imagery"] += len(seen - used)
        if not kept:
            raise SourceError(_nothing(known, frames))
        writer.finish(_table(kept, row_of), known.class_names, {why: count for why, count in dropped.items() if count})


def _cuts(layer: Layer, frames: Sequence[Frame], size: int) -> list[Cut]:
    found = []
    for frame in frames:
        windows = layer.windows(frame, size)
        found += [Cut(frame, window, windows) for window in windows]
    return found


def _without_leaks(cuts: list[Cut], row_of: Mapping[str, pd.Series], dropped: Counter[str]) -> list[Cut]:
    """The cuts without those that lie beside one of the split `val`, in whatever scene or year."""
    held = np.array([cut.frame.name in row_of and row_of[cut.frame.name]["split"] == "val" for cut in cuts], bool)
    if not held.any():
        return cuts
    leaks = beside(outlines(cuts), held)
    dropped["chip within 30 m of one of the split val"] += int(leaks.sum())
    return [cut for cut, leak in zip(cuts, leaks, strict=True) if not leak]


class _Found(NamedTuple):
    """What came of a cut: image and valid unless there was nothing to see or to know, and the labels that met it."""

    picture: tuple[Floats, Bools] | None
    labels: Burnt | None
    seen: list[int]


def _read(cuts: Sequence[Cut], layer: Layer, resampling: str) -> Generator[tuple[Cut, _Found], None, None]:
    """Chips in order, a few read ahead; a scene is open from its first chip to its last."""
    last = {id(cut.frame): number for number, cut in enumerate(cuts)}
    pool = ThreadPoolExecutor(READERS, thread_name_prefix="geodino-chips")
    mosaics: dict[int, Mosaic] = {}
    pending: deque[tuple[int, Cut, Future[_Found]]] = deque()

    def submit(number: int) -> None:
        cut = cuts[number]
        mosaic = mosaics.setdefault(id(cut.frame), Mosaic([cut.frame.scene], cut.frame.grid, resampling))
        pending.append((number, cut, pool.submit(_chip, cut, layer, mosaic)))

    try:
        for number in range(len(cuts) + 2 * READERS):
            if number < len(cuts):
                submit(number)
            if number >= 2 * READERS and pending:
                done, cut, future = pending.popleft()
                yield cut, future.result()
                if last[id(cut.frame)] == done:
                    mosaics.pop(id(cut.frame)).close()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        for mosaic in mosaics.values():
            mosaic.close()


def _chip(cut: Cut, layer: Layer, mosaic: Mosaic) -> _Found:
    burnt = layer.burn(cut)
    if burnt is None:
        return _Found(None, None, [])
    seen = burnt.used.tolist()
    pixels = mosaic.read(cut.window)
    if not pixels.valid.any():
        return _Found((pixels.image, pixels.valid), None, seen)
    labels = cut_to_valid(burnt, pixels.valid)
    if labels is None:
        return _Found(None, None, seen)
    image = pixels.image if pixels.valid.all() else fill_by_reflection(pixels.image, pixels.valid)
    return _Found((image, pixels.valid), labels, seen)


def _table(cuts: Sequence[Cut], row_of: Mapping[str, pd.Series]) -> pd.DataFrame:
    """A row a chip, but for its hashes; what else the splits say of its scene comes along as text."""
    place = places(outlines(cuts))
    rows = []
    for cut, where in zip(cuts, place, strict=True):
        frame, facts = cut.frame, cut.frame.scene.facts
        said = row_of.get(frame.name, pd.Series({"split": "", "licence": ""}))
        corner = frame.transform_of(cut.window)
        alone = len(cut.siblings) == 1
        taken = frame.scene.datetime
        rows.append({
            "chip": frame.name if alone else f"{frame.name}_r{cut.window.row}_c{cut.window.col}",
            "scene": frame.name, "place": where, "split": said["split"], "crs": str(frame.crs),
            "west": corner.c, "north": corner.f, "date": "" if taken is None else taken.date().isoformat(),
            "licence": facts.licence or said["licence"],
        })  # fmt: skip
    return pd.DataFrame(rows)


def _nothing(known: Labels, frames: Sequence[Frame]) -> str:
    west, south, east, north = span(known.layer.boxes())
    return (
        f"no label lies on a pixel of {len(frames)} scenes such as {frames[0].name}, though both lie around longitude "
        f"{west:.4f} to {east:.4f}, latitude {south:.4f} to {north:.4f}; check dates, names and nodata"
    )
