"""The application: random writes at a fixed rate, and what each of them took.

`benchmarks.writer` logs every write with its time; the figures are of the writes that ended in
the window of a copy, which is shorter than the writer's run.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from benchmarks.samples import Latency

WARM_UP: Final = 1.5
_BASELINE: Final = 1.0  # the last part of the warm-up


class Load:
    """A running writer; `latency` when it is stopped."""

    def __init__(self) -> None:
        """Know nothing yet."""
        self.started = 0.0
        self.warm = 0.0
        self.log: list[tuple[float, float]] = []  # (time it ended, seconds it took)

    def read(self, path: Path) -> None:
        """Read the writer's log: when each write ended, and what it took."""
        for line in path.read_text().splitlines():
            at, took = line.split(",")
            self.log.append((float(at), float(took)))

    def latency(self, begin: float, end: float) -> Latency | None:
        """Give the figures of a window, in time.time() seconds; None when nothing ended in it."""
        took = sorted(seconds for at, seconds in self.log if begin <= at <= end)
        if not took:
            return None
        return Latency(
            writes=len(took),
            iops=len(took) / (end - begin),
            p50=percentile(took, 0.50),
            p99=percentile(took, 0.99),
            max=took[-1],
        )

    def baseline(self) -> Latency | None:
        """Give the figures of the second before the copy."""
        return self.latency(self.warm - _BASELINE, self.warm)


def percentile(ordered: Sequence[float], share: float) -> float:
    """Give the nearest-rank percentile of sorted values."""
    rank = max(1, -(-int(share * 10_000) * len(ordered) // 10_000))
    return ordered[rank - 1]


def _writes(device: str) -> int:
    """Read how many writes a device has completed."""
    number = os.stat(device).st_rdev
    devno = f"{os.major(number)}:{os.minor(number)}"
    return int(Path("/sys/dev/block", devno, "stat").read_text().split()[4])


def _wait_for_writes(device: str) -> None:
    """Wait until the writer has begun: it takes seconds on a busy machine."""
    before, limit = _writes(device), time.monotonic() + 60
    while _writes(device) == before and time.monotonic() < limit:
        time.sleep(0.1)


@contextmanager
def application(device: str, iops: int, *where: str, warm_up: float = WARM_UP) -> Iterator[Load]:
    """Write to *device* until the block ends; then the result can be asked.

    *where*: distribution and seed, as `benchmarks.writer` takes them.
    """
    with tempfile.TemporaryDirectory() as name:
        log = Path(name, "log")
        load = Load()
        load.started = time.time()
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.writer", device, str(iops), str(log), *where],
            stdin=subprocess.DEVNULL,
        )
        try:
            _wait_for_writes(device)
            time.sleep(warm_up)
            load.warm = time.time()
            yield load
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=60)
        load.read(log)
