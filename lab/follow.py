"""Start the program of a guest, show its output while it runs, and end all of it afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lab.guest import Job, Launch

_GRACE = 0.2  # seconds between two looks at the output

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


def supervise(launch: Launch, job: Job, *, timeout: float, quiet: bool) -> int | None:
    """Run *launch* to its end and give its exit status; None when *timeout* ran out.

    Its whole process group is dead when this returns or raises.
    """
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
            if job.terminal is None:
                time.sleep(_GRACE if timeout > 1 else 0.01)
                tail.copy()
            elif not job.terminal.relay(transcript, wait=_GRACE):
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
