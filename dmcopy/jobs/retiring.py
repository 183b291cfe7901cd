"""When what is copied is retired: after each batch, unless that cost the application too much."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from dmcopy.core.extent import Extent
from dmcopy.errors import DmcopyError, Interrupted, PointInTimeLost
from dmcopy.stack.hold import Instant
from dmcopy.units import Bytes

_HOLD_SHARE: Final = 0.01  # of the time, that writes may be held for it
_RETRY_SECONDS: Final = 5.0  # after a swap that I/O under way kept from coming about


class Retirer(Protocol):
    """Swaps the tables; a stack.retire.Retire is one."""

    @property
    def retired(self) -> Sequence[Extent]:
        """What passes the snapshot by."""

    def advance(self, retired: Sequence[Extent]) -> Instant | None:
        """Let *retired* pass; gives the hold, None where nothing changed."""

    def end(self) -> None:
        """Retire no more."""


class Retiring:
    """Decides for one copy; `end` in every case."""

    def __init__(
        self,
        retire: Retirer,
        record: Callable[[], Sequence[Extent]],
        hold: Callable[[str, float], None],
        warn: Callable[[str], None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """*record* puts on record that all that is durable is retired, and gives all that is."""
        self._retire = retire
        self._record = record
        self._hold = hold
        self._warn = warn
        self._clock = clock
        self._next = 0.0
        self._told: set[str] = set()

    @property
    def retired(self) -> Bytes:
        """How much passes the snapshot by."""
        return Bytes(sum(extent.size for extent in self._retire.retired))

    def durable(self) -> None:
        """Something more is durable at the destination, and on record."""
        if self._clock() < self._next:
            return
        try:
            instant = self._retire.advance(self._record())
        except (PointInTimeLost, Interrupted):
            raise
        except DmcopyError as exc:  # it stays in the snapshot for now
            self._next = self._clock() + _RETRY_SECONDS
            if str(exc) not in self._told:
                self._told.add(str(exc))
                self._warn(f"what is copied could not be retired, which is tried again: {exc}")
            return
        if instant is not None:
            self._next = self._clock() + instant.held / _HOLD_SHARE
            self._hold("retire", instant.held)

    def end(self) -> None:
        """Retire no more; what is retired stays so."""
        self._retire.end()
