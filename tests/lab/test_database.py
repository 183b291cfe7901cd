"""A real database, its data and its WAL on two volumes, copied at one instant again and again.

Each copy is brought up and recovers; the sums of pgbench agree, pg_amcheck finds nothing, every
commit that was acknowledged before the begin time is there, and none that was submitted after it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Final

import pytest

from tests.lab import harness
from tests.lab.postgres import Postgres
from tests.lab.scene import Scene, scene
from tests.lab.volumes import Volumes, differences

pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]

DATA, WAL = 80, 40  # MiB


@pytest.fixture
def at() -> Iterator[Scene]:
    with scene("db") as made:
        yield made


def two(at: Scene, kind: str) -> tuple[Volumes | None, str, str]:
    """Give the volumes of data and WAL, and the group that LVs are in."""
    if kind == "dm":  # what is under a wrap or in a partition: no LVM at all
        return None, at.stage.linear(at.stage.disk(DATA)), wrapped_md(at, WAL)
    volumes = Volumes(at.stage, mib=160)
    data = volumes.lv("data", mib=DATA)
    return volumes, data, volumes.lv("wal", mib=WAL) if kind == "lv" else wrapped_md(at, WAL)


def wrapped_md(at: Scene, mib: int) -> str:
    """Give what ``dmcopy wrap`` lays over an md array: a linear device."""
    return at.stage.linear(at.stage.md(at.stage.disk(mib), at.stage.disk(mib)))


# 20 begin times in all, each a database brought up and proved
ROUNDS: Final = int(os.environ.get("DMCOPY_DATABASE_ROUNDS", "5"))


def copy(at: Scene, data: str, wal: str, *, name: str, together: bool = True) -> tuple[int, int]:
    """Copy both volumes; give between which times the instant is (of the earlier to the later)."""
    images = [f"image:{at.folder}/data.img", f"image:{at.folder}/wal.img"]
    for path in ("data.img", "wal.img"):
        (at.folder / path).unlink(missing_ok=True)
    rounds: list[tuple[str, ...]]
    if together:
        pairs = ("--pair", data, images[0], "--pair", wal, images[1])
        rounds = [("copy", *pairs, "--name", name)]
    else:
        pairs_alone = list(zip((data, wal), images, strict=True))
        rounds = [("copy", *pair, "--name", f"{name}-{n}") for n, pair in enumerate(pairs_alone)]
    times: list[int] = []
    for words in rounds:
        ran = at.run(*words, "--json", timeout=240)
        assert ran.status == 0, ran
        begun = ran.event("begun")
        t0 = harness.nanoseconds(begun["begin_time"])
        times += [t0, t0 + round(max(begun["hold_seconds"]) * 1e9)]
    return min(times), max(times)


@pytest.mark.parametrize(("kind", "rounds"), [("lv", ROUNDS), ("md", ROUNDS), ("dm", 2 * ROUNDS)])
def test_database_on_two_volumes_recovers_from_each_copy(at: Scene, kind: str, rounds: int) -> None:
    volumes, data, wal = two(at, kind)
    postgres = Postgres(at.stage, at.stage.filesystem(data), at.stage.filesystem(wal))
    postgres.create()
    before = volumes.picture() if volumes is not None else {}
    safe = later = 0
    with postgres.running(), postgres.loaded():
        for number in range(rounds):
            start = time.monotonic()
            t0, t1 = copy(at, data, wal, name=f"round{number}")
            took = time.monotonic() - start
            held = (t1 - t0) / 1e6
            copied = postgres.bring_up(f"{at.folder}/data.img", f"{at.folder}/wal.img")
            safe, after = postgres.prove(copied, t0, t1)
            later += after
            print(f"{kind} {number}: {safe} before, {after} after, {held:.1f} ms, {took:.1f} s")
            assert number == 0 or safe > 0
    assert later > 0
    assert volumes is None or differences(before, volumes.picture()) == []


def test_volumes_copied_one_after_the_other_broken_are_no_database(at: Scene) -> None:
    """Without one instant for both: the data is of another moment than its WAL."""
    _, data, wal = two(at, "dm")
    postgres = Postgres(at.stage, at.stage.filesystem(data), at.stage.filesystem(wal))
    postgres.create()
    with postgres.running(), postgres.loaded():
        for number in range(5):
            # the WAL first: what the data was told to hold since is nowhere
            _, t1 = copy(at, wal, data, name=f"broken{number}", together=False)
            os.rename(at.folder / "data.img", at.folder / "w")
            os.rename(at.folder / "wal.img", at.folder / "data.img")
            os.rename(at.folder / "w", at.folder / "wal.img")
            postgres.sql("CHECKPOINT")
            try:
                copied = postgres.bring_up(f"{at.folder}/data.img", f"{at.folder}/wal.img")
                postgres.prove(copied, t1, t1)
            except AssertionError as exc:
                print(f"round {number}: {str(exc)[:300]}")
                return
    raise AssertionError("nothing told the difference")
