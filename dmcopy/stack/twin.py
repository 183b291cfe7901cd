"""A finished copy, held privately while it gets an identity of its own.

A linear device of ours over the whole destination: nobody else can claim it then (dm holds it
by O_EXCL), udev leaves it alone (DMCOPY-), and LVM and mdadm are shown this one device only.  A
partition is a second one over the first.  What a killed control leaves, `take_down` takes away:
arrays and volumes that were active on it, then the device.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dmcopy.core.table import Table
from dmcopy.core.targets.linear import Linear
from dmcopy.errors import CommandFailed, DmcopyError, DmMissing
from dmcopy.kernel.command import Commander
from dmcopy.kernel.content import Part
from dmcopy.kernel.dm import Dm
from dmcopy.kernel.patience import again
from dmcopy.kernel.shelter import Shelter
from dmcopy.kernel.sysfs import Sysfs
from dmcopy.stack.names import Role, device_name, device_uuid
from dmcopy.stack.steps import remove_device
from dmcopy.units import Sectors, to_sectors

_PATIENCE: Final = 10.0  # seconds; udev, or a mount that ends, may have the device for a moment
_MD: Final = 9  # Documentation/admin-guide/devices.txt


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What the work on a twin needs of the host; *mounts* is a directory to mount on."""

    run: Commander
    dm: Dm
    sysfs: Sysfs
    shelter: Shelter
    job: str
    mounts: Path

    @contextmanager
    def twin(self, devno: str) -> Iterator[str]:
        """Give the path of a private device over all of *devno*; raises `DmBusy` if it is used."""
        take_down(self)
        length = to_sectors(self.sysfs.size(devno))
        with self._linear(Role.TWIN, devno, Sectors(0), length) as path:
            yield path

    @contextmanager
    def part(self, part: Part) -> Iterator[str]:
        """Give the path of a private device over a partition of the twin."""
        over = self.dm.info(device_name(self.job, Role.TWIN))
        assert over is not None
        with self._linear(Role.PART, over.devno, part.start, part.length) as path:
            yield path

    @contextmanager
    def _linear(self, role: Role, devno: str, start: Sectors, length: Sectors) -> Iterator[str]:
        name, uuid = device_name(self.job, role), device_uuid(self.job, role)
        made = self.dm.create(name, uuid, Table.of(Linear(length, devno, start)))
        try:
            yield self.sysfs.node(made.devno)
        finally:
            remove_device(self.dm, name, uuid)

    @contextmanager
    def hidden(self, name: str) -> Iterator[None]:
        """Keep udev from a device that is going to be there."""
        self.shelter.hide(name, self.job)
        try:
            yield
        finally:
            self.shelter.unhide(name)

    def free_array(self) -> str:
        """Give the devno of a md array that there is not."""
        numbers = (f"{_MD}:{n}" for n in range(510, 127, -1))
        folder = self.sysfs.root / "dev" / "block"
        return next(devno for devno in numbers if not (folder / devno).exists())

    def stop_array(self, node: str) -> None:
        """Stop an array; udev may have it open for a moment."""
        self.patiently("mdadm", "--stop", "--quiet", node)

    def patiently(self, *argv: str) -> None:
        """Run a program again while it fails; raises `CommandFailed` after 10 s."""
        again(lambda: self.run.run(*argv), on=CommandFailed, seconds=_PATIENCE)


def take_down(bench: Bench) -> list[str]:
    """Remove the private devices of a job and what is active on them; gives what was done.

    Raises `DmcopyError` for what resists.
    """
    done: list[str] = []
    for role in (Role.PART, Role.TWIN):
        name, uuid = device_name(bench.job, role), device_uuid(bench.job, role)
        info = bench.dm.info(name)
        if info is None or info.uuid != uuid:
            continue
        done += _stop_above(bench, info.devno)
        remove_device(bench.dm, name, uuid)
        done.append(f"removed {name}")
    for name in bench.shelter.hidden_by(bench.job):
        if name.startswith(("LVM-", f"{_MD}:")):
            bench.shelter.unhide(name)
    return done


def _stop_above(bench: Bench, devno: str) -> list[str]:
    """Stop arrays, and end LVs of the copied VG, that lie on *devno*."""
    done = []
    sysfs = bench.sysfs
    for holder in sorted(sysfs.holders(devno)):
        done += _stop_above(bench, holder)
        node = sysfs.node(holder)
        if holder.startswith(f"{_MD}:"):
            bench.stop_array(node)
            done.append(f"stopped {node}")
        elif sysfs.dm_uuid(holder).startswith("LVM-"):
            name = sysfs.dm_name(holder)
            _end_volume(bench, name)
            done.append(f"deactivated {name}")
    return done


def _end_volume(bench: Bench, name: str) -> None:
    # by its table, not by LVM: which VG it is would have to be read from a twin
    def remove() -> None:
        with suppress(DmMissing):
            bench.dm.remove(name)

    again(remove, on=DmcopyError, seconds=_PATIENCE)
