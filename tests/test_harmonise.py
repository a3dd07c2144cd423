"""Harmonising: what made two scenes of one place differ is found, undone and recorded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from affine import Affine
from odc.geo.crs import CRS
from scipy.ndimage import gaussian_filter
from test_masks import write

from geodino.grid import Grid, Window
from geodino.sources.geotiff import describe
from geodino.sources.harmonise import LEAST_PAIRS, harmonise, robust_line
from geodino.sources.mosaic import Mosaic
from geodino.sources.scene import Look, Scene
from geodino.sources.warp import footprint_window

GRID = Grid(CRS("EPSG:32633"), 0.6)
SIDE = 400
GAIN, OFFSET = np.array([0.7, 0.8, 1.2]), np.array([0.15, 0.05, -0.02])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("looks")


@pytest.fixture(scope="module")
def ground() -> npt.NDArray[np.float64]:
    """(3, SIDE, SIDE) in 0.15..0.65, with detail of every size that three bands share in part."""
    rng = np.random.default_rng(4)
    shared = sum(gaussian_filter(rng.normal(size=(SIDE, SIDE)), sigma) * sigma for sigma in (2, 6, 20))
    picture = np.stack([shared + 0.3 * gaussian_filter(rng.normal(size=(SIDE, SIDE)), 3) * 3 for _ in range(3)])
    return 0.15 + 0.5 * (picture - picture.min()) / (picture.max() - picture.min())


def pair(folder: Path, ground: npt.NDArray[np.float64], *, changed: bool = False) -> tuple[Scene, Scene]:
    """The ground as it is, and the same ground under another gain and offset, a hundred rows to the south."""
    other = (ground - OFFSET[:, None, None]) / GAIN[:, None, None]
    if changed:
        other = other.copy()
        other[:, 150:300, 50:150] = 0.9  # a tenth of the overlap was built over
    first = describe(write(folder / "first.tif", (ground[:, :300] * 255).round().astype(np.uint8), 0.6))
    moved = np.clip(other * 255, 0, 255).round().astype(np.uint8)
    name = "changed.tif" if changed else "second.tif"
    return first, describe(write(folder / name, moved, 0.6))


@pytest.mark.parametrize("changed", [False, True])
def test_regression_finds_the_gain_and_offset_that_were_put_in(
    folder: Path, ground: npt.NDArray[np.float64], changed: bool
) -> None:
    first, second = pair(folder, ground, changed=changed)
    done = harmonise([first, second], GRID, "regression")
    assert done.notes == () and done.scenes[0] == first
    look = done.scenes[1].look
    assert look is not None and look.onto == ("first",) and look.pixels > 5000
    said = look.summary()
    np.testing.assert_allclose(said["gain"], GAIN, rtol=0.01)
    np.testing.assert_allclose(said["offset"], OFFSET, atol=0.005)


@pytest.mark.parametrize("how", ["regression", "histogram"])
def test_beyond_the_overlap_the_ground_has_the_first_scenes_colours(
    folder: Path, ground: npt.NDArray[np.float64], how: str
) -> None:
    scenes = pair(folder, ground)
    done = harmonise(scenes, GRID, how)  # type: ignore[arg-type]
    extent = footprint_window(scenes[1], GRID)
    with Mosaic(done.scenes, GRID) as mosaic, Mosaic(scenes, GRID) as plain:
        after, before = mosaic.read(extent), plain.read(extent)
    filled = after.scene == 2
    assert filled.sum() == 100 * SIDE
    away = np.abs(after.image - ground)[:, filled]
    # Two roundings to eight bits, and the quantiles' ends where the overlap lacks the darkest and brightest ground.
    assert away.mean() < 0.003 and np.abs(before.image - ground)[:, filled].mean() > 0.03
    np.testing.assert_array_equal(after.image[:, ~filled], before.image[:, ~filled])


def test_a_harmonised_pixel_does_not_depend_on_the_window(folder: Path, ground: npt.NDArray[np.float64]) -> None:
    done = harmonise(pair(folder, ground), GRID, "histogram")
    extent = footprint_window(done.scenes[1], GRID)
    part = Window(extent.row + 290, extent.col + 33, 50, 61)
    with Mosaic(done.scenes, GRID) as mosaic:
        np.testing.assert_array_equal(mosaic.read(part).image, mosaic.read(extent).image[:, *part.slices_in(extent)])
    assert harmonise(pair(folder, ground), GRID, "histogram") == done


def test_a_third_scene_is_brought_to_what_the_first_two_have_become(
    folder: Path, ground: npt.NDArray[np.float64]
) -> None:
    first, second = pair(folder, ground)
    # It shares ground only with the second.
    third = describe(
        write(
            folder / "third.tif", (ground[:, 310:] * 0.5 * 255).round().astype(np.uint8), 0.6,
            transform=southwards(second, 310),
        )
    )  # fmt: skip
    look = harmonise([first, second, third], GRID, "regression").scenes[2].look
    assert look is not None and look.onto == ("second",)
    np.testing.assert_allclose(look.summary()["gain"], 2.0, rtol=0.03)


def southwards(scene: Scene, rows: int) -> Affine:
    t = scene.transform
    return Affine(t.a, t.b, t.c, t.d, t.e, t.f - rows * 0.6)


def test_a_scene_without_overlap_stays_as_it_is_and_is_named(folder: Path, ground: npt.NDArray[np.float64]) -> None:
    first, second = pair(folder, ground)
    beside = replace(second, id="beside", transform=southwards(second, 5000))
    flat = describe(write(folder / "flat.tif", np.full((3, SIDE, SIDE), 90, np.uint8), 0.6))
    noise = np.random.default_rng(7).integers(1, 255, (3, SIDE, SIDE), dtype=np.uint8)
    other = describe(write(folder / "noise.tif", noise, 0.6))
    done = harmonise([first, beside, flat, other], GRID, "regression")
    assert [scene.look for scene in done.scenes] == [None] * 4
    assert done.notes[0] == "scene beside shares no ground with a scene before it and is not harmonised"
    assert "only ground of one shade" in done.notes[1] and "shows other things" in done.notes[2]


def test_noise_in_both_scenes_does_not_flatten_the_line() -> None:
    rng = np.random.default_rng(0)
    truth = rng.uniform(0.2, 0.7, 20_000)
    x, y = truth + rng.normal(0, 0.05, truth.size), 1.4 * truth - 0.1 + rng.normal(0, 0.07, truth.size)
    line, _ = robust_line(x, y)
    assert line is not None and abs(line.gain - 1.4) < 0.02 and abs(line.offset + 0.1) < 0.01
    assert np.polyfit(x, y, 1)[0] < 1.3, "least squares does flatten it, or this test says nothing"
    assert robust_line(x[: LEAST_PAIRS - 1], y[: LEAST_PAIRS - 1])[0] is None


def test_a_look_goes_on_beyond_its_ends_and_stays_within_a_picture() -> None:
    look = Look("histogram", ("a",), 999, ((((0.0, 0.5, 1.0), (0.1, 0.4, 1.2))),) * 3)
    picture = np.array([0.0, 0.25, 0.75, 1.0], np.float32).reshape(1, 1, 4).repeat(3, axis=0)
    np.testing.assert_allclose(look.apply(picture)[0, 0], [0.1, 0.25, 0.8, 1.0], atol=1e-6)


@pytest.mark.parametrize(("how", "left"), [("regression", 0.2), ("histogram", 0.1)])
def test_two_real_flights_of_one_place_come_closer(shared_data: Path, how: str, left: float) -> None:
    """NAIP of 2016 and 2020 over a desert town: 20 of 255 steps apart on average before."""
    images = shared_data / "urban-trees" / "images"
    scenes = [describe(str(images / f"palm_springs_{year}_61.tif"), bands=("1", "2", "3")) for year in (2020, 2016)]
    grid = Grid(scenes[0].crs, 0.6)
    done = harmonise(scenes, grid, how)  # type: ignore[arg-type]
    assert done.notes == ()

    def colour(scene: Scene) -> npt.NDArray[np.float32]:
        with Mosaic([scene], grid) as mosaic:
            return mosaic.read(footprint_window(scene, grid)).image.mean(axis=(1, 2))

    newest = colour(scenes[0])
    before, after = (np.abs(colour(scene) - newest).mean() for scene in (scenes[1], done.scenes[1]))
    assert before > 15 / 255 and after < left * before
