"""``dmcopy top`` on a terminal of its own: keys, signals, sizes, and what it costs to look."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from dmcopy.cli.common import Context
from dmcopy.cli.main import main
from dmcopy.jobs.journal import Journal
from dmcopy.jobs.lock import JobLock
from dmcopy.jobs.spec import Places
from dmcopy.jobs.state import State
from tests.unit.fake_dm import FakeDm
from tests.unit.jobs.test_glance import BEGUN, PROGRESS, SPEC

_PATIENCE = 30.0
_IN, _OUT = b"\x1b[?1049h", b"\x1b[?1049l"


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places(tmp_path / "state", tmp_path / "run")


def _running(places: Places, name: str = "a") -> JobLock:
    with Journal(places.journal) as journal:
        journal.define(name, SPEC)
        for state in (State.BEGUN, State.COPYING):
            journal.move(name, state)
        journal.note(name, "begun", BEGUN)
        journal.set_facts(name, {"provider": "splice"})
    _told(places, 50, name)
    return JobLock(places.locks, name)


def _told(places: Places, done: int, name: str = "a") -> None:
    with Journal(places.journal) as journal:
        journal.note(name, "progress", PROGRESS | {"bytes_done": done})


class Terminal:
    """A terminal with ``dmcopy top`` on it."""

    def __init__(self, places: Places, *argv: str, **environment: str) -> None:
        self.master, slave = pty.openpty()
        self.slave = slave
        self.resize(24, 80)
        self.before = termios.tcgetattr(slave)
        self.seen = b""
        env = {
            **os.environ, "TERM": "xterm-256color", "DMCOPY_STATE_DIR": str(places.state),
            "DMCOPY_RUN_DIR": str(places.runtime), **environment,
        }  # fmt: skip
        for name in ("COLUMNS", "LINES", *([] if "NO_COLOR" in environment else ["NO_COLOR"])):
            env.pop(name, None)
        self.process = subprocess.Popen(
            ["setsid", "--ctty", sys.executable, "-m", "dmcopy.cli.main", "top", *argv],
            stdin=slave, stdout=slave, stderr=slave, env=env,
        )  # fmt: skip

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))

    def read(self, seconds: float) -> bytes:
        """Give what comes within that time."""
        got, deadline = b"", time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if select.select([self.master], [], [], left)[0]:
                got += os.read(self.master, 65536)
        self.seen += got
        return got

    def until(self, text: bytes) -> bytes:
        """Give what comes up to that text, and what came with it."""
        got, deadline = b"", time.monotonic() + _PATIENCE
        while text not in got:
            assert time.monotonic() < deadline, (text, got)
            got += self.read(0.05)
        return got

    def type(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def ended(self, status: int = 0) -> None:
        """Make sure that it ends, and that the terminal is as it was."""
        deadline = time.monotonic() + _PATIENCE
        while self.process.poll() is None:
            assert time.monotonic() < deadline, self.seen
            self.read(0.05)
        self.read(0.1)
        assert self.process.returncode == status, self.seen
        assert termios.tcgetattr(self.slave) == self.before
        assert self.seen.count(_IN) == self.seen.count(_OUT) >= 1
        assert self.seen.rindex(b"\x1b[?25h") > self.seen.rindex(b"\x1b[?25l")
        assert self.seen.endswith(_OUT)  # no word after it, no traceback


@pytest.fixture
def terminals() -> Iterator[list[Terminal]]:
    made: list[Terminal] = []
    yield made
    for one in made:
        with suppress(ProcessLookupError):
            one.process.kill()
        one.process.wait()
        for fd in (one.master, one.slave):
            with suppress(OSError):
                os.close(fd)


@pytest.mark.forks
def test_nothing_is_written_while_nothing_changes_and_little_when_little_does(
    places: Places, terminals: list[Terminal]
) -> None:
    with _running(places):
        terminal = Terminal(places, "--interval", "0.1")
        terminals.append(terminal)
        first = terminal.until(b"25%")
        first += terminal.read(0.5)
        assert len(first) > 200  # a whole screen is no small thing
        before = _looks(terminal)
        assert terminal.read(2.0) == b""
        assert _looks(terminal) > before  # it looked at it all the time
        _told(places, 52)
        changed = terminal.read(1.0)
        assert b"6" in changed
        assert 0 < len(changed) < 40  # two digits, and how to get there
        terminal.resize(30, 160)
        whole = terminal.until(b"DESTINATION") + terminal.read(0.5)
        assert len(whole) > 200
        assert b"\x1b[2J" in whole
        terminal.type(b"x")
        assert terminal.read(0.5) == b""
        terminal.type(b"q")
        terminal.ended()


def _looks(terminal: Terminal) -> int:
    """Give how much it has read so far: it opens the journal at each look."""
    text = Path(f"/proc/{terminal.process.pid}/io").read_text()
    return int(re.findall(r"rchar: (\d+)", text)[0])


@pytest.mark.forks
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_gives_the_terminal_back(
    places: Places, terminals: list[Terminal], number: int
) -> None:
    terminal = Terminal(places, NO_COLOR="1")
    terminals.append(terminal)
    shown = terminal.until(b"no jobs")
    assert not re.search(rb"\x1b\[[\d;]*3[0-7]m", shown)
    if number == signal.SIGINT:
        terminal.type(b"\x03")
    else:
        terminal.process.send_signal(number)
    terminal.ended()
    assert not places.state.exists()
    assert not places.runtime.exists()


@pytest.mark.forks
def test_stopped_by_hand_it_gives_the_terminal_back_and_takes_it_again(
    places: Places, terminals: list[Terminal]
) -> None:
    with _running(places):
        terminal = Terminal(places)
        terminals.append(terminal)
        terminal.until(b"25%")
        terminal.process.send_signal(signal.SIGTSTP)  # as Ctrl-Z does
        terminal.until(_OUT)
        assert os.waitpid(terminal.process.pid, os.WUNTRACED)[1] & 0xFF == 0x7F
        assert termios.tcgetattr(terminal.slave) == terminal.before
        terminal.process.send_signal(signal.SIGCONT)
        assert b"25%" in terminal.until(b"COW>END") + terminal.read(0.3)
        terminal.type(b"Q")
        terminal.ended()


@pytest.mark.forks
def test_terminal_that_is_gone_ends_it(places: Places, terminals: list[Terminal]) -> None:
    terminal = Terminal(places, "--interval", "0.1")
    terminals.append(terminal)
    terminal.until(b"no jobs")
    os.close(terminal.slave)
    os.close(terminal.master)
    assert terminal.process.wait(_PATIENCE) in (0, 1)


def test_where_stdout_is_no_terminal_there_is_one_plain_table(
    places: Places, capsys: pytest.CaptureFixture[str]
) -> None:
    with _running(places):
        assert main(["top"], Context(dm=FakeDm(), places=places)) == 0
    said = capsys.readouterr()
    assert "\x1b" not in said.out
    head, headings, row = said.out.splitlines()
    assert head == "dmcopy: 1 running, 0 stopped, 0 ended"
    assert headings.split()[:3] == ["JOB", "STATE", "DONE"]
    assert row.split()[:3] == ["a", "copying", "25%"]
    assert said.err == ""


def test_once_as_json_is_one_object(places: Places, capsys: pytest.CaptureFixture[str]) -> None:
    context = Context(dm=FakeDm(), places=places)
    assert main(["top", "--json", "--once"], context) == 0
    empty = json.loads(capsys.readouterr().out)
    assert (empty["event"], empty["jobs"], empty["unread"]) == ("top", [], None)
    assert not places.state.exists()
    with _running(places):
        assert main(["top", "--json", "--once"], context) == 0
    told: dict[str, Any] = json.loads(capsys.readouterr().out)  # Any: JSON
    (job,) = told["jobs"]
    assert (job["job"], job["done"], job["total"], job["state"]) == ("a", 50, 200, "copying")


@pytest.mark.forks
def test_json_goes_on_until_nobody_reads(places: Places) -> None:
    argv = [sys.executable, "-m", "dmcopy.cli.main", "top", "--json", "--interval", "0.1"]
    env = {**os.environ, "DMCOPY_STATE_DIR": str(places.state)}
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env)
    assert process.stdout is not None
    assert process.stderr is not None
    for _ in range(3):
        assert json.loads(process.stdout.readline())["event"] == "top"
    process.stdout.close()
    assert process.wait(_PATIENCE) == 1
    assert process.stderr.read() == b""


def test_looking_too_often_is_refused(places: Places, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top", "--interval", "0.01"], Context(dm=FakeDm(), places=places)) == 2
    assert "too often" in capsys.readouterr().err
