"""Objects in a folder and in a bucket of a real S3 server: the same laws for both."""

from __future__ import annotations

import pickle
import secrets
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from bucket_server import BucketServer, as_environment, bucket_server

from geodino import stores
from geodino.buckets import Tries
from geodino.errors import ConfigError, OutputError
from geodino.stores import Store


@pytest.fixture(scope="module")
def server() -> Iterator[BucketServer]:
    with bucket_server() as server, as_environment(server):
        server.make_bucket("forest")
        yield server


@pytest.fixture(params=["folder", "file", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path, server: BucketServer) -> Store:
    urls = {
        "folder": str(tmp_path / "a store"),
        "file": f"file://{tmp_path}/a%20store",
        "s3": f"s3://forest/a store/{secrets.token_hex(4)}",
    }
    return Store(urls[request.param])


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "PATIENT", Tries(retries=3, first_delay_s=0.01, most_delay_s=0.02))


def keys(store: Store, prefix: str = "") -> set[str]:
    return {entry.key for entry in store.entries(prefix)}


def test_what_is_put_is_got_and_what_is_not_there_is_none(store: Store) -> None:
    assert store.get("a") is None and store.entry("a") is None and not keys(store) and not store.entries_in()
    store.delete("a")
    store.clear()
    store.put("a", b"first")
    store.put("deep/er/b c+%20ä#1", b"")
    store.put("a", b"second")
    assert store.get("a") == b"second" and store.get("deep/er/b c+%20ä#1") == b""
    assert store.get("deep") is None and store.entry("deep/er") is None and store.get("a/below") is None
    assert keys(store) == {"a", "deep/er/b c+%20ä#1"} and keys(store, "deep/") == {"deep/er/b c+%20ä#1"}
    assert [entry.key for entry in store.entries_in()] == ["a"] and store.entries_in("deep/") == []
    assert store.below("deep/er").get("b c+%20ä#1") == b""
    store.delete("a")
    assert store.get("a") is None


def test_a_store_that_is_only_asked_is_not_made(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "new"))
    assert store.get("a") is None and not keys(store) and not store.entries_in()
    store.delete("a")
    store.clear()
    assert not (tmp_path / "new").exists()


def test_a_new_version_is_told_by_its_entry(store: Store) -> None:
    store.put("a", b"1")
    before = store.entry("a")
    store.put("a", b"2")
    after = store.entry("a")
    assert before is not None and after is not None and before.version != after.version
    assert after == next(store.entries()) == store.entries_in()[0] and after.size == 1


def test_of_many_who_create_one_wins_and_its_bytes_stay(store: Store) -> None:
    with ThreadPoolExecutor(8) as threads:
        won = [*threads.map(lambda who: store.create("lease", b"%d" % who), range(24))]
    assert won.count(True) == 1
    assert store.get("lease") == b"%d" % won.index(True)
    assert keys(store) == {"lease"}
    store.delete("lease")
    assert store.create("lease", b"again")


CREATE = """
import sys
from geodino.stores import Store
store = Store(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
print(sum(store.create(f"{number:03}", sys.argv[2].encode()) for number in range(40)), flush=True)
"""


def test_of_two_processes_that_create_each_object_has_one_maker(store: Store, server: BucketServer) -> None:
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", CREATE, store.url, who],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=server.environment(),
        )
        for who in "ab"
    ]  # fmt: skip
    for run in runs:
        assert run.stdout is not None and run.stdout.readline() == "ready\n"
    for run in runs:
        assert run.stdin is not None
        run.stdin.write("\n")
        run.stdin.flush()
    made = [int(run.communicate(timeout=60)[0]) for run in runs]
    assert sum(made) == 40
    held = [store.get(f"{number:03}") for number in range(40)]
    assert [held.count(b"a"), held.count(b"b")] == made


def test_a_file_larger_than_a_piece_goes_there_and_back(store: Store, tmp_path: Path) -> None:
    content = secrets.token_bytes(17 * 2**20 + 5)
    (tmp_path / "big").write_bytes(content)
    (tmp_path / "empty").touch()
    for name in ("big", "empty"):
        store.upload(f"files/{name}", tmp_path / name)
        assert store.download(f"files/{name}", tmp_path / "back" / name)
        assert (tmp_path / "back" / name).read_bytes() == (tmp_path / name).read_bytes()
    entry = store.entry("files/big")
    assert entry is not None and entry.size == len(content)
    assert not store.download("files/none", tmp_path / "back" / "none")
    assert {path.name for path in (tmp_path / "back").iterdir()} == {"big", "empty"}


UPLOAD = """
import sys, resource
from pathlib import Path
from geodino.stores import Store
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
store = Store(sys.argv[1])
store.upload("big", Path(sys.argv[2]))
store.download("big", Path(sys.argv[2] + ".back"))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is counted in other units elsewhere")
def test_files_travel_in_pieces_and_not_in_memory(server: BucketServer, tmp_path: Path) -> None:
    with (tmp_path / "big").open("wb") as file:
        file.truncate(300 * 2**20)
    program = [sys.executable, "-c", UPLOAD, "s3://forest/memory", str(tmp_path / "big")]
    done = subprocess.run(program, check=True, capture_output=True, text=True, env=server.environment())
    assert float(done.stdout) < 150
    assert (tmp_path / "big.back").stat().st_size == 300 * 2**20
    Store("s3://forest/memory").clear()


def test_clearing_removes_all_of_a_store_and_nothing_beside_it(store: Store) -> None:
    beside = Store(f"{store.url}-beside")
    beside.put("a", b"stays")
    for number in range(30):
        store.put(f"{number % 3}/{number}", b"goes")
    store.clear()
    assert not keys(store) and beside.get("a") == b"stays"
    assert store.folder is None or not store.folder.exists()


def test_a_store_is_a_value_that_other_processes_may_be_sent(store: Store) -> None:
    store.put("a", b"1")
    assert pickle.loads(pickle.dumps(store)) == store and pickle.loads(pickle.dumps(store)).get("a") == b"1"


@pytest.mark.parametrize("key", ["", "/a", "a/", "a//b", "..", "a/../b", ".", "./a", "a\\b", "a\n", "a/.."])
def test_a_key_that_leads_elsewhere_is_refused(store: Store, key: str) -> None:
    for ask in (store.get, store.delete, store.below, store.entry):
        with pytest.raises(ValueError, match="is no key"):
            ask(key)
    with pytest.raises(ValueError, match="is no key"):
        store.create(key, b"")


def test_other_schemes_are_refused_with_what_would_do() -> None:
    with pytest.raises(ConfigError, match=r"https://example.org/out cannot be written to: give a folder, or .*s3://"):
        Store("https://example.org/out")
    with pytest.raises(ConfigError, match="names no bucket; it looks like s3://bucket/folder"):
        Store("s3:///out")
    with pytest.raises(ConfigError, match="s3:/forest/out lacks a slash after its colon: give a URL as text"):
        Store(str(Path("s3://forest/out")))
    for url in ("s3://forest/../out", "s3://forest/a/%2e%2e/out"):
        with pytest.raises(ConfigError, match=r"has \. or \.\. in it"):
            Store(url)


def test_names_and_passwords_are_not_said() -> None:
    assert str(Store("s3://me:secret@forest/out")) == "s3://forest/out"


def test_a_server_that_is_busy_is_asked_again(server: BucketServer, hasty: None) -> None:
    store = Store("s3://forest/busy")
    for pattern in ("PUT /forest/busy/a", "GET /forest/busy/a"):
        server.refuse(pattern, 503, times=2)
    store.put("a", b"1")
    assert store.get("a") == b"1"
    server.refuse("GET /forest/busy/a", 503)
    with pytest.raises(OutputError, match=r"s3://forest/busy/a: .*after 3 retries.*503"):
        store.get("a")
    server.allow_all()


def test_what_a_bucket_refuses_says_what_to_do(server: BucketServer, hasty: None, tmp_path: Path) -> None:
    store = Store("s3://forest/refused")
    server.refuse("PUT /forest/refused", 403)
    asked = len(server.asked)
    with pytest.raises(OutputError, match=r"s3://forest/refused/a: access is refused .*give the credentials the right"):
        store.put("a", b"1")
    assert len(server.asked) - asked == 1
    server.allow_all()
    with pytest.raises(OutputError, match=r"s3://gone/a/b: there is no such bucket: make it, or check its name"):
        Store("s3://gone/a").put("b", b"1")
    for ask in (Store("s3://gone/a").reach, Store("s3://gone/a").entries_in):
        with pytest.raises(OutputError, match=r"s3://gone/a: there is no such bucket"):
            ask()


def test_a_server_that_is_not_there_is_said_at_once(server: BucketServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(OutputError, match=r"the server does not answer .*check the network.*AWS_ENDPOINT_URL"):
        Store("s3://forest/a").reach()


def test_an_upload_that_is_refused_half_way_leaves_no_object(server: BucketServer, hasty: None, tmp_path: Path) -> None:
    store = Store("s3://forest/half")
    store.put("a", b"old")
    (tmp_path / "a").write_bytes(bytes(20 * 2**20))
    server.refuse(r"PUT /forest/half/a\?.*partNumber=2", 500)
    with pytest.raises(OutputError, match=r"s3://forest/half/a: .*500"):
        store.upload("a", tmp_path / "a")
    server.allow_all()
    assert store.get("a") == b"old" and keys(store) == {"a"}
    assert server.unfinished_uploads("forest") == []


def test_a_full_disk_leaves_the_old_object_and_no_other(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    store = Store(str(tmp_path / "store"))
    store.put("a", b"old")
    (tmp_path / "large").write_bytes(bytes(5000))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        for write in (
            lambda: store.put("a", bytes(5000)),
            lambda: store.create("b", bytes(5000)),
            lambda: store.upload("a", tmp_path / "large"),
        ):
            with pytest.raises(OutputError, match=r"store/[ab]: File too large"):
                write()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["a"] and store.get("a") == b"old"


def test_a_folder_in_the_way_is_an_error_of_the_output(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"file/b/a: Not a directory"):
        Store(str(tmp_path / "file")).below("b").put("a", b"1")
    with pytest.raises(OutputError, match="Is a directory"):
        Store(str(tmp_path.parent)).put(tmp_path.name, b"1")
