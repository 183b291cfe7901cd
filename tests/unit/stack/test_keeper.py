"""Hooks around an instant, with real small programs: what is run when, and never left out."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from dmcopy.errors import DmcopyError, HookFailed, Interrupted
from dmcopy.kernel.command import Process, start_process
from dmcopy.stack.charge import Charge, Mended, mend
from dmcopy.stack.keeper import Keeper
from tests.unit.waiting import until

pytestmark = [pytest.mark.forks, pytest.mark.timeout(90)]

SESSION = """
    echo ready
    cat >/dev/null
    say released
"""


class Rig:
    """Hooks in a directory; each says in one log what it does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "log"
        self.log.touch()
        self.records = folder / "keepers"
        self.hooks: list[tuple[str, ...]] = []
        self.pid: int | None = None

    def hook(self, name: str, before: str, after: str = "") -> str:
        """Write a hook; it says its name and side before it does anything else."""
        path = self.folder / name
        sides = {side: textwrap.dedent(text) for side, text in (("b", before), ("a", after))}
        path.write_text(
            f"#!/bin/sh\nsay() {{ echo {name} $* >>{self.log}; }}\nsay $1 $DMCOPY_OUTCOME\n"
            f"case $1 in\nbefore)\n{sides['b']}\n;;\nafter)\n{sides['a']}\n;;\nesac\n"
        )
        path.chmod(0o755)
        self.hooks.append((str(path),))
        return str(path)

    @property
    def said(self) -> list[str]:
        return [line.strip() for line in self.log.read_text().splitlines()]

    def say(self, what: str) -> None:
        with self.log.open("a") as log:
            log.write(f"{what}\n")

    def charge(self, timeout: float = 10.0) -> Charge:
        return Charge(
            job="j",
            record=str(self.records / "j-1"),
            hooks=tuple(self.hooks),
            environment={"DMCOPY_JOB": "j"},
            timeout=timeout,
            limit=2.0,
        )

    def keeper(self, *, timeout: float = 10.0) -> Keeper:
        def start(argv: Sequence[str]) -> Process:
            process = start_process(argv)
            self.pid = process.pid
            return process

        return Keeper(lambda: self.charge(timeout), start=start)

    def run(self, keeper: Keeper, body: Callable[[], object] = lambda: None) -> None:
        with keeper.around_instant():
            self.say("instant")
            body()


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


def told(keeper: Keeper) -> list[tuple[str, str, str]]:
    return [(one.name, one.side, one.status) for one in keeper.told]


def assert_over(rig: Rig) -> None:
    """Nothing is owed, and the keeper is gone."""
    assert not list(rig.records.iterdir())
    if rig.pid is not None:
        with pytest.raises(ProcessLookupError):
            os.kill(rig.pid, 0)


def test_hooks_are_run_around_the_instant_the_last_one_first_after_it(rig: Rig) -> None:
    rig.hook("one", "")
    rig.hook("two", "")
    keeper = rig.keeper()
    rig.run(keeper)
    want = ["one before", "two before", "instant", "two after begun", "one after begun"]
    assert rig.said == want
    assert [one.status for one in keeper.told] == ["done"] * 4
    assert keeper.warnings == []
    assert keeper.frozen is None
    assert_over(rig)


def test_session_holds_across_the_instant(rig: Rig) -> None:
    rig.hook("db", SESSION)
    keeper = rig.keeper()
    rig.run(keeper, lambda: time.sleep(0.2))
    assert rig.said == ["db before", "instant", "db released", "db after begun"]
    assert told(keeper) == [
        ("db", "before", "ready"), ("db", "session", "done"), ("db", "after", "done")
    ]  # fmt: skip
    assert_over(rig)


def test_sessions_let_go_before_any_after_side_is_run(rig: Rig) -> None:
    rig.hook("db", SESSION)
    rig.hook("slow", SESSION, "sleep 0.3; say slept")
    rig.run(rig.keeper())
    assert rig.said[2:] == [
        "instant", *rig.said[3:5], "slow after begun", "slow slept", "db after begun"
    ]  # fmt: skip
    assert sorted(rig.said[3:5]) == ["db released", "slow released"]


def test_hook_that_fails_keeps_the_instant_from_coming(rig: Rig) -> None:
    rig.hook("one", "")
    rig.hook("bad", "echo nonsense; echo the disk is on fire >&2; exit 3", "exit 4")
    rig.hook("never", "")
    keeper = rig.keeper()
    with pytest.raises(HookFailed, match="hook bad before: ended with status 3: the disk is on fi"):
        rig.run(keeper)
    want = ["one before", "bad before", "bad after failed", "one after failed"]
    assert rig.said == want
    assert keeper.warnings == [
        "hook bad after: ended with status 4; what it was to undo may not be undone"
    ]
    assert_over(rig)


def test_hook_that_hangs_is_ended_with_what_it_started(rig: Rig) -> None:
    rig.hook("stuck", f"sleep 100 & echo $! >{rig.folder}/pid; echo waiting >&2; wait")
    started = time.monotonic()
    with pytest.raises(HookFailed, match=r"stuck before: it did not end within 2 s: waiting"):
        rig.run(rig.keeper(timeout=2.0))
    assert time.monotonic() - started < 20
    assert rig.said == ["stuck before", "stuck after failed"]
    pid = int((rig.folder / "pid").read_text())
    until(lambda: not Path(f"/proc/{pid}/fd").exists())
    assert_over(rig)


def test_hook_that_will_not_end_is_killed(rig: Rig) -> None:
    rig.hook("deaf", "trap '' TERM; while :; do sleep 1; done")
    with pytest.raises(HookFailed, match="did not end within"):
        rig.run(rig.keeper(timeout=1.0))
    assert rig.said == ["deaf before", "deaf after failed"]
    assert_over(rig)


@pytest.mark.parametrize(
    ("prints", "ends"),
    [
        ("head -c 3000000 /dev/zero", "0"),
        ("head -c 3000000 /dev/zero >&2", "0"),
        ("yes garbage | head -n 200000", "0"),
        ("echo already; printf 'ready to serve\\n'; printf ready", "0"),
    ],
)
def test_garbage_is_neither_ready_nor_in_the_way(rig: Rig, prints: str, ends: str) -> None:
    rig.hook("loud", f"{prints}; exit {ends}")
    keeper = rig.keeper()
    rig.run(keeper)
    assert told(keeper) == [("loud", "before", "done"), ("loud", "after", "done")]


def test_message_of_a_hook_is_one_printable_line(rig: Rig) -> None:
    rig.hook("loud", "printf 'first\\nse\\033[31mcond\\377\\n\\n' >&2; exit 1")
    with pytest.raises(HookFailed) as caught:
        rig.run(rig.keeper())
    assert str(caught.value) == "hook loud before: ended with status 1: second�".replace(
        "second", "se?[31mcond"
    )


def test_ready_and_ended_at_once_is_no_session(rig: Rig) -> None:
    rig.hook("brief", "echo ready")
    with pytest.raises(HookFailed, match="brief"):
        rig.run(rig.keeper(), lambda: time.sleep(0.3))
    assert rig.said[-1] == "brief after failed"


def test_session_killed_before_the_instant_is_noticed_after_it(rig: Rig) -> None:
    rig.hook("db", f"echo $$ >{rig.folder}/pid" + SESSION)
    keeper = rig.keeper()

    def kill() -> None:
        os.kill(int((rig.folder / "pid").read_text()), signal.SIGKILL)
        time.sleep(0.5)

    with pytest.raises(
        HookFailed, match=r"hook db session: it was killed by SIGKILL before it was"
    ):
        rig.run(keeper, kill)
    assert rig.said == ["db before", "instant", "db after failed"]
    assert ("db", "session", "ended early") in told(keeper)
    assert_over(rig)


def test_session_that_says_it_did_not_hold_makes_the_instant_useless(rig: Rig) -> None:
    rig.hook("db", "echo ready; cat >/dev/null; echo server has gone away >&2; exit 1")
    with pytest.raises(HookFailed, match=r"db session: ended with status 1: server has gone away"):
        rig.run(rig.keeper())
    assert rig.said[-1] == "db after failed"


def test_session_that_does_not_let_go_is_ended_and_not_trusted(rig: Rig) -> None:
    rig.hook("db", "echo ready; exec sleep 100")
    with pytest.raises(HookFailed, match=r"db session: it did not end within 2 s"):
        rig.run(rig.keeper(timeout=2.0))
    assert_over(rig)


def test_session_that_died_while_another_hook_ran_is_noticed_before_the_instant(rig: Rig) -> None:
    rig.hook("db", "echo ready; sleep 0.2")
    rig.hook("slow", "sleep 1.5")
    with pytest.raises(HookFailed, match=r"db session: it ended with status 0 before"):
        rig.run(rig.keeper())
    assert "instant" not in rig.said
    assert rig.said[-2:] == ["slow after failed", "db after failed"]


@pytest.mark.parametrize("after", ["exit 7", "sleep 100"])
def test_after_side_that_fails_is_a_warning(rig: Rig, after: str) -> None:
    rig.hook("one", "", "say too")
    rig.hook("bad", "", after)
    keeper = rig.keeper(timeout=2.0)
    rig.run(keeper)
    assert rig.said[-2:] == ["one after begun", "one too"]
    (warning,) = keeper.warnings
    assert warning.startswith("hook bad after: ")
    assert "the image is right" in warning
    assert_over(rig)


def test_after_sides_are_run_when_the_instant_fails(rig: Rig) -> None:
    rig.hook("db", SESSION)

    def fail() -> None:
        raise DmcopyError("no swap")

    with pytest.raises(DmcopyError, match="no swap"):
        rig.run(rig.keeper(), fail)
    assert rig.said == ["db before", "instant", "db released", "db after failed"]


def test_interrupted_in_before_everything_is_undone(rig: Rig) -> None:
    rig.hook("db", SESSION)
    rig.hook("slow", f"touch {rig.folder}/here; sleep 100")

    def interrupt(_number: int, _frame: object) -> None:
        raise Interrupted("interrupted")

    def send(to: int) -> None:
        until((rig.folder / "here").exists)
        signal.pthread_kill(to, signal.SIGALRM)

    before = signal.signal(signal.SIGALRM, interrupt)
    sender = threading.Thread(target=send, args=[threading.get_ident()], daemon=True)
    sender.start()
    try:
        started = time.monotonic()
        with pytest.raises(Interrupted):
            rig.run(rig.keeper(timeout=50.0))
        assert time.monotonic() - started < 10
    finally:
        signal.signal(signal.SIGALRM, before)
    assert "instant" not in rig.said
    want = ["db before", "slow before", "db released", "slow after failed", "db after failed"]
    assert rig.said == want
    assert_over(rig)


CONTROL = """
import sys, time
from tests.unit.stack.test_keeper import Rig
from pathlib import Path
rig = Rig(Path(sys.argv[1]))
rig.hooks = [(path,) for path in sys.argv[2:]]
rig.run(rig.keeper(), lambda: time.sleep(100))
"""


def test_killed_control_leaves_no_lock_and_no_side_undone(rig: Rig) -> None:
    hook = rig.hook("db", SESSION)
    argv = [sys.executable, "-c", CONTROL, str(rig.folder), hook]
    with subprocess.Popen(argv, start_new_session=True) as control:
        until(lambda: "instant" in rig.said)
        control.kill()
    until(lambda: rig.said[-2:] == ["db released", "db after failed"])
    until(lambda: not list(rig.records.iterdir()))


def test_control_that_takes_too_long_loses_its_lock(rig: Rig) -> None:
    rig.hook("db", SESSION)
    with pytest.raises(HookFailed, match=r"did not come about within 2 s"):
        rig.run(rig.keeper(timeout=2.0), lambda: time.sleep(3))
    assert rig.said == ["db before", "instant", "db released", "db after failed"]


def test_killed_keeper_is_stood_in_for_by_control(rig: Rig) -> None:
    rig.hook("db", SESSION)

    def kill() -> None:
        assert rig.pid is not None
        os.kill(rig.pid, signal.SIGKILL)

    with pytest.raises(HookFailed, match=r"keeps hooks and frozen file systems was killed"):
        rig.run(rig.keeper(), kill)
    until(lambda: "db released" in rig.said)
    assert "db after failed" in rig.said
    assert_over(rig)


def test_keeper_and_control_both_killed_are_mended(rig: Rig) -> None:
    hook = rig.hook("db", SESSION)
    argv = [sys.executable, "-c", CONTROL, str(rig.folder), hook]
    with subprocess.Popen(argv, start_new_session=True) as control:
        until(lambda: "instant" in rig.said)
        assert mend(rig.records) == []  # its keeper lives
        (record,) = rig.records.iterdir()
        assert json.loads(record.read_text().split("\n")[0])["begun"] == 1
        (keeper,) = Path(f"/proc/{control.pid}/task/{control.pid}/children").read_text().split()
        control.send_signal(signal.SIGSTOP)
        os.kill(int(keeper), signal.SIGKILL)
        control.kill()
    until(lambda: "db released" in rig.said)  # its stdin ended
    assert "db after failed" not in rig.said
    (owed,) = mend(rig.records, dry_run=True)
    assert owed.left == [f"hook {hook} after to be run"]
    assert mend(rig.records, "other") == []
    assert mend(rig.records) == [Mended("j", ["ran db after"], [])]
    assert rig.said[-1] == "db after failed"
    assert mend(rig.records) == []


def test_nothing_to_keep_starts_nothing(rig: Rig) -> None:
    rig.run(rig.keeper())
    assert rig.pid is None
    assert rig.said == ["instant"]


def test_hook_that_cannot_be_run_is_said(rig: Rig) -> None:
    path = rig.hook("odd", "")
    Path(path).write_text("#!/no/such/interpreter\n")
    with pytest.raises(HookFailed, match=r"hook odd before: .*(not installed|cannot start)"):
        rig.run(rig.keeper())
