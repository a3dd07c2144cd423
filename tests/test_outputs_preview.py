"""The preview: readable at any shape, and nodata never looks like bare ground."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.image import imread

from geodino.outputs.preview import HEIGHT_COLOURS, Preview, render_preview, round_length, top_of_scale


def preview(rows: int, cols: int) -> Preview:
    random = np.random.default_rng(0)
    rgb = random.random((3, rows, cols)).astype(np.float32)
    height = (40 * random.random((rows, cols))).astype(np.float32)
    return Preview(rgb, np.ones((rows, cols), np.bool_), height, 0.6, "Canopy height", ("model nano", "2020-05-04"))


def drawn(shown: Preview, path: Path) -> npt.NDArray[np.uint8]:
    """The PNG as (rows, cols, RGB)."""
    render_preview(shown, path)
    return np.round(255 * imread(path)[..., :3]).astype(np.uint8)


def share(picture: npt.NDArray[np.uint8], colour: tuple[int, ...]) -> float:
    return float(np.all(np.abs(picture.astype(int) - colour) <= 1, axis=-1).mean())


@pytest.mark.parametrize(("rows", "cols"), [(400, 400), (60, 1500), (1500, 60), (3, 2), (1, 1), (1200, 1600), (1, 400)])
def test_any_shape_gives_a_picture_of_at_most_1600_pixels(tmp_path: Path, rows: int, cols: int) -> None:
    picture = drawn(preview(rows, cols), tmp_path / "p.png")
    assert 700 <= picture.shape[1] <= 1600 and 150 <= picture.shape[0] <= 1300


def test_panels_keep_the_shape_of_the_ground(tmp_path: Path) -> None:
    shown = preview(300, 200)
    black = replace(shown, rgb=np.zeros_like(shown.rgb), height=np.full_like(shown.height, np.nan))
    picture = drawn(black, tmp_path / "p.png")
    panel = np.argwhere(np.all(picture == 0, axis=-1))
    height, width = panel.max(axis=0) - panel.min(axis=0) + 1
    assert height / width == pytest.approx(1.5, rel=0.02)


def test_what_is_written_over_narrow_panels_does_not_run_together(tmp_path: Path) -> None:
    shown = replace(preview(1500, 20), rgb=np.zeros((3, 1500, 20), np.float32))
    trees = replace(shown, trees=np.empty((0, 2)), trees_note="123,456 trees, one in 7 drawn", height=None)
    picture = drawn(trees, tmp_path / "p.png")
    black = np.flatnonzero((picture[500:600] == 0).all(axis=(0, 2)))
    second = black[np.argmax(np.diff(black)) + 1]
    top = np.argmax((picture[:, black[3]] == 0).all(axis=1))
    written = np.flatnonzero((picture[top - 18 : top - 3, black[0] : second - 3] < 100).any(axis=(0, 2)))
    assert len(written) > 50 and written.max() < second - black[0] - 20


def test_bare_ground_and_missing_heights_look_different(tmp_path: Path) -> None:
    shown = preview(100, 100)
    ground = tuple(round(255 * value) for value in HEIGHT_COLOURS(0.0)[:3])
    bare = drawn(replace(shown, height=np.zeros_like(shown.height)), tmp_path / "bare.png")
    missing = drawn(replace(shown, height=np.full_like(shown.height, np.nan)), tmp_path / "missing.png")
    assert share(bare, ground) > 0.3
    assert share(missing, ground) < 0.001
    assert share(missing, (0xDE, 0xDE, 0xDE)) > 0.1


def test_pixels_without_imagery_are_not_drawn_black(tmp_path: Path) -> None:
    shown = preview(100, 100)
    dark = replace(shown, rgb=np.zeros_like(shown.rgb))
    assert share(drawn(dark, tmp_path / "a.png"), (0, 0, 0)) > 0.3
    assert share(drawn(replace(dark, valid=~dark.valid), tmp_path / "b.png"), (0, 0, 0)) < 0.01


def test_a_demonstration_model_is_called_one_in_red(tmp_path: Path) -> None:
    alarm = (0xA8, 0x32, 0x0A)
    shown = replace(preview(50, 50), rgb=np.zeros((3, 50, 50), np.float32))
    assert share(drawn(shown, tmp_path / "a.png"), alarm) == 0
    assert share(drawn(replace(shown, demonstration=True), tmp_path / "b.png"), alarm) > 0


def test_a_long_caption_stays_inside_the_picture(tmp_path: Path) -> None:
    long = ("scenes " + ", ".join(f"MW_{number}_NAIP" for number in range(60)),)
    picture = drawn(replace(preview(300, 30), caption=long), tmp_path / "p.png")
    header = picture[:150]
    assert (header < 200).any()
    assert (picture[:, -20:] == 255).all()


def test_the_same_preview_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        render_preview(preview(80, 90), tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@given(st.floats(0.01, 1e6))
def test_a_round_length_fills_at_least_four_tenths_of_the_room(longest: float) -> None:
    length = round_length(longest)
    assert 0.4 * longest * (1 - 1e-9) <= length <= longest
    assert f"{length:.0e}"[0] in "125"


@pytest.mark.parametrize(("heights", "top"), [([np.nan], 5), ([0, 0], 5), ([5.0], 5), ([5.1], 10), ([34.2] * 9, 35)])
def test_the_scale_ends_at_a_multiple_of_five_metres(heights: list[float], top: float) -> None:
    assert top_of_scale(np.array(heights, np.float32)) == top


def test_one_wild_pixel_does_not_stretch_the_scale() -> None:
    heights = np.full(1000, 12, np.float32)
    heights[0] = 90
    assert top_of_scale(heights) == 15
