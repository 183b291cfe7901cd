"""An application that writes to several volumes in turn, and never before the last write is done.

Round *n* puts *n* into slot *n* mod SLOTS of the first volume, waits until that is durable, then of
the second, and so on.  So whatever an instant cuts off, the last number on each volume tells: it
never grows from one volume to the next, and the first is at most one ahead of the last.

Run as a program it imports nothing but the standard library: ``alternate.py COUNTER DEVICE ...``.
"""

from __future__ import annotations

import mmap
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

SLOTS = 61
BLOCK = 4096
SPREAD = 4  # blocks from one slot to the next: each in a chunk of its own, of 16 KiB
MIB = SLOTS * SPREAD * BLOCK / (1 << 20)  # what it takes of a volume
_WORD = struct.Struct("<Q")


def main(counter: str, *devices: str) -> int:
    """Write until SIGTERM; the last round that is complete stands in the file *counter*."""
    going = [True]
    signal.signal(signal.SIGTERM, lambda *_: going.clear())
    fds = [os.open(path, os.O_WRONLY | os.O_DIRECT | os.O_DSYNC) for path in devices]
    note = os.open(counter, os.O_RDWR | os.O_CREAT)
    number = 0
    with mmap.mmap(-1, BLOCK) as page:
        while going:
            number += 1
            page[:] = _WORD.pack(number) * (BLOCK // _WORD.size)
            for fd in fds:
                if os.pwrite(fd, page, number % SLOTS * SPREAD * BLOCK) != BLOCK:
                    return 1
            os.pwrite(note, _WORD.pack(number), 0)
            time.sleep(0.01)
    return 0


class Writer:
    """A running one."""

    def __init__(self, process: subprocess.Popen[bytes], counter: Path) -> None:
        self.process = process
        self._counter = counter

    @property
    def rounds(self) -> int:
        """How many are complete."""
        data = self._counter.read_bytes() if self._counter.exists() else b""
        return int(_WORD.unpack(data)[0]) if len(data) == _WORD.size else 0

    def goes_on(self, rounds: int = 3, patience: float = 20.0) -> None:
        """Wait for some more rounds; nothing holds it for ever."""
        goal, end = self.rounds + rounds, time.monotonic() + patience
        while self.rounds < goal:
            assert self.process.poll() is None, "the writer saw an error"
            assert time.monotonic() < end, f"no write in {patience} s"
            time.sleep(0.005)


@contextmanager
def alternating(folder: Path, devices: Sequence[str]) -> Iterator[Writer]:
    """Write while the block runs; a write that fails fails the test."""
    counter = folder / f"rounds-{time.monotonic_ns()}"
    process = subprocess.Popen(
        [sys.executable, "-S", "-E", __file__, str(counter), *devices], stdin=subprocess.DEVNULL
    )
    writer = Writer(process, counter)
    try:
        writer.goes_on(SLOTS)
        yield writer
        assert process.poll() is None, "the writer saw an error"
    finally:
        process.terminate()
        status = process.wait(timeout=30)
    assert status == 0, "the writer saw an error"


class Seen(NamedTuple):
    """What an image shows: the last round, and what is not as it was right after that write."""

    last: int
    wrong: list[str]


def seen(image: bytes) -> Seen:
    """Read an image; it must be that of one instant by itself."""
    numbers = []
    wrong = []
    for slot in range(SLOTS):
        at = slot * SPREAD * BLOCK
        block = image[at : at + BLOCK]
        (number,) = _WORD.unpack_from(block)
        if block != _WORD.pack(number) * (BLOCK // _WORD.size):
            wrong.append(f"slot {slot} holds a torn block")
        numbers.append(number)
    last = max(numbers)
    for slot, number in enumerate(numbers):
        expected = last - (last - slot) % SLOTS
        if number != expected:
            wrong.append(f"slot {slot} holds {number}, not {expected}, when {last} is the last")
    return Seen(last, wrong)


def disorder(images: Sequence[bytes]) -> list[str]:
    """Say what no single instant of all volumes can have shown."""
    found = [seen(image) for image in images]
    wrong = [f"volume {n}: {text}" for n, one in enumerate(found) for text in one.wrong]
    last = [one.last for one in found]
    if sorted(last, reverse=True) != last or last[0] > last[-1] + 1:
        wrong.append(f"the volumes show the rounds {last}")
    return wrong


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
