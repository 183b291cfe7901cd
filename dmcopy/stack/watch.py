"""The dead man's own process: ``python -m dmcopy.stack.watch`` (see `deadman`).

Imports next to nothing, for it is started before a hold; everything it does to the devices was
made ready before the hold, so that acting is ioctls only.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import select
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from dmcopy.errors import DmFailed
from dmcopy.kernel.dmrequest import (
    CONTROL,
    DM_DEV_STATUS,
    DM_DEV_SUSPEND,
    DM_SKIP_LOCKFS_FLAG,
    DM_TABLE_CLEAR,
    Prepared,
    head_of,
)
from dmcopy.kernel.memory import lock_memory
from dmcopy.kernel.priority import step_up

ARMED: Final = b"a"
DONE: Final = b"d"

_SYS_TGKILL: Final = {"x86_64": 234, "aarch64": 131, "ppc64le": 250, "s390x": 241}
_POLL_SECONDS: Final = 0.01


class _Device:
    """One device that may be held, and what can be done about it."""

    def __init__(self, control: int, name: str) -> None:
        self.name = name
        self._info = Prepared(fcntl.ioctl, control, DM_DEV_STATUS, "look at", head_of(name=name))
        self._clear = Prepared(fcntl.ioctl, control, DM_TABLE_CLEAR, "clear", head_of(name=name))
        head = head_of(name=name, flags=DM_SKIP_LOCKFS_FLAG)
        self._resume = Prepared(fcntl.ioctl, control, DM_DEV_SUSPEND, "resume", head)
        self._info()  # raises now if there is no such device, and has run once

    def release(self) -> bool:
        """Let I/O go on if it is held; tell whether it was."""
        with suppress(DmFailed):
            self._info()
            if self._info.suspended:
                if self._info.inactive:  # resuming would swap it in
                    self._clear()
                self._resume()
                return True
        return False


def _interrupt(pid: int, tid: int) -> None:
    """Send SIGUSR1 to one thread: a signal to the process might be taken by another."""
    number = _SYS_TGKILL.get(os.uname().machine)
    if number is None:
        os.kill(pid, signal.SIGUSR1)
        return
    ctypes.CDLL(None, use_errno=True).syscall(number, pid, tid, int(signal.SIGUSR1))


def said(timeout: float | None) -> bytes | None:
    """Give the byte that control wrote, empty when it is gone, None when time went by."""
    ready, _, _ = select.select([0], [], [], timeout)
    return os.read(0, 1) if ready else None


def _watch(devices: Sequence[_Device], limit: float, thread: tuple[int, int]) -> str:
    """Wait for the end of a hold; give what is to be answered."""
    word = said(limit)
    if word == DONE:
        return "done"
    why = "control died" if word == b"" else "the hold limit was over"
    while word is None:  # until control says done, or is gone
        _interrupt(*thread)
        for device in devices:
            device.release()
        word = said(_POLL_SECONDS)
    released = [device.name for device in devices if device.release()]
    return f"fired: {why}; resumed {' '.join(released) or 'nothing'}"


def main(argv: Sequence[str]) -> int:
    """Run the dead man; *argv* is limit, pid, thread id and the dm names."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    step_up()
    with suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as adjust:
        adjust.write("-1000")
    control = os.open(CONTROL, os.O_RDWR | os.O_CLOEXEC)
    devices = [_Device(control, name) for name in argv[3:]]
    with suppress(OSError):
        lock_memory()
    with suppress(BrokenPipeError):  # control is gone already
        os.write(1, b"ready\n")
    while said(None) == ARMED:  # one hold after the other, until control closes the pipe
        answer = _watch(devices, float(argv[0]), (int(argv[1]), int(argv[2])))
        with suppress(BrokenPipeError):  # control is gone
            os.write(1, f"{answer}\n".encode())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
