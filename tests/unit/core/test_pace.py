"""The controller against a simulated device whose writes wait longer the busier it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from dmcopy.core.pace import FLOOR, AutoPace
from dmcopy.units import MIB, Bytes

CAPACITY = 400 * MIB  # a second, for us and the application together
ALONE_MS = 0.5  # a write on the idle device
WORST_MS = 200.0  # the application waits for its writes, so its queue is no longer than this


class Load(NamedTuple):
    """What the application does: bytes a second, in so many writes a second."""

    size: int
    writes: int


LIGHT = Load(100 * MIB, 500)
HEAVY = Load(320 * MIB, 1600)
IDLE = Load(0, 0)

Latency = Callable[[float, Load], float]


def queueing(rate: float, load: Load) -> float:
    """Milliseconds a write: one server with a queue."""
    left = 1 - (rate + load.size) / CAPACITY
    return min(ALONE_MS / left, WORST_MS) if left > 0 else WORST_MS


class Run:
    """Seconds of a copy; `rates`, `latencies` and `moved` have an entry for each."""

    def __init__(
        self,
        latency: Latency = queueing,
        *,
        able: int = CAPACITY,
        segment: int = 1,
        floor: Bytes = FLOOR,
    ) -> None:
        self.pace = AutoPace(floor)
        self.latency, self.able, self.segment = latency, able, segment
        self.now, self.owed = 100.0, 0.0
        self.rates: list[float] = []
        self.latencies: list[float] = []
        self.moved: list[int] = []
        self.pace.update(self.now, Bytes(0), 0, 0)

    def go(self, load: Load, seconds: int) -> None:
        for _ in range(seconds):
            rate = min(self.pace.rate, self.able)
            latency = self.latency(rate, load)
            self.owed += rate
            moved = int(self.owed // self.segment) * self.segment
            self.owed -= moved
            self.now += 1.0
            self.pace.update(self.now, Bytes(moved), load.writes, int(latency * load.writes))
            self.rates.append(rate)
            self.latencies.append(latency)
            self.moved.append(moved)


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def test_first_pace_is_slow_until_the_latency_at_it_is_known() -> None:
    run = Run()
    sparse = Load(100 * MIB, 4)
    run.go(sparse, 4)
    assert run.rates == [8 * MIB] * 4
    run.go(sparse, 2)
    assert run.rates[-1] > 8 * MIB


def test_idle_origin_is_copied_at_full_speed_in_seconds() -> None:
    run = Run()
    run.go(IDLE, 8)
    assert run.rates[-1] == CAPACITY
    assert run.pace.rate <= 2 * CAPACITY, "a limit that could still be felt"


def test_pace_settles_near_the_knee_and_stays_there() -> None:
    run = Run()
    run.go(LIGHT, 60)
    good = queueing(0, LIGHT) + 2
    assert max(run.latencies) < 2 * good, "not even on the way"
    assert max(run.latencies[10:]) <= good
    assert min(run.rates[10:]) > 0.45 * CAPACITY
    assert max(run.rates[30:]) < 1.05 * min(run.rates[30:])


def test_rise_of_the_load_is_given_way_to_in_seconds() -> None:
    run = Run()
    run.go(LIGHT, 30)
    run.go(HEAVY, 30)
    assert run.latencies[30] == WORST_MS, "what it was about"
    assert max(run.latencies[33:]) < 2 * queueing(0, HEAVY)
    assert mean(run.rates[45:]) > 15 * MIB, "of the 80 that the load leaves"


def test_pace_recovers_gradually_when_the_load_has_gone() -> None:
    run = Run()
    run.go(LIGHT, 30)
    run.go(HEAVY, 30)
    run.go(LIGHT, 60)
    assert mean(run.rates[75:90]) > 0.4 * CAPACITY
    assert max(run.rates[60:64]) < 2 * max(run.rates[56:60])
    assert max(run.latencies[60:]) < 2 * (queueing(0, LIGHT) + 2)


def test_latency_that_does_not_depend_on_us_does_not_hold_us_at_the_floor() -> None:
    slow = [1.0]
    run = Run(lambda rate, load: slow[0])
    run.go(LIGHT, 20)
    assert run.rates[-1] == CAPACITY
    slow[0] = 30.0
    run.go(LIGHT, 30)
    assert run.rates[-1] == CAPACITY
    for number in range(120):  # a device that does something of its own every quarter minute
        slow[0] = 30.0 if number % 15 < 2 else 1.0
        run.go(LIGHT, 1)
    assert mean(run.rates[-120:]) > 0.25 * CAPACITY


def test_load_that_became_slower_by_itself_is_learned() -> None:
    run = Run()
    run.go(LIGHT, 20)
    run.latency = lambda rate, load: 20 * queueing(rate, load)
    run.go(LIGHT, 40)
    assert run.rates[-1] > 0.25 * CAPACITY


def test_baseline_from_a_bad_moment_is_found_out_within_two_minutes() -> None:
    run = Run()
    run.latency = lambda rate, load: 40 * queueing(rate, load)
    run.go(LIGHT, 2)
    run.latency = lambda rate, load: 4 * queueing(max(rate - 20 * MIB, 0) * 1.25, load)
    run.go(LIGHT, 118)
    assert run.latencies[-1] < 2.1 * run.latency(0, LIGHT)


def test_baseline_is_probed_again_for_two_seconds_a_minute_only() -> None:
    run = Run(lambda rate, load: 10.0)
    run.go(LIGHT, 200)
    slow = [number for number, rate in enumerate(run.rates) if rate == FLOOR]
    assert len(slow) == 6
    assert all(rate == CAPACITY for rate in run.rates[20:] if rate != FLOOR)


def test_baseline_that_cannot_matter_is_not_probed_again() -> None:
    run = Run(lambda rate, load: 1.5)
    run.go(LIGHT, 200)
    assert min(run.rates[20:]) == CAPACITY


def test_first_step_after_a_step_back_is_a_small_one() -> None:
    waits = [1.0]
    run = Run(lambda rate, load: waits[0])
    run.go(LIGHT, 20)
    waits[0] = 6.0
    run.go(LIGHT, 1)
    waits[0] = 1.0
    run.go(LIGHT, 20)
    assert run.rates[21] < 0.6 * CAPACITY
    assert run.rates[21] < run.rates[22] <= 1.06 * run.rates[21]
    assert run.rates[-1] == CAPACITY


def test_steps_back_that_helped_raise_no_doubt() -> None:
    waits = [1.0]
    run = Run(lambda rate, load: waits[0])
    for number in range(100):
        waits[0] = 3.5 if number % 5 == 4 else 1.0
        run.go(LIGHT, 1)
    assert min(run.rates) == 8 * MIB, "the first pace; no probe"


def test_window_in_which_no_segment_was_finished_is_no_sign_of_slowness() -> None:
    waits = [1.0]
    run = Run(lambda rate, load: waits[0], able=32 * MIB, segment=64 * MIB)
    run.go(LIGHT, 40)
    assert sorted(run.moved[-2:]) == [0, 64 * MIB]
    waits[0] = 3.5
    run.go(LIGHT, 2)
    assert run.pace.rate > 20 * MIB


def test_writes_that_come_when_we_are_fast_are_measured_at_a_slow_pace_first() -> None:
    run = Run()
    run.go(IDLE, 10)
    run.go(LIGHT, 1)
    assert run.latencies[-1] == WORST_MS
    run.go(LIGHT, 2)
    assert run.rates[-2:] == [FLOOR, FLOOR]
    run.go(LIGHT, 20)
    assert max(run.latencies[-15:]) <= queueing(0, LIGHT) + 2
    assert run.rates[-1] > 0.3 * CAPACITY


def test_probe_ends_when_the_writes_do() -> None:
    run = Run()
    run.go(IDLE, 10)
    run.go(LIGHT, 2)
    run.go(IDLE, 2)
    assert run.rates[-2:] == [FLOOR, CAPACITY]


def test_few_writes_count_too_but_a_single_one_does_not() -> None:
    waits = [1.0]
    run = Run(lambda rate, load: waits[0])
    few = Load(MIB, 2)
    run.go(few, 30)
    assert run.rates[-1] == CAPACITY
    waits[0] = 9.0
    run.go(few, 1)
    waits[0] = 1.0
    run.go(few, 10)
    assert min(run.rates[30:]) == CAPACITY, "two slow writes of eight"
    waits[0] = 50.0
    run.go(few, 4)
    assert run.pace.rate < CAPACITY / 2


def test_slow_destination_does_not_make_the_limit_meaningless() -> None:
    run = Run(able=30 * MIB)
    run.go(LIGHT, 60)
    assert run.pace.rate <= 60 * MIB
    run.go(Load(395 * MIB, 1600), 2)
    assert run.pace.rate < 15 * MIB, "the second step back is felt"


def test_large_segments_at_a_low_rate_do_not_hold_it_there() -> None:
    run = Run(segment=64 * MIB)
    run.go(LIGHT, 120)
    assert run.rates[-1] > 0.3 * CAPACITY


def test_clock_that_stands_still_or_goes_back_changes_nothing() -> None:
    run = Run()
    run.go(LIGHT, 5)
    before = run.pace.rate
    for now in (run.now, run.now - 10):
        assert run.pace.update(now, Bytes(MIB), 100, 10**6) == before


WINDOW = st.tuples(
    st.floats(0, 10), st.integers(0, 1 << 40), st.integers(0, 10**6), st.integers(0, 10**9)
)


@settings(deadline=None)  # a busy machine is no failure
@given(st.lists(WINDOW, max_size=60), st.sampled_from([FLOOR, Bytes(64 * MIB)]))
def test_whatever_happens_never_below_the_floor_and_never_stuck_there(
    windows: list[tuple[float, int, int, int]], floor: Bytes
) -> None:
    run = Run(floor=floor)
    for seconds, moved, writes, milliseconds in windows:
        run.now += seconds
        assert run.pace.update(run.now, Bytes(moved), writes, milliseconds) >= floor
    run.go(Load(0, 200), 150)
    assert max(run.rates[-20:]) > 0.3 * CAPACITY
