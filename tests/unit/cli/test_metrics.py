"""``dmcopy metrics``: to stdout or a file, and words where something is missing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from dmcopy.cli.common import Context
from dmcopy.cli.main import main
from dmcopy.jobs.journal import Journal
from dmcopy.jobs.spec import Places
from tests.unit.fake_dm import FakeDm
from tests.unit.jobs.test_glance import SPEC


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return Context(dm=FakeDm(), places=Places(tmp_path / "state", tmp_path / "run"))


def test_metrics_go_to_stdout_and_nothing_is_made(
    context: Context, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["metrics"], context) == 0
    said = capsys.readouterr().out
    assert "dmcopy_build_info{version=" in said
    assert 'dmcopy_jobs{state="ended"} 0.0' in said
    assert context.places is not None
    assert not context.places.state.exists()


def test_metrics_go_to_a_file(context: Context, tmp_path: Path) -> None:
    assert context.places is not None
    with Journal(context.places.journal) as journal:
        journal.define("a", SPEC)
    file = tmp_path / "dmcopy.prom"
    assert main(["metrics", "--textfile", str(file)], context) == 0
    assert 'dmcopy_job_state{job_name="a",state="dead"} 1.0' in file.read_text()


def test_unreadable_journal_is_in_the_metrics_and_on_stderr(
    context: Context, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert context.places is not None
    context.places.journal.parent.mkdir()
    context.places.journal.touch()
    file = tmp_path / "dmcopy.prom"
    assert main(["metrics", "--textfile", str(file)], context) == 1
    assert "dmcopy_journal_readable 0.0" in file.read_text()
    assert "it is empty" in capsys.readouterr().err


def test_missing_library_is_said_in_one_line(
    context: Context, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    monkeypatch.delitem(sys.modules, "dmcopy.report.metrics", raising=False)
    assert main(["metrics"], context) == 1
    said = capsys.readouterr().err
    assert "prometheus-client" in said
    assert "python3-prometheus-client" in said
    assert len(said.splitlines()) == 1
