"""Jobs that lost ground to reading errors are counted, and done again where the user asks for it."""

from __future__ import annotations

import json
from pathlib import Path

import rasterio
from batch_scenes import folder_of, invoke, states

from geodino.errors import DONE_IN_PART
from geodino.outputs.record import read_record


def write_scenes(photo: Path, folder: Path) -> bytes:
    """Two rasters, of which one has a block that cannot be read; that one as it should be."""
    folder.mkdir()
    with rasterio.open(photo) as source:
        profile = source.profile | {
            "tiled": True,
            "blockxsize": 128,
            "blockysize": 128,
            "compress": "deflate",
            "interleave": "pixel",
        }
        for name in ("whole", "hurt"):
            with rasterio.open(folder / f"{name}.tif", "w", **profile) as target:
                target.write(source.read())
    content = (folder / "hurt.tif").read_bytes()
    at = len(content) * 9 // 10
    (folder / "hurt.tif").write_bytes(content[:at] + bytes(len(content) - at))
    return content


def test_a_job_with_losses_is_done_again_when_its_picture_is_mended(
    photo: Path, tiny_model: Path, tmp_path: Path
) -> None:
    out, scenes = tmp_path / "out", tmp_path / "scenes"
    content = write_scenes(photo, scenes)
    code, said = invoke(
        "canopy", "--catalog", scenes, "--model", tiny_model, "--out", out, "--on-read-error", "skip"
    )  # fmt: skip
    assert code == DONE_IN_PART and f"`geodino batch retry {out} --losses` does again what lost" in said
    found = json.loads(invoke("status", out, "--json")[1])
    assert (found["done"], found["lossy"]) == (2, 1) and found["lost_ha"] > 0
    assert "ha of 1 job lost to reading errors" in invoke("status", out)[1]
    code, said = invoke("retry", out)
    assert code == DONE_IN_PART and "0 failed jobs to try again" in said
    (scenes / "hurt.tif").write_bytes(content)
    kept = (folder_of(out, "whole") / "run.json").stat().st_mtime_ns
    code, said = invoke("retry", out, "--losses")
    assert code == 0 and "0 failed jobs and 1 job with losses to try again" in said
    assert read_record(folder_of(out, "hurt") / "run.json").lost_ha == 0
    assert (folder_of(out, "whole") / "run.json").stat().st_mtime_ns == kept
    found = json.loads(invoke("status", out, "--json")[1])
    assert (found["done"], found["lossy"], found["lost_ha"]) == (2, 0, 0.0)
    assert set(states(out).values()) == {"done"}
