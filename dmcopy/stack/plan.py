"""A change to the machine, as steps that can all be undone.

`Plan.run` does ``prepare``, ``critical`` and ``finish`` in this order; on the first failure,
Ctrl-C and SIGTERM included, what was done is undone, last step first.  `Plan.undo` is also
how a job ends: taking the stack apart is the undo of having built it, so that there is one
piece of code for the good end and for every bad one.

Signals: the critical steps and every undo run with SIGINT and SIGTERM blocked; they are
delivered when it is over.
"""

from __future__ import annotations

import logging
import signal
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

from dmcopy.errors import LeftBehind

log = logging.getLogger(__name__)

# What must be so while the critical steps are done (`stack.keeper`).
Around = Callable[[], AbstractContextManager[None]]

_DEFERRED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def signals_deferred() -> Iterator[None]:
    """Keep SIGINT, SIGTERM and SIGHUP waiting until the block is left."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _DEFERRED)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Step(ABC):
    """One change of the machine.

    `undo` must hold when `do` never ran, was cut short half way, or when `undo` itself ran
    before: it asks the machine what is there instead of remembering what was done.
    """

    @abstractmethod
    def __str__(self) -> str:
        """Say what the step does, in a few words."""

    @abstractmethod
    def lines(self) -> Sequence[str]:
        """Give shell lines that an administrator could paste to do the same."""

    def get_ready(self) -> None:  # noqa: B027 (few steps have something to do)
        """Do beforehand what takes time, where others wait while the critical steps are done.

        `stand_down` follows, or `undo`, whatever becomes of it.
        """

    def stand_down(self) -> None:  # noqa: B027
        """End what `get_ready` made, now that nobody waits any more."""

    @abstractmethod
    def do(self) -> None:
        """Make the change."""

    @abstractmethod
    def undo(self) -> None:
        """Take the change back; raises when something stays behind."""


class Plan:
    """Steps that change the machine together or not at all."""

    def __init__(
        self,
        *,
        job: str,
        prepare: Sequence[Step],
        critical: Sequence[Step] = (),
        finish: Sequence[Step] = (),
    ) -> None:
        self.job = job
        self.prepare = tuple(prepare)
        self.critical = tuple(critical)
        self.finish = tuple(finish)
        self._started: list[Step] = []

    @property
    def steps(self) -> tuple[Step, ...]:
        """All steps, in the order in which they are done."""
        return self.prepare + self.critical + self.finish

    def lines(self) -> tuple[str, ...]:
        """Give the whole plan as shell lines."""
        return tuple(line for step in self.steps for line in step.lines())

    def run(self, record: Callable[[str], None], around: Around | None = None) -> None:
        """Do all steps; on the first failure undo the done ones, last first.

        *record* writes the intent durably; it is called before each step of ``prepare``
        and ``finish`` and never while I/O may be held.  *around* goes around the critical steps;
        what it raises when it is left undoes them.  Raises what the step raised, or
        `LeftBehind` (naming what is left) from it.
        """
        try:
            for step in self.prepare:
                self._do(step, record)
            record("; ".join(str(step) for step in self.critical))
            if around is None:
                self._do_critical()
            else:
                for step in self.critical:
                    self._started.append(step)
                    step.get_ready()
                with around():
                    self._do_critical()
                for step in self.critical:
                    step.stand_down()
            for step in self.finish:
                self._do(step, record)
        except BaseException as exc:
            self._roll_back(exc)
            raise

    def _do_critical(self) -> None:
        with signals_deferred():
            for step in self.critical:
                if step not in self._started:
                    self._started.append(step)
                step.do()

    def _do(self, step: Step, record: Callable[[str], None]) -> None:
        record(str(step))
        log.info("%s", step)
        self._started.append(step)  # before do(): a half done step is undone too
        step.do()

    def _roll_back(self, cause: BaseException) -> None:
        try:
            self.undo()
        except LeftBehind as left:
            raise left from cause

    def undo(self) -> None:
        """Undo what was done, last first; go on after a failure.

        Raises `LeftBehind` that names every step that could not be undone; calling again
        tries those once more.
        """
        left: list[str] = []
        kept: list[Step] = []
        with signals_deferred():
            while self._started:
                step = self._started.pop()
                log.info("undo: %s", step)
                try:
                    step.undo()
                except Exception as exc:  # every step gets its undo, whatever went wrong before
                    log.debug("undo failed", exc_info=True)
                    left.append(f"{step}: {exc}")
                    kept.append(step)
            # still inside: a signal that waited is raised where the block ends
            self._started = kept[::-1]
        if left:
            raise LeftBehind(left, job=self.job)
