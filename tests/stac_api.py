"""A real STAC API for tests: stac-fastapi-pgstac on a PostgreSQL with PostGIS of its own, gone without a trace.

Needed are Debian's postgresql-15-postgis-3, or another version of it, and the extra `stac-server` of this project.
"""

from __future__ import annotations

import json
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from source_scenes import Item

PACKAGES = ("stac_fastapi.pgstac", "pypgstac", "psycopg", "uvicorn")
# Set where the tests must run and not be skipped.
REQUIRED = "GEODINO_REQUIRE_STAC_API"
START_S = 60.0
# In a process of its own, as pypgstac warns of much and finds its database in the environment.
_LOADING = """
import sys
from pypgstac.db import PgstacDB
from pypgstac.load import Loader, Methods
from pypgstac.migrate import Migrate
collections, items = sys.argv[1:]
with PgstacDB() as database:
    Migrate(database).run_migration()
    loader = Loader(db=database)
    loader.load_collections(collections, Methods.insert)
    loader.load_items(items, Methods.insert)
"""


@dataclass(frozen=True)
class StacApi:
    """A running server: its URL, and the environment in which programs of PostgreSQL and pgstac find its database."""

    url: str
    database: dict[str, str]

    def tell(self, statement: str) -> None:
        """Runs SQL on pgstac's database."""
        import psycopg

        with psycopg.connect(**_connection(self.database), autocommit=True) as connection:
            connection.execute(statement)

    def type_property(self, name: str, kind: str | None) -> None:
        """Tells pgstac the JSON type of a property; without one it compares numbers as text."""
        self.tell(f"delete from pgstac.queryables where name = '{name}'")
        if kind is not None:
            definition = json.dumps({"type": kind})
            self.tell(f"insert into pgstac.queryables (name, definition) values ('{name}', '{definition}')")


def missing() -> str | None:
    """What is not installed for the server, or None."""
    if _programs() is None:
        return "PostgreSQL with PostGIS is not installed (apt-get install postgresql-15-postgis-3)"
    absent = [name for name in PACKAGES if not _is_installed(name)]
    return f"the extra stac-server is not installed: {', '.join(absent)}" if absent else None


@contextmanager
def stac_api(collections: Iterable[Item], items: Iterable[Item]) -> Iterator[StacApi]:
    """A server of these collections and Items on a free port of 127.0.0.1."""
    # Not below pytest's own folders, which another user than root cannot enter.
    folder = Path(tempfile.mkdtemp(prefix="geodino-stac-"))
    try:
        with _postgres(folder) as database:
            _load(folder, database, collections, items)
            with _server(folder, database) as url:
                yield StacApi(url, database)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _is_installed(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def _programs() -> Path | None:
    """The folder of the newest PostgreSQL's programs that has PostGIS."""
    fit = [
        path
        for path in Path("/usr/lib/postgresql").glob("*/bin")
        if Path(f"/usr/share/postgresql/{path.parent.name}/extension/postgis.control").is_file()
        and (path / "initdb").is_file()
    ]
    return max(fit, key=lambda path: float(path.parent.name), default=None)


@contextmanager
def _postgres(folder: Path) -> Iterator[dict[str, str]]:
    """A cluster in the folder, under another user where this is root, for PostgreSQL refuses to run as root."""
    programs = _programs()
    assert programs is not None
    database = {
        "PGHOST": "127.0.0.1",
        "PGPORT": str(_free_port()),
        "PGUSER": "geodino",
        "PGPASSWORD": secrets.token_hex(16),
        "PGDATABASE": "stac",
    }
    (folder / "password").write_text(database["PGPASSWORD"])
    who: dict[str, object] = {}
    if os.geteuid() == 0:
        owner = pwd.getpwnam("postgres")
        who = {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []}
        for path in (folder, folder / "password"):
            os.chown(path, owner.pw_uid, owner.pw_gid)
    cluster = folder / "cluster"
    made = ["--username=geodino", f"--pwfile={folder / 'password'}", "--auth=scram-sha-256", "--no-sync"]
    subprocess.run(
        [programs / "initdb", "-D", cluster, "-E", "UTF8", "--locale=C", *made],
        check=True, capture_output=True, cwd=folder, **who,  # type: ignore[call-overload]
    )  # fmt: skip
    settings = {
        "listen_addresses": "127.0.0.1",
        "port": database["PGPORT"],
        "unix_socket_directories": "",
    } | dict.fromkeys(("fsync", "full_page_writes", "synchronous_commit"), "off")
    words = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
    with _running([programs / "postgres", "-D", cluster, *words], folder, signal.SIGINT, **who) as postgres:
        _create_database(database, postgres)
        yield database


def _create_database(database: dict[str, str], postgres: subprocess.Popen[bytes]) -> None:
    import psycopg

    deadline = time.monotonic() + START_S
    while True:
        try:
            with psycopg.connect(**_connection(database) | {"dbname": "postgres"}, autocommit=True) as connection:
                connection.execute("create database stac")
            return
        except psycopg.OperationalError:
            if postgres.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def _load(folder: Path, database: dict[str, str], collections: Iterable[Item], items: Iterable[Item]) -> None:
    """Fills pgstac, and lets it count what a search matches."""
    loads = {"collections": collections, "items": items}
    for kind, contents in loads.items():
        (folder / f"{kind}.ndjson").write_text("".join(f"{json.dumps(content)}\n" for content in contents))
    subprocess.run(
        [sys.executable, "-c", _LOADING, *(str(folder / f"{kind}.ndjson") for kind in loads)],
        check=True, env=os.environ | database, timeout=START_S, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    StacApi("", database).tell(
        "insert into pgstac.pgstac_settings (name, value) values ('context', 'on') "
        "on conflict (name) do update set value = 'on'"
    )


@contextmanager
def _server(folder: Path, database: dict[str, str]) -> Iterator[str]:
    port = _free_port()
    words = ["--factory", "stac_fastapi.pgstac.app:create_app", "--host", "127.0.0.1", "--port", str(port)]
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "uvicorn", *words, "--log-level", "warning"]
    with _running(command, folder, signal.SIGTERM, env=os.environ | database) as server:
        deadline = time.monotonic() + START_S
        while not _answers(f"{url}/_mgmt/ping"):
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the STAC API did not start: {(folder / 'log').read_text()}")
            time.sleep(0.05)
        yield url


@contextmanager
def _running(
    command: list[object], folder: Path, ends_by: signal.Signals, **more: object
) -> Iterator[subprocess.Popen[bytes]]:
    """A program while it is needed; what it says goes into the folder's log."""
    with (folder / "log").open("ab") as log:
        program = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, **more)  # type: ignore[call-overload]
    try:
        yield program
    finally:
        program.send_signal(ends_by)
        try:
            program.wait(20)
        except subprocess.TimeoutExpired:
            program.kill()
            program.wait()


def _answers(url: str) -> bool:
    try:
        with urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except (URLError, OSError):
        return False


def _connection(database: dict[str, str]) -> dict[str, str]:
    names = {"PGHOST": "host", "PGPORT": "port", "PGUSER": "user", "PGPASSWORD": "password", "PGDATABASE": "dbname"}
    found = {names[key]: value for key, value in database.items()}
    return found | {"options": "-c search_path=pgstac,public"}


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])
