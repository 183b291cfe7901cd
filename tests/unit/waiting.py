"""Waiting for what another thread or process does: by looks, since it tells nobody."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path


def until(is_so: Callable[[], object], patience: float = 10.0) -> None:
    """Look until *is_so*; fails after *patience* seconds."""
    end = time.monotonic() + patience
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.01)


def runs(pid: int) -> bool:
    """Tell whether a process lives; a zombie does not, which nobody in a container may reap."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"
