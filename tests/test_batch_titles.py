"""What a batch's imagery is called where the results of the batch are published."""

from __future__ import annotations

import json
from pathlib import Path

from source_scenes import make_item, write_catalog, write_scene
from stac_site import serving

from geodino.batch.titles import imagery_of
from geodino.options import RunOptions


def test_a_catalog_is_called_as_it_calls_itself_else_by_its_id(tmp_path: Path) -> None:
    write_scene(tmp_path / "a.tif")
    catalog = Path(write_catalog(tmp_path, [make_item("a", "../a.tif")]))
    content = json.loads(catalog.read_text())
    assert imagery_of(str(catalog), RunOptions()) == content["id"]
    catalog.write_text(json.dumps(content | {"title": "Orthophotos of our county"}))
    assert imagery_of(str(catalog), RunOptions()) == "Orthophotos of our county"
    assert imagery_of(str(catalog), RunOptions(collections=("aerial",))) == "Orthophotos of our county (aerial)"


def test_what_has_no_name_of_its_own_is_called_by_its_last_name_on_the_disk(tmp_path: Path) -> None:
    write_scene(tmp_path / "a.tif")
    (tmp_path / "plots.csv").write_text("name,minx,miny,maxx,maxy\n")
    assert imagery_of(str(tmp_path), RunOptions()) == tmp_path.name
    assert imagery_of(str(tmp_path / "plots.csv"), RunOptions(sources=("sample",))) == "plots"
    assert imagery_of(None, RunOptions(sources=(str(tmp_path / "a.tif"), "sample"))) == "a, geodino-sample"


def test_an_address_is_told_without_its_secrets_and_a_config_by_its_title(tmp_path: Path) -> None:
    with serving(tmp_path) as site:
        assert imagery_of(f"{site.url}/none.json?sig=secret", RunOptions()) == f"{site.url}/none.json?..."
    assert imagery_of("planetary-computer-naip", RunOptions(collections=("naip",))).endswith(" (naip)")
    assert "planetary-computer-naip" not in imagery_of("planetary-computer-naip", RunOptions())
