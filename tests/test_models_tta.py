"""Windows that are seen mirrored and turned too."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
from test_pipeline import wkt

import geodino
from geodino.errors import ModelError
from geodino.models import Model
from geodino.models.tta import VIEWS, View, averaged, fewer_views, views, views_of
from geodino.options import RunOptions
from geodino.outputs.record import read_record
from geodino.shipped import nano_folder

ALL = VIEWS[8]


@pytest.mark.parametrize("view", ALL)
def test_a_view_undone_is_the_window_again(view: View) -> None:
    images = np.random.default_rng(0).random((2, 3, 4, 6), dtype=np.float32)
    np.testing.assert_array_equal(view.undone(view.of(images)), images)


@pytest.mark.parametrize("view", ALL)
def test_offsets_point_to_the_same_ground_whatever_the_view(view: View) -> None:
    # A tree stands 2 cells to the right of a cell and 1 below it.
    ground = np.zeros((1, 1, 7, 7), np.float32)
    ground[0, 0, 2, 3], ground[0, 0, 3, 5] = 1, 2
    seen = view.of(ground)[0, 0]
    row, col = np.argwhere(seen == 1)[0]
    tree_row, tree_col = np.argwhere(seen == 2)[0]
    said = np.zeros((1, 2, 7, 7), np.float32)
    said[0, :, row, col] = tree_col - col, tree_row - row
    np.testing.assert_array_equal(view.offsets_undone(said)[0, :, 2, 3], [2, 1])


def test_the_eight_views_are_all_different_and_fewer_are_some_of_them() -> None:
    image = np.arange(9, dtype=np.float32).reshape(1, 1, 3, 3)
    assert len({view.of(image).tobytes() for view in ALL}) == 8
    assert all(set(some) <= set(ALL) and len(some) == count for count, some in VIEWS.items())
    with pytest.raises(ModelError, match=r"3 views .* give 1, 2, 4, 8"):
        views(3)


def test_the_spread_of_views_holds_how_far_their_heights_lie_apart() -> None:
    heights = iter([10.0, 14.0])

    def say(images: np.ndarray, tasks: Sequence[str]) -> dict[str, np.ndarray]:
        return {"canopy": np.full((1, 2, 4, 4), 3.0, np.float32) * [[[[next(heights) / 3]], [[1]]]]}

    (said,) = averaged(say, np.zeros((1, 3, 4, 4), np.float32), {"canopy": views(2)})["canopy"]
    assert np.allclose(said[0], 12) and np.allclose(said[1], np.sqrt(9 + 4))


@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_a_head_that_learned_from_upright_pictures_is_asked_of_no_turned_ones(count: int) -> None:
    heads: dict[str, dict[str, object]] = {
        "segment": {}, "canopy": {"upright": True, "mirrored": False}, "trees": {"upright": True, "mirrored": True},
    }  # fmt: skip
    seen = {task: views_of(head, count) for task, head in heads.items()}
    assert seen == {
        "segment": VIEWS[count], "canopy": (View(),), "trees": (View(), View(0, True))[:count],
    }  # fmt: skip
    assert fewer_views(heads, count) == {1: {}, 2: {"canopy": 1}}.get(count, {"canopy": 1, "trees": 2})


def test_each_head_is_asked_of_its_own_views_and_once_of_each() -> None:
    asked = []

    def say(images: np.ndarray, tasks: Sequence[str]) -> dict[str, np.ndarray]:
        asked.append(tuple(tasks))
        return {task: np.full((1, 2, 4, 4), len(asked), np.float32) for task in tasks}

    images = np.zeros((1, 3, 4, 4), np.float32)
    said = averaged(say, images, {"segment": VIEWS[4], "canopy": VIEWS[1], "classify": (View(), View(0, True))})
    assert asked == [("segment", "canopy", "classify"), ("segment",), ("segment", "classify"), ("segment",)]
    assert (said["canopy"] == 1).all() and (said["segment"] == 2.5).all() and (said["classify"] == 2).all()


def nano_of_any_side(folder: Path) -> Path:
    """nano as if its trees had learned from turned pictures too."""
    copied = Path(shutil.copytree(nano_folder(), folder))
    config = json.loads((copied / "config.json").read_text())
    for flag in ("upright", "mirrored"):
        del config["heads"]["trees"][flag]
    (copied / "config.json").write_text(json.dumps(config))
    return copied


@pytest.mark.parametrize(
    ("turns", "count", "view"),
    [(False, 2, View(0, True)), (False, 8, View(0, True)), (True, 2, View(2)), (True, 4, View(2)), (True, 8, View(1))],
)
def test_a_model_that_averages_views_answers_alike_to_each_of_them(
    tmp_path: Path, turns: bool, count: int, view: View
) -> None:
    name = str(nano_of_any_side(tmp_path / "nano")) if turns else "nano"
    model, plain = (geodino.load_model(name, precision="fp32", device="cpu", tta=tta) for tta in (count, 1))
    images = np.random.default_rng(3).random((1, 3, 64, 64), dtype=np.float32)

    def apart(asked: Model) -> float:
        said, other = (asked.maps(seen, ["trees"])["trees"] for seen in (images, view.of(images)))
        back = np.concatenate([view.undone(other[:, :2]), view.offsets_undone(other[:, 2:])], axis=1)
        return float(np.abs(back - said).max())

    assert apart(model) < 1e-3 and apart(plain) > 1e-2


def test_heights_of_nano_are_those_of_the_window_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    one, four = (geodino.load_model("nano", precision="fp32", device="cpu", tta=count) for count in (1, 4))
    assert "learned canopy from upright pictures: of 4 views 1 can be asked of it" in caplog.text
    images = np.random.default_rng(3).random((1, 3, 64, 64), dtype=np.float32)
    np.testing.assert_allclose(four.maps(images)["canopy"], one.maps(images)["canopy"], atol=1e-4)


def test_views_are_told_of_in_the_record_and_decide_the_run(tiny_model: Path, photo: Path, tmp_path: Path) -> None:
    one = RunOptions(sources=(str(photo),), model=str(tiny_model), precision="fp32", device="cpu")
    aoi = wkt(20, 15, 200, 180)
    for name, options in (("one", one), ("two", replace(one, tta=2))):
        geodino.run("canopy", aoi=aoi, out=tmp_path / name, options=options)
    records = [read_record(tmp_path / name / "run.json") for name in ("one", "two")]
    assert [record.model.tta for record in records] == [1, 2]
    item = json.loads((tmp_path / "two" / "item.json").read_text())
    assert item["properties"]["mlm:hyperparameters"]["tta"] == 2
    maps = []
    for name in ("one", "two"):
        with rasterio.open(tmp_path / name / "canopy_height.tif") as raster:
            maps.append(raster.read(1))
            assert raster.tags()["GEODINO_TTA"] == {"one": "no", "two": "2 views of each window, averaged"}[name]
    assert (maps[0] != maps[1]).mean() > 0.5
