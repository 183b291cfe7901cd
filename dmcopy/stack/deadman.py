"""The dead man: a tiny process that lets writes go on when the one that held them cannot.

It is started before a hold and lives only as long as the hold.  It acts when the control
process dies (its pipe closes) or when the time limit is over while the origin is still held:

* time over and the control process sits in the kernel, waiting for I/O in flight
  (``dm_wait_for_completion``, interruptible): SIGUSR1 to its thread ends the wait, the
  kernel keeps the old table and goes on (drivers/md/dm-ioctl.c:do_resume gives EINVAL);
* any of the devices suspended: drop the table in the inactive slot, so that resuming cannot
  swap it in, and resume.

Protocol: a line ``ready`` on stdout when all is prepared; one byte ``a`` (armed) on stdin
right before the hold, ``d`` (done) right after.  It answers ``done`` or ``fired ...`` and exits.

Not for: taking the stack apart (that is `recover`).
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Final

from dmcopy.errors import DmcopyError, DmFailed
from dmcopy.kernel.command import Process, start_process
from dmcopy.kernel.dm import Dm
from dmcopy.kernel.dmioctl import DmIoctl
from dmcopy.kernel.memory import lock_memory

_SYS_TGKILL: Final = {"x86_64": 234, "aarch64": 131, "ppc64le": 250, "s390x": 241}
_ARMED: Final = b"a"
_DONE: Final = b"d"
_POLL_SECONDS: Final = 0.01
_START_SECONDS: Final = 30.0


class DeadMan:
    """The control side: one process that watches over one hold."""

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
        argv = [
            sys.executable,
            "-m",
            __name__,
            str(self._limit),
            str(os.getpid()),
            str(threading.get_native_id()),
            *self._names,
        ]
        signal.signal(signal.SIGUSR1, lambda _number, _frame: None)
        self._process = self._start(argv)
        ready, _, _ = select.select([self._process.stdout], [], [], _START_SECONDS)
        line = self._process.stdout.readline() if ready else b""
        if line.strip() != b"ready":
            self._process.kill()
            self._process.wait(timeout=5)
            raise DmcopyError("the dead man did not start, so nothing was held")
        return self

    def arm(self) -> None:
        """Start the clock; one write to a pipe."""
        self._say(_ARMED)

    def disarm(self) -> None:
        """The hold is over; sets `fired` when the dead man had to act."""
        assert self._process is not None
        self._say(_DONE)
        answer = self._process.stdout.readline()
        self.fired = self.fired or not answer.startswith(b"done")

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


def release(dm: Dm, names: Sequence[str]) -> list[str]:
    """Let I/O go on for each of *names* that is suspended; give those that were.

    A device is tried on its own whatever happened to the ones before it.
    """
    released = []
    for name in names:
        with suppress(DmFailed):
            info = dm.info(name)
            if info is not None and info.suspended:
                if info.inactive:
                    dm.clear(name)
                dm.resume(name, lockfs=False)
                released.append(name)
    return released


def _interrupt(pid: int, tid: int) -> None:
    """Send SIGUSR1 to one thread: a signal to the process might be taken by another."""
    number = _SYS_TGKILL.get(os.uname().machine)
    if number is None:
        os.kill(pid, signal.SIGUSR1)
        return
    ctypes.CDLL(None, use_errno=True).syscall(number, pid, tid, int(signal.SIGUSR1))


def _said(timeout: float | None) -> bytes | None:
    """Give the byte that control wrote, empty when it is gone, None when time went by."""
    ready, _, _ = select.select([0], [], [], timeout)
    return os.read(0, 1) if ready else None


def _watch(dm: Dm, limit: float, thread: tuple[int, int], names: Sequence[str]) -> str:
    """Wait for the end of the hold; give what is to be answered."""
    if _said(None) != _ARMED:
        return "never armed"
    word = _said(limit)
    if word == _DONE:
        return "done"
    why = "control died" if word == b"" else "the hold limit was over"
    while word is None:  # until control says done, or is gone
        _interrupt(*thread)
        release(dm, names)
        word = _said(_POLL_SECONDS)
    return f"fired: {why}; resumed {' '.join(release(dm, names)) or 'nothing'}"


def main(argv: Sequence[str]) -> int:
    """Run the dead man; *argv* is limit, pid, thread id and the dm names."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    with suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as adjust:
        adjust.write("-1000")
    limit, thread, names = float(argv[0]), (int(argv[1]), int(argv[2])), argv[3:]
    dm = DmIoctl()
    for name in names:
        dm.info(name)  # opens the control device and sizes the buffers while nothing is held
    with suppress(OSError):
        lock_memory()
    print("ready", flush=True)
    answer = _watch(dm, limit, thread, names)
    with suppress(BrokenPipeError):  # control is gone; past sys.stdout, which would try again
        os.write(1, f"{answer}\n".encode())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
