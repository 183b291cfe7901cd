"""The worker's service loop over real pipes, with a fake workshop; and the real process."""

from __future__ import annotations

import hashlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from dmcopy.core.extent import Extent
from dmcopy.core.order import Policy
from dmcopy.engine.channel import Channel
from dmcopy.engine.copier import SegmentReader
from dmcopy.engine.pipeline import Stop
from dmcopy.engine.request import CopyRequest, Message, OpenRequest, OrderRequest
from dmcopy.engine.runs import Digest
from dmcopy.engine.worker import Reading, Saw, Service, WorkSession
from dmcopy.errors import DestinationFailed, PointInTimeLost, Refused, SourceFailed
from dmcopy.units import Bytes, Sectors
from tests.unit.engine.fakes import (
    FakeSession,
    FakeSource,
    FakeThrottle,
    FakeValidator,
    FakeView,
    content,
)
from tests.unit.waiting import runs, until

LENGTH = 16 * 4 + 2
OPEN = {
    "do": "open", "job": "j", "source": "/dev/x", "source_devno": "1:0",
    "length_sectors": LENGTH, "segment_sectors": 16, "digest": "sha256",
    "destination": "image:/y", "overwrite_signature": False, "spare": [], "image_offset": 0,
}  # fmt: skip
COW = {
    "path": "/dev/c", "chunk_sectors": 8, "snapshot_uuid": "u",
    "origin_devno": "254:0", "origin_table": "0 66 snapshot-origin 254:1",
}  # fmt: skip
ORDER = {"policy": "sequential", "area_sectors": 16}
COPY = {
    "do": "copy", "source_path": "/dev/s", "cow": COW, "batch_sectors": 1 << 20, "order": ORDER,
}  # fmt: skip


class FakeWorkshop:
    def __init__(self) -> None:
        self.source = FakeSource(content(LENGTH))
        self.view = FakeView()
        self.validator = FakeValidator()
        self.session = FakeSession(LENGTH)
        self.refusal: Exception | None = None
        self.locked = True
        self.pace = FakeThrottle()
        self.saw: Saw | None = None
        self.asked: list[OpenRequest | CopyRequest] = []

    def open(self, request: OpenRequest) -> AbstractContextManager[WorkSession]:
        self.asked.append(request)
        return self._opened()

    @contextmanager
    def _opened(self) -> Iterator[WorkSession]:
        if self.refusal:
            raise self.refusal
        try:
            yield self.session
        finally:
            self.session.closed = True

    @contextmanager
    def read(self, request: CopyRequest, saw: Saw) -> Iterator[Reading]:
        self.asked.append(request)
        self.saw = saw
        reader = SegmentReader(self.source, self.view, self.validator)
        yield Reading(reader, self.view, self.validator)

    def digest(self, name: str) -> Digest | None:
        return None if name == "none" else hashlib.new(name)

    @contextmanager
    def throttle(self, request: CopyRequest) -> Iterator[FakeThrottle]:
        self.pace.rate = request.rate
        yield self.pace

    def lock_memory(self) -> bool:
        return self.locked


class Control:
    """The other end of the pipes, and a thread that runs the service."""

    def __init__(self, shop: FakeWorkshop) -> None:
        self.requests_read, self.requests = os.pipe()
        self.messages, self.messages_write = os.pipe()
        self.stop = Stop()
        self.channel = Channel(self.requests_read, self.messages_write, self.stop)
        self.service = Service(self.channel, shop, self.stop)
        self.status: int | None = None
        self._buffer = b""
        self.rows: list[Any] = []
        self._thread = threading.Thread(target=self._run)
        self.channel.start()
        self._thread.start()

    def _run(self) -> None:
        self.status = self.service.run()

    def send(self, *messages: dict[str, Any]) -> None:
        for message in messages:
            os.write(self.requests, json.dumps(message).encode() + b"\n")

    def receive(self) -> dict[str, Any]:
        while b"\n" not in self._buffer:
            assert select.select([self.messages], [], [], 10)[0], "no message"
            self._buffer += os.read(self.messages, 65536)
        line, _, self._buffer = self._buffer.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message

    def until(self, what: str) -> dict[str, Any]:
        while True:
            message = self.receive()
            if message["is"] == "durable" and what != "durable":
                self.rows += message["rows"]
                self.send({"do": "journaled"})
            if message["is"] in (what, "failed"):
                assert message["is"] == what, message
                return message

    def end(self) -> int | None:
        self._thread.join(10)
        assert not self._thread.is_alive(), "the service hangs"
        return self.status

    def hang_up(self) -> None:
        if self.requests >= 0:
            os.close(self.requests)
            self.requests = -1

    def close(self) -> None:
        self.hang_up()
        self.end()
        for fd in (self.messages, self.messages_write):
            os.close(fd)


@pytest.fixture
def shop() -> FakeWorkshop:
    return FakeWorkshop()


@pytest.fixture
def control(shop: FakeWorkshop) -> Iterator[Control]:
    control = Control(shop)
    yield control
    control.close()


def test_whole_job_is_opened_copied_verified_and_completed(
    control: Control, shop: FakeWorkshop
) -> None:
    control.send(OPEN)
    assert control.until("ready")["pid"] == os.getpid()
    control.send(COPY)
    copied = control.until("copied")
    expected = hashlib.sha256(shop.source.data).hexdigest()
    seconds = copied.pop("seconds")
    assert seconds >= 0
    assert copied == {
        "is": "copied", "phase": "copy", "bytes_done": LENGTH * 512,
        "bytes_source": LENGTH * 512, "bytes_cow": 0, "bytes_zero": 0, "exceptions": 0,
        "cow_used_sectors": 8, "cow_total_sectors": 80,
    }  # fmt: skip
    assert shop.session.data == shop.source.data
    assert not shop.session.completed
    assert control.rows == [[0, LENGTH, expected]]
    control.send({"do": "verify", "rows": control.rows})
    assert control.until("verified")["digest"] == expected
    control.send({"do": "complete"})
    control.until("complete")
    assert control.end() == 0
    assert shop.session.completed
    assert shop.session.closed


def test_requests_reach_the_workshop_in_its_own_words(control: Control, shop: FakeWorkshop) -> None:
    control.send(OPEN)
    control.until("ready")
    idle = {"devno": "8:1", "writes": 7}
    control.send(
        {
            "do": "copy", "source_path": "/dev/s", "cow": None, "idle": idle,
            "batch_sectors": 32, "done": [[0, 16]], "rate_bytes": 5,
            "order": {
                "policy": "hot", "area_sectors": 16, "first": [[32, 8]], "written": [[1, 9]],
            },
        }
    )  # fmt: skip
    control.until("copied")
    opened, copy = shop.asked
    assert isinstance(opened, OpenRequest)
    assert opened.destination == "image:/y"
    assert copy == CopyRequest(
        source_path="/dev/s", length=Sectors(LENGTH), cow=None, devno="8:1", writes=7,
        batch=Sectors(32), done=(Extent(Sectors(0), Sectors(16)),), rate=Bytes(5),
        order=OrderRequest(
            policy=Policy.HOT, area=Sectors(16), first=(Extent(Sectors(32), Sectors(8)),),
            written=((1, 9),),
        ),
    )  # fmt: skip


def test_each_batch_waits_until_it_is_on_record(control: Control, shop: FakeWorkshop) -> None:
    control.send(OPEN)
    control.until("ready")
    control.send(COPY | {"batch_sectors": 32})
    first = control.until("durable")
    assert (shop.session.flushed, first["bytes_done"]) == (1, 32 * 512)
    assert first["rows"] == [[0, 32, hashlib.sha256(shop.source.data[: 32 * 512]).hexdigest()]]
    time.sleep(0.05)
    assert len(shop.session.written) == 2, "it went on before the batch was on record"
    control.send({"do": "journaled"})
    assert control.until("durable")["rows"][0][:2] == [0, 64], "a run in order is one row"
    control.send({"do": "journaled"})
    control.until("copied")
    assert shop.session.kept


def test_what_is_durable_is_not_read_again(control: Control, shop: FakeWorkshop) -> None:
    control.send(OPEN | {"resume": {"inode": 7}})
    control.until("ready")
    control.send(COPY | {"done": [[0, 16], [32, 16]]})
    control.until("copied")
    assert [(at.start, at.length) for at in shop.session.written] == [(16, 16), (48, 16), (64, 2)]
    assert [row[:2] for row in control.rows] == [[16, 16], [48, 18]]


def test_pause_ends_the_batch_and_go_goes_on(control: Control, shop: FakeWorkshop) -> None:
    shop.session.gate.clear()
    control.send(OPEN | {"segment_sectors": 8})
    control.until("ready")
    control.send(COPY)
    while not shop.source.reads:
        pass
    control.send({"do": "pause"}, {"do": "rate", "rate_bytes": 9})
    while shop.pace.rate != 9:
        pass
    shop.session.gate.set()
    assert control.until("durable")["bytes_done"] < LENGTH * 512
    control.send({"do": "journaled"})
    assert control.receive()["is"] == "paused"
    reads = shop.source.reads
    time.sleep(0.05)
    assert shop.source.reads == reads
    control.send({"do": "rate", "rate_bytes": None}, {"do": "go"})
    control.until("copied")
    assert shop.pace.rate is None
    assert shop.session.data == shop.source.data


def test_pause_right_behind_go_is_a_new_one(
    control: Control, shop: FakeWorkshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    await_next = Channel.next

    def late(channel: Channel) -> Message:
        """Both have been read when the one that waits for the first goes on."""
        request = await_next(channel)
        if request["do"] == "go":
            time.sleep(0.1)
        return request

    monkeypatch.setattr(Channel, "next", late)
    control.send(OPEN)
    control.until("ready")
    control.send(COPY | {"paused": True})
    assert control.receive()["is"] == "paused"
    control.send({"do": "pause"}, {"do": "go"}, {"do": "pause"})
    assert control.receive()["is"] == "paused"
    assert shop.source.reads == 0
    control.send({"do": "pause"}, {"do": "go"})
    control.until("copied")
    assert shop.session.data == shop.source.data


@pytest.mark.parametrize(
    ("asked", "most", "seconds"), [(1 << 20, 1 << 20, 0.0), (56, 1 << 20, 60.0)]
)
def test_batch_that_is_under_way_is_made_shorter_never_longer(
    control: Control, shop: FakeWorkshop, asked: int, most: int, seconds: float
) -> None:
    shop.session.gate.clear()
    control.send(OPEN | {"segment_sectors": 8})
    control.until("ready")
    control.send(COPY | {"batch_sectors": asked})
    while not shop.source.reads:
        pass
    control.send({"do": "batch", "batch_sectors": most, "seconds": seconds})
    control.send({"do": "rate", "rate_bytes": 9})
    while shop.pace.rate != 9:
        pass
    shop.session.gate.set()
    assert control.until("durable")["bytes_done"] < LENGTH * 512
    control.send({"do": "journaled"})
    control.until("copied")
    assert shop.session.data == shop.source.data


def written(shop: FakeWorkshop) -> list[int]:
    return [at.start for at in shop.session.written]


def test_job_that_is_held_copies_nothing_until_it_is_told_to(
    control: Control, shop: FakeWorkshop
) -> None:
    control.send(OPEN)
    control.until("ready")
    control.send(COPY | {"paused": True})
    assert control.receive()["is"] == "paused"
    control.send({"do": "order", "first": [[48, 16], [16, 8]], "policy": "cow"})
    assert control.receive() == {"is": "order", "next": [[48, 16], [16, 8]], "left_sectors": LENGTH}
    assert shop.source.reads == 0
    control.send({"do": "go"})
    control.until("copied")
    assert written(shop) == [48, 16, 0, 32, 64], "whole segments"


def test_only_what_is_asked_for_is_copied_and_then_it_pauses(
    control: Control, shop: FakeWorkshop
) -> None:
    control.send(OPEN)
    control.until("ready")
    control.send(COPY | {"paused": True})
    assert control.receive()["is"] == "paused"
    control.send({"do": "order", "first": [[32, 8]], "only": True}, {"do": "go"})
    assert control.receive()["is"] == "order"
    assert control.until("durable")["rows"][0][:2] == [32, 16]
    control.send({"do": "journaled"})
    assert control.receive()["is"] == "paused"
    assert written(shop) == [32]
    control.send({"do": "order"})
    assert control.receive()["left_sectors"] == LENGTH - 16
    control.send({"do": "go"})
    control.until("copied")
    assert written(shop) == [32, 0, 16, 48, 64]


def test_what_is_written_the_most_is_copied_first(control: Control, shop: FakeWorkshop) -> None:
    control.send(OPEN)
    control.until("ready")
    order = {"policy": "hot", "area_sectors": 16, "written": [[3, 90], [0, 1]]}
    control.send(COPY | {"order": order})
    control.until("copied")
    assert written(shop) == [48, 0, 16, 32, 64]


def test_each_segment_is_gated_before_it_is_read_and_a_batch_of_its_own(
    control: Control, shop: FakeWorkshop
) -> None:
    control.send(OPEN)
    control.until("ready")
    control.send(COPY | {"gate": True})
    for number in range(5):
        message = control.receive()
        while message["is"] == "progress":
            message = control.receive()
        assert (message["is"], message["start"]) == ("gate", number * 16)
        assert shop.source.reads == number, "it is not read before it is gated"
        assert len(shop.pace.waited) == number + 1, "nothing is held while the rate is kept down"
        control.send({"do": "gated"})
        durable = control.until("durable")
        assert durable["cells"] == [[number * 16, min(16, LENGTH - number * 16), 0]]
        control.send({"do": "journaled"})
    control.until("copied")


def test_refused_destination_is_told_and_ends_the_worker(
    control: Control, shop: FakeWorkshop
) -> None:
    shop.refusal = Refused("/y exists", way_out="remove it")
    control.send(OPEN)
    message = control.receive()
    assert message == {
        "is": "failed", "kind": "refused", "message": "/y exists; remove it", "offset_bytes": None,
    }  # fmt: skip
    assert control.end() == 1


@pytest.mark.parametrize(
    ("part", "error", "kind"),
    [
        ("source", SourceFailed("cannot read /dev/s: Input/output error"), "source"),
        ("session", DestinationFailed("no space left"), "destination"),
    ],
)
def test_failure_is_told_with_kind_and_offset(
    control: Control, shop: FakeWorkshop, part: str, error: Exception, kind: str
) -> None:
    where = shop.source if part == "source" else shop.session
    where.fails_at, where.error = Sectors(32), error
    control.send(OPEN, COPY)
    assert control.until("failed") == {
        "is": "failed", "kind": kind, "message": str(error), "offset_bytes": 32 * 512,
    }  # fmt: skip
    assert control.end() == 1
    assert shop.session.closed
    assert not shop.session.completed


def test_lost_point_in_time_is_told(control: Control, shop: FakeWorkshop) -> None:
    shop.validator.error = PointInTimeLost("the kernel says 'Invalid'")
    control.send(OPEN, COPY)
    control.until("ready")
    assert control.receive()["kind"] == "point-in-time-lost"


def test_changed_destination_fails_the_verify(control: Control, shop: FakeWorkshop) -> None:
    control.send(OPEN, COPY)
    control.until("copied")
    shop.session.data[700] ^= 1
    control.send({"do": "verify", "rows": control.rows})
    message = control.receive()
    while message["is"] == "progress":
        message = control.receive()
    assert (message["is"], message["kind"]) == ("failed", "verify")
    assert control.end() == 1
    assert not shop.session.completed


def test_bug_is_told_too(control: Control, shop: FakeWorkshop) -> None:
    shop.session.fails_at, shop.session.error = Sectors(0), ZeroDivisionError("oops")
    control.send(OPEN, COPY)
    control.until("ready")
    message = control.receive()
    assert message["kind"] == "failed"
    assert "ZeroDivisionError" in message["message"]


def test_memory_that_cannot_be_locked_is_a_warning(shop: FakeWorkshop) -> None:
    shop.locked = False
    control = Control(shop)
    control.send(OPEN)
    assert control.receive()["is"] == "warning"
    assert control.receive()["is"] == "ready"
    control.close()


@pytest.mark.parametrize("sent", [[], [OPEN], [OPEN, COPY]])
def test_end_of_stdin_closes_everything_within_a_second(
    control: Control, shop: FakeWorkshop, sent: list[dict[str, Any]]
) -> None:
    control.send(*sent)
    if sent:
        control.until("copied" if len(sent) > 1 else "ready")
    control.hang_up()
    assert control.end() == 1
    assert shop.session.closed == bool(sent)
    assert not shop.session.completed


def test_end_of_stdin_stops_a_copy(control: Control, shop: FakeWorkshop) -> None:
    shop.session.gate.clear()
    control.send(OPEN, COPY)
    control.until("ready")
    while shop.source.reads < 2:
        pass
    control.hang_up()
    while not control.stop.is_set:
        pass
    shop.session.gate.set()
    assert control.end() == 1
    assert len(shop.session.written) < 3


def test_stop_is_told_as_interrupted(control: Control) -> None:
    control.send(OPEN)
    control.until("ready")
    control.channel.stop("stopped by SIGTERM")
    assert control.receive()["kind"] == "interrupted"


def test_progress_that_nobody_takes_does_not_stop_the_copy() -> None:
    read, write = os.pipe()
    channel = Channel(read, write, Stop())
    for _ in range(100_000 // 50):
        channel.offer("progress", text="x" * 50)
    os.close(read)
    channel.send("failed")  # control is gone: no exception
    os.close(write)


# the real process: no device is needed to see it start and end


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "dmcopy.jobs.worker"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    yield process
    process.kill()
    process.communicate()


def test_process_ends_when_its_stdin_closes(process: subprocess.Popen[bytes]) -> None:
    out, err = process.communicate(timeout=10)
    assert process.returncode == 1
    assert json.loads(out)["kind"] == "interrupted"
    assert err == b""


def test_process_that_may_start_no_thread_says_so() -> None:
    program = (
        "import threading, dmcopy.jobs.worker as worker\n"
        'def start(self): raise RuntimeError("can\'t start new thread")\n'
        "threading.Thread.start = start\n"
        "worker.main()"
    )
    argv = [sys.executable, "-c", program]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (1, b"")
    message = json.loads(done.stdout)
    assert (message["is"], message["kind"]) == ("failed", "failed")
    assert message["message"] == "the worker could not begin: can't start new thread"


def test_process_imports_no_library_it_does_not_need() -> None:
    program = "import sys, dmcopy.jobs.worker; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert not {"sh", "rich", "pyudev", "psutil", "sqlite3", "asyncio"} & set(done.stdout.split())


def test_sigterm_ends_the_process_with_a_word(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    while not _catches(process.pid, signal.SIGTERM):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)  # ignored
    process.send_signal(signal.SIGTERM)
    message = json.loads(process.stdout.readline())
    assert (message["kind"], message["message"]) == ("interrupted", "stopped by SIGTERM")
    assert process.wait(10) == 1


def test_process_dies_with_the_one_that_started_it(tmp_path: Path) -> None:
    program = (
        "import subprocess, sys, os\n"
        "p = subprocess.Popen([sys.executable, '-m', 'dmcopy.jobs.worker'], stdin=0, stdout=1)\n"
        "print(p.pid, flush=True)\n"
        "p.wait()\n"
    )
    # stdin stays open in this process, so only the parent's death can end the worker
    read, write = os.pipe()
    parent = subprocess.Popen([sys.executable, "-c", program], stdin=read, stdout=subprocess.PIPE)
    try:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        while not _catches(pid, signal.SIGTERM):
            time.sleep(0.01)
        parent.kill()
        parent.wait()
        until(lambda: not runs(pid))
    finally:
        parent.kill()
        parent.communicate()
        os.close(read)
        os.close(write)


def _catches(pid: int, number: int) -> bool:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    mask = next(int(line.split()[1], 16) for line in lines if line.startswith("SigCgt"))
    return bool(mask >> (number - 1) & 1)
