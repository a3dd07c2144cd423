"""A file server with byte ranges and latency in a process of its own, and what it costs to run.

    python benchmarks/range_server.py

This is the tests' server without faults. nginx serves faster, but has no latency; a proxy in front of it that adds some
would copy each byte in Python and cost what serving the file costs. It is also fast enough: at the 70 windows a
second that plain rasterio reads on two cores, of one or two requests each, it takes less than a tenth of a core.

The latency is waited for once a request, before the first byte of its answer. A new connection costs nothing, where a
real one costs one more journey to and fro, and two or three with TLS; and once an answer flows, it flows at the speed
of the machine. So readers that open many connections look better here than they are.
"""

from __future__ import annotations

import argparse
import http.client
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
from fault_server import OwnProcess, own_process


@contextmanager
def range_server(folder: Path, latency_s: float = 0.0) -> Iterator[OwnProcess]:
    """Serve a folder; `ask("totals")` gives requests and bytes by file since the start or `ask("reset")`."""
    with own_process(folder, "--latency", str(latency_s)) as server:
        yield server


def _fetch(url: str, size: int, count: int) -> None:
    """Read ranges of this size one after another over one connection."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"))
    for index in range(count):
        start = index % 16 * size
        connection.request("GET", "/file.bin", headers={"Range": f"bytes={start}-{start + size - 1}"})
        assert len(connection.getresponse().read()) == size
    connection.close()


def main() -> None:
    """Print requests a second and the server's CPU time for one, by the size of a range and the connections."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    print(
        f"{'KiB':>5} {'connections':>11} {'latency ms':>10} {'requests/s':>10} {'MB/s':>6} {'server ms a request':>19}"
    )
    for size, latency_s in ((1 << 16, 0.0), (1 << 20, 0.0), (1 << 16, 0.02), (1 << 20, 0.02)):
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "file.bin").write_bytes(bytes(16 * size))
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            with range_server(Path(folder), latency_s) as server, ThreadPoolExecutor(16) as pool:
                start = time.perf_counter()
                list(pool.map(_fetch, [server.url] * 16, [size] * 16, [50] * 16))
                rate = 16 * 50 / (time.perf_counter() - start)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        figures = f"{rate:>10.0f} {rate * size / 1e6:>6.0f} {1000 * cpu_s / (16 * 50):>19.2f}"
        print(f"{size >> 10:>5} {16:>11} {1000 * latency_s:>10.0f} {figures}")


if __name__ == "__main__":
    main()
