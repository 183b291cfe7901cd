"""The third-leg split: a RAID1 that is mounted as it is, copied as of one instant, without dm.

The spare becomes a member (``mdadm --grow``) and gets all data.  The file systems on the array are
frozen, that member is failed by one write to sysfs, and they are thawed: it is the array as of
then, and nobody writes to it any more.  It is taken out, the array is as small as before, and the
copy reads the member at its data offset, through a read-only dm device that claims it.

Why a member is the image.  md tells a writer that its write is done when all members have it
(raid1.c:raid1_end_write_request; not so for a write-mostly member, which is refused), so what was
complete before the member failed is on it; and from then on nothing is written to it
(raid1_write_request leaves out a faulty one, flush_bio_list fails what was queued for it).
Proof: test_split_member_is_the_array_as_of_begin_time.

What md has on its superblocks outlives a boot, so that it is on record before it is changed:
`md_split_back` brings the array back to what it was, from the record and from what md says.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dmcopy.core.table import Table
from dmcopy.core.targets.linear import Linear
from dmcopy.errors import DmcopyError, LeftBehind, Refused
from dmcopy.kernel import md_member, mdadm
from dmcopy.kernel.dm import Dm
from dmcopy.kernel.md import Action, Array, Md
from dmcopy.kernel.md_member import Member, members
from dmcopy.kernel.mdadm import Mdadm
from dmcopy.kernel.patience import again
from dmcopy.kernel.sysfs import Sysfs
from dmcopy.stack.discover import Provider, Source, block_device
from dmcopy.stack.hold import Instant
from dmcopy.stack.md_frozen import FrozenHold, file_systems
from dmcopy.stack.md_split_back import SplitRecord, put_back, read_record, write_record
from dmcopy.stack.names import Role, device_name, device_uuid
from dmcopy.stack.plan import Step
from dmcopy.stack.steps import remove_device, with_table
from dmcopy.units import Sectors, sectors_down

_SETTLE_SECONDS: Final = 10.0


@dataclass(frozen=True, kw_only=True)
class Splittable:
    """An array that a third member can be split off, and the spare that it is made of."""

    path: str  # of the array, as the user named it
    array: Array
    spare: Member
    length: Sectors
    mounts: tuple[str, ...]

    def node(self, sysfs: Sysfs) -> str:
        """Give the spare's path."""
        return sysfs.node(self.spare.devno)


def splittable(path: str, devno: str, sysfs: Sysfs, length: Sectors) -> Splittable:
    """Look whether *path* can be split; raises `Refused` with the reason, changes nothing."""
    md = Md(sysfs)
    if not md.is_array(devno):
        raise Refused(
            f"{path} is no md array, so no member can be split off", way_out="leave out --via"
        )
    array = md.read(devno)
    if array.level != "raid1":
        raise Refused(
            f"{path} is a {array.level}: only the member of a RAID1 is the whole of it",
            way_out=f"put a dm device over it (dmcopy wrap {path} NAME), and use that",
        )
    if (md.folder(devno) / "metadata_version").read_text().startswith("external"):
        raise Refused(
            f"the metadata of {path} is kept by its firmware's own format, whose arrays cannot "
            "get another member for a while",
            way_out=f"put a dm device over it (dmcopy wrap {path} NAME), and use that",
        )
    if array.degraded:
        raise Refused(
            f"{path} is degraded, so a spare is needed to make it whole",
            way_out=f"wait until it is (mdadm --wait {path})",
        )
    if array.action == Action.FROZEN:
        raise Refused(
            f"somebody has frozen what {path} does by itself, so no member can be made",
            way_out=f"let it go on: echo idle > /sys/block/{array.name}/md/sync_action",
        )
    there = members(md, devno)
    spares = [member for member in there if member.is_spare]
    if len(spares) != 1:
        raise Refused(
            f"{path} has no spare, so there is no third member that could be split off"
            if not spares
            else f"{path} has {len(spares)} spares: md would build another one in the place of "
            "the member that is split off",
            way_out=f"add one: mdadm {path} --add-spare DISK"
            if not spares
            else f"leave it one: mdadm {path} --remove DISK",
        )
    return Splittable(
        path=path,
        array=array,
        spare=spares[0],
        length=length,
        mounts=file_systems(sysfs, devno),
    )


def split_source(path: str, sysfs: Sysfs, program: Mdadm) -> tuple[Source, Splittable]:
    """Look at the array *path*, in use or not; raises `UsageError` and `Refused`."""
    devno = block_device(path, sysfs)
    length = sectors_down(sysfs.size(devno))
    split = splittable(path, devno, sysfs, length)
    if not program.is_installed:
        raise Refused(f"mdadm is not installed, and {path} needs it", way_out="install it")
    source = Source(
        path=path,
        devno=devno,
        node=sysfs.node(devno),
        length=length,
        logical_block=sysfs.queue(devno).logical_block,
        provider=Provider.MD_SPLIT,
        why=f"its spare {split.node(sysfs)} is made a member, and split off",
        dm_name=None,
        table=None,
        mounts=split.mounts,
    )
    return source, split


class Grow(Step):
    """Make the spare a member.  Its undo is that of all: the array is brought back."""

    def __init__(self, split: Splittable, record: Path, sysfs: Sysfs, program: Mdadm) -> None:
        """*record* is the file that says how the array was."""
        self._split = split
        self._record = record
        self._sysfs = sysfs
        self._md = Md(sysfs)
        self._mdadm = program

    def __str__(self) -> str:
        return f"make the spare of {self._split.path} a member"

    def lines(self) -> Sequence[str]:
        return (shlex.join(mdadm.grow_argv(self._split.path, self._split.array.disks + 1)),)

    def do(self) -> None:
        split = self._split
        now = splittable(split.path, split.array.devno, self._sysfs, split.length)
        if (now.array.uuid, now.array.disks, now.spare.devno) != (
            split.array.uuid,
            split.array.disks,
            split.spare.devno,
        ):
            raise Refused(
                f"{split.path} was changed meanwhile", way_out=f"see: mdadm --detail {split.path}"
            )
        if self._record.exists():
            raise Refused(
                f"there is a record of a member that was split off: {self._record}",
                way_out=f"dmcopy rescue {self._record.name}",
            )
        write_record(
            self._record,
            SplitRecord(
                uuid=split.array.uuid,
                devno=split.array.devno,
                name=split.array.name,
                disks=split.array.disks,
                spare=self._sysfs.identity(split.spare.devno),
                mounts=(),
            ),
        )
        self._mdadm.grow(split.array.path, split.array.disks + 1)

    def undo(self) -> None:
        _, left = put_back(self._record, self._sysfs, self._mdadm)
        if left:
            raise LeftBehind(left)

    def waits_for(self) -> Array | None:
        """Give the array while the member does not have all data yet, None when it has.

        Raises `DmcopyError` when it will not have it.
        """
        now = self._md.read(self._split.array.devno)
        found = [m for m in members(self._md, now.devno) if m.devno == self._split.spare.devno]
        if not found or md_member.FAULTY in found[0].state:
            raise DmcopyError(f"the spare of {self._split.path} failed while it was made a member")
        if found[0].has_all and not now.degraded and now.action == Action.IDLE:
            return None
        return now


class SplitOff(Step):
    """Fail the member while the file systems on the array are frozen: the begin time."""

    def __init__(
        self, split: Splittable, record: Path, limit: float, mounts: Sequence[str]
    ) -> None:
        """*limit* is the longest hold in seconds, *mounts* what is frozen."""
        self._split = split
        self._record = record
        self._mounts = tuple(mounts)
        self._hold = FrozenHold(mounts, limit)
        self._state: int | None = None
        self._earlier: SplitRecord | None = None
        self.instant: Instant | None = None

    def __str__(self) -> str:
        return f"split the third member off {self._split.path}"

    def lines(self) -> Sequence[str]:
        folder = self._split.spare.folder
        mounts = [shlex.quote(mount) for mount in self._mounts]
        return (
            *(f"fsfreeze --freeze {mount}" for mount in mounts),
            f"echo faulty > {folder}/state",
            *(f"fsfreeze --unfreeze {mount}" for mount in reversed(mounts)),
        )

    def get_ready(self) -> None:
        """Put on record what may be frozen, and start the dead man; nobody waits yet."""
        record = read_record(self._record)
        assert record is not None
        # on record while they may be frozen, and no longer: others may freeze them later
        write_record(self._record, record._replace(mounts=self._mounts))
        self._earlier = record
        self._state = md_member.open_state(self._split.spare.folder)
        self._hold.ready()

    def stand_down(self) -> None:
        self._hold.end()
        if self._state is not None:
            os.close(self._state)
            self._state = None
        if self._earlier is not None:
            write_record(self._record, self._earlier)
            self._earlier = None

    def do(self) -> None:
        if self._state is not None:
            self._split_off(self._state)
            return
        try:
            self.get_ready()
            assert self._state is not None
            self._split_off(self._state)
        finally:
            self.stand_down()

    def _split_off(self, state: int) -> None:
        refused: list[frozenset[str]] = []

        def act() -> None:
            words = md_member.words_of(state)
            if words == {md_member.IN_SYNC}:
                md_member.fail(state)
            else:
                refused.append(words)

        self.instant = self._hold(act)
        after = md_member.words_of(state)
        is_bad = md_member.has_bad_blocks(self._split.spare.folder)
        if refused or md_member.FAULTY not in after or is_bad:
            words = ", ".join(sorted(refused[0] if refused else after))
            raise DmcopyError(
                f"the third member of {self._split.path} is not what was written to the array "
                f"({words})"
            )

    def undo(self) -> None:
        """End what was made ready; `Grow` brings the array back."""
        self.stand_down()


class TakeOut(Step):
    """Remove the failed member, and make the array as small as it was: it is whole again."""

    def __init__(self, split: Splittable, sysfs: Sysfs, program: Mdadm) -> None:
        self._split = split
        self._sysfs = sysfs
        self._mdadm = program

    def __str__(self) -> str:
        return f"take the third member out of {self._split.path}"

    def lines(self) -> Sequence[str]:
        path = self._split.path
        return (
            shlex.join(mdadm.remove_argv(path, self._split.node(self._sysfs))),
            shlex.join(mdadm.grow_argv(path, self._split.array.disks)),
        )

    def do(self) -> None:
        path = self._split.array.path
        self._mdadm.remove(path, self._split.node(self._sysfs))
        self._mdadm.grow(path, self._split.array.disks)

    def undo(self) -> None:
        """Nothing here: `Grow` brings the array back."""


class ShowLeg(Step):
    """A read-only dm device over the member: it claims it, and begins where its data does."""

    def __init__(self, split: Splittable, dm: Dm, job: str) -> None:
        self._split = split
        self._dm = dm
        self._name = device_name(job, Role.LEG)
        self._uuid = device_uuid(job, Role.LEG)
        self.devno = ""

    def __str__(self) -> str:
        return f"create {self._name}"

    def _table(self) -> Table:
        spare = self._split.spare
        return Table.of(Linear(self._split.length, spare.devno, spare.offset))

    def lines(self) -> Sequence[str]:
        argv = ["dmsetup", "create", self._name, "--readonly", "--uuid", self._uuid]
        return (with_table(argv, self._table()),)

    def do(self) -> None:
        # udev looks at what was a member a moment ago
        self.devno = again(self._make, on=DmcopyError, seconds=_SETTLE_SECONDS, pause=0.1)

    def _make(self) -> str:
        try:
            made = self._dm.create(self._name, self._uuid, self._table(), read_only=True)
        except DmcopyError:
            remove_device(self._dm, self._name, self._uuid)
            raise
        return made.devno

    def undo(self) -> None:
        remove_device(self._dm, self._name, self._uuid)
