"""Thaws file systems when those who froze them cannot: ``python -m dmcopy.stack.md_thaw``.

The dead man of `md_split`; it works as `watch` does: ``ready`` on stdout; on stdin ``a`` right
before the hold and ``d`` after it, which it answers by ``done`` or ``fired``.  It thaws when the
time limit is over, and goes on until control says that it is done, or is gone; and when control
dies.  A freeze that is still under way cannot be broken off (fs/super.c): it ends, and is thawed.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from dmcopy.kernel.freeze import thaw
from dmcopy.kernel.memory import lock_memory
from dmcopy.kernel.priority import step_up
from dmcopy.stack.watch import ARMED, DONE, said

_POLL_SECONDS: Final = 0.01


def _watch(fds: Sequence[int], limit: float) -> str:
    word = said(limit)
    if word == DONE:
        return "done"
    while True:
        for fd in reversed(fds):
            with suppress(OSError):
                thaw(fd)
        if word is not None:  # control is done, or gone
            return "fired"
        word = said(_POLL_SECONDS)


def main(argv: Sequence[str]) -> int:
    """Run the dead man; *argv* is the limit in seconds, and the descriptors, which are open."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    step_up()
    with suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as adjust:
        adjust.write("-1000")
    with suppress(OSError):
        lock_memory()
    with suppress(BrokenPipeError):  # control is gone already
        os.write(1, b"ready\n")
    if said(None) == ARMED:
        answer = _watch([int(word) for word in argv[1:]], float(argv[0]))
        with suppress(BrokenPipeError):  # control is gone
            os.write(1, f"{answer}\n".encode())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
