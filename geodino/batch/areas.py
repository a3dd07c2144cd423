"""A CSV of areas as jobs: a row each, with WKT, a box, or the path of a file of polygons."""

from __future__ import annotations

import csv
from collections import Counter
from dataclasses import replace
from pathlib import Path

from geodino.aoi import read_aoi
from geodino.batch.jobs import Job, with_ids
from geodino.errors import AOIError, ConfigError
from geodino.sources.raster import local_path

_BOX = ("minx", "miny", "maxx", "maxy")
_NAMES, _SHAPES = ("name", "id"), ("wkt", "geometry", "aoi", "path")


def area_jobs(path: str, *, crs: str | None, repair: bool) -> list[Job]:
    """The areas of a CSV, every one of them read and checked.

    Parameters
    ----------
    path
        Columns: `name` or `id`; `wkt`, or `minx`, `miny`, `maxx` and `maxy`, or `path`, which is relative to the CSV;
        `crs` where it differs from row to row.
    crs
        Of the coordinates; longitude and latitude where neither this nor the column says otherwise.

    Raises
    ------
    ConfigError
        The file cannot be read, or its columns do not say where the areas are.
    AOIError
        An area cannot be used; it is named.
    """
    file = local_path(path)
    try:
        rows = [
            {(key or "").strip().lower(): (value or "").strip() for key, value in row.items() if isinstance(value, str)}
            for row in csv.DictReader(file.read_text(encoding="utf-8-sig").splitlines())
        ]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path} cannot be read as CSV: {error}") from error
    columns = set(rows[0]) if rows else set()
    if not columns & set(_SHAPES) and not columns.issuperset(_BOX):
        raise ConfigError(
            f"{path} has no areas: give a column wkt, the four columns {', '.join(_BOX)}, or a column path; it has "
            f"{', '.join(sorted(columns)) or 'no rows'}"
        )
    found, seen = [], Counter[tuple[str, ...]]()
    for number, row in enumerate(rows, start=1):
        job = _area(row, number, file, crs, repair)
        names = (job.name, job.aoi, job.aoi_crs or "")
        seen[names] += 1
        found.append(replace(job, order=(float(number), 0.0, (*names, str(seen[names])))))
    return with_ids(found)


def _area(row: dict[str, str], number: int, file: Path, crs: str | None, repair: bool) -> Job:
    name = next((row[key] for key in _NAMES if row.get(key)), f"row-{number}")
    drawn = next((row[key] for key in _SHAPES if row.get(key)), ",".join(row.get(key, "") for key in _BOX))
    # What is no WKT and no box is a path, of a file beside the CSV.
    beside = file.absolute().parent / drawn
    if "(" not in drawn and beside.is_file():
        drawn = str(beside)
    declared = row.get("crs") or crs
    try:
        area = read_aoi(drawn, crs=declared, repair=repair)
    except AOIError as error:
        raise AOIError(f"{file}, row {number}, {name}: {error}") from error
    return Job("", name, drawn, declared, round(area.area_ha, 4))
