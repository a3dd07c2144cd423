"""Pipeline files are checked whole, and every fault is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from geodino.errors import ConfigError
from geodino.settings import read_pipeline
from geodino.shipped import config_names, config_path, pipeline_names, pipeline_path
from geodino.windows import Tiling

MINIMAL = "name: mine\ntitle: Mine\ntask: canopy-height\n"


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", pipeline_names())
def test_every_shipped_pipeline_is_valid_and_named_after_its_file(name: str) -> None:
    assert read_pipeline(name).name == name


def test_a_users_own_pipeline_file_is_read(tmp_path: Path) -> None:
    own = MINIMAL + "gsd_m: 0.5\nwindow: {size: 416, overlap: 96, margin: 8}\n"
    spec = read_pipeline(write(tmp_path, own))
    assert spec.gsd(0.6) == 0.5
    assert spec.tiling(Tiling(512, 64)) == Tiling(416, 96, 8)


def test_values_left_to_the_model_are_the_models(tmp_path: Path) -> None:
    spec = read_pipeline(write(tmp_path, MINIMAL))
    assert spec.gsd(0.6) == 0.6
    assert spec.tiling(Tiling(512, 64)) == Tiling(512, 64)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (MINIMAL + "resampling: cubic\nordr: newest\n", "unknown key ordr; did you mean order?"),
        (MINIMAL + "max_cloud_percent: 120\n", "max_cloud_percent: input should be less than or equal to 100"),
        (MINIMAL + "quantum_m: 0.1\n", "must be a power of two"),
        (MINIMAL + "window: {size: 500, overlap: 64}\n", "window size 500 px must be a positive multiple of 32"),
        (MINIMAL + "window: {size: 512, overlp: 64}\n", "unknown key window.overlp; did you mean overlap?"),
        (MINIMAL + "window: {size: 512}\n", "key window.overlap is missing"),
        (MINIMAL + "gsd_m: -1\n", "gsd_m: input should be greater than 0"),
        (MINIMAL + "gsd_m: .inf\n", "gsd_m: input should be a finite number"),
        (MINIMAL + "trees: {treshold: 0.3}\n", "unknown key trees.treshold; did you mean threshold?"),
        (MINIMAL + "trees: {threshold: 1.5}\n", "trees.threshold: input should be less than or equal to 1"),
        (MINIMAL + "trees: {spacing: 9}\n", "trees.spacing: input should be less than or equal to 8"),
        (MINIMAL + "statistics: {cover_m: [2, -5]}\n", "input should be greater than or equal to 0"),
        (MINIMAL + "statistics: {cover_m: [5, 2]}\n", "statistics.cover_m: 5, 2 must grow, each height once"),
        (MINIMAL + "statistics: {cover_m: []}\n", "statistics.cover_m: needs at least one height"),
        (MINIMAL + "statistics: {cover_m: 2}\n", "statistics.cover_m: input should be a list"),
        (MINIMAL + "trees: {allometry: [2.5, 0]}\n", "trees.allometry needs more than 2 values"),
        ("name: mine\ntitle: Mine\ntask: trees\n", "task trees needs a section trees"),
        ("title: x\ntask: canopy-height\n", "key name is missing"),
        ("- a\n- b\n", "must hold `key: value` lines, not a list"),
        ("name: [unclosed\n", "is not YAML"),
    ],
)
def test_a_faulty_pipeline_file_is_refused_with_the_fault(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_pipeline(write(tmp_path, text))
    assert message in str(caught.value)
    assert "mine.yaml" in str(caught.value)
    assert "[" not in str(caught.value) or "YAML" in str(caught.value), "names of pydantic's own"


def test_all_faults_of_a_file_are_listed_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read_pipeline(write(tmp_path, MINIMAL + "order: eldest\nquantum_m: 0.3\n"))
    assert "order" in str(caught.value) and "quantum_m" in str(caught.value)


def test_an_unknown_pipeline_offers_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match="did you mean canopy"):
        read_pipeline("canpy")


def test_names_cannot_climb_out_of_the_shipped_folder() -> None:
    with pytest.raises(ConfigError, match="no pipeline named"):
        pipeline_path("../pyproject")
    for name in config_names():
        assert config_path(name).is_file()
