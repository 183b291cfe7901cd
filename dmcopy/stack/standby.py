"""Control's side of `unbrake`: a process that takes the brake off when control cannot.

Not a dead man of one hold (that is `deadman`): each swap has one of those besides.
"""

from __future__ import annotations

import select
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

from dmcopy.errors import DmcopyError
from dmcopy.kernel.command import Process, start_process
from dmcopy.kernel.own_code import helper
from dmcopy.stack import unbrake
from dmcopy.units import Sectors

_START_SECONDS: Final = 30.0
_END_SECONDS: Final = 10.0


class Standby:
    """One such process; from `start` to `end` the brake cannot outlive us by more than a moment."""

    def __init__(
        self,
        brake: str,
        uuid: str,
        length: Sectors,
        gate: str,
        *,
        start: Callable[[Sequence[str]], Process] = start_process,
    ) -> None:
        """*brake* and *uuid* are the device with the delay, *gate* the devno of what is below."""
        self._argv = helper(unbrake.__name__, brake, uuid, str(length), gate)
        self._start = start
        self._process: Process | None = None

    def start(self) -> None:
        """Start the process and wait until it is ready; raises `DmcopyError` if it is not."""
        self._process = self._start(self._argv)
        ready, _, _ = select.select([self._process.stdout], [], [], _START_SECONDS)
        line = self._process.stdout.readline() if ready else b""
        if line.strip() != b"ready":
            self._process.kill()
            self._process.wait(timeout=_END_SECONDS)
            raise DmcopyError("the brake's watcher did not start, so no write was held")

    def end(self) -> None:
        """Tell the process that nothing is held any more, and wait for its end."""
        if self._process is None:
            return
        process, self._process = self._process, None
        with suppress(BrokenPipeError):  # somebody killed it
            process.stdin.write(unbrake.DONE)
            process.stdin.close()
        try:
            process.wait(timeout=_END_SECONDS)
        finally:
            process.kill()
            process.stdout.close()
