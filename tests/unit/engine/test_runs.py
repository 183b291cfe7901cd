"""Runs: what was copied in one go, with the digest of exactly that."""

from __future__ import annotations

import hashlib
import random

import pytest

from dmcopy.core.extent import Extent
from dmcopy.engine import runs as runs_module
from dmcopy.engine.runs import Run, Runs
from dmcopy.units import Sectors
from tests.unit.engine.fakes import content, digest_of

LENGTH = 640
DATA = content(LENGTH)


def at(start: int, length: int = 8) -> Extent:
    return Extent(Sectors(start), Sectors(length))


def add(runs: Runs, *extents: Extent) -> None:
    for one in extents:
        runs.add(one, memoryview(DATA)[one.offset : one.offset + one.size])


def run(start: int, length: int) -> Run:
    one = at(start, length)
    return Run(one, digest_of(DATA[one.offset : one.offset + one.size]))


def test_copy_in_order_is_one_run_that_grows() -> None:
    runs = Runs(hashlib.sha256)
    add(runs, at(0), at(8))
    assert runs.changed() == [run(0, 16)]
    assert runs.changed() == [], "nothing is new"
    add(runs, at(16))
    assert runs.changed() == [run(0, 24)]


def test_jump_begins_a_new_run_and_the_old_one_goes_on_later() -> None:
    runs = Runs(hashlib.sha256)
    add(runs, at(0), at(80), at(88), at(8))
    assert sorted(runs.changed()) == [run(0, 16), run(80, 16)]


def test_without_a_digest_the_extents_are_kept() -> None:
    runs = Runs(lambda: None)
    add(runs, at(0), at(8))
    assert runs.changed() == [Run(at(0, 16), None)]


def test_random_order_covers_everything_with_right_digests_and_bounded_hashes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    order = [at(start) for start in range(0, LENGTH, 8)]
    random.Random(5).shuffle(order)
    monkeypatch.setattr(runs_module, "_MOST_OPEN", 4)
    runs = Runs(hashlib.sha256)
    found: dict[int, Run] = {}
    for one in order:
        add(runs, one)
        assert len(runs._open) <= 4
        found |= {new_run.extent.start: new_run for new_run in runs.changed()}
    assert sum(one.extent.length for one in found.values()) == LENGTH
    assert all(one == run(one.extent.start, one.extent.length) for one in found.values())
