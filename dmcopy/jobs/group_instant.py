"""The one instant of all volumes of a group, with what the applications need around it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from dmcopy.core import events
from dmcopy.errors import DmBusy
from dmcopy.jobs.application import Application
from dmcopy.jobs.beginning import hooks_told
from dmcopy.jobs.host import Host
from dmcopy.jobs.member_link import MemberLink
from dmcopy.jobs.membership import joined
from dmcopy.jobs.prepare import Prepared
from dmcopy.stack.deadman import Sentry
from dmcopy.stack.hold import Instant
from dmcopy.stack.keeper import Keeper
from dmcopy.stack.steps import SyncFileSystems
from dmcopy.stack.together import Part, together


class GroupInstant:
    """Has it come about; may be called again when it did not."""

    def __init__(
        self,
        name: str,
        prepared: Sequence[Prepared],
        host: Host,
        application: Application | None,
        happened: events.Observer,
    ) -> None:
        """*application* has what goes around the instant; what *happened* is told, and kept."""
        self._name = name
        self._prepared = prepared
        self._host = host
        self._application = application
        self._happened = happened
        self._frozen: set[str] = set()  # origins whose file system somebody else has frozen

    def was_frozen(self, exc: DmBusy) -> None:
        """Go without freezing what somebody else has frozen (fs/super.c:freeze_super)."""
        if exc.name in self._frozen or exc.verb != "suspend":
            raise exc
        self._frozen.add(exc.name)
        self._warn(f"the file system on {exc.name} is frozen already, and is copied as it is")

    def __call__(self, members: Sequence[MemberLink]) -> dict[str, Instant]:
        """Hold all before the first is let go; gives the instant for each member.

        Raises `HoldLimitExceeded`, `DmBusy` where a file system is frozen already, and whatever
        kept it from coming about; then nothing is held, and all that was loaded was dropped.
        """
        order = sorted(members, key=lambda one: not one.is_mounted)
        sharing = [(one, self._part(one.part)) for one in order if one.part is not None]
        spec = self._prepared[0].spec
        if spec.freeze == "auto":  # what was written since each made ready
            SyncFileSystems([point for one in self._prepared for point in one.source.mounts]).do()
        sentry = Sentry([part.origin for _, part in sharing], limit=spec.hold_limit)
        found: list[Instant] = []
        try:
            if sharing:
                sentry.ready()  # starting it takes longer than the hold
            with self._around():
                begin_ns = time.time_ns()
                if sharing:
                    assert self._host.dm is not None
                    parts = [part for _, part in sharing]
                    found = together(self._host.dm, parts, limit=spec.hold_limit, sentry=sentry)
                    begin_ns = found[0].begin_ns
        finally:
            sentry.end()
        alone = {one.name: instant for (one, _), instant in zip(sharing, found, strict=True)}
        idle = Instant(begin_ns=begin_ns, held=found[0].held if found else 0.0)
        return {one.name: alone.get(one.name, idle) for one in members}

    def _part(self, part: Part) -> Part:
        return replace(part, lockfs=part.lockfs and part.origin not in self._frozen)

    @contextmanager
    def _around(self) -> Iterator[None]:
        """Have the hooks run and file systems above the sources frozen: once for all volumes."""
        if self._application is None:
            yield
            return
        keeper = self._application.keeper()
        try:
            with keeper.around_instant():
                yield
        finally:
            self._tell_of(keeper)

    def _tell_of(self, keeper: Keeper) -> None:
        for event in hooks_told(keeper, self._name):
            self._happened(event)
        for warning in keeper.warnings:
            self._warn(warning)
        if keeper.frozen is not None:
            self._happened(
                events.Hold(
                    job=self._name,
                    device=joined([one.source.path for one in self._prepared]),
                    reason="freeze",
                    seconds=keeper.frozen,
                )
            )

    def _warn(self, message: str) -> None:
        self._happened(events.Warned(job=self._name, message=message))
