"""``python -m benchmarks order``: what ``--order hot`` saves on copies too long to measure.

A simulation: the order is made by the program's own code (`core.order`, `core.segment`), the
writes and the copy's pace are made up as in `benchmarks impact`.  Reads no device.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from statistics import median
from typing import Final

from benchmarks.distribution import DISTRIBUTIONS, HOT_TENTH, ZIPF, Distribution
from dmcopy.core.order import Heat
from dmcopy.core.segment import Rank, Remaining, SegmentList
from dmcopy.stack.counters import counter_area
from dmcopy.units import Sectors

_CHUNK: Final = 128  # sectors
_SEGMENT: Final = Sectors(8192)
_SEGMENT_SECONDS: Final = 0.15
_KNOWN_SECONDS: Final = 1.0  # that writes are counted before the begin time
_LOOK_SECONDS: Final = 0.5
_RETIRED_AFTER: Final = 0.3  # seconds, or 1 % of the time so far: half a batch
_CHUNKS: Final = (6144, 24576, 98304, 393216)
_WRITES: Final = 0.15  # for each chunk, during the copy
_SEEDS: Final = (1, 2, 3)


def share_saved(load: Distribution, chunks: int, *, seed: int) -> float:
    """Give what is saved with ``--order hot``, as a share of what is saved without retiring."""
    where = random.Random(seed)  # noqa: S311 - a load, not a secret
    pick = load.picker(chunks, where)
    length = Sectors(chunks * _CHUNK)
    area = counter_area(length, _SEGMENT)
    remaining = Remaining(SegmentList(length, _SEGMENT))
    heat, counts = Heat(length, area), Counter[int]()
    every = _WRITES * chunks / (-(-length // _SEGMENT))  # writes while a segment is copied
    for _ in range(round(every / _SEGMENT_SECONDS * _KNOWN_SECONDS)):
        counts[pick() * _CHUNK // area] += 1
    retired = bytearray(chunks)
    waiting: deque[tuple[float, int, int]] = deque()  # when it is retired, and which chunks
    saved: set[int] = set()
    written: set[int] = set()
    now, looked, due = 0.0, -_LOOK_SECONDS, 0.0
    while True:
        if now - looked >= _LOOK_SECONDS:
            heat.add(now, counts)
            counts.clear()
            remaining.prefer(heat.clusters(remaining.left), Rank.HOT)
            looked = now
        at = remaining.take()
        if at is None:
            return len(saved) / len(written)
        due += every
        while due >= 1:
            due -= 1
            chunk = pick()
            written.add(chunk)
            counts[chunk * _CHUNK // area] += 1
            if not retired[chunk]:
                saved.add(chunk)
        now += _SEGMENT_SECONDS
        until = now + max(_RETIRED_AFTER, now * 0.01)
        waiting.append((until, at.start // _CHUNK, -(-at.end // _CHUNK)))
        while waiting and waiting[0][0] <= now:
            _, first, end = waiting.popleft()
            retired[first:end] = b"\1" * (end - first)


def main() -> int:
    """Print the table."""
    print(f"{_WRITES} writes for each chunk during the copy; chunks saved, times without retiring")
    print("chunks    copy, s  " + "  ".join(f"{name:16}" for name in (ZIPF, HOT_TENTH)))
    for chunks in _CHUNKS:
        seconds = chunks * _CHUNK / _SEGMENT * _SEGMENT_SECONDS
        cells = []
        for name in (ZIPF, HOT_TENTH):
            found = [share_saved(DISTRIBUTIONS[name], chunks, seed=seed) for seed in _SEEDS]
            cells.append(f"{median(found):.2f} {min(found):.2f}..{max(found):.2f}")
        print(
            f"{chunks:<8}  {seconds:7.0f}  " + "  ".join(f"{cell:16}" for cell in cells), flush=True
        )
    return 0
