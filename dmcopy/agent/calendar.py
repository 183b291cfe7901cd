"""When a calendar expression is due: systemd's own (systemd.time(7)), and systemd is asked.

``systemd-analyze calendar`` knows time zones, leap days and daylight saving as the timers of the
host do; it needs no running systemd.
"""

from __future__ import annotations

import logging
import math
import re
from datetime import UTC, datetime
from typing import Final

from dmcopy.agent.policy import read
from dmcopy.agent.timers import Due
from dmcopy.errors import CommandFailed, UsageError
from dmcopy.jobs.spec import Places
from dmcopy.kernel.command import Commander

log = logging.getLogger(__name__)

PROGRAM: Final = "systemd-analyze"
_UTC: Final = re.compile(
    r"^\s*(?:\(in UTC\)|Next elapse): \S+ (\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)(?:\.\d+)? UTC$",
    re.MULTILINE,
)
_NEVER: Final = re.compile(r"^\s*Next elapse: never$", re.MULTILINE)


def next_elapse(expression: str, after: float, run: Commander) -> float | None:
    """Give the first time after *after* at which *expression* is due; None for never.

    Both are seconds since 1970.  Raises `UsageError` for what is no expression, and
    `DmcopyError` when systemd-analyze is not there.
    """
    argv = (PROGRAM, "calendar", "--iterations=1", f"--base-time=@{math.floor(after)}")
    try:
        said = run.run(*argv, "--", expression, changes=False).stdout
    except CommandFailed as exc:
        lines = exc.stderr.strip().splitlines() or [str(exc)]
        raise UsageError(f"'{expression}' is no calendar expression: {lines[-1]}") from exc
    return parse_elapse(said)


class Calendars:
    """The policies that have a calendar; called by `timers.Timers` at each look.

    A file with a fault is told of once, and keeps no other policy from its time.
    """

    def __init__(self, places: Places) -> None:
        self._places = places
        self._told: tuple[str, ...] = ()

    def __call__(self) -> list[Due]:
        """Read the policies as they are now."""
        loaded = read(self._places)
        for fault in loaded.faults:
            if fault not in self._told:
                log.warning("%s", fault)
        self._told = loaded.faults
        return [Due(one.name, one.calendar) for one in loaded.policies if one.calendar is not None]


def parse_elapse(said: str) -> float | None:
    """Read what ``systemd-analyze calendar`` says of one iteration, in seconds since 1970."""
    if _NEVER.search(said):
        return None
    found = _UTC.search(said)
    if found is None:
        raise UsageError(f"{PROGRAM} says what cannot be read: {said.strip()!r}")
    return datetime.strptime(found[1], "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC).timestamp()
