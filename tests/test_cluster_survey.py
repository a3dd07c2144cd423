"""What is looked at on workers before a run, with real processes."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from cluster_processes import running_scheduler, running_worker, until, until_workers
from distributed import Client

from geodino.cluster.machines import Machines
from geodino.cluster.opening import open_client
from geodino.cluster.survey import Needs, checked, software
from geodino.errors import ConfigError, GeodinoError, OutputError, ReadError
from geodino.sources.geotiff import describe
from geodino.stores import Store
from geodino.watch import PlainWatch, Silent


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with open_client(Machines(2), Silent()) as opened:
        yield opened


@contextmanager
def joined(file: Path, workers: int = 1) -> Iterator[Client]:
    until_workers(file, workers)
    with open_client(Machines(scheduler=str(file)), Silent()) as client:
        yield client


def refusal(client: Client, needs: Needs) -> GeodinoError:
    with pytest.raises(GeodinoError) as refused, checked(client, needs, Silent()):
        pytest.fail("it was not refused")
    return refused.value


def test_fit_workers_are_told_of_and_the_store_is_left_as_it_was(client: Client, photo: Path, tmp_path: Path) -> None:
    said, store = io.StringIO(), Store(str(tmp_path / "work"))
    store.put("mine", b"1")
    needs = Needs(device="cpu", precision="fp32", scenes=(describe(str(photo)),), store=store)
    with checked(client, needs, PlainWatch(said)) as computers:
        assert [(computer.device, computer.precision, computer.threads) for computer in computers] == [
            ("cpu", "fp32", 1)
        ] * 2
    assert (
        said.getvalue().startswith("2 workers on 1 machine: ") and "in fp32, 1 thread of torch and " in said.getvalue()
    )
    assert [entry.key for entry in store.entries()] == ["mine"]


def test_a_resource_that_nobody_offers_is_an_error_and_no_hang(client: Client) -> None:
    assert "no worker offers GPU=1, of 2 workers that offer no resources" in str(
        refusal(client, Needs(resources={"GPU": 1}))
    )


def test_a_device_that_is_not_there_is_named_with_its_worker(client: Client) -> None:
    error = refusal(client, Needs(device="cuda:9"))
    assert str(error).count("worker tcp://127.0.0.1:") == 2 and "device cuda:9 is not there" in str(error)


def test_imagery_that_a_worker_cannot_reach_is_named(client: Client, photo: Path) -> None:
    scene = describe(str(photo))
    gone = tuple(replace(band, href="/nowhere/photo.tif") for band in scene.bands)
    error = refusal(client, Needs(scenes=(replace(scene, bands=(gone[0], gone[1], gone[2])),)))
    assert isinstance(error, ReadError) and "/nowhere/photo.tif" in str(error) and "worker tcp://" in str(error)
    assert "another file" in str(refusal(client, Needs(scenes=(replace(scene, shape=(300, 421)),))))


def test_a_store_that_refuses_is_an_error(client: Client) -> None:
    assert isinstance(refusal(client, Needs(store=Store("/proc/nowhere"))), OutputError)


@pytest.mark.slow
def test_a_folder_that_a_worker_does_not_share_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    with (
        running_scheduler(tmp_path) as file,
        running_worker(file, cwd=tmp_path / "elsewhere"),
        joined(file) as client,
    ):
        assert "out is another place there" in str(refusal(client, Needs(store=Store("out"))))


@pytest.mark.slow
def test_a_worker_or_scheduler_without_geodino_is_named(tmp_path: Path) -> None:
    with (
        running_scheduler(tmp_path) as file,
        running_worker(file, "--no-nanny", has_geodino=False),
        joined(file) as client,
    ):
        error = refusal(client, Needs())
        assert isinstance(error, ConfigError)
        assert all(word in str(error) for word in ("worker tcp://127.0.0.1:", "ModuleNotFoundError", "geodino"))
    with running_scheduler(tmp_path, has_geodino=False) as file, running_worker(file), joined(file) as client:
        assert "start it where geodino is installed" in str(refusal(client, Needs()))


def test_another_software_on_a_worker_is_named(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tuple((name, "0.1" if name == "rasterio" else version) for name, version in software())
    monkeypatch.setattr("geodino.cluster.survey.software", lambda: here)
    monkeypatch.setattr("geodino.cluster.survey._check_scheduler", lambda client: None)
    error = refusal(client, Needs())
    assert str(error).count("and not 0.1; start it in the same environment as this run") == 2
    assert "numpy" not in str(error)


@pytest.mark.slow
def test_a_worker_that_joins_later_is_looked_at_and_one_without_the_resource_is_not(tmp_path: Path) -> None:
    store, said = Store(str(tmp_path / "work")), io.StringIO()
    gpu = ("--resources", "GPU=1")
    with running_scheduler(tmp_path) as file, running_worker(file, *gpu):
        until_workers(file, 1)
        with (
            open_client(Machines(scheduler=str(file)), PlainWatch(said)) as client,
            checked(client, Needs(resources={"GPU": 1}, store=store), Silent()),
        ):
            for entry in list(store.entries()):
                store.put(entry.key, b"another store")
            with running_worker(file), running_worker(file, *gpu) as unfit:
                assert unfit.wait(30) == 0
                until(lambda: "another place there" in said.getvalue())
                until(lambda: len(client.scheduler_info(n_workers=-1)["workers"]) == 2)


@pytest.mark.slow
def test_workers_that_take_several_tasks_or_waste_cores_are_warned_of(tmp_path: Path) -> None:
    said = io.StringIO()
    with running_scheduler(tmp_path) as file, running_worker(file, "--nthreads", "2"), joined(file) as client:
        with checked(client, Needs(), PlainWatch(said)):
            pass
        assert "several tasks at once" in said.getvalue() and "--nthreads 1" in said.getvalue()
