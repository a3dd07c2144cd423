"""Jobs on the shelf, and mosaics of maps whose pixels are known."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pystac
import pytest
import rasterio
from batch_maps import JOB, write_map
from hypothesis import given
from hypothesis import strategies as st

from geodino.batch.catalog import write_catalog
from geodino.batch.mapped import Mapped
from geodino.batch.mosaic import write_mosaics
from geodino.batch.shelf import Shelf
from geodino.batch.summary import Summary
from geodino.outputs.stage import NODATA
from geodino.stores import Store

Boxes = list[tuple[float, float, float, float]]

lon, lat = st.integers(-180, 180).map(float), st.integers(-80, 80).map(float)
boxes = st.lists(st.tuples(lon, lat, lon, st.integers(1, 5).map(float)), max_size=12)


@given(boxes)
def test_jobs_that_overlap_one_are_found_across_the_antimeridian_too(made: Boxes) -> None:
    import tempfile

    jobs = [
        replace(JOB, rank=rank, id=str(rank), bounds_lonlat=(west, south, east, south + tall))
        for rank, (west, south, east, tall) in enumerate(made)
    ]

    def covered(job: Mapped) -> npt.NDArray[np.bool_]:
        west, south, east, north = job.bounds_lonlat
        # Middles of degrees.
        x, y = np.meshgrid(np.arange(-179.5, 180), np.arange(-89.5, 90))
        return ((x > west) & (x < east) if west <= east else (x > west) | (x < east)) & (y > south) & (y < north)

    with tempfile.TemporaryDirectory() as folder, Shelf(Path(folder)) as shelf:
        for job in jobs:
            shelf.add(job)
        assert list(shelf.all()) == jobs
        for job in jobs:
            found = {other.rank for other in shelf.overlapping(job)}
            others = [other for other in jobs if other is not job]
            assert {other.rank for other in others if (covered(other) & covered(job)).any()} <= found
            assert job.rank not in found


def test_a_part_is_named_by_its_south_west_corner() -> None:
    assert JOB.part == "44.00N_123.00W"
    assert replace(JOB, bounds_lonlat=(179.9, -0.1, -179.7, -0.05)).part == "00.25S_180.00W"


@pytest.mark.parametrize("most_sources", [100, 2])
def test_the_first_job_with_a_value_gives_a_pixel_however_the_mosaic_is_cut(tmp_path: Path, most_sources: int) -> None:
    random = np.random.default_rng(4)
    whole = np.full((200, 260), NODATA, np.float32)
    with Shelf(tmp_path) as shelf:
        for rank in range(9):
            row, col = (int(number) for number in random.integers(0, (160, 200)))
            job = replace(
                JOB, rank=rank, id=str(rank), key=f"jobs/{rank}", window=(-8_000_100 + row, 899_900 + col, 40, 60)
            )
            values = random.uniform(0, 30, (40, 60)).astype(np.float32)
            values[random.random(values.shape) < 0.3] = NODATA
            write_map(tmp_path / "out", job, values)
            seen = whole[row : row + 40, col : col + 60]
            seen[seen == NODATA] = values[seen == NODATA]
            shelf.add(job)
        made = write_mosaics(shelf, Store(str(tmp_path / "out")), tmp_path, disjoint=False, most_sources=most_sources)
    assert made == ["mosaic/canopy_height.vrt"]
    assert (tmp_path / "out/mosaic/canopy_height").is_dir() == (most_sources == 2)
    with rasterio.open(tmp_path / "out" / made[0]) as raster:
        row, col = round(-raster.bounds.top / 0.5) + 8_000_100, round(raster.bounds.left / 0.5) - 899_900
        found = np.full_like(whole, NODATA)
        found[row : row + raster.height, col : col + raster.width] = raster.read(1)
    np.testing.assert_array_equal(found, whole)


def test_a_small_picture_of_the_mosaic_is_read_from_the_overviews_of_its_maps(tmp_path: Path) -> None:
    with Shelf(tmp_path) as shelf:
        for rank in range(2):
            window = (-8_000_000, 900_000 + 512 * rank, 512, 512)
            job = replace(JOB, rank=rank, id=str(rank), key=f"jobs/{rank}", window=window)
            write_map(tmp_path / "out", job, np.full((512, 512), 7, np.float32), overview=9)
            shelf.add(job)
        (made,) = write_mosaics(shelf, Store(str(tmp_path / "out")), tmp_path, disjoint=True)
    with rasterio.open(tmp_path / "out" / made) as raster:
        assert (raster.read(1) == 7).all()
        assert (raster.read(1, out_shape=(128, 256)) == 9).all()


def test_many_items_are_linked_from_several_files_and_few_from_the_collection(tmp_path: Path) -> None:
    store, lines = Store(str(tmp_path / "out")), tmp_path / "items.jsonl"
    summary = Summary("A county", bounds_lonlat=(-123, 44, -122, 45))
    item = pystac.Item("x", None, None, None, {"start_datetime": "2020-01-01", "end_datetime": "2020-01-01"})
    for number, files in ((2500, 3), (2000, 2), (3, 0)):
        plain = [item.to_dict() | {"id": str(one)} for one in range(number)]
        lines.write_text("".join(json.dumps([f"jobs/{one['id']}", one]) + "\n" for one in plain))
        write_catalog(lines, store, summary, [], trees=False)
        assert len(list((tmp_path / "out").glob("catalog/*.json"))) == files
        collection = pystac.Collection.from_file(tmp_path / "out/collection.json")
        links = collection.get_item_links() + [
            one for child in collection.get_children() for one in child.get_item_links()
        ]
        wanted = [str(tmp_path / f"out/jobs/{one}/item.json") for one in range(number)]
        assert [link.get_absolute_href() for link in links] == wanted
        assert all(child.get_parent() is not None for child in collection.get_children())
