"""``dmcopy report``: from the journal to a file, which is never put in place of a stranger's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dmcopy.cli.common import Context
from dmcopy.cli.main import main
from dmcopy.cli.report import subject_of
from dmcopy.jobs.journal import Journal
from dmcopy.jobs.lock import JobLock
from dmcopy.jobs.overview import JobView
from dmcopy.jobs.spec import Places
from dmcopy.jobs.state import State
from dmcopy.report.page import page
from tests.unit.fake_dm import FakeDm
from tests.unit.report import made_up
from tests.unit.report.page_tree import Element, read

SPEC = {"source": "/dev/mapper/<d>", "destination": "image:/x&y"}


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Context:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    return Context(dm=FakeDm(), places=Places(tmp_path / "state", tmp_path / "run"))


def _journal(context: Context) -> Path:
    assert context.places is not None
    return context.places.journal


def _ended(context: Context) -> None:
    with Journal(_journal(context)) as journal:
        journal.define("a", SPEC)
        for state in (State.BEGUN, State.COPYING, State.COPIED, State.VERIFIED, State.ENDED):
            journal.move("a", state)
        journal.note("a", "begun", {"begin_time": made_up.BEGIN_TIME})
        journal.note("a", "ended", made_up.ended(job="a"))
        journal.keep_history("a", made_up.history().as_json())
        for _, event in made_up.log():
            journal.log("a", event)


def _report(context: Context, *argv: str) -> Element:
    assert main(["report", "a", *argv], context) == 0
    return read(Path(argv[1] if argv else "dmcopy-a.html").read_text())


def test_ended_job_is_reported_into_the_current_directory(
    context: Context, capsys: pytest.CaptureFixture[str]
) -> None:
    _ended(context)
    root = _report(context)
    assert capsys.readouterr().out == "dmcopy-a.html\n"
    assert os.listdir() == ["dmcopy-a.html"]
    facts = [one.text for one in root.by_id("facts").all("dd")]
    assert facts[:4] == ["a", "/dev/mapper/<d>", "image:/x&y", "ended"]
    assert "Done, read back and verified" in root.by_id("verdict").text
    assert len(list(root.by_id("map-when").all("rect", "cell"))) == len(made_up.history().cells)
    assert len(root.by_id("events").rows()) == len(made_up.log())


def test_report_goes_to_stdout(context: Context, capsys: pytest.CaptureFixture[str]) -> None:
    _ended(context)
    assert main(["report", "a", "--output", "-"], context) == 0
    assert "118.1 GiB" in read(capsys.readouterr().out).by_id("tiles").text
    assert os.listdir() == []


@pytest.mark.parametrize(
    ("states", "error", "said"),
    [
        ((State.BEGUN, State.COPYING), None, "Interrupted|Dead"),
        ((State.FAILED,), "no room", "Failed"),
        ((State.CANCELLED,), "cancelled", "Cancelled"),
    ],
)
def test_job_in_any_state_is_reported_without_history(
    context: Context, states: tuple[State, ...], error: str | None, said: str
) -> None:
    with Journal(_journal(context)) as journal:
        journal.define("a", SPEC | {"name": "a"})
        for state in states:
            journal.move("a", state)
        if error is not None:
            journal.note("a", "ended", made_up.ended(error=error, verified=False))
    root = _report(context)
    verdict = root.by_id("verdict").text
    assert verdict.startswith(tuple(said.split("|")))
    assert (error or "") in verdict
    assert "no history" in root.by_id("no-history").text


def test_running_job_is_reported_as_running_whatever_an_earlier_session_said(
    context: Context,
) -> None:
    assert context.places is not None
    _ended(context)
    with JobLock(context.places.locks, "a"):
        root = _report(context)
    assert f"(pid {os.getpid()})" in root.by_id("verdict").text
    assert "sha256" not in root.by_id("facts").text


def test_earlier_report_is_replaced_and_its_link_stays(context: Context) -> None:
    _ended(context)
    Path("dmcopy-a.html").write_text("<!doctype html>\n<!-- dmcopy report -->\nold")
    _report(context)
    assert "old" not in Path("dmcopy-a.html").read_text()[:200]
    Path("link.html").symlink_to("dmcopy-a.html")
    _report(context, "--output", "link.html")
    assert Path("link.html").is_symlink()
    assert sorted(os.listdir()) == ["dmcopy-a.html", "link.html"]


def test_file_that_is_no_report_is_never_replaced(
    context: Context, capsys: pytest.CaptureFixture[str]
) -> None:
    _ended(context)
    Path("mine.html").write_text("<!doctype html><p>mine")
    Path("link.html").symlink_to("mine.html")
    Path("directory").mkdir()
    os.mkfifo("pipe")
    for name in ("mine.html", "link.html", "directory", "pipe", "/dev/null"):
        assert main(["report", "a", "--output", name], context) == 3
        assert f"{name} exists, and is no report of ours" in capsys.readouterr().err
    assert Path("mine.html").read_text() == "<!doctype html><p>mine"
    assert Path("/dev/null").is_char_device()
    assert sorted(os.listdir()) == ["directory", "link.html", "mine.html", "pipe"]


def test_report_that_cannot_be_written_leaves_nothing(
    context: Context, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _ended(context)
    assert main(["report", "a", "--output", "no/such/file"], context) == 1
    assert "cannot write no/such/file: No such file" in capsys.readouterr().err
    Path("old.html").write_text("<!-- dmcopy report -->")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.replace", full)
    assert main(["report", "a", "--output", "old.html"], context) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert os.listdir() == ["old.html"]
    assert Path("old.html").read_text() == "<!-- dmcopy report -->"


def test_job_that_only_the_kernel_knows_is_reported(context: Context) -> None:
    view = JobView(
        job="k", state="unknown", pid=None, remains=("device x",), record=None,
        no_way_on="it is not in the journal",
    )  # fmt: skip
    subject = subject_of(view, context.host(), made=made_up.BEGIN)
    assert "Mend: dmcopy rescue k" in read(page(subject)).by_id("verdict").text
