"""How a batch hands its jobs to the workers of a Dask cluster."""

from __future__ import annotations

from pathlib import Path

import pytest
from batch_work import leave_a_line
from cluster_processes import client_of_one_worker

from geodino.batch.workers import Workers
from geodino.watch import Silent


def test_the_scheduler_is_not_asked_for_its_workers_at_every_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    with client_of_one_worker(tmp_path) as client:
        nthreads = client.nthreads

        def counted() -> dict[str, int]:
            asked.append(1)
            return dict(nthreads())

        monkeypatch.setattr(client, "nthreads", counted)
        workers = Workers(client, leave_a_line, {}, Silent(), 10.0)
        assert all(workers.has_room() for _ in range(100))
        workers.close()
    assert len(asked) <= 2
