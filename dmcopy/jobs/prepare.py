"""Looks at everything that a new copy needs, and decides; changes nothing."""

from __future__ import annotations

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
from dmcopy.jobs.host import Host
from dmcopy.jobs.journal import Done
from dmcopy.jobs.spec import CopySpec
from dmcopy.jobs.standing import ClaimedNow, SplicedNow, Standing
from dmcopy.jobs.state import State
from dmcopy.kernel.lvm import Lvm
from dmcopy.kernel.sysfs import Sysfs
from dmcopy.stack.begin import Claim, splice
from dmcopy.stack.cow import CowPlan
from dmcopy.stack.cow_plan import plan_cow
from dmcopy.stack.discover import Provider, Source, discover
from dmcopy.stack.names import check_job
from dmcopy.stack.plan import Plan
from dmcopy.stack.recover import find_remains
from dmcopy.units import Sectors, to_bytes


@dataclass(frozen=True, kw_only=True)
class Earlier:
    """What the journal has of the sessions before, where a job goes on."""

    begun: events.Begun
    mark: Mapping[str, str | int] | None  # of the destination; None: nothing is there yet
    counts: Mapping[str, int]
    copied: bool  # everything is durable at the destination, and the stack is as before
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
    earlier: Earlier | None = None  # what was done before, where the job goes on

    @property
    def retires(self) -> tuple[bool, str]:
        """Tell whether what is copied leaves the snapshot, and why, or why not."""
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
            steps=self.standing.lines(),
            retire=retire,
            retire_why=why,
            order=self.spec.order if self.cow else Policy.SEQUENTIAL,
            gate=self.spec.gate,
        )


def prepare(spec: CopySpec, host: Host) -> Prepared:
    """Look at everything and decide; changes nothing.

    Raises `UsageError` for words that make no sense, `Refused` for what would be unsafe.
    """
    check_job(spec.name)
    destination = parse_destination(spec.destination)
    if spec.verify and spec.digest == "none":
        raise UsageError("--verify compares digests, so it cannot go with --digest none")
    if spec.verify and Can.REREAD not in destination.can:
        raise UsageError(f"{destination} cannot be read back, so it cannot be verified")
    _check_words(spec)
    wants_cow = not spec.cow.is_auto
    source = discover(spec.source, host.dm, host.sysfs, want_splice=wants_cow)
    chunk = geometry.check_chunk(spec.chunk, source.logical_block)
    segment = geometry.segment_size(spec.segment, chunk, destination.segment_alignment())
    cow: CowPlan | None = None
    standing: Standing
    if source.provider is Provider.SPLICE:
        assert host.dm is not None
        _refuse_remains(spec.name, host)
        cow = plan_cow(
            spec.cow,
            job=spec.name,
            source=source.devno,
            length=source.length,
            chunk=chunk,
            directory=host.places.cow_files,
            sysfs=host.sysfs,
            lvm=Lvm(host.run),
        )
        spliced = splice(
            host.dm,
            host.sysfs,
            job=spec.name,
            source=source,
            cow=cow,
            chunk=chunk,
            hold_limit=spec.hold_limit,
            lvm=Lvm(host.run),
        )
        standing = SplicedNow(spliced, source, chunk, host.sysfs)
    elif wants_cow:
        raise UsageError(f"{spec.source} is no dm device, so it takes no --cow: {source.why}")
    else:
        claim = Claim(source.node, host.sysfs)
        standing = ClaimedNow(claim, Plan(job=spec.name, prepare=[claim]), source)
    if cow is None and (spec.gate != "none" or spec.keep):
        word = "--keep" if spec.keep else f"--gate {spec.gate}"
        raise UsageError(f"{word} needs a snapshot, and {spec.source} has none: {source.why}")
    around = surroundings(spec, source, cow, host)
    destination.check(source.length, around)
    _check_cow_devices(cow, around)
    return Prepared(
        spec=spec,
        source=source,
        destination=destination,
        identity=destination.identity(around),
        segment=segment,
        cow=cow,
        standing=standing,
    )


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
