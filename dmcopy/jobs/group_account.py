"""How far a group is, and how it went: what its members say, summed up."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final

from dmcopy.core import events
from dmcopy.core.holds import together
from dmcopy.core.order import Policy
from dmcopy.jobs.application import Application
from dmcopy.jobs.member_link import Failure, MemberLink
from dmcopy.jobs.membership import joined
from dmcopy.jobs.prepare import Prepared
from dmcopy.jobs.state import State
from dmcopy.stack.together import Part, Sharing
from dmcopy.units import to_bytes

_EVERY_SECONDS: Final = 0.2
_OF_A_VOLUME: Final = (  # what a plan of a group has of each
    "job", "source", "destination", "provider", "bytes_total", "cow", "cow_bytes",
    "source_identity", "destination_identity",
)  # fmt: skip
_RANK: Final = ("done", "unknown", "unsure", "full")  # the worst last


class GroupAccount:
    """Sums up one group; *prepared* are its volumes, in the order of the command line."""

    def __init__(
        self,
        name: str,
        prepared: Sequence[Prepared],
        members: Sequence[MemberLink],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name = name
        self._prepared = prepared
        self._members = members
        self._clock = clock
        self._started = clock()
        self._told = -_EVERY_SECONDS
        self._last: tuple[str, int] | None = None
        earlier = prepared[0].earlier
        self.begin_time = earlier.begun.begin_time if earlier is not None else None
        self._holds: dict[str, float] = {}
        self._window = 0.0
        for one in prepared:
            if one.earlier is not None:
                self._has_begun(one.source.path, one.earlier.begun)

    @property
    def source(self) -> str:
        """All sources."""
        return joined([one.source.path for one in self._prepared])

    @property
    def destination(self) -> str:
        """All destinations."""
        return joined([str(one.destination) for one in self._prepared])

    @property
    def total(self) -> int:
        """The size of all images together, in bytes."""
        return sum(to_bytes(one.source.length) for one in self._prepared)

    def _has_begun(self, source: str, begun: events.Begun) -> None:
        self.begin_time = begun.begin_time
        self._window = max(self._window, begun.window_seconds or 0.0)
        if begun.hold_seconds:
            self._holds[source] = begun.hold_seconds[0]

    def begun(self) -> events.Begun:
        """Give the event; every member has begun."""
        for member in self._members:
            if member.begun is not None:
                self._has_begun(member.source, member.begun)
        assert self.begin_time is not None
        return events.Begun(
            job=self._name,
            source=self.source,
            begin_time=self.begin_time,
            hold_seconds=(self._window,),
            snapshot=None,
            window_seconds=self._window,
            holds=dict(self._holds),
        )

    def resumed(self) -> events.Resumed:
        """Give the event that says that all go on."""
        assert self.begin_time is not None
        done = sum(
            row.extent.size
            for one in self._prepared
            for row in (one.earlier.done if one.earlier is not None else ())
        )
        return events.Resumed(job=self._name, begin_time=self.begin_time, bytes_done=done)

    def progress(self) -> events.Progress | None:
        """Give how far all are; None where that was just told, or not all have begun."""
        told = [member.progress for member in self._members]
        found = [one for one in told if one is not None]
        if not found:
            return None
        copying = any(
            (one is None or one.phase == "copy")
            and not (member.has_arrived or member.ended is not None)
            for member, one in zip(self._members, told, strict=True)
        )
        phase = "copy" if copying or all(one.phase == "copy" for one in found) else "verify"
        done = sum(self._done(member, phase) for member in self._members)
        now = self._clock()
        is_last = done == self.total
        if self._last == (phase, done) or (now - self._told < _EVERY_SECONDS and not is_last):
            return None
        self._told, self._last = now, (phase, done)
        return self._summed(phase, done, found)

    def _done(self, member: MemberLink, phase: str) -> int:
        one = member.progress
        length = next(
            to_bytes(p.source.length) for p in self._prepared if p.spec.name == member.name
        )
        if member.has_arrived or member.ended is not None:
            return length
        if one is None:
            return 0
        if one.phase == phase:
            return one.bytes_done
        return length if phase == "copy" else 0

    def _summed(self, phase: str, done: int, found: Sequence[events.Progress]) -> events.Progress:
        def total(field: str) -> int:
            return sum(getattr(one, field) or 0 for one in found)

        rate = sum(one.rate_bytes for one in found if one.phase == phase)
        with_cow = [one for one in found if one.cow_total_bytes is not None]
        worst = max(found, key=lambda one: _RANK.index(one.first or "done"))
        return events.Progress(
            job=self._name,
            phase=phase,
            bytes_done=done,
            bytes_total=self.total,
            bytes_cow=total("bytes_cow"),
            bytes_zero=total("bytes_zero"),
            rate_bytes=rate,
            eta_seconds=(self.total - done) / rate if rate else None,
            exceptions=total("exceptions"),
            cow_used_bytes=total("cow_used_bytes") if with_cow else None,
            cow_total_bytes=total("cow_total_bytes") if with_cow else None,
            cow_full_seconds=worst.cow_full_seconds,
            cow_full=worst.cow_full,
            first=worst.first,
            bytes_retired=total("bytes_retired"),
            held=together(one.held for one in found),
        )

    def ended(self, *, state: str, failure: Failure | None, kept: bool = False) -> events.Ended:
        """Give the last event; *failure* is what came first."""
        last = [member.ended for member in self._members]
        found = [one for one in last if one is not None]

        def total(field: str) -> int:
            return sum(getattr(one, field) for one in found)

        used = [one.cow_used_bytes for one in found if one.cow_used_bytes is not None]
        return events.Ended(
            job=self._name,
            state=state,
            exit_status=failure.exit_status if failure is not None else 0,
            source=self.source,
            destination=self.destination,
            begin_time=self.begin_time,
            seconds=self._clock() - self._started,
            bytes_total=self.total,
            bytes_source=total("bytes_source"),
            bytes_cow=total("bytes_cow"),
            bytes_zero=total("bytes_zero"),
            bytes_resumed=total("bytes_resumed"),
            exceptions=total("exceptions"),
            cow_used_bytes=sum(used) if used else None,
            hold_seconds=(self._window,) if self.begin_time is not None else (),
            digest=None,
            verified=bool(found) and all(one is not None and one.verified for one in last),
            error=failure.text if failure is not None else None,
            kind=failure.kind if failure is not None else None,
            left=failure.left if failure is not None else (),
            bytes_retired=total("bytes_retired"),
            retires=total("retires"),
            gated=total("gated"),
            gate_writes_held=total("gate_writes_held"),
            kept=kept,
            holds=dict(self._holds),
            members=tuple(self._member(member) for member in self._members),
            held=together(one.held for one in found),
        )

    def _member(self, member: MemberLink) -> dict[str, object]:
        ended, failure = member.ended, member.failure
        prepared = next(one for one in self._prepared if one.spec.name == member.name)
        return {
            "job": member.name,
            "source": member.source,
            "destination": str(prepared.destination),
            "state": ended.state if ended is not None else State.FAILED,
            "bytes_total": to_bytes(prepared.source.length),
            "hold_seconds": list(ended.hold_seconds) if ended is not None else [],
            "digest": ended.digest if ended is not None else None,
            "verified": ended is not None and ended.verified,
            "error": failure.text if failure is not None else None,
        }


def planned(name: str, prepared: Sequence[Prepared], application: Application) -> events.Planned:
    """Give the event that tells what is going to happen."""
    charge = application.charge()
    plans = [one.planned() for one in prepared]
    cows = [plan.cow_bytes for plan in plans if plan.cow_bytes is not None]
    first = plans[0]
    return events.Planned(
        job=name,
        source=joined([plan.source for plan in plans]),
        destination=joined([plan.destination for plan in plans]),
        provider="group",
        why=f"one begin time for {len(plans)} volumes",
        bytes_total=sum(plan.bytes_total for plan in plans),
        chunk_bytes=first.chunk_bytes,
        segment_bytes=first.segment_bytes,
        cow="; ".join(f"{plan.source}: {plan.cow}" for plan in plans if plan.cow) or None,
        cow_bytes=sum(cows) if cows else None,
        steps=lines(prepared),
        retire=any(plan.retire for plan in plans),
        retire_why=next((plan.retire_why for plan in plans if plan.retire), first.retire_why),
        order=next((plan.order for plan in plans if plan.order != Policy.SEQUENTIAL), first.order),
        gate=first.gate,
        members=tuple(plan.job for plan in plans),
        hooks=tuple(joined(hook) for hook in charge.hooks),
        freezes=charge.freeze,
        volumes=tuple({word: getattr(plan, word) for word in _OF_A_VOLUME} for plan in plans),
    )


def lines(prepared: Sequence[Prepared]) -> tuple[str, ...]:
    """Give the whole as shell lines: all is made, all are held, all change, all go on."""
    plans = [one.standing.plan for one in mounted_first(prepared) if one.standing.plan is not None]
    critical = [step for plan in plans for step in plan.critical]
    parts = [step.part for step in critical if isinstance(step, Sharing)]
    return (
        *(line for one in prepared for line in one.about_arrays),
        *(line for plan in plans for step in plan.prepare for line in step.lines()),
        *(line for step in critical for line in step.lines()),
        "# all are held before the first goes on",
        *(joined(["dmsetup", "suspend", *_how(part), part.origin]) for part in parts),
        *(joined(["dmsetup", "resume", name]) for part in parts for name in part.then),
        *(joined(["dmsetup", "resume", part.origin]) for part in parts),
        *(line for plan in plans for step in plan.finish for line in step.lines()),
    )


def _how(part: Part) -> tuple[str, ...]:
    return () if part.lockfs else ("--nolockfs",)


def mounted_first(prepared: Sequence[Prepared]) -> list[Prepared]:
    """Give them in the order in which they are held: what takes longest to freeze comes first."""
    return sorted(prepared, key=lambda one: not one.source.mounts)
