"""What is measured on tuning chips, what chooses among settings by it, and when that is doubted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from evaluation_chips import made_chips, maps_of_trees

from geodino.evaluation.chips import evaluate_chips
from geodino.evaluation.report import Subject
from geodino.evaluation.tasks import Settings
from geodino.models.heads import HeightMaps, TreeMaps
from geodino.models.pyramid import CELL
from geodino.training.chipset import ChipSet
from geodino.training.engine import Job
from geodino.training.recipe import Recipe
from geodino.training.tasks import F1_TIE, TASKS, best_setting

SIZE = 64


@pytest.mark.parametrize(
    ("f1", "found", "best"),
    [
        ([0.70, 0.760, 0.762, 0.74], [130, 104, 92, 80], 1),  # as good as the best, and counts better
        ([0.70, 0.762 - 2 * F1_TIE, 0.762, 0.74], [130, 100, 92, 80], 2),  # counts better, but finds worse
        ([0.70, 0.760, 0.762, 0.761], [130, 92, 108, 108], 1),  # equally far off: the first
    ],
)
def test_of_settings_as_good_as_the_best_the_one_that_counts_best(f1: list[float], found: list[int], best: int) -> None:
    assert best_setting(np.array(f1), np.array(found), 100) == best


def job_of(chips: ChipSet, network: Any) -> Job:
    """What a measurement needs, of all chips; the network is any function of images."""
    everything = np.arange(len(chips))
    return Job(
        network, chips, everything, everything, Recipe(size=SIZE), lambda images: images, (), Path("nowhere"),
        torch.device("cpu"), "fp32", "",
    )  # fmt: skip


def by_heart(chips: ChipSet, maps: npt.NDArray[np.float32]) -> Any:
    """A network that says these maps, (N, 4, h, w), of the chips' images."""
    number = {chips.image(i).tobytes(): i for i in range(len(chips))}

    def network(images: torch.Tensor, tasks: list[str]) -> dict[str, TreeMaps]:
        heat, density, right, down = torch.from_numpy(
            np.stack([maps[number[image.numpy().tobytes()]] for image in images])
        ).unbind(1)
        return {"trees": TreeMaps(heat=heat.logit(1e-6), density=density, offset=torch.stack([right, down], 1))}

    return network


def lattice(count: int) -> tuple[npt.NDArray[np.float32], ...]:
    """Trees of `count` chips, 16 each, every one in its own square of 16 px."""
    chance = np.random.default_rng(1)
    corners = np.stack(np.meshgrid(np.arange(4), np.arange(4)), -1).reshape(-1, 2) * 16
    return tuple((corners + chance.uniform(4, 12, (16, 2))).astype(np.float32) for _ in range(count))


def test_trees_beyond_the_labelled_ground_are_not_false_ones() -> None:
    every = lattice(4)
    labelled = np.zeros((4, SIZE, SIZE), np.bool_)
    labelled[:, SIZE // 2 :] = True
    known = tuple(points[points[:, 1] >= SIZE // 2] for points in every)
    chips = made_chips("trees", 4, labelled=labelled, points=known)
    found = TASKS["trees"].measure(by_heart(chips, maps_of_trees(every, cell=CELL)), job_of(chips, None)).figures
    assert [found[name] for name in ("f1", "precision", "recall", "count_bias")] == [1, 1, 1, 0]
    assert found["density_bias"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("step_px", [SIZE, 40])
def test_a_training_measures_what_an_evaluation_of_the_same_chips_says(step_px: int) -> None:
    chance = np.random.default_rng(2)
    every = lattice(4)
    labelled = np.zeros((4, SIZE, SIZE), np.bool_)
    labelled[:, :, :40] = True
    # Some are missed, and some that are found were never there.
    said = maps_of_trees(tuple(points[chance.random(16) < 0.8] for points in every), cell=CELL)
    chips = made_chips("trees", 4, per_place=4, step_px=step_px, labelled=labelled, points=tuple(p[:13] for p in every))
    measured = TASKS["trees"].measure(by_heart(chips, said), job_of(chips, None)).figures
    settings = Settings(threshold=measured["threshold"], spacing=int(measured["spacing"]))
    number = {chips.image(i).tobytes(): i for i in range(len(chips))}
    report = evaluate_chips(
        lambda images: np.stack([said[number[image.tobytes()]] for image in images]), chips,
        subject=Subject("by heart"), settings=settings,
    ).report  # fmt: skip
    for name, factor in {"f1": 1, "precision": 1, "recall": 1, "count_bias": 100, "density_bias": 100}.items():
        assert factor * measured[name] == pytest.approx(report.figure(name).value, rel=1e-5), name
    assert 0 < measured["f1"] < 1


def test_heights_where_chips_overlap_count_once() -> None:
    heights = np.zeros((2, SIZE, SIZE), np.float32)
    heights[0, :, SIZE // 2 :] = 12
    chips = made_chips("canopy", 2, per_place=2, step_px=SIZE // 2, heights=heights)

    def network(images: torch.Tensor, tasks: list[str]) -> dict[str, HeightMaps]:
        return {"canopy": HeightMaps(*(torch.zeros(len(images), SIZE, SIZE) for _ in HeightMaps._fields))}

    measured = TASKS["canopy"].measure(network, job_of(chips, None))  # type: ignore[arg-type]
    # Of the 32 columns that both chips see, the first counts 16.
    assert measured.figures["mae_m"] == pytest.approx(12 * 16 / 96) == -measured.score


@pytest.mark.parametrize("said", [0, 1])
def test_classes_are_measured_beside_the_commonest_alone(said: int) -> None:
    classes = np.zeros((2, SIZE, SIZE), np.uint8)
    classes[:, : SIZE // 4] = 1
    chips = made_chips("segment", 2, classes=classes, class_names=("road", "water", "sand"))

    def network(images: torch.Tensor, tasks: list[str]) -> dict[str, torch.Tensor]:
        return {"segment": torch.eye(3)[said].view(1, 3, 1, 1).expand(len(images), 3, 4, 4)}

    figures = TASKS["segment"].measure(network, job_of(chips, None)).figures  # type: ignore[arg-type]
    assert figures["commonest_accuracy"] == 0.75 and figures["commonest_miou"] == 0.375
    assert (figures["miou"], figures["accuracy"]) == ((0.375, 0.75), (0.125, 0.25))[said]
    assert TASKS["segment"].doubt(figures)


@pytest.mark.parametrize(
    ("task", "figures", "said"),
    [
        ("trees", {"f1": 0.0}, "F1 0, none of the trees is found"),
        ("trees", {"f1": 0.1}, ""),
        ("canopy", {"mae_m": 4.0, "constant_mae_m": 3.5}, "MAE 4.00 m, and 3.50 m of the median height alone"),
        ("canopy", {"mae_m": 3.0, "constant_mae_m": 3.5}, ""),
        (
            "classify",
            {"accuracy": 0.5, "commonest_accuracy": 0.5},
            "accuracy 0.50, and 0.50 of the commonest class alone",
        ),
        (
            "segment",
            {"miou": 0.2, "commonest_miou": 0.25},
            "mean IoU 0.20, and 0.25 of the commonest class alone",
        ),
    ],
)
def test_figures_that_need_no_training_are_doubted(task: str, figures: dict[str, float], said: str) -> None:
    assert TASKS[task].doubt(figures) == said  # type: ignore[index]
