"""Label rasters on a chip's pixels: exact where they share them, averaged or interpolated elsewhere, nodata apart."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pyproj import Transformer
from rasterio.enums import Resampling
from rasterio.warp import reproject
from training_data import GSD, NORTH, SIDE, UTM, WEST, chips_of, frame_at, raster_of, whole, write_image, write_raster

from geodino.errors import ConfigError, InputError
from geodino.grid import Window
from geodino.training.label_rasters import resampled
from geodino.training.pairing import Cut
from geodino.training.raster_layers import HeightLayer, Sheets, classes_on, heights_on


def noise(shape: tuple[int, int], seed: int = 0) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).uniform(0, 40, shape).astype(np.float32)


def test_a_raster_on_the_images_pixels_keeps_its_values_and_its_holes(tmp_path: Path) -> None:
    heights = noise((40, 90))
    heights[3, 4], heights[5, 6] = -9999, np.nan
    # Twelve pixels east and seven north of the image, and not of its size.
    at = (WEST + 12 * GSD, NORTH + 7 * GSD)
    raster = raster_of(tmp_path / "chm.tif", heights, at=at, nodata=-9999)
    values, known = heights_on(raster, whole(frame_at(tmp_path / "a.tif")))
    wanted = np.zeros((SIDE, SIDE), bool)
    wanted[:33, 12:] = np.isfinite(heights[7:, :52]) & (heights[7:, :52] >= 0)
    assert (known == wanted).all()
    assert (values[known] == heights[7:, :52][wanted[:33, 12:]]).all()


@pytest.mark.parametrize("ratio", [2, 3, 6])
def test_a_finer_raster_is_averaged_over_what_it_knows(tmp_path: Path, ratio: int) -> None:
    fine = noise((SIDE * ratio, SIDE * ratio))
    holes = np.random.default_rng(1).random(fine.shape) < 0.45
    stored = np.where(holes, np.float32(-9999), fine)
    raster = raster_of(tmp_path / "chm.tif", stored, gsd=GSD / ratio, nodata=-9999)
    values, known = heights_on(raster, whole(frame_at(tmp_path / "a.tif")))
    blocks = np.where(holes, np.nan, fine.astype(float)).reshape(SIDE, ratio, SIDE, ratio).swapaxes(1, 2)
    blocks = blocks.reshape(SIDE, SIDE, ratio**2)
    assert (known == (np.isfinite(blocks).mean(axis=-1) >= 0.5)).all()
    np.testing.assert_allclose(values[known], np.nanmean(blocks[known], axis=-1), atol=1e-4)


def test_a_coarser_raster_is_interpolated_as_gdal_does(tmp_path: Path) -> None:
    coarse = noise((30, 30))
    at = (WEST - 2.3, NORTH + 3.1)
    raster = raster_of(tmp_path / "chm.tif", coarse, at=at, gsd=1.7)
    values, known = heights_on(raster, whole(frame_at(tmp_path / "a.tif")))
    assert known.all()
    gdal = np.zeros((SIDE, SIDE), np.float32)
    reproject(
        coarse, gdal, src_transform=Affine(1.7, 0, at[0], 0, -1.7, at[1]), src_crs=UTM,
        dst_transform=Affine(GSD, 0, WEST, 0, -GSD, NORTH), dst_crs=UTM, resampling=Resampling.bilinear,
    )  # fmt: skip
    # GDAL's weights are of 32 bits; its positions are exact within one CRS.
    np.testing.assert_allclose(values, gdal, atol=1e-3)


@pytest.mark.parametrize(("crs", "gsd"), [("EPSG:32634", 1.0), ("EPSG:3035", 0.25), ("EPSG:4326", 9e-6)])
def test_a_plane_of_heights_stays_one_whatever_the_rasters_crs(tmp_path: Path, crs: str, gsd: float) -> None:
    frame = frame_at(tmp_path / "a.tif")
    x, y = Transformer.from_crs(UTM, crs, always_xy=True).transform(WEST + 19.2, NORTH - 19.2)
    # The raster's rows and cols are other directions; heights are a plane over the image's.
    count = round((80 if crs != "EPSG:4326" else 80 / 9e4) / gsd)
    at = (x - count * gsd / 2, y + count * gsd / 2)
    east, north = np.meshgrid(at[0] + (np.arange(count) + 0.5) * gsd, at[1] - (np.arange(count) + 0.5) * gsd)
    e, n = Transformer.from_crs(crs, UTM, always_xy=True).transform(east, north)
    raster = raster_of(
        tmp_path / "chm.tif", (20 + (e - WEST) / 4 + (n - NORTH) / 8).astype("f4"), at=at, gsd=gsd, crs=crs
    )
    values, known = heights_on(raster, whole(frame))
    cols, rows = np.meshgrid(np.arange(SIDE) + 0.5, np.arange(SIDE) + 0.5)
    assert known.all()
    # Half a raster pixel of jitter where turned pixels are averaged, and nothing where they are interpolated.
    np.testing.assert_allclose(values, 20 + cols * GSD / 4 - rows * GSD / 8, atol=0.02 if gsd == 0.25 else 1e-3)


@settings(max_examples=40)
@given(
    known=arrays(bool, (9, 9)),
    shift=st.tuples(st.floats(-3, 3), st.floats(-3, 3)),
    step=st.floats(0.3, 4),
    turn=st.floats(0, 6.3),
)
def test_what_is_not_known_never_mixes_in(
    known: npt.NDArray[np.bool_], shift: tuple[float, float], step: float, turn: float
) -> None:
    rows, cols = np.indices((6, 6)) * step
    spots = np.stack([rows * np.cos(turn) - cols * np.sin(turn), rows * np.sin(turn) + cols * np.cos(turn)])
    values, sound = resampled(np.where(known, 7.25, -9999.0), known, spots + np.array(shift)[:, None, None] + 4)
    assert np.allclose(values[sound], 7.25) and np.isnan(values[~sound]).all()


def test_the_first_raster_that_knows_a_pixel_gives_it(tmp_path: Path) -> None:
    one = np.full((SIDE, SIDE), 5, "f4")
    one[:, :20] = -9999
    rasters = (
        raster_of(tmp_path / "one.tif", one, nodata=-9999),
        raster_of(tmp_path / "two.tif", np.full((SIDE, SIDE), 8, "f4")),
    )
    burnt = HeightLayer(Sheets(rasters)).burn(whole(frame_at(tmp_path / "a.tif")))
    assert burnt is not None and burnt.used.tolist() == [0, 1]
    assert (burnt.arrays["heights"][:, :20] == 8).all() and (burnt.arrays["heights"][:, 20:] == 5).all()


def test_scale_and_offset_of_the_file_count_and_small_negatives_are_ground(tmp_path: Path) -> None:
    stored = np.full((SIDE, SIDE), 123, np.int16)
    stored[0, 0] = -30
    raster = raster_of(tmp_path / "dm.tif", stored, scale=0.1)
    burnt = HeightLayer(Sheets((raster,))).burn(whole(frame_at(tmp_path / "a.tif")))
    assert burnt is not None and burnt.arrays["heights"][1, 1] == np.float32(12.3)
    assert burnt.arrays["heights"][0, 0] == 0


def wild(value: float, count: int) -> npt.NDArray[np.float32]:
    heights = np.full((SIDE, SIDE), 10, np.float32)
    heights.flat[:count] = value
    return heights


@pytest.mark.parametrize(
    ("heights", "said"),
    [
        (wild(-9999, 7), r"7 of 4,096 heights cannot be metres of canopy \(7 under -5 m, 0 over 120 m\); -9999 looks"),
        (wild(150, 9), r"9 of 4,096 heights cannot .* \(0 under -5 m, 9 over 120 m\); are they in feet"),
        (wild(-20, 3), r"3 of 4,096 .*; they lie under the ground: were surface and ground subtracted the wrong way"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("gsd", [GSD, 0.5])
def test_heights_that_cannot_be_are_refused_with_their_count_and_likely_cause(
    tmp_path: Path, heights: npt.NDArray[np.float32], said: str, gsd: float
) -> None:
    write_image(tmp_path / "a.tif")
    path = write_raster(tmp_path / "chm.tif", heights, gsd=gsd)
    with pytest.raises(InputError, match=r"labels .*chm.tif: " + said):
        chips_of("canopy", path, tmp_path / "a.tif", tmp_path)


@pytest.mark.parametrize(
    "given",
    [
        {"unit": "ft"}, {"unit": "US survey foot"}, {"unit": "ft-us"}, {"unit": "ft (US)"}, {"tags": {"units": "feet"}},
        {"tags": {"VERTICAL_UNITS": "us_ft"}}, {"tags": {"z_unit": "international feet"}}, {"crs": "EPSG:32633+6360"},
    ],
)  # fmt: skip
def test_a_raster_that_says_feet_is_refused(tmp_path: Path, given: dict[str, object]) -> None:
    with pytest.raises(InputError, match=r"chm.tif are in .*(ft|foot|feet).*; multiply by 0.3048 and write metres"):
        raster_of(tmp_path / "chm.tif", noise((8, 8)), **given)


def test_a_vertical_crs_in_metres_and_a_unit_of_metres_are_fine(tmp_path: Path) -> None:
    ground = {"linear_units": "US survey foot", "software": "left 2.0", "z_unit": "m"}
    assert raster_of(tmp_path / "b.tif", noise((8, 8)), tags=ground).crs == "EPSG:32633"
    assert raster_of(tmp_path / "a.tif", noise((8, 8)), crs="EPSG:32633+5703", unit="metre").crs == "EPSG:32633"


def test_rasters_that_are_no_labels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"rgb.tif have 3 bands; give a raster of one band, or is this imagery\?"):
        raster_of(tmp_path / "rgb.tif", np.ones((3, 8, 8), np.uint8))
    with pytest.raises(InputError, match=r"bare.tif have no CRS or geotransform; set it: gdal_edit.py -a_srs"):
        raster_of(tmp_path / "bare.tif", noise((8, 8)), crs=None)
    write_image(tmp_path / "a.tif")
    with pytest.raises(InputError, match=r"labels .*none: no such file"):
        chips_of("canopy", str(tmp_path / "none"), tmp_path / "a.tif", tmp_path)
    classes = write_raster(tmp_path / "f.tif", noise((SIDE, SIDE)))
    with pytest.raises(InputError, match=r"f.tif hold float32 numbers; classes are whole numbers"):
        chips_of("segment", classes, tmp_path / "a.tif", tmp_path, classes=("0=a",))


def test_a_folder_and_a_glob_name_all_their_rasters(tmp_path: Path) -> None:
    (tmp_path / "chm").mkdir()
    for number, col in enumerate((0, 32)):
        path = tmp_path / "chm" / f"{number}.tif"
        write_raster(path, np.full((64, 32), number + 1, "f4"), at=(WEST + col * GSD, NORTH))
    write_image(tmp_path / "a.tif")
    for labels in (str(tmp_path / "chm"), str(tmp_path / "chm" / "*.tif")):
        chips = chips_of("canopy", labels, tmp_path / "a.tif", tmp_path)
        assert chips.heights is not None and chips.heights[0][9, [31, 32]].tolist() == [1, 2] and len(chips) == 1


CLASSES = ("0=ground", "5=tree", "9=ground")


def test_a_class_map_gives_the_index_of_each_value_and_255_where_unknown(tmp_path: Path) -> None:
    write_image(tmp_path / "a.tif")
    stored = np.zeros((SIDE, SIDE), np.uint8)
    stored[:, 20:], stored[:, 40:], stored[:, 60:] = 5, 9, 200
    path = write_raster(tmp_path / "c.tif", stored, nodata=200)
    chips = chips_of("segment", path, tmp_path / "a.tif", tmp_path, classes=CLASSES)
    assert chips.class_names == ("ground", "tree") and chips.classes is not None
    assert chips.classes[0][7, [0, 20, 40, 60]].tolist() == [0, 1, 0, 255]
    assert (chips.labelled[0] == (stored != 200)).all()


def test_class_values_that_the_table_lacks_are_refused_with_their_count(tmp_path: Path) -> None:
    write_image(tmp_path / "a.tif")
    stored = np.zeros((SIDE, SIDE), np.uint8)
    stored[0, :7], stored[1, :3] = 6, 8
    path = write_raster(tmp_path / "c.tif", stored)
    said = (
        r"c.tif hold 6 \(7 pixels\), 8 \(3 pixels\), and the class table knows 0, 5, 9 only; name them in it \(6=NAME\)"
    )
    with pytest.raises(InputError, match=said):
        chips_of("segment", path, tmp_path / "a.tif", tmp_path, classes=CLASSES)
    with pytest.raises(ConfigError, match="name the classes of its values: --classes 0=ground,1=tree"):
        chips_of("segment", path, tmp_path / "a.tif", tmp_path)
    with pytest.raises(ConfigError, match="a raster needs VALUE=NAME"):
        chips_of("segment", path, tmp_path / "a.tif", tmp_path, classes=("ground", "tree"))


def test_a_finer_class_map_gives_what_most_of_its_pixels_have_and_a_coarser_one_the_nearest(tmp_path: Path) -> None:
    frame = frame_at(tmp_path / "a.tif")
    fine = np.random.default_rng(0).choice(np.array([1, 2, 3, 255], np.uint8), (SIDE * 3, SIDE * 3))
    raster = raster_of(tmp_path / "fine.tif", fine, gsd=GSD / 3, nodata=255)
    found = classes_on(raster, whole(frame), {1: 0, 2: 1, 3: 2})
    blocks = fine.reshape(SIDE, 3, SIDE, 3).swapaxes(1, 2).reshape(SIDE, SIDE, 9)
    counts = np.stack([(blocks == value).sum(axis=-1) for value in (1, 2, 3, 255)])
    wanted = np.where(counts[3] > 4.5, 255, counts[:3].argmax(axis=0))
    assert (found == wanted).all()
    coarse = np.arange(64, dtype=np.uint8).reshape(8, 8)
    raster = raster_of(tmp_path / "coarse.tif", coarse, gsd=GSD * 8)
    found = classes_on(raster, whole(frame), {value: value for value in range(64)})
    assert (found == coarse.repeat(8, axis=0).repeat(8, axis=1)).all()


@settings(max_examples=15)
@given(col=st.integers(-70, 70), row=st.integers(-70, 70), ratio=st.sampled_from([0.5, 1.0, 2.5]))
def test_a_height_never_depends_on_which_chip_asks(col: int, row: int, ratio: float) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        raster = raster_of(folder / "chm.tif", noise((90, 90)), gsd=GSD * ratio, at=(WEST - 3.21, NORTH + 1.7))
        frame = frame_at(folder / "a.tif")
        big, small = Window(row - 20, col - 30, 96, 96), Window(row, col, 32, 32)
        (all_values, all_known), (values, known) = (heights_on(raster, Cut(frame, w, (w,))) for w in (big, small))
        part = small.slices_in(big)
        assert (all_known[part] == known).all()
        np.testing.assert_allclose(all_values[part][known], values[known], atol=1e-6)
