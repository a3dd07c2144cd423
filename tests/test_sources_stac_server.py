"""Against a real STAC API, stac-fastapi-pgstac on PostgreSQL: search, paging, order, and a run from end to end."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import rasterio
import shapely
from source_scenes import Item, ids
from stac_api import REQUIRED, StacApi, missing, stac_api
from stac_site import serving

from geodino.aoi import AOI, read_aoi
from geodino.errors import ConfigError
from geodino.options import RunOptions
from geodino.pipeline import run
from geodino.shipped import sample_aoi, sample_folder
from geodino.sources import Search, find_scenes
from geodino.sources import stac_api as searching
from geodino.sources.checkup import check_source
from geodino.sources.stac import stac_items
from geodino.sources.stac_http import http, read_json

WORLD = shapely.box(-180, -90, 180, 90)
CITY = "riverside"
# Below 20 as a number, and above it as text.
CLOUDS = (5, 9, 30, 100)


def _objects(root: Path, served: Path, url: str) -> tuple[list[Item], list[Item]]:
    """Collections and Items of a static catalog, their assets as a server of the folder `served` has them."""
    collections, items = [], []
    for path in sorted(root.rglob("*.json")):
        content = json.loads(path.read_text())
        content["links"] = []
        if content["type"] == "Collection":
            collections.append(content)
        elif content["type"] == "Feature":
            for asset in content["assets"].values():
                where = (path.parent / asset["href"]).resolve().relative_to(served.resolve())
                asset["href"] = f"{url}/{where}"
            items.append(content)
    return collections, items


@pytest.fixture(scope="module")
def api() -> Iterator[StacApi]:
    """The sample, and of the urban trees one city with made-up clouds where they lie on this machine."""
    absent = missing()
    if absent is not None:
        (pytest.fail if os.environ.get(REQUIRED) else pytest.skip)(absent)
    with ExitStack() as stack:
        site = stack.enter_context(serving(sample_folder()))
        collections, items = _objects(sample_folder(), sample_folder(), site.url)
        urban = Path(__file__).resolve().parents[2] / "shared" / "data" / "urban-trees"
        if urban.is_dir():
            site = stack.enter_context(serving(urban))
            more, chips = _objects(urban / "stac", urban, site.url)
            chips = [chip for chip in chips if str(chip["id"]).startswith(CITY)]
            for number, chip in enumerate(chips):
                chip["properties"]["eo:cloud_cover"] = CLOUDS[number % len(CLOUDS)]  # type: ignore[index]
            collections, items = collections + more, items + chips
        yield stack.enter_context(stac_api(collections, items))


@pytest.fixture
def chips(api: StacApi, shared_data: Path) -> tuple[str, ...]:
    """The collections of the urban trees."""
    return tuple(f"urban-trees-{year}" for year in (2016, 2018, 2020))


@pytest.fixture(scope="module")
def aoi() -> AOI:
    return read_aoi(sample_aoi("long-beach"))


def test_the_api_gives_the_scenes_of_the_static_catalog(api: StacApi, aoi: AOI) -> None:
    found = find_scenes([api.url], aoi=aoi, search=Search(collections=("long-beach", "palm-springs")))
    assert ids(found.scenes) == ids(find_scenes(["sample"], aoi=aoi, search=Search()).scenes)
    assert len(found.scenes) == 3 and not found.dropped and not found.warnings
    assert all(scene.bands[0].href.startswith("http://127.0.0.1") for scene in found.scenes)


@pytest.mark.parametrize(("datetime", "years"), [("2018", [2018]), ("2018/..", [2020, 2018]), ("../2017", [2016])])
def test_the_api_is_asked_for_time(api: StacApi, aoi: AOI, datetime: str, years: list[int]) -> None:
    found = find_scenes([api.url], aoi=aoi, search=Search(collections=("long-beach",), datetime=datetime))
    assert ids(found.scenes) == [f"long-beach-{year}-9" for year in years]
    # The server left them out, not we.
    assert not found.dropped


@pytest.mark.parametrize("method", ["POST", "GET"])
def test_paging_gives_every_item_once(
    api: StacApi, chips: tuple[str, ...], method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searching, "PAGE", 40)
    bare = searching.search_request
    monkeypatch.setattr(searching, "search_request", lambda api: bare(api)._replace(method=method))
    answer = stac_items(api.url, WORLD, Search(collections=chips))
    names = [content["id"] for _, content in answer.items]
    assert len(names) == len(set(names)) == 183 and not answer.warnings


@pytest.mark.parametrize("kind", [None, "number"])
def test_no_item_is_lost_to_a_server_that_compares_clouds_as_text(
    api: StacApi, chips: tuple[str, ...], kind: str | None
) -> None:
    api.type_property("eo:cloud_cover", kind)
    answer = stac_items(api.url, WORLD, Search(collections=chips))
    covers = [content["properties"]["eo:cloud_cover"] for _, content in answer.items]  # type: ignore[index]
    clear = sum(cover <= 20 for cover in covers)
    with http() as session:
        asked = {"collections": list(chips), "limit": 1, "query": {"eo:cloud_cover": {"lte": "20"}}}
        page = read_json(f"{api.url}/search", session, method="POST", parameters=asked)
    # Of 5, 9, 30 and 100 percent only 100 sorts before 20 as text: clear Items would be gone, and clouds come.
    assert clear == 92
    assert page["numberMatched"] == (45 if kind is None else clear)


@pytest.mark.parametrize("kind", [None, "number"])
def test_cloud_and_order_are_right_whatever_the_server_takes_numbers_for(
    api: StacApi, chips: tuple[str, ...], kind: str | None
) -> None:
    api.type_property("eo:cloud_cover", kind)
    place = read_aoi("-117.4595,33.9594,-117.4585,33.9603")
    every = find_scenes([api.url], aoi=place, search=Search(collections=chips, order="least-cloud"))
    covers = [scene.cloud_cover for scene in every.scenes]
    assert len(covers) == 3 and covers == sorted(covers)  # type: ignore[type-var]
    few = find_scenes([api.url], aoi=place, search=Search(collections=chips, max_cloud=20))
    assert {scene.id for scene in few.scenes} == {
        scene.id for scene in every.scenes if scene.cloud_cover is not None and scene.cloud_cover <= 20
    }
    assert not few.warnings


def test_a_collection_that_it_does_not_have_is_refused_with_the_nearest(api: StacApi, aoi: AOI) -> None:
    with pytest.raises(ConfigError, match="has no collection long-beech; did you mean long-beach"):
        find_scenes([api.url], aoi=aoi, search=Search(collections=("long-beech",)))


def test_the_doctor_finds_nothing_missing(api: StacApi, tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(f"kind: source\ntitle: mine\nstac: {api.url}\ncollections: [long-beach]\n")
    found = check_source(str(own))
    assert found.ok
    said = {finding.name: finding.value for finding in found.all}
    assert said["item"].startswith("long-beach-2020-9") and "counts 3" in said["searched"]


def test_a_run_from_the_api_gives_the_map_of_the_files(
    api: StacApi, aoi: AOI, tiny_model: Path, tmp_path: Path
) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(f"kind: source\ntitle: mine\nstac: {api.url}\ncollections: [long-beach]\n")
    heights = []
    for name, source in (("api", str(own)), ("disk", "sample")):
        options = RunOptions(sources=(source,), model=str(tiny_model), device="cpu", precision="fp32")
        run("canopy", aoi=str(sample_aoi("long-beach")), out=tmp_path / name, options=options)
        with rasterio.open(tmp_path / name / "canopy_height.tif") as raster:
            heights.append(raster.read(1))
    np.testing.assert_array_equal(*heights)
    assert "http://127.0.0.1" in (tmp_path / "api" / "run.json").read_text()
