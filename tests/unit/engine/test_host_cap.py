"""One cap over all processes: the file, its line of turns, and real processes at it."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import stat
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from dmcopy.engine.throttle import HostCap
from dmcopy.errors import DmcopyError
from dmcopy.units import KIB, MIB, Bytes

LARGE = (1 << 64) - 1


class Clock:
    """Nanoseconds that all caps of a test see; sleeping lets them go by."""

    def __init__(self) -> None:
        self.now = 5_000_000_000

    def __call__(self) -> int:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += round(seconds * 1e9)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "cap"


@pytest.fixture
def cap(path: Path) -> Iterator[HostCap]:
    cap = HostCap.open(path)
    yield cap
    cap.close()


def timed(path: Path) -> tuple[HostCap, Clock]:
    """Open the cap once more, with a clock of the test's."""
    HostCap.open(path).close()
    clock = Clock()
    fd = os.open(path, os.O_RDWR)
    return HostCap(fd, clock=clock, sleep=clock.sleep), clock


def fields(path: Path) -> tuple[int, ...]:
    return struct.unpack("=5Q", path.read_bytes())


def put(path: Path, *, rate: int, head: int, since: int, tail: int) -> None:
    with path.open("r+b") as file:
        file.seek(8)
        file.write(struct.pack("=4Q", rate, head, since, tail))


def test_file_is_made_for_its_owner_only_and_has_no_cap(path: Path, cap: HostCap) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.stat().st_size == 40
    assert cap.rate is None


def test_rate_is_seen_by_who_had_it_open_and_by_who_opens_it(path: Path, cap: HostCap) -> None:
    other = HostCap.open(path)
    other.set_rate(Bytes(7 * MIB))
    assert cap.rate == 7 * MIB
    other.close()
    again = HostCap.open(path)
    assert again.rate == 7 * MIB
    again.set_rate(None)
    assert cap.rate is None
    again.close()


@pytest.mark.parametrize("rate", [0, -1, LARGE])
def test_rate_that_is_none_is_refused(cap: HostCap, rate: int) -> None:
    with pytest.raises(ValueError, match="no rate"):
        cap.set_rate(Bytes(rate))


def test_who_was_killed_while_making_the_file_left_no_harm(path: Path) -> None:
    path.parent.mkdir()
    for left in (b"", bytes(40)):
        path.write_bytes(left)
        cap = HostCap.open(path)
        cap.set_rate(Bytes(1))
        assert cap.rate == 1
        cap.close()


@pytest.mark.parametrize("content", [b"# my configuration\n", b"dmcap\0\0\1", bytes(7) + b"x"])
def test_other_file_is_refused_and_kept(path: Path, content: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(DmcopyError, match="is not the cap of a host"):
        HostCap.open(path)
    assert path.read_bytes() == content


def test_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "file").touch()
    for path in (tmp_path / "link", tmp_path / "file" / "cap"):
        with pytest.raises(DmcopyError, match="cannot open the cap of this host"):
            HostCap.open(path)
    assert not (tmp_path / "elsewhere").exists()


def test_without_a_cap_nothing_is_asked_of_the_kernel(
    cap: HostCap, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> NoReturn:
        raise AssertionError("a system call")

    for owner, name in ((fcntl, "flock"), (time, "sleep"), (cap, "_clock"), (cap, "_sleep")):
        monkeypatch.setattr(owner, name, refuse)
    cap.wait(MIB)
    assert cap.rate is None


def test_pieces_go_at_the_cap_and_a_long_pause_gives_no_credit(path: Path) -> None:
    cap, clock = timed(path)
    cap.set_rate(Bytes(10 * MIB))
    for pause in (0, 3600 * 10**9):
        clock.now += pause
        began = clock.now
        for _ in range(41):
            cap.wait(MIB)
        assert 3.9 <= (clock.now - began) / 1e9 <= 4.0, "0.1 s of credit at most"
    cap.close()


def test_late_worker_may_make_up_for_it(path: Path) -> None:
    cap, clock = timed(path)
    cap.set_rate(Bytes(100 * MIB))
    began = clock.now
    for number in range(400):
        cap.wait(MIB)
        # its own work: 3 of the 10 ms that a piece may take, each tenth time much longer
        clock.now += 3_000_000 if number % 10 else 63_000_000
    assert (clock.now - began) / 1e9 == pytest.approx(4.0, abs=0.15)
    cap.close()


def test_values_of_a_former_boot_hold_up_nobody(path: Path) -> None:
    cap, clock = timed(path)
    put(path, rate=MIB, head=70 * MIB, since=clock.now + 10**15, tail=90 * MIB)
    began = clock.now
    cap.wait(MIB)
    assert clock.now == began
    cap.wait(MIB)
    assert (clock.now - began) / 1e9 == pytest.approx(1.0)
    cap.close()


@pytest.mark.parametrize(
    ("head", "tail"), [(0, 1 << 40), (LARGE, 0), (LARGE, LARGE), (0, LARGE), (1 << 62, 5)]
)
def test_garbage_holds_up_nobody(path: Path, head: int, tail: int) -> None:
    cap, clock = timed(path)
    put(path, rate=MIB, head=head, since=0, tail=tail)
    began = clock.now
    for _ in range(4):
        cap.wait(MIB)
    assert 2.8 <= (clock.now - began) / 1e9 <= 3.01
    put(path, rate=LARGE, head=head, since=0, tail=tail)
    assert cap.rate is None
    cap.close()


def test_turn_that_a_reset_took_away_is_waited_for_no_longer(path: Path) -> None:
    cap, clock = timed(path)
    cap.set_rate(Bytes(1))
    cap.wait(MIB)

    def sleep(seconds: float) -> None:
        clock.sleep(seconds)
        put(path, rate=1, head=0, since=clock.now, tail=0)

    cap._sleep = sleep
    began = clock.now
    cap.wait(MIB)
    assert clock.now - began <= 10**8
    cap.close()


def test_stop_ends_a_wait_for_the_turn_and_for_the_lock(path: Path) -> None:
    cap, clock = timed(path)
    cap.set_rate(Bytes(1))
    cap.wait(MIB)
    began = clock.now
    cap.wait(MIB, stop=lambda: clock.now - began > 5e8)
    assert (clock.now - began) / 1e9 == pytest.approx(0.6)
    with path.open() as other:  # as one that was stopped while it had the lock
        fcntl.flock(other, fcntl.LOCK_EX)
        before, began = fields(path), clock.now
        cap.wait(MIB, stop=lambda: clock.now - began > 5e8)
        assert (clock.now - began) / 1e9 == pytest.approx(0.5, abs=0.01)
        assert fields(path) == before, "nothing is changed without the lock"
    cap.close()


@pytest.mark.parametrize("rate", [None, 1024 * MIB])
def test_change_ends_a_wait_that_is_going_on(path: Path, cap: HostCap, rate: int | None) -> None:
    cap.set_rate(Bytes(1))
    cap.wait(MIB)
    ended: list[float] = []

    def read() -> None:
        worker = HostCap.open(path)
        worker.wait(MIB)
        ended.append(time.monotonic())
        worker.close()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    time.sleep(0.15)
    assert ended == []
    changed = time.monotonic()
    cap.set_rate(None if rate is None else Bytes(rate))
    reader.join(2)
    assert ended[0] - changed < 0.3


# real processes


def child(work: Callable[[], object]) -> tuple[int, int]:
    """Do *work* in a process of its own; give its pid and where its answer can be read."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reading)
            os.write(writing, json.dumps(work()).encode())
        finally:
            os._exit(0)
    os.close(writing)
    return pid, reading


def answer(pid: int, reading: int) -> list[int]:
    os.waitpid(pid, 0)
    with os.fdopen(reading, "rb") as pipe:
        found: list[int] = json.load(pipe)
    return found


def moved(path: Path, spans: list[tuple[float, float]], size: int) -> list[int]:
    """Move pieces of *size* until the last of *spans* is over; give the bytes in each span."""
    cap = HostCap.open(path)
    counts = [0] * len(spans)
    while (now := time.monotonic()) < spans[-1][1]:
        for number, (start, end) in enumerate(spans):
            counts[number] += size if start <= now < end else 0
        cap.wait(size)
    return counts


@pytest.mark.forks
def test_three_processes_share_the_cap_evenly_also_when_it_changes(path: Path) -> None:
    cap = HostCap.open(path)
    cap.set_rate(Bytes(30 * MIB))
    start = time.monotonic() + 0.2
    spans = [(start, start + 0.8), (start + 1.0, start + 1.8)]
    workers = [child(lambda: moved(path, spans, 512 * KIB)) for _ in range(3)]
    time.sleep(max(start + 0.9 - time.monotonic(), 0))
    cap.set_rate(Bytes(90 * MIB))
    counts = [answer(*worker) for worker in workers]
    for span, rate in enumerate((30 * MIB, 90 * MIB)):
        shares = [count[span] for count in counts]
        assert sum(shares) == pytest.approx(0.8 * rate, rel=0.15)
        assert min(shares) > 0.7 * max(shares)
    cap.close()


@pytest.mark.forks
def test_process_that_is_alone_gets_all_of_the_cap_once_the_others_ended(path: Path) -> None:
    cap = HostCap.open(path)
    cap.set_rate(Bytes(40 * MIB))
    start = time.monotonic() + 0.1
    both, alone = (start, start + 0.4), (start + 0.5, start + 1.1)
    lasting = child(lambda: moved(path, [both, alone], 512 * KIB))
    ending = child(lambda: moved(path, [both], 512 * KIB))
    assert answer(*lasting)[1] == pytest.approx(0.6 * 40 * MIB, rel=0.15)
    answer(*ending)
    cap.close()


@pytest.mark.forks
def test_killed_holder_of_the_lock_holds_up_nobody(path: Path) -> None:
    cap = HostCap.open(path)
    cap.set_rate(Bytes(100 * MIB))
    told, telling = os.pipe()

    def hold() -> None:
        with HostCap.open(path)._locked(lambda: False):
            os.write(telling, b"x")
            time.sleep(60)

    pid, reading = child(hold)
    os.read(told, 1)
    began = time.monotonic()
    killer = threading.Timer(0.2, os.kill, (pid, signal.SIGKILL))
    killer.start()
    cap.wait(MIB)
    assert 0.19 < time.monotonic() - began < 0.6
    killer.join()
    os.waitpid(pid, 0)
    for fd in (told, telling, reading):
        os.close(fd)
    cap.close()
