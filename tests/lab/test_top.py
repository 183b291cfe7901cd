"""Copies that really run, as a person sees them (``dmcopy top``, in tmux), and Prometheus."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from tests.lab.scene import CHECKOUT, Running, Scene, kill_all, no_helpers, scene, until
from tests.lab.stage import sh

pytestmark = [pytest.mark.lab, pytest.mark.timeout(400)]

MIB = 1 << 20


@pytest.fixture
def at() -> Iterator[Scene]:
    with scene("top") as here:
        yield here


class Tmux:
    """A tmux of its own with one window, in which a shell runs."""

    def __init__(self, at: Scene, columns: int, rows: int) -> None:
        self._socket = str(at.folder / f"tmux-{columns}")
        environment = {**os.environ, **at.environment, "TERM": "xterm-256color"}
        shell = "PS1='$ ' exec sh"
        subprocess.run(
            [
                "tmux", "-f", "/dev/null", "-S", self._socket, "-u", "new-session", "-d",
                "-x", str(columns), "-y", str(rows), "-c", str(CHECKOUT), shell,
            ],
            check=True, env=environment,
        )  # fmt: skip
        at.stage.later(self._end)
        self.tell("set-option", "-g", "status", "off")
        self.tell("resize-window", "-x", str(columns), "-y", str(rows))

    def _end(self) -> None:
        self.tell("kill-server")

    def tell(self, *argv: str) -> str:
        return sh("tmux", "-S", self._socket, *argv)

    def keys(self, *keys: str) -> None:
        self.tell("send-keys", *keys)

    def shell(self, line: str) -> None:
        self.tell("send-keys", "-l", line)
        self.keys("Enter")

    def lines(self) -> list[str]:
        """Give what is on the screen."""
        text = self.tell("capture-pane", "-p")
        return [line.rstrip() for line in text.splitlines()]

    def sees(self, *texts: str) -> list[str]:
        """Wait until one screen has all of these; gives it."""
        shown: list[str] = []

        def all_there() -> bool:
            shown[:] = self.lines()
            return all(any(text in line for line in shown) for text in texts)

        try:
            until(all_there, "", patience=40)
        except AssertionError:
            raise AssertionError(f"{texts} not on the screen:\n" + "\n".join(shown)) from None
        return shown

    def is_plain(self) -> bool:
        """Tell whether the terminal shows a cursor, on the screen that the shell uses."""
        return self.tell("display-message", "-p", "#{cursor_flag} #{alternate_on}") == "1 0"


TOP = shlex.join([sys.executable, "-m", "dmcopy", "top", "--interval", "0.5"])


def copying(at: Scene, name: str, *, rate: str) -> tuple[Running, str]:
    """Begin a copy that lasts; gives it, and the source."""
    source, target = at.origin(24), at.stage.disk(24)
    at.hold_open(source)
    running = at.start(
        "copy", source, target, "--name", name, "--json", "--segment", "256k", "--batch", "2m",
        "--cow", "24m", "--rate", rate,
    )  # fmt: skip
    running.wait_for("begun")
    return running, source


def row(shown: list[str], name: str) -> list[str]:
    (line,) = (line for line in shown if line.startswith(name))
    return line.split()


def share(shown: list[str], name: str) -> int:
    return int(next(word for word in row(shown, name)[2:] if word.endswith("%")).strip("v%"))


def test_jobs_are_seen_while_they_run_end_are_killed_and_go_on(at: Scene) -> None:
    short, _ = copying(at, "short", rate="200k")
    long, long_source = copying(at, "long-name-of-a-job", rate="200k")
    small, wide = Tmux(at, 80, 24), Tmux(at, 160, 50)
    for tmux in (small, wide):
        tmux.shell("stty -g > $DMCOPY_STATE_DIR/stty-before")
        tmux.shell("clear; echo before-top")
        tmux.sees("before-top")
        tmux.shell(f"{TOP}; echo status-$?")
    shown = small.sees("2 running", "long-name", "q: quit")
    assert max(map(len, shown)) <= 80
    assert not any("before-top" in line for line in shown)
    shown = small.sees("COW>END", "ms/", "K ")  # holds, and a rate
    far = share(shown, "long-name")
    until(lambda: share(small.lines(), "long-name") > far, "the share that is done grows")
    assert f"    {long_source} → /dev/loop" in "\n".join(shown)
    broad = wide.sees("2 running", "SOURCE → DESTINATION", "·", "█")
    assert any(line.startswith("long-name-of-a-job ") and "→ /dev/loop" in line for line in broad)

    # resized while it runs
    wide.tell("resize-window", "-x", "100", "-y", "12")
    shown = wide.sees("2 running", f"    {long_source}")
    assert max(map(len, shown)) <= 100
    wide.tell("resize-window", "-x", "160", "-y", "50")
    wide.sees("SOURCE → DESTINATION", "█")

    # one ends, the other is killed, is gone on with, and is given up
    assert at.run("set", "short", "rate=none").status == 0
    assert short.ended().status == 0
    shown = small.sees("1 running", "1 ended")
    assert row(shown, "short")[1:3] == ["ended", "100%"]
    kill_all(long)
    long.ended()
    no_helpers()
    shown = small.sees("0 running, 1 stopped", "go on: dmcopy resume long-name-of-a-job")
    assert "interrupted" in "\n".join(shown)
    again = at.start("resume", "long-name-of-a-job", "--json")
    again.wait_for("resumed")
    small.sees("1 running, 0 stopped")
    assert at.run("cancel", "long-name-of-a-job").status == 0
    again.ended()
    small.sees("0 running, 0 stopped, 2 ended", "cancelled")

    # it changes nothing, and gives the terminal back
    small.keys("q")
    wide.keys("C-c")
    for tmux in (small, wide):
        shown = tmux.sees("before-top", "status-0")
        assert not any("running" in line for line in shown)
        assert tmux.is_plain()
        tmux.shell("stty -g | cmp - $DMCOPY_STATE_DIR/stty-before && echo terminal-$((40+2))")
        tmux.sees("terminal-42")


def test_it_is_cheap_and_opens_no_device(at: Scene) -> None:
    running, source = copying(at, "job", rate="1m")
    process = subprocess.Popen(
        [sys.executable, "-m", "dmcopy", "top", "--json", "--interval", "0.1"],
        stdout=subprocess.PIPE, cwd=CHECKOUT, env=os.environ | at.environment,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        for _ in range(2):
            process.stdout.readline()
        before, began = cpu(process.pid), time.monotonic()
        devices = set()
        for _ in range(20):
            process.stdout.readline()
            devices |= devices_of(process.pid)
        spent, took = cpu(process.pid) - before, time.monotonic() - began
    finally:
        process.terminate()
        assert process.wait(30) == 0
        process.stdout.close()
    assert devices <= {"/dev/mapper/control", "/dev/null"}, devices
    assert spent / 20 < 0.15, f"{spent:.2f} s of CPU for 20 looks in {took:.1f} s"
    assert source not in devices
    running.kill(signal.SIGTERM)
    assert running.ended().status == 5
    assert at.run("cancel", "job").status == 0


def test_metrics_of_real_jobs_are_printed_written_and_served_by_the_agent(at: Scene) -> None:
    file = at.folder / "jobs.prom"
    config = at.folder / "etc"
    config.mkdir()
    (config / "agent.toml").write_text(
        f'metrics-listen = "127.0.0.1:9273"\nmetrics-textfile = "{file}"\n'
    )
    at.environment["DMCOPY_CONFIG_DIR"] = str(config)
    agent = at.start("agent")
    running, source = copying(at, "job", rate="1m")
    until(lambda: b'dmcopy_job_running{job_name="job"} 1.0' in scraped(), "it is served")
    until(lambda: figure(scraped(), "dmcopy_job_copied_bytes_total") > 2 * MIB, "it grows")
    seen = scraped()
    assert figure(seen, "dmcopy_job_size_bytes") == 24 * MIB
    assert figure(seen, "dmcopy_job_rate_bytes_per_second") < 4 * MIB
    assert figure(seen, "dmcopy_job_hold_seconds_count") >= 2  # begin, and what is retired
    assert figure(seen, "dmcopy_job_cow_size_bytes") == 24 * MIB
    assert at.run("set", "job", "rate=none").status == 0
    ran = running.ended()
    assert ran.status == 0
    printed = at.run("metrics")
    assert printed.status == 0
    text = printed.stdout.encode()
    held = ran.event("ended")["held"]
    assert figure(text, "dmcopy_job_hold_seconds_count") == held["count"] == sum(held["counts"])
    told = len(ran.of_kind("hold"))
    assert held["count"] == told
    assert held["sum_seconds"] == pytest.approx(sum(h["seconds"] for h in ran.of_kind("hold")))
    assert figure(text, "dmcopy_job_copied_bytes_total") == 24 * MIB
    assert figure(text, "dmcopy_job_exit_status") == 0
    begin = figure(text, "dmcopy_last_success_begin_timestamp_seconds")
    assert time.time() - 120 < begin <= figure(text, "dmcopy_last_success_timestamp_seconds")
    assert f'series="job",source="{source}"'.encode() in text
    until(lambda: file.exists() and b"dmcopy_jobs" in file.read_bytes(), "the file is written")
    agent.kill(signal.SIGTERM)
    assert agent.ended().status == 0


def scraped() -> bytes:
    try:
        with urlopen("http://127.0.0.1:9273/metrics", timeout=10) as answer:
            found: bytes = answer.read()
            return found
    except URLError:
        return b""


def figure(text: bytes, name: str) -> float:
    """Give the one sample of that name, 0 where there is none yet."""
    found = [
        line.rpartition(b" ")[2]
        for line in text.splitlines()
        if line.startswith((f"{name}{{".encode(), f"{name} ".encode()))
    ]
    assert len(found) <= 1
    return float(found[0]) if found else 0.0


def cpu(pid: int) -> float:
    """Give the seconds of CPU that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def devices_of(pid: int) -> set[str]:
    found = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # it was closed since
            found.add(os.readlink(link))
    return {path for path in found if path.startswith("/dev/")}
