"""What makes several jobs a group, as the journal has it.

A group has a record of its own, whose spec names its *members*; each of these is a job with a
record like any other's, whose spec names its *group*.  Whether there is one point in time for all
of them, only the members' own records can say: each is written when its volume has it.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from dmcopy.errors import Refused
from dmcopy.jobs.journal import Journal, Record
from dmcopy.jobs.spec import CopySpec
from dmcopy.jobs.state import State

_MEMBER: Final = re.compile(r"(?P<group>.+)\.[1-9][0-9]*")


def member_name(group: str, number: int) -> str:
    """Give the name of a group's member, counted from 1."""
    return f"{group}.{number}"


def members_of(record: Record | None) -> tuple[str, ...]:
    """Give the names of a group's members; none where it is no group."""
    return tuple(record.spec.get("members", ())) if record is not None else ()


def group_of(record: Record | None) -> str | None:
    """Give the name of the group that a job is a member of."""
    return record.spec.get("group") if record is not None else None


def kin_of(job: str, records: Mapping[str, Record]) -> set[str]:
    """Give *job*, its group and all its members, as far as they are on record."""
    group = group_of(records.get(job)) or job
    return {job, group, *members_of(records.get(group))} & records.keys()


def refuse_member(record: Record | None, verb: str) -> None:
    """Raise `Refused` for a job that can only be dealt with together with its group."""
    group = group_of(record)
    if record is not None and group is not None:
        raise Refused(
            f"{record.name} is a volume of the group {group}: all of it, or nothing",
            way_out=f"dmcopy {verb} {group}",
        )


def refuse_group(record: Record | None, verb: str) -> None:
    """Raise `Refused` for what can only be asked of one volume."""
    members = members_of(record)
    if record is not None and members:
        raise Refused(
            f"{record.name} is a group of {len(members)} volumes",
            way_out=f"ask for one of them: dmcopy {verb} {members[0]}",
        )


def group_spec(specs: Sequence[CopySpec]) -> dict[str, Any]:  # Any: JSON
    """Give what the journal keeps of a group."""
    return {
        "source": joined([spec.source for spec in specs]),
        "destination": joined([spec.destination for spec in specs]),
        "members": [spec.name for spec in specs],
        "keep": specs[0].keep,
        "verify": specs[0].verify,
        "hold_limit": specs[0].hold_limit,
    }


def joined(words: Sequence[str]) -> str:
    """Write several paths as one word for a person."""
    return shlex.join(words)


def copy_again(record: Mapping[str, Any]) -> str:  # Any: JSON
    """Give the command that begins a group anew, of its spec."""
    sources, destinations = (shlex.split(record[word]) for word in ("source", "destination"))
    pairs = zip(sources, destinations, strict=True)
    return " ".join(["dmcopy copy", *(f"--pair {shlex.join(pair)}" for pair in pairs)])


def refuse_taken(name: str, journal: Journal, *, members: int = 0) -> None:
    """Raise `Refused` for a name that is, or would be, that of a group's member.

    *members* is how many a new group has; 0 for a job that is none.
    """
    match = _MEMBER.fullmatch(name)
    if match is not None and members_of(journal.record(match["group"])):
        raise Refused(
            f"{name} is how a volume of the group {match['group']} is called",
            way_out="give another name",
        )
    for number in range(1, members + 1):
        one = member_name(name, number)
        record = journal.record(one)
        if record is not None and group_of(record) != name:
            raise Refused(
                f"a volume of the group {name} would be called {one}, and there is such a job",
                way_out="give another name",
            )


def why_no_instant(names: Sequence[str], record: Callable[[str], Record | None]) -> str | None:
    """Say why a group has no common point in time; None where it has one, on record."""
    times = set()
    for name in names:
        found = record(name)
        if found is None:
            return f"{name} is not on record"
        if found.begun is None:
            return f"it was interrupted before the begin time was fixed for {name}"
        if found.state in (State.FAILED, State.CANCELLED):
            return f"{name} is {found.state}"
        times.add(found.begun["begin_time"])
    if len(times) != 1:
        return "its volumes have no common begin time"
    return None
