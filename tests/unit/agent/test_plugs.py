"""Which appearances of devices the agent acts on, when udev tells them well, twice, late or not."""

from __future__ import annotations

import time
from collections.abc import Callable
from queue import Empty, Queue
from typing import Final

import pytest

from dmcopy.agent.plugs import Plugs
from dmcopy.errors import DmcopyError
from dmcopy.kernel.udev import Event, Overflow
from tests.unit.waiting import until

_CALM: Final = 0.02


class Udev:
    """A host whose disks are plugged in by the test; `acts` is its policies' answer."""

    def __init__(self) -> None:
        self.disks: dict[str, str] = {}  # what is there: number and appearance
        self.hidden: set[str] = set()
        self.events: Queue[Event | Exception] = Queue()
        self.acts: Callable[[str], bool] = lambda _: True
        self.started: list[str] = []
        self.asked: list[str] = []
        self.listens = 0
        self.waits = 0
        self.floods = False
        self.plugs = Plugs(
            listen=self._listen,
            present=lambda: list(self.disks),
            is_ready=lambda devno: devno not in self.hidden,
            appearance=self._appearance,
            acts=self._acts,
            start=self.started.append,
            patience=0.05,
            calm=_CALM,
        )

    def _listen(self) -> Udev:
        self.listens += 1
        return self

    def wait(self, seconds: float) -> Event | None:
        self.waits += 1
        if self.floods:
            raise Overflow
        try:
            event = self.events.get(timeout=min(seconds, 0.01))
        except Empty:
            return None
        if isinstance(event, Exception):
            raise event
        return event

    def _appearance(self, devno: str) -> str:
        try:
            return self.disks[devno]
        except KeyError:
            raise FileNotFoundError(devno) from None

    def _acts(self, devno: str) -> bool:
        self.asked.append(devno)
        return self.acts(devno)

    def plug(self, devno: str, name: str, *, ready: bool = True) -> None:
        self.disks[devno] = name
        self.tell("add", devno, ready=ready)

    def tell(self, action: str, devno: str, *, ready: bool = True) -> None:
        self.events.put(Event(action, devno, ready))

    def unplug(self, devno: str) -> None:
        del self.disks[devno]
        self.tell("remove", devno)

    def quiet(self) -> None:
        """Let everything that was told be worked off, and be due."""
        until(self.events.empty, 5.0)
        self.turn()
        until(lambda: not self.plugs._due, 5.0)
        self.turn()

    def turn(self) -> None:
        """Let all be worked off that came out of the last wait."""
        goal = self.waits + 2
        until(lambda: self.waits >= goal, 5.0)


@pytest.fixture
def udev() -> Udev:
    return Udev()


def _started(udev: Udev) -> None:
    udev.plugs.start()
    until(lambda: udev.waits, 5.0)


def test_disk_that_appears_is_acted_on_once_however_often_it_is_told_of(udev: Udev) -> None:
    _started(udev)
    udev.plug("8:0", "1 sda")
    for _ in range(300):
        udev.tell("change", "8:0")
    udev.quiet()
    assert udev.started == ["8:0"]
    assert udev.asked == ["8:0"]
    udev.plugs.stop()


def test_disk_that_is_there_when_the_agent_starts_is_left_alone(udev: Udev) -> None:
    udev.disks["8:0"] = "1 sda"
    _started(udev)
    udev.tell("change", "8:0")
    udev.quiet()
    assert udev.asked == []
    udev.plugs.stop()


def test_each_time_that_it_is_plugged_in_counts(udev: Udev) -> None:
    _started(udev)
    for number in range(3):
        udev.plug("8:0", f"{number} sda")
        udev.quiet()
        udev.unplug("8:0")
    udev.plug("8:0", "3 sda")
    udev.plug("8:0", "4 sda")  # its remove was lost
    udev.quiet()
    assert udev.started == ["8:0"] * 4
    udev.plugs.stop()


def test_device_is_acted_on_when_it_becomes_ready_and_not_before(udev: Udev) -> None:
    _started(udev)
    udev.plug("9:0", "1 md0", ready=False)
    udev.quiet()
    assert udev.asked == []
    udev.tell("change", "9:0")
    udev.quiet()
    assert udev.started == ["9:0"]
    udev.plugs.stop()


def test_disk_that_no_policy_is_for_causes_nothing(udev: Udev) -> None:
    udev.acts = lambda devno: devno == "8:16"
    _started(udev)
    udev.plug("8:0", "1 sda")
    udev.plug("8:16", "2 sdb")
    udev.quiet()
    assert udev.started == ["8:16"]
    udev.plugs.stop()


def test_disk_that_goes_at_once_is_not_acted_on(udev: Udev) -> None:
    _started(udev)
    udev.plug("8:0", "1 sda")
    udev.unplug("8:0")
    udev.quiet()
    assert udev.asked == []
    udev.plugs.stop()


def test_events_that_were_lost_are_made_up_for(udev: Udev) -> None:
    udev.disks = {"8:0": "1 sda", "8:16": "2 sdb", "8:32": "3 sdc"}
    _started(udev)
    del udev.disks["8:0"]
    udev.disks |= {"8:16": "4 sdb", "8:48": "5 sdd", "8:64": "6 sde"}
    udev.hidden = {"8:64"}
    udev.events.put(Overflow())
    udev.quiet()
    assert udev.listens == 2
    assert sorted(udev.started) == ["8:16", "8:48"]
    udev.plugs.stop()


def test_overflow_without_end_is_no_busy_loop(udev: Udev) -> None:
    _started(udev)
    before, began = udev.listens, time.monotonic()
    udev.floods = True
    while udev.listens < before + 5:
        assert time.monotonic() < began + 5.0
        time.sleep(0.001)
    assert time.monotonic() - began >= 5 * _CALM
    udev.floods = False
    udev.plug("8:0", "1 sda")
    udev.quiet()
    assert udev.started == ["8:0"]
    udev.plugs.stop()


def test_what_goes_wrong_with_one_disk_is_in_no_others_way(
    udev: Udev, caplog: pytest.LogCaptureFixture
) -> None:
    def acts(devno: str) -> bool:
        if devno == "8:0":
            raise DmcopyError("blkid returned 8")
        return True

    udev.acts = acts
    _started(udev)
    udev.plug("8:0", "1 sda")
    udev.plug("8:16", "2 sdb")
    udev.quiet()
    assert udev.started == ["8:16"]
    assert caplog.messages == ["device 8:0: blkid returned 8"]
    udev.plugs.stop()
