"""A consistency group: several volumes as of one instant, one job for the user.

Each volume is a job of its own in a process of its own (`jobs.member`); this is who leads them.
All of them, or none: the begin time comes about when every member has made everything ready, and
is told to all of them; their images are called whole when all are at the destination; and when
one fails, the others are given up too.

Who dies when.  Before the begin time was told, everything is undone by the members.  After it, a
member or a leader that is interrupted or killed leaves all members interrupted, each with its
snapshot; `dmcopy resume` goes on with all, or - where one of them never got its begin time, or
lost it - with none.
"""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from dmcopy.core import events
from dmcopy.errors import (
    Cancelled,
    DmBusy,
    DmcopyError,
    HoldLimitExceeded,
    Interrupted,
    LeftBehind,
    PointInTimeLost,
    WorkerDied,
)
from dmcopy.jobs.application import Application
from dmcopy.jobs.control import Asked, Desk
from dmcopy.jobs.group_account import GroupAccount
from dmcopy.jobs.group_desk import FORWARDED, Forwarding
from dmcopy.jobs.group_instant import GroupInstant
from dmcopy.jobs.host import Host
from dmcopy.jobs.journal import Journal
from dmcopy.jobs.lock import JobLock
from dmcopy.jobs.member_link import Failure, MemberLink
from dmcopy.jobs.membership import copy_again, group_spec, refuse_taken, why_no_instant
from dmcopy.jobs.overview import rescue_member
from dmcopy.jobs.prepare import Prepared
from dmcopy.jobs.recorder import Recorder
from dmcopy.jobs.state import State, is_final
from dmcopy.stack.plan import signals_deferred

_ATTEMPTS: Final = 3
_LOOK_SECONDS: Final = 0.5
_BY_HAND: Final = (Interrupted.kind, Cancelled.kind, WorkerDied.kind)


class _Stopped(Exception):
    """A member did not get to its end: the first one that did not."""

    def __init__(self, member: MemberLink) -> None:
        super().__init__(member.name)
        self.member = member


class GroupJob:
    """Leads one group; `run` once.

    *prepared* are its volumes, new (`jobs.prepare`) or gone on with (`jobs.resume`).  *application*
    has what goes around the instant, once for all volumes.
    """

    def __init__(
        self,
        name: str,
        prepared: Sequence[Prepared],
        host: Host,
        journal: Journal,
        observer: events.Observer,
        *,
        over: Sequence[str] = (),
        application: Application | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """*over* are the members that ended well in an earlier session."""
        self._name = name
        self._prepared = prepared
        self._host = host
        self._journal = journal
        self._observer = observer
        self._instant = GroupInstant(name, prepared, host, application, self._happened)
        self._new = prepared[0].earlier is None
        self._over = tuple(over)
        self._members = [
            MemberLink(
                one.spec.name,
                one.source.path,
                is_new=self._new,
                is_mounted=bool(one.source.mounts),
            )
            for one in prepared
        ]
        self._account = GroupAccount(name, prepared, self._members, clock=clock)
        self._record = Recorder(journal, name, self._warn)
        self._forwarding = Forwarding(host.places.desks)
        self._stopping = False

    def run(self) -> events.Ended:
        """Copy all; gives the group's last event, which the observer has seen too.

        Never raises for a failure of the copy; every member has ended when it returns.
        """
        failure: Failure | None = None
        defined = not self._new
        try:
            with JobLock(self._host.places.locks, self._name):
                try:
                    with signals_deferred():
                        self._define()
                        defined = True
                    with Desk(self._host.places.desks, self._name) as desk:
                        failure = self._lead(desk)
                except (DmcopyError, OSError, KeyboardInterrupt) as exc:
                    if not defined:
                        raise
                    failure = failure or failure_of(exc)
                with signals_deferred():
                    return self._end(failure)
        except (DmcopyError, OSError) as exc:  # the lock is taken, the journal cannot be written
            return self._told(self._account.ended(state=State.FAILED, failure=failure_of(exc)))

    def _define(self) -> None:
        if self._new:
            refuse_taken(self._name, self._journal, members=len(self._members))
            self._journal.define(self._name, group_spec([one.spec for one in self._prepared]))

    def _lead(self, desk: Desk) -> Failure | None:
        """Have it all done; gives why it was not.  All members have ended when it returns."""
        try:
            self._work(desk)
        except _Stopped as stopped:
            failure = stopped.member.failure
            assert failure is not None
            where = f"{stopped.member.name} ({stopped.member.source})"
            failure = failure._replace(text=f"{where}: {failure.text}")
        except (DmcopyError, OSError, KeyboardInterrupt) as exc:
            failure = failure_of(exc)
        else:
            return None
        with signals_deferred():
            self._stop(failure, desk)
        return failure

    def _work(self, desk: Desk) -> None:
        verify = self._prepared[0].spec.verify
        for member, one in zip(self._members, self._prepared, strict=True):
            words: dict[str, Any] = {"do": "copy", "spec": one.spec.as_json()}  # Any: JSON
            if not self._new:
                words = {"do": "resume", "job": member.name, "verify": verify}
            with signals_deferred():  # what was started is known
                member.start(**words, group=self._name, places=self._host.places)
        if self._new:
            self._begin(desk)
        self._follow(desk, lambda: all(one.is_at_work for one in self._members))
        self._has_begun()
        self._follow(desk, lambda: all(one.has_arrived for one in self._members))
        self._record.move(State.COPIED)
        with signals_deferred():
            for member in self._members:
                member.say("complete")
        self._follow(desk, lambda: all(one.is_gone for one in self._members))

    # the begin time

    def _begin(self, desk: Desk) -> None:
        """Wait until all are ready, and have the instant come about; at most a few times."""
        for attempt in range(1, _ATTEMPTS + 1):
            self._follow(desk, lambda: all(one.is_waiting for one in self._members))
            try:
                instants = self._instant(self._members)
            except (HoldLimitExceeded, DmBusy) as exc:
                if isinstance(exc, DmBusy):
                    self._instant.was_frozen(exc)
                elif attempt == _ATTEMPTS:
                    raise HoldLimitExceeded(f"{exc} ({attempt} attempts)") from exc
                for member in self._members:
                    member.again(str(exc))
                continue
            with signals_deferred():
                for member in self._members:
                    member.tell_instant(instants[member.name])
            return

    def _has_begun(self) -> None:
        """Put on record that all members have the begin time on record, or go on as of it."""
        record = self._journal.record(self._name)
        assert record is not None
        begun = self._account.begun() if record.begun is None else None
        with signals_deferred():
            if begun is not None:  # an earlier leader may have been killed right before
                self._journal.note(self._name, "begun", begun.as_json())
            if record.state == State.DEFINED:
                self._journal.move(self._name, State.BEGUN)
        if self._new and begun is not None:
            self._observer(begun)
        if not self._new:
            self._happened(self._account.resumed())
        if record.state not in (State.COPIED, State.VERIFIED):
            self._record.move(State.COPYING)

    # what the members say, and who asks

    def _follow(self, desk: Desk, is_so: Callable[[], bool]) -> None:
        """Take what is said until *is_so*; raises `_Stopped` when a member has failed."""
        while not is_so():
            self._turn(desk)

    def _turn(self, desk: Desk) -> None:
        there = {one.fileno(): one for one in self._members if one.is_there}
        answers = self._forwarding.filenos()
        ready, _, _ = select.select([*there, *answers, desk.fileno()], [], [], _LOOK_SECONDS)
        with signals_deferred():  # no message is lost half read
            for fd in ready:
                if fd in there:
                    for event in there[fd].heard():
                        self._pass_on(event)
                elif fd in answers:
                    self._forwarding.take(fd)
            for asked in desk.asked():
                self._serve(asked)
        if not self._stopping:
            for member in self._members:
                if member.failure is not None:
                    raise _Stopped(member)

    def _pass_on(self, event: events.Event) -> None:
        self._observer(event)
        if isinstance(event, events.Progress) and not self._stopping:
            told = self._account.progress()
            if told is not None:
                self._record.progress(told.as_json())
                self._observer(told)

    def _serve(self, asked: Asked) -> None:
        if self._stopping:
            asked.refuse(f"job {self._name} is being stopped")
        elif asked.verb == "cancel":
            asked.answer()
            raise Cancelled("cancelled")
        elif asked.verb in FORWARDED:
            there = [one for one in self._members if one.is_there and not one.has_arrived]
            self._forwarding.ask(asked, [one.name for one in there if one.is_at_work])
        else:
            asked.refuse(f"a group does not know '{asked.verb}': ask for one of its volumes")

    # the end

    def _stop(self, failure: Failure, desk: Desk) -> None:
        """Have all members end, as they can be gone on with, or not; returns when they have.

        A new group can be gone on with only if all have their begin time.
        """
        self._stopping = True
        begun = not self._new or all(one.is_at_work for one in self._members)
        for member in self._members:
            member.stop(give_up=not (failure.can_go_on and begun), why=failure.text)
        while any(one.is_there for one in self._members):
            self._turn(desk)

    def _end(self, failure: Failure | None) -> events.Ended:
        self._forwarding.close(f"job {self._name} has ended")
        for member in self._members:
            member.close()
        if all(one.ended is not None and one.failure is None for one in self._members):
            failure = None  # it came too late: all images have their names
        if failure is None:
            return self._has_ended()
        if failure.can_go_on:
            names = [*(one.name for one in self._members), *self._over]
            lost = [one.failure for one in self._members if one.is_lost]
            if not lost and why_no_instant(names, self._journal.record) is None:
                return self._is_kept_to_go_on(failure)
            failure = next((one for one in lost if one is not None), failure)
        return self._is_undone(failure)

    def _has_ended(self) -> events.Ended:
        keep, verify = self._prepared[0].spec.keep, self._prepared[0].spec.verify
        if verify:
            self._record.move(State.VERIFIED)
        kept_as = State.VERIFIED if verify else State.COPIED
        event = self._account.ended(state=kept_as if keep else State.ENDED, failure=None, kept=keep)
        self._record.note("ended", event.as_json())
        if not keep:
            self._record.move(State.ENDED)
        return self._told(event)

    def _is_kept_to_go_on(self, failure: Failure) -> events.Ended:
        name, now = self._name, self._journal.state(self._name)
        advice = f"; go on: dmcopy resume {name}; give it up: dmcopy cancel {name}"
        if now == State.DEFINED:
            self._record.move(State.BEGUN)
        copied = now in (State.COPIED, State.VERIFIED)
        if not copied:
            self._record.move(State.PAUSED)
        event = self._account.ended(
            state=State.COPIED if copied else State.PAUSED,
            failure=failure._replace(text=failure.text + advice),
        )
        self._record.log(event.as_json())
        return self._told(event)

    def _is_undone(self, failure: Failure) -> events.Ended:
        """Put right what a member left that could have been gone on with, or was killed."""
        left = [text for one in self._members if one.failure for text in one.failure.left]
        for member in self._members:
            record = self._journal.record(member.name)
            if record is not None and not is_final(record.state):
                left += rescue_member(record, self._host, self._journal, why=failure.text)
        text = failure.text
        if failure.kind == PointInTimeLost.kind:
            text += f"; begin anew: {copy_again(group_spec([one.spec for one in self._prepared]))}"
        by_hand = failure.kind in _BY_HAND
        failure = failure._replace(text=text, left=())
        if left:
            behind = LeftBehind(left, job=self._name)
            text = f"{text}; then {behind}"
            failure = Failure(behind.exit_status, behind.kind, text, behind.left)
        state = State.CANCELLED if by_hand and not left else State.FAILED
        event = self._account.ended(state=state, failure=failure)
        self._record.note("ended", event.as_json())
        self._record.move(state)
        return self._told(event)

    def _told(self, event: events.Ended) -> events.Ended:
        self._observer(event)
        return event

    def _happened(self, event: events.Event) -> None:
        self._record.log(event.as_json())
        self._observer(event)

    def _warn(self, message: str) -> None:
        self._observer(events.Warned(job=self._name, message=message))


def failure_of(error: BaseException) -> Failure:
    """Give what the leader itself met as a failure."""
    if isinstance(error, KeyboardInterrupt):
        error = Interrupted("interrupted")
    if not isinstance(error, DmcopyError):
        return Failure(DmcopyError.exit_status, DmcopyError.kind, str(error))
    kept = isinstance(error, Interrupted) and not isinstance(error, Cancelled)
    left = error.left if isinstance(error, LeftBehind) else ()
    return Failure(error.exit_status, error.kind, str(error), left, can_go_on=kept)
