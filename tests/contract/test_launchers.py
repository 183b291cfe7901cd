"""The promises of a launcher, for both of them, with harmless programs run for real."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from dmcopy.errors import ProgramMissing
from dmcopy.kernel.command import Launcher, launch_sh, launch_subprocess
from tests.unit.waiting import runs, until

LIMIT = 30.0


@pytest.fixture(params=[launch_sh, launch_subprocess], ids=["sh", "subprocess"])
def launch(request: pytest.FixtureRequest) -> Launcher:
    launcher: Launcher = request.param
    return launcher


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


@pytest.mark.parametrize("status", [0, 1, 5, 255])
def test_status_is_given_and_raises_nothing(launch: Launcher, status: int) -> None:
    completed = launch(["sh", "-c", f"exit {status}"], None, LIMIT)
    assert completed.status == status
    assert not completed.timed_out
    assert completed.argv == ("sh", "-c", f"exit {status}")


def test_signal_is_a_negative_status(launch: Launcher) -> None:
    assert launch(["sh", "-c", "kill -TERM $$"], None, LIMIT).status == -15


def test_both_outputs_are_whole_and_apart(launch: Launcher) -> None:
    code = """
import sys
for n in range(40000):
    sys.stdout.write(f"out line {n:08d} and some more words\\n")
    sys.stderr.write(f"err line {n:08d} and some more words\\n")
"""
    completed = launch(python(code), None, LIMIT)
    assert completed.status == 0
    for name, text in (("out", completed.stdout), ("err", completed.stderr)):
        assert len(text) > 1 << 20
        lines = [f"{name} line {n:08d} and some more words" for n in range(40000)]
        assert text.splitlines() == lines


def test_output_without_a_newline_is_whole(launch: Launcher) -> None:
    completed = launch(["printf", "a\\tb"], None, LIMIT)
    assert completed.stdout == "a\tb"


def test_newlines_are_not_translated(launch: Launcher) -> None:
    assert launch(["printf", "a\\nb\\n"], None, LIMIT).stdout == "a\nb\n"


def test_bytes_that_are_no_text_do_not_raise(launch: Launcher) -> None:
    assert launch(["printf", "\\377"], None, LIMIT).stdout == "\ufffd"


def test_stdin_is_at_its_end_when_none_is_given(launch: Launcher) -> None:
    completed = launch(["cat"], None, LIMIT)
    assert (completed.status, completed.stdout) == (0, "")


@pytest.mark.parametrize("size", [0, 10, 3 << 20])
def test_stdin_arrives_whole(launch: Launcher, size: int) -> None:
    text = "0123456789abcde\n" * (size // 16) + "x" * (size % 16)
    completed = launch(["cat"], text, LIMIT)
    assert completed.stdout == text


def test_program_that_does_not_read_its_stdin_is_no_failure(launch: Launcher) -> None:
    assert launch(["true"], "x" * (1 << 20), LIMIT).status == 0


def test_nothing_is_a_terminal(launch: Launcher) -> None:
    code = "import os; print([os.isatty(fd) for fd in (0, 1, 2)])"
    assert launch(python(code), None, LIMIT).stdout == "[False, False, False]\n"


def test_program_leads_a_session_of_its_own(launch: Launcher) -> None:
    code = "import os; print(os.getsid(0) == os.getpid())"
    assert launch(python(code), None, LIMIT).stdout == "True\n"


def test_no_descriptor_of_ours_is_inherited(launch: Launcher, tmp_path: Path) -> None:
    path = tmp_path / "held"
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    os.set_inheritable(fd, True)
    try:
        completed = launch(["sh", "-c", "readlink /proc/self/fd/*"], None, LIMIT)
    finally:
        os.close(fd)
    assert str(path) not in completed.stdout


def test_time_limit_kills_the_whole_group(launch: Launcher, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    script = f"sleep 300 & echo $! >{pids}; echo $$ >>{pids}; echo said; wait"
    started = time.monotonic()
    completed = launch(["sh", "-c", script], None, 0.5)
    assert time.monotonic() - started < 5
    assert completed.timed_out
    assert completed.status == -9
    assert completed.stdout == "said\n"
    group = [int(pid) for pid in pids.read_text().split()]
    until(lambda: not any(map(runs, group)), 5.0)


def test_short_programs_cost_no_tenth_of_a_second(launch: Launcher) -> None:
    launch(["true"], None, LIMIT)
    seconds = sorted(launch(["true"], None, LIMIT).seconds for _ in range(9))
    assert seconds[4] < 0.08


def test_messages_are_english(launch: Launcher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    monkeypatch.setenv("LANGUAGE", "de")
    script = 'echo "$LC_ALL-${LANGUAGE-unset}"'
    assert launch(["sh", "-c", script], None, LIMIT).stdout == "C-unset\n"


def test_lvm_variables_are_stripped(launch: Launcher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LVM_SYSTEM_DIR", "/nowhere")
    monkeypatch.setenv("DM_DISABLE_UDEV", "1")
    script = 'echo "${LVM_SYSTEM_DIR-unset} $DM_DISABLE_UDEV"'
    assert launch(["sh", "-c", script], None, LIMIT).stdout == "unset 1\n"


def test_system_programs_are_found_without_sbin_in_path(
    launch: Launcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    path = launch(["sh", "-c", "echo $PATH"], None, LIMIT).stdout.strip().split(":")
    assert {"/usr/sbin", "/sbin"} <= set(path)
    if os.path.exists("/usr/sbin/losetup") or os.path.exists("/sbin/losetup"):
        assert launch(["losetup", "--version"], None, LIMIT).status == 0


def test_missing_program_says_so(launch: Launcher) -> None:
    with pytest.raises(ProgramMissing, match="dmcopy-no-such-program is not installed"):
        launch(["dmcopy-no-such-program", "x"], None, LIMIT)


def test_strange_arguments_arrive_as_they_are(launch: Launcher) -> None:
    words = ["", " ", "a b", "--x=y", "*", "$HOME", "'", '"', "\\", "ü", "a\nb"]
    code = "import sys; print(ascii(sys.argv[1:]))"
    assert launch([*python(code), *words], None, LIMIT).stdout == ascii(words) + "\n"
