"""How a job comes to its begin time, with what the applications need around it."""

from __future__ import annotations

from typing import NamedTuple

from dmcopy.core import events
from dmcopy.jobs.journal import Journal
from dmcopy.jobs.prepare import Prepared
from dmcopy.jobs.teller import Teller
from dmcopy.stack.hold import Instant
from dmcopy.stack.keeper import Keeper


class Beginning(NamedTuple):
    """A begin time; *instant* is None where the job had one before."""

    instant: Instant | None
    frozen: float | None  # seconds for which file systems above the source were frozen


def begin(prepared: Prepared, journal: Journal, teller: Teller) -> Beginning:
    """Fix the begin time; raises what `Standing.begin` and `Keeper.around_instant` raise."""
    standing, application, name = prepared.standing, prepared.application, prepared.spec.name
    keeper = application.keeper() if application is not None else None
    try:
        instant = standing.begin(
            lambda what: journal.intend(name, what),
            keeper.around_instant if keeper is not None else None,
        )
    finally:
        if keeper is not None:
            tell_of(keeper, name, teller)
    for warning in standing.warnings:
        teller.warn(warning)
    return Beginning(instant, keeper.frozen if keeper is not None else None)


def hooks_told(keeper: Keeper, job: str) -> list[events.Hook]:
    """Give what became of the hooks."""
    return [
        events.Hook(
            job=job,
            hook=told.name,
            side=told.side,
            status=told.status,
            seconds=told.seconds,
            message=told.message,
        )
        for told in keeper.told
    ]


def tell_of(keeper: Keeper, job: str, teller: Teller) -> None:
    """Tell what became of the hooks, and what else a person should know."""
    for event in hooks_told(keeper, job):
        teller.happened(event)
    for warning in keeper.warnings:
        teller.warn(warning)
