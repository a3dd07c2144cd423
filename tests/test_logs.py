"""Logs that machines read."""

from __future__ import annotations

import io
import json
import logging
import sys
import time
from datetime import datetime
from pathlib import Path

import pytest

from geodino.errors import OutputError
from geodino.logs import logged
from geodino.watch import PlainWatch, Silent


def lines_of(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_what_is_said_is_shown_and_written_with_its_run_job_and_band(tmp_path: Path) -> None:
    said, path = io.StringIO(), tmp_path / "log.jsonl"
    with logged(PlainWatch(said), str(path), "run-1") as watch:
        watch.note("3 scenes")
        watch.begin("jobs", 2)
        with watch.part("cell-7") as job:
            job.warn("the photo is old")
            job.event("band done", {"band": "3,4", "seconds": 1.5, "hectares": 40.0})
        watch.advance(1)
        watch.advance(2, hectares=80.0)
    lines = lines_of(path)
    assert [line["event"] for line in lines] == ["note", "begin", "warning", "band done", "end"]
    assert {line["run"] for line in lines} == {"run-1"}
    assert [line.get("job") for line in lines] == [None, None, "cell-7", "cell-7", None]
    assert lines[2]["level"] == "warning" and lines[2]["message"] == "the photo is old"
    assert (lines[3]["band"], lines[3]["seconds"], lines[3]["hectares"]) == ("3,4", 1.5, 40.0)
    assert (lines[4]["stage"], lines[4]["done"], lines[4]["total"]) == ("jobs", 2, 2)
    assert all(datetime.fromisoformat(str(line["time"])).tzinfo for line in lines)
    assert said.getvalue().startswith("3 scenes\nwarning: cell-7: the photo is old\njobs: 2 of 2 (100%)")


def test_metrics_are_written_now_and_then_while_nothing_is_done(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    with logged(Silent(), str(path), "run-1", every_s=0.05) as watch:
        watch.begin("bands", 10)
        watch.advance(2)
        time.sleep(0.02)
        watch.advance(4, hectares=3.0)
        time.sleep(0.4)
    metrics = [line for line in lines_of(path) if line["event"] == "metrics"]
    assert 2 <= len(metrics) <= 9
    assert {"stage", "done", "total", "seconds", "per_s", "km2_h", "left_s", "memory_mib"} <= metrics[-1].keys()
    assert metrics[-1]["done"] == 4 and metrics[-1]["per_s"] > 0 and metrics[-1]["memory_mib"] > 10


def test_what_modules_log_is_written_without_secrets_and_only_while_it_lasts(tmp_path: Path) -> None:
    path, logger = tmp_path / "log.jsonl", logging.getLogger("geodino.sources")
    with logged(Silent(), str(path), "run-1"):
        logger.warning("asked %s again", "https://host/a.tif?sig=secret")
    logger.warning("after")
    (line,) = lines_of(path)
    assert line["logger"] == "geodino.sources" and line["message"] == "asked https://host/a.tif?... again"


def test_a_log_is_added_to_and_may_go_to_standard_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "log.jsonl"
    for number in range(2):
        with logged(Silent(), str(path), f"run-{number}") as watch:
            watch.note("here")
    assert [line["run"] for line in lines_of(path)] == ["run-0", "run-1"]
    with logged(Silent(), "-", "run-2") as watch:
        watch.note("here")
    assert json.loads(capsys.readouterr().out)["run"] == "run-2"
    assert not sys.stdout.closed


def test_without_a_log_only_people_are_told(tmp_path: Path) -> None:
    said = io.StringIO()
    with logged(PlainWatch(said), None, "run-1") as watch:
        watch.note("3 scenes")
        watch.event("band done", {"band": "3,4"})
    assert said.getvalue() == "3 scenes\n" and not list(tmp_path.iterdir())


def test_a_log_that_cannot_be_written_is_said_before_the_run(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"), logged(Silent(), str(tmp_path), "run-1"):
        pass


def test_a_full_disk_ends_the_log_and_no_run(capsys: pytest.CaptureFixture[str]) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with logged(Silent(), "/dev/full", "run-1") as watch:
        for _ in range(3):
            watch.note("here")
    assert capsys.readouterr().err.count("the log cannot be written any more") == 1
