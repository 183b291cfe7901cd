"""The proofs of the copy protocol: real dm-snapshot, a load, and two witnesses.

The witnesses are the source's bytes while the origin was suspended at begin time, and the
kernel's own snapshot device.  Neither goes through anything of ours.  For each sentence of the
proof there is also a reader that is broken on purpose and must be caught: tests of the tests.
"""

from __future__ import annotations

import itertools
import mmap
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dmcopy.core.extent import Extent
from dmcopy.engine.buffers import BufferPool
from dmcopy.engine.copier import Copier, DirectSource, SegmentReader, Source
from dmcopy.engine.exceptions_view import CowView
from dmcopy.engine.validate import SnapshotValidator, Validator
from dmcopy.errors import PointInTimeLost
from dmcopy.kernel.blkdev import BlockDevice
from dmcopy.kernel.dmrequest import CONTROL, Probe
from dmcopy.units import KIB, MIB, Bytes, Sectors, to_sectors
from tests.lab import snapshots, stamp
from tests.lab.snapshots import Begun, Origin, begun, loaded, origin_on

pytestmark = [pytest.mark.lab]

LENGTH = 17 * MIB + 12 * KIB  # no multiple of most chunks
ROUNDS = 12  # how often a broken reader may get away with it
Reads = Callable[[Extent, memoryview], Bytes]


@pytest.fixture(scope="module")
def disks() -> Iterator[list[str]]:
    with snapshots.ram_disks(2, 2 * LENGTH) as disks:
        yield disks


@pytest.fixture
def shm() -> Iterator[Path]:
    """Give a directory in memory."""
    import tempfile

    with tempfile.TemporaryDirectory(dir="/dev/shm") as path:
        yield Path(path)


class SlowSource:
    """Waits before and behind each read: whatever order is wrong has time to show."""

    def __init__(self, source: Source, seconds: float = 0.02) -> None:
        self._source = source
        self._seconds = seconds

    def read(self, at: Extent, into: memoryview) -> None:
        time.sleep(self._seconds)
        self._source.read(at, into)
        time.sleep(self._seconds)


class TableBeforeData(SegmentReader):
    """Broken: looks into the exception store first."""

    def read(self, at: Extent, into: memoryview) -> Bytes:
        self._view.refresh()
        self._source.read(at, into)
        self._validator.check()
        return self._view.patch(at, into)


class StatusNeverAsked(SnapshotValidator):
    """Broken: believes that the snapshot is valid."""

    def check_snapshot(self) -> None:
        self.cow = None


class TableNeverAsked(SnapshotValidator):
    """Broken: believes that the origin's table is still ours."""

    def check_origin(self) -> None:
        self.cow = None


class Reading:
    """Everything that reads one point in time, open; parts can be replaced by broken ones."""

    def __init__(
        self,
        origin: Origin,
        begin: Begun,
        *,
        slow: float = 0.02,
        direct_cow: bool = True,
        reader: type[SegmentReader] = SegmentReader,
        validator: type[SnapshotValidator] = SnapshotValidator,
    ) -> None:
        self._control = os.open(CONTROL, os.O_RDWR)
        self._device = BlockDevice.open(origin.source)
        self._cow = BlockDevice.open(origin.cow, direct=direct_cow)
        self.source: Source = DirectSource(self._device.fd, origin.source)
        if slow:
            self.source = SlowSource(self.source, slow)
        self.view = CowView(
            self._cow.fd,
            origin.cow,
            chunk=to_sectors(Bytes(origin.chunk)),
            source=Sectors(origin.sectors),
            block=self._cow.logical_block,
        )
        self.validator: Validator = validator(
            Probe(self._control, uuid=begin.snapshot_uuid),
            Probe(self._control, devno=snapshots.devno(origin.path)),
            origin.origin_table.encode(),
        )
        self.reader = reader(self.source, self.view, self.validator)

    def close(self) -> None:
        self._cow.close()
        self._device.close()
        os.close(self._control)


@contextmanager
def reading(origin: Origin, begin: Begun, **broken: object) -> Iterator[Reading]:
    one = Reading(origin, begin, **broken)  # type: ignore[arg-type]  # passed on as they are
    try:
        yield one
    finally:
        one.close()


def segments(origin: Origin, size: int) -> Iterator[Extent]:
    sectors = to_sectors(Bytes(size))
    return Extent(Sectors(0), Sectors(origin.sectors)).split(sectors, align=sectors)


class FileSink:
    """An image in a file, and nothing else."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)

    def write(self, at: Extent, data: memoryview) -> None:
        assert os.pwrite(self._fd, data, at.offset) == at.size

    def zero(self, at: Extent) -> None:
        assert os.pwrite(self._fd, bytes(at.size), at.offset) == at.size

    def flush(self) -> None:
        os.fsync(self._fd)

    def close(self) -> None:
        os.close(self._fd)


def differing(image: bytes, witness: bytes, at: Extent) -> list[int]:
    """Give the 4 KiB blocks of *at* where the two are not the same."""
    if image == witness[at.offset : at.offset + at.size]:
        return []
    return [
        offset
        for offset in range(at.offset, at.offset + at.size, 4096)
        if image[offset - at.offset : offset - at.offset + 4096] != witness[offset : offset + 4096]
    ]


def wrong_segments(origin: Origin, begin: Begun, size: int, read: Reads) -> tuple[int, int]:
    """Read all segments; give how many are wrong and how many took something from the COW."""
    wrong = overlaid = 0
    with BufferPool(1, Bytes(size)) as pool:
        buffer = pool.take()
        for at in segments(origin, size):
            overlaid += read(at, buffer.view[: at.size]) > 0
            wrong += bool(differing(bytes(buffer.view[: at.size]), begin.witness, at))
    return wrong, overlaid


# The smallest under both kernels; QEMU is too slow for every pair.
PAIRS = [(4, 256)]


@pytest.mark.parametrize(
    ("chunk", "segment"),
    [
        pytest.param(
            chunk * KIB,
            segment * KIB,
            marks=[pytest.mark.proof] if (chunk, segment) in PAIRS else [],
            id=f"{chunk}k-{segment}k",
        )
        for at, chunk in enumerate((4, 16, 64, 256))
        for segment in (256, 1024, 4096, 16384)[at % 2 :: 2]
    ],
)
def test_copy_under_load_is_the_image_of_begin_time(
    disks: list[str], shm: Path, chunk: int, segment: int
) -> None:
    with origin_on(disks, LENGTH, chunk=chunk, cow_length=2 * LENGTH, cow_delay_ms=5) as origin:
        stamp.fill(origin.path, seed=3, processes=2)
        # both sides of begin time are written, and there is more load than the COW can take
        with (
            loaded(origin, shm / "log", seed=3, max_blocks=64, fsync_every=8, pause=0.002),
            begun(origin) as begin,
            reading(origin, begin, slow=0.01) as one,
            BufferPool(3, Bytes(segment)) as pool,
        ):
            time.sleep(0.2)
            sink = FileSink(shm / "image")
            counts = Copier(one.reader, sink, pool).copy(segments(origin, segment))
            sink.close()
            image = (shm / "image").read_bytes()
            kernels = snapshots.read_all(begin.snapshot, LENGTH)
            whole = Extent(Sectors(0), Sectors(origin.sectors))
            assert differing(image, kernels, whole) == []
            assert differing(image, begin.witness, whole) == []
            assert counts.bytes_done == LENGTH
            assert counts.bytes_cow > 0, "the load did not reach the copy: nothing was proved"
        verdict = stamp.check(str(shm / "image"), shm / "log", 3, t0=begin.t0, t1=begin.t1)
        assert verdict.wrong == []
        assert verdict.writes > 50


class WritingSource:
    """Reads half of a segment, overwrites all of it through the origin, reads the rest."""

    def __init__(self, source: Source, origin_path: str) -> None:
        self._source = source
        self._path = origin_path

    def read(self, at: Extent, into: memoryview) -> None:
        half = Sectors(at.length // 2)
        first = Extent(at.start, half)
        second = Extent(first.end, Sectors(at.length - half))
        self._source.read(first, into[: first.size])
        memory = mmap.mmap(-1, at.size)
        memory[:] = b"!" * at.size
        fd = os.open(self._path, os.O_RDWR | os.O_DIRECT)
        try:
            assert os.pwritev(fd, [memory], at.offset) == at.size
        finally:
            os.close(fd)
        self._source.read(second, into[first.size :])


@pytest.mark.parametrize(
    ("order", "chunk"),
    [
        (SegmentReader, 4 * KIB),
        (SegmentReader, 64 * KIB),
        (TableBeforeData, 4 * KIB),
        (TableBeforeData, 64 * KIB),
    ],
)
def test_chunk_written_during_read_is_taken_from_cow(
    disks: list[str], chunk: int, order: type[SegmentReader]
) -> None:
    """The broken order is run too: it must give a wrong segment each time."""
    with origin_on(disks, LENGTH, chunk=chunk, cow_length=2 * LENGTH) as origin:
        stamp.fill(origin.path, seed=3)
        with begun(origin) as begin, reading(origin, begin, slow=0) as one:
            reader = order(WritingSource(one.source, origin.path), one.view, one.validator)
            wrong, overlaid = wrong_segments(origin, begin, MIB, reader.read)
            total = sum(1 for _ in segments(origin, MIB))
            assert (wrong, overlaid) == ((0, total) if order is SegmentReader else (total, 0))


def rounds_until_wrong(disks: list[str], shm: Path, rounds: int = ROUNDS, **broken: object) -> int:
    """Give how many rounds of copying under load it took to see a wrong segment, 0 for none."""
    with origin_on(disks, LENGTH, chunk=16 * KIB, cow_length=2 * LENGTH, cow_delay_ms=10) as origin:
        stamp.fill(origin.path, seed=3, processes=2)
        for number in range(rounds):
            with (
                loaded(origin, shm / f"log{number}", seed=3, max_blocks=16, pause=0.002),
                begun(origin) as begin,
                reading(origin, begin, **broken) as one,
            ):
                wrong, _ = wrong_segments(origin, begin, MIB, one.reader.read)
                if wrong:
                    return number + 1
    return 0


@pytest.mark.proof
def test_right_order_is_right_where_the_broken_ones_are_caught(disks: list[str], shm: Path) -> None:
    assert rounds_until_wrong(disks, shm, rounds=4) == 0


@pytest.mark.proof
def test_table_before_data_broken_gives_wrong_segments(disks: list[str], shm: Path) -> None:
    assert rounds_until_wrong(disks, shm, reader=TableBeforeData) > 0


def test_buffered_cow_broken_gives_wrong_segments(disks: list[str], shm: Path) -> None:
    assert rounds_until_wrong(disks, shm, direct_cow=False) > 0


def read_while_it_overflows(
    disks: list[str], shm: Path, number: int, **broken: object
) -> tuple[int, int, int]:
    """Copy with a COW device that will not do; give good, wrong and refused segments."""
    good = wrong = refused = 0
    with (
        origin_on(disks, LENGTH, chunk=16 * KIB, cow_length=4 * MIB) as origin,
        BufferPool(1, Bytes(MIB)) as pool,
    ):
        stamp.fill(origin.path, seed=3, processes=2)
        buffer = pool.take()
        with (
            loaded(origin, shm / f"log{number}", seed=3, max_blocks=16, pause=0.001),
            begun(origin) as begin,
            reading(origin, begin, slow=0.01, **broken) as one,
        ):
            for at in segments(origin, MIB):
                try:
                    one.reader.read(at, buffer.view[: at.size])
                except PointInTimeLost:
                    refused += 1
                    continue
                assert not refused, "a snapshot that was lost came back"
                if differing(bytes(buffer.view[: at.size]), begin.witness, at):
                    wrong += 1
                else:
                    good += 1
            assert "Invalid" in snapshots.dmsetup("status", Path(begin.snapshot).name)
    return good, wrong, refused


def test_overflow_under_load_never_gives_a_wrong_segment(disks: list[str], shm: Path) -> None:
    seen = [read_while_it_overflows(disks, shm, number) for number in range(4)]
    assert sum(wrong for _, wrong, _ in seen) == 0
    assert all(refused for _, _, refused in seen), "it did not overflow while it was read"
    assert any(good for good, _, _ in seen), "it was lost before the first segment"


def test_status_never_asked_broken_gives_wrong_segments(disks: list[str], shm: Path) -> None:
    for number in range(ROUNDS):
        _, wrong, _ = read_while_it_overflows(disks, shm, number, validator=StatusNeverAsked)
        if wrong:
            return
    pytest.fail(f"not caught in {ROUNDS} rounds")


@pytest.mark.parametrize("validator", [SnapshotValidator, TableNeverAsked])
def test_origin_table_replaced_is_noticed_by_the_next_segment(
    disks: list[str], shm: Path, validator: type[SnapshotValidator]
) -> None:
    """As ``lvchange --refresh`` does it; the validator that does not ask must be wrong."""
    with origin_on(disks, LENGTH, chunk=16 * KIB, cow_length=2 * LENGTH) as origin:
        stamp.fill(origin.path, seed=3)
        with (
            begun(origin) as begin,
            reading(origin, begin, validator=validator, slow=0.01) as one,
            BufferPool(1, Bytes(MIB)) as pool,
        ):
            buffer = pool.take()
            first, *rest = segments(origin, MIB)
            one.reader.read(first, buffer.view[: first.size])
            assert differing(bytes(buffer.view), begin.witness, first) == []
            snapshots.dmsetup("load", origin.name, stdin=origin.plain_table)
            snapshots.dmsetup("resume", origin.name)
            wrong = 0
            # not before: a load that is quick has every chunk saved by now, and no write shows
            with loaded(origin, shm / "log", seed=3, processes=1):
                if validator is SnapshotValidator:
                    for at in rest:
                        with pytest.raises(PointInTimeLost, match="table was replaced"):
                            one.reader.read(at, buffer.view[: at.size])
                else:
                    # the load writes past the snapshot from now on: sooner or later it is seen
                    end = time.monotonic() + 30
                    for at in itertools.cycle(rest):
                        one.reader.read(at, buffer.view[: at.size])
                        wrong += bool(differing(bytes(buffer.view[: at.size]), begin.witness, at))
                        if wrong or time.monotonic() > end:
                            break
            status = snapshots.dmsetup("status", Path(begin.snapshot).name)
            assert "Invalid" not in status, "the snapshot itself notices nothing"
            assert (wrong > 0) == (validator is TableNeverAsked)
