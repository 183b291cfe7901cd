"""The swap of a live table, and what happens when it is not to be had."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import pytest

from dmcopy.core.table import Table
from dmcopy.errors import DmcopyError, DmFailed, HoldLimitExceeded
from dmcopy.stack import hold
from dmcopy.stack.hold import Instant, Swap
from dmcopy.stack.steps import restore_origin
from tests.unit.fake_dm import FakeDm

OLD, NEW = Table.parse("0 8 linear 8:0 0"), Table.parse("0 8 snapshot-origin 254:9")


class Watcher:
    """Stands in for the dead man; `fires` says whether it had to act."""

    fires: ClassVar[bool] = False
    starts: ClassVar[bool] = True
    seen: ClassVar[list[str]] = []

    def __init__(self, names: Sequence[str], *, limit: float) -> None:
        assert names == ["data"]
        assert limit == 2.0
        self.fired = False

    def __enter__(self) -> Watcher:
        if not self.starts:
            raise DmcopyError("the dead man did not start")
        self.seen.append("start")
        return self

    def __exit__(self, *_: object) -> None:
        self.seen.append("end")

    def arm(self) -> None:
        self.seen.append("arm")

    def disarm(self) -> None:
        self.seen.append("disarm")
        self.fired = self.fires


@pytest.fixture
def watcher(monkeypatch: pytest.MonkeyPatch) -> type[Watcher]:
    monkeypatch.setattr(hold, "DeadMan", Watcher)
    monkeypatch.setattr(Watcher, "fires", False)
    monkeypatch.setattr(Watcher, "starts", True)
    monkeypatch.setattr(Watcher, "seen", [])
    return Watcher


@pytest.fixture
def dm() -> FakeDm:
    dm = FakeDm()
    dm.add("data", str(OLD))
    return dm


def _swap(dm: FakeDm, *, needed: bool = False) -> Swap:
    return Swap(dm=dm, name="data", limit=2.0, needed=needed)


def test_table_is_swapped_by_one_resume_under_a_dead_man(
    dm: FakeDm, watcher: type[Watcher]
) -> None:
    instant = _swap(dm)(NEW)
    assert dm.all["data"].live == NEW
    assert dm.calls == ["load data", "resume data"]
    assert watcher.seen == ["start", "arm", "disarm", "end"]
    assert instant.held >= 0


def test_hold_over_its_limit_is_tried_again_and_then_given_up(
    dm: FakeDm, watcher: type[Watcher], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watcher, "fires", True)
    dm.fail["resume data"] = DmFailed("resume", "data", "Invalid argument")
    with pytest.raises(HoldLimitExceeded, match=r"2 s \(3 attempts\).*--hold-limit"):
        _swap(dm)(NEW)
    assert dm.calls == ["load data", "resume data"] * 3
    assert dm.all["data"].live == OLD
    assert dm.all["data"].inactive is None
    assert watcher.seen.count("end") == 3


def test_swap_that_the_kernel_refuses_is_not_tried_again(
    dm: FakeDm, watcher: type[Watcher]
) -> None:
    dm.fail["resume data"] = DmFailed("resume", "data", "Invalid argument")
    with pytest.raises(DmFailed, match="Invalid argument"):
        _swap(dm)(NEW)
    assert dm.calls == ["load data", "resume data", "clear data"]
    assert watcher.seen[-1] == "end"


def test_without_a_dead_man_nothing_is_held(
    dm: FakeDm, watcher: type[Watcher], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watcher, "starts", False)
    with pytest.raises(DmcopyError, match="dead man"):
        _swap(dm)(NEW)
    assert "resume data" not in dm.calls
    assert dm.all["data"].live == OLD


def test_origin_gets_its_table_back_even_without_a_dead_man(
    dm: FakeDm, watcher: type[Watcher], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watcher, "starts", False)
    dm.all["data"].live = NEW
    held = restore_origin(dm, "data", OLD, NEW.__eq__, limit=2.0)
    assert held is not None
    assert dm.all["data"].live == OLD


@pytest.mark.usefixtures("watcher")
def test_table_that_only_was_loaded_is_dropped(dm: FakeDm) -> None:
    dm.all["data"].inactive = NEW
    dm.all["data"].suspended = True
    assert restore_origin(dm, "data", OLD, NEW.__eq__, limit=2.0) is None
    assert dm.all["data"].inactive is None
    assert not dm.all["data"].suspended
    assert dm.all["data"].live == OLD


def test_instant_is_written_in_utc_with_nanoseconds() -> None:
    assert Instant(begin_ns=1_000_000_001, held=0.1).text == "1970-01-01T00:00:01.000000001Z"
