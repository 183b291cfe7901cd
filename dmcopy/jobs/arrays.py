"""The md arrays that a source lies on: what is done about a resync, and what is told of them.

What is decided is in `md_policy`.  `settle` before the begin time, `tick` often, `let_go` in every
case.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final

from dmcopy.core import events
from dmcopy.errors import DmcopyError
from dmcopy.jobs.account import Account
from dmcopy.jobs.host import Host
from dmcopy.jobs.md_policy import DIFFER, NOT_RUNNING, refuse, treatment
from dmcopy.jobs.spec import CopySpec
from dmcopy.jobs.teller import Teller
from dmcopy.kernel.md import Action, Array, Md
from dmcopy.stack.md_pause import Pause

_LOOK_SECONDS: Final = 1.0
_TELL_SECONDS: Final = 10.0  # how often it is told how far a resync is that is waited for
_COUNTS: Final = frozenset({Action.CHECK, Action.REPAIR})


class Arrays:
    """The arrays below one job's source."""

    def __init__(
        self,
        host: Host,
        spec: CopySpec,
        devno: str,
        teller: Teller,
        account: Account,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """*devno* is the source's."""
        self._md = Md(host.sysfs)
        self._spec = spec
        self._devno = devno
        self._teller = teller
        self._account = account
        self._clock = clock
        self._looked = clock()
        self._found: list[Array] = []  # as they were at the beginning
        self._now: dict[str, Array] = {}
        self._done: dict[str, str] = {}  # what was done about what they did
        self._pause = Pause(host.places.paused, spec.name, self._md)

    def settle(self, wait: Callable[[float], None]) -> None:
        """See to it that what runs is as ``--md-resync`` says; *wait* serves who asks meanwhile.

        Raises `Refused`, and `DmcopyError` where a pause cannot be had.
        """
        with suppress(FileNotFoundError):
            self._found = self._md.below(self._devno)
        if not self._found:
            return
        refuse(self._found)
        self._remember(self._found)
        for array in self._found:
            self._wait_for(array, wait)
        self.pause()
        for array in self._now.values():
            self._warn_of(array)
        self._tell_account()

    def _wait_for(self, array: Array, wait: Callable[[float], None]) -> None:
        told = -_TELL_SECONDS
        while treatment(self._spec.md_resync, array) == "wait":
            self._done[array.devno] = "waited"
            if self._clock() - told >= _TELL_SECONDS:
                told = self._clock()
                self._teller.happened(
                    events.Waiting(
                        job=self._spec.name,
                        device=array.path,
                        reason=array.action,
                        bytes_done=array.done,
                        bytes_total=array.total,
                    )
                )
            wait(_LOOK_SECONDS)
            array = self._md.read(array.devno)
            refuse([array])
            self._remember([array])

    def pause(self) -> None:
        """Pause what is to be paused, also what a dead job left so; starts all else again."""
        if not self._found:
            return
        wanted = [one for one in self._found if self._may_pause(one)]
        try:
            paused = self._pause.begin(wanted)
        except OSError as exc:
            raise DmcopyError(f"the resync of an md array cannot be paused: {exc}") from exc
        for array in paused:
            self._done[array.devno] = f"paused {array.action}"
            if self._now[array.devno].action == Action.FROZEN:
                self._now[array.devno] = array

    def pause_again(self) -> None:
        """Pause what `let_go` started; a copy that goes on does not fail for it."""
        try:
            self.pause()
        except DmcopyError as exc:
            self._teller.warn(str(exc))

    def _may_pause(self, array: Array) -> bool:
        return self._spec.md_resync == "pause" and array.level != "raid0"

    def let_go(self) -> None:
        """Start again what was paused; never fails, but for a warning."""
        left = self._pause.end()
        if left:
            self._teller.warn(f"{'; '.join(left)}; run: dmcopy rescue {self._spec.name}")

    def tick(self) -> None:
        """Look whether an array changed, if it is time."""
        if not self._found or self._clock() - self._looked < _LOOK_SECONDS:
            return
        self._looked = self._clock()
        self.look()

    def look(self) -> None:
        """Look whether an array changed for the worse, and tell it, once."""
        for found in self._found:
            before = self._now[found.devno]
            try:
                now = self._md.read(found.devno)
            except OSError:  # the reads will say what that means
                continue
            self._remember([now])
            if now.degraded > before.degraded:
                self._teller.warn(f"{_missing(now)}, since a moment ago; the copy goes on")
            if now.state in NOT_RUNNING and before.state != now.state:
                self._teller.warn(f"{now.path} is {now.state} now")
            if now.action == Action.RESHAPE and before.action != now.action:
                self._teller.warn(f"somebody has begun to reshape {now.path}")
        self._tell_account()

    def _remember(self, arrays: Sequence[Array]) -> None:
        self._now |= {array.devno: array for array in arrays}

    def _warn_of(self, array: Array) -> None:
        if array.degraded:
            self._teller.warn(f"{_missing(array)}: the copy is right, but the source is at risk")
        if not array.is_mirror:
            return
        if array.resync_due or array.action in DIFFER:
            self._teller.warn(
                f"the members of {array.path} may differ where it was being written when it was "
                "last stopped: what is read there, by the application too, can change should a "
                "member fail meanwhile (--md-resync wait)"
            )
        if array.mismatches and array.last_action in _COUNTS - {Action.REPAIR}:
            self._teller.warn(
                f"the members of {array.path} differ (mismatch_cnt {array.mismatches}): the copy "
                f"has what md gave; mend it: echo repair > /sys/block/{array.name}/md/sync_action"
            )

    def _tell_account(self) -> None:
        self._account.md = tuple(self._summary(array) for array in self._found)

    def _summary(self, found: Array) -> dict[str, Any]:  # Any: JSON
        now = self._now[found.devno]
        return {
            "array": now.path,
            "uuid": now.uuid,
            "level": now.level,
            "disks": now.disks,
            "degraded": now.degraded,
            "degraded_at_begin": found.degraded,
            "sync_action": found.action,
            "resync": self._done.get(found.devno)
            or {"ignore": "ignored"}.get(treatment(self._spec.md_resync, found)),
            "mismatches": now.mismatches,
        }


def _missing(array: Array) -> str:
    return (
        f"{array.path} ({array.level}) is degraded: {array.degraded} of its {array.disks} members "
        f"{'is' if array.degraded == 1 else 'are'} missing"
    )
