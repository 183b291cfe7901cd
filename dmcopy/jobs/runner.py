"""One copy from beginning to end: plan, begin, copy, take apart, verify.

This is where the layers below meet: it hands destinations, engine (in its worker process)
and stack to each other, keeps the journal, and tells the observer what happens.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, Final

from dmcopy.core import events, geometry
from dmcopy.core.forecast import FillForecast
from dmcopy.destinations import parse as parse_destination
from dmcopy.destinations.base import Can, Destination, Surroundings
from dmcopy.destinations.block import BlockDestination
from dmcopy.errors import (
    DmcopyError,
    Interrupted,
    LeftBehind,
    PointInTimeLost,
    Refused,
    UsageError,
)
from dmcopy.jobs.journal import Journal
from dmcopy.jobs.link import Message, WorkerLink
from dmcopy.jobs.lock import JobLock
from dmcopy.jobs.spec import CopySpec, Places
from dmcopy.jobs.state import State
from dmcopy.kernel.command import Commander
from dmcopy.kernel.dm import Dm
from dmcopy.kernel.lvm import Lvm
from dmcopy.kernel.sysfs import Sysfs
from dmcopy.stack.begin import Claim, Spliced, splice
from dmcopy.stack.cow import CowFileOnHost, CowPlan
from dmcopy.stack.cow_plan import plan_cow
from dmcopy.stack.discover import Provider, Source, discover
from dmcopy.stack.hold import Instant
from dmcopy.stack.names import check_job
from dmcopy.stack.plan import Plan, signals_deferred
from dmcopy.stack.recover import find_remains, remove_files
from dmcopy.units import Sectors, format_size, to_bytes, to_sectors

_NOTE_SECONDS: Final = 1.0  # how often the progress goes to the journal


@dataclass(frozen=True, kw_only=True)
class Host:
    """What a job works with on this machine; *dm* is None without device-mapper."""

    dm: Dm | None
    sysfs: Sysfs
    run: Commander
    places: Places


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A copy that passed every check; nothing was changed for it."""

    spec: CopySpec
    source: Source
    destination: Destination
    identity: Mapping[str, str | int]  # of the destination, checked again when it is opened
    segment: Sectors
    cow: CowPlan | None
    spliced: Spliced | None
    claim: Claim | None
    plan: Plan

    @property
    def instant(self) -> Instant:
        """The begin time, once the plan has run."""
        step = self.spliced.splice if self.spliced else self.claim
        assert step is not None
        assert step.instant is not None
        return step.instant

    def planned(self) -> events.Planned:
        """Give the event that tells what is going to happen."""
        return events.Planned(
            job=self.spec.name,
            source=self.source.path,
            destination=str(self.destination),
            provider=self.source.provider,
            why=self.source.why,
            bytes_total=to_bytes(self.source.length),
            chunk_bytes=self.spec.chunk if self.spliced else None,
            segment_bytes=to_bytes(self.segment),
            cow=self.cow.how if self.cow else None,
            cow_bytes=to_bytes(self.cow.length) if self.cow else None,
            steps=self.plan.lines(),
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
    wants_cow = not spec.cow.is_auto
    source = discover(spec.source, host.dm, host.sysfs, want_splice=wants_cow)
    chunk = geometry.check_chunk(spec.chunk, source.logical_block)
    segment = geometry.segment_size(spec.segment, chunk, destination.segment_alignment())
    cow: CowPlan | None = None
    spliced: Spliced | None = None
    claim: Claim | None = None
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
        plan = spliced.plan
    elif wants_cow:
        raise UsageError(f"{spec.source} is no dm device, so it takes no --cow: {source.why}")
    else:
        claim = Claim(source.node, host.sysfs)
        plan = Plan(job=spec.name, prepare=[claim])
    around = _surroundings(spec, source, cow, host)
    destination.check(source.length, around)
    _check_cow_devices(cow, around)
    return Prepared(
        spec=spec,
        source=source,
        destination=destination,
        identity=destination.identity(around),
        segment=segment,
        cow=cow,
        spliced=spliced,
        claim=claim,
        plan=plan,
    )


def _refuse_remains(job: str, host: Host) -> None:
    assert host.dm is not None
    if job in find_remains(host.dm, host.sysfs):
        raise Refused(
            f"devices of a job {job} are there already",
            way_out=f"see: dmcopy status {job}; if it died: dmcopy rescue {job}",
        )


def _surroundings(spec: CopySpec, source: Source, cow: CowPlan | None, host: Host) -> Surroundings:
    return Surroundings(
        sysfs=host.sysfs,
        run=host.run,
        source=source.devno,
        overwrite_signature=spec.overwrite_signature,
        spare=_spare(cow),
    )


def _spare(cow: CowPlan | None) -> frozenset[str]:
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


class CopyJob:
    """Runs one prepared copy; `run` once."""

    def __init__(
        self,
        prepared: Prepared,
        host: Host,
        journal: Journal,
        observer: events.Observer,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._prepared = prepared
        self._spec = prepared.spec
        self._host = host
        self._journal = journal
        self._observer = observer
        self._clock = clock
        self._started = clock()
        self._noted = 0.0
        self._begin_time: str | None = None
        self._holds: list[float] = []
        self._counts: dict[str, Any] = {}  # the worker's latest; Any: JSON
        self._digest: str | None = None
        self._copy_seconds: float | None = None
        self._verified = False
        self._opened = False  # what the destination leaves is ours from then on
        self._complete = False
        self._rate = _Rate(clock)
        self._fill = FillForecast()

    def run(self) -> events.Ended:
        """Copy; gives the last event, which the observer has seen too.

        Never raises for a failure of the copy: the event says how it ended.  The origin is as
        it was, but for what ``left`` names.
        """
        name = self._spec.name
        error: BaseException | None = None
        ended: events.Ended | None = None
        defined = False
        try:
            with JobLock(self._host.places.locks, name):
                recorded = {"identity": dict(self._prepared.identity)}
                try:
                    with signals_deferred():  # no signal between the record and its end
                        self._journal.define(name, self._spec.as_json() | recorded)
                        defined = True
                    self._copy()
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

    def _copy(self) -> None:
        prepared = self._prepared
        with ExitStack() as stack:
            for path in self._leftovers():
                self._journal.may_leave(self._spec.name, path)
            stack.callback(self._take_apart)  # these two run after the worker is gone
            stack.callback(self._remove_unfinished)
            worker = stack.enter_context(WorkerLink())
            self._open(worker)
            prepared.plan.run(lambda what: self._journal.intend(self._spec.name, what))
            self._begun()
            self._journal.move(self._spec.name, State.COPYING)
            worker.send("copy", **self._how_to_read())
            self._follow(worker, "copied")
            # The image is durable at the destination: the application need not wait for more.
            self._take_apart()
            self._journal.move(self._spec.name, State.COPIED)
            if self._spec.verify:
                self._verify(worker)
            with signals_deferred():  # it happens, or it does not
                worker.send("complete")
                self._follow(worker, "complete")
                self._complete = True

    def _leftovers(self) -> list[str]:
        cow = self._prepared.cow
        files = [str(cow.path)] if isinstance(cow, CowFileOnHost) else []
        return files + self._prepared.destination.leftovers()

    def _open(self, worker: WorkerLink) -> None:
        """Let the worker open and hold the destination, while nothing is changed yet."""
        prepared = self._prepared
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
            spare=sorted(_spare(prepared.cow)),
            identity=dict(prepared.identity),
        )
        self._follow(worker, "ready")
        self._opened = True

    def _begun(self) -> None:
        instant = self._prepared.instant
        self._begin_time = instant.text
        self._journal.move(self._spec.name, State.BEGUN)
        if self._prepared.spliced:
            self._hold("begin", instant.held)
        event = events.Begun(
            job=self._spec.name,
            source=self._prepared.source.path,
            begin_time=instant.text,
            hold_seconds=tuple(self._holds),
            snapshot=self._node(self._prepared.spliced.snapshot.devno())
            if self._prepared.spliced
            else None,
        )
        self._journal.note(self._spec.name, "begun", event.as_json())
        self._observer(event)
        if self._prepared.spliced and instant.held > self._spec.hold_limit:
            self._warn(
                f"writes to {self._prepared.source.path} were held for {instant.held:.3f} s, more "
                f"than the limit of {self._spec.hold_limit:g} s: its file system took that long "
                "to freeze"
            )

    def _hold(self, reason: str, seconds: float) -> None:
        self._holds.append(seconds)
        self._observer(
            events.Hold(
                job=self._spec.name,
                device=self._prepared.source.path,
                reason=reason,
                seconds=seconds,
            )
        )

    def _warn(self, message: str) -> None:
        self._observer(events.Warned(job=self._spec.name, message=message))

    def _node(self, devno: str) -> str:
        return self._host.sysfs.node(devno)

    def _how_to_read(self) -> dict[str, object]:
        spliced, claim = self._prepared.spliced, self._prepared.claim
        if spliced is None:
            assert claim is not None
            idle = {"devno": self._prepared.source.devno, "writes": claim.writes}
            return {"source_path": self._prepared.source.node, "cow": None, "idle": idle}
        return {
            "source_path": self._node(spliced.source.devno()),
            "cow": {
                "path": self._node(spliced.cow.devno()),
                "chunk_sectors": to_sectors(self._spec.chunk),
                "snapshot_uuid": spliced.snapshot.uuid,
                "origin_devno": self._prepared.source.devno,
                "origin_table": str(spliced.origin_table()),
            },
        }

    def _follow(self, worker: WorkerLink, until: str) -> Message:
        """Take the worker's messages until the one that is waited for."""
        while True:
            message = worker.receive()
            assert message is not None  # no timeout was given
            if message["is"] in ("progress", "copied"):
                self._progress(message)
            elif message["is"] == "warning":
                self._warn(str(message["message"]))
            if message["is"] == until:
                return message

    def _progress(self, message: Message) -> None:
        phase = str(message.get("phase", "copy"))
        if phase == "copy":
            self._counts = dict(message)
        if message["is"] == "copied":
            self._digest = message["digest"]
            self._copy_seconds = message["seconds"]
        total, used, size = self._total(), None, None
        done = int(message["bytes_done"])
        rate = self._rate.after(phase, done)
        if phase == "copy" and message.get("cow_used_sectors") is not None:
            used = to_bytes(Sectors(message["cow_used_sectors"]))
            size = to_bytes(Sectors(message["cow_total_sectors"]))
            self._fill.add(self._clock(), used)
        event = events.Progress(
            job=self._spec.name,
            phase=phase,
            bytes_done=done,
            bytes_total=total,
            bytes_cow=int(message.get("bytes_cow", 0)),
            bytes_zero=int(message.get("bytes_zero", 0)),
            rate_bytes=rate,
            eta_seconds=(total - done) / rate if rate else None,
            exceptions=int(message.get("exceptions", 0)),
            cow_used_bytes=used,
            cow_total_bytes=size,
            cow_full_seconds=self._fill.seconds_until_full(size) if size is not None else None,
        )
        if self._clock() - self._noted > _NOTE_SECONDS:
            self._noted = self._clock()
            self._journal.note(self._spec.name, "progress", event.as_json())
        self._observer(event)

    def _total(self) -> int:
        return to_bytes(self._prepared.source.length)

    def _take_apart(self) -> None:
        """Give the origin its table back and remove what is ours; once is enough."""
        self._prepared.plan.undo()
        spliced = self._prepared.spliced
        if spliced is not None and spliced.splice.end_held is not None:
            self._hold("end", spliced.splice.end_held)
            spliced.splice.end_held = None

    def _remove_unfinished(self) -> None:
        """Remove an unfinished image; a worker that was killed had no chance to."""
        if self._opened and not self._complete:
            _, left = remove_files(self._prepared.destination.leftovers())
            if left:
                raise LeftBehind(left, job=self._spec.name)

    def _verify(self, worker: WorkerLink) -> None:
        worker.send("verify")
        message = self._follow(worker, "verified")
        self._verified = True
        self._journal.move(self._spec.name, State.VERIFIED)
        self._observer(
            events.Verified(
                job=self._spec.name,
                digest=message["digest"],
                bytes_total=self._total(),
                seconds=message["seconds"],
            )
        )

    def _end(self, error: BaseException | None) -> events.Ended:
        event = self._ended(error)
        if not event.left:
            self._journal.forget_leftovers(self._spec.name)
        self._journal.note(self._spec.name, "ended", event.as_json())
        self._journal.move(self._spec.name, State(event.state))
        return event

    def _ended(self, error: BaseException | None) -> events.Ended:
        failure = _failure(error)
        cancelled = isinstance(failure, Interrupted)
        used = self._counts.get("cow_used_sectors")
        event = events.Ended(
            job=self._spec.name,
            state=State.ENDED
            if failure is None
            else State.CANCELLED
            if cancelled
            else State.FAILED,
            exit_status=failure.exit_status if failure else 0,
            source=self._prepared.source.path,
            destination=str(self._prepared.destination),
            begin_time=self._begin_time,
            seconds=self._clock() - self._started,
            bytes_total=self._total(),
            bytes_source=int(self._counts.get("bytes_source", 0)),
            bytes_cow=int(self._counts.get("bytes_cow", 0)),
            bytes_zero=int(self._counts.get("bytes_zero", 0)),
            exceptions=int(self._counts.get("exceptions", 0)),
            cow_used_bytes=to_bytes(Sectors(used)) if used is not None else None,
            hold_seconds=tuple(self._holds),
            digest=self._digest,
            verified=self._verified,
            error=_text(failure) + self._advice(failure) if failure else None,
            kind=failure.kind if failure else None,
            copy_seconds=self._copy_seconds,
            left=failure.left if isinstance(failure, LeftBehind) else (),
        )
        self._observer(event)
        return event

    def _advice(self, failure: DmcopyError) -> str:
        """Say how full the COW device was, where that may be the reason."""
        used, size = (self._counts.get(f"cow_{what}_sectors") for what in ("used", "total"))
        if not isinstance(failure, PointInTimeLost) or not used or not size or 2 * used < size:
            return ""
        return (
            f"; of its {format_size(to_bytes(Sectors(size)))} {100 * used // size} % were in use "
            "when last looked at: give a larger one with --cow"
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


class _Rate:
    """Bytes a second over the last few seconds, for each phase on its own."""

    _WINDOW: Final = 5.0

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._phase = ""
        self._seen: list[tuple[float, int]] = []

    def after(self, phase: str, done: int) -> float:
        """Note that *done* bytes are done; give the rate, 0.0 while it is not known."""
        now = self._clock()
        if phase != self._phase:
            self._phase, self._seen = phase, []
        self._seen.append((now, done))
        while len(self._seen) > 2 and now - self._seen[0][0] > self._WINDOW:
            self._seen.pop(0)
        (first, at_first), (last, at_last) = self._seen[0], self._seen[-1]
        return (at_last - at_first) / (last - first) if last > first else 0.0
