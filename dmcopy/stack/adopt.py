"""Find a begin time standing that an earlier process left, in the same boot of the machine.

All of it is in the kernel: the snapshot has saved what was overwritten since, whether or not
somebody ran.  So it is enough to look: at the origin's table, at the devices of ours under
it, and at the snapshot's own word that it is valid.  A range that passes the snapshot by must
be on record as retired: it is not read again.  `adopt` changes nothing; `settle` takes out a
brake that was left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dmcopy.core.extent import Extent, merge
from dmcopy.core.table import Row, Table
from dmcopy.core.targets.delay import Delay
from dmcopy.core.targets.linear import Linear
from dmcopy.core.targets.snapshot import Snapshot, SnapshotOrigin, SnapshotStatus
from dmcopy.errors import DmFailed, PointInTimeLost, Refused
from dmcopy.kernel.dm import Dm, DmInfo
from dmcopy.stack.gate import not_retired, over, saving
from dmcopy.stack.hold import Swap
from dmcopy.stack.layers import LAYERS, Layers
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
    unsaved: tuple[Extent, ...]  # what passes the snapshot by
    is_braked: bool


def adopt(
    dm: Dm,
    remains: Remains,
    *,
    name: str,
    original: Table | None,
    length: Sectors,
    chunk: Sectors,
    retired: Sequence[Extent],
) -> Adopted:
    """Look whether the origin *name*, whose table was *original*, is still as the job left it.

    *original* None: the snapshot is LVM's, which may move what lies under source and COW device
    (pvmove) as it likes.  *length* is the source's, *retired* is what the journal says need not be
    saved any more.  Raises `PointInTimeLost` with the reason when it is not, `Refused` when
    somebody holds it.
    """
    origin = dm.info(name)
    if origin is None:
        raise PointInTimeLost(f"the device {name} is gone, so its writes were not saved")
    source, cow, snapshot = (_device(remains, role) for role in (Role.SOURCE, Role.COW, Role.SNAP))
    if origin.suspended:
        raise Refused(f"{name} is suspended", way_out=f"see who holds it; dmsetup resume {name}")
    expected = [(snapshot.name, Table.of(Snapshot(length, source.devno, cow.devno, chunk)))]
    if original is not None:
        expected.append((source.name, original))
    for device, table in expected:
        live = _table(dm, device)
        if live != table:
            raise PointInTimeLost(f"the table of {device} is '{live}', not '{table}' as it was")
    rows = _table(dm, cow.name).rows
    if original is not None and not all(isinstance(row.target, Linear) for row in rows):
        raise PointInTimeLost(f"the table of {cow.name} was replaced")
    live, unsaved, is_braked = _path(dm, remains, origin, source, length)
    missed = not_retired(unsaved, list(retired))
    if missed:
        raise PointInTimeLost(
            f"writes to {name} at byte {missed[0].offset} were not saved, and that is not copied"
        )
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
        origin_table=live,
        unsaved=tuple(unsaved),
        is_braked=is_braked,
    )


def settle(dm: Dm, adopted: Adopted, *, job: str, name: str, limit: float) -> Table:
    """Take out a brake that a killed process left; gives the origin's table.

    *limit* is the longest hold in seconds.  What passed the snapshot by goes on doing so.
    """
    layers = Layers(dm, job)
    layers.let_go(limit=limit)
    table = saving(adopted.origin_table.length, adopted.source, list(adopted.unsaved))
    Swap.necessary(dm, name, limit)(table)
    layers.remove()
    return table


def _path(
    dm: Dm, remains: Remains, origin: DmInfo, source: DmInfo, length: Sectors
) -> tuple[Table, list[Extent], bool]:
    """Follow the origin's writes down to the snapshot.

    Gives the origin's table, what passes the snapshot by, and whether a brake is in the way.
    """
    live = _table(dm, origin.name)
    layers = [info for role in LAYERS if (info := remains.devices.get(role)) is not None]
    if len(layers) != len(LAYERS) or live != over(length, layers[0].devno):
        # no brake, or one that was not yet, or no longer, under the origin
        return live, _unsaved(live, origin.name, source.devno, None), bool(layers)
    unsaved: list[Extent] = []
    below = [*(info.devno for info in layers[1:]), None]
    for info, under in zip(layers, below, strict=True):
        unsaved += _unsaved(_table(dm, info.name), info.name, source.devno, under)
    # the gate's table may be ahead of the brake's: what passes by in either is not saved
    return live, merge(unsaved), True


def _unsaved(table: Table, name: str, source: str, under: str | None) -> list[Extent]:
    """Give what *table* maps past the snapshot: straight to the *source*.

    All else must go through snapshot-origin or to the device *under*.
    """
    unsaved = []
    for row in table.rows:
        target = row.target
        if isinstance(target, SnapshotOrigin) and target.device == source:
            continue
        if under is not None and _leads_to(row, under):
            continue
        if not _leads_to(row, source) or not isinstance(target, Linear):
            raise PointInTimeLost(f"the table of {name} was replaced by '{table}'")
        unsaved.append(Extent(row.start, target.length))
    return unsaved


def _leads_to(row: Row, devno: str) -> bool:
    target = row.target
    if isinstance(target, Linear):
        return target.device == devno and target.offset == row.start
    if isinstance(target, Delay):
        return all(path.device == devno and path.offset == row.start for path in target.paths)
    return False


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
