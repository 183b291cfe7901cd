"""The command line: words in, exit status and one line out."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from dmcopy.cli.common import Context, default_name
from dmcopy.cli.main import COMMANDS, main, parser
from dmcopy.engine.throttle import HostCap
from dmcopy.errors import DmcopyError
from dmcopy.jobs import settings
from dmcopy.jobs.journal import Journal
from dmcopy.jobs.lock import JobLock
from dmcopy.jobs.spec import CopySpec, Places
from dmcopy.jobs.state import State
from dmcopy.stack.names import check_job
from tests.unit.fake_dm import FakeDm


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return Context(dm=FakeDm(), places=Places(tmp_path / "state", tmp_path / "run"))


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "COMMAND"),
        (["nonsense"], "nonsense"),
        (["copy"], "SOURCE, DESTINATION"),
        (["copy", "/dev/x"], "DESTINATION"),
        (["copy", "/dev/null", "/tmp/x"], "/dev/null is not a block device"),
        (["copy", "/dev/no-such", "/tmp/x"], "/dev/no-such: No such file or directory"),
        (["copy", "/etc/passwd", "/tmp/x"], "/etc/passwd is not a block device"),
        (["copy", "/dev/x", "/tmp/x", "--chunk", "many"], "not a size"),
        (["copy", "/dev/x", "/tmp/x", "--cow", "nonsense"], "not a COW device"),
        (["copy", "/dev/x", "/tmp/x", "--hold-limit", "0"], "seconds above 0"),
        (["copy", "/dev/x", "/tmp/x", "--hold-limit", "nan"], "seconds above 0"),
        (["copy", "/dev/x", "/tmp/x", "--name", "a/b"], "cannot name a job"),
        (["copy", "/dev/x", "/tmp/x", "--digest", "none", "--verify"], "--digest none"),
        (["copy", "/dev/x", "/tmp/x", "--verif"], "--verif"),
        (["copy", "/dev/x", "tape:/dev/st0"], "block"),
        (["plan", "/dev/no-such", "/tmp/x"], "/dev/no-such"),
        (["status", "nobody"], "there is no job nobody"),
        (["rescue", "nobody"], "there is no job nobody"),
        (["resume", "a/b"], "cannot name a job"),
        (["resume", "nobody"], "there is no job nobody"),
        (["resume", "nobody", "--detach"], "there is no job nobody"),
        (["pause", "nobody"], "there is no job nobody"),
        (["cancel", "nobody"], "there is no job nobody"),
        (["wait", "nobody"], "there is no job nobody"),
        (["wait", "nobody", "--timeout", "0"], "seconds above 0"),
        (["show", "nobody"], "there is no job nobody"),
        (["report", "nobody"], "there is no job nobody"),
        (["report", "nobody", "--output", "-"], "there is no job nobody"),
        (["set", "nobody", "rate=5m"], "there is no job nobody"),
        (["set", "nobody"], "dmcopy set JOB NAME=VALUE"),
        (["set", "nobody", "rate"], "'rate' is no NAME=VALUE"),
        (["set", "nobody", "rate=fast"], "'fast' is not a rate"),
        (["set", "nobody", "cow=5"], "cannot be set on a job"),
        (["set", "--host", "cow=5"], "'cow' cannot be set for all jobs"),
        (["set", "--host", "rate=auto"], "auto is a job's"),
        (["set", "--host", "keep-jobs=many"], "keep-jobs is a number"),
        (["copy", "/dev/x", "/tmp/x", "--rate", "0"], "'0' is not a rate"),
        (["copy", "/dev/x", "/tmp/x", "--on-full", "panic"], "panic"),
        (["--log-level", "loud", "status"], "loud"),
    ],
)
def test_mistake_is_said_in_one_line_with_status_2(
    argv: list[str], said: str, context: Context, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(argv, context) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("dmcopy: ")
    assert said in captured.err
    assert captured.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_without_root_nothing_is_tried(
    context: Context, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert main(["status"], context) == 1
    assert "as root" in capsys.readouterr().err


def test_status_without_jobs_makes_no_file(
    context: Context, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["status"], context) == 0
    assert main(["rescue"], context) == 0
    assert capsys.readouterr().out == ("no jobs under way (dmcopy list: all)\nnothing to rescue\n")
    assert list(tmp_path.iterdir()) == []


def _killed(context: Context, leftover: Path) -> None:
    assert context.places is not None
    with Journal(context.places.journal) as journal:
        journal.define("a", {"source": "/dev/mapper/d", "destination": "image:/x"})
        journal.may_leave("a", str(leftover))
        journal.move("a", State.BEGUN)


def test_job_that_was_killed_is_dead_until_it_is_rescued(
    context: Context, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "dmcopy-a.cow"
    file.write_text("x")
    _killed(context, file)
    assert main(["status", "--json"], context) == 0
    status = json.loads(capsys.readouterr().out)
    assert (status["event"], status["job"], status["dead"]) == ("status", "a", True)
    assert main(["status", "a"], context) == 0
    assert "dmcopy rescue a" in capsys.readouterr().out
    assert main(["rescue", "--dry-run"], context) == 0
    assert file.exists()
    capsys.readouterr()
    assert main(["rescue", "a"], context) == 0
    assert f"removed {file}" in capsys.readouterr().out
    assert not file.exists()
    assert main(["status", "--json"], context) == 0
    assert capsys.readouterr().out == "", "it is no longer under way"
    assert main(["list", "--json"], context) == 0
    assert json.loads(capsys.readouterr().out)["dead"] is False
    assert main(["rescue"], context) == 0
    assert capsys.readouterr().out == "nothing to rescue\n"


def test_unreadable_journal_hides_nothing_that_the_kernel_knows(
    context: Context, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(context.dm, FakeDm)
    assert context.places is not None
    source = context.dm.add("dmcopy-a-source", "0 8 linear 8:0 0", uuid="DMCOPY-a-source")
    context.dm.add("data", f"0 8 snapshot-origin {source.devno}")
    with Journal(context.places.journal):
        pass

    def fail(*_: object, **__: object) -> None:
        raise DmcopyError("cannot use the journal: disk I/O error")

    monkeypatch.setattr(Journal, "records", fail)
    assert main(["status", "--json"], context) == 0
    status = json.loads(capsys.readouterr().out)
    assert (status["job"], status["dead"], status["can_resume"]) == ("a", True, False)
    assert status["no_way_on"] == "cannot use the journal: disk I/O error"
    assert main(["rescue"], context) == 0
    assert "is kept, because the journal cannot be read" in capsys.readouterr().out
    assert str(context.dm.table("data")).startswith("0 8 snapshot-origin")


def test_status_tells_when_the_cow_device_would_be_full_while_the_job_runs(
    context: Context, capsys: pytest.CaptureFixture[str]
) -> None:
    assert context.places is not None
    progress = {
        "phase": "copy", "bytes_done": 1, "bytes_total": 4, "cow_used_bytes": 1,
        "cow_total_bytes": 2, "first": "full", "cow_full": [60.0, 90.0, 150.0],
    }  # fmt: skip
    with Journal(context.places.journal) as journal:
        spec = CopySpec(name="a", source="/dev/mapper/d", destination="image:/x")
        journal.define("a", spec.as_json())
        journal.note("a", "progress", progress)
    with JobLock(context.places.locks, "a"):
        assert main(["status"], context) == 0
        said = " ".join(capsys.readouterr().out.split())
        assert "copy 25%, COW full in 1:00" in said  # the rest is in the next line
        assert "to 2:30, before the copy is done" in said
        assert main(["show", "a"], context) == 0
        said = " ".join(capsys.readouterr().out.split())
        assert "COW device 50% of 2 B" in said
        assert "forecast full in 1:00 to 2:30, before the copy is done" in said
    assert main(["status"], context) == 0
    assert "full in" not in capsys.readouterr().out, "nobody fills it that we know of"


def test_host_settings_are_kept_and_old_jobs_forgotten(
    context: Context, capsys: pytest.CaptureFixture[str]
) -> None:
    assert context.places is not None
    assert main(["set", "--host", "rate=5m", "keep-jobs=1", "keep-days=2"], context) == 0
    cap = HostCap.open(context.places.cap)
    assert cap.rate == 5 << 20
    cap.set_rate(None)  # as after a reboot
    with Journal(context.places.journal) as journal:
        for name in ("a", "b", "c"):
            journal.define(name, {"source": "s", "destination": "d"})
            journal.move(name, State.FAILED)
        settings.apply(journal, context.places)
        assert [record.name for record in journal.records()] == ["c"]
    assert cap.rate == 5 << 20
    assert main(["set", "--host", "rate=none"], context) == 0
    assert cap.rate is None
    cap.close()
    assert main(["list"], context) == 0
    assert "failed" in capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parser().parse_args([command, "--help"])
    assert ended.value.code == 0
    assert f"usage: dmcopy {command}" in capsys.readouterr().out


def test_every_exit_status_is_in_the_help_and_the_readme(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        parser().parse_args(["--help"])
    said = capsys.readouterr().out
    readme = (Path(__file__).parents[3] / "README.rst").read_text()
    for number in range(7):
        assert f"\n  {number}  " in said
        assert f"\n{number}  " in readme


@pytest.mark.parametrize("source", ["/dev/mapper/vg-lv", "/dev/disk/by-id/a:b c", "///", "/dev/ä"])
def test_default_name_can_be_a_job_name(source: str) -> None:
    assert check_job(default_name(source))


@pytest.mark.parametrize(
    "words", [("copy", "/dev/x", "/y", "--order", "fast"), ("order", "j", "--by", "fast")]
)
def test_order_that_there_is_not_is_told_in_the_users_words(
    words: tuple[str, ...], context: Context, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words, context) == 2
    assert "(choose from 'sequential', 'hot', 'cow')" in capsys.readouterr().err


def test_setup_says_what_it_would_do_and_does_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr("dmcopy.jobs.installation.program", lambda: Path("/opt/dmcopy/bin/dmcopy"))
    places = Places(tmp_path / "state", tmp_path / "run", tmp_path / "etc", tmp_path / "rules")
    context = Context(dm=FakeDm(), places=places)
    assert main(["setup", "--dry-run", "--json"], context) == 0
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    rule = {"event": "setup", "action": "install", "what": f"{tmp_path}/rules/57-dmcopy.rules"}
    assert {**rule, "done": False} in said
    assert main(["setup", "--undo"], context) == 0
    assert capsys.readouterr().out == "nothing was set up\n"
    assert list(tmp_path.iterdir()) == []


def test_resume_of_a_live_job_does_not_promise_to_verify(
    context: Context, capsys: pytest.CaptureFixture[str]
) -> None:
    places = context.places
    assert places is not None
    with Journal(places.journal) as journal:
        journal.define("a", {"source": "/dev/mapper/data", "destination": "block:/dev/x"})
    with JobLock(places.locks, "a"):
        assert main(["resume", "a", "--verify"], context) == 3
    said = capsys.readouterr().err
    assert f"process {os.getpid()} has job a, and was not asked to verify; kill -INT" in said
