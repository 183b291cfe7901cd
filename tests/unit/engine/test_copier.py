"""The copier with fakes: what reaches the destination, in which order things are asked."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from dmcopy.core.extent import Extent
from dmcopy.engine import pipeline
from dmcopy.engine.buffers import Buffer, BufferPool
from dmcopy.engine.copier import Copier, Counts, DirectSource, SegmentReader
from dmcopy.engine.pipeline import Stop
from dmcopy.engine.runs import Run, Runs
from dmcopy.errors import DestinationFailed, Interrupted, PointInTimeLost, SourceFailed
from dmcopy.units import Sectors, to_bytes
from tests.unit.engine.fakes import (
    SEGMENT,
    FakeSession,
    FakeSource,
    FakeThrottle,
    FakeValidator,
    FakeView,
    content,
    digest_of,
    segments,
)

LENGTH = 16 * 10 + 3  # ten segments and a short one


class Parts:
    """All that a copier is made of."""

    def __init__(self, pool: BufferPool, data: bytearray) -> None:
        self.log: list[str] = []
        self.source = FakeSource(data, self.log)
        self.view = FakeView(self.log)
        self.validator = FakeValidator(self.log)
        self.session = FakeSession(len(data) // 512)
        self.pool = pool
        self.stop = Stop()
        self.told: list[Counts] = []
        self.runs = Runs(hashlib.sha256)

    def copier(self, *, clock: Callable[[], float] = lambda: 0.0) -> Copier:
        return Copier(
            SegmentReader(self.source, self.view, self.validator),
            self.session,
            self.pool,
            runs=self.runs,
            progress=self.told.append,
            stop=self.stop,
            clock=clock,
        )


@pytest.fixture
def pool() -> Iterator[BufferPool]:
    before = threading.active_count()
    with BufferPool(4, to_bytes(SEGMENT)) as pool:
        yield pool
        assert pool.free == pool.count, "a buffer was not given back"
    assert threading.active_count() == before, "a thread is left"


@pytest.fixture(params=[2, 1], ids=["threads", "one-cpu"])
def cpus(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Run with threads, and alone as on a machine with one CPU that is busy."""
    count: int = request.param
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(count)))
    monkeypatch.setattr(pipeline, "_LOOK_SECONDS", 0.0)
    monkeypatch.setattr(pipeline, "idle_seconds", lambda: 7.0)
    return count


@pytest.fixture
def parts(pool: BufferPool, cpus: int) -> Parts:
    return Parts(pool, content(LENGTH))


needs_threads = pytest.mark.parametrize("cpus", [2], indirect=True)


def test_every_segment_reaches_the_destination_also_the_short_last_one(parts: Parts) -> None:
    counts = parts.copier().copy(segments(LENGTH))
    assert parts.session.data == parts.source.data
    assert parts.session.written == list(segments(LENGTH))
    assert parts.session.flushed == 1
    assert counts == (LENGTH * 512, LENGTH * 512, 0, 0)


def test_digest_is_that_of_the_image_in_its_order(parts: Parts) -> None:
    parts.copier().copy(segments(LENGTH))
    assert parts.runs.changed() == [
        Run(Extent(Sectors(0), Sectors(LENGTH)), digest_of(parts.source.data))
    ]


def test_order_is_read_refresh_check_patch_for_each_segment_and_finish_at_the_end(
    parts: Parts,
) -> None:
    parts.copier().copy(segments(LENGTH))
    assert parts.log == ["read", "refresh", "check", "patch"] * 11 + ["finish"]


def test_what_was_saved_is_taken_from_the_view_and_counted(parts: Parts) -> None:
    image = bytes(parts.source.data)
    saved = Extent(Sectors(20), Sectors(4))
    parts.view.saved[saved] = image[saved.offset : saved.offset + saved.size]
    parts.source.data[saved.offset : saved.offset + saved.size] = b"!" * saved.size
    counts = parts.copier().copy(segments(LENGTH))
    assert parts.session.data == image
    assert counts.bytes_cow == saved.size
    assert counts.bytes_source + counts.bytes_cow == counts.bytes_done
    assert [run.digest for run in parts.runs.changed()] == [digest_of(image)]


def test_segment_is_not_written_when_the_point_in_time_is_lost(parts: Parts) -> None:
    parts.validator.error = PointInTimeLost("the kernel says 'Invalid'")
    copier = parts.copier()
    with pytest.raises(PointInTimeLost, match="Invalid"):
        copier.copy(segments(LENGTH))
    assert parts.session.written == []
    assert "patch" not in parts.log
    assert parts.session.flushed == 0
    assert copier.failed_at == Extent(Sectors(0), SEGMENT)


def test_batches_are_durable_one_by_one_and_counted_together(parts: Parts) -> None:
    copier = parts.copier()
    every = list(segments(LENGTH))
    copier.copy(every[:4])
    assert (parts.session.flushed, parts.log[-1]) == (1, "finish")
    counts = copier.copy(every[4:])
    assert parts.session.flushed == 2
    assert counts.bytes_done == LENGTH * 512
    assert parts.session.data == parts.source.data


def test_throttle_is_asked_before_each_read(parts: Parts) -> None:
    throttle = FakeThrottle()
    reader = SegmentReader(parts.source, parts.view, parts.validator)
    Copier(reader, parts.session, parts.pool, throttle=throttle).copy(segments(LENGTH))
    assert throttle.waited == [at.size for at in segments(LENGTH)]


def test_zero_segments_are_not_written_but_zeroed(pool: BufferPool) -> None:
    data = content(64)
    data[16 * 512 : 32 * 512] = bytes(16 * 512)
    data[32 * 512 : 48 * 512 - 1] = bytes(16 * 512 - 1)  # all but the last byte
    parts = Parts(pool, data)
    counts = parts.copier().copy(segments(64))
    assert parts.session.zeroed == [Extent(Sectors(16), SEGMENT)]
    assert counts.bytes_zero == to_bytes(SEGMENT)
    assert parts.session.data == data
    assert [run.digest for run in parts.runs.changed()] == [digest_of(data)]


def test_short_last_segment_of_zeroes_is_found_behind_old_data(pool: BufferPool) -> None:
    # the buffers still hold earlier segments behind the short one
    data = content(16 * 8 + 2)
    data[-1024:] = bytes(1024)
    parts = Parts(pool, data)
    parts.copier().copy(segments(16 * 8 + 2))
    assert parts.session.zeroed == [Extent(Sectors(128), Sectors(2))]


def test_error_of_the_reader_stops_and_names_the_segment(parts: Parts) -> None:
    parts.source.fails_at = Sectors(64)
    parts.source.error = SourceFailed("cannot read")
    copier = parts.copier()
    with pytest.raises(SourceFailed):
        copier.copy(segments(LENGTH))
    assert copier.failed_at == Extent(Sectors(64), SEGMENT)
    assert parts.session.flushed == 0


def test_error_of_the_writer_stops_the_reader(parts: Parts) -> None:
    parts.session.fails_at = Sectors(32)
    parts.session.error = DestinationFailed("no space left")
    copier = parts.copier()
    with pytest.raises(DestinationFailed):
        copier.copy(segments(1 << 20))  # would go on for long, if it were not stopped
    assert copier.failed_at == Extent(Sectors(32), SEGMENT)
    assert parts.source.reads <= 3 + parts.pool.count


def test_error_of_the_hasher_stops_everything(parts: Parts) -> None:
    class Broken:
        def update(self, data: memoryview, /) -> None:
            raise MemoryError("no memory")

        def hexdigest(self) -> str:
            raise AssertionError

    reader = SegmentReader(parts.source, parts.view, parts.validator)
    with pytest.raises(MemoryError):
        Copier(reader, parts.session, parts.pool, runs=Runs(Broken)).copy(segments(LENGTH))


@needs_threads
def test_first_of_two_errors_wins(parts: Parts) -> None:
    parts.session.fails_at = Sectors(0)
    parts.session.error = DestinationFailed("first")
    parts.session.gate.clear()

    class LateSource(FakeSource):
        def read(self, at: Extent, into: memoryview) -> None:
            if at.start:
                parts.session.gate.set()
                while copier.failed_at is None:
                    pass
                raise SourceFailed("second")
            super().read(at, into)

    copier = Copier(
        SegmentReader(LateSource(parts.source.data), parts.view, parts.validator),
        parts.session,
        parts.pool,
    )
    with pytest.raises(DestinationFailed, match="first"):
        copier.copy(segments(LENGTH))


@needs_threads
def test_stop_ends_within_one_segment_and_drops_what_was_read(parts: Parts) -> None:
    class StoppingSource(FakeSource):
        def read(self, at: Extent, into: memoryview) -> None:
            super().read(at, into)
            if at.start == 64:
                parts.stop.set("stopped by SIGTERM")

    source = StoppingSource(parts.source.data)
    reader = SegmentReader(source, parts.view, parts.validator)
    copier = Copier(reader, parts.session, parts.pool, stop=parts.stop)
    with pytest.raises(Interrupted, match="SIGTERM"):
        copier.copy(segments(LENGTH))
    assert source.reads == 5
    assert Extent(Sectors(64), SEGMENT) not in parts.session.written
    assert parts.session.flushed == 0


@needs_threads
def test_stop_at_the_last_segment_is_no_success(parts: Parts) -> None:
    parts.session.gate.clear()

    class StoppingSource(FakeSource):
        def read(self, at: Extent, into: memoryview) -> None:
            super().read(at, into)
            parts.stop.set("stopped")
            parts.session.gate.set()

    reader = SegmentReader(StoppingSource(parts.source.data), parts.view, parts.validator)
    with pytest.raises(Interrupted):
        Copier(reader, parts.session, parts.pool, stop=parts.stop).copy(segments(16))


def test_nothing_is_read_when_it_was_stopped_before(parts: Parts) -> None:
    parts.stop.set("stopped")
    with pytest.raises(Interrupted):
        parts.copier().copy(segments(LENGTH))
    assert parts.source.reads == 0


@needs_threads
def test_slow_destination_does_not_make_the_reader_take_more_memory(parts: Parts) -> None:
    parts.session.gate.clear()
    thread = threading.Thread(target=lambda: parts.copier().copy(segments(LENGTH)))
    thread.start()
    while parts.pool.free:
        pass
    threading.Event().wait(0.05)
    assert parts.source.reads <= parts.pool.count
    parts.session.gate.set()
    thread.join()
    assert parts.session.data == parts.source.data


def test_one_busy_cpu_copies_without_threads(
    pool: BufferPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = Parts(pool, content(LENGTH))
    reader = SegmentReader(parts.source, parts.view, parts.validator)
    monkeypatch.setattr(pipeline, "_LOOK_SECONDS", 0.0)
    monkeypatch.setattr(pipeline, "idle_seconds", lambda: 7.0)
    monkeypatch.setattr(threading.Thread, "start", lambda self: pytest.fail("a thread"))
    Copier(reader, parts.session, parts.pool, cpus=1).copy(segments(LENGTH))
    assert parts.session.data == parts.source.data


def test_one_idle_cpu_gets_threads_after_a_look(
    pool: BufferPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = Parts(pool, content(LENGTH))
    reader = SegmentReader(parts.source, parts.view, parts.validator)
    monkeypatch.setattr(pipeline, "_LOOK_SECONDS", 0.0)
    monkeypatch.setattr(pipeline, "idle_seconds", time.monotonic)
    started: list[int] = []
    start = threading.Thread.start

    def noted(self: threading.Thread) -> None:
        started.append(parts.source.reads)
        start(self)

    monkeypatch.setattr(threading.Thread, "start", noted)
    Copier(reader, parts.session, parts.pool, cpus=1).copy(segments(LENGTH))
    assert parts.session.data == parts.source.data
    assert started == [1]


def test_stop_ends_one_cpu_within_a_segment(pool: BufferPool) -> None:
    parts = Parts(pool, content(LENGTH))

    class StoppingSource(FakeSource):
        def read(self, at: Extent, into: memoryview) -> None:
            super().read(at, into)
            parts.stop.set("stopped")

    source = StoppingSource(parts.source.data)
    reader = SegmentReader(source, parts.view, parts.validator)
    with pytest.raises(Interrupted):
        Copier(reader, parts.session, parts.pool, stop=parts.stop, cpus=1).copy(segments(LENGTH))
    assert source.reads == 1


def test_progress_is_told_five_times_a_second_and_at_the_end(parts: Parts) -> None:
    seconds = iter(n * 0.1 for n in range(1000))
    parts.copier(clock=lambda: next(seconds)).copy(segments(LENGTH))
    assert len(parts.told) == 11 // 2 + 1
    assert parts.told[-1].bytes_done == LENGTH * 512
    assert [told.bytes_done for told in parts.told] == sorted(t.bytes_done for t in parts.told)


@needs_threads
def test_copy_goes_on_where_no_thread_can_be_started(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a limit of processes is reached (pids.max): also when some of them started."""
    start = threading.Thread.start
    started: list[threading.Thread] = []

    def second_fails(self: threading.Thread) -> None:
        if started:
            raise RuntimeError("can't start new thread")
        started.append(self)
        start(self)

    monkeypatch.setattr(threading.Thread, "start", second_fails)
    parts.copier().copy(segments(LENGTH))
    assert len(started) == 1
    assert not started[0].is_alive()
    assert parts.session.data == parts.source.data
    parts.stop.set("stopped by SIGTERM")
    started.clear()
    with pytest.raises(Interrupted):
        parts.copier().copy(segments(LENGTH))


def test_source_error_says_device_place_and_errno(tmp_path: object) -> None:
    source = DirectSource(-1, "/dev/x")
    with pytest.raises(SourceFailed, match="cannot read /dev/x, 8192 bytes at 8192: Bad file"):
        source.read(Extent(Sectors(16), SEGMENT), memoryview(bytearray(8192)))


def test_buffer_knows_zeroes_up_to_the_asked_size(pool: BufferPool) -> None:
    buffer: Buffer = pool.take()
    size = pool.size
    assert buffer.is_zero(size)
    for place in (0, 1, 511, size // 2, size - 1):
        buffer.view[place] = 1
        assert not buffer.is_zero(size)
        buffer.view[place] = 0
    buffer.view[1024] = 1
    assert buffer.is_zero(to_bytes(Sectors(2)))
    assert buffer.address % 4096 == 0
    pool.give(buffer)
