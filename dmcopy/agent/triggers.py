"""What a policy would do now, and why, or why not; looks, and changes nothing.

One place answers for a plug event (``dmcopy policy plug``), for a person who asks what an event
would do (``simulate``) and for a calendar or a person who wants it done (``run``).

What there is to decide, in this order: is the device one that a policy names, or one whose label
file gives such a name to a partition beside it; was this very
appearance of it served already (udev tells of a device again and again); are all other devices of
the policy there, and each of them once; is the policy at work; and is there an unfinished job of
it: then that goes on, on *its* disk, and nothing else is begun.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from dmcopy.agent.label import Labels
from dmcopy.agent.places import Names, Present, is_called, names_of
from dmcopy.agent.policy import LABEL, Policy, read
from dmcopy.errors import DmcopyError, Refused
from dmcopy.jobs.host import Host
from dmcopy.jobs.journal import Journal, Record
from dmcopy.jobs.lock import JobLock, holder
from dmcopy.jobs.overview import view_of
from dmcopy.jobs.spec import Places
from dmcopy.jobs.state import is_final
from dmcopy.kernel.identity import difference
from dmcopy.kernel.shelter import Shelter
from dmcopy.kernel.sysfs import Sysfs
from dmcopy.kernel.whole_file import write_whole

_BOTH: Final = ("--queue",)  # options of copy that resume has as well
_SEEN: Final = 200  # appearances that are remembered of each policy
_PATIENCE: Final = 30.0  # seconds: whoever has a policy's lock has the job's soon, or lets go
_POLL: Final = 0.1


class Action(StrEnum):
    """What is to be done."""

    BEGIN = "begin"
    RESUME = "resume"
    NOTHING = "nothing"
    REFUSED = "refused"  # it is the policy's disk, and something is in the way


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What one policy would do; *words* are those of the command line."""

    policy: str
    action: Action
    why: str
    job: str | None = None
    words: tuple[str, ...] = ()
    gives_up: str | None = None  # an unfinished job that can never go on, and is cleared away
    at: str | None = None  # the device (devno) that it is about, where that is another one

    @property
    def acts(self) -> bool:
        """Tell whether there is something to be done."""
        return self.action in (Action.BEGIN, Action.RESUME)

    def as_json(self) -> dict[str, Any]:  # Any: JSON
        """Give the object that ``dmcopy policy simulate --json`` prints."""
        return {
            "event": "verdict",
            "policy": self.policy,
            "action": self.action,
            "why": self.why,
            "job": self.job,
            "words": list(self.words),
            "gives_up": self.gives_up,
        }

    def __str__(self) -> str:
        text = f"{self.policy}: {self.action}: {self.why}"
        return f"{text}; dmcopy {' '.join(self.words)}" if self.words else text


class Appearances:
    """Which appearances of a device were served, by policy; in the runtime directory.

    udev's events do not say whether a device is new.  The kernel does: it counts the appearances
    of disks (``diskseq``, since 5.15); before, the inode of the device's directory does as well.
    """

    def __init__(self, places: Places, sysfs: Sysfs) -> None:
        self._folder = places.runtime / "plugged"
        self._sysfs = sysfs

    def of(self, devno: str) -> str:
        """Give what this appearance is called; raises OSError."""
        folder = self._sysfs.folder(devno)
        disk = self._sysfs.folder(self._sysfs.parent(devno) or devno)
        try:
            count = (disk / "diskseq").read_text().strip()
        except OSError:
            count = f"inode-{disk.stat().st_ino}"
        return f"{count} {folder.name}"

    def is_served(self, policy: str, appearance: str) -> bool:
        """Tell whether *policy* has acted on it."""
        return appearance in self._read(policy)

    def serve(self, policy: str, appearance: str) -> None:
        """Put on record that *policy* acts on it; once is enough."""
        lines = self._read(policy)
        if appearance in lines:
            return
        lines = [*lines, appearance][-_SEEN:]
        self._folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        text = "".join(f"{line}\n" for line in lines)
        write_whole(self._folder / policy, text.encode(), is_durable=False)

    def _read(self, policy: str) -> list[str]:
        try:
            return (self._folder / policy).read_text().splitlines()
        except OSError:
            return []


def locks(places: Places) -> Path:
    """Give the directory of the locks of policies: one process a policy."""
    return places.runtime / "policies"


def serve(policy: Policy, host: Host) -> None:
    """Put on record that *policy* acts on all of its disks that are there.

    When a copy ends its disk is shown again, and systemd, for which it becomes ready then, asks
    whether a policy is for it: also of a disk of a group that waited for another, and of one that
    a job was gone on with onto, whoever had it go on.
    """
    if not policy.on_plug:
        return
    appearances = Appearances(host.places, host.sysfs)
    present = Present(host.sysfs, host.run, host.places.runtime)
    for place in (pair.destination for pair in policy.pairs if pair.destination.is_device):
        for devno in present.find(place):
            with suppress(OSError):  # it has just gone
                appearances.serve(policy.name, appearances.of(devno))


@contextmanager
def on_behalf(job: str, host: Host, *, patience: float = _PATIENCE) -> Iterator[None]:
    """Run the body, which goes on with *job*, as what works for its policy, if it is one's.

    At a boot both ``dmcopy-resume.service`` and the unit of its disk find an interrupted job.
    Whoever has the policy's lock works; the other must not even look at the job, for what it is
    in the middle of looks like damage.  Raises `Refused` when another works on it, or for the
    policy for *patience* seconds.
    """
    policy = next((one for one in read(host.places).policies if one.is_job(job)), None)
    if policy is None:
        yield
        return
    with ExitStack() as stack:
        end = time.monotonic() + patience
        while True:
            try:
                stack.enter_context(JobLock(locks(host.places), policy.name))
                break
            except Refused as exc:
                pid = holder(host.places.locks, job)
                if pid is not None or time.monotonic() >= end:
                    pid = pid or holder(locks(host.places), policy.name)
                    raise Refused(
                        f"job {job} is being worked on for its policy {policy.name} "
                        f"(pid {pid or '?'})",
                        way_out=f"wait for it, or see: dmcopy status {job}",
                    ) from exc
            time.sleep(_POLL)
        serve(policy, host)
        yield


def is_at_work(job: str, host: Host) -> bool:
    """Tell whether somebody works on *job*, or for the policy whose it is."""
    if holder(host.places.locks, job) is not None:
        return True
    policies = read(host.places).policies
    return any(
        holder(locks(host.places), one.name) is not None for one in policies if one.is_job(job)
    )


def on_plug(policies: Sequence[Policy], devno: str, host: Host) -> list[Verdict]:
    """Say for each policy what it would do if the device *devno* appeared now.

    Raises OSError when it is gone.
    """
    known: dict[str, Names] = {devno: names_of(devno, host.sysfs, host.run)}
    faults: tuple[str, ...] = ()
    if any(policy.on_plug and _by_label(policy) for policy in policies):
        labels = Labels(host.sysfs, host.run, host.places.runtime)
        known[devno] = {**known[devno], LABEL: labels.of(devno)}
        for other in labels.named_by(devno):
            known.setdefault(other, {LABEL: labels.of(other)})
        faults = labels.faults(devno)
    meant = {one: _meant(policies, names) for one, names in known.items()}
    verdicts = []
    for policy in policies:
        one = next((one for one in known if policy in meant[one]), devno)
        verdict = _for_device(policy, meant[one], one, host)
        if one != devno:
            verdict = replace(verdict, at=one)
        elif faults and policy.on_plug and policy not in meant[one] and _by_label(policy):
            verdict = replace(verdict, why="; ".join((verdict.why, *faults)))
        verdicts.append(verdict)
    return verdicts


def may_act(policies: Sequence[Policy], devno: str, host: Host) -> bool:
    """Tell whether the unit of the device *devno* would have something to do.

    For the agent, which may not mount: where a label file decides, it is for the unit to look.
    Raises OSError when the device is gone.
    """
    asking = [policy for policy in policies if policy.on_plug and _by_label(policy)]
    if asking:
        labels = Labels(host.sysfs, host.run, host.places.runtime)
        if labels.is_file_system(devno):
            return True
        if _meant(asking, names_of(devno, host.sysfs, host.run)):
            return True
    others = [policy for policy in policies if policy not in asking]
    return bool(others) and any(one.acts for one in on_plug(others, devno, host))


def _by_label(policy: Policy) -> bool:
    return any(pair.destination.kind == LABEL for pair in policy.pairs)


def _meant(policies: Sequence[Policy], names: Names) -> list[Policy]:
    """Give the policies that run when a device with these *names* is plugged in."""
    return [
        policy
        for policy in policies
        if policy.on_plug and any(is_called(names, pair.destination) for pair in policy.pairs)
    ]


def _for_device(policy: Policy, meant: Sequence[Policy], devno: str, host: Host) -> Verdict:
    def nothing(why: str) -> Verdict:
        return Verdict(policy=policy.name, action=Action.NOTHING, why=why)

    if not policy.on_plug:
        return nothing("it does not run on plug")
    if policy not in meant:
        wanted = " or ".join(str(p.destination) for p in policy.pairs if p.destination.is_device)
        return nothing(f"{host.sysfs.node(devno)} is not its disk ({wanted})")
    if len(meant) > 1:
        others = ", ".join(other.name for other in meant if other is not policy)
        return Verdict(
            policy=policy.name,
            action=Action.REFUSED,
            why=f"{host.sysfs.node(devno)} is the disk of {others} as well",
        )
    hidden = dict(Shelter(host.places.runtime).hidden()).get(devno)
    if hidden is not None and holder(host.places.locks, hidden) is not None:
        return nothing(f"job {hidden} writes it now")
    appearances = Appearances(host.places, host.sysfs)
    if appearances.is_served(policy.name, appearances.of(devno)):
        return nothing(
            "it has run since this disk was plugged in; to run it again: plug it in again, or "
            f"dmcopy policy run {policy.name}"
        )
    return decide(policy, host, appeared=devno)


def decide(
    policy: Policy, host: Host, *, appeared: str | None = None, is_locked: bool = False
) -> Verdict:
    """Say what it would do now; *appeared*: the device whose event it is.

    *is_locked*: by us, so that it is not at work elsewhere.
    """

    def refused(why: str, job: str | None = None) -> Verdict:
        return Verdict(policy=policy.name, action=Action.REFUSED, why=why, job=job)

    pid = None if is_locked else holder(locks(host.places), policy.name)
    if pid is not None:
        return Verdict(
            policy=policy.name, action=Action.NOTHING, why=f"it is at work (pid {pid or '?'})"
        )
    try:
        record = unfinished(policy, host)
        gives_up, never = None, ""
        if record is not None:
            view = view_of(record.name, host)
            if view.pid is not None:
                return Verdict(
                    policy=policy.name,
                    action=Action.NOTHING,
                    why=f"its job {record.name} is at work (pid {view.pid or '?'})",
                    job=record.name,
                )
            if view.can_resume and view.was_paused and appeared is not None:
                return Verdict(
                    policy=policy.name,
                    action=Action.NOTHING,
                    why=f"somebody paused its job {record.name}; go on: dmcopy resume "
                    f"{record.name}",
                    job=record.name,
                )
            if view.can_resume:
                other = _other_disk(record, appeared, host) if appeared is not None else None
                if other is not None or view.not_now is not None:
                    return refused(
                        f"its unfinished job {record.name} is for another disk ({other}): attach "
                        f"that, or give the job up: dmcopy cancel {record.name}"
                        if other is not None
                        else f"its unfinished job {record.name} cannot go on now: {view.not_now}",
                        record.name,
                    )
                return Verdict(
                    policy=policy.name,
                    action=Action.RESUME,
                    why=f"its job {record.name} is {record.state}",
                    job=record.name,
                    words=("resume", record.name, *(one for one in policy.options if one in _BOTH)),
                )
            gives_up = record.name
            never = view.no_way_on or "only its snapshot was kept"
        job = policy.job(datetime.now(UTC))
        present = Present(host.sysfs, host.run, host.places.runtime)
        missing = [
            str(pair.destination)
            for pair in policy.pairs
            if pair.destination.is_device and not present.find(pair.destination)
        ]
        if appeared is not None and missing:  # each disk of a group has its plug
            return Verdict(
                policy=policy.name,
                action=Action.NOTHING,
                why=f"it waits for {', '.join(missing)} as well",
            )
        words = policy.words(job, present.path_of)
    except Refused as exc:
        return refused(str(exc))
    why = "its disk is there" if appeared is not None else "it can run"
    if gives_up is not None:
        why = f"{why}; its job {gives_up} can never go on ({never}), and is cleared away"
    return Verdict(
        policy=policy.name,
        action=Action.BEGIN,
        why=why,
        job=job,
        words=tuple(words),
        gives_up=gives_up,
    )


def unfinished(policy: Policy, host: Host) -> Record | None:
    """Give the last job of a policy that has not ended; raises `DmcopyError`."""
    if not host.places.journal.exists():
        return None
    with Journal(host.places.journal, read_only=True) as journal:
        found = [
            record
            for record in journal.records()
            if policy.is_job(record.name) and not is_final(record.state)
        ]
    return found[-1] if found else None


def _other_disk(record: Record, appeared: str, host: Host) -> str | None:
    """Say what the disk of an unfinished job is, when it is not the one that appeared.

    Of a group nothing is said: its members look for theirs themselves.
    """
    recorded = record.spec.get("identity")
    if not recorded or "devno" not in recorded:
        return None
    if difference({**recorded, "devno": appeared}, host.sysfs.identity(appeared)) is None:
        return None
    kind = next((kind for kind in ("wwn", "serial", "partuuid") if kind in recorded), "path")
    return f"{kind} {recorded[kind]}"


def failure_of(job: str | None, host: Host) -> str:
    """Give what a job failed of, as the journal has it; "" where it has nothing."""
    if job is None or not host.places.journal.exists():
        return ""
    try:
        with Journal(host.places.journal, read_only=True) as journal:
            record = journal.record(job)
    except DmcopyError as exc:
        return str(exc)
    ended = record.ended if record is not None else None
    return str((ended or {}).get("error") or "")
