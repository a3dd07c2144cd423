"""Scattered rasters: only what holds something is stored, and every level of it is true."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import rasterio
from odc.geo.crs import CRS
from rasterio.windows import Window as RasterioWindow
from rio_cogeo.cogeo import cog_validate

from geodino.grid import Grid, Window
from geodino.outputs.cog import CogProfile, CogReceipt, stage_to_cog
from geodino.outputs.levels import BLOCK, scattered, stored_blocks
from geodino.outputs.pieces import Layout, join
from geodino.outputs.scene_map import write_scene_map
from geodino.outputs.stage import NODATA, STAGE_SUFFIX, StagedRaster

pytestmark = pytest.mark.filterwarnings("ignore:Use `@` matmul:PendingDeprecationWarning")

GRID = Grid(CRS("EPSG:32610"), 0.6)
CELL = 176
EXTENT = Window(-40 * CELL, 9 * CELL, 140 * CELL, 140 * CELL)
# Ends within a cell and within a block, on odd numbers.
CLIP = Window(EXTENT.row + 33, EXTENT.col + 70, EXTENT.height - 140, EXTENT.width - 111)
# At all corners of the clip, across a border of blocks, and alone.
CELLS = [(0, 0), (0, 139), (139, 0), (139, 139), (60, 60), (60, 61), (61, 60), (100, 22)]


@pytest.fixture
def stage(tmp_path: Path) -> StagedRaster:
    """Heights with holes in a few of 19,600 cells, one of them bare ground, and the number of a scene."""
    stage = StagedRaster.create(tmp_path / "stage.tif", GRID, EXTENT, block=CELL, names=["height", "scene"])
    random = np.random.default_rng(3)
    for row, col in CELLS:
        heights = random.uniform(0, 40, (CELL, CELL)).astype(np.float32) * ((row, col) != (100, 22))
        heights[random.random((CELL, CELL)) < 0.3] = np.nan
        scene = np.where(np.isnan(heights), np.nan, 1 + (row > 60)).astype(np.float32)
        stage.write(Window(EXTENT.row + row * CELL, EXTENT.col + col * CELL, CELL, CELL), np.stack([heights, scene]))
    stage.close()
    return stage


def around(cell: tuple[int, int], shape: tuple[int, ...], level: int = 0) -> Window:
    """The cell's pixels of the clip and a few more, on a level of that shape."""
    whole = Window(0, 0, shape[0], shape[1])
    row, col = (
        (cell[0] * CELL - (CLIP.row - EXTENT.row)) >> level,
        (cell[1] * CELL - (CLIP.col - EXTENT.col)) >> level,
    )
    return Window(row - 8, col - 8, (CELL >> level) + 16, (CELL >> level) + 16).intersection(whole)


def read(path: Path, window: Window, band: int = 1, level: int = 0) -> npt.NDArray[np.float32]:
    with rasterio.open(path, **({"overview_level": level - 1} if level else {})) as raster:
        part = RasterioWindow(window.col, window.row, window.width, window.height)
        return np.asarray(raster.read(band, window=part))


def staged(stage: StagedRaster, window: Window, band: int) -> npt.NDArray[np.float32]:
    """A window of the clip as it was staged."""
    row, col = CLIP.row - EXTENT.row + window.row, CLIP.col - EXTENT.col + window.col
    return read(stage.path, Window(row, col, *window.shape), band)


def to_cog(stage: StagedRaster) -> CogReceipt:
    target = stage.path.with_name("height.tif")
    return stage_to_cog(stage, "height", target, clip=CLIP, profile=CogProfile("canopy_height", "m"))


def test_a_scattered_cog_holds_the_staged_pixels_in_few_blocks(stage: StagedRaster) -> None:
    receipt = to_cog(stage)
    valid = 0
    for cell in CELLS:
        window = around(cell, CLIP.shape)
        found = read(receipt.path, window)
        np.testing.assert_array_equal(found, staged(stage, window, 1))
        assert cell != (100, 22) or set(np.unique(found)) == {0.0, NODATA}
        valid += int((found[8:-8, 8:-8] != NODATA).sum())
    with rasterio.open(receipt.path) as cog:
        assert cog.nodata == NODATA and cog.block_shapes == [(BLOCK, BLOCK)]
        assert 8 <= len(stored_blocks(cog)) <= 16
    assert receipt.census.pixels == CLIP.height * CLIP.width and receipt.census.valid > valid > 80_000
    assert cog_validate(receipt.path, strict=True, quiet=True) == (True, [], [])
    assert sorted(path.name for path in stage.path.parent.iterdir()) == ["height.tif", "stage.tif"]


def test_each_overview_of_a_scattered_cog_is_the_mean_of_what_is_known_below(stage: StagedRaster) -> None:
    path = to_cog(stage).path
    with rasterio.open(path) as cog:
        shape, count = cog.shape, len(cog.overviews(1))
    assert count == 6
    for level in range(1, count + 1):
        finer, shape = shape, (-(-shape[0] // 2), -(-shape[1] // 2))
        for cell in CELLS:
            window = around(cell, shape, level)
            below = Window(2 * window.row, 2 * window.col, 2 * window.height, 2 * window.width)
            values = np.full(below.shape, np.nan)
            inside = below.intersection(Window(0, 0, *finer))
            there = read(path, inside, level=level - 1)
            values[: inside.height, : inside.width] = np.where(there == NODATA, np.nan, there)
            fours = values.reshape(window.height, 2, window.width, 2)
            with np.errstate(invalid="ignore"):
                means = np.nansum(fours, axis=(1, 3)) / (~np.isnan(fours)).sum(axis=(1, 3))
            found = read(path, window, level=level)
            assert (found != NODATA).any()
            np.testing.assert_allclose(np.where(found == NODATA, np.nan, found), means, rtol=1e-6)


def test_a_scattered_map_of_scenes_is_true_on_every_level(stage: StagedRaster, tmp_path: Path) -> None:
    path = write_scene_map(stage, tmp_path / "scene.tif", clip=CLIP, numbers={1: 2, 2: 1}, table=[], tags={}).path
    for cell in CELLS:
        window = around(cell, CLIP.shape)
        number = staged(stage, window, 2)
        found = read(path, window)
        np.testing.assert_array_equal(found, np.select([number == 1, number == 2], [2, 1], 0))
        eighth = Window(*(-(-side // 8) for side in (window.row, window.col)), 16, 16)
        first = read(path, Window(8 * eighth.row, 8 * eighth.col, 128, 128))[::8, ::8]
        np.testing.assert_array_equal(read(path, eighth, level=3)[: len(first), : first.shape[1]], first)
    with rasterio.open(path) as cog:
        assert len(stored_blocks(cog)) <= 16 and cog.descriptions == ("scene",)
        assert cog.tags()["GEODINO_SCENES"] == "[]"
    assert cog_validate(path, strict=True, quiet=True) == (True, [], [])


def test_pieces_joined_are_as_scattered_as_one_raster_of_them(stage: StagedRaster, tmp_path: Path) -> None:
    layout = Layout(GRID, CELL, ("height", "scene"), 0.125)
    pieces = []
    for row, col in CELLS:
        cell = Window(EXTENT.row + row * CELL, EXTENT.col + col * CELL, CELL, CELL)
        piece = layout.create(tmp_path / f"{row}-{col}.tif", cell)
        with rasterio.open(stage.path) as raster:
            window = RasterioWindow(col * CELL, row * CELL, CELL, CELL)
            piece.write(cell, raster.read(window=window, masked=True).filled(np.nan))
        piece.close()
        pieces.append((piece.path, cell))
    joined = join(tmp_path / f"all{STAGE_SUFFIX}", layout, EXTENT, pieces)
    assert scattered(joined, CLIP) == scattered(stage, CLIP)
    profile = CogProfile("canopy_height", "m")
    one = stage_to_cog(joined, "height", tmp_path / "joined.tif", clip=CLIP, profile=profile)
    assert one.sha256 == to_cog(stage).sha256


def test_a_raster_of_few_blocks_or_a_quarter_full_is_not_scattered(tmp_path: Path) -> None:
    stage = StagedRaster.create(tmp_path / "stage.tif", GRID, EXTENT, block=CELL, names=["height"])
    for number in range(560):
        cell = Window(EXTENT.row + number // 28 * 5 * CELL, EXTENT.col + number % 28 * 5 * CELL, CELL, CELL)
        stage.write(cell, np.ones((1, CELL, CELL), np.float32))
    stage.close()
    assert scattered(stage, EXTENT) is None
    assert scattered(stage, Window(EXTENT.row, EXTENT.col, 22_000, 22_000)) is None
    assert scattered(stage, Window(EXTENT.row, EXTENT.col, 2_000_000, 500)) is None
