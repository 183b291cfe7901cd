"""What Prometheus gets: right types, right figures, nothing that grows with each copy."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
import textwrap
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from dmcopy.errors import DmcopyError
from dmcopy.report.jobs_now import STATES, JobNow, Now
from dmcopy.report.metrics import registry, series_name, text, write_textfile
from lab import prometheus
from tests.unit.report import made_up_jobs as made

ROOT = Path(__file__).parents[3]
DOCUMENT = (ROOT / "docs/metrics.rst").read_text()

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def _text(now: Now) -> str:
    return text(registry(lambda: now)).decode()


def _samples(now: Now) -> Samples:
    families: Iterable[object] = text_string_to_metric_families(_text(now))
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples  # type: ignore[attr-defined]  # the library has no types here
    }


def _of(now: Now, name: str, /, **labels: str) -> float | None:
    return _samples(now).get((name, tuple(sorted(labels.items()))))


def _awkward() -> Now:
    hostile = 'a"b\\c\nd\udcffé'
    jobs = made.all_kinds().jobs
    return Now(jobs=(made.running("odd", source=hostile, destination=hostile), *jobs), cap=5)


def test_figures_of_a_job_are_told() -> None:
    now = Now(jobs=(made.running("a"),), cap=1000)
    at = {"job_name": "a"}
    gib = 1 << 30
    for name, value in {
        "copied_bytes_total": 42 * gib, "copied_cow_bytes_total": 3 * gib, "running": 1,
        "copied_zero_bytes_total": 2 * gib, "retired_bytes_total": 40 * gib,
        "size_bytes": 100 * gib, "rate_bytes_per_second": 120 << 20, "remaining_seconds": 187,
        "cow_used_bytes": gib, "cow_size_bytes": 8 * gib, "cow_needed_bytes": 5 * gib,
        "cow_full_seconds": 500, "cow_full_first": 0, "resumable": 0,
        "start_timestamp_seconds": made.STARTED, "begin_timestamp_seconds": made.STARTED + 1,
        "end_timestamp_seconds": None, "verified_bytes_total": None, "exit_status": None,
        "hold_seconds_count": 3, "hold_seconds_sum": 0.0069,
    }.items():  # fmt: skip
        assert _of(now, f"dmcopy_job_{name}", **at) == value, name
    assert _of(now, "dmcopy_rate_limit_bytes_per_second") == 1000
    assert _of(now, "dmcopy_job_state", job_name="a", state="copying") == 1
    assert _of(now, "dmcopy_job_state", job_name="a", state="ended") == 0


def test_holds_are_a_histogram_whose_buckets_add_up() -> None:
    now = Now(jobs=(made.running("a", held=made.held(0.0004, 0.002, 0.0025, 0.3, 99.0)),))
    buckets = {
        dict(labels)["le"]: value
        for (name, labels), value in _samples(now).items()
        if name == "dmcopy_job_hold_seconds_bucket"
    }
    assert buckets["0.0005"] == 1
    assert buckets["0.0025"] == 3
    assert buckets["0.25"] == 3
    assert buckets["0.5"] == buckets["10.0"] == 4
    assert buckets["+Inf"] == 5
    assert list(buckets.values()) == sorted(buckets.values())


def test_verification_does_not_let_what_is_copied_shrink() -> None:
    verifying = made.running("a", phase="verify", done=7, total=100)
    now = Now(jobs=(verifying,))
    assert _of(now, "dmcopy_job_copied_bytes_total", job_name="a") == 100
    assert _of(now, "dmcopy_job_verified_bytes_total", job_name="a") == 7
    done = Now(jobs=(made.ended("a"),))
    assert _of(done, "dmcopy_job_copied_bytes_total", job_name="a") == 1 << 30
    assert _of(done, "dmcopy_job_verified_bytes_total", job_name="a") == 1 << 30
    assert _of(done, "dmcopy_job_verified", job_name="a") == 1


def test_cow_device_that_never_fills_is_infinitely_far_from_it() -> None:
    never = made.running("a", cow_full=(9.0, None, None), first="done")
    assert _of(Now(jobs=(never,)), "dmcopy_job_cow_full_seconds", job_name="a") == float("inf")
    full = made.running("a", first="full")
    assert _of(Now(jobs=(full,)), "dmcopy_job_cow_full_first", job_name="a") == 1
    unknown = made.running("a", first="unknown", cow_full=None)
    assert _of(Now(jobs=(unknown,)), "dmcopy_job_cow_full_first", job_name="a") is None


def test_of_what_is_over_only_the_last_of_each_kind_is_told() -> None:
    jobs = [
        made.ended(f"nightly-202601{day:02}-235959", changed=made.STARTED + day, begun=day * 1.0)
        for day in range(1, 31)
    ]
    bad = replace(jobs[-1], job="nightly-20260131-235959", changed=made.STARTED + 31,
                  state="failed", exit_status=1)  # fmt: skip
    now = Now(jobs=(bad, *jobs, made.running("nightly-20260201-000000")))
    told = {
        dict(labels)["job_name"] for (name, labels) in _samples(now) if name == "dmcopy_job_info"
    }
    assert told == {"nightly-20260131-235959", "nightly-20260201-000000"}
    kind = {"series": "nightly", "source": "/dev/mapper/vg0-old"}
    assert _of(now, "dmcopy_last_success_timestamp_seconds", **kind) == made.STARTED + 30
    assert _of(now, "dmcopy_last_success_begin_timestamp_seconds", **kind) == 30
    assert _of(now, "dmcopy_last_exit_status", **kind) == 1
    assert _of(now, "dmcopy_jobs", state="ended") == 30


def test_number_of_series_does_not_grow_with_each_copy() -> None:
    def series(count: int) -> int:
        jobs = tuple(made.ended(f"n-2026{n:04}-000000", changed=n * 1.0) for n in range(count))
        return len(_samples(Now(jobs=jobs)))

    assert series(5) == series(100)


def test_name_of_a_series_has_no_time_in_it() -> None:
    assert series_name("data-20260131-235959") == "data"
    assert series_name("db-20260131-235959.2") == "db.2"
    assert series_name("db-1") == "db-1"
    assert series_name("a-20260131-235959-b") == "a-20260131-235959-b"


def test_each_state_is_counted_and_a_group_is_one() -> None:
    now = Now(jobs=tuple(made.group()))
    assert _of(now, "dmcopy_jobs", state="copying") == 1
    assert _of(now, "dmcopy_jobs", state="begun") == 0
    assert sum(name == "dmcopy_jobs" for name, _ in _samples(now)) == len(STATES)
    kinds = {
        dict(labels)["job_name"]: dict(labels)["kind"]
        for (name, labels) in _samples(now)
        if name == "dmcopy_job_info"
    }
    assert kinds == {"pair": "group", "pair.1": "volume", "pair.2": "volume"}


def test_journal_that_cannot_be_read_is_told() -> None:
    assert _of(Now(unread="it is empty"), "dmcopy_journal_readable") == 0
    assert _of(Now(), "dmcopy_journal_readable") == 1
    assert _of(Now(), "dmcopy_rate_limit_bytes_per_second") is None


def test_what_only_the_kernel_knows_has_a_state() -> None:
    now = Now(jobs=(JobNow(job="k", state="unknown"),))
    assert _of(now, "dmcopy_job_state", job_name="k", state="unknown") == 1
    assert _of(now, "dmcopy_job_size_bytes", job_name="k") is None


def test_every_metric_is_documented_with_its_type_and_no_other() -> None:
    told = re.findall(r"^# TYPE (\S+) (\S+)$", _text(_awkward()), re.MULTILINE)
    written = re.findall(r"^``(dmcopy_\w+)``\s+(gauge|counter|histogram) ", DOCUMENT, re.MULTILINE)
    assert sorted(told) == sorted(written)
    assert len(told) >= 30


@pytest.mark.forks
@pytest.mark.parametrize("library", ["pypi", "debian"])
def test_promtool_has_nothing_to_say(library: str, tmp_path: Path) -> None:
    program = (
        "import sys, prometheus_client;"
        "from tests.unit.report.test_metrics import _awkward, _text, Now;"
        "sys.stdout.reconfigure(encoding='utf-8');"
        "sys.stderr.write(prometheus_client.__file__);"
        "sys.stdout.write(_text(Now()) if sys.argv[1:] else _text(_awkward()))"
    )
    path = [str(ROOT)] if library == "pypi" else [str(prometheus.client_library()), str(ROOT)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
    for argv in ([], ["none"]):
        done = subprocess.run(
            [sys.executable, "-c", program, *argv],
            env=env, cwd=tmp_path, capture_output=True, check=True,
        )  # fmt: skip
        is_debian = str(prometheus.client_library()) in done.stderr.decode()
        assert is_debian == (library == "debian")
        made_text = done.stdout
        assert made_text.count(b"# TYPE dmcopy_") >= 29
        said = subprocess.run(
            [prometheus.program("promtool"), "check", "metrics"],
            input=made_text, capture_output=True, check=False,
        )  # fmt: skip
        assert (said.returncode, said.stdout, said.stderr) == (0, b"", b"")


@pytest.mark.forks
def test_promtool_finds_what_is_wrong() -> None:
    wrong = b"# TYPE dmcopy_bad counter\ndmcopy_bad 1\n"
    said = subprocess.run(
        [prometheus.program("promtool"), "check", "metrics"],
        input=wrong, capture_output=True, check=False,
    )  # fmt: skip
    assert said.returncode != 0


def _rules() -> str:
    (block,) = re.findall(r"yours::\n\n((?:    .*\n|\n)+)", DOCUMENT)
    return textwrap.dedent(block)


@pytest.mark.forks
def test_alert_rules_of_the_document_are_valid_and_fire(tmp_path: Path) -> None:
    (tmp_path / "rules.yml").write_text(_rules())
    said = subprocess.run(
        [prometheus.program("promtool"), "check", "rules", "--lint-fatal", "rules.yml"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert said.returncode == 0, said
    assert "6 rules found" in said.stdout
    (tmp_path / "test.yml").write_text(_RULE_TEST)
    said = subprocess.run(
        [prometheus.program("promtool"), "test", "rules", "test.yml"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert said.returncode == 0, said.stdout + said.stderr


def test_alert_rules_use_metrics_that_there_are() -> None:
    there = {name for name, _ in _samples(_awkward())}
    used = set(re.findall(r"\bdmcopy_\w+", _rules()))
    assert len(used) >= 6
    assert used - there == set()


_RULE_TEST = """
rule_files: [rules.yml]
evaluation_interval: 1m
tests:
  - interval: 1m
    input_series:
      - series: 'dmcopy_last_success_begin_timestamp_seconds{series="n", source="/dev/a"}'
        values: '0x2000'
      - series: 'dmcopy_job_state{job_name="n-1", state="interrupted"}'
        values: '1x2000'
      - series: 'dmcopy_job_state{job_name="n-1", state="copying"}'
        values: '0x2000'
      - series: 'dmcopy_last_exit_status{series="n", source="/dev/a"}'
        values: '0x1000 4x1000'
      - series: 'dmcopy_job_cow_full_first{job_name="n-1"}'
        values: '0x1000 1x1000'
      - series: 'dmcopy_job_hold_seconds_bucket{job_name="n-1", le="0.5"}'
        values: '0+1x1000 1000x1000'
      - series: 'dmcopy_job_hold_seconds_bucket{job_name="n-1", le="2.5"}'
        values: '0+1x1000 1001+1x1000'
      - series: 'dmcopy_job_hold_seconds_bucket{job_name="n-1", le="+Inf"}'
        values: '0+1x1000 1001+1x1000'
      - series: 'dmcopy_journal_readable'
        values: '1x1000 0x1000'
    promql_expr_test:
      - {expr: 'count(ALERTS{alertstate="firing"})', eval_time: 900m, exp_samples: [{value: 1}]}
      - expr: count by (alertname) (ALERTS{alertstate="firing"})
        eval_time: 1900m
        exp_samples:
          - {labels: '{alertname="DmcopyCopyTooOld"}', value: 1}
          - {labels: '{alertname="DmcopyJobInterrupted"}', value: 1}
          - {labels: '{alertname="DmcopyLastCopyFailed"}', value: 1}
          - {labels: '{alertname="DmcopyCowWillBeFull"}', value: 1}
          - {labels: '{alertname="DmcopyWritesHeldLong"}', value: 1}
          - {labels: '{alertname="DmcopyJournalUnreadable"}', value: 1}
"""


def test_textfile_is_replaced_as_a_whole_and_anybody_may_read_it(tmp_path: Path) -> None:
    path = tmp_path / "dmcopy.prom"
    old = os.umask(0o077)
    try:
        write_textfile(path, b"one\n")
        before = path.stat().st_ino
        write_textfile(path, b"two\n")
    finally:
        os.umask(old)
    assert path.read_bytes() == b"two\n"
    assert path.stat().st_ino != before
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert os.listdir(tmp_path) == ["dmcopy.prom"]


def test_textfile_that_cannot_be_written_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "dmcopy.prom"
    write_textfile(path, b"old\n")

    def full(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DmcopyError, match=r"dmcopy\.prom: No space left on device"):
        write_textfile(path, b"new\n")
    assert path.read_bytes() == b"old\n"
    assert os.listdir(tmp_path) == ["dmcopy.prom"]
    monkeypatch.undo()
    with pytest.raises(DmcopyError, match="No such file or directory"):
        write_textfile(tmp_path / "no/such.prom", b"")
    with pytest.raises(DmcopyError, match="not a file"):
        write_textfile(Path("/dev/null"), b"")
    assert Path("/dev/null").is_char_device()
