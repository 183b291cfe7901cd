"""The protocol, broken on purpose: the tests that must fail then are seen to fail.

For a process that is about to become ``dmcopy`` (a fork).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from dmcopy.core.extent import Extent
from dmcopy.jobs.journal import Done, Journal
from dmcopy.jobs.link import WorkerLink
from dmcopy.kernel.command import Process, start_process
from dmcopy.units import Sectors


def retire_before_the_journal() -> None:
    """What is durable is retired although nothing of it is on record."""
    kept: dict[Sectors, Done] = {}

    def commit(
        _self: Journal,
        _name: str,
        rows: Sequence[tuple[Extent, str | None]],
        *,
        counts: Mapping[str, int] | None = None,
    ) -> None:
        del counts
        for extent, digest in rows:
            kept[extent.start] = Done(extent, digest, extent.length)

    def retire(_self: Journal, _name: str) -> None:
        return

    def done(_self: Journal, _name: str) -> list[Done]:
        return sorted(kept.values())

    Journal.commit = commit  # type: ignore[method-assign, assignment] # on purpose
    Journal.retire = retire  # type: ignore[method-assign, assignment] # on purpose
    Journal.done = done  # type: ignore[method-assign, assignment] # on purpose


def retire_before_the_destination() -> None:
    """What is written is put on record and retired although no flush made it durable."""

    def start(argv: Sequence[str]) -> Process:
        return start_process([argv[0], "-m", "tests.cuts.unflushed"])

    constructor: Any = WorkerLink.__init__  # Any: a function has defaults
    constructor.__defaults__ = (start,)


BROKEN: Final[Mapping[str, Callable[[], None]]] = {
    "journal": retire_before_the_journal,
    "destination": retire_before_the_destination,
}
