"""COGs: what goes in comes out, clipped, rounded, described, and never half."""

from __future__ import annotations

import itertools
import multiprocessing
import resource
import signal
import weakref
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import numpy.typing as npt
import pytest
import rasterio
import xarray as xr
from odc.geo.crs import CRS
from odc.geo.xr import xr_coords
from rio_cogeo.cogeo import cog_validate

from geodino.errors import ConfigError, OutputError
from geodino.grid import Grid, Window
from geodino.outputs.cog import CogProfile, CogReceipt, stage_to_cog, write_cog
from geodino.outputs.stage import NODATA, QUANTUM, StagedRaster

# odc-geo and rasterio multiply affine transforms in the way that affine 3.1 asks its users to leave behind.
pytestmark = pytest.mark.filterwarnings("ignore:Use `@` matmul:PendingDeprecationWarning")

GRID = Grid(CRS("EPSG:32610"), 0.6)
PROFILE = CogProfile("canopy_height", "m", {"GEODINO_MODEL": "nano & <co>", "TIFFTAG_SOFTWARE": "geodino 0.1.0"})
BLOCK = 176
EXTENT = Window(-3 * BLOCK, 2 * BLOCK, 5 * BLOCK, 7 * BLOCK)


def forest(shape: tuple[int, int], seed: int = 0) -> npt.NDArray[np.float32]:
    """Heights 0 to 40 m with bare ground and holes."""
    random = np.random.default_rng(seed)
    heights = random.uniform(-0.05, 40, shape).astype(np.float32)
    heights[random.random(shape) < 0.3] = 0.0
    heights[random.random(shape) < 0.1] = np.nan
    return heights


def cells() -> list[Window]:
    rows = range(EXTENT.row, EXTENT.row_stop, BLOCK)
    return [Window(r, c, BLOCK, BLOCK) for r in rows for c in range(EXTENT.col, EXTENT.col_stop, BLOCK)]


def staged(path: Path, values: npt.NDArray[np.float32], *, order: list[Window] | None = None) -> StagedRaster:
    stage = StagedRaster.create(path, GRID, EXTENT, block=BLOCK, names=[f"band{k}" for k in range(len(values))])
    for cell in cells() if order is None else order:
        rows, cols = cell.slices_in(EXTENT)
        stage.write(cell, values[:, rows, cols])
    stage.close()
    return stage


def pixels(path: Path, band: int = 1) -> npt.NDArray[np.float32]:
    with rasterio.open(path) as file:
        return np.asarray(file.read(band, masked=True).filled(np.nan), np.float32)


def test_a_cog_holds_the_clipped_cells_to_an_eighth_of_a_metre(tmp_path: Path) -> None:
    values = np.stack([forest(EXTENT.shape, 1), forest(EXTENT.shape, 2)])
    stage = staged(tmp_path / "stage.tif", values)
    clip = Window(EXTENT.row + 30, EXTENT.col + 101, 611, 1003)
    receipt = stage_to_cog(stage, "band1", tmp_path / "spread.tif", clip=clip, profile=PROFILE)
    kept = pixels(receipt.path)
    rows, cols = clip.slices_in(EXTENT)
    meant = values[1, rows, cols]
    assert np.array_equal(np.isnan(kept), np.isnan(meant))
    assert np.nanmax(np.abs(kept - meant)) <= QUANTUM / 2
    assert np.all(np.nan_to_num(kept) % QUANTUM == 0)


def test_a_cog_is_valid_and_says_what_it_is(tmp_path: Path) -> None:
    stage = staged(tmp_path / "stage.tif", forest(EXTENT.shape)[None])
    clip = EXTENT.padded(-1)
    receipt = stage_to_cog(stage, "band0", tmp_path / "height.tif", clip=clip, profile=PROFILE)
    assert cog_validate(receipt.path, strict=True, quiet=True) == (True, [], [])
    with rasterio.open(receipt.path) as file:
        assert file.dtypes == ("float32",) and file.nodata == NODATA
        assert file.crs.to_epsg() == 32610
        assert file.bounds == pytest.approx(GRID.bounds(clip))
        assert file.block_shapes == [(512, 512)] and file.overviews(1) == [2, 4]
        assert file.compression.name == "deflate" and file.interleaving.name in ("band", "pixel")
        assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert file.descriptions == ("canopy_height",) and file.units == ("m",)
        tags = file.tags()
        assert tags["GEODINO_MODEL"] == "nano & <co>" and tags["TIFFTAG_SOFTWARE"] == "geodino 0.1.0"
        assert float(tags["GEODINO_QUANTUM"]) == QUANTUM
        statistics = {key: float(value) for key, value in file.tags(1).items()}
    kept = pixels(receipt.path).astype(np.float64)
    assert statistics["STATISTICS_MINIMUM"] == np.nanmin(kept)
    assert statistics["STATISTICS_MAXIMUM"] == np.nanmax(kept)
    assert statistics["STATISTICS_MEAN"] == pytest.approx(np.nanmean(kept), abs=1e-5)
    assert statistics["STATISTICS_STDDEV"] == pytest.approx(np.nanstd(kept), abs=1e-5)
    assert statistics["STATISTICS_VALID_PERCENT"] == pytest.approx(100 * np.mean(~np.isnan(kept)), rel=1e-3)
    assert receipt.census.valid == np.sum(~np.isnan(kept)) and receipt.census.pixels == kept.size
    assert receipt.size_bytes == receipt.path.stat().st_size


def test_only_the_cog_and_the_stage_are_left_in_the_folder(tmp_path: Path) -> None:
    stage = staged(tmp_path / "stage.tif", forest(EXTENT.shape)[None])
    stage_to_cog(stage, "band0", tmp_path / "height.tif", clip=EXTENT, profile=PROFILE)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["height.tif", "stage.tif"]


def test_cells_never_written_are_nodata_and_not_bare_ground(tmp_path: Path) -> None:
    ground = np.zeros((1, *EXTENT.shape), np.float32)
    stage = staged(tmp_path / "stage.tif", ground, order=cells()[3:9])
    receipt = stage_to_cog(stage, "band0", tmp_path / "height.tif", clip=EXTENT, profile=PROFILE)
    kept = pixels(receipt.path)
    assert np.sum(kept == 0) == 6 * BLOCK**2
    assert np.sum(np.isnan(kept)) == kept.size - 6 * BLOCK**2


def test_overviews_of_half_empty_ground_do_not_mix_in_nodata(tmp_path: Path) -> None:
    values = np.full((1, *EXTENT.shape), 8, np.float32)
    values[:, ::2] = np.nan
    stage = staged(tmp_path / "stage.tif", values)
    receipt = stage_to_cog(stage, "band0", tmp_path / "height.tif", clip=EXTENT, profile=PROFILE)
    with rasterio.open(receipt.path, overview_level=0) as overview:
        assert set(np.unique(overview.read(1))) == {8.0}


def test_a_cog_without_a_valid_pixel_has_no_statistics(tmp_path: Path) -> None:
    stage = staged(tmp_path / "stage.tif", np.full((1, *EXTENT.shape), np.nan, np.float32))
    receipt = stage_to_cog(stage, "band0", tmp_path / "height.tif", clip=EXTENT, profile=PROFILE)
    assert receipt.census.valid == 0 and np.isnan(receipt.census.mean)
    with rasterio.open(receipt.path) as file:
        assert not [key for key in file.tags(1) if key.startswith("STATISTICS")]


def test_the_order_of_the_cells_does_not_matter(tmp_path: Path) -> None:
    values = forest(EXTENT.shape)[None]
    order = cells()
    np.random.default_rng(5).shuffle(order)  # type: ignore[arg-type]
    receipts = [
        stage_to_cog(
            staged(tmp_path / f"stage{k}.tif", values, order=these),
            "band0",
            tmp_path / "a.tif",
            clip=EXTENT,
            profile=PROFILE,
        )
        for k, these in enumerate([cells(), order])
    ]
    assert receipts[0].sha256 == receipts[1].sha256


def test_a_cell_is_written_once_whole_and_finite(tmp_path: Path) -> None:
    stage = StagedRaster.create(tmp_path / "stage.tif", GRID, EXTENT, block=BLOCK, names=["height"])
    cell = cells()[0]
    values = np.zeros((1, BLOCK, BLOCK), np.float32)
    stage.write(cell, values)
    with pytest.raises(ValueError, match="written before"):
        stage.write(cell, values)
    with pytest.raises(ValueError, match="not one block"):
        stage.write(Window(cell.row + 16, cell.col, BLOCK, BLOCK), values)
    with pytest.raises(OutputError, match="infinite values"):
        stage.write(cells()[1], np.full_like(values, np.inf))
    stage.close()


def test_an_extent_that_is_no_multiple_of_the_block_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="multiple of the block of 176 px"):
        StagedRaster.create(tmp_path / "s.tif", GRID, EXTENT.padded(8), block=BLOCK, names=["height"])


def test_a_stage_in_a_folder_that_is_none_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cannot make .*file/s\.tif"):
        StagedRaster.create(tmp_path / "file" / "s.tif", GRID, EXTENT, block=BLOCK, names=["height"])


def test_a_damaged_stage_never_becomes_a_cog(tmp_path: Path) -> None:
    values = forest(EXTENT.shape)[None]
    stage = StagedRaster.create(tmp_path / "stage.tif", GRID, EXTENT, block=BLOCK, names=["height"])
    for cell in cells():
        rows, cols = cell.slices_in(EXTENT)
        stage.write(cell, values[:, rows, cols])
    stage._dataset.close()
    size = stage.path.stat().st_size
    with stage.path.open("r+b") as file:
        file.truncate(size - size // 3)
    with pytest.raises(OutputError, match="disk full"):
        stage.close()


def write_under_limits(folder: Path, limits_bytes: list[int], queue: multiprocessing.Queue[list[str]]) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    stage = staged(folder / "stage.tif", forest(EXTENT.shape)[None])
    said = []
    for limit_bytes in limits_bytes:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, resource.RLIM_INFINITY))
        try:
            stage_to_cog(stage, "band0", folder / "height.tif", clip=EXTENT, profile=PROFILE)
        except OutputError:
            said.append("refused")
        else:
            said.append("wrote")
    queue.put(said)


def test_a_disk_that_fills_up_at_any_byte_leaves_no_cog(tmp_path: Path) -> None:
    stage = staged(tmp_path / "full.tif", forest(EXTENT.shape)[None])
    full = stage_to_cog(stage, "band0", tmp_path / "full_height.tif", clip=EXTENT, profile=PROFILE)
    limits = [full.size_bytes - short_by for short_by in (1, 20, 400, 9000, 50_000, 200_000)]
    context = multiprocessing.get_context("spawn")
    queue: multiprocessing.Queue[list[str]] = context.Queue()
    worker = context.Process(target=write_under_limits, args=(tmp_path, limits, queue))
    worker.start()
    said = queue.get(timeout=60)
    worker.join()
    assert said == ["refused"] * len(limits)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["full.tif", "full_height.tif", "stage.tif"]


class Held(np.ndarray[Any, np.dtype[np.float32]]):
    """An array that can be watched: plain ones take no weak references from a WeakSet, having no hash."""

    __hash__ = object.__hash__


def lazy(values: npt.NDArray[np.float32], chunks: tuple[int, int], calls: list[int]) -> xr.DataArray:
    """A lazy canopy whose blocks report their computation."""
    geobox = GRID.geobox(Window(7, -9, *values.shape))

    def note(block: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        calls.append(block.size)
        return block

    blocks = da.from_array(values, chunks=chunks).map_blocks(note, dtype=np.float32, meta=np.empty((0, 0), np.float32))
    attrs = {"units": "m", "model": "nano", "long_name": "canopy height", "history": ["not", "plain"]}
    return xr.DataArray(blocks, coords=xr_coords(geobox), dims=("y", "x"), name="height", attrs=attrs)


@pytest.mark.parametrize(
    ("shape", "chunks"), [((1300, 700), (416, 416)), ((40, 30), (40, 30)), ((1024, 512), (100, 512))]
)
def test_a_lazy_array_becomes_the_same_pixels_and_is_computed_once(
    tmp_path: Path, shape: tuple[int, int], chunks: tuple[int, int]
) -> None:
    values, calls = forest(shape), list[int]()
    receipt: CogReceipt = write_cog(lazy(values, chunks, calls), tmp_path / "height.tif")
    kept = pixels(receipt.path)
    assert sum(calls) == values.size
    assert np.array_equal(np.isnan(kept), np.isnan(values))
    assert np.nanmax(np.abs(kept - values)) <= QUANTUM / 2
    with rasterio.open(receipt.path) as file:
        assert file.descriptions == ("height",) and file.units == ("m",)
        assert file.tags()["GEODINO_MODEL"] == "nano"
        assert file.bounds == pytest.approx(GRID.bounds(Window(7, -9, *shape)))
    assert [entry.name for entry in tmp_path.iterdir()] == ["height.tif"]


@pytest.mark.parametrize(
    ("shape", "block", "overviews"),
    [
        ((512, 512), 512, []),
        ((513, 513), 512, [2]),
        ((513, 512), 448, [2]),
        ((1030, 1024), 512, []),
        ((2500, 512), 448, []),
        ((3000, 900), 512, []),
        ((600, 200), 192, [2, 4]),
        ((512, 1024), 512, [2]),
        ((200, 1500), 512, [2, 4]),
    ],
)
def test_a_cog_is_valid_for_rio_cogeo_however_narrow(
    tmp_path: Path, shape: tuple[int, int], block: int, overviews: list[int]
) -> None:
    receipt = write_cog(lazy(forest(shape), shape, []), tmp_path / "height.tif")
    assert cog_validate(receipt.path, quiet=True)[:2] == (True, [])
    with rasterio.open(receipt.path) as file:
        assert file.block_shapes == [(block, block)]
        assert file.overviews(1) == overviews


def test_a_strip_narrower_than_any_block_is_written_all_the_same(tmp_path: Path) -> None:
    values = forest((700, 60))
    receipt = write_cog(lazy(values, values.shape, []), tmp_path / "height.tif")
    assert receipt.census.valid == np.sum(~np.isnan(values))


def test_rows_that_share_a_task_compute_it_once_and_are_not_all_held(tmp_path: Path) -> None:
    rows = 40
    calls: list[int] = []
    alive: list[int] = []
    held: weakref.WeakSet[np.ndarray[tuple[int, int], np.dtype[np.float32]]] = weakref.WeakSet()

    @dask.delayed
    def predict(row: int) -> float:
        calls.append(row)
        return float(row)

    @dask.delayed
    def finish(above: float, here: float) -> npt.NDArray[np.float32]:
        values = np.full((416, 100), above + here, np.float32).view(Held)
        held.add(values)
        alive.append(len(held))
        return values

    predicted = [predict(row) for row in range(rows + 1)]
    chunks = [da.from_delayed(finish(*pair), (416, 100), np.float32) for pair in itertools.pairwise(predicted)]
    values = da.concatenate(chunks)
    coords = xr_coords(GRID.geobox(Window(0, 0, *values.shape)))
    with dask.config.set(num_workers=2):
        receipt = write_cog(xr.DataArray(values, coords=coords, dims=("y", "x")), tmp_path / "height.tif")
    assert sorted(calls) == list(range(rows + 1))
    assert np.array_equal(pixels(receipt.path)[::416, 0], np.arange(rows) * 2 + 1)
    assert max(alive) <= 6


def test_an_array_in_memory_is_written_like_a_lazy_one(tmp_path: Path) -> None:
    array = lazy(forest((600, 520)), (600, 520), [])
    first, second = write_cog(array, tmp_path / "a.tif"), write_cog(array.compute(), tmp_path / "b.tif")
    assert first.sha256 == second.sha256


def test_values_that_are_no_heights_are_kept_as_they_are_when_asked(tmp_path: Path) -> None:
    fractions = np.random.default_rng(3).random((60, 50), np.float32) + np.float32(4_000_000)
    fractions[:30] = np.random.default_rng(4).random((30, 50), np.float32)
    array = lazy(fractions, (60, 50), []).rename(None)
    array.attrs.clear()
    receipt = write_cog(array, tmp_path / "cover.tif", quantum=None)
    assert np.array_equal(pixels(receipt.path), fractions)
    with rasterio.open(receipt.path) as file:
        assert "GEODINO_QUANTUM" not in file.tags()
        assert file.descriptions == ("cover",) and not file.units[0]
        assert np.float32(file.tags(1)["STATISTICS_MAXIMUM"]) == fractions.max()
    coarse = write_cog(array, tmp_path / "coarse.tif", quantum=0.5)
    assert np.all(pixels(coarse.path) % 0.5 == 0)


@pytest.mark.parametrize("quantum", [0.0, -1.0, np.nan, np.inf])
def test_a_quantum_that_is_no_step_is_refused(tmp_path: Path, quantum: float) -> None:
    with pytest.raises(ConfigError, match=f"quantum {quantum:g} must be over 0 and finite, or None"):
        write_cog(lazy(forest((4, 4)), (4, 4), []), tmp_path / "a.tif", quantum=quantum)
    assert list(tmp_path.iterdir()) == []


def test_an_array_without_a_place_on_earth_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="must have two dimensions with coordinates and a CRS"):
        write_cog(xr.DataArray(np.zeros((4, 4), np.float32), dims=("y", "x")), tmp_path / "a.tif")


def test_writing_over_a_cog_that_fails_keeps_the_old_one(tmp_path: Path) -> None:
    array = lazy(forest((60, 50)), (60, 50), [])
    before = write_cog(array, tmp_path / "a.tif").sha256
    with pytest.raises(OutputError, match="infinite"):
        write_cog(array.fillna(np.inf), tmp_path / "a.tif")
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.tif"]
    assert write_cog(array, tmp_path / "b.tif").sha256 == before
    assert (tmp_path / "a.tif").read_bytes() == (tmp_path / "b.tif").read_bytes()
