"""The life of a job, as one table of allowed moves."""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class State(StrEnum):
    """Where a job is in its life."""

    DEFINED = "defined"  # in the journal; nothing was changed yet
    BEGUN = "begun"  # the point in time is fixed
    COPYING = "copying"
    PAUSED = "paused"  # nobody copies, the point in time is kept; `dmcopy resume` goes on
    COPIED = "copied"  # every segment is durable at the destination; the stack is as before
    VERIFIED = "verified"
    ENDED = "ended"
    FAILED = "failed"
    CANCELLED = "cancelled"


# No way from COPIED to PAUSED: what is copied stays copied, only its verification was cut short.
_ANY_END: Final = frozenset({State.FAILED, State.CANCELLED})

MOVES: Final[dict[State, frozenset[State]]] = {
    State.DEFINED: _ANY_END | {State.BEGUN},
    State.BEGUN: _ANY_END | {State.COPYING, State.PAUSED},
    State.COPYING: _ANY_END | {State.COPIED, State.PAUSED},
    State.PAUSED: _ANY_END | {State.COPYING, State.COPIED},
    State.COPIED: _ANY_END | {State.VERIFIED, State.ENDED},
    State.VERIFIED: _ANY_END | {State.ENDED},
    State.ENDED: frozenset(),
    State.FAILED: frozenset(),
    State.CANCELLED: frozenset(),
}


def is_final(state: State) -> bool:
    """Tell whether a job in *state* has nothing more to do."""
    return not MOVES[state]
