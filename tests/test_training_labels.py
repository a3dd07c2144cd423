"""Points and polygons as labels: what each task takes, what is refused, and what comes onto the pixels."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproj import CRS, Transformer
from training_data import GSD, NORTH, SIDE, WEST, chips_of, on_ground, square, write_image, write_raster, write_vector

from geodino.errors import ConfigError, InputError, SourceError
from geodino.training.labels import Burnt, circle_of, cut_to_valid, placed

SPOTS = [(20.5, 30.25), (40.0, 12.0)]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    write_image(tmp_path / "a.tif")
    return tmp_path / "a.tif"


def no_crs(folder: Path) -> str:
    with pytest.warns(UserWarning, match="crs"):
        return write_vector(folder / "t.gpkg", on_ground(SPOTS), crs=None)


def crowns(folder: Path) -> str:
    return write_vector(folder / "t.gpkg", [square(1, 1, 5, 5), square(9, 9, 12, 12), shapely.Point(WEST, NORTH)])


def empty(folder: Path) -> str:
    gpd.GeoDataFrame({"a": []}, geometry=[], crs="EPSG:32633").to_file(folder / "t.gpkg", geometry_type="Point")
    return str(folder / "t.gpkg")


def nowhere(folder: Path) -> str:
    return write_vector(folder / "t.parquet", [shapely.Point(), None], crs="EPSG:32633")


def metres_called_degrees(folder: Path) -> str:
    return write_vector(folder / "t.gpkg", on_ground(SPOTS), crs="EPSG:4326")


def height_model(folder: Path) -> str:
    return write_raster(folder / "chm.tif", np.ones((SIDE, SIDE), "f4"))


def web_page(folder: Path) -> str:
    (folder / "t.geojson").write_text("<!DOCTYPE html><html>sign in</html>")
    return str(folder / "t.geojson")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (no_crs, r"labels .*t.gpkg have no CRS; set it: ogr2ogr -a_srs"),
        (crowns, r"t.gpkg hold 2 of type Polygon, and trees are points; give each a point, such as its centroid"),
        (empty, r"t.gpkg are empty: no feature has a geometry"),
        (nowhere, r"t.parquet are empty: no feature has a geometry"),
        (metres_called_degrees, r"coordinates up to 4,999,99\d\.\d are no degrees .* as their CRS WGS 84 says"),
        (height_model, r"chm.tif: a raster cannot label trees; give a file of points"),
        (web_page, r"labels .*t.geojson: is a web page"),
        (lambda folder: str(folder / "none.gpkg"), r"labels .*none.gpkg: no such file"),
    ],
)
def test_tree_labels_that_cannot_be_are_refused(
    tmp_path: Path, image: Path, make: Callable[[Path], str], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        chips_of("trees", make(tmp_path), image, tmp_path)


def test_a_missing_column_is_named_with_the_nearest_one(tmp_path: Path, image: Path) -> None:
    path = write_vector(tmp_path / "t.gpkg", on_ground(SPOTS), chip=["a", "a"], height_m=[1.0, 2.0])
    with pytest.raises(ConfigError, match=r"t.gpkg have no column ship; did you mean chip\?"):
        chips_of("trees", path, image, tmp_path, scene_column="ship")
    with pytest.raises(ConfigError, match=r"t.gpkg have no column heights; did you mean height_m\?"):
        chips_of("canopy", path, image, tmp_path, height_column="heights", radius_m=5)


def test_rasters_and_points_are_not_mixed(tmp_path: Path, image: Path) -> None:
    points = write_vector(tmp_path / "t.gpkg", on_ground(SPOTS), height_m=[1.0, 2.0])
    with pytest.raises(InputError, match=r"chm.tif and .*t.gpkg are of two kinds"):
        chips_of("canopy", [points, height_model(tmp_path)], image, tmp_path)


def test_a_layer_has_to_be_chosen_by_the_options_own_name(tmp_path: Path, image: Path) -> None:
    frame = gpd.GeoDataFrame(geometry=on_ground(SPOTS), crs="EPSG:32633")
    for layer in ("palms", "oaks"):
        frame.to_file(tmp_path / "t.gpkg", layer=layer)
    with pytest.raises(InputError, match=r"holds 2 layers, .*; choose one with --label-layer"):
        chips_of("trees", str(tmp_path / "t.gpkg"), image, tmp_path)
    assert len(chips_of("trees", str(tmp_path / "t.gpkg"), image, tmp_path, layer="oaks")) == 1


def test_footprints_lie_in_their_chip_with_radius_in_pixels_and_height_in_metres(tmp_path: Path, image: Path) -> None:
    path = write_vector(tmp_path / "t.gpkg", on_ground(SPOTS), height_m=[12.5, -0.5], radius_m=[3.0, 6.0])
    chips = chips_of("canopy", path, image, tmp_path)
    assert chips.footprints is not None and chips.heights is None
    wanted = [(20.5, 30.25, 5.0, 12.5), (40.0, 12.0, 10.0, 0.0)]
    np.testing.assert_allclose(chips.footprints[0], wanted, atol=1e-3)
    rows, cols = np.indices((SIDE, SIDE)) + 0.5
    inside = [(rows - y) ** 2 + (cols - x) ** 2 <= radius**2 for x, y, radius, _ in wanted]
    assert (chips.labelled[0] == (inside[0] | inside[1])).all()


@pytest.mark.parametrize(
    ("column", "options", "radius_m"),
    [
        ("rh98", {}, 12.0),
        ("RH98", {}, 12.0),
        ("h_canopy", {}, 7.0),
        ("height", {"sensor": "icesat-2"}, 7.0),
        ("height", {"radius_m": 4.5}, 4.5),
        ("rh98", {"radius_m": 4.5}, 4.5),
        ("height", {"radius_column": "size"}, 9.0),
        ("p98", {"height_column": "p98", "sensor": "gedi"}, 12.0),
    ],
)
def test_the_radius_is_the_users_or_the_sensors(
    tmp_path: Path, image: Path, column: str, options: dict[str, object], radius_m: float
) -> None:
    path = write_vector(tmp_path / "t.gpkg", on_ground([(32, 32)]), **{column: [8.0]}, size=[9.0])
    chips = chips_of("canopy", path, image, tmp_path, **options)
    assert chips.footprints is not None
    assert chips.footprints[0][0, 2] * GSD == pytest.approx(radius_m)


def test_footprints_that_say_too_little_are_refused_or_counted(tmp_path: Path, image: Path) -> None:
    bare = write_vector(tmp_path / "bare.gpkg", on_ground(SPOTS), note=["x", "y"])
    with pytest.raises(
        ConfigError, match=r"which column holds heights in metres\? It has note: name one with --height-column"
    ):
        chips_of("canopy", bare, image, tmp_path)
    with pytest.raises(InputError, match="column note holds no numbers"):
        chips_of("canopy", bare, image, tmp_path, height_column="note", radius_m=5)
    unsized = write_vector(tmp_path / "unsized.gpkg", on_ground(SPOTS), height=[1.0, 2.0])
    with pytest.raises(ConfigError, match="nothing says the radius of a footprint"):
        chips_of("canopy", unsized, image, tmp_path)
    with pytest.raises(ConfigError, match="sensor lvis must be one of gedi, icesat-2"):
        chips_of("canopy", unsized, image, tmp_path, sensor="lvis")
    gap = write_vector(tmp_path / "gap.gpkg", on_ground(SPOTS), height=[1.0, np.nan])
    chips = chips_of("canopy", gap, image, tmp_path, radius_m=5)
    assert chips.dropped == {"label without a height or radius": 1}


def test_heights_of_points_are_refused_in_feet_and_out_of_range(tmp_path: Path, image: Path) -> None:
    feet = write_vector(tmp_path / "feet.gpkg", on_ground(SPOTS), height_ft=[40.0, 50.0])
    with pytest.raises(InputError, match=r"column height_ft is in feet; multiply by 0.3048"):
        chips_of("canopy", feet, image, tmp_path, radius_m=5)
    wild = write_vector(tmp_path / "wild.gpkg", on_ground([*SPOTS, (1, 1)]), height=[-9999.0, -9999.0, 8.0])
    with pytest.raises(
        InputError,
        match=r"column height: 2 of 3 heights cannot .* \(2 under -5 m, .*\); -9999 looks .*: empty these cells",
    ):
        chips_of("canopy", wild, image, tmp_path, radius_m=5)


def test_a_footprint_that_is_not_wholly_on_imagery_is_left_out(tmp_path: Path, image: Path) -> None:
    path = write_vector(tmp_path / "t.gpkg", on_ground([(4.9, 30), (5.1, 30)]), height=[5.0, 6.0])
    chips = chips_of("canopy", path, image, tmp_path, radius_m=3)
    assert chips.footprints is not None and chips.footprints[0][:, 3].tolist() == [6.0]
    assert chips.dropped == {"label not wholly on imagery": 1}


@settings(max_examples=20)
@given(st.lists(st.tuples(st.floats(12, 188), st.floats(12, 108)), min_size=1, max_size=30, unique=True))
def test_each_footprint_that_fits_the_imagery_is_in_one_chip_only(spots: list[tuple[float, float]]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_image(folder / "a.tif", (120, 200))
        heights = np.arange(len(spots)) % 100 + 1.0
        path = write_vector(folder / "t.gpkg", on_ground(spots), height=heights, radius_m=[6.0] * len(spots))
        chips = chips_of("canopy", path, folder / "a.tif", folder)
        assert chips.footprints is not None
        doubles = chips.dropped.get("duplicate label", 0)
        assert sum(map(len, chips.footprints)) == len(spots) - doubles
        assert set(chips.dropped) <= {"duplicate label", "chip without a label"}


@given(st.floats(0, 9.99), st.floats(0, 9.99), st.floats(0.01, 12))
def test_a_circle_holds_the_pixels_whose_centres_are_near_and_its_own(x: float, y: float, radius: float) -> None:
    window, mask = circle_of(x, y, radius)
    held = {(window.row + row, window.col + col) for row, col in np.argwhere(mask).tolist()}
    near = {
        (row, col)
        for row in range(-15, 25)
        for col in range(-15, 25)
        if (row + 0.5 - y) ** 2 + (col + 0.5 - x) ** 2 <= radius**2
    }
    assert held == near | {(int(y), int(x))}


def test_labels_are_cut_to_the_pixels_that_are_there() -> None:
    valid = np.ones((8, 8), bool)
    valid[:, 4:] = False
    arrays = {"labelled": np.ones((8, 8), bool), "heights": np.ones((8, 8), np.float32)}
    left = cut_to_valid(Burnt(arrays, np.array([0])), valid)
    assert left is not None and (np.isfinite(left.arrays["heights"]) == valid).all()
    assert cut_to_valid(Burnt(arrays, np.array([0])), np.zeros((8, 8), bool)) is None


def test_class_polygons_hold_the_pixels_whose_centres_are_in_them(tmp_path: Path, image: Path) -> None:
    shapes = [square(0, 0, 20, 64), square(20, 0, 40, 64), square(30, 0, 50, 64)]
    path = write_vector(tmp_path / "t.gpkg", shapes, to="EPSG:4326", kind=["grass", "tree", "grass"])
    chips = chips_of("segment", path, image, tmp_path, class_column="kind")
    assert chips.class_names == ("grass", "tree") and chips.classes is not None
    wanted = np.full((SIDE, SIDE), 255, np.uint8)
    wanted[:, :20], wanted[:, 20:30], wanted[:, 40:50] = 0, 1, 0
    assert (chips.classes[0] == wanted).all()
    assert (chips.labelled[0] == (chips.classes[0] != 255)).all()


def test_the_class_table_orders_joins_and_limits_classes(tmp_path: Path, image: Path) -> None:
    shapes = [square(0, 0, 20, 64), square(20, 0, 40, 64), square(40, 0, 50, 64), square(50, 0, 60, 64)]
    path = write_vector(tmp_path / "t.gpkg", shapes, code=[3.0, 1.0, 2.0, np.nan])
    table = {"class_column": "code", "classes": ("2=tree", "1=open", "3=open")}
    chips = chips_of("segment", path, image, tmp_path, **table)
    assert chips.class_names == ("tree", "open") and chips.classes is not None
    assert chips.classes[0][5, [5, 25, 45, 55]].tolist() == [1, 1, 0, 255]
    assert chips.dropped == {"label without a class": 1}
    with pytest.raises(InputError, match=r"column code holds 3 \(1 feature\), and the class table knows 2, 1 only"):
        chips_of("segment", path, image, tmp_path, class_column="code", classes=("2=tree", "1=open"))
    with pytest.raises(ConfigError, match="each value may be named once"):
        chips_of("segment", path, image, tmp_path, class_column="code", classes=("2=tree", "2=open"))
    with pytest.raises(
        ConfigError, match=r"which column holds the classes\? It has code: name one with --class-column"
    ):
        chips_of("segment", path, image, tmp_path)


def test_an_outline_that_crosses_itself_counts_for_what_it_encloses(tmp_path: Path, image: Path) -> None:
    corners = [(10, 10), (50, 50), (50, 10), (10, 50)]
    bow = shapely.Polygon([(WEST + x * GSD, NORTH - y * GSD) for x, y in corners])
    path = write_vector(tmp_path / "t.gpkg", [bow], kind=["tree"])
    chips = chips_of("segment", path, image, tmp_path, class_column="kind")
    assert chips.classes is not None and chips.classes[0][30, [15, 28, 32, 45]].tolist() == [0, 0, 0, 0]
    assert chips.classes[0][[12, 48], 30].tolist() == [255, 255]


def test_long_edges_stay_true_in_another_crs() -> None:
    (moved_box,) = placed(np.array([shapely.box(14, 44, 16, 46)], object), CRS("EPSG:4326"), CRS("EPSG:32633"))
    north = Transformer.from_crs("EPSG:4326", "EPSG:32633", always_xy=True).transform(14.5, 46)
    assert moved_box.boundary.distance(shapely.Point(north)) < 0.1


def test_points_are_no_class_polygons(tmp_path: Path, image: Path) -> None:
    path = write_vector(tmp_path / "t.gpkg", on_ground(SPOTS), kind=["a", "b"])
    with pytest.raises(InputError, match="hold 2 of type Point, and classes outside of rasters are polygons"):
        chips_of("segment", path, image, tmp_path, class_column="kind")


def test_a_plot_is_one_chip_around_its_middle_and_within_the_image(tmp_path: Path) -> None:
    pixels = write_image(tmp_path / "a.tif", (200, 200))
    path = write_vector(tmp_path / "t.gpkg", on_ground([(100.3, 90.3), (10, 195)]), kind=["forest", "field"])
    chips = chips_of("classify", path, tmp_path / "a.tif", tmp_path, class_column="kind")
    assert chips.class_names == ("field", "forest") and chips.labels is not None
    assert chips.labels.tolist() == [1, 0] and chips.labels.dtype == np.int64
    for number, (row, col) in enumerate([(58, 68), (136, 0)]):
        assert (chips.images[number] == pixels[:, row : row + 64, col : col + 64].astype(np.uint16) * 257).all()
    assert chips.labelled[:].all()
    plot = write_vector(tmp_path / "p.gpkg", [square(96, 80, 106, 110)], kind=["forest"])
    drawn = chips_of("classify", plot, tmp_path / "a.tif", tmp_path, class_column="kind")
    assert drawn.labelled[0].sum() == 10 * 30 and drawn.labelled[0][17:47, 27:37].all()


def test_plots_of_one_picture_must_agree(tmp_path: Path, image: Path) -> None:
    path = write_vector(tmp_path / "t.gpkg", on_ground(SPOTS), kind=["forest", "field"])
    why = "label that another on the same chip contradicts"
    with pytest.raises(SourceError, match=rf"no label can be used on 1 scene such as a \({why}: 2\)"):
        chips_of("classify", path, image, tmp_path, class_column="kind")
    write_image(tmp_path / "a.tif", (SIDE, 3 * SIDE))
    spots = on_ground([(160, 32), (160, 32.1), (32, 32), (96, 32)])
    more = write_vector(tmp_path / "m.gpkg", spots, kind=["forest", "field", "field", "forest"])
    chips = chips_of("classify", more, image, tmp_path, class_column="kind")
    assert chips.labels is not None and chips.labels.tolist() == [0, 1]
    assert chips.dropped == {why: 2, "chip without a label": 1}


def test_a_class_that_no_chip_shows_is_refused_unless_it_was_named(tmp_path: Path, image: Path) -> None:
    spots = on_ground([SPOTS[0], (9 * SIDE, 5)])
    path = write_vector(tmp_path / "t.gpkg", spots, kind=["forest", "field"])
    with pytest.raises(InputError, match=r"no chip shows class field; leave it out of the labels, or name all classes"):
        chips_of("classify", path, image, tmp_path, class_column="kind")
    chips = chips_of("classify", path, image, tmp_path, class_column="kind", classes=("forest", "field"))
    assert len(chips) == 1 and chips.class_names == ("forest", "field")
