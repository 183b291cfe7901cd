"""Several origins are held before the first is let go, or none of them changes."""

from __future__ import annotations

import pytest

from dmcopy.core.table import Table
from dmcopy.errors import DmFailed, HoldLimitExceeded, Refused
from dmcopy.stack import together as module
from dmcopy.stack.begin import Splice
from dmcopy.stack.hold import Instant
from dmcopy.stack.together import Part, together
from tests.unit.fake_dm import FakeDm
from tests.unit.stack.no_dead_man import NoDeadMan

OLD, NEW = Table.parse("0 8 linear 8:0 0"), Table.parse("0 8 snapshot-origin 254:9")
PARTS = (Part(origin="a"), Part(origin="b", then=("snap",)))


@pytest.fixture
def dm(monkeypatch: pytest.MonkeyPatch) -> FakeDm:
    monkeypatch.setattr(module, "DeadMan", NoDeadMan)
    dm = FakeDm()
    for name in ("a", "b", "snap"):
        dm.add(name, str(OLD))
        dm.load(name, NEW)
    dm.calls.clear()
    return dm


def test_all_are_held_before_the_first_goes_on(dm: FakeDm) -> None:
    first, second = together(dm, PARTS, limit=2.0)
    assert dm.calls == ["suspend a", "suspend b", "resume snap", "resume a", "resume b"]
    assert first.begin_ns == second.begin_ns
    assert first.held == second.held
    assert {dm.table(name) for name in ("a", "b", "snap")} == {NEW}


@pytest.mark.parametrize("call", ["suspend a", "suspend b", "resume snap"])
def test_failure_before_the_first_goes_on_changes_no_origin(dm: FakeDm, call: str) -> None:
    verb, _, name = call.partition(" ")
    dm.fail[call] = DmFailed(verb, name, "no")
    with pytest.raises(DmFailed):
        together(dm, PARTS, limit=2.0)
    assert [dm.table(name) for name in ("a", "b")] == [OLD, OLD]
    assert not any(dm.all[name].suspended for name in ("a", "b"))
    assert not any(dm.all[name].inactive for name in ("a", "b"))


def test_dead_man_that_acted_is_a_limit_exceeded(
    dm: FakeDm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(NoDeadMan, "fired", True)
    with pytest.raises(HoldLimitExceeded, match="a, b"):
        together(dm, PARTS, limit=2.0)


def splice_of(dm: FakeDm, answers: list[Instant | Exception], *, swaps: bool = False) -> Splice:
    def meet(part: Part | None) -> Instant:
        assert part == Part(origin="a")
        answer = answers.pop(0)
        if swaps or isinstance(answer, Instant):
            dm.resume("a")
        if isinstance(answer, Exception):
            raise answer
        return answer

    return Splice(dm, "a", job="g.1", original=OLD, ours=lambda: NEW, limit=2.0, meet=meet)


def test_volume_loads_anew_and_meets_again_after_the_limit(dm: FakeDm) -> None:
    instant = Instant(begin_ns=1, held=0.2, alone=0.1)
    splice = splice_of(dm, [HoldLimitExceeded("late"), instant])
    splice.do()
    assert splice.instant == instant
    assert dm.calls == ["load a", "clear a", "load a", "resume a"]


def test_volume_that_was_let_go_with_our_table_does_not_meet_again(dm: FakeDm) -> None:
    """Its snapshot is of the first instant; another could not be told from it."""
    instant = Instant(begin_ns=1, held=0.2)
    splice = splice_of(dm, [HoldLimitExceeded("late"), instant], swaps=True)
    with pytest.raises(Refused, match="was changed meanwhile"):
        splice.do()


def test_volume_whose_instant_is_off_has_nothing_loaded(dm: FakeDm) -> None:
    with pytest.raises(DmFailed):
        splice_of(dm, [DmFailed("suspend", "b", "no")]).do()
    assert (dm.table("a"), dm.table("a", inactive=True)) == (OLD, Table())
