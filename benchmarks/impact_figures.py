"""From samples of the impact to figures: medians, ratios, goals, and the tables.

A ratio is taken within each round and load, between runs that were near in time, and the
median of these is told.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from benchmarks.distribution import (
    DISTRIBUTIONS,
    HOT_TENTH,
    UNIFORM,
    ZIPF,
    all_chunks,
    least_chunks,
)
from benchmarks.figures import MIB, Goal, Spread, cell, goal_lines, grid, machine_lines
from benchmarks.impact_methods import GATE, HOT, LABELS, LVM_DD, METHODS, NO_RETIRE, NONE, RETIRE
from benchmarks.impact_samples import Felt, Run, Sample
from benchmarks.load import percentile

Figure = Callable[[Sample], float | None]

_COW_GOALS: Final = ((UNIFORM, RETIRE, 0.6), (ZIPF, HOT, 0.3), (HOT_TENTH, HOT, 0.2))
_COPY_GOAL: Final = 1.05
_PASSING_GOAL: Final = 0.9
_HOLD_GOAL: Final = 0.005  # seconds


def chunks(sample: Sample) -> float | None:
    """Count the chunks that went to the COW device."""
    return None if sample.chunks is None else float(sample.chunks)


def chunks_a_second(sample: Sample) -> float | None:
    """The same a second in which there was a snapshot: copies take different times."""
    if sample.chunks is None or not sample.snapshot_seconds:
        return None
    return sample.chunks / sample.snapshot_seconds


def copy_seconds(sample: Sample) -> float:
    """Give the time of the copy."""
    return sample.copy_seconds


def during(figure: Callable[[Felt], float]) -> Figure:
    """Give the function for a figure of the writes during the copy."""
    return lambda sample: None if sample.during is None else figure(sample.during)


def p99(felt: Felt) -> float:
    """Give what one write in a hundred takes longer than."""
    return felt.p99


def loads(run: Run) -> list[str]:
    """Name the loads that are in the samples, in order."""
    return list(dict.fromkeys(one.load for one in run.samples))


def rounds(run: Run) -> int:
    """Count the rounds that are in the samples."""
    return len({one.round for one in run.samples})


def of(run: Run, method: str, load: str) -> dict[int, Sample]:
    """Give the samples of a method under a load, by round."""
    return {one.round: one for one in run.samples if (one.method, one.load) == (method, load)}


def spread(run: Run, method: str, load: str, figure: Figure) -> Spread | None:
    """Give the spread of a figure over the rounds."""
    found = [figure(one) for one in of(run, method, load).values()]
    return Spread.of([one for one in found if one is not None])


def ratio(run: Run, method: str, other: str, load: str, figure: Figure) -> Spread | None:
    """Give how many times the *other*'s a method's figure is, round by round."""
    ours, theirs = of(run, method, load), of(run, other, load)
    pairs = [(figure(one), figure(theirs[key])) for key, one in ours.items() if key in theirs]
    return Spread.of([one / two for one, two in pairs if one is not None and two])


def passing(run: Run, part: str) -> Spread | None:
    """Give how many times the IOPS of a device without a snapshot a part has, round by round."""
    iops = {(one.part, one.round): one.iops for one in run.retired}
    keys = [key for name, key in iops if name == part and ("plain", key) in iops]
    return Spread.of([iops[part, key] / iops["plain", key] for key in keys])


def holds(run: Run, method: str, reason: str, load: str | None = None) -> list[float]:
    """Give how long writes were held for a reason, sorted."""
    return sorted(
        held.seconds
        for one in run.samples
        if one.method == method and load in (None, one.load)
        for held in one.holds
        if held.reason == reason
    )


def least(run: Run, load: str, *, hot_first: bool) -> tuple[float, float] | None:
    """Give the fewest chunks that retiring can leave at this pace, and as a share of all.

    The pace is that of dd from LVM's snapshot; all is what is saved when nothing is retired.
    """
    taken = spread(run, LVM_DD, load, copy_seconds)
    if taken is None:
        return None
    count = run.setup["size_bytes"] // run.setup["chunk_bytes"]
    writes = run.setup["iops"] * taken.middle
    found = least_chunks(DISTRIBUTIONS[load], count, writes, hot_first=hot_first)
    return found, found / all_chunks(DISTRIBUTIONS[load], count, writes)


# goals


def goals(run: Run) -> list[Goal]:
    """Hold the figures against what was promised."""
    found = [_cow_goal(run, *one) for one in _COW_GOALS]
    found.append(
        _ratio_goal(
            "write IOPS on retired ranges at least 0.9 of those without a snapshot",
            passing(run, "retired"), lambda value: value >= _PASSING_GOAL,
        )
    )  # fmt: skip
    found += [_p99_goal(run, load) for load in (UNIFORM, ZIPF, HOT_TENTH)]
    found.append(_hold_goal(run))
    found += [
        _ratio_goal(
            f"{load}: copy with {RETIRE} takes at most 5 % longer than with {NO_RETIRE}",
            ratio(run, RETIRE, NO_RETIRE, load, copy_seconds), lambda value: value <= _COPY_GOAL,
            form=".3f",
        )
        for load in (UNIFORM, ZIPF, HOT_TENTH)
    ]  # fmt: skip
    return found


def _words(spread: Spread, form: str = ".2f") -> str:
    return f"{spread.middle:{form}} ({spread.low:{form}}..{spread.high:{form}})"


def _ratio_goal(
    text: str, found: Spread | None, good: Callable[[float], bool], form: str = ".2f"
) -> Goal:
    if found is None:
        return Goal(text, "not measured", None)
    return Goal(text, _words(found, form), good(found.middle))


def _cow_goal(run: Run, load: str, method: str, most: float) -> Goal:
    text = f"{load}: COW chunks with {method} at most {most:g} of those of {LVM_DD}"
    found = ratio(run, method, LVM_DD, load, chunks)
    paced = ratio(run, method, LVM_DD, load, chunks_a_second)
    if found is None or paced is None:
        return Goal(text, "not measured", None)
    words = f"{_words(found)}; {paced.middle:.2f} a second that there was a snapshot"
    if possible := least(run, load, hot_first=method == HOT):
        words += f"; {possible[1]:.2f} is the least at this rate of writes"
    return Goal(text, words, found.middle <= most)


def _p99_goal(run: Run, load: str) -> Goal:
    text = f"{load}: p99 write latency during the copy with {RETIRE} at most that of {LVM_DD}"
    found = ratio(run, RETIRE, LVM_DD, load, during(p99))
    ours, theirs = (spread(run, one, load, during(p99)) for one in (RETIRE, LVM_DD))
    if found is None or ours is None or theirs is None:
        return Goal(text, "not measured", None)
    words = f"{_words(found)}; {ours.middle * 1e3:.2f} against {theirs.middle * 1e3:.2f} ms"
    return Goal(text, words, found.middle <= 1.0)


def _hold_goal(run: Run) -> Goal:
    text = f"p99 of what a swap to retire holds writes under {_HOLD_GOAL * 1e3:g} ms"
    held = sorted(one for name in (RETIRE, HOT) for one in holds(run, name, "retire"))
    if not held:
        return Goal(text, "not measured", None)
    worst = percentile(held, 0.99)
    words = f"{worst * 1e3:.2f} ms of {len(held)} swaps, {held[-1] * 1e3:.2f} ms at most"
    return Goal(text, words, worst < _HOLD_GOAL)


# tables


def _felt_table(run: Run, load: str) -> list[str]:
    head = ("", "p50, ms", "p99, ms", "p99.9, ms", "IOPS", "p99 before", "p99 after")
    rows: list[tuple[str, ...]] = [head]
    for method in METHODS:
        if not of(run, method.name, load):
            continue
        beside: list[Figure] = [
            lambda one: one.before and one.before.p99,
            lambda one: one.after and one.after.p99,
        ]
        rows.append(
            (
                method.label,
                cell(spread(run, method.name, load, during(lambda one: one.p50)), ".3f", 1e3),
                cell(spread(run, method.name, load, during(p99)), ".2f", 1e3),
                cell(spread(run, method.name, load, during(lambda one: one.p999)), ".1f", 1e3),
                cell(spread(run, method.name, load, during(lambda one: one.iops)), ".0f"),
                *(cell(spread(run, method.name, load, one), ".2f", 1e3) for one in beside),
            )
        )
    return grid(rows)


def _cow_table(run: Run, load: str) -> list[str]:
    rows = [
        ("", "COW chunks", "times LVM, dd", "a second", "times LVM, dd", "copy, s", "command, s")
    ]
    for method in METHODS:
        name = method.name
        if name == NONE or not of(run, name, load):
            continue
        rows.append(
            (
                method.label,
                cell(spread(run, name, load, chunks), ".0f"),
                cell(ratio(run, name, LVM_DD, load, chunks), ".2f"),
                cell(spread(run, name, load, chunks_a_second), ".0f"),
                cell(ratio(run, name, LVM_DD, load, chunks_a_second), ".2f"),
                cell(spread(run, name, load, copy_seconds), ".2f"),
                cell(spread(run, name, load, lambda one: one.command_seconds), ".2f"),
            )
        )
    for name, hot_first in (("(least, in order)", False), ("(least, hottest first)", True)):
        if possible := least(run, load, hot_first=hot_first):
            rows.append((name, f"{possible[0]:.0f}", f"{possible[1]:.2f}", "", "", "", ""))
    return grid(rows)


def _hold_table(run: Run) -> list[str]:
    rows = [("", "for", "times", "p50, ms", "p99, ms", "longest, ms")]
    for method in METHODS:
        reasons = {h.reason for one in run.samples if one.method == method.name for h in one.holds}
        for reason in sorted(reasons):
            held = holds(run, method.name, reason)
            figures = (percentile(held, 0.5), percentile(held, 0.99), held[-1])
            ms = [f"{one * 1e3:.2f}" for one in figures]
            rows.append((method.label, reason, str(len(held)), ms[0], ms[1], ms[2]))
    return grid(rows)


def _retired_table(run: Run) -> list[str]:
    names = {
        "plain": "without a snapshot",
        "retired": "retired half",
        "snapshot": "half not retired yet",
    }
    rows = [("", "IOPS", "times without", "IOPS of the first", "p99, ms")]
    for part, name in names.items():
        found = [one for one in run.retired if one.part == part]
        rows.append(
            (
                name,
                cell(Spread.of([one.iops for one in found]), ".0f"),
                cell(passing(run, part), ".2f"),
                cell(Spread.of([one.first_iops for one in found]), ".0f"),
                cell(Spread.of([one.p99 for one in found]), ".3f", 1e3),
            )
        )
    return grid(rows)


def _gate_lines(run: Run) -> list[str]:
    held = [h for one in run.samples for h in one.holds if h.reason == "segment"]
    if not held:
        return []
    writes = sum(one.writes or 0 for one in held)
    return [f"{LABELS[GATE]}: {writes} writes waited for {len(held)} segments"]


def text(run: Run) -> str:
    """Give everything as plain text."""
    setup, host = run.setup, run.machine["host"]
    lines = [
        f"dmcopy {host['commit']}, {host['date']}: {setup['size_bytes'] // MIB} MiB "
        f"({setup['size_bytes'] // setup['chunk_bytes']} chunks), {setup['iops']} writes of 4 KiB "
        f"a second, each write to the destination takes {setup['delay_ms']} ms, "
        f"{rounds(run)} rounds (of {setup['rounds']}), rotating order, {setup['seconds']} s in all",
        *machine_lines(run.machine, setup["engine"]),
    ]
    for load in loads(run):
        lines += [
            "",
            f"Load {load}: {setup['loads'][load]} (median min..max)",
            "What the application's writes took during the copy",
            *_felt_table(run, load),
            "What went to the COW device, and what the copy took",
            *_cow_table(run, load),
        ]
    lines += [
        "",
        "How long writes were held (LVM: as seen every 5 ms)",
        *_hold_table(run),
        *_gate_lines(run),
    ]
    if run.retired:
        lines += ["", "A writer as fast as it can, one write at a time", *_retired_table(run)]
    lines += ["", "Goals", *goal_lines(goals(run))]
    lines += [f"FAILED: {failure}" for failure in run.failures]
    return "\n".join(lines)
