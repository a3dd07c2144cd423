"""Finished maps against label files, on made data with known answers and on real heights."""

from __future__ import annotations

from pathlib import Path

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pytest
import rasterio
from affine import Affine
from rasterio.warp import Resampling, calculate_default_transform, reproject
from scipy import ndimage
from shapely.geometry import box

from geodino.errors import ConfigError, InputError
from geodino.evaluation.maps import evaluate_map
from geodino.evaluation.report import Report
from geodino.evaluation.tasks import Settings
from geodino.training.label_files import LabelOptions

WEST, NORTH, GSD = 493_800.0, 4_878_600.0, 0.6
CHANCE = np.random.default_rng(0)


def write(path: Path, values: npt.NDArray[np.generic], *, col: int = 0, row: int = 0, nodata: float = -9999) -> Path:
    transform = Affine(GSD, 0, WEST + col * GSD, 0, -GSD, NORTH - row * GSD)
    height, width = values.shape
    profile = {"driver": "GTiff", "dtype": values.dtype, "count": 1, "height": height, "width": width}
    with rasterio.open(path, "w", crs="EPSG:26910", transform=transform, nodata=nodata, **profile) as target:
        target.write(values, 1)
    return path


def heights(rows: int, cols: int) -> npt.NDArray[np.float32]:
    rough = ndimage.gaussian_filter(CHANCE.normal(0, 1, (rows, cols)), 5)
    return np.clip(rough / rough.std() * 10 + 8, 0, 60).astype(np.float32)


def value(report: Report, name: str) -> float:
    return report.figure(name).value


def points(path: Path, xy: npt.NDArray[np.float64], *, crs: str = "EPSG:26910", **columns: object) -> Path:
    """Points given in map metres from the north-west corner, x right and y down."""
    frame = gpd.GeoDataFrame(columns, geometry=gpd.points_from_xy(WEST + xy[:, 0], NORTH - xy[:, 1]), crs="EPSG:26910")
    frame.to_crs(crs).to_file(path, driver="GPKG" if path.suffix == ".gpkg" else "GeoJSON")
    return path


def test_a_map_on_the_labels_pixels_gives_the_plain_figures(tmp_path: Path) -> None:
    truth = heights(430, 620)
    said = np.maximum(truth + CHANCE.normal(0.5, 2, truth.shape), -4).astype(np.float32)
    said[100:120, 100:200], truth[300:, 500:] = -9999, -9999
    write(tmp_path / "map_spread.tif", np.full_like(said, 2.0))
    report = evaluate_map("canopy", write(tmp_path / "map.tif", said), [write(tmp_path / "chm.tif", truth)]).report
    known = (said != -9999) & (truth != -9999)
    error = (said - truth)[known].astype(np.float64)
    assert value(report, "mae_m") == pytest.approx(np.abs(error).mean())
    assert value(report, "r2") == pytest.approx(1 - (error**2).sum() / truth[known].var() / known.sum(), abs=1e-4)
    assert value(report, "within_spread") == pytest.approx(100 * (np.abs(error) <= 2).mean(), abs=0.01)
    assert report.counts == {"places": 1, "pixels": int(known.sum())}
    assert report.dropped["labelled pixels that the map does not know"] == 20 * 100
    assert report.dropped["mapped pixels without a label"] == 130 * 120
    means = [
        (said[r : r + 50, c : c + 50][here].mean(), truth[r : r + 50, c : c + 50][here].mean())
        for r in range(0, 430, 50)
        for c in range(0, 620, 50)
        if (here := known[r : r + 50, c : c + 50]).sum() >= 2250
    ]
    ours, theirs = np.array(means, np.float64).T
    wanted = 1 - ((ours - theirs) ** 2).sum() / ((theirs - theirs.mean()) ** 2).sum()
    assert value(report, "block_r2") == pytest.approx(wanted, abs=1e-4)


def test_labels_elsewhere_on_the_map_are_laid_where_they_belong(tmp_path: Path) -> None:
    said = heights(500, 500)
    path = write(tmp_path / "map.tif", said)
    labels = write(tmp_path / "chm.tif", said[220:330, 140:290] + 1, col=140, row=220)
    report = evaluate_map("canopy", path, [labels]).report
    assert value(report, "bias_m") == pytest.approx(-1, abs=1e-5)
    assert report.counts["pixels"] == 110 * 150


def test_labels_in_another_crs_are_warped(tmp_path: Path) -> None:
    truth = ndimage.gaussian_filter(heights(300, 300), 6)
    path = write(tmp_path / "map.tif", truth + 2)
    with rasterio.open(write(tmp_path / "here.tif", truth)) as source:
        transform, width, height = calculate_default_transform(
            source.crs, "EPSG:4326", source.width, source.height, *source.bounds
        )
        profile = source.profile | {"crs": "EPSG:4326", "transform": transform, "width": width, "height": height}
        with rasterio.open(tmp_path / "there.tif", "w", **profile) as target:
            reproject(
                rasterio.band(source, 1), rasterio.band(target, 1), resampling=Resampling.bilinear, dst_nodata=-9999
            )
    report = evaluate_map("canopy", path, [tmp_path / "there.tif"]).report
    assert value(report, "bias_m") == pytest.approx(2, abs=0.02)
    assert value(report, "mae_m") == pytest.approx(2, abs=0.05)
    assert report.counts["pixels"] > 0.95 * truth.size


def test_label_files_far_apart_are_places_of_their_own(tmp_path: Path) -> None:
    said = heights(300, 4000)
    path = write(tmp_path / "map.tif", said)
    labels = [
        write(tmp_path / f"{i}.tif", said[:200, c : c + 200] - i, col=c) for i, c in enumerate(range(0, 4000, 750))
    ]
    report = evaluate_map("canopy", path, labels).report
    assert report.intervals == "6 places"
    low, high = report.figure("mae_m").low, report.figure("mae_m").high
    assert low is not None and high is not None and low < 2.5 < high


def test_footprints_on_a_map(tmp_path: Path) -> None:
    said = heights(700, 700)
    xy = CHANCE.uniform(20, 400, (60, 2))
    centres = xy / GSD
    rows, cols = np.mgrid[:700, :700] + 0.5
    inside = [np.percentile(said[np.hypot(rows - y, cols - x) <= 12 / GSD], 98) for x, y in centres]
    labels = points(tmp_path / "gedi.gpkg", xy, crs="EPSG:4326", rh98=np.array(inside) - 1.5)
    report = evaluate_map("canopy", write(tmp_path / "map.tif", said), [labels]).report
    assert report.counts["footprints"] == 60
    assert value(report, "bias_m") == pytest.approx(1.5, abs=0.1)  # a pixel on the rim may fall on either side
    assert report.intervals.startswith("9 squares of 250 px, not over places")


def test_every_footprint_is_measured_or_has_a_reason(tmp_path: Path) -> None:
    said = heights(600, 600)
    said[:200, :300] = -9999
    xy = CHANCE.uniform(-40, 400, (200, 2))  # the map ends at 0 and 360 m
    labels = points(tmp_path / "gedi.gpkg", xy, rh98=np.full(200, 9.0))
    report = evaluate_map("canopy", write(tmp_path / "map.tif", said), [labels]).report
    assert report.dropped["footprints that the map does not know"] > 10
    assert report.dropped["labels off the map"] == ((xy < 0) | (xy > 360)).any(axis=1).sum() > 20
    assert report.counts["footprints"] + sum(report.dropped.values()) == 200


def test_classes_of_a_map(tmp_path: Path) -> None:
    true = CHANCE.integers(1, 4, (120, 90)).astype(np.uint8)
    said = np.where(true == 3, 1, true).astype(np.uint8)  # the third class is called the first
    options = LabelOptions(classes=("1=water", "2=tree", "3=roof"))
    report = evaluate_map(
        "segment",
        write(tmp_path / "map.tif", said, nodata=255),
        [write(tmp_path / "true.tif", true, nodata=0)],
        options=options,
    ).report
    counts = np.bincount(true.ravel())[1:]
    assert value(report, "accuracy") == pytest.approx((counts[0] + counts[1]) / counts.sum())
    assert value(report, "miou") == pytest.approx((counts[0] / (counts[0] + counts[2]) + 1 + 0) / 3)


def test_tree_points_against_tree_points_in_another_crs(tmp_path: Path) -> None:
    """600 trees over four squares; 150 are missed, 100 made up, the others 1 m off; some pairs lie across borders."""
    xy = np.stack(np.meshgrid(np.arange(25) * 12.0, np.arange(24) * 12.0), axis=-1).reshape(-1, 2) + 6
    seen = xy[np.arange(600) % 4 != 0]
    made_up = xy[:100] + np.array([6.0, 6.0])
    said = np.concatenate([seen + np.array([1.0, 0.0]), made_up])
    path = points(tmp_path / "trees.gpkg", said, crs="EPSG:4326", score=np.repeat([0.9, 0.6], [450, 100]))
    labels = [points(tmp_path / "true.geojson", xy, crs="EPSG:4326")]
    report = evaluate_map("trees", path, labels, settings=Settings(threshold=0.5, within_m=3)).report
    assert value(report, "recall") == pytest.approx(450 / 600)
    # Those 1 m or 6 m east of the last labelled column stand where nobody looked: no hits of theirs, and no mistakes.
    assert report.dropped["predicted trees off the labelled ground"] == 18 + 4
    assert value(report, "precision") == pytest.approx((450 - 18) / (550 - 22))
    assert value(report, "distance_m") == pytest.approx(1, abs=0.01)
    assert report.counts["trees"] == 600
    high = evaluate_map("trees", path, labels, settings=Settings(threshold=0.7, within_m=3)).report
    assert value(high, "precision") == 1


@pytest.mark.parametrize(
    ("side", "unit", "count"),
    [(100, "square of 250 px", 1), (256, "square of 256 px", 1), (520, "square of 260 px", 4)],
)
def test_ground_a_little_wider_than_a_square_is_no_second_square(
    side: int, unit: str, count: int, tmp_path: Path
) -> None:
    xy = CHANCE.uniform(0, side * GSD, (200, 2))
    xy[:2] = [[0.3, 0.3], [side * GSD - 0.3, side * GSD - 0.3]]
    path = points(tmp_path / "trees.gpkg", xy)
    report = evaluate_map("trees", path, [path]).report
    assert report.counts["squares"] == count
    assert report.figure("count_mae").title == f"count MAE a {unit}"
    assert report.figure("count_r2").value == (1 if count > 1 else pytest.approx(np.nan, nan_ok=True))


def test_labels_of_far_more_ground_than_a_map_has_are_refused(tmp_path: Path) -> None:
    said = points(tmp_path / "said.gpkg", np.array([[10.0, 10.0], [80.0, 40.0]]), score=[0.9, 0.8])
    true = points(tmp_path / "true.gpkg", np.array([[10.0, 10.0], [90_000.0, 80_000.0]]))
    with pytest.raises(InputError, match=r"the labels span 90 x 80 km .*: give the labels of the mapped ground alone"):
        evaluate_map("trees", said, [true])


def test_an_area_says_where_no_tree_is(tmp_path: Path) -> None:
    true = points(tmp_path / "true.gpkg", np.array([[30.0, 30], [40, 40]]))
    said = points(tmp_path / "said.gpkg", np.array([[30.0, 30], [40, 40], [390, 390]]))
    bare = evaluate_map("trees", said, [true]).report
    assert value(bare, "precision") == 1
    assert bare.dropped["predicted trees off the labelled ground"] == 1
    area = gpd.GeoDataFrame(geometry=[box(WEST, NORTH - 400, WEST + 400, NORTH)], crs="EPSG:26910")
    area.to_file(tmp_path / "area.gpkg")
    whole = evaluate_map("trees", said, [true], options=LabelOptions(area=str(tmp_path / "area.gpkg"))).report
    assert value(whole, "precision") == pytest.approx(2 / 3)
    area.assign(geometry=[box(WEST, NORTH - 35, WEST + 35, NORTH)]).to_file(tmp_path / "small.gpkg")
    small = evaluate_map("trees", said, [true], options=LabelOptions(area=str(tmp_path / "small.gpkg"))).report
    assert small.counts["trees"] + small.dropped["label outside the area"] == 1 + 1


def test_what_does_not_meet_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "map.tif", heights(60, 60))
    away = write(tmp_path / "away.tif", heights(60, 60), col=5000)
    with pytest.raises(InputError, match=r"no label lies on .*map\.tif: check the CRS of both"):
        evaluate_map("canopy", path, [away])
    empty = write(tmp_path / "empty.tif", np.full((60, 60), -9999, np.float32))
    with pytest.raises(InputError, match=r"nothing of .*map\.tif is labelled"):
        evaluate_map("canopy", path, [empty])
    with pytest.raises(ConfigError, match="a map of classify cannot be evaluated: there are maps of canopy, segment"):
        evaluate_map("classify", path, [away])
    feet = write(tmp_path / "feet.tif", heights(60, 60) * 3.3 + 30)
    with pytest.raises(InputError, match=r"feet\.tif: [\d,]+ of 3,600 heights cannot be metres"):
        evaluate_map("canopy", path, [feet])
    rgb = tmp_path / "rgb.tif"
    with rasterio.open(rgb, "w", driver="GTiff", dtype="uint8", count=3, height=9, width=9, crs="EPSG:26910",
                       transform=Affine(1, 0, WEST, 0, -1, NORTH)) as target:  # fmt: skip
        target.write(np.zeros((3, 9, 9), np.uint8))
    with pytest.raises(InputError, match=r"^map .*rgb\.tif have 3 bands"):
        evaluate_map("canopy", rgb, [path])


def test_a_blurred_map_of_real_heights(shared_data: Path, tmp_path: Path) -> None:
    labels = shared_data / "canopy" / "scenes" / "autzen_val_chm.tif"
    with rasterio.open(labels) as source:
        truth, profile = source.read(1).astype(np.float64), source.profile
    said = ndimage.gaussian_filter(truth, 2).astype(np.float32)
    with rasterio.open(tmp_path / "map.tif", "w", **profile) as target:
        target.write(said, 1)
    report = evaluate_map("canopy", tmp_path / "map.tif", [labels]).report
    error = said - truth
    assert value(report, "mae_m") == pytest.approx(np.abs(error).mean())
    assert value(report, "r2") == pytest.approx(1 - (error**2).mean() / truth.var())
    assert report.settings["constant_m"] == np.median(truth) == 0
    assert value(report, "edge_error") > 0.2


@pytest.mark.parametrize(
    ("classes", "values"), [(("1=tree", "0=other"), (0, 1)), (("5=tree", "0=other", "9=roof", "6=tree"), (0, 5, 6, 9))]
)
def test_a_class_map_against_itself_is_right_everywhere(
    classes: tuple[str, ...], values: tuple[int, ...], tmp_path: Path
) -> None:
    path = write(tmp_path / "veg.tif", CHANCE.choice(np.array(values, np.uint8), (90, 80)), nodata=255)
    report = evaluate_map("segment", path, [path], options=LabelOptions(classes=classes)).report
    assert value(report, "miou") == value(report, "accuracy") == 1
    assert report.notes == ("values of the map: " + ", ".join(entry.replace("=", " is ") for entry in classes),)


def test_class_polygons_name_the_values_of_a_map(tmp_path: Path) -> None:
    said = np.full((100, 100), 7, np.uint8)
    said[:, :50] = 2
    path = write(tmp_path / "map.tif", said, nodata=255)
    west, north = WEST, NORTH
    halves = [box(west, north - 60, west + 30, north), box(west + 30, north - 60, west + 60, north)]
    drawn = gpd.GeoDataFrame({"code": [2, 7], "name": ["tree", "roof"]}, geometry=halves, crs="EPSG:26910")
    drawn.to_file(tmp_path / "true.gpkg")
    for column, classes in (("code", ()), ("code", ("7=roof", "2=tree")), ("name", ("7=roof", "2=tree"))):
        options = LabelOptions(class_column=column, classes=classes)
        assert value(evaluate_map("segment", path, [tmp_path / "true.gpkg"], options=options).report, "miou") == 1
    numbered = write(tmp_path / "numbered.tif", (said == 2).astype(np.uint8), nodata=255)
    report = evaluate_map("segment", numbered, [tmp_path / "true.gpkg"], options=LabelOptions(class_column="name"))
    assert value(report.report, "miou") == 1
    assert report.report.notes == ("values of the map: 0 is roof, 1 is tree",)
    with pytest.raises(InputError, match=r"^map .*map\.tif hold 2 \(5,000 pixels\), 7 \(5,000 pixels\), and the class"):
        evaluate_map("segment", path, [tmp_path / "true.gpkg"], options=LabelOptions(class_column="name"))


@pytest.mark.parametrize(("wrong", "cause"), [(150.0, "in feet"), (-9999.0, "nodata that is not declared")])
def test_a_map_of_what_cannot_be_heights_is_refused(wrong: float, cause: str, tmp_path: Path) -> None:
    truth = heights(60, 60)
    said = truth.copy()
    said[3:5, 7:9] = wrong
    labels = write(tmp_path / "chm.tif", truth)
    with pytest.raises(InputError, match=rf"^map .*map\.tif: 4 of 3,600 heights cannot be metres of canopy .*{cause}"):
        evaluate_map("canopy", write(tmp_path / "map.tif", said, nodata=-1), [labels])
