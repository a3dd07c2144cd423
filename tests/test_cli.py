"""The command line, as a user types it: what it prints, what it exits with, what it leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

from geodino import cli
from geodino.models.catalog import rows

Outcome = tuple[int, str, str]


class Typed:
    """Types `geodino ...` in this process, for exit codes and texts without the seconds that torch takes to import."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self._capsys, self._monkeypatch = capsys, monkeypatch

    def __call__(self, *words: str | Path) -> Outcome:
        self._monkeypatch.setattr(sys, "argv", ["geodino", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = self._capsys.readouterr()
        return int(ended.value.code or 0), out, err


@pytest.fixture
def typed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Typed:
    return Typed(capsys, monkeypatch)


DEAD = "http://127.0.0.1:9"
AOI = "494020,4878640,494120,4878750"


def run_words(photo: Path, tiny_model: Path, out: Path) -> list[str | Path]:
    source: list[str | Path] = ["--source", photo, "--model", tiny_model, "--device", "cpu"]
    return ["run", "canopy", "--aoi", AOI, "--aoi-crs", "EPSG:26910", *source, "--out", out]


def test_a_run_prints_plain_progress_and_where_the_map_is(
    typed: Typed, photo: Path, tiny_model: Path, tmp_path: Path
) -> None:
    code, out, err = typed(*run_words(photo, tiny_model, tmp_path / "out"))
    assert code == 0
    assert f"the results are in {tmp_path / 'out'}" in out and "canopy_height.tif" in out
    assert "windows" in err and "(100%)" in err
    assert "\r" not in err and "\x1b" not in err
    assert (tmp_path / "out" / "canopy_height.tif").is_file()


def test_json_on_standard_output_is_the_record_alone(
    typed: Typed, photo: Path, tiny_model: Path, tmp_path: Path
) -> None:
    code, out, _ = typed(*run_words(photo, tiny_model, tmp_path / "out"), "--json")
    assert code == 0
    assert json.loads(out) == json.loads((tmp_path / "out" / "run.json").read_text())


def test_quiet_says_nothing(typed: Typed, photo: Path, tiny_model: Path, tmp_path: Path) -> None:
    assert typed(*run_words(photo, tiny_model, tmp_path / "out"), "--quiet") == (0, "", "")


def test_a_dry_run_says_the_cost_and_touches_nothing(
    typed: Typed, photo: Path, tiny_model: Path, tmp_path: Path
) -> None:
    code, out, _ = typed(*run_words(photo, tiny_model, tmp_path / "out"), "--dry-run")
    assert code == 0
    for word in ("windows", "to read", "memory", "s a window, measured here", "nothing was written"):
        assert word in out
    assert list(tmp_path.iterdir()) == []
    code, out, _ = typed(*run_words(photo, tiny_model, tmp_path / "out"), "--dry-run", "--json")
    assert code == 0 and json.loads(out)["windows"] > 0


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["run", "canpy", "--aoi", AOI], 2, "did you mean canopy?"),
        (["run", "canopy"], 2, "Missing option '--aoi'"),
        (["run", "canopy", "--aoi", "sample:autzn", "--model", "nano"], 2, "did you mean autzen?"),
        (["run", "canopy", "--aoi", "nowhere.geojson", "--model", "nano"], 3, "nowhere.geojson"),
        (["run", "canopy", "--aoi", "44.06,-123.07,44.07,-123.06", "--model", "nano"], 3, "lat"),
        (["run", "canopy", "--aoi", "1,1,1.01,1.01", "--model", "nano", "--source", DEAD], 4, "127.0.0.1:9"),
        (["run", "canopy", "--aoi", "sample:autzen", "--model", "no-such-model"], 6, "no model named no-such-model"),
        *[
            (["run", "canopy", "--aoi", "sample:autzen", "--model", "nano", "--max-cloud", given], 2, given)
            for given in ("nan", "inf", "101")
        ],
        (["models", "info", "chmv3"], 6, "did you mean chmv2?"),
        (["run", "canopy", "--aoi", "sample:autzen", "--model", "nano", "--device", "tpu"], 2, "tpu"),
    ],
)  # fmt: skip
def test_each_kind_of_failure_has_its_exit_code_and_one_line(
    typed: Typed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], code: int, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    got, out, err = typed(*words)
    assert (got, out) == (code, "")
    assert message in err
    assert "Traceback" not in err
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"]


def test_a_second_run_exits_7_and_names_the_option(typed: Typed, photo: Path, tiny_model: Path, tmp_path: Path) -> None:
    words = run_words(photo, tiny_model, tmp_path / "out")
    assert typed(*words)[0] == 0
    code, _, err = typed(*words)
    assert code == 7 and "--overwrite" in err
    assert typed(*words, "--overwrite")[0] == 0


def test_what_was_mended_of_an_aoi_is_said_once(
    typed: Typed, photo: Path, tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    left, low, right, high = AOI.split(",")
    bowtie = f"POLYGON(({left} {low}, {right} {high}, {right} {low}, {left} {high}, {left} {low}))"
    drawn = f"GEOMETRYCOLLECTION({bowtie}, POINT({left} {low}))"
    words = run_words(photo, tiny_model, tmp_path / "out")
    words[words.index(AOI)] = drawn
    assert typed(*words)[0] == 3
    code, _, err = typed(*words, "--repair-aoi")
    err += caplog.text
    assert code == 0
    assert err.count("self-intersection at (494070, 4878695)") == err.count("repaired") == 1
    assert err.count("left out") == err.count("points, lines or empty features") == 1
    said = json.loads((tmp_path / "out" / "run.json").read_text())["warnings"]
    assert "repaired, it covers 0.5504 ha; that changed 5,504 m2" in said[0] and "left out 1 points" in said[1]


def test_debug_shows_the_traceback_and_keeps_the_code(typed: Typed) -> None:
    words = ["run", "canopy", "--aoi", "nowhere.geojson", "--model", "nano"]
    for said in (["--debug", *words], [*words, "--debug"]):
        code, _, err = typed(*said)
        assert code == 3 and "Traceback" in err and "error: " in err


def test_every_model_is_listed_with_its_facts(typed: Typed) -> None:
    code, out, _ = typed("models", "list")
    assert code == 0
    assert all(row.name in out for row in rows())
    listed = json.loads(typed("models", "list", "--json")[1])
    assert [entry["name"] for entry in listed] == [row.name for row in rows()]
    sheet = typed("models", "info", "chmv2")[1]
    assert "0.42, 0.411, 0.296" in sheet and "licence" in sheet


def test_a_model_that_cannot_be_had_is_explained(typed: Typed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code, out, _ = typed("models", "check", "sat-vit7b16")
    assert code == 6 and out.startswith("sat-vit7b16: ") and len(out.splitlines()) >= 2
    assert typed("models", "check", "nano")[0] == 0


def test_the_doctor_looks_at_everything_and_speaks_json(typed: Typed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code, out, _ = typed("doctor")
    assert code == 0
    findings = json.loads(typed("doctor", "--json")[1])
    for name in ("torch", "GDAL, PROJ", "device", "memory", "disk here", "model nano", "model chmv2"):
        assert name in findings and name in out


@pytest.mark.parametrize("module", ["click", "importlib.metadata", "geodino.cli", "geodino.errors", "geodino.pipeline"])
def test_ctrl_c_during_the_imports_is_quiet(module: str) -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
    entry, function = project["project"]["scripts"]["geodino"].split(":")
    program = (
        "import sys\n"
        "class Interrupting:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == {module!r}: raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupting())\n"
        f"from {entry} import {function}\n"
        f"{function}()\n"
    )
    words = ["run", "canopy", "--aoi", "sample:autzen"]
    ended = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (130, "")
    assert "Traceback" not in ended.stderr


def test_the_command_ends_at_once_without_a_last_look_for_garbage() -> None:
    program = (
        "import gc\n"
        "from geodino.__main__ import main\n"
        "gc.disable()\n"
        "class Garbage:\n"
        "    def __del__(self): print('found')\n"
        "garbage = Garbage()\n"
        "garbage.itself = garbage\n"
        "del garbage\n"
        "main()\n"
    )
    said = subprocess.run([sys.executable, "-c", program, "--version"], capture_output=True, text=True).stdout
    assert said.startswith("geodino") and "found" not in said


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_and_terminate_leave_nothing_half_written(
    photo: Path, tiny_model: Path, tmp_path: Path, sent: signal.Signals, code: int
) -> None:
    large = ["--aoi", "494010,4878590,494250,4878758", "--batch-size", "1"]
    words = [*run_words(photo, tiny_model, tmp_path / "out"), *large]
    # The child computes slowly, so that the interruption falls into the middle of its windows.
    program = (
        "import sys, time\n"
        "from geodino.models.predictor import Model\n"
        "forward = Model.maps\n"
        "Model.maps = lambda *given: (time.sleep(0.5), forward(*given))[1]\n"
        "from geodino.cli import main\n"
        "main()\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program, *map(str, words)], stderr=subprocess.PIPE, env=os.environ, text=True
    )
    deadline = time.monotonic() + 120
    while not list((tmp_path / "out" / ".work" / "bands").glob("*.json")) and time.monotonic() < deadline:
        time.sleep(0.1)
    child.send_signal(sent)
    _, err = child.communicate(timeout=60)
    assert child.returncode == code, err
    assert "Traceback" not in err and "the same command goes on with it" in err
    # Beside what is kept for the next run.
    left = [path.name for path in (tmp_path / "out").iterdir() if path.name not in (".lock", ".work")]
    assert left == [] and not list((tmp_path / "out" / ".work").rglob("*.part-*"))
