"""The jobs of a host at one moment, as plain values: what `top` draws and `metrics` counts.

Filled in by `jobs.glance`; nothing here looks at anything.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

# What a job may be, as a person says it: the states of the journal, and what became of those
# that nobody works on.
STATES: Final = (
    "defined", "begun", "copying", "paused", "copied", "verified", "ended", "failed", "cancelled",
    "interrupted", "dead", "kept", "unknown",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class JobNow:
    """One job; sizes in bytes, times in seconds, moments in seconds since 1970."""

    job: str
    state: str  # one of STATES
    is_running: bool = False  # a process works on it
    is_over: bool = False  # it has ended, and left nothing that is known of
    group: str | None = None  # that it is a volume of
    is_group: bool = False
    source: str = ""
    destination: str = ""
    started: float | None = None
    changed: float | None = None  # when the journal was last told anything of it
    begun: float | None = None  # its begin time
    phase: str = ""  # copy | verify
    done: int | None = None  # of the phase
    total: int | None = None
    from_cow: int = 0
    zero: int = 0
    retired: int | None = None
    rate: float | None = None  # a second
    left: float | None = None
    cow_used: int | None = None
    cow_total: int | None = None
    cow_needed: float | None = None  # likely, when all is copied
    cow_full: tuple[float | None, ...] | None = None  # low, likely, high; None: never
    first: str | None = None  # done | full | unsure | unknown: which comes first
    held: Mapping[str, Any] | None = None  # `core.holds`; Any: JSON
    took: float | None = None  # of one that has ended
    exit_status: int | None = None  # of its last session, where that has ended
    verified: bool = False
    error: str = ""  # why it failed
    can_resume: bool = False
    way_on: str = ""  # what a person can do about one that nobody works on


@dataclass(frozen=True, kw_only=True)
class Now:
    """All jobs, in the order in which they are shown; each volume behind its group."""

    jobs: tuple[JobNow, ...] = ()
    cap: int | None = None  # bytes a second for all jobs together
    unread: str = ""  # why the journal could not be read

    def count(self) -> Counter[str]:
        """Count jobs by state; a group counts as one, its volumes do not."""
        return Counter(job.state for job in self.jobs if job.group is None)
