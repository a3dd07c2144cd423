"""A finished map against labels: canopy heights, classes, or tree points."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt

from geodino.errors import ConfigError, InputError
from geodino.evaluation import canopy
from geodino.evaluation.chips import Evaluation
from geodino.evaluation.classes import segment_sums
from geodino.evaluation.footprints import footprint_sums, heights_within
from geodino.evaluation.pieces import TREE_GSD_M, MapJob, evenly, frame_of, frame_of_trees, job_of, place_of
from geodino.evaluation.report import Labels, Report, Subject, Task
from geodino.evaluation.sums import Floats, Sums, collect
from geodino.evaluation.tasks import Settings, report_on
from geodino.evaluation.tree_points import Trees, tree_sums
from geodino.grid import Window
from geodino.models.files import sha256_of
from geodino.training.chipset import UNKNOWN
from geodino.training.label_files import LabelOptions, class_table, expand, read_labels
from geodino.training.label_files import Labels as LabelFiles
from geodino.training.label_rasters import LabelRaster, describe_raster, read_window
from geodino.training.pairing import Cut
from geodino.training.raster_layers import ClassLayer, classes_on, heights_on
from geodino.training.vector_files import Vectors, only_points, read_vectors
from geodino.training.vector_layers import FootprintLayer, TreeLayer

SCORE_COLUMNS = ("score", "confidence", "probability")

# Pixels that an edge needs around its own.
_EDGE_PX = 1

_OFF = "labels off the map"

Part = tuple[int, dict[str, Floats]]


def evaluate_map(
    task: Task,
    path: str | Path,
    labels: Sequence[str | Path],
    *,
    subject: Subject | None = None,
    settings: Settings | None = None,
    options: LabelOptions | None = None,
) -> Evaluation:
    """Return how good a finished map is.

    Labels come onto the map's pixels as they come onto chips: their own values where they lie on the same pixels, the
    average of finer ones, bilinear between coarser ones. Pixels that the map or the labels do not know are left out
    and counted. Trees are known within `options.area`, or else in the rectangle around all of them.

    Parameters
    ----------
    path
        Canopy: a raster of heights in metres; its spread is read from FILE_spread.tif beside it. Segment: a raster of
        classes, whose values mean what `options.classes` says of them (VALUE=NAME), as in the labels; where that has
        names alone, value 0 is the first class, 1 the second and so on. Trees: points (GeoParquet, GeoPackage,
        GeoJSON); those with a column `score` count from `settings.threshold` on.
    labels
        Files, as `geodino.training.chips.build_chips` takes them.
    subject
        Name, hash and licence of the map; its file's name and hash where left out.

    Raises
    ------
    InputError
        A map or labels that cannot be used, or that do not meet.
    ConfigError
        A task that has no map.
    """
    if task not in _MAPS:
        raise ConfigError(f"a map of {task} cannot be evaluated: there are maps of {', '.join(_MAPS)}")
    path, settings, options = Path(path), settings or Settings(), options or LabelOptions()
    paths = expand(labels)
    known = read_labels(task, paths, options, frozenset())
    constant, job, parts = _MAPS[task](path, known, settings, options)
    found = collect(((columns, str(number)) for number, columns in parts), unit=_unit(task, job))
    if not len(found):
        raise InputError(f"nothing of {path} is labelled: check that the labels and the map are of the same ground")
    job.dropped[_OFF] += known.layer.count - len(job.met)
    pieces = found.places.astype(np.intp)
    sums = Sums(found.columns, place_of(job, pieces), pieces, found.unit)
    if "block_row" in sums.columns:
        sums = canopy.with_blocks(sums, np.zeros(len(sums), np.intp), block=settings.block_px)
    used: dict[str, float | int | str] = {"gsd_m": job.frame.grid.gsd, "pieces": job.unit}
    report = Report(
        task,
        subject or Subject(path.name, sha256_of([path])),
        Labels(sha256_of([Path(name) for name in paths if Path(name).is_file()])),
        (),
        "",
        counts=_counts(task, sums),
        dropped={**known.dropped, **job.dropped},
        settings=used | ({"constant_m": constant} if task == "canopy" else {}),
        notes=_notes(task, constant, job, options),
    )
    filled = report_on(report, sums, settings, class_names=known.class_names)
    return Evaluation(filled, sums, settings, job.scatter if task == "canopy" else None)


def _canopy(
    path: Path, known: LabelFiles, settings: Settings, options: LabelOptions
) -> tuple[float, MapJob, Iterator[Part]]:
    raster = _raster(path)
    beside = path.with_name(f"{path.stem}_spread{path.suffix}")
    spread = _raster(beside) if beside.is_file() else None
    layer, frame = known.layer, frame_of(path, raster)
    if isinstance(layer, FootprintLayer):
        reach = math.ceil(float(layer.radius.max(initial=0)) / frame.grid.gsd) + 1
        job = job_of(known, frame, reach, settings)
        constant = canopy.median_height([layer.height])
        return constant, job, _footprint_parts(job, raster, constant)
    job = job_of(known, frame, _EDGE_PX, settings)
    constant = canopy.median_height(
        np.where(job.counted(number), burnt.arrays["heights"], np.nan) for number, _, burnt in job.burnt()
    )
    return constant, job, _height_parts(job, raster, spread, constant)


def _height_parts(job: MapJob, raster: LabelRaster, spread: LabelRaster | None, constant: float) -> Iterator[Part]:
    for number, cut, burnt in job.burnt():
        said, truth = _heights(raster, cut), np.asarray(burnt.arrays["heights"])
        mine = job.counted(number)
        both = mine & np.isfinite(said) & np.isfinite(truth)
        job.dropped["labelled pixels that the map does not know"] += int((mine & np.isfinite(truth)).sum() - both.sum())
        job.dropped["mapped pixels without a label"] += int((mine & np.isfinite(said)).sum() - both.sum())
        job.scatter.add(said[both], truth[both])
        yield (
            number,
            canopy.canopy_sums(
                said,
                truth,
                constant_m=constant,
                spread=None if spread is None else _spread(spread, cut.window),
                counted=mine,
                block=job.settings.block_px,
                corner=(cut.window.row - job.frame.extent.row, cut.window.col - job.frame.extent.col),
            ),
        )


def _footprint_parts(job: MapJob, raster: LabelRaster, constant: float) -> Iterator[Part]:
    for number, cut, burnt in job.burnt():
        footprints = np.asarray(burnt.arrays["footprints"], np.float64)
        spots = footprints[:, :2] + (cut.window.col, cut.window.row)
        on = ((spots >= 0) & (spots < raster.shape[::-1])).all(axis=1)
        job.dropped[_OFF] += int((~on).sum())
        footprints = footprints[on]
        said = heights_within(_heights(raster, cut), footprints)
        job.dropped["footprints that the map does not know"] += int(np.isnan(said).sum())
        job.scatter.add(said, footprints[:, 3])
        yield number, footprint_sums(said, footprints[:, 3], constant_m=constant)


def _segment(
    path: Path, known: LabelFiles, settings: Settings, options: LabelOptions
) -> tuple[float, MapJob, Iterator[Part]]:
    raster = _raster(path)
    table = _values_of(known, options)
    job = job_of(known, frame_of(path, raster), 0, settings)

    def parts() -> Iterator[Part]:
        for number, cut, burnt in job.burnt():
            with _named_a_map():
                said = classes_on(raster, cut, table)
            classes, labelled = np.asarray(burnt.arrays["classes"]), np.asarray(burnt.arrays["labelled"], np.bool_)
            mapped, mine = said != UNKNOWN, job.counted(number)
            job.dropped["labelled pixels that the map does not know"] += int((mine & labelled & ~mapped).sum())
            job.dropped["mapped pixels without a label"] += int((mine & mapped & ~labelled).sum())
            counted = mine & labelled & mapped
            sums = segment_sums(said, classes, classes=len(known.class_names), counted=counted, block=settings.block_px)
            yield number, sums

    return math.nan, job, parts()


def _values_of(known: LabelFiles, options: LabelOptions) -> Mapping[int, int]:
    """The class of each value of a map: that of the same value in the labels, or else its place among the classes."""
    if isinstance(known.layer, ClassLayer):
        return known.layer.table
    keys, _ = class_table(options.classes or known.class_names)
    if all(key.isdecimal() for key in keys):
        return {int(key): index for key, index in keys.items()}
    return {index: index for index in range(len(known.class_names))}


def _trees(
    path: Path, known: LabelFiles, settings: Settings, options: LabelOptions
) -> tuple[float, MapJob, Iterator[Part]]:
    with _named_a_map():
        vectors = only_points(read_vectors(str(path), None, Counter()), "trees")
    frame, spots = frame_of_trees(path, known, vectors)
    scores = _scores(vectors)
    job = job_of(known, frame, math.ceil(settings.within_m / TREE_GSD_M) + 1, settings, evenly)
    job.dropped["predicted trees off the labelled ground"] = len(spots)

    def parts() -> Iterator[Part]:
        for number, cut, burnt in job.burnt():
            labelled = np.asarray(burnt.arrays["labelled"], np.bool_)
            core = job.counted(number)
            said = _on_ground(spots - (cut.window.col, cut.window.row), scores, labelled, core)
            true = _on_ground(np.asarray(burnt.arrays["points"], np.float64), None, labelled, core)
            job.dropped["predicted trees off the labelled ground"] -= int(said.owned.sum())
            yield (
                number,
                tree_sums(
                    said,
                    true,
                    gsd_m=TREE_GSD_M,
                    threshold=settings.threshold,
                    within_m=settings.within_m,
                    curve=bool(np.ptp(scores) > 0),
                ),
            )

    return math.nan, job, parts()


_Measured = Callable[[Path, LabelFiles, Settings, LabelOptions], tuple[float, MapJob, Iterator[Part]]]
_MAPS: Mapping[Task, _Measured] = {
    "canopy": _canopy,
    "segment": _segment,
    "trees": _trees,
}


def _raster(path: Path) -> LabelRaster:
    with _named_a_map():
        return describe_raster(str(path))


@contextmanager
def _named_a_map() -> Iterator[None]:
    # Maps are read with the care that labels are read with; only what they are called differs.
    try:
        yield
    except InputError as error:
        raise InputError(f"map {str(error).removeprefix('labels ')}") from error


def _scores(vectors: Vectors) -> Floats:
    """The points' scores; 1 for all where no column has them."""
    for name in SCORE_COLUMNS:
        if name in vectors.columns:
            scores = vectors.numbers(name)
            if not ((scores >= 0) & (scores <= 1)).all():
                raise InputError(f"map {vectors.path}: column {name} holds scores outside of 0 to 1, or none")
            return scores
    return np.ones(len(vectors.frame))


def _on_ground(
    spots: Floats, scores: Floats | None, labelled: npt.NDArray[np.bool_], core: npt.NDArray[np.bool_]
) -> Trees:
    """The trees on a piece and its context; those on labelled pixels of its core are its own."""
    rows, cols = labelled.shape
    here = np.flatnonzero(((spots >= 0) & (spots < (cols, rows))).all(axis=1))
    across, down = np.floor(spots[here]).astype(np.int64).T
    return Trees(spots[here], (core & labelled)[down, across], None if scores is None else scores[here])


def _heights(raster: LabelRaster, cut: Cut) -> Floats:
    """The map's heights, metres, NaN where it has none; InputError for those that cannot be metres of canopy."""
    with _named_a_map():
        heights, known = heights_on(raster, cut)
    return np.where(known, heights, np.nan)


def _spread(raster: LabelRaster, window: Window) -> Floats:
    stored, known = read_window(raster, window)
    return np.where(known, stored.astype(np.float64) * raster.scale + raster.offset, np.nan)


def _unit(task: Task, job: MapJob) -> str:
    if task == "trees" or isinstance(job.known.layer, FootprintLayer):
        return job.unit
    return f"blocks of {job.settings.block_px} px"


def _counts(task: Task, sums: Sums) -> dict[str, int]:
    columns = sums.columns
    counts = {"places": len(set(sums.places.tolist()))}
    if task == "trees":
        return counts | {sums.unit.split()[0]: len(sums), "trees": int(columns["there"].sum())}
    if task == "segment":
        return counts | {"pixels": int(columns["confusion"].sum())}
    return counts | {"pixels" if "block_n" in columns else "footprints": int(columns["n"].sum())}


def _notes(task: Task, constant: float, job: MapJob, options: LabelOptions) -> tuple[str, ...]:
    if task == "canopy":
        return (f"the constant is the median of these labels, {constant:.2f} m: the best of all constants for MAE",)
    if task == "segment":
        names = job.known.class_names
        values = ", ".join(f"{value} is {names[index]}" for value, index in _values_of(job.known, options).items())
        return (f"values of the map: {values}",)
    if task == "trees" and isinstance(job.known.layer, TreeLayer) and job.known.layer.area is None:
        return (f"no area says where trees were looked for: {job.unit} without a labelled tree are left out",)
    return ()
