"""The one hold there is so far: a table is swapped while its device is in use.

The kernel suspends, swaps and resumes in one ioctl (dm-ioctl.c:do_resume), so that no user
code runs while I/O is held; and a dead man watches, for the kernel waits for the I/O that is
under way as long as that takes.
"""

from __future__ import annotations

import logging
import time
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from dmcopy.core.table import Table
from dmcopy.errors import DmcopyError, DmFailed, HoldLimitExceeded
from dmcopy.kernel.dm import Dm, DmInfo
from dmcopy.stack.deadman import DeadMan

log = logging.getLogger(__name__)

_ATTEMPTS: Final = 3


@dataclass(frozen=True, kw_only=True)
class Instant:
    """When it was: between *begin* and *begin* + *held*."""

    begin_ns: int  # UTC, nanoseconds since 1970
    held: float  # seconds

    @property
    def text(self) -> str:
        """ISO 8601 in UTC with nanoseconds."""
        seconds, nanoseconds = divmod(self.begin_ns, 1_000_000_000)
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{nanoseconds:09d}Z"


@dataclass(frozen=True, kw_only=True)
class Swap:
    """How to put a new table on a live device.

    *limit* is the longest hold in seconds.  *lockfs* freezes a file system that is mounted on
    the device, *flush* False lets targets requeue instead of waiting.  *needed*: the swap is
    done even where no dead man can be started, for not doing it would be worse.
    """

    dm: Dm
    name: str
    limit: float
    lockfs: bool = True
    flush: bool = True
    needed: bool = False

    @classmethod
    def necessary(cls, dm: Dm, name: str, limit: float) -> Swap:
        """Give a swap that must come about: nothing is frozen, and no I/O is waited for."""
        return cls(dm=dm, name=name, limit=limit, lockfs=False, flush=False, needed=True)

    def __call__(self, table: Table) -> Instant:
        """Make *table* live; tried three times when the limit was over before the swap.

        Raises `HoldLimitExceeded` and `DmFailed`; then the old table is live, nothing is
        held, and the inactive slot is empty.
        """
        for _ in range(_ATTEMPTS):
            self.dm.load(self.name, table)
            try:
                instant = self._try(table)
            except DmFailed:
                self.dm.clear(self.name)
                raise
            if instant is not None:
                return instant
        raise HoldLimitExceeded(
            f"the I/O of {self.name} that was under way did not end within {self.limit:g} s "
            f"({_ATTEMPTS} attempts); nothing is held, and the table is as it was; give more "
            "time with --hold-limit"
        )

    def _try(self, table: Table) -> Instant | None:
        resume = self.dm.prepare_resume(self.name, lockfs=self.lockfs, flush=self.flush)
        with ExitStack() as stack:
            dead_man = self._watcher(stack)
            if dead_man is not None:
                dead_man.arm()
            # From here to disarm(): one ioctl.  No program, no log, no journal (DESIGN.md 4).
            start = time.monotonic()  # first: begin_ns + held must not lie before the end
            begin_ns = time.time_ns()
            failure: DmFailed | None = None
            try:
                resume()
            except DmFailed as exc:
                failure = exc
            held = time.monotonic() - start
            if dead_man is not None:
                dead_man.disarm()
        # The dead man may have resumed between the kernel's swap and its own resume, which
        # then fails (dm.c:dm_resume, EINVAL): our table is live, and that is what counts.
        if failure is not None and self.dm.table(self.name) != table:
            if dead_man is not None and dead_man.fired:
                return None
            raise failure
        return Instant(begin_ns=begin_ns, held=held)

    def _watcher(self, stack: ExitStack) -> DeadMan | None:
        """Start a dead man; go without one only where the swap is needed."""
        try:
            return stack.enter_context(DeadMan([self.name], limit=self.limit))
        except (DmcopyError, OSError) as exc:
            if not self.needed:
                raise
            log.warning("swapping the table of %s with no dead man: %s", self.name, exc)
            return None


def resume_unchanged(dm: Dm, info: DmInfo) -> None:
    """Let a suspended device's writes go on, with the table that it has.

    What is loaded for it, whosever it is, is dropped: resuming would swap it in.
    """
    if info.suspended:
        dm.clear(info.name)
        dm.resume(info.name, lockfs=False)
