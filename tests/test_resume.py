"""Runs that were cut short go on where they stopped, and end with the bytes of a run that was not."""

from __future__ import annotations

import json
import os
import random
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
from click.testing import CliRunner
from test_pipeline import wkt

from geodino.cli import cli
from geodino.compute import Hand, Work
from geodino.errors import ConfigError, ReadError
from geodino.fingerprint import NAME
from geodino.models import Model, load_model
from geodino.options import RunOptions
from geodino.outputs.record import read_record
from geodino.pipeline import run, settle
from geodino.products import products_of
from geodino.progress import BANDS, Progress
from geodino.settings import read_pipeline
from geodino.stores import Store
from geodino.watch import Silent

AOI = wkt(20, 15, 400, 280)
RASTERS = ("canopy_height.tif", "canopy_height_spread.tif", "scene.tif")


class Cut(Silent):
    """Somebody who presses Ctrl-C when so many windows are done."""

    def __init__(self, at: int) -> None:
        self.at, self.notes = at, list[str]()

    def note(self, sentence: str) -> None:
        self.notes.append(sentence)

    def advance(self, done: int, *, hectares: float = 0.0) -> None:
        if done >= self.at:
            self.at = 10**9
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def options(photo: Path, tiny_model: Path) -> RunOptions:
    return RunOptions(sources=(str(photo),), model=str(tiny_model), precision="fp32", device="cpu")


@pytest.fixture(scope="module")
def whole(options: RunOptions, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing cut short."""
    out = tmp_path_factory.mktemp("whole") / "out"
    run("canopy", aoi=AOI, out=out, options=options)
    return out


def counting(windows: list[int]) -> Callable[..., Model]:
    """`load_model`, of a model that notes how many windows go through it."""

    def load(*args: object, **how: object) -> Model:
        model = load_model(*args, **how)
        maps = model.maps

        def counted(images, tasks=None):  # type: ignore[no-untyped-def]
            windows.append(len(images))
            return maps(images, tasks)

        model.maps = counted
        return model

    return load


def cut_short(out: Path, options: RunOptions, at: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        run("canopy", aoi=AOI, out=out, options=options, watch=Cut(at))
    assert (out / ".work" / NAME).is_file() and not (out / "run.json").exists()


def assert_same(one: Path, other: Path) -> None:
    for name in RASTERS:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


@pytest.mark.parametrize("at", [1, 17, 29])
def test_a_cut_run_computes_only_what_is_missing_and_ends_with_the_same_bytes(
    whole: Path, options: RunOptions, tmp_path: Path, at: int
) -> None:
    cut_short(tmp_path, options, at)
    done: list[int] = []
    record = run("canopy", aoi=AOI, out=tmp_path, options=options, load=counting(done))
    assert_same(whole, tmp_path)
    assert 0 < record.windows_from_before < record.windows.run
    assert sum(done) == record.windows.run - record.windows_from_before
    before = json.loads((whole / "run.json").read_text())
    after = json.loads((tmp_path / "run.json").read_text())
    for same in ("windows", "scenes", "mapped_percent_of_aoi", "losses", "grid", "computed_px"):
        assert before[same] == after[same]
    assert not (tmp_path / ".work").exists()


def test_a_run_that_was_cut_before_its_results_computes_nothing_again(
    whole: Path, options: RunOptions, tmp_path: Path
) -> None:
    class CutLater(Silent):
        def begin(self, title: str, total: int) -> None:
            if title == "maps":
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run("canopy", aoi=AOI, out=tmp_path, options=options, watch=CutLater())
    done: list[int] = []
    run("canopy", aoi=AOI, out=tmp_path, options=options, load=counting(done))
    assert not done
    assert_same(whole, tmp_path)


def test_the_terminal_is_told_that_a_run_goes_on(options: RunOptions, tmp_path: Path) -> None:
    watch = Cut(12)
    with pytest.raises(KeyboardInterrupt):
        run("canopy", aoi=AOI, out=tmp_path, options=options, watch=watch)
    assert "what is done is kept: the same command goes on with it" in watch.notes
    run("canopy", aoi=AOI, out=tmp_path, options=options, watch=watch)
    assert any(note.startswith("going on with an unfinished run: ") for note in watch.notes)


@pytest.mark.parametrize("kind", ["flipped", "short", "gone", "receipt"])
def test_what_was_damaged_meanwhile_is_computed_anew(
    whole: Path, options: RunOptions, tmp_path: Path, kind: str
) -> None:
    cut_short(tmp_path, options, 20)
    bands = tmp_path / ".work" / BANDS
    victim = sorted(bands.glob("*.json" if kind == "receipt" else "*.maps.tif"))[0]
    data = bytearray(victim.read_bytes())
    if kind == "gone":
        victim.unlink()
    else:
        data[len(data) // 2] ^= 255
        victim.write_bytes(data[: len(data) // 2] if kind in ("short", "receipt") else data)
    run("canopy", aoi=AOI, out=tmp_path, options=options)
    assert_same(whole, tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"precision": "bf16"}, "model.precision was fp32 and is bf16"),
        ({"batch_size": 3}, "model.batch_size was"),
        ({"on_read_error": "skip"}, "on_read_error was fail and is skip"),
        ({"radiometry": "uint16-full"}, "scenes[1].radiometry"),
    ],
)
def test_another_run_is_refused_and_the_difference_shown(
    options: RunOptions, tmp_path: Path, change: dict[str, object], said: str
) -> None:
    cut_short(tmp_path, options, 1)
    with pytest.raises(ConfigError, match=r"holds an unfinished run that is not this one") as caught:
        run("canopy", aoi=AOI, out=tmp_path, options=replace(options, **change))
    assert said in str(caught.value) and "--no-resume" in str(caught.value)
    # What was there is as it was.
    record = run("canopy", aoi=AOI, out=tmp_path, options=options)
    assert record.windows_from_before > 0


def test_imagery_that_changed_meanwhile_is_refused(options: RunOptions, photo: Path, tmp_path: Path) -> None:
    mine = tmp_path / "photo.tif"
    shutil.copy(photo, mine)
    mine_options = replace(options, sources=(str(mine),))
    cut_short(tmp_path / "out", mine_options, 1)
    os.utime(mine, (1, 1))
    with pytest.raises(ConfigError, match=r"files\..*photo.tif was .* bytes, modified .* and is"):
        run("canopy", aoi=AOI, out=tmp_path / "out", options=mine_options)


def test_another_aoi_and_other_weights_are_refused(options: RunOptions, tiny_model: Path, tmp_path: Path) -> None:
    from tiny_models import CHMV2_STATISTICS, canopy_network, save

    network = canopy_network(number_output_channels=8, seed=5)
    other = save(network, tmp_path / "model" / tiny_model.name, CHMV2_STATISTICS | {"gsd_m": 0.6})
    cut_short(tmp_path / "out", options, 1)
    with pytest.raises(ConfigError, match=r"aoi\.area_ha was"):
        run("canopy", aoi=wkt(30, 15, 400, 280), out=tmp_path / "out", options=options)
    with pytest.raises(ConfigError, match=r"model\.weights_sha256 was"):
        run("canopy", aoi=AOI, out=tmp_path / "out", options=replace(options, model=str(other)))


def test_no_resume_begins_anew(whole: Path, options: RunOptions, tmp_path: Path) -> None:
    cut_short(tmp_path, options, 20)
    record = run("canopy", aoi=AOI, out=tmp_path, options=replace(options, resume=False))
    assert record.windows_from_before == 0
    assert_same(whole, tmp_path)


def test_the_command_line_refuses_with_exit_code_2(options: RunOptions, tmp_path: Path) -> None:
    cut_short(tmp_path, options, 1)
    words = ["run", "canopy", "--aoi", AOI, "--out", str(tmp_path), "--source", options.sources[0]]
    words += ["--model", str(options.model), "--precision", "bf16", "--device", "cpu"]
    refused = CliRunner().invoke(cli, words)
    assert isinstance(refused.exception, ConfigError) and refused.exception.exit_code == 2


@pytest.mark.parametrize("seed", range(3))
def test_bands_may_be_predicted_and_finished_in_any_order(
    whole: Path, options: RunOptions, tmp_path: Path, seed: int
) -> None:
    """Each band by a hand of its own that knows only what lies in the store, as on a cluster."""
    cut_short(tmp_path, options, 1)
    rng = random.Random(seed)
    spec = read_pipeline("canopy")
    products = products_of(spec, str(options.model))
    plan = settle(spec, AOI, options, str(options.model), products, Silent())
    work = Work(plan, products, Store(str(tmp_path / ".work")))
    model = load_model(str(options.model), precision="fp32", device="cpu")
    shutil.rmtree(tmp_path / ".work" / BANDS)
    progress = Progress(work.bands)
    waiting = list(work.bands.values())
    assert len(waiting) >= 6
    rng.shuffle(waiting)
    while not progress.done:
        ready = list(progress.can_finish())
        with Hand(work, model) as hand:
            if ready and (not waiting or rng.random() < 0.5):
                id_ = rng.choice(ready)
                own = hand.fetch(progress.receipts[id_])
                progress.note(hand.finish(own, progress.around(id_), progress.missing(id_)))
            else:
                (computed,) = hand.compute([waiting.pop()])
                progress.note(hand.keep(computed, core=True))
    assert not list((tmp_path / ".work" / BANDS).glob("*.core"))
    done: list[int] = []
    run("canopy", aoi=AOI, out=tmp_path, options=options, load=counting(done))
    assert not done
    assert_same(whole, tmp_path)


def test_a_band_that_is_given_up_leaves_a_hole_and_no_half_sums(
    whole: Path, options: RunOptions, tmp_path: Path
) -> None:
    fails = [True]

    def load(*args: object, **how: object) -> Model:
        model = load_model(*args, **how)
        maps, calls = model.maps, []

        def failing(images, tasks=None):  # type: ignore[no-untyped-def]
            calls.append(1)
            if len(calls) == 4 and fails:
                fails.clear()
                raise ReadError("the disk of this scene is worn out")
            return maps(images, tasks)

        model.maps = failing
        return model

    with pytest.raises(ReadError, match="worn out"):
        run("canopy", aoi=AOI, out=tmp_path / "fail", options=options, load=load)
    fails.append(True)
    record = run("canopy", aoi=AOI, out=tmp_path, options=replace(options, on_band_error="skip"), load=load)
    assert any("worn out" in said and "windows from row" in said for said in record.losses)
    for name in RASTERS:
        nothing = 0 if name == "scene.tif" else -9999
        with rasterio.open(whole / name) as one, rasterio.open(tmp_path / name) as other:
            intact, holed = one.read(1), other.read(1)
        kept = holed != nothing
        assert 0 < (kept & (intact != nothing)).sum() < (intact != nothing).sum()
        np.testing.assert_array_equal(holed[kept], intact[kept])
    hole = (intact != nothing) & ~kept
    assert record.lost_ha == pytest.approx(hole.sum() * 0.36 / 1e4, rel=0.2)


def test_the_bands_that_a_hole_touched_are_finished_again_when_it_is_filled(
    whole: Path, options: RunOptions, tmp_path: Path
) -> None:
    skipping = replace(options, on_band_error="skip")
    broken = [1]

    def load(*args: object, **how: object) -> Model:
        model = load_model(*args, **how)
        maps = model.maps

        def failing(images, tasks=None):  # type: ignore[no-untyped-def]
            if broken:
                broken.clear()
                raise ReadError("the disk of this scene is worn out")
            return maps(images, tasks)

        model.maps = failing
        return model

    class CutLater(Silent):
        def begin(self, title: str, total: int) -> None:
            if title == "maps":
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run("canopy", aoi=AOI, out=tmp_path, options=skipping, load=load, watch=CutLater())
    record = run("canopy", aoi=AOI, out=tmp_path, options=skipping)
    assert not record.losses
    assert_same(whole, tmp_path)


def test_a_run_without_a_valid_pixel_leaves_nothing_behind(options: RunOptions, tmp_path: Path) -> None:
    # The hole in the photo's mask.
    with pytest.raises(Exception, match="no valid pixel"):
        run("canopy", aoi=wkt(212, 130, 250, 165), out=tmp_path / "out", options=options)
    assert not (tmp_path / "out" / ".work").exists()


def test_the_record_says_who_computed(whole: Path) -> None:
    record = read_record(whole / "run.json")
    assert record.computed_by == "this process" and record.windows_from_before == 0


def test_a_hand_goes_on_after_an_error(whole: Path, options: RunOptions, tmp_path: Path) -> None:
    """As a worker does that computes bands of a run which may give some up."""
    cut_short(tmp_path, options, 1)
    products = products_of(read_pipeline("canopy"), str(options.model))
    plan = settle(read_pipeline("canopy"), AOI, options, str(options.model), products, Silent())
    model = load_model(str(options.model), precision="fp32", device="cpu")
    maps = model.maps

    def failing(images, tasks=None):  # type: ignore[no-untyped-def]
        model.maps = maps
        raise ReadError("the disk of this scene is worn out")

    model.maps = failing
    work = Work(plan, products, Store(str(tmp_path / ".work")))
    bands = list(work.bands.values())
    before = set(threading.enumerate())
    with Hand(work, model) as hand:
        with pytest.raises(ReadError, match="worn out"):
            list(hand.compute(bands))
        assert [computed.band for computed in hand.compute(bands)] == bands
    assert set(threading.enumerate()) <= before
