"""Who gets the CPU: the application before a copy, and whoever holds its I/O before everybody.

System calls: setpriority(2); sched_setscheduler(2), SCHED_FIFO.  On one CPU a copy, a hash and the
application's own processes would otherwise each get a turn of some milliseconds between two
ioctls of a hold.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

_GENTLE: Final = 5  # a third of an ordinary process's share, where both want the CPU
_LOWEST: Final = (
    1  # of the real-time priorities: above all ordinary processes, below kernel threads
)


def step_back() -> None:
    """Have this thread, and those that it starts, give way to ordinary processes.

    Where the CPU has nothing else to do it makes no difference.
    """
    with suppress(OSError):
        os.nice(max(_GENTLE - os.nice(0), 0))


def step_up() -> None:
    """Be an ordinary process again: one that keeps watch must not wait for others."""
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, min(os.nice(0), 0))


@contextmanager
def first_in_line() -> Iterator[None]:
    """Have this thread run first until the block is left.

    For some ioctls and no more.  Not fatal: without the right (CAP_SYS_NICE, or a cgroup without
    real-time runtime) the hold may only take longer.
    """
    policy, parameter = os.sched_getscheduler(0), os.sched_getparam(0)
    with suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(_LOWEST))
    try:
        yield
    finally:
        with suppress(OSError):
            os.sched_setscheduler(0, policy, parameter)
