"""A model against the labels of chips, with models that know the answers."""

from __future__ import annotations

import json

import numpy as np
import pytest
from evaluation_chips import SIZE, made_chips, maps_of_trees, says

from geodino.errors import InputError, ModelError
from geodino.evaluation.chips import evaluate_chips, evaluate_folds
from geodino.evaluation.report import Subject
from geodino.evaluation.tasks import Settings
from geodino.training.splits import folds

SUBJECT = Subject("made", "a" * 64, "CC0-1.0")
CHANCE = np.random.default_rng(0)
HEIGHTS = CHANCE.gamma(1, 6, (12, SIZE, SIZE)).astype(np.float32)
# Trees on a raster of 12 px, moved a little: no two in neighbouring cells of 4 px.
RASTER = np.stack(np.meshgrid(np.arange(6, 64, 12), np.arange(6, 64, 12)), axis=-1).reshape(-1, 2)
TREES = tuple(
    (RASTER[CHANCE.random(len(RASTER)) < 0.6] + CHANCE.uniform(-1.5, 1.5, 2)).astype(np.float32) for _ in range(12)
)


def test_heights_and_spread_of_pixels() -> None:
    chips = made_chips("canopy", 12, heights=HEIGHTS)
    answers = np.stack([HEIGHTS + 1.5, np.full_like(HEIGHTS, 1.0)], axis=1)
    report = evaluate_chips(says(chips, answers), chips, subject=SUBJECT).report
    assert report.figure("mae_m").value == pytest.approx(1.5, abs=1e-5)
    assert report.figure("bias_m").value == pytest.approx(1.5, abs=1e-5)
    assert report.figure("within_spread").value == 0
    assert report.figure("within_two_spreads").value == 100
    assert report.figure("edge_error").value == pytest.approx(0, abs=1e-5)
    median = float(np.median(HEIGHTS))
    assert report.figure("constant_mae_m").value == pytest.approx(np.abs(HEIGHTS - median).mean(), abs=1e-3)
    assert report.intervals == "12 places"
    assert report.counts == {"chips": 12, "places": 12, "pixels": 12 * SIZE * SIZE}
    assert report.dropped == {"label outside the imagery": 3}
    assert report.parts["height class"][0].name == "0 to 2 m"


def test_a_model_without_spread_has_no_figures_of_it() -> None:
    chips = made_chips("canopy", 6, heights=HEIGHTS[:6])
    report = evaluate_chips(says(chips, HEIGHTS[:6, None]), chips, subject=SUBJECT).report
    assert "within_spread" not in {figure.name for figure in report.figures}


def test_unlabelled_pixels_do_not_count() -> None:
    labelled = np.ones((6, SIZE, SIZE), np.bool_)
    labelled[:, :, 20:] = False
    chips = made_chips("canopy", 6, heights=np.where(labelled, HEIGHTS[:6], np.nan), labelled=labelled)
    wrong = np.where(labelled, HEIGHTS[:6], 60)[:, None]
    report = evaluate_chips(says(chips, wrong), chips, subject=SUBJECT).report
    assert report.figure("mae_m").value == 0
    assert report.counts["pixels"] == 6 * SIZE * 20


def test_pixels_of_chips_that_overlap_count_once() -> None:
    chips = made_chips("canopy", 2, per_place=2, step_px=40, heights=HEIGHTS[:2])
    answers = np.stack([HEIGHTS[0] + 1, HEIGHTS[1] + 3])[:, None]
    report = evaluate_chips(says(chips, answers), chips, subject=SUBJECT).report
    assert report.counts["pixels"] == SIZE * (40 + SIZE)
    assert report.figure("mae_m").value == pytest.approx(2)


def test_footprints() -> None:
    footprints = tuple(np.array([[30, 30, 20, 0], [10, 50, 5, 0]], np.float32) for _ in range(8))
    maps = np.repeat(np.arange(8, dtype=np.float32)[:, None, None, None] * 4, SIZE, axis=2).repeat(SIZE, axis=3)
    for index, found in enumerate(footprints):
        found[:, 3] = index * 4 - 1
    chips = made_chips("canopy", 8, footprints=footprints)
    evaluation = evaluate_chips(says(chips, maps), chips, subject=SUBJECT)
    assert evaluation.report.figure("bias_m").value == pytest.approx(1)
    assert evaluation.report.counts == {"chips": 8, "places": 8, "footprints": 16}
    assert "block_r2" not in {figure.name for figure in evaluation.report.figures}
    assert evaluation.scatter is not None and evaluation.scatter.counts.sum() == 16


def test_each_footprint_of_overlapping_chips_counts_once_wherever_it_lies_on_its_chip() -> None:
    # Halfway lines lie at 52 px: a chip's neighbour owns the pixels there, but not what this chip holds.
    footprints = tuple(np.array([[x, 32, 3, 5] for x in (6, 20, 50, 60)], np.float32) for _ in range(4))
    chips = made_chips("canopy", 4, per_place=4, step_px=40, footprints=footprints)
    maps = np.full((4, 1, SIZE, SIZE), 6, np.float32)
    evaluation = evaluate_chips(says(chips, maps), chips, subject=SUBJECT)
    assert evaluation.report.counts["footprints"] == 16
    assert evaluation.scatter is not None and evaluation.scatter.counts.sum() == 16


def test_blocks_are_those_of_the_scene_whatever_chips_show_them() -> None:
    """A scene of 304 x 64 px: in one strip of overlapping chips, six whole blocks of 50 px and a rest."""
    scene = np.random.default_rng(3).gamma(1, 6, (SIZE, 304)).astype(np.float32)
    starts = range(0, 241, 40)
    heights = np.stack([scene[:, start : start + SIZE] for start in starts])
    chips = made_chips("canopy", 7, per_place=7, step_px=40, heights=heights)
    error = np.random.default_rng(4).normal(0, 0.1, 304).astype(np.float32) + np.linspace(-1, 1, 304, dtype=np.float32)
    said = np.stack([(scene + error)[:, start : start + SIZE] for start in starts])[:, None]
    report = evaluate_chips(says(chips, said), chips, subject=SUBJECT).report
    means = np.stack([grid[:50, :300].reshape(50, 6, 50).mean(axis=(0, 2)) for grid in (scene, scene + error)])
    wanted = 1 - ((means[1] - means[0]) ** 2).sum() / ((means[0] - means[0].mean()) ** 2).sum()
    assert report.figure("block_r2").value == pytest.approx(wanted, rel=1e-5)
    assert report.notes[-1].startswith("block R2 is over 6 blocks of 50 x 50 px")


def test_trees_that_are_all_found() -> None:
    chips = made_chips("trees", 12, points=TREES)
    report = evaluate_chips(says(chips, maps_of_trees(TREES)), chips, subject=SUBJECT).report
    for name in ("precision", "recall", "f1", "count_r2", "density_r2"):
        assert report.figure(name).value == pytest.approx(1)
    assert report.figure("distance_m").value == pytest.approx(0, abs=1e-5)
    assert report.counts["trees"] == sum(map(len, TREES))
    assert len(report.curve) == 19


def test_trees_that_are_half_found() -> None:
    half = tuple(trees[::2] for trees in TREES)
    chips = made_chips("trees", 12, points=TREES)
    report = evaluate_chips(says(chips, maps_of_trees(half)), chips, subject=SUBJECT).report
    share = sum(map(len, half)) / sum(map(len, TREES))
    assert report.figure("precision").value == 1
    assert report.figure("recall").value == pytest.approx(share)
    assert report.figure("count_bias").value == pytest.approx(100 * (share - 1))
    low, high = report.figure("recall").low, report.figure("recall").high
    assert low is not None and high is not None and low < share < high


def test_trees_outside_what_was_labelled_are_not_wrong() -> None:
    labelled = np.zeros((12, SIZE, SIZE), np.bool_)
    labelled[:, :, :32] = True
    known = tuple(trees[trees[:, 0] < 32] for trees in TREES)
    chips = made_chips("trees", 12, points=known, labelled=labelled)
    report = evaluate_chips(says(chips, maps_of_trees(TREES)), chips, subject=SUBJECT).report
    assert report.figure("precision").value == report.figure("recall").value == 1
    assert report.figure("density_bias").value == pytest.approx(0, abs=1e-4)


def test_a_threshold_above_all_scores_finds_nothing() -> None:
    chips = made_chips("trees", 6, points=TREES[:6])
    settings = Settings(threshold=0.95)
    report = evaluate_chips(says(chips, maps_of_trees(TREES[:6])), chips, subject=SUBJECT, settings=settings).report
    assert report.figure("recall").value == 0
    assert report.settings["threshold"] == 0.95
    assert report.as_dict()["figures"]["precision"]["value"] is None


def test_classes_of_pixels_and_of_chips() -> None:
    classes = CHANCE.integers(0, 3, (6, SIZE, SIZE)).astype(np.uint8)
    said = np.eye(3, dtype=np.float32)[np.where(classes == 2, 1, classes)].transpose(0, 3, 1, 2)
    names = ("water", "tree", "roof")
    chips = made_chips("segment", 6, classes=classes, class_names=names)
    report = evaluate_chips(says(chips, said), chips, subject=SUBJECT).report
    counts = np.bincount(classes.ravel())
    assert report.figure("miou").value == pytest.approx((1 + counts[1] / (counts[1] + counts[2]) + 0) / 3)
    assert [part.name for part in report.parts["class"]] == list(names)
    assert np.array(report.confusion).sum() == classes.size

    labels = np.array([0, 1, 2, 0, 1, 2])
    whole = made_chips("classify", 6, labels=labels, class_names=names)
    found = evaluate_chips(says(whole, np.eye(3, dtype=np.float32)[labels]), whole, subject=SUBJECT).report
    assert found.figure("accuracy").value == found.figure("macro_f1").value == 1


def test_each_fold_is_judged_by_its_own_model() -> None:
    chips = made_chips("canopy", 12, per_place=2, heights=HEIGHTS)
    fold_of = folds(chips.table, 3)
    models = [says(chips, (HEIGHTS + 1 + fold)[:, None]) for fold in range(3)]
    report = evaluate_folds(models, chips, fold_of, subject=SUBJECT).report
    found = {part.name: part.figures[0].value for part in report.parts["fold"]}
    assert found == pytest.approx({"1": 1, "2": 2, "3": 3}, abs=1e-5)
    assert report.figure("mae_m").value == pytest.approx(2, abs=1e-5)  # folds of equal size


def test_any_column_of_the_chips_divides_them() -> None:
    chips = made_chips("canopy", 12, heights=HEIGHTS)
    cities = ["north"] * 6 + ["south"] * 6
    answers = HEIGHTS[:, None] + np.repeat([1, 2], 6)[:, None, None, None].astype(np.float32)
    report = evaluate_chips(says(chips, answers), chips, subject=SUBJECT, by={"city": cities}).report
    found = {part.name: part.figures[0].value for part in report.parts["city"]}
    assert found == pytest.approx({"north": 1, "south": 2}, abs=1e-5)


def test_the_report_is_plain_json_and_the_same_each_time() -> None:
    chips = made_chips("trees", 12, points=TREES)
    reports = [
        evaluate_chips(says(chips, maps_of_trees(TREES)), chips, subject=SUBJECT, batch=b).report for b in (1, 5)
    ]
    assert reports[0].as_json() == reports[1].as_json()
    found = json.loads(reports[0].as_json())
    assert found["subject"] == {"name": "made", "sha256": "a" * 64, "licence": "CC0-1.0"}
    assert found["labels"] == {"sha256": "f" * 64, "licences": ["CC-BY-4.0"]}
    assert found["figures"]["f1"]["unit"] == ""
    assert found["settings"]["within_m"] == 6


def test_what_cannot_be_judged_is_refused() -> None:
    chips = made_chips("segment", 2, classes=np.zeros((2, SIZE, SIZE), np.uint8), class_names=("a", "b"))
    with pytest.raises(ModelError, match=r"\(2, 5, 64, 64\) of 2 chips of 64 px, which is no segment of 2 classes"):
        evaluate_chips(lambda images: np.zeros((2, 5, SIZE, SIZE), np.float32), chips, subject=SUBJECT)
    with pytest.raises(InputError, match="there are no chips"):
        evaluate_chips(lambda images: images, chips.subset([]), subject=SUBJECT)
    bare = made_chips("canopy", 2, heights=np.full((2, SIZE, SIZE), np.nan, np.float32))
    with pytest.raises(InputError, match="nothing is labelled on 2 chips"):
        evaluate_chips(says(bare, HEIGHTS[:2, None]), bare, subject=SUBJECT)
