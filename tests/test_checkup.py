"""What `geodino doctor --source` says of sources that work, and of each thing that may be missing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from source_scenes import make_item, write_catalog, write_scene
from stac_site import CORE, SEARCH, Site, serving

from geodino.cli import cli
from geodino.errors import ConfigError
from geodino.findings import Finding
from geodino.sources import stac_http
from geodino.sources.checkup import check_source


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """An API of one Item, whose picture can be read."""
    with serving(tmp_path) as served:
        write_scene(served.folder / "a.tif")
        served.items = [make_item("one", f"{served.url}/a.tif")]
        served.collections = {"aerial": {"id": "aerial"}, "other": {"id": "other"}}
        yield served


def config(site: Site, **changes: str) -> str:
    """The YAML of a user's own source."""
    keys = {"kind": "source", "title": "Mine", "stac": f"{site.url}/api", "collections": "[aerial]"} | changes
    path = site.folder / "mine.yaml"
    path.write_text("".join(f"{key}: {value}\n" for key, value in keys.items()))
    return str(path)


def last(source: str) -> Finding:
    """The finding that the look stopped at; all before it are ok."""
    found = check_source(source).all
    assert all(finding.ok for finding in found[:-1])
    return found[-1]


def doctor(*words: str) -> Result:
    return CliRunner().invoke(cli, ["doctor", "--source", *words])


def test_a_source_that_works_is_looked_at_to_its_pixels(site: Site) -> None:
    result = doctor(config(site))
    assert result.exit_code == 0
    lines = [line.split()[:2] for line in result.stdout.splitlines()]
    steps = ["source", "reached", "collection", "searched", "item", "asset", "header", "pixels"]
    assert lines == [["ok", step] for step in steps]
    assert "one of 2020-06-01" in result.output and "128 x 128 pixels of 0.6 m" in result.output
    assert "100% of them valid" in result.output
    found = json.loads(doctor(config(site), "--json").output)
    assert list(found) == steps and all(entry["ok"] for entry in found.values())


def test_what_is_missing_ends_with_exit_code_4_and_what_to_do(site: Site) -> None:
    result = doctor(config(site, collections="[arial]"))
    assert result.exit_code == 4
    assert "->  collection  it has no collection arial" in result.output and "did you mean aerial?" in result.output
    found = json.loads(doctor(config(site, collections="[arial]"), "--json").output)
    assert not found["collection"]["ok"] and list(found)[-1] == "collection"


def test_the_newest_item_is_taken_where_the_server_promises_to_sort(site: Site) -> None:
    assert "an Item came" in next(f.value for f in check_source(config(site)).all if f.name == "searched")
    site.root_changes = {"conformsTo": [CORE, SEARCH, f"{SEARCH}#sort"]}
    assert "the newest Item came" in next(f.value for f in check_source(config(site)).all if f.name == "searched")
    assert "sortby" not in site.searches[0]
    assert site.searches[1]["sortby"] == [{"field": "properties.datetime", "direction": "desc"}]


@pytest.mark.parametrize("kind", ["file", "folder", "catalog", "config"])
def test_files_and_static_catalogs_are_looked_at_too(tmp_path: Path, kind: str) -> None:
    write_scene(tmp_path / "a.tif")
    sources = {"file": str(tmp_path / "a.tif"), "folder": str(tmp_path)}
    if kind == "catalog":
        sources[kind] = write_catalog(tmp_path, [make_item("one", "../a.tif")])
    if kind == "config":
        (tmp_path / "own.yaml").write_text(
            "kind: source\ntitle: mine\npaths: [a.tif]\n".replace("a.tif", str(tmp_path))
        )
        sources[kind] = str(tmp_path / "own.yaml")
    found = last(sources[kind])
    assert found.ok and found.name == "pixels"


def test_of_a_folder_it_is_said_which_file_is_looked_at(tmp_path: Path) -> None:
    for name in "abc":
        write_scene(tmp_path / f"{name}.tif")
    (file,) = [finding for finding in check_source(str(tmp_path)).all if finding.name == "file"]
    assert file.ok and file.value.endswith("a.tif, the first of 3; the others are not looked at")


@pytest.mark.parametrize("place", ["paths: [a.tif]", "stac: catalog.json"])
def test_a_mask_is_read_and_told(tmp_path: Path, place: str) -> None:
    write_scene(tmp_path / "a.tif")
    write_catalog(tmp_path, [make_item("one", "../a.tif")])
    every = ", ".join(map(str, range(256)))
    (tmp_path / "own.yaml").write_text(f"kind: source\ntitle: mine\n{place}\nmask: {{band: 1, values: [{every}]}}\n")
    found = last(str(tmp_path / "own.yaml"))
    assert found.ok and found.value.endswith("0% of them valid; the mask was read and hides 100%")


@pytest.mark.parametrize("scheme", ["s3", "gs", "az"])
def test_a_catalog_in_a_bucket_is_refused_with_what_to_do(scheme: str) -> None:
    result = doctor(f"{scheme}://bucket/catalog.json")
    assert result.exit_code == 4
    assert "STAC JSON is read over http(s) and from disk only; give the https address" in " ".join(
        result.output.split()
    )
    assert "try again" not in result.output


def test_a_source_that_is_none_is_refused_like_that_of_a_run() -> None:
    with pytest.raises(ConfigError, match="did you mean earth-search-naip"):
        check_source("earth-search-nap")


def test_no_network_is_told_with_what_to_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stac_http, "BACKOFF_S", 0)
    found = last("http://no-such-host.invalid/api")
    assert (found.name, found.ok) == ("reached", False)
    assert "its host name is not known" in found.value and "DNS" in found.advice


@pytest.mark.parametrize(
    ("status", "advice"), [(401, "wants an account"), (403, "access is refused"), (404, "check the address")]
)
def test_a_status_is_told_with_what_it_means(site: Site, status: int, advice: str) -> None:
    site.faults = [(status, {})]
    found = last(f"{site.url}/api")
    assert found.name == "reached" and f"HTTP {status}" in found.value and advice in found.advice


def test_an_api_without_a_named_collection_lists_them(site: Site) -> None:
    found = last(f"{site.url}/api")
    assert found.name == "collection" and "aerial, other" in found.value


def test_an_empty_collection_is_told(site: Site) -> None:
    site.items = []
    assert last(config(site)).name == "searched"


def test_an_item_that_is_none_is_told(site: Site) -> None:
    site.items[0]["properties"] = {}
    found = last(config(site))
    assert found.name == "item" and "without a datetime" in found.value


def test_an_asset_that_does_not_fit_is_told_with_those_there_are(site: Site) -> None:
    found = last(config(site, asset="nope"))
    assert found.name == "asset" and "it has picture, thumbnail" in found.value and "asset: KEY" in found.advice


@pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince20")
def test_a_refused_signature_is_told(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    from planetary_computer.settings import Settings

    (site.folder / "account").mkdir()
    (site.folder / "account" / "container").write_text("{}")
    monkeypatch.setattr(Settings.get(), "sas_url", site.url)
    site.items = [make_item("one", "https://account.blob.core.windows.net/container/a.tif")]
    found = last(config(site, sign="planetary-computer"))
    assert found.name == "signed" and "cannot be signed by planetary-computer" in found.value


def test_a_picture_that_is_gone_is_told(site: Site) -> None:
    (site.folder / "a.tif").unlink()
    found = last(config(site))
    assert found.name == "header" and "404" in found.value and found.advice == "check the address"


@pytest.mark.parametrize(
    ("environment", "advice"),
    [
        ({}, "no AWS credentials in the environment"),
        ({"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "hunter2"}, "set AWS_REQUEST_PAYER=requester"),
    ],
)
def test_missing_credentials_of_a_bucket_whose_reader_pays_are_told(
    site: Site, environment: dict[str, str], advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_NO_SIGN_REQUEST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("AWS_REQUEST_PAYER", raising=False)
    # An address where nothing is, so that no test asks Amazon.
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_S3_ENDPOINT", "127.0.0.1:1")
    monkeypatch.setenv("AWS_HTTPS", "NO")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("GDAL_HTTP_MAX_RETRY", "0")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    site.items = [make_item("one", "s3://bucket/a.tif")]
    found = last(config(site))
    assert found.name == "header" and advice in found.advice and "hunter2" not in found.value + found.advice
