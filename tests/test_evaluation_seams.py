"""The seam figure."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st

from geodino.errors import ConfigError
from geodino.evaluation import seams as module
from geodino.evaluation.seams import seams, seams_of_file
from geodino.windows import Tiling

TILING = Tiling(size=128, overlap=32, margin=0)  # stride 96, ramp 32


def ground(rows: int = 500, cols: int = 500) -> np.ndarray:
    return np.random.default_rng(0).normal(10, 1, (rows, cols)).astype(np.float32)


def with_steps(heights: np.ndarray, *, row: int, col: int, phase: int, step_m: float) -> np.ndarray:
    """Each cell raised or lowered as a whole, cells beginning at the phase of the stride."""
    rows = (np.arange(heights.shape[0]) + row - phase) // TILING.stride
    cols = (np.arange(heights.shape[1]) + col - phase) // TILING.stride
    return heights + step_m * ((rows[:, None] + cols) % 2)


@given(row=st.integers(-300, 300), col=st.integers(-300, 300))
def test_a_map_without_seams_gives_about_one(row: int, col: int) -> None:
    found = seams(ground(), TILING, row=row, col=col)
    assert found.ratio == pytest.approx(1, abs=0.05)
    assert found.usual[0] < 1 < found.usual[1]


@pytest.mark.parametrize("phase", [0, 32])
@pytest.mark.parametrize(("row", "col"), [(0, 0), (17, -250)])
def test_steps_where_windows_meet_show(phase: int, row: int, col: int) -> None:
    stepped = with_steps(ground(), row=row, col=col, phase=phase, step_m=5.0)
    found = seams(stepped, TILING, row=row, col=col)
    # Half of the lines, those of one phase of two, step by 5 m where the ground does by 1.1 m.
    assert found.ratio > 2
    assert found.ratio > found.usual[1]


@pytest.mark.parametrize("phase", [1, 31, 50, 95])
def test_steps_elsewhere_do_not(phase: int) -> None:
    stepped = with_steps(ground(), row=0, col=0, phase=phase, step_m=5.0)
    assert seams(stepped, TILING).ratio < 1


def test_the_means_are_those_of_the_steps() -> None:
    heights = np.zeros((1, 200), np.float32)
    heights[:, 96:] = 3.0  # the only step, at a cell's beginning
    found = seams(heights, TILING, row=5)
    assert found.on_m == pytest.approx(3 / 4)  # lines at 32, 96, 128 and 192
    assert found.off_m == 0
    assert np.isnan(found.ratio)


def test_unknown_pixels_make_no_step() -> None:
    heights = ground()
    heights[200:300, 200:300] = np.nan
    assert seams(heights, TILING).ratio == pytest.approx(1, abs=0.05)


def test_a_map_smaller_than_a_cell_has_no_figure() -> None:
    assert np.isnan(seams(ground(10, 10), TILING, row=40, col=40).ratio)


@pytest.mark.parametrize("strip", [64, 99, 2048])
def test_a_file_gives_what_its_pixels_give(strip: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heights = with_steps(ground(300, 500), row=-40, col=333, phase=0, step_m=3.0)
    heights[50:80, 100:150] = np.nan
    path = tmp_path / "map.tif"
    profile = {"driver": "GTiff", "dtype": "float32", "count": 1, "height": 300, "width": 500, "nodata": -9999}
    transform = Affine(0.6, 0, 333 * 0.6, 0, -0.6, 40 * 0.6)
    with rasterio.open(path, "w", crs="EPSG:32610", transform=transform, **profile) as target:
        target.write(np.where(np.isnan(heights), -9999, heights).astype(np.float32), 1)
    monkeypatch.setattr(module, "_STRIP", strip)
    found, wanted = seams_of_file(path, TILING), seams(heights, TILING, row=-40, col=333)
    assert found.ratio == pytest.approx(wanted.ratio, rel=1e-2)
    assert found.figure().value == found.ratio > found.usual[1]

    with rasterio.open(path, "r+") as target:
        target.transform = transform @ Affine.translation(0.4, 0)
    with pytest.raises(ConfigError, match="does not lie on a run's grid"):
        seams_of_file(path, TILING)
