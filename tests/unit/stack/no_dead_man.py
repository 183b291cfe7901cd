"""A stand-in for the dead man: a unit test starts no process."""

from __future__ import annotations

from collections.abc import Sequence


class NoDeadMan:
    """Watches over nothing."""

    fired = False
    is_alive = True

    def __init__(self, names: Sequence[str], *, limit: float) -> None:
        del names
        assert limit == 2.0

    def __enter__(self) -> NoDeadMan:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def arm(self) -> None:
        return

    def disarm(self) -> None:
        return
