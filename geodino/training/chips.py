"""Builds chips from label files and imagery, once: the same inputs find them in their folder again."""

from __future__ import annotations

import glob
import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from filelock import FileLock

from geodino.errors import ConfigError, GeodinoError, OutputError, SourceError
from geodino.outputs.folder import part_path
from geodino.redaction import without_secrets
from geodino.sources import Scene, Search
from geodino.sources.raster import is_remote, local_path
from geodino.sources.scene import REFUSE_RATIO
from geodino.training.chipset import FORMAT, ChipSet, Task, open_chips
from geodino.training.cutting import Job, cut_chips
from geodino.training.label_files import LabelOptions, expand, read_labels
from geodino.training.labels import Layer
from geodino.training.pairing import frames_of, scenes_over, span
from geodino.training.splits import read_splits
from geodino.watch import Silent, Watch, count

__all__ = ["ChipOptions", "ChipSet", "LabelOptions", "Task", "build_chips", "open_chips"]


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

    Each scene that meets labels is cut in its own pixels, or in geodino's grid where these are turned or of another
    GSD, into as few chips as cover the labels. Chips closer than 30 m share a place. Chips beside one of the split
    `val` are left out.

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
    watch.note(f"{known.layer.count:,} labels for {task}")
    scenes = _scenes(known.layer, sources, options, watch)
    job = Job(task, known, frames_of(scenes, options.gsd_m), splits, options, watch)
    target = Path(folder) / f"{task}-{_key(task, paths, scenes, options)[:16]}"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_name(f".{target.name}.lock")):
            if not target.is_dir():
                _publish(job, target)
    except OSError as error:
        if isinstance(error, GeodinoError):
            raise
        raise OutputError(f"chips cannot be written into {folder}: {error.strerror or error}") from error
    return open_chips(target)


def _publish(job: Job, target: Path) -> None:
    """Build under another name and rename; the caller holds the lock."""
    # What a killed build left: none can be under way.
    for stale in target.parent.glob(f".{target.name}.part-*"):
        shutil.rmtree(stale)
    part = part_path(target)
    part.mkdir()
    try:
        cut_chips(job, part)
        part.replace(target)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _scenes(layer: Layer, sources: Sequence[str], options: ChipOptions, watch: Watch) -> list[Scene]:
    """The scenes over the labels, of a GSD that can be used."""
    boxes = layer.boxes()
    found, said = scenes_over(boxes, _expanded(sources), options.search, whole=bool(layer.names()))
    if not found:
        west, south, east, north = span(boxes)
        left_out = f"; left out: {'; '.join(said[:3])}" if said else ""
        raise SourceError(
            f"no imagery of {', '.join(map(without_secrets, sources))} lies over the labels (longitude {west:.4f} to "
            f"{east:.4f}, latitude {south:.4f} to {north:.4f}){left_out}; check the CRS of both"
        )
    # Finer imagery is averaged, and drones are often that; coarser has not what the chips should show.
    coarsest = REFUSE_RATIO[1] * options.gsd_m
    fit = [scene for scene in found if scene.gsd <= coarsest * 1.001]
    if not fit:
        raise SourceError(
            f"scene {found[0].id}: {found[0].gsd:.3g} m a pixel is too coarse for chips of {options.gsd_m:g} m; give "
            f"imagery of at most {coarsest:.3g} m, or another GSD"
        )
    if len(fit) < len(found):
        said.append(f"{count(len(found) - len(fit), 'scene')} coarser than {coarsest:.3g} m a pixel")
    if said:
        watch.note(f"left out: {'; '.join(said)}")
    guessed = [scene.id for scene in fit if scene.radiometry.note.startswith("stretch")]
    if guessed:
        watch.warn(
            f"the colours of {count(len(guessed), 'scene')} such as {guessed[0]} are guessed by a stretch of each; "
            "name a radiometry profile if you know it"
        )
    return fit


def _expanded(sources: Sequence[str]) -> list[str]:
    """Sources with globs of local files written out."""
    found: list[str] = []
    for source in map(str, sources):
        if is_remote(source) or not glob.has_magic(source) or local_path(source).exists():
            found.append(source)
            continue
        # Path.glob takes no absolute pattern.
        files = sorted(glob.glob(source, recursive=True))  # noqa: PTH207
        if not files:
            raise SourceError(f"source {source}: no file fits")
        found += files
    return found


# Raised whenever the same inputs are cut otherwise; the hash of a set is of its chips, whatever made them.
_CUT = 2


def _key(task: Task, labels: Sequence[str], scenes: Sequence[Scene], options: ChipOptions) -> str:
    """A hash of what chips are made from: files by name, size and time, so that no pixel is read for it."""
    area = options.labels.area
    settings = asdict(options)
    del settings["splits"], settings["labels"]["area"]
    about = {
        "format": FORMAT,
        "cut": _CUT,
        "task": task,
        "settings": settings,
        "files": [[_stamp(path) for path in paths] for paths in (labels, options.splits, [area] if area else [])],
        "scenes": [
            {**scene.summary(), "item": None, "hrefs": [_stamp(band.href) for band in scene.bands]} for scene in scenes
        ],
    }
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def _stamp(href: str) -> tuple[str, int, int]:
    if is_remote(href):
        return without_secrets(href), 0, 0
    path = local_path(href).resolve()
    stat = path.stat()
    return str(path), stat.st_size, stat.st_mtime_ns
