"""``python -m benchmarks.writer DEVICE IOPS LOG``: random direct writes at a fixed rate.

Four threads, each on a schedule of its own: a write that is late is followed at once by those
that were due meanwhile, so that the rate is kept as long as the device can.  Sleeps in the
kernel between writes: fio spins instead, where it finds that sleeping is coarse, and on a guest
of one CPU that takes half of it from whoever copies (docs/benchmarks.md).

Ends with SIGTERM and then writes LOG: a line a write, when it ended and what it took.
"""

from __future__ import annotations

import mmap
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

BLOCK: Final = 4096
THREADS: Final = 4


def write(fd: int, blocks: int, every: float, first: float, end: threading.Event) -> list[str]:
    """Write until *end*; give the log."""
    log: list[str] = []
    where = random.Random(first)  # noqa: S311 - a load, not a secret
    memory = mmap.mmap(-1, BLOCK)
    memory.write(os.urandom(BLOCK))
    due = first
    while not end.is_set():
        now = time.monotonic()
        if now < due:
            time.sleep(due - now)
        due += every
        offset = where.randrange(blocks) * BLOCK
        began = time.monotonic()
        os.pwrite(fd, memory, offset)
        took = time.monotonic() - began
        log.append(f"{time.time():.6f},{took:.9f}\n")
    return log


def main(argv: Sequence[str]) -> int:
    """Write until SIGTERM."""
    device, rate, path = argv[0], float(argv[1]), Path(argv[2])
    fd = os.open(device, os.O_RDWR | os.O_DIRECT)
    blocks = os.lseek(fd, 0, os.SEEK_END) // BLOCK
    end, every, logs = threading.Event(), THREADS / rate, dict[int, list[str]]()
    start = time.monotonic()

    def work(number: int) -> None:
        logs[number] = write(fd, blocks, every, start + number / rate, end)

    threads = [threading.Thread(target=work, args=[number]) for number in range(THREADS)]
    signal.signal(signal.SIGTERM, lambda *_: end.set())
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    path.write_text("".join(line for log in logs.values() for line in log))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
