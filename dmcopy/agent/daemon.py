"""The agent's life: one process that watches jobs and answers; jobs never depend on it.

Killed, it leaves every job as it is; started again, it sees them all, for all it knows is in the
journal and the kernel.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Final

from dmcopy.agent.config import Config
from dmcopy.agent.launch import Launcher
from dmcopy.agent.plugs import Plugs
from dmcopy.agent.server import Peer, Server
from dmcopy.agent.service import Methods, service_of
from dmcopy.agent.timers import LONGEST, Timers
from dmcopy.agent.watch import Watch
from dmcopy.errors import DmcopyError, Refused
from dmcopy.jobs.spec import Places
from dmcopy.kernel import systemd

log = logging.getLogger(__name__)

_HUNG_SECONDS: Final = 120.0  # for one look at the jobs
_STOPS: Final = (signal.SIGTERM, signal.SIGINT)


class Agent:
    """Runs until SIGTERM or SIGINT; SIGHUP has it read its files again.

    *tick* is done at least every 30 seconds (the metrics' file).
    """

    def __init__(
        self,
        places: Places,
        config: Config,
        *,
        launcher: Launcher,
        watch: Watch,
        timers: Timers,
        metrics: Callable[[], str],
        tick: Sequence[Callable[[], None]] = (),
        plugs: Plugs | None = None,
    ) -> None:
        self._places = places
        self._config = config
        self._launcher = launcher
        self._watch = watch
        self._timers = timers
        self._tick = tick
        self._plugs = plugs
        self._methods = Methods(places, launcher, watch, metrics)
        self._woken = threading.Event()
        self._stopping = False

    def run(self) -> None:
        """Serve; raises `Refused` when there is an agent already, and OSError."""
        gid = self._config.gid
        with (
            _only(self._places.runtime),
            self._signals(),
            _listening(self._places.agent, gid) as listening,
        ):
            server = Server(
                service_of(self._methods), listening, may_ask=lambda peer: may_ask(peer, gid)
            )
            self._watch.start()
            server.start()
            if self._plugs is not None:
                self._plugs.start()
            systemd.notify("READY=1", "STATUS=watching")
            try:
                self._serve(server)
            finally:
                systemd.notify("STOPPING=1")
                server.stop()
                self._watch.stop()
                if self._plugs is not None:
                    self._plugs.stop()

    def _serve(self, server: Server) -> None:
        limit = systemd.watchdog_seconds()
        while not self._stopping:
            late = time.monotonic() - self._watch.looked
            if not (server.is_alive and self._watch.is_alive):
                raise DmcopyError("a thread of the agent has died")  # systemd starts it again
            if late < _HUNG_SECONDS:
                systemd.notify("WATCHDOG=1")
            for name in self._timers.due():
                log.info("policy %s is due", name)
                threading.Thread(target=self._run_policy, args=(name,), daemon=True).start()
            for task in self._tick:
                task()
            pause = min(self._timers.pause(), LONGEST, limit / 3 if limit else LONGEST)
            self._woken.wait(pause)
            self._woken.clear()

    def _run_policy(self, name: str) -> None:
        try:
            self._launcher.policy(name)
        except DmcopyError as exc:
            log.error("policy %s: %s", name, exc)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        before = {number: signal.getsignal(number) for number in (*_STOPS, signal.SIGHUP)}
        for number in before:
            signal.signal(number, self._signalled)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _signalled(self, number: int, _frame: FrameType | None) -> None:
        if number in _STOPS:
            self._stopping = True
        self._woken.set()


def may_ask(peer: Peer, gid: int | None) -> bool:
    """Tell whether root or a member of the group is at the other end."""
    if peer.uid in (0, os.geteuid()):
        return True
    return gid is not None and gid in (peer.gid, *peer.groups)


@contextlib.contextmanager
def _only(runtime: Path) -> Iterator[None]:
    """Be the only agent of *runtime*; the lock goes with the process."""
    runtime.mkdir(mode=0o755, parents=True, exist_ok=True)
    # as tmpfiles.d makes it, whatever our umask (that of the unit is 0077): the group that may ask
    # must come as far as the socket.  What is in it is made for us alone.
    runtime.chmod(0o755)
    fd = os.open(runtime / "agent.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            if exc.errno != errno.EWOULDBLOCK:
                raise
            raise Refused(
                f"another agent has {runtime}", way_out="see: systemctl status dmcopy-agent"
            ) from exc
        yield
    finally:
        os.close(fd)


@contextlib.contextmanager
def _listening(path: Path, gid: int | None) -> Iterator[socket.socket]:
    """Give the socket that systemd has for us, or one of our own at *path*."""
    given = systemd.listening()
    if given is not None:
        with given:
            yield given
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as ours:
        path.unlink(missing_ok=True)  # of an agent that was killed: the lock is ours
        before = os.umask(0o177)  # from its first moment nobody else's
        try:
            ours.bind(str(path))
        finally:
            os.umask(before)
        if gid is not None:
            os.chown(path, -1, gid)
            path.chmod(0o660)
        ours.listen(128)
        try:
            yield ours
        finally:
            path.unlink(missing_ok=True)
