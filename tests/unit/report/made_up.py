"""A copy that never was, in full: two minutes at a gigabyte a second, with all that may happen.

The same each time.  Hot ranges are copied first, so the map is out of order; the application
slows down a little during the copy, and the forecast is too early at first.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any, Final

from dmcopy.core.extent import Extent
from dmcopy.core.history import Copied, Held, History, Sample
from dmcopy.report.page import Subject
from dmcopy.units import GIB, MIB, Bytes, Sectors, to_bytes, to_sectors

SEGMENT: Final = to_sectors(Bytes(4 * MIB))
LENGTH: Final = to_sectors(Bytes(118 * GIB + 52 * MIB))
SECONDS: Final = 120
BEFORE: Final = 20
VERIFY: Final = 25
AFTER: Final = 15
COW_TOTAL: Final = 4 * GIB
BEGIN: Final = 1790000000.25  # seconds since 1970
BEGIN_TIME: Final = "2026-09-21T14:13:20.250000000Z"


def _cow(second: float) -> Bytes:
    """Give how much of the COW device is used: fast at first, slower as ranges retire."""
    share = min(max(second, 0.0) / SECONDS, 1.0)
    return Bytes(round(COW_TOTAL * 0.62 * (1 - (1 - share) ** 2)))


def history(*, until: int = SECONDS + VERIFY + AFTER, length: Sectors = LENGTH) -> History:
    """Give the history, as it was *until* so many seconds after the begin time."""
    made = History(length, SEGMENT)
    chance = random.Random(7)
    for second in range(-BEFORE + 1, until + 1):
        made.add(_sample(second, made, chance))
    segments = _order(made, chance)
    whole = len(segments)
    for second in range(1, min(until, SECONDS) + 1):
        batch = segments[whole * (second - 1) // SECONDS : whole * second // SECONDS]
        made.copied(float(second), batch)
    for hold in _holds(chance):
        if hold.at <= until:
            made.held(hold)
    return made


def _sample(second: int, made: History, chance: random.Random) -> Sample:
    is_copy, is_verify = 0 < second <= SECONDS, SECONDS < second <= SECONDS + VERIFY
    phase = "copy" if is_copy else "verify" if is_verify else "before" if second <= 0 else "after"
    slow = {"before": 1.0, "copy": 1.45, "verify": 1.1, "after": 1.0}[phase]
    if second in (1, 63, 96):
        slow = 30.0
    writes = round(chance.gauss(2050 if phase != "copy" else 1800, 90))
    share = min(max(second, 0) / SECONDS, 1.0)
    whole = to_bytes(made.length)
    # too early at first, and wrong by less and less
    done = SECONDS * (1 - 0.22 * (1 - share) ** 2) + chance.gauss(0, 2 * (1 - share))
    full = SECONDS * (0.82 + 1.6 * share) if second > 2 else None
    return Sample(
        at=float(second),
        phase=phase,
        bytes_done=Bytes(round(whole * share)),
        bytes_retired=Bytes(round(whole * max(share - 0.06, 0.0)) // (8 * MIB) * (8 * MIB)),
        cow_used=_cow(second) if second >= 0 else None,
        cow_total=Bytes(COW_TOTAL) if second >= 0 else None,
        done_at=done if is_copy and second > 1 else None,
        full_at=full if is_copy else None,
        span=1.0,
        writes=writes,
        write_seconds=writes * 0.00042 * slow * chance.uniform(0.9, 1.15),
    )


def _order(made: History, chance: random.Random) -> list[Copied]:
    """Give all segments, the hot ranges first."""
    count = -(-made.length // SEGMENT)
    hot = {n for n in range(count) if n * 64 // count in (9, 10, 27, 44, 45, 61)}
    found = []
    for n in sorted(range(count), key=lambda n: (n not in hot, n)):
        start = Sectors(n * SEGMENT)
        extent = Extent.between(start, Sectors(min(start + SEGMENT, made.length)))
        share = chance.uniform(0.0, 0.2) if n in hot else chance.choice((0, 0, 0, 0.02))
        found.append(Copied(extent, Bytes(int(to_bytes(extent.length) * share) // 65536 * 65536)))
    return found


def _holds(chance: random.Random) -> list[Held]:
    made = [Held(-0.01, "begin", 0.0183), Held(41.2, "grow", 0.031), Held(120.4, "end", 0.006)]
    made += [Held(at + 0.3, "retire", chance.uniform(0.002, 0.011)) for at in range(4, 120, 4)]
    made += [Held(60 + n * 0.7, "gate", chance.uniform(0.0004, 0.004)) for n in range(40)]
    made += [Held(95.5, "brake", 0.214), Held(97.0, "brake", 0.122)]
    return sorted(made)


def short() -> History:
    """Give the history of a copy of less than a second, looked at after a long time before it."""
    made = History(Sectors(13 * SEGMENT), SEGMENT)
    made.add(Sample(at=0.0, phase="before", span=3.0, writes=900, write_seconds=0.4))
    for n in range(1, 6):
        made.add(
            Sample(
                at=n / 5, phase="copy", span=0.2, writes=70 + n, write_seconds=0.05,
                bytes_done=Bytes(min(n * 13, 52) * MIB), cow_used=Bytes(n * 65536),
                cow_total=Bytes(64 * MIB), done_at=0.85 if n > 1 else None,
            )
        )  # fmt: skip
    made.add(
        Sample(at=1.1, phase="after", span=0.1, writes=30, write_seconds=0.02,
               bytes_done=Bytes(52 * MIB))
    )  # fmt: skip
    for n in range(13):
        extent = Extent(Sectors(n * SEGMENT), SEGMENT)
        made.copied(0.2 + n * 0.05, [Copied(extent, Bytes(65536 * (n % 3)))])
    made.held(Held(-0.01, "begin", 0.012))
    made.held(Held(0.9, "end", 0.009))
    return made


def ended(**other: object) -> Mapping[str, Any]:  # Any: JSON
    """Give the last event of the job."""
    return {
        "event": "ended", "job": "db-20260921", "state": "ended", "exit_status": 0,
        "begin_time": BEGIN_TIME, "seconds": 149.2, "copy_seconds": 120.1,
        "bytes_total": to_bytes(LENGTH), "bytes_cow": 3 * GIB, "bytes_zero": 9 * GIB,
        "hold_seconds": [0.0183, 0.006], "verified": True, "error": None, "left": [],
        "digest": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        **other,
    }  # fmt: skip


def log() -> list[tuple[float, Mapping[str, Any]]]:  # Any: JSON
    """Give the job's log."""
    job = "db-20260921"
    grown = {
        "event": "grown", "job": job, "cow_used_bytes": 2 * GIB, "cow_total_bytes": 4 * GIB,
        "cow_most_bytes": 16 * GIB, "seconds": 0.031,
    }  # fmt: skip
    braked = {"event": "braked", "job": job, "milliseconds": 200}
    warned = {"event": "warning", "job": job, "message": "udev is slow: it took 1.2 s"}
    verified = {
        "event": "verified", "job": job, "digest": str(ended()["digest"]),
        "bytes_total": to_bytes(LENGTH), "seconds": 24.6,
    }  # fmt: skip
    return [
        (BEGIN - 12.0, warned),
        (BEGIN + 41.2, grown),
        (BEGIN + 95.5, braked),
        (BEGIN + 97.2, {**braked, "milliseconds": 0}),
        (BEGIN + 145.0, verified),
    ]


def subject(**other: Any) -> Subject:  # Any: what a Subject takes
    """Give the whole job, done and verified; *other* in place of what it would be."""
    given: dict[str, Any] = {  # Any: what a Subject takes
        "job": "db-20260921", "state": "ended", "tone": "good", "made": BEGIN + 3600,
        "source": "/dev/mapper/vg0-db", "destination": "image:/backup/db-20260921.img",
        "created": BEGIN - 21.0, "begun": {"begin_time": BEGIN_TIME}, "ended": ended(),
        "history": history(), "log": log(),
    }  # fmt: skip
    return Subject(**(given | other))
