"""`geodino evaluate`: parse, call one function, print."""

from __future__ import annotations

import tempfile
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from geodino.cli_options import device_option, precision_option, tta_option
from geodino.cli_train import TASKS, label_options
from geodino.errors import InputError

if TYPE_CHECKING:
    from geodino.evaluation.chips import Evaluation
    from geodino.evaluation.tasks import Settings
    from geodino.models.predictor import Model
    from geodino.training.chips import ChipSet


@click.command()
@click.argument("task", type=click.Choice(TASKS))
@click.option("--labels", required=True, multiple=True, help="Label files or globs; may be repeated.")
@click.option("--model", help="What to evaluate: a name (`geodino models list`), hub id or folder; with --source.")
@click.option("--source", "sources", multiple=True, help="Imagery, as for `run`; may be repeated.")
@click.option(
    "--map",
    "map_path",
    type=click.Path(path_type=Path),
    help="Or a finished map: GeoTIFF, tree points, a run's folder.",
)
@click.option("--splits", multiple=True, help="CSV that says train or val of each scene.")
@click.option("--split", help="Use the chips of this split only, such as val; needs --splits.")
@click.option("--by", multiple=True, help="Divide by a column of the splits, or scene or place; may be repeated.")
@click.option("--scene-column", help="Column of point labels that names their scene.")
@click.option("--height-column", help="Column of the heights, metres, of footprints.")
@click.option("--radius-column", help="Column of the radii, metres, of footprints.")
@click.option("--radius", "radius_m", type=float, help="Radius of all footprints, metres.")
@click.option("--sensor", type=click.Choice(["gedi", "icesat-2"]), help="Of the footprints: 12 or 7 m.")
@click.option("--label-layer", "layer", help="Layer of the label file.")
@click.option("--area", help="Polygons within which all trees are drawn.")
@click.option("--class-column", help="Column of the classes.")
@click.option("--classes", help="Classes in their order; VALUE=NAME of rasters, also of --map: 1=tree,0=other.")
@click.option("--bands", help="Red, green and blue by name or 1-based index: 4,3,2.")
@click.option("--gsd", "gsd_m", type=float, help="Metres a pixel [default: the model's].")
@click.option("--size", type=int, help="Side of the chips, px [default: the model's window].")
@click.option(
    "--threshold", type=click.FloatRange(0, 1), help="Least score of a tree [default: the model's; 0 of a map]."
)
@click.option("--within", "within_m", type=float, default=6.0, show_default=True, help="Metres from tree to tree.")
@click.option("--resamples", type=click.IntRange(1), default=1000, show_default=True, help="Of the 95 % intervals.")
@click.option("--seed", type=int, default=0, show_default=True)
@device_option
@precision_option
@tta_option
@click.option(
    "--chips", "chips_folder", type=click.Path(path_type=Path), help="Where chips are kept [default: nowhere]."
)
@click.option("--out", type=click.Path(path_type=Path), help="Folder for evaluation.json and the pictures.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def evaluate(
    task: str, model: str | None, map_path: Path | None, out: Path | None, as_json: bool, **given: Any
) -> None:
    """Measure a model, or a finished map, for TASK against labels: canopy, trees, segment or classify.

    \b
    geodino evaluate canopy --model nano --source photo.tif --labels chm.tif --out figures/
    geodino evaluate canopy --map out/canopy_height.tif --labels chm.tif
    """
    if (model is None) == (map_path is None):
        raise click.UsageError("give --model with --source, or --map")
    if model is not None and not given["sources"]:
        raise click.UsageError("--model needs imagery: --source")
    if given["split"] and not given["splits"]:
        raise click.UsageError("--split needs a CSV that says so: --splits")

    kept = nullcontext(given["chips_folder"]) if given["chips_folder"] else tempfile.TemporaryDirectory()
    with kept as folder:
        found: Evaluation
        if map_path is not None:
            found = _of_map(task, map_path, given)
            show(found, out, as_json=as_json)
        else:
            found, loaded, chips = _of_model(task, str(model), Path(folder), given)
            show(found, out, as_json=as_json, model=loaded, chips=chips)


def show(
    found: Evaluation, out: Path | None, *, as_json: bool, model: Model | None = None, chips: ChipSet | None = None
) -> None:
    """Write report and pictures where there is a folder for them, and print the tables or the JSON."""
    paths = _draw(found, out, model, chips)
    if as_json:
        click.echo(found.report.as_json(), nl=False)
        return
    _print(found)
    for path in paths:
        click.echo(str(path))


def _of_map(task: str, path: Path, given: dict[str, Any]) -> Evaluation:
    from geodino.evaluation.maps import evaluate_map
    from geodino.evaluation.models import map_in, subject_of_map, with_seams
    from geodino.training.chips import LabelOptions

    settings, path = _settings(given), map_in(path, task)  # type: ignore[arg-type]
    if given["threshold"] is None:
        settings = replace(settings, threshold=0.0)
    found = evaluate_map(
        task,  # type: ignore[arg-type]
        path,
        given["labels"],
        subject=subject_of_map(path),
        settings=settings,
        options=label_options(given, LabelOptions),
    )
    return with_seams(found, path)


def _of_model(task: str, name: str, folder: Path, given: dict[str, Any]) -> tuple[Evaluation, Model, ChipSet]:
    from geodino.evaluation.models import HEADS, evaluate_model, leak_note, settings_of
    from geodino.models import load_model
    from geodino.models.loading import find_weights
    from geodino.sources import Search
    from geodino.training.chips import ChipOptions, LabelOptions, build_chips
    from geodino.training.leaks import training_record
    from geodino.watch import PlainWatch

    how = {key: given[key] for key in ("precision", "device", "tta")}
    model = load_model(name, head=HEADS[task], **how)  # type: ignore[index]
    watch = PlainWatch(quiet=False)
    bands = tuple(band.strip() for band in (given["bands"] or "").split(",") if band.strip())
    chips = build_chips(
        task,  # type: ignore[arg-type]
        given["labels"],
        given["sources"],
        folder=folder,
        options=ChipOptions(
            size=given["size"] or model.tiling.size,
            gsd_m=given["gsd_m"] or model.row.gsd_m or 0.6,
            search=Search(bands=bands),
            labels=label_options(given, LabelOptions),
            splits=tuple(given["splits"]),
        ),
        watch=watch,
    )
    if given["split"]:
        chips = _of_split(chips, given["split"])
    settings = settings_of(model, chips.task, _settings(given))
    if given["threshold"] is not None:
        settings = replace(settings, threshold=given["threshold"])
    record = training_record(find_weights(name).folder)
    found = evaluate_model(model, chips, settings=settings, by=tuple(given["by"]), record=record)
    if leak := leak_note(record, chips):
        watch.warn(leak)
    return found, model, chips


def _of_split(chips: ChipSet, split: str) -> ChipSet:
    """The chips of a split, the others counted as left out."""
    mine = (chips.table["split"] == split).to_numpy()
    if not mine.any():
        known = ", ".join(sorted({str(name) for name in chips.table["split"]} - {""})) or "none"
        raise InputError(f"no chip is of the split {split}: the chips here are of {known}")
    left = {"chip of another split": int((~mine).sum())}
    return replace(chips.subset(mine), dropped={**chips.dropped, **left})


def _settings(given: dict[str, Any]) -> Settings:
    from geodino.evaluation.tasks import Settings

    settings = Settings(within_m=given["within_m"], resamples=given["resamples"], seed=given["seed"])
    return settings if given["threshold"] is None else replace(settings, threshold=given["threshold"])


def _draw(
    found: Evaluation, out: Path | None, model: Model | None = None, chips: ChipSet | None = None
) -> tuple[Path, ...]:
    """Write the report and the pictures, where there is a folder for them."""
    if out is None:
        return ()
    from geodino.evaluation.models import predictor_of
    from geodino.evaluation.pictures import draw_pictures
    from geodino.evaluation.worst import draw_worst
    from geodino.outputs.folder import whole_file

    out.mkdir(parents=True, exist_ok=True)
    with whole_file(out / "evaluation.json") as part:
        part.write_text(found.report.as_json())
    paths = (out / "evaluation.json", *draw_pictures(found, out))
    if model is None or chips is None:
        return paths
    predict = predictor_of(model, chips.task, chips.class_names)
    return (*paths, draw_worst(found, predict, chips, out / "worst.png"))


def _print(found: Evaluation) -> None:
    from rich.console import Console

    console = Console()
    for part in found.report.as_renderables():
        console.print(part, highlight=False)
