"""A begin time on a bare RAID1: its third member, split off (`stack.md_split`)."""

from __future__ import annotations

from collections.abc import Callable

from dmcopy.core import events
from dmcopy.errors import LeftBehind
from dmcopy.jobs.host import Host
from dmcopy.jobs.md_policy import refuse
from dmcopy.jobs.standing import Json, Standing
from dmcopy.kernel.mdadm import Mdadm
from dmcopy.stack.hold import Instant
from dmcopy.stack.md_split import Grow, ShowLeg, SplitOff, Splittable, TakeOut
from dmcopy.stack.plan import Around, Plan
from dmcopy.stack.steps import SyncFileSystems

_LOOK_SECONDS = 0.5
_TELL_SECONDS = 10.0


class SplitNow(Standing):
    """First the spare gets all data, which takes long; then it is split off, in an instant."""

    def __init__(
        self, host: Host, split: Splittable, *, job: str, hold_limit: float, freeze: bool
    ) -> None:
        """*hold_limit* in seconds; with *freeze* file systems on the array are frozen."""
        assert host.dm is not None
        record = host.places.splits / job
        program = Mdadm(host.run)
        self._host = host
        self._job = job
        self._split = split
        self._grow = Grow(split, record, host.sysfs, program)
        mounts = split.mounts if freeze else ()
        self._off = SplitOff(split, record, hold_limit, mounts)
        self._leg = ShowLeg(split, host.dm, job)
        self._growing = Plan(job=job, prepare=[self._grow])
        sync = [SyncFileSystems(mounts)] if mounts else []
        self._splitting = Plan(
            job=job,
            prepare=sync,
            critical=[self._off],
            finish=[TakeOut(split, host.sysfs, program), self._leg],
        )

    def lines(self) -> tuple[str, ...]:
        wait = f"mdadm --wait {self._split.path}"
        return (*self._growing.lines(), wait, *self._splitting.lines())

    def check(self) -> None:
        """A new begin time cannot be missing."""

    def get_ready(
        self,
        record: Callable[[str], None],
        wait: Callable[[float], None],
        tell: Callable[[events.Event], None],
    ) -> None:
        self._growing.run(record)
        waited = _TELL_SECONDS
        while (array := self._grow.waits_for()) is not None:
            refuse([array])
            if waited >= _TELL_SECONDS:
                waited = 0.0
                tell(
                    events.Waiting(
                        job=self._job,
                        device=array.path,
                        reason=array.action,
                        bytes_done=array.done,
                        bytes_total=array.total,
                    )
                )
            wait(_LOOK_SECONDS)
            waited += _LOOK_SECONDS

    def begin(self, record: Callable[[str], None], around: Around | None = None) -> Instant | None:
        self._splitting.run(record, around)
        return self._off.instant

    def reading(self) -> Json:
        sysfs = self._host.sysfs
        idle = {"devno": self._leg.devno, "writes": sysfs.writes(self._leg.devno)}
        return {"source_path": sysfs.node(self._leg.devno), "cow": None, "idle": idle}

    def end(self) -> float | None:
        left: list[str] = []
        for plan in (self._splitting, self._growing):
            try:
                plan.undo()
            except LeftBehind as exc:
                left += exc.left
        if left:
            raise LeftBehind(left, job=self._job)
        return None
