"""How idle the machine's CPUs are.

Follows: proc_stat(5), first line.
"""

from __future__ import annotations

import os
from typing import Final

_IDLE: Final = 4  # words of the line "cpu user nice system idle iowait ..."
_IOWAIT: Final = 5


def idle_seconds(path: str = "/proc/stat") -> float:
    """Give the seconds that all CPUs together were idle since boot, waiting for I/O included.

    Raises OSError.
    """
    with open(path, "rb") as stat:
        words = stat.readline().split()
    return (int(words[_IDLE]) + int(words[_IOWAIT])) / os.sysconf("SC_CLK_TCK")
