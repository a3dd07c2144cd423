"""A batch that is begun anew: what a batch made goes, and nothing else."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from batch_results import box, gather_all, map_area
from batch_work import small_batch

from geodino.batch.asked import Asked, open_batch
from geodino.batch.leases import Pulse
from geodino.batch.ledger import read_tracks
from geodino.batch.removal import made, remove_batch
from geodino.errors import ConfigError, InUseError
from geodino.options import RunOptions
from geodino.stores import Store
from geodino.watch import Silent


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_all_that_a_batch_made_is_removed_and_what_is_the_users_own_stays(tmp_path: Path) -> None:
    batch = small_batch(tmp_path, ["a"])
    map_area(box(0, 0, 60, 60), tmp_path / batch.jobs[0].key)
    gather_all(tmp_path, disjoint=True)
    batch.store.put(f"{batch.jobs[0].key}/.work/bands/1.npy", b"")
    assert len(files(tmp_path)) > 20
    own = ("notes.txt", "project.qgz", "mosaic/project.qgz", "trees/mine.parquet", "jobs/00/mine/run.json",
           f"{batch.jobs[0].key}/notes.txt")  # fmt: skip
    for name in own:
        batch.store.put(name, b"mine")
    remove_batch(batch.store, 1.0, Silent())
    assert files(tmp_path) == set(own)
    assert not list(made(batch.store))
    assert not (tmp_path / ".batch").exists()  # nor empty folders


def test_a_batch_of_other_settings_is_begun_anew_only_where_the_user_says_so(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    open_batch(Asked("canopy", RunOptions(model="nano"), "sample"), store, Silent())
    store.create(".batch/state/00/old.done", b"{}")
    other = RunOptions(model="nano", max_cloud=5.0)
    with pytest.raises(ConfigError, match=r"max_cloud was None and is 5.*begin anew with --overwrite"):
        open_batch(Asked("canopy", other, "sample"), store, Silent())
    assert "old" in read_tracks(store)
    anew = RunOptions(model="nano", max_cloud=5.0, overwrite=True)
    assert open_batch(Asked("canopy", anew, "sample"), store, Silent()).jobs
    assert not read_tracks(store)
    open_batch(Asked("canopy", other, "sample"), store, Silent())


def test_what_cannot_be_begun_leaves_what_is_there(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "out"))
    open_batch(Asked("canopy", RunOptions(model="nano"), "sample"), store, Silent())
    before = files(tmp_path)
    with pytest.raises(ConfigError, match="takes no model auto"):
        open_batch(Asked("canopy", RunOptions(overwrite=True), "sample"), store, Silent())
    with pytest.raises(ConfigError, match="cannot be read as CSV"):
        options = RunOptions(model="nano", sources=("sample",), overwrite=True)
        open_batch(Asked("canopy", options, str(tmp_path / "gone.csv")), store, Silent())
    assert files(tmp_path) == before


def test_a_batch_that_others_are_at_is_not_removed_and_one_of_the_dead_is(tmp_path: Path) -> None:
    batch = small_batch(tmp_path, ["a"], lease_s=1.0)
    with Pulse(batch.store, 1.0), pytest.raises(InUseError, match=r"process \d+ on .* is at work in"):
        remove_batch(batch.store, 300.0, Silent())
    assert list(made(batch.store))
    batch.store.put(".batch/owners/elsewhere-12-0.json", b"{}")  # was killed on another machine
    began = time.monotonic()
    remove_batch(batch.store, 300.0, Silent())
    assert 1.0 < time.monotonic() - began < 30.0
    assert not list(made(batch.store))
