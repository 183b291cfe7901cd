"""Put a begin time together again after the machine went down: around the store that survived.

A persistent exception store is on its device when a write that it makes possible is (FUA,
dm-snap-persistent.c:persistent_commit_exception), so it holds the begin time over a crash, if
nobody writes to the source before the snapshot is over it again.  All that is asked here:

* the origin is there, has the table that it had, and nobody has written to it or to what is
  under it (`evidence`), neither before the swap nor, by the origin's own counter, up to it;
* the store has a valid header, of our chunk size, at least as many exceptions as the journal
  knows of, and was never near its end: a store that overflowed just before a power cut may have
  lost the mark that says so (KERNEL.md 1: the header is written without a flush).

Not for: a COW device that failed in the kernel and works again after the crash; its header may
still say valid.  Nobody can tell that from here; the journal says if the copier saw it.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from dmcopy.core.exception_store import Cursor, Header, StoreDamaged
from dmcopy.core.geometry import exceptions_per_area, never_overflow
from dmcopy.core.table import Table
from dmcopy.core.targets.linear import Linear
from dmcopy.core.targets.snapshot import Snapshot, SnapshotOrigin
from dmcopy.errors import PointInTimeLost, Refused
from dmcopy.kernel.blkdev import BlockDevice, pread_full
from dmcopy.kernel.dm import Dm
from dmcopy.kernel.sysfs import Sysfs
from dmcopy.stack.begin import Splice, Spliced
from dmcopy.stack.evidence import refuse_written
from dmcopy.stack.names import Role, device_name, device_uuid
from dmcopy.stack.plan import Plan, Step
from dmcopy.stack.steps import AttachLoop, CreateDevice, node_path
from dmcopy.units import Bytes, Sectors, round_down, sectors_down, to_bytes

_UNDER_WAY: Final = 2048  # chunks that may be allocated and not yet committed (dm-snap.c)


class CheckStore(Step):
    """Look at the exception store before the kernel takes it for its own; changes nothing."""

    def __init__(
        self,
        path: Callable[[], str],
        *,
        room: Sectors,
        source: Sectors,
        chunk: Sectors,
        known: int,
    ) -> None:
        """*known* exceptions are in the journal; the kernel had *room* at least."""
        self._path = path
        self._room = room
        self._source = source
        self._chunk = chunk
        self._known = known

    def __str__(self) -> str:
        return "look at the exception store"

    def lines(self) -> Sequence[str]:
        return (f"# {self}: its header, and how full it is",)

    def do(self) -> None:
        with BlockDevice.open(self._path()) as device:
            check_store(
                device.fd,
                block=device.logical_block,
                size=min(device.sectors, self._room),
                source=self._source,
                chunk=self._chunk,
                known=self._known,
            )

    def undo(self) -> None:
        """Nothing was changed."""


def check_store(
    fd: int, *, block: Bytes, size: Sectors, source: Sectors, chunk: Sectors, known: int
) -> None:
    """Raise `PointInTimeLost` unless the store on *fd*, of which *size* was used, can be trusted.

    *fd* is read in multiples of *block*; *source* is the length of the source, *known* counts
    the exceptions that the journal knows of.
    """
    try:
        count = _count(fd, block, chunk)
    except (StoreDamaged, OSError) as exc:
        raise PointInTimeLost(f"the exception store cannot be used: {exc}") from exc
    if count < known:
        raise PointInTimeLost(
            f"the exception store has {count} exceptions, but had {known} before the machine "
            "went down"
        )
    if size >= never_overflow(source, chunk):
        return
    per_area = exceptions_per_area(chunk)
    used = 1 + count + -(-(count + 1) // per_area)  # the header, data, and areas
    free = size // chunk - used
    if free < _UNDER_WAY + per_area:
        raise PointInTimeLost(
            f"the exception store had only {max(free, 0)} free chunks when the machine went down: "
            "whether it overflowed cannot be known"
        )


def _count(fd: int, block: Bytes, chunk: Sectors) -> int:
    """Count the exceptions; raises `StoreDamaged` for a header that is not ours or not valid."""
    with mmap.mmap(-1, to_bytes(chunk)) as memory, memoryview(memory) as view:
        with view[:block] as head:
            pread_full(fd, head, 0)
            header = Header.parse(bytes(head))
        if header.chunk_size != chunk:
            raise StoreDamaged(f"its chunks are of {header.chunk_size} sectors, not {chunk}")
        if not header.valid:
            raise StoreDamaged("the kernel marked it invalid, because it was full or failed")
        cursor = Cursor(chunk)
        count = 0
        while cursor.more:
            offset, length = cursor.pending_read(block)
            with view[:length] as part:
                pread_full(fd, part, offset)
                count += len(cursor.feed(part))
        return count


class NobodyWrote(Step):
    """Look whether the source is as it was; once more, right behind the swap."""

    def __init__(self, devno: str, path: str, sysfs: Sysfs, *, below: bool) -> None:
        """With *below* the devices under it are asked as well."""
        self._devno = devno
        self._path = path
        self._sysfs = sysfs
        self._below = below

    def __str__(self) -> str:
        return f"look whether {self._path} was written"

    def lines(self) -> Sequence[str]:
        return (f"# {self} since the machine was started",)

    def do(self) -> None:
        if self._below:
            refuse_written(self._devno, self._path, self._sysfs)
        # The swap waits for what is under way, so whoever wrote before it is counted by now.
        elif self._sysfs.writes(self._devno):
            raise PointInTimeLost(
                f"{self._path} was written while the snapshot was put under it again"
            )

    def undo(self) -> None:
        """Nothing was changed."""


def reassembled(
    dm: Dm,
    sysfs: Sysfs,
    *,
    job: str,
    name: str,
    path: str,
    original: Table,
    store: Path | Sequence[str],
    room: Sectors,
    chunk: Sectors,
    known: int,
    hold_limit: float,
) -> Spliced:
    """Make the plan that puts the snapshot under the origin *name* again; changes nothing.

    *original* is the table that it had, in today's numbers.  *store* is the COW file, or the
    COW devices by devno, in their order, and *room* what was in use of it for sure.  *known*:
    exceptions in the journal.  Raises `Refused` when the origin is not there,
    `PointInTimeLost` when it is not what it was.
    """
    info = dm.info(name)
    if info is None:
        raise Refused(
            f"{path} is not there since the machine was started",
            way_out=f"make it as it was, and let nobody write to it before: dmsetup create {name} "
            f"--table '{original}'",
        )
    live = dm.table(name)
    if live != original:
        raise PointInTimeLost(f"the table of {name} is '{live}', not '{original}' as it was")
    length = original.length

    def device(role: Role, table: Callable[[], Table]) -> CreateDevice:
        return CreateDevice(dm, device_name(job, role), device_uuid(job, role), table)

    loop = AttachLoop(store, sysfs) if isinstance(store, Path) else None

    def pieces() -> Table:
        return store_table(store, loop, sysfs, chunk)

    under = device(Role.SOURCE, lambda: original)
    cow = device(Role.COW, pieces)
    snapshot = device(
        Role.SNAP, lambda: Table.of(Snapshot(length, under.devno(), cow.devno(), chunk))
    )

    def ours() -> Table:
        return Table.of(SnapshotOrigin(length, under.devno()))

    swap = Splice(dm, name, job=job, original=original, ours=ours, limit=hold_limit)
    plan = Plan(
        job=job,
        prepare=[
            NobodyWrote(info.devno, path, sysfs, below=True),
            under,
            *([loop] if loop is not None else []),
            cow,
            CheckStore(node_path(sysfs, cow), room=room, source=length, chunk=chunk, known=known),
            snapshot,
        ],
        critical=[swap],
        finish=[NobodyWrote(info.devno, path, sysfs, below=False)],
    )
    return Spliced(
        plan=plan, splice=swap, source=under, cow=cow, snapshot=snapshot, origin_table=ours
    )


def store_table(
    store: Path | Sequence[str], loop: AttachLoop | None, sysfs: Sysfs, chunk: Sectors
) -> Table:
    """Give the table of the COW device over its file behind *loop*, or its devices by devno."""
    devnos = store if not isinstance(store, Path) else [loop.devno()] if loop else []
    return Table.of(*(_whole(devno, sysfs, chunk) for devno in devnos))


def _whole(devno: str, sysfs: Sysfs, chunk: Sectors) -> Linear:
    length = round_down(sectors_down(sysfs.size(devno)), chunk)
    return Linear(length, devno, Sectors(0))
