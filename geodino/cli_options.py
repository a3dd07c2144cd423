"""Options that several commands have."""

from __future__ import annotations

import click

device_option = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps.")
precision_option = click.option(
    "--precision", type=click.Choice(["auto", "fp32", "bf16"]), default="auto", show_default=True
)
tta_option = click.option(
    "--tta",
    type=click.Choice(["1", "2", "4", "8"]),
    default="1",
    show_default=True,
    callback=lambda context, option, value: int(value),
    help="Average so many views of each window, turned and mirrored: a little better, as many times slower.",
)
