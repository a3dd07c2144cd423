"""Pictures and tables of an evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluation_chips import SIZE, made_chips, maps_of_trees, says
from PIL import Image
from rich.console import Console

from geodino.evaluation.chips import Evaluation, evaluate_chips
from geodino.evaluation.pictures import PICTURES, draw_pictures
from geodino.evaluation.report import Subject, Task
from geodino.evaluation.tasks import Settings
from geodino.evaluation.worst import draw_worst, worst_chips, worst_figure

NAMES = ("water", "tree", "roof")


def judged(task: Task, *, wrong_chip: int = 3) -> tuple[Evaluation, Any, Any]:
    """Eight chips of which all but one are predicted nearly right."""
    chance = np.random.default_rng(0)
    count = 8
    wrong = np.arange(count) == wrong_chip
    if task == "canopy":
        heights = chance.gamma(1, 9, (count, SIZE, SIZE)).astype(np.float32)
        chips = made_chips(task, count, heights=heights)
        said = np.stack([heights + 1 + 20 * wrong[:, None, None], np.ones_like(heights)], axis=1).astype(np.float32)
    elif task == "trees":
        raster = np.stack(np.meshgrid(np.arange(6, 64, 12), np.arange(6, 64, 12)), axis=-1).reshape(-1, 2)
        points = tuple(raster[chance.random(len(raster)) < 0.7].astype(np.float32) for _ in range(count))
        chips = made_chips(task, count, points=points)
        said = maps_of_trees(tuple(trees[:2] if bad else trees for trees, bad in zip(points, wrong, strict=True)))
    elif task == "segment":
        classes = chance.integers(0, 3, (count, SIZE, SIZE)).astype(np.uint8)
        chips = made_chips(task, count, classes=classes, class_names=NAMES)
        said = np.eye(3, dtype=np.float32)[(classes + wrong[:, None, None]) % 3].transpose(0, 3, 1, 2)
    else:
        labels = chance.integers(0, 3, count)
        chips = made_chips(task, count, labels=labels, class_names=NAMES)
        said = np.eye(3, dtype=np.float32)[(labels + wrong) % 3] * 0.8 + 0.1
    predict = says(chips, said)
    return evaluate_chips(predict, chips, subject=Subject("made", "a" * 64)), predict, chips


TASKS: tuple[Task, ...] = ("canopy", "trees", "segment", "classify")


@pytest.mark.parametrize("task", TASKS)
def test_every_axis_says_what_it_is_and_in_which_unit(task: Task) -> None:
    evaluation, _, _ = judged(task)
    for name, draw in PICTURES[task].items():
        figure = draw(evaluation)
        assert figure is not None, name
        axes = figure.axes[0]
        assert axes.get_xlabel() and axes.get_ylabel() and axes.get_title(loc="left")
        if task == "canopy":
            assert "(m)" in axes.get_ylabel()


@pytest.mark.parametrize("task", TASKS)
def test_pictures_are_written_and_the_same_each_time(task: Task, tmp_path: Path) -> None:
    evaluation, predict, chips = judged(task)
    written = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        folder.mkdir()
        paths = [*draw_pictures(evaluation, folder), draw_worst(evaluation, predict, chips, folder / "worst.png")]
        written.append([path.read_bytes() for path in paths])
        for path in paths:
            with Image.open(path) as picture:
                assert min(picture.size) > 300
    assert len(written[0]) == len(PICTURES[task]) + 1
    assert written[0] == written[1]


@pytest.mark.parametrize("task", TASKS)
def test_the_worst_chip_comes_first(task: Task) -> None:
    evaluation, _, _ = judged(task, wrong_chip=5)
    assert worst_chips(evaluation, 4)[0] == 5
    assert len(worst_chips(evaluation, 4)) == 4


def test_the_worst_chips_are_of_different_places() -> None:
    heights = np.zeros((6, SIZE, SIZE), np.float32)
    chips = made_chips("canopy", 6, per_place=3, heights=heights)
    said = heights[:, None] + np.array([9, 8, 7, 3, 5, 1], np.float32)[:, None, None, None]
    evaluation = evaluate_chips(says(chips, said), chips, subject=Subject("made"))
    assert worst_chips(evaluation, 4) == [0, 4]


def test_the_worst_trees_are_those_that_count() -> None:
    """Of the eastern half of each chip, nobody knows; trees predicted there are neither drawn nor numbered."""
    labelled = np.zeros((6, SIZE, SIZE), np.bool_)
    labelled[:, :, :32] = True
    raster = np.stack(np.meshgrid(np.arange(6, 64, 12), np.arange(6, 64, 12)), axis=-1).reshape(-1, 2)
    said = tuple(raster.astype(np.float32) for _ in range(6))
    known = tuple(trees[trees[:, 0] < 32][1:] for trees in said)
    chips = made_chips("trees", 6, points=known, labelled=labelled)
    predict = says(chips, maps_of_trees(said))
    evaluation = evaluate_chips(predict, chips, subject=Subject("made"), settings=Settings(within_m=2))
    [*legends] = [axes.get_legend() for axes in worst_figure(evaluation, predict, chips).axes if axes.get_legend()]
    drawn = [[text.get_text() for text in legend.get_texts()] for legend in legends]
    assert drawn == [["14 hit", "1 false", "0 missed", "not counted"]] * 4
    assert evaluation.sums.columns["said"].tolist() == [15] * 6


def test_footprints_and_map_share_a_scale_that_holds_both() -> None:
    footprints = tuple(np.array([[20, 20, 8, 15], [44, 44, 8, 38]], np.float32) for _ in range(2))
    chips = made_chips("canopy", 2, footprints=footprints)
    predict = says(chips, np.full((2, 1, SIZE, SIZE), 8, np.float32))
    figure = worst_figure(evaluate_chips(predict, chips, subject=Subject("made")), predict, chips)
    discs = [patch.get_facecolor() for patch in figure.axes[1].patches]
    assert len(set(discs)) == 2
    assert figure.axes[2].images[0].get_clim() == (0, 40)


@pytest.mark.parametrize("task", TASKS)
def test_the_table_holds_each_figure_with_its_unit_and_interval(task: Task) -> None:
    evaluation, _, _ = judged(task)
    console = Console(width=140)
    with console.capture() as captured:
        for part in evaluation.report.as_renderables():
            console.print(part)
    text = captured.get()
    assert all(figure.title in text for figure in evaluation.report.figures)
    assert "intervals over 8 places" in text
    assert "left out, label outside the imagery: 3" in text
    if task == "canopy":
        assert "3.50 m" in text  # seven chips 1 m and one 21 m too high
        assert "+3.50 m" in text


def test_one_is_singular() -> None:
    chips = made_chips("canopy", 1, heights=np.zeros((1, SIZE, SIZE), np.float32))
    report = evaluate_chips(
        says(chips, np.zeros((1, 1, SIZE, SIZE), np.float32)), chips, subject=Subject("made")
    ).report
    assert report.basis == "1 chip, 1 place, 4,096 pixels"
