"""One copy from beginning to end, or from where it was interrupted.

This is where the layers below meet: it hands destinations, engine (in its worker process)
and stack to each other, keeps the journal, and tells the observer what happens.

What an interruption leaves.  Before the begin time: nothing.  After it, a signal, a killed
worker or a killed control leave the snapshot where it is, and the journal says what is durable:
`jobs.resume` goes on from there.  Any other failure, and `cancel`, take everything apart.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import Any

from dmcopy.core import events
from dmcopy.errors import (
    Cancelled,
    DmcopyError,
    IdentityFailed,
    Interrupted,
    LeftBehind,
    PointInTimeLost,
    Refused,
)
from dmcopy.jobs import settings
from dmcopy.jobs.account import Account
from dmcopy.jobs.beginning import Beginning, begin
from dmcopy.jobs.conductor import Conductor
from dmcopy.jobs.control import Desk
from dmcopy.jobs.host import Host
from dmcopy.jobs.journal import Journal
from dmcopy.jobs.link import WorkerLink
from dmcopy.jobs.lock import JobLock
from dmcopy.jobs.prepare import Prepared, spare_devices
from dmcopy.jobs.state import State, is_final
from dmcopy.jobs.teller import Teller
from dmcopy.jobs.twins import TwinStep
from dmcopy.jobs.whereabouts import unplugged_is_interrupted
from dmcopy.kernel.diskstat import IoTimes
from dmcopy.stack.cow import CowFileOnHost
from dmcopy.stack.discover import Provider
from dmcopy.stack.plan import signals_deferred
from dmcopy.stack.recover import remove_files
from dmcopy.units import format_size


class CopyJob:
    """Runs one prepared copy; `run` once."""

    def __init__(
        self,
        prepared: Prepared,
        host: Host,
        journal: Journal,
        observer: events.Observer,
        *,
        resumable: bool = True,
        arrive: Callable[[Desk], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """With *resumable* False an interruption takes everything apart, as a failure does.

        *arrive* is called when everything is at the destination, and returns when the image may
        be called whole: a group's are, all of them or none.
        """
        self._arrive = arrive
        # a split member holds the place of a spare: it is put back whatever happens
        self._resumable = resumable and prepared.source.provider is not Provider.MD_SPLIT
        self._prepared = prepared
        self._spec = prepared.spec
        self._host = host
        self._journal = journal
        self._new = prepared.earlier is None
        self._begun = not self._new  # from then on an interruption leaves it standing
        self._copied = prepared.earlier is not None and prepared.earlier.copied
        self._given_up: BaseException | None = None  # why everything is, or was, taken apart
        self._at_work = False  # a resume that was refused before leaves the job as it was
        self._opened = False  # what the destination leaves is ours from then on
        self._complete = False
        self._facts: dict[str, Any] = {}  # Any: JSON
        self._account = Account(prepared, clock=clock)
        self._teller = Teller(prepared, journal, self._account, observer, self._writes)
        self._record = self._teller.record
        self._twin = TwinStep(
            host,
            journal,
            job=self._spec.name,
            source=prepared.source.path,
            destination=prepared.destination,
            identity=prepared.identity,
        )
        self._conductor = Conductor(
            prepared, host, journal, self._teller, self._account, clock=clock
        )

    def _writes(self) -> IoTimes | None:
        with suppress(OSError):
            return self._host.sysfs.io_times(self._prepared.source.devno)
        return None

    def run(self) -> events.Ended:
        """Copy; gives the last event, which the observer has seen too.

        Never raises for a failure of the copy: the event says how it ended.  The origin is as
        it was, but for what ``left`` names; or the job can be gone on with, and the event's
        state is ``paused``, or ``copied`` where only verifying was left.
        """
        name = self._spec.name
        error: BaseException | None = None
        ended: events.Ended | None = None
        defined = not self._new
        try:
            with JobLock(self._host.places.locks, name):
                try:
                    with signals_deferred():  # no signal between the record and its end
                        self._define()
                        defined = True
                    with Desk(self._host.places.desks, name) as desk:
                        self._copy(desk)
                except (DmcopyError, OSError, KeyboardInterrupt) as exc:
                    if not defined:
                        raise
                    error = exc
                if self._given_up is not None and _is_stop(error):
                    error = self._given_up  # it came while that was being undone
                if self._is_done and isinstance(error, Interrupted):
                    error = None  # it came too late: the image has its name
                with signals_deferred():  # the journal must know of the end
                    ended = self._end(error)
                    if ended.kept or is_final(State(ended.state)):
                        self._twin.settle(written=self._begun)
                    else:
                        self._twin.forget_gone()
            return ended
        except (DmcopyError, OSError) as exc:  # the lock is taken, the journal cannot be written
            return ended if ended is not None else self._ended(exc)

    def _define(self) -> None:
        settings.apply(self._journal, self._host.places)
        name, earlier = self._spec.name, self._prepared.earlier
        if earlier is None:
            self._journal.define(name, self._prepared.recorded(self._spec))
            for path in self._leftovers():
                self._journal.may_leave(name, path)
        elif (self._journal.state(name), tuple(self._journal.done(name))) != (
            earlier.state,
            earlier.done,
        ):
            # It was looked at before it was locked.  What is retired by now would be read again.
            raise Refused(
                f"job {name} was worked on by another process meanwhile",
                way_out=f"look again: dmcopy show {name}",
            )
        elif self._is_elsewhere(name):
            self._journal.set_spec(name, self._prepared.recorded(self._spec))

    def _is_elsewhere(self, name: str) -> bool:
        """Tell whether the destination has another name than the journal has."""
        record = self._journal.record(name)
        return record is not None and record.spec["destination"] != self._spec.destination

    def _copy(self, desk: Desk) -> None:
        standing = self._prepared.standing
        with ExitStack() as stack:
            stack.enter_context(self._twin.sheltered())  # until the worker has let go of it
            stack.enter_context(self._conductor.counting())
            stack.push(self._unwind)  # runs after the worker is gone
            stack.enter_context(unplugged_is_interrupted(self._prepared.identity, self._host.sysfs))
            worker = stack.enter_context(WorkerLink())
            self._open(worker)
            if not self._copied:
                self._conductor.settle_arrays(worker, desk)
                standing.get_ready(
                    lambda what: self._journal.intend(self._spec.name, what),
                    self._conductor.waiting(worker, desk),
                    self._teller.happened,
                )
                self._conductor.get_to_know_the_writes()
                self._has_begun(begin(self._prepared, self._journal, self._teller))
                self._at_work = True
                self._record.move(State.COPYING)
                self._conductor.copy(worker, desk, standing.reading())
                # The image is durable at the destination: the application need not wait for more.
                if self._spec.keep:
                    self._conductor.release()
                else:
                    self._take_apart()
                self._has_copied()
            else:
                self._take_apart()  # what was still there when it was interrupted
                self._has_copied()
            self._at_work = True
            self._verify_if_wanted(worker, desk)
            if self._arrive is not None:
                self._arrive(desk)
            with signals_deferred():  # it happens, or it does not
                worker.send("complete")
                self._conductor.follow(worker, "complete", None)
                self._complete = True
            self._conductor.settle()
            told = self._twin.finish(new=self._spec.new_identity)
            if told is not None:
                self._teller.happened(told)

    @property
    def _is_done(self) -> bool:
        """Whether nothing of what was asked for is left to do."""
        return self._complete and (not self._spec.new_identity or self._twin.renewed)

    def _has_copied(self) -> None:
        if self._journal.state(self._spec.name) != State.VERIFIED:
            self._record.move(State.COPIED)
        self._copied = True

    def _leftovers(self) -> list[str]:
        cow = self._prepared.cow
        files = [str(cow.path)] if isinstance(cow, CowFileOnHost) else []
        return files + self._prepared.destination.leftovers()

    def _open(self, worker: WorkerLink) -> None:
        """Let the worker open and hold the destination, while nothing is changed yet."""
        prepared = self._prepared
        earlier = prepared.earlier
        worker.send(
            "open",
            job=self._spec.name,
            source=prepared.source.path,
            source_devno=prepared.source.devno,
            length_sectors=prepared.source.length,
            segment_sectors=prepared.segment,
            digest=self._spec.digest,
            destination=str(prepared.destination),
            overwrite_signature=self._spec.overwrite_signature,
            spare=sorted(spare_devices(prepared.cow)),
            identity=dict(prepared.identity),
            resume=dict(earlier.mark) if earlier is not None and earlier.mark is not None else None,
        )
        message = self._conductor.follow(worker, "ready", None)
        self._opened = True
        self._facts = {
            **prepared.facts(self._host.sysfs),
            "boot_id": self._host.sysfs.boot_id(),
            "mark": message["mark"],
        }

    def _has_begun(self, beginning: Beginning) -> None:
        """Record the begin time, or that the copy goes on as of the one it had."""
        standing, account, name = self._prepared.standing, self._account, self._spec.name
        instant, frozen = beginning
        self._facts |= standing.facts() | {"counts": account.counts()}
        if instant is None:
            assert account.begin_time is not None
            self._journal.set_facts(name, self._facts)
            if self._journal.state(name) == State.DEFINED:  # it was killed between two records
                self._record.move(State.BEGUN)
            self._teller.happened(
                events.Resumed(job=name, begin_time=account.begin_time, bytes_done=account.done)
            )
            return
        account.begin_time = instant.text
        self._teller.chronicle.begun(instant.begin_ns / 1e9)
        held = instant.held if instant.alone is None else instant.alone
        is_held = standing.snapshot is not None or (
            self._prepared.source.provider is Provider.MD_SPLIT
        )
        if is_held:
            self._teller.hold("begin", held)
        if frozen is not None:
            self._teller.hold("freeze", frozen)
        begun = events.Begun(
            job=name,
            source=self._prepared.source.path,
            begin_time=instant.text,
            hold_seconds=tuple(account.holds),
            snapshot=standing.snapshot,
            window_seconds=instant.held if self._spec.group is not None else None,
        )
        with signals_deferred():  # it is on record, or it was not begun
            self._journal.set_facts(name, self._facts)
            self._journal.note(name, "begun", begun.as_json())
            self._journal.move(name, State.BEGUN)
            self._begun = True
        self._teller.tell(begun)
        if is_held and held > self._spec.hold_limit:
            self._teller.warn(
                f"writes to {self._prepared.source.path} were held for {held:.3f} s, more "
                f"than the limit of {self._spec.hold_limit:g} s: its file system took that long "
                "to freeze"
            )

    def _verify_if_wanted(self, worker: WorkerLink, desk: Desk) -> None:
        runs = self._conductor.runs
        if len(runs) == 1:  # one run is the whole image
            self._account.digest = runs[0].digest
        earlier = self._prepared.earlier
        if earlier is not None and earlier.renewing:  # it is no longer the image, on purpose
            self._account.verified = earlier.state == State.VERIFIED
            return
        if not self._spec.verify:
            return
        message = self._conductor.verify(worker, desk)
        self._account.verified = True
        self._account.digest = message["digest"]
        self._record.move(State.VERIFIED)
        self._teller.tell(
            events.Verified(
                job=self._spec.name,
                digest=message["digest"],
                bytes_total=self._account.total,
                seconds=message["seconds"],
            )
        )

    # the end

    def _can_go_on(self, error: BaseException | None) -> bool:
        """Tell whether the job is left as it is, to be gone on with."""
        if self._given_up is not None:
            return False
        if not self._new and not self._at_work and not isinstance(error, PointInTimeLost):
            return error is not None
        interrupted = _is_stop(error) or isinstance(error, IdentityFailed)
        kept = interrupted and not isinstance(error, Cancelled)
        return kept and self._begun and self._resumable

    def _unwind(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take everything apart that is not to be kept."""
        self._conductor.release(worker_gone=True)
        if self._can_go_on(error) and not self._complete:
            return
        if self._is_kept:
            return
        if not self._complete:
            self._given_up = error
        with signals_deferred():  # who stops us now would stop us half way
            left: list[str] = []
            if isinstance(error, PointInTimeLost):
                # before anything else: a process that goes on later must never believe in it
                self._record.lost(str(error))
            try:
                self._take_apart()
            except LeftBehind as exc:
                left += exc.left
            if self._opened and not self._complete:
                _, kept = remove_files(self._prepared.destination.leftovers())
                left += kept
            if left:
                raise LeftBehind(left, job=self._spec.name)

    def _take_apart(self) -> None:
        """Give the origin its table back and remove what is ours; once is enough."""
        self._conductor.release()
        held = self._prepared.standing.end()
        if held is not None:
            self._teller.hold("end", held)

    @property
    def _is_kept(self) -> bool:
        """Whether the image is whole, and its snapshot stays (``--keep``)."""
        return self._spec.keep and self._complete

    def _end(self, error: BaseException | None) -> events.Ended:
        event = self._ended(error)
        if event.kept:
            self._record.note("ended", event.as_json())
        elif event.state in (State.PAUSED, State.COPIED):
            if self._journal.state(self._spec.name) in (State.BEGUN, State.COPYING):
                self._record.move(State.PAUSED)
            self._record.log(event.as_json())
        else:
            if not event.left:
                self._record.forget_leftovers()
            self._record.note("ended", event.as_json())
            self._record.move(State(event.state))
        return event

    def _ended(self, error: BaseException | None) -> events.Ended:
        failure = _failure(error)
        text = None
        state = State.ENDED
        kept = self._is_kept and failure is None
        if kept:
            state = State.VERIFIED if self._account.verified else State.COPIED
        if failure is not None:
            text = _text(failure) + self._advice(failure)
            state = State.CANCELLED if isinstance(failure, Interrupted) else State.FAILED
            if self._can_go_on(failure):
                state = State.COPIED if self._copied else State.PAUSED
        event = self._account.ended(
            state=state,
            exit_status=failure.exit_status if failure else 0,
            error=text,
            kind=failure.kind if failure else None,
            left=failure.left if isinstance(failure, LeftBehind) else (),
            kept=kept,
        )
        self._teller.tell(event)
        return event

    def _advice(self, failure: DmcopyError) -> str:
        """Say what can be done about it."""
        name = self._spec.name
        if self._spec.group is not None:
            return ""  # who leads the group gives it
        if self._can_go_on(failure):
            return f"; go on: dmcopy resume {name}; give it up: dmcopy cancel {name}"
        if not isinstance(failure, PointInTimeLost):
            return ""
        cow = self._account.cow
        if cow is None or 2 * cow[0] < cow[1] or "full" not in str(failure):
            return f"; begin anew: dmcopy copy {self._spec.source} {self._spec.destination}"
        return (
            f"; of its {format_size(cow[1])} {100 * cow[0] // cow[1]} % were in use "
            "when last looked at: begin anew with a larger --cow"
        )


def _is_stop(error: BaseException | None) -> bool:
    """Tell whether somebody wanted it to end."""
    return isinstance(error, Interrupted | KeyboardInterrupt)


def _failure(error: BaseException | None) -> DmcopyError | None:
    """Give *error* as one of ours, with its exit status."""
    if error is None or isinstance(error, DmcopyError):
        return error
    if isinstance(error, KeyboardInterrupt):
        return Interrupted("interrupted")
    failure = DmcopyError(str(error))
    failure.__cause__ = error
    return failure


def _text(failure: DmcopyError) -> str:
    """Say what went wrong; where undoing went wrong too, what came first."""
    first = failure.__cause__ or failure.__context__
    while isinstance(first, LeftBehind):  # it was tried again, and failed again
        first = first.__cause__ or first.__context__
    if isinstance(failure, LeftBehind) and first is not None:
        return f"{first}; then {failure}"
    return str(failure)
