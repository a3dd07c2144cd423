"""Whose ground is whose, on jobs whose pixels are known, against a plain reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rasterio
import shapely
from batch_maps import JOB, write_map
from odc.geo.crs import CRS
from pyproj import CRS as ProjCRS
from pyproj import Transformer
from scipy.spatial import KDTree

from geodino.batch.ground import goes_before, open_ground
from geodino.batch.mapped import RIM_PX, SCENE, Mapped
from geodino.batch.mosaic import write_mosaics
from geodino.batch.shelf import Shelf
from geodino.batch.tree_parts import write_parts
from geodino.grid import Grid, Window
from geodino.outputs.geoparquet import geometry_columns
from geodino.outputs.stage import NODATA
from geodino.outputs.tree_table import SCHEMA
from geodino.polygons import densified, projected
from geodino.products import TREES
from geodino.stores import Store

ROW, COL = -8_000_000, 900_000
Pixels = npt.NDArray[np.bool_]


def job_at(rank: int, row: int, col: int, height: int, width: int, **facts: object) -> Mapped:
    window = (ROW + row, COL + col, height, width)
    return replace(JOB, rank=rank, id=str(rank), key=f"jobs/{rank}", window=window, **facts)  # type: ignore[arg-type]


def write_scenes(folder: Path, job: Mapped, known: Pixels) -> None:
    path = folder / job.key / SCENE
    path.parent.mkdir(parents=True, exist_ok=True)
    profile = {"driver": "GTiff", "count": 1, "dtype": "uint16", "nodata": 0, "crs": job.crs}
    height, width = known.shape
    with rasterio.open(path, "w", **profile, height=height, width=width, transform=job.geobox.affine) as raster:
        raster.write(known.astype(np.uint16), 1)


def owners(jobs: Sequence[Mapped], known: Sequence[Pixels], side: int) -> npt.NDArray[np.int64]:
    """Of each pixel of a square the rank that has it, -1 where none does: pixel by pixel as the rule says."""
    found = np.full((side, side), -1)
    for row, col in np.ndindex(side, side):
        claims = []
        for job, values in zip(jobs, known, strict=True):
            y, x = ROW + row - job.window[0], COL + col - job.window[1]
            height, width = job.window[2:]
            if 0 <= y < height and 0 <= x < width and values[y, x]:
                in_rim = (min(y, height - 1 - y) < RIM_PX) + (min(x, width - 1 - x) < RIM_PX)
                claims.append((in_rim, job.rank))
        if claims:
            found[row, col] = min(claims)[1]
    return found


@pytest.mark.parametrize("most_sources", [100, 2])
def test_mosaic_and_ground_give_each_pixel_to_the_first_job_that_has_it_farthest_in(
    tmp_path: Path, most_sources: int
) -> None:
    random, side = np.random.default_rng(7), 420
    jobs, known = [], []
    for rank in range(7):
        height, width = (int(number) for number in random.integers(100, 260, 2))
        row, col = (int(random.integers(0, side - length)) for length in (height, width))
        jobs.append(job_at(rank, row, col, height, width))
        known.append(random.random((height, width)) < 0.8)
        write_scenes(tmp_path / "out", jobs[-1], known[-1])
        values = np.where(known[-1], rank, NODATA).astype(np.float32)
        write_map(tmp_path / "out", jobs[-1], values)
    wanted, store = owners(jobs, known, side), Store(str(tmp_path / "out"))
    assert {job.tall.empty for job in jobs} | {job.wide.empty for job in jobs} == {True, False}
    with Shelf(tmp_path) as shelf:
        for job in jobs:
            shelf.add(job)
        (made,) = write_mosaics(shelf, store, tmp_path, disjoint=False, most_sources=most_sources)
        for job, values in zip(jobs, known, strict=True):
            window = Window(*job.window)
            with open_ground(store, job, shelf.overlapping(job)) as ground:
                own = values & ~ground.taken(window)
                here = window.slices_in(Window(ROW, COL, side, side))
                np.testing.assert_array_equal(own, wanted[here] == job.rank)
                assert ground.hectares() == pytest.approx(own.sum() * 0.25 / 1e4)
    with rasterio.open(tmp_path / "out" / made) as raster:
        row, col = round(-raster.bounds.top / 0.5) - ROW, round(raster.bounds.left / 0.5) - COL
        found = np.full((side, side), -1)
        found[row : row + raster.height, col : col + raster.width] = raster.read(1, masked=True).filled(-1)
    np.testing.assert_array_equal(found, wanted)


def test_a_seam_lies_in_both_pictures_whichever_is_the_first(tmp_path: Path) -> None:
    for first in (0, 1):
        jobs = [job_at(first, 0, 0, 300, 400), job_at(1 - first, 0, 200, 300, 400)]
        for job in jobs:
            write_scenes(tmp_path, job, np.ones((300, 400), bool))
        with open_ground(Store(str(tmp_path)), jobs[0], jobs[1:]) as ground:
            own = ~ground.taken(Window(*jobs[0].window))
        (edge,) = np.unique(own.sum(axis=1))
        assert edge == (400 - RIM_PX if first == 0 else 200 + RIM_PX)


def test_a_cell_of_tree_density_comes_from_a_job_that_has_it_whole_outside_its_rim(tmp_path: Path) -> None:
    # Cells of 10 m on pixels of 0.5 m; the first job ends on the edge of a cell, its rim is 3.2 cells wide.
    cells = [(10.0, 0, (COL + left) * 0.5, 0, -10.0, -ROW * 0.5, 15, 20) for left in (0, 200)]
    jobs = [job_at(rank, 0, 200 * rank, 300, 400, hashes={"tree_density.tif": "ab"}, density=cells[rank])
            for rank in (0, 1)]  # fmt: skip
    with Shelf(tmp_path) as shelf:
        for job in jobs:
            shelf.add(job)
            coarse = replace(job, gsd_m=10.0, window=(ROW // 20, (COL + 200 * job.rank) // 20, 15, 20))
            write_map(tmp_path, coarse, np.full((15, 20), job.rank, np.float32), name="tree_density")
        (made,) = write_mosaics(shelf, Store(str(tmp_path)), tmp_path, disjoint=False)
    with rasterio.open(tmp_path / made) as raster:
        found = raster.read(1)
    # The rim of the first begins at pixel 336, in cell 16.
    np.testing.assert_array_equal(found, [[0] * 16 + [1] * 14] * 15)


@pytest.fixture
def zones() -> tuple[Mapped, Mapped]:
    """A job in the east of UTM zone 10, and one in zone 11 that overlaps it, turned by some degrees."""
    west = job_at(0, 0, 640_000, 900, 900, crs="EPSG:32610")
    move = Transformer.from_crs(west.crs, "EPSG:32611", always_xy=True)
    bounds = move.transform_bounds(*west.grid.bounds(Window(*west.window)))
    window = Grid(CRS("EPSG:32611"), 0.5).window_over(bounds)
    return west, job_at(1, window.row + 300 - ROW, window.col + 300 - COL, 900, 900, crs="EPSG:32611")


def test_one_of_two_jobs_in_two_zones_goes_before_the_other_at_each_point(zones: tuple[Mapped, Mapped]) -> None:
    west, east = zones
    left, bottom, right, top = west.grid.bounds(Window(*west.window))
    x, y = np.random.default_rng(2).uniform((left, bottom), (right, top), (5000, 2)).T
    ahead, behind = goes_before(west, east, x, y), goes_before(east, west, x, y)
    np.testing.assert_array_equal(ahead, ~behind)
    assert behind.sum() > 200, "where the later job has them farther in"


def write_trees(folder: Path, job: Mapped, x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> None:
    """Trees at points in the job's CRS, those within a cell of its maps; cells are two pixels wide."""
    left, bottom, right, top = job.grid.bounds(Window(*job.window).padded(1))
    inside = (x > left) & (x < right) & (y > bottom) & (y < top)
    cell, places = 2 * job.gsd_m, np.column_stack([x, y])[inside]
    ids = [f"{east:.2f}_{north:.2f}" for east, north in (places // cell + 0.5) * cell]
    geometry, bbox = geometry_columns(shapely.points(places))
    known = {"tree_id": pa.array(ids), "geometry": geometry, "bbox": bbox}
    columns = [known.get(field.name, pa.nulls(len(ids), field.type)) for field in SCHEMA]
    pq.write_table(pa.table(columns, schema=SCHEMA), folder / job.key / TREES)


def merged_trees(folder: Path, jobs: Sequence[Mapped]) -> tuple[gpd.GeoDataFrame, float]:
    """The trees of all jobs, each once, and the hectares that are each job's own."""
    with Shelf(folder) as shelf:
        for job in jobs:
            shelf.add(replace(job, hashes={SCENE: job.id, TREES: job.id}))
        parts = write_parts(shelf, Store(str(folder)), folder, disjoint=False, advance=lambda _: None)
        hectares = sum(share.own_ha for _, share in parts)
    return gpd.read_parquet(folder / "trees"), hectares


def test_trees_that_all_jobs_have_are_in_the_result_once(tmp_path: Path) -> None:
    random, side = np.random.default_rng(5), 440
    # The fourth's rim ends where the first's maps do.
    jobs = [
        job_at(0, 0, 0, 300, 300), job_at(1, 50, 150, 300, 250), job_at(2, 120, 40, 280, 240),
        job_at(3, 60, 300 - RIM_PX, 200, 200),
    ]  # fmt: skip
    cells = np.stack(np.meshgrid(np.arange(side // 2), np.arange(side // 2)), -1).reshape(-1, 2)
    x, y = (np.array([COL, -ROW]) * 0.5 + (cells + random.uniform(0.1, 0.9, cells.shape)) * (1, -1)).T
    for job in jobs:
        write_scenes(tmp_path, job, random.random(job.window[2:]) < 0.9)
        write_trees(tmp_path, job, x, y)
    listed = {id_ for job in jobs for id_ in pq.read_table(tmp_path / job.key / TREES)["tree_id"].to_pylist()}
    found, _ = merged_trees(tmp_path, jobs)
    assert found["tree_id"].is_unique and set(found["tree_id"]) == listed
    assert found["job"].nunique() == 4


def test_trees_and_ground_on_the_border_of_two_zones_are_in_the_result_once(
    tmp_path: Path, zones: tuple[Mapped, Mapped]
) -> None:
    west = zones[0]
    left, bottom, right, top = west.grid.bounds(Window(*west.window).padded(300))
    # 5 m apart.
    x, y = (axis.ravel() for axis in np.meshgrid(np.arange(left + 2, right, 5), np.arange(bottom + 2, top, 5)))
    for job in zones:
        write_scenes(tmp_path, job, np.ones((900, 900), bool))
        write_trees(tmp_path, job, *Transformer.from_crs(west.crs, job.crs, always_xy=True).transform(x, y))
    found, hectares = merged_trees(tmp_path, zones)
    outlines = [
        projected(densified(np.asarray([shapely.box(*job.grid.bounds(Window(*job.window)))]), crs), crs, there)[0]
        for job, crs, there in [(job, ProjCRS(job.crs), ProjCRS(west.crs)) for job in zones]
    ]
    assert hectares == pytest.approx(shapely.union_all(outlines).area / 1e4, rel=2e-3)
    places = np.column_stack([(points := found.geometry.to_crs(west.crs)).x, points.y])
    apart, _ = KDTree(places).query(places, k=2)
    assert apart[:, 1].min() > 4
    # Trees on the line may be lost: what is a pixel's middle in one zone is none in the other.
    wanted = int(shapely.contains_xy(shapely.union_all(outlines), x, y).sum())
    assert 0.995 * wanted < len(found) < 1.01 * wanted
    assert set(found["job"]) == {"0", "1"}
