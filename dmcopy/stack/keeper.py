"""What has to be so at the begin time, beyond the devices: file systems frozen, hooks' locks held.

`Keeper.around_instant` goes around the instant itself, however that is made and for however many
volumes: the hooks' first sides, then the freeze, then the instant, then all of it undone.  The work
is done by a small process (`keep`), so that it is undone even when we are killed.

An instant at which a lock was lost, or a file system thawed too early, is none: the context raises
when it is left, and whoever made the instant rolls it back.
"""

from __future__ import annotations

import json
import select
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from dmcopy.errors import DmcopyError, HoldLimitExceeded, HookFailed, LeftBehind
from dmcopy.kernel.command import Process, start_process
from dmcopy.kernel.own_code import helper
from dmcopy.stack import keep
from dmcopy.stack.charge import Charge, mend
from dmcopy.stack.hook import Told
from dmcopy.stack.plan import signals_deferred

_START_SECONDS: Final = 30.0
_STOP_SECONDS: Final = 5.0  # what it takes to end a hook, beside its own time
_SLACK_SECONDS: Final = 20.0
_KINDS: Final[dict[str, type[DmcopyError]]] = {
    kind.kind: kind for kind in (HookFailed, HoldLimitExceeded)
}


class Keeper:
    """Keeps what a begin time needs; `around_instant` once.

    After it: *told* is what became of each hook, *frozen* how long file systems were frozen in
    seconds (None: none was), *warnings* what a person should know.
    """

    def __init__(
        self,
        charge: Callable[[], Charge],
        *,
        start: Callable[[Sequence[str]], Process] = start_process,
    ) -> None:
        """*charge* is asked as late as possible: what is mounted may change until then."""
        self._charge_of = charge
        self._start = start
        self._charge: Charge | None = None
        self._process: Process | None = None
        self._buffer = b""
        self.told: list[Told] = []
        self.frozen: float | None = None
        self.warnings: list[str] = []
        self._left: list[str] = []
        self._is_done = False  # nothing is owed any more but what is left
        self._failure: DmcopyError | None = None

    @contextmanager
    def around_instant(self) -> Iterator[None]:
        """Have hooks hold and file systems frozen while the block runs.

        Raises `HookFailed`, `HoldLimitExceeded` and other `DmcopyError`, before the block (then it
        does not run) or after it (then the instant is not to be used); everything is undone by
        then, or `LeftBehind` says what is not.  A signal is taken before the block, and waits from
        its end until everything is undone.
        """
        charge = self._charge = self._charge_of()
        self.warnings += [
            f"the file system that is mounted on {point}, behind another one, cannot be frozen: "
            "in the copy it is as after a power cut"
            for point in charge.hidden
        ]
        if charge.is_nothing:
            yield
            return
        try:
            self._hold(charge)
            yield
            self._let_go(charge, begun=True)
        except BaseException as exc:
            self._let_go(charge, begun=False)
            if self._left:
                raise LeftBehind(self._left, job=charge.job) from exc
            raise
        if self._left:
            raise LeftBehind(self._left, job=charge.job) from self._failure
        if self._failure is not None:
            raise self._failure

    def _hold(self, charge: Charge) -> None:
        with signals_deferred():  # it is there and known, or it is not
            self._process = self._start(helper(keep.__name__))
        self._say(json.dumps(charge.as_json()))
        self._wait_for("ready", _START_SECONDS)
        self._say("before")
        each = charge.timeout + 2 * _STOP_SECONDS
        self._wait_for("held", charge.timeout + each * len(charge.hooks) + _SLACK_SECONDS)
        if charge.freeze:
            self._say("freeze")
            said = self._wait_for("frozen", charge.limit + _SLACK_SECONDS)
            for point in said["cannot"]:
                self.warnings.append(
                    f"{point} cannot be frozen, for its kind of file system has no such thing: "
                    "in the copy it is as after a power cut"
                )
            for point in said["before"]:
                self.warnings.append(f"{point} was frozen already, by somebody else")

    def _let_go(self, charge: Charge, *, begun: bool) -> None:
        """Undo everything; what went wrong in it is in `_failure` and `_left`.  Once is enough."""
        with signals_deferred():
            if self._process is None:
                return
            self._say(f"release {'begun' if begun else 'failed'}")
            each = charge.timeout + 2 * _STOP_SECONDS
            patience = 2 * each * len(charge.hooks) + 2 * _SLACK_SECONDS
            try:
                self._wait_for("done", patience)
            except DmcopyError as exc:
                self._failure = exc
            self._end(charge)
            self._warn_of_after(is_right=begun and self._failure is None)

    def _end(self, charge: Charge) -> None:
        """End the process, and do what it owes if it was killed."""
        assert self._process is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        # what the kernel has not thawed yet keeps it waiting; it is told, and goes by itself
        if self._process.wait(0.0 if self._left else _STOP_SECONDS) is not None:
            for mended in mend(Path(charge.record).parent, charge.job):
                self._left += mended.left
        elif not self._left and not self._is_done:
            self._left.append(f"process {self._process.pid}, which still works on what hooks owe")
        self._process.stdout.close()
        self._process = None

    def _warn_of_after(self, *, is_right: bool) -> None:
        image = "the image is right, but " if is_right else ""
        for told in self.told:
            if told.side == "after" and not told.is_well:
                self.warnings.append(
                    f"hook {told.name} after: {told.message}; {image}what it was to undo may not "
                    "be undone"
                )

    # talking

    def _say(self, line: str) -> None:
        assert self._process is not None
        with suppress(BrokenPipeError):  # it was killed: the answer will be missing
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()

    def _wait_for(self, word: str, patience: float) -> dict[str, Any]:  # Any: JSON
        """Take its messages until *word*; raises what it says went wrong, or that it is gone."""
        end = time.monotonic() + patience
        failure: DmcopyError | None = None
        while True:
            said = self._message(end)
            match said["is"]:
                case "hook":
                    self.told.append(Told(**{k: v for k, v in said.items() if k != "is"}))
                case "failed":
                    failure = _KINDS.get(said["kind"], DmcopyError)(said["message"])
                case "lost":
                    failure = failure or HookFailed(f"{said['message']}; nothing was begun")
                case "done":
                    self._is_done = True
                case "thawed":
                    failure = self._thawed(said) or failure
            if said["is"] == word or (failure is not None and word != "done"):
                break
        if failure is not None:
            raise failure
        return said

    def _thawed(self, said: dict[str, Any]) -> DmcopyError | None:  # Any: JSON
        self.frozen = said["seconds"]
        self._left += [
            f"{point} is frozen: the kernel is still writing it out, and process "
            f"{self._process.pid if self._process else '?'} thaws it then"
            for point in said["left"]
        ]
        if not said["fired"]:
            return None
        assert self._charge is not None
        return HoldLimitExceeded(
            f"{' '.join(self._charge.freeze)} was frozen for longer than {self._charge.limit:g} s "
            "and was thawed, so nothing was begun; give more time with --hold-limit"
        )

    def _message(self, end: float) -> dict[str, Any]:  # Any: JSON
        assert self._process is not None
        while b"\n" not in self._buffer:
            left = max(0.0, end - time.monotonic())
            ready, _, _ = select.select([self._process.stdout], [], [], left)
            got = self._process.stdout.read1() if ready else b""
            if not got:
                why = "was killed" if ready else "does not answer"
                raise HookFailed(
                    f"the process that keeps hooks and frozen file systems {why}; nothing was begun"
                )
            self._buffer += got
        line, _, self._buffer = self._buffer.partition(b"\n")
        said: dict[str, Any] = json.loads(line)  # Any: JSON
        return said
