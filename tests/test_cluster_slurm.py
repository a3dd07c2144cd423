"""Workers as jobs of a real SLURM; `GEODINO_REQUIRE_SLURM=1` forbids to skip it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import cluster_faults
import pytest
import rasterio
import yaml
from cluster_processes import until
from distributed import Client, as_completed
from shapely import box
from slurm import missing, output, slurm

from geodino.cluster.held import register
from geodino.cluster.machines import Machines
from geodino.cluster.opening import open_client, task_resources
from geodino.cluster.survey import Needs, checked
from geodino.errors import ConfigError
from geodino.options import RunOptions
from geodino.pipeline import run
from geodino.shipped import config_path
from geodino.stores import Store
from geodino.watch import Silent

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    if missing() and not os.environ.get("GEODINO_REQUIRE_SLURM"):
        pytest.skip(f"SLURM is not installed: no {', '.join(missing())}; Debian: apt-get install slurm-wlm munge")
    with slurm(tmp_path_factory.mktemp("slurm")) as found, pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", found["SLURM_CONF"])
        patch.setenv("PATH", found["PATH"])
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        yield found


def own_copy(folder: Path) -> Path:
    """The shipped config as a user of this small machine would change it."""
    content = yaml.safe_load(config_path("slurm-cluster").read_text())
    content["kwargs"] |= {
        "cores": 1,
        "memory": "1GiB",
        "job_script_prologue": ["export OMP_NUM_THREADS=1"],
        "log_directory": str(folder / "logs"),
        "scheduler_options": {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"},
    }
    content |= {"adapt": {"minimum": 1, "maximum": 2}, "wait_s": 60}
    (folder / "mine.yaml").write_text(yaml.safe_dump(content))
    return folder / "mine.yaml"


def jobs(environment: dict[str, str]) -> list[str]:
    return output(["squeue", "-h", "-o", "%i"], environment).split()


def test_the_shipped_config_runs_tasks_as_jobs_and_outlives_a_job_that_is_cancelled(
    environment: dict[str, str], tmp_path: Path
) -> None:
    model, store = tmp_path / "model", Store(str(tmp_path / "work"))
    model.write_text("right")
    machines = Machines(config=str(own_copy(tmp_path)))
    with open_client(machines, Silent()) as client:
        resources = task_resources(machines, client)
        assert resources == {"GPU": 1.0}
        with checked(client, Needs(device="cpu", resources=resources, store=store), Silent()) as computers:
            assert computers[0].threads == 1
            register(client, "model-1", partial(cluster_faults.load, model), resources=resources)
            first = jobs(environment)
            assert finish_all(client, resources, lambda: output(["scancel", *first], environment)) == set(range(20))
            assert set(jobs(environment)).isdisjoint(first)
    until(lambda: not jobs(environment))


def finish_all(client: Client, resources: dict[str, float], cancel: Callable[[], object]) -> set[int]:
    """Do twenty tasks, and cancel the job of their worker after the third."""
    futures = [client.submit(slow_use, number, resources=resources) for number in range(20)]
    done = set()
    for number, future in enumerate(as_completed(futures, loop=client.loop, timeout=120)):
        (text, _), which = future.result()
        assert text == "right"
        done.add(which)
        if number == 2:
            cancel()
    return done


def slow_use(number: int) -> tuple[tuple[str, int], int]:
    time.sleep(0.3)
    return cluster_faults.use("model-1", number)


def test_a_run_on_slurm_has_the_same_bytes_as_in_this_process(
    environment: dict[str, str], tmp_path: Path, photo: Path, tiny_model: Path
) -> None:
    # Threads of torch are 1 in both, see conftest: their number decides last digits.
    options = RunOptions(sources=(str(photo),), model=str(tiny_model), precision="fp32", device="cpu")
    run("canopy", aoi=footprint(photo), out=tmp_path / "here", options=options)
    options = replace(options, config=str(own_copy(tmp_path)))
    run("canopy", aoi=footprint(photo), out=tmp_path / "there", options=options)
    for name in ("canopy_height.tif", "canopy_height_spread.tif"):
        here, there = rasterio.open(tmp_path / "here" / name), rasterio.open(tmp_path / "there" / name)
        with here, there:
            assert here.read().tobytes() == there.read().tobytes()
    assert not (tmp_path / "there" / ".work").exists()
    until(lambda: not jobs(environment))


def footprint(photo: Path) -> str:
    """Most of it, as an AOI."""
    with rasterio.open(photo) as raster:
        return f"SRID=26910;{box(*raster.bounds).buffer(-20).wkt}"


def test_jobs_that_slurm_refuses_are_an_error_and_no_hang(
    environment: dict[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mine = own_copy(tmp_path)
    mine.write_text(mine.read_text().replace("queue: gpu", "queue: gpus"))
    with (
        pytest.raises(ConfigError, match=r"SLURM jobs: no worker can be started: .*nvalid partition"),
        open_client(Machines(config=str(mine)), Silent()),
    ):
        pass
    assert "Traceback" not in caplog.text
