"""One instant for several origins: all are held before the first is let go.

Each volume's share is a `Part`: which origin is held, and which tables become live while it is.
Whoever prepares a part loads its tables first, so that the instant itself is ioctls only: hold
every origin in the order given, make the others' tables live, let every origin go (which swaps in
what is loaded for it).  What is written to any of them before the last one is held may be in the
images; what is written to any after the first is let go is in none.

Also for a single origin, where more than its own table must change while it is held (LVM's
snapshots, KERNEL.md 13).

Kernel: drivers/md/dm-ioctl.c (do_suspend, do_resume), drivers/md/dm.c (__dm_suspend waits for all
I/O under way, lockfs freezes a file system that is mounted directly on the device).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from dmcopy.errors import DmFailed, HoldLimitExceeded
from dmcopy.kernel.dm import Dm
from dmcopy.kernel.memory import lock_memory
from dmcopy.kernel.priority import first_in_line
from dmcopy.stack.deadman import DeadMan, Sentry
from dmcopy.stack.hold import Instant
from dmcopy.stack.plan import signals_deferred


@dataclass(frozen=True, kw_only=True)
class Part:
    """What one volume does at the instant; dm names.

    *origin* is held; what is loaded for it becomes live when it is let go.  What is loaded for the
    devices *then* becomes live while all origins are held.  *lockfs* freezes a file system that is
    mounted on the origin; without it nothing is flushed.
    """

    origin: str
    lockfs: bool = True
    then: tuple[str, ...] = ()


@runtime_checkable
class Sharing(Protocol):
    """A step (`dmcopy.stack.plan.Step`) that has a share in such an instant."""

    @property
    def part(self) -> Part:
        """What its share is."""


# Has an instant come about in which this part has its share; None: there is nothing to be held,
# for nobody writes.  Raises whatever kept the instant from coming about: then nothing is held, and
# what was loaded for the origin was dropped.  After `HoldLimitExceeded`, load anew and meet again.
Meet = Callable[[Part | None], Instant]


def together(
    dm: Dm, parts: Sequence[Part], *, limit: float, sentry: Sentry | None = None
) -> list[Instant]:
    """Hold all, change all, let all go; gives the same begin time for each, and its own hold.

    *limit* is the longest hold in seconds, from the first that is held.  *sentry* has a dead man
    for these origins who is ready; without, one is started, which takes longer than the hold and
    is too long where file systems are frozen already.  Raises
    `HoldLimitExceeded` and `DmFailed`: then nothing is held, no origin has what was loaded for it
    (it was dropped), and what devices of *then* have is for the caller to look at.  The caller
    must also look whether the tables are live that he loaded: somebody else may have been faster.
    """
    lock_memory()
    holds = [dm.prepare_suspend(part.origin, lockfs=part.lockfs) for part in parts]
    drops = [dm.prepare_clear(part.origin) for part in parts]
    changes = [
        dm.prepare_resume(name, lockfs=False, flush=False) for part in parts for name in part.then
    ]
    releases = [dm.prepare_resume(part.origin, lockfs=False) for part in parts]
    begun: list[float] = []
    ended: list[float] = []
    failures: list[DmFailed] = []
    with ExitStack() as stack:
        if sentry is not None:
            dead_man = sentry.ready()
        else:
            dead_man = stack.enter_context(DeadMan([part.origin for part in parts], limit=limit))
        dead_man.arm()
        stack.enter_context(signals_deferred())
        stack.enter_context(first_in_line())
        # From here to disarm(): ioctls only.  No program, no log, no journal (DESIGN.md 4).
        first = time.monotonic()  # first: begin_ns + held must not lie before the end
        begin_ns = time.time_ns()
        try:
            for hold in holds:
                begun.append(time.monotonic())
                hold()
            for change in changes:
                change()
        except DmFailed as exc:
            failures.append(exc)
            _all_of(drops, failures)
        for release in releases[: len(begun)]:
            # A table that cannot be swapped in is gone, and its device still held: once more then
            # lets it go with the one it had (dm-ioctl.c:do_resume).
            if _all_of([release], failures):
                _all_of([release], failures)
            ended.append(time.monotonic())
        dead_man.disarm()
    if dead_man.fired:
        held = ", ".join(part.origin for part in parts)
        raise HoldLimitExceeded(
            f"the I/O of {held} that was under way did not end within {limit:g} s; nothing is "
            "held, and the tables are as they were; give more time with --hold-limit"
        )
    if failures:
        raise failures[0]
    whole = ended[-1] - first
    return [
        Instant(begin_ns=begin_ns, held=whole, alone=end - start)
        for start, end in zip(begun, ended, strict=True)
    ]


def _all_of(calls: Sequence[Callable[[], object]], failures: list[DmFailed]) -> bool:
    """Call each, whatever happens to the others; tell whether one failed."""
    before = len(failures)
    for call in calls:
        try:
            call()
        except DmFailed as exc:
            failures.append(exc)
    return len(failures) > before
