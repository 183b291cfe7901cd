"""All jobs at one glance, for who looks every second: cheap, and in nobody's way.

Reads the journal, asks who holds which lock, and lists the kernel's devices.  No device is opened,
no program started, nothing made: also where there has never been a job.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any, Final

from dmcopy.engine.throttle import HostCap
from dmcopy.errors import DmcopyError
from dmcopy.jobs.host import Host
from dmcopy.jobs.overview import JobView, look_over
from dmcopy.jobs.state import State
from dmcopy.report.jobs_now import JobNow, Now
from dmcopy.stack.hold import seconds_of

_STALE_SECONDS: Final = 15.0  # a rate that the journal was told so long ago is none any more
_AT_WORK: Final = (State.BEGUN, State.COPYING, State.COPIED)


def glance(host: Host, *, now: float | None = None) -> Now:
    """Give all jobs of the host; what keeps the journal from being read is said, not raised."""
    at = time.time() if now is None else now
    return summary(*_views(host), cap=HostCap.peek(host.places.cap), now=at)


def _views(host: Host) -> tuple[list[JobView], str]:
    try:
        return look_over(host, brief=True, happened=False)
    except DmcopyError as exc:
        return [], str(exc)


def summary(views: Iterable[JobView], unread: str, *, cap: int | None, now: float) -> Now:
    """Give what is shown of these jobs, in the order in which it is shown.

    Running ones first, then what a person must do something about, then what is over, the last
    one first.
    """
    found = [job_now(view, now=now) for view in views]
    names = {job.job for job in found}
    alone = sorted((job for job in found if job.group not in names), key=_rank)
    jobs: list[JobNow] = []
    for job in alone:
        jobs += [job, *(one for one in found if one.group == job.job)]
    return Now(jobs=tuple(jobs), cap=cap, unread=unread)


def _rank(job: JobNow) -> tuple[int, float, str]:
    if job.is_running:
        return 0, job.started or 0.0, job.job
    if not job.is_over:
        return 1, job.started or 0.0, job.job
    return 2, -(job.changed or 0.0), job.job


def job_now(view: JobView, *, now: float) -> JobNow:
    """Give what is shown of one job; *now* in seconds since 1970."""
    record = view.record
    is_running = view.pid is not None or view.leader is not None
    if record is None:
        return JobNow(job=view.job, state=_state(view), is_running=is_running, way_on=_way_on(view))
    ended = record.ended if not is_running else None
    fresh = is_running and record.state in _AT_WORK and now - record.changed < _STALE_SECONDS
    told = _figures(view, fresh=fresh)
    return JobNow(
        job=view.job,
        state=_state(view),
        is_running=is_running,
        is_over=view.is_over,
        group=view.group,
        is_group=bool(view.members),
        source=str(record.spec["source"]),
        destination=str(record.spec["destination"]),
        started=record.created,
        changed=record.changed,
        begun=seconds_of(record.begun["begin_time"]) if record.begun is not None else None,
        took=ended["seconds"] if ended is not None else None,
        exit_status=ended["exit_status"] if ended is not None else None,
        verified=bool(ended and ended["verified"]),
        error=str((ended and ended["error"]) or ""),
        can_resume=view.can_resume,
        way_on=_way_on(view),
        **told,
    )


def _figures(view: JobView, *, fresh: bool) -> dict[str, Any]:  # Any: the fields of JobNow
    """Give how far a job is; what changes with time only while it is *fresh*."""
    record = view.record
    assert record is not None
    progress = record.progress or {}
    ended = record.ended if record.ended is not None and view.pid is None else {}
    done, total = progress.get("bytes_done"), progress.get("bytes_total")
    if ended and ended.get("error") is None:  # the last progress may be a second older
        done = total = ended["bytes_total"]
    needed = progress.get("cow_needed")
    return {
        "phase": str(progress.get("phase", "")),
        "done": done,
        "total": total,
        "from_cow": int((ended or progress).get("bytes_cow", 0)),
        "zero": int((ended or progress).get("bytes_zero", 0)),
        "retired": (ended or progress).get("bytes_retired"),
        "rate": progress.get("rate_bytes") if fresh else None,
        "left": progress.get("eta_seconds") if fresh else None,
        "cow_used": progress.get("cow_used_bytes"),
        "cow_total": progress.get("cow_total_bytes"),
        "cow_needed": needed[1] if needed and fresh else None,
        "cow_full": _band(progress.get("cow_full")) if fresh else None,
        "first": progress.get("first") if fresh else None,
        "held": (ended or progress).get("held"),
    }


def _band(told: Iterable[float | None] | None) -> tuple[float | None, ...] | None:
    return tuple(told) if told is not None else None


def _state(view: JobView) -> str:
    if view.pid is not None or view.leader is not None:
        return view.state
    if view.is_kept:
        return "kept"
    if view.is_dead:
        return "interrupted" if view.can_resume else "dead"
    return view.state


def _way_on(view: JobView) -> str:
    """Say what to do about a job that nobody works on; "" where there is nothing to do."""
    whole = view.group or view.job
    if view.can_resume:
        return f"go on: dmcopy resume {whole}; give it up: dmcopy cancel {whole}"
    if view.is_kept:
        return f"its snapshot is kept; end it: dmcopy cancel {whole}"
    if view.is_dead:
        return f"cannot go on ({view.no_way_on}); mend: dmcopy rescue {whole}"
    return ""
