"""A load that would fill the COW device: it grows, writers are braked, or the copy says it is lost.

Proved by the load itself (`stamp`): the image is one instant, no write failed, none waited longer
than the hold limit.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.lab import harness, stamp
from tests.lab.harness import nanoseconds
from tests.lab.scene import SLACK, Ran, Scene, assert_proved, helpers, scene, timed_write
from tests.lab.stage import sh

pytestmark = [pytest.mark.lab, pytest.mark.timeout(240)]

SIZE = 16  # MiB
LIMIT = 2.0
JOB = ("--name", "job", "--json", "--segment", "256k", "--batch", "1m", "--chunk", "16k")


@pytest.fixture
def at() -> Iterator[Scene]:
    with scene("full") as here:
        yield here


@pytest.fixture
def origin(at: Scene) -> str:
    path = at.origin(SIZE)
    stamp.fill(path, seed=1)
    return path


def longest(log: Path) -> float:
    """Give the longest that a write of the load took, in seconds."""
    writes = [write for file in log.glob("log.*") for write in stamp.read_log(file)[1]]
    return max(w.acknowledged - w.submitted for w in writes if w.acknowledged) / 1e9


def copy_under_load(at: Scene, origin: str, destination: str, *options: str) -> tuple[Ran, Path]:
    table = sh("dmsetup", "table", origin)
    with at.load(origin, pause=0.015, max_blocks=4) as log:
        ran = at.run("copy", origin, destination, *JOB, *options)
        time.sleep(0.2)
        at.assert_clean(origin, table)
    return ran, log


def test_without_growth_or_brake_the_load_fills_it(at: Scene, origin: str) -> None:
    """So that the tests below can fail."""
    slow = at.slow(at.stage.disk(SIZE), write_ms=150)
    ran, _ = copy_under_load(at, origin, slow, "--cow", "4m")
    assert ran.status == 4, ran
    assert "full or failed" in ran.stderr


def test_cow_file_grows_before_it_is_full(at: Scene, origin: str) -> None:
    slow = at.slow(at.stage.disk(SIZE), write_ms=150)
    ran, log = copy_under_load(at, origin, slow, "--cow", "4m", "--cow-max", "64m")
    assert_proved(ran, log, slow)
    grown = ran.of_kind("grown")
    assert grown, "it did not grow"
    assert ran.event("ended")["cow_used_bytes"] > 4 << 20, "it would not have overflowed"
    holds = [event for event in ran.of_kind("hold") if event["reason"] == "grow"]
    assert len(holds) == len(grown)
    assert longest(log) < LIMIT + SLACK
    shown = at.fork("show", "job").stdout
    assert "grown:" in shown, "what happened is in the job's record"


@pytest.mark.parametrize("cow_max", [None, "5m"])
def test_brake_holds_writers_until_the_copy_is_done(
    at: Scene, origin: str, cow_max: str | None
) -> None:
    slow = at.slow(at.stage.disk(SIZE), write_ms=150)
    options = ["--cow", "4m", "--on-full", "hold"] + (["--cow-max", cow_max] if cow_max else [])
    ran, log = copy_under_load(at, origin, slow, *options)
    assert_proved(ran, log, slow)
    braked = ran.of_kind("braked")
    assert braked, "it was not braked"
    assert braked[0]["milliseconds"] > 0
    assert braked[-1]["milliseconds"] == 0
    assert bool(ran.of_kind("grown")) == (cow_max is not None)
    waited = longest(log)
    print(f"the longest write took {waited:.2f} s; {braked}")
    assert waited < LIMIT + SLACK
    for hold in ran.of_kind("hold"):
        assert hold["seconds"] < LIMIT
    assert "braked:" in at.fork("show", "job").stdout


def test_killed_while_braking_lets_go_and_goes_on(at: Scene, origin: str) -> None:
    slow = at.slow(at.stage.disk(SIZE), write_ms=150)
    table = sh("dmsetup", "table", origin)
    with at.load(origin, pause=0.015, max_blocks=4) as log:
        running = at.start(
            "copy", origin, slow, *JOB, "--cow", "4m", "--on-full", "hold"
        )  # fmt: skip
        begun = running.wait_for("begun")
        running.wait_for("braked")
        running.wait_for("progress")
        running.kill()
        for pid, name in helpers().items():
            if "worker" in name:
                with suppress(ProcessLookupError):  # it ends with control
                    os.kill(pid, signal.SIGKILL)
        running.ended()
        assert timed_write(origin) < LIMIT + SLACK
        harness.until(lambda: not helpers())
        ran = at.run("resume", "job", "--json", "--verify")
        if ran.status == 4:  # with nobody to brake, the load may have filled it
            assert "no longer valid" in ran.stderr, ran
        else:
            assert ran.status == 0, ran
            begin = nanoseconds(begun["begin_time"])
            verdict = stamp.check(
                slow, log, 1, t0=begin, t1=begin + int(begun["hold_seconds"][0] * 1e9)
            )
            assert verdict.is_good, verdict.wrong
        at.assert_clean(origin, table)
    assert longest(log) < LIMIT + SLACK


def test_forecast_warns_before_it_is_full(at: Scene, origin: str) -> None:
    slow = at.slow(at.stage.disk(SIZE), write_ms=400)
    with at.load(origin, pause=0.06, max_blocks=1):
        ran = at.run("copy", origin, slow, *JOB, "--cow", "2m")
    assert ran.status == 4, ran
    (warned,) = [w["message"] for w in ran.of_kind("warning") if "will be full" in w["message"]]
    assert "the point in time is lost then" in warned
    at_warning = next(n for n, event in enumerate(ran.events) if event["event"] == "warning")
    later = [event for event in ran.events[at_warning:] if event["event"] == "progress"]
    assert len(later) >= 5, "it was warned of at the last moment only"
    first = [event["first"] for event in ran.events if event["event"] == "progress"]
    assert "full" in first
