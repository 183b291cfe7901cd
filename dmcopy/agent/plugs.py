"""Disks whose plug systemd did not act on: the agent looks at what udev tells, a moment later.

systemd starts what a device wants (``58-dmcopy-plug.rules``) when the device becomes ready, once; a
link that flaps while the unit is about to end, or rules that came after the disk, are lost on it.
Nothing is decided here either: what a policy does about a device, and that it does so once for each
time that it is plugged in, `triggers` says; and the unit does it.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Final, Protocol

from dmcopy.agent import triggers
from dmcopy.agent.policy import read
from dmcopy.errors import DmcopyError
from dmcopy.jobs.host import Host
from dmcopy.kernel import udev
from dmcopy.kernel.command import Commander
from dmcopy.kernel.udev import Event, Overflow

log = logging.getLogger(__name__)

_POLL: Final = 0.5  # seconds
_RETRY: Final = 5.0
_CALM: Final = 1.0  # after an overflow: events may go on coming faster than they are taken
PATIENCE: Final = 5.0  # in which systemd starts the unit by itself


class Listening(Protocol):
    """What `kernel.udev.Events` does."""

    def wait(self, seconds: float) -> Event | None: ...


class Plugs:
    """Follows the appearances of devices in a thread of its own.

    *listen* starts to listen; *present* gives the numbers of all block devices; *is_ready* tells
    whether others may use one, *appearance* what this appearance of it is called (OSError when it
    is gone); *acts* tells whether a policy would act on it now, *start* has it do so.
    """

    def __init__(
        self,
        *,
        listen: Callable[[], Listening],
        present: Callable[[], Iterable[str]],
        is_ready: Callable[[str], bool],
        appearance: Callable[[str], str],
        acts: Callable[[str], bool],
        start: Callable[[str], None],
        patience: float = PATIENCE,
        calm: float = _CALM,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._listen = listen
        self._present = present
        self._is_ready = is_ready
        self._appearance = appearance
        self._acts = acts
        self._start = start
        self._patience = patience
        self._calm = calm
        self._clock = clock
        self._known: dict[str, str] = {}  # appearances by device
        self._due: dict[str, float] = {}  # devices that are to be looked at, and when
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="plugs", daemon=True)

    def start(self) -> None:
        """Follow, from now on: what is there already was there before."""
        self._thread.start()

    def stop(self) -> None:
        """Follow no more."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        is_first = True
        while not self._stopping.is_set():
            try:
                listening = self._listen()
                if is_first:
                    self._known = {
                        devno: found
                        for devno in self._present()
                        if (found := self._name(devno)) is not None
                    }
                    is_first = False
                else:
                    self._look_around()
                self._follow(listening)
            except Overflow:
                log.warning("udev told more than could be taken: all devices are looked at")
                self._stopping.wait(self._calm)
            except Exception:  # the outermost loop of this thread, which must go on
                log.exception("devices cannot be followed, which is tried again")
                self._stopping.wait(_RETRY)

    def _follow(self, listening: Listening) -> None:
        while not self._stopping.is_set():
            event = listening.wait(_POLL)
            if event is not None:
                self._happened(event)
            self._look_at_due()

    def _look_around(self) -> None:
        """Make up for events that were lost."""
        there = set(self._present())
        for devno in self._known.keys() - there:
            self._forget(devno)
        for devno in there:
            self._happened(Event("change", devno, self._is_ready(devno)))

    def _happened(self, event: Event) -> None:
        if event.action == "remove":
            self._forget(event.devno)
            return
        found = self._name(event.devno)
        if found is None or not event.is_ready or self._known.get(event.devno) == found:
            return
        self._known[event.devno] = found
        self._due[event.devno] = self._clock() + self._patience

    def _forget(self, devno: str) -> None:
        self._known.pop(devno, None)
        self._due.pop(devno, None)

    def _name(self, devno: str) -> str | None:
        try:
            return self._appearance(devno)
        except OSError:
            return None

    def _look_at_due(self) -> None:
        now = self._clock()
        for devno in [devno for devno, at in self._due.items() if at <= now]:
            del self._due[devno]
            try:
                if self._acts(devno):
                    self._start(devno)
            except (DmcopyError, OSError) as exc:  # it has gone, a policy is wrong
                log.warning("device %s: %s", devno, exc)


def start_unit(devno: str, host: Host) -> str:
    """Have systemd start the unit of a device, unless it runs; gives what was done.

    Raises `DmcopyError`, and OSError when the device is gone.
    """
    syspath = str(host.sysfs.folder(devno).resolve())
    escape = ("systemd-escape", "--path", "--template=dmcopy-plug@.service", "--", syspath)
    unit = host.run.run(*escape, changes=False).stdout.strip()
    host.run.run("systemctl", "start", "--no-block", "--", unit)
    return f"{unit} is started"


def plugs_of(host: Host, run: Commander) -> Plugs:
    """Make what follows the devices of this host, and has systemd start their units.

    *run* starts programs from a thread.
    """
    here = replace(host, run=run)  # of a thread
    appearances = triggers.Appearances(host.places, host.sysfs)

    def acts(devno: str) -> bool:
        policies = [one for one in read(host.places).policies if one.on_plug]
        return bool(policies) and triggers.may_act(policies, devno, here)

    def start(devno: str) -> None:
        log.info("%s has appeared: %s", host.sysfs.node(devno), start_unit(devno, here))

    return Plugs(
        listen=udev.Events,
        present=lambda: os.listdir(host.sysfs.root / "dev" / "block"),
        is_ready=lambda devno: udev.properties(devno).get("SYSTEMD_READY") != "0",
        appearance=appearances.of,
        acts=acts,
        start=start,
    )
