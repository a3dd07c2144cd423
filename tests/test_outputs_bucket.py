"""A run's folder in a bucket of a real S3 server: the same promises as on a disk, kept by real processes."""

from __future__ import annotations

import os
import random
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from bucket_server import BucketServer, as_environment, bucket_server

from geodino import stores
from geodino.buckets import Tries
from geodino.errors import InUseError, OutputError
from geodino.outputs import locks
from geodino.outputs.folder import OUTPUT_NAMES, OutputFolder
from geodino.stores import Store

# A run that does some work and stages two files, says so, and then waits to be told or killed.
RUN = """
import sys
from geodino.outputs import locks
from geodino.outputs.folder import OutputFolder
locks.BEAT_S, locks.LEASE_S, locks.LOOK_S = 0.1, 2.0, 0.05
with OutputFolder(sys.argv[1], overwrite=True) as folder:
    folder.work.put("receipts/a.json", b"{}")
    folder.staging("canopy_height.tif").write_bytes(b"half" * 1000)
    folder.scratch("stage.tif").write_bytes(b"cells")
    folder.staging("run.json").write_text("second")
    print("staged", flush=True)
    sys.stdin.readline()
    folder.publish()
"""


@pytest.fixture(scope="module")
def server() -> Iterator[BucketServer]:
    with bucket_server() as server, as_environment(server):
        server.make_bucket("forest")
        yield server


@pytest.fixture
def out(server: BucketServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A new place in the bucket; beats and waits shorter than a user's."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(locks, "BEAT_S", 0.1)
    monkeypatch.setattr(locks, "LEASE_S", 2.0)
    monkeypatch.setattr(locks, "LOOK_S", 0.05)
    monkeypatch.setattr(stores, "PATIENT", Tries(retries=2, first_delay_s=0.01, most_delay_s=0.02))
    server.allow_all()
    server.asked.clear()
    return f"s3://forest/{secrets.token_hex(4)}/out"


def start(out: str, server: BucketServer, tmp_path: Path) -> subprocess.Popen[str]:
    environment = server.environment() | {"TMPDIR": str(tmp_path)}
    run = subprocess.Popen(
        [sys.executable, "-c", RUN, out], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    assert run.stdout is not None and run.stdout.readline() == "staged\n"
    return run


def finish(run: subprocess.Popen[str]) -> int:
    run.communicate("\n", timeout=30)
    return run.returncode


def held(out: str) -> dict[str, bytes | None]:
    """Everything there, but for the lock."""
    keys = [entry.key for entry in Store(out).entries()]
    return {key: Store(out).get(key) for key in keys if not key.startswith(".lock/")}


def write_run(out: str, text: str, *, overwrite: bool = False, outputs: tuple[str, ...] = OUTPUT_NAMES) -> None:
    with OutputFolder(out, overwrite=overwrite) as folder:
        folder.work.put("receipts/a.json", b"{}")
        for name in outputs:
            folder.staging(name).write_text(text)
        folder.publish()


def test_outputs_are_uploaded_when_all_are_ready_and_the_record_last(
    out: str, server: BucketServer, tmp_path: Path
) -> None:
    with OutputFolder(out) as folder:
        assert folder.local is None and folder.url == out and folder.path.parent == tmp_path
        for name in OUTPUT_NAMES:
            folder.staging(name).write_text(name)
        assert held(out) == {}
        assert folder.publish() == [f"{out}/{name}" for name in OUTPUT_NAMES]
    assert held(out) == {name: name.encode() for name in OUTPUT_NAMES}
    puts = [line for line in server.asked if line.startswith("PUT") and "/.lock/" not in line]
    assert [line.rpartition("/")[2] for line in puts] == list(OUTPUT_NAMES)
    assert list(tmp_path.iterdir()) == []


def test_the_old_record_goes_first_and_files_of_others_stay(out: str, server: BucketServer) -> None:
    write_run(out, "first")
    Store(out).put("notes.txt", b"mine")
    with pytest.raises(OutputError, match=rf"{out} already holds canopy_height\.tif.*--overwrite.*--out"):
        write_run(out, "second")
    server.asked.clear()
    write_run(out, "second", overwrite=True, outputs=("canopy_height.tif", "run.json"))
    assert held(out) == {"notes.txt": b"mine", "canopy_height.tif": b"second", "run.json": b"second"}
    changes = [line for line in server.asked if line.startswith(("PUT", "POST")) and "/out/." not in line]
    assert changes[0] == "POST /forest?delete" and changes[-2].endswith("/run.json")


def test_work_outlives_a_failed_run_and_goes_with_its_publication(out: str, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), OutputFolder(out) as folder:
        folder.work.put("receipts/a.json", b"{}")
        folder.staging("run.json").write_text("x")
        raise KeyboardInterrupt
    assert held(out) == {".work/receipts/a.json": b"{}"} and list(tmp_path.iterdir()) == []
    with OutputFolder(out) as folder:
        assert folder.work.get("receipts/a.json") == b"{}"
        folder.staging("run.json").write_text("x")
        folder.publish()
    assert held(out) == {"run.json": b"x"}


@pytest.mark.parametrize(
    "refused", ["PUT .*/preview.png", "PUT .*/run.json", r"POST /forest\?delete", "PUT .*/out/canopy"]
)
def test_a_store_that_refuses_in_the_middle_leaves_no_record_and_the_next_run_goes_on(
    out: str, server: BucketServer, refused: str
) -> None:
    server.refuse(refused, 403)
    with pytest.raises(OutputError, match=rf"{out}/\S+: access is refused .*give the credentials the right"):
        write_run(out, "first")
    left = held(out)
    assert "run.json" not in left and left[".work/receipts/a.json"] == b"{}"
    server.allow_all()
    # Not refused for what the failed run had published: it is unfinished work and no result.
    write_run(out, "first")
    assert held(out) == dict.fromkeys(OUTPUT_NAMES, b"first")


def test_a_refusal_in_the_middle_of_a_replacement_leaves_no_record(out: str, server: BucketServer) -> None:
    write_run(out, "first")
    server.refuse("PUT .*/preview.png", 403)
    with pytest.raises(OutputError, match="access is refused"):
        write_run(out, "second", overwrite=True)
    left = held(out)
    assert "run.json" not in left and {left["trees.parquet"], left["item.json"]} == {b"second", b"first"}


def test_two_runs_at_a_time_exclude_each_other_and_the_first_is_named(
    out: str, server: BucketServer, tmp_path: Path
) -> None:
    first = start(out, server, tmp_path)
    with pytest.raises(InUseError, match=rf"{out} is in use by process {first.pid} on .* since 20"), OutputFolder(out):
        pass
    assert finish(first) == 0
    assert held(out) == {"canopy_height.tif": b"half" * 1000, "run.json": b"second"}


def test_two_runs_in_one_process_exclude_each_other_and_follow_each_other(out: str) -> None:
    with OutputFolder(out), pytest.raises(InUseError, match=f"in use by process {os.getpid()}"), OutputFolder(out):
        pass
    began = time.monotonic()
    for _ in range(3):
        with OutputFolder(out):
            pass
    assert time.monotonic() - began < 1.0
    assert [entry.key for entry in Store(out).below(".lock").entries()] == ["00000004"]


def test_a_killed_run_shows_nothing_and_the_next_one_waits_for_its_lease_alone(
    out: str, server: BucketServer, tmp_path: Path
) -> None:
    run = start(out, server, tmp_path)
    run.send_signal(signal.SIGKILL)
    run.communicate()
    assert held(out) == {".work/receipts/a.json": b"{}"}
    left = {path.name for path in tmp_path.iterdir()}
    assert len(left) == 2
    began = time.monotonic()
    write_run(out, "again")
    assert 1.5 < time.monotonic() - began < 20
    assert held(out) == dict.fromkeys(OUTPUT_NAMES, b"again")
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_was_stopped_for_long_writes_nothing_over_its_successor(
    out: str, server: BucketServer, tmp_path: Path
) -> None:
    first = start(out, server, tmp_path)
    first.send_signal(signal.SIGSTOP)
    try:
        write_run(out, "successor")
    finally:
        first.send_signal(signal.SIGCONT)
    assert finish(first) != 0
    assert held(out) == dict.fromkeys(OUTPUT_NAMES, b"successor")


@pytest.mark.slow
def test_a_run_killed_at_any_moment_of_its_publication_never_leaves_a_record_of_a_mixture(
    out: str, server: BucketServer, tmp_path: Path
) -> None:
    write_run(out, "first")
    generator = random.Random(6)
    for _ in range(12):
        run = start(out, server, tmp_path)
        assert run.stdin is not None
        run.stdin.write("\n")
        run.stdin.flush()
        time.sleep(generator.uniform(0, 0.15))
        run.kill()
        run.communicate()
        found = held(out)
        assert found.get("canopy_height.tif") in (b"first", b"half" * 1000)
        if "run.json" in found:
            whole = found["run.json"] == b"second"
            assert found["canopy_height.tif"] == (b"half" * 1000 if whole else b"first")
            assert ("trees.parquet" in found) is not whole
        write_run(out, "first", overwrite=True)


def test_of_many_who_start_at_once_one_writes(out: str, server: BucketServer) -> None:
    program = (
        "import sys, time\nfrom geodino.outputs import locks\nfrom geodino.outputs.folder import OutputFolder\n"
        "locks.BEAT_S, locks.LEASE_S, locks.LOOK_S = 0.1, 2.0, 0.05\nsys.stdin.readline()\n"
        "with OutputFolder(sys.argv[1]) as folder:\n    time.sleep(1)\n"
    )
    runs = [
        subprocess.Popen([sys.executable, "-c", program, out], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                         env=server.environment())
        for _ in range(4)
    ]  # fmt: skip
    time.sleep(1.5)
    errors = []
    for run in runs:
        assert run.stdin is not None
        run.stdin.write("\n")
        run.stdin.flush()
    for run in runs:
        errors.append(run.communicate(timeout=30)[1])
    assert sorted(run.returncode for run in runs) == [0, 1, 1, 1]
    assert sum("is in use by process" in error for error in errors) == 3


def test_a_bucket_that_is_not_there_is_said_before_any_work(
    out: str, server: BucketServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(OutputError, match="there is no such bucket"):
        OutputFolder("s3://gone/out").check()
    server.refuse(r"GET /forest\?.*list-type", 403)
    with pytest.raises(OutputError, match="access is refused"):
        OutputFolder(out).check()
    server.allow_all()
    server.refuse("PUT .*/.lock/", 403)
    with pytest.raises(OutputError, match="access is refused"), OutputFolder(out):
        pass
    server.allow_all()
    (tmp_path / "file").touch()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "file"))
    with pytest.raises(OutputError, match="set TMPDIR to a folder with room"), OutputFolder(out):
        pass
