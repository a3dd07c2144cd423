"""Disks that are full, read-only or gone while a run writes: what was there stays whole, and nothing half appears."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from geodino.errors import GeodinoError, OutputError
from geodino.options import RunOptions
from geodino.outputs.folder import OUTPUT_NAMES, OutputFolder
from geodino.pipeline import run
from geodino.stores import Store

AOI = "494016,4878640,494160,4878752"
KIB = 1024


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Gives a disk of its own by its mount options, such as size=1m, or changes its options."""
    disk = tmp_path / "disk"
    disk.mkdir()

    def mounted(options: str) -> Path:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "none", str(disk)], capture_output=True, check=False
        )
        if done.returncode:
            pytest.skip("may not mount a disk here")
        return disk

    yield mounted
    while not subprocess.run(["umount", str(disk)], capture_output=True, check=False).returncode:
        pass


def write_run(path: Path, text: str) -> None:
    with OutputFolder(path, overwrite=True) as folder:
        folder.work.put("a.json", b"{}")
        for name in OUTPUT_NAMES:
            folder.staging(name).write_text(text)
        folder.publish()


def contents(path: Path) -> set[str]:
    return {(path / name).read_text() for name in OUTPUT_NAMES}


def test_a_full_disk_takes_no_half_object_and_goes_on_when_there_is_room(mount: Callable[[str], Path]) -> None:
    store = Store(str(mount("size=256k") / "work"))
    store.put("first", bytes(100 * KIB))
    with pytest.raises(OutputError, match="work/second: No space left on device: make room"):
        store.put("second", bytes(200 * KIB))
    with pytest.raises(OutputError, match="make room"):
        store.create("second", bytes(200 * KIB))
    assert [entry.key for entry in store.entries()] == ["first"] and store.get("first") == bytes(100 * KIB)
    store.delete("first")
    assert store.create("second", bytes(200 * KIB))


def test_a_read_only_disk_is_said_before_the_run(mount: Callable[[str], Path]) -> None:
    mount("size=1m")
    with (
        pytest.raises(OutputError, match="Read-only file system: choose another --out"),
        OutputFolder(mount("remount,ro") / "out"),
    ):
        pass


def test_a_folder_that_is_removed_meanwhile_is_said_and_made_anew(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(OutputError, match="out was removed while the run wrote to it"), OutputFolder(out) as folder:
        folder.work.put("a.json", b"{}")
        folder.staging("run.json").write_text("{}")
        shutil.rmtree(out)
        folder.publish()
    write_run(out, "again")
    assert contents(out) == {"again"}


@pytest.mark.slow
def test_a_disk_full_at_any_byte_leaves_no_output_and_the_next_run_the_same_bytes(
    photo: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """No file may grow beyond a limit, which meets the stages, the pieces, the GeoTIFFs and the tables in turn."""
    resource = pytest.importorskip("resource")
    options = RunOptions(
        sources=(str(photo),), model=str(tiny_model), precision="fp32", device="cpu", aoi_crs="EPSG:26910"
    )
    run("canopy", aoi=AOI, out=tmp_path / "whole", options=options)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    refused = 0
    for limit in (1, 100, 2 * KIB, 5 * KIB, 10 * KIB, 20 * KIB, 40 * KIB, 80 * KIB, 160 * KIB, 320 * KIB, 640 * KIB):
        out = tmp_path / f"{limit}"
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            run("canopy", aoi=AOI, out=out, options=options)
        except GeodinoError as error:
            refused += 1
            assert isinstance(error, OutputError), (limit, repr(error))
            assert not {path.name for path in out.iterdir()} & set(OUTPUT_NAMES)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        if not (out / "run.json").exists():
            run("canopy", aoi=AOI, out=out, options=options)
        for name in ("canopy_height.tif", "canopy_height_spread.tif", "statistics.parquet", "scene.tif"):
            assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), (limit, name)
    assert refused > 5
