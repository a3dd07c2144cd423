"""GeoTIFFs in an object store, by a real S3 server on this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import rasterio
from affine import Affine
from fault_server import FaultServer
from faults import Fault

from geodino.errors import ReadError, SourceError
from geodino.grid import Window
from geodino.sources import ranges
from geodino.sources.pixels import Asked, PixelFiles
from geodino.sources.ranges import Patience
from geodino.sources.stores import StoreRanges

SIDE = 512
KEYS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_REGION": "us-east-1"}


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """The URL of a server that keeps its buckets in memory."""
    server_module = pytest.importorskip("moto.server", reason="moto, a local S3 server, is not installed")
    server = server_module.ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture
def bucket(endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> npt.NDArray[np.uint8]:
    """`s3://scenes/folder/a b.tif`, and the environment that leads there; gives its pixels."""
    import boto3

    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    for name, value in (KEYS | {"AWS_ENDPOINT_URL": endpoint}).items():
        monkeypatch.setenv(name, value)
    values = np.random.default_rng(0).integers(0, 256, (3, SIDE, SIDE), dtype=np.uint8)
    with rasterio.open(
        tmp_path / "a.tif", "w", driver="GTiff", height=SIDE, width=SIDE, count=3, dtype="uint8", tiled=True,
        blockxsize=256, blockysize=256, compress="deflate", crs="EPSG:32610",
        transform=Affine(0.6, 0, 490_000.2, 0, -0.6, 4_879_999.8),
    ) as raster:  # fmt: skip
        raster.write(values)
    client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1")
    client.create_bucket(Bucket="scenes")
    client.upload_file(str(tmp_path / "a.tif"), "scenes", "folder/a b.tif")
    monkeypatch.setattr(ranges, "PATIENCE", Patience(attempts=2, first_delay_s=0.01, total_s=5))
    return values


def read(href: str) -> npt.NDArray[np.generic]:
    files = PixelFiles(verify=True)
    try:
        return files.read(Asked(href, None, None, (1, 2, 3)), Window(100, 200, 300, 250)).values
    finally:
        files.close()


def test_a_file_in_a_bucket_is_read_by_range(bucket: npt.NDArray[np.uint8]) -> None:
    np.testing.assert_array_equal(read("s3://scenes/folder/a b.tif"), bucket[:, 100:400, 200:450])


def test_a_profile_says_who_reads(
    bucket: npt.NDArray[np.uint8], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "credentials").write_text("[forest]\naws_access_key_id = testing\naws_secret_access_key = testing\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_PROFILE", "forest")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    np.testing.assert_array_equal(read("s3://scenes/folder/a b.tif"), bucket[:, 100:400, 200:450])


def test_the_reader_pays_where_asked(bucket: npt.NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REQUEST_PAYER", "requester")
    ranges_of_file = StoreRanges("s3://scenes/folder/a b.tif")
    assert ranges_of_file._store.config["request_payer"]  # type: ignore[union-attr,typeddict-item]
    np.testing.assert_array_equal(read("s3://scenes/folder/a b.tif"), bucket[:, 100:400, 200:450])


def test_what_is_not_there_is_said_at_once(bucket: npt.NDArray[np.uint8]) -> None:
    with pytest.raises(ReadError, match=r"s3://scenes/gone\.tif, its size cannot be read: there is no such file"):
        read("s3://scenes/gone.tif")
    with pytest.raises(SourceError, match="names no file in a bucket"):
        read("s3://scenes")


def test_a_store_out_of_reach_is_an_error_and_no_hang(
    bucket: npt.NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(ReadError, match=r"after 2 attempts"):
        read("s3://scenes/folder/a b.tif")


@pytest.mark.parametrize(
    ("scheme", "settings"),
    [
        ("gs", {"GS_NO_SIGN_REQUEST": "YES", "GOOGLE_BASE_URL": "SERVER"}),
        ("az", {"AZURE_STORAGE_ACCOUNT_NAME": "x", "AZURE_NO_SIGN_REQUEST": "YES", "AZURE_STORAGE_ENDPOINT": "SERVER"}),
        (
            "abfs",
            {"AZURE_STORAGE_ACCOUNT_NAME": "x", "AZURE_NO_SIGN_REQUEST": "yes", "AZURE_STORAGE_ENDPOINT": "SERVER"},
        ),
    ],
)
def test_other_stores_are_asked_as_their_clients_ask(
    scheme: str, settings: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a plain file server, which is all that reading takes: no signatures, and the names of buckets as folders."""
    (tmp_path / "scenes").mkdir()
    content = np.random.default_rng(0).bytes(10_000)
    (tmp_path / "scenes" / "a.tif").write_bytes(content)
    with FaultServer(tmp_path) as server:
        for name, value in settings.items():
            monkeypatch.setenv(name, server.url if value == "SERVER" else value)
        found = StoreRanges(f"{scheme}://scenes/a.tif")
        assert found.size == len(content)
        assert found.get(100, 300) == content[100:300]
        server.plan("scenes/a.tif", Fault.CUT, times=1)
        assert found.get(9000, 20_000) == content[9000:]
    assert server.faults()[Fault.CUT] == 1
