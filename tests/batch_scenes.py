"""Scenes and commands of whole batches for tests."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import rasterio
from click.testing import CliRunner

from geodino.cli import cli


def write_pieces(photo: Path, folder: Path) -> None:
    """Four rasters: halves of the photo that overlap, one of them twice, and no picture at all."""
    for name, cols in (("west", (0, 240)), ("east", (180, 420)), ("small", (0, 130))):
        with rasterio.open(photo) as source:
            window = rasterio.windows.Window(cols[0], 0, cols[1] - cols[0], 300)
            profile = source.profile | {"width": window.width, "transform": source.window_transform(window)}
            with rasterio.open(folder / f"{name}.tif", "w", **profile) as target:
                target.write(source.read(window=window))
    (folder / "broken.tif").write_bytes(photo.read_bytes()[:200])


def invoke(*words: object) -> tuple[int, str]:
    """Exit code and words of `geodino batch ...`."""
    done = CliRunner().invoke(cli, ["batch", *map(str, words)])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.output


def states(out: Path) -> dict[str, str]:
    """What became of each job, by its name, in the order of the mosaic."""
    connection = sqlite3.connect(out / "ledger.sqlite")
    found = dict(connection.execute("SELECT name, state FROM jobs ORDER BY place"))
    connection.close()
    return found


def folder_of(out: Path, name: str) -> Path:
    """Where a job's results are."""
    (found,) = (out / "jobs").glob(f"*/{name}")
    return found
