"""Runs on real clusters while their processes are killed, starved and refused: the bytes are those of a calm run."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest
import rasterio
from affine import Affine
from cluster_processes import running, running_scheduler, running_worker, until, until_workers

from geodino.outputs.record import read_record

pytestmark = pytest.mark.slow

SIDE, GSD = 1200, 0.6
WEST, NORTH = 600_000.0, 4_800_000.0
RASTERS = ("canopy_height.tif", "canopy_height_spread.tif", "scene.tif")
KILLS = 20


class Site:
    """A scene, a model, and the command that maps it."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.scene, self.model = folder / "scene.tif", model
        rng = np.random.default_rng(6)
        coarse = rng.integers(0, 255, (3, SIDE // 8, SIDE // 8), np.uint8)
        write(self.scene, coarse.repeat(8, 1).repeat(8, 2))
        east, south = WEST + SIDE * GSD, NORTH - SIDE * GSD
        self.aoi = (
            f"SRID=32610;POLYGON(({WEST} {NORTH}, {east} {NORTH}, {east} {south}, {WEST} {south}, {WEST} {NORTH}))"
        )

    def start(self, out: Path | str, *more: str, sources: tuple[Path, ...] = ()) -> subprocess.Popen[str]:
        """The command, in a session of its own."""
        imagery = [word for source in sources or (self.scene,) for word in ("--source", str(source))]
        words = [sys.executable, "-m", "geodino", "run", "canopy", "--aoi", self.aoi, "--out", str(out), *imagery]
        words += ["--model", str(self.model), "--precision", "fp32", "--device", "cpu", *more]
        return subprocess.Popen(
            words, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
        )

    def finish(self, out: Path | str, *more: str, code: int = 0, sources: tuple[Path, ...] = ()) -> str:
        """The command to its end; what it said."""
        process = self.start(out, *more, sources=sources)
        said = process.communicate(timeout=240)[1]
        assert process.returncode == code, said
        return said


def write(path: Path, pixels: np.ndarray, **more: object) -> None:
    profile = {"driver": "GTiff", "dtype": "uint8", "count": 3, "height": pixels.shape[1], "width": pixels.shape[2]}
    profile |= {"crs": "EPSG:32610", "transform": Affine(GSD, 0, WEST, 0, -GSD, NORTH), "compress": "deflate"}
    with rasterio.open(path, "w", **(profile | more)) as target:
        target.write(pixels)


def receipts(out: Path) -> int:
    return len(list((out / ".work" / "bands").glob("*.json")))


def assert_same(one: Path, other: Path) -> None:
    for name in RASTERS:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Site:
    return Site(tmp_path_factory.mktemp("site"), tiny_model)


@pytest.fixture(scope="module")
def calm(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of a run in one process that nothing disturbed."""
    out = tmp_path_factory.mktemp("calm") / "out"
    site.finish(out)
    return out


class Cluster:
    """A scheduler and two workers with nannies, in processes of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.starts = folder, 0
        self.stack = ExitStack()
        self.start()

    def start(self) -> None:
        self.starts += 1
        folder = self.folder / str(self.starts)
        folder.mkdir()
        self.file = folder / "scheduler.json"
        options = ("--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(self.file))
        self.scheduler = self.stack.enter_context(running("dask_scheduler", *options))
        until(self.file.is_file)
        self.nannies = [self.worker() for _ in range(2)]
        until_workers(self.file, 2)

    def worker(self) -> subprocess.Popen[bytes]:
        return self.stack.enter_context(running_worker(self.file, "--nanny"))

    def kill(self, victim: str, rng: random.Random) -> None:
        """Kill -9 of the scheduler, of a nanny (another is started) or of a worker (its nanny starts another)."""
        if victim == "scheduler":
            self.scheduler.kill()
            # They would look for it for minutes.
            for process in [part for nanny in self.nannies for part in family(nanny)]:
                process.kill()
            self.stack.close()
            self.start()
        elif victim == "nanny":
            nanny = self.nannies.pop(rng.randrange(2))
            nanny.kill()
            self.nannies.append(self.worker())
        else:
            workers = [child for nanny in self.nannies for child in family(nanny)[1:]]
            if workers:
                rng.choice(workers).kill()


def family(nanny: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """A nanny and its worker, if it has one now."""
    process = psutil.Process(nanny.pid)
    return [process, *(child for child in process.children() if any("spawn_main" in word for word in child.cmdline()))]


def test_twenty_kills_at_random_moments_change_no_byte(site: Site, calm: Path, tmp_path: Path) -> None:
    rng = random.Random(20)
    cluster, out = Cluster(tmp_path), tmp_path / "out"
    kills, runs, finished = 0, 0, 0
    victims = ["worker", "nanny", "scheduler", "client"] * (KILLS // 4)
    rng.shuffle(victims)
    with cluster.stack:
        while victims or not finished:
            process = site.start(out, "--scheduler", str(cluster.file))
            runs += 1
            while process.poll() is None and victims:
                wanted = receipts(out) + rng.randint(1, 8)
                until(lambda: receipts(out) >= wanted or process.poll() is not None, seconds=120)  # noqa: B023
                time.sleep(rng.random() * 0.2)
                if process.poll() is not None:
                    break
                victim = victims.pop()
                kills += 1
                if victim == "client":
                    process.kill()
                else:
                    cluster.kill(victim, rng)
                if victim in ("client", "scheduler"):
                    break
            said = process.communicate(timeout=240)[1]
            assert process.returncode in (0, 4, -signal.SIGKILL), said
            assert process.returncode != 4 or "give the same command again to go on" in said, said
            if process.returncode == 0:
                assert_same(calm, out)
                finished += 1
                shutil.rmtree(out)
    assert kills == KILLS and finished and runs > finished


def test_a_run_in_one_process_that_is_killed_again_and_again_ends_with_the_same_bytes(
    site: Site, calm: Path, tmp_path: Path
) -> None:
    rng, deaths = random.Random(3), 0
    while True:
        process = site.start(tmp_path)
        before = receipts(tmp_path)
        wanted = before + rng.randint(2, 12)
        until(lambda: receipts(tmp_path) >= wanted or process.poll() is not None, seconds=120)  # noqa: B023
        process.kill()
        process.communicate()
        if process.returncode == 0:
            break
        deaths += 1
        assert deaths < 40
    assert deaths >= 3
    assert read_record(tmp_path / "run.json").windows_from_before > 0
    assert_same(calm, tmp_path)


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_the_bytes_are_those_of_one_process_for_any_number_of_workers(
    site: Site, calm: Path, tmp_path: Path, workers: int
) -> None:
    said = site.finish(tmp_path, "--workers", str(workers))
    assert_same(calm, tmp_path)
    assert said.splitlines()[0].startswith("dashboard: http://127.0.0.1:")
    assert read_record(tmp_path / "run.json").computed_by.startswith(f"{workers} worker")


def test_ctrl_c_ends_all_processes_and_the_run_can_go_on(site: Site, calm: Path, tmp_path: Path) -> None:
    process = site.start(tmp_path, "--workers", "2")
    until(lambda: receipts(tmp_path) >= 3, seconds=120)
    started = psutil.Process(process.pid).children(recursive=True)
    assert started
    # As a terminal does: to the command and to all that it started.
    os.killpg(process.pid, signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130, said
    assert "what is done is kept" in said and "Traceback" not in said
    _, alive = psutil.wait_procs(started, timeout=20)
    assert not alive
    site.finish(tmp_path)
    assert read_record(tmp_path / "run.json").windows_from_before > 0
    assert_same(calm, tmp_path)


@pytest.fixture(scope="module")
def poison(site: Site, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    """GeoTIFFs of 96 px side by side, each of one block that takes a quarter of a gigabyte when it is decoded."""
    folder = tmp_path_factory.mktemp("poison")
    for number in range(4):
        row, col = 600 + 96 * (number // 2), 600 + 96 * (number % 2)
        write(
            folder / f"{number}.tif",
            np.full((3, 96, 96), 99, np.uint8),
            transform=Affine(GSD, 0, WEST + col * GSD, 0, -GSD, NORTH - row * GSD),
            tiled=True,
            blockxsize=9344,
            blockysize=9344,
            interleave="pixel",
        )
    return tuple(sorted(folder.iterdir()))


@contextmanager
def small_cluster(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Two workers with little memory, whose scheduler accuses a task at its second death."""
    monkeypatch.setenv("DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES", "1")
    with (
        running_scheduler(folder) as file,
        running_worker(file, "--nanny", "--memory-limit", "1050MiB"),
        running_worker(file, "--nanny", "--memory-limit", "1050MiB"),
    ):
        until_workers(file, 2)
        yield file


def test_a_band_that_ends_its_workers_is_named_or_left_out_and_no_other(
    site: Site, calm: Path, poison: tuple[Path, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = (*poison, site.scene)
    with small_cluster(tmp_path, monkeypatch) as file:
        said = site.finish(tmp_path / "out", "--scheduler", str(file), "--threads", "8", sources=sources, code=4)
        assert "ended every worker that computed it" in said and "--on-band-error skip" in said
        site.finish(
            tmp_path / "out",
            "--scheduler",
            str(file),
            "--threads",
            "8",
            "--on-band-error",
            "skip",
            sources=sources,
            code=5,
        )
    record = read_record(tmp_path / "out" / "run.json")
    assert record.windows_from_before > 0
    assert record.losses and all("ended every worker" in said for said in record.losses)
    with rasterio.open(calm / RASTERS[0]) as one, rasterio.open(tmp_path / "out" / RASTERS[0]) as other:
        intact, holed = one.read(1), other.read(1)
    kept = holed != -9999
    assert 0.5 < kept.mean() < 1
    # A window may meet the poisoned ground, whose colour is another, without being in a band that was given up.
    assert np.mean(holed[kept] == intact[kept]) > 0.99


def test_a_full_disk_ends_the_run_and_room_lets_it_go_on(site: Site, calm: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=120m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("a disk of its own takes the right to mount one")
    try:
        process = site.start(disk / "out", "--workers", "2")
        until(lambda: receipts(disk / "out") >= 4, seconds=120)
        with (disk / "filler").open("wb") as filler:
            filler.truncate(0)
            try:
                while True:
                    filler.write(bytes(2**16))
                    filler.flush()
            except OSError:
                pass
            said = process.communicate(timeout=120)[1]
        assert process.returncode == 7, said
        assert "No space left on device" in said or "is the disk full?" in said
        assert not (disk / "out" / "run.json").exists()
        (disk / "filler").unlink()
        site.finish(disk / "out", "--workers", "2")
        assert_same(calm, disk / "out")
        assert read_record(disk / "out" / "run.json").windows_from_before > 0
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_damaged_block_is_left_out_by_workers_as_by_one_process(site: Site, tmp_path: Path) -> None:
    bad = tmp_path / "bad.tif"
    rng = np.random.default_rng(7)
    pixels = rng.integers(0, 255, (3, SIDE // 8, SIDE // 8), np.uint8).repeat(8, 1).repeat(8, 2)
    write(bad, pixels, tiled=True, blockxsize=256, blockysize=256)
    with rasterio.open(bad) as raster:
        offset = int(
            raster.tags(1, ns="TIFF").get("BLOCK_OFFSET_2_2") or raster.get_tag_item("BLOCK_OFFSET_2_2", "TIFF", 1)
        )
    data = bytearray(bad.read_bytes())
    data[offset : offset + 200] = bytes(200)
    bad.write_bytes(data)
    skip = ("--on-band-error", "skip", "--verify")
    site.finish(tmp_path / "one", *skip, sources=(bad,), code=5)
    said = site.finish(tmp_path / "two", *skip, "--workers", "2", sources=(bad,), code=5)
    assert "Traceback" not in said
    assert_same(tmp_path / "one", tmp_path / "two")
    losses = [read_record(tmp_path / name / "run.json").losses for name in ("one", "two")]
    assert losses[0] == losses[1] and "bad.tif" in losses[0][0]
    refused = site.finish(tmp_path / "three", "--verify", "--workers", "2", sources=(bad,), code=4)
    assert "bad.tif" in refused and "Traceback" not in refused
