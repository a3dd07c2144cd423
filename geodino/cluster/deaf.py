"""What workers on the user's own machine load first: Ctrl-C in the terminal is meant for the run, which ends them."""

from __future__ import annotations

import signal

from distributed import Worker


def dask_setup(worker: Worker) -> None:
    """Dask calls this by its name when a worker starts, in its main thread."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
