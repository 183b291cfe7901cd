"""Retire: what is copied leaves the snapshot, so that writes to it pass at full speed.

The origin's table becomes mixed: ``linear`` for the retired ranges, ``snapshot-origin``, which
needs no offset, for the rest.  From the swap on a write to a retired range is not split at the
chunk size, is not looked up, and makes no exception; nothing else changes.  Each `advance` is one
swap of the live table, so it is done for a batch, never for a segment.

The order is the whole point (DESIGN.md 3): durable at the destination, on record as done, on
record as retired, swapped.  A crash between any two leaves more in the snapshot than need be.
Swapping first would leave a range of which nobody has the old content.
Proofs: test_retire_before_the_journal_broken_gives_a_wrong_image, and
test_retire_before_the_destination_is_durable_broken_gives_a_wrong_image.

Not for: while the brake or the segment gate is on, when other tables say what passes (`brake`).

Kernel: drivers/md/dm-snap.c (origin_map splits at the chunk size, and only there).  A table with
snapshot-origin in it takes no discards at all (dm-table.c:dm_table_supports_discards asks every
target, 6.1); so fstrim works again when everything is copied.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Final

from dmcopy.core.extent import Extent
from dmcopy.core.table import Table
from dmcopy.errors import DmcopyError, PointInTimeLost
from dmcopy.kernel.dm import Dm
from dmcopy.stack.deadman import Sentry
from dmcopy.stack.gate import Announce, LiveTables, saving, worth_retiring
from dmcopy.stack.hold import Instant, Swap
from dmcopy.stack.layers import Layers
from dmcopy.stack.lvm_guard import Guard
from dmcopy.stack.names import Role, owner

log = logging.getLogger(__name__)

# Retiring is worth a moment of the application's time, not a wait for slow I/O.
_LONGEST: Final = 0.5  # seconds


class Retire:
    """Retires for one job; `end` in every case.  One thread at a time.

    Whatever is given as retired must be durable at the destination and journalled as retired,
    and nobody may read it for the copy any more.  The caller sees to that.
    """

    def __init__(
        self,
        dm: Dm,
        *,
        job: str,
        origin: str,
        hold_limit: float,
        announce: Announce,
        guard: Guard = nullcontext,
    ) -> None:
        """*origin* is the dm name of a device that is spliced; *hold_limit* in seconds.

        *guard* is entered around each look and swap, and may refuse it (`lvm_guard`).

        *announce* is called with what may be live from now on, before and after each swap, and
        must not return before the worker goes by it.
        """
        self._dm = dm
        self._origin = origin
        self._announce = announce
        self._guard = guard
        self._layers = Layers(dm, job)
        source = self._layers.info(Role.SOURCE)
        if source is None:
            raise DmcopyError(f"job {job} has no source device, so nothing can be retired")
        self._source = source.devno
        self._is_of_lvm = owner(source.uuid) is None
        self._length = dm.table(source.name).length
        self._limit = min(hold_limit, _LONGEST)
        self._sentry = Sentry([origin], limit=self._limit)
        self.retired: tuple[Extent, ...] = ()  # what passes by now

    def advance(self, retired: Sequence[Extent]) -> Instant | None:
        """Let writes to *retired* pass, those of before included; gives the hold of the swap.

        None where the table would not change.  Raises `PointInTimeLost` when the table is not
        ours any more, `HoldLimitExceeded`, `DmFailed`, and `DmcopyError` while another table is
        loaded, which is not ours either: then it is as before, and may be tried again.
        """
        with self._guard():
            return self._swap(worth_retiring(self._length, retired))

    def _swap(self, passing: list[Extent]) -> Instant | None:
        live = self._dm.table(self._origin)
        if not self._layers.is_origin(live):
            raise PointInTimeLost(f"the table of {self._origin} was replaced by '{live}'")
        table = saving(self._length, self._source, passing)
        if table == live:
            return None
        info = self._dm.info(self._origin)
        if info is not None and info.inactive:  # between somebody's load and his resume
            raise DmcopyError(f"somebody else has loaded a table for {self._origin}")
        self._say(live, table)
        swap = Swap(
            dm=self._dm,
            name=self._origin,
            limit=self._limit,
            lockfs=False,
            flush=False,
            attempts=1,
            sentry=self._sentry,
            # A stranger's table must not be covered up: the worker would never see that writes
            # passed the snapshot by.  Proof: test_table_replaced_between_two_retires_is_noticed.
            over=live,
        )
        try:
            instant = swap(table)
        finally:  # a signal may come when the swap is done
            is_done = self._dm.table(self._origin) == table
            self._say(table if is_done else live)
            if is_done:
                self.retired = tuple(passing)
        log.debug("retired %d ranges of %s in %.6f s", len(passing), self._origin, instant.held)
        return instant

    def end(self) -> None:
        """End the dead man; the table stays."""
        self._sentry.end()

    def _say(self, *tables: Table) -> None:
        # LVM's own commands give its origin the full table again, which saves all: right, too.
        full = [saving(self._length, self._source, [])] if self._is_of_lvm else []
        texts = frozenset(str(table).encode() for table in (*tables, *full))
        self._announce(LiveTables(texts))
