"""The brake's devices as a job leaves them: found by uuid, let go, and taken away.

Works from any state, for it asks the kernel what is there: when the brake goes off, when a job
is undone, and when a dead one is rescued.  See `gate` for what the devices are.
"""

from __future__ import annotations

from typing import Final

from dmcopy.core.table import Table
from dmcopy.core.targets.delay import Delay
from dmcopy.kernel.dm import Dm, DmInfo
from dmcopy.stack.gate import leads_to_ours, over
from dmcopy.stack.hold import Instant, Swap, resume_unchanged
from dmcopy.stack.lvm_view import SnapshotVolume, snapshot_volume
from dmcopy.stack.names import Role, device_name, device_uuid
from dmcopy.stack.steps import remove_device

# Top first: what is above must go before what it uses.
LAYERS: Final = (Role.METER, Role.BRAKE, Role.GATE)
_OF_LVM: Final = frozenset({Role.SOURCE, Role.COW, Role.SNAP})


class Layers:
    """The devices between one job's origin and its source."""

    def __init__(self, dm: Dm, job: str) -> None:
        self._dm = dm
        self._job = job
        self._volume: SnapshotVolume | None = None

    def info(self, role: Role) -> DmInfo | None:
        """Give what the kernel knows of one, None when it is not there.

        Source, COW device and snapshot may be LVM's (`lvm_view`).
        """
        found = self._dm.find(device_uuid(self._job, role))
        if found is None and role in _OF_LVM:
            self._volume = self._volume or snapshot_volume(self._dm, self._job)
            return self._volume.info(role) if self._volume is not None else None
        return found

    def is_origin(self, table: Table) -> bool:
        """Tell whether *table* makes its device an origin of the job, in whatever state."""
        source = self.info(Role.SOURCE)
        if source is None:
            return False
        layers = [info.devno for role in LAYERS if (info := self.info(role)) is not None]
        length = self._dm.table(source.name).length
        return leads_to_ours(table, source.devno, layers, length)

    def let_go(self, *, limit: float) -> list[Instant]:
        """Let all go on that is held; *limit* is the longest hold in seconds.

        To be done before the origin is swapped, for that waits for what is held below it.
        Gives the hold of the swap, where one was needed.
        """
        for role in reversed(LAYERS):  # what is released above must find its way
            info = self.info(role)
            if info is not None:
                resume_unchanged(self._dm, info)
        brake = self.info(Role.BRAKE)
        if brake is None:
            return []
        rows = self._dm.table(brake.name).rows
        gates = [row.target.devices()[0] for row in rows if isinstance(row.target, Delay)]
        if not gates:
            return []
        length = Table(rows).length
        return [Swap.necessary(self._dm, brake.name, limit)(over(length, gates[0]))]

    def remove(self) -> None:
        """Remove those that are there; the origin must not use them any more."""
        for role in LAYERS:
            remove_device(self._dm, device_name(self._job, role), device_uuid(self._job, role))
