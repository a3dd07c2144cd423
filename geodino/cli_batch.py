"""`geodino batch`: many runs over a catalog, shared by as many processes as are started on it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from geodino.errors import DONE_IN_PART

if TYPE_CHECKING:
    from geodino.batch.runner import Ended
    from geodino.cluster.machines import Machines
    from geodino.options import RunOptions
    from geodino.stores import Store
    from geodino.watch import Watch

# Options of `run` that mean the same of every job.
OF_RUN = (
    "sources",
    "model",
    "collections",
    "datetime_",
    "max_cloud",
    "order",
    "harmonise",
    "strict_acquisition",
    "bands",
    "radiometry",
    "crs",
    "aoi_layer",
    "aoi_crs",
    "repair_aoi",
    "force_gsd",
    "precision",
    "tta",
    "on_read_error",
    "on_band_error",
    "verify",
    "overwrite",
)
# And those that a machine decides for itself, which `retry` takes too; the last three say who does the jobs.
OF_MACHINE = ("device", "batch_size", "threads", "workers", "scheduler", "config")
# What holds of a batch where a run's own words promise more.
_HELP = {
    "sources": "Imagery of --grid or of a CSV of areas, needed with it: GeoTIFF, folder, STAC Item, catalog or API, "
    "or a config's name, not auto; may be repeated.",
    "model": "A name (`geodino models list`), hub id or folder, not auto; needed where the pipeline's is auto.",
    "crs": "CRS of the results [default: the imagery's where it keeps metres true, else UTM; with --grid one for all "
    "cells, by the imagery in the AOI's middle].",
    "overwrite": "Begin anew: remove all that a batch made in the folder, also one of other settings, and nothing "
    "else. Refused while a process is at work there.",
}
_BEGIN = "begin"


class _PipelineFirst(click.Group):
    """A group whose first word is a pipeline where it is no command, as in `geodino batch canopy --catalog ...`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or args[0] not in (*self.commands, "-h", "--help"):
            args = [_BEGIN, *args]
        elif args[0] in ("-h", "--help"):
            args = [_BEGIN, "--help"]
        return super().parse_args(ctx, args)


class _Begin(click.Command):
    """The command that has no name of its own: it is called what its group is."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        assert parent is not None
        return super().make_context(parent.info_name, args, parent.parent, **extra)


def batch_command(run: click.Command) -> click.Group:
    """The group `batch`, with those options of `run` that mean the same of every job."""
    group = _PipelineFirst("batch", help="Many runs over a catalog, resumable.")
    shared = {parameter.name: parameter for parameter in run.params}
    begin.params += [_of_batch(shared[name]) for name in (*OF_RUN, *OF_MACHINE) if name in shared]
    retry.params += [shared[name] for name in OF_MACHINE if name in shared]
    for command in (begin, status, retry):
        group.add_command(command)
    return group


def _of_batch(option: click.Parameter) -> click.Parameter:
    """An option of `run` in the words of a batch."""
    if option.name not in _HELP:
        return option
    assert isinstance(option, click.Option)
    said = copy(option)
    said.help = _HELP[option.name]
    return said


def _telling(function: Any) -> Any:
    """The options that say when to stop, and how it is told."""
    for option in (
        click.option("--max-failures", type=click.IntRange(0), help="Stop when more jobs than so many have failed."),
        click.option(
            "--log-json",
            metavar="FILE",
            help="Add a JSON object a line to this file (- for standard output): what is said, each job, and the "
            "speed every minute.",
        ),
        click.option(
            "--json",
            "as_json",
            is_flag=True,
            help="Print the summary (or the forecast) as JSON.",
        ),
        click.option("-q", "--quiet", is_flag=True, help="Show warnings and errors only."),
    ):
        function = option(function)
    return function


@click.command(_BEGIN, cls=_Begin, hidden=True, context_settings={"max_content_width": 110})
@click.argument("pipeline")
@click.option(
    "--catalog",
    help="What to map: a STAC API, catalog or source config, a stac-geoparquet file, a folder of GeoTIFFs: a job a "
    "scene. Or a CSV of areas (name, and wkt or minx,miny,maxx,maxy or path): a job a row, of the imagery of --source.",
)
@click.option("--grid", metavar="SIDE", help="A job a cell of this side, such as 10km, of --aoi, with --source.")
@click.option("--aoi", help="Of a catalog, the part to map; of a grid, what is cut into cells. As `run` takes it.")
@click.option("--out", required=True, help="Folder or bucket (s3://...) of the whole batch.")
@click.option(
    "--lease-s",
    type=click.FloatRange(1),
    default=300.0,
    show_default=True,
    help="A process that gives no sign for so many seconds is dead, and its jobs are taken over.",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Say what would be done and what is done there already; the largest job is planned, nothing is written.",
)
@_telling
def begin(
    pipeline: str,
    catalog: str | None,
    grid: str | None,
    aoi: str | None,
    out: str,
    lease_s: float,
    dry_run: bool,
    max_failures: int | None,
    log_json: str | None,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Map every scene of a catalog, every area of a list, or every cell of a grid, as PIPELINE says.

    Give the same command again to go on, and on other machines that share the folder or bucket to help: each job is
    done once. With --workers, --scheduler or --config each worker does a job at a time. Where jobs failed the exit
    code is 5.

    \b
    geodino batch canopy --catalog scenes/ --model nano --out out/
    geodino batch canopy --grid 10km --aoi area.geojson --source planetary-computer-naip --model chmv2 --out out/
    geodino batch ... --dry-run  what would be done
    geodino batch status OUT     how far it is, what failed and why
    geodino batch retry OUT      try again what failed, and go on
    """
    from geodino.batch.asked import Asked, look_ahead, open_batch

    machines = _machines(options)
    asked = Asked(pipeline, _run_options(options), catalog, aoi, grid, lease_s)
    store = _store(out)
    with _watch(quiet=quiet, log_json=log_json) as watch:
        from geodino.batch.forecast import foresee
        from geodino.batch.runner import run_batch

        if dry_run:
            found = foresee(*look_ahead(asked, store, watch), watch)
            click.echo(json.dumps(found.as_dict(), indent=2) if as_json else found.as_text())
            return
        ended = run_batch(open_batch(asked, store, watch), watch, machines=machines, max_failures=max_failures)
    _say(ended, out, as_json=as_json, quiet=quiet or log_json == "-")


@click.command("status")
@click.argument("out")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def status(out: str, as_json: bool) -> None:
    """How far the batch in OUT has come, at what rate, and what failed for which cause."""
    from geodino.batch.status import read_status

    found = read_status(_store(out))
    click.echo(json.dumps(found.as_dict(), indent=2) if as_json else found.as_text())


@click.command("retry")
@click.argument("out")
@click.option(
    "--losses",
    is_flag=True,
    help="Do again also the jobs that lost ground to reading errors (--on-read-error skip); what they have stays until "
    "then.",
)
@_telling
def retry(
    out: str,
    losses: bool,
    max_failures: int | None,
    log_json: str | None,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Try the failed jobs of the batch in OUT again, and go on with it."""
    from geodino.batch.asked import reopen_batch
    from geodino.batch.runner import run_batch
    from geodino.batch.status import try_again
    from geodino.options import RunOptions

    machines, store = _machines(options), _store(out)
    with _watch(quiet=quiet, log_json=log_json) as watch:
        manifest, again = try_again(store, losses=losses)
        watch.note(f"{again} to try again")
        opened = reopen_batch(store, manifest, RunOptions(**options))
        ended = run_batch(opened, watch, machines=machines, max_failures=max_failures)
    _say(ended, out, as_json=as_json, quiet=quiet or log_json == "-")


def _say(ended: Ended, out: str, *, as_json: bool, quiet: bool) -> None:
    if as_json:
        counted = {"done": ended.done, "failed": ended.failed, "lost_ha": ended.lost_ha, "stopped": ended.stopped}
        click.echo(json.dumps(counted | {"summary": ended.summary}, indent=2))
    elif ended.stopped is not None:
        click.echo(f"stopped: {ended.stopped}; `geodino batch status {out}` says why they did", err=True)
    elif not quiet:
        click.echo(f"{ended.text}\nthe results are in {out}")
        if ended.failed:
            click.echo(f"`geodino batch retry {out}` tries again what failed")
        if ended.lost_ha:
            click.echo(f"`geodino batch retry {out} --losses` does again what lost {ended.lost_ha:,.2f} ha")
    if ended.failed or ended.lost_ha or ended.stopped is not None:
        sys.exit(DONE_IN_PART)


def _machines(options: dict[str, Any]) -> Machines:
    """Who does the jobs, taken out of the options: a job itself is computed wherever it is given to."""
    from geodino.cluster.machines import Machines

    return Machines.of(options.pop("workers"), options.pop("scheduler"), options.pop("config"))


def _store(out: str) -> Store:
    """The batch's place; a path means the same to workers, which may have other working folders."""
    from geodino.sources.raster import is_remote
    from geodino.stores import Store

    return Store(out if is_remote(out) else str(Path(out).absolute()))


def _run_options(options: dict[str, Any]) -> RunOptions:
    from geodino.options import RunOptions

    bands = options.pop("bands")
    return RunOptions(
        datetime=options.pop("datetime_"),
        bands=tuple(band.strip() for band in bands.split(",")) if bands else (),
        **options,
    )


@contextmanager
def _watch(*, quiet: bool, log_json: str | None) -> Iterator[Watch]:
    from geodino.logs import logged
    from geodino.watch import PlainWatch, RichWatch

    with ExitStack() as stack:
        shown: PlainWatch | RichWatch = RichWatch() if sys.stderr.isatty() and not quiet else PlainWatch(quiet=quiet)
        stack.enter_context(shown)
        yield stack.enter_context(logged(shown, log_json, "batch"))
