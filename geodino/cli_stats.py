"""`geodino stats`: what grows on each polygon of a layer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from geodino.zonal.statistics import Statistics
    from geodino.zonal.sums import Settings

PARQUET, CSV, ESTIMATES = "statistics.parquet", "statistics.csv", "estimates.csv"


@click.command()
@click.argument("what", metavar="MAP_OR_FOLDER", type=click.Path(path_type=Path, exists=True))
@click.option("--zones", required=True, help="Polygons: a file, WKT, minx,miny,maxx,maxy, or sample:NAME.")
@click.option("--zones-layer", help="Layer of the zones' file.")
@click.option("--zones-crs", help="CRS of zones that declare none, such as EPSG:32610.")
@click.option("--repair-zones", is_flag=True, help="Use the repaired area of outlines that cross themselves.")
@click.option(
    "--spread",
    type=click.Path(path_type=Path, exists=True),
    help="Raster of the heights' standard deviations [default: the run's, or MAP_spread.tif].",
)
@click.option(
    "--trees",
    type=click.Path(path_type=Path, exists=True),
    help="Points, one a tree [default: the run's trees.parquet].",
)
@click.option(
    "--cover", "cover_m", default="2,5,10", show_default=True, metavar="METRES", help="Canopy cover above each height."
)
@click.option(
    "--classes",
    "classes_m",
    default="2,5,10,15,20,30,40",
    show_default=True,
    metavar="METRES",
    help="Heights between which the seen area is split up.",
)
@click.option(
    "--least-valid",
    "least_valid_percent",
    type=click.FloatRange(0, 100),
    default=50.0,
    show_default=True,
    help="A zone of which less was seen gets no figure, percent.",
)
@click.option(
    "--error-range",
    "error_range_m",
    type=click.FloatRange(0),
    default=10.0,
    show_default=True,
    help="Metres over which pixels err together, for the intervals.",
)
@click.option(
    "--error-shared",
    type=click.FloatRange(0, 1),
    default=0.1,
    show_default=True,
    help="Share of the error variance that all pixels have in common.",
)
@click.option(
    "--level", type=click.FloatRange(50, 99.9), default=95.0, show_default=True, help="Of intervals, percent."
)
@click.option(
    "--reference",
    type=click.Path(path_type=Path, exists=True),
    help="Measured plots (x,y or lon,lat; height_m or above_2m ...): adds design-based estimates.",
)
@click.option("--reference-crs", help="CRS of the plots' x,y, such as EPSG:32610.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the tables.")
@click.option("--overwrite", is_flag=True, help="Replace tables of the same names.")
@click.option("--json", "as_json", is_flag=True, help="Print the statistics as JSON on standard output.")
@click.option("-q", "--quiet", is_flag=True, help="Show warnings and errors only.")
def stats(what: Path, out: Path, overwrite: bool, as_json: bool, quiet: bool, **given: Any) -> None:
    """Say what grows on each polygon: canopy cover, heights, trees, how much was seen and how sure that is.

    MAP_OR_FOLDER is the folder of a finished run, or any raster of canopy heights.

    \b
    geodino stats out/autzen --zones plots.gpkg --out statistics/
    geodino stats chm.tif --zones plots.gpkg --reference measured.csv --out statistics/
    """
    from geodino.watch import PlainWatch
    from geodino.zonal.ground import layers_of
    from geodino.zonal.reference import read_plots
    from geodino.zonal.statistics import zone_statistics
    from geodino.zonal.zones import read_zones

    watch = PlainWatch(quiet=quiet)
    settings = _settings(given)
    paths = _paths(out, given["reference"] is not None, overwrite=overwrite)
    plots = None
    if given["reference"] is not None:
        plots = read_plots(given["reference"], settings.cover_m, crs=given["reference_crs"])
    found = zone_statistics(
        layers_of(what, spread=given["spread"], trees=given["trees"]),
        read_zones(given["zones"], layer=given["zones_layer"], crs=given["zones_crs"], repair=given["repair_zones"]),
        plots=plots,
        settings=settings,
        watch=watch,
    )
    for sentence in found.notes:
        watch.warn(sentence)
    _write(found, paths)
    _say(found, paths, as_json=as_json, quiet=quiet)


def _settings(given: dict[str, Any]) -> Settings:
    from geodino.zonal.sums import Settings
    from geodino.zonal.uncertainty import Correlation

    return Settings(
        cover_m=_heights("--cover", given["cover_m"]),
        classes_m=_heights("--classes", given["classes_m"]),
        least_valid_percent=given["least_valid_percent"],
        errs=Correlation(given["error_range_m"], given["error_shared"]),
        level=given["level"] / 100,
    )


def _heights(option: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise click.UsageError(f"{option} {text}: give heights in metres with commas between them: 2,5,10") from error


def _paths(out: Path, reference: bool, *, overwrite: bool) -> dict[str, Path]:
    """Where the tables go, checked before anything is computed."""
    from geodino.errors import OutputError

    names = (PARQUET, CSV, ESTIMATES) if reference else (PARQUET, CSV)
    held = [name for name in names if (out / name).exists()]
    if held and not overwrite:
        raise OutputError(f"{out} already holds {', '.join(held)}: give --overwrite to replace them or another --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write to {out}: {error.strerror or error}: choose another --out") from error
    return {name: out / name for name in names}


def _write(found: Statistics, paths: dict[str, Path]) -> None:
    from geodino.outputs.folder import whole_file
    from geodino.zonal.table import write_csv

    with whole_file(paths[PARQUET]) as parquet, whole_file(paths[CSV]) as csv:
        found.write(parquet, csv)
    if found.reference is not None:
        with whole_file(paths[ESTIMATES]) as part:
            write_csv(found.reference.table, part)


def _say(found: Statistics, paths: dict[str, Path], *, as_json: bool, quiet: bool) -> None:
    from geodino.watch import count

    if as_json:
        import pandas as pd

        tables = {"zones": pd.DataFrame(found.frame.drop(columns="geometry"))}
        if found.reference is not None:
            tables["estimates"] = found.reference.table
        said: dict[str, object] = {
            name: json.loads(table.to_json(orient="records", date_format="iso")) for name, table in tables.items()
        }
        said |= {"notes": list(found.notes), "files": [str(path) for path in paths.values()]}
        click.echo(json.dumps(said, indent=2))
        return
    if not quiet:
        click.echo(f"{count(len(found.frame), 'zone')}, {found.frame['area_ha'].sum():,.2f} ha")
        for path in paths.values():
            click.echo(str(path))
