"""The brake's watcher: ``python -m dmcopy.stack.unbrake`` (see `standby`).

It waits as long as the brake is on.  When control dies, its stdin ends, and it swaps the delay
out of the brake device: what was held goes on at once, through the gate, and is saved.  It
touches no device but that one, which is ours alone, so that it cannot get in the way of a rescue
or of anything the application's device goes through; and what both do to it is the same.

Like `watch` it imports next to nothing, and all it does was made ready: acting is ioctls only.
"""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from dmcopy.errors import DmFailed, DmMissing
from dmcopy.kernel.dmrequest import (
    CONTROL,
    DM_DEV_SUSPEND,
    DM_NOFLUSH_FLAG,
    DM_SKIP_LOCKFS_FLAG,
    DM_TABLE_LOAD,
    HEAD,
    SPEC,
    Prepared,
    Probe,
    failure,
    head_of,
)
from dmcopy.kernel.memory import lock_memory
from dmcopy.kernel.priority import step_up

DONE: Final = b"d"

_ATTEMPTS: Final = 100
_PAUSE_SECONDS: Final = 0.02


class Release:
    """Puts one table of one line on one device."""

    def __init__(self, control: int, name: str, uuid: str, length: int, devno: str) -> None:
        self._control = control
        self._name = name
        self._wanted = b"0 %d linear %s 0" % (length, devno.encode())
        text = f"{devno} 0".encode() + b"\0"
        size = -(-(SPEC.size + len(text)) // 8) * 8
        head = head_of(name=name)
        head.target_count = 1
        head.data_size = HEAD + size
        spec = SPEC.pack(0, length, 0, size, b"linear")
        self._load = bytes(head) + spec + text.ljust(size - SPEC.size, b"\0")
        self._buffer = bytearray(self._load)
        flags = DM_SKIP_LOCKFS_FLAG | DM_NOFLUSH_FLAG
        self._resume = Prepared(
            fcntl.ioctl, control, DM_DEV_SUSPEND, "resume", head_of(name=name, flags=flags)
        )
        self._probe = Probe(control, uuid=uuid)
        self._probe.table()  # raises now if there is no such device, and has run once

    def __call__(self) -> None:
        """Swap the table in, until it is live or the device is gone.

        Tried again because a dead man of control's last swap may drop what was loaded here.
        """
        with suppress(DmMissing):
            for _ in range(_ATTEMPTS):
                if self._probe.table() == self._wanted:
                    return
                with suppress(DmFailed):
                    self._load_table()
                    self._resume()
                    continue
                time.sleep(_PAUSE_SECONDS)

    def _load_table(self) -> None:
        self._buffer[:] = self._load
        try:
            fcntl.ioctl(self._control, DM_TABLE_LOAD, self._buffer, True)
        except OSError as exc:
            raise failure("load a table into", self._name, exc.errno or 0) from exc


def main(argv: Sequence[str]) -> int:
    """Run the watcher; *argv* is the brake's name and uuid, its sectors, and the gate's devno."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    step_up()
    with suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as adjust:
        adjust.write("-1000")
    name, uuid, length, gate = argv
    control = os.open(CONTROL, os.O_RDWR | os.O_CLOEXEC)
    release = Release(control, name, uuid, int(length), gate)
    with suppress(OSError):
        lock_memory()
    with suppress(BrokenPipeError):  # control is gone already
        os.write(1, b"ready\n")
    if os.read(0, 1) != DONE:
        release()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
