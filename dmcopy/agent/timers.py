"""When a policy with a calendar is due, in the way of systemd's persistent timers.

A stamp file keeps when a policy was due last; so what was missed while there was no agent, or no
power, is made up for once.  Expressions are systemd's own (systemd.time(7)).
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from dmcopy.errors import DmcopyError

log = logging.getLogger(__name__)

LONGEST: Final = 30.0  # seconds between two looks: policies come and go, and clocks are set


class Due(NamedTuple):
    """A policy that has a calendar."""

    name: str
    calendar: str


class Timers:
    """Tells which policies are due; whoever asks runs them.

    *policies* gives those with a calendar and may raise `DmcopyError`; *elapse* gives the first
    time (seconds since the epoch) after another at which an expression is due, None for never.
    """

    def __init__(
        self,
        policies: Callable[[], Sequence[Due]],
        elapse: Callable[[str, float], float | None],
        stamps: Path,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._policies = policies
        self._elapse = elapse
        self._stamps = stamps
        self._clock = clock
        self._next: dict[tuple[str, str, float], float | None] = {}  # by what it follows from
        self._faults: dict[str, str] = {}

    def due(self) -> list[str]:
        """Give the names of the policies that are due now; each is given once.

        Raises nothing: what is wrong is logged, and tried again later.
        """
        now = self._clock()
        try:
            policies = self._policies()
        except (DmcopyError, OSError) as exc:
            self._fault("", f"policies cannot be read: {exc}")
            return []
        self._faults.pop("", None)
        found = []
        wanted = {}
        for name, calendar in policies:
            try:
                key = (name, calendar, self._last(name, now))
                at = self._next[key] if key in self._next else self._elapse(calendar, key[2])
                if at is not None and at <= now:
                    self._touch(name, now)
                    found.append(name)
                else:
                    wanted[key] = at
                self._faults.pop(name, None)
            except (DmcopyError, OSError) as exc:
                self._fault(name, f"policy {name}: {exc}")
        self._next = wanted
        return found

    def pause(self) -> float:
        """Give for how many seconds nothing is due, `LONGEST` at most."""
        now = self._clock()
        times = [at - now for at in self._next.values() if at is not None]
        return max(0.1, min([LONGEST, *times]))

    def _last(self, name: str, now: float) -> float:
        """Give when it was due last; the first time that it is seen counts as that."""
        path = self._stamps / name
        with contextlib.suppress(FileNotFoundError):
            last = path.stat().st_mtime
            if last <= now:
                return last
        self._touch(name, now)  # it is new, or the clock was set back
        return path.stat().st_mtime

    def _touch(self, name: str, now: float) -> None:
        self._stamps.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._stamps / name
        path.touch(mode=0o600)
        whole = int(now)  # systemd-analyze reads whole seconds
        os.utime(path, (whole, whole))

    def _fault(self, name: str, text: str) -> None:
        if self._faults.get(name) != text:
            self._faults[name] = text
            log.warning("%s", text)
