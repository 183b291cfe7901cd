"""The devices of a job on record, as they are now: numbers change from one boot to the next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dmcopy.core.events import Grown
from dmcopy.core.table import Table
from dmcopy.errors import PointInTimeLost, Refused
from dmcopy.jobs.host import Host
from dmcopy.jobs.journal import Logged, Record
from dmcopy.jobs.standing import Json
from dmcopy.kernel import identity
from dmcopy.kernel.sysfs import Sysfs
from dmcopy.stack.cow import CowDevices, CowFileOnHost, CowLv, CowPlan, cow_from_json
from dmcopy.stack.discover import Provider, Source
from dmcopy.units import Bytes, Sectors, sectors_down


def source_now(facts: Mapping[str, Any], host: Host, *, rebooted: bool, copied: bool) -> Source:
    """Make the source of what the journal has of it, in the numbers that devices have now."""
    known = facts["source"]
    devno, table = known["devno"], known["table"]
    if rebooted and copied:  # it is not read any more, only kept from being taken for another
        devno = identity.find(known["identity"], host.sysfs)
        if devno is None:
            raise Refused(
                f"{known['path']} is not there since the machine was started",
                way_out="make it as it was, so that it is not taken for the destination",
            )
    elif facts["provider"] in (Provider.LVM, Provider.LVM_THIN):
        return _volume_now(facts, host)
    elif rebooted:
        devno, table = _after_boot(known, host)
    return Source(
        path=known["path"],
        devno=devno,
        node=known["path"] if copied else host.sysfs.node(devno),
        length=Sectors(known["length_sectors"]),
        logical_block=Bytes(known["logical_block_bytes"]),
        provider=Provider(facts["provider"]),
        why="as it was when the job began",
        dm_name=known["dm_name"],
        table=Table.parse(table) if table is not None else None,
        mounts=(),
    )


def _volume_now(facts: Mapping[str, Any], host: Host) -> Source:  # Any: JSON
    """Find a volume by its uuid: LVM may have renamed it, and gives its numbers anew."""
    known = facts["source"]
    devno = identity.find(known["identity"], host.sysfs)
    if devno is None:
        raise Refused(
            f"{known['path']} is not active", way_out=f"activate it: lvchange -ay {known['path']}"
        )
    return Source(
        path=known["path"],
        devno=devno,
        node=host.sysfs.node(devno),
        length=Sectors(known["length_sectors"]),
        logical_block=Bytes(known["logical_block_bytes"]),
        provider=Provider(facts["provider"]),
        why="as it was when the job began",
        dm_name=host.sysfs.dm_name(devno),
        table=None,
        mounts=(),
    )


def _after_boot(known: Mapping[str, Any], host: Host) -> tuple[str, str]:  # Any: JSON
    """Give the origin's number and its table, as they are since the machine was started."""
    if known["dm_name"] is None:
        raise PointInTimeLost(
            f"{known['path']} was idle, so nothing that was written to it was saved, and "
            "the machine was started again: what happened before that is not known"
        )
    table = _in_todays_numbers(known["table"], known["below"], host.sysfs)
    info = host.dm.info(known["dm_name"]) if host.dm is not None else None
    if info is None:
        raise Refused(
            f"{known['path']} is not there since the machine was started",
            way_out="make it as it was, and let nobody write to it before it is resumed: "
            f"dmsetup create {known['dm_name']} --table '{table}'",
        )
    return info.devno, table


def _in_todays_numbers(table: str, below: Json, sysfs: Sysfs) -> str:
    """Give *table* with the numbers that the devices *below*, by their identity, have now."""
    numbers = {}
    for devno, known in below.items():
        now = identity.find(known, sysfs)
        if now is None:
            raise Refused(
                f"the device {known['kname']} under the source is not there",
                way_out="attach it, then resume again",
            )
        numbers[devno] = now
    lines = (line.split(" ") for line in table.splitlines())
    return "\n".join(" ".join(numbers.get(word, word) for word in line) for line in lines)


def cow_of(
    facts: Mapping[str, Any],  # Any: JSON
    sysfs: Sysfs,
    *,
    rebooted: bool,
    copied: bool,
) -> CowPlan | None:
    """Give the COW device on record, None where there is none, or not any more.

    Raises `Refused` for a device that is not there, unless all is *copied*.
    """
    cow = cow_from_json(facts["cow"]) if facts["cow"] is not None else None
    if not rebooted or not isinstance(cow, CowDevices):
        return cow
    devices = []
    for device in cow.devices:
        try:
            devices.append(replace(device, devno=_cow_devno(device.path, sysfs)))
        except Refused:
            if not copied:
                raise
    return CowDevices(tuple(devices)) if devices else None


def room_on_record(cow: CowPlan, record: Record, log: Sequence[Logged]) -> Sectors:
    """Give a size that the COW device had for sure when the machine went down.

    It only grows.  What it lies on may be longer: the kernel never used that, and may have let
    the snapshot go for want of it.
    """
    grown = [logged.event for logged in log if logged.event["event"] == Grown.event]
    told = [*grown, *([record.progress] if record.progress is not None else [])]
    sizes = [Bytes(event["cow_total_bytes"]) for event in told if event["cow_total_bytes"]]
    return max([cow.length, *(sectors_down(size) for size in sizes)])


def store_now(cow: CowPlan, sysfs: Sysfs) -> Path | list[str]:
    """Give where the exception store is: its file, or its devices in their order."""
    if isinstance(cow, CowFileOnHost):
        if not cow.path.exists():
            raise Refused(
                f"the COW file {cow.path} is not there",
                way_out="mount what it is on, then resume again",
            )
        return cow.path
    if isinstance(cow, CowLv):
        return [_cow_devno(f"/dev/{cow.vg}/{cow.name}", sysfs)]
    return [device.devno for device in cow.devices]


def _cow_devno(path: str, sysfs: Sysfs) -> str:
    try:
        return sysfs.devno_of(path)
    except OSError as exc:
        raise Refused(
            f"COW device {path}: {exc.strerror}", way_out="attach it, then resume again"
        ) from exc
