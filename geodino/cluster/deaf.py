"""What workers on the user's own machine load first: Ctrl-C in the terminal is meant for the run, which ends them."""

from __future__ import annotations

import atexit
import gc
import logging
import signal

from distributed import Worker


def dask_setup(worker: Worker) -> None:
    """Dask calls this by its name when a worker starts, in its main thread."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # What a task raises reaches the run; what a worker says of being ended in the middle of one is noise.
    for name in ("distributed.worker", "distributed.worker.state_machine", "tornado.application"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    # A nanny kills its worker 4 s after asking it to end, and on busy cores it was still looking for garbage then.
    atexit.register(gc.freeze)
