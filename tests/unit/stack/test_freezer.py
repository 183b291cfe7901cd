"""Freezing for a limited time; the kernel is played by the test."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable

from dmcopy.stack.freezer import Freezer

POINTS = ("/top", "/low")


class Kernel:
    """Notes what is asked of it; *errors* by (what, point)."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.errors: dict[str, int] = {}
        self.gate = threading.Event()
        self.gate.set()

    def _do(self, what: str) -> Callable[[int], None]:
        def call(fd: int) -> None:
            word = f"{what} {POINTS[fd]}"
            self.gate.wait(10)
            self.calls.append(word)
            if word in self.errors:
                raise OSError(self.errors[word], "refused")

        return call

    def freezer(self) -> Freezer:
        return Freezer(
            POINTS, open_mount=POINTS.index, freeze=self._do("freeze"), thaw=self._do("thaw")
        )


def test_frozen_in_order_and_thawed_the_other_way() -> None:
    kernel = Kernel()
    freezer = kernel.freezer()
    assert freezer.freeze(5) == (True, POINTS, (), (), None)
    assert freezer.thaw(5) == []
    assert kernel.calls == ["freeze /top", "freeze /low", "thaw /low", "thaw /top"]


def test_what_was_not_frozen_by_us_is_not_thawed() -> None:
    kernel = Kernel()
    kernel.errors = {"freeze /top": errno.EOPNOTSUPP, "freeze /low": errno.EBUSY}
    freezer = kernel.freezer()
    frozen = freezer.freeze(5)
    assert (frozen.cannot, frozen.before, frozen.held) == (("/top",), ("/low",), ())
    assert freezer.thaw(5) == []
    assert kernel.calls == ["freeze /top", "freeze /low"]


def test_failure_ends_it_and_what_was_frozen_is_thawed() -> None:
    kernel = Kernel()
    kernel.errors = {"freeze /low": errno.EIO}
    freezer = kernel.freezer()
    assert freezer.freeze(5).failed == "/low: refused"
    assert freezer.thaw(5) == []
    assert kernel.calls[-1] == "thaw /top"


def test_freeze_that_comes_too_late_is_thawed_when_it_has_come() -> None:
    kernel = Kernel()
    kernel.gate.clear()
    freezer = kernel.freezer()
    assert not freezer.freeze(0.05).in_time
    assert freezer.thaw(0.05) == list(POINTS)  # it may be frozen: who knows
    kernel.gate.set()
    assert freezer.thaw(5) == []
    assert kernel.calls == ["freeze /top", "thaw /top"]  # and the next was not begun


def test_thaw_that_fails_is_told() -> None:
    kernel = Kernel()
    kernel.errors = {"thaw /low": errno.EIO, "thaw /top": errno.EINVAL}
    freezer = kernel.freezer()
    freezer.freeze(5)
    assert freezer.thaw(5) == ["/low"]  # and /top had been thawed by somebody else
