"""What the Hub answers becomes a reason and a command; what it gives is loaded like any folder.

The Hub here is a local server that answers as huggingface.co does; each check runs in its own process, because
huggingface_hub reads its environment once, when it is imported.
"""

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from tiny_models import canopy_network, save

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CHMV2 = "facebook/dinov3-vitl16-chmv2-dpt-head"


class Hub(BaseHTTPRequestHandler):
    """One open repository, one that is gated, one that is gone, one that never answers."""

    folder: Path

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        if self.path.startswith("/slow/"):
            time.sleep(8)
        elif self.path.startswith("/open/tiny/resolve/"):
            self.give_file(self.folder / self.path.rpartition("/")[2])
        elif self.path.startswith("/api/models/open/tiny/revision/"):
            names = sorted(path.name for path in self.folder.iterdir())
            found = {"id": "open/tiny", "sha": COMMIT, "siblings": [{"rfilename": name} for name in names]}
            self.give(json.dumps(found).encode(), {"Content-Type": "application/json"})
        elif self.path.startswith("/api/models/open/tiny/tree/"):
            found = [
                {"type": "file", "path": p.name, "size": p.stat().st_size, "oid": etag(p)}
                for p in self.folder.iterdir()
            ]
            self.give(json.dumps(found).encode(), {"Content-Type": "application/json"})
        elif CHMV2 in self.path:
            known = "Authorization" in self.headers
            self.refuse(403 if known else 401, "GatedRepo", "Access to this model is restricted")
        else:
            self.refuse(404, "RepoNotFound", "Repository not found")

    def give_file(self, path: Path) -> None:
        if path.is_file():
            self.give(path.read_bytes(), {"ETag": f'"{etag(path)}"', "X-Repo-Commit": COMMIT})
        else:
            self.refuse(404, "EntryNotFound", "Entry not found")

    def give(self, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(200)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def refuse(self, status: int, code: str, message: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", message)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


def etag(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = save(canopy_network(), tmp_path_factory.mktemp("hub") / "tiny")
    (folder / "pytorch_model.bin").write_bytes(b"never to be downloaded")
    handler = type("Handler", (Hub,), {"folder": folder})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def ask(code: str, home: Path, **environment: str) -> str:
    """What a fresh process prints that sees the Hub only as the environment says."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    found = subprocess.run(
        [sys.executable, "-c", code],
        env=clean | {"HF_HOME": str(home), "PYTHONPATH": str(Path(__file__).parents[1])} | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    return found.stdout


ACCESS = """
from geodino.models.hub import access, hub_access
from geodino.models.catalog import row
for found in (access(row("chmv2")), hub_access("gone/model"), hub_access("open/tiny")):
    print(found.status, found.sentence, found.command, sep=" | ")
"""


def test_each_answer_of_the_hub_has_its_reason_and_command(hub: str, tmp_path: Path) -> None:
    gated, gone, here = ask(ACCESS, tmp_path, HF_ENDPOINT=hub).splitlines()
    assert gated.startswith(f"no token | {CHMV2} is gated and no Hugging Face token was found | ")
    assert gated.endswith(f"accept the licence at {hub}/{CHMV2}, then run: hf auth login")
    assert gone.startswith("not found | gone/model is not on the Hugging Face Hub")
    assert here.startswith("downloadable | open/tiny may be downloaded")


def test_with_a_token_the_licence_is_what_is_missing(hub: str, tmp_path: Path) -> None:
    gated, *_ = ask(ACCESS, tmp_path, HF_ENDPOINT=hub, HF_TOKEN="hf_made_up").splitlines()
    assert gated.startswith("licence not accepted | ") and "has no access to it" in gated


AUTO = """
import sys, time
from geodino.models import auto_model
start = time.monotonic()
print(*auto_model(), sep=" | ")
print(time.monotonic() - start < 8, "torch" in sys.modules)
"""


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "cannot be reached. For chmv2: check the network"),
        (
            {"HF_HUB_OFFLINE": "1"},
            "HF_HUB_OFFLINE forbids to download it. For chmv2: where there is a network, run: hf",
        ),
    ],
)
def test_without_a_network_auto_is_nano_at_once_and_says_why(
    environment: dict[str, str], reason: str, tmp_path: Path
) -> None:
    auto, limits = ask(AUTO, tmp_path, **environment).splitlines()
    assert auto.startswith("nano | model nano, a small demonstration model") and reason in auto
    assert limits == "True False", "slow, or it loaded torch to find out"


def test_a_hub_that_never_answers_is_given_up_in_seconds(hub: str, tmp_path: Path) -> None:
    code = """
import time
from geodino.models.hub import hub_access
start = time.monotonic()
print(hub_access("slow/model").status, time.monotonic() - start < 7)
"""
    assert ask(code, tmp_path, HF_ENDPOINT=hub) == "no network True\n"


def test_a_repository_is_downloaded_once_without_its_pickles(hub: str, tmp_path: Path) -> None:
    code = """
from geodino.models import load_model
model = load_model("open/tiny", device="cpu")
print(model.name, model.weights_sha256)
"""
    first = ask(code, tmp_path, HF_ENDPOINT=hub)
    assert first.startswith("open/tiny ")
    assert not list(tmp_path.rglob("*.bin"))
    assert ask(code, tmp_path, HF_ENDPOINT="http://127.0.0.1:9") == first, "the cache was not asked first"


def test_a_name_asked_for_is_never_replaced(tmp_path: Path) -> None:
    code = """
from geodino.errors import ModelError
from geodino.models import load_model
for name in ("chmv2", "sat-vitl16", "org/model", "not--a..name/x"):
    try:
        print(load_model(name).name)
    except ModelError as error:
        print(error)
"""
    refused = ask(code, tmp_path, HF_HUB_OFFLINE="1").splitlines()
    assert [line.split(" is ")[0] for line in refused] == [
        CHMV2,
        "sat-vitl16",
        "org/model",
        "not--a..name/x",
    ]


def test_facts_of_a_repository_cost_no_weights(hub: str, tmp_path: Path) -> None:
    code = """
import os
from pathlib import Path
from geodino.models import facts_of, is_at_hand, load_model
def state():
    print(is_at_hand("open/tiny"), any(Path(os.environ["HF_HOME"]).rglob("*.safetensors")))
facts = facts_of("open/tiny")
print(facts.name, facts.hub_id, facts.tiling.size, facts.gsd_m)
state()
load_model("open/tiny", device="cpu")
state()
"""
    facts, before, after = ask(code, tmp_path, HF_ENDPOINT=hub).splitlines()
    assert facts == "open/tiny open/tiny 128 None"
    assert (before, after) == ("False False", "True True")
    code = "from geodino.models import facts_of, is_at_hand; print(is_at_hand('open/tiny'), facts_of('open/tiny').name)"
    unplugged = ask(code, tmp_path, HF_ENDPOINT="http://127.0.0.1:9")
    assert unplugged == "True open/tiny\n"


FACTS = """
from geodino.errors import ModelError
from geodino.models import facts_of, is_at_hand
for name in ("chmv2", "facebook/dinov3-vitl16-chmv2-dpt-head", "sat-vitl16", "gone/model", "nano"):
    try:
        print(is_at_hand(name), facts_of(name).name)
    except ModelError as error:
        print(is_at_hand(name), error)
"""


def test_facts_are_refused_for_what_cannot_be_run(hub: str, tmp_path: Path) -> None:
    name, hub_id, backbone, gone, nano = ask(FACTS, tmp_path, HF_ENDPOINT=hub).splitlines()
    assert name.startswith(f"False {CHMV2} is gated and no Hugging Face token was found; accept the licence at")
    assert hub_id == name
    assert backbone.startswith("False sat-vitl16 is a backbone without a head")
    assert gone.startswith("False gone/model is not on the Hugging Face Hub")
    assert nano == "True nano"


def test_descriptions_in_the_cache_do_not_stand_for_weights_out_of_reach(hub: str, tmp_path: Path) -> None:
    code = """
from geodino.errors import ModelError
from geodino.models import facts_of
try:
    print(facts_of("open/tiny").name)
except ModelError as error:
    print(error)
"""
    assert ask(code, tmp_path, HF_ENDPOINT=hub) == "open/tiny\n"
    assert ask(code, tmp_path, HF_HUB_OFFLINE="1").startswith(
        "open/tiny is not in the local cache and HF_HUB_OFFLINE forbids to download it"
    )


def test_half_of_a_repository_in_the_cache_is_not_at_hand(hub: str, tmp_path: Path) -> None:
    code = """
from huggingface_hub import hf_hub_download
from geodino.models.hub import cached, hub_access, weights_at_hand
from geodino.models.catalog import row
from dataclasses import replace
known = replace(row("chmv2"), hub_id="open/tiny")
hf_hub_download("open/tiny", "config.json")
print(weights_at_hand(known))
hf_hub_download("open/tiny", "model.safetensors")
print(weights_at_hand(known))
"""
    assert ask(code, tmp_path, HF_ENDPOINT=hub) == "False\nTrue\n"


def test_a_catalog_model_keeps_its_published_statistics_and_a_difference_is_told(hub: str, tmp_path: Path) -> None:
    code = """
import logging, sys
from dataclasses import replace
from geodino.models import catalog, load_model
logging.basicConfig(stream=sys.stdout, format="%(message)s", level=logging.WARNING)
for mean in ((0.420, 0.411, 0.296), (0.430, 0.411, 0.296)):
    catalog._ROWS = (replace(catalog.row("chmv2"), hub_id="open/tiny", mean=mean),)
    print(load_model("chmv2", device="cpu").mean)
"""
    same, warning, kept = ask(code, tmp_path, HF_ENDPOINT=hub).splitlines()
    assert (same, kept) == ("(0.42, 0.411, 0.296)", "(0.43, 0.411, 0.296)")
    assert "says mean and std ((0.42, 0.411, 0.296)" in warning and "chmv2 is run with ((0.43," in warning
