"""The hooks of one begin time: run before it, kept running across it, run after it.

What a hook is promised, and what it has to do, is written for its author in docs/hooks.rst.
Each hook is started as ``HOOK before``.  It ends with status 0, or it says ``ready`` on a line of
its own and goes on running: then it is a *session*, which holds something (a database's lock) until
its stdin ends.  A session that ended before, or ends with another status than 0, did not hold it at
the instant.  ``HOOK after`` is run for each hook that was started, the last one first, whatever
became of it and of all else.

Used by the keeper's process (`keep`) and, where that was killed, by who mends (`keep_record`).
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Final, NamedTuple

from dmcopy.errors import DmcopyError
from dmcopy.kernel.command import Process, program_environment, start_process

READY: Final = b"ready"
_TERM_SECONDS: Final = 2.0  # that a hook whose time is up has, to end by itself
_KILLED_SECONDS: Final = 5.0  # what a killed one may take to be gone: it may sit in state D
_KEPT_BYTES: Final = 4096  # of what a hook says
_TOLD: Final = 300  # characters of it that go into a message

Start = Callable[..., Process]  # kernel.command.start_process


class Told(NamedTuple):
    """What became of one side of a hook."""

    name: str
    side: str  # before | session | after
    status: str  # done | ready | failed | timed out | ended early
    seconds: float
    message: str = ""  # why, where it went wrong: one line

    @property
    def is_well(self) -> bool:
        """Tell whether it did what it is for."""
        return self.status in ("done", "ready")


class HookProcess:
    """One process of a hook; `stop` or `reap` in every case."""

    def __init__(
        self,
        argv: Sequence[str],
        side: str,
        environment: Mapping[str, str],
        *,
        start: Start = start_process,
    ) -> None:
        """Start it; raises `DmcopyError` where it cannot be started."""
        self.name = os.path.basename(argv[0])
        self._started = time.monotonic()
        err, inside = os.pipe()
        try:
            self._process = start([*argv, side], environment=environment, stderr=inside)
        except BaseException:
            os.close(err)
            raise
        finally:
            os.close(inside)
        self._err = err
        self._out = self._process.stdout.fileno()
        self._pid_fd = os.pidfd_open(self._process.pid)
        self._said = {self._out: b"", self._err: b""}
        self._line = b""
        self._open = {self._out, self._err}
        for fd in self._open:
            os.set_blocking(fd, False)
        self.is_ready = False
        self.status: int | None = None  # negative: the signal that ended it

    @property
    def seconds(self) -> float:
        """How long ago it was started."""
        return time.monotonic() - self._started

    @property
    def has_ended(self) -> bool:
        """Tell whether it has; does not reap it."""
        return self.status is not None

    @property
    def descriptors(self) -> set[int]:
        """What is readable when there is something to `take`."""
        return self._open | (set() if self.has_ended else {self._pid_fd})

    def take(self, readable: set[int]) -> None:
        """Take what it said, and its end."""
        for fd in self._open & readable:
            self._read(fd)
        if self._pid_fd in readable and not self.has_ended:
            for fd in tuple(self._open):  # what it said last; others may still write there
                self._read(fd)
            self.status = self._process.wait(timeout=_KILLED_SECONDS)

    def _read(self, fd: int) -> None:
        try:
            got = os.read(fd, 1 << 16)
        except BlockingIOError:
            return
        if not got:
            self._open.discard(fd)
        self._said[fd] = (self._said[fd] + got)[-_KEPT_BYTES:]
        if fd == self._out and not self.is_ready:
            *lines, rest = (self._line + got).split(b"\n")
            self.is_ready = any(line.strip() == READY for line in lines)
            self._line = rest[-_KEPT_BYTES:]

    def end_input(self) -> None:
        """Let its stdin end: the session's word to let go."""
        with suppress(OSError):
            self._process.stdin.close()

    def stop(self) -> None:
        """End it and what it started, however it takes that."""
        self.end_input()
        for number, patience in (
            (signal.SIGTERM, _TERM_SECONDS),
            (signal.SIGKILL, _KILLED_SECONDS),
        ):
            if self.has_ended:
                return
            self._process.kill(number)
            watch([self], lambda: self.has_ended, patience)

    def reap(self) -> None:
        """Close what is open to it; it has ended, or cannot be ended."""
        self.end_input()
        self._process.stdout.close()
        for fd in (self._err, self._pid_fd):
            os.close(fd)
        self._open.clear()

    @property
    def message(self) -> str:
        """The last line that it said on stderr, else on stdout; without what is no text."""
        for fd in (self._err, self._out):
            lines = self._said[fd].decode(errors="replace").splitlines()
            words = ["".join(c if c.isprintable() else "?" for c in line).strip() for line in lines]
            kept = [line for line in words if line and line != READY.decode()]
            if kept:
                return kept[-1][:_TOLD]
        return ""


def watch(
    processes: Sequence[HookProcess],
    is_so: Callable[[], bool],
    timeout: float,
    *,
    also: Sequence[int] = (),
) -> bool | None:
    """Take what *processes* say until *is_so*; False when *timeout* seconds went by.

    Gives None as soon as one of the descriptors *also* is readable.
    """
    end = time.monotonic() + timeout
    poll = select.poll()
    while not is_so():
        wanted = {fd for process in processes for fd in process.descriptors}
        for fd in (*wanted, *also):
            poll.register(fd, select.POLLIN)
        left = end - time.monotonic()
        readable = {fd for fd, _ in poll.poll(max(0.0, left) * 1000)}
        for fd in (*wanted, *also):
            poll.unregister(fd)
        for process in processes:
            process.take(readable)
        if readable & set(also) and not is_so():
            return None
        if left <= 0 and not is_so():
            return False
    return True


class Hooks:
    """The hooks of one begin time, in their order."""

    def __init__(
        self,
        hooks: Sequence[Sequence[str]],
        environment: Mapping[str, str],
        *,
        timeout: float,
        tell: Callable[[Told], None],
        start: Start = start_process,
    ) -> None:
        """*timeout* is for each side of each hook, in seconds; *tell* hears what became of each."""
        self._hooks = [tuple(hook) for hook in hooks]
        self._environment = {**program_environment(), **environment}
        self._timeout = timeout
        self._tell = tell
        self._start = start
        self.begun = 0  # so many were started: these are owed their other side
        self.sessions: list[HookProcess] = []

    def before(self, *, note: Callable[[], None], control: Sequence[int] = ()) -> Told | None:
        """Run the first sides, in order; give what went wrong first, None where nothing did.

        *note* puts `begun` on record, before each start.  It is cut short when one of *control* is
        readable.
        """
        for hook in self._hooks:
            self.begun += 1
            note()
            told = self._before(hook, control)
            self._tell(told)
            if not told.is_well:
                return told
            if (lost := self.lost()) is not None:
                return lost
        return None

    def _before(self, hook: tuple[str, ...], control: Sequence[int]) -> Told:
        name = os.path.basename(hook[0])
        try:
            running = HookProcess(hook, "before", self._environment, start=self._start)
        except DmcopyError as exc:
            return Told(name, "before", "failed", 0.0, str(exc))
        so = watch(
            [running, *self.sessions],
            lambda: running.is_ready or running.has_ended,
            self._timeout,
            also=control,
        )
        if so and running.is_ready and not running.has_ended:
            self.sessions.append(running)
            return Told(name, "before", "ready", running.seconds)
        running.stop()
        told = self._ended(running, "before", so)
        running.reap()
        return told

    def _ended(self, running: HookProcess, side: str, so: bool | None) -> Told:
        said = running.message
        if so is None:
            return Told(running.name, side, "failed", running.seconds, "it was interrupted")
        if not so:
            why = f"it did not end within {self._timeout:g} s" + (f": {said}" if said else "")
            return Told(running.name, side, "timed out", running.seconds, why)
        if side == "before" and running.is_ready:
            why = "it said ready, and ended at once" + (f": {said}" if said else "")
            return Told(running.name, side, "ended early", running.seconds, why)
        if running.status == 0:
            return Told(running.name, side, "done", running.seconds)
        why = _how(running.status) + (f": {said}" if said else "")
        return Told(running.name, side, "failed", running.seconds, why)

    def lost(self) -> Told | None:
        """Tell of a session that has ended: it holds nothing any more."""
        watch(self.sessions, lambda: False, 0.0)
        for one in self.sessions:
            if one.has_ended:
                return _lost(one)
        return None

    def wait(self, control: int, timeout: float) -> bool:
        """Take what the sessions say until control says something; False: *timeout* is over."""
        return watch(self.sessions, lambda: False, timeout, also=[control]) is None

    def release(self) -> Told | None:
        """Have every session let go, the last one first; give the first that had not held."""
        first = self.lost()
        for one in reversed(self.sessions):
            if not one.has_ended:
                one.end_input()
        early = [one for one in self.sessions if one.has_ended]
        while self.sessions:
            one = self.sessions.pop()
            told = _lost(one) if one in early else self._to_its_end(one, "session")
            one.stop()
            one.reap()
            self._tell(told)
            if not told.is_well and first is None:
                first = told
        return first

    def after(self, outcome: str) -> None:
        """Run the other sides, the last one first, of all that were started."""
        environment = {**self._environment, "DMCOPY_OUTCOME": outcome}
        while self.begun:
            self.begun -= 1
            hook = self._hooks[self.begun]
            try:
                running = HookProcess(hook, "after", environment, start=self._start)
            except DmcopyError as exc:
                self._tell(Told(os.path.basename(hook[0]), "after", "failed", 0.0, str(exc)))
                continue
            running.end_input()
            self._tell(self._to_its_end(running, "after"))
            running.reap()

    def _to_its_end(self, running: HookProcess, side: str) -> Told:
        """Wait for its end as long as it may take, and end it then."""
        so = watch([running, *self.sessions], lambda: running.has_ended, self._timeout)
        running.stop()
        return self._ended(running, side, so)


def _lost(session: HookProcess) -> Told:
    said = f": {session.message}" if session.message else ""
    why = f"it {_how(session.status)} before it was told to let go{said}"
    return Told(session.name, "session", "ended early", session.seconds, why)


def _how(status: int | None) -> str:
    if status is None:
        return "cannot be killed"
    if status < 0:
        return f"was killed by {signal.Signals(-status).name}"
    return f"ended with status {status}"
