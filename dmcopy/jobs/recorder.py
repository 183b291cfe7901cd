"""Keeps the journal of one running job, also where the journal cannot be written for a while.

A full disk under the state directory must not end a copy that is fine otherwise: what could
not be written waits, in order, and is tried again with the next entry.  Only what must be on
record before the machine is changed (`define`, the begin time, what is retired) is written
through the journal itself, and fails there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dmcopy.core.extent import Extent
from dmcopy.errors import DmcopyError, Interrupted
from dmcopy.jobs.journal import Journal
from dmcopy.jobs.state import State
from dmcopy.stack.plan import signals_deferred


class Recorder:
    """The entries of one job; *warn* is told once when the journal fails, once when it works."""

    def __init__(self, journal: Journal, job: str, warn: Callable[[str], object]) -> None:
        self._journal = journal
        self._job = job
        self._warn = warn
        self._waiting: deque[Callable[[], None]] = deque()
        self._is_failing = False

    @property
    def is_behind(self) -> bool:
        """Whether the journal lacks something that has happened."""
        return bool(self._waiting)

    def move(self, to: State) -> None:
        """Record the job's next state; harmless where it is that already."""

        def move() -> None:
            if self._journal.state(self._job) != to:
                self._journal.move(self._job, to)

        self._do(move)

    def note(self, column: str, event: Mapping[str, Any]) -> None:  # Any: JSON
        """Keep an event (`Journal.note`)."""
        self._do(lambda: self._journal.note(self._job, column, event))

    def progress(self, event: Mapping[str, Any]) -> None:  # Any: JSON
        """Keep the last progress, unless the journal fails: there will be another."""
        self._now_or_never(lambda: self._journal.note(self._job, "progress", event))

    def history(self, history: Mapping[str, Any]) -> None:  # Any: JSON
        """Keep how the copy went so far, unless the journal fails: there will be another."""
        self._now_or_never(lambda: self._journal.keep_history(self._job, history))

    def stamp(self, stamp: Mapping[str, Any]) -> None:  # Any: JSON
        """Keep what the source's file system says, unless the journal fails."""
        self._now_or_never(lambda: self._journal.keep_stamp(self._job, stamp))

    def commit(self, rows: Sequence[tuple[Extent, str | None]], counts: Mapping[str, int]) -> None:
        """Record what is durable at the destination."""
        self._do(lambda: self._journal.commit(self._job, rows, counts=counts))

    def spec(self, spec: Mapping[str, Any]) -> None:  # Any: JSON
        """Record that the job is asked something else from now on."""
        self._do(lambda: self._journal.set_spec(self._job, spec))

    def log(self, event: Mapping[str, Any]) -> None:  # Any: JSON
        """Keep what happened."""
        self._do(lambda: self._journal.log(self._job, event))

    def lost(self, why: str) -> None:
        """Record that the point in time is gone."""
        self._do(lambda: self._journal.lost(self._job, why))

    def forget_leftovers(self) -> None:
        """Record that nothing is left."""
        self._do(lambda: self._journal.forget_leftovers(self._job))

    def _now_or_never(self, entry: Callable[[], None]) -> None:
        if not self._waiting:
            try:
                with signals_deferred():
                    entry()
            except Interrupted:
                raise
            except DmcopyError as exc:
                self._failed(exc)

    def _do(self, entry: Callable[[], None]) -> None:
        self._waiting.append(entry)
        while self._waiting:
            try:
                with signals_deferred():  # an interruption is no failure of the journal
                    self._waiting[0]()
                    self._waiting.popleft()
            except Interrupted:
                raise
            except DmcopyError as exc:
                self._failed(exc)
                return
        if self._is_failing:
            self._is_failing = False
            self._warn("the journal can be written again, and has everything")

    def _failed(self, exc: DmcopyError) -> None:
        if self._is_failing:
            return
        self._is_failing = True
        self._warn(f"{exc}; the copy goes on, but could not be resumed from here")
