"""One copy from beginning to end, or from where it was interrupted: the loop of control.

This is where the layers below meet: it hands destinations, engine (in its worker process)
and stack to each other, keeps the journal, and tells the observer what happens.

What an interruption leaves.  Before the begin time: nothing.  After it, a signal, a killed
worker or a killed control leave the snapshot where it is, and the journal says what is durable:
`jobs.resume` goes on from there.  Any other failure, and `cancel`, take everything apart.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Final

from dmcopy.core import events, geometry
from dmcopy.core.extent import Extent
from dmcopy.core.forecast import Forecast
from dmcopy.core.rate import Rate
from dmcopy.engine.request import runs_of
from dmcopy.errors import (
    Cancelled,
    DmcopyError,
    Interrupted,
    LeftBehind,
    PointInTimeLost,
)
from dmcopy.jobs import settings
from dmcopy.jobs.account import Account
from dmcopy.jobs.control import Asked, Desk
from dmcopy.jobs.cow_watch import LOOK_SECONDS, CowWatch, Steer
from dmcopy.jobs.host import Host
from dmcopy.jobs.journal import Journal
from dmcopy.jobs.link import Message, WorkerLink
from dmcopy.jobs.lock import JobLock
from dmcopy.jobs.pacing import Pacing
from dmcopy.jobs.prepare import Prepared, spare_devices
from dmcopy.jobs.recorder import Recorder
from dmcopy.jobs.state import State
from dmcopy.kernel.lvm import Lvm
from dmcopy.stack.brake import Brake
from dmcopy.stack.cow import CowFileOnHost
from dmcopy.stack.gate import LiveTables
from dmcopy.stack.grow import grower
from dmcopy.stack.hold import Instant
from dmcopy.stack.names import Role, device_name
from dmcopy.stack.plan import signals_deferred
from dmcopy.stack.recover import remove_files
from dmcopy.units import Bytes, format_size, to_bytes, to_sectors

_NOTE_SECONDS: Final = 1.0  # how often the progress goes to the journal


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
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """With *resumable* False an interruption takes everything apart, as a failure does."""
        self._resumable = resumable
        self._prepared = prepared
        self._spec = prepared.spec
        self._host = host
        self._journal = journal
        self._observer = observer
        self._clock = clock
        self._noted = 0.0
        self._new = prepared.earlier is None
        self._begun = not self._new  # from then on an interruption leaves it standing
        self._copied = prepared.earlier is not None and prepared.earlier.copied
        self._opened = False  # what the destination leaves is ours from then on
        self._complete = False
        self._pausing: list[Asked] = []  # who is told when the copy is paused
        self._paused = False
        self._pacing: Pacing | None = None
        self._watch: CowWatch | None = None
        self._worker: WorkerLink | None = None  # while it takes what it is told
        self._later: deque[Message] = deque()  # what it said while something else was waited for
        self._failure: DmcopyError | None = None  # of the worker, met while it was told something
        self._retired: list[Extent] = []
        self._facts: dict[str, Any] = {}  # Any: JSON
        self._record = Recorder(journal, self._spec.name, self._warn_only)
        done = sum(row.extent.size for row in journal.done(self._spec.name)) if self._begun else 0
        self._account = Account(prepared, Bytes(done), clock=clock)

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
                if self._complete and isinstance(error, Interrupted):
                    error = None  # it came too late: the image has its name
                with signals_deferred():  # the journal must know of the end
                    ended = self._end(error)
            return ended
        except (DmcopyError, OSError) as exc:  # the lock is taken, the journal cannot be written
            return ended if ended is not None else self._ended(exc)

    def _define(self) -> None:
        settings.apply(self._journal, self._host.places)
        if self._new:
            self._journal.define(self._spec.name, self._recorded_spec())
            for path in self._leftovers():
                self._journal.may_leave(self._spec.name, path)

    def _copy(self, desk: Desk) -> None:
        standing = self._prepared.standing
        with ExitStack() as stack:
            stack.push(self._unwind)  # runs after the worker is gone
            worker = stack.enter_context(WorkerLink())
            self._open(worker)
            if not self._copied:
                instant = standing.begin(lambda what: self._journal.intend(self._spec.name, what))
                self._has_begun(instant)
                self._record.move(State.COPYING)
                worker.send("copy", **standing.reading(), **self._what_is_left())
                self._worker = worker
                self._watch = self._watched()
                if self._spec.rate.auto:
                    self._pacing = self._paced(worker)
                self._follow(worker, "copied", desk)
                self._pacing = None
                # The image is durable at the destination: the application need not wait for more.
                self._take_apart()
                self._record.move(State.COPIED)
                self._copied = True
                while self._pausing:
                    self._pausing.pop().refuse(f"job {self._spec.name} has copied everything")
            self._verify_if_wanted(worker, desk)
            with signals_deferred():  # it happens, or it does not
                worker.send("complete")
                self._follow(worker, "complete", None)
                self._complete = True

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
        message = self._follow(worker, "ready", None)
        self._opened = True
        self._facts = {
            **prepared.facts(self._host.sysfs),
            "boot_id": self._host.sysfs.boot_id(),
            "mark": message["mark"],
        }

    def _has_begun(self, instant: Instant | None) -> None:
        """Record the begin time, or that the copy goes on as of the one it had."""
        standing, account, name = self._prepared.standing, self._account, self._spec.name
        self._facts |= standing.facts() | {"counts": account.counts()}
        if instant is None:
            assert account.begin_time is not None
            self._journal.set_facts(name, self._facts)
            if self._journal.state(name) == State.DEFINED:  # it was killed between two records
                self._record.move(State.BEGUN)
            event: events.Event = events.Resumed(
                job=name, begin_time=account.begin_time, bytes_done=account.done
            )
            self._record.log(event.as_json())
            self._observer(event)
            return
        account.begin_time = instant.text
        if standing.snapshot is not None:
            self._hold("begin", instant.held)
        begun = events.Begun(
            job=name,
            source=self._prepared.source.path,
            begin_time=instant.text,
            hold_seconds=tuple(account.holds),
            snapshot=standing.snapshot,
        )
        with signals_deferred():  # it is on record, or it was not begun
            self._journal.set_facts(name, self._facts)
            self._journal.note(name, "begun", begun.as_json())
            self._journal.move(name, State.BEGUN)
            self._begun = True
        self._observer(begun)
        if standing.snapshot is not None and instant.held > self._spec.hold_limit:
            self._warn(
                f"writes to {self._prepared.source.path} were held for {instant.held:.3f} s, more "
                f"than the limit of {self._spec.hold_limit:g} s: its file system took that long "
                "to freeze"
            )

    def _watched(self) -> CowWatch | None:
        """Make what watches the COW device, where there is one."""
        prepared, spec, dm = self._prepared, self._spec, self._host.dm
        name = prepared.source.dm_name
        if prepared.cow is None or dm is None or name is None:
            return None
        chunk = to_sectors(spec.chunk)

        def brake() -> Brake:
            return Brake(
                dm,
                job=spec.name,
                origin=name,
                segment=prepared.segment,
                hold_limit=spec.hold_limit,
                announce=self._announce,
            )

        return CowWatch(
            dm,
            spec.name,
            device_name(spec.name, Role.SNAP),
            Forecast(most=to_bytes(geometry.never_overflow(prepared.source.length, chunk))),
            Steer(
                retire=self._retire,
                first=lambda extents: self._tell("first", extents=list(extents)),
                batches=lambda most, seconds: self._tell(
                    "batch", batch_sectors=to_sectors(most), seconds=seconds
                ),
                tell=self._happened,
                warn=self._warn,
                hold=self._hold,
            ),
            size=self._account.total,
            grower=grower(
                prepared.cow,
                job=spec.name,
                dm=dm,
                sysfs=self._host.sysfs,
                lvm=Lvm(self._host.run),
                chunk=chunk,
                hold_limit=spec.hold_limit,
            ),
            brake=brake if spec.on_full == "hold" else None,
            hold_limit=spec.hold_limit,
            clock=self._clock,
        )

    def _tell(self, do: str, **fields: object) -> None:
        if self._worker is not None:
            self._worker.send(do, **fields)

    def _announce(self, live: LiveTables) -> None:
        """Have the worker go by other tables; returns when it does."""
        if self._worker is None:
            return
        self._worker.send(
            "tables",
            origin=[table.decode() for table in sorted(live.origin)],
            layers={
                uuid: [table.decode() for table in sorted(tables)]
                for uuid, tables in live.layers.items()
            },
        )
        try:
            while (message := self._worker.receive()) is None or message["is"] != "tables":
                if message is not None:
                    self._later.append(message)
        except DmcopyError as exc:
            # It reads no more, so it need not know; the brake goes on, or is taken out, first.
            self._worker, self._failure = None, exc

    def _retire(self) -> list[Extent]:
        """Put on record that what is durable is retired; give all that is."""
        if not self._record.is_behind:  # else the journal does not know what is durable
            self._journal.retire(self._spec.name)
            self._retired = [row.extent for row in self._journal.done(self._spec.name)]
        return self._retired

    def _happened(self, event: events.Event) -> None:
        self._record.log(event.as_json())
        self._observer(event)

    def _what_is_left(self) -> dict[str, object]:
        done = self._journal.done(self._spec.name)
        return {
            "done": [(row.extent.start, row.extent.length) for row in done],
            "batch_sectors": to_sectors(self._spec.batch),
            "cap_path": str(self._host.places.cap),
            "rate_bytes": self._spec.rate.limit,
        }

    def _hold(self, reason: str, seconds: float) -> None:
        self._account.holds.append(seconds)
        event = events.Hold(
            job=self._spec.name,
            device=self._prepared.source.path,
            reason=reason,
            seconds=seconds,
        )
        self._observer(event)

    def _warn(self, message: str) -> None:
        self._record.log(self._warn_only(message).as_json())

    def _warn_only(self, message: str) -> events.Warned:
        event = events.Warned(job=self._spec.name, message=message)
        self._observer(event)
        return event

    # while the worker works

    def _follow(self, worker: WorkerLink, until: str, desk: Desk | None) -> Message:
        """Take the worker's messages until the one that is waited for; serve who asks."""
        also = () if desk is None else (desk.fileno(),)
        while True:
            if self._failure is not None:
                raise self._failure
            message = self._later.popleft() if self._later else None
            message = message or worker.receive(LOOK_SECONDS, *also)
            if desk is not None:
                for asked in desk.asked():
                    self._serve(asked, worker)
            if self._pacing is not None and not self._paused:
                self._pacing.tick(self._account.done)
            if self._watch is not None:
                self._watch.tick(self._account.done)
                self._account.watched(self._watch.cow, self._watch.outlook)
            if message is None:
                continue
            match message["is"]:
                case "progress" | "copied":
                    self._progress(message)
                case "durable":
                    self._progress(message)
                    self._commit(message)
                    worker.send("journaled")
                    if self._watch is not None:
                        self._watch.durable()
                case "paused":
                    self._pause()
                case "warning":
                    self._warn(str(message["message"]))
            if message["is"] == until:
                return message

    def _progress(self, message: Message) -> None:
        if message["is"] == "copied":
            self._account.copy_seconds = message["seconds"]
        event = self._account.progress(message)
        if message["is"] == "durable" or self._clock() - self._noted > _NOTE_SECONDS:
            self._noted = self._clock()
            self._record.progress(event.as_json())
        self._observer(event)

    def _commit(self, message: Message) -> None:
        """Put on record what is durable at the destination: it is never copied again."""
        rows = [(run.extent, run.digest) for run in runs_of(message["rows"])]
        self._record.commit(rows, self._account.counts())

    def _serve(self, asked: Asked, worker: WorkerLink) -> None:
        match asked.verb:
            case "pause" if self._paused:
                asked.answer()
            case "pause" if self._begun and not self._copied:
                self._pausing.append(asked)
                worker.send("pause")
            case "pause":
                asked.refuse(f"job {self._spec.name} is not copying, so it cannot be paused")
            case "resume":
                self._go_on(asked, worker)
            case "set":
                self._set_rate(Rate.parse(asked.request["rate"]), worker)
                asked.answer()
            case "cancel":
                asked.answer()
                raise Cancelled("cancelled")
            case _:
                asked.refuse(f"a running job does not know '{asked.verb}'")

    def _set_rate(self, rate: Rate, worker: WorkerLink) -> None:
        self._spec = self._spec.at_rate(rate)
        self._record.spec(self._recorded_spec())
        worker.send("rate", rate_bytes=rate.limit)
        self._pacing = self._paced(worker) if rate.auto else None

    def _paced(self, worker: WorkerLink) -> Pacing:
        def set_rate(rate: Bytes) -> None:
            worker.send("rate", rate_bytes=rate)

        return Pacing(self._host.sysfs, self._prepared.source.devno, set_rate, clock=self._clock)

    def _recorded_spec(self) -> dict[str, Any]:  # Any: JSON
        return self._spec.as_json() | {"identity": dict(self._prepared.identity)}

    def _pause(self) -> None:
        self._paused = True
        self._record.move(State.PAUSED)
        event = events.Paused(job=self._spec.name, bytes_done=self._account.done)
        self._record.log(event.as_json())
        self._observer(event)
        while self._pausing:
            self._pausing.pop().answer()

    def _go_on(self, asked: Asked, worker: WorkerLink) -> None:
        if not self._paused:
            asked.refuse(f"job {self._spec.name} is running")
            return
        self._paused = False
        self._record.move(State.COPYING)
        worker.send("go")
        self._has_begun(None)
        asked.answer()

    def _verify_if_wanted(self, worker: WorkerLink, desk: Desk) -> None:
        done = self._journal.done(self._spec.name)
        if len(done) == 1:  # one run is the whole image
            self._account.digest = done[0].digest
        if not self._spec.verify:
            return
        rows = [(row.extent.start, row.extent.length, row.digest) for row in done]
        worker.send("verify", rows=rows)
        message = self._follow(worker, "verified", desk)
        self._account.verified = True
        self._account.digest = message["digest"]
        self._record.move(State.VERIFIED)
        self._observer(
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
        interrupted = isinstance(error, Interrupted | KeyboardInterrupt)
        kept = interrupted and not isinstance(error, Cancelled)
        return kept and self._begun and self._resumable

    def _unwind(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take everything apart that is not to be kept."""
        self._worker = None  # it has ended
        self._release()
        if self._can_go_on(error) and not self._complete:
            return
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

    def _release(self) -> None:
        """Let go of what the brake holds; nothing is held for a job that does not run."""
        if self._watch is not None:
            watch, self._watch = self._watch, None
            watch.end()

    def _take_apart(self) -> None:
        """Give the origin its table back and remove what is ours; once is enough."""
        self._release()
        held = self._prepared.standing.end()
        if held is not None:
            self._hold("end", held)

    def _end(self, error: BaseException | None) -> events.Ended:
        event = self._ended(error)
        if event.state in (State.PAUSED, State.COPIED):
            self._record.move(State(event.state))
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
        )
        self._observer(event)
        return event

    def _advice(self, failure: DmcopyError) -> str:
        """Say what can be done about it."""
        name = self._spec.name
        if self._can_go_on(failure):
            return f"; go on: dmcopy resume {name}; give it up: dmcopy cancel {name}"
        if not isinstance(failure, PointInTimeLost):
            return ""
        cow = self._account.cow
        if cow is None or 2 * cow[0] < cow[1]:
            return f"; begin anew: dmcopy copy {self._spec.source} {self._spec.destination}"
        return (
            f"; of its {format_size(cow[1])} {100 * cow[0] // cow[1]} % were in use "
            "when last looked at: begin anew with a larger --cow"
        )


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
    if isinstance(failure, LeftBehind) and first is not None:
        return f"{first}; then {failure}"
    return str(failure)
