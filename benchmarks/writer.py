"""``python -m benchmarks.writer DEVICE IOPS LOG [DISTRIBUTION SEED]``: direct writes at a rate.

Four threads, each on a schedule of its own: a write that is late is followed at once by those
that were due meanwhile, so that the rate is kept as long as the device can.  Sleeps in the
kernel between writes: fio spins instead, where it finds that sleeping is coarse, and on a guest
of one CPU that takes half of it from whoever copies (docs/benchmarks.md).  The same SEED gives
the same places in the same order.

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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from benchmarks.distribution import DISTRIBUTIONS, UNIFORM

BLOCK: Final = 4096
THREADS: Final = 4
_CHUNK: Final = 16  # blocks


def places(distribution: str, blocks: int, seed: str) -> Callable[[], int]:
    """Give a function that draws a block: a chunk by the distribution, then any block of it."""
    where = random.Random(seed)  # noqa: S311 - a load, not a secret
    chunk = DISTRIBUTIONS[distribution].picker(blocks // _CHUNK, where)
    return lambda: chunk() * _CHUNK + where.randrange(_CHUNK)


def write(
    fd: int, place: Callable[[], int], every: float, first: float, end: threading.Event
) -> list[str]:
    """Write until *end*; give the log."""
    log: list[str] = []
    memory = mmap.mmap(-1, BLOCK)
    memory.write(os.urandom(BLOCK))
    due = first
    while not end.is_set():
        now = time.monotonic()
        if now < due:
            time.sleep(due - now)
        due += every
        offset = place() * BLOCK
        began = time.monotonic()
        os.pwrite(fd, memory, offset)
        took = time.monotonic() - began
        log.append(f"{time.time():.6f},{took:.9f}\n")
    return log


def main(argv: Sequence[str]) -> int:
    """Write until SIGTERM."""
    device, rate, path = argv[0], float(argv[1]), Path(argv[2])
    distribution, seed = (argv[3], argv[4]) if len(argv) > 3 else (UNIFORM, str(time.monotonic()))
    fd = os.open(device, os.O_RDWR | os.O_DIRECT)
    blocks = os.lseek(fd, 0, os.SEEK_END) // BLOCK
    end, every, logs = threading.Event(), THREADS / rate, dict[int, list[str]]()
    each = [places(distribution, blocks, f"{seed}/{number}") for number in range(THREADS)]
    start = time.monotonic()

    def work(number: int) -> None:
        logs[number] = write(fd, each[number], every, start + number / rate, end)

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
