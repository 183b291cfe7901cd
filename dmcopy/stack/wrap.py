"""A wrap: a linear dm device over a whole device, which the application uses in its place.

Nothing can be put under a device that is mounted; under a dm device it can.  So what is wrapped
once, before it is mounted, can be copied live from then on like any dm device.

After the machine went down in mid-copy the wrap comes up *with* the snapshot: it is made without a
table (the kernel has no block device for it then: dm.c:dm_setup_md_queue), the devices of the job
are made, and its first table is snapshot-origin.  There is no moment in which a write could miss
the snapshot: the ``-source`` device has claimed what is under it before anybody looks whether that
was written, so that nobody can mount it any more, and the wrap leads to it by the snapshot only.
Proof: test_power_cut_boot_mount_load_resume_gives_the_image, and
test_broken_wrap_shown_before_its_snapshot_gives_a_wrong_image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dmcopy.core.table import Table
from dmcopy.core.targets.linear import Linear
from dmcopy.core.targets.snapshot import Snapshot, SnapshotOrigin
from dmcopy.errors import DmMissing, PointInTimeLost
from dmcopy.kernel.dm import WRAPS, Dm, DmInfo
from dmcopy.kernel.sysfs import Sysfs
from dmcopy.stack.names import Role, device_name, device_uuid, owner
from dmcopy.stack.plan import Plan, Step
from dmcopy.stack.reassemble import CheckStore, NobodyWrote, store_table
from dmcopy.stack.steps import AttachLoop, CreateDevice, node_path, remove_device, with_table
from dmcopy.units import Sectors


def wrap_uuid(name: str) -> str:
    """Give the dm uuid of a wrap."""
    return f"{WRAPS}{name}"


def wrap_name(uuid: str) -> str | None:
    """Read a dm uuid; None when it is no wrap's."""
    return uuid.removeprefix(WRAPS) if uuid.startswith(WRAPS) else None


def wrap_table(length: Sectors, under: str) -> Table:
    """Give the table of a wrap of the first *length* sectors of the device *under*, by devno."""
    return Table.of(Linear(length, under, Sectors(0)))


def under_wrap(dm: Dm, info: DmInfo) -> str | None:
    """Give the device that a wrap is over, by devno; None where it has no table, or is gone.

    While it is copied that is under the job's ``-source`` device.
    """
    while True:
        try:
            first = dm.deps(info.name)
        except DmMissing:
            return None
        with suppress(DmMissing):  # a job ends right now: so look again
            below = _lowest(dm, first)
            # a job that begins or ends meanwhile changes the wrap's own table first or last
            if dm.deps(info.name) == first:
                return below


def _lowest(dm: Dm, below: list[str]) -> str | None:
    """Follow our own devices down to what they are over."""
    while below:
        devno = min(below)
        over = next((one for one in dm.devices() if one.devno == devno), None)
        if over is None or owner(over.uuid) is None:
            return devno
        below = dm.deps(over.name)
    return None


class CreateWrap(Step):
    """Make a wrap, with its table, or without: then nobody can read or write it."""

    def __init__(self, dm: Dm, name: str, table: Table | None) -> None:
        self._dm = dm
        self._name = name
        self._table = table

    def __str__(self) -> str:
        return f"create {self._name}" + ("" if self._table else " without a table")

    def lines(self) -> Sequence[str]:
        argv = ["dmsetup", "create", self._name, "--uuid", wrap_uuid(self._name)]
        if self._table is None:
            return (f"{' '.join(argv)} --notable",)
        return (with_table(argv, self._table),)

    def do(self) -> None:
        self._dm.create(self._name, wrap_uuid(self._name), self._table)

    def undo(self) -> None:
        remove_device(self._dm, self._name, wrap_uuid(self._name))


class ShowWrap(Step):
    """Give a wrap that has no table its first one: from now on all can use it."""

    def __init__(self, dm: Dm, name: str, table: Callable[[], Table]) -> None:
        self._dm = dm
        self._name = name
        self._table = table

    def __str__(self) -> str:
        return f"show {self._name}"

    def lines(self) -> Sequence[str]:
        load = ["dmsetup", "load", self._name]
        return (with_table(load, self._table()), f"dmsetup resume {self._name}")

    def do(self) -> None:
        self._dm.load(self._name, self._table())
        self._dm.resume(self._name)

    def undo(self) -> None:
        """Nothing: it goes with the step that made it."""


class Told(Step):
    """Have the caller write down what is true from here on, durably."""

    def __init__(self, what: str, tell: Callable[[], None]) -> None:
        self._what = what
        self._tell = tell

    def __str__(self) -> str:
        return self._what

    def lines(self) -> Sequence[str]:
        return (f"# {self}",)

    def do(self) -> None:
        self._tell()

    def undo(self) -> None:
        """Nothing: the caller says what became of it."""


def plain(dm: Dm, name: str, table: Table) -> Plan:
    """Make the plan that puts a wrap up with no snapshot."""
    return Plan(job=name, prepare=[CreateWrap(dm, name, table)])


@dataclass(frozen=True, kw_only=True)
class Store:
    """The exception store of a job, as it is to be found again.

    *place*: its file, or its devices by devno in their order; *room* is what was in use of it
    for sure, *known* counts the exceptions that the journal knows of.
    """

    place: Path | Sequence[str]
    room: Sectors
    chunk: Sectors
    known: int


def with_snapshot(
    dm: Dm,
    sysfs: Sysfs,
    *,
    job: str,
    name: str,
    path: str,
    original: Table,
    store: Store,
    tell: Callable[[], None],
) -> Plan:
    """Make the plan that puts a wrap up over the snapshot of an unfinished *job*.

    *original* is the wrap's plain table in today's numbers, *path* what is under it.  *tell* is
    called when all is ready and the wrap is not shown yet.  When it was run the snapshot stays;
    it is `PointInTimeLost` when it cannot be what it was.
    """
    length, (devno,) = original.length, original.devices()
    chunk = store.chunk

    def device(role: Role, table: Callable[[], Table]) -> CreateDevice:
        return CreateDevice(dm, device_name(job, role), device_uuid(job, role), table)

    loop = AttachLoop(store.place, sysfs) if isinstance(store.place, Path) else None
    under = device(Role.SOURCE, lambda: original)
    cow = device(Role.COW, lambda: store_table(store.place, loop, sysfs, chunk))
    snapshot = device(
        Role.SNAP, lambda: Table.of(Snapshot(length, under.devno(), cow.devno(), chunk))
    )
    check = CheckStore(
        node_path(sysfs, cow), room=store.room, source=length, chunk=chunk, known=store.known
    )
    unwritten = NobodyWrote(devno, path, sysfs, below=True)
    return Plan(
        job=job,
        prepare=[
            CreateWrap(dm, name, None),
            under,  # claims what is under it: nobody can mount that from now on
            unwritten,
            *([loop] if loop is not None else []),
            cow,
            check,
            snapshot,
            unwritten,
            Told(f"record that job {job} can be resumed", tell),
        ],
        critical=[
            ShowWrap(dm, name, lambda: Table.of(SnapshotOrigin(length, under.devno()))),
        ],
    )


def refuse_other_table(original: Table, known: Table) -> None:
    """Raise `PointInTimeLost` unless *known*, of the journal, was a wrap as *original* is."""
    rows = known.rows
    if len(rows) != 1 or not isinstance(rows[0].target, Linear) or rows[0].target.offset:
        raise PointInTimeLost(f"the wrap's table was '{known}' when the job began: not a wrap's")
    if rows[0].target.length != original.length:
        raise PointInTimeLost(
            f"the wrap had {rows[0].target.length} sectors when the job began, and now has "
            f"{original.length}"
        )
