"""A device-mapper in memory, with the kernel's rules that the stack relies on.

For what cannot be provoked on a real kernel, or not quickly; tests/lab is where the stack is
proved.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from dmcopy.core.table import Table
from dmcopy.errors import DmBusy, DmFailed, DmMissing
from dmcopy.kernel.dm import DmInfo, DmStatus


class Asked:
    """Does something just before the kernel is asked for the nth time, from 0."""

    def __init__(self, nth: int, do: Callable[[], object]) -> None:
        self.left = nth
        self._do = do

    @property
    def has_come(self) -> bool:
        return self.left < 0

    def __call__(self) -> None:
        self.left -= 1
        if self.left == -1:
            self._do()


@dataclass
class FakeDevice:
    """One device."""

    uuid: str
    devno: str
    live: Table = field(default_factory=Table)
    inactive: Table | None = None
    suspended: bool = False
    opened: int = 0
    read_only: bool = False


class FakeDm:
    """Implements dmcopy.kernel.dm.Dm; `calls` are the changes, in order."""

    def __init__(self) -> None:
        self.all: dict[str, FakeDevice] = {}
        self.calls: list[str] = []
        self.fail: dict[str, DmFailed] = {}  # "verb name" -> what it raises
        self.asked: Callable[[], object] = lambda: None  # before each look
        self._minor = 0

    def _change(self, verb: str, name: str) -> None:
        call = f"{verb} {name}"
        self.calls.append(call)
        if call in self.fail:
            if verb == "resume" and name in self.all:
                self.all[name].inactive = None  # as do_resume: the new table is destroyed
            raise self.fail[call]

    def _look(self, verb: str, name: str) -> FakeDevice:
        self.asked()
        return self._device(verb, name)

    def _device(self, verb: str, name: str) -> FakeDevice:
        if name not in self.all:
            raise DmMissing(verb, name, "No such device or address")
        return self.all[name]

    def add(self, name: str, table: str, *, uuid: str = "", opened: int = 0) -> FakeDevice:
        """Have a device that was there before."""
        device = FakeDevice(uuid, f"254:{self._minor}", Table.parse(table), opened=opened)
        self._minor += 1
        self.all[name] = device
        return device

    def version(self) -> tuple[int, int, int]:
        return (4, 47, 0)

    def targets(self) -> dict[str, tuple[int, int, int]]:
        return {"linear": (1, 4, 0), "snapshot": (1, 16, 0), "snapshot-origin": (1, 9, 0)}

    def devices(self) -> list[DmInfo]:
        self.asked()
        return [info for name in list(self.all) if (info := self.info(name)) is not None]

    def info(self, name: str) -> DmInfo | None:
        self.asked()
        device = self.all.get(name)
        if device is None:
            return None
        used = sum(device.devno in other.live.devices() for other in self.all.values())
        return DmInfo(
            name=name,
            uuid=device.uuid,
            devno=device.devno,
            open_count=device.opened + used,
            event_nr=0,
            target_count=len(device.live),
            live=len(device.live) > 0,
            inactive=device.inactive is not None,
            suspended=device.suspended,
            read_only=device.read_only,
        )

    def find(self, uuid: str) -> DmInfo | None:
        return next((info for info in self.devices() if info.uuid == uuid), None)

    def create(
        self, name: str, uuid: str, table: Table | None = None, *, read_only: bool = False
    ) -> DmInfo:
        self._change("create", name)
        if name in self.all:
            raise DmBusy("create", name, "Device or resource busy")
        device = self.add(name, "", uuid=uuid)
        device.read_only = read_only
        device.live = table or Table()
        info = self.info(name)
        assert info is not None
        return info

    def load(self, name: str, table: Table, *, read_only: bool = False) -> None:
        del read_only
        self._change("load", name)
        self._device("load", name).inactive = table

    def clear(self, name: str) -> None:
        self._change("clear", name)
        self._device("clear", name).inactive = None

    def suspend(self, name: str, *, lockfs: bool = True, flush: bool = True) -> None:
        del lockfs, flush
        self._change("suspend", name)
        self._device("suspend", name).suspended = True

    def resume(self, name: str, *, lockfs: bool = True, flush: bool = True) -> None:
        del lockfs, flush
        self._change("resume", name)
        device = self._device("resume", name)
        if device.inactive is not None:
            device.live, device.inactive = device.inactive, None
        device.suspended = False

    def prepare_suspend(
        self, name: str, *, lockfs: bool = True, flush: bool = True
    ) -> Callable[[], object]:
        del lockfs, flush
        return lambda: self.suspend(name)

    def prepare_clear(self, name: str) -> Callable[[], object]:
        return lambda: self.clear(name)

    def prepare_resume(
        self, name: str, *, lockfs: bool = True, flush: bool = True
    ) -> Callable[[], object]:
        del lockfs, flush
        self._device("resume", name)
        return lambda: self.resume(name)

    def prepare_exchange(
        self, name: str, over: Table, *, lockfs: bool = True, flush: bool = True
    ) -> Callable[[], bool]:
        del lockfs, flush
        self._device("resume", name)

        def exchange() -> bool:
            self.suspend(name)
            same = self.table(name) == over
            if not same:
                self.clear(name)
            self.resume(name)
            return same

        return exchange

    def remove(self, name: str, *, deferred: bool = False) -> None:
        del deferred
        self._change("remove", name)
        info = self.info(name)
        if info is None:
            raise DmMissing("remove", name, "No such device or address")
        if info.open_count:
            raise DmBusy("remove", name, "Device or resource busy")
        del self.all[name]

    def rename(self, name: str, new: str) -> None:
        self._change("rename", name)
        self.all[new] = self.all.pop(name)

    def table(self, name: str, *, inactive: bool = False) -> Table:
        device = self._look("read the table of", name)
        return (device.inactive or Table()) if inactive else device.live

    def status(self, name: str, *, flush: bool = True) -> list[DmStatus]:
        del flush
        rows = self._look("read the status of", name).live.rows
        return [DmStatus(row.start, row.target.length, row.target.kind, "") for row in rows]

    def deps(self, name: str) -> list[str]:
        return sorted(self._look("read the dependencies of", name).live.devices())

    def message(self, name: str, sector: int, text: str) -> str:
        self._change(f"message {sector} {text} to", name)
        return ""

    def wait(self, name: str, event_nr: int, *, timeout: float) -> int | None:
        del name, event_nr, timeout
        return None
