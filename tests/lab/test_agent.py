"""The agent as a program, asked by a stock varlink client, while a load writes."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import varlink

from tests.lab import harness
from tests.lab.scene import Running, Scene, no_helpers, until
from tests.lab.stage import Stage, sh

pytestmark = pytest.mark.lab

MIB = 1 << 20
INTERFACE = "org.dmcopy.Agent"


@pytest.fixture
def at() -> Iterator[Scene]:
    stage = Stage("dmag")
    yield Scene(stage)
    stage.close()
    no_helpers()


class Agent:
    """A running ``dmcopy agent``."""

    def __init__(self, at: Scene, *, group: str | None = None) -> None:
        self.at = at
        self.socket = at.folder / "runtime/agent.sock"
        config = at.folder / "etc"
        config.mkdir(exist_ok=True)
        at.environment["DMCOPY_CONFIG_DIR"] = str(config)
        if group is not None:
            (config / "agent.toml").write_text(f'group = "{group}"\n')
        self.start()

    def start(self) -> None:
        self.running: Running = self.at.start("agent")
        until(self._answers, "the agent answers")

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(self.socket)) == 0

    def call(self, method: str, **parameters: object) -> Any:  # Any: JSON
        with (
            varlink.Client.new_with_address(f"unix:{self.socket}") as client,
            client.open(INTERFACE) as agent,
        ):
            return getattr(agent, method)(**parameters)

    def changes(self, job: str) -> list[dict[str, Any]]:  # Any: JSON
        """Subscribe to a job, to its end."""
        with (
            varlink.Client.new_with_address(f"unix:{self.socket}") as client,
            client.open(INTERFACE) as agent,
        ):
            return [one["job"] for one in agent.Subscribe(job=job, _more=True)]

    def state(self, job: str) -> str:
        state: str = self.call("Show", job=job)["job"]["state"]
        return state

    def kill(self) -> None:
        self.running.kill(signal.SIGKILL)
        self.running.process.wait()


class Copied:
    """A source under load, a slow destination, and the words that copy one onto the other."""

    def __init__(self, at: Scene, name: str, mib: int = 4) -> None:
        self.at, self.name = at, name
        self.origin = at.origin(mib)
        harness.write_device(self.origin, harness.pattern(mib * MIB))
        self.table = sh("dmsetup", "table", self.origin)
        self.destination = at.slow(at.stage.disk(mib), write_ms=100)
        self.words = [
            self.origin, self.destination, "--name", name, "--segment", "256k", "--batch", "512k",
            "--no-retire", "--rate", "256k",  # retired, the witness would lose what is copied
        ]  # fmt: skip

    def assert_right(self, witness: bytes) -> None:
        assert harness.differing(harness.read_device(self.destination), witness) == []
        self.at.assert_back(self.origin, self.table)


def _witness(events: list[dict[str, Any]]) -> bytes:  # Any: JSON
    """Read the kernel's own view of the begin time."""
    (begun,) = (event for event in events if event["event"] == "begun")
    return harness.read_device(begun["snapshot"])


def test_stock_client_drives_a_whole_job_and_kill_9_of_the_agent_is_nothing_to_it(
    at: Scene,
) -> None:
    agent = Agent(at)
    copy = Copied(at, "job")
    with at.load(copy.origin):
        plan = agent.call("Plan", words=copy.words)["plan"]
        assert (plan["source"], plan["bytes_total"]) == (copy.origin, 4 * MIB)
        assert agent.call("List", all=True)["jobs"] == []
        started = agent.call("Start", words=[*copy.words, "--verify"])
        assert started["job"] == "job"
        witness = _witness(started["events"])
        agent.call("Pause", job="job")
        paused = agent.call("Show", job="job")["job"]
        assert paused["running"]
        assert paused["bytes_done"] < 4 * MIB
        agent.kill()
        agent.start()
        (known,) = agent.call("List")["jobs"]
        assert (known["name"], known["running"]) == ("job", True)
        agent.call("Order", job="job", words=["--first", "3m+512k"])
        agent.call("Set", job="job", settings={"rate": "2m"})
        agent.call("Resume", job="job")
        changes = agent.changes("job")
    assert len(changes) >= 2
    assert (changes[-1]["state"], changes[-1]["exit_status"]) == ("ended", 0)
    assert changes[-1]["digest"] == hashlib.sha256(witness).hexdigest()
    copy.assert_right(witness)
    with pytest.raises(varlink.VarlinkError) as caught:
        agent.call("Cancel", job="job")
    assert caught.value.error() == f"{INTERFACE}.Refused"
    agent.running.kill(signal.SIGTERM)
    assert agent.running.ended().status == 0
    assert not agent.socket.exists()


def test_detached_copy_is_the_agents_and_what_was_interrupted_goes_on(at: Scene) -> None:
    agent = Agent(at)
    copy = Copied(at, "job")
    with at.load(copy.origin):
        ran = at.run("copy", *copy.words, "--detach", "--json")
        assert ran.status == 0, ran
        witness = _witness(ran.events)
        pid = agent.call("Show", job="job")["status"]["pid"]
        os.kill(pid, signal.SIGKILL)
        until(lambda: agent.call("Show", job="job")["job"]["can_resume"], "it is interrupted")
        no_helpers()
        refused = at.run("copy", copy.destination, copy.origin, "--detach")
        assert refused.status == 3, refused
        assert len(refused.stderr.splitlines()) == 1
        assert at.fork("set", "job", "rate=none").status == 0
        gone_on = at.run("resume", "--all")
        assert (gone_on.status, gone_on.stdout) == (0, "job goes on\n"), gone_on
        assert at.run("wait", "job").status == 0
    copy.assert_right(witness)
    agent.kill()
    nothing = at.run("resume", "--all", "--json")
    assert (nothing.status, nothing.stdout) == (0, "")


def test_what_somebody_paused_is_not_gone_on_with(at: Scene) -> None:
    copy = Copied(at, "job")
    with at.load(copy.origin):
        running = at.start("copy", *copy.words, "--json")
        running.wait_for("begun")
        assert at.fork("pause", "job").status == 0
        running.kill(signal.SIGKILL)
        running.ended()
        no_helpers()
        ran = at.fork("resume", "--all")
        assert (ran.status, ran.stdout) == (0, ""), ran
        assert at.fork("cancel", "job").status == 0
    at.assert_back(copy.origin, copy.table)


_AS_NOBODY = """
import os, socket, sys
os.setgroups([int(word) for word in sys.argv[2].split()]); os.setgid(65534); os.setuid(65534)
with socket.socket(socket.AF_UNIX) as connection:
    connection.settimeout(10)
    try:
        connection.connect(sys.argv[1])
        if sys.argv[3:]:
            connection.sendall(b'{"method": "org.dmcopy.Agent.Info"}\\0')
        print(connection.recv(4096).decode())
    except OSError as exc:
        print(type(exc).__name__)
"""


def _as_nobody(path: Path, *groups: int, ask: bool = True) -> str:
    argv = [sys.executable, "-I", "-c", _AS_NOBODY, str(path), " ".join(map(str, groups))]
    argv += ["ask"] if ask else []
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_who_is_neither_root_nor_in_the_group_is_refused(at: Scene) -> None:
    for folder in (at.folder, at.folder.parent):
        folder.chmod(0o755)
    agent = Agent(at, group="disk")
    disk = agent.socket.stat().st_gid
    assert disk != 0
    assert _as_nobody(agent.socket) == "PermissionError"
    assert "version" in _as_nobody(agent.socket, disk)
    agent.socket.chmod(0o666)  # whatever becomes of the mode, the kernel says who asks
    assert "PermissionDenied" in _as_nobody(agent.socket, ask=False)
    second = at.run("agent")
    assert (second.status, len(second.stderr.splitlines())) == (3, 1), second
    agent.call("Info")


def test_hundreds_of_dead_callers_do_not_keep_the_next_from_an_answer(at: Scene) -> None:
    agent = Agent(at)
    held = []
    for number in range(300):
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(0.05)
        try:
            connection.connect(str(agent.socket))
            connection.send(b'{"method": ' if number % 2 else b"\xff" * 4096)
        except OSError:
            connection.close()
        else:
            held.append(connection)
    started = time.monotonic()
    until(lambda: _info(agent) is not None, "the agent answers")
    assert time.monotonic() - started < 30
    for connection in held:
        connection.close()


def _info(agent: Agent) -> dict[str, Any] | None:  # Any: JSON
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(5)
        try:
            connection.connect(str(agent.socket))
            connection.sendall(b'{"method": "org.dmcopy.Agent.Info"}\0')
            said: dict[str, Any] = json.loads(connection.recv(4096).rstrip(b"\0"))
        except (OSError, ValueError):
            return None
    return said.get("parameters")


def test_jobs_of_a_queue_run_one_after_the_other(at: Scene) -> None:
    assert at.fork("set", "--host", "jobs=none").status == 0
    assert at.fork("set", "--host", "jobs=0").status == 2
    assert at.fork("set", "--host", "jobs=1").status == 0
    first, second = Copied(at, "first", mib=4), Copied(at, "second", mib=1)
    running = at.start("copy", *first.words, "--json", "--queue")
    running.wait_for("begun")
    waiting = at.start("copy", *second.words, "--json", "--queue")
    waiting.wait_for("queued")
    third = at.fork("copy", second.origin, "image:" + str(at.folder / "third"), "--json")
    assert third.status == 0, "who is in a hurry takes no turn"
    assert at.fork("status", "second").status == 2, "nothing is done yet"
    running.kill()  # its turn ends with it, however it ends
    waiting.wait_for("begun")
    assert waiting.ended().status == 0
    no_helpers()
    assert at.fork("cancel", "first").status == 0
    at.assert_back(first.origin, first.table)
    at.assert_back(second.origin, second.table)
