"""The leader's side of one member of a group: its process, and what is known of it.

What the two say to each other: `jobs.member`.
"""

from __future__ import annotations

import json
import logging
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, NamedTuple

from dmcopy.core import events
from dmcopy.errors import DmcopyError, PointInTimeLost, WorkerDied
from dmcopy.jobs.spec import Places
from dmcopy.jobs.state import State
from dmcopy.kernel.command import Process, start_process
from dmcopy.kernel.own_code import helper
from dmcopy.stack.hold import Instant
from dmcopy.stack.together import Part

Json = Mapping[str, Any]  # Any: JSON

_GO_ON: Final = (State.PAUSED, State.COPIED, State.VERIFIED)


class Failure(NamedTuple):
    """Why a member did not get to its end."""

    exit_status: int
    kind: str
    text: str
    left: tuple[str, ...] = ()
    can_go_on: bool = False  # it was interrupted, and kept


class MemberLink:
    """One member; `start` first, `close` in every case.

    *start* starts a program (kernel.command.start_process).
    """

    def __init__(
        self,
        name: str,
        source: str,
        *,
        is_new: bool = True,
        is_mounted: bool = False,
        start: Callable[[Sequence[str]], Process] = start_process,
    ) -> None:
        self.name = name
        self.source = source
        self.is_mounted = is_mounted
        self._is_new = is_new  # else what it finds stays, unless the point in time is lost
        self._start = start
        self._process: Process | None = None
        self._buffer = b""
        self.is_gone = False
        self.is_waiting = False  # for the instant
        self.part: Part | None = None  # its share in it; None: nothing is to be held
        self.begun: events.Begun | None = None
        self.is_at_work = False  # it copies, or has nothing more to copy
        self.has_arrived = False
        self.progress: events.Progress | None = None
        self.ended: events.Ended | None = None
        self.failure: Failure | None = None

    def start(self, do: str, *, group: str, places: Places, **fields: object) -> None:
        """Start the process, and say what it is to do."""
        self._process = self._start(helper("dmcopy.jobs.member"))
        self.say(
            do,
            **fields,
            group=group,
            log_level=logging.getLogger().level,
            places={"state": str(places.state), "runtime": str(places.runtime)},
        )

    def fileno(self) -> int:
        """Give the descriptor that is readable when the member says something."""
        assert self._process is not None
        return self._process.stdout.fileno()

    def say(self, do: str, **fields: object) -> None:
        """Send an order; a member that is gone is noticed by `heard`."""
        assert self._process is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps({"do": do, **fields}).encode() + b"\n")
            self._process.stdin.flush()

    def tell_instant(self, instant: Instant) -> None:
        """Say that the begin time is fixed."""
        self.is_waiting = False
        self.say("instant", begin_ns=instant.begin_ns, held=instant.held, alone=instant.alone)

    def again(self, why: str) -> None:
        """Have it load anew, where it has something to be held."""
        if self.part is not None:
            self.is_waiting = False
            self.say("again", why=why)

    def heard(self) -> Iterator[events.Event]:
        """Take what it said, when `fileno` is readable; gives the events among it."""
        assert self._process is not None
        data = self._process.stdout.read1(1 << 16)
        self._buffer += data
        while b"\n" in self._buffer:
            line, _, self._buffer = self._buffer.partition(b"\n")
            message: Json = json.loads(line)
            if message["is"] == "event":
                event = events.from_json(message["told"])
                self._note(event)
                yield event
            else:
                self._take(message)
        if not data:
            self._has_gone()

    def _take(self, message: Json) -> None:
        match message["is"]:
            case "part":
                self.is_waiting = True
                if "origin" in message:
                    then = tuple(message["then"])
                    self.part = Part(origin=message["origin"], lockfs=message["lockfs"], then=then)
            case "arrived":
                self.has_arrived = self.is_at_work = True
            case "failed" if self.ended is None:
                kind = str(message["kind"])
                self.failure = Failure(
                    int(message["exit_status"]),
                    kind,
                    message["message"],
                    can_go_on=not self._is_new and kind != PointInTimeLost.kind,
                )

    def _note(self, event: events.Event) -> None:
        match event:
            case events.Begun():
                self.begun = event
                self.is_at_work = True
            case events.Resumed():
                self.is_at_work = True
            case events.Progress():
                self.progress = event
            case events.Ended():
                self._has_ended(event)

    def _has_ended(self, event: events.Ended) -> None:
        self.ended = event
        if event.error is not None:
            self.failure = Failure(
                event.exit_status,
                event.kind or DmcopyError.kind,
                event.error,
                event.left,
                can_go_on=event.state in _GO_ON,
            )

    def _has_gone(self) -> None:
        """It ended, or was killed: then what it began may stand."""
        assert self._process is not None
        self.is_gone = True
        if self.ended is not None or self.failure is not None:
            return
        status = self._process.wait(timeout=10.0)
        how = f"exit status {status}"
        if status is not None and status < 0:
            how = f"killed by {signal.Signals(-status).name}"
        self.failure = Failure(
            WorkerDied.exit_status,
            WorkerDied.kind,
            f"its process died ({how})",
            can_go_on=self.is_at_work or not self._is_new,
        )

    @property
    def is_there(self) -> bool:
        """Tell whether its process was started, and has not ended."""
        return self._process is not None and not self.is_gone

    @property
    def is_lost(self) -> bool:
        """Tell whether its point in time is."""
        return self.failure is not None and self.failure.kind == PointInTimeLost.kind

    def stop(self, *, give_up: bool, why: str) -> None:
        """Have it end: so that it can be gone on with, or with everything taken back."""
        if self.is_gone or self._process is None:
            return
        if give_up:
            self.say("off", why=why)
        with suppress(ProcessLookupError):
            if self._process.poll() is None:
                os.kill(self._process.pid, signal.SIGHUP if give_up else signal.SIGTERM)

    def close(self) -> None:
        """Let go of the streams; a member that is still there sees that it is alone."""
        if self._process is None:
            return
        process, self._process = self._process, None
        with suppress(BrokenPipeError):
            process.stdin.close()
        if self.is_gone:
            process.wait(timeout=10.0)
        process.stdout.close()
