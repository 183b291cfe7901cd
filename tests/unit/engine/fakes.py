"""A source, an exception store and a destination in memory, which note what was asked."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator

from dmcopy.core.extent import Extent
from dmcopy.units import Bytes, Sectors, to_bytes

SEGMENT = Sectors(16)  # 8 KiB


def segments(length: int, size: Sectors = SEGMENT) -> Iterator[Extent]:
    return Extent(Sectors(0), Sectors(length)).split(size, align=size)


def content(length: int, seed: int = 1) -> bytearray:
    """Give *length* sectors, each of which says where it belongs; none is zero."""
    sectors = (f"{seed}/{n};".encode().ljust(512, b"#") for n in range(length))
    return bytearray(b"".join(sectors))


class FakeSource:
    """Reads from *data*; raises *error* at the segment that starts at *fails_at*."""

    def __init__(self, data: bytearray, log: list[str] | None = None) -> None:
        self.data = data
        self.log = log if log is not None else []
        self.fails_at: Sectors | None = None
        self.error: BaseException = OSError("unset")
        self.reads = 0

    def read(self, at: Extent, into: memoryview) -> None:
        self.log.append("read")
        self.reads += 1
        if at.start == self.fails_at:
            raise self.error
        assert len(into) == at.size
        into[:] = self.data[at.offset : at.offset + at.size]


class FakeView:
    """*saved* maps an extent to the bytes that were saved of it."""

    def __init__(self, log: list[str] | None = None) -> None:
        self.saved: dict[Extent, bytes] = {}
        self.log = log if log is not None else []

    @property
    def count(self) -> int:
        return len(self.saved)

    def refresh(self) -> None:
        self.log.append("refresh")

    def patch(self, at: Extent, data: memoryview) -> Bytes:
        self.log.append("patch")
        patched = 0
        for extent, saved in self.saved.items():
            if extent.clip(at) == extent:
                start = to_bytes(Sectors(extent.start - at.start))
                data[start : start + extent.size] = saved
                patched += extent.size
        return Bytes(patched)


class FakeValidator:
    def __init__(self, log: list[str] | None = None) -> None:
        self.cow: tuple[Sectors, Sectors] | None = (Sectors(8), Sectors(80))
        self.log = log if log is not None else []
        self.error: BaseException | None = None

    def check(self) -> None:
        self.log.append("check")
        if self.error is not None:
            raise self.error

    def finish(self) -> None:
        self.log.append("finish")


class FakeSession:
    """Keeps what is written; *gate* holds writes while it is not set."""

    def __init__(self, length: int) -> None:
        self.data = bytearray(b"?" * (length * 512))
        self.zeroed: list[Extent] = []
        self.written: list[Extent] = []
        self.fails_at: Sectors | None = None
        self.error: BaseException = OSError("unset")
        self.gate = threading.Event()
        self.gate.set()
        self.flushed = 0
        self.completed = False
        self.closed = False
        self.kept = False
        self.mark: dict[str, str | int] = {"inode": 7}

    def keep(self) -> None:
        self.kept = True

    def write(self, at: Extent, data: memoryview) -> None:
        assert self.gate.wait(10)
        if at.start == self.fails_at:
            raise self.error
        assert len(data) == at.size
        self.written.append(at)
        self.data[at.offset : at.offset + at.size] = data

    def zero(self, at: Extent) -> None:
        self.zeroed.append(at)
        self.data[at.offset : at.offset + at.size] = bytes(at.size)

    def flush(self) -> None:
        self.flushed += 1

    def read(self, at: Extent, into: memoryview) -> None:
        if at.start == self.fails_at:
            raise self.error
        into[:] = self.data[at.offset : at.offset + at.size]

    def complete(self) -> None:
        self.completed = True


class FakeThrottle:
    def __init__(self) -> None:
        self.rate: Bytes | None = None
        self.waited: list[int] = []

    def wait(self, size: int) -> None:
        self.waited.append(size)


def digest_of(data: bytes | bytearray) -> str:
    return hashlib.sha256(data).hexdigest()
