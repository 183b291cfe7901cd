"""Find a begin time standing that an earlier process left, in the same boot of the machine.

All of it is in the kernel: the snapshot has saved what was overwritten since, whether or not
somebody ran.  So it is enough to look: at the origin's table, at the devices of ours under
it, and at the snapshot's own word that it is valid.  Changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from dmcopy.core.table import Table
from dmcopy.core.targets.linear import Linear
from dmcopy.core.targets.snapshot import Snapshot, SnapshotOrigin, SnapshotStatus
from dmcopy.errors import DmFailed, PointInTimeLost, Refused
from dmcopy.kernel.dm import Dm, DmInfo
from dmcopy.stack.names import Role
from dmcopy.stack.recover import Remains
from dmcopy.units import Sectors


@dataclass(frozen=True, kw_only=True)
class Adopted:
    """Devices of ours that still hold a begin time; by devno, but for the snapshot's uuid."""

    origin: str
    source: str
    cow: str
    snapshot: str
    snapshot_uuid: str
    origin_table: Table


def adopt(dm: Dm, remains: Remains, *, name: str, original: Table, chunk: Sectors) -> Adopted:
    """Look whether the origin *name*, whose table was *original*, is still as the job left it.

    Raises `PointInTimeLost` with the reason when it is not, `Refused` when somebody holds it.
    """
    origin = dm.info(name)
    if origin is None:
        raise PointInTimeLost(f"the device {name} is gone, and with it its writes were not saved")
    source, cow, snapshot = (_device(remains, role) for role in (Role.SOURCE, Role.COW, Role.SNAP))
    if origin.suspended:
        raise Refused(f"{name} is suspended", way_out=f"see who holds it; dmsetup resume {name}")
    length = original.length
    ours = Table.of(SnapshotOrigin(length, source.devno))
    expected = (
        (name, ours),
        (source.name, original),
        (snapshot.name, Table.of(Snapshot(length, source.devno, cow.devno, chunk))),
    )
    for device, table in expected:
        live = _table(dm, device)
        if live != table:
            raise PointInTimeLost(f"the table of {device} is '{live}', not '{table}' as it was")
    if not all(isinstance(row.target, Linear) for row in _table(dm, cow.name).rows):
        raise PointInTimeLost(f"the table of {cow.name} was replaced")
    (said,) = dm.status(snapshot.name, flush=False)
    if not SnapshotStatus.parse(said.text).is_valid:
        raise PointInTimeLost(
            f"the snapshot is no longer valid: the kernel says '{said.text}', because the COW "
            "device became full or failed"
        )
    return Adopted(
        origin=origin.devno,
        source=source.devno,
        cow=cow.devno,
        snapshot=snapshot.devno,
        snapshot_uuid=snapshot.uuid,
        origin_table=ours,
    )


def _device(remains: Remains, role: Role) -> DmInfo:
    found = remains.devices.get(role)
    if found is None:
        raise PointInTimeLost(f"the {role} device of the job was removed")
    return found


def _table(dm: Dm, name: str) -> Table:
    try:
        return dm.table(name)
    except DmFailed as exc:
        raise PointInTimeLost(str(exc)) from exc
