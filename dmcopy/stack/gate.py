"""What lies between the origin and its source while the brake is on: tables, and whose they are.

::

    origin  linear          over the meter                     (swapped at on and off only)
    meter   linear          over the brake; its dm-stats count what the brake holds, by area
    brake   linear / delay  retired: the source; the rest: the gate, writes after a while
    gate    linear / snapshot-origin
                            retired: the source; the rest: the source, what is there is saved
    source  the origin's original table

Why ``delay`` is over the gate and never over the source: what it holds is released by expiry,
by a suspend and by the death of control, and must be saved before it lands all the same.
Why it is not on the origin itself: dm-delay accounts I/O when it passes it on
(dm-delay.c:delay_ctr, accounts_remapped_io), so nothing on the origin would tell where the held
writes are; seen on 6.1.  And what the meter counts goes when the meter goes.

Kernel: drivers/md/dm-delay.c, drivers/md/dm-snap.c (origin_map), drivers/md/dm-stats.c.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from dmcopy.core.extent import Extent, merge
from dmcopy.core.table import Row, Table
from dmcopy.core.target import Target
from dmcopy.core.targets.delay import Delay, Path
from dmcopy.core.targets.linear import Linear
from dmcopy.core.targets.snapshot import SnapshotOrigin
from dmcopy.units import Sectors

# A flush is sent once for each line of a table (dm.c:__send_empty_flush), and two such tables lie
# above each other: an fsync while the brake is on costs the square of this, over two.
MOST_LINES: Final = 16


@dataclass(frozen=True)
class LiveTables:
    """The tables that may be live from now on, as ``dmsetup table`` says them; no others.

    *layers*: by dm uuid, the devices that writes to the origin pass through.
    """

    origin: frozenset[bytes]
    layers: Mapping[str, frozenset[bytes]] = field(default_factory=dict)


Announce = Callable[[LiveTables], None]


def worth_retiring(length: Sectors, retired: Iterable[Extent]) -> list[Extent]:
    """Join what touches, and give the largest ranges that a table of `MOST_LINES` can name."""
    whole = Extent(Sectors(0), length)
    ranges = merge(part for extent in retired if (part := extent.clip(whole)) is not None)
    largest = sorted(ranges, key=lambda extent: extent.length, reverse=True)
    return sorted(largest[: (MOST_LINES - 1) // 2])  # each with a line before, and one at the end


def not_retired(within: Iterable[Extent], retired: Sequence[Extent]) -> list[Extent]:
    """Give the parts of *within* that are in none of *retired*, which is sorted and disjoint."""
    found: list[Extent] = []
    for extent in merge(within):
        at = extent.start
        for out in retired:
            if out.end <= at:
                continue
            if out.start >= extent.end:
                break
            if out.start > at:
                found.append(Extent.between(at, out.start))
            at = out.end
        if at < extent.end:
            found.append(Extent.between(at, extent.end))
    return found


def saving(length: Sectors, source: str, retired: Sequence[Extent]) -> Table:
    """Give a table that saves what is overwritten, but for the *retired* ranges."""
    rest = not_retired([Extent(Sectors(0), length)], retired)
    saved = [(extent, SnapshotOrigin(extent.length, source)) for extent in rest]
    return _table([*_passing(source, retired), *saved])


def braking(
    length: Sectors,
    source: str,
    gate: str,
    retired: Sequence[Extent],
    *,
    milliseconds: int,
    only: Sequence[Extent] | None = None,
) -> Table:
    """Give a table that delays writes to *gate*, but for the *retired* ranges.

    With *only*, writes to these alone; all others pass to the gate at once.  Reads and flushes
    always do: an fsync waits for its own writes, and for no others.
    """
    if source == gate:
        raise ValueError("a delay over the bare source would release writes that were not saved")

    def held(rest: Extent) -> Delay:
        now = Path(gate, rest.start, 0)
        return Delay(rest.length, (now, Path(gate, rest.start, milliseconds), now))

    whole = Extent(Sectors(0), length)
    rest = not_retired([whole], retired)
    lines = _passing(source, retired)
    gated = rest
    if only is not None:
        gated = [part for one in merge(only) for row in rest if (part := one.clip(row)) is not None]
        passing = not_retired([whole], merge([*retired, *gated]))
        lines += [(extent, Linear(extent.length, gate, extent.start)) for extent in passing]
    return _table([*lines, *((extent, held(extent)) for extent in gated)])


def over(length: Sectors, devno: str) -> Table:
    """Give a table that is the whole of one other device."""
    return Table.of(Linear(length, devno, Sectors(0)))


_Line = tuple[Extent, Target]


def _passing(source: str, retired: Sequence[Extent]) -> list[_Line]:
    return [(extent, Linear(extent.length, source, extent.start)) for extent in retired]


def _table(lines: Iterable[_Line]) -> Table:
    """Lay the lines end to end; a table in which one were not where it belongs is not made."""
    ordered = sorted(lines, key=lambda line: line[0])
    at = Sectors(0)
    for extent, _ in ordered:
        if extent.start != at:
            raise ValueError(f"the lines of a table meet at {at}, not at {extent.start}: {ordered}")
        at = extent.end
    return Table.of(*(target for _, target in ordered))


def leads_to_ours(table: Table, source: str, layers: Iterable[str], length: Sectors) -> bool:
    """Tell whether a device of *table* is an origin of ours, in whatever state.

    *source* and *layers* are devnos.  One line is enough, for a table is never half ours.
    """
    if table.length != length:
        return False
    between = frozenset(layers)
    return any(_is_ours(row, source, between) for row in table.rows)


def _is_ours(row: Row, source: str, layers: frozenset[str]) -> bool:
    target = row.target
    if isinstance(target, SnapshotOrigin):
        return target.device == source
    if isinstance(target, Linear):
        return target.offset == row.start and target.device in layers | {source}
    return isinstance(target, Delay) and not layers.isdisjoint(target.devices())
