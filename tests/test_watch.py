"""What a run says while it runs."""

from __future__ import annotations

import io

import pytest

from geodino.watch import PlainWatch, duration, size


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
