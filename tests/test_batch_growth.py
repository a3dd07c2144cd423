"""Batches whose catalogs come to hold more: what is new joins, and what is done stays."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
from batch_scenes import folder_of, invoke, states, write_pieces

from geodino.batch.asked import Asked, open_batch
from geodino.batch.jobs import add_jobs
from geodino.batch.listing import scene_jobs
from geodino.batch.runner import run_batch
from geodino.options import RunOptions
from geodino.sources import Search
from geodino.sources.config import resolve
from geodino.stores import Store
from geodino.watch import Fact, Silent


@pytest.fixture(scope="module")
def scenes(photo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    write_pieces(photo, folder)
    return folder


@pytest.fixture
def growing(scenes: Path, tmp_path: Path) -> Path:
    """A folder with one of the scenes."""
    folder = tmp_path / "scenes"
    folder.mkdir()
    shutil.copy(scenes / "small.tif", folder)
    return folder


def test_the_scenes_of_next_month_join_the_batch_and_what_is_done_stays(
    scenes: Path, growing: Path, tiny_model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    asked = ("canopy", "--catalog", growing, "--model", tiny_model, "--out", out)
    assert invoke(*asked)[0] == 0
    first = (folder_of(out, "small") / "run.json").stat().st_mtime_ns
    shutil.copy(scenes / "east.tif", growing)
    code, said = invoke(*asked)
    assert code == 0 and "1 new job, " in said and "2 jobs of 2 done" in said
    # In the mosaic as if both had been there from the beginning.
    assert list(states(out).items()) == [("east", "done"), ("small", "done")]
    assert (folder_of(out, "small") / "run.json").stat().st_mtime_ns == first
    (growing / "small.tif").unlink()
    code, said = invoke(*asked)
    assert code == 0 and "2 jobs of 2 done" in said and "1 job of the batch stays" in said


def test_a_process_at_work_helps_with_the_jobs_that_another_has_found_meanwhile(
    scenes: Path, growing: Path, tiny_model: Path, tmp_path: Path
) -> None:
    asked, store = Asked("canopy", RunOptions(model=str(tiny_model)), str(growing)), Store(str(tmp_path / "out"))
    batch = open_batch(asked, store, Silent())

    class Finding(Silent):
        def event(self, name: str, facts: Mapping[str, Fact]) -> None:
            if name == "job done" and not (growing / "east.tif").exists():
                shutil.copy(scenes / "east.tif", growing)
                listing = scene_jobs(resolve(str(growing)), Search(), None)
                add_jobs(store, batch.manifest.jobs_key, batch.manifest.jobs_sha256, listing.jobs)

    assert run_batch(batch, Finding()).done == 2
    assert states(tmp_path / "out") == {"small": "done", "east": "done"}
