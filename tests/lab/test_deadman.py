"""The dead man: nothing stays held, whatever becomes of the process that holds it.

The process that holds is a fork of the test, so that it can be killed, stopped, and left alone.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from dmcopy.kernel.dmioctl import DmIoctl
from dmcopy.stack.deadman import DeadMan
from tests.lab.scene import SLACK, Scene, helpers, is_suspended, scene, timed_write, until
from tests.lab.stage import sh

pytestmark = [pytest.mark.lab]

proof = pytest.mark.proof

LIMIT = 0.6
Say = Callable[[str], object]


@pytest.fixture
def at() -> Iterator[Scene]:
    with scene("dead") as here:
        yield here


@pytest.fixture
def origin(at: Scene) -> str:
    """Give a device with another table loaded: resuming would swap that in."""
    origin = at.origin(8)
    sh("dmsetup", "load", origin, "--table", "0 16384 error")
    return origin


class Holder:
    """A fork that holds; it says where it is, a line each."""

    def __init__(self, body: Callable[[Say], object]) -> None:
        self._out, inside = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            self._child(body, inside)
        os.close(inside)
        self._file = os.fdopen(self._out)

    def _child(self, body: Callable[[Say], object], out: int) -> None:
        status = 1
        try:
            os.close(self._out)
            os.setsid()
            body(lambda word: os.write(out, f"{word}\n".encode()))
            status = 0
        except BaseException:
            traceback.print_exc(file=sys.__stderr__)
        finally:
            os._exit(status)

    def heard(self, word: str) -> None:
        assert self._file.readline() == f"{word}\n"

    def kill(self, number: int) -> None:
        os.kill(self.pid, number)

    def close(self) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        with suppress(ChildProcessError):
            os.waitpid(self.pid, 0)
        self._file.close()


@contextmanager
def holding(body: Callable[[Say], object]) -> Iterator[Holder]:
    holder = Holder(body)
    try:
        yield holder
    finally:
        holder.close()


def name_of(path: str) -> str:
    return os.path.basename(path)


def hold(origin: str, *, limit: float = LIMIT, armed: bool = True) -> Callable[[Say], object]:
    """Make what holds *origin* until it is killed."""

    def body(say: Say) -> None:
        dm = DmIoctl()
        dead_man = DeadMan([name_of(origin)], limit=limit)
        with dead_man:
            if armed:
                dead_man.arm()
                dm.suspend(name_of(origin))
            say("held")
            end = time.monotonic() + 60
            while time.monotonic() < end:
                time.sleep(0.05)  # SIGUSR1 cuts it short
            dead_man.disarm()

    return body


def assert_released(origin: str, seconds: float) -> None:
    """The device goes on within *seconds*, with the table it had."""
    assert until(lambda: not is_suspended(origin), "resumed", patience=5 + 10 * SLACK) < seconds
    assert " linear " in sh("dmsetup", "table", origin), "the loaded table was swapped in"
    assert "Inactive" not in sh("dmsetup", "info", origin)
    assert timed_write(origin) < 0.5 + SLACK


@proof
def test_killed_holder_is_stood_in_for_at_once(origin: str) -> None:
    with holding(hold(origin, limit=30.0)) as holder:
        holder.heard("held")
        assert is_suspended(origin)
        holder.kill(signal.SIGKILL)
        assert_released(origin, SLACK)  # long before the limit: the pipe closed
        until(lambda: not helpers(), "the dead man ended")


@proof
def test_stopped_holder_is_stood_in_for_at_the_limit(origin: str) -> None:
    with holding(hold(origin)) as holder:
        holder.heard("held")
        holder.kill(signal.SIGSTOP)
        assert_released(origin, LIMIT + SLACK)
        # The holder may wake up and hold again: the dead man stays until it is gone.
        assert list(helpers().values()) == ["dmcopy.stack.watch"]
        holder.kill(signal.SIGKILL)
        until(lambda: not helpers(), "the dead man ended")


def test_holder_that_goes_on_too_long_loses_its_hold(origin: str) -> None:
    with holding(hold(origin)) as holder:
        holder.heard("held")
        assert_released(origin, LIMIT + SLACK)


def test_holder_learns_that_the_dead_man_fired(origin: str) -> None:
    def body(say: Say) -> None:
        with DeadMan([name_of(origin)], limit=LIMIT) as dead_man:
            dead_man.arm()
            DmIoctl().suspend(name_of(origin))
            end = time.monotonic() + LIMIT + 2 * SLACK
            while time.monotonic() < end:
                time.sleep(0.05)
            dead_man.disarm()
            say(f"fired {dead_man.fired}")

    with holding(body) as holder:
        holder.heard("fired True")
    assert_released(origin, SLACK)


def test_dead_man_ends_when_nothing_happens(origin: str) -> None:
    def body(say: Say) -> None:
        with DeadMan([name_of(origin)], limit=30.0) as dead_man:
            dead_man.arm()
            DmIoctl().suspend(name_of(origin))
            DmIoctl().resume(name_of(origin))
            dead_man.disarm()
        children = subprocess.run(
            ["ps", "--no-headers", "-o", "stat,args", "--ppid", str(os.getpid())],
            check=False, capture_output=True, text=True,
        ).stdout.splitlines()  # fmt: skip
        zombies = [line for line in children if "ps --no" not in line]
        say(f"fired {dead_man.fired}, children {zombies}")

    with holding(body) as holder:
        holder.heard("fired False, children []")
        assert " error" in sh("dmsetup", "table", origin), "it was the holder who resumed"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_dead_man_survives_what_ends_others(origin: str, number: int) -> None:
    with holding(hold(origin, limit=30.0)) as holder:
        holder.heard("held")
        (pid,) = helpers()
        os.killpg(pid, number)
        time.sleep(0.2)
        assert list(helpers()) == [pid]
        holder.kill(signal.SIGKILL)
        assert_released(origin, SLACK)


def test_dead_man_that_was_never_armed_touches_nothing(origin: str) -> None:
    with holding(hold(origin, armed=False)) as holder:
        holder.heard("held")
        sh("dmsetup", "load", origin, "--table", sh("dmsetup", "table", origin))
        # somebody else's hold, which is not ours to end
        sh("dmsetup", "suspend", origin)
        try:
            holder.kill(signal.SIGKILL)
            until(lambda: not helpers(), "the dead man ended", patience=5 + SLACK)
            assert is_suspended(origin)
        finally:
            sh("dmsetup", "resume", origin)


def test_dead_man_itself_killed_does_not_stop_the_holder(origin: str) -> None:
    def body(say: Say) -> None:
        with DeadMan([name_of(origin)], limit=30.0) as dead_man:
            dead_man.arm()
            DmIoctl().suspend(name_of(origin))
            (pid,) = helpers()
            os.kill(pid, signal.SIGKILL)
            DmIoctl().resume(name_of(origin))
            dead_man.disarm()
        say("done")

    with holding(body) as holder:
        holder.heard("done")
    assert not is_suspended(origin)


# the swap at begin time, stuck behind a write that is under way


def stuck_write(path: str) -> threading.Thread:
    thread = threading.Thread(target=timed_write, args=(path, 0), daemon=True)
    thread.start()
    time.sleep(0.2)
    return thread


def test_hold_limit_gives_up_and_leaves_the_old_table(at: Scene) -> None:
    under = at.origin(8)
    origin = at.origin(under=under)
    table = sh("dmsetup", "table", origin)
    destination = at.stage.disk(8)
    at.hold_open(origin)
    # What is written to the origin now never ends: control waits for it in the kernel.
    sh("dmsetup", "suspend", "--noflush", under)
    try:
        writing = stuck_write(origin)
        ran = at.run("copy", origin, destination, "--hold-limit", "0.3", "--json")
        assert writing.is_alive()
        assert ran.status == 1, ran
        assert ran.event("ended")["kind"] == "hold-limit"
        assert "did not end within 0.3 s (3 attempts)" in ran.said
        assert "--hold-limit" in ran.said
        assert "begun" not in [event["event"] for event in ran.events]
        assert sh("dmsetup", "table", origin) == table
    finally:
        sh("dmsetup", "resume", under)
    writing.join()
    at.assert_clean(origin, table)


def test_slow_write_within_the_limit_is_waited_for(at: Scene) -> None:
    origin = at.origin(under=at.slow(at.stage.disk(8), write_ms=1500))
    at.hold_open(origin)
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            timed_write(origin, 0)

    writing = threading.Thread(target=write)
    writing.start()
    try:
        ran = at.run("copy", origin, at.stage.disk(8), "--hold-limit", "20", "--json")
    finally:
        stop.set()
        writing.join()
    assert ran.status == 0, ran
    (begin, _end) = ran.event("ended")["hold_seconds"]
    assert begin < 1.5 + SLACK
