"""``dmcopy identity``: what a copy has in common with its source, and how it gets its own.

A source that got another identity would be a disaster: whatever mounts it by UUID finds it no
more.  So only that is changed which the journal has as the destination of a copy that was
completed, and which is not, nor holds, nor lies on, the source of any job that it knows.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dmcopy.core import events
from dmcopy.destinations import parse as parse_destination
from dmcopy.destinations.base import Destination
from dmcopy.destinations.block import BlockDestination
from dmcopy.destinations.image import ImageDestination
from dmcopy.destinations.refusal import refuse_busy
from dmcopy.errors import Refused, UsageError
from dmcopy.jobs.host import Host
from dmcopy.jobs.journal import Journal, Record
from dmcopy.jobs.lock import JobLock
from dmcopy.jobs.resume import was_kept
from dmcopy.jobs.state import State
from dmcopy.jobs.twins import TwinStep, bench_of, check_new_identity
from dmcopy.kernel.content import content_of
from dmcopy.kernel.identity import difference, find
from dmcopy.kernel.shelter import Shelter, publish
from dmcopy.stack.twin import take_down

_COMPLETE = (State.ENDED, State.COPIED, State.VERIFIED)


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What is known of a destination; *job* and *source* are "" where it is not on record."""

    destination: str
    identity: tuple[str, ...]
    job: str
    source: str
    common: tuple[str, ...]  # UUIDs that the source has as well, today
    hidden: bool

    def as_json(self) -> dict[str, Any]:  # Any: JSON
        """Give the object that ``dmcopy identity --json`` prints."""
        return {
            "event": "identity",
            "destination": self.destination,
            "identity": list(self.identity),
            "job": self.job,
            "source": self.source,
            "common": list(self.common),
            "hidden": self.hidden,
        }


def show(name: str, host: Host) -> Shown:
    """Look at a destination; changes nothing."""
    destination, path = _named(name)
    content = content_of(host.run, path)
    mine = tuple(content.uuids()) if content is not None else ()
    record = _copy_on_record(host, destination)
    source = record.spec["source"] if record is not None else ""
    theirs: set[str] = set()
    if source and os.path.exists(source):
        there = content_of(host.run, source)
        theirs = set(there.uuids()) if there is not None else set()
    devno = _devno(host, destination)
    return Shown(
        destination=str(destination),
        identity=tuple(content.lines()) if content is not None else (),
        job=record.name if record is not None else "",
        source=source,
        common=tuple(one for one in mine if one in theirs),
        hidden=devno is not None and Shelter(host.places.runtime).is_twin(devno),
    )


def give_new(name: str, host: Host) -> events.Twin:
    """Give the copy *name* an identity of its own.

    Raises `Refused` for what may be anything but a copy of ours that nobody uses,
    `IdentityFailed` where it was begun and failed.
    """
    destination, path = _named(name)
    record = _copy_on_record(host, destination)
    if record is None:
        raise Refused(
            f"{path} is not on record as a copy that was completed",
            way_out="change it by its own tool, if you know that it is one",
        )
    devno = _devno(host, destination)
    if devno is not None:
        check_new_identity(host, path, destination)
    with JobLock(host.places.locks, record.name):
        if host.dm is not None:
            take_down(bench_of(host, record.name))  # what one that was killed left
        if devno is not None:
            refuse_busy(path, devno, host.sysfs)
            _refuse_sources(path, devno, host)
        else:
            _refuse_attached(path, host)
        with Journal(host.places.journal) as journal:
            step = TwinStep(
                host,
                journal,
                job=record.name,
                source=record.spec["source"],
                destination=destination,
                identity=record.spec["identity"] if devno is not None else None,
            )
            with step.sheltered():
                event = step.renew()
            journal.log(record.name, event.as_json())
            if record.state != State.ENDED and not was_kept(record):
                journal.move(record.name, State.ENDED)  # this was all that was left to do
            step.settle(written=True)
    return event


def show_to_udev(name: str, host: Host) -> None:
    """Hide a copy no longer, though it has its source's identity."""
    destination, path = _named(name)
    devno = _devno(host, destination)
    if devno is None:
        raise UsageError(f"{path} is no device: udev does not look into files")
    Shelter(host.places.runtime).forget_twin(devno)
    publish(host.sysfs, devno)


def _named(name: str) -> tuple[Destination, str]:
    destination = parse_destination(name)
    if not isinstance(destination, BlockDestination | ImageDestination):
        raise UsageError(f"{name} is neither a device nor an image file here")
    if not os.path.exists(destination.path):
        raise UsageError(f"there is no {destination.path}")
    return destination, destination.path


def _devno(host: Host, destination: Destination) -> str | None:
    if isinstance(destination, BlockDestination):
        return host.sysfs.devno_of(destination.path)
    return None


def _records(host: Host) -> list[Record]:
    """Give what the journal has, the latest first."""
    if not host.places.journal.exists():
        return []
    with Journal(host.places.journal, read_only=True) as journal:
        return journal.records()[::-1]


def _copy_on_record(host: Host, destination: Destination) -> Record | None:
    """Give the latest job that wrote to *destination*, if that is a complete copy."""
    devno = _devno(host, destination)
    for record in _records(host):
        identity = record.spec.get("identity", {})
        if isinstance(destination, ImageDestination):
            is_it = "devno" not in identity and identity.get("path") == destination.path
        else:
            is_it = devno is not None and _is_device(identity, devno, host)
        if is_it and record.facts is not None:  # it was begun: it may have written
            return record if record.state in _COMPLETE else None
    return None


def _is_device(identity: Mapping[str, Any], devno: str, host: Host) -> bool:  # Any: JSON
    return "devno" in identity and difference(identity, host.sysfs.identity(devno)) is None


def _refuse_sources(path: str, devno: str, host: Host) -> None:
    """Raise `Refused` when the device is, holds or lies on the source of any job on record."""
    near = {devno, *host.sysfs.below(devno), *host.sysfs.above(devno)}
    for record in _records(host):
        for identity in _sources(record):
            found = find(identity, host.sysfs)
            if found in near:
                raise Refused(
                    f"{path} is the source of job {record.name}, or shares its data with it: "
                    "what is mounted by its UUID would not be found any more",
                    way_out="name the copy",
                )


def _sources(record: Record) -> Iterator[Mapping[str, Any]]:  # Any: JSON
    if record.facts is not None and "source" in record.facts:
        source = record.facts["source"]
        yield source["identity"]
        yield from source.get("below", {}).values()


def _refuse_attached(path: str, host: Host) -> None:
    real = os.path.realpath(path)
    for devno, file in host.sysfs.loops().items():
        if os.path.realpath(file) == real:
            raise Refused(
                f"{path} is under the loop device {host.sysfs.node(devno)}",
                way_out="detach that first: losetup --detach",
            )
