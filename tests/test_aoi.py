"""The AOI: every format read, every refusal with its sentence, and masks that do not depend on the window."""

from __future__ import annotations

import itertools
import json
import pickle
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pyogrio
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from odc.geo.crs import CRS
from pyproj import Geod
from shapely.geometry import LineString, Point, Polygon, box, mapping, shape

from geodino.aoi import AOI, AOIMask, aoi_mask, boxes_meet, read_aoi
from geodino.errors import AOIError
from geodino.grid import Grid, Window

FIELD = box(-122.01, 38.0, -122.0, 38.01)
UTM = CRS("EPSG:32610")
BOWTIE = Polygon([(0, 0), (1, 1), (1, 0), (0, 1)])


def write_geojson(folder: Path, *geometries: object, name: str = "aoi.geojson", **members: object) -> Path:
    features = [{"type": "Feature", "properties": {"n": n}, "geometry": g} for n, g in enumerate(geometries)]
    path = folder / name
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features, **members}))
    return path


def frame_of(*geometries: object, crs: str | None = "EPSG:4326") -> gpd.GeoDataFrame:
    return gpd.GeoDataFrame({"plot": [f"p{n}" for n in range(len(geometries))]}, geometry=list(geometries), crs=crs)


@pytest.mark.parametrize("suffix", ["geojson", "gpkg", "fgb", "shp", "parquet", "kml"])
def test_every_format_gives_the_polygon_back(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"aoi.{suffix}"
    frame = frame_of(FIELD)
    if suffix == "parquet":
        frame.to_parquet(path)
    else:
        frame.rename(columns={"plot": "Name"}).to_file(path, driver="KML" if suffix == "kml" else None)
    aoi = read_aoi(path)
    assert aoi.frame.geometry[0].equals(FIELD)
    assert "p0" in aoi.frame.iloc[0].tolist()
    assert aoi.frame.crs.equals("EPSG:4326", ignore_axis_order=True)
    assert aoi.origin == str(path)


@pytest.mark.parametrize(
    "what",
    [
        "-122.01,38,-122,38.01",
        " -122.01, 38.0, -122.0, 38.01",
        FIELD.wkt,
        f"SRID=4326;{FIELD.wkt}",
        shapely.force_3d(FIELD, 7).wkt,
    ],
)
def test_bbox_and_wkt_are_lon_lat(what: str) -> None:
    aoi = read_aoi(what)
    assert aoi.frame.geometry[0].equals(FIELD) and not aoi.frame.has_z.any()
    assert aoi.centre == pytest.approx((-122.005, 38.005))


def test_area_is_the_geodesic_one() -> None:
    expected = abs(Geod(ellps="WGS84").geometry_area_perimeter(shapely.segmentize(FIELD, 0.001))[0]) / 1e4
    assert read_aoi(FIELD.wkt).area_ha == pytest.approx(expected, rel=1e-6)
    square = read_aoi("500000,4000000,501000,4001000", crs="EPSG:32610")
    assert square.area_ha == pytest.approx(100 / 0.9996**2, rel=1e-5)  # UTM's scale on its central meridian
    assert read_aoi("-180,-90,180,90").area_ha == pytest.approx(5.10065622e10, rel=1e-4)


def test_features_that_overlap_count_once_and_holes_stay_holes() -> None:
    ring = FIELD.difference(FIELD.centroid.buffer(0.002))
    aoi = read_aoi(shapely.GeometryCollection([FIELD, shapely.Point(0, 0)]).wkt)
    assert aoi.dropped == 1
    holed = read_aoi(ring.wkt)
    assert len(holed.geometry(UTM).interiors) == 1
    twice = AOI(frame_of(FIELD, FIELD), "twice")
    assert twice.area_ha == pytest.approx(aoi.area_ha)


def test_declared_crs_is_honoured(tmp_path: Path) -> None:
    square = box(5e5, 4e6, 5.01e5, 4.001e6)
    member = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32610"}}
    for what in (write_geojson(tmp_path, mapping(square), crs=member), f"SRID=32610;{square.wkt}"):
        aoi = read_aoi(what)
        assert aoi.frame.crs.to_epsg() == 32610
        assert aoi.geometry(UTM).equals(square)
        assert read_aoi(what, crs="EPSG:32610").frame.crs.to_epsg() == 32610
        with pytest.raises(AOIError, match=r"its CRS is EPSG:32610, but --aoi-crs says EPSG:32611; leave out"):
            read_aoi(what, crs="EPSG:32611")


def test_aoi_crs_fills_in_where_none_is_declared(tmp_path: Path) -> None:
    square = box(5e5, 4e6, 5.01e5, 4.001e6)
    path = tmp_path / "bare.shp"
    frame_of(square, crs="EPSG:32610").to_file(path)
    path.with_suffix(".prj").unlink()
    with pytest.raises(AOIError, match=r"bare.shp: names no CRS; say which with --aoi-crs"):
        read_aoi(path)
    for what in (path, square.wkt, "500000,4000000,501000,4001000", write_geojson(tmp_path, mapping(square))):
        assert read_aoi(what, crs="EPSG:32610").geometry(UTM).equals(square)


def test_geojson_crs_member_that_proj_does_not_know_is_refused(tmp_path: Path) -> None:
    member = {"type": "name", "properties": {"name": "EPSG:999999"}}
    with pytest.raises(AOIError, match="crs member 'EPSG:999999' is not a CRS that PROJ knows"):
        read_aoi(write_geojson(tmp_path, mapping(FIELD), crs=member))
    with pytest.raises(AOIError, match="--aoi-crs 'utm' is not a CRS"):
        read_aoi(FIELD.wkt, crs="utm")


def test_polygons_are_kept_and_the_rest_is_counted(tmp_path: Path) -> None:
    collection = shapely.GeometryCollection([FIELD, LineString([(0, 0), (1, 1)])])
    path = write_geojson(tmp_path, None, mapping(Point(0, 0)), mapping(shapely.force_3d(FIELD, 5)), mapping(collection))
    aoi = read_aoi(path)
    assert (len(aoi.frame), aoi.dropped, aoi.frame["n"].tolist()) == (2, 3, [2, 3])
    assert set(aoi.frame.geom_type) == {"Polygon"} and aoi.frame.crs.to_epsg() == 4326


def test_layers_are_named_when_one_must_be_chosen(tmp_path: Path) -> None:
    path = tmp_path / "two.gpkg"
    frame_of(FIELD).to_file(path, layer="plots")
    pyogrio.write_dataframe(pd.DataFrame({"style": ["red"]}), path, layer="layer_styles")
    assert len(read_aoi(path).frame) == 1
    frame_of(shapely.affinity.translate(FIELD, 1)).to_file(path, layer="roads")
    with pytest.raises(AOIError, match=r"holds 2 layers, 'plots', 'roads'; choose one with --aoi-layer"):
        read_aoi(path)
    with pytest.raises(AOIError, match=r"has no layer 'plot'; it holds 'plots', 'roads'"):
        read_aoi(path, layer="plot")
    assert read_aoi(path, layer="roads").bounds_lonlat[0] == pytest.approx(-121.01)
    with pytest.raises(AOIError, match="a bbox or WKT has no layers"):
        read_aoi("0,0,1,1", layer="plots")


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("nowhere.geojson", "nowhere.geojson: no such file or directory; give a file, WKT or minx"),
        ("1,2,3", "3 numbers, but a bbox has four"),
        ("0,2,1,1", "a minimum is greater than its maximum"),
        ("600000,0,500000,10", "a minimum is greater than its maximum"),
        ("1,1,1,2", "has no area"),
        ("0,0,nan,1", "a number is not finite"),
        ("POLYGON ((0 0, nan 0, 1 1, 0 0))", r"feature 1: \(nan, 0\) is not a place"),
        ("38,-122.01,38.01,-122", "looks like lat,lon order; write lon,lat"),
        (
            "500000,4000000,501000,4001000",
            r"looks like projected metres; give their CRS with --aoi-crs, such as EPSG:32610",
        ),
        ("100,91,120,95", "longitude comes first"),
        ("POINT (1 2)", "holds Point only; an AOI needs polygons"),
        ("LINESTRING (1 2, 3 4)", "holds LineString only"),
        ("POLYGON EMPTY", "all 1 features are empty"),
        ("POLYGON ((0 0, 1 1", "not readable as WKT"),
        ("POLYGON ((0 0, 1 0, 1 1, 0 0)) \udcff", "not readable as WKT"),
        ("CURVEPOLYGON (CIRCULARSTRING (0 0, 4 0, 4 4, 0 4, 0 0))", "curves are not read; write them as POLYGON"),
        ("GEOMETRYCOLLECTION (" * 60 + "POINT (0 0)" + ")" * 60, "brackets are 61 deep, at most 50 are read"),
        ("fields\0.geojson", "no path holds a zero byte"),
        ("~no-such-user/fields.geojson", "no such file or directory"),
        ("SRID=32610;POLYGON ((0 0, 1 0, 1 1, 0 0))", "looks like degrees, but the CRS is EPSG:32610"),
        (
            "SRID=32610;POLYGON ((5e6 4e6, 5e6 4001000, 5001000 4001000, 5e6 4e6))",
            "far outside where EPSG:32610 is used",
        ),
        ("POLYGON ((0 80, 120 80, -120 80, 0 80))", "runs around a pole"),
        ("-360,0,350,1", "710 degrees wide"),
    ],
)
def test_refusals_say_what_and_where(what: str, message: str) -> None:
    with pytest.raises(AOIError, match=message):
        read_aoi(what)


def test_files_that_are_no_vector_files_are_refused(tmp_path: Path) -> None:
    whole = write_geojson(tmp_path, mapping(FIELD)).read_text()
    for name, text, message in [
        ("cut.geojson", whole[:-40], "cut off or not JSON"),
        ("page.geojson", "<!DOCTYPE html><html>log in</html>", "is a web page, perhaps a login page"),
        ("catalog.json", '{"type": "Catalog"}', "not a readable vector file"),
        ("zero.gpkg", "", "not a readable vector file"),
        ("torn.parquet", "PAR1", "not readable as GeoParquet"),
        ("open.geojson", '{"type":"Polygon","coordinates":[[[0,0],[1,0],[1,1]]]}', "a ring is not closed"),
        ("none.geojson", '{"type":"FeatureCollection","features":[]}', "holds no features"),
        (
            "nan.geojson",
            '{"type":"Polygon","coordinates":[[[0,0],[NaN,0],[1,1],[0,0]]]}',
            r"feature 1: \(nan, 0\) is not",
        ),
    ]:
        (tmp_path / name).write_text(text)
        with pytest.raises(AOIError, match=f"{name}: .*{message}" if "feature 1" not in message else message):
            read_aoi(tmp_path / name)
    with pytest.raises(AOIError, match="is a folder; name the file in it"):
        read_aoi(tmp_path)
    pd.DataFrame({"a": [1]}).to_parquet(tmp_path / "plain.parquet")
    with pytest.raises(AOIError, match="not readable as GeoParquet: Missing geo metadata"):
        read_aoi(tmp_path / "plain.parquet")


@pytest.mark.parametrize("end", [0.3, 0.9, 0.99])
def test_a_damaged_parquet_is_refused(tmp_path: Path, end: float) -> None:
    path = tmp_path / "fields.parquet"
    frame_of(FIELD).to_parquet(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(end * len(whole))].ljust(len(whole) - 8, b"\x15") + whole[-8:])
    with pytest.raises(AOIError, match=r"fields.parquet: not readable as GeoParquet: [^\n]+$"):
        read_aoi(path)


def test_text_in_another_encoding_is_refused(tmp_path: Path) -> None:
    for name in ("fields.wkt", "fields.geojson"):
        (tmp_path / name).write_text(f"{FIELD.wkt} é", encoding="latin-1")
        with pytest.raises(AOIError, match=f"{name}: byte [0-9]+ is not UTF-8 text; save the file as UTF-8"):
            read_aoi(tmp_path / name)


def test_json_that_is_nested_too_deep_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "deep.geojson"
    path.write_text("[" * 100_000 + "]" * 100_000)
    with pytest.raises(AOIError, match="brackets lie too deep in each other"):
        read_aoi(path)


def test_a_polygon_that_crosses_itself_is_repaired_only_when_asked(tmp_path: Path) -> None:
    path = write_geojson(tmp_path, mapping(box(5, 5, 6, 6)), mapping(BOWTIE))
    with pytest.raises(
        AOIError, match=r"feature 2: self-intersection at \(0.5, 0.5\); .* 6.154e\+05 ha with --repair-aoi"
    ):
        read_aoi(path)
    aoi = read_aoi(path, repair=True)
    assert aoi.frame.geometry.is_valid.all()
    assert aoi.frame.geometry[1].area == pytest.approx(0.5)
    assert aoi.repaired_area_m2 == pytest.approx(6.154e9, rel=1e-2)
    assert read_aoi(FIELD.wkt, repair=True).repairs == ()


FIJI = box(179.9, -17.1, 180.1, -16.9)
HOLED = FIJI.difference(box(180.02, -17.05, 180.05, -16.95))


@pytest.mark.parametrize(
    "drawn",
    [
        HOLED.wkt,
        Polygon(  # as 179.9 .. -179.9, hole included
            [(179.9, -17.1), (-179.9, -17.1), (-179.9, -16.9), (179.9, -16.9)],
            [[(-179.98, -17.05), (-179.95, -17.05), (-179.95, -16.95), (-179.98, -16.95)]],
        ).wkt,
        shapely.MultiPolygon(  # cut at 180, as RFC 7946 wants it
            [
                box(179.9, -17.1, 180, -16.9),
                box(-180, -17.1, -179.9, -16.9).difference(box(-179.98, -17.05, -179.95, -16.95)),
            ]
        ).wkt,
        shapely.transform(HOLED, lambda xy: xy - np.array([360.0, 0.0])).wkt,
    ],
    ids=["past 180", "jumping", "cut", "before -180"],
)
def test_an_aoi_over_the_antimeridian_is_one_piece_in_utm(drawn: str) -> None:
    aoi = read_aoi(drawn)
    area = aoi.geometry(CRS("EPSG:32760"))
    assert area.geom_type == "Polygon" and len(area.interiors) == 1
    assert area.area / 1e4 == pytest.approx(aoi.area_ha, rel=2e-3)
    assert area.bounds[2] - area.bounds[0] < 25_000
    assert aoi.bounds_lonlat == pytest.approx((179.9, -17.1, -179.9, -16.9))
    assert abs(aoi.centre[0]) > 179.9
    cut = shape(aoi.geojson())
    assert cut.geom_type == "MultiPolygon" and cut.is_valid
    assert cut.area == pytest.approx(HOLED.area) and cut.bounds[::2] == (-180, 180)
    assert all(part.exterior.is_ccw for part in cut.geoms)
    with pytest.raises(AOIError, match="does not fit into EPSG:3857 in one piece"):
        aoi.geometry(CRS("EPSG:3857"))


def test_a_bbox_may_cross_the_antimeridian_and_a_wide_one_does_not() -> None:
    assert read_aoi("179.9,-17.1,-179.9,-16.9").geometry(CRS("EPSG:32760")).area < 1e9
    assert read_aoi("-170,-10,170,10").bounds_lonlat == (-170, -10, 170, 10)


@pytest.mark.parametrize("world", ["-180,-90,180,90", "-170,-80,170,80", "-180,-60,180,60"])
def test_a_world_does_not_fit_into_a_utm_zone(world: str) -> None:
    with pytest.raises(AOIError, match="does not fit into EPSG:32610 in one piece; draw a smaller AOI"):
        read_aoi(world).geometry(UTM)


def test_long_edges_follow_their_parallel() -> None:
    aoi = read_aoi("-123.5,60,-122.5,61")
    south = shapely.transform(
        shapely.points(np.linspace(-123.5, -122.5, 999), 60.0),
        lambda xy: np.column_stack(aoi_transform(*xy.T)),
    )
    assert shapely.distance(aoi.geometry(UTM).exterior, south).max() < 0.05
    assert aoi.features(UTM).geometry[0].equals(aoi.geometry(UTM))


def aoi_transform(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return CRS("EPSG:4326").transformer_to_crs(UTM)(x, y)


GRID = Grid(UTM, 0.6)
radii = st.lists(st.floats(4.0, 60.0), min_size=3, max_size=12)


def star(spokes: list[float]) -> Polygon:
    angle = np.linspace(0, 2 * np.pi, len(spokes), endpoint=False)
    return Polygon(np.column_stack([spokes * np.cos(angle) + 5e5, spokes * np.sin(angle) + 4e6]))


@given(radii, st.integers(1, 199), st.booleans())
def test_masks_of_two_halves_are_the_mask_of_the_whole(spokes: list[float], cut: int, across: bool) -> None:
    area = star(spokes)
    window = GRID.window_over((5e5 - 60, 4e6 - 60, 5e5 + 60, 4e6 + 60))
    whole = aoi_mask(area, GRID, window)
    sizes = (window.height, cut), (window.height, window.width - cut)
    one = Window(window.row, window.col, cut, window.width) if across else Window(window.row, window.col, *sizes[0])
    rest = (
        Window(window.row + cut, window.col, window.height - cut, window.width)
        if across
        else Window(window.row, window.col + cut, *sizes[1])
    )
    halves = np.concatenate([aoi_mask(area, GRID, one), aoi_mask(area, GRID, rest)], axis=0 if across else 1)
    assert np.array_equal(halves, whole)
    # The plain way to ask; it may differ only where a centre lies on an edge to the last bit.
    cols, rows = np.arange(window.col, window.col_stop), np.arange(window.row, window.row_stop)
    x, y = np.meshgrid((cols + 0.5) * GRID.gsd, -(rows + 0.5) * GRID.gsd)
    differs = shapely.contains_xy(area, x, y) != whole
    assert (shapely.distance(area.boundary, shapely.points(x[differs], y[differs])) < 1e-6).all()
    # A boundary of length L passes within half a diagonal of at most that strip of pixel centres.
    assert abs(whole.sum() * GRID.gsd**2 - area.area) <= area.length * GRID.gsd


def test_polygons_that_share_an_edge_share_no_pixel() -> None:
    grid, window = Grid(UTM, 1.0), Window(-20, 0, 20, 20)
    parts = [box(0.5, 0.5, 10.5, 10.5), box(10.5, 0.5, 18.5, 10.5), box(0.5, 10.5, 18.5, 18.5)]
    masks = np.array([aoi_mask(part, grid, window) for part in parts])
    assert masks.sum(axis=0).max() == 1 and masks.sum() == 18 * 18
    holed = box(0, 0, 20, 20).difference(box(5, 5, 8, 8))
    assert aoi_mask(holed, grid, window).sum() == 400 - 9
    assert aoi_mask(parts[0], grid, Window(100, 100, 3, 4)).shape == (3, 4)


def test_boxes_meet_never_misses_a_window_with_pixels() -> None:
    area = star([50, 4, 60, 4, 30, 4])
    windows = [Window(r, c, 16, 16) for r in range(-6666780, -6666560, 16) for c in range(833220, 833440, 16)]
    meets = boxes_meet(area, GRID, windows)
    has_pixels = np.array([aoi_mask(area, GRID, window).any() for window in windows])
    assert has_pixels.any() and not (has_pixels & ~meets).any()
    assert meets.sum() < len(windows) / 2
    assert boxes_meet(area, GRID, []).shape == (0,)


def test_the_mask_of_several_polygons_is_the_union_of_their_masks() -> None:
    grid, window = Grid(CRS("EPSG:32610"), 0.6), Window(0, 0, 120, 160)
    parts = [shapely.box(3, -50, 30, -6).buffer(2), shapely.box(40, -60, 90, -20)]
    whole = aoi_mask(shapely.MultiPolygon(parts), grid, window)
    alone = [aoi_mask(part, grid, window) for part in parts]
    assert alone[0].any() and alone[1].any()
    np.testing.assert_array_equal(whole, alone[0] | alone[1])


@given(radii, st.lists(st.tuples(*[st.integers(0, 190)] * 2, *[st.integers(1, 80)] * 2), min_size=1, max_size=8))
def test_a_mask_made_once_says_of_each_window_what_the_whole_says(
    spokes: list[float], cuts: list[tuple[int, int, int, int]]
) -> None:
    area = shapely.union_all([star(spokes), box(5e5 + 30, 4e6 - 55, 5e5 + 90, 4e6 + 41)])
    whole = GRID.window_over((5e5 - 90, 4e6 - 90, 5e5 + 90, 4e6 + 90))
    inside = pickle.loads(pickle.dumps(AOIMask(area, GRID)))
    windows = [Window(whole.row + r, whole.col + c, h, w) for r, c, h, w in cuts]
    with ThreadPoolExecutor(4) as pool:
        masks = list(pool.map(inside, windows))
    expected = aoi_mask(area, GRID, whole)
    for window, mask in zip(windows, masks, strict=True):
        np.testing.assert_array_equal(mask, expected[window.slices_in(whole)])


def test_windows_of_a_long_outline_look_only_at_the_edges_in_their_rows() -> None:
    angle = np.linspace(0, 2 * np.pi, 200_000, endpoint=False)
    reach = 50_000 + 500 * np.sin(angle * 5000)
    area = Polygon(np.column_stack([reach * np.cos(angle) + 5e5, reach * np.sin(angle) + 4e6]))
    places = itertools.product(range(-6_740_000, -6_590_000, 10_007), range(750_000, 910_000, 10_007))
    inside, began = AOIMask(area, GRID), time.process_time()
    inside(Window(0, 0, 64, 64))
    once = time.process_time() - began
    held = [int(inside(Window(*place, 64, 64)).sum()) for place in places]
    assert time.process_time() - began < 10 * once + 0.2
    assert 0 in held and 64 * 64 in held
