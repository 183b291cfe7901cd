"""Asks for a power cut right after one transition of a job's journal, and tells of all of them.

For a process that is about to become ``dmcopy`` (a fork): its `Journal` is wrapped.  Each call of
a public method that writes is a transition, called ``move copying``, ``intend#2`` (the second
one) and so on; when it has returned, what it recorded is on the medium.
"""

from __future__ import annotations

import functools
import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from dmcopy.jobs.journal import Journal
from dmcopy.stack.plan import Plan

_READS: Final = frozenset(
    {
        *("close", "state", "leftovers", "intents", "record", "records", "done", "log_of"),
        *("setting", "history", "keep_history"),
    }
)
_QUALIFIED: Final = frozenset({"move", "note"})  # by their second argument: the state, the column
_FOREVER: Final = 60.0  # seconds; the cut comes within some milliseconds


class Fuse:
    """Blows after transition *blow*: makes ``cut-now`` in *share* and goes no further.

    *when_planned* is called when a plan has run.
    """

    def __init__(
        self, share: Path, blow: str | None, *, when_planned: Callable[[], None] | None = None
    ) -> None:
        self._share = share
        self._blow = blow
        self._when_planned = when_planned
        self._seen: Counter[str] = Counter()

    def arm(self) -> None:
        """Wrap this process's journal, for good."""
        for name, method in list(vars(Journal).items()):
            if callable(method) and not name.startswith("_") and name not in _READS:
                setattr(Journal, name, self._wrapped(name, method))
        if self._when_planned is not None:
            run, then = Plan.run, self._when_planned

            def run_and_tell(*args: Any, **kwargs: Any) -> None:  # Any: whatever run takes
                run(*args, **kwargs)
                then()

            setattr(Plan, "run", run_and_tell)  # noqa: B010 (mypy is right about types)

    def _wrapped(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:  # Any: any
        @functools.wraps(method)
        def outer(journal: Journal, *args: Any, **kwargs: Any) -> Any:  # Any: as the inner one
            result = method(journal, *args, **kwargs)
            self._passed(f"{name} {args[1]}" if name in _QUALIFIED else name)
            return result

        return outer

    def _passed(self, transition: str) -> None:
        self._seen[transition] += 1
        number = self._seen[transition]
        here = transition if number == 1 else f"{transition}#{number}"
        self._append("transitions", here)
        if here == self._blow:
            self._append("cut-now", here)
            time.sleep(_FOREVER)

    def _append(self, name: str, line: str) -> None:
        fd = os.open(self._share / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(fd, f"{line}\n".encode())
        os.close(fd)
