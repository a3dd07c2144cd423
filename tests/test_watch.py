"""What a run says while it runs."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from geodino.watch import PlainWatch, RichWatch, Stage, duration, size


def test_a_log_gets_plain_lines_without_control_characters() -> None:
    stream = io.StringIO()
    watch = PlainWatch(stream)
    watch.note("found 3 scenes")
    watch.begin("windows", 100)
    for done in range(1, 101):
        watch.advance(done)
    text = stream.getvalue()
    assert text.startswith("found 3 scenes\n")
    assert text.splitlines()[-1].startswith("windows: 100 of 100 (100%) in ")
    assert "\r" not in text and "\x1b" not in text and text.count("\n") <= 22


def test_quiet_keeps_warnings_alone() -> None:
    stream = io.StringIO()
    watch = PlainWatch(stream, quiet=True)
    watch.note("found 3 scenes")
    watch.begin("windows", 1)
    watch.advance(1)
    watch.warn("the photo is old")
    assert stream.getvalue() == "warning: the photo is old\n"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (89, "89 s"), (91, "2 min"), (3600, "60 min"), (12_000, "3 h 20 min")]
)
def test_durations_read_as_people_say_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("bytes_", "text"), [(12, "12 bytes"), (2048, "2.0 KiB"), (3.1 * 2**20, "3.1 MiB"), (5000 * 2**30, "5000 GiB")]
)
def test_sizes_read_as_people_say_them(bytes_: float, text: str) -> None:
    assert size(bytes_) == text


def test_the_speed_leaves_out_what_was_done_before(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    stage = Stage("bands", 1000)
    stage.advance(500, 2_000.0)
    assert stage.per_s() is None and stage.left_s() is None and stage.pace() == ""
    clock.now += 3600
    stage.advance(600, 12_000.0)
    assert stage.per_s() == pytest.approx(100 / 3600)
    assert stage.km2_h() == pytest.approx(100.0)
    assert stage.left_s() == pytest.approx(4 * 3600)
    assert stage.pace() == "100 km2/h, 4 h 0 min left"


def test_a_log_that_hears_nothing_is_reminded_after_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, stream = Clock(monkeypatch), io.StringIO()
    watch = PlainWatch(stream)
    watch.remind()
    watch.begin("bands", 10)
    watch.advance(1)
    clock.now += 59
    watch.remind()
    assert stream.getvalue() == ""
    clock.now += 2
    watch.remind()
    watch.remind()
    assert stream.getvalue().count("\n") == 1 and stream.getvalue().startswith("bands: 1 of 10 (10%)")


def test_of_a_part_only_its_warnings_are_said_with_its_name() -> None:
    stream = io.StringIO()
    with PlainWatch(stream).part("job 7") as part:
        part.note("3 scenes")
        part.begin("windows", 1)
        part.advance(1)
        part.warn("the photo is old")
    assert stream.getvalue() == "warning: job 7: the photo is old\n"


def test_a_terminal_has_a_row_for_the_batch_and_one_for_each_job_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    watch = RichWatch()
    watch.begin("jobs", 20)
    watch.advance(0)
    clock.now += 60
    watch.advance(5, hectares=1_000.0)
    with watch.part("[cell 4]") as job:
        job.begin("windows", 8)
        job.advance(2)
        rows = rendered(watch)
        assert len(rows) == 2
        assert "jobs" in rows[0] and "5/20" in rows[0] and rows[0].rstrip().endswith("600 km2/h, 3 min left")
        assert "[cell 4] windows" in rows[1] and "2/8" in rows[1]
        job.begin("writing", 1)
        assert len(rendered(watch)) == 2 and "writing" in rendered(watch)[1]
    assert len(rendered(watch)) == 1


def rendered(watch: RichWatch) -> list[str]:
    console = Console(file=io.StringIO(), width=120)
    console.print(watch._progress)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text.splitlines()


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1_000.0
        monkeypatch.setattr("geodino.watch.time.monotonic", lambda: self.now)
