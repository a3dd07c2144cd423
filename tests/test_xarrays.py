"""The Python face says what the command line says, and reads nothing before it is asked."""

from __future__ import annotations

import pickle
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import rasterio
import xarray as xr
from odc.geo.geobox import GeoBox

import geodino
from geodino.errors import ConfigError
from geodino.grid import Window
from geodino.options import RunOptions
from geodino.sources import Mosaic, Pixels
from geodino.windows import Tiling

AOI = "494020,4878600,494190,4878755"


@pytest.fixture(scope="module")
def scene(photo: Path) -> xr.Dataset:
    return geodino.open_scene(photo, aoi=AOI, options=RunOptions(aoi_crs="EPSG:26910"))


def test_a_scene_is_lazy_and_has_the_photos_pixels(scene: xr.Dataset, photo: Path) -> None:
    assert scene.image.chunks and scene.image.dims == ("band", "y", "x")
    with rasterio.open(photo) as raster:
        pixels, mask, bounds = raster.read(), raster.dataset_mask() > 0, raster.bounds
    covered = scene.sel(x=slice(bounds.left, bounds.right), y=slice(bounds.top, bounds.bottom)).compute()
    np.testing.assert_array_equal(covered.valid.values, mask)
    shown = np.round(covered.image.values * 255)
    np.testing.assert_array_equal(shown[:, mask], pixels[:, mask])
    assert int(scene.valid.sum()) == mask.sum()
    assert int(scene.scene.max()) == 1 and scene.attrs["scenes"] == ["photo"]


def test_what_is_computed_together_reads_each_chunk_once(
    scene: xr.Dataset, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, windows = Mosaic.read, []

    def counted(mosaic: Mosaic, window: Window) -> Pixels:
        windows.append(window)
        return read(mosaic, window)

    monkeypatch.setattr(Mosaic, "read", counted)
    scene.compute()
    assert len(windows) == len(set(windows)) == scene.valid.data.npartitions == 9
    windows.clear()
    geodino.predict(scene, geodino.load_model(tiny_model, precision="fp32", device="cpu")).compute()
    assert 0 < len(windows) == len(set(windows))


def test_a_scene_goes_to_other_processes(scene: xr.Dataset) -> None:
    corner = pickle.loads(pickle.dumps(scene.isel(x=slice(500, 620), y=slice(500, 620))))
    here = corner.compute()
    assert here.valid.any() and here.aoi.any()
    xr.testing.assert_identical(corner.compute(scheduler="processes", num_workers=2), here)


def test_the_aoi_of_a_scene_is_the_polygon(scene: xr.Dataset) -> None:
    assert abs(int(scene.aoi.sum()) * 0.36 - 170 * 155) < 170


def test_a_scene_over_a_sample_aoi_is_opened_by_its_name() -> None:
    scene = geodino.open_scene("sample", aoi="sample:autzen")
    assert scene.attrs["aoi_wkt"] == geodino.open_scene("sample", aoi=geodino.sample_aoi("autzen")).attrs["aoi_wkt"]


def test_a_scene_warns_of_its_aoi_and_imagery_in_the_log(photo: Path, caplog: pytest.LogCaptureFixture) -> None:
    bowtie = "POLYGON((494020 4878600, 494190 4878755, 494190 4878600, 494020 4878755, 494020 4878600))"
    options = RunOptions(aoi_crs="EPSG:26910", repair_aoi=True)
    geodino.open_scene(photo, aoi=bowtie, options=options, gsd_m=1.8)
    assert caplog.text.count("self-intersection") == 1
    assert "imagery of 0.6 m a pixel is outside of" in caplog.text


def test_predict_says_what_run_says(scene: xr.Dataset, photo: Path, tiny_model: Path, tmp_path: Path) -> None:
    model = geodino.load_model(tiny_model, precision="fp32", device="cpu")
    canopy = geodino.predict(scene, model)
    assert canopy.height.chunks, "a prediction is lazy"
    options = RunOptions(
        sources=(str(photo),), model=str(tiny_model), precision="fp32", device="cpu", aoi_crs="EPSG:26910"
    )
    geodino.run("canopy", aoi=AOI, out=tmp_path / "out", options=options)
    for name, file in (("height", "canopy_height.tif"), ("spread", "canopy_height_spread.tif")):
        with rasterio.open(tmp_path / "out" / file) as raster:
            written = raster.read(1, masked=True).filled(np.nan)
            assert tuple(raster.bounds) == pytest.approx(tuple(canopy[name].odc.geobox.boundingbox), abs=1e-6)
        said = canopy[name].compute().values
        np.testing.assert_array_equal(np.isfinite(said), np.isfinite(written))
        np.testing.assert_allclose(said, written, atol=0.0625 + 1e-3)


def test_a_prediction_does_not_depend_on_the_chunks_of_the_scene(scene: xr.Dataset, tiny_model: Path) -> None:
    model = geodino.load_model(tiny_model, precision="fp32", device="cpu")
    heights = geodino.predict(scene, model).height.compute()
    other = geodino.predict(scene.chunk(x=177, y=233), model).height.compute()
    np.testing.assert_array_equal(heights.values, other.values)


def test_a_cropped_scene_is_predicted_where_it_shows_the_aoi(
    scene: xr.Dataset, tiny_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = geodino.load_model(tiny_model, precision="fp32", device="cpu")
    whole = geodino.predict(scene, model).height.compute()
    assert not caplog.text
    part = geodino.predict(scene.isel(y=slice(0, 650), x=slice(600, None)), model).height.compute()
    same = whole.sel(x=part.x, y=part.y, method="nearest", tolerance=0.01)
    assert 0 < part.sizes["y"] < whole.sizes["y"] and 0 < part.sizes["x"] < whole.sizes["x"]
    np.testing.assert_array_equal(np.isfinite(part), np.isfinite(same))
    assert "the scene was cropped: within 128 px of where it cuts the AOI" in caplog.text
    # Windows that end inside the crop say the same; nearer its edge they see reflected ground.
    np.testing.assert_array_equal(part[:-128, 128:], same[:-128, 128:])
    with pytest.raises(ConfigError, match="the scene holds nothing of its AOI"):
        geodino.predict(scene.isel(y=slice(0, 400)), model)


def test_a_halo_narrower_than_the_windows_is_refused(photo: Path, tiny_model: Path) -> None:
    model = geodino.load_model(tiny_model, precision="fp32", device="cpu")
    options = RunOptions(aoi_crs="EPSG:26910")
    narrow = geodino.open_scene(photo, aoi=AOI, options=options, halo_px=40)
    with pytest.raises(ConfigError, match=r"halo of 40 px is too narrow for windows of 128 px; .*halo_px=128"):
        geodino.predict(narrow, model)
    wide = geodino.open_scene(photo, aoi=AOI, options=options)
    with pytest.raises(ConfigError, match="halo of 512 px is too narrow for windows of 1024 px"):
        geodino.predict(wide, model, tiling=Tiling(1024, 256))
    with pytest.raises(ConfigError, match="halo -1 px must be at least 0"):
        geodino.open_scene(photo, aoi=AOI, options=options, halo_px=-1)
    enough = geodino.open_scene(photo, aoi=AOI, options=options, halo_px=128)
    assert geodino.predict(enough, model).height.equals(geodino.predict(wide, model).height)


def test_a_row_holds_one_batch_of_chips_whatever_its_width(tiny_model: Path) -> None:
    model = geodino.load_model(tiny_model, precision="fp32", device="cpu", batch_size=1)
    rng = np.random.default_rng(0)

    def peak_bytes(width: int) -> int:
        image = rng.random((3, 96, width), dtype=np.float32)
        geobox = GeoBox((96, width), rasterio.Affine(0.6, 0, 600_000, 0, -0.6, 4_800_000), "EPSG:32610")
        lazy = geodino.predict(dataset_of(image, geobox), model, tiling=Tiling(128, 64))
        tracemalloc.start()
        lazy.compute(scheduler="synchronous")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    peak_bytes(128)
    narrow, wide = peak_bytes(512), peak_bytes(2560)
    # For each window: 100 kB of the strip and 120 kB of results, but not its chip of 197 kB.
    assert (wide - narrow) / (2048 / 64) < 300_000


def test_a_prediction_is_written_as_a_cog(scene: xr.Dataset, tiny_model: Path, tmp_path: Path) -> None:
    model = geodino.load_model(tiny_model, precision="fp32", device="cpu")
    canopy = geodino.predict(scene, model)
    geodino.write_cog(canopy.height, tmp_path / "height.tif")
    with rasterio.open(tmp_path / "height.tif") as raster:
        written = raster.read(1, masked=True).filled(np.nan)
        assert raster.crs.to_epsg() == 26910
    np.testing.assert_allclose(written, canopy.height.compute().values, atol=0.0625)


def test_a_written_prediction_carries_the_tags_of_a_run(
    scene: xr.Dataset, photo: Path, tiny_model: Path, tmp_path: Path
) -> None:
    model = geodino.load_model(tiny_model, precision="fp32", device="cpu")
    mine, theirs = tmp_path / "height.tif", tmp_path / "out" / "canopy_height.tif"
    geodino.write_cog(geodino.predict(scene, model).height, mine)
    options = RunOptions(
        sources=(str(photo),), model=str(tiny_model), precision="fp32", device="cpu", aoi_crs="EPSG:26910"
    )
    geodino.run("canopy", aoi=AOI, out=theirs.parent, options=options)
    with rasterio.open(mine) as of_python, rasterio.open(theirs) as of_run:
        ours, runs = of_python.tags(), of_run.tags()
    assert ours.pop("GEODINO_LONG_NAME") == "canopy height"
    del runs["GEODINO_PIPELINE"]
    assert ours == runs
    assert ours["GEODINO_DEMONSTRATION"] == "no" and ours["GEODINO_SCENE_DATES"] == "date unknown"


def test_any_georeferenced_dataset_can_be_predicted(tiny_model: Path) -> None:
    model = geodino.load_model(tiny_model, precision="fp32", device="cpu")
    geobox = GeoBox((150, 170), rasterio.Affine(0.6, 0, 600_000, 0, -0.6, 4_800_000), "EPSG:32610")
    rng = np.random.default_rng(0)
    image = rng.random((3, 150, 170), dtype=np.float32)
    image[:, :, :40] = np.nan
    height = geodino.predict(dataset_of(image, geobox), model).height.compute().values
    assert height.shape == (150, 170)
    assert np.isnan(height[:, :40]).all() and np.isfinite(height[:, 40:]).all()


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (rasterio.Affine(0.6, 0, 600_000.2, 0, -0.6, 4_800_000), "off its CRS's pixel lattice"),
        (rasterio.Affine(0.6, 0, 600_000, 0, 0.6, 4_800_000), "north-up with square pixels"),
    ],
)
def test_a_scene_off_the_lattice_is_refused(transform: rasterio.Affine, message: str, tiny_model: Path) -> None:
    model = geodino.load_model(tiny_model, precision="fp32", device="cpu")
    geobox = GeoBox((64, 64), transform, "EPSG:32610")
    image = xr.DataArray(np.zeros((3, 64, 64), np.float32), dims=("band", "y", "x"), coords=odc_coords(geobox))
    with pytest.raises(ConfigError, match=message):
        geodino.predict(xr.Dataset({"image": image}).chunk(), model)


def dataset_of(image: np.ndarray, geobox: GeoBox) -> xr.Dataset:
    coords = {"band": ["red", "green", "blue"], **odc_coords(geobox)}
    return xr.Dataset({"image": (("band", "y", "x"), image)}, coords=coords).chunk()


def odc_coords(geobox: GeoBox) -> dict[str, xr.DataArray]:
    from odc.geo.xr import xr_coords

    return dict(xr_coords(geobox))
