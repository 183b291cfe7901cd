"""From samples to figures: medians, ratios, goals, and the table.

A ratio is taken within each round, between runs that were neighbours in time, and the median
of these is told: what else the machine had to do then weighs on both sides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any, Final, NamedTuple

from benchmarks.methods import DMCOPY, METHODS, NBDCOPY, QEMU_IMG, RAW, SNAPSHOT_DD
from benchmarks.samples import IDLE, LOAD, Latency, Run, Sample

MIB: Final = 1 << 20
RSS_GOAL: Final = 150 * MIB
_SAME: Final = 1.05  # two peaks are equal within 5 %: start-up alone varies by that


class Spread(NamedTuple):
    """The median of some figures, with the smallest and the largest."""

    middle: float
    low: float
    high: float
    rounds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread | None:
        """Give the spread of *values*, None of none."""
        if not values:
            return None
        return cls(median(values), min(values), max(values), len(values))


class Goal(NamedTuple):
    """What was promised, what was found; *hit* is None when it was not measured."""

    text: str
    found: str
    hit: bool | None


def copy_time(run: Run) -> Callable[[Sample], float]:
    """Give the function for the seconds that moved the data.

    A program that says no times itself was started on 4 MiB in the same round: that is taken
    off, for the machine is not the same in every round.
    """
    startup = {
        (one.method, one.round): one.startup_seconds
        for one in run.samples
        if one.startup_seconds is not None
    }
    return lambda one: max(one.copy_seconds - startup.get((one.method, one.round), 0.0), 1e-9)


def rounds(run: Run) -> int:
    """Count the rounds that are in the samples: a run that was cut short has fewer than asked."""
    return len({one.round for one in run.samples})


def command_time(sample: Sample) -> float:
    """Give the seconds of the whole command."""
    return sample.command_seconds


def _of(run: Run, method: str, state: str) -> dict[int, Sample]:
    return {one.round: one for one in run.samples if (one.method, one.state) == (method, state)}


def spread(run: Run, method: str, state: str, seconds: Callable[[Sample], float]) -> Spread | None:
    """Give the spread of a time over the rounds."""
    return Spread.of([seconds(one) for one in _of(run, method, state).values()])


def ratio(
    run: Run, method: str, other: str, state: str, seconds: Callable[[Sample], float]
) -> Spread | None:
    """Give how many times as fast as *other* a method is, round by round."""
    ours, theirs = _of(run, method, state), _of(run, other, state)
    return Spread.of(
        [seconds(theirs[key]) / seconds(one) for key, one in ours.items() if key in theirs]
    )


def latency(
    run: Run, method: str, figure: Callable[[Latency], float], *, baseline: bool = False
) -> Spread | None:
    """Give the spread of a figure of the application's writes."""
    found = [one.baseline if baseline else one.latency for one in _of(run, method, LOAD).values()]
    return Spread.of([figure(one) for one in found if one is not None])


def goals(run: Run) -> list[Goal]:
    """Hold the figures against what was promised."""
    seconds = copy_time(run)
    found: list[Goal] = []
    for state in (IDLE, LOAD):
        found.append(_ratio_goal(run, RAW, 0.9, state, seconds))
        found += [_ratio_goal(run, peer, 1.5, state, seconds) for peer in (QEMU_IMG, NBDCOPY)]
    found.append(_latency_goal(run))
    found += _memory_goals(run)
    return found


def _ratio_goal(
    run: Run, other: str, least: float, state: str, seconds: Callable[[Sample], float]
) -> Goal:
    text = f"{state}: copy phase at least {least:g} times the throughput of {other}"
    measured = ratio(run, DMCOPY, other, state, seconds)
    if measured is None:
        return Goal(text, "not measured", None)
    words = f"{measured.middle:.2f} ({measured.low:.2f}..{measured.high:.2f})"
    return Goal(text, words, measured.middle >= least)


def _latency_goal(run: Run) -> Goal:
    text = f"load: p99 write latency no worse than during {SNAPSHOT_DD}"
    ours = latency(run, DMCOPY, lambda one: one.p99)
    theirs = latency(run, SNAPSHOT_DD, lambda one: one.p99)
    if ours is None or theirs is None:
        return Goal(text, "not measured", None)
    words = f"{ours.middle * 1e3:.2f} ms against {theirs.middle * 1e3:.2f} ms"
    return Goal(text, words, ours.middle <= theirs.middle)


def _memory_goals(run: Run) -> list[Goal]:
    by_name = {one.name: one for one in run.memory}
    small, large = by_name.get("1 GiB"), by_name.get("1 TiB")
    most = f"peak Rss of all processes together under {RSS_GOAL // MIB} MiB"
    equal = "peak Rss for 1 TiB no more than for 1 GiB (within 5 %)"
    if small is None or large is None:
        return [Goal(most, "not measured", None), Goal(equal, "not measured", None)]
    peaks = [one.peak_rss_bytes for one in run.memory]
    two = f"{small.peak_rss_bytes / MIB:.1f} and {large.peak_rss_bytes / MIB:.1f} MiB"
    close = large.peak_rss_bytes <= small.peak_rss_bytes * _SAME
    return [
        Goal(most, f"{max(peaks) / MIB:.1f} MiB", max(peaks) < RSS_GOAL),
        Goal(equal, two, close),
    ]


def cell(spread: Spread | None, form: str, scale: float = 1.0) -> str:
    """Give the median with the smallest and the largest, for a table."""
    if spread is None:
        return "-"
    return " ".join(
        (
            f"{spread.middle * scale:{form}}",
            f"{spread.low * scale:{form}}..{spread.high * scale:{form}}",
        )
    )


def grid(rows: Sequence[Sequence[str]]) -> list[str]:
    """Give the lines of a table."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _speed_table(run: Run, state: str) -> list[str]:
    seconds, size = copy_time(run), run.setup["size_bytes"]
    rows = [("method", "copy, s", "MiB/s", "times dd", "whole command, s", "reads")]
    for one in METHODS:
        times = spread(run, one.name, state, seconds)
        if times is None:
            continue
        rows.append(
            (
                one.label,
                cell(times, ".3f"),
                f"{size / MIB / times.middle:.0f}",
                cell(ratio(run, one.name, RAW, state, seconds), ".2f"),
                cell(spread(run, one.name, state, command_time), ".2f"),
                one.how,
            )
        )
    return grid(rows)


def _latency_table(run: Run) -> list[str]:
    rows = [("writes during", "p50, ms", "p99, ms", "max, ms", "IOPS")]
    pick: list[tuple[Callable[[Latency], float], str, float]] = [
        (lambda one: one.p50, ".3f", 1e3),
        (lambda one: one.p99, ".2f", 1e3),
        (lambda one: one.max, ".1f", 1e3),
        (lambda one: one.iops, ".0f", 1.0),
    ]
    every = [one.baseline for one in run.samples if one.baseline is not None]
    if every:
        cells = [cell(Spread.of([get(one) for one in every]), form, x) for get, form, x in pick]
        rows.append(("(no copy)", cells[0], cells[1], cells[2], cells[3]))
    for method in METHODS:
        cells = [cell(latency(run, method.name, get), form, x) for get, form, x in pick]
        if cells[0] != "-":
            rows.append((method.label, cells[0], cells[1], cells[2], cells[3]))
    return grid(rows)


def _memory_table(run: Run) -> list[str]:
    rows = [("source", "peak Pss", "peak Rss", "sum of VmHWM", "copied", "in", "exceptions")]
    rows += [
        (
            one.name + ("" if one.finished else " (stopped)"),
            f"{one.peak_pss_bytes / MIB:.1f} MiB",
            f"{one.peak_rss_bytes / MIB:.1f} MiB",
            f"{one.high_water_bytes / MIB:.1f} MiB",
            f"{one.copied_bytes / (MIB << 10):.1f} GiB",
            f"{one.seconds:.0f} s",
            str(one.exceptions),
        )
        for one in run.memory
    ]
    return grid(rows)


def gib(size: int) -> str:
    """Give a size in GiB, for a person."""
    return f"{size / (MIB << 10):.3g} GiB"


def goal_lines(goals: Sequence[Goal]) -> list[str]:
    """Say of each goal whether it was hit, and with what figure."""
    words = {True: "hit ", False: "MISS", None: "-   "}
    return [f"{words[goal.hit]}  {goal.text}: {goal.found}" for goal in goals]


def machine_lines(machine: Mapping[str, Any], engine: str) -> list[str]:  # Any: JSON
    """Describe what all was measured on."""
    host, guest = machine["host"], machine["guest"]
    return [
        f"host: {host['cpu']}, {host['cores']} cores, {gib(host['memory_bytes'])}, "
        f"Linux {host['kernel']}, load average {host['load_average'][0]:.1f} before, "
        f"{host['load_average_after'][0]:.1f} after",
        f"guest: {engine}, Linux {guest['kernel']}, {guest['cpus']} CPU, "
        f"{gib(guest['memory_bytes'])}",
        "tools: " + "; ".join(guest["versions"].values()),
    ]


def text(run: Run) -> str:
    """Give everything as plain text."""
    setup, host = run.setup, run.machine["host"]
    lines = [
        f"dmcopy {host['commit']}, {host['date']}: copy of {gib(setup['size_bytes'])} "
        f"between equal RAM disks, {rounds(run)} rounds (of {setup['rounds']}), rotating order",
        *machine_lines(run.machine, setup["engine"]),
        "",
        "Idle (median min..max; times dd: of the copy phase, median of the rounds' ratios)",
        *_speed_table(run, IDLE),
        "",
        f"Under load: {setup['iops']} random writes of 4 KiB a second, direct",
        *_speed_table(run, LOAD),
        "",
        "What the application's writes took during the copy",
        *_latency_table(run),
    ]
    holds = [held for one in run.samples for held in one.hold_seconds]
    if holds:
        lines.append(
            f"dmcopy held writes at begin and end for {median(holds) * 1e3:.2f} ms "
            f"(median of {len(holds)}), {max(holds) * 1e3:.2f} ms at most"
        )
    if run.memory:
        lines += ["", "Memory of all dmcopy's processes together", *_memory_table(run)]
    checked = [one.exact for one in run.samples if one.exact is not None]
    if checked:
        lines += ["", f"{sum(checked)} of {len(checked)} copies that were compared are exact"]
    lines += ["", "Goals", *goal_lines(goals(run))]
    lines += [f"FAILED: {failure}" for failure in run.failures]
    return "\n".join(lines)
