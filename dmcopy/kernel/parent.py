"""Helper processes that must not outlive the process that started them: prctl(2)."""

from __future__ import annotations

import ctypes
import os
import signal
from typing import Final

_PR_SET_PDEATHSIG: Final = 1  # include/uapi/linux/prctl.h


def end_with_parent(number: signal.Signals) -> None:
    """Have *number* sent to us when the thread that started us ends; end now when it has already.

    To be called first of all, before anything is changed.
    """
    parent = os.getppid()
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
    # It may have died before prctl; if even before our first line, then stdin has ended.
    if os.getppid() != parent:
        os._exit(1)
