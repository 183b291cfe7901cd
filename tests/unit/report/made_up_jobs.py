"""Jobs that never were, in every state, for what shows many of them."""

from __future__ import annotations

from typing import Any, Final

from dmcopy.core.holds import Holds
from dmcopy.report.jobs_now import JobNow, Now
from dmcopy.units import GIB, MIB

STARTED: Final = 1790000000.0  # seconds since 1970


def held(*times: float) -> dict[str, Any] | None:  # Any: JSON
    """Give what a job tells of its holds."""
    holds = Holds()
    for seconds in times:
        holds.add(seconds)
    return holds.as_json()


def running(job: str = "db-20260921", **other: Any) -> JobNow:  # Any: the fields of JobNow
    """Give a job in mid-copy."""
    given: dict[str, Any] = {  # Any: the fields of JobNow
        "job": job, "state": "copying", "is_running": True,
        "source": "/dev/mapper/vg0-db", "destination": "image:/backup/db.img",
        "started": STARTED, "changed": STARTED + 60, "begun": STARTED + 1, "phase": "copy",
        "done": 42 * GIB, "total": 100 * GIB, "from_cow": 3 * GIB, "zero": 2 * GIB,
        "retired": 40 * GIB, "rate": 120.0 * MIB, "left": 187.0, "cow_used": 1 * GIB,
        "cow_total": 8 * GIB, "cow_needed": 5.0 * GIB, "cow_full": (300.0, 500.0, None),
        "first": "done", "held": held(0.002, 0.003, 0.0019),
    }  # fmt: skip
    return JobNow(**(given | other))


def ended(job: str = "old-1", **other: Any) -> JobNow:  # Any: the fields of JobNow
    """Give a job that is done, and verified."""
    given: dict[str, Any] = {  # Any: the fields of JobNow
        "job": job, "state": "ended", "is_over": True, "source": "/dev/mapper/vg0-old",
        "destination": "block:/dev/sdx", "started": STARTED - 999, "changed": STARTED - 900,
        "begun": STARTED - 998, "phase": "verify", "done": GIB, "total": GIB, "retired": GIB,
        "took": 42.0, "exit_status": 0, "verified": True, "held": held(0.001),
    }  # fmt: skip
    return JobNow(**(given | other))


def stopped(job: str = "night", **other: Any) -> JobNow:  # Any: the fields of JobNow
    """Give a job that was interrupted."""
    way_on = f"go on: dmcopy resume {job}; give it up: dmcopy cancel {job}"
    given: dict[str, Any] = {  # Any: the fields of JobNow
        "job": job, "state": "interrupted", "source": "/dev/mapper/vg0-night",
        "destination": "image:/backup/night.img", "started": STARTED - 50, "changed": STARTED,
        "begun": STARTED - 49, "phase": "copy", "done": GIB, "total": 2 * GIB, "can_resume": True,
        "exit_status": 5, "way_on": way_on,
    }  # fmt: skip
    return JobNow(**(given | other))


def group() -> list[JobNow]:
    """Give a group with two volumes."""
    return [
        running("pair", is_group=True, source="/dev/a /dev/b", destination="image:/a image:/b"),
        running("pair.1", group="pair", source="/dev/a", destination="image:/a"),
        running("pair.2", group="pair", source="/dev/b", destination="image:/b", state="begun"),
    ]


def all_kinds() -> Now:
    """Give one job of each kind."""
    return Now(
        jobs=(
            running(first="full", cow_full=(20.0, 40.0, 90.0)),
            *group(),
            stopped(),
            JobNow(job="ghost", state="unknown", way_on="cannot go on (it is not in the journal)"),
            ended(),
            ended("bad", state="failed", error="source: Input/output error", exit_status=1,
                  verified=False, took=3.0),
        ),
        cap=100 * MIB,
    )  # fmt: skip
