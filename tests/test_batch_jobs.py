"""From catalogs, lists of areas and grids to jobs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rasterio
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.crs import CRS
from rasterio.warp import transform_bounds
from source_scenes import make_item, write_catalog, write_scene
from stac_geoparquet.arrow import parse_stac_items_to_parquet
from stac_site import serving

from geodino.aoi import read_aoi
from geodino.batch.areas import area_jobs
from geodino.batch.asked import Asked, open_batch
from geodino.batch.cells import cell_side, cells, grid_of, read_side
from geodino.batch.leases import Pulse
from geodino.batch.listing import scene_jobs
from geodino.errors import AOIError, ConfigError, ReadError, SourceError
from geodino.grid import Grid
from geodino.options import RunOptions
from geodino.plan import find_imagery
from geodino.settings import read_pipeline
from geodino.sources import Search
from geodino.sources.config import resolve
from geodino.stores import Store
from geodino.watch import Silent


def job_geometry(wkt: str, crs: str | None, target: CRS) -> shapely.Geometry:
    return read_aoi(wkt, crs=crs).geometry(target)


def test_a_catalog_gives_a_job_a_scene_the_newest_first(tmp_path: Path) -> None:
    write_scene(tmp_path / "a.tif")
    catalog = write_catalog(
        tmp_path,
        [
            make_item("old", "../a.tif", datetime="2018-01-01T00:00:00Z"),
            make_item("new", "../a.tif", datetime="2022-01-01T00:00:00Z"),
            make_item("cloudy", "../a.tif", **{"eo:cloud_cover": 90}),
            make_item("elsewhere", "../a.tif", shift=5000.0),
        ],
    )
    listing = scene_jobs(resolve(catalog), Search(max_cloud=10), None)
    assert [job.id for job in listing.jobs] == ["new", "elsewhere", "old"]
    assert listing.jobs[0].source == str(tmp_path / "items" / "1.json")
    assert any("over 10 % cloud" in sentence for sentence in listing.left_out)


def test_with_an_aoi_scenes_off_it_are_left_out_and_those_on_it_cut(tmp_path: Path) -> None:
    write_scene(tmp_path / "a.tif")
    items = [make_item("on", "../a.tif"), make_item("off", "../a.tif", shift=5000.0)]
    catalog = write_catalog(tmp_path, items)
    west, south, east, north = shapely.geometry.shape(items[0]["geometry"]).bounds
    half = read_aoi(f"{west},{south},{(west + east) / 2},{north}")
    whole, cut = (scene_jobs(resolve(catalog), Search(), aoi).jobs for aoi in (None, half))
    assert [job.id for job in whole] == ["off", "on"] and [job.id for job in cut] == ["on"]
    assert cut[0].hectares == pytest.approx(whole[1].hectares / 2, rel=0.01)


def test_nothing_that_fits_is_an_error_that_says_why(tmp_path: Path) -> None:
    write_scene(tmp_path / "a.tif")
    catalog = write_catalog(tmp_path, [make_item("only", "../a.tif")])
    with pytest.raises(SourceError, match=r"no scene of .* fits; left out: 1 outside of 1999"):
        scene_jobs(resolve(catalog), Search(datetime="1999"), None)


def test_an_api_gives_jobs_that_can_be_run_from_their_items_alone(tmp_path: Path) -> None:
    with serving(tmp_path) as site:
        site.items = [make_item("bare", "https://elsewhere.example/a.tif"), make_item("linked", "a.tif")]
        site.items[1]["links"] = [{"rel": "self", "href": f"{site.url}/items/linked.json"}]
        listing = scene_jobs(resolve(f"{site.url}/api"), Search(collections=("aerial",)), None)
    bare, linked = sorted(listing.jobs, key=lambda job: job.id)
    assert (linked.source, linked.item) == (f"{site.url}/items/linked.json", None)
    # Its page of the search is not where it lies.
    assert bare.source is None and bare.item is not None
    assert bare.item["assets"]["picture"]["href"] == "https://elsewhere.example/a.tif"  # type: ignore[call-overload,index]


class Noting(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.warnings: list[str] = []

    def note(self, sentence: str) -> None:
        self.notes.append(sentence)

    def warn(self, sentence: str) -> None:
        self.warnings.append(sentence)


def write_table(path: Path, items: list[dict[str, Any]]) -> None:
    parse_stac_items_to_parquet(items, output_path=path, schema="FullFile")


def test_a_stac_geoparquet_file_gives_the_same_jobs_as_its_catalog(tmp_path: Path) -> None:
    write_scene(tmp_path / "a.tif")
    items = [make_item(f"scene{year}", "a.tif", datetime=f"20{year}-01-01T00:00:00Z") for year in range(10, 20)]
    # A table gives every row the keys of all: a cloud cover that nobody measured is none of 0 %.
    items[3]["properties"]["eo:cloud_cover"] = 90.0
    items[4]["assets"]["mask"] = {"href": "mask.tif"}
    write_table(tmp_path / "items.parquet", items)
    listing = scene_jobs(resolve(str(tmp_path / "items.parquet")), Search(max_cloud=10), None)
    assert [job.id for job in listing.jobs] == [f"scene{year}" for year in range(19, 9, -1) if year != 13]
    item = listing.jobs[0].item
    assert item is not None
    assert item["assets"]["picture"]["href"] == str(tmp_path / "a.tif")  # type: ignore[call-overload,index]
    wanted = json.loads(json.dumps(items[9])) | {"links": [], "assets": item["assets"]}
    assert json.loads(json.dumps(item)) == wanted | {
        "properties": wanted["properties"] | {"datetime": "2019-01-01T00:00:00.000000Z"}
    }


def test_a_table_on_the_web_leads_to_no_file_of_this_machine(tmp_path: Path) -> None:
    good = make_item("good", "https://elsewhere.example/a.tif")
    bad = make_item("bad", "file:///etc/passwd")
    nowhere = make_item("nowhere", "a.tif")
    write_table(tmp_path / "items.parquet", [good, bad, nowhere])
    table = pq.read_table(tmp_path / "items.parquet")
    shapes = [*table["geometry"].to_pylist()[:2], None]
    field = table.schema.get_field_index("geometry")
    pq.write_table(table.set_column(field, table.schema.field(field), pa.array(shapes, pa.binary())),
                   tmp_path / "items.parquet")  # fmt: skip
    with serving(tmp_path) as site:
        listing = scene_jobs(resolve(f"{site.url}/items.parquet"), Search(), None)
        with pytest.raises(ReadError, match="404"):
            scene_jobs(resolve(f"{site.url}/none.parquet"), Search(), None)
    assert [job.id for job in listing.jobs] == ["good"]
    assert listing.left_out == (
        "1 whose assets are no business of a remote catalog (bad)",
        "1 without a geometry (nowhere)",
    )


def test_a_damaged_table_is_named(tmp_path: Path) -> None:
    write_table(tmp_path / "items.parquet", [make_item("a", "a.tif")])
    content = (tmp_path / "items.parquet").read_bytes()
    (tmp_path / "items.parquet").write_bytes(content[: len(content) // 2])
    with pytest.raises(ReadError, match=r"items\.parquet cannot be read as stac-geoparquet"):
        scene_jobs(resolve(str(tmp_path / "items.parquet")), Search(), None)


def test_a_parquet_file_of_something_else_is_refused(tmp_path: Path) -> None:
    import geopandas as gpd

    path = tmp_path / "areas.parquet"
    gpd.GeoDataFrame(geometry=[shapely.box(0, 0, 1, 1)], crs="EPSG:4326").to_parquet(path)
    with pytest.raises(SourceError, match="is no stac-geoparquet"):
        scene_jobs(resolve(str(path)), Search(), None)


def test_a_folder_gives_a_job_a_raster_and_leaves_out_what_cannot_be_read(tmp_path: Path) -> None:
    write_scene(tmp_path / "b.tif")
    write_scene(tmp_path / "a.tif")
    (tmp_path / "cut.tif").write_bytes((tmp_path / "a.tif").read_bytes()[:100])
    listing = scene_jobs(resolve(str(tmp_path)), Search(), None)
    assert [(job.id, job.source) for job in listing.jobs] == [
        ("a", str(tmp_path / "a.tif")),
        ("b", str(tmp_path / "b.tif")),
    ]
    assert listing.left_out == ("1 which cannot be read (cut.tif)",)


def test_a_csv_names_areas_by_wkt_box_or_path(tmp_path: Path) -> None:
    (tmp_path / "field.geojson").write_text(
        json.dumps({"type": "Polygon", "coordinates": [[[10, 45], [10.01, 45], [10.01, 45.01], [10, 45]]]})
    )
    table = tmp_path / "areas.csv"
    table.write_text(
        "Name,wkt,minx,miny,maxx,maxy,path\n"
        'one,"POLYGON ((10 45, 10.01 45, 10.01 45.01, 10 45))",,,,,\n'
        "two,,10,45,10.01,45.01,\n"
        "three,,,,,,field.geojson\n"
    )
    one, two, three = area_jobs(str(table), crs=None, repair=False)
    assert [one.id, two.id, three.id] == ["one", "two", "three"]
    assert one.hectares == pytest.approx(three.hectares, abs=0.01)
    assert two.hectares == pytest.approx(2 * one.hectares, rel=0.01)
    assert three.aoi == str(tmp_path / "field.geojson")


def test_a_row_of_a_csv_is_known_again_by_its_name_and_area_wherever_it_stands(tmp_path: Path) -> None:
    table, store = tmp_path / "areas.csv", Store(str(tmp_path / "out"))
    head, one, two = "name,minx,miny,maxx,maxy\n", "one,10,45,10.01,45.01\n", "two,10,46,10.01,46.01\n"
    table.write_text(head + one + one)
    asked = Asked("canopy", RunOptions(model="nano", sources=("sample",)), str(table))
    first = open_batch(asked, store, Silent())
    assert len({job.id for job in first.jobs}) == 2
    table.write_text(head + two + one + one)
    assert open_batch(asked, store, Silent()).jobs[0].name == "one"
    assert {job.id for job in open_batch(asked, store, Silent()).jobs} == {*(job.id for job in first.jobs), "two"}


def test_a_faulty_row_is_named_before_anything_runs(tmp_path: Path) -> None:
    table = tmp_path / "areas.csv"
    table.write_text("name,minx,miny,maxx,maxy\ngood,0,0,1,1\nbad,5,5,1,1\n")
    with pytest.raises(AOIError, match="row 2, bad"):
        area_jobs(str(table), crs=None, repair=False)
    table.write_text("name,colour\ngood,green\n")
    with pytest.raises(ConfigError, match="has no areas"):
        area_jobs(str(table), crs=None, repair=False)


@settings(max_examples=25)
@given(
    west=st.floats(400_000, 600_000),
    south=st.floats(5_000_000, 5_100_000),
    size=st.tuples(st.floats(50, 2000), st.floats(50, 2000)),
    side_px=st.integers(100, 900),
    turn=st.floats(0, 90),
)
def test_cells_share_no_ground_and_together_are_the_aoi(
    west: float, south: float, size: tuple[float, float], side_px: int, turn: float
) -> None:
    grid = Grid(CRS("EPSG:32633"), 0.6)
    area = shapely.affinity.rotate(shapely.box(west, south, west + size[0], south + size[1]), turn)
    made = cells(read_aoi(shapely.to_wkt(area, rounding_precision=-1), crs="EPSG:32633"), grid, side_px)
    pieces = [job_geometry(job.aoi, job.aoi_crs, grid.crs) for job in made]
    assert len({job.id for job in made}) == len(made)
    assert shapely.union_all(pieces).symmetric_difference(area).area < 1
    assert sum(piece.area for piece in pieces) == pytest.approx(shapely.union_all(pieces).area)
    # Where a cell ends inside the AOI it ends on the edge of a pixel of the lattice that all share.
    for piece in pieces:
        inner = piece.boundary.difference(area.boundary.buffer(1e-6))
        xy = shapely.get_coordinates(shapely.segmentize(inner, 1e9)) / (side_px * 0.6)
        assert (np.abs(xy - np.round(xy)).min(axis=1) < 1e-6).all()


def test_a_cell_is_whole_pixels_and_whole_cells_of_trees() -> None:
    assert cell_side(10_000.0, 0.6, None) == 16_667
    assert cell_side(10_000.0, 0.6, 10.0) * 0.6 % 10 == pytest.approx(0)
    assert cell_side(10_000.0, 0.6, 10.0) == 16_650
    assert cell_side(200.0, 0.6, 10.0) * 0.6 == pytest.approx(210)  # 30 m is whole pixels and whole cells
    assert cell_side(100.0, 0.6, 7.77) * 0.6 == pytest.approx(155.4)  # the least that is
    assert read_side("10km") == 10_000 and read_side(" 500 m") == 500
    for wrong in ("10", "0km", "far", "-5km"):
        with pytest.raises(ConfigError, match="with its unit"):
            read_side(wrong)
    with pytest.raises(ConfigError, match="under 100 pixels"):
        cell_side(50.0, 0.6, None)


def test_a_side_that_would_cut_cells_of_trees_becomes_another_and_is_told(tmp_path: Path) -> None:
    watch = Noting()
    for pipeline in ("canopy", "trees"):
        asked = Asked(pipeline, RunOptions(model="nano", sources=("sample",)), aoi="sample:autzen", grid="200m")
        open_batch(asked, Store(str(tmp_path / pipeline)), watch)
    told = [note for note in watch.notes if "becomes" in note]
    assert told == ["--grid 200m becomes 210 m, whole pixels and density cells"]


def test_all_cells_share_a_crs_that_is_true_to_scale_all_over_the_aoi() -> None:
    assert str(grid_of(read_aoi("10,45,10.1,45.1"), None, 0.6).crs) == "EPSG:32632"
    for aoi, crs in (("-10,40,30,60", None), ("10,45,10.1,45.1", "EPSG:3857"), ("10,45,10.1,45.1", "EPSG:4326")):
        with pytest.raises(ConfigError, match="not true to scale"):
            grid_of(read_aoi(aoi), crs, 0.6)
    with pytest.raises(ConfigError, match="is not known"):
        grid_of(read_aoi("10,45,10.1,45.1"), "EPSG:1", 0.6)


def told_of(aoi: str, out: Path, source: str = "sample", **how: str) -> str:
    watch = Noting()
    asked = Asked("canopy", RunOptions(model="nano", sources=(source,), **how), aoi=aoi, grid="200m")  # type: ignore[arg-type]
    batch = open_batch(asked, Store(str(out)), watch)
    assert {CRS(str(job.aoi_crs)) for job in batch.jobs} == {CRS(str(batch.options.crs))}
    return watch.notes[-1].rpartition("cells of ")[2].rstrip(")")


def test_cells_lie_in_the_crs_that_one_run_over_the_aoi_would_take(tmp_path: Path) -> None:
    options = RunOptions(model="nano", sources=("sample",))
    plan = find_imagery(read_pipeline("canopy"), read_aoi("sample:autzen"), options, 0.6)
    assert str(plan.grid.crs) == "EPSG:26910"
    # NAD83 and not the AOI's own zone of WGS 84, which would move every pixel.
    assert told_of("sample:autzen", tmp_path / "own") == "199.8 m in EPSG:26910, the imagery's"
    assert told_of("sample:autzen", tmp_path / "asked", crs="EPSG:32610") == "199.8 m in EPSG:32610"


def test_without_imagery_in_its_middle_or_none_in_metres_an_aoi_has_cells_in_its_zone(tmp_path: Path) -> None:
    wanted = "199.8 m in EPSG:32631, the UTM zone, as no imagery was found in the AOI's middle"
    assert told_of("3,50,3.01,50.01", tmp_path / "nowhere") == wanted
    write_scene(tmp_path / "a.tif")
    with rasterio.open(tmp_path / "a.tif", "r+") as raster:
        raster.crs = "EPSG:3857"
        west, south, east, north = transform_bounds(raster.crs, "EPSG:4326", *raster.bounds)
    told = told_of(f"{west},{south},{east},{north}", tmp_path / "web", str(tmp_path / "a.tif"))
    assert told.endswith("the UTM zone, as the imagery's EPSG:3857 is not true to scale all over the AOI")


def test_who_joins_a_batch_of_cells_need_not_reach_its_imagery(tmp_path: Path) -> None:
    write_scene(tmp_path / "a.tif")
    with rasterio.open(tmp_path / "a.tif") as raster:
        bounds = transform_bounds(raster.crs, "EPSG:4326", *raster.bounds)
    options = RunOptions(model="nano", sources=(str(tmp_path / "a.tif"),))
    asked = Asked("canopy", options, aoi=",".join(map(str, bounds)), grid="200m")
    first = open_batch(asked, Store(str(tmp_path / "out")), Silent())
    (tmp_path / "a.tif").write_bytes(b"")
    assert open_batch(asked, Store(str(tmp_path / "out")), Silent()).jobs == first.jobs
    with pytest.raises(ReadError):
        open_batch(asked, Store(str(tmp_path / "other")), Silent())


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (Asked("canopy", RunOptions(), "sample"), "takes no model auto"),
        (Asked("canopy", RunOptions(model="nano")), "give --catalog"),
        (Asked("canopy", RunOptions(model="nano"), grid="1km"), "needs --aoi"),
        (Asked("canopy", RunOptions(model="nano"), aoi="sample:autzen", grid="1km"), "takes no source auto"),
        (Asked("canopy", RunOptions(model="nano", harmonise="histogram"), aoi="sample:autzen", grid="1km"), "seam"),
        (Asked("canopy", RunOptions(model="nano"), "sample", lease_s=0.1), "must be 1 or more"),
    ],
)
def test_what_a_batch_cannot_do_is_refused_before_anything_is_written(tmp_path: Path, asked: Asked, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        open_batch(asked, Store(str(tmp_path / "out")), Silent())
    assert not (tmp_path / "out" / ".batch").exists()


def test_a_job_stays_in_the_list_whatever_becomes_of_the_catalog_and_new_ones_join(tmp_path: Path) -> None:
    scenes, store, watch = tmp_path / "scenes", Store(str(tmp_path / "out")), Noting()
    scenes.mkdir()
    write_scene(scenes / "b.tif")
    asked = Asked("canopy", RunOptions(model="nano"), str(scenes))
    first = open_batch(asked, store, Silent())
    write_scene(scenes / "a.tif")
    with Pulse(store, 300.0):
        assert open_batch(asked, store, watch).jobs == first.jobs  # the one that came first has looked
    (scenes / "b.tif").unlink()
    a, b = open_batch(asked, store, watch).jobs
    assert [b] == first.jobs and a.name == "a"
    assert watch.notes[0].startswith("1 new job, ")
    assert watch.notes[1] == "1 job of the batch stays, which the catalog no longer lists"
    (scenes / "a.tif").unlink()
    assert open_batch(asked, store, watch).jobs == [a, b]
    assert watch.warnings[0].startswith("going on without a look for new jobs: ")
    with pytest.raises(ConfigError, match="max_cloud was None and is 5"):
        open_batch(Asked("canopy", RunOptions(model="nano", max_cloud=5), str(scenes)), store, Silent())
    # What a machine decides for itself may differ.
    open_batch(Asked("canopy", RunOptions(model="nano", device="cpu", threads=2), str(scenes)), store, Silent())
