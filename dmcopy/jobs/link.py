"""The control side of the worker process: requests out, messages in, JSON lines both ways.

The worker moves the blocks (`engine`), never forks, and holds the destination open; control
plans, changes the stack and keeps the journal.  The worker ends when its stdin closes, so
it never outlives control.
"""

from __future__ import annotations

import json
import select
import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Final, TypeAlias

from dmcopy import errors
from dmcopy.errors import DmcopyError, WorkerDied
from dmcopy.kernel.command import Process, start_process
from dmcopy.kernel.own_code import helper

Message: TypeAlias = Mapping[str, Any]  # Any: JSON

_STOP_SECONDS: Final = 10.0

_KINDS: Final[dict[str, type[DmcopyError]]] = {
    kind.kind: kind
    for kind in (
        errors.UsageError,
        errors.PointInTimeLost,
        errors.SourceFailed,
        errors.DestinationFailed,
        errors.VerifyFailed,
    )
}


def error_from(message: Message) -> DmcopyError:
    """Make the error that a ``failed`` message speaks of."""
    kind, text = str(message.get("kind")), str(message.get("message"))
    if kind == errors.Refused.kind:
        return errors.Refused(text)
    return _KINDS.get(kind, DmcopyError)(text)


class WorkerLink:
    """A running worker; the context manager ends it in every case.

    *start* starts a program (kernel.command.start_process).
    """

    def __init__(self, start: Callable[[Sequence[str]], Process] = start_process) -> None:
        self._start = start
        self._process: Process | None = None
        self._buffer = b""

    def __enter__(self) -> WorkerLink:
        self._process = self._start(helper("dmcopy.jobs.worker"))
        return self

    @property
    def pid(self) -> int:
        """The worker's process id."""
        assert self._process is not None
        return self._process.pid

    def send(self, do: str, **fields: object) -> None:
        """Send a request; a dead worker is noticed by `receive`."""
        assert self._process is not None
        line = json.dumps({"do": do, **fields}) + "\n"
        with suppress(BrokenPipeError):
            self._process.stdin.write(line.encode())
            self._process.stdin.flush()

    def receive(self, timeout: float | None = None, *also: int) -> Message | None:
        """Give the next message; None after *timeout* seconds, or when a fd of *also* is ready.

        Raises the error that the worker reports, and `WorkerDied` when it died.
        """
        assert self._process is not None
        stdout = self._process.stdout
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([stdout.fileno(), *also], [], [], timeout)
            if stdout.fileno() not in ready:
                return None
            data = stdout.read1(1 << 16)
            if not data:
                raise WorkerDied(f"the copy worker died ({self._how_it_ended()})")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        message: Message = json.loads(line)
        if message["is"] == "failed":
            raise error_from(message)
        return message

    def _how_it_ended(self) -> str:
        assert self._process is not None
        status = self._process.wait(timeout=_STOP_SECONDS)
        if status is not None and status < 0:
            return f"killed by {signal.Signals(-status).name}"
        return f"exit status {status}"

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the worker: first by closing its stdin, then by SIGKILL; always reaped."""
        if self._process is None:
            return
        process, self._process = self._process, None
        with suppress(BrokenPipeError):
            process.stdin.close()
        try:
            if process.wait(timeout=_STOP_SECONDS) is None:
                process.kill()
                process.wait(timeout=_STOP_SECONDS)
        finally:
            process.kill()
            process.stdout.close()
