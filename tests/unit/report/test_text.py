"""What a person sees."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

from dmcopy.core import events
from dmcopy.report.jsonlines import JsonLines
from dmcopy.report.text import TextReport, duration, forecast_text, hold_time

PROGRESS = events.Progress(
    job="j",
    phase="copy",
    bytes_done=25 << 20,
    bytes_total=100 << 20,
    bytes_cow=1 << 20,
    bytes_zero=0,
    rate_bytes=10.0 * (1 << 20),
    eta_seconds=7.5,
    exceptions=16,
    cow_used_bytes=1 << 20,
    cow_total_bytes=4 << 20,
    cow_full_seconds=90.0,
    cow_full=(60.0, 90.0, 150.0),
    first="full",
)
ENDED = events.Ended(
    job="j",
    state="ended",
    exit_status=0,
    source="/dev/mapper/[data]",
    destination="block:/dev/x",
    begin_time="2026-01-31T23:59:59.000000001Z",
    seconds=12.0,
    bytes_total=100 << 20,
    bytes_source=99 << 20,
    bytes_cow=1 << 20,
    bytes_zero=0,
    exceptions=16,
    cow_used_bytes=1 << 20,
    hold_seconds=(0.0004, 1.5),
    digest="ab" * 32,
    verified=True,
)


class Screen:
    """A report with consoles that can be read, and a clock that can be set."""

    def __init__(self, *, terminal: bool) -> None:
        self.out, self.err = io.StringIO(), io.StringIO()
        self.now = 0.0
        self.report = TextReport(
            Console(file=self.out, width=80, force_terminal=False),
            Console(file=self.err, width=80, force_terminal=terminal, color_system=None),
            clock=lambda: self.now,
        )


def test_without_a_terminal_progress_is_a_plain_line_now_and_then() -> None:
    screen = Screen(terminal=False)
    for second in range(25):
        screen.now = float(second)
        screen.report(PROGRESS)
    lines = screen.err.getvalue().splitlines()
    line = (
        "copy 25%, 25.0 MiB, 10.0 MiB/s, 7.5 s left, COW 25% of 4.0 MiB, "
        "full in 1:00 to 2:30, before the copy is done"
    )
    assert lines == [line] * 3
    assert screen.out.getvalue() == ""


@pytest.mark.parametrize(
    ("first", "full", "said"),
    [
        ("done", (60.0, 90.0, 150.0), ""),
        ("unknown", None, ""),
        ("unsure", (60.0, 90.0, 150.0), "full in 1:00 to 2:30"),
        ("unsure", (60.0, 90.0, None), "full in 1:00 or later"),
        ("full", (0.0, 0.0, 0.0), "full in 0.0 s to 0.0 s, before the copy is done"),
    ],
)
def test_forecast_is_shown_where_it_may_come_too_soon(
    first: str, full: tuple[float | None, ...] | None, said: str
) -> None:
    assert forecast_text(first, full) == said


def test_what_was_done_about_the_cow_device_is_said() -> None:
    screen = Screen(terminal=False)
    screen.report(
        events.Grown(
            job="j", cow_used_bytes=1, cow_total_bytes=8 << 20, cow_most_bytes=64 << 20, seconds=0.1
        )
    )
    screen.report(events.Braked(job="j", milliseconds=50, cow_used_bytes=1, cow_total_bytes=2))
    screen.report(events.Braked(job="j", milliseconds=0))
    screen.report(events.Paused(job="j", bytes_done=1 << 20))
    screen.report(events.Resumed(job="j", begin_time="2026-01-01T00:00:00Z", bytes_done=1 << 20))
    assert screen.err.getvalue().splitlines() == [
        "COW device grown to 8.0 MiB, of at most 64.0 MiB",
        "the COW device is nearly full: each write to what is not copied yet waits up to 50 ms",
        "writers are no longer held",
        "paused at 1.0 MiB; the point in time stays",
        "going on as of 2026-01-01T00:00:00Z: 1.0 MiB are done",
    ]


def test_end_of_a_phase_is_said_once() -> None:
    screen = Screen(terminal=False)
    done = replace(PROGRESS, bytes_done=PROGRESS.bytes_total)
    screen.report(done)
    screen.report(done)
    screen.report(replace(done, phase="verify"))
    assert [line.split(",")[0] for line in screen.err.getvalue().splitlines()] == [
        "copy 100%",
        "verify 100%",
    ]


def test_terminal_gets_a_bar_for_each_phase_and_the_finished_ones_stay() -> None:
    screen = Screen(terminal=True)
    screen.report(PROGRESS)
    drawn = screen.err.getvalue()
    assert "━" in drawn
    assert "25%" in drawn
    assert "COW 25% of 4.0 MiB" in drawn
    assert max(len(line) for line in drawn.splitlines()) < 120
    whole = replace(PROGRESS, bytes_done=PROGRESS.bytes_total)
    screen.report(whole)
    screen.report(replace(whole, phase="verify"))
    before = screen.err.getvalue()
    first, second = before.find("copy ━"), before.find("verify ━")
    assert 0 <= first < second
    assert "100%" in before[first:second]
    assert "100%" in before[second:]
    screen.report(ENDED)
    assert screen.err.getvalue() == before


def test_outcome_goes_to_stdout_with_holds_and_digest() -> None:
    screen = Screen(terminal=False)
    screen.report(ENDED)
    text = screen.out.getvalue()
    assert "ab" * 32 in text
    assert "0.4 ms, 1.50 s" in text
    assert "100.0 MiB in 12 s" in text
    assert "yes, read back" in text
    assert screen.err.getvalue() == ""


def test_failure_is_left_to_the_command_line_to_say() -> None:
    screen = Screen(terminal=False)
    screen.report(replace(ENDED, error="no", state="failed", exit_status=1))
    assert screen.out.getvalue() == screen.err.getvalue() == ""


def test_names_are_no_markup() -> None:
    screen = Screen(terminal=False)
    screen.report(events.Warned(job="j", message="[red]x[/nothing]"))
    assert screen.err.getvalue() == "warning: [red]x[/nothing]\n"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0.0 s"), (9.94, "9.9 s"), (59, "59 s"), (187, "3:07"), (3750, "1:02:30")],
)
def test_times_are_short(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_holds_are_in_milliseconds_until_they_are_long() -> None:
    assert [hold_time(0.0004), hold_time(0.25), hold_time(2)] == ["0.4 ms", "250.0 ms", "2.00 s"]


def test_json_has_one_object_a_line_event_first() -> None:
    out = io.StringIO()
    report = JsonLines(out)
    report(PROGRESS)
    report(ENDED)
    report.close()
    first, second = out.getvalue().splitlines()
    assert first.startswith('{"event": "progress", "job": "j"')
    ended = json.loads(second)
    # the names that DESIGN.md 8 promises
    assert {
        *("job", "state", "begin_time", "seconds", "bytes_total", "bytes_source", "bytes_cow"),
        *("bytes_zero", "exceptions", "cow_used_bytes", "hold_seconds", "digest", "verified"),
    } <= ended.keys()


def test_group_is_shown_as_one_with_a_line_for_each_volume() -> None:
    screen = Screen(terminal=False)
    screen.report(replace(PROGRESS, job="g.1", group="g"))
    screen.report(replace(ENDED, job="g.1", group="g"))
    assert (screen.out.getvalue(), screen.err.getvalue()) == ("", "")
    screen.report(events.Warned(job="g.1", group="g", message="slow"))
    screen.report(replace(PROGRESS, job="g", first=None, cow_full=None, rate_bytes=0.0))
    assert screen.err.getvalue().splitlines() == [
        "g.1: warning: slow",
        "copy 25%, 25.0 MiB, COW 25% of 4.0 MiB",
    ]
    members = [
        {"job": f"g.{n}", "source": f"/dev/{n}", "destination": f"block:/dev/x{n}", "digest": "ab"}
        for n in (1, 2)
    ]
    holds = {"/dev/1": 0.0004, "/dev/2": 0.0003}
    screen.report(replace(ENDED, job="g", members=tuple(members), holds=holds))
    said = [line.rstrip() for line in screen.out.getvalue().splitlines()]
    assert "writes held  /dev/1 0.4 ms, /dev/2 0.3 ms" in said
    assert "volume       g.2: /dev/2 -> block:/dev/x2, sha256 ab" in said
