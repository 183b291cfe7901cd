"""The keeper's own process: ``python -m dmcopy.stack.keep`` (see `keeper`).

It owes two things to the machine, whatever becomes of control: what it froze is thawed, and each
hook that it started gets its other side.  So it is a process of its own, which goes on when control
is gone (its stdin ends), and no signal of a terminal ends it.

Protocol: a line with the charge on stdin, answered by ``ready``; then a word a line: ``before``
(run the hooks' first sides) answered by ``held``, ``freeze`` answered by ``frozen``, and ``release
begun`` or ``release failed``, answered by ``thawed`` and, when all is over, ``done``.  ``failed``
and ``lost`` (a session did not hold) come with a message.  What becomes of each hook is told in
between.  Answers are JSON objects, one a line, with the word in ``is``.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
from contextlib import suppress
from types import FrameType
from typing import Any, Final

from dmcopy.kernel.blkdev import syncfs
from dmcopy.kernel.memory import lock_memory
from dmcopy.kernel.priority import step_up
from dmcopy.stack.charge import Charge, RecordFile
from dmcopy.stack.freezer import Freezer
from dmcopy.stack.hook import Hooks, Told

_CONTROL: Final = 0
_THAW_SECONDS: Final = 10.0  # then it goes on with the hooks, and thaws when the kernel lets it
_MESSAGE_BYTES: Final = 1 << 20


class Keep:
    """One charge, from the first word to the last."""

    def __init__(self, charge: Charge, record: RecordFile, freezer: Freezer) -> None:
        self._charge = charge
        self._record = record
        self._freezer = freezer
        self._hooks = Hooks(
            charge.hooks, charge.environment, timeout=charge.timeout, tell=self._told
        )
        self._is_freezing = False
        self._has_fired = False  # it was thawed before control said so
        self._begun = False  # control says that the instant has come about

    def _told(self, told: Told) -> None:
        say("hook", **told._asdict())

    def _note(self) -> None:
        self._record.note(begun=self._hooks.begun, freezing=self._is_freezing)

    def run(self) -> None:
        """Do what control says, to the end; always ends with nothing frozen and nothing owed."""
        try:
            if self._word(None) == "before" and self._before():
                # A lock is held: control has no reason to take its time.
                word = self._word(self._charge.timeout)
                if word == "freeze":
                    word = self._word(self._left()) if self._freeze() else ""
                    self._has_fired = word is None
                elif word is None:
                    why = f"the begin time did not come about within {self._charge.timeout:g} s"
                    say("failed", kind="hook", message=why)
                self._begun = word == "release begun"
        finally:
            self._end()

    def _word(self, timeout: float | None) -> str | None:
        """Give control's next word, "" when it is gone, None when the time is over."""
        patience = 1e6 if timeout is None else max(0.0, timeout)
        return _line() if self._hooks.wait(_CONTROL, patience) else None

    def _left(self) -> float:
        assert self._freezer.since is not None
        return self._freezer.since + self._charge.limit - time.monotonic()

    def _before(self) -> bool:
        """Write out what is dirty, then run the hooks: their locks are held for a short time."""
        charge = self._charge
        if not self._freezer.sync(syncfs, charge.timeout, is_off=_has_control_spoken):
            why = (
                f"{' '.join(charge.freeze)} could not be written out within {charge.timeout:g} s, "
                "so it was not frozen; give more time with --hook-timeout"
            )
            say("failed", kind="hold-limit", message=why)
            return False
        failed = self._hooks.before(note=self._note, control=[_CONTROL])
        if failed is not None:
            say("failed", kind="hook", message=_failure(failed))
            return False
        say("held")
        return True

    def _freeze(self) -> bool:
        lost = self._hooks.lost()
        if lost is not None:
            say("failed", kind="hook", message=_failure(lost))
            return False
        self._is_freezing = True
        self._note()
        with suppress(OSError):
            lock_memory()
        _spare_me(-1000)
        frozen = self._freezer.freeze(self._charge.limit)
        if not frozen.in_time:
            why = (
                f"{' '.join(self._charge.freeze)} could not be frozen within "
                f"{self._charge.limit:g} s; give more time with --hold-limit"
            )
            say("failed", kind="hold-limit", message=why)
        elif frozen.failed is not None:
            say("failed", kind="failed", message=f"cannot freeze {frozen.failed}")
        else:
            say("frozen", cannot=frozen.cannot, before=frozen.before)
            return True
        return False

    def _end(self) -> None:
        """Thaw, have sessions let go, run the other sides."""
        left: list[str] = []
        if self._is_freezing:
            left = self._freezer.thaw(_THAW_SECONDS)
            assert self._freezer.since is not None
            seconds = time.monotonic() - self._freezer.since
            _spare_me(0)
            say("thawed", seconds=seconds, fired=self._has_fired, left=left)
        lost = self._hooks.release()
        if lost is not None:
            say("lost", message=_failure(lost))
        self._hooks.after("begun" if self._begun and lost is None else "failed")
        say("done")
        left = self._freezer.thaw(None) if left else []
        self._is_freezing = bool(left)
        if left:  # for `dmcopy rescue`
            self._note()
        else:
            self._record.forget()


def _failure(told: Told) -> str:
    return f"hook {told.name} {told.side}: {told.message}"


def _has_control_spoken() -> bool:
    return bool(select.select([_CONTROL], [], [], 0)[0])


def _spare_me(value: int) -> None:
    """Tell the kernel not to kill us when memory is short, as long as something is frozen."""
    with suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as adjust:
        adjust.write(str(value))


def say(word: str, **more: Any) -> None:  # Any: JSON
    """Tell control; it may be gone."""
    with suppress(BrokenPipeError):
        os.write(1, json.dumps({"is": word, **more}).encode() + b"\n")


def _line() -> str:
    """Read one line from control, byte by byte: what follows it is for later."""
    line = b""
    while not line.endswith(b"\n") and len(line) < _MESSAGE_BYTES:
        got = os.read(_CONTROL, 1)
        if not got:
            return ""
        line += got
    return line.decode().strip()


def _ignore(_number: int, _frame: FrameType | None) -> None:
    """Nothing; a handler, since what is ignored would be ignored by the hooks as well."""


def main() -> int:
    """Keep one charge."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _ignore)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # control keeps signals waiting; hooks must not
    step_up()
    said = _line()
    if not said:
        return 0
    charge = Charge.from_json(json.loads(said))
    try:
        freezer = Freezer(charge.freeze)
        record = RecordFile(charge)
    except OSError as exc:
        say("failed", kind="failed", message=f"the keeper could not get ready: {exc}")
        return 0
    say("ready")
    Keep(charge, record, freezer).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
