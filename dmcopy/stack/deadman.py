"""The dead man: a tiny process that lets writes go on when the one that held them cannot.

It is started before a hold, and ends with it, or serves the next ones too (`Sentry`): between
two holds it does nothing.  It acts when the control process dies (its pipe closes) or when the
time limit is over while the origin is still held:

* time over and the control process sits in the kernel, waiting for I/O in flight
  (``dm_wait_for_completion``, interruptible): SIGUSR1 to its thread ends the wait, the
  kernel keeps the old table and goes on (drivers/md/dm-ioctl.c:do_resume gives EINVAL);
* any of the devices suspended: drop the table in the inactive slot, so that resuming cannot
  swap it in, and resume.

Protocol: a line ``ready`` on stdout when all is prepared; for each hold, one byte ``a`` (armed)
on stdin right before it, ``d`` (done) right after, which it answers by ``done`` or ``fired ...``.
It exits when stdin ends.

Not for: taking the stack apart (that is `recover`).
"""

from __future__ import annotations

import os
import select
import signal
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Final

from dmcopy.errors import DmcopyError
from dmcopy.kernel.command import Process, start_process
from dmcopy.kernel.own_code import helper
from dmcopy.stack import watch

_START_SECONDS: Final = 30.0


class DeadMan:
    """The control side: one process that watches over holds of some devices, one at a time."""

    def __init__(
        self,
        names: Sequence[str],
        *,
        limit: float,
        start: Callable[[Sequence[str]], Process] = start_process,
    ) -> None:
        self._names = tuple(names)
        self._limit = limit
        self._start = start
        self._process: Process | None = None
        self.fired = False

    def __enter__(self) -> DeadMan:
        """Start the process and wait until it is ready; raises `DmcopyError` if it is not."""
        pid, thread = os.getpid(), threading.get_native_id()
        argv = helper(watch.__name__, str(self._limit), str(pid), str(thread), *self._names)
        signal.signal(signal.SIGUSR1, lambda _number, _frame: None)
        self._process = self._start(argv)
        ready, _, _ = select.select([self._process.stdout], [], [], _START_SECONDS)
        line = self._process.stdout.readline() if ready else b""
        if line.strip() != b"ready":
            self._process.kill()
            self._process.wait(timeout=5)
            raise DmcopyError("the dead man did not start, so nothing was held")
        return self

    @property
    def is_alive(self) -> bool:
        """Tell whether the process is there: somebody may have killed it."""
        return self._process is not None and self._process.poll() is None

    def arm(self) -> None:
        """Start the clock; one write to a pipe."""
        self.fired = False
        self._say(watch.ARMED)

    def disarm(self) -> None:
        """The hold is over; sets `fired` when the dead man had to act."""
        assert self._process is not None
        self._say(watch.DONE)
        answer = self._process.stdout.readline()
        self.fired = not answer.startswith(b"done")

    def _say(self, word: bytes) -> None:
        assert self._process is not None
        with suppress(BrokenPipeError):  # it fired and is gone: disarm() sees that
            self._process.stdin.write(word)
            self._process.stdin.flush()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the process; without `disarm` it acts, as if we had died."""
        if self._process is None:
            return
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=5)
        finally:
            self._process.kill()
            self._process.stdout.close()


class Sentry:
    """A dead man for many holds of the same devices: started once, not before each.

    Starting the process takes longer than a hundred holds.  Whoever makes it ends it.
    """

    def __init__(self, names: Sequence[str], *, limit: float) -> None:
        self._names = tuple(names)
        self._limit = limit
        self._dead_man: DeadMan | None = None

    def ready(self) -> DeadMan:
        """Give the dead man, started if need be; raises `DmcopyError` and OSError."""
        if self._dead_man is not None and not self._dead_man.is_alive:
            self.end()
        if self._dead_man is None:
            dead_man = DeadMan(self._names, limit=self._limit)
            self._dead_man = dead_man.__enter__()
        return self._dead_man

    def end(self) -> None:
        """End the process; twice is fine."""
        if self._dead_man is not None:
            dead_man, self._dead_man = self._dead_man, None
            dead_man.__exit__(None, None, None)
