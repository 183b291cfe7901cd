"""The figures of a report, from the history of a copy: numbers only, nothing is drawn.

Samples count what was written in the *span* before them, so rates and latencies belong to
``[at - span, at]``, and sums over a phase are exact however often neighbours were joined.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

from dmcopy.core.extent import Extent
from dmcopy.core.history import Cell, Held, History, Sample
from dmcopy.units import Sectors, to_bytes

PHASES: Final = ("before", "copy", "verify", "after")
REASONS: Final = ("begin", "retire", "gate", "brake", "grow", "end")
_LOOKS: Final = (0.1, 0.25, 0.5, 0.75, 0.9)  # shares of the copy at which a forecast is judged


class PhaseFigures(NamedTuple):
    """What the application wrote during one phase."""

    phase: str
    span: float  # seconds that were watched
    writes: int
    mean: float | None  # seconds a write; None where there was none
    worst: float | None  # the mean of the worst sample

    @property
    def rate(self) -> float | None:
        """Give the writes a second."""
        return self.writes / self.span if self.span > 0 else None


class HoldFigures(NamedTuple):
    """The holds of one reason; seconds."""

    reason: str
    how_many: int
    median: float
    p99: float
    most: float


class Look(NamedTuple):
    """What was forecast at one moment; seconds since the begin time."""

    share: float  # of the time of the copy
    at: float
    done_at: float


def latency(sample: Sample) -> float | None:
    """Give the mean latency of the writes of *sample*, None where there was none."""
    return sample.write_seconds / sample.writes if sample.writes > 0 else None


def phases(samples: Sequence[Sample]) -> list[PhaseFigures]:
    """Give what was written in each phase, in order; a phase that was not seen is left out."""
    found = []
    for phase in PHASES:
        those = [sample for sample in samples if sample.phase == phase]
        if not those:
            continue
        writes = sum(sample.writes for sample in those)
        means = [mean for sample in those if (mean := latency(sample)) is not None]
        found.append(
            PhaseFigures(
                phase,
                sum(sample.span for sample in those),
                writes,
                sum(sample.write_seconds for sample in those) / writes if writes else None,
                max(means, default=None),
            )
        )
    return found


def slowdown(found: Sequence[PhaseFigures]) -> float | None:
    """Give how many times as long a write took during the copy as before it."""
    means = {one.phase: one.mean for one in found}
    before, during = means.get("before"), means.get("copy")
    # no write takes less than a nanosecond: that is a counter which has hardly moved
    return during / before if before and during and before > 1e-9 else None


def quantile(values: Sequence[float], share: float) -> float:
    """Give the smallest of *values* that *share* of them do not exceed."""
    return sorted(values)[max(math.ceil(share * len(values)), 1) - 1]


def holds(those: Sequence[Held]) -> list[HoldFigures]:
    """Give the holds by reason, in the order in which a job has them; unknown reasons last."""
    by_reason: dict[str, list[float]] = {reason: [] for reason in REASONS}
    for hold in those:
        by_reason.setdefault(hold.reason, []).append(hold.seconds)
    return [
        HoldFigures(reason, len(times), quantile(times, 0.5), quantile(times, 0.99), max(times))
        for reason, times in by_reason.items()
        if times
    ]


def copied_at(history: History) -> float | None:
    """Give when everything was copied, in seconds since the begin time; None: not yet seen."""
    before = None
    for sample in history.samples:
        if sample.phase in ("verify", "after"):
            # that it was copied is seen at the last sample of the copy, or soon after it
            return before if before is not None else sample.at
        if sample.phase == "copy":
            before = sample.at
            if sample.bytes_done >= to_bytes(history.length):
                return sample.at
    return None


def full_at(history: History) -> float | None:
    """Give when the COW device was seen to be full, None where it never was."""
    return next((s.at for s in history.samples if (cow_share(s) or 0.0) >= 1.0), None)


def looks(history: History) -> list[Look]:
    """Give what was forecast for the end when 10, 25, 50 ... % of the copy's time was over."""
    end = copied_at(history)
    told = [s for s in history.samples if s.phase == "copy" and s.done_at is not None]
    if end is None or end <= 0 or not told:
        return []
    found = []
    for share in _LOOKS:
        sample = min(told, key=lambda one: abs(one.at - share * end))
        if sample.done_at is not None and abs(sample.at - share * end) <= 0.05 * end:
            found.append(Look(share, sample.at, sample.done_at))
    return found


def cow_peak(samples: Sequence[Sample]) -> Sample | None:
    """Give the sample at which the COW device was fullest, None where there was none."""
    return max((s for s in samples if cow_share(s) is not None), key=_fullness, default=None)


def cow_share(sample: Sample) -> float | None:
    """Give how full the COW device is, 0 to 1; None where there is none."""
    if sample.cow_used is None or not sample.cow_total:
        return None
    return sample.cow_used / sample.cow_total


def _fullness(sample: Sample) -> float:
    return cow_share(sample) or 0.0


def extent_of(history: History, index: int) -> Extent:
    """Give the part of the image that a cell stands for."""
    start = Sectors(index * history.cell_size)
    return Extent.between(start, Sectors(min(start + history.cell_size, history.length)))


def from_cow(cell: Cell) -> float:
    """Give the share of what was copied of a cell that came from the COW device."""
    return cell.from_cow / cell.copied if cell.copied else 0.0
