"""Fixtures that several test files share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Set before torch is imported, here and in the processes that tests start. Tests run side by side, one a core, and
# torch's threads that wait for each other on busy cores cost more than they give, for small models a hundredfold.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Machines that share their cores stall now and then; a law that holds slowly still holds.
settings.register_profile("geodino", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("geodino")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The development data beside the repository; tests that need it are skipped where it is missing."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"development data not found at {folder}")
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a CHMv2 of a few thousand random weights, windows of 128 px, made for 0.6 m."""
    from tiny_models import CHMV2_STATISTICS, canopy_network, save

    # Few bins do not average out, so heights differ by metres and a pixel in the wrong place is seen.
    network = canopy_network(number_output_channels=8)
    return save(network, tmp_path_factory.mktemp("model") / "tiny", CHMV2_STATISTICS | {"gsd_m": 0.6})


@pytest.fixture(scope="session")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GeoTIFF of the sample's real pixels, 300 x 420 px at 0.6 m in UTM 10N, with a hole of nodata in its mask."""
    import numpy as np
    import rasterio

    from geodino.shipped import sample_folder

    path = tmp_path_factory.mktemp("photo") / "photo.tif"
    with rasterio.open(sample_folder() / "autzen" / "autzen.tif") as source:
        pixels = source.read(window=((0, 300), (0, 420)))
        transform = source.transform
    mask = np.full((300, 420), 255, np.uint8)
    mask[120:170, 200:260] = 0
    profile = {"driver": "GTiff", "dtype": "uint8", "count": 3, "height": 300, "width": 420, "photometric": "rgb"}
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(path, "w", crs="EPSG:26910", transform=transform, **profile) as target,
    ):
        target.write(pixels)
        target.write_mask(mask)
    return path


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """One thread of torch, whatever tests before have set: weights are compared to the last bit."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
