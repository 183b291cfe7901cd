"""What the commands that run a job share: how it is shown, and how it goes into the background."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Protocol

from dmcopy.cli.common import Context, consoles
from dmcopy.core.events import Begun, Ended, Event, Resumed, from_json
from dmcopy.errors import DmcopyError, EndedElsewhere
from dmcopy.jobs.host import Host
from dmcopy.jobs.journal import Journal
from dmcopy.jobs.prepare import Prepared
from dmcopy.jobs.runner import CopyJob
from dmcopy.jobs.spec import Places
from dmcopy.kernel.command import fork_detached
from dmcopy.kernel.priority import step_back
from dmcopy.report.jsonlines import JsonLines


class Report(Protocol):
    """Shows events; closed at the end."""

    def __call__(self, event: Event) -> None: ...

    def close(self) -> None: ...


@contextmanager
def report_for(*, as_json: bool) -> Iterator[Report]:
    """Give what shows a job on this terminal."""
    if as_json:
        report: Report = JsonLines(sys.stdout)
    else:
        from dmcopy.report.text import TextReport  # brings rich

        report = TextReport(*consoles())
    try:
        yield report
    finally:
        report.close()


def run_job(prepared: Prepared, host: Host, journal: Journal, report: Report) -> int:
    """Run a job to its end; give the exit status."""
    step_back()
    ended = CopyJob(prepared, host, journal, report).run()
    report.close()
    if ended.error is not None:
        print(f"dmcopy: {ended.error}", file=sys.stderr)
    return ended.exit_status


class _Pipe:
    """Tells the command that waits what happens, up to the begin time; then nobody listens."""

    def __init__(self, fd: int) -> None:
        self._fd: int | None = fd

    def __call__(self, event: Event) -> None:
        self.say(event.as_json())
        if isinstance(event, Begun | Resumed):
            self.close()

    def say(self, line: dict[str, object]) -> None:
        if self._fd is not None:
            with suppress(BrokenPipeError):  # it was interrupted: the job goes on
                os.write(self._fd, json.dumps(line).encode() + b"\n")

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def detached(name: str, context: Context, *, as_json: bool, work: Callable[[Report], int]) -> int:
    """Have *work* done by a process in the background; return when its begin time is fixed.

    What it says on stderr goes to a file below the runtime directory.  Raises what kept it
    from beginning.
    """
    places = context.places or Places.from_environment()
    read, write = os.pipe()
    if fork_detached(places.log_of(name)) == 0:
        os.close(read)
        os._exit(_in_background(_Pipe(write), work))
    os.close(write)
    with os.fdopen(read) as lines, report_for(as_json=as_json) as report:
        for line in lines:
            said = json.loads(line)
            if said["event"] == "failed":
                raise EndedElsewhere(said["message"], said["exit_status"])
            event = from_json(said)
            report(event)
            if isinstance(event, Ended):
                return event.exit_status
            if isinstance(event, Begun | Resumed):
                return 0
    raise DmcopyError(f"the background process of {name} died; see {places.log_of(name)}")


def _in_background(pipe: _Pipe, work: Callable[[Report], int]) -> int:
    try:
        return work(pipe)
    except DmcopyError as exc:
        pipe.say({"event": "failed", "message": str(exc), "exit_status": exc.exit_status})
        return exc.exit_status
