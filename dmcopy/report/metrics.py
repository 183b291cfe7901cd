"""All jobs of a host as Prometheus reads them.

Names and units as https://prometheus.io/docs/practices/naming/ has them: seconds and bytes,
``_total`` for what only grows; docs/metrics.rst tells what each one means.  A job is one label
value; of jobs that are over only the last one of each series and source is told, so the number of
series does not grow with the number of copies.

Needs the library prometheus-client, which not every host has (`jobs.metrics` says so in words).
"""

from __future__ import annotations

import re
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from dmcopy import __version__
from dmcopy.core.holds import BOUNDS
from dmcopy.errors import DmcopyError
from dmcopy.kernel.whole_file import write_whole
from dmcopy.report.jobs_now import STATES, JobNow, Now

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"  # what `text` gives

# The time that dmcopy puts behind a name that nobody chose, before a volume's number.
_TIME: Final = re.compile(r"-\d{8}-\d{6}(?=(\.[1-9][0-9]*)?$)")
_JOB: Final = "job_name"  # Prometheus itself says `job`, of what it scrapes
_WHOLE: Final = ("ended", "kept")


class _Value(NamedTuple):
    """A figure of each job; None: this job has none."""

    name: str
    help: str
    of: Callable[[JobNow], float | None]


def _copied(job: JobNow) -> float | None:
    if job.phase == "verify" or (job.total and job.state in _WHOLE):
        return job.total
    return job.done


def _verified(job: JobNow) -> float | None:
    if job.is_over:
        return job.total if job.verified else None
    return job.done if job.phase == "verify" else None


def _until_full(job: JobNow) -> float | None:
    if job.cow_full is None:
        return None
    likely = job.cow_full[1]
    return likely if likely is not None else float("inf")


_COUNTERS: Final = (
    _Value("copied_bytes", "Bytes of the image that are copied.", _copied),
    _Value("copied_cow_bytes", "Of the copied bytes: taken from the COW device.",
           lambda job: job.from_cow if job.total else None),
    _Value("copied_zero_bytes", "Of the copied bytes: zeroes.",
           lambda job: job.zero if job.total else None),
    _Value("verified_bytes", "Bytes of the destination that are read back and right.",
           _verified),
    _Value("retired_bytes", "Of the copied bytes: writes to them were saved no more.",
           lambda job: job.retired),
)  # fmt: skip
_GAUGES: Final = (
    _Value("running", "Whether a process works on the job.", lambda job: job.is_running),
    _Value("resumable", "Whether it was interrupted and dmcopy resume goes on with it.",
           lambda job: job.can_resume),
    _Value("size_bytes", "Size of the image.", lambda job: job.total),
    _Value("rate_bytes_per_second", "How fast it copies or verifies, over the last seconds.",
           lambda job: job.rate),
    _Value("remaining_seconds", "How long it will take at that rate.", lambda job: job.left),
    _Value("cow_used_bytes", "Used part of the COW device.", lambda job: job.cow_used),
    _Value("cow_size_bytes", "Size of the COW device.", lambda job: job.cow_total),
    _Value("cow_needed_bytes", "Forecast: used part of it when all is copied, likely.",
           lambda job: job.cow_needed),
    _Value("cow_full_seconds", "Forecast: when the COW device is full, likely; +Inf: never.",
           _until_full),
    _Value("cow_full_first", "Forecast: 1 if the COW device is full before all is copied.",
           lambda job: job.first == "full" if job.first not in (None, "unknown") else None),
    _Value("start_timestamp_seconds", "When it was started.", lambda job: job.started),
    _Value("begin_timestamp_seconds", "Its begin time: the copy is the source as it was then.",
           lambda job: job.begun),
    _Value("end_timestamp_seconds", "When it ended.",
           lambda job: job.changed if job.is_over else None),
    _Value("exit_status", "Exit status of its last session that ended.",
           lambda job: job.exit_status),
    _Value("verified", "Whether the destination was read back and is right.",
           lambda job: job.verified if job.is_over else None),
)  # fmt: skip


def series_name(job: str) -> str:
    """Give the name of a job without the time in it: the same for each copy of a policy."""
    return _TIME.sub("", job)


def _label(text: str) -> str:
    """Make a text one that can be written: a path need not be UTF-8."""
    return text.encode("utf-8", "replace").decode()


class JobsCollector(Collector):
    """Looks at all jobs each time that somebody asks; *look* is called by one thread at a time."""

    def __init__(self, look: Callable[[], Now]) -> None:
        self._look = look

    def describe(self) -> Iterable[Metric]:
        """Give nothing: what there is, only a look can tell."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Give all metrics, of one look."""
        now = self._look()
        yield InfoMetricFamily("dmcopy_build", "This dmcopy.", value={"version": __version__})
        yield GaugeMetricFamily(
            "dmcopy_journal_readable",
            "Whether the journal could be read; where not, most jobs are not known.",
            value=not now.unread,
        )
        if now.cap is not None:
            yield GaugeMetricFamily(
                "dmcopy_rate_limit_bytes_per_second",
                "What all jobs of this host may read, together.",
                value=now.cap,
            )
        yield _by_state(now)
        jobs = told(now)
        yield _info(jobs)
        yield _states(jobs)
        for value in _COUNTERS:
            yield _filled(CounterMetricFamily, value, jobs)
        for value in _GAUGES:
            yield _filled(GaugeMetricFamily, value, jobs)
        yield _holds(jobs)
        yield from _last(now)


def told(now: Now) -> list[JobNow]:
    """Give the jobs that are told one by one: of those that are over the last of each kind."""
    last: dict[tuple[str, str], str] = {}
    for job in sorted(now.jobs, key=_ended_at):
        if job.is_over:
            last[series_name(job.job), job.source] = job.job
    names = set(last.values())
    return [job for job in now.jobs if not job.is_over or job.job in names]


def _ended_at(job: JobNow) -> float:
    return job.changed or 0.0


def _by_state(now: Now) -> Metric:
    family = GaugeMetricFamily(
        "dmcopy_jobs", "Jobs on record, by state; a group counts as one.", labels=["state"]
    )
    counts = now.count()
    for state in STATES:
        family.add_metric([state], counts[state])
    return family


def _info(jobs: Iterable[JobNow]) -> Metric:
    family = InfoMetricFamily("dmcopy_job", "What a job copies, and where to.", labels=[_JOB])
    for job in jobs:
        words = {
            "series": series_name(job.job),
            "kind": "group" if job.is_group else "volume" if job.group is not None else "copy",
            "group": job.group or "",
            "source": job.source,
            "destination": job.destination,
        }
        family.add_metric([_label(job.job)], {word: _label(text) for word, text in words.items()})
    return family


def _states(jobs: Iterable[JobNow]) -> Metric:
    family = GaugeMetricFamily(
        "dmcopy_job_state", "1 for the state that a job is in, 0 for others.",
        labels=[_JOB, "state"],
    )  # fmt: skip
    for job in jobs:
        for state in STATES:
            family.add_metric([_label(job.job), state], state == job.state)
    return family


def _filled(
    kind: type[CounterMetricFamily] | type[GaugeMetricFamily],
    value: _Value,
    jobs: Iterable[JobNow],
) -> Metric:
    family = kind(f"dmcopy_job_{value.name}", value.help, labels=[_JOB])
    for job in jobs:
        found = value.of(job)
        if found is not None:
            family.add_metric([_label(job.job)], found)
    return family


def _holds(jobs: Iterable[JobNow]) -> Metric:
    family = HistogramMetricFamily(
        "dmcopy_job_hold_seconds",
        "How long writes to the source were held, each time, since the job's process began.",
        labels=[_JOB],
    )
    for job in jobs:
        if job.held is None:
            continue
        buckets: list[tuple[str, float]] = []
        total = 0
        for bound, count in zip((*map(str, BOUNDS), "+Inf"), job.held["counts"], strict=True):
            total += count
            buckets.append((bound, total))
        family.add_metric([_label(job.job)], buckets, job.held["sum_seconds"])
    return family


def _last(now: Now) -> Iterator[Metric]:
    """Tell when each source was copied last, which is what an alert is about."""
    whole: dict[tuple[str, str], JobNow] = {}
    last: dict[tuple[str, str], JobNow] = {}
    for job in sorted(now.jobs, key=_ended_at):
        key = _label(series_name(job.job)), _label(job.source)
        if job.state in _WHOLE and not job.is_running:
            whole[key] = job
        if job.exit_status is not None and not job.is_running:
            last[key] = job
    labels = ["series", "source"]
    success = GaugeMetricFamily(
        "dmcopy_last_success_timestamp_seconds", "When the last good copy was done.", labels=labels
    )
    begin = GaugeMetricFamily(
        "dmcopy_last_success_begin_timestamp_seconds",
        "The begin time of the last good copy: what was written later is in none.", labels=labels,
    )  # fmt: skip
    status = GaugeMetricFamily(
        "dmcopy_last_exit_status", "Exit status of the last copy that ended.", labels=labels
    )
    for key, job in whole.items():
        success.add_metric(list(key), _ended_at(job))
        if job.begun is not None:
            begin.add_metric(list(key), job.begun)
    for key, job in last.items():
        if job.exit_status is not None:
            status.add_metric(list(key), job.exit_status)
    yield from (success, begin, status)


def registry(look: Callable[[], Now]) -> CollectorRegistry:
    """Give a registry with all metrics of the jobs, and no others."""
    made = CollectorRegistry()
    made.register(JobsCollector(look))
    return made


def text(metrics: CollectorRegistry) -> bytes:
    """Give all that it has, in Prometheus' text format (`CONTENT_TYPE`)."""
    return generate_latest(metrics)


def write_textfile(path: Path, content: bytes) -> None:
    """Put *content* in place of the file, whole or not at all, for everybody to read.

    For node_exporter's textfile collector, which reads every ``*.prom`` at any moment.  Raises
    `DmcopyError`.
    """
    try:
        if path.exists() and not stat.S_ISREG(path.stat().st_mode):
            raise DmcopyError(f"cannot write the metrics to {path}: it is not a file")
        write_whole(path, content, mode=0o644)
    except OSError as exc:
        raise DmcopyError(f"cannot write the metrics to {path}: {exc.strerror}") from exc
