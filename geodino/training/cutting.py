"""Cuts scenes and their labels into chips, a few at a time, and writes them with a table of where each is from."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import pandas as pd
from odc.geo.crs import CRS

from geodino.errors import InputError, SourceError
from geodino.sources import Mosaic
from geodino.stream import fill_by_reflection
from geodino.training.chipset import UNKNOWN, Floats, Task
from geodino.training.label_files import LabelOptions, Labels
from geodino.training.labels import Bools, Burnt, Doubles, Ints, Layer, cut_to_valid
from geodino.training.pairing import Cut, Frame, outlines, span
from geodino.training.splits import PLACE_GAP_M, aliases, beside, match_splits, places
from geodino.training.store import COLUMNS, ChipWriter
from geodino.watch import Watch, count

# Chips of local files are decoded by one thread while others wait for the disk; more gain nothing on two cores.
READERS = 4
Row = Mapping[str, str]


class Settings(Protocol):
    """What of ChipOptions is needed here."""

    @property
    def size(self) -> int: ...
    @property
    def gsd_m(self) -> float: ...
    @property
    def resampling(self) -> str: ...
    @property
    def labels(self) -> LabelOptions: ...


@dataclass(frozen=True, eq=False)
class Job:
    """What is to be cut: labels, the frames of the scenes over them, and the rows of the splits."""

    task: Task
    known: Labels
    frames: Sequence[Frame]
    splits: pd.DataFrame
    options: Settings
    watch: Watch


class _Found(NamedTuple):
    """What came of a cut: its picture and the labels there, each None where there is none, and all labels met."""

    picture: tuple[Floats, Bools] | None
    labels: Burnt | None
    met: list[int]
    left: Mapping[str, Ints]


def cut_chips(job: Job, folder: Path) -> None:
    """Write all chips into an empty folder.

    Raises
    ------
    InputError
        Names that are no scene's, labels that cannot be, no label on any pixel.
    """
    dropped = Counter(job.known.dropped)
    layer, row_of = _named(job, dropped)
    cuts = _without_leaks(_cuts(layer, job.frames, job.options.size), row_of, dropped)
    met, used, kept, bare = set[int](), set[int](), list[Cut](), 0
    left, shown = dict[str, set[int]](), set[int]()
    job.watch.begin("chips", len(cuts))
    with (
        ChipWriter(folder, job.task, job.options.size, job.options.gsd_m) as writer,
        closing(_read(cuts, layer, job.options.resampling)) as chips,
    ):
        for done, (cut, found) in enumerate(chips, start=1):
            job.watch.advance(done)
            met.update(found.met)
            for why, numbers in found.left.items():
                left.setdefault(why, set()).update(numbers.tolist())
            if found.labels is None or found.picture is None:
                dropped["chip without imagery" if found.met else "chip without a label"] += 1
                continue
            used.update(found.labels.used.tolist())
            kept.append(cut)
            shown.update(_classes_on(found.labels))
            bare += "points" in found.labels.arrays and not len(found.labels.arrays["points"])
            writer.add(*found.picture, found.labels.arrays)
        if not kept:
            raise SourceError(_nothing(job, layer, left))
        _check_classes(job, shown)
        lost = dropped["label of a scene that is not in the imagery"]
        dropped.update({why: len(numbers - used) for why, numbers in left.items()})
        known = met.union(*left.values())
        dropped["label outside the imagery"] += layer.count - lost - len(known)
        dropped["label not wholly on imagery"] += len(known - used.union(*left.values()))
        counts = {why: count for why, count in dropped.items() if count}
        writer.finish(_table(kept, row_of), job.known.class_names, counts)
    if bare:
        job.watch.note(f"{bare} of {count(len(kept), 'chip')} hold no point and count as looked at and empty")


def _named(job: Job, dropped: Counter[str]) -> tuple[Layer, Mapping[str, Row]]:
    """The labels bound to scenes by name, and each scene's row of the splits."""
    names = [frame.name for frame in job.frames]
    rows, strangers = match_splits(job.splits, names)
    layer, lost = job.known.layer.bound(aliases(names))
    if lost and lost == layer.count:
        raise InputError(
            f"labels: column {job.options.labels.scene_column} names none of {count(len(names), 'scene')}, called "
            f"such as {names[0]}; name scenes as in the imagery"
        )
    dropped["split of a scene that is not in the imagery"] += strangers
    dropped["label of a scene that is not in the imagery"] += lost
    said: list[dict[str, str]] = job.splits.to_dict("records")
    return layer, {name: said[row] for name, row in rows.items()}


def _cuts(layer: Layer, frames: Sequence[Frame], size: int) -> list[Cut]:
    found = []
    for frame in frames:
        windows = layer.windows(frame, size)
        found += [Cut(frame, window, windows) for window in windows]
    return found


def _without_leaks(cuts: list[Cut], row_of: Mapping[str, Row], dropped: Counter[str]) -> list[Cut]:
    """The cuts without those that lie beside one of the split `val`, in whatever scene or year."""
    held = np.array([row_of.get(cut.frame.name, {}).get("split") == "val" for cut in cuts], bool)
    if not held.any():
        return cuts
    leaks = beside(outlines(cuts), held)
    dropped[f"chip within {PLACE_GAP_M:g} m of one of the split val"] += int(leaks.sum())
    return [cut for cut, leak in zip(cuts, leaks, strict=True) if not leak]


def _read(cuts: Sequence[Cut], layer: Layer, resampling: str) -> Generator[tuple[Cut, _Found], None, None]:
    """Chips in order, some read ahead; a scene is open from its first chip to its last."""
    last = {cut.frame.name: number for number, cut in enumerate(cuts)}
    mosaics: dict[str, Mosaic] = {}
    pending: deque[tuple[int, Future[_Found]]] = deque()
    pool = ThreadPoolExecutor(READERS, thread_name_prefix="geodino-chips")
    try:
        for number, cut in enumerate(cuts):
            if cut.frame.name not in mosaics:
                mosaics[cut.frame.name] = Mosaic([cut.frame.scene], cut.frame.grid, resampling)
            pending.append((number, pool.submit(_chip, cut, layer, mosaics[cut.frame.name])))
            while len(pending) > 2 * READERS or (pending and number == len(cuts) - 1):
                done, future = pending.popleft()
                found, frame = future.result(), cuts[done].frame
                if last[frame.name] == done:
                    mosaics.pop(frame.name).close()
                yield cuts[done], found
    finally:
        # Closed only when no thread reads: that would end the process.
        pool.shutdown(wait=True, cancel_futures=True)
        for mosaic in mosaics.values():
            mosaic.close()


def _chip(cut: Cut, layer: Layer, mosaic: Mosaic) -> _Found:
    burnt = layer.burn(cut)
    if burnt is None:
        return _Found(None, None, [], {})
    met = burnt.used.tolist()
    pixels = mosaic.read(cut.window)
    labels = cut_to_valid(burnt, pixels.valid)
    if labels is None:
        return _Found(None, None, met, burnt.left)
    return _Found((_filled(pixels.image, pixels.valid), pixels.valid), labels, met, burnt.left)


def _classes_on(labels: Burnt) -> set[int]:
    """The classes that a chip shows."""
    found = [labels.arrays[name] for name in ("classes", "labels") if name in labels.arrays]
    return {int(value) for values in found for value in np.unique(values).tolist()} - {UNKNOWN}


def _check_classes(job: Job, shown: set[int]) -> None:
    """Warn of classes that no chip shows, where the user named them; else refuse."""
    lacking = [name for number, name in enumerate(job.known.class_names) if number not in shown]
    if lacking and job.options.labels.classes:
        job.watch.warn(f"no chip shows class {', '.join(lacking)}: it can be neither learned nor judged")
    elif lacking:
        raise InputError(
            f"labels: no chip shows class {', '.join(lacking)}; leave it out of the labels, or name all classes with "
            "--classes to keep it"
        )


def _filled(image: Floats, valid: Bools) -> Floats:
    """The picture, where there is none reflected as a run's is, and as often as a plot is smaller than the chip."""
    if valid.all():
        return image
    rows, cols = (np.flatnonzero(valid.any(axis=axis)) for axis in (1, 0))
    box = np.s_[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]
    around = [(int(at[0]), side - 1 - int(at[-1])) for at, side in zip((rows, cols), valid.shape, strict=True)]
    return np.pad(fill_by_reflection(image[:, *box], valid[box]), [(0, 0), *around], mode="reflect")


def _table(cuts: Sequence[Cut], row_of: Mapping[str, Row]) -> pd.DataFrame:
    """A row a chip, but for its hashes; what else the splits say of its scene comes along as text."""
    more = [column for row in list(row_of.values())[:1] for column in row if column not in (*COLUMNS, "name")]
    rows = []
    for cut, place in zip(cuts, places(outlines(cuts)), strict=True):
        frame, said = cut.frame, row_of.get(cut.frame.name, {})
        corner, taken = frame.transform_of(cut.window), frame.scene.datetime
        alone = len(cut.siblings) == 1
        rows.append({
            "chip": frame.name if alone else f"{frame.name}_r{cut.window.row}_c{cut.window.col}",
            "scene": frame.name, "place": place, "split": said.get("split", ""), "crs": str(frame.crs),
            "west": corner.c, "north": corner.f, "date": "" if taken is None else taken.date().isoformat(),
            "licence": frame.scene.facts.licence or said.get("licence", ""),
            **{column: said.get(column, "") for column in more},
        })  # fmt: skip
    return pd.DataFrame(rows)


def _nothing(job: Job, layer: Layer, left: Mapping[str, Collection[int]]) -> str:
    if left:
        said = ", ".join(f"{why}: {len(numbers)}" for why, numbers in left.items())
        return f"no label can be used on {count(len(job.frames), 'scene')} such as {job.frames[0].name} ({said})"
    scenes = np.array([frame.scene.footprint_in(CRS("EPSG:4326")).bounds for frame in job.frames])
    return (
        f"no label lies on a pixel of {count(len(job.frames), 'scene')} such as {job.frames[0].name}: the labels are "
        f"at {_degrees(layer.boxes())}, the imagery at {_degrees(scenes)}; check names and nodata"
    )


def _degrees(boxes: Doubles) -> str:
    west, south, east, north = span(boxes)
    return f"longitude {west:.4f} to {east:.4f}, latitude {south:.4f} to {north:.4f}"
