"""Start the program of a guest, show its output while it runs, and end all of it afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lab.guest import Job, Launch

_GRACE = 0.2  # seconds between two looks at the output
_KEEN = 0.01  # where the power may be cut: seconds between two looks at whether it shall be
_DYING = 10.0  # seconds in which a process that got a SIGKILL must be gone


class PowerCut(Exception):
    """The guest was killed because the caller asked for it."""


class Undead(Exception):
    """A process of the guest outlived its SIGKILL; what it holds cannot be trusted."""


# Stands between us and a guest.  When we are killed, and can undo nothing, it gets a TERM and
# takes the guest along, which is several processes in a group of its own (user-mode Linux makes
# one in any case, so the guard cannot be in it).
_GUARD = (
    "sh",
    "-c",
    """
    # No "--": dash takes it for a number.
    end() { kill -KILL "-$child" 2>/dev/null; exit "$1"; }
    trap 'end 143' TERM
    setsid "$@" & child=$!
    wait "$child"
    end $?
    """,
    "guard",
)


class _Tail:
    """Copies to our stdout what was added to a file."""

    def __init__(self, path: Path, *, quiet: bool) -> None:
        self._file = path.open("rb", buffering=0)
        self._quiet = quiet

    def copy(self) -> None:
        while data := self._file.read(1 << 16):
            if not self._quiet:
                sys.stdout.buffer.write(data)
                sys.stdout.buffer.flush()

    def close(self) -> None:
        self._file.close()


def supervise(
    launch: Launch,
    job: Job,
    *,
    timeout: float,
    quiet: bool,
    cut: Callable[[], bool] | None = None,
) -> int | None:
    """Run *launch* to its end and give its exit status; None when *timeout* ran out.

    *cut* is asked all the time; when it says so the guest is killed, and `PowerCut` raised.
    Its whole process group is dead when this returns or raises.
    """
    pause = (_GRACE if timeout > 1 else 0.01) if cut is None else _KEEN
    deadline = time.monotonic() + timeout
    tail = _Tail(job.output, quiet=quiet or job.terminal is not None)
    guard = () if launch.direct else _GUARD
    with (launch.stdout or job.console).open("ab") as log:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "TERM", "--", *guard, *launch.argv],
            env=launch.env,
            pass_fds=launch.pass_fds,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    transcript = os.open(job.output, os.O_WRONLY | os.O_APPEND)
    try:
        while process.poll() is None:
            if time.monotonic() > deadline:
                return None
            if cut is not None and cut():
                _cut(process.pid)
                raise PowerCut
            if job.terminal is None:
                time.sleep(pause)
                tail.copy()
            elif not job.terminal.relay(transcript, wait=pause):
                return None
        if job.terminal is not None:
            job.terminal.relay(transcript, wait=0)
        return process.returncode
    finally:
        _end(process)
        tail.copy()
        tail.close()
        os.close(transcript)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=5.0)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _cut(guard: int) -> None:
    """Kill a guest as if its power failed, all of it at once, and wait until it is gone.

    It has a session of its own, whose leader is the guard's only child.  The kernel closes a
    process's files before it is a zombie, so none holds a disk any more when this returns.
    """
    leaders = [pid for pid, (parent, _, _) in _processes().items() if parent == guard]
    for kill in (os.killpg, os.kill):  # the second for one that has no group of its own yet
        for pid in leaders:
            with suppress(ProcessLookupError):
                kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + _DYING
    while alive := [
        pid
        for pid, (_, session, state) in _processes().items()
        if session in leaders and state not in "ZX"
    ]:
        for pid in alive:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            raise RuntimeError(f"processes {alive} of the guest outlive their SIGKILL")
        time.sleep(_KEEN)


def _processes() -> dict[int, tuple[int, int, str]]:
    """Give parent, session and state of each process: proc(5), stat."""
    found = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdecimal():
            with suppress(OSError):
                stat = Path(entry.path, "stat").read_text().rpartition(")")[2].split()
                found[int(entry.name)] = (int(stat[1]), int(stat[3]), stat[0])
    return found
