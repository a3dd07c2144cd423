"""The output folder: one run at a time, everything or nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from geodino.errors import InUseError, OutputError
from geodino.outputs.folder import OUTPUT_NAMES, RECORD_NAME, OutputFolder, require_free, whole_file
from geodino.outputs.locks import HOLDER_NAME
from geodino.stores import Store

# A run that stages two files, says so, and then waits to be told or killed.
RUN = """
import sys
from geodino.outputs.folder import OutputFolder
with OutputFolder(sys.argv[1], overwrite=True) as folder:
    folder.staging("canopy_height.tif").write_bytes(b"half" * 1000)
    folder.scratch("stage.tif").write_bytes(b"cells")
    folder.staging("run.json").write_text("{}")
    print("staged", flush=True)
    sys.stdin.readline()
    folder.publish()
"""


def start(path: Path) -> subprocess.Popen[str]:
    run = subprocess.Popen(
        [sys.executable, "-c", RUN, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert run.stdout is not None and run.stdout.readline() == "staged\n"
    return run


def finish(run: subprocess.Popen[str]) -> int:
    run.communicate("\n", timeout=30)
    return run.returncode


def names(path: Path) -> set[str]:
    return {entry.name for entry in path.iterdir()} - {".lock"}


def write_run(path: Path, text: str, *, overwrite: bool = False, outputs: tuple[str, ...] = OUTPUT_NAMES) -> None:
    with OutputFolder(path, overwrite=overwrite) as folder:
        for name in outputs:
            folder.staging(name).write_text(text)
        folder.publish()


def test_outputs_appear_under_their_names_when_all_are_ready(tmp_path: Path) -> None:
    with OutputFolder(tmp_path / "new" / "out") as folder:
        for name in OUTPUT_NAMES:
            folder.staging(name).write_text(name)
        assert not names(folder.path) & set(OUTPUT_NAMES)
        published = folder.publish()
    assert published == [str(folder.path / name) for name in OUTPUT_NAMES] and published[-1].endswith(RECORD_NAME)
    assert names(folder.path) == set(OUTPUT_NAMES)
    assert all((folder.path / name).read_text() == name for name in OUTPUT_NAMES)


def test_a_folder_may_be_named_by_its_url(tmp_path: Path) -> None:
    with OutputFolder(f"file://{tmp_path}/a%20b") as folder:
        folder.work.put("a.json", b"{}")
        folder.staging("run.json").write_text("{}")
        folder.publish()
    assert folder.local == tmp_path / "a b" and names(tmp_path / "a b") == {"run.json"}


def test_what_a_killed_publication_left_beside_its_work_does_not_refuse_the_next_run(tmp_path: Path) -> None:
    (tmp_path / "canopy_height.tif").write_text("published before the kill")
    with pytest.raises(OutputError, match="already holds"):
        OutputFolder(tmp_path).check()
    Store(str(tmp_path)).put(".work/receipts/a.json", b"{}")
    write_run(tmp_path, "again")
    assert {(tmp_path / name).read_text() for name in OUTPUT_NAMES} == {"again"}
    Store(str(tmp_path)).put(".work/receipts/a.json", b"{}")
    with pytest.raises(OutputError, match="already holds"):
        OutputFolder(tmp_path).check()


def test_a_second_run_is_refused_without_overwrite_and_changes_nothing(tmp_path: Path) -> None:
    write_run(tmp_path, "first")
    with pytest.raises(OutputError, match=r"already holds canopy_height\.tif.*--overwrite.*--out"):
        write_run(tmp_path, "second")
    assert {(tmp_path / name).read_text() for name in OUTPUT_NAMES} == {"first"}


def test_overwrite_replaces_our_files_and_leaves_those_of_others(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    write_run(tmp_path, "first")
    write_run(tmp_path, "second", overwrite=True, outputs=("canopy_height.tif", "run.json"))
    assert names(tmp_path) == {"notes.txt", "canopy_height.tif", "run.json"}
    assert (tmp_path / "canopy_height.tif").read_text() == "second"


def test_a_run_that_fails_keeps_the_files_of_the_earlier_one(tmp_path: Path) -> None:
    write_run(tmp_path, "first")
    with pytest.raises(KeyboardInterrupt), OutputFolder(tmp_path, overwrite=True) as folder:
        folder.staging("canopy_height.tif").write_text("second")
        folder.scratch("stage.tif").write_text("cells")
        raise KeyboardInterrupt
    assert names(tmp_path) == set(OUTPUT_NAMES)
    assert {(tmp_path / name).read_text() for name in OUTPUT_NAMES} == {"first"}


def test_an_output_that_was_never_written_stops_the_publication(tmp_path: Path) -> None:
    with OutputFolder(tmp_path) as folder:
        folder.staging("run.json").write_text("{}")
        folder.staging("canopy_height.tif")
        with pytest.raises(OutputError, match=r"nothing was written for canopy_height\.tif"):
            folder.publish()
    assert names(tmp_path) == set()


def test_a_discarded_output_is_not_published_and_the_old_one_goes(tmp_path: Path) -> None:
    write_run(tmp_path, "first")
    with OutputFolder(tmp_path, overwrite=True) as folder:
        for name in OUTPUT_NAMES:
            folder.staging(name).write_text("second")
        folder.discard("preview.png")
        folder.discard("preview.png")
        folder.publish()
    assert names(tmp_path) == set(OUTPUT_NAMES) - {"preview.png"}


def test_names_outside_the_known_ones_cannot_be_published(tmp_path: Path) -> None:
    with OutputFolder(tmp_path) as folder, pytest.raises(ValueError, match="is not an output"):
        folder.staging("../../evil.tif")


def test_two_runs_at_a_time_exclude_each_other_and_the_first_is_named(tmp_path: Path) -> None:
    first = start(tmp_path)
    with pytest.raises(InUseError, match=f"in use by process {first.pid} on .* since 20"), OutputFolder(tmp_path):
        pass
    assert finish(first) == 0
    assert names(tmp_path) == {"canopy_height.tif", "run.json"}


def test_two_runs_in_one_process_exclude_each_other(tmp_path: Path) -> None:
    with OutputFolder(tmp_path):
        with pytest.raises(InUseError, match=f"in use by process {os.getpid()}"), OutputFolder(tmp_path):
            pass
        assert json.loads((tmp_path / HOLDER_NAME).read_text())["pid"] == os.getpid()


def test_a_killed_run_leaves_no_final_name_and_the_next_run_clears_up(tmp_path: Path) -> None:
    run = start(tmp_path)
    run.send_signal(signal.SIGKILL)
    run.communicate()
    left = names(tmp_path)
    assert not left & set(OUTPUT_NAMES)
    assert sum(".part-" in name for name in left) == 3
    again = start(tmp_path)
    assert finish(again) == 0
    assert names(tmp_path) == {"canopy_height.tif", "run.json"}


def test_an_interrupted_run_clears_up_itself(tmp_path: Path) -> None:
    run = start(tmp_path)
    run.send_signal(signal.SIGINT)
    run.communicate(timeout=30)
    assert run.returncode != 0
    assert names(tmp_path) == set()


def test_a_publication_that_fails_half_way_leaves_no_record(tmp_path: Path) -> None:
    write_run(tmp_path, "first")
    with pytest.raises(OutputError, match="cannot write"), OutputFolder(tmp_path, overwrite=True) as folder:
        for name in OUTPUT_NAMES:
            folder.staging(name).write_text("second")
        # The disk fails for one file in the middle: something in the way that cannot be replaced by a file.
        blocked = tmp_path / "preview.png"
        blocked.unlink()
        blocked.mkdir()
        (blocked / "in the way").write_text("")
        folder.publish()
    assert not (tmp_path / RECORD_NAME).exists()


def test_a_folder_that_is_a_file_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with (
        pytest.raises(OutputError, match=r"cannot write to .*/out: File exists: choose another --out"),
        OutputFolder(tmp_path / "out"),
    ):
        pass
    with pytest.raises(OutputError, match=r"cannot write to .*: Not a directory"), OutputFolder(tmp_path / "out" / "x"):
        pass


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_refused_by_name(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="Permission denied"), OutputFolder(tmp_path):
        pass


def test_a_pseudo_folder_that_nobody_can_write_is_refused() -> None:
    with pytest.raises(OutputError, match="cannot write to /proc/self/out"), OutputFolder("/proc/self/out"):
        pass


def test_an_output_name_taken_by_a_folder_is_refused_before_the_run(tmp_path: Path) -> None:
    (tmp_path / "item.json").mkdir()
    with pytest.raises(OutputError, match=r"a folder where item\.json"), OutputFolder(tmp_path, overwrite=True):
        pass


def test_too_little_room_is_said_with_both_figures(tmp_path: Path) -> None:
    require_free(tmp_path, 1)
    with pytest.raises(OutputError, match=r"MiB free and 1048576000000 MiB are needed"):
        require_free(tmp_path, 10**12 * 2**20 + 48_576_000_000 * 2**20)


def test_a_whole_file_is_old_or_new_but_never_half(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    with whole_file(target) as part:
        part.write_text("old")
    with pytest.raises(ZeroDivisionError), whole_file(target) as part:
        part.write_text("ne")
        _ = 1 / 0
    assert target.read_text() == "old" and names(tmp_path) == {"a.txt"}


def test_work_outlives_a_run_that_fails_and_goes_with_its_publication(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), OutputFolder(tmp_path) as folder:
        folder.work.put("pieces/a", b"half of it")
        raise KeyboardInterrupt
    with OutputFolder(tmp_path) as folder:
        assert folder.work.get("pieces/a") == b"half of it"
        folder.staging("run.json").write_text("{}")
        folder.publish()
    assert names(tmp_path) == {"run.json"}


def test_a_run_that_fails_early_leaves_no_work(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), OutputFolder(tmp_path) as folder:
        assert folder.work.url.endswith(".work")
        raise KeyboardInterrupt
    assert names(tmp_path) == set()
