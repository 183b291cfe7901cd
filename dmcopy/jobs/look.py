"""Looks at a job's image while it is copied, or was: `dmcopy show --map`.  Changes nothing.

What is copied is in the journal.  Everything else is asked of the kernel: which tables writes pass
through, how many wait in them, and what the exception store has.  What is on its way, and for how
long the gate has been up, is asked of the process that runs the job; without one there is neither.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from dmcopy.core import dmstats
from dmcopy.core.extent import Extent, merge
from dmcopy.core.image_map import ImageMap, Waiting
from dmcopy.core.table import Table
from dmcopy.core.targets.delay import Delay, DelayStatus
from dmcopy.core.targets.linear import Linear
from dmcopy.engine.exceptions_view import CowView
from dmcopy.engine.request import extents_of
from dmcopy.errors import DmcopyError, DmFailed, Refused
from dmcopy.jobs.control import ask
from dmcopy.jobs.host import Host
from dmcopy.jobs.journal import Journal
from dmcopy.jobs.overview import JobView
from dmcopy.jobs.spec import CopySpec
from dmcopy.kernel.blkdev import BlockDevice
from dmcopy.kernel.dm import Dm, DmInfo
from dmcopy.stack.names import Role
from dmcopy.stack.recover import Remains, find_remains
from dmcopy.units import Sectors, to_sectors

_ANSWER_SECONDS: Final = 10.0
_SAMPLE_SECONDS: Final = 0.2  # that writes are watched to tell how long they take


def look(view: JobView, host: Host, *, sleep: Callable[[float], None] = time.sleep) -> ImageMap:
    """Give the map of a job's image; raises `Refused` where there is none yet."""
    record = view.record
    if record is None or record.facts is None:
        raise Refused(f"job {view.job} has no begin time, so there is no map")
    length = Sectors(record.facts["source"]["length_sectors"])
    spec = CopySpec.from_json(record.spec)
    dm = host.dm
    remains = find_remains(dm, host.sysfs).get(view.job) if dm is not None else None
    saved = None
    chunk = to_sectors(spec.chunk)
    if remains is not None and remains.devices.keys() >= {Role.SNAP, Role.SOURCE, Role.COW}:
        saved = _saved(host, remains.devices[Role.COW], chunk, length)
    # after the kernel was asked: where nothing stands any more, all of it is on record
    with Journal(host.places.journal, read_only=True) as journal:
        copied = merge(row.extent for row in journal.done(view.job))
    if dm is None or remains is None or saved is None:
        return ImageMap(job=view.job, length=length, chunk=None, copied=copied)
    copying, gated, since = _from_the_job(view, host)
    waiting = [*_delayed(dm, remains, since), *_saving(host, remains, sleep)]
    return ImageMap(
        job=view.job,
        length=length,
        chunk=chunk,
        copied=copied,
        retired=_retired(dm, remains),
        saved=saved,
        copying=copying,
        gated=gated,
        waiting=waiting,
    )


def _from_the_job(view: JobView, host: Host) -> tuple[list[Extent], list[Extent], float | None]:
    """Ask the process that runs the job what is on its way, what is gated, and since when."""
    if view.pid is None:
        return [], [], None
    try:
        answer = ask(host.places.desks, view.job, "look", timeout=_ANSWER_SECONDS)
    except DmcopyError:  # it has copied everything, or ends right now
        return [], [], None
    gated = answer["gated"]
    return (
        merge(extents_of(answer["batch"])),
        list(extents_of([gated])) if gated is not None else [],
        answer.get("seconds"),
    )


def _retired(dm: Dm, remains: Remains) -> list[Extent]:
    """Give what the table that has the say maps straight to the source."""
    top = remains.devices.get(Role.GATE)
    names = [top.name] if top is not None else [one.name for one in remains.origins if one.live]
    source = remains.devices[Role.SOURCE].devno
    found: list[Extent] = []
    for name in names:
        found += [
            Extent(row.start, row.target.length)
            for row in _table(dm, name).rows
            if isinstance(row.target, Linear) and row.target.device == source
        ]
    return merge(found)


def _table(dm: Dm, name: str) -> Table:
    try:
        return dm.table(name)
    except DmFailed:  # it went while we look
        return Table()


def _saved(host: Host, cow: DmInfo, chunk: Sectors, length: Sectors) -> list[Extent] | None:
    """Give what the exception store says is saved, read past the page cache.

    None where the job ends right now, and the store has gone.
    """
    assert host.dm is not None
    try:
        with BlockDevice.open(host.sysfs.node(cow.devno)) as device:
            view = CowView(
                device.fd, device.path, chunk=chunk, source=length, block=device.logical_block
            )
            view.refresh()
            return view.saved()
    except (OSError, DmcopyError):
        if host.dm.find(cow.uuid) is not None:
            raise
        return None


def _delayed(dm: Dm, remains: Remains, since: float | None) -> list[Waiting]:
    """Give the writes that brake or gate hold."""
    brake, meter = remains.devices.get(Role.BRAKE), remains.devices.get(Role.METER)
    if brake is None:
        return []
    try:
        rows = [row for row in dm.status(brake.name, flush=False) if row.kind == Delay.KIND]
        delays = [row.target for row in dm.table(brake.name).rows if isinstance(row.target, Delay)]
        areas = _busy(dm, meter.name, remains.job) if meter is not None else []
    except (DmFailed, ValueError):
        return []
    writes = sum(DelayStatus.parse(row.text).writes for row in rows)
    if not rows:
        return []
    held = [Extent(Sectors(row.start), Sectors(row.length)) for row in rows]
    extents = merge(part for one in held for area in areas if (part := area.clip(one)) is not None)
    return [
        Waiting(
            "gate" if since is not None else "brake",
            writes,
            tuple(extents) if writes else (),
            seconds=since,
            most_seconds=max(path.milliseconds for delay in delays for path in delay.paths) / 1000
            if delays
            else None,
        )
    ]


def _busy(dm: Dm, meter: str, job: str) -> list[Extent]:
    """Give the areas in which I/O is under way below the meter."""
    regions = dmstats.regions(dm.message(meter, 0, dmstats.list_message(f"dmcopy-{job}")))
    return [
        area.extent
        for region in regions
        for area in dmstats.areas(dm.message(meter, 0, dmstats.print_message(region)))
        if area.in_progress
    ]


def _saving(host: Host, remains: Remains, sleep: Callable[[float], None]) -> list[Waiting]:
    """Give the writes that wait for the snapshot: under way on the origin, not on the source."""
    sysfs = host.sysfs
    gate = remains.devices.get(Role.GATE)
    above = [gate.name] if gate is not None else [one.name for one in remains.origins if one.live]
    if not above or host.dm is None:
        return []
    info = host.dm.info(above[0])
    if info is None:
        return []
    try:
        before = sysfs.io_times(info.devno)
        # in this order: a write that is passed on meanwhile is counted by both
        writes = sysfs.writes_under_way(info.devno)
        writes -= sysfs.writes_under_way(remains.devices[Role.SOURCE].devno)
        sleep(_SAMPLE_SECONDS)
        since = sysfs.io_times(info.devno).since(before)
    except OSError:
        return []
    mean = since.milliseconds / 1000 / since.writes if since.writes > 0 else None
    return [Waiting("saving", max(writes, 0), mean_seconds=mean)]
