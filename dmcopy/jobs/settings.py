"""What holds for all jobs of this host: kept in the journal, put in force when a job begins."""

from __future__ import annotations

import time
from typing import Final

from dmcopy.core.rate import Rate
from dmcopy.engine.throttle import HostCap
from dmcopy.errors import UsageError
from dmcopy.jobs.journal import Journal
from dmcopy.jobs.spec import Places

_DAY_SECONDS: Final = 86400.0
_NUMBERS: Final = {"keep-jobs": 100, "keep-days": 90}
_RATE: Final = "rate"
_JOBS: Final = "jobs"
_MOST_JOBS: Final = 1000


def check(name: str, value: str) -> None:
    """Raise `UsageError` unless *name* can be set to *value*."""
    if name == _RATE:
        if Rate.parse(value).auto:
            raise UsageError("the rate of all jobs together is a size or none: auto is a job's")
    elif name == _JOBS:
        if value != "none" and not (value.isdecimal() and 0 < int(value) <= _MOST_JOBS):
            raise UsageError(f"jobs is a number from 1 to {_MOST_JOBS}, or none, not '{value}'")
    elif name not in _NUMBERS:
        known = ", ".join((_RATE, _JOBS, *_NUMBERS))
        raise UsageError(f"'{name}' cannot be set for all jobs; these can: {known}")
    elif not value.isdecimal():
        raise UsageError(f"{name} is a number, not '{value}'")


def change(journal: Journal, places: Places, name: str, value: str) -> None:
    """Set *name*, which was checked, at once and for later."""
    if name == _RATE:
        rate = Rate.parse(value)
        journal.set_setting(_RATE, str(rate) if rate.limit is not None else None)
        _cap(places, rate)
    elif name == _JOBS:
        journal.set_setting(_JOBS, None if value == "none" else value)
    else:
        journal.set_setting(name, value)


def jobs_at_a_time(places: Places) -> int | None:
    """Give how many jobs that wait for their turn may run at a time, None for any number."""
    if not places.journal.exists():
        return None
    with Journal(places.journal, read_only=True) as journal:
        number = journal.setting(_JOBS)
    return None if number is None else int(number)


def apply(journal: Journal, places: Places) -> None:
    """Put the cap in force, which is forgotten at a reboot, and forget old jobs."""
    rate = journal.setting(_RATE)
    if rate is not None:
        _cap(places, Rate.parse(rate))
    keep, days = (int(journal.setting(name) or number) for name, number in _NUMBERS.items())
    journal.forget_ended(keep=keep, older_than=days * _DAY_SECONDS, now=time.time())


def _cap(places: Places, rate: Rate) -> None:
    cap = HostCap.open(places.cap)
    try:
        if cap.rate != rate.limit:
            cap.set_rate(rate.limit)
    finally:
        cap.close()
