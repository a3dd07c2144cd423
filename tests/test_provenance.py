"""What the tags of a map say of the model that made it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from geodino.models.as_run import ModelAsRun
from geodino.models.catalog import CC_BY, Licence, row
from geodino.provenance import made_by


@pytest.mark.parametrize(
    ("licence", "said"),
    [(CC_BY, f"CC-BY-4.0, {CC_BY.url}"), (Licence("as its data: GPL-3.0", ""), "as its data: GPL-3.0")],
)  # fmt: skip
def test_a_map_says_the_licence_of_the_weights_and_where_it_is_to_be_read_if_anywhere(
    licence: Licence, said: str
) -> None:
    nano = replace(row("nano"), licence=licence)
    model = ModelAsRun(nano, "0" * 64, "fp32", "cpu", 1, {})
    assert made_by(model, nano.tiling)["weights_licence"] == said
