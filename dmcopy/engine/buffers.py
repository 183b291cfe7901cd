"""The memory that blocks pass through: a few buffers of one segment each, made once.

Shared anonymous mappings: page aligned, as O_DIRECT needs, and a fork (there is none in the
worker) would not make a copy-on-write page out of one that a device is writing to (open(2),
NOTES).  Locked, so that no page fault waits for a device whose writes are held.
"""

from __future__ import annotations

import ctypes
import mmap
import queue
from contextlib import suppress
from types import TracebackType
from typing import Final, Self

from dmcopy.units import Bytes

_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.mlock.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.mlock.restype = ctypes.c_int
_libc.memcmp.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
_libc.memcmp.restype = ctypes.c_int


class Buffer:
    """One segment's worth of memory; *address* is where *view* begins."""

    def __init__(self, view: memoryview, address: int) -> None:
        self.view = view
        self.address = address

    def is_zero(self, size: Bytes) -> bool:
        """Tell whether the first *size* bytes are zero; other threads go on meanwhile."""
        # Each byte equals the one before it, and the first is zero.  ctypes lets go of the
        # GIL; memcmp stops at the first difference, so data that is not zero costs nothing.
        return self.view[0] == 0 and not _libc.memcmp(self.address, self.address + 1, size - 1)


class BufferPool:
    """*count* buffers of *size* bytes; a context manager, or `close`.

    *locked* tells how many of them are locked in memory (RLIMIT_MEMLOCK may forbid it).
    """

    def __init__(self, count: int, size: Bytes) -> None:
        """Make the buffers; raises OSError (ENOMEM) when there is not enough memory."""
        self.count = count
        self.size = size
        self.locked = 0
        flags = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_POPULATE", 0)
        self._maps = [mmap.mmap(-1, size, flags=flags) for _ in range(count)]
        self._buffers = [self._make(memory) for memory in self._maps]
        self._free: queue.SimpleQueue[Buffer] = queue.SimpleQueue()
        for buffer in self._buffers:
            self._free.put(buffer)

    def _make(self, memory: mmap.mmap) -> Buffer:
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        self.locked += _libc.mlock(address, self.size) == 0
        return Buffer(memoryview(memory), address)

    def take(self) -> Buffer:
        """Give a free buffer; waits for one."""
        return self._free.get()

    def give(self, buffer: Buffer) -> None:
        """Take a buffer back."""
        self._free.put(buffer)

    @property
    def free(self) -> int:
        """How many buffers nobody has."""
        return self._free.qsize()

    def close(self) -> None:
        """Give the memory back; nobody may use a buffer any more."""
        for buffer in self._buffers:
            buffer.view.release()
        for memory in self._maps:
            # a traceback that is being looked at may still hold a part of it
            with suppress(BufferError):
                memory.close()
        self._buffers.clear()
        self._maps.clear()

    def __enter__(self) -> Self:
        """Give the pool itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Give the memory back."""
        self.close()
