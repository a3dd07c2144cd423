"""Chips from label files and imagery: pixels kept, labels in their places, folders that are whole or not there."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import shapely
from training_data import (
    GSD,
    NORTH,
    SIDE,
    UTM,
    WEST,
    chips_of,
    on_ground,
    square,
    write_image,
    write_raster,
    write_vector,
)

from geodino.errors import ConfigError, InputError, OutputError, SourceError
from geodino.radiometry import decide
from geodino.training import cutting
from geodino.training.chips import ChipOptions, open_chips
from geodino.watch import Silent

TREES = [(0.0, 0.0), (10.25, 20.5), (63.99, 63.99)]


def trees(folder: Path, name: str = "trees.gpkg", **given: object) -> str:
    return write_vector(folder / name, on_ground(TREES), **given)  # type: ignore[arg-type]


def test_a_scene_of_a_chips_size_is_one_chip_with_its_pixels_untouched(tmp_path: Path) -> None:
    pixels = np.arange(256).repeat(48).astype(np.uint8).reshape(3, SIDE, SIDE)
    write_image(tmp_path / "a.tif", pixels=pixels)
    chips = chips_of(
        "canopy", write_raster(tmp_path / "chm.tif", np.ones((SIDE, SIDE), "f4")), tmp_path / "a.tif", tmp_path
    )
    assert len(chips) == 1 and chips.valid[0].all() and chips.table.chip[0] == "a"
    assert (chips.images[0] == pixels.astype(np.uint16) * 257).all()
    line = decide("uint8", None, None)
    assert line is not None and (chips.image(0) == line.apply(pixels)).all()
    assert chips.table.loc[0, ["west", "north", "crs"]].tolist() == [WEST, NORTH, UTM]


def test_points_are_pixels_from_the_north_west_corner_and_on_an_edge_once(tmp_path: Path) -> None:
    write_image(tmp_path / "a.tif")
    edge = [*TREES, (64.0, 5.0), (5.0, 64.0), (-0.01, 5.0)]
    path = write_vector(tmp_path / "trees.gpkg", on_ground(edge))
    chips = chips_of("trees", path, tmp_path / "a.tif", tmp_path)
    assert chips.points is not None
    np.testing.assert_allclose(chips.points[0], TREES, atol=1e-3)
    assert chips.dropped == {"label outside the imagery": 3}


def test_a_point_on_the_seam_of_two_scenes_is_in_the_one_to_its_east_or_south(tmp_path: Path) -> None:
    # Of half metres, so that every coordinate is exact.
    for number, at in enumerate([(5e5, 5e6), (5e5 + 32, 5e6), (5e5, 5e6 - 32)]):
        write_image(tmp_path / f"{number}.tif", at=at, gsd=0.5)
    path = write_vector(tmp_path / "t.gpkg", [shapely.Point(5e5 + 32, 5e6 - 8), shapely.Point(5e5 + 8, 5e6 - 32)])
    area = write_vector(tmp_path / "area.gpkg", [shapely.box(4.9e5, 4.9e6, 5.1e5, 5.1e6)])
    chips = chips_of("trees", path, str(tmp_path / "?.tif"), tmp_path, gsd_m=0.5, area=area)
    assert chips.points is not None
    assert [points.tolist() for points in chips.points] == [[], [[0.0, 16.0]], [[16.0, 0.0]]]


@pytest.mark.parametrize("name", ["trees.parquet", "trees.geojson", "trees.fgb", "trees.shp"])
@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:3035"])
def test_points_of_any_format_and_crs_fall_into_the_same_pixels(tmp_path: Path, name: str, crs: str) -> None:
    write_image(tmp_path / "a.tif")
    if name == "trees.geojson":
        crs = "EPSG:4326"
    path = write_vector(tmp_path / name, on_ground(TREES[1:2]), to=crs, n=[1])
    chips = chips_of("trees", path, tmp_path / "a.tif", tmp_path)
    assert chips.points is not None
    np.testing.assert_allclose(chips.points[0], TREES[1:2], atol=0.02)


@pytest.mark.parametrize(
    ("crs", "gsd", "at"), [("EPSG:32633", 0.3, (WEST, NORTH)), ("EPSG:4326", 5.4e-6, (15.00005, 45.1548))]
)
def test_an_image_that_is_resampled_keeps_its_labels_where_they_are(
    tmp_path: Path, crs: str, gsd: float, at: tuple[float, float]
) -> None:
    pixels = np.full((3, 200, 200), 20, np.uint8)
    pixels[:, 90:94, 120:124] = 250
    write_image(tmp_path / "a.tif", pixels=pixels, crs=crs, gsd=gsd, at=at)
    spot = shapely.Point(at[0] + 122 * gsd, at[1] - 92 * gsd)
    corners = shapely.box(at[0], at[1] - 200 * gsd, at[0] + 200 * gsd, at[1])
    area = write_vector(tmp_path / "area.gpkg", [corners], crs=crs)
    chips = chips_of(
        "trees", write_vector(tmp_path / "t.gpkg", [spot], crs=crs), tmp_path / "a.tif", tmp_path, size=128, area=area
    )
    assert chips.points is not None
    for number, points in enumerate(chips.points):
        light = np.where(chips.valid[number], chips.image(number)[0] - 20 / 255, 0)
        middle = [(light * axis).sum() / light.sum() + 0.5 for axis in np.indices(light.shape)[::-1]]
        np.testing.assert_allclose(points[0], middle, atol=0.02)


def test_a_scene_smaller_than_a_chip_lies_in_its_middle_and_the_rest_is_neither_valid_nor_labelled(
    tmp_path: Path,
) -> None:
    pixels = write_image(tmp_path / "a.tif", (20, 11))
    path = write_raster(tmp_path / "chm.tif", np.full((20, 11), 7, "f4"))
    chips = chips_of("canopy", path, tmp_path / "a.tif", tmp_path)
    inside = np.zeros((SIDE, SIDE), bool)
    inside[22:42, 26:37] = True
    assert (chips.valid[0] == inside).all() and (chips.labelled[0] == inside).all()
    assert chips.heights is not None and (np.isfinite(chips.heights[0]) == inside).all()
    assert (chips.images[0][:, 22:42, 26:37] == pixels.astype(np.uint16) * 257).all()
    # Reflected, and again where the first reflection ends.
    assert (chips.images[0][:, 21, 26:37] == pixels[:, 1].astype(np.uint16) * 257).all()
    assert (chips.images[0][:, 22 + 38, 26:37] == pixels[:, 0].astype(np.uint16) * 257).all()


def test_a_larger_scene_is_covered_by_as_few_chips_as_can_be(tmp_path: Path) -> None:
    pixels = write_image(tmp_path / "a.tif", (64, 150))
    heights = np.random.default_rng(0).uniform(0, 30, (64, 150)).astype("f4")
    chips = chips_of("canopy", write_raster(tmp_path / "chm.tif", heights), tmp_path / "a.tif", tmp_path)
    assert chips.table.chip.tolist() == ["a_r0_c0", "a_r0_c43", "a_r0_c86"]
    assert chips.heights is not None
    for number, col in enumerate((0, 43, 86)):
        assert (chips.images[number] == pixels[:, :, col : col + 64].astype(np.uint16) * 257).all()
        assert (chips.heights[number] == heights[:, col : col + 64]).all()
        assert chips.table.west[number] == pytest.approx(WEST + col * GSD)


def test_a_point_belongs_to_the_scene_its_column_names_and_else_to_every_scene(tmp_path: Path) -> None:
    for year in ("y2016", "y2018"):
        write_image(tmp_path / f"{year}.tif")
    path = write_vector(tmp_path / "t.gpkg", on_ground(TREES), chip=["y2016", "y2018", "y1999"])
    sources = [str(tmp_path / "y2016.tif"), str(tmp_path / "y2018.tif")]
    bound = chips_of("trees", path, sources, tmp_path, scene_column="chip")
    assert bound.points is not None
    np.testing.assert_allclose(np.concatenate(bound.points), TREES[:2], atol=1e-3)
    assert bound.dropped == {"label of a scene that is not in the imagery": 1}
    assert bound.labelled[:].all()
    free = chips_of("trees", path, sources, tmp_path)
    assert free.points is not None and [len(points) for points in free.points] == [3, 3]
    with pytest.raises(InputError, match="column chip names none of 2 scenes, called such as y2016"):
        chips_of("trees", write_vector(tmp_path / "u.gpkg", on_ground(TREES), chip=["x"] * 3), sources, tmp_path,
                 scene_column="chip")  # fmt: skip


def test_a_scene_without_a_point_counts_only_where_somebody_says_that_it_was_looked_at(tmp_path: Path) -> None:
    write_image(tmp_path / "full.tif")
    write_image(tmp_path / "bare.tif", at=(WEST + 100, NORTH))
    path = write_vector(tmp_path / "t.gpkg", on_ground(TREES), chip=["full"] * 3)
    sources = [str(tmp_path / "*.tif")]
    assert len(chips_of("trees", path, sources, tmp_path, scene_column="chip")) == 1
    (tmp_path / "splits.csv").write_text("chip,split\nfull,train\nbare,train\n")
    named = chips_of("trees", path, sources, tmp_path, scene_column="chip", splits=(str(tmp_path / "splits.csv"),))
    assert named.points is not None and [len(points) for points in named.points] == [0, 3]
    area = write_vector(tmp_path / "area.gpkg", [square(-10, -10, 300, 32)])
    drawn = chips_of("trees", path, sources, tmp_path, area=area)
    assert drawn.points is not None and [len(points) for points in drawn.points] == [0, 2]
    assert drawn.labelled[1][:32].all() and not drawn.labelled[1][32:].any()


def test_trees_outside_the_area_are_counted_as_such_and_those_on_its_edge_count(tmp_path: Path) -> None:
    write_image(tmp_path / "a.tif")
    # The edge runs through pixel 20 before its centre, and a tree stands on that pixel's near side.
    area = write_vector(tmp_path / "area.gpkg", [square(0, 0, 20.3, 64)])
    spots = on_ground([(20.2, 10.5), (5, 5), (20.6, 40), (50, 50), (-9, 9)])
    path = write_vector(tmp_path / "t.gpkg", spots)
    chips = chips_of("trees", path, tmp_path / "a.tif", tmp_path, area=area)
    assert chips.points is not None and len(chips.points[0]) == 2
    assert chips.dropped == {"label outside the area": 3}
    assert chips.labelled[0][:, :20].all() and chips.labelled[0][:, 20:].sum() == 1
    away = write_vector(tmp_path / "away.gpkg", [square(100, 0, 120, 64)])
    with pytest.raises(InputError, match=r"no point lies in the area .*away.gpkg; check the CRS of both"):
        chips_of("trees", path, tmp_path / "a.tif", tmp_path, area=away)


def test_a_plot_hardly_larger_than_a_chip_is_one_chip_in_its_middle(tmp_path: Path) -> None:
    pixels = write_image(tmp_path / "a.tif", (33, 33))
    path = write_raster(tmp_path / "chm.tif", np.full((33, 33), 7, "f4"))
    chips = chips_of("canopy", path, tmp_path / "a.tif", tmp_path, size=32)
    assert len(chips) == 1
    assert (chips.images[0] == pixels[:, 1:33, 1:33].astype(np.uint16) * 257).all()
    write_image(tmp_path / "b.tif", (33, 34))
    wide = write_raster(tmp_path / "wide.tif", np.full((33, 34), 7, "f4"))
    assert len(chips_of("canopy", wide, tmp_path / "b.tif", tmp_path, size=32)) == 2


def test_without_an_area_trees_are_known_in_the_rectangle_around_them_alone(tmp_path: Path) -> None:
    write_image(tmp_path / "a.tif")
    path = write_vector(tmp_path / "t.gpkg", on_ground([(10.5, 20.5), (30.5, 40.5)]))
    chips = chips_of("trees", path, tmp_path / "a.tif", tmp_path)
    rows, cols = np.nonzero(chips.labelled[0])
    assert (rows.min(), rows.max(), cols.min(), cols.max()) == (20, 40, 10, 30)


def test_duplicate_points_count_once(tmp_path: Path) -> None:
    write_image(tmp_path / "a.tif")
    path = write_vector(tmp_path / "t.gpkg", on_ground([*TREES, *TREES[:2]]))
    chips = chips_of("trees", path, tmp_path / "a.tif", tmp_path)
    assert chips.points is not None and len(chips.points[0]) == 3 and chips.dropped == {"duplicate label": 2}


def test_labels_on_missing_pixels_are_left_out_and_counted(tmp_path: Path) -> None:
    pixels = np.full((3, SIDE, SIDE), 9, np.uint8)
    pixels[:, :30] = 0
    write_image(tmp_path / "a.tif", pixels=pixels, nodata=0)
    chips = chips_of("trees", trees(tmp_path), tmp_path / "a.tif", tmp_path)
    assert chips.points is not None and len(chips.points[0]) == 1
    assert chips.dropped == {"label not wholly on imagery": 2}
    assert (chips.labelled[0] <= chips.valid[0]).all() and not chips.valid[0][:30].any()
    assert (chips.images[0] == 9 * 257).all()


def test_labels_that_do_not_meet_the_imagery_are_refused(tmp_path: Path) -> None:
    write_image(tmp_path / "a.tif")
    far = write_vector(tmp_path / "far.gpkg", on_ground([(1e5, 1e5)]))
    with pytest.raises(
        SourceError, match=r"no imagery of .*a.tif lies over the labels \(longitude 15\.7.*check the CRS"
    ):
        chips_of("trees", far, tmp_path / "a.tif", tmp_path)
    near = write_vector(tmp_path / "near.gpkg", on_ground([(-5, 5)]))
    with pytest.raises(SourceError, match=r"no label .* such as a: the labels are at longitude .* the imagery at"):
        chips_of("trees", near, tmp_path / "a.tif", tmp_path)
    assert not list((tmp_path / "chips").glob("trees-*"))


def test_imagery_far_coarser_than_the_chips_is_refused(tmp_path: Path) -> None:
    write_image(tmp_path / "a.tif", gsd=10)
    with pytest.raises(
        SourceError, match=r"scene a: 10 m a pixel is too coarse for chips of 0.6 m; give imagery of at most 3 m"
    ):
        chips_of("trees", trees(tmp_path), tmp_path / "a.tif", tmp_path)


def test_a_second_call_finds_the_chips_and_another_input_makes_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_image(tmp_path / "a.tif")
    path = trees(tmp_path)
    first = chips_of("trees", path, tmp_path / "a.tif", tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(cutting, "_read", None)
        patch.chdir(tmp_path)
        again = chips_of("trees", "trees.gpkg", "a.tif", tmp_path)
    assert again.folder == first.folder and again.sha256 == first.sha256
    assert chips_of("trees", path, tmp_path / "a.tif", tmp_path, size=32).folder != first.folder
    write_image(tmp_path / "a.tif", seed=1)
    other = chips_of("trees", path, tmp_path / "a.tif", tmp_path)
    assert other.folder != first.folder and other.sha256 != first.sha256


def test_a_build_that_fails_leaves_nothing_and_the_next_one_clears_what_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_image(tmp_path / "a.tif")
    path = trees(tmp_path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(cutting.ChipWriter, "finish", full)
        with pytest.raises(OutputError, match=r"chips cannot be written into .*: No space left on device"):
            chips_of("trees", path, tmp_path / "a.tif", tmp_path)
    assert not [entry for entry in (tmp_path / "chips").iterdir() if entry.is_dir()]
    built = chips_of("trees", path, tmp_path / "a.tif", tmp_path).folder
    built.rename(built.with_name(f".{built.name}.part-1-00000000"))
    assert chips_of("trees", path, tmp_path / "a.tif", tmp_path).folder == built
    assert [entry for entry in (tmp_path / "chips").iterdir() if entry.is_dir()] == [built]


def test_the_hash_is_of_the_data_and_not_of_where_it_lies(tmp_path: Path) -> None:
    found = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_image(tmp_path / name / "a.tif", (64, 100))
        heights = np.ones((64, 100), "f4")
        path = write_raster(tmp_path / name / f"{name}.tif", heights)
        found.append(chips_of("canopy", path, tmp_path / name / "a.tif", tmp_path / name))
    one, two = found
    assert one.sha256 == two.sha256 and one.folder.name != two.folder.name
    assert one.subset([0, 1]).sha256 == one.sha256 != one.subset([1, 0]).sha256
    assert one.subset(np.array([False, True])).sha256 == one.subset([1]).sha256


def test_a_subset_shows_the_rows_it_was_asked_for_and_reads_nothing_else(tmp_path: Path) -> None:
    write_image(tmp_path / "a.tif", (64, 300))
    chips = chips_of("canopy", write_raster(tmp_path / "c.tif", np.ones((64, 300), "f4")), tmp_path / "a.tif", tmp_path)
    some = chips.subset([4, 0, 2]).subset([2, 0])
    assert some.table.chip.tolist() == chips.table.chip[[2, 4]].tolist() and len(some) == len(some.images) == 2
    assert some.images.shape == (2, 3, SIDE, SIDE) and some.images.dtype == np.uint16
    assert (np.asarray(some.images) == chips.images[[2, 4]]).all() and (some.images[-1] == chips.images[4]).all()
    assert [hashlib.sha256(row.tobytes()).hexdigest() for row in some.valid] == [
        hashlib.sha256(chips.valid[row].tobytes()).hexdigest() for row in (2, 4)
    ]
    assert some.heights is not None and some.heights[0:1].shape == (1, SIDE, SIDE)
    assert isinstance(chips.images[0].base, np.memmap | np.ndarray) and not chips.images[0].flags.owndata


def test_chips_that_were_cut_short_are_refused(tmp_path: Path) -> None:
    write_image(tmp_path / "a.tif")
    folder = chips_of("trees", trees(tmp_path), tmp_path / "a.tif", tmp_path).folder
    assert open_chips(folder).task == "trees"
    (folder / "images.bin").write_bytes((folder / "images.bin").read_bytes()[:-5])
    with pytest.raises(InputError, match=r"images.bin has 24571 bytes and not 24576: it was cut short"):
        open_chips(folder)
    (folder / "chips.json").write_text((folder / "chips.json").read_text().replace('"format": 1', '"format": 0'))
    with pytest.raises(InputError, match="chips of format 0, not 1; build them again"):
        open_chips(folder)
    with pytest.raises(InputError, match="holds no chips"):
        open_chips(tmp_path)


class Ears(Silent):
    def __init__(self) -> None:
        self.heard: list[str] = []

    def note(self, sentence: str) -> None:
        self.heard.append(sentence)

    warn = note


def test_what_a_user_should_know_is_said(tmp_path: Path) -> None:
    write_image(tmp_path / "a.tif", pixels=np.arange(3 * SIDE * SIDE, dtype=np.uint16).reshape(3, SIDE, SIDE))
    write_image(tmp_path / "far.tif", gsd=9)
    area = write_vector(tmp_path / "area.gpkg", [square(-70, -70, 70, 70)])
    ears = Ears()
    chips_of("trees", trees(tmp_path), str(tmp_path / "*.tif"), tmp_path, watch=ears, size=32, area=area)
    assert ears.heard == [
        "3 labels for trees",
        "left out: 1 scene coarser than 3 m a pixel",
        "the colours of 1 scene such as a are guessed by a stretch of each; name a radiometry profile if you know it",
        "2 of 4 chips hold no point and count as looked at and empty",
    ]


def test_options_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError, match="chip size 250 px must be a multiple of 32"):
        ChipOptions(size=250)
    with pytest.raises(ConfigError, match="gsd_m 0"):
        ChipOptions(gsd_m=0)
