"""Looks at everything that a new copy needs, and decides; changes nothing."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from dmcopy.core import events, geometry
from dmcopy.core.history import History
from dmcopy.core.order import Policy
from dmcopy.destinations import parse as parse_destination
from dmcopy.destinations.base import Can, Destination, Surroundings
from dmcopy.destinations.block import BlockDestination
from dmcopy.errors import Refused, UsageError
from dmcopy.jobs import md_policy
from dmcopy.jobs.application import Application
from dmcopy.jobs.host import Host
from dmcopy.jobs.journal import Done
from dmcopy.jobs.lvm_standing import LvmNow, ThinNow
from dmcopy.jobs.md_split_standing import SplitNow
from dmcopy.jobs.spec import CopySpec
from dmcopy.jobs.standing import ClaimedNow, SplicedNow, Standing
from dmcopy.jobs.state import State
from dmcopy.jobs.twins import check_new_identity
from dmcopy.kernel.lvm import Lvm
from dmcopy.kernel.md import Md
from dmcopy.kernel.mdadm import Mdadm
from dmcopy.kernel.sysfs import Sysfs
from dmcopy.stack.begin import Claim, splice
from dmcopy.stack.cow import CowPlan, CowSnapshot
from dmcopy.stack.cow_plan import plan_cow
from dmcopy.stack.discover import Provider, Source, discover
from dmcopy.stack.md_split import split_source
from dmcopy.stack.names import check_job
from dmcopy.stack.recover import find_remains
from dmcopy.stack.stripes import full_stripe
from dmcopy.stack.together import Meet
from dmcopy.units import Bytes, Sectors, to_bytes


@dataclass(frozen=True, kw_only=True)
class Earlier:
    """What the journal has of the sessions before, where a job goes on."""

    begun: events.Begun
    mark: Mapping[str, str | int] | None  # of the destination; None: nothing is there yet
    counts: Mapping[str, int]
    copied: bool  # everything is durable at the destination, and the stack is as before
    renewing: bool = False  # the copy may differ from the image by now: its identity is another
    state: State  # of the journal, and what is durable, both when it was looked at
    done: tuple[Done, ...]
    history: History | None = None


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A copy that passed every check; nothing was changed for it."""

    spec: CopySpec
    source: Source
    destination: Destination
    identity: Mapping[str, str | int]  # of the destination, checked again when it is opened
    segment: Sectors
    cow: CowPlan | None
    standing: Standing
    about_arrays: tuple[str, ...] = ()  # what is done about md arrays, as lines of a plan
    warnings: tuple[str, ...] = ()
    application: Application | None = None  # None: somebody else goes around the instant
    earlier: Earlier | None = None  # what was done before, where the job goes on
    source_identity: Mapping[str, str | int] | None = None

    @property
    def retires(self) -> tuple[bool, str]:
        """Tell whether what is copied leaves the snapshot, and why, or why not."""
        if self.source.provider is Provider.LVM_THIN:
            return False, "a thin snapshot costs its pool the same, whatever is copied"
        if self.source.provider is Provider.MD_SPLIT:
            return False, "nobody writes to the member that was split off"
        if self.cow is None:
            return False, "there is no snapshot, for nobody writes to an idle source"
        return self.spec.retires()

    def recorded(self, spec: CopySpec) -> dict[str, Any]:  # Any: JSON
        """Give what the journal keeps of *spec*, which may have changed meanwhile."""
        return spec.as_json() | {"identity": dict(self.identity)}

    def facts(self, sysfs: Sysfs) -> dict[str, Any]:  # Any: JSON
        """Give what `jobs.resume` must know to find the source again, as it is now."""
        source = self.source
        below = source.table.devices() if source.table is not None else ()
        return {
            "provider": source.provider,
            "source": {
                "path": source.path,
                "devno": source.devno,
                "dm_name": source.dm_name,
                "length_sectors": source.length,
                "logical_block_bytes": source.logical_block,
                "table": str(source.table) if source.table is not None else None,
                "identity": sysfs.identity(source.devno),
                "below": {devno: sysfs.identity(devno) for devno in sorted(below)},
            },
            "segment_sectors": self.segment,
            "cow": self.cow.as_json() if self.cow is not None else None,
        }

    def planned(self) -> events.Planned:
        """Give the event that tells what is going to happen."""
        retire, why = self.retires
        charge = self.application.charge() if self.application is not None else None
        return events.Planned(
            job=self.spec.name,
            source=self.source.path,
            destination=str(self.destination),
            provider=self.source.provider,
            why=self.source.why,
            bytes_total=to_bytes(self.source.length),
            chunk_bytes=self.spec.chunk if self.cow else None,
            segment_bytes=to_bytes(self.segment),
            cow=self.cow.how if self.cow else None,
            cow_bytes=to_bytes(self.cow.length) if self.cow else None,
            steps=(
                *self.about_arrays,
                *(f"# {warning}" for warning in self.warnings),
                *self.standing.lines(),
            ),
            retire=retire,
            retire_why=why,
            order=self.spec.order if self.cow else Policy.SEQUENTIAL,
            gate=self.spec.gate,
            hooks=tuple(shlex.join(hook) for hook in charge.hooks) if charge else (),
            freezes=charge.freeze if charge else (),
            new_identity=self.spec.new_identity,
            source_identity=self.source_identity,
            destination_identity=self.identity,
        )


def prepare(spec: CopySpec, host: Host, *, meet: Meet | None = None) -> Prepared:
    """Look at everything and decide; changes nothing.

    With *meet* the begin time is that of an instant that other volumes have too.

    Raises `UsageError` for words that make no sense, `Refused` for what would be unsafe.
    """
    check_job(spec.name)
    destination = parse_destination(spec.destination)
    if spec.verify and spec.digest == "none":
        raise UsageError("--verify compares digests, so it cannot go with --digest none")
    if spec.verify and Can.REREAD not in destination.can:
        raise UsageError(f"{destination} cannot be read back, so it cannot be verified")
    _check_words(spec)
    if spec.via == "md-split":
        return _prepare_split(spec, destination, host)
    wants_cow = not spec.cow.is_auto
    lvm = Lvm(host.run)
    source = discover(spec.source, host.dm, host.sysfs, want_splice=wants_cow, lvm=lvm)
    chunk = geometry.check_chunk(spec.chunk, source.logical_block)
    segment, warnings = _segment(spec, source, chunk, destination, host)
    found = Md(host.sysfs).below(source.devno)
    md_policy.refuse(found)
    # of a group, the leader goes around the instant
    application = Application(spec, [source], host) if meet is None else None
    cow: CowPlan | None = None
    standing: Standing
    if source.provider is not Provider.IDLE:
        _refuse_remains(spec.name, host)
    if source.provider in (Provider.SPLICE, Provider.LVM):
        cow = plan_cow(
            spec.cow,
            job=spec.name,
            source=source.devno,
            length=source.length,
            chunk=chunk,
            directory=host.places.cow_files,
            sysfs=host.sysfs,
            lvm=lvm,
            volume=source.volume,
            may_grow=spec.gate == "none",
        )
    if source.provider is Provider.SPLICE:
        assert host.dm is not None
        assert cow is not None
        spliced = splice(
            host.dm,
            host.sysfs,
            job=spec.name,
            source=source,
            cow=cow,
            chunk=chunk,
            hold_limit=spec.hold_limit,
            lvm=lvm,
            lockfs=spec.freeze == "auto",
            meet=meet,
        )
        standing = SplicedNow(spliced, source, chunk, host.sysfs)
    elif isinstance(cow, CowSnapshot):
        standing = LvmNow(
            host,
            source,
            cow,
            job=spec.name,
            hold_limit=spec.hold_limit,
            lockfs=spec.freeze == "auto",
            meet=meet,
        )
    elif source.provider is Provider.LVM_THIN and meet is not None:
        raise Refused(
            f"{spec.source} is a thin volume, whose begin time LVM fixes in its own time, so it "
            "has none in common with others",
            way_out="copy it alone, or put the data on thick volumes",
        )
    elif source.provider is Provider.LVM_THIN and not wants_cow:
        standing = ThinNow(host, source, job=spec.name)
    elif source.provider is Provider.LVM_THIN:
        raise UsageError(
            f"{spec.source} is a thin volume: its snapshot lies in its pool, so it takes no --cow"
        )
    elif wants_cow:
        raise UsageError(f"{spec.source} is no dm device, so it takes no --cow: {source.why}")
    else:
        claim = Claim(source.node, host.sysfs)
        standing = ClaimedNow(
            claim, source, job=spec.name, late=bool(application and application.hooks), meet=meet
        )
    if cow is None and (spec.gate != "none" or spec.keep):
        word = "--keep" if spec.keep else f"--gate {spec.gate}"
        raise UsageError(f"{word} needs a snapshot, and {spec.source} has none: {source.why}")
    around = surroundings(spec, source, cow, host)
    destination.check(source.length, around)
    _check_cow_devices(cow, around)
    if spec.new_identity:
        check_new_identity(host, source.node, destination)
    return Prepared(
        spec=spec,
        source=source,
        destination=destination,
        identity=destination.identity(around),
        segment=segment,
        cow=cow,
        standing=standing,
        about_arrays=md_policy.lines(spec.md_resync, found),
        warnings=warnings,
        application=application,
        source_identity=host.sysfs.identity(source.devno),
    )


def _prepare_split(spec: CopySpec, destination: Destination, host: Host) -> Prepared:
    """Prepare a copy of the member that is split off a RAID1."""
    if host.dm is None:
        raise Refused(
            "this kernel has no device-mapper, which claims the member that is split off",
            way_out="modprobe dm-mod",
        )
    if not spec.cow.is_auto or spec.keep or spec.gate != "none":
        raise UsageError("--via md-split takes no --cow, --keep or --gate: it needs no snapshot")
    if spec.md_resync in ("pause", "ignore"):
        raise UsageError(
            f"--via md-split makes a member, so it cannot go with --md-resync {spec.md_resync}"
        )
    spec = replace(spec, md_resync="wait")
    source, split = split_source(spec.source, host.sysfs, Mdadm(host.run))
    _refuse_remains(spec.name, host)
    chunk = geometry.check_chunk(spec.chunk, source.logical_block)
    segment, warnings = _segment(spec, source, chunk, destination, host)
    found = Md(host.sysfs).below(source.devno)
    md_policy.refuse(found)
    around = surroundings(spec, source, None, host)
    destination.check(source.length, around)
    return Prepared(
        spec=spec,
        source=source,
        destination=destination,
        identity=destination.identity(around),
        segment=segment,
        cow=None,
        standing=SplitNow(
            host, split, job=spec.name, hold_limit=spec.hold_limit, freeze=spec.freeze == "auto"
        ),
        application=Application(spec, [source], host),
        about_arrays=md_policy.lines(spec.md_resync, found),
        warnings=warnings,
        source_identity=host.sysfs.identity(source.devno),
    )


def _segment(
    spec: CopySpec, source: Source, chunk: Sectors, destination: Destination, host: Host
) -> tuple[Sectors, tuple[str, ...]]:
    """Give the size of segments: whole chunks and, where that can be had, whole stripes of md."""
    unit = destination.segment_alignment()
    stripe = full_stripe(source.devno, host.dm, host.sysfs)
    if geometry.stripe_aligned(spec.segment, chunk, unit, stripe):
        unit = Bytes(math.lcm(unit, stripe))
        stripe = Bytes(0)
    segment = geometry.segment_size(spec.segment, chunk, unit)
    return segment, (md_policy.about_stripes(stripe, to_bytes(segment)),) if stripe else ()


def _check_words(spec: CopySpec) -> None:
    """Raise `UsageError` for options that do not go together."""
    if spec.gate != "none" and not spec.retires()[0]:
        raise UsageError(
            f"--gate {spec.gate} lets writes go into what is retired, so it cannot go with "
            f"{'--keep' if spec.keep else '--no-retire'}"
        )
    if spec.keep and spec.on_full == "hold":
        raise UsageError("--on-full hold retires what is copied, so it cannot go with --keep")


def _refuse_remains(job: str, host: Host) -> None:
    assert host.dm is not None
    if job in find_remains(host.dm, host.sysfs):
        raise Refused(
            f"devices of a job {job} are there already",
            way_out=f"see: dmcopy status {job}; if it died: dmcopy rescue {job}",
        )


def surroundings(spec: CopySpec, source: Source, cow: CowPlan | None, host: Host) -> Surroundings:
    return Surroundings(
        sysfs=host.sysfs,
        run=host.run,
        source=source.devno,
        overwrite_signature=spec.overwrite_signature,
        spare=spare_devices(cow),
    )


def spare_devices(cow: CowPlan | None) -> frozenset[str]:
    """Give the devices that the job uses beside source and destination, by devno."""
    return frozenset(device.devno for device in cow.devices) if cow else frozenset()


def _check_cow_devices(cow: CowPlan | None, around: Surroundings) -> None:
    earlier: frozenset[str] = frozenset()
    for device in cow.devices if cow else ():
        # A COW device is written from its first sector on: it gets the checks of a
        # destination, and no way around a signature.
        alone = replace(around, overwrite_signature=False, spare=earlier)
        try:
            BlockDestination.parse(device.path).check(Sectors(1), alone)
        except Refused as exc:
            raise Refused(f"COW device: {exc.why}", way_out=exc.way_out) from exc
        earlier |= {device.devno}
