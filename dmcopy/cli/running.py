"""What the commands that run a job share: how it is shown, and how it goes into the background."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final, Protocol

from dmcopy.agent.request import Answer
from dmcopy.cli.common import Context, consoles
from dmcopy.core.events import Begun, Ended, Event, Queued, Resumed, from_json
from dmcopy.errors import DmcopyError, EndedElsewhere
from dmcopy.jobs import settings
from dmcopy.jobs.host import Host
from dmcopy.jobs.journal import Journal
from dmcopy.jobs.prepare import Prepared
from dmcopy.jobs.runner import CopyJob
from dmcopy.jobs.spec import Places
from dmcopy.jobs.turn import turn
from dmcopy.kernel.command import fork_detached
from dmcopy.kernel.own_code import kept
from dmcopy.kernel.priority import step_back
from dmcopy.report.jsonlines import JsonLines

QUEUE_HELP: Final = (
    "begin when fewer than N others that were started with --queue run: dmcopy set --host jobs=N"
)


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
    with kept(host.places.code):
        ended = CopyJob(prepared, host, journal, report).run()
    report.close()
    if ended.error is not None:
        print(f"dmcopy: {ended.error}", file=sys.stderr)
    return ended.exit_status


@contextmanager
def in_turn(name: str, host: Host, report: Report, *, queue: bool) -> Iterator[None]:
    """Run the body when it is the job's turn; with *queue* False at once."""
    if not queue:
        yield
        return
    places = host.places
    with turn(
        places.turns,
        lambda: settings.jobs_at_a_time(places),
        lambda most: report(Queued(job=name, jobs=most)),
    ):
        yield


def by_agent(
    context: Context, ask: Callable[[Places], Sequence[dict[str, Any]] | None], *, as_json: bool
) -> int | None:
    """Have the agent start a job, and tell what it said; None where there is no agent.

    *ask* gives the events up to the begin time (agent.client), and raises what kept it from that.
    """
    events = ask(context.places or Places.from_environment())
    if events is None:
        return None
    with report_for(as_json=as_json) as report:
        for said in events:
            event = from_json(said)
            report(event)
            if isinstance(event, Ended) and event.group is None:
                return event.exit_status
    return 0


class _Pipe:
    """Tells the command that waits what happens, up to the begin time; then nobody listens."""

    def __init__(self, fd: int) -> None:
        self._fd: int | None = fd

    def __call__(self, event: Event) -> None:
        self.say(event.as_json())
        if isinstance(event, Begun | Resumed) and event.group is None:
            self.close()

    def say(self, line: dict[str, object]) -> None:
        if self._fd is not None:
            with suppress(BrokenPipeError):  # it was interrupted: the job goes on
                os.write(self._fd, json.dumps(line).encode() + b"\n")

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


class _Told:
    """Tells an asker elsewhere what happens, up to the begin time."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer

    def __call__(self, event: Event) -> None:
        self._answer.say(event.as_json())
        if isinstance(event, Begun | Resumed) and event.group is None:
            self._answer.end(0)

    def close(self) -> None:
        """Nothing: whoever made the answer ends it."""


def detached(name: str, context: Context, *, as_json: bool, work: Callable[[Report], int]) -> int:
    """Have *work* done by a process in the background; return when its begin time is fixed.

    What it says on stderr goes to a file below the runtime directory.  Raises what kept it
    from beginning.  A process that has an asker elsewhere does it itself, to its end.
    """
    if context.asker is not None:
        return work(_Told(context.asker))
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
            if event.group is not None:
                continue
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
