"""Search of STAC APIs: what is asked, paging, faults of servers, and what they send that must not be trusted."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import shapely
from shapely.geometry import shape
from source_scenes import Item, area_of_interest, configured, ids, make_item, write_scene
from stac_site import CORE, Asked, Site, serving

from geodino.aoi import AOI
from geodino.errors import ConfigError, ReadError, SourceError
from geodino.sources import Search, find_scenes, stac_http
from geodino.sources.stac import stac_items


@pytest.fixture(scope="module")
def aoi() -> AOI:
    return area_of_interest()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with serving(tmp_path) as served:
        yield served


@pytest.mark.parametrize("post", [True, False])
def test_an_api_is_paged_to_the_end_and_sifted_here(
    site: Site, aoi: AOI, post: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.post = post
    for number in range(5):
        write_scene(site.folder / f"{number}.tif", seed=number)
        when = f"20{18 + number}-01-01T00:00:00Z"
        site.items.append(make_item(f"s{number}", f"{site.url}/{number}.tif", datetime=when))
    # This server knows neither datetime nor cloud cover, as some do not.
    site.items.append(make_item("cloudy", f"{site.url}/0.tif", **{"eo:cloud_cover": 90}))
    source = configured(monkeypatch, stac=f"{site.url}/api", collections=["aerial"])
    found = find_scenes([source], aoi=aoi, search=Search(datetime="2019/..", max_cloud=20))
    assert ids(found.scenes) == ["s4", "s3", "s2", "s1"]
    left_out = "1 outside of 2019/.. (s0)"
    assert sorted(found.dropped) == [left_out, "1 over 20 % cloud (cloudy)"]
    # It was not asked for cloud, so that it sends clouds is no fault.
    assert found.warnings == (
        f"{site.url}/api ignores a part of the search and sent Items that nobody asked for; left out: {left_out}",
    )
    assert not {"query", "filter", "sortby"} & set(site.searches[0])
    assert len(site.searches) == 3
    asked = site.searches[0]["collections"]
    assert asked == (["aerial"] if post else "aerial")


@pytest.mark.parametrize(
    ("datetime", "asked"),
    [
        ("2020-06-01 10:00/2020-06-01 14:00+02:00", "2020-06-01T10:00:00Z/2020-06-01T12:00:00Z"),
        ("2020-06-01 10:00", "2020-06-01T10:00:00Z/2020-06-01T10:00:00Z"),
        ("2020", "2020-01-01T00:00:00Z/2020-12-31T23:59:59.999999Z"),
        ("2020-06/..", "2020-06-01T00:00:00Z/.."),
        ("../2020-02", "../2020-02-29T23:59:59.999999Z"),
        ("../..", None),
        (None, None),
    ],
)
def test_an_api_is_asked_for_time_as_the_standard_has_it(
    site: Site, aoi: AOI, datetime: str | None, asked: str | None
) -> None:
    find_scenes([f"{site.url}/api"], aoi=aoi, search=Search(datetime=datetime, collections=("aerial",)))
    assert site.searches[0].get("datetime") == asked


def test_an_api_needs_collections_and_either_way_to_name_them_works(site: Site, aoi: AOI, tmp_path: Path) -> None:
    api, own = f"{site.url}/api", tmp_path / "own.yaml"
    write_scene(site.folder / "a.tif")
    site.items.append(make_item("one", f"{site.url}/a.tif"))
    with pytest.raises(ConfigError, match=r"with --collection NAME or in a YAML file .*collections: \[NAME\]"):
        find_scenes([api], aoi=aoi, search=Search())
    own.write_text(f"kind: source\ntitle: mine\nstac: {api}\ncollections: [aerial]\n")
    assert ids(find_scenes([str(own)], aoi=aoi, search=Search()).scenes) == ["one"]
    assert ids(find_scenes([api], aoi=aoi, search=Search(collections=("aerial",))).scenes) == ["one"]
    # This server does not look at collections, as some do not.
    found = find_scenes([str(own)], aoi=aoi, search=Search(collections=("other", "more")))
    assert site.searches[-1]["collections"] == ["other", "more"]
    assert not found.scenes and found.dropped == ("1 of another collection than other, more (one)",)


@pytest.mark.parametrize(
    "page", [[], ["x"], {}, {"code": 500}, {"features": ["x"]}, {"features": [None]}, {"features": 3}, "x", 3]
)
def test_a_page_that_is_none_is_a_read_error_that_names_the_server(site: Site, aoi: AOI, page: object) -> None:
    site.pages = lambda asked: page
    with pytest.raises(
        ReadError, match=f"{site.url}/api cannot be searched: .*sends no list of Items|holds no JSON object"
    ):
        find_scenes([f"{site.url}/api"], aoi=aoi, search=Search(collections=("aerial",)))


@pytest.mark.parametrize("changes", [{"id": "left out"}, {"type": "left out"}, {"stac_version": "0.5.0"}])
def test_an_api_is_searched_whatever_else_its_root_gets_wrong(site: Site, aoi: AOI, changes: dict[str, object]) -> None:
    write_scene(site.folder / "a.tif")
    site.items.append(make_item("one", f"{site.url}/a.tif"))
    site.root_changes = changes
    found = find_scenes([f"{site.url}/api"], aoi=aoi, search=Search(collections=("aerial",)))
    assert ids(found.scenes) == ["one"] and not found.warnings


@pytest.mark.parametrize("conforms", [None, [], [CORE], "item-search"])
def test_an_api_that_promises_no_search_is_asked_with_a_warning(site: Site, aoi: AOI, conforms: object) -> None:
    write_scene(site.folder / "a.tif")
    site.items.append(make_item("one", f"{site.url}/a.tif"))
    site.root_changes = {"conformsTo": conforms}
    found = find_scenes([f"{site.url}/api"], aoi=aoi, search=Search(collections=("aerial",)))
    assert ids(found.scenes) == ["one"]
    (warning,) = found.warnings
    assert warning.startswith(f"{site.url}/api does not promise a search of Items (conformsTo)")


def test_an_api_that_names_no_search_is_a_read_error(site: Site, aoi: AOI) -> None:
    site.root_changes = {"links": []}
    with pytest.raises(ReadError, match="it names no search"):
        find_scenes([f"{site.url}/api"], aoi=aoi, search=Search(collections=("aerial",)))


def test_an_item_with_an_unknown_geometry_does_not_end_the_search(site: Site, aoi: AOI) -> None:
    write_scene(site.folder / "a.tif")
    bad = make_item("bad", f"{site.url}/a.tif") | {"geometry": {"type": "Foo", "coordinates": []}}
    site.items = [make_item("good", f"{site.url}/a.tif")]
    site.pages = lambda asked: {"type": "FeatureCollection", "features": [bad, *site.items], "links": []}
    found = find_scenes([f"{site.url}/api"], aoi=aoi, search=Search(collections=("aerial",)))
    assert ids(found.scenes) == ["good"] and found.dropped == ("1 not a valid Item (bad)",)


def _pages_of(count: int, page_size: int) -> Callable[[Asked], object]:
    """Answers with pages of plain Items, their links as the standard has them."""
    plain = make_item("plain", "a.tif")

    def answer(asked: Asked) -> object:
        start = int(str(asked.get("token", 0)))
        stop = min(start + page_size, count)
        link = {"rel": "next", "href": "./search", "method": "POST", "merge": True, "body": {"token": stop}}
        items = [plain | {"id": f"i{number}"} for number in range(start, stop)]
        return {"features": items, "links": [link] if stop < count else []}

    return answer


def _names(site: Site) -> list[str]:
    found = stac_items(f"{site.url}/api", area_of_interest().lonlat, Search(collections=("aerial",)))
    return [str(content["id"]) for _, content in found.items]


def test_thousands_of_items_come_page_by_page(site: Site) -> None:
    site.pages = _pages_of(5100, 250)
    assert _names(site) == [f"i{number}" for number in range(5100)]
    assert len(site.searches) == 21
    # `merge` adds the token to the first question, which is kept.
    assert site.searches[-1] == site.searches[0] | {"token": 5000}


def test_a_next_page_that_is_the_same_page_ends_with_an_error(site: Site) -> None:
    page = {"features": [make_item("one", "a.tif")], "links": [{"rel": "next", "href": "./search?page=1"}]}
    site.pages = lambda asked: page
    with pytest.raises(ReadError, match=r"cannot be searched: its pages go in a circle, after 1 Items on 2 pages"):
        _names(site)
    assert len(site.searches) == 2


@pytest.mark.parametrize("features", [[], [make_item("one", "a.tif")]])
def test_pages_that_never_bring_anything_new_end_with_an_error(site: Site, features: list[Item]) -> None:
    def answer(asked: Asked) -> object:
        link = {"rel": "next", "href": f"./search?token={len(site.searches)}"}
        return {"features": features, "links": [link]}

    site.pages = answer
    with pytest.raises(ReadError, match="its pages go in a circle"):
        _names(site)
    assert len(site.searches) <= 5


def test_an_empty_page_in_between_does_not_end_the_search(site: Site) -> None:
    def answer(asked: Asked) -> object:
        number = int(str(asked.get("token", 0)))
        items = [] if number == 1 else [make_item(f"i{number}", "a.tif")]
        return {"features": items, "links": [{"rel": "next", "href": f"./search?token={number + 1}"}][number // 2 :]}

    site.pages = answer
    assert _names(site) == ["i0", "i2"]


@pytest.mark.parametrize("key", ["numberMatched", "context"])
def test_items_that_were_counted_and_never_sent_are_told(site: Site, aoi: AOI, key: str) -> None:
    write_scene(site.folder / "a.tif")
    count: object = 9 if key == "numberMatched" else {"matched": 9, "returned": 1}
    site.pages = lambda asked: {"features": [make_item("one", f"{site.url}/a.tif")], "links": [], key: count}
    found = find_scenes([f"{site.url}/api"], aoi=aoi, search=Search(collections=("aerial",)))
    assert ids(found.scenes) == ["one"]
    assert found.warnings == (f"{site.url}/api counts 9 Items but sent 1: imagery may be missing; try again",)


def test_an_item_on_two_pages_counts_once_and_is_told_where_nothing_proves_that_none_is_lost(
    site: Site, aoi: AOI
) -> None:
    write_scene(site.folder / "a.tif")
    write_scene(site.folder / "b.tif", seed=1)
    one, two = (make_item(name, f"{site.url}/{name}.tif") for name in "ab")

    def answer(asked: Asked) -> object:
        counted = {} if site.matched is None else {"numberMatched": site.matched}
        if "token" in asked:
            return {"features": [one, two], "links": [], **counted}
        return {"features": [one], "links": [{"rel": "next", "href": "./search?token=2"}], **counted}

    site.pages = answer
    found = find_scenes([f"{site.url}/api"], aoi=aoi, search=Search(collections=("aerial",)))
    assert ids(found.scenes) == ["a", "b"]
    assert found.warnings == (
        f"{site.url}/api sent 1 Items twice: its pages shift, and imagery may be missing; try again",
    )
    site.matched = 2
    assert not find_scenes([f"{site.url}/api"], aoi=aoi, search=Search(collections=("aerial",))).warnings


@pytest.mark.parametrize("post", [True, False])
def test_a_busy_server_is_asked_again_after_the_time_it_states(site: Site, post: bool) -> None:
    site.post, site.items = post, [make_item("one", "a.tif")]
    site.faults = [(429, {"Retry-After": "1"}), (503, {})]
    begun = time.monotonic()
    assert _names(site) == ["one"]
    assert 1 <= time.monotonic() - begun < 20
    # And in the middle of a search, where urllib3 alone repeats no POST.
    site.pages = lambda asked: site.faults.append((503, {})) or _pages_of(2, 1)(asked)
    site.faults = []
    site.post = True
    assert _names(site) == ["i0", "i1"]


def test_nobody_waits_for_hours(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("urllib3.util.retry.time.sleep", slept.append)
    site.faults = [(429, {"Retry-After": "86400"})]
    site.items = [make_item("one", "a.tif")]
    assert _names(site) == ["one"] and slept == [stac_http.MOST_WAIT_S]


def test_a_server_that_stays_busy_ends_with_its_status(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stac_http, "BACKOFF_S", 0)
    site.faults = [(503, {})] * 20
    with pytest.raises(ReadError, match=r"HTTP 503 Service Unavailable$"):
        _names(site)
    assert len(site.asked) == stac_http.RETRIES + 1


def test_a_server_that_hangs_ends_with_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stac_http, "TIMEOUT_S", 0.1)
    monkeypatch.setattr(stac_http, "RETRIES", 1)
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}/api"
        with pytest.raises(ReadError, match=f"^{url} cannot be read: it stopped answering$"):
            stac_items(url, area_of_interest().lonlat, Search())


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://no-such-host.invalid/api", "its host name is not known"),
        ("http://127.0.0.1:1/api", "no server is there, or the network refuses"),
    ],
)
def test_a_server_that_is_not_there_is_said_in_plain_words(
    url: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stac_http, "BACKOFF_S", 0)
    with pytest.raises(ReadError, match=f"^{url} cannot be read: {said}$"):
        stac_items(url, area_of_interest().lonlat, Search())


def test_a_collection_that_the_api_does_not_have_is_refused_with_the_nearest(site: Site, aoi: AOI) -> None:
    site.collections = {"aerial": {"id": "aerial"}, "satellite": {"id": "satellite"}}
    with pytest.raises(ConfigError, match="/api has no collection arial; did you mean aerial"):
        find_scenes([f"{site.url}/api"], aoi=aoi, search=Search(collections=("arial",)))
    assert not find_scenes([f"{site.url}/api"], aoi=aoi, search=Search(collections=("aerial",))).scenes


def test_a_long_outline_in_a_url_is_asked_for_by_its_box(site: Site) -> None:
    site.post = False
    around = shapely.Point(15.0005, 45.153).buffer(0.001, quad_segs=60)
    stac_items(f"{site.url}/api", around, Search(collections=("aerial",)))
    box = [float(part) for part in str(site.searches[0]["bbox"]).split(",")]
    assert box == list(around.bounds) and "intersects" not in site.searches[0]
    site.post = True
    stac_items(f"{site.url}/api", around, Search(collections=("aerial",)))
    assert shape(site.searches[1]["intersects"]).equals(around)


@pytest.mark.parametrize("href", ["file:///etc/hostname", "/vsicurl/http://127.0.0.1/x", "ftp://127.0.0.1/x"])
def test_a_next_page_leads_nowhere_but_to_the_web(site: Site, href: str) -> None:
    site.pages = lambda asked: {"features": [make_item("one", "a.tif")], "links": [{"rel": "next", "href": href}]}
    with pytest.raises((ReadError, SourceError), match=r"local file|scheme ftp is not read"):
        _names(site)


@pytest.mark.parametrize(
    ("href", "said"),
    [
        ("https://127.0.0.1/a/../../b.tif", r"asset picture has \.\. in its URL or path"),
        ("s3://mine/%2e%2e/yours/a.tif", r"has \.\. in its URL or path"),
        ("ftp://127.0.0.1/a.tif", "scheme ftp is not read"),
        ("WMS:http://127.0.0.1/a", "scheme wms is not read"),
        ("/vsizip//tmp/a.zip/a.tif", "points to the local file"),
        ("file:///etc/a.tif", "points to the local file"),
    ],
)
def test_an_asset_leads_where_it_says_and_to_no_other_scheme(site: Site, aoi: AOI, href: str, said: str) -> None:
    site.items = [make_item("one", href)]
    with pytest.raises(SourceError, match=said):
        find_scenes([f"{site.url}/api"], aoi=aoi, search=Search(collections=("aerial",)))


def test_an_odd_asset_beside_the_picture_does_no_harm(site: Site, aoi: AOI) -> None:
    write_scene(site.folder / "a.tif")
    item = make_item("one", f"{site.url}/a.tif")
    item["assets"]["other"] = {"href": "ftp://127.0.0.1/../b"}  # type: ignore[index]
    site.items = [item]
    assert ids(find_scenes([f"{site.url}/api"], aoi=aoi, search=Search(collections=("aerial",))).scenes) == ["one"]


@pytest.mark.parametrize("where", ["id", "href", "key"])
def test_control_characters_from_a_server_reach_no_terminal(
    site: Site, aoi: AOI, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    write_scene(site.folder / "a.tif")
    evil = "x\x1b[2J\n"
    item = make_item(evil if where == "id" else "one", f"{site.url}/a.tif" + (evil if where == "href" else ""))
    if where == "key":
        item["assets"][evil] = {"href": "b.png"}  # type: ignore[index]
    site.items = [item]
    found = find_scenes([f"{site.url}/api"], aoi=aoi, search=Search(collections=("aerial",)))
    assert not found.scenes and "1 not a valid Item" in found.dropped[0]
    assert "\x1b" not in found.dropped[0] + caplog.text


def test_ids_with_slashes_and_dots_are_names_and_no_paths(site: Site, aoi: AOI) -> None:
    write_scene(site.folder / "a.tif")
    site.items = [make_item("../../etc/passwd", f"{site.url}/a.tif")]
    site.collections = {"aerial": {"id": "aerial"}}
    (scene,) = find_scenes([f"{site.url}/api"], aoi=aoi, search=Search(collections=("aerial",))).scenes
    assert scene.id == "../../etc/passwd"
    site.items = []
    with pytest.raises(ConfigError, match="has no collection"):
        find_scenes([f"{site.url}/api"], aoi=aoi, search=Search(collections=("../secret",)))
    assert "/api/collections/..%2Fsecret" in site.asked


def test_secrets_of_an_api_are_in_no_message_log_or_summary(
    site: Site, aoi: AOI, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    write_scene(site.folder / "a.tif")
    item = make_item("one", f"{site.url}/a.tif?sig=SECRET")
    item["links"] = [{"rel": "self", "href": f"{site.url}/item?key=SECRET"}]
    site.items = [item]
    site.matched = 5
    api = f"{site.url.replace('://', '://me:SECRET@')}/api?key=SECRET"
    found = find_scenes([api], aoi=aoi, search=Search(collections=("aerial",)))
    told = json.dumps([scene.summary() for scene in found.scenes]) + "".join(found.warnings + found.dropped)
    assert found.scenes and found.warnings
    site.pages = lambda asked: {"description": "SECRET"}
    with pytest.raises(ReadError) as caught:
        find_scenes([api], aoi=aoi, search=Search(collections=("aerial",)))
    assert "SECRET" not in told + caplog.text + str(caught.value)
