"""By which words the agent has something done, and what it makes of the answer."""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from dmcopy.agent.launch import Launcher, unit_looks_in
from dmcopy.agent.request import Asked, Request, take
from dmcopy.errors import DmcopyError, EndedElsewhere, UsageError
from dmcopy.jobs.spec import Places
from dmcopy.kernel.command import Commander, Completed
from dmcopy.kernel.own_code import helper

PLANNED = '{"event": "planned", "job": "data-1"}\n'


def answered(message: str = "", status: int = 0) -> str:
    return json.dumps({"event": "answered", "message": message, "exit_status": status}) + "\n"


class Programs:
    def __init__(self, status: int = 0, out: str = PLANNED, err: str = "") -> None:
        self.argv: tuple[str, ...] = ()
        self._end = (status, out, err)

    def __call__(self, argv: Sequence[str], _stdin: str | None, _timeout: float) -> Completed:
        self.argv = tuple(argv)
        return Completed(self.argv, *self._end, 0.1)


def test_job_is_a_scope_of_systemd_with_its_name() -> None:
    programs = Programs()
    said = Launcher(Commander(programs), in_scope=True).copy(["/dev/a", "/dev/b", "--name", "x"])
    assert said.of_kind("planned") == {"event": "planned", "job": "data-1"}
    assert programs.argv[:2] == ("systemd-run", "--scope")
    (unit,) = (word for word in programs.argv if word.startswith("--unit="))
    assert unit.startswith("--unit=dmcopy-job-x-")
    after = programs.argv[programs.argv.index("--") + 1 :]
    assert after == (
        *helper("dmcopy"), "copy", "--detach", "--no-agent", "--json",
        "/dev/a", "/dev/b", "--name", "x",
    )  # fmt: skip


def test_without_systemd_it_is_the_command_alone(tmp_path: Path) -> None:
    programs = Programs()
    Launcher(Commander(programs), in_scope=False).copy(["a", "b"], directory=str(tmp_path))
    assert programs.argv[:3] == ("env", f"--chdir={tmp_path}", sys.executable)


@pytest.mark.parametrize("word", ["--json", "--detach", "--dry-run", "--no-agent"])
def test_words_that_are_the_agents_are_refused(word: str) -> None:
    programs = Programs()
    with pytest.raises(UsageError, match=word):
        Launcher(Commander(programs), in_scope=False).copy(["a", "b", word])
    assert programs.argv == ()


@pytest.mark.parametrize("directory", ["relative", "/no/such/directory"])
def test_directory_that_is_none_is_refused(directory: str) -> None:
    with pytest.raises(UsageError, match=directory):
        Launcher(Commander(Programs()), in_scope=False).copy(["a", "b"], directory=directory)


def test_failure_has_the_line_and_the_status_of_the_command() -> None:
    programs = Programs(3, "", "dmcopy: /dev/b is mounted on /\n")
    with pytest.raises(EndedElsewhere, match=r"^/dev/b is mounted on /$") as caught:
        Launcher(Commander(programs), in_scope=True).copy(["/dev/a", "/dev/b"])
    assert caught.value.exit_status == 3


class Unit:
    """systemctl, and what the unit does when it is started: it takes the request and answers."""

    def __init__(
        self, asked: Path, *, status: int = 0, answer: str | None = None, err: str = ""
    ) -> None:
        self.asked = asked
        self.loaded = "loaded"
        self.request: Request | None = None
        self.unit = ""
        self.takes = True
        self.states = ["failed"]
        self._end = (status, "", err)
        self._answer = PLANNED + answered() if answer is None else answer

    def __call__(self, argv: Sequence[str], _stdin: str | None, _timeout: float) -> Completed:
        if tuple(argv[:3]) == ("systemctl", "show", "--property=LoadState"):
            return Completed(tuple(argv), 0, self.loaded + "\n", "", 0.0)
        if tuple(argv[:3]) == ("systemctl", "show", "--property=ActiveState"):
            return Completed(tuple(argv), 0, self.states.pop(0) + "\n", "", 0.0)
        if self.loaded == "not-found":
            self.unit = " ".join(argv)
            return Completed(tuple(argv), 0, PLANNED, "", 0.0)
        assert tuple(argv[:3]) == ("systemctl", "start", "--")
        self.unit = argv[3]
        (path,) = self.asked.iterdir()
        assert self.unit == f"dmcopy-job@{path.name}.service"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        if self.takes:
            self.request, answer = take(self.asked, path.name)
            with answer:
                answer.write(self._answer)
        return Completed(tuple(argv), *self._end, 0.0)

    def launcher(self) -> Launcher:
        return Launcher(Commander(self), in_scope=True, asked=self.asked)


def test_job_is_asked_of_its_unit_and_nothing_stays_in_the_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DMCOPY_STATE_DIR", "/srv/state")
    unit = Unit(tmp_path / "asked")
    said = unit.launcher().copy(["a", "b", "--name", "x y/\u00e9"], directory=str(tmp_path))
    assert said.of_kind("planned") == {"event": "planned", "job": "data-1"}
    assert unit.unit.startswith("dmcopy-job@x-y-")
    assert unit.unit.isascii()
    assert unit.request is not None
    assert unit.request.words == (
        "copy", "--detach", "--no-agent", "--json", "a", "b", "--name", "x y/\u00e9",
    )  # fmt: skip
    assert unit.request.directory == str(tmp_path)
    assert unit.request.environment["DMCOPY_STATE_DIR"] == "/srv/state"
    assert stat.S_IMODE(unit.asked.stat().st_mode) == 0o700
    assert list(unit.asked.iterdir()) == []


def test_what_works_on_devices_is_the_units_and_the_rest_a_childs(tmp_path: Path) -> None:
    unit = Unit(tmp_path, answer="given up\n" + answered())
    assert unit.launcher().have("cancel", "x").events == ()
    assert unit.request == Request(("cancel", "x"), None, unit.request.environment)  # type: ignore[union-attr]
    unit.loaded = "not-found"
    unit.launcher().have("cancel", "x")
    assert unit.unit == " ".join(helper("dmcopy", "cancel", "x"))
    unit.launcher().copy(["a", "b"])
    assert unit.unit.startswith("systemd-run --scope"), "without the unit a job is a scope"


@pytest.mark.parametrize(
    ("answer", "message", "status"),
    [
        (PLANNED + answered("b is mounted on /", 3), "b is mounted on /", 3),
        (
            '{"event": "ended", "error": "the hook failed"}\n' + answered("", 1),
            "the hook failed",
            1,
        ),
        (answered("", 4), "exit status 4", 4),
        (PLANNED, "it failed; see: journalctl -u UNIT", 1),  # it was killed
    ],
)
def test_failure_of_the_unit_has_line_and_status(
    tmp_path: Path, answer: str, message: str, status: int
) -> None:
    unit = Unit(tmp_path, status=1, answer=answer, err="it failed.\nSee systemctl status.\n")
    with pytest.raises(EndedElsewhere) as caught:
        unit.launcher().resume("x")
    assert str(caught.value) == message.replace("UNIT", unit.unit)
    assert caught.value.exit_status == status
    assert list(tmp_path.iterdir()) == []


def test_what_failed_after_the_begin_time_is_not_the_askers(tmp_path: Path) -> None:
    unit = Unit(tmp_path, answer=PLANNED + answered() + answered("later", 1))
    assert [one["event"] for one in unit.launcher().resume("x").events] == ["planned"]


def test_wait_that_an_upgrade_of_systemd_ends_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dmcopy.agent.launch._LOOK_SECONDS", 0.001)
    unit = Unit(tmp_path, status=1, err="Warning! D-Bus connection terminated.\n")
    unit.states = ["", "activating", "activating", "active"]
    assert unit.launcher().resume("x").events == ({"event": "planned", "job": "data-1"},)
    assert unit.states == []


def test_question_that_nobody_took_is_taken_back(tmp_path: Path) -> None:
    unit = Unit(tmp_path, status=1, err="Unit dmcopy-job@x.service is masked.\n")
    unit.takes = False
    with pytest.raises(EndedElsewhere, match="is masked"):
        unit.launcher().policy("nightly")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(DmcopyError, match="nothing is asked"):
        take(tmp_path, "x")


def test_answer_comes_though_the_file_is_gone_and_a_stale_one_is_swept(tmp_path: Path) -> None:
    (tmp_path / "stale").write_text("{}")
    os.utime(tmp_path / "stale", (0, 0))
    with Asked(tmp_path, "x", Request(("plan",))) as asked:
        assert [path.name for path in tmp_path.iterdir()] == ["x"]
        request, answer = take(tmp_path, "x")
        assert request == Request(("plan",))
        assert list(tmp_path.iterdir()) == []
        with answer:
            answer.write("one\n")
            assert asked.answer() == "one\n"
            answer.end(3, "no")
            answer.end(0)
            answer.write("two\n")
        assert (
            asked.answer()
            == "one\n" + json.dumps({"event": "answered", "exit_status": 3, "message": "no"}) + "\n"
        )


@pytest.mark.parametrize("text", ["", "[]", '{"words": 1}', '{"words": ["a"]}', "{"])
def test_request_that_cannot_be_read_is_refused_and_removed(tmp_path: Path, text: str) -> None:
    (tmp_path / "x").write_text(text)
    with pytest.raises(DmcopyError, match="cannot be read"):
        take(tmp_path, "x")
    assert list(tmp_path.iterdir()) == []


def test_unit_is_used_by_who_has_its_places(monkeypatch: pytest.MonkeyPatch) -> None:
    usual, other = Places(Path("/s"), Path("/run/dmcopy")), Places(Path("/s"), Path("/tmp/r"))
    monkeypatch.delenv("SYSTEMD_EXEC_PID", raising=False)
    assert unit_looks_in(usual) == Path("/run/dmcopy/asked")
    assert unit_looks_in(other) is None, "by hand, with places of its own"
    monkeypatch.setenv("SYSTEMD_EXEC_PID", str(os.getpid()))
    assert unit_looks_in(other) == Path("/tmp/r/asked")
