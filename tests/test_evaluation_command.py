"""`geodino evaluate`, on a model and on a map."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import rasterio
from click.testing import CliRunner, Result
from evaluation_chips import made_chips, maps_of_trees, says
from shapely.geometry import box

from geodino.cli_evaluate import evaluate
from geodino.errors import InputError, ModelError
from geodino.evaluation.models import evaluate_model, leak_note, settings_of, subject_of_map
from geodino.evaluation.tasks import Settings
from geodino.models import load_model
from geodino.models.catalog import Licence
from geodino.options import RunOptions
from geodino.pipeline import run
from geodino.training.chips import ChipOptions, build_chips
from geodino.training.leaks import learned_chips

PICTURES = {"evaluation.json", "heights.png", "errors_by_height.png", "worst.png"}


def call(*words: str | Path) -> Result:
    return CliRunner().invoke(evaluate, [str(word) for word in words], catch_exceptions=False)


@pytest.fixture(scope="module")
def heights(photo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Heights on the photo's own pixels: its green band, 0 to 25 m."""
    path = tmp_path_factory.mktemp("labels") / "chm.tif"
    with rasterio.open(photo) as source:
        profile = source.profile | {"count": 1, "dtype": "float32", "nodata": -9999, "photometric": "minisblack"}
        values = source.read(2).astype(np.float32) / 10
    with rasterio.open(path, "w", **profile) as target:
        target.write(values, 1)
    return path


def test_a_model_is_measured_written_and_drawn(tiny_model: Path, photo: Path, heights: Path, tmp_path: Path) -> None:
    words = ["canopy", "--model", tiny_model, "--source", photo, "--labels", heights, "--by", "scene"]
    told = call(*words, "--out", tmp_path / "out", "--resamples", "50")
    assert told.exit_code == 0, told.output
    assert {path.name for path in (tmp_path / "out").iterdir()} == PICTURES
    report = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    model = load_model(tiny_model)
    assert report["subject"]["sha256"] == model.weights_sha256
    assert report["settings"]["chip_px"] == model.tiling.size
    assert report["counts"]["pixels"] == 300 * 420 - 50 * 60  # the photo has a hole
    assert list(report["parts"]["scene"]) == ["photo"]
    assert f"{report['figures']['mae_m']['value']:.2f} m" in told.output
    again = call(*words, "--json", "--resamples", "50")
    assert json.loads(again.stdout) == report


def test_a_model_beats_the_constant_on_real_ground(shared_data: Path) -> None:
    scenes = shared_data / "canopy" / "scenes"
    told = call(
        "canopy", "--model", "nano", "--precision", "fp32", "--source", scenes / "autzen_val_rgb.tif",
        "--labels", scenes / "autzen_val_chm.tif", "--json",
    )  # fmt: skip
    report = json.loads(told.stdout)
    assert report["counts"]["pixels"] == 400 * 1580
    # All constants: none has a lower MAE on these labels than their median.
    assert report["figures"]["constant_mae_m"]["value"] == pytest.approx(3.31, abs=0.01)
    assert report["figures"]["mae_under_constant"]["value"] > 20
    assert report["figures"]["mae_under_constant"]["low"] > 10
    assert report["figures"]["block_r2"]["value"] > 0.5


def test_a_map_of_a_run_is_measured_with_its_seams(
    tiny_model: Path, photo: Path, heights: Path, tmp_path: Path
) -> None:
    with rasterio.open(photo) as source:
        aoi = f"SRID=26910;{box(*source.bounds).wkt}"
    run("canopy", aoi=aoi, out=tmp_path / "run", options=RunOptions(model=str(tiny_model), sources=(str(photo),)))
    path = tmp_path / "run" / "canopy_height.tif"
    told = call("canopy", "--map", path, "--labels", heights, "--json")
    report = json.loads(told.stdout)
    assert report["subject"]["name"] == "canopy_height.tif by tiny"
    assert report["figures"]["seam_ratio"]["value"] == pytest.approx(1, abs=0.5)
    assert report["figures"]["within_spread"]["value"] is not None
    assert report["dropped"]["labelled pixels that the map does not know"] >= 50 * 60

    assert json.loads(call("canopy", "--map", tmp_path / "run", "--labels", heights, "--json").stdout) == report
    with pytest.raises(
        InputError, match=r"is a folder, and no trees.parquet in it: name the file; .*canopy_height.tif"
    ):
        call("trees", "--map", tmp_path / "run", "--labels", heights)

    (tmp_path / "run" / "run.json").write_text("{}")
    with pytest.raises(InputError, match=r"run\.json is no record of a run"):
        subject_of_map(path)
    (tmp_path / "run" / "run.json").unlink()
    bare = json.loads(call("canopy", "--map", path, "--labels", heights, "--json").stdout)
    assert bare["subject"]["name"] == "canopy_height.tif"
    assert "seam_ratio" not in bare["figures"]
    assert bare["notes"][-1] == "no seam figure: no run.json beside the map says where windows met"


def test_a_model_judged_on_what_it_learned_from_is_said_to_be(
    tiny_model: Path, photo: Path, heights: Path, tmp_path: Path
) -> None:
    words = ["canopy", "--source", photo, "--labels", heights, "--resamples", "2", "--json"]
    said = json.loads(call(*words, "--model", tiny_model).stdout)
    assert not any("learned from" in note for note in said["notes"])
    taught = shutil.copytree(tiny_model, tmp_path / "taught")
    record = {"data": {"sha256": said["labels"]["sha256"]}}
    (taught / "training.json").write_text(json.dumps(record))
    told = call(*words, "--model", taught)
    count = said["counts"]["chips"]
    sentence = f"the model learned from, or was chosen by, {count} of {count} chips"
    assert f"warning: {sentence}" in told.stderr
    assert json.loads(told.stdout)["notes"][-1].startswith(sentence)

    chips = build_chips("canopy", [heights], [str(photo)], folder=tmp_path, options=ChipOptions(size=128))
    # Four more overlap these two.
    assert "by, 6 of 12 chips" in leak_note({"learned": learned_chips(chips, np.array([0, 1]))}, chips)


def test_a_split_that_is_not_there_is_refused_by_name(
    tiny_model: Path, photo: Path, heights: Path, tmp_path: Path
) -> None:
    (tmp_path / "splits.csv").write_text("scene,split\nphoto,val\n")
    words = ["canopy", "--model", tiny_model, "--source", photo, "--labels", heights]
    with pytest.raises(InputError, match="no chip is of the split vall: the chips here are of val"):
        call(*words, "--splits", tmp_path / "splits.csv", "--split", "vall")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--labels", "x"], "give --model with --source, or --map"),
        (["--labels", "x", "--model", "nano", "--map", "m.tif"], "give --model with --source, or --map"),
        (["--labels", "x", "--model", "nano"], "--model needs imagery"),
        (["--labels", "x", "--model", "nano", "--source", "y", "--split", "val"], "--split needs a CSV"),
    ],
)
def test_options_that_do_not_belong_together_are_refused(words: list[str], sentence: str) -> None:
    told = call("canopy", *words)
    assert told.exit_code == 2
    assert sentence in told.output


class _Headed:
    """What a loaded model shows of a head, for settings alone."""

    def __init__(self, **heads: dict[str, Any]) -> None:
        self.name = "headed"
        self.heads = heads


def test_what_training_chose_is_used() -> None:
    headed: Any = _Headed(trees={"kind": "density", "threshold": 0.42, "spacing": 2})
    assert settings_of(headed, "trees", Settings(seed=5)) == Settings(threshold=0.42, spacing=2, seed=5)
    assert settings_of(headed, "canopy") == Settings()


def test_a_model_with_several_heads_is_asked_for_the_chips_task_and_with_its_threshold() -> None:
    raster = np.stack(np.meshgrid(np.arange(6, 64, 12), np.arange(6, 64, 12)), axis=-1).reshape(-1, 2)
    points = tuple(raster[k : k + 12].astype(np.float32) for k in range(6))
    chips = made_chips("trees", 6, points=points)
    predict = says(chips, maps_of_trees(points))
    headed: Any = _Headed(trees={"threshold": 0.42}, canopy={})
    asked = []

    def maps(images: npt.NDArray[np.float32], tasks: tuple[str, ...]) -> dict[str, npt.NDArray[np.float32]]:
        asked.append(tasks)
        return {task: predict(images) for task in tasks}

    headed.maps, headed.batch_size, headed.tta = maps, lambda side: 4, 1
    headed.weights_sha256, headed.licence = "b" * 64, Licence("CC-BY-4.0", "")
    report = evaluate_model(headed, chips, by=("place",)).report
    assert asked == [("trees",), ("trees",)]
    assert report.figure("f1").value == 1
    assert report.settings["threshold"] == 0.42
    assert (report.subject.sha256, report.subject.licence) == ("b" * 64, "CC-BY-4.0")
    assert len(report.parts["place"]) == 6


def test_classes_in_another_order_are_compared_by_name() -> None:
    labels = np.array([0, 1, 2, 0, 1, 2])
    chips = made_chips("classify", 6, labels=labels, class_names=("roof", "tree", "water"))
    said = np.eye(3, dtype=np.float32)[labels][:, [2, 0, 1]]  # in the model's order
    predict = says(chips, said)
    headed: Any = _Headed(classify={"classes": ["water", "roof", "tree"]})
    headed.maps, headed.batch_size, headed.tta = lambda images, tasks: {"classify": predict(images)}, lambda side: 4, 1
    headed.weights_sha256, headed.licence = "b" * 64, Licence("CC-BY-4.0", "")
    assert evaluate_model(headed, chips).report.figure("accuracy").value == 1


def test_a_model_of_other_classes_is_refused(photo: Path, heights: Path, tmp_path: Path) -> None:
    chips = build_chips("canopy", [heights], [str(photo)], folder=tmp_path, options=ChipOptions(size=128))
    headed: Any = _Headed(canopy={"classes": ["tree", "roof"]})
    with pytest.raises(ModelError, match="headed knows the classes tree, roof, and the labels are of"):
        evaluate_model(headed, chips)
    with pytest.raises(InputError, match="no column citi"):
        evaluate_model(headed, chips, by=("citi",))
