"""Whether what is asked for now is the copy that a job of that name is on record for.

For those who ask again and again, and want one copy (Ansible, a trigger): the same name with the
same words is the same copy, whatever state it is in; with another source it never is, even where
the path is the same and another disk is there by now.  Only what changes the *result* counts: a
chunk size or a rate says how the copy came about, and nobody can tell from the copy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

from dmcopy.destinations import parse as parse_destination
from dmcopy.destinations.block import BlockDestination
from dmcopy.jobs.host import Host
from dmcopy.jobs.overview import JobView
from dmcopy.jobs.spec import CopySpec
from dmcopy.kernel.identity import Identity, difference
from dmcopy.kernel.sysfs import Sysfs

# of CopySpec: what the copy is like afterwards; `verify` is looked at by itself
_RESULT: Final = ("digest", "keep", "freeze", "hooks", "hook_directory", "new_identity")
# what `difference` names where nothing strong is known; loop devices and dm get new ones at boot
_WEAK: Final = ("devno", "dm_name", "size_bytes")


class Difference(NamedTuple):
    """A word of the copy: what the journal has, and what is asked for now."""

    word: str
    recorded: Any  # Any: JSON
    asked: Any  # Any: JSON

    def as_json(self) -> dict[str, Any]:  # Any: JSON
        """Give the object that ``dmcopy plan --on-record --json`` prints."""
        return self._asdict()


def differences(view: JobView, asked: Sequence[CopySpec], host: Host) -> list[Difference]:
    """Say in what the job on record is not what is *asked* for; none where it is the same.

    *asked* has one spec, or one for each volume of a group.  Changes nothing, and needs no
    device to be there: one that is gone is judged by its path.
    """
    if view.record is None:
        return [Difference("name", None, view.job)]  # only the kernel knows it: nobody can tell
    if view.group is not None:
        return [Difference("group", view.group, None)]
    volumes = view.members or (view,)
    if bool(view.members) != (asked[0].group is not None) or len(volumes) != len(asked):
        return [Difference("volumes", len(volumes), len(asked))]
    return [
        found for one, spec in zip(volumes, asked, strict=True) for found in _of(one, spec, host)
    ]


def _of(view: JobView, asked: CopySpec, host: Host) -> Iterator[Difference]:
    assert view.record is not None
    recorded = CopySpec.from_json(view.record.spec)
    known = (view.record.facts or {}).get("source", {}).get("identity", {})
    if not _same_device(recorded.source, asked.source, known, host.sysfs):
        yield Difference("source", recorded.source, asked.source)
    if not _same_destination(recorded.destination, asked.destination, view, host.sysfs):
        yield Difference("destination", recorded.destination, asked.destination)
    for word in _RESULT:
        old, new = getattr(recorded, word), getattr(asked, word)
        if old != new:
            yield Difference(word, old, new)
    # more than was asked is no fault; and an interrupted job can be gone on with by --verify
    if asked.verify and not recorded.verify and not view.can_resume:
        yield Difference("verify", recorded.verify, asked.verify)


def _same_destination(recorded: str, asked: str, view: JobView, sysfs: Sysfs) -> bool:
    assert view.record is not None
    # a bare path reads as a device while there is one, and as an image when it is gone
    old, new = parse_destination(recorded), parse_destination(asked)
    if isinstance(old, BlockDestination) and isinstance(new, BlockDestination):
        known = view.record.spec.get("identity") or {}
        return _same_device(old.path, new.path, known, sysfs)
    return str(old) == str(new)


def _same_device(recorded: str, asked: str, known: Identity, sysfs: Sysfs) -> bool:
    """Tell whether the device at path *asked* is what was *recorded* with what is *known* of it."""
    try:
        now = sysfs.identity(sysfs.devno_of(asked))
    except (OSError, ValueError):  # not there, or no block device
        return recorded == asked
    if not known:
        return recorded == asked
    told_apart = difference(known, now)
    if recorded == asked:  # a path that means the same, as far as anything strong is known
        return told_apart is None or told_apart in _WEAK
    return told_apart is None
