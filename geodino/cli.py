"""The command line: parse, call one function, print. Everything heavy is imported inside the commands."""

from __future__ import annotations

import json
import logging
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from geodino import __version__
from geodino.cli_batch import batch_command
from geodino.cli_evaluate import evaluate
from geodino.cli_options import device_option, precision_option, tta_option
from geodino.cli_stats import stats
from geodino.cli_train import train
from geodino.errors import DONE_IN_PART, GeodinoError, OutputError
from geodino.redaction import redact

if TYPE_CHECKING:
    from geodino.options import RunOptions
    from geodino.watch import PlainWatch, RichWatch

INTERRUPTED = 130


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, "-V", "--version", prog_name="geodino")
@click.option("--debug", is_flag=True, help="Show the whole traceback of an error.")
@click.option("-v", "--verbose", is_flag=True, help="Show what libraries and readers log.")
def cli(debug: bool, verbose: bool) -> None:
    """Canopy height and trees from satellite and aerial imagery with the DINOv3 models.

    \b
    Try it on the embedded sample, with no network and no account:
      geodino run canopy --aoi sample:autzen --out out/
    """
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING, format="%(name)s: %(message)s", stream=sys.stderr
    )
    for handler in logging.getLogger().handlers:
        handler.addFilter(redact)
    if not verbose:
        # Its retries are told by the error that ends them.
        logging.getLogger("urllib3").setLevel(logging.ERROR)


@cli.command()
@click.argument("pipeline")
@click.option("--aoi", required=True, help="Polygons: a file, WKT, minx,miny,maxx,maxy, or sample:NAME.")
@click.option("--out", help="Folder, or s3://, gs:// or az:// place, for the results [default: out/PIPELINE].")
@click.option(
    "--source",
    "sources",
    multiple=True,
    default=("auto",),
    help="Imagery: GeoTIFF, folder, STAC Item, catalog or API, or a config's name; may be repeated. "
    "[default: auto, the sample where the AOI lies on it, else the default config]",
)
@click.option("--model", help="A name (`geodino models list`), hub id or folder [default: the pipeline's].")
@click.option("--collection", "collections", multiple=True, help="STAC collection; may be repeated.")
@click.option("--datetime", "datetime_", help="Dates as in STAC: 2020, 2020-05/2021-06, ../2022-01-01.")
@click.option(
    "--max-cloud", type=click.FloatRange(0, 100), help="Most cloud of a scene, percent [default: the pipeline's]."
)
@click.option(
    "--order",
    help="Which scene gives a pixel: newest, oldest, least-cloud or 'nearest 2020-06-15' [default: the pipeline's].",
)
@click.option(
    "--harmonise",
    type=click.Choice(["none", "histogram", "regression"]),
    help="Bring each scene to the look of those before it, where they overlap [default: the pipeline's, none].",
)
@click.option(
    "--strict-acquisition",
    is_flag=True,
    help="Leave out scenes with the sun under 45 degrees or over 25 degrees off nadir, instead of a warning.",
)
@click.option("--bands", help="Red, green and blue by name or 1-based index: 4,3,2 [default: by name or colour].")
@click.option("--radiometry", help="How numbers become colours: auto or a profile's name [default: the pipeline's].")
@click.option("--crs", help="CRS of the result [default: the imagery's where it keeps metres true, else UTM].")
@click.option("--aoi-layer", help="Layer of the AOI's file.")
@click.option("--aoi-crs", help="CRS of an AOI that declares none, such as EPSG:32610.")
@click.option("--repair-aoi", is_flag=True, help="Use the repaired area of an outline that crosses itself.")
@click.option("--force-gsd", is_flag=True, help="Run on imagery outside 0.15-3 m a pixel.")
@precision_option
@tta_option
@device_option
@click.option("--batch-size", type=click.IntRange(1), help="Windows computed at once [default: what fits].")
@click.option(
    "--threads",
    type=click.IntRange(1, 64),
    help="Threads that read imagery; else 8, or 1 for files and a model on the CPU.",
)
@click.option(
    "--on-read-error",
    type=click.Choice(["fail", "skip"]),
    default="fail",
    show_default=True,
    help="What becomes of imagery that cannot be read after all attempts; skipped ground is nodata.",
)
@click.option(
    "--on-band-error",
    type=click.Choice(["fail", "skip"]),
    default="fail",
    show_default=True,
    help="What becomes of windows that cannot be computed, or end whatever computes them; skipped ground is nodata.",
)
@click.option("--verify", is_flag=True, help="Hold every block that is read against its checksum, where it has one.")
@click.option("--overwrite", is_flag=True, help="Replace the results of an earlier run in the folder.")
@click.option(
    "--resume/--no-resume",
    default=True,
    show_default=True,
    help="Go on with an unfinished run in the folder where it is the same one, or begin anew.",
)
@click.option("--workers", help="Compute with so many processes of this machine; auto: as many as it can hold.")
@click.option("--scheduler", help="Compute on the Dask cluster of a scheduler: tcp://HOST:8786, or its scheduler file.")
@click.option(
    "--config", help="Start a cluster and compute on it: a config's name or YAML file, such as slurm-cluster."
)
@click.option(
    "--log-json",
    metavar="FILE",
    help="Add a JSON object a line to this file (- for standard output): what is said, each band, the speed by minute.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be done and how long it would take; write nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the record (or the plan) as JSON on standard output.")
@click.option("-q", "--quiet", is_flag=True, help="Show warnings and errors only.")
def run(
    pipeline: str,
    aoi: str,
    out: str | None,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
    log_json: str | None,
    **options: Any,
) -> None:
    """Map an area of interest, as PIPELINE says: a name such as `canopy`, or your own YAML file."""
    from geodino.logs import logged
    from geodino.pipeline import estimate
    from geodino.pipeline import run as run_pipeline

    chosen = _run_options(options)
    with _watch(quiet=quiet) as shown, logged(shown, log_json, Path(pipeline).stem) as watch:
        if dry_run:
            cost = estimate(pipeline, aoi=aoi, options=chosen, watch=watch)
        else:
            folder = out or str(Path("out") / Path(pipeline).stem)
            record = run_pipeline(pipeline, aoi=aoi, out=folder, options=chosen, watch=watch)
    if dry_run:
        click.echo(json.dumps(cost.as_dict(), indent=2) if as_json else cost.as_text())
    elif as_json:
        click.echo(json.dumps(record.as_dict(), indent=2))
    elif not quiet and log_json != "-":
        click.echo(f"{record.as_text()}\nthe results are in {folder}")
    if not dry_run and record.losses:
        sys.exit(DONE_IN_PART)


@cli.group()
def models() -> None:
    """The models geodino knows, and whether you have access to them."""


@models.command("list")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def list_models(as_json: bool) -> None:
    """Every model by name."""
    from geodino.report import models_table

    click.echo(models_table(as_json=as_json))


@models.command("info")
@click.argument("name")
def model_info(name: str) -> None:
    """All facts of one model: size, statistics, windows, licence, citation."""
    from geodino.report import model_sheet

    click.echo(model_sheet(name))


@models.command("check")
@click.argument("name")
@click.pass_context
def check_model(context: click.Context, name: str) -> None:
    """Whether a model can be run here, and what to type where it cannot."""
    from geodino.report import model_access

    usable, sentence = model_access(name)
    click.echo(sentence)
    if not usable:
        context.exit(6)


@cli.command()
@click.option(
    "--source", help="Look at this source of imagery instead, as `run` takes it: can it be reached, searched and read?"
)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.pass_context
def doctor(context: click.Context, source: str | None, as_json: bool) -> None:
    """What this machine has: versions, device, memory, disk, models, and what would be slow or missing.

    With --source the exit code is 4 where something is missing.
    """
    if source is None:
        from geodino.doctor import examine

        findings = examine()
    else:
        from geodino.sources.checkup import check_source

        findings = check_source(source)
    click.echo(json.dumps(findings.as_dict(), indent=2) if as_json else findings.as_text())
    if source is not None and not findings.ok:
        context.exit(4)


cli.add_command(batch_command(run))
cli.add_command(train)
cli.add_command(evaluate)
cli.add_command(stats)


def main() -> None:
    """Run the command line, turning each error into one line and its exit code."""
    signal.signal(signal.SIGTERM, _terminated)
    try:
        # `--debug` may stand anywhere: whoever adds it to a line that failed adds it at the end.
        result = cli.main([word for word in sys.argv[1:] if word != "--debug"], standalone_mode=False)
    except click.exceptions.Abort:
        sys.exit(_interrupted())
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(_interrupted())
    except GeodinoError as error:
        sys.exit(_failed(error, error.exit_code))
    except MemoryError:
        sys.exit(_failed(MemoryError("out of memory; try a smaller --batch-size or fewer --threads"), 1))
    except BrokenPipeError:
        sys.exit(0)
    except OSError as error:
        # What no module foresaw of disks and permissions; a bug still shows its traceback.
        sys.exit(_failed(error, OutputError.exit_code))
    sys.exit(result if isinstance(result, int) else 0)


def _run_options(options: dict[str, Any]) -> RunOptions:
    from geodino.options import RunOptions

    bands = options.pop("bands")
    return RunOptions(
        datetime=options.pop("datetime_"),
        bands=tuple(band.strip() for band in bands.split(",")) if bands else (),
        **options,
    )


def _watch(*, quiet: bool) -> PlainWatch | RichWatch:
    from geodino.watch import PlainWatch, RichWatch

    return RichWatch() if sys.stderr.isatty() and not quiet else PlainWatch(quiet=quiet)


def _terminated(number: int, frame: FrameType | None) -> None:
    """Ends the run as Ctrl-C does, so that temporary files are removed; 143 is what a shell calls it."""
    raise SystemExit(128 + number)


def _interrupted() -> int:
    click.echo("interrupted: nothing half-written is left", err=True)
    return INTERRUPTED


def _failed(error: BaseException, code: int) -> int:
    if "--debug" in sys.argv:
        import traceback

        traceback.print_exception(error)
    click.echo(f"error: {error}", err=True)
    return code


if __name__ == "__main__":
    main()
