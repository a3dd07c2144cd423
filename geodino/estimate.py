"""What a run would do and cost, with the time measured on this machine; writes nothing."""

from __future__ import annotations

import statistics
import time
from concurrent.futures import wait
from dataclasses import asdict, dataclass

import numpy as np
import psutil

from geodino.bands import COLS, rows_for
from geodino.models import Model
from geodino.plan import Plan
from geodino.products import Products
from geodino.watch import duration, size

# Beside the model: chips being read ahead, a staged row and GDAL's block cache (256 MiB).
_PIPELINE_BYTES = 600 * 2**20


# One batch may fall into a moment when somebody else has the cores.
_TRIALS = 3

# Beside the forward passes: the plan, the preview and the record; and staging, compressing and checking the rasters.
_REST_S = 2.0
_WRITE_BYTES_A_S = 20e6


@dataclass(frozen=True)
class Estimate:
    """What `--dry-run` says.

    Attributes
    ----------
    read_mib
        Decoded pixels of the windows at the largest scenes' own GSD and data type. Files on disk or on the wire are
        compressed and windows share what they overlap; where scenes overlap, more than one may be read.
    memory_mib
        This process with the model loaded, after one measured batch, and what the pipeline adds.
    seconds_a_window, seconds
        Measured here, as the median of three batches, with the loading of the model and the writing; reading over a
        slow network may take longer.
    """

    pipeline: str
    model: str
    precision: str
    device: str
    scenes: tuple[str, ...]
    scenes_dropped: tuple[str, ...]
    crs: str
    gsd_m: float
    width_px: int
    height_px: int
    area_ha: float
    windows: int
    windows_outside_aoi: int
    windows_without_imagery: int
    window_px: int
    overlap_px: int
    read_mib: float
    output_mib: float
    memory_mib: float
    seconds_a_window: float
    seconds: float
    warnings: tuple[str, ...]

    def as_dict(self) -> dict[str, object]:
        return asdict(self)

    def as_text(self) -> str:
        named = ", ".join(self.scenes[:5]) + (f" and {len(self.scenes) - 5} more" if len(self.scenes) > 5 else "")
        lines = {
            "model": f"{self.model}, {self.precision} on {self.device}",
            "scenes": f"{len(self.scenes)}: {named}",
            "grid": f"{self.width_px} x {self.height_px} px of {self.gsd_m} m, {self.crs}",
            "area": f"{self.area_ha:,.2f} ha",
            "windows": f"{self.windows} of {self.window_px} px, overlap {self.overlap_px} px "
            f"({self.windows_outside_aoi} outside the AOI, {self.windows_without_imagery} without imagery)",
            "to read": f"about {size(self.read_mib * 2**20)} of pixels, before compression",
            "to write": f"about {size(self.output_mib * 2**20)}",
            "memory": f"about {size(self.memory_mib * 2**20)}",
            "time": f"about {duration(self.seconds)} ({self.seconds_a_window:.2f} s a window, measured here)",
        }
        left_out = [f"left out  {sentence}" for sentence in self.scenes_dropped[:10]]
        return "\n".join([*(f"{key:<9} {value}" for key, value in lines.items()), *left_out, "nothing was written"])


def measure(plan: Plan, products: Products, model: Model, *, load_s: float) -> Estimate:
    """Time some batches of the plan's windows and count what the run would read, hold and write.

    Parameters
    ----------
    load_s
        How long the model took to load.
    """
    side = plan.tiling.size
    batch = min(model.batch_size(side), len(plan.places))
    chips = np.random.default_rng(0).random((batch, 3, side, side), dtype=np.float32)
    at_once = min(model.at_once(side), -(-len(plan.places) // batch))
    ask = model.asked(products.tasks)
    with model.passes(side) as passes:

        def seconds() -> float:
            began = time.perf_counter()
            wait([passes.submit(ask, chips) for _ in range(at_once)])
            return time.perf_counter() - began

        passes.submit(ask, chips).result()
        seconds_a_window = statistics.median(seconds() for _ in range(_TRIALS)) / batch / at_once
    bytes_a_pixel = max(
        3 * np.dtype(scene.dtype).itemsize * max(plan.grid.gsd / scene.gsd, 1) ** 2 for scene in plan.scenes
    )
    # What a band says, before and after it is finished.
    cells = rows_for(len(plan.places)) * COLS * plan.tiling.stride**2
    band = 2 * 4 * cells * sum(len(layer.names) / layer.px**2 for layer in ask.layers)
    return Estimate(
        pipeline=plan.spec.name,
        model=model.name,
        precision=model.precision,
        device=str(model.device),
        scenes=tuple(scene.id for scene in plan.scenes),
        scenes_dropped=plan.scenes_dropped,
        crs=str(plan.grid.crs),
        gsd_m=plan.grid.gsd,
        width_px=plan.extent.width,
        height_px=plan.extent.height,
        area_ha=round(plan.aoi.area_ha, 4),
        windows=len(plan.places),
        windows_outside_aoi=plan.windows_outside_aoi,
        windows_without_imagery=len(plan.windows_without_imagery),
        window_px=side,
        overlap_px=plan.tiling.overlap,
        read_mib=round(plan.pixels_read * bytes_a_pixel / 2**20, 1),
        output_mib=round(plan.bytes_written / 2**20, 1),
        memory_mib=round((psutil.Process().memory_info().rss + _PIPELINE_BYTES + band) / 2**20),
        seconds_a_window=round(seconds_a_window, 4),
        seconds=round(
            load_s + _REST_S + seconds_a_window * len(plan.places) + plan.bytes_written / _WRITE_BYTES_A_S, 1
        ),
        warnings=plan.warnings,
    )
