"""The one hold there is so far: a table is swapped while its device is in use.

The kernel suspends, swaps and resumes in one ioctl (dm-ioctl.c:do_resume), so that no user
code runs while I/O is held; and a dead man watches, for the kernel waits for the I/O that is
under way as long as that takes.  Where a table that a stranger loaded meanwhile must not be
covered up, it is three ioctls: hold, look, resume.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from dmcopy.core.table import Table
from dmcopy.errors import DmcopyError, DmFailed, HoldLimitExceeded, PointInTimeLost
from dmcopy.kernel.dm import Dm, DmInfo
from dmcopy.kernel.priority import first_in_line
from dmcopy.stack.deadman import DeadMan, Sentry
from dmcopy.stack.plan import signals_deferred

log = logging.getLogger(__name__)

_ATTEMPTS: Final = 3


@dataclass(frozen=True, kw_only=True)
class Instant:
    """When it was: between *begin* and *begin* + *held*.

    Where several devices were held together, *held* is from the first hold to the last release, and
    *alone* what this device was held of it.
    """

    begin_ns: int  # UTC, nanoseconds since 1970
    held: float  # seconds
    alone: float | None = None  # seconds

    @property
    def text(self) -> str:
        """ISO 8601 in UTC with nanoseconds."""
        seconds, nanoseconds = divmod(self.begin_ns, 1_000_000_000)
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{nanoseconds:09d}Z"


def seconds_of(text: str) -> float:
    """Read `Instant.text`: seconds since 1970."""
    whole, _, rest = text.removesuffix("Z").partition(".")
    return datetime.fromisoformat(f"{whole}+00:00").timestamp() + float(f"0.{rest}")


@dataclass(frozen=True, kw_only=True)
class Swap:
    """How to put a new table on a live device.

    *limit* is the longest hold in seconds.  *lockfs* freezes a file system that is mounted on
    the device, *flush* False lets targets requeue instead of waiting.  *needed*: the swap is
    done even where no dead man can be started, for not doing it would be worse.  *sentry* has a
    dead man who watches over this device and stays; without, one is started for the swap.
    *over* is the only table that may be replaced: what a stranger has put there, up to the moment
    in which I/O is held, stays.  Without it the swap is one ioctl.
    """

    dm: Dm
    name: str
    limit: float
    lockfs: bool = True
    flush: bool = True
    needed: bool = False
    attempts: int = _ATTEMPTS
    sentry: Sentry | None = None
    over: Table | None = None

    @classmethod
    def necessary(cls, dm: Dm, name: str, limit: float) -> Swap:
        """Give a swap that must come about: nothing is frozen, and no I/O is waited for."""
        return cls(dm=dm, name=name, limit=limit, lockfs=False, flush=False, needed=True)

    def __call__(self, table: Table) -> Instant:
        """Make *table* live; tried *attempts* times when the limit was over before the swap.

        Raises `HoldLimitExceeded`, `PointInTimeLost` when another table than *over* is live, and
        `DmFailed`; then the old table is live, nothing is held, and the inactive slot is empty.
        """
        for _ in range(self.attempts):
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
            f"({self.attempts} attempts); nothing is held, and the table is as it was; give more "
            "time with --hold-limit"
        )

    def _try(self, table: Table) -> Instant | None:
        swap = self._prepared()
        with ExitStack() as stack:
            dead_man = self._watcher(stack)
            if dead_man is not None:
                dead_man.arm()
            # No signal's handler may run between two ioctls of an exchange, and nobody else.
            stack.enter_context(signals_deferred())
            stack.enter_context(first_in_line())
            # From here to disarm(): ioctls only.  No program, no log, no journal (DESIGN.md 4).
            start = time.monotonic()  # first: begin_ns + held must not lie before the end
            begin_ns = time.time_ns()
            failure: DmFailed | None = None
            try:
                swap()
            except DmFailed as exc:
                failure = exc
            held = time.monotonic() - start
            if dead_man is not None:
                dead_man.disarm()
        # The dead man may have resumed between the kernel's swap and its own resume, which
        # then fails (dm.c:dm_resume, EINVAL): our table is live, and that is what counts.
        fired = dead_man is not None and dead_man.fired
        if failure is not None or fired or self.over is not None:
            live = self.dm.table(self.name)
            if live != table:
                if self.over is not None and live != self.over:
                    raise PointInTimeLost(f"the table of {self.name} was replaced by '{live}'")
                if fired:
                    return None
                raise failure or DmcopyError(f"the table of {self.name} is not what was loaded")
        return Instant(begin_ns=begin_ns, held=held)

    def _prepared(self) -> Callable[[], object]:
        how = {"lockfs": self.lockfs, "flush": self.flush}
        if self.over is None:
            return self.dm.prepare_resume(self.name, **how)
        return self.dm.prepare_exchange(self.name, self.over, **how)

    def _watcher(self, stack: ExitStack) -> DeadMan | None:
        """Give a dead man; go without one only where the swap is needed."""
        try:
            if self.sentry is not None:
                return self.sentry.ready()
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
