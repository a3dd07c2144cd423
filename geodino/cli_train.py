"""`geodino train`: parse, build chips, call one function, print."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from geodino.cli_options import device_option, precision_option

TASKS = ("canopy", "trees", "segment", "classify")
HEADS = {"canopy": "linear", "trees": "density", "segment": "linear", "classify": "linear"}

# Options that do nothing without another one.
NEEDS = {
    "folds_by": "folds", "mirrored": "upright", "checkpointing": "finetune", "backbone_rate": "finetune",
    "layer_decay": "finetune", "rehearse": "finetune",
}  # fmt: skip
# Options that say something of vector labels, and of which task's.
OF_VECTORS: Mapping[str, tuple[str, ...]] = {
    "scene_column": TASKS,
    "layer": TASKS,
    "height_column": ("canopy",),
    "radius_column": ("canopy",),
    "radius_m": ("canopy",),
    "sensor": ("canopy",),
    "area": ("trees",),
    "class_column": ("segment", "classify"),
}
# Which parts of a training's command its evaluation takes.
OF_EVALUATION = (
    "labels", "sources", "splits", "scene_column", "height_column", "radius_column", "radius_m", "sensor", "layer",
    "area", "class_column", "classes", "bands",
)  # fmt: skip


@click.command()
@click.argument("task", type=click.Choice(TASKS))
@click.option("--labels", required=True, multiple=True, help="Label files or globs; may be repeated.")
@click.option("--source", "sources", required=True, multiple=True, help="Imagery, as for `run`; may be repeated.")
@click.option(
    "--model",
    required=True,
    help="What to start from: a backbone, `new` (nano's shape), or a trained folder, whose heads for other tasks stay; "
    "one for TASK is thrown away, but with --head own.",
)
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="Folder of the model that is made; new or empty."
)
@click.option(
    "--head",
    help="linear, pyramid or (canopy) dpt; or own: the head for TASK that --model has, such as CHMv2's, goes on "
    "learning [default: density, the only other one, for trees, else linear].",
)
@click.option("--finetune", is_flag=True, help="Train the backbone too; else it is frozen and its features are cached.")
@click.option(
    "--rehearse",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Folder of the training that made another head of --model, which goes on learning beside; with --finetune.",
)
@click.option("--splits", multiple=True, help="CSV that says train or val of each scene; val is left alone.")
@click.option("--scene-column", help="Column of point labels that names their scene.")
@click.option("--height-column", help="Column of the heights, metres, of footprints.")
@click.option("--radius-column", help="Column of the radii, metres, of footprints.")
@click.option("--radius", "radius_m", type=float, help="Radius of all footprints, metres.")
@click.option("--sensor", type=click.Choice(["gedi", "icesat-2"]), help="Of the footprints: 12 or 7 m.")
@click.option("--label-layer", "layer", help="Layer of the label file.")
@click.option("--area", type=click.Path(exists=True), help="Polygons within which all trees are drawn.")
@click.option("--class-column", help="Column of the classes.")
@click.option("--classes", help="Classes in their order, comma-separated.")
@click.option("--bands", help="Red, green and blue by name or 1-based index: 4,3,2.")
@click.option("--gsd", "gsd_m", type=float, default=0.6, show_default=True, help="Metres a pixel.")
@click.option("--chip", "chip_px", type=int, help="Side of the chips, px [default: --size].")
@click.option(
    "--size",
    type=int,
    default=256,
    show_default=True,
    help="Side of the crops, px; also the window of a model that had no heads before.",
)
@click.option("--batch", type=click.IntRange(1), default=16, show_default=True)
@click.option("--epochs", type=float, default=40.0, show_default=True)
@click.option("--learning-rate", type=float, default=1e-3, show_default=True, help="Of the head.")
@click.option("--backbone-rate", type=float, default=3e-4, show_default=True, help="Of the backbone, with --finetune.")
@click.option(
    "--layer-decay", type=float, default=1.0, show_default=True, help="Of the rate, from block to block down."
)
@click.option("--views", type=click.IntRange(1), default=4, show_default=True, help="Cached looks at each chip.")
@click.option(
    "--free", type=click.FloatRange(0, 1), default=0.6, show_default=True, help="Share turned and scaled freely."
)
@click.option(
    "--zoom", type=click.FloatRange(0, 1), default=0.25, show_default=True, help="Largest change of scale, log."
)
@click.option("--shift", type=click.FloatRange(0, 0.5), default=0.2, show_default=True, help="Largest shift, share.")
@click.option("--colour", type=click.FloatRange(0, 1), default=0.7, show_default=True, help="How far colours change.")
@click.option("--upright", is_flag=True, help="Keep north up: shadows and lean of one photo are learned as they fall.")
@click.option("--mirrored", is_flag=True, help="Mirror half of the upright looks, east to west.")
@click.option(
    "--balance",
    type=click.FloatRange(0, 1),
    default=0.5,
    show_default=True,
    help="Share of the crops drawn by class, one as often as another: of height (canopy), of pixels (segment), of "
    "chips (classify); trees have none.",
)
@click.option("--silog/--no-silog", default=True, help="Whether canopy begins with the log loss.")
@click.option("--doubt", type=float, default=0.0, show_default=True, help="Weight of a spread as large as the errors.")
@click.option("--checkpointing", is_flag=True, help="Less memory for a third more time, with --finetune.")
@click.option("--evaluations", type=click.IntRange(1), default=10, show_default=True)
@click.option(
    "--tuning", type=float, default=1 / 16, help="Share of the places that choose, not learn [default: 1/16]."
)
@click.option("--choose", type=click.Choice(["best", "last"]), default="best", show_default=True, help="Which weights.")
@click.option(
    "--folds",
    type=click.IntRange(2),
    help="Cross-validate on all chips, val too: so many models, each judged where it was not trained.",
)
@click.option("--folds-by", default="place", show_default=True, help="What folds keep together: place, or a column.")
@click.option("--seed", type=int, default=0, show_default=True)
@device_option
@precision_option
@click.option(
    "--chips", "chips_folder", type=click.Path(path_type=Path), help="Where chips are kept [default: OUT/work]."
)
@click.option("--cache", type=click.Path(path_type=Path), help="Where features are kept [default: OUT/work/features].")
@click.option("--name", help="Of the model, for its card.")
@click.option("--data-licence", default="", help="Licence of the data, for the card [default: not stated].")
@click.option("--attribution", multiple=True, help="A line for the card; may be repeated.")
@click.option("--half", is_flag=True, help="Keep the weights as float16: half the file, no figure that changes.")
@click.option("--demonstration", is_flag=True, help="Label every map as a demonstration.")
@click.option("--json", "as_json", is_flag=True, help="Print the record as JSON.")
def train(task: str, out: Path, head: str | None, as_json: bool, **given: Any) -> None:
    """Train a head for TASK on your own labels: canopy, trees, segment or classify.

    A second call with the same --out goes on where the first was cut.
    """
    from geodino.errors import ConfigError
    from geodino.redaction import command_without_secrets
    from geodino.sources import Search
    from geodino.training.augment import Variety
    from geodino.training.chips import ChipOptions, LabelOptions, build_chips
    from geodino.training.folder import check_out
    from geodino.training.recipe import Recipe
    from geodino.training.train import Options
    from geodino.training.train import train as train_head
    from geodino.watch import PlainWatch

    def tell(line: str) -> None:
        click.echo(line, err=True)

    refuse_idle(task, given)
    check_out(out)
    bands = tuple(band.strip() for band in (given["bands"] or "").split(",") if band.strip())
    size = given["size"]
    recipe = Recipe(
        variety=Variety(**{name: given[name] for name in ("free", "zoom", "shift", "colour", "upright", "mirrored")}),
        **{
            name: given[name]
            for name in (
                "size", "batch", "epochs", "learning_rate", "backbone_rate", "layer_decay", "views", "balance", "silog",
                "doubt", "checkpointing", "evaluations", "choose", "tuning", "seed", "finetune",
            )
        },
    )  # fmt: skip
    chips = build_chips(
        task,  # type: ignore[arg-type]
        given["labels"],
        given["sources"],
        folder=given["chips_folder"] or out / "work" / "chips",
        options=ChipOptions(
            size=given["chip_px"] or size,
            gsd_m=given["gsd_m"],
            search=Search(bands=bands),
            labels=label_options(given, LabelOptions),
            splits=tuple(given["splits"]),
        ),
        watch=PlainWatch(quiet=False),
    )
    for reason, count in chips.dropped.items():
        tell(f"left out, {reason}: {count}")
    evaluation = evaluation_of(task, out, given, held_out="val" in set(chips.table["split"]))
    options = Options(
        given["device"], given["precision"], given["cache"], given["name"], given["data_licence"],
        tuple(given["attribution"]), given["demonstration"], given["half"],
        command_without_secrets(shlex.join(["geodino", *sys.argv[1:]])),
        # The model of a fold is another one than OUT.
        "" if given["folds"] else evaluation,
    )  # fmt: skip
    if given["folds"]:
        if given["rehearse"]:
            raise ConfigError("--folds judges one head, and --rehearse trains several: give one of them")
        from geodino.cli_evaluate import show
        from geodino.training.cross import cross_validate

        found = cross_validate(
            chips, given["model"], out, head=head or HEADS[task], recipe=recipe, count=given["folds"],
            column=given["folds_by"], options=options, told=tell,
        )  # fmt: skip
        show(found, out, as_json=as_json)
        return
    record = train_head(
        chips, given["model"], out, head=head or HEADS[task], recipe=recipe, options=options,
        rehearse=given["rehearse"], told=tell,
    )  # fmt: skip
    if as_json:
        click.echo(json.dumps(record, indent=2))
    else:
        click.echo(f"the model is {out}; how good it is, says\n{evaluation}")


def refuse_idle(task: str, given: Mapping[str, Any]) -> None:
    """UsageError for an option that was given and would do nothing."""
    from geodino.training.label_files import RASTER_SUFFIXES, expand

    context = click.get_current_context()
    asked = {name for name in given if context.get_parameter_source(name) is ParameterSource.COMMANDLINE}
    spelled = {option.name: option.opts[0] for option in context.command.params}
    for name, needed in NEEDS.items():
        if name in asked and not given[needed]:
            raise click.UsageError(f"{spelled[name]} does nothing without {spelled[needed]}: give both or neither")
    rasters = all(path.lower().endswith(RASTER_SUFFIXES) for path in expand(given["labels"]))
    for name, tasks in OF_VECTORS.items():
        if name in asked and (rasters or task not in tasks):
            what = "raster labels" if rasters else f"labels for {task}"
            raise click.UsageError(f"{spelled[name]} does nothing for {what}: leave it out")


def evaluation_of(task: str, out: Path, given: Mapping[str, Any], *, held_out: bool) -> str:
    """The command that evaluates the model: on the chips of the split `val`, or on ground that is still to be named."""
    from geodino.redaction import command_without_secrets

    spelled = {option.name: option.opts[0] for option in click.get_current_context().command.params}
    known = {name: given[name] for name in OF_EVALUATION}
    if not held_out:
        known |= {"labels": ["LABELS"], "sources": ["IMAGERY"], "splits": [], "area": None}
    words = ["geodino", "evaluate", task, "--model", str(out), "--size", str(given["chip_px"] or given["size"])]
    for name, value in known.items():
        values = value if isinstance(value, list | tuple) else [] if value is None else [value]
        words += [word for one in values for word in (spelled[name], str(one))]
    return command_without_secrets(shlex.join([*words, *(["--split", "val"] if held_out else [])]))


def label_options(given: dict[str, Any], made: type) -> Any:
    """LabelOptions from those that were given."""
    wanted = {name: given[name] for name in made.__dataclass_fields__ if given.get(name) is not None}  # type: ignore[attr-defined]
    if isinstance(wanted.get("classes"), str):
        wanted["classes"] = tuple(part.strip() for part in wanted["classes"].split(","))
    return made(**wanted)
