"""Local workers, schedulers that run already and clusters from configs, with real processes."""

from __future__ import annotations

import gc
import io
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import cluster_faults
import dask
import dask.array
import pytest
from cluster_processes import running_scheduler, running_worker, until, until_workers
from dask.system import CPU_COUNT
from distributed import Client, Scheduler, default_client

import geodino
from geodino.cluster.held import register, release
from geodino.cluster.machines import Machines, cluster_config
from geodino.cluster.opening import local_workers, open_client, task_resources
from geodino.errors import AOIError, ConfigError, ModelError, NoImageryError
from geodino.options import RunOptions
from geodino.shipped import config_names, config_path
from geodino.watch import PlainWatch, Silent

TESTS = Path(__file__).parent


@pytest.fixture(autouse=True, scope="module")
def workers_can_import_the_tests() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(TESTS), prepend=os.pathsep)
        yield


def workers_of(client: Client) -> dict[str, object]:
    return dict(client.scheduler_info(n_workers=-1)["workers"])


def test_two_kinds_of_machines_are_refused() -> None:
    with pytest.raises(ConfigError, match="--workers 2 and --scheduler tcp://x:1 name different machines"):
        Machines(2, "tcp://x:1")


@pytest.mark.parametrize("words", ["0", "-1", "two", "1.5"])
def test_a_number_of_workers_must_be_one(words: str) -> None:
    with pytest.raises(ConfigError, match=f"--workers {words} must be"):
        Machines.of(words)


def test_nothing_asked_means_this_process() -> None:
    assert not Machines.of(None).asked
    assert Machines.of("auto") == Machines("auto") and Machines.of("3") == Machines(3) and Machines(3).asked


def test_cores_and_memory_are_shared_out_and_fewer_threads_may_be_asked_for() -> None:
    workers = local_workers(3, cores=8, memory=12_000, gpus=(), environ={})
    assert [spec["options"]["env"]["OMP_NUM_THREADS"] for spec in workers.values()] == ["2", "2", "2"]
    assert {spec["options"]["memory_limit"] for spec in workers.values()} == {4_000}
    assert {spec["options"]["nthreads"] for spec in workers.values()} == {1}
    fewer = local_workers(2, cores=8, memory=1, gpus=(), environ={"OMP_NUM_THREADS": "1"})
    more = local_workers(2, cores=8, memory=1, gpus=(), environ={"OMP_NUM_THREADS": "64"})
    assert fewer[0]["options"]["env"]["OMP_NUM_THREADS"] == "1" and more[0]["options"]["env"]["OMP_NUM_THREADS"] == "4"


def test_each_worker_sees_one_gpu_in_turn_and_offers_it() -> None:
    workers = local_workers(3, cores=8, memory=1, gpus=("2", "GPU-7"), environ={})
    assert [spec["options"]["env"]["CUDA_VISIBLE_DEVICES"] for spec in workers.values()] == ["2", "GPU-7", "2"]
    assert all(spec["options"]["resources"] == {"GPU": 1} for spec in workers.values())


def test_local_workers_have_their_share_of_threads_and_leave_this_process_as_it_was() -> None:
    before, said = dict(os.environ), io.StringIO()
    with open_client(Machines("auto"), PlainWatch(said)) as client:
        assert 1 <= len(workers_of(client)) <= CPU_COUNT
        assert set(client.run(cluster_faults.torch_threads).values()) == {1}
        assert task_resources(Machines("auto"), client) == {}
        link = client.dashboard_link
        assert not logging.getLogger("distributed").propagate
        # What the caller computes with Dask is still computed where the caller said.
        assert dask.config.get("scheduler", None) is None
        assert int(dask.array.ones(3, chunks=1).sum()) == 3
        with pytest.raises(ValueError, match="No client"):
            default_client()
    assert logging.getLogger("distributed").propagate
    assert said.getvalue().splitlines()[0].startswith(f"dashboard: {link}")
    assert dict(os.environ) == before


def test_a_value_is_made_once_a_worker_and_again_where_one_is_started_anew(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.write_text("right")
    with open_client(Machines(2), Silent()) as client:
        register(client, "model-1", partial(cluster_faults.load, model))
        used = client.gather([client.submit(cluster_faults.use, "model-1", number) for number in range(20)])
        pids = {pid for (_, pid), _ in used}
        assert len(pids) == 2 == len(list(tmp_path.glob("model.*")))
        os.kill(pids.pop(), signal.SIGKILL)
        until(lambda: len(list(tmp_path.glob("model.*"))) == 3)
        used = client.gather([client.submit(cluster_faults.use, "model-1", number) for number in range(20, 40)])
        assert all(text == "right" for (text, _), _ in used)


def _listeners(dask_scheduler: Scheduler) -> int:
    return len(dask_scheduler._broker._topics["all"].subscribers)


def test_a_worker_that_dies_is_told_in_one_sentence_and_not_by_dask(caplog: pytest.LogCaptureFixture) -> None:
    said = io.StringIO()
    with open_client(Machines(2), PlainWatch(said)) as client:
        # Dask promises no order of a subscription and of what is asked of workers at once after it.
        until(lambda: client.run_on_scheduler(_listeners))
        address, pid = next(iter(client.run(os.getpid).items()))
        os.kill(pid, signal.SIGKILL)
        until(lambda: "is gone" in said.getvalue(), seconds=60)
        until(lambda: len(set(workers_of(client)) - {address}) == 2, seconds=60)
    assert said.getvalue().count("warning") == said.getvalue().count(f"worker {address} is gone") == 1
    assert not [record for record in caplog.records if record.name.startswith("distributed")]


def test_workers_end_at_once_without_a_last_look_for_garbage(tmp_path: Path) -> None:
    with open_client(Machines(2), Silent()) as client:
        client.run(gc.disable)
        client.run(lambda dask_worker: cluster_faults.leave_garbage(tmp_path / dask_worker.address[-5:]))
    assert not list(tmp_path.iterdir())


def test_workers_that_cannot_make_a_value_are_named_and_nothing_of_it_stays(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.write_text("wrong")
    with open_client(Machines(2), Silent()) as client:
        with pytest.raises(ModelError) as refused:
            register(client, "model-1", partial(cluster_faults.load, model))
        assert all(f"worker {address} on " in str(refused.value) for address in workers_of(client))
        assert str(refused.value).count("model has other weights") == 2
        with pytest.raises(RuntimeError, match="break_down"):
            register(client, "model-2", cluster_faults.break_down)
        plugins = client.run(lambda dask_worker: list(dask_worker.plugins))
        assert not any(name.startswith("model") for names in plugins.values() for name in names)


@pytest.mark.slow
def test_a_worker_that_joins_later_and_is_not_fit_says_why_and_leaves(tmp_path: Path) -> None:
    model, said = tmp_path / "model", io.StringIO()
    model.write_text("right")
    with running_scheduler(tmp_path) as file, running_worker(file), open_client_of(file, said) as client:
        register(client, "model-1", partial(cluster_faults.load, model))
        model.write_text("wrong")
        with running_worker(file) as unfit:
            assert unfit.wait(30) == 0
        until(lambda: "model has other weights; it leaves" in said.getvalue())
        assert len(workers_of(client)) == 1
        used = client.gather([client.submit(cluster_faults.use, "model-1", number) for number in range(4)])
        assert all(text == "right" for (text, _), _ in used)
        release(client, "model-1")


@contextmanager
def open_client_of(file: Path, said: io.StringIO) -> Iterator[Client]:
    until_workers(file, 1)
    with open_client(Machines(scheduler=str(file)), PlainWatch(said)) as client:
        yield client


def test_a_scheduler_is_found_by_its_file_or_address_and_must_have_workers(tmp_path: Path) -> None:
    with running_scheduler(tmp_path) as file:
        with pytest.raises(ConfigError, match="has no workers; start some with `dask worker`"), none(file):
            pass
        with running_worker(file, "--resources", "GPU=1"), open_client_of(file, io.StringIO()) as client:
            by_address = Machines(scheduler=client.scheduler.address)
            with open_client(by_address, Silent()) as other:
                assert workers_of(other).keys() == workers_of(client).keys()
                assert task_resources(by_address, other) == {"GPU": 1.0}


def none(file: Path) -> object:
    return open_client(Machines(scheduler=str(file)), Silent())


@pytest.mark.parametrize(
    ("scheduler", "said"),
    [
        ("tcp://127.0.0.1:9", "no Dask scheduler answers at tcp://127.0.0.1:9 .Connection refused.; start one"),
        ("127.0.0.1:9", "no Dask scheduler answers at 127.0.0.1:9 .Connection refused."),
        ("tcp://127.0.0.1", "missing port number"),
        ("tcp://nowhere.invalid:8786", "answers at tcp://nowhere.invalid:8786 .Name or service not known"),
        ("http://127.0.0.1:8787/status", "unknown address scheme 'http'.*give one such as tcp://"),
        ("there.json", "scheduler there.json is no file"),
        ("pyproject.toml", "scheduler file pyproject.toml holds no address"),
    ],
)
def test_nobody_at_an_address_is_said_at_once(scheduler: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(TESTS.parent)
    began = time.monotonic()
    with pytest.raises(ConfigError, match=said), open_client(Machines(scheduler=scheduler), Silent()):
        pass
    assert time.monotonic() - began < 5


def test_whoever_says_nothing_at_an_address_is_no_scheduler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("geodino.cluster.opening.ANSWER_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        address = f"tcp://127.0.0.1:{mute.getsockname()[1]}"
        with (
            pytest.raises(ConfigError, match=f"what listens at {address} is no Dask scheduler"),
            open_client(Machines(scheduler=address), Silent()),
        ):
            pass


def test_a_run_says_first_where_its_dashboard_is_and_starts_nothing_for_a_wrong_aoi(
    photo: Path, tiny_model: Path, tmp_path: Path
) -> None:
    said, options = io.StringIO(), RunOptions(sources=(str(photo),), model=str(tiny_model), workers=1)
    with pytest.raises(AOIError):
        geodino.run("canopy", aoi="0,0,0,0", out=tmp_path, options=options, watch=PlainWatch(said))
    assert not said.getvalue()
    with pytest.raises(NoImageryError):
        geodino.run("canopy", aoi="10,50,10.01,50.01", out=tmp_path, options=options, watch=PlainWatch(said))
    assert said.getvalue().startswith("dashboard: http://127.0.0.1:")


@pytest.mark.slow
def test_whoever_is_interrupted_while_workers_work_leaves_in_seconds() -> None:
    with pytest.raises(KeyboardInterrupt), open_client(Machines(1), Silent()) as client:
        napping = client.submit(time.sleep, 100)
        until(lambda: client.processing() and any(client.processing().values()))
        began = time.monotonic()
        raise KeyboardInterrupt
    assert napping.status == "cancelled" and time.monotonic() - began < 60


@pytest.mark.slow
def test_a_scheduler_that_dies_is_known_at_once_and_without_a_traceback(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with running_scheduler(tmp_path) as file, running_worker(file, "--death-timeout", "1"):
        with open_client_of(file, io.StringIO()) as client:
            napping = client.submit(time.sleep, 100)
            os.kill(client.run_on_scheduler(os.getpid), signal.SIGKILL)
            began = time.monotonic()
            with pytest.raises(CancelledError, match="scheduler-connection-lost"):
                napping.result(timeout=60)
        assert time.monotonic() - began < 60
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.slow
def test_a_client_that_is_killed_leaves_no_worker_behind(tmp_path: Path) -> None:
    program = (
        "import os, time\n"
        "from geodino.cluster.machines import Machines\n"
        "from geodino.cluster.opening import open_client\n"
        "from geodino.watch import Silent\n"
        "if __name__ == '__main__':\n"
        "    with open_client(Machines(2), Silent()) as client:\n"
        "        print(*client.run(os.getpid).values(), flush=True)\n"
        "        time.sleep(60)\n"
    )
    script = tmp_path / "program.py"
    script.write_text(program)
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        pids = [int(word) for word in process.stdout.readline().split()]
        process.kill()
    assert len(pids) == 2
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))


def test_every_cluster_config_that_is_shipped_is_whole() -> None:
    names = {name for name in config_names() if "kind: cluster" in config_path(name).read_text()}
    assert names == {name for name in config_names() if name.endswith("-cluster")} >= {"slurm-cluster"}
    for name in names:
        assert cluster_config(name).title


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("clas: distributed.LocalCluster", "unknown key clas; did you mean class"),
        ("class: distributed.LocalCluster\nadapt: {maximun: 2}", "unknown key adapt.maximun; did you mean maximum"),
        ("class: subprocess.Popen", "class subprocess.Popen must be a package's cluster"),
        ("class: distributed.LocalCluster\nscale: 1\nadapt: {maximum: 2}", "give either adapt or scale"),
        ("class: distributed.LocalCluster\nadapt: {minimum: 3, maximum: 2}", "minimum 3 must not be over maximum 2"),
        ("class: distributed.LocalCluster\nresources: {GPU: 0}", "greater than 0"),
    ],
)
def test_a_fault_in_a_cluster_config_is_named(tmp_path: Path, lines: str, said: str) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text(f"kind: cluster\ntitle: a cluster\n{lines}\n")
    with pytest.raises(ConfigError, match=said):
        cluster_config(str(file))


def test_a_config_of_another_kind_is_refused() -> None:
    with pytest.raises(ConfigError, match="has kind source; --config takes one of kind cluster"):
        cluster_config("openaerialmap")


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("class: dask_gateway.GatewayCluster", "pip install dask-gateway"),
        ("class: distributed.LocalClutser", "distributed has no class LocalClutser"),
        ("class: distributed.LocalCluster\nkwargs: {n_wrokers: 1, dashboard_address: ':0'}", "be started: .*n_wrokers"),
    ],
)
def test_a_cluster_that_cannot_be_started_says_why(tmp_path: Path, lines: str, said: str) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text(f"kind: cluster\ntitle: a cluster\n{lines}\n")
    with pytest.raises(ConfigError, match=said), open_client(Machines(config=str(file)), Silent()):
        pass


def test_a_cluster_from_a_config_grows_with_its_work(tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text(
        "kind: cluster\ntitle: workers that come when there is work\nclass: distributed.LocalCluster\n"
        "kwargs: {n_workers: 0, threads_per_worker: 1, dashboard_address: '127.0.0.1:0', resources: {GPU: 1}}\n"
        "adapt: {minimum: 0, maximum: 2}\nresources: {GPU: 1}\n"
    )
    machines = Machines(config=str(file))
    with open_client(machines, Silent()) as client:
        assert task_resources(machines, client) == {"GPU": 1.0}
        assert client.submit(sum, [1, 2], resources=task_resources(machines, client)).result(timeout=20) == 3


def test_a_cluster_that_gives_no_worker_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text(
        "kind: cluster\ntitle: an empty cluster\nclass: distributed.LocalCluster\nwait_s: 1\n"
        "kwargs: {n_workers: 0, dashboard_address: '127.0.0.1:0'}\n"
    )
    with (
        pytest.raises(ConfigError, match="an empty cluster gave no worker within 1 s"),
        open_client(Machines(config=str(file)), Silent()),
    ):
        pass
