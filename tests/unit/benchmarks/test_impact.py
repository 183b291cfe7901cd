"""The benchmark of the impact: windows, goals, tables, plot; from samples made by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from benchmarks import impact_figures, impact_plot
from benchmarks.distribution import DISTRIBUTIONS, HOT_TENTH, UNIFORM, ZIPF
from benchmarks.impact_methods import GATE, HOT, LVM_DD, METHODS, NO_RETIRE, NONE, RETIRE
from benchmarks.impact_samples import Felt, Held, Retired, Run, Sample, Window, felt, windows

CHUNKS = {LVM_DD: 1000, NO_RETIRE: 950, RETIRE: 550, HOT: 150, GATE: 900}
SETUP: dict[str, Any] = {  # Any: JSON
    "engine": "uml", "size_bytes": 128 << 20, "rounds": 2, "iops": 600, "delay_ms": 150,
    "pause_seconds": 2.0, "chunk_bytes": 64 << 10, "seconds": 700,
    "loads": {one.name: one.about for one in DISTRIBUTIONS.values()},
}  # fmt: skip
MACHINE: dict[str, Any] = {  # Any: JSON
    "host": {
        "cpu": "a <CPU> & more", "cores": 2, "memory_bytes": 8 << 30, "kernel": "6.1",
        "load_average": [0.5, 0, 0], "load_average_after": [0.6, 0, 0],
        "commit": "abc", "date": "2026-01-01",
    },
    "guest": {"kernel": "6.1", "cpus": 1, "memory_bytes": 1 << 30, "versions": {"dd": "dd 9.1"}},
}  # fmt: skip


def sample(method: str, load: str, number: int, p99: float = 0.001) -> Sample:
    took = Felt(3000, 600.0, 0.0001, p99, 0.01, 0.02)
    return Sample(
        method=method, load=load, round=number, order=0, command_seconds=9.0,
        copy_seconds=5.0, snapshot_seconds=5.0, chunks=CHUNKS.get(method),
        before=took, during=took, after=took,
        holds=(Held("retire", 0.001),) if method in (RETIRE, HOT) else (),
        windows=tuple(Window(at / 2, 300, 600.0, 0.0001, p99, 0.01) for at in range(-4, 14)),
    )  # fmt: skip


def made(*, loads: tuple[str, ...] = (UNIFORM, ZIPF, HOT_TENTH)) -> Run:
    return Run(
        setup=SETUP,
        machine=MACHINE,
        samples=[
            sample(one.name, load, number)
            for number in range(2) for load in loads for one in METHODS
        ],
        retired=[
            Retired(part=part, round=number, iops=iops, first_iops=iops, p99=0.0001)
            for number in range(2)
            for part, iops in (("plain", 1000.0), ("retired", 950.0), ("snapshot", 500.0))
        ],
    )  # fmt: skip


def misses(run: Run) -> list[str]:
    return [goal.text for goal in impact_figures.goals(run) if goal.hit is False]


# what the writes took


def test_span_takes_the_writes_that_ended_in_it() -> None:
    found = felt([(0.9, 9.0), (1.0, 0.1), (1.5, 0.3), (2.0, 9.0)], 1.0, 2.0)
    assert found == Felt(2, 2.0, 0.1, 0.3, 0.3, 0.3)


def test_span_without_a_write_has_no_figures() -> None:
    assert felt([(0.5, 0.1)], 1.0, 2.0) is None


def test_begin_time_is_a_border_of_windows_and_only_full_ones_are_told() -> None:
    log = [(100.0 + number / 100, 0.001) for number in range(300)]
    found = windows(log, 101.2)
    assert [one.at for one in found] == [-1.0, -0.5, 0.0, 0.5, 1.0]
    assert {one.writes for one in found} == {50}


def test_window_in_which_nothing_ended_is_told() -> None:
    log = [(0.1, 0.001), (0.7, 0.001), (2.1, 1.4), (2.6, 0.001)]
    assert [(one.at, one.writes) for one in windows(log, 0.0)] == [
        (0.5, 1), (1.0, 0), (1.5, 0), (2.0, 1),
    ]  # fmt: skip


# goals


def test_all_goals_are_hit_by_good_samples() -> None:
    assert [goal.hit for goal in impact_figures.goals(made())] == [True] * 11


def test_too_many_chunks_miss() -> None:
    run = made()
    run.samples = [replace(s, chunks=700) if s.method == RETIRE else s for s in run.samples]
    assert misses(run) == [f"{UNIFORM}: COW chunks with retire at most 0.6 of those of lvm-dd"]


def test_late_writes_miss() -> None:
    run = made()
    slow = sample(RETIRE, ZIPF, 0, p99=0.5).during
    run.samples = [
        replace(s, during=slow) if (s.method, s.load) == (RETIRE, ZIPF) else s for s in run.samples
    ]
    (text,) = misses(run)
    assert text.startswith("zipf: p99 write latency")


def test_long_hold_misses_and_other_reasons_do_not_count() -> None:
    run = made()
    run.samples = [replace(one, holds=(*one.holds, Held("begin", 1.0))) for one in run.samples]
    assert misses(run) == []
    run.samples = [replace(one, holds=(*one.holds, Held("retire", 0.006))) for one in run.samples]
    (text,) = misses(run)
    assert "swap to retire" in text


def test_slow_copy_and_slow_retired_ranges_miss() -> None:
    run = made()
    run.samples = [
        replace(s, copy_seconds=5.3) if (s.method, s.load) == (RETIRE, UNIFORM) else s
        for s in run.samples
    ]
    run.retired = [
        replace(one, iops=890.0) if one.part == "retired" else one for one in run.retired
    ]
    assert len(misses(run)) == 2


def test_ratio_is_of_the_same_round() -> None:
    run = made()
    run.samples = [
        replace(s, chunks=s.chunks * 10) if s.round == 1 and s.chunks else s for s in run.samples
    ]
    found = impact_figures.ratio(run, RETIRE, LVM_DD, UNIFORM, impact_figures.chunks)
    assert found is not None
    assert (found.low, found.high) == (0.55, 0.55)


def test_what_was_not_measured_is_no_hit() -> None:
    run = Run(setup=SETUP, machine=MACHINE)
    assert {goal.hit for goal in impact_figures.goals(run)} == {None}


# shown


def test_run_comes_back_from_json() -> None:
    run = made()
    run.samples[0] = replace(run.samples[0], before=None, during=None)
    assert Run.from_json(json.loads(json.dumps(run.as_json()))) == run


def test_text_names_every_method_load_and_failure() -> None:
    run = made()
    run.failures.append("round 2: gone")
    said = impact_figures.text(run)
    assert all(one.label in said for one in METHODS)
    assert all(f"Load {name}:" in said for name in DISTRIBUTIONS)
    assert "FAILED: round 2: gone" in said


@pytest.mark.parametrize("loads", [(UNIFORM, ZIPF, HOT_TENTH), (UNIFORM,), (ZIPF,), ()])
def test_plot_is_well_formed(loads: tuple[str, ...]) -> None:
    root = ET.fromstring(impact_plot.svg(made(loads=loads)))
    words = "".join(root.itertext())
    assert "p99 write latency over time" in words
    assert "a <CPU> & more" in words


def test_window_without_writes_is_left_out_of_the_curve() -> None:
    run = made(loads=(UNIFORM,))
    none = Window(0.0, 0, 0.0, 0.0, 0.0, 0.0)
    run.samples = [replace(one, windows=(none, *one.windows[5:])) for one in run.samples]
    assert impact_plot.curve(run, NONE, UNIFORM)[0][0] == 0.5
    ET.fromstring(impact_plot.svg(run))


def test_method_that_failed_leaves_a_plot_and_a_table() -> None:
    run = made()
    run.samples = [one for one in run.samples if one.method != LVM_DD]
    impact_figures.text(run)
    ET.fromstring(impact_plot.svg(run))
