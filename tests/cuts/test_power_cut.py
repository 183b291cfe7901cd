"""The power fails, at any moment: the image is right, or the job says that it is lost.

There is no third way.  After a cut the job is taken up again: by ``dmcopy resume``, whose
destination is compared, or as "snapshot", which asks nothing of dmcopy: it has the kernel put its
snapshot together again from what the COW file and the source hold.

DMCOPY_CUTS in the environment is the number of random cuts, for a longer soak; DMCOPY_CUTS_SEED
is the first one's seed.
"""

from __future__ import annotations

import json
import os
import random
from typing import Final

import pytest

from lab.guest import CUT
from tests.cuts.guest_side import CHUNK, RETIRES_MS, SLOW_MS
from tests.cuts.layout import SIZE
from tests.cuts.machine import Machine
from tests.cuts.verdict import Found, judge

pytestmark = [pytest.mark.cuts, pytest.mark.timeout(600)]

SEEDS: Final = int(os.environ.get("DMCOPY_CUTS", "1"))
FIRST: Final = int(os.environ.get("DMCOPY_CUTS_SEED", "1"))
# the snapshot alone takes fewer: it is there in every resume as well
CYCLES: Final = [("resume", FIRST + n) for n in range(SEEDS)] + [
    ("snapshot", FIRST + SEEDS + n) for n in range(max(SEEDS // 2, 1))
]
COPY_SECONDS: Final = 3.5  # from the witness to the end of the job, and a little more

# Before the begin time is recorded the job may be lost; from then on it must not be.
BEFORE: Final = ("intend#8",)
BEGUN: Final = ("note begun", "commit")
COPIED: Final = ("move copied",)
# of a job that is paused, and resumed in the same boot
STEERED: Final = ("move paused",)
# of one that is resumed after a boot
RESUMED: Final = ("intend#7",)
# where the COW device is about to be full, and where it is
BRAKED: Final = ("retire#3",)

HOLD: Final = ("--burst", "0.01", "--copy-options=--cow 4m --on-full hold --no-retire")
GROW: Final = ("--burst", "0.01", "--copy-options=--cow 4m --cow-max 64m --no-retire")
OVERFLOW: Final = ("--burst", "0", "--copy-options=--cow 2m --no-retire")
# the kernel's snapshot is the image for as long as nothing is retired
WHOLE: Final = ("--copy-options=--no-retire",)
# so slow that each batch is retired as soon as it is copied: on a fast disk several go at once
SLOWLY: Final = ("--write-ms", str(RETIRES_MS))
GATE: Final = ("--copy-options=--gate segment",)
HOT: Final = ("--copy-options=--order hot",)
FULL: Final = "whether it overflowed cannot be known|the kernel marked it invalid"


def take_up(machine: Machine, *, chance: random.Random) -> Found:
    """Resume the job, to its end; up to twice the power fails on the way again."""
    for _ in range(chance.randrange(3)):
        cut = machine.after_ready(chance.uniform(0, COPY_SECONDS))
        result = machine.boot("again", "--how", "resume", "--write-ms", str(SLOW_MS), cut=cut)
        if result.status != CUT:  # it was quicker
            assert result.status == 0, machine.tell(result)
            found: Found = json.loads(machine.read("found"))
            return found
    return machine.again("--how", "resume")


def test_copy_that_is_not_cut_is_right(machine: Machine) -> None:
    result = machine.boot("begin", "--to-the-end")
    assert result.status == 0, machine.tell(result)
    assert machine.read("ended") == "0"
    assert machine.destination.read_bytes() == machine.witness
    events = [json.loads(line)["event"] for line in machine.read("events").splitlines()]
    assert events[-2:] == ["verified", "ended"]
    assert {*BEFORE, *BEGUN, *COPIED} <= {*machine.transitions}, "each is met on the way"


@pytest.mark.parametrize(("how", "seed"), CYCLES)
def test_cut_at_any_moment_of_the_copy(machine: Machine, seed: int, how: str) -> None:
    chance = random.Random(seed)
    resumed = how == "resume"
    words = () if resumed else WHOLE
    machine.begin(*words, cut=machine.after_ready(chance.uniform(0, COPY_SECONDS)))
    found = take_up(machine, chance=chance) if resumed else machine.again("--how", how)
    assert judge(machine, found) == "right"


@pytest.mark.parametrize("seed", range(FIRST, FIRST + max(SEEDS // 2, 1)))
@pytest.mark.parametrize("words", [GATE, HOT], ids=["gate", "hot"])
def test_cut_at_any_moment_of_a_copy_with_gate_or_order(
    machine: Machine, words: tuple[str, ...], seed: int
) -> None:
    chance = random.Random(100 + seed)
    machine.begin(*words, cut=machine.after_ready(chance.uniform(0, COPY_SECONDS)))
    assert judge(machine, take_up(machine, chance=chance)) == "right"


def cut_after(machine: Machine, transition: str, *words: str, behind: float = 0.0) -> None:
    """Begin a copy and cut the power after a transition of its journal, *behind* seconds later."""
    machine.begin("--blow", transition, *words, cut=machine.when_asked(behind=behind))
    assert machine.read("cut-now").strip() == transition


@pytest.mark.parametrize("transition", BEGUN)
def test_cut_after_a_transition_of_the_journal(machine: Machine, transition: str) -> None:
    cut_after(machine, transition)
    assert judge(machine, machine.again("--how", "resume")) == "right"


@pytest.mark.parametrize(
    ("transition", "words"),
    [("retire#2", GATE)],
)
def test_cut_when_writes_have_gone_into_what_is_retired(
    machine: Machine, transition: str, words: tuple[str, ...]
) -> None:
    cut_after(machine, transition, *words, *SLOWLY, behind=1.0)
    assert judge(machine, machine.again("--how", "resume")) == "right"


def test_retire_before_the_journal_broken_gives_a_wrong_image(machine: Machine) -> None:
    cut_after(machine, "retire#4", "--broken", "journal", *SLOWLY, behind=1.0)
    found = machine.again("--how", "resume")
    assert found["exit_status"] == 0, "nobody notices: " + machine.tell()
    assert found["image"]["wrong"], machine.tell()


@pytest.mark.parametrize("transition", COPIED)
def test_cut_after_a_transition_at_the_end(machine: Machine, transition: str) -> None:
    cut_after(machine, transition, "--write-ms", "0")
    assert judge(machine, machine.again("--how", "resume")) == "right"


@pytest.mark.parametrize("transition", STEERED)
def test_cut_after_a_transition_of_a_job_that_is_told_something(
    machine: Machine, transition: str
) -> None:
    cut_after(machine, transition, "--steer")
    assert judge(machine, machine.again("--how", "resume")) == "right"


@pytest.mark.parametrize("transition", RESUMED)
def test_cut_after_a_transition_of_a_resumed_job(machine: Machine, transition: str) -> None:
    cut_after(machine, "commit#2")
    words = ("--how", "resume", "--blow", transition)
    result = machine.boot("again", *words, cut=machine.when_asked())
    assert (result.status, machine.read("cut-now").strip()) == (CUT, transition), machine.tell()
    assert judge(machine, machine.again("--how", "resume")) == "right"


@pytest.mark.parametrize("transition", BEFORE)
def test_cut_before_begin_time_is_no_job_to_go_on_with(machine: Machine, transition: str) -> None:
    cut_after(machine, transition)
    found = machine.again("--how", "resume")
    assert judge(machine, found) == "lost"
    assert found["exit_status"] in (3, 4), machine.tell()
    assert found["said"].startswith("dmcopy: "), machine.tell()


# a COW device that fills


@pytest.mark.parametrize("transition", BRAKED)
def test_cut_while_writers_are_held(machine: Machine, transition: str) -> None:
    """So little was free that nobody can say whether it was enough, where the kernel does not."""
    cut_after(machine, transition, *HOLD)
    found = machine.again("--how", "resume")
    assert judge(machine, found, reason=FULL) == "lost"
    assert found["exit_status"] == 4, machine.tell()


@pytest.mark.parametrize("seed", range(FIRST, FIRST + max(SEEDS // 4, 1)))
@pytest.mark.parametrize("words", [GROW], ids=["grow"])
def test_cut_at_any_moment_of_a_copy_whose_cow_device_fills(
    machine: Machine, words: tuple[str, ...], seed: int
) -> None:
    cut = machine.after_ready(random.Random(seed).uniform(0, COPY_SECONDS))
    machine.begin(*words, cut=cut)
    judge(machine, machine.again("--how", "resume"), reason=FULL)


def test_cow_device_that_has_grown_is_trusted(machine: Machine) -> None:
    cut_after(machine, "log", *GROW)
    found = machine.again("--how", "resume")
    assert judge(machine, found) == "right"


def test_room_that_the_kernel_was_not_yet_given_is_not_counted(machine: Machine) -> None:
    """A file is made longer first; had the power failed then, it might have been full before."""
    cut_after(machine, "move copying", *GROW)
    found = machine.again("--how", "resume", "--stretch")
    assert judge(machine, found, reason=FULL) == "lost"


def test_job_that_was_lost_stays_lost(machine: Machine) -> None:
    cut_after(machine, "lost", *OVERFLOW)
    found = machine.again("--how", "resume")
    assert judge(machine, found, reason="the snapshot is no longer valid") == "lost"
    assert found["exit_status"] == 4, machine.tell()


def test_lost_job_can_be_copied_anew(machine: Machine) -> None:
    cut_after(machine, "intend#7", *WHOLE)
    assert judge(machine, machine.again("--how", "snapshot")) == "lost"
    result = machine.boot("begin", "--to-the-end", "--write-ms", "0")
    assert (result.status, machine.read("ended")) == (0, "0"), machine.tell(result)
    assert machine.destination.read_bytes() == machine.witness


@pytest.mark.parametrize("how", ["snapshot", "resume"])
def test_source_written_between_the_boots_is_noticed(machine: Machine, how: str) -> None:
    """dmcopy must say that the point in time is lost; the comparison must see a wrong image."""
    machine.begin(*WHOLE, cut=machine.after_ready(0.2))
    with machine.source.open("r+b") as disk:
        for offset in range(0, SIZE, CHUNK):
            disk.seek(offset + CHUNK // 2)
            disk.write(b"touched by the host")
    found = machine.again("--how", how, "--touch")
    if how == "resume":
        assert (found["exit_status"], found["image"]) == (4, None), machine.tell()
    else:
        assert found["image"]["wrong"], machine.tell()


# logical volumes: LVM puts its snapshot under the volume again, before anybody can write

LVM: Final = ("--lvm", "--copy-options=--cow 24m")
LVM_DISK: Final = 64 << 20


@pytest.mark.parametrize("transition", ["note begun", "retire#2"])
def test_cut_copy_of_a_volume_goes_on_after_the_boot(machine: Machine, transition: str) -> None:
    os.truncate(machine.source, LVM_DISK)
    cut_after(machine, transition, *LVM, behind=0.3)
    found = machine.again("--how", "resume", "--lvm")
    assert judge(machine, found, by_lvm=True) == "right"


def test_cut_copy_of_a_volume_whose_store_was_nearly_full_is_said_to_be_lost(
    machine: Machine,
) -> None:
    os.truncate(machine.source, LVM_DISK)
    small = "--copy-options=--cow 4m --no-retire"
    cut_after(machine, "note begun", "--lvm", small, behind=0.3)
    found = machine.again("--how", "resume", "--lvm")
    assert judge(machine, found, by_lvm=True, reason=f"{FULL}|no longer valid") == "lost"
