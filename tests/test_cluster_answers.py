"""What comes back of the tasks of a cluster."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import rasterio
from cluster_processes import client_of_one_worker
from distributed import Client
from rasterio.errors import RasterioError

from geodino.cluster.answers import Answers, errors_that_travel
from geodino.errors import ClusterError, OutputError
from geodino.watch import Silent


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with client_of_one_worker(tmp_path_factory.mktemp("workers")) as client:
        yield client


@errors_that_travel
def refuse(path: str) -> None:
    try:
        rasterio.open(path)
    except RasterioError as error:
        raise OutputError(f"cannot finish {path}") from error


def test_an_error_whose_cause_cannot_be_pickled_keeps_its_class_and_sentence(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "half.tif"
    path.write_bytes(b"II*\0 and no more")
    answers = Answers(client, Silent(), 10.0)
    future = answers.submit(refuse, str(path), pure=False)
    assert answers.next() is future
    error = answers.error(future)
    assert type(error) is OutputError and str(error) == f"cannot finish {path}"
    assert error.exit_code == 7


def test_what_is_cancelled_by_others_is_an_error_and_no_answer(client: Client) -> None:
    answers = Answers(client, Silent(), 10.0)
    future = answers.submit(str, 1, resources={"nobody offers": 1}, pure=False)
    answers.cancel([future])
    with pytest.raises(ClusterError, match="is gone; give the same command again"):
        answers.error(answers.next())


def test_a_result_that_went_with_the_scheduler_is_told_as_that(client: Client) -> None:
    answers = Answers(client, Silent(), 10.0)
    future = answers.submit(str, 7, pure=False)
    assert answers.result(answers.next()) == "7"
    future.cancel(force=True)
    with pytest.raises(ClusterError, match="is gone; give the same command again"):
        answers.result(future)
