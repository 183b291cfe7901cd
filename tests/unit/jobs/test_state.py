"""The life of a job."""

from __future__ import annotations

import pytest

from dmcopy.jobs.state import MOVES, State, is_final


def test_every_state_leads_to_an_end() -> None:
    for state in State:
        reached, waiting = {state}, [state]
        while waiting:
            new = MOVES[waiting.pop()] - reached
            reached |= new
            waiting += new
        assert any(is_final(end) for end in reached)


def test_every_state_is_reached_from_the_first() -> None:
    reached, waiting = {State.DEFINED}, [State.DEFINED]
    while waiting:
        new = MOVES[waiting.pop()] - reached
        reached |= new
        waiting += new
    assert reached == set(State)


def test_whatever_has_not_ended_may_fail_or_be_cancelled() -> None:
    final = {state for state in State if is_final(state)}
    assert final == {State.ENDED, State.FAILED, State.CANCELLED}
    for state in set(State) - final:
        assert {State.FAILED, State.CANCELLED} <= MOVES[state]


@pytest.mark.parametrize("state", [State.BEGUN, State.COPYING])
def test_what_copies_may_pause_and_go_on(state: State) -> None:
    assert State.PAUSED in MOVES[state]
    assert State.COPYING in MOVES[State.PAUSED]


def test_what_is_copied_stays_copied() -> None:
    after, waiting = {State.COPIED}, [State.COPIED]
    while waiting:
        new = MOVES[waiting.pop()] - after
        after |= new
        waiting += new
    assert not after & {State.DEFINED, State.BEGUN, State.COPYING, State.PAUSED}
