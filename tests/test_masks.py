"""Cloud and shadow masks: the pixels that they hide are filled by the next scene, whatever window asks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import rasterio
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.crs import CRS
from pydantic import ValidationError

from geodino.errors import SourceError
from geodino.grid import Grid, Window
from geodino.sources.geotiff import describe
from geodino.sources.mask import MaskRule, MaskSpec
from geodino.sources.masked import describe_mask
from geodino.sources.mosaic import Mosaic
from geodino.sources.scene import Scene
from geodino.sources.warp import footprint_window

UTM = "EPSG:32633"
GRID = Grid(CRS(UTM), 0.6)
# A multiple of 0.6 and of 20 m.
X, Y = 500_040.0, 4_999_980.0
SIDE = 300


def write(path: Path, pixels: npt.NDArray[np.generic], gsd: float, **profile: object) -> str:
    count, height, width = pixels.shape
    options = {"crs": UTM, "transform": Affine(gsd, 0, X, 0, -gsd, Y), **profile}
    with rasterio.open(
        path, "w", driver="GTiff", height=height, width=width, count=count, dtype=pixels.dtype, tiled=True,
        blockxsize=64, blockysize=64, **options,
    ) as raster:  # fmt: skip
        raster.write(pixels)
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("masks")


@pytest.fixture(scope="module")
def scene(folder: Path) -> Scene:
    pixels = np.random.default_rng(1).integers(1, 255, (3, SIDE, SIDE), dtype=np.uint8)
    return describe(write(folder / "cloudy.tif", pixels, 0.6))


CLASSES = np.full((9, 9), 4, np.uint8)
CLASSES[3, 4] = 9  # a cloud of 20 x 20 m
CLASSES[6, 1] = 3


def masked(scene: Scene, folder: Path, dilate_m: float = 0.0) -> Scene:
    href = write(folder / "scl.tif", CLASSES[None], 20.0, nodata=0)
    spec = MaskSpec(preset="scl", asset="scl", dilate_m=dilate_m)
    return replace(scene, mask=describe_mask(href, spec))


def hidden_by_hand(dilate_m: float) -> npt.NDArray[np.bool_]:
    """From the distances between pixel centres, without GDAL and without a distance transform."""
    centres = (np.arange(SIDE) + 0.5) * 0.6
    inside = np.zeros((SIDE, SIDE), bool)
    near = np.zeros((SIDE, SIDE), bool)
    for row, col in zip(*np.isin(CLASSES, (3, 9)).nonzero(), strict=True):
        rows = (centres > row * 20) & (centres < row * 20 + 20)
        cols = (centres > col * 20) & (centres < col * 20 + 20)
        inside |= rows[:, None] & cols
        # To the outermost hidden pixel centres, which the margin counts from.
        down = np.maximum(0, np.maximum(centres[rows].min() - centres, centres - centres[rows].max()))
        along = np.maximum(0, np.maximum(centres[cols].min() - centres, centres - centres[cols].max()))
        near |= np.hypot(down[:, None], along) <= dilate_m + 1e-6
    return near if dilate_m else inside


@pytest.mark.parametrize("dilate_m", [0.0, 7.2, 30.0])
def test_a_mask_of_20_m_hides_its_ground_and_the_margin_around_it(scene: Scene, folder: Path, dilate_m: float) -> None:
    with Mosaic([masked(scene, folder, dilate_m)], GRID) as mosaic:
        valid = mosaic.read(footprint_window(scene, GRID)).valid
    hidden = hidden_by_hand(dilate_m)
    assert 0 < hidden.sum() < hidden.size / 2
    np.testing.assert_array_equal(valid, ~hidden)


@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_what_is_hidden_does_not_depend_on_the_window(scene: Scene, folder: Path, data: st.DataObject) -> None:
    cloudy = masked(scene, folder, 30.0)
    extent = footprint_window(scene, GRID)
    row, col = data.draw(st.integers(-10, SIDE - 1)), data.draw(st.integers(-10, SIDE - 1))
    window = Window(extent.row + row, extent.col + col, data.draw(st.integers(1, 120)), data.draw(st.integers(1, 120)))
    with Mosaic([cloudy], GRID) as mosaic:
        part, whole = mosaic.read(window), mosaic.read(extent)
    shared = window.intersection(extent)
    np.testing.assert_array_equal(part.valid[shared.slices_in(window)], whole.valid[shared.slices_in(extent)])


def test_the_next_scene_fills_what_the_mask_hides(scene: Scene, folder: Path) -> None:
    pixels = np.full((3, SIDE, SIDE), 77, np.uint8)
    below = describe(write(folder / "clear.tif", pixels, 0.6))
    window = footprint_window(scene, GRID)
    with Mosaic([masked(scene, folder, 7.2), below], GRID) as mosaic:
        filled = mosaic.read(window)
    hidden = hidden_by_hand(7.2)
    np.testing.assert_array_equal(filled.scene, np.where(hidden, 2, 1))
    np.testing.assert_allclose(filled.image[:, hidden], 77 / 255)
    assert filled.masked == {1: (int(hidden.sum()), hidden.size)}


def test_a_mask_in_another_crs_hides_the_same_ground(scene: Scene, folder: Path) -> None:
    lonlat = write(
        folder / "degrees.tif", np.pad(CLASSES, 3, constant_values=4)[None], 20.0,
        crs="EPSG:25833",  # the same metres under another code, so that it goes through PROJ
        transform=Affine(20, 0, X - 60, 0, -20, Y + 60),
    )  # fmt: skip
    other = replace(scene, mask=describe_mask(lonlat, MaskSpec(preset="scl", asset="scl")))
    with Mosaic([other], GRID) as mosaic:
        valid = mosaic.read(footprint_window(scene, GRID)).valid
    np.testing.assert_array_equal(valid, ~hidden_by_hand(0.0))


def test_a_finer_mask_in_a_band_of_the_picture_is_not_averaged(folder: Path) -> None:
    """Overviews of classes may be averages; 4 between 3 and 5 would be a class that nobody wrote."""
    pixels = np.random.default_rng(2).integers(1, 255, (4, 200, 200), dtype=np.uint8)
    pixels[3] = np.where(np.indices((200, 200)).sum(0) % 2, 3, 5)
    href = write(folder / "fine.tif", pixels, 0.3, photometric="MINISBLACK")
    with rasterio.open(href, "r+") as raster:
        raster.build_overviews([2, 4], rasterio.enums.Resampling.average)
    fine = describe(href, bands=("1", "2", "3"))
    clear = replace(fine, mask=describe_mask(href, MaskSpec(band=(4,), values=(4,))))
    hidden = replace(fine, mask=describe_mask(href, MaskSpec(band=(4,), values=(3, 5))))
    for each, share in ((clear, 1.0), (hidden, 0.0)):
        with Mosaic([each], GRID) as mosaic:
            assert mosaic.read(footprint_window(each, GRID)).valid.mean() == share


def test_rules_say_what_hides() -> None:
    classes = np.array([[[0, 1, 8, 24]]], np.float32)
    covered = np.array([[True, True, True, False]])
    assert MaskRule(values=(1, 24)).hides(classes, covered).tolist() == [[False, True, False, False]]
    assert MaskRule(keep=(1, 24)).hides(classes, covered).tolist() == [[True, False, True, True]]
    assert MaskRule(bits=(3, 4)).hides(classes, covered).tolist() == [[False, False, True, False]]
    two = np.concatenate([classes, np.ones_like(classes)])
    assert MaskRule(values=(0,)).hides(two, covered).tolist() == [[True, False, False, False]]
    assert MaskRule(keep=(1,)).hides(two, covered).tolist() == [[True, False, True, True]]


def test_udm2_keeps_what_is_clear(scene: Scene, folder: Path) -> None:
    bands = np.zeros((8, 9, 9), np.uint8)
    bands[0] = 1
    bands[0, 3, 4] = bands[0, 6, 1] = 0
    bands[2, 3, 4] = bands[5, 6, 1] = 1  # shadow, cloud
    href = write(folder / "udm2.tif", bands, 20.0)
    for spec in (MaskSpec(preset="udm2", asset="udm2"), MaskSpec(asset="udm2", band=(3, 5, 6), values=(1,))):
        with Mosaic([replace(scene, mask=describe_mask(href, spec))], GRID) as mosaic:
            valid = mosaic.read(footprint_window(scene, GRID)).valid
        np.testing.assert_array_equal(valid, ~hidden_by_hand(0.0))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"asset": "scl"}, "one of preset, values, keep and bits, not none"),
        ({"asset": "scl", "values": [3], "bits": [1]}, "not values and bits"),
        ({"values": [3]}, "needs an asset, or the band"),
        ({"asset": "x", "values": [3], "band": [1, 1]}, "one to 3 different bands"),
        ({"asset": "x", "values": [3], "dilate_m": 501}, "less than or equal to 500"),
        ({"asset": "x", "preset": "sc1"}, "'scl', 'landsat-qa' or 'udm2'"),
    ],
)
def test_a_section_that_says_no_rule_or_two_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        MaskSpec.model_validate(fields)


def test_a_mask_that_is_none_is_named(folder: Path) -> None:
    floats = write(folder / "float.tif", np.zeros((1, 9, 9), np.float32), 20.0)
    with pytest.raises(SourceError, match=r"mask .*float\.tif holds float32 numbers"):
        describe_mask(floats, MaskSpec(preset="scl", asset="scl"))
    with pytest.raises(SourceError, match="band 5 must be between 1 and 1"):
        describe_mask(floats, MaskSpec(asset="scl", band=(5,), values=(1,)))
