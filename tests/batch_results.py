"""Real jobs of a batch for tests: `nano` on a piece of Long Beach, whole, as cells, and as areas that overlap."""

from __future__ import annotations

from pathlib import Path

from geodino.batch.gather import Facts, gather
from geodino.batch.jobs import Failed, Finished
from geodino.batch.summary import Summary
from geodino.models import Model, load_model
from geodino.pipeline import run
from geodino.plan import RunOptions
from geodino.shipped import sample_folder
from geodino.stores import Store

WEST, SOUTH, SIDE = 389_670, 3_747_570, 120
"""Of the ground of all jobs, metres in EPSG:26911; whole cells of 10 m."""

_loaded: dict[str, Model] = {}


def loaded(name: str, **how: object) -> Model:
    """The model, loaded once for all runs."""
    if name not in _loaded:
        _loaded[name] = load_model(name, **how)  # type: ignore[arg-type]
    return _loaded[name]


def box(west: float, south: float, east: float, north: float) -> str:
    """A rectangle, its edges metres from the south-west corner of all."""
    corners = [(west, south), (east, south), (east, north), (west, north), (west, south)]
    return polygon(corners)


def polygon(corners: list[tuple[float, float]]) -> str:
    text = ", ".join(f"{WEST + x} {SOUTH + y}" for x, y in corners)
    return f"SRID=26911;POLYGON(({text}))"


def map_area(aoi: str, out: Path, *, year: int = 2020, crs: str | None = None, pipeline: str = "trees") -> None:
    source = sample_folder() / "long-beach" / f"long-beach-{year}-9.json"
    options = RunOptions(sources=(str(source),), model="nano", precision="fp32", device="cpu", crs=crs)
    run(pipeline, aoi=aoi, out=out, options=options, load=loaded)


def gather_all(folder: Path, *, disjoint: bool, failed: tuple[Failed, ...] = ()) -> Summary:
    """The results of the jobs below a folder, in the order of their names."""
    keys = sorted(path.parent.relative_to(folder).as_posix() for path in folder.glob("jobs/*/*/run.json"))
    finished = [Finished(Path(key).name, key) for key in keys]
    facts = Facts("Trees of Long Beach", disjoint, len(keys) + len(failed))
    return gather(Store(str(folder)), finished, failed, facts)
