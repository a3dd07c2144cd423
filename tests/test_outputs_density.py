"""Tree density: its integral is the count, whatever the cells, the AOI and the gaps."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from fractions import Fraction
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import rasterio
from array_surface import ArraySurface
from hypothesis import given, settings
from hypothesis import strategies as st
from made_trees import cut
from rio_cogeo.cogeo import cog_validate

from geodino.aoi import AOIMask, read_aoi
from geodino.errors import ConfigError, OutputError
from geodino.grid import Window
from geodino.outputs.density import DensityReceipt, density_writer
from geodino.shipped import sample_aoi, sample_folder
from geodino.surface import RasterSurface
from geodino.trees import Trees, Wanted

Doubles = npt.NDArray[np.float64]


def write(
    target: Path, surface: ArraySurface | RasterSurface, batches: list[Trees], *, band: str = "heat", **given: object
) -> DensityReceipt:
    with density_writer(target, surface, band, **given) as writer:  # type: ignore[arg-type]
        for batch in batches:
            writer.write(batch)
    assert writer.receipt is not None
    return writer.receipt


def read(path: Path) -> tuple[Doubles, Window]:
    """The density, NaN where nodata, and its window of the lattice of coarse cells."""
    with rasterio.open(path) as file:
        side = file.transform.a
        row, col = -file.transform.f / side, file.transform.c / side
        assert row == round(row) and col == round(col)
        values = file.read(1, masked=True).astype(np.float64).filled(np.nan)
    return values, Window(round(row), round(col), *values.shape)


def trees_at(surface: ArraySurface, rows: npt.NDArray[np.int64], cols: npt.NDArray[np.int64]) -> Trees:
    return Trees.at(surface, rows + surface.row, cols + surface.col)


def areas(surface: ArraySurface, known: npt.NDArray[np.bool_], cell_m: float, extent: Window) -> Doubles:
    """Square metres of known cells in each coarse cell, from the definition and with exact coordinates."""
    side, coarse = Fraction(str(surface.gsd)), Fraction(str(cell_m))
    x, y = (Fraction(str(edge)) for edge in surface.origin)

    def metres(corner: Fraction, count: int, first: int, cells: int) -> Doubles:
        """Shape (cells, count): what each coarse cell shares with each fine one along one direction."""
        found = np.zeros((cells, count))
        for fine in range(count):
            begin = corner + fine * side
            cell = begin // coarse
            while cell * coarse < begin + side:
                found[cell - first, fine] = min((cell + 1) * coarse, begin + side) - max(cell * coarse, begin)
                cell += 1
        return found

    down = metres(surface.row * side - y, known.shape[0], extent.row, extent.height)
    right = metres(surface.col * side + x, known.shape[1], extent.col, extent.width)
    return np.asarray(down @ known @ right.T)


@st.composite
def cases(draw: st.DrawFn) -> tuple[ArraySurface, npt.NDArray[np.bool_], Trees, float]:
    numbers = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = draw(st.tuples(st.integers(1, 25), st.integers(1, 25)))
    heat = np.where(numbers.random(shape) < draw(st.sampled_from([0.0, 0.4])), np.nan, 0.5).astype(np.float32)
    gsd = draw(st.sampled_from([0.6, 1.0, 2.4, 7.3]))
    row, col = draw(st.tuples(*[st.sampled_from([-7_000_000, -13, 0, 5, 400_001])] * 2))
    origin = draw(st.sampled_from([(0.0, 0.0), (500_000.25, 4_000_001.7)]))
    surface = ArraySurface({"heat": heat}, row, col, gsd, origin)
    known = np.isfinite(heat)
    known[:, : draw(st.integers(0, 5))] = False
    rows, cols = np.nonzero(known & (numbers.random(shape) < 0.5))
    return surface, known, trees_at(surface, rows, cols), draw(st.sampled_from([10.0, 3.0, 0.5]))


def wanted_of(surface: ArraySurface, known: npt.NDArray[np.bool_]) -> Callable[[Window], npt.NDArray[np.bool_]]:
    def wanted(window: Window) -> npt.NDArray[np.bool_]:
        return known[window.slices_in(surface.extent)]

    return wanted


@settings(max_examples=30)  # each writes a COG
@given(case=cases(), batch=st.integers(1, 40))
def test_the_integral_over_the_wanted_area_is_the_number_of_trees(
    tmp_path_factory: pytest.TempPathFactory,
    case: tuple[ArraySurface, npt.NDArray[np.bool_], Trees, float],
    batch: int,
) -> None:
    surface, known, trees, cell_m = case
    target = tmp_path_factory.mktemp("density") / "tree_density.tif"
    wanted = wanted_of(surface, known)
    receipt = write(target, surface, cut(trees, batch), wanted=wanted, cell_m=cell_m)
    density, extent = read(target)
    area = areas(surface, known, cell_m, extent)
    # No data where nothing was looked at, and only there.
    np.testing.assert_array_equal(np.isnan(density), area == 0)
    # Each cell is off by half a step of float32 at most, 2**-24 of itself; the rest is noise of the coordinates.
    integral = np.nansum(density * area) / 10_000
    assert integral == pytest.approx(len(trees), rel=2.0**-23, abs=1e-9)
    assert receipt.trees == len(trees)
    assert receipt.hectares == pytest.approx(known.sum() * surface.gsd**2 / 10_000)


def test_cells_hang_on_the_origin_and_count_trees_by_the_middle_of_their_cell(tmp_path: Path) -> None:
    surface = ArraySurface({"heat": np.ones((20, 40), np.float32)}, row=-20, col=30)
    trees = trees_at(surface, np.array([0, 9, 10, 19]), np.array([0, 9, 10, 39]))
    # A point that its offset carries over the border stays with the cell it was found in.
    trees.x[1] += 3.0
    write(tmp_path / "d.tif", surface, [trees])
    density, extent = read(tmp_path / "d.tif")
    assert extent == Window(-2, 3, 2, 4)
    assert density.tolist() == [[200, 0, 0, 0], [0, 100, 0, 100]]


def test_a_cell_is_divided_by_what_was_looked_at_in_it(tmp_path: Path) -> None:
    heat = np.ones((10, 30), np.float32)
    heat[:, 5:10] = np.nan  # half of the first cell
    heat[:, 10:20] = np.nan  # all of the second
    surface = ArraySurface({"heat": heat})
    trees = trees_at(surface, np.array([1, 2]), np.array([1, 25]))
    receipt = write(tmp_path / "d.tif", surface, [trees])
    density, _ = read(tmp_path / "d.tif")
    np.testing.assert_array_equal(density, [[200, np.nan, 100]])
    assert receipt.hectares == pytest.approx(0.015)
    assert receipt.cog.census.valid == 2


def test_an_aoi_cut_in_two_gives_the_same_density_in_whole_cells(tmp_path: Path) -> None:
    numbers = np.random.default_rng(1)
    surface = ArraySurface({"heat": np.ones((60, 90), np.float32)}, row=3, col=4)
    rows, cols = np.nonzero(numbers.random((60, 90)) < 0.1)
    halves: list[Wanted] = [
        lambda window: np.broadcast_to(np.arange(window.col, window.col_stop) < 50, window.shape),
        lambda window: np.broadcast_to(np.arange(window.col, window.col_stop) >= 50, window.shape),
    ]
    write(tmp_path / "whole.tif", surface, [trees_at(surface, rows, cols)])
    whole, extent = read(tmp_path / "whole.tif")
    for number, half in enumerate(halves):
        mine = (cols + 4 < 50) == (number == 0)
        write(tmp_path / "half.tif", surface, [trees_at(surface, rows[mine], cols[mine])], wanted=half)
        part, same = read(tmp_path / "half.tif")
        assert same == extent
        np.testing.assert_array_equal(
            part[:, :5] if number == 0 else part[:, 5:], whole[:, :5] if number == 0 else whole[:, 5:]
        )


def test_no_trees_are_a_density_of_0_and_not_nodata(tmp_path: Path) -> None:
    surface = ArraySurface({"heat": np.ones((20, 20), np.float32)})
    receipt = write(tmp_path / "d.tif", surface, [])
    assert read(tmp_path / "d.tif")[0].tolist() == [[0, 0], [0, 0]]
    assert receipt.trees == 0 and receipt.hectares == pytest.approx(0.04)


def test_nothing_wanted_is_a_file_of_nodata(tmp_path: Path) -> None:
    surface = ArraySurface({"heat": np.full((20, 20), np.nan, np.float32)})
    receipt = write(tmp_path / "d.tif", surface, [])
    assert receipt.cog.census.valid == 0 and receipt.hectares == 0


def test_the_file_is_a_cog_that_says_what_it_holds(tmp_path: Path) -> None:
    surface = ArraySurface({"heat": np.ones((700, 600), np.float32)}, gsd=10.0)
    trees = trees_at(surface, np.array([3, 650]), np.array([4, 599]))
    write(tmp_path / "d.tif", surface, [trees], tags={"GEODINO_MODEL": "nano"})
    assert cog_validate(tmp_path / "d.tif", quiet=True)[0]
    with rasterio.open(tmp_path / "d.tif") as file:
        assert file.crs.to_epsg() == 32610 and file.nodata == -9999 and file.dtypes == ("float32",)
        assert file.descriptions == ("tree_density",) and file.units == ("trees/ha",)
        tags = file.tags()
        assert tags["GEODINO_MODEL"] == "nano" and tags["GEODINO_TREES"] == "2"
        assert float(tags["GEODINO_MAPPED_HA"]) == 4200
        assert file.read(1).sum() == 200
    assert [path.name for path in tmp_path.iterdir()] == ["d.tif"]


def test_real_pixels_in_a_real_aoi(tmp_path: Path) -> None:
    with RasterSurface(sample_folder() / "autzen" / "autzen.tif", names=("heat", "green", "blue")) as surface:
        mask = AOIMask(read_aoi(sample_aoi("autzen")).geometry(surface.grid.crs), surface.grid)
        inside = mask(surface.extent) & np.isfinite(surface.read(surface.extent, ("heat",))[0])
        numbers = np.random.default_rng(3)
        rows, cols = np.nonzero(inside & (numbers.random(inside.shape) < 0.002))
        trees = Trees.at(surface, rows + surface.extent.row, cols + surface.extent.col)
        receipt = write(tmp_path / "d.tif", surface, cut(trees, 100), wanted=mask)
        gsd = surface.grid.gsd
        assert len(trees) > 500 and receipt.trees == len(trees)
        assert receipt.hectares == pytest.approx(inside.sum() * gsd**2 / 10_000, rel=1e-9)
        density, extent = read(tmp_path / "d.tif")
        # The same integral pixel by pixel: each pixel is small enough to be taken as lying where its middle lies.
        rows, cols = np.nonzero(inside)
        down = np.floor((rows + surface.extent.row + 0.5) * gsd / 10).astype(int) - extent.row
        right = np.floor((cols + surface.extent.col + 0.5) * gsd / 10).astype(int) - extent.col
        assert density[down, right].sum() * gsd**2 / 10_000 == pytest.approx(len(trees), rel=0.01)


def test_trees_where_nothing_was_looked_at_are_refused(tmp_path: Path) -> None:
    heat = np.ones((20, 20), np.float32)
    heat[:10, :10] = np.nan
    surface = ArraySurface({"heat": heat})
    with pytest.raises(ValueError, match="no ground was looked at"):
        write(tmp_path / "d.tif", surface, [trees_at(surface, np.array([2]), np.array([3]))])
    with pytest.raises(ValueError, match="is not within"):
        write(tmp_path / "d.tif", surface, [trees_at(surface, np.array([25]), np.array([3]))])
    assert not list(tmp_path.iterdir())


def test_a_side_of_nothing_and_a_folder_that_is_not_there_are_said(tmp_path: Path) -> None:
    surface = ArraySurface({"heat": np.ones((2, 2), np.float32)})
    with pytest.raises(ConfigError, match="must be over 0"):
        write(tmp_path / "d.tif", surface, [], cell_m=0)
    with pytest.raises(OutputError, match="cannot make"):
        write(tmp_path / "nowhere" / "d.tif", surface, [])


def test_an_error_in_the_block_leaves_no_file(tmp_path: Path) -> None:
    surface = ArraySurface({"heat": np.ones((2, 2), np.float32)})
    with pytest.raises(RuntimeError), density_writer(tmp_path / "d.tif", surface, "heat"):
        raise RuntimeError
    assert not list(tmp_path.iterdir())


LARGE = """
import resource, sys
from dataclasses import dataclass
from pathlib import Path
import numpy as np
from odc.geo.crs import CRS
from geodino.grid import Grid, Window
from geodino.outputs.density import density_writer
from geodino.trees import Trees

@dataclass
class Endless:
    extent: Window
    grid = Grid(CRS("EPSG:32610"), 2.4)
    origin, names = (0.0, 0.0), ("heat",)
    def read(self, window, names):
        return np.ones((1, *window.shape), np.float32)

def peak_mib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

for side in (1024, 3072, 12288):
    surface = Endless(Window(0, 0, side, side))
    with density_writer(Path(sys.argv[1]) / "d.tif", surface, "heat") as writer:
        for block in surface.extent.blocks(1024):
            rows, cols = np.divmod(np.arange(0, 1024 * 1024, 97), 1024)
            writer.write(Trees.at(surface, rows + block.row, cols + block.col))
    print(peak_mib(), writer.receipt.trees)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is counted in other units elsewhere")
def test_sixteen_times_the_ground_takes_no_more_memory(tmp_path: Path) -> None:
    command = [sys.executable, "-c", LARGE, str(tmp_path)]
    # GDAL keeps what it has written up to a twentieth of the machine's memory, which is not ours to measure.
    given = {"cwd": Path(__file__).parent, "env": {**os.environ, "GDAL_CACHEMAX": "8"}}
    done = subprocess.run(command, check=True, capture_output=True, text=True, **given)
    (_, _), (small, few), (large, many) = (map(float, line.split()) for line in done.stdout.splitlines())
    assert many == 16 * few == 144 * 10_811
    # 2950 x 2950 coarse cells: two planes of float64 would be 133 MiB.
    assert large - small < 70


def test_the_trees_columns_are_not_changed(tmp_path: Path) -> None:
    surface = ArraySurface({"heat": np.ones((20, 20), np.float32)})
    trees = trees_at(surface, np.array([2]), np.array([3]))
    before = {field.name: getattr(trees, field.name) for field in fields(trees)}
    write(tmp_path / "d.tif", surface, [trees])
    for name, values in before.items():
        np.testing.assert_array_equal(getattr(trees, name), values)
