"""Inside the guest: one copy with each write to its only disk logged, and the disk as of each.

``record`` lays dm-log-writes over one disk, of which source, destination and state are slices, so
that the log has one order for all of them.  ``replay``, in another boot, makes the disk again as
it was at many moments, and says of each what became of the job, as `guest_side.again` does.
``again`` is a boot from such a disk, and resumes the job: the slices are partitions then, which
count their own writes, but by all else the same devices.  ``begin`` is a copy of which one disk
alone is logged: what no flush of its own made durable there can be lost.

    python -m tests.cuts.recorder record [--copy-options WORDS]
    python -m tests.cuts.recorder begin source|target [--blow TRANSITION] [--broken HOW]
        [--write-ms MILLISECONDS]
    python -m tests.cuts.recorder replay --flushes N --others N --seed N
    python -m tests.cuts.recorder again
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

from dmcopy.jobs.journal import Journal
from dmcopy.jobs.spec import Places
from tests.cuts import guest_side
from tests.cuts.broken import BROKEN
from tests.cuts.guest_side import tell
from tests.cuts.layout import SIZE, SLICES, WHOLE
from tests.cuts.logwrites import Entry, Flags, Replay
from tests.lab.stage import patiently, sh

MEDIUM, LOG = "/dev/ubda", "/dev/ubdb"
ONE_LOG: Final = "/dev/ubdd"  # of a machine with three disks
_READY: Final = "ready"
_BEHIND: Final = 64 << 20  # bytes; one boot from the disk writes less


@contextmanager
def slices(medium: str) -> Iterator[dict[str, str]]:
    """Cut a disk into its slices."""
    paths = {}
    try:
        for name, (start, length) in SLICES.items():
            paths[name] = _slice(name, length, medium, start)
        yield paths
    finally:
        for path in reversed(paths.values()):
            patiently("dmsetup", "remove", path)


def _slice(name: str, length: int, device: str, start: int) -> str:
    """Make a device that is the same one, as its uuid says, wherever it lies."""
    table = f"0 {length >> 9} linear {device} {start >> 9}"
    words = ("create", f"slice-{name}", "--uuid", f"LAB-slice-{name}", "--table", table)
    sh("dmsetup", *words)
    return f"/dev/mapper/slice-{name}"


def record(options: Sequence[str]) -> None:
    """Copy under a load, to the end, with these *options*, and log it."""
    sh("modprobe", "dm-log-writes")
    sh("dmsetup", "create", "medium", "--table", f"0 {WHOLE >> 9} log-writes {MEDIUM} {LOG}")

    with slices("/dev/mapper/medium") as paths:
        guest_side.state_disk(paths["state"])
        guest_side.devices(paths["source"], paths["target"])
        guest_side.copy_with_witness(blow=None, until_cut=False, when_ready=_mark, options=options)
        for name in ("cut-origin", "cut-destination"):
            patiently("dmsetup", "remove", name)
        sh("umount", str(guest_side.MOUNT))
    status = sh("dmsetup", "status", "medium")
    assert "disabled" not in status, f"the log is not whole: {status}"
    patiently("dmsetup", "remove", "medium")  # writes the rest of the log


def again() -> None:
    """Resume in another boot, in which the slices are the disk's partitions."""
    source, target, state = (
        _slice(name, length, f"{MEDIUM}{1 + number}", 0)
        for number, (name, (_, length)) in enumerate(SLICES.items())
    )
    guest_side.again("resume", disks=(source, target, state))


def begin(what: str, *, blow: str | None, broken: str | None, write_ms: int) -> None:
    """Copy until the power is cut; one disk, source or target, is logged, and nothing else."""
    sh("modprobe", "dm-log-writes")
    source, target = guest_side.SOURCE, guest_side.TARGET
    disk = source if what == "source" else target
    log = f"0 {SIZE >> 9} log-writes {disk} {ONE_LOG}"
    sh("dmsetup", "create", "medium", "--table", log)
    guest_side.state_disk()
    if what == "source":
        guest_side.devices("/dev/mapper/medium", target, write_ms=write_ms)
    else:
        guest_side.devices(source, "/dev/mapper/medium", write_ms=write_ms)
    # the mark has the kernel write down how long the log is
    # a source is asked for its snapshot later, which must not lack what was retired
    options = ["--no-retire"] if what == "source" else []
    guest_side.copy_with_witness(
        blow=blow, until_cut=True, when_ready=_mark, options=options, broken=broken
    )


def _mark() -> None:
    sh("dmsetup", "message", "medium", "0", "mark", _READY)


def moments(
    entries: Sequence[Entry], flushes: int, others: int, chance: random.Random
) -> list[int]:
    """Choose how many entries shall be there: after flushes, and anywhere; after begin time."""
    first = next(n for n, entry in enumerate(entries) if entry.mark == _READY) + 1
    after = [n + 1 for n in range(first, len(entries)) if entries[n].flags & Flags.FLUSH]
    some = chance.sample(after, min(flushes, len(after)))
    return sorted({*some, *(chance.randrange(first, len(entries) + 1) for _ in range(others))})


def replay(*, flushes: int, others: int, seed: int) -> None:
    """Say of each moment what became of the job."""
    sh("modprobe", "-a", "dm-snapshot", "dm-delay")
    sh("modprobe", "brd", "rd_nr=2", f"rd_size={_BEHIND >> 10}")
    chance = random.Random(seed)
    medium, log = os.open(MEDIUM, os.O_RDWR), os.open(LOG, os.O_RDONLY)
    replayed = Replay(log, medium)
    found = []
    sh("dmsetup", "create", "again", "--table", _fresh(0))
    with slices("/dev/mapper/again") as paths:
        for number, count in enumerate(moments(replayed.entries, flushes, others, chance)):
            share = chance.choice((0.0, 0.0, 0.5, 1.0))  # of the volatile cache
            replayed.to(count, functools.partial(survives, chance, share))
            # another memory each time: over the same one it would hand over what was written
            sh("dmsetup", "load", "again", "--table", _fresh(1 + number))
            sh("dmsetup", "resume", "again")
            found.append({"entries": count, "cache": share, **_moment(paths)})
    tell("moments", json.dumps(found).encode())


def survives(chance: random.Random, share: float, _: Entry) -> bool:
    """Tell whether a write in the volatile cache is there after all; *share* of them are."""
    return chance.random() < share


def _fresh(number: int) -> str:
    """Give the table of the disk as it is, whose writes go to memory."""
    return f"0 {WHOLE >> 9} snapshot {MEDIUM} /dev/ram{number % 2} N 8"


def _moment(paths: Mapping[str, str]) -> dict[str, Any]:  # Any: JSON
    """Boot, so to speak, from the disk."""
    guest_side.state_disk(paths["state"])
    try:
        with Journal(Places.from_environment().journal, create=False) as journal:
            state = journal.state(guest_side.JOB)
        image = guest_side.image_in_snapshot(paths["source"], paths["target"])
    finally:
        patiently("umount", str(guest_side.MOUNT))
    return {"state": state, "image": image}


def main(argv: Sequence[str]) -> int:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(prog="recorder")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("record")
    verb.add_argument("--copy-options", type=str.split, default=[])
    verb = verbs.add_parser("begin")
    verb.add_argument("what", choices=("source", "target"))
    verb.add_argument("--blow")
    verb.add_argument("--broken", choices=list(BROKEN))
    verb.add_argument("--write-ms", type=int, default=guest_side.SLOW_MS)
    verbs.add_parser("again")
    verb = verbs.add_parser("replay")
    verb.add_argument("--flushes", type=int, required=True)
    verb.add_argument("--others", type=int, required=True)
    verb.add_argument("--seed", type=int, required=True)
    options = parser.parse_args(argv)
    if options.verb == "record":
        record(options.copy_options)
    elif options.verb == "begin":
        begin(options.what, blow=options.blow, broken=options.broken, write_ms=options.write_ms)
    elif options.verb == "again":
        again()
    else:
        replay(flushes=options.flushes, others=options.others, seed=options.seed)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
