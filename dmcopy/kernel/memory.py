"""Keep the process in RAM: a page fault while I/O is held could wait for that very I/O.

System call: mlockall(2), by ctypes, since the standard library has none.
"""

from __future__ import annotations

import ctypes
import os
from typing import Final

MCL_CURRENT: Final = 1
MCL_FUTURE: Final = 2


def lock_memory(*, future: bool = True) -> bool:
    """Lock what is mapped now (and, by *future*, later) into RAM; tell whether it worked.

    Not fatal: without the right (RLIMIT_MEMLOCK) the process works, only with less certainty.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mlockall(MCL_CURRENT | (MCL_FUTURE if future else 0)) == 0:
        return True
    import logging  # only here: the dead man must start fast

    why = os.strerror(ctypes.get_errno())
    logging.getLogger(__name__).warning("cannot lock memory: %s", why)
    return False


def unlock_memory() -> None:
    """Let the process be paged again."""
    ctypes.CDLL(None).munlockall()
