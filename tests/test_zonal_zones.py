"""Zones: what is read, refused, repaired, laid out and said; and the tables that come of them."""

from __future__ import annotations

import json
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import shapely
from zonal_maps import CRS, NORTH, WEST, box, ground_of, made_heights, write_map, zones

from geodino.aoi import read_aoi
from geodino.errors import InputError, OutputError
from geodino.zonal.ground import Ground, layers_of
from geodino.zonal.statistics import stats, zone_statistics
from geodino.zonal.sums import Settings
from geodino.zonal.table import beside_attributes, write_csv, write_parquet
from geodino.zonal.zones import Zones, place, read_zones, zones_of

HEIGHTS = made_heights(60, 80, seed=1)
BOWTIE = shapely.Polygon([(5, 5), (25, 25), (25, 5), (5, 25)])


@pytest.fixture(scope="module")
def chm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_map(tmp_path_factory.mktemp("map") / "chm.tif", HEIGHTS)


def write(path: Path, frame: gpd.GeoDataFrame) -> Path:
    frame.to_file(path)
    return path


def frame_of(*shapes: shapely.Geometry | None, crs: str | None = CRS, **columns: object) -> gpd.GeoDataFrame:
    return gpd.GeoDataFrame(columns, geometry=list(shapes), crs=crs)


def test_attributes_and_feature_numbers_come_along(chm: Path, tmp_path: Path) -> None:
    frame = frame_of(box(0, 0, 9, 9), shapely.Point(WEST + 3, NORTH - 3), box(20, 20, 9, 9), name=["a", "tree", "b"])
    read = read_zones(write(tmp_path / "zones.gpkg", frame))
    found = zone_statistics(layers_of(chm), read)
    assert found.frame[["zone", "name"]].to_numpy().tolist() == [[1, "a"], [3, "b"]]
    assert found.frame.geometry.geom_equals(frame.geometry[[0, 2]].reset_index(drop=True)).all()
    assert found.notes == (
        f"{tmp_path / 'zones.gpkg'}: 1 points, lines and features without an area are no zones and were left out",
    )


def test_zones_in_another_crs_are_projected_and_stay_as_they_were(chm: Path, tmp_path: Path) -> None:
    frame = frame_of(box(10, 10, 30, 40), crs=CRS).to_crs("EPSG:4326")
    found = zone_statistics(layers_of(chm), read_zones(write(tmp_path / "zones.geojson", frame))).frame
    assert found.crs == "OGC:CRS84"
    assert found["mean_height_m"][0] == pytest.approx(HEIGHTS[10:40, 10:50].mean(), rel=1e-4)


def test_an_invalid_zone_is_refused_by_its_number_unless_repaired(chm: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "zones.gpkg", frame_of(box(0, 0, 9, 9), ground_of(BOWTIE)))
    with pytest.raises(InputError, match=r"feature 2: self-intersection at .* ha with --repair-zones"):
        read_zones(path)
    found = zone_statistics(layers_of(chm), read_zones(path, repair=True))
    assert found.frame["area_ha"][1] == pytest.approx(200 * 0.36 / 1e4, rel=1e-3)
    assert any("feature 2" in note and "repaired" in note for note in found.notes)


def test_a_frame_is_read_as_a_file_of_it(chm: Path, tmp_path: Path) -> None:
    shapes = box(0, 0, 9, 9), shapely.Point(WEST + 3, NORTH - 3), None, box(20, 20, 9, 9)
    frame = frame_of(*shapes, name=["a", "tree", "none", "b"])
    frame.index = [7, 7, 9, 3]
    found = stats(chm, frame.rename_geometry("outline"))
    filed = stats(chm, write(tmp_path / "zones.gpkg", frame))
    assert found.frame["name"].to_list() == ["a", "b"] and found.frame["zone"].to_list() == [1, 4]
    pd.testing.assert_frame_equal(pd.DataFrame(found.frame), pd.DataFrame(filed.frame))
    assert found.notes == ("GeoDataFrame: 2 points, lines and features without an area are no zones and were left out",)
    assert json.loads(found.provenance["geodino"])["zones"] == "GeoDataFrame"


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (frame_of(box(0, 0, 9, 9), crs=None), "GeoDataFrame: has no CRS"),
        (gpd.GeoDataFrame({"name": ["a"]}), "GeoDataFrame: has no geometry"),
        (frame_of(), "GeoDataFrame: holds no features"),
        (frame_of(shapely.Point(WEST, NORTH)), "GeoDataFrame: holds Point only; zones are polygons"),
        (frame_of(box(0, 0, 9, 9), crs="EPSG:4326"), r"GeoDataFrame: feature 1: .* looks like projected metres"),
        (frame_of(box(0, 0, 9, 9), ground_of(BOWTIE)), r"GeoDataFrame: feature 2: self-int.* ha of its make_valid\(\)"),
    ],
)
def test_frames_without_zones_are_refused(chm: Path, frame: gpd.GeoDataFrame, message: str) -> None:
    with pytest.raises(InputError, match=message):
        stats(chm, frame)


FLAT = shapely.Polygon([(5, 5), (25, 25), (5, 5), (5, 5)])


def test_flat_polygons_are_left_out_and_said(chm: Path, tmp_path: Path) -> None:
    frame = frame_of(box(0, 0, 9, 9), ground_of(FLAT), box(20, 20, 9, 9), name=["a", "flat", "b"])
    path = write(tmp_path / "zones.gpkg", frame)
    bare = tmp_path / "bare.parquet"
    frame.set_crs(None, allow_override=True).to_parquet(bare)
    for zones_read in (read_zones(path), read_zones(frame), read_zones(bare, crs=CRS), read_zones(path, repair=True)):
        assert zones_read.frame["name"].to_list() == ["a", "b"] and zones_read.numbers.tolist() == [1, 3]
        assert zones_read.frame.crs == CRS
        assert "1 points, lines and features without an area are no zones and were left out" in zones_read.notes[-1]
    assert zones_read.origin == str(path)
    with pytest.raises(InputError, match="names no CRS; say which with --zones-crs"):
        read_zones(bare)
    both = write(tmp_path / "both.gpkg", frame_of(ground_of(FLAT), box(0, 0, 9, 9), ground_of(BOWTIE)))
    with pytest.raises(InputError, match=r"both.gpkg: feature 3: self-intersection at .* with --repair-zones"):
        read_zones(both)
    with pytest.raises(InputError, match="feature 1 has no area; draw a polygon"):
        read_zones(write(tmp_path / "flat.gpkg", frame_of(ground_of(FLAT))))


def test_a_frame_is_repaired_on_demand() -> None:
    found = read_zones(frame_of(box(0, 0, 9, 9), ground_of(BOWTIE)), repair=True)
    assert found.frame.geometry.is_valid.all()
    assert found.notes[0].startswith("GeoDataFrame: feature 2: self-intersection at (")


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (frame_of(shapely.Point(WEST, NORTH)), "holds Point only; zones are polygons"),
        (frame_of(box(0, 0, 9, 9), crs=None), "names no CRS; say which with --zones-crs"),
        (frame_of(), "holds no features"),
    ],
)
def test_layers_without_zones_are_refused(tmp_path: Path, frame: gpd.GeoDataFrame, message: str) -> None:
    path = tmp_path / "zones.parquet"
    frame.to_parquet(path)
    with pytest.raises(InputError, match=message):
        read_zones(path)


def test_the_layer_and_the_crs_of_zones_can_be_named(tmp_path: Path) -> None:
    path = tmp_path / "two.gpkg"
    for name in ("plots", "roads"):
        frame_of(box(0, 0, 9, 9)).to_file(path, layer=name)
    with pytest.raises(InputError, match="choose one with --zones-layer"):
        read_zones(path)
    assert len(read_zones(path, layer="plots")) == 1
    text = box(0, 0, 9, 9).wkt
    assert read_zones(text, crs=CRS).frame.crs == CRS


def test_zones_off_the_map_are_refused_where_all_are_and_else_null(chm: Path) -> None:
    far, near, beside = box(5000, 5000, 9, 9), box(0, 0, 9, 9), box(-10, 85, 9, 9)
    with pytest.raises(InputError, match=r"none of 2 zones meets the map .*chm.tif: check that both"):
        zone_statistics(layers_of(chm), zones(far, beside))
    found = zone_statistics(layers_of(chm), zones(near, far, beside))
    assert found.notes == ("2 of 3 zones do not meet the map and have no figures, feature 2 first",)
    assert found.frame["seen_percent"].to_numpy() == pytest.approx([100, 0, 0])
    assert found.frame.loc[1:, "mean_height_m"].isna().all()
    assert found.frame["area_ha"].to_numpy() == pytest.approx(81 * 0.36 / 1e4, rel=2e-3)


def test_a_zone_of_which_only_the_box_meets_the_map_has_no_figures(chm: Path) -> None:
    frame = ground_of(shapely.Polygon([(-9, -9), (99, -9), (99, -1), (-1, -1), (-1, 99), (-9, 99)]))
    found = zone_statistics(layers_of(chm), zones(frame, box(0, 0, 9, 9))).frame
    assert found["seen_percent"][0] == 0 and np.isnan(found["mean_height_m"][0])


def test_a_zone_that_the_maps_crs_cannot_hold_keeps_its_area(chm: Path) -> None:
    other_side = gpd.GeoSeries([shapely.box(56.9, -44.1, 57.0, -44.0)], crs="EPSG:4326")
    frame = pd.concat(
        [frame_of(box(0, 0, 9, 9)).to_crs("EPSG:4326"), other_side.to_frame("geometry")], ignore_index=True
    )
    found = zone_statistics(layers_of(chm), Zones(frame, np.array([1, 2]), "made"))
    assert found.frame["area_ha"][1] == pytest.approx(8_900, rel=0.02)
    assert found.frame["seen_percent"][1] == 0


@pytest.mark.parametrize(
    ("country", "crs", "area_ha"),
    [
        # On a sphere: radius^2 * longitudes * (sin 49 - sin 25).
        ("-125,25,-66,49", None, 1.388e9),
        # The short way round from 170 degrees east to 66 west, held as 170 to 294 degrees.
        ("170,25,-66,49", None, 2.917e9),
        ("-180,-90,180,90", None, 5.10e10),
        # Albers, as atlases of the United States have it.
        ("-2400000,200000,2300000,3200000", "EPSG:5070", 1.41e9),
    ],
)
def test_a_zone_far_larger_than_the_map_has_figures_of_what_was_seen(
    chm: Path, country: str, crs: str | None, area_ha: float
) -> None:
    every = zone_statistics(layers_of(chm), zones(box(0, 0, 60, 80))).frame.iloc[0]
    found = zone_statistics(layers_of(chm), read_zones(country, crs=crs), settings=Settings(least_valid_percent=0))
    row = found.frame.iloc[0]
    assert row["area_ha"] == pytest.approx(area_ha, rel=0.005)
    assert row["seen_percent"] == pytest.approx(100 * every["area_ha"] / row["area_ha"], rel=1e-4)
    same = ["mean_height_m", "p95_height_m", "max_height_m", "cover_above_5m_percent", "area_2_to_5m_ha"]
    assert row[same].to_numpy(float) == pytest.approx(every[same].to_numpy(float), rel=1e-4)
    (note,) = zone_statistics(layers_of(chm), read_zones(country, crs=crs)).notes
    assert note.startswith("1 of 1 zones have no figures, because less than 50 % of each was seen")


def test_a_countrys_border_cuts_the_map_where_it_was_drawn(chm: Path) -> None:
    """Through the middle of the map, as that of a zone which is small enough to be projected whole."""
    middle = gpd.GeoSeries([shapely.Point(WEST + 40 * 0.6, NORTH - 30 * 0.6)], crs=CRS).to_crs("EPSG:4326")[0]
    small = read_zones(f"{middle.x},44,-123,45")
    large = read_zones(f"{middle.x},25,-66,49")
    options = Settings(least_valid_percent=0)
    one, other = (zone_statistics(layers_of(chm), some, settings=options).frame.iloc[0] for some in (small, large))
    assert other["mean_height_m"] == pytest.approx(one["mean_height_m"], rel=1e-6)
    seen = [row["area_ha"] * row["seen_percent"] for row in (one, other)]
    assert seen[0] == pytest.approx(seen[1], rel=1e-6)


def test_a_small_part_on_the_map_does_not_make_the_zone_seen(chm: Path) -> None:
    here = gpd.GeoSeries([box(5, 5, 20, 20)], crs=CRS).to_crs("EPSG:4326")[0]
    frame = gpd.GeoDataFrame(geometry=[shapely.union(here, shapely.box(10, 45, 11, 46))], crs="EPSG:4326")
    row = zone_statistics(layers_of(chm), Zones(frame, np.array([1]), "made")).frame.iloc[0]
    assert 0 < row["seen_percent"] < 1e-4 and np.isnan(row["mean_height_m"])


def test_a_large_zone_on_the_other_side_of_the_earth_meets_nothing(chm: Path) -> None:
    with pytest.raises(InputError, match="none of 1 zones meets the map"):
        zone_statistics(layers_of(chm), read_zones("27,-69,87,-19"))


def test_overlapping_zones_count_each_for_itself_and_are_said_once(chm: Path) -> None:
    shapes = box(0, 0, 20, 20), box(10, 10, 20, 20), box(0, 0, 20, 20), box(40, 40, 5, 5), box(40, 45, 5, 5)
    found = zone_statistics(layers_of(chm), zones(*shapes))
    (note,) = found.notes
    assert note.startswith("3 zones overlap others, features 1 and ")
    alone = [zone_statistics(layers_of(chm), zones(shape)).frame["mean_height_m"][0] for shape in shapes]
    assert found.frame["mean_height_m"].to_numpy() == pytest.approx(alone)


def test_neighbours_do_not_overlap_after_projection(chm: Path) -> None:
    """Cut in degrees by a slanted line, with other vertices on both sides."""
    whole = gpd.GeoSeries([box(0, 0, 60, 80)], crs=CRS).to_crs("EPSG:4326")[0]
    west, south, east, north = whole.bounds
    line = shapely.LineString([(west - 1e-4, south), (east + 1e-4, north)])
    parts = [shapely.segmentize(part, 1e-5 * (k + 1)) for k, part in enumerate(shapely.ops.split(whole, line).geoms)]
    frame = gpd.GeoDataFrame(geometry=parts, crs="EPSG:4326")
    assert zone_statistics(layers_of(chm), Zones(frame, np.arange(1, 3), "made")).notes == ()


def test_attributes_that_clash_with_figures_get_a_suffix() -> None:
    made = zones(box(0, 0, 9, 9), area_ha=[7.0], Zone=["x"], Area_HA=[8.0], name=["n"])
    found = beside_attributes(made, pd.DataFrame({"area_ha": [0.1], "seen_percent": [100.0]}))
    assert found.columns.to_list() == [
        "zone", "area_ha_zone", "Zone_zone", "Area_HA_zone_2", "name", "area_ha", "seen_percent", "geometry",
    ]  # fmt: skip
    assert found.iloc[0, :5].to_list() == [1, 7.0, "x", 8.0, "n"]


def test_repeated_attribute_names_get_a_number() -> None:
    made = zones(box(0, 0, 9, 9), a=[1], b=[2], c=[3])
    made.frame.columns = pd.Index(["name", "Name", "name_2", "geometry"])
    made = Zones(made.frame.set_geometry("geometry"), made.numbers, "made")
    found = beside_attributes(made, pd.DataFrame({"area_ha": [0.1]}))
    assert found.columns.to_list() == ["zone", "name", "Name_2", "name_2_2", "area_ha", "geometry"]


def test_what_is_written_is_what_is_read(chm: Path, tmp_path: Path) -> None:
    made = zones(
        box(0, 0, 9, 9),
        box(70, 0, 9, 9),
        crs="EPSG:4326",
        name=["Wald, alt", 'a "b"'],
        planted=pd.to_datetime(["2021-05-01", "2022-11-01"]),
    )
    found = zone_statistics(layers_of(chm), made)
    found.write(tmp_path / "s.parquet", tmp_path / "s.csv")
    back = gpd.read_parquet(tmp_path / "s.parquet")
    assert back.crs == "EPSG:4326" and (back.geom_type == "MultiPolygon").all()
    assert back.geometry.geom_equals(found.frame.geometry).all()
    plain = found.frame.drop(columns="geometry")
    pd.testing.assert_frame_equal(pd.DataFrame(back)[plain.columns], pd.DataFrame(plain), check_dtype=False)
    metadata = pq.read_metadata(tmp_path / "s.parquet").metadata
    assert json.loads(metadata[b"geo"])["columns"]["geometry"]["covering"]["bbox"]["xmin"] == ["bbox", "xmin"]
    said = json.loads(metadata[b"geodino"])
    assert said["map"] == "chm.tif" and said["settings"]["cover_m"] == [2.0, 5.0, 10.0]
    # A null is nothing in a CSV, not a 0.
    text = (tmp_path / "s.csv").read_text()
    assert pd.isna(pd.read_csv(tmp_path / "s.csv")["mean_height_m"][1])
    assert text.splitlines()[0].startswith("zone,name,planted,area_ha,seen_percent,mean_height_m")
    table = pd.read_csv(tmp_path / "s.csv")
    assert table["name"].to_list() == ["Wald, alt", 'a "b"']
    assert table["mean_height_m"][0] == pytest.approx(HEIGHTS[:9, :9].mean(), rel=1e-5)


def test_nested_attributes_are_kept(tmp_path: Path) -> None:
    made = beside_attributes(zones(box(0, 0, 9, 9), species=[["oak", "ash"]]), pd.DataFrame({"area_ha": [0.1]}))
    write_parquet(made, tmp_path / "s.parquet", {})
    assert list(gpd.read_parquet(tmp_path / "s.parquet")["species"][0]) == ["oak", "ash"]
    write_csv(made, tmp_path / "s.csv")
    assert pd.read_csv(tmp_path / "s.csv")["species"][0] == '["oak", "ash"]'


def test_a_table_that_cannot_be_written_is_an_output_error(tmp_path: Path) -> None:
    made = beside_attributes(zones(box(0, 0, 9, 9), odd=[{1, "a"}]), pd.DataFrame({"area_ha": [0.1]}))
    with pytest.raises(OutputError, match="attributes"):
        write_parquet(made, tmp_path / "s.parquet", {})
    with pytest.raises(OutputError, match="cannot write"):
        write_csv(made.drop(columns="odd"), tmp_path / "missing" / "s.csv")


def test_features_of_an_aoi_are_zones() -> None:
    found = zones_of(read_aoi("sample:autzen"))
    assert len(found) == len(found.numbers) and found.numbers[0] == 1 and found.notes == ()


def test_pixels_and_ground_go_both_ways(chm: Path) -> None:
    with Ground(layers_of(chm)) as ground:
        xy = np.array([[WEST, NORTH], [WEST + 6, NORTH - 12]])
        assert ground.in_pixels(xy) == pytest.approx(np.array([[0, 0], [10, -20]]), abs=1e-6)
        assert ground.in_crs(ground.in_pixels(xy)) == pytest.approx(xy)
        placed = place(zones(box(3, 4, 5, 6), box(-3, 78, 5, 6)), ground)
        assert (placed.row.tolist(), placed.col.tolist()) == ([3, 0], [4, 78])
        assert (placed.height.tolist(), placed.width.tolist(), placed.whole.tolist()) == ([5, 2], [6, 2], [True, False])
        assert ground.steps_m(30, 40) == pytest.approx((0.6, 0.6), rel=1e-3)
