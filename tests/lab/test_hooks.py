"""Hooks and frozen file systems around the begin time, on real devices and with a real dmcopy.

Stack: ext4 on a device above the source (linear, or encrypted), which suspending the source does
not freeze.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dmcopy import units
from dmcopy.cli.common import Context
from dmcopy.stack.begin import Splice
from tests.lab import harness, stamp
from tests.lab.scene import SLACK, Ran, Scene, digest, reload, scene, sectors, until
from tests.lab.stage import sh
from tests.lab.volumes import Volumes

pytestmark = [pytest.mark.lab, pytest.mark.timeout(120)]

MIB = 12
KEY = "0123456789abcdef" * 4  # 32 bytes, of aes-xts
SESSION = "echo ready; cat >/dev/null; say released"
JOB = ("--name", "hooked", "--json", "--digest", "none")


class Stack:
    """A source with a file system on a device above it."""

    def __init__(
        self,
        at: Scene,
        *,
        kind: str = "linear",
        under: str | None = None,
        source: str | None = None,
    ) -> None:
        self.at = at
        self.kind = kind
        self.source = source or at.origin(MIB, under=under)
        self.table = sh("dmsetup", "table", self.source)
        self.upper = self.over(self.source)
        sh("mkfs.ext4", "-q", "-b", "4096", self.upper)
        self.mount = at.stage.mount(self.upper)
        self.image = str(at.folder / "copy.img")
        self.log = at.folder / "log"
        self.log.touch()

    def over(self, device: str) -> str:
        """Lay the device that carries the file system over the source, or over a copy of it."""
        if self.kind == "linear":
            return self.at.stage.linear(device)
        sh("modprobe", "dm-crypt")
        size = sectors(device)
        return self.at.stage.dm(f"0 {size} crypt aes-xts-plain64 {KEY} 0 {device} 0")

    def hook(self, name: str, before: str, after: str = "") -> str:
        path = self.at.folder / name
        path.write_text(
            f"#!/bin/sh\nsay() {{ echo {name} $* >>{self.log}; }}\nsay $1 $DMCOPY_OUTCOME\n"
            f"case $1 in\nbefore)\n{before}\n;;\nafter)\n{after}\n;;\nesac\n"
        )
        path.chmod(0o755)
        return str(path)

    @property
    def said(self) -> list[str]:
        return [line.strip() for line in self.log.read_text().splitlines()]

    def copy(self, *options: str, prepare: Callable[[], Context | None] | None = None) -> Ran:
        argv = ("copy", self.source, f"image:{self.image}", *JOB, *options)
        return self.at.fork(*argv, prepare=prepare)

    def assert_not_begun(self, ran: Ran, status: int, kind: str) -> str:
        """Nothing was begun, all is as before, and the file system takes writes."""
        assert ran.status == status, ran
        assert (ran.event("ended")["kind"], ran.event("ended")["left"]) == (kind, []), ran
        assert not ran.of_kind("begun")
        self.assert_clean()
        assert not list(self.at.folder.glob("copy.img*"))
        return ran.said

    def assert_clean(self) -> None:
        assert timed_file_write(self.mount) < 1 + SLACK
        self.at.assert_back(self.source, self.table)
        until(lambda: not records(self.at), "no keeper owes anything")


def records(at: Scene) -> list[Path]:
    return list((at.folder / "runtime/keepers").glob("*"))


def timed_file_write(mount: str) -> float:
    start = time.monotonic()
    with open(f"{mount}/written", "ab") as file:
        file.write(b"x")
        file.flush()
        os.fsync(file.fileno())
    return time.monotonic() - start


@pytest.fixture
def at() -> Iterator[Scene]:
    with scene("hooks") as here:
        here.environment["DMCOPY_CONFIG_DIR"] = str(here.folder / "etc")
        yield here


@pytest.fixture
def stack(at: Scene) -> Stack:
    return Stack(at)


# frozen where lockfs does not reach


def opened(stack: Stack) -> str:
    """Lay over the copy what lies over the source; give the device with the file system."""
    return stack.over(stack.at.stage.disk(file=stack.image))


def needs_recovery(device: str) -> bool:
    return "needs_recovery" in sh("dumpe2fs", "-h", device)


@pytest.mark.parametrize("freeze", ["auto", "none"])
def test_file_system_above_the_source_is_clean_in_the_copy(at: Scene, freeze: str) -> None:
    """An encrypted one: what was dirty goes through the cipher before the instant."""
    stack = Stack(at, kind="crypt")
    content = os.urandom(1 << 20)
    stamped, log = Path(stack.mount) / "stamped", at.folder / "stamps"
    stamped.write_bytes(bytes(2 * units.MIB))
    stamp.fill(str(stamped), seed=4, processes=2)
    with harness.stamping(str(stamped), log, seed=4):
        (Path(stack.mount) / "late").write_bytes(content)  # nobody has written it out
        ran = stack.copy("--freeze", freeze)
    assert ran.status == 0, ran
    reasons = [hold["reason"] for hold in ran.of_kind("hold")]
    assert ("freeze" in reasons) == (freeze == "auto"), ran
    stack.assert_clean()
    device = opened(stack)
    assert needs_recovery(device) == (freeze == "none")
    if freeze == "auto":
        sh("e2fsck", "-fn", device)  # it replays nothing, for it changes nothing
    point = at.stage.mount(device)
    if freeze == "auto":
        assert (Path(point) / "late").read_bytes() == content
    t0 = harness.nanoseconds(ran.event("begun")["begin_time"])
    t1 = t0 + int(ran.event("begun")["hold_seconds"][0] * 1e9)
    verdict = stamp.check(f"{point}/stamped", log, 4, t0=t0, t1=t1)
    assert verdict.wrong == []
    assert verdict.writes > 0


def test_file_system_on_or_above_a_logical_volume_is_clean_in_the_copy(at: Scene) -> None:
    """Also one that a hook has frozen: then LVM's instant is made without freezing."""
    volumes = Volumes(at.stage, mib=48, disks=1)
    stack = Stack(at, kind="crypt", source=volumes.lv("encrypted", mib=MIB))
    (Path(stack.mount) / "late").write_bytes(bytes(1 << 20))
    ran = stack.copy()
    assert ran.status == 0, ran
    assert "freeze" in [hold["reason"] for hold in ran.of_kind("hold")]
    assert timed_file_write(stack.mount) < 1 + SLACK
    device = opened(stack)
    assert not needs_recovery(device)
    sh("e2fsck", "-fn", device)

    plain = volumes.lv("plain", mib=MIB)
    point = at.stage.filesystem(plain)
    hook = stack.hook("own", f"fsfreeze --freeze {point}", f"fsfreeze --unfreeze {point}")
    image = f"{at.folder}/plain.img"
    ran = at.fork("copy", plain, f"image:{image}", *JOB, "--hook", hook)
    assert ran.status == 0, ran
    (warning,) = ran.of_kind("warning")
    assert "was frozen already, by somebody else" in warning["message"]
    assert not needs_recovery(image)
    assert timed_file_write(point) < 1 + SLACK


def test_file_system_on_the_source_is_not_frozen_where_it_is_not_to_be(at: Scene) -> None:
    """With --freeze auto it is clean in the copy: test_mounted."""
    origin = at.origin(MIB)
    sh("mkfs.ext4", "-q", origin)
    at.stage.mount(origin)
    image = f"{at.folder}/copy.img"
    ran = at.fork("copy", origin, f"image:{image}", *JOB, "--freeze", "none")
    assert ran.status == 0, ran
    assert needs_recovery(image)


def test_file_system_that_a_hook_has_frozen_is_taken_as_it_is(at: Scene) -> None:
    stack = Stack(at)
    origin = at.origin(MIB)
    sh("mkfs.ext4", "-q", origin)
    point = at.stage.mount(origin)
    hook = stack.hook("own", f"fsfreeze --freeze {point}", f"fsfreeze --unfreeze {point}")
    ran = at.fork("copy", origin, f"image:{stack.image}", *JOB, "--hook", hook)
    assert ran.status == 0, ran
    (warning,) = ran.of_kind("warning")
    assert "was frozen already, by somebody else" in warning["message"]
    assert not needs_recovery(stack.image)
    assert timed_file_write(point) < 1 + SLACK


def test_bind_mount_and_file_system_in_a_loop_device_are_frozen_once_and_top_down(
    stack: Stack,
) -> None:
    inner = stack.at.stage.file(4, folder=stack.mount)
    loop = stack.at.stage.disk(file=inner)
    top = stack.at.stage.filesystem(loop)
    bound = stack.at.folder / "bound"
    bound.mkdir()
    sh("mount", "--bind", stack.mount, str(bound))
    stack.at.stage.later(sh, "umount", str(bound))
    planned = stack.copy("--dry-run").event("planned")
    assert planned["freezes"] in ([top, stack.mount], [top, str(bound)])
    ran = stack.copy()
    assert ran.status == 0, ran
    for point in (top, stack.mount):
        assert timed_file_write(point) < 1 + SLACK
    stack.at.assert_back(stack.source, stack.table)


def test_freeze_that_takes_too_long_is_given_up_and_thawed(at: Scene) -> None:
    """Each write below takes its time, and a freeze needs several, one after the other."""
    slow = at.slow(at.stage.disk(MIB))
    stack = Stack(at, under=slow)
    timed_file_write(stack.mount)
    table = sh("dmsetup", "table", slow).split()
    table[5] = table[8] = "500"
    reload(slow, " ".join(table))
    hook = stack.hook("db", SESSION)
    ran = stack.copy("--hold-limit", "0.3", "--hook", hook)
    at.hurry(slow)
    assert "could not be frozen within 0.3 s" in stack.assert_not_begun(ran, 1, "hold-limit")
    assert stack.said == ["db before", "db released", "db after failed"]


def test_file_system_that_cannot_be_written_out_is_not_frozen(at: Scene) -> None:
    under = at.origin(MIB)
    stack = Stack(at, under=under)
    (Path(stack.mount) / "dirty").write_bytes(b"x" * 100000)
    sh("dmsetup", "suspend", "--noflush", under)
    try:
        ran = stack.copy("--hook-timeout", "1")
    finally:
        sh("dmsetup", "resume", under)
    said = stack.assert_not_begun(ran, 1, "hold-limit")
    assert "could not be written out within 1 s" in said


# hooks that go wrong


def test_hook_that_goes_wrong_before_begins_nothing(stack: Stack) -> None:
    wrong = {
        "echo no such luck >&2; exit 4": "hook bad before: ended with status 4: no such luck",
        "sleep 100": "hook bad before: it did not end within 2 s",
        "head -c 200000 /dev/urandom; kill -9 $$": "hook bad before: was killed by SIGKILL",
        "echo ready; sleep 0.1; exit 0": "hook bad session: it ended with status 0 before it was",
    }
    first = ("--hook", stack.hook("first", SESSION))
    last = ("--hook", stack.hook("last", "sleep 1"))
    for before, why in wrong.items():
        stack.log.write_text("")
        bad = ("--hook", stack.hook("bad", before))
        ran = stack.copy(*first, *bad, *last, "--hook-timeout", "2")
        assert why in stack.assert_not_begun(ran, 1, "hook")
        assert "first released" in stack.said
        assert stack.said[-2:] == ["bad after failed", "first after failed"]
        assert ran.of_kind("hook")[0]["status"] == "ready"


def test_hook_that_hangs_or_fails_after_is_warned_of(stack: Stack) -> None:
    hooks = [stack.hook("hangs", "", "sleep 100"), stack.hook("fails", SESSION, "exit 3")]
    options = [word for hook in hooks for word in ("--hook", hook)]
    ran = stack.copy(*options, "--hook-timeout", "5")
    assert ran.status == 0, ran
    warnings = [event["message"] for event in ran.of_kind("warning")]
    assert [text.partition(";")[0] for text in warnings] == [
        "hook fails after: ended with status 3", "hook hangs after: it did not end within 5 s"
    ]  # fmt: skip
    told = [(one["hook"], one["side"], one["status"]) for one in ran.of_kind("hook")]
    assert told == [
        ("hangs", "before", "done"), ("fails", "before", "ready"), ("fails", "session", "done"),
        ("fails", "after", "failed"), ("hangs", "after", "timed out"),
    ]  # fmt: skip
    stack.assert_clean()


def test_hooks_of_the_directory_are_run_for_every_copy(stack: Stack) -> None:
    folder = stack.at.folder / "etc/hooks.d"
    folder.mkdir(parents=True)
    show = 'say "$DMCOPY_JOB $DMCOPY_SOURCES $DMCOPY_MOUNTS"'
    for name, mode in (("20-b", 0o755), ("10-a", 0o755), ("30-off", 0o644), ("40-x.bak", 0o755)):
        Path(stack.hook(name, show)).rename(folder / name)
        (folder / name).chmod(mode)
    assert stack.copy().status == 0
    context = f"hooked {stack.source} {stack.mount}"
    assert stack.said == [
        "10-a before", f"10-a {context}", "20-b before", f"20-b {context}",
        "20-b after begun", "10-a after begun",
    ]  # fmt: skip
    stack.log.write_text("")
    own = stack.hook("own", 'say "it has $# arguments"')
    os.unlink(stack.image)
    assert stack.copy("--no-hooks", "--hook", own).status == 0
    assert stack.said == ["own before", "own it has 1 arguments", "own after begun"]


def test_hook_that_others_can_change_is_refused(stack: Stack) -> None:
    hook = stack.hook("odd", "")
    for mode, owner, status, why in (
        (0o644, 0, 2, "is not an executable file; make it one: chmod +x"),
        (0o777, 0, 3, "others than root can write to"),
        (0o775, 0, 3, "others than root can write to"),
        (0o755, 65534, 3, "belongs to user 65534"),
    ):
        os.chown(hook, owner, 0)
        os.chmod(hook, mode)
        ran = stack.copy("--hook", hook)
        assert (ran.status, ran.stdout) == (status, ""), ran
        assert why in ran.said
        assert hook in ran.said
    assert stack.said == []
    stack.assert_clean()


# killed and interrupted


def until_said(stack: Stack, line: str) -> None:
    until(lambda: line in stack.said, line)


def test_sigterm_while_a_hook_runs_undoes_everything(stack: Stack) -> None:
    hooks = ("--hook", stack.hook("db", SESSION), "--hook", stack.hook("slow", "sleep 100"))
    running = stack.at.start("copy", stack.source, f"image:{stack.image}", *JOB, *hooks)
    until_said(stack, "slow before")
    running.kill(signal.SIGTERM)
    ran = running.ended()
    stack.assert_not_begun(ran, 5, "interrupted")
    assert stack.said[-3:] == ["db released", "slow after failed", "db after failed"]


class Held:
    """A dmcopy that stands still in the middle of the instant, in a fork."""

    def __init__(
        self, stack: Stack, *options: str, then: Callable[[], object] | None = None
    ) -> None:
        self.stack = stack
        mark = stack.at.folder / "held"
        do = Splice.do

        def stand_still() -> Context | None:
            def held(splice: Splice) -> None:
                mark.touch()
                if then is None:
                    time.sleep(60)
                else:
                    then()
                do(splice)

            setattr(Splice, "do", held)  # noqa: B010 (in the fork only)
            return None

        self.prepare = stand_still
        self.argv = ("copy", stack.source, f"image:{stack.image}", *JOB, *options)
        self.mark = mark

    def start(self) -> int:
        at = self.stack.at
        pid = at.spawn(self.argv, at.folder / "stdout", at.folder / "stderr", prepare=self.prepare)
        until(self.mark.exists, "the instant")
        return pid


def keeper_pid(control: int) -> int:
    for child in Path(f"/proc/{control}/task/{control}/children").read_text().split():
        if "dmcopy.stack.keep\0" in Path(f"/proc/{child}/cmdline").read_text():
            return int(child)
    raise AssertionError("no keeper")


def blocked_write(mount: str) -> threading.Thread:
    thread = threading.Thread(target=timed_file_write, args=(mount,), daemon=True)
    thread.start()
    thread.join(0.4)
    assert thread.is_alive(), "it is not frozen"
    return thread


def end(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_killed_at_the_instant_everything_is_thawed_and_released(stack: Stack) -> None:
    held = Held(stack, "--hook", stack.hook("db", SESSION), "--hold-limit", "60")
    pid = held.start()
    writing = blocked_write(stack.mount)
    assert "db released" not in stack.said
    end(pid)
    writing.join(5 + SLACK)
    assert not writing.is_alive(), "it is frozen still"
    until_said(stack, "db after failed")
    assert stack.said == ["db before", "db released", "db after failed"]
    until(lambda: not records(stack.at), "nothing is owed")
    ran = stack.at.fork("rescue")
    assert ran.status == 0, ran
    stack.assert_clean()


def test_keeper_killed_too_is_made_up_for_by_rescue(stack: Stack) -> None:
    held = Held(stack, "--hook", stack.hook("db", SESSION), "--hold-limit", "60")
    pid = held.start()
    os.kill(pid, signal.SIGSTOP)
    os.kill(keeper_pid(pid), signal.SIGKILL)
    end(pid)
    writing = blocked_write(stack.mount)
    until_said(stack, "db released")  # its stdin ended
    said = stack.at.fork("rescue", "--dry-run").stdout
    assert f"{stack.mount} to be thawed" in said
    assert "db after to be run" in said
    ran = stack.at.fork("rescue")
    assert ran.status == 0, ran
    assert f"hooked: thawed {stack.mount}\nhooked: ran db after\n" in ran.stdout
    writing.join(5 + SLACK)
    assert not writing.is_alive(), "it is frozen still"
    assert stack.said[-1] == "db after failed"
    stack.assert_clean()
    assert stack.at.fork("rescue").stdout == "nothing to rescue\n"


def test_keeper_killed_alone_is_made_up_for_at_once(stack: Stack) -> None:
    held = Held(
        stack,
        *("--hook", stack.hook("db", SESSION)),
        then=lambda: os.kill(keeper_pid(os.getpid()), signal.SIGKILL),
    )
    ran = stack.copy(*held.argv[5:], prepare=held.prepare)
    said = stack.assert_not_begun(ran, 1, "hook")
    assert "the process that keeps hooks and frozen file systems was killed" in said
    assert stack.said[-1] == "db after failed"


def test_frozen_for_longer_than_the_limit_is_thawed_and_not_begun(stack: Stack) -> None:
    held = Held(stack, "--hold-limit", "4", then=lambda: time.sleep(6))
    before = digest(stack.source)
    pid = held.start()
    start = time.monotonic()
    blocked_write(stack.mount).join(10)
    assert time.monotonic() - start < 4 + SLACK
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 1
    said = (stack.at.folder / "stderr").read_text()
    assert "was frozen for longer than 4 s and was thawed, so nothing was begun" in said
    assert digest(stack.source) != before
    stack.assert_clean()


def test_session_killed_at_the_instant_rolls_the_begin_back(stack: Stack) -> None:
    pid = stack.at.folder / "pid"
    hook = stack.hook("db", f"echo $$ >{pid}; {SESSION}")

    def kill() -> None:
        os.kill(int(pid.read_text()), signal.SIGKILL)
        time.sleep(0.3)

    held = Held(stack, "--hook", hook, then=kill)
    ran = stack.copy("--hook", hook, prepare=held.prepare)
    said = stack.assert_not_begun(ran, 1, "hook")
    assert "hook db session: it was killed by SIGKILL before it was told to let go" in said
    assert "nothing was begun" in said
