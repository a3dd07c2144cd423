"""Time and memory of gathering a batch's results, by the number of its jobs.

    python benchmarks/batch_results.py 1000 10000 100000

Jobs are copies of one real run of `nano` on 1.4 ha, moved to a place of their own by rewriting its record and Item; a
store makes them as they are asked for, so that the disk holds the results alone. Each number of jobs runs in a process
of its own.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from geodino.batch.gather import Facts, gather
from geodino.batch.jobs import Finished
from geodino.stores import Store

ACROSS = 400
CELL = 200  # pixels along a job's side


@lru_cache(maxsize=64)
def template(path: str) -> bytes:
    return Path(path).read_bytes()


@dataclass(frozen=True)
class MadeStore(Store):
    """A store whose jobs are made of one; the rest is a folder's."""

    run: str = ""

    def get(self, key: str) -> bytes | None:
        if not key.startswith("jobs/"):
            return super().get(key)
        job, name = key.removeprefix("jobs/").split("/")
        held = template(f"{self.run}/{name}")
        if name not in ("run.json", "item.json"):
            return held
        number = int(job)
        row, col = divmod(number, ACROSS)
        plain = json.loads(held)
        if name == "item.json":
            plain["id"] += f"-{number}"
            return json.dumps(plain).encode()
        plain["grid"]["row"] += row * CELL
        plain["grid"]["col"] += col * CELL
        west, south, east, north = plain["aoi"]["bounds_lonlat"]
        moved = (0.0013 * col, 0.0011 * row)
        plain["aoi"]["bounds_lonlat"] = [west + moved[0], south - moved[1], east + moved[0], north - moved[1]]
        plain["scenes"][0]["id"] += f"-{number // 10}"
        return json.dumps(plain).encode()


def most_mib() -> float:
    """The most memory that this process has held so far; getrusage would count its parent's."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def measure(number: int, run: str) -> None:
    """Gather one batch, and print a row."""
    with tempfile.TemporaryDirectory() as out:
        start_mib = most_mib()
        began = time.perf_counter()
        finished = (Finished(str(rank), f"jobs/{rank}") for rank in range(number))
        found = gather(MadeStore(out, run), finished, (), Facts("made", disjoint=True, planned=number))
        took_s = time.perf_counter() - began
        peak_mib = most_mib()
        size_mib = sum(path.stat().st_size for path in Path(out).rglob("*") if path.is_file()) / 2**20
        assert found.done == number
    figures = (took_s, f"{1000 * took_s / number:.1f}", start_mib, peak_mib, size_mib)
    print(f"| {number:,} |", " | ".join(one if isinstance(one, str) else f"{one:,.0f}" for one in figures), "|")


def main() -> None:
    if sys.argv[1] == "--one":
        measure(int(sys.argv[2]), sys.argv[3])
        return
    from geodino.pipeline import run
    from geodino.plan import RunOptions

    with tempfile.TemporaryDirectory() as folder:
        aoi = "SRID=26911;POLYGON((389670 3747570,389790 3747570,389790 3747690,389670 3747690,389670 3747570))"
        run("trees", aoi=aoi, out=f"{folder}/run", options=RunOptions(model="nano", precision="fp32", device="cpu"))
        print(
            "| jobs | s | ms a job | MiB at the start | MiB at most | MiB written |\n|---|---|---|---|---|---|",
            flush=True,
        )
        for number in sys.argv[1:]:
            subprocess.run([sys.executable, __file__, "--one", number, f"{folder}/run"], check=True)


if __name__ == "__main__":
    main()
