"""Batches of real runs of a tiny model: gone on with after a kill, failed in part, tried again, in use elsewhere."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pystac
import pytest
import rasterio
import shapely
from batch_scenes import folder_of, invoke, states, write_pieces
from click.testing import CliRunner
from rasterio.warp import transform_bounds
from shapely.geometry import mapping
from stac_geoparquet.arrow import parse_stac_items_to_parquet

from geodino.batch.asked import Asked, open_batch
from geodino.batch.ledger import read_tracks
from geodino.batch.runner import run_batch
from geodino.batch.status import read_status
from geodino.batch.work import Task, run_job
from geodino.cli import cli
from geodino.errors import DONE_IN_PART, ConfigError, GeodinoError, ModelError, OutputError, SourceError
from geodino.fingerprint import NAME as FINGERPRINT
from geodino.options import RunOptions
from geodino.outputs.folder import OutputFolder
from geodino.outputs.record import read_record
from geodino.pipeline import run
from geodino.stores import Store
from geodino.watch import Silent


@pytest.fixture(scope="module")
def scenes(photo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    write_pieces(photo, folder)
    return folder


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "geodino", "batch", *map(str, words)]


def test_a_folder_of_scenes_becomes_a_run_each_and_a_catalog(scenes: Path, tiny_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, said = invoke("canopy", "--catalog", scenes, "--model", tiny_model, "--out", out)
    assert code == 0, said
    assert states(out) == {"west": "done", "east": "done", "small": "done"}
    record = read_record(folder_of(out, "east") / "run.json")
    assert [scene["id"] for scene in record.scenes] == ["east"] and record.aoi.origin == "east"
    assert (out / "collection.json").is_file() and (out / "items.parquet").is_file()
    title = f"Canopy height with {tiny_model.name}, {scenes.name}"
    assert json.loads((out / "collection.json").read_text())["title"] == title
    for name in ("collection.json", "items.parquet", "jobs.parquet", "summary.json", "statistics.parquet"):
        assert str(scenes.parent).encode() not in (out / name).read_bytes()
    assert {path.name for path in out.iterdir()} == {
        ".batch", "collection.json", "items.parquet", "jobs", "jobs.parquet", "ledger.sqlite", "mosaic",
        "statistics.csv", "statistics.parquet", "summary.json",
    }  # fmt: skip
    assert not list(out.rglob("*.lock")) and not [path for path in out.rglob("jobs/**/*") if path.name[0] == "."]
    # Again there is nothing left to do.
    before = (folder_of(out, "east") / "run.json").stat().st_mtime_ns
    assert invoke("canopy", "--catalog", scenes, "--model", tiny_model, "--out", out)[0] == 0
    assert (folder_of(out, "east") / "run.json").stat().st_mtime_ns == before
    code, said = invoke("status", out, "--json")
    assert (json.loads(said)["done"], json.loads(said)["failed"]) == (3, 0)


def test_cells_hold_the_pixels_of_one_run_over_all_of_them(photo: Path, tiny_model: Path, tmp_path: Path) -> None:
    with rasterio.open(photo) as source:
        west, south, east, north = source.bounds
    corners = ((west + 9, south + 5), (east - 7, south + 9), (east - 20, north), (west + 9, south + 5))
    aoi = f"SRID=26910;POLYGON (({', '.join(f'{x} {y}' for x, y in corners)}))"
    code, said = invoke(
        "canopy", "--grid", "80m", "--aoi", aoi, "--source", photo, "--model", tiny_model, "--crs", "EPSG:26910",
        "--out", tmp_path / "cells",
    )  # fmt: skip
    assert code == 0, said
    run("canopy", aoi=aoi, out=tmp_path / "one", options=RunOptions(sources=(str(photo),), model=str(tiny_model)))
    with rasterio.open(tmp_path / "one" / "canopy_height.tif") as source:
        whole, left = source.read(1, masked=True), np.ones(source.shape, bool)
        transform = source.transform
    cells = list((tmp_path / "cells" / "jobs").glob("*/*/canopy_height.tif"))
    assert len(cells) > 5
    for path in cells:
        with rasterio.open(path) as source:
            piece = source.read(1, masked=True)
            col, row = ~transform * (source.transform.c, source.transform.f)
        there = (slice(round(row), round(row) + piece.shape[0]), slice(round(col), round(col) + piece.shape[1]))
        ours = ~np.ma.getmaskarray(piece)
        assert np.array_equal(whole[there][ours], piece[ours])
        assert left[there][ours].all()  # no pixel is in two cells
        left[there][ours] = False
    assert not left[~np.ma.getmaskarray(whole)].any()


def test_a_job_that_ended_untold_is_not_run_again(scenes: Path, tiny_model: Path, tmp_path: Path) -> None:
    asked = Asked("canopy", RunOptions(model=str(tiny_model)), str(scenes))
    batch = open_batch(asked, Store(str(tmp_path)), Silent())
    job = min(batch.jobs, key=lambda job: job.hectares)
    task = Task(batch.store.url, job, 1, batch.spec, batch.options)
    first = run_job(task)
    record = tmp_path / job.key / "run.json"
    before = record.stat().st_mtime_ns
    again = run_job(task)
    assert first.done and again.done and record.stat().st_mtime_ns == before
    assert {key: again.receipt[key] for key in ("hectares", "bytes")} == {
        key: first.receipt[key] for key in ("hectares", "bytes")
    }


def test_what_fails_is_told_by_cause_and_tried_again_when_it_is_mended(
    scenes: Path, tiny_model: Path, tmp_path: Path
) -> None:
    mended, out = tmp_path / "scenes", tmp_path / "out"
    shutil.copytree(scenes, mended)
    asked = ("canopy", "--catalog", mended, "--model", tiny_model, "--out", out)
    open_batch(Asked("canopy", RunOptions(model=str(tiny_model)), str(mended)), Store(str(out)), Silent())
    (mended / "east.tif").rename(tmp_path / "away.tif")
    code, said = invoke(*asked)
    assert code == DONE_IN_PART, said
    assert "east failed: " in said and f"`geodino batch retry {out}` tries again what failed" in said
    assert states(out) == {"west": "done", "east": "failed", "small": "done"}
    code, said = invoke("status", out)
    assert code == 0 and "1 job failed: " in said and "such as east" in said
    (tmp_path / "away.tif").rename(mended / "east.tif")
    code, said = invoke("retry", out)
    assert code == 0 and "1 failed job to try again" in said and "going on: 2 of 3 jobs are done" in said
    assert set(states(out).values()) == {"done"}


def test_other_weights_under_the_same_name_end_the_batch(scenes: Path, tiny_model: Path, tmp_path: Path) -> None:
    asked = Asked("canopy", RunOptions(model=str(tiny_model)), str(scenes))
    batch = open_batch(asked, Store(str(tmp_path)), Silent())
    batch.store.put(".batch/weights.json", json.dumps({"weights_sha256": "0" * 64}).encode())
    with pytest.raises(ModelError, match="not those that the batch was begun with"):
        run_batch(batch, Silent())
    # Given back, so that it counts as no attempt of theirs.
    assert read_status(batch.store).waiting == 3


class Noting(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, sentence: str) -> None:
        self.notes.append(sentence)


def test_a_job_whose_folder_another_run_holds_is_done_later_and_uncounted(
    scenes: Path, tiny_model: Path, tmp_path: Path
) -> None:
    batch = open_batch(Asked("canopy", RunOptions(model=str(tiny_model)), str(scenes), lease_s=1), Store(str(tmp_path)),
                       Silent())  # fmt: skip
    held = OutputFolder(tmp_path / batch.jobs[0].key)

    class Other(Noting):
        def note(self, sentence: str) -> None:
            super().note(sentence)
            if sentence.startswith(f"{batch.jobs[0].name} is put aside"):
                held.__exit__(None, None, None)

    watch = Other()
    with held:
        ended = run_batch(batch, watch)
    assert (ended.done, ended.failed) == (3, 0)
    track = read_tracks(batch.store)[batch.jobs[0].id]
    assert track.attempts[1] == {"claim", "released"} and track.tries == 1
    assert sum("is put aside" in note for note in watch.notes) == 1


_DYING = """
import os, signal, sys
from geodino.batch.asked import Asked, open_batch
from geodino.batch.runner import run_batch
from geodino.options import RunOptions
from geodino.stores import Store
from geodino.watch import Silent

class Dying(Silent):
    def begin(self, title, total):
        self.windows = title == "windows"

    def advance(self, done, *, hectares=0.0):
        if self.windows and done:
            os.kill(os.getpid(), signal.SIGKILL)

asked = Asked("canopy", RunOptions(model=sys.argv[1]), sys.argv[2], lease_s=1)
run_batch(open_batch(asked, Store(sys.argv[3]), Silent()), Dying())
"""


def test_a_job_that_was_killed_in_the_middle_is_gone_on_with_by_whoever_takes_it(
    photo: Path, tiny_model: Path, tmp_path: Path
) -> None:
    killed = subprocess.run([sys.executable, "-c", _DYING, tiny_model, photo, tmp_path], timeout=120)
    assert killed.returncode == -signal.SIGKILL
    options, watch = RunOptions(model=str(tiny_model)), Noting()
    batch = open_batch(Asked("canopy", options, str(photo), lease_s=1), Store(str(tmp_path)), Silent())
    assert run_batch(batch, watch).done == 1
    assert not list(tmp_path.glob(".batch/owners/*"))  # nor of the one that was killed
    (said,) = (note for note in watch.notes if "unfinished run" in note)
    done, total = (int(word) for word in said.split(": ")[1].split() if word.isdecimal())
    assert 0 < done < total
    (made,) = tmp_path.glob("jobs/*/*/canopy_height.tif")
    run("canopy", aoi=batch.jobs[0].aoi, out=tmp_path / "one",
        options=RunOptions(model=str(tiny_model), sources=(str(photo),), aoi_crs=batch.jobs[0].aoi_crs))  # fmt: skip
    assert made.read_bytes() == (tmp_path / "one/canopy_height.tif").read_bytes()
    assert not list(tmp_path.glob("jobs/*/*/.work/*"))


def test_work_that_nobody_can_go_on_with_is_done_anew(photo: Path, tiny_model: Path, tmp_path: Path) -> None:
    batch = open_batch(Asked("canopy", RunOptions(model=str(tiny_model)), str(photo)), Store(str(tmp_path)), Silent())
    work = batch.store.below(f"{batch.jobs[0].key}/.work")
    work.put(FINGERPRINT, json.dumps({"torch": "of another machine"}).encode())
    task = Task(batch.store.url, batch.jobs[0], 1, batch.spec, batch.options)
    assert run_job(task).done
    assert not list(work.entries())


def test_the_item_of_a_table_lies_beside_what_was_made_of_its_scene(
    photo: Path, tiny_model: Path, tmp_path: Path
) -> None:
    with rasterio.open(photo) as source:
        bounds = transform_bounds(source.crs, 4326, *source.bounds)
    item = pystac.Item("only", mapping(shapely.box(*bounds)), list(bounds), datetime(2020, 6, 1, tzinfo=UTC), {})
    item.add_asset("picture", pystac.Asset(str(photo), media_type=pystac.MediaType.COG, roles=["data"]))
    parse_stac_items_to_parquet([item.to_dict()], output_path=tmp_path / "scenes.parquet", schema="FullFile")
    out = tmp_path / "out"
    code, said = invoke("canopy", "--catalog", tmp_path / "scenes.parquet", "--model", tiny_model, "--out", out)
    assert code == 0, said
    made = folder_of(out, "only")
    (link,) = pystac.Item.from_file(made / "item.json").get_links("derived_from")
    assert Path(link.get_absolute_href()) == made / "source.json" and (made / "source.json").is_file()


def test_cells_without_imagery_are_empty_and_no_failures(photo: Path, tiny_model: Path, tmp_path: Path) -> None:
    with rasterio.open(photo) as source:
        _, south, east, _ = source.bounds
    aoi = f"{east - 60},{south},{east + 200},{south + 60}"
    words = ("canopy", "--grid", "100m", "--aoi", aoi, "--aoi-crs", "EPSG:26910", "--source", photo)
    code, said = invoke(*words, "--model", tiny_model, "--out", tmp_path)
    assert code == 0, said
    found = json.loads(invoke("status", tmp_path, "--json")[1])
    assert found["failed"] == 0 and 0 < found["empty"] < found["done"] == found["jobs"]
    assert "cells without imagery" in invoke("status", tmp_path)[1]
    assert len(list(tmp_path.glob("jobs/*/*/run.json"))) == found["done"] - found["empty"]


def test_a_batch_is_left_when_more_jobs_fail_than_may_and_says_so(
    scenes: Path, tiny_model: Path, tmp_path: Path
) -> None:
    gone, out = shutil.copytree(scenes, tmp_path / "scenes"), tmp_path / "out"
    asked = ("canopy", "--catalog", gone, "--model", tiny_model, "--out", out)
    open_batch(Asked("canopy", RunOptions(model=str(tiny_model)), str(gone)), Store(str(out)), Silent())
    for path in gone.glob("*.tif"):
        path.unlink()
    code, said = invoke(*asked, "--max-failures", 1)
    assert code == DONE_IN_PART
    assert "stopped: 2 jobs failed, more than --max-failures 1; `geodino batch status" in said
    code, said = invoke(*asked)
    assert code == DONE_IN_PART
    assert "0 jobs of 3 done, 3 failed, 0 left" in said and "models: ;" not in said
    assert invoke("status", out)[0] == 0


@pytest.mark.parametrize(
    ("words", "kind", "said"),
    [
        (("canopy", "--model", "nano"), ConfigError, "give --catalog"),
        (("canopy", "--model", "nano", "--catalog", "nowhere/"), SourceError, "nowhere"),
        (("canopy", "--model", "nano", "--catalog", "areas.csv", "--source", "sample"), ConfigError,
         "cannot be read as CSV"),
        (("canopy", "--catalog", "sample"), ConfigError, "takes no model auto"),
        (("meadow", "--model", "nano", "--catalog", "sample"), ConfigError, "meadow"),
        (("canopy", "--model", "nano", "--catalog", "sample", "--workers", "few"), ConfigError, "--workers few"),
        (("canopy", "--model", "nano", "--catalog", "sample", "--workers", "1", "--config", "x"), ConfigError,
         "give one of them"),
        (("canopy", "--model", "nano", "--grid", "10", "--aoi", "sample:autzen", "--source", "sample"), ConfigError,
         "with its unit"),
        (("status",), OutputError, "holds no batch"),
        (("retry",), OutputError, "holds no batch"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_said_before_anything_is_written(
    words: tuple[str, ...], kind: type[GeodinoError], said: str, tmp_path: Path
) -> None:
    place = (tmp_path / "out",) if words[0] in ("status", "retry") else ("--out", tmp_path / "out")
    result = CliRunner().invoke(cli, ["batch", *words, *map(str, place)])
    assert isinstance(result.exception, kind), result.exception
    assert said in str(result.exception)
    assert not (tmp_path / "out/.batch").exists()


def test_the_help_promises_no_default_that_a_batch_refuses() -> None:
    said, of_run = (" ".join(CliRunner().invoke(cli, [name, "--help"]).output.split()) for name in ("batch", "run"))
    for promised in ("[default: auto, the sample", "hub id or folder [default: the pipeline's]"):
        assert promised in of_run and promised not in said
    assert "with --grid one for all cells" in said and "one for all cells" not in of_run


def test_ctrl_c_gives_back_what_was_under_way(scenes: Path, tiny_model: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(
        command("canopy", "--catalog", scenes, "--model", tiny_model, "--out", tmp_path),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not list(tmp_path.glob(".batch/state/*/*.claim")):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=30)[1]
    assert process.returncode == 130
    assert " of 3 jobs are done or have failed: the same command goes on with the rest" in said
    assert read_status(Store(str(tmp_path))).claimed == 0
    assert not list(tmp_path.glob(".batch/owners/*"))


@pytest.mark.slow
def test_a_real_batch_that_is_killed_goes_on_and_ends_the_same(scenes: Path, tiny_model: Path, tmp_path: Path) -> None:
    def words(out: Path) -> list[str]:
        return command("canopy", "--catalog", scenes, "--model", tiny_model, "--out", out, "--lease-s", 1)

    subprocess.run(words(tmp_path / "quiet"), check=True, capture_output=True)
    for pause_s in (0.0, 0.3, 0.8):
        process = subprocess.Popen(words(tmp_path / "killed"), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        while process.poll() is None and not is_at_work(tmp_path / "killed", process.pid):
            time.sleep(0.02)
        time.sleep(pause_s)
        process.kill()
        process.wait()
    subprocess.run(words(tmp_path / "killed"), check=True, capture_output=True)
    assert set(states(tmp_path / "killed").values()) == {"done"}
    for name in ("west", "east", "small"):
        one, other = (folder_of(tmp_path / which, name) / "canopy_height.tif" for which in ("quiet", "killed"))
        with rasterio.open(one) as left, rasterio.open(other) as right:
            assert np.array_equal(left.read(), right.read())


def is_at_work(out: Path, pid: int) -> bool:
    return any(f"-{pid}-" in path.name for path in out.glob(".batch/owners/*.json"))


def test_pictures_that_cannot_be_read_are_told_of_to_the_end(photo: Path, tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "delivery"
    folder.mkdir()
    (folder / "good.tif").write_bytes(photo.read_bytes())
    (folder / "half.tif").write_bytes(photo.read_bytes()[:100])
    store = Store(str(tmp_path / "out"))
    batch = open_batch(Asked("canopy", RunOptions(model=str(tiny_model)), str(folder)), store, Silent())
    ended = run_batch(batch, Silent())
    assert ended.summary is not None and ended.summary["left_out"] == ["1 which cannot be read (half.tif)"]
    for text in (ended.text, read_status(store).as_text()):
        assert "left out: 1 which cannot be read (half.tif)" in text
