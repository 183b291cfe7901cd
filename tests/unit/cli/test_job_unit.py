"""What dmcopy-job@.service runs: the asker's words, and what the asker and systemd hear of them."""

from __future__ import annotations

import argparse
import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dmcopy.agent.request import Asked, Request
from dmcopy.cli import job_unit, rescue
from dmcopy.cli.common import Context
from dmcopy.cli.main import main
from dmcopy.cli.running import Report, detached
from dmcopy.core import events
from dmcopy.errors import Interrupted
from dmcopy.jobs.spec import Places

BEGUN = events.Resumed(job="j", begin_time="2026-01-01T00:00:00Z", bytes_done=1)
WARNED = events.Warned(job="j", message="later")


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return Context(places=Places(tmp_path / "state", tmp_path / "run"))


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], list[str]]]:
    """Give what systemd is told."""
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.setblocking(False)

        def read() -> list[str]:
            found = []
            while True:
                try:
                    found.append(listening.recv(4096).decode())
                except BlockingIOError:
                    return found

        yield read


def ask(
    context: Context, monkeypatch: pytest.MonkeyPatch, work: Callable[[Context], int]
) -> tuple[int, list[dict[str, Any]], Asked]:  # Any: JSON
    """Have the unit do *work*, as if it were what some words mean."""
    places = context.places
    assert places is not None
    real = job_unit._parsed

    def parsed(words: list[str]) -> argparse.Namespace:
        if words[0] != "work":
            return real(words)
        return argparse.Namespace(run=lambda arguments, there: work(there))

    monkeypatch.setattr(job_unit, "_parsed", parsed)
    request = Request(("work", "--hard"), str(places.runtime), {"DMCOPY_TEST": "told"})
    with Asked(places.asked, "x", request) as asked:
        status = main(["agent", "--job", "x"], context)
        answer = [json.loads(line) for line in asked.answer().splitlines()]
    return status, answer, asked


def test_asker_hears_all_up_to_the_begin_time_and_systemd_that_it_is_fixed(
    context: Context, told: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DMCOPY_TEST", "")
    before = os.getcwd()
    assert context.places is not None
    seen: list[object] = []

    def work(report: Report) -> int:
        assert context.places is not None
        seen.extend([os.getcwd(), os.environ["DMCOPY_TEST"], list(context.places.asked.iterdir())])
        report(WARNED)
        seen.append(told())
        report(BEGUN)
        seen.append(told())
        report(WARNED)
        return 0

    def run(there: Context) -> int:
        return detached("j", there, as_json=True, work=work)

    try:
        status, answer, _ = ask(context, monkeypatch, run)
    finally:
        os.chdir(before)
    assert status == 0
    assert seen == [str(context.places.runtime), "told", [], [], ["READY=1"]]
    assert [one["event"] for one in answer] == ["warning", "resumed", "answered"]
    assert answer[-1]["exit_status"] == 0


def test_interruption_before_the_begin_time_is_told_with_its_status(
    context: Context,
    told: Callable[[], list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = os.getcwd()

    def run(there: Context) -> int:
        def work(report: Report) -> int:
            raise Interrupted("interrupted by SIGTERM")

        return detached("j", there, as_json=True, work=work)

    try:
        status, answer, _ = ask(context, monkeypatch, run)
    finally:
        os.chdir(before)
    assert (status, told()) == (5, [])
    assert answer == [{"event": "answered", "message": "interrupted by SIGTERM", "exit_status": 5}]
    assert capsys.readouterr().err == "dmcopy: interrupted by SIGTERM\n", "for the journal"


def test_what_has_no_begin_time_is_started_when_it_is_done(
    context: Context, told: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = os.getcwd()

    def run(_there: Context) -> int:
        print('{"event": "planned"}')
        return 0

    try:
        status, answer, _ = ask(context, monkeypatch, run)
    finally:
        os.chdir(before)
    assert (status, told()) == (0, ["READY=1"])
    assert answer[0] == {"event": "planned"}
    assert answer[1:] == [{"event": "answered", "message": "", "exit_status": 0}]


def test_nothing_asked_is_nothing_done(
    context: Context, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["agent", "--job", "x"], context) == 1
    assert "nothing is asked in" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("end", "rescues"),
    [
        (("success", "exited", "0"), False),
        (("success", "exited", "5"), False),  # SuccessExitStatus=
        (("exit-code", "exited", "3"), False),  # refused: nothing was changed
        (("exit-code", "exited", "2"), False),
        (("exit-code", "exited", "1"), True),
        (("exit-code", "exited", "6"), True),
        (("signal", "killed", "KILL"), True),
        (("signal", "killed", "3"), True),
        (("protocol", "exited", "0"), True),
        (("timeout", "killed", "TERM"), True),
    ],
)
def test_rescue_unless_it_ended_well(
    context: Context, monkeypatch: pytest.MonkeyPatch, end: tuple[str, ...], rescues: bool
) -> None:
    assert context.places is not None
    context.places.asked.mkdir(parents=True)
    (context.places.asked / "x").write_text("")
    done = []

    def run(_arguments: argparse.Namespace, _context: Context) -> int:
        done.append("rescue")
        return 0

    monkeypatch.setattr(rescue, "run", run)
    for name, value in zip(("SERVICE_RESULT", "EXIT_CODE", "EXIT_STATUS"), end, strict=True):
        monkeypatch.setenv(name, value)
    assert main(["agent", "--job-over", "x"], context) == 0
    assert done == (["rescue"] if rescues else [])
    assert list(context.places.asked.iterdir()) == [], "it is not asked any more"


def test_help_does_not_speak_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["agent", "--help"])
    assert "--job" not in capsys.readouterr().out
