"""A control process that dies, or kills, after the n-th change that it makes to the machine.

`context` goes in where `dmcopy.cli.main.main` takes its `Context`, in a process of its own: it
counts each ioctl that changes device-mapper, and each other change, when it is made.  Before the
next one nothing else changes, so that counts are all the states there are.  When the count is
reached, the fuse blows: a signal to this process, to the worker, or to both.
"""

from __future__ import annotations

import fcntl
import functools
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from dmcopy.cli.common import Context, open_cookies
from dmcopy.jobs.journal import Journal
from dmcopy.jobs.link import WorkerLink
from dmcopy.jobs.member_link import MemberLink
from dmcopy.jobs.spec import Places
from dmcopy.kernel import dmioctl
from dmcopy.kernel.loop import LoopDevice
from dmcopy.stack.deadman import DeadMan
from dmcopy.stack.steps import CowFile, WipeHead

VERBS: Final = {
    dmioctl.DM_DEV_CREATE: "create",
    dmioctl.DM_TABLE_LOAD: "load",
    dmioctl.DM_DEV_SUSPEND: "resume",
    dmioctl.DM_TABLE_CLEAR: "clear",
    dmioctl.DM_DEV_REMOVE: "remove",
}
_OTHERS: Final[tuple[tuple[type, str], ...]] = (
    (CowFile, "do"),
    (CowFile, "undo"),
    (WipeHead, "do"),
    (Journal, "define"),
    (Journal, "move"),
    (Journal, "set_facts"),
    (Journal, "commit"),
    (DeadMan, "__enter__"),
    (DeadMan, "arm"),
    (DeadMan, "disarm"),
    (MemberLink, "tell_instant"),
    (WorkerLink, "__enter__"),
    (WorkerLink, "send"),
    (WorkerLink, "__exit__"),
)


class Fuse:
    """Blows at count *at*, or the first time that is called so; writes what it was to *note*."""

    def __init__(
        self, at: int | str, blow: Callable[[], None], note: Path, *, again: int = 0
    ) -> None:
        self._at: set[int | str] = {at, at + again} if isinstance(at, int) else {at}
        self._blow = blow
        self._note = note
        self._count = 0

    def before(self, name: str) -> None:
        self._meet({f"before {name}"})

    def after(self, name: str) -> None:
        self._count += 1
        self._meet({self._count, f"after {name}"})

    def _meet(self, here: set[int | str]) -> None:
        if self._at & here:
            self._at -= here
            what = next(word for word in here if isinstance(word, str))
            with self._note.open("a") as note:
                note.write(f"{self._count} {what}\n")
            self._blow()


def _wrapped(fuse: Fuse, name: str, inner: Callable[..., Any]) -> Callable[..., Any]:  # Any: any
    @functools.wraps(inner)
    def outer(*args: Any, **kwargs: Any) -> Any:  # Any: whatever the inner one takes
        fuse.before(name)
        result = inner(*args, **kwargs)
        fuse.after(name)
        return result

    return outer


def _worker() -> int | None:
    """Give the pid of our worker."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with suppress(OSError):
                parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
                line = (entry / "cmdline").read_bytes()
                if int(parent) == os.getpid() and b"dmcopy.jobs.worker" in line:
                    return int(entry.name)
    return None


def kill_self(number: int) -> None:
    os.kill(os.getpid(), number)
    if number == signal.SIGKILL:
        time.sleep(60)  # it is on its way


def kill_worker() -> None:
    pid = _worker()
    if pid is not None:
        os.kill(pid, signal.SIGKILL)


def kill_both() -> None:
    kill_worker()
    kill_self(signal.SIGKILL)


BLOWS: Final[dict[str, Callable[[], None]]] = {
    "control": lambda: kill_self(signal.SIGKILL),
    "worker": kill_worker,
    "both": kill_both,
    "SIGINT": lambda: kill_self(signal.SIGINT),
    "SIGTERM": lambda: kill_self(signal.SIGTERM),
}


def context(at: int | str, who: str, note: Path, *, again: int = 0) -> Context:
    """Make the context, and arm this process; for a fork only, it is never undone."""
    fuse = Fuse(at, BLOWS[who], note, again=again)

    def call(fd: int, request: int, data: bytearray, change: bool) -> int:
        name = VERBS.get(request)
        if name is None:
            return int(fcntl.ioctl(fd, request, data, change))
        fuse.before(name)
        result = int(fcntl.ioctl(fd, request, data, change))
        fuse.after(name)
        return result

    for owner, name in _OTHERS:
        label = f"{owner.__name__}.{name}"
        setattr(owner, name, _wrapped(fuse, label, getattr(owner, name)))
    attach = _wrapped(fuse, "LoopDevice.attach", LoopDevice.attach)
    setattr(LoopDevice, "attach", staticmethod(attach))  # noqa: B010 (mypy is right about types)
    places = Places.from_environment()
    dm = dmioctl.DmIoctl(cookies=open_cookies(places), call=call)
    return Context(dm=dm, places=places)
