"""`Commander` with a launcher that only remembers; `Process` with real helpers."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

import pytest

from dmcopy.errors import CommandFailed, DmcopyError, ProgramMissing
from dmcopy.kernel import command
from dmcopy.kernel.command import (
    Commander,
    Completed,
    always_running,
    launch_sh,
    launch_subprocess,
    search_path,
    start_process,
)
from tests.unit.waiting import runs, until


class Launches:
    """A launcher that starts nothing and answers *answer*."""

    def __init__(self, status: int = 0, *, stderr: str = "", timed_out: bool = False) -> None:
        self.seen: list[tuple[tuple[str, ...], str | None, float]] = []
        self._answer = (status, stderr, timed_out)

    def __call__(self, argv: Sequence[str], stdin: str | None, timeout: float) -> Completed:
        self.seen.append((tuple(argv), stdin, timeout))
        status, stderr, timed_out = self._answer
        return Completed(tuple(argv), status, "out", stderr, 0.01, timed_out)


def test_arguments_input_and_limit_reach_the_launcher() -> None:
    launches = Launches()
    completed = Commander(launches).run("dmsetup", "table", "--", "x", stdin="text", timeout=3)
    assert launches.seen == [(("dmsetup", "table", "--", "x"), "text", 3)]
    assert completed.stdout == "out"


def test_unaccepted_status_raises_with_what_the_tool_said() -> None:
    run = Commander(Launches(5, stderr="first\nDevice x not found\n"))
    with pytest.raises(CommandFailed, match="dmsetup returned 5: Device x not found") as caught:
        run.run("dmsetup", "table", "x")
    assert caught.value.argv == ("dmsetup", "table", "x")
    assert caught.value.stderr == "first\nDevice x not found\n"


def test_accepted_status_is_given() -> None:
    assert Commander(Launches(5)).run("lvs", ok=(0, 5)).status == 5


def test_time_limit_raises_without_a_status() -> None:
    with pytest.raises(CommandFailed, match="sleep timed out") as caught:
        Commander(Launches(-9, timed_out=True)).run("sleep", "9", ok=(0, -9))
    assert caught.value.status is None


def test_none_as_an_argument_is_refused() -> None:
    launches = Launches()
    with pytest.raises(TypeError, match="argument None of lvs"):
        Commander(launches).run("lvs", None)  # type: ignore[arg-type]  # what is tested
    assert launches.seen == []


def test_dry_run_leaves_out_what_changes_something(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    launches = Launches()
    run = Commander(launches, dry_run=True)
    assert run.run("dmsetup", "remove", "a b").status == 0
    run.run("dmsetup", "info", changes=False)
    assert [argv for argv, _, _ in launches.seen] == [("dmsetup", "info")]
    assert "dmsetup remove 'a b'" in caplog.text


def test_last_sixteen_are_remembered_failures_too() -> None:
    run = Commander(Launches(1, stderr="no"))
    for number in range(20):
        with pytest.raises(CommandFailed):
            run.run("x", str(number))
    assert [done.argv[1] for done in run.recent] == [str(n) for n in range(4, 20)]
    assert run.recent[-1].stderr == "no"


def test_log_line_can_be_pasted(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    Commander(Launches()).run("echo", "a b", "$x")
    assert "run: echo 'a b' '$x'" in caplog.text


def test_search_path_keeps_the_users_order_and_adds_sbin() -> None:
    path = search_path({"PATH": "/opt/bin:/usr/bin"}).split(":")
    assert path[:2] == ["/opt/bin", "/usr/bin"]
    assert "/usr/sbin" in path
    assert len(path) == len(set(path))


@pytest.mark.forks
def test_killed_program_whose_pipes_stay_open_does_not_keep_the_caller(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As of one that cannot be killed, since its device hangs."""
    monkeypatch.setattr(command, "_KILLED_SECONDS", 0.1)
    escaped = "setsid sleep 3 & wait"
    with pytest.raises(CommandFailed, match="sh timed out") as caught:
        Commander(launch_subprocess).run("sh", "-c", escaped, timeout=0.5)
    assert caught.value.status is None


def test_helper_talks_over_pipes_and_ends_when_its_stdin_closes() -> None:
    code = (
        "import sys\nfor line in sys.stdin.buffer: print(line.decode().upper(), end='', flush=True)"
    )
    process = start_process([sys.executable, "-c", code])
    try:
        process.stdin.write(b"hello\n")
        process.stdin.flush()
        assert process.stdout.read1(100) == b"HELLO\n"
        assert process.poll() is None
        assert process.wait(timeout=0.05) is None
        process.stdin.close()
        assert process.wait(timeout=10) == 0
    finally:
        process.kill()
        process.wait(timeout=10)
        process.stdout.close()


def test_helper_is_killed_with_what_it_started() -> None:
    sleep = "import subprocess; p = subprocess.Popen(['sleep', '300'])"
    code = f"{sleep}; print(p.pid, flush=True); p.wait()"
    process = start_process([sys.executable, "-c", code])
    child = int(process.stdout.readline())
    process.kill()
    assert process.wait(timeout=10) == -9
    process.kill()  # once more does nothing
    process.stdin.close()
    process.stdout.close()
    until(lambda: not runs(child), 5.0)


def test_missing_helper_says_so() -> None:
    with pytest.raises(ProgramMissing):
        start_process(["dmcopy-no-such-program"])


@pytest.mark.parametrize(
    ("raised", "why"),
    [
        (ValueError("not enough values to unpack (expected 2, got 1)"), "it was killed at once"),
        (BlockingIOError(11, "Resource temporarily unavailable"), "Resource temporarily unavail"),
        (RuntimeError("can't start new thread"), "can't start new thread"),
    ],
)
def test_program_that_cannot_be_started_is_named(
    monkeypatch: pytest.MonkeyPatch, raised: Exception, why: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise raised

    monkeypatch.setattr("sh.Command.__call__", refuse)
    with pytest.raises(DmcopyError, match=f"cannot start true: {why}"):
        launch_sh(["true"], None, 5.0)


def test_sh_of_debian_12_is_given_no_argument_that_it_does_not_know() -> None:
    assert always_running({"bg": False, "return_cmd": False}) == {"_return_cmd": True}
    assert always_running({"bg": False}) == {}, "1.14 would hand it to the program"
