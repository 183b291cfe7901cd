"""The agent's socket with real callers: stock ones, hostile ones, slow ones."""

from __future__ import annotations

import json
import os
import random
import resource
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
import varlink

from dmcopy.agent.launch import Launcher
from dmcopy.agent.server import INTERFACE, Limits, Peer, Server
from dmcopy.agent.service import Methods, service_of
from dmcopy.agent.watch import Watch
from dmcopy.jobs.spec import Places
from dmcopy.kernel.command import Commander, Completed
from tests.unit.agent.test_watch import Job, over

LIMITS = Limits(callers=8, message=10_000, idle=5.0, whole=0.3, reading=0.3)


class Agent:
    """A server with nothing behind it but programs that say what they were asked."""

    def __init__(self, folder: Path, *, allowed: bool = True) -> None:
        self.path = folder / "agent.sock"
        self.asked: list[tuple[str, ...]] = []
        self.status, self.err = 0, ""
        self.jobs = [Job("a", pid=7, state="copying")]
        self.watch = Watch(
            lambda: list(self.jobs), folder / "told", seconds=0.02, tell=lambda _text, _words: None
        )
        methods = Methods(
            Places(folder, folder),
            Launcher(Commander(self._program), in_scope=False),
            self.watch,
            lambda: "# metrics\n",
        )
        self.listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listening.bind(str(self.path))
        self.listening.listen(128)
        self.peers: list[Peer] = []

        def may_ask(peer: Peer) -> bool:
            self.peers.append(peer)
            return allowed

        self.server = Server(service_of(methods), self.listening, may_ask=may_ask, limits=LIMITS)
        self.watch.start()
        self.server.start()

    def _program(self, argv: Any, _stdin: object, _timeout: float) -> Completed:  # Any: words
        self.asked.append(tuple(argv[4:]))
        out = '{"event": "planned", "job": "new"}\n'
        return Completed(tuple(argv), self.status, out, self.err, 0.0)

    def close(self) -> None:
        self.server.stop()
        self.watch.stop()
        self.listening.close()

    def connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(5.0)
        while True:
            try:
                connection.connect(str(self.path))
            except BlockingIOError:  # as many wait already
                time.sleep(0.001)
            else:
                return connection

    def call(self, method: str, **parameters: object) -> dict[str, Any]:  # Any: JSON
        with self.connect() as connection:
            connection.sendall(message(method, **parameters))
            return answer(connection)

    def assert_alive(self) -> None:
        said = self.call("Info")
        assert "error" not in said, said  # TooMuch, as long as there is no room
        assert said["parameters"]["jobs_running"] == 1


def message(method: str, **parameters: object) -> bytes:
    call = {"method": f"{INTERFACE}.{method}", "parameters": parameters}
    return json.dumps(call | {"more": method == "Subscribe"}).encode() + b"\0"


def answer(connection: socket.socket) -> dict[str, Any]:  # Any: JSON
    data = b""
    while not data.endswith(b"\0"):
        more = connection.recv(1)
        assert more, f"closed after {data!r}"
        data += more
    found: dict[str, Any] = json.loads(data[:-1])
    return found


def is_closed(connection: socket.socket) -> bool:
    with suppress(ConnectionError):
        while connection.recv(1 << 16):
            pass
    return True


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    agent = Agent(tmp_path)
    yield agent
    agent.close()


def test_stock_client_finds_its_way_and_drives_a_job(agent: Agent) -> None:
    with varlink.Client.new_with_address(f"unix:{agent.path}") as client:
        assert INTERFACE in client.get_interfaces()
        with client.open(INTERFACE) as jobs:
            assert jobs.Start(words=["/dev/a", "/dev/b"])["job"] == "new"
            assert jobs.Plan(words=["/dev/a", "/dev/b"])["plan"]["job"] == "new"
            assert jobs.Show(job="a")["job"]["running"]
            assert [one["name"] for one in jobs.List()["jobs"]] == ["a"]
            jobs.Pause(job="a")
            jobs.Resume(job="a")
            jobs.Set(job="a", settings={"rate": "10m"})
            jobs.Set(settings={"rate": "none"})
            jobs.Order(job="a", words=["--by", "hot"])
            jobs.Cancel(job="a")
            assert jobs.Metrics()["text"] == "# metrics\n"
    assert agent.asked == [
        ("copy", "--detach", "--no-agent", "--json", "/dev/a", "/dev/b"),
        ("plan", "--json", "/dev/a", "/dev/b"),
        ("pause", "a"),
        ("resume", "a"),
        ("set", "a", "rate=10m"),
        ("set", "--host", "rate=none"),
        ("order", "a", "--by", "hot"),
        ("cancel", "a"),
    ]


def test_subscriber_gets_what_changes_and_the_end(agent: Agent) -> None:
    with agent.connect() as connection:
        connection.sendall(message("Subscribe", job="a"))
        first = answer(connection)
        assert first["continues"]
        assert first["parameters"]["job"]["state"] == "copying"
        agent.jobs = [Job("a", pid=7, progress={"bytes_done": 5})]
        assert answer(connection)["parameters"]["job"]["bytes_done"] == 5
        agent.jobs = [Job("a", **over(exit_status=0))]
        last = answer(connection)
        assert not last.get("continues")
        assert last["parameters"]["job"]["exit_status"] == 0


def test_subscriber_that_goes_away_is_noticed(agent: Agent) -> None:
    connection = agent.connect()
    connection.sendall(message("Subscribe"))
    answer(connection)
    before = threading.active_count()
    connection.close()
    end = time.monotonic() + 5.0
    while threading.active_count() >= before and time.monotonic() < end:
        time.sleep(0.01)
    assert threading.active_count() < before


@pytest.mark.parametrize(
    ("status", "error", "parameters"),
    [
        (2, "Usage", {"message": "why"}),
        (3, "Refused", {"message": "why"}),
        (4, "PointInTimeLost", {"message": "why"}),
        (6, "Failed", {"message": "why", "exit_status": 6}),
    ],
)
def test_failure_has_a_name_and_the_commands_line(
    agent: Agent, status: int, error: str, parameters: dict[str, object]
) -> None:
    agent.status, agent.err = status, "dmcopy: why\n"
    said = agent.call("Start", words=["/dev/a", "/dev/b"])
    assert said == {"error": f"{INTERFACE}.{error}", "parameters": parameters}


def test_job_that_is_not_there_has_an_error_of_its_own(agent: Agent) -> None:
    said = agent.call("Cancel", job="--help")
    assert said == {"error": f"{INTERFACE}.NoSuchJob", "parameters": {"job": "--help"}}
    assert agent.asked == []


NONSENSE = [
    b"\0",
    b"not json\0",
    b'"a string"\0',
    b"[" * 5000 + b"\0",
    b'{"method": 7}\0',
    b'{"method": "org.dmcopy.Agent.Start", "parameters": [1]}\0',
    b'{"method": "org.dmcopy.Agent.Start", "parameters": {"words": 1}}\0',
    b'{"method": "org.dmcopy.Agent.Start", "parameters": {"words": "ab"}}\0',
    b'{"method": "org.dmcopy.Agent.Start", "parameters": {"words": [1, null]}}\0',
    b'{"method": "org.dmcopy.Agent.Start", "parameters": {"word": []}}\0',
    b'{"method": "org.dmcopy.Agent.Set", "parameters": {"settings": {"rate": 7}}}\0',
    b'{"method": "org.dmcopy.Agent.__init__"}\0',
    b'{"method": "org.dmcopy.Agent._verb", "parameters": {"job": "a"}}\0',
    b'{"method": "org.dmcopy.Agent.Subscribe"}\0',
    b'{"method": "no.such.Interface"}\0',
    b'{"method": "\xff\xfe"}\0',
    random.Random(1).randbytes(4000).replace(b"\0", b"x") + b"\0",
]


@pytest.mark.parametrize("sent", NONSENSE)
def test_nonsense_ends_its_own_call_only(agent: Agent, sent: bytes) -> None:
    with agent.connect() as connection:
        connection.sendall(sent)
        assert "error" in answer(connection)
    agent.assert_alive()
    assert agent.asked == []


def test_message_without_end_is_cut_off(agent: Agent) -> None:
    with agent.connect() as connection:
        with suppress(ConnectionError):
            for _ in range(1000):
                connection.sendall(b"x" * 1000)
        assert is_closed(connection)
    agent.assert_alive()


def test_half_a_message_is_waited_for_a_while_only(agent: Agent) -> None:
    with agent.connect() as connection:
        connection.sendall(message("Info")[:20])
        agent.assert_alive()
        started = time.monotonic()
        assert is_closed(connection)
        assert time.monotonic() - started < 3.0


def test_message_in_crumbs_is_understood(agent: Agent) -> None:
    with agent.connect() as connection:
        for byte in message("Info"):
            connection.sendall(bytes([byte]))
        assert answer(connection)["parameters"]["jobs_running"] == 1


def test_two_messages_at_once_are_answered_in_turn(agent: Agent) -> None:
    with agent.connect() as connection:
        connection.sendall(message("Info") + message("List"))
        assert "version" in answer(connection)["parameters"]
        assert "jobs" in answer(connection)["parameters"]


def test_callers_without_end_leave_room_for_the_next(agent: Agent) -> None:
    for _ in range(6):  # 3000 in all
        with ExitStack() as stack:
            for _ in range(500):
                stack.enter_context(agent.connect()).setblocking(False)
        end = time.monotonic() + 10.0
        while True:
            with suppress(AssertionError, ConnectionError):
                agent.assert_alive()
                break
            assert time.monotonic() < end, "it does not come back"
            time.sleep(0.05)


def test_caller_over_the_limit_is_told_so(agent: Agent) -> None:
    with ExitStack() as stack:
        for _ in range(LIMITS.callers):
            connection = stack.enter_context(agent.connect())
            connection.sendall(message("Info"))
            answer(connection)
        late = stack.enter_context(agent.connect())
        assert answer(late)["error"] == f"{INTERFACE}.TooMuch"
        assert is_closed(late)


def test_slow_reader_is_dropped_and_in_nobodys_way(agent: Agent) -> None:
    agent.jobs = [Job(f"job-{number}", source="x" * 2000) for number in range(200)]
    with agent.connect() as slow:
        with suppress(OSError):
            for _ in range(100):
                slow.sendall(message("List"))
        assert agent.call("Info")["parameters"]["jobs_running"] == 0
        time.sleep(2 * LIMITS.reading)
        started = time.monotonic()
        assert is_closed(slow)
        assert time.monotonic() - started < LIMITS.idle / 2


def test_caller_who_may_not_ask_is_refused(tmp_path: Path) -> None:
    agent = Agent(tmp_path, allowed=False)
    try:
        with agent.connect() as connection:
            assert answer(connection)["error"] == f"{INTERFACE}.PermissionDenied"
            assert is_closed(connection)
        assert agent.peers[0].pid > 0
        assert agent.asked == []
    finally:
        agent.close()


def test_agent_out_of_descriptors_takes_callers_later(
    agent: Agent, caplog: pytest.LogCaptureFixture
) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    with ExitStack() as stack:
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 8, before[1]))
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, before)
        taken: list[int] = []
        with suppress(OSError):
            while True:
                taken.append(os.dup(0))
        os.close(taken.pop())
        late = stack.enter_context(agent.connect())  # the last one: none is left for its other end
        end = time.monotonic() + 5.0
        while not any("cannot take a caller" in text for text in caplog.messages):
            assert time.monotonic() < end, "it found a descriptor"
            time.sleep(0.01)
        for fd in taken:
            os.close(fd)
        late.sendall(message("Info"))
        assert answer(late)["parameters"]["jobs_running"] == 1
