"""The record of a run: written, read back, the same."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from geodino.errors import ConfigError
from geodino.outputs.cog import Census
from geodino.outputs.record import (
    AOIRecord,
    FileRecord,
    GridRecord,
    ModelRecord,
    RunRecord,
    StatisticsRecord,
    TimingsRecord,
    WindowsRecord,
    read_record,
)

RECORD = RunRecord(
    geodino="0.1.0",
    pipeline={"name": "canopy", "size": 416},
    options={"sources": ["auto"], "model": None, "overwrite": False},
    aoi=AOIRecord(
        "area.geojson", 12.5, 0.0, (0, 0, 1, 1), {"type": "Polygon", "coordinates": [[[0, 0], [1, 0], [1, 1], [0, 0]]]}
    ),
    grid=GridRecord("EPSG:32610", 0.6, -8_000_000, 820_000, 611, 1003),
    windows=WindowsRecord(416, 64, 16, run=7, filled=1, outside_aoi=2, without_imagery=((-11, 4),)),
    model=ModelRecord(
        name="nano",
        title="canopy height in small",
        reference="nano",
        href="https://example.org/nano",
        parameters=4_000_000,
        weights_sha256="ab" * 32,
        mean=(0.42, 0.411, 0.296),
        std=(0.213, 0.156, 0.143),
        precision="fp32",
        device="cpu",
        licence="Apache-2.0",
        licence_url="https://example.org/licence",
        demonstration=True,
    ),
    scenes=({"id": "Müllerwald", "radiometry": {"gain": [1 / 255] * 3, "offset": [0.0] * 3, "note": "uint8"}},),
    dropped_scenes=("scene b: 90 % cloud",),
    timings=TimingsRecord(0.1, 2.0, 0.1, 0.3, 2.5),
    computed_px=7 * 416**2,
    peak_memory_mib={"process": 812.5},
    outputs=(
        FileRecord("canopy_height.tif", "cd" * 32, 1_234_567, StatisticsRecord(98.5, 0.0, 35.125, 12.25, 8.0)),
        FileRecord("preview.png", "ef" * 32, 99),
    ),
    libraries={"torch": "2.13.0"},
    started=datetime(2026, 5, 4, 12, 30, tzinfo=UTC),
    ended=datetime(2026, 5, 4, 12, 31, tzinfo=UTC),
    warnings=("imagery of 0.3 m is resampled to 0.6 m",),
)


def test_a_record_is_itself_after_writing_and_reading(tmp_path: Path) -> None:
    RECORD.write(tmp_path / "run.json")
    assert read_record(tmp_path / "run.json") == RECORD


def test_a_record_counts_and_names_what_was_skipped(tmp_path: Path) -> None:
    RECORD.write(tmp_path / "run.json")
    plain = json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))
    assert plain["windows"]["counts"] == {"planned": 10, "run": 7, "outside_aoi": 2, "without_imagery": 1}
    assert plain["windows"]["without_imagery"] == [[-11, 4]]
    assert plain["dropped_scenes"] == ["scene b: 90 % cloud"]
    assert plain["computed_px_per_s"] == round(7 * 416**2 / 2.5)


def test_the_same_record_gives_the_same_bytes(tmp_path: Path) -> None:
    RECORD.write(tmp_path / "a.json")
    read_record(tmp_path / "a.json").write(tmp_path / "b.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_a_record_never_holds_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        replace(RECORD, timings=replace(RECORD.timings, total_s=math.nan)).write(tmp_path / "run.json")
    empty = Census(100, 0, math.nan, math.nan, math.nan, math.nan, 0)
    assert StatisticsRecord.of(empty) == StatisticsRecord(0.0, None, None, None, None)


def test_the_short_text_warns_of_a_demonstration_model() -> None:
    text = RECORD.as_text()
    assert "canopy_height.tif  1.2 MiB, mean 12.2 m, largest 35.1 m" in text
    assert "7 windows run, 3 skipped (2 outside the AOI, 1 without imagery); 1 scene used" in text
    assert "demonstration model" in text
    assert "demonstration" not in replace(RECORD, model=replace(RECORD.model, demonstration=False)).as_text()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "cannot read the record"),
        ("[]", "is not a record of version 1 but of None"),
        ('{"record_version": 2}', "is not a record of version 1 but of 2"),
        ('{"record_version": 1}', "is no record: geodino"),
    ],
)
def test_what_is_no_record_is_refused_with_a_reason(tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(ConfigError, match=complaint):
        read_record(tmp_path / "run.json")


def test_a_missing_record_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read the record .*run\.json"):
        read_record(tmp_path / "run.json")
