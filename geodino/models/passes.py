"""How many forward passes go side by side, each on one core: faster than one pass on all cores, and always the same.

With the number of threads that share a pass its sums are cut another way, which moves last digits: on the embedded
sample 2 of 539,856 pixels of nano's spread by one step. So each pass has one thread, whatever the machine, and a run on
one process, on many workers or on other cores gives the same bytes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import psutil
import torch

# Peak memory of a pass a pixel of its windows: of CHMv2's head on ViT-L, whose full-size 128 channels live three to
# four times; smaller models take less.
BYTES_A_PIXEL = 4096


def at_once(device: torch.device, pixels: int) -> int:
    """How many passes over so many pixels of windows go side by side: one on an accelerator, else one a core.

    Fewer where half of the free memory does not hold them, or OMP_NUM_THREADS says so.
    """
    if device.type != "cpu":
        return 1
    fitting = psutil.virtual_memory().available // 2 // (BYTES_A_PIXEL * pixels)
    return max(1, min(_cores(), fitting))


@contextmanager
def passes(device: torch.device, count: int) -> Iterator[ThreadPoolExecutor]:
    """Threads for so many passes side by side; at the end of the block all of them are over."""
    before = torch.get_num_threads()
    on_cpu = device.type == "cpu"
    pool = ThreadPoolExecutor(count, "geodino-model", initializer=_one_thread if on_cpu else None)
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        if on_cpu:
            # What is said in one thread is also what threads that are begun later have.
            torch.set_num_threads(before)


def _one_thread() -> None:
    torch.set_num_threads(1)


def _cores() -> int:
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdecimal() and int(asked):
        return int(asked)
    mine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # Two threads on one core do not multiply matrices faster than one.
    return min(mine, psutil.cpu_count(logical=False) or mine)
