"""The data is right or the job says that it is lost, and no write is ever stuck.

Killed at random, short of processes and memory, with a full or read-only state directory, under
a clock that jumps, or two at a time.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Final

import pytest

from tests.lab.scene import Scene, scene
from tests.lab.torture import TALLY, Torture

pytestmark = [pytest.mark.lab, pytest.mark.timeout(240)]

KILLS: Final = int(os.environ.get("DMCOPY_KILLS", "60"))
SEED: Final = int(os.environ.get("DMCOPY_KILLS_SEED", "0")) or time.time_ns() % 1_000_000


@pytest.fixture
def at() -> Iterator[Scene]:
    with scene("torture") as here:
        yield here


@pytest.mark.timeout(120 + 5 * KILLS)
def test_killed_at_random_it_is_right_or_says_that_it_is_lost(at: Scene) -> None:
    print(f"DMCOPY_KILLS_SEED={SEED}")
    torture = Torture(at, SEED, TALLY)
    while TALLY.kills < KILLS:
        with torture.load():
            load_ends = time.monotonic() + 100
            while TALLY.kills < KILLS and time.monotonic() < load_ends:
                torture.copy()
                print(f"{time.monotonic():.1f} {TALLY}")
    assert TALLY.kills >= KILLS
    assert TALLY.images >= KILLS // 10
    assert (TALLY.wrong, TALLY.stuck) == (0, 0)
