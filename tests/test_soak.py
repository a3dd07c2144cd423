"""Two thousand windows from a server at which everything goes wrong now and then: the map is that of a calm day."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
import yaml
from affine import Affine
from fault_server import FaultServer
from faults import Fault

from geodino.options import RunOptions
from geodino.outputs.record import RunRecord
from geodino.pipeline import run
from geodino.shipped import pipeline_path
from geodino.sources import ranges, signing
from geodino.sources.ranges import Patience

GSD, EAST, NORTH = 0.6, 490_000.2, 4_879_999.8
# Two scenes of 1,120 px that overlap, on the grid and half a pixel off it: one is copied and one resampled.
SIDE, BLOCK = 1120, 64
AWAY_PX = 980.5
WINDOWS = 2000
SHARE = 0.02
# All that a server or a network does wrong for a while. What lasts (no ranges, a login page, a file that changed) is
# refused by name, see test_sources_remote.
FAULTS = (
    Fault.SERVER_ERROR, Fault.UNAVAILABLE, Fault.TOO_MANY, Fault.TOO_MANY_UNTIL, Fault.CUT, Fault.RESET, Fault.HANG,
    Fault.HANG_IN_BODY, Fault.SLOW, Fault.EXPIRED, Fault.FALSE_RANGE, Fault.SHIFTED_BODY, Fault.SHIFTED_RANGE,
    Fault.GZIP, Fault.REDIRECT, Fault.CORRUPT,
)  # fmt: skip


def write(path: Path, seed: int, east: float) -> None:
    values = np.random.default_rng(seed).integers(1, 256, (3, SIDE, SIDE), dtype=np.uint8)
    with rasterio.open(
        path, "w", driver="GTiff", height=SIDE, width=SIDE, count=3, dtype="uint8", crs="EPSG:32610", tiled=True,
        transform=Affine(GSD, 0, east, 0, -GSD, NORTH), blockxsize=BLOCK, blockysize=BLOCK, compress="deflate",
        nodata=0, interleave="pixel",
    ) as raster:  # fmt: skip
        raster.write(values)


@pytest.mark.slow
def test_two_thousand_windows_from_a_faulty_server_make_the_map_of_a_calm_day(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = tmp_path / "served"
    served.mkdir()
    write(served / "first.tif", 1, EAST)
    write(served / "second.tif", 2, EAST + AWAY_PX * GSD)
    pipeline = yaml.safe_load(pipeline_path("canopy").read_text())
    pipeline |= {"window": {"size": 64, "overlap": 32, "margin": 8}}
    (tmp_path / "canopy.yaml").write_text(yaml.safe_dump(pipeline))
    width, height = (AWAY_PX + SIDE) * GSD, SIDE * GSD
    aoi = f"{EAST} {NORTH}, {EAST + width} {NORTH}, {EAST + width} {NORTH - height}, {EAST} {NORTH - height}"
    patience = Patience(
        attempts=12, first_delay_s=0.01, most_delay_s=0.1, connect_s=2, silence_s=0.5, least_bytes_s=5e4, total_s=60
    )
    monkeypatch.setattr(ranges, "PATIENCE", patience)

    with FaultServer(served, retry_after_s=1) as server:
        monkeypatch.setitem(signing.SIGNERS, "token", lambda href, again: server.signed(href))
        (tmp_path / "source.yaml").write_text(
            yaml.safe_dump(
                {
                    "kind": "source",
                    "title": "two scenes behind tokens",
                    "paths": [f"{server.url}/first.tif", f"{server.url}/second.tif"],
                    "sign": "token",
                }
            )
        )

        def mapped(out: str) -> RunRecord:
            options = RunOptions(
                sources=(str(tmp_path / "source.yaml"),), model=str(tiny_model), precision="fp32", device="cpu",
                verify=True,
            )  # fmt: skip
            return run(
                tmp_path / "canopy.yaml",
                aoi=f"SRID=32610;POLYGON(({aoi}, {EAST} {NORTH}))",
                out=tmp_path / out,
                options=options,
            )

        calm = mapped("calm")
        assert calm.windows.run >= WINDOWS
        assert not server.faults()
        server.shares(dict.fromkeys(FAULTS, SHARE), seed=3, in_a_row=2)
        stormy = mapped("stormy")
        met = server.faults()
    assert sum(met.values()) >= len(FAULTS)
    assert not stormy.losses
    for name in ("canopy_height.tif", "canopy_height_spread.tif", "scene.tif"):
        with rasterio.open(tmp_path / "calm" / name) as one, rasterio.open(tmp_path / "stormy" / name) as other:
            assert one.read().tobytes() == other.read().tobytes(), name
            assert one.read_masks().tobytes() == other.read_masks().tobytes(), name
