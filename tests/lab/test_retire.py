"""What is copied leaves the snapshot, the order can be chosen, and the gate holds one segment.

Proved by the load itself (`stamp`) where it goes on throughout: the image is one instant, no write
failed.  Elsewhere by the kernel's own counts: exceptions made, writes completed.
"""

from __future__ import annotations

import json
import mmap
import os
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.lab import harness, stamp
from tests.lab.harness import nanoseconds, read_device
from tests.lab.scene import (
    SLACK,
    Running,
    Scene,
    assert_proved,
    reload,
    scene,
    sectors,
    timed_write,
    until,
)
from tests.lab.stage import patiently, sh

pytestmark = [pytest.mark.lab, pytest.mark.timeout(240)]

proof = pytest.mark.proof

SIZE = 16  # MiB
MIB = 1 << 20
CHUNK = 16 << 10
JOB = ("--name", "job", "--json", "--segment", "256k", "--chunk", "16k")


@pytest.fixture
def at() -> Iterator[Scene]:
    with scene("retire") as here:
        yield here


@pytest.fixture
def origin(at: Scene) -> str:
    path = at.origin(SIZE)
    stamp.fill(path, seed=1)
    return path


def rows(origin: str) -> list[list[str]]:
    return [line.split() for line in sh("dmsetup", "table", origin).splitlines()]


def exceptions(job: str = "job") -> int:
    """Ask the kernel how many chunks it has saved."""
    used, metadata = sh("dmsetup", "status", f"dmcopy-{job}-snap").split()[3:5]
    return (int(used.partition("/")[0]) - int(metadata)) * 512 // CHUNK


def until_retired(origin: str, sectors: int, running: Running) -> None:
    """Wait until the origin's first *sectors* pass the snapshot by."""

    def is_so() -> bool:
        assert running.process.poll() is None, running.ended()
        first, *others = rows(origin)
        return bool(others) and first[2] == "linear" and int(first[1]) >= sectors

    until(is_so, f"the first {sectors} sectors are retired")


# retire


@pytest.mark.parametrize(
    "options",
    [
        pytest.param((), marks=proof),
        ("--order", "hot"),
        ("--order", "cow"),
        ("--gate", "segment"),
        ("--no-retire",),
    ],
    ids=lambda options: " ".join(options) or "retire",
)
def test_image_is_one_instant_whatever_passes_the_snapshot(
    at: Scene, origin: str, options: tuple[str, ...]
) -> None:
    slow = at.slow(at.stage.disk(SIZE), write_ms=120)
    table = sh("dmsetup", "table", origin)
    with at.load(origin, pause=0.002) as log:
        ran = at.run("copy", origin, slow, *JOB, "--batch", "1m", "--cow", "64m", *options)
        at.assert_clean(origin, table)
    assert_proved(ran, log, slow)
    ended = ran.event("ended")
    if options == ("--no-retire",):
        assert (ended["retires"], ended["bytes_retired"]) == (0, 0)
        assert ran.events[0]["retire_why"] == "--no-retire"
    else:
        assert ran.events[0]["retire"]
        assert ended["bytes_retired"] > 8 * MIB, ended
    if "segment" in options:
        segments = ran.of_kind("segment")
        assert len(segments) == ended["gated"] == SIZE * 4
        assert max(one["hold_seconds"] for one in segments) < 1 + SLACK
    elif options != ("--no-retire",):
        assert ended["retires"] > 2
    page = at.folder / "report.html"
    assert at.fork("report", "job", "--output", str(page)).status == 0
    text = page.read_text()
    for reason in ("begin", "gate" if "segment" in options else "retire"):
        assert f">{reason}<" in text or options == ("--no-retire",), reason


def test_write_to_what_is_retired_makes_no_exception(at: Scene, origin: str) -> None:
    destination = at.stage.disk(SIZE)
    slowly = ("--rate", "1m", "--batch", "512k")
    running = at.start("copy", origin, destination, *JOB, "--cow", "64m", *slowly)
    until_retired(origin, 4096, running)
    before = exceptions()
    for number in range(20):
        timed_write(origin, number * CHUNK)
    assert exceptions() == before
    for number in range(20):  # the end is not copied yet
        timed_write(origin, (SIZE * MIB) - (number + 1) * CHUNK)
    assert exceptions() == before + 20
    assert at.fork("set", "job", "rate=none").status == 0
    assert running.ended().status == 0


def test_table_stays_a_few_lines_whatever_the_order(at: Scene, origin: str) -> None:
    """Forty ranges that touch nowhere, copied before the rest."""
    running = at.start(
        "copy", origin, at.stage.disk(SIZE), *JOB, "--cow", "64m", "--hold-start", "--batch", "256k"
    )  # fmt: skip
    running.wait_for("paused")
    ranges = [f"{number * 384}KiB+64KiB" for number in range(40)]
    most = 0
    done = threading.Event()

    def look() -> None:
        nonlocal most
        while not done.is_set():
            with suppress(AssertionError):
                most = max(most, len(rows(origin)))

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        assert at.fork("order", "job", "--first", *ranges).status == 0
        assert at.fork("resume", "job").status == 0
        ran = running.ended()
    finally:
        done.set()
        watcher.join()
    assert ran.status == 0, ran
    assert 2 < most <= 16


def flushes(device: str) -> int:
    """Count the writes of no length that a device has completed: what dm makes of a flush."""
    return harness.writes_of(device)


def test_fsync_costs_a_flush_a_line_and_no_more(at: Scene, origin: str) -> None:
    running = at.start("copy", origin, at.stage.disk(SIZE), *JOB, "--cow", "64m", "--rate", "2m")
    until_retired(origin, 2048, running)
    fd = os.open(origin, os.O_RDWR)
    try:
        source = "/dev/mapper/dmcopy-job-source"
        lines, before = len(rows(origin)), flushes(source)
        for _ in range(10):
            os.fsync(fd)
        made = flushes(source) - before
    finally:
        os.close(fd)
    assert lines == 2
    assert made <= 10 * 2 + 4, "a batch that ended meanwhile may add a line, not more"
    assert at.fork("cancel", "job").status == 0
    running.ended()


def test_fstrim_is_refused_by_a_mixed_table_and_works_when_all_is_copied(at: Scene) -> None:
    """On 6.1 a table takes discards only if all of its targets do."""
    origin = at.origin(SIZE)
    queue = Path(f"/sys/dev/block/{harness.devno(origin)}/queue/discard_max_bytes")
    if not int(queue.read_text()):
        pytest.fail("the disk of the lab takes no discards, so nothing is shown")
    running = at.start("copy", origin, at.stage.disk(SIZE), *JOB, "--cow", "64m", "--rate", "2m")
    until_retired(origin, 2048, running)
    assert int(queue.read_text()) == 0
    assert at.fork("set", "job", "rate=none").status == 0
    assert running.ended().status == 0
    assert int(queue.read_text()) > 0
    sh("blkdiscard", "--offset", "0", "--length", "65536", origin)


def test_table_replaced_between_two_retires_is_noticed(at: Scene, origin: str) -> None:
    """A stranger's table, which saves nothing, is neither covered up nor believed."""
    table = sh("dmsetup", "table", origin)
    running = at.start("copy", origin, at.stage.disk(SIZE), *JOB, "--cow", "64m", "--rate", "2m")
    until_retired(origin, 1024, running)
    reload(origin, table)
    ran = running.ended()
    assert ran.status == 4, ran
    assert "replaced" in ran.stderr
    assert sh("dmsetup", "table", origin) == table


def test_killed_after_retiring_goes_on_where_it_was(at: Scene, origin: str) -> None:
    destination = at.stage.disk(SIZE)
    table = sh("dmsetup", "table", origin)
    with at.load(origin, pause=0.004) as log:
        slowly = ("--rate", "2m", "--batch", "1m")
        running = at.start("copy", origin, destination, *JOB, "--cow", "64m", *slowly)
        begun = running.wait_for("begun")
        until_retired(origin, 4096, running)
        running.kill()
        running.ended()
        time.sleep(0.3)  # writes go on, also to what is retired
        ran = at.run("resume", "job", "--json")
        at.assert_clean(origin, table)
    assert ran.status == 0, ran
    begin = nanoseconds(begun["begin_time"])
    verdict = stamp.check(
        destination, log, 1, t0=begin, t1=begin + int(begun["hold_seconds"][0] * 1e9)
    )
    assert verdict.is_good, verdict.wrong
    assert ran.event("ended")["bytes_resumed"] >= 2 * MIB


# order


def test_what_is_asked_for_first_is_copied_first(at: Scene, origin: str) -> None:
    destination = at.stage.disk(SIZE)
    running = at.start(
        "copy", origin, destination, *JOB, "--cow", "64m", "--hold-start", "--batch", "256k"
    )
    running.wait_for("paused")
    before = exceptions()
    timed_write(origin, 0)
    assert exceptions() == before + 1, "the point in time is fixed although nothing is copied"
    assert read_device(destination) == bytes(SIZE * MIB), "nothing is copied"
    said = at.fork("order", "job", "--only", "8m+512k", "3m+256k")
    assert said.status == 0, said
    running.wait_for("paused")
    image, source = read_device(destination), read_device(origin)
    part = MIB // 4
    copied = [
        offset // part
        for offset in range(0, SIZE * MIB, part)
        if image[offset : offset + part] == source[offset : offset + part]
    ]
    assert copied == [12, 32, 33], "these, and nothing else"
    told = json.loads(at.fork("order", "job", "--first", "15m+1m", "--json").stdout)
    assert told["first"] == [[15 * MIB, MIB]]
    assert told["bytes_left"] == SIZE * MIB - 3 * MIB // 4
    assert at.fork("resume", "job").status == 0
    ran = running.ended()
    assert ran.status == 0, ran


def test_order_that_makes_no_sense_is_refused_in_one_line(at: Scene, origin: str) -> None:
    running = at.start(
        "copy", origin, at.stage.disk(SIZE), *JOB, "--cow", "64m", "--hold-start"
    )  # fmt: skip
    running.wait_for("paused")
    for words, why in (
        (("--first", "1m"), "is no OFFSET+LENGTH"),
        (("--first", "15m+2m"), "ends behind the image"),
        (("--first", "0+0"), "of no length"),
    ):
        said = at.fork("order", "job", *words)
        assert said.status == 2, said
        assert why in said.said
    assert at.fork("cancel", "job").status == 0
    assert running.ended().status == 5
    assert at.fork("order", "job").status == 3
    assert at.fork("order", "nobody").status == 2


def hammer(path: str, offset: int, length: int, stop: threading.Event) -> threading.Thread:
    """Write a block at random places of one range, all the time."""

    def write() -> None:
        with mmap.mmap(-1, 4096) as page:
            page[:] = os.urandom(4096)
            fd = os.open(path, os.O_WRONLY | os.O_DIRECT)
            try:
                number = 1
                while not stop.is_set():
                    number = number * 1103515245 + 12345 & 0x7FFFFFFF
                    os.pwrite(fd, page, offset + (number >> 8) % (length // 4096) * 4096)
                    time.sleep(0.002)
            finally:
                os.close(fd)

    thread = threading.Thread(target=write)
    thread.start()
    return thread


@pytest.mark.parametrize("policy", ["hot", "cow"])
def test_hot_range_is_copied_before_the_rest(at: Scene, origin: str, policy: str) -> None:
    stop = threading.Event()
    thread = hammer(origin, 12 * MIB, 2 * MIB, stop)
    try:
        running = at.start(
            "copy", origin, at.stage.disk(SIZE), *JOB, "--cow", "64m", "--rate", "1m",
            # how soon it is retired is not for the machine to say, which may be busy
            "--batch", "1m", "--order", policy,
        )  # fmt: skip

        def is_retired() -> bool:
            assert running.process.poll() is None, running.ended()
            return any(
                row[2] == "linear" and int(row[0]) <= 24576 and int(row[0]) + int(row[1]) >= 28672
                for row in rows(origin)
            )

        running.wait_for("begun")
        until(is_retired, "the hot range is retired", patience=10)
        assert len(rows(origin)) > 2, "not because everything is"
    finally:
        stop.set()
        thread.join()
    assert at.fork("cancel", "job").status == 0
    running.ended()
    assert "dmcopy" not in sh("dmsetup", "message", origin, "0", "@stats_list")


# the gate


def in_order(at: Scene) -> str:
    """Make a disk that writes in the order in which it is told.

    A RAM disk, which does it at once.  What has requests may turn them round: those that kcopyd
    hands on come out of its plug last first (blk-mq.c:blk_mq_plug_issue_direct, 5.16 to 6.12), for
    writes that overlap and are under way together have no order that anybody promises.
    """
    with suppress(AssertionError):  # of another test, with other sizes
        sh("modprobe", "-r", "brd")
    sh("modprobe", "brd", "rd_nr=1", f"rd_size={SIZE << 10}")
    at.stage.later(patiently, "modprobe", "-r", "brd")
    return "/dev/ram0"


def overlapping(
    path: str, offset: int, count: int, took: list[float] | None = None
) -> list[threading.Thread]:
    """Begin *count* writes, one after the other, each a block shorter at its beginning.

    When all have landed in order, block N was last written by write N.
    """

    def write(number: int) -> None:
        with mmap.mmap(-1, (count - number) * 4096) as data:
            data[:] = bytes([number + 1]) * len(data)
            fd = os.open(path, os.O_WRONLY | os.O_DIRECT)
            try:
                began = time.monotonic()
                os.pwrite(fd, data, offset + number * 4096)
                if took is not None:
                    took[number] = time.monotonic() - began
            finally:
                os.close(fd)

    threads = [threading.Thread(target=write, args=[number]) for number in range(count)]
    for thread in threads:
        thread.start()
        time.sleep(0.003)
        while thread.is_alive() and waiting(path) < sum(one.is_alive() for one in threads):
            time.sleep(0.003)  # it is not there yet
    return threads


def gated(origin: str) -> list[list[str]]:
    table = "dmcopy-job-brake"
    with suppress(AssertionError):
        return [row for row in rows(table) if row[2] == "delay"]
    return []


def test_writes_to_the_gated_segment_wait_in_order_and_make_no_exception(at: Scene) -> None:
    """Overlapping writes, one after the other: each block tells who came last to it."""
    disk = in_order(at)
    slow = at.slow(disk)
    origin, destination = at.stage.linear(slow), at.stage.disk(SIZE)
    stamp.fill(origin, seed=1)
    running = at.start(
        "copy", origin, destination, *JOB, "--cow", "64m", "--gate", "segment",
        "--hold-start", "--hold-limit", "16",
    )  # fmt: skip
    running.wait_for("paused")
    witness = read_device("/dev/mapper/dmcopy-job-snap")
    before = exceptions()
    timed_write(origin, 8 * MIB)  # saved once
    reload(slow, f"0 {sectors(slow)} delay {disk} 0 3000 {disk} 0 0")  # reads take so long
    assert at.fork("order", "job", "--only", "4m+256k").status == 0
    until(lambda: gated(origin), "the segment is gated")
    count, took = 16, [0.0] * 16
    began = time.monotonic()
    threads = overlapping(origin, 4 * MIB, count, took)
    if time.monotonic() - began > 2.7:
        pytest.fail("the machine is too busy to show anything")
    outside = timed_write(origin, 8 * MIB)
    for thread in threads:
        thread.join()
    segment = running.wait_for("segment")
    running.wait_for("paused")
    assert segment["offset_bytes"] == 4 * MIB
    assert segment["writes_held"] >= count
    assert exceptions() == before + 1, "the write outside, and none of the segment's"
    assert min(took) > 0.05, "they waited"
    assert outside < 0.05 + SLACK
    at.hurry(slow)
    now = read_device(origin)[4 * MIB :][: count * 4096]
    assert [now[number * 4096] for number in range(count)] == [n + 1 for n in range(count)]
    assert at.fork("resume", "job").status == 0
    ran = running.ended()
    assert ran.status == 0, ran
    assert ran.event("ended")["gate_writes_held"] >= count
    assert read_device(destination) == witness


def test_writes_that_wait_for_one_chunk_go_on_in_order(at: Scene) -> None:
    """Without a gate: they are held by the snapshot until the chunk is saved."""
    origin = at.stage.linear(in_order(at))
    cow = at.slow(at.stage.disk(64), write_ms=1500)
    stamp.fill(origin, seed=1)
    running = at.start(
        "copy", origin, at.stage.disk(SIZE), "--name", "job", "--json", "--chunk", "64k",
        "--cow", cow, "--hold-start", "--hold-limit", "16",
    )  # fmt: skip
    running.wait_for("paused")
    count = 16
    threads = overlapping(origin, 2 * MIB, count)
    for thread in threads:
        thread.join()
    now = read_device(origin)[2 * MIB :][: count * 4096]
    assert [now[number * 4096] for number in range(count)] == [n + 1 for n in range(count)]
    at.hurry(cow)
    assert at.fork("cancel", "job").status == 0
    running.ended()


def test_gate_goes_when_control_is_killed(at: Scene) -> None:
    slow = at.slow(at.stage.disk(SIZE), read_ms=1000)
    origin = at.stage.linear(slow)
    table = sh("dmsetup", "table", origin)
    stamp.fill(origin, seed=1)
    destination = at.stage.disk(SIZE)
    running = at.start(
        "copy", origin, destination, *JOB, "--cow", "64m", "--gate", "segment", "--hold-start",
    )  # fmt: skip
    begun = running.wait_for("begun")
    running.wait_for("paused")
    image = read_device("/dev/mapper/dmcopy-job-snap")
    assert at.fork("order", "job", "--only", "4m+256k").status == 0
    until(lambda: gated(origin), "the segment is gated")
    running.kill()
    running.ended()
    assert timed_write(origin, 4 * MIB) < 1 + SLACK
    until(lambda: not gated(origin), "the delay is gone")
    at.hurry(slow)
    ran = at.run("resume", "job", "--json")
    assert ran.status == 0, ran
    assert read_device(destination) == image
    at.assert_clean(origin, table)
    assert begun["begin_time"] == ran.event("ended")["begin_time"]


# the map


def seen_map(at: Scene) -> dict[str, Any]:  # Any: JSON
    said = at.fork("show", "job", "--map", "--json")
    assert said.status == 0, said
    found: dict[str, Any] = json.loads(said.stdout)  # Any: JSON
    return found


def test_map_says_what_the_kernel_has(at: Scene, origin: str) -> None:
    running = at.start(
        "copy", origin, at.stage.disk(SIZE), *JOB, "--cow", "64m", "--hold-start", "--batch", "256k"
    )  # fmt: skip
    running.wait_for("paused")
    for offset in (0, CHUNK, 5 * MIB, 15 * MIB):
        timed_write(origin, offset)
    seen = seen_map(at)
    assert seen["length_bytes"] == SIZE * MIB
    assert seen["saved"] == [[0, 2 * CHUNK], [5 * MIB, CHUNK], [15 * MIB, CHUNK]]
    assert seen["copied"] == seen["retired"] == seen["copying"] == seen["gated"] == []
    assert [one["why"] for one in seen["waiting"]] == ["saving"]
    assert at.fork("order", "job", "--only", "0+1m", "4m+1m").status == 0
    running.wait_for("paused")
    seen = seen_map(at)
    assert seen["copied"] == [[0, MIB], [4 * MIB, MIB]]
    in_kernel = [
        [int(row[0]) * 512, int(row[1]) * 512] for row in rows(origin) if row[2] == "linear"
    ]
    assert seen["retired"] == in_kernel != []
    shown = at.fork("show", "job", "--map").stdout
    assert "saved in the snapshot: 64.0 KiB" in shown
    assert "no write waits" in shown
    lines = shown.splitlines()
    assert "".join(line[13:] for line in lines[1:17])[: 2 * 64].startswith("R")
    running.kill()
    running.ended()
    assert seen_map(at)["copied"] == seen["copied"], "nobody need run it"
    assert at.fork("cancel", "job").status == 0
    assert at.fork("show", "job", "--map").status == 0
    at.assert_back(origin, sh("dmsetup", "table", origin))


def waiting(origin: str) -> int:
    """Count the writes that the kernel says are held by the gate, or under way on the origin."""
    held = 0
    with suppress(AssertionError):  # there is no gate
        held = sum(
            int(row.split()[4])
            for row in sh("dmsetup", "status", "--noflush", "dmcopy-job-brake").splitlines()
            if " delay " in row
        )
    inflight = Path(f"/sys/dev/block/{harness.devno(origin)}/inflight").read_text()
    return max(held, int(inflight.split()[1]))


@pytest.mark.parametrize("options", [("--gate", "segment"), ()], ids=["gate", "saving"])
def test_writes_that_wait_are_seen(at: Scene, options: tuple[str, ...]) -> None:
    slow = at.slow(at.stage.disk(SIZE), read_ms=5000 if options else 0)
    origin = at.stage.linear(slow)
    stamp.fill(origin, seed=1)
    # without a gate a write waits for its chunk: for the COW device
    cow = at.stage.disk(64) if options else at.slow(at.stage.disk(64), write_ms=2500)
    running = at.start(
        "copy", origin, at.stage.disk(SIZE), *JOB, "--cow", cow, "--hold-start",
        "--hold-limit", "40", *options,
    )  # fmt: skip
    running.wait_for("paused")
    if options:
        assert at.fork("order", "job", "--only", "4m+256k").status == 0
        until(lambda: gated(origin), "the segment is gated")
    threads = [
        threading.Thread(target=timed_write, args=(origin, 4 * MIB + number * CHUNK))
        for number in range(3)
    ]
    for thread in threads:
        thread.start()
    try:
        until(lambda: waiting(origin) == 3, "the writes wait")
        seen = seen_map(at)
    finally:
        for thread in threads:
            thread.join()
    by_why = {one["why"]: one for one in seen["waiting"]}
    if options:
        assert seen["gated"] == seen["copying"] == [[4 * MIB, MIB // 4]]
        held = by_why["gate"]
        assert held["writes"] == 3
        assert held["extents"] == [[4 * MIB, MIB // 4]]
        assert 0 < held["seconds"] < 10
        assert held["most_seconds"] == 10.0
    else:
        assert by_why["saving"]["writes"] == 3
    at.hurry(slow)
    assert at.fork("cancel", "job").status == 0
    running.ended()


# keep


def test_kept_snapshot_stays_until_it_is_given_up(at: Scene, origin: str) -> None:
    destination = at.stage.disk(SIZE)
    table = sh("dmsetup", "table", origin)
    ran = at.run("copy", origin, destination, *JOB, "--cow", "64m", "--keep", "--verify")
    assert ran.status == 0, ran
    assert ran.event("ended")["kept"]
    assert ran.event("ended")["state"] == "verified"
    assert "--keep" in ran.events[0]["retire_why"]
    assert rows(origin)[0][2] == "snapshot-origin"
    before = exceptions()
    timed_write(origin, 0)
    assert exceptions() == before + 1, "it records changes"
    assert at.fork("rescue").status == 0
    assert rows(origin)[0][2] == "snapshot-origin", "rescue leaves it alone"
    assert "kept" in at.fork("status").stdout
    assert at.fork("wait", "job").status == 0
    refused = at.fork("resume", "job")
    assert refused.status == 3
    assert "only its snapshot was kept" in refused.said
    said = at.fork("cancel", "job")
    assert said.status == 0, said
    assert "ended" in said.stdout
    at.assert_clean(origin, table)
