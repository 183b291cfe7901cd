"""The power fails, at any moment: the image is right, or the job says that it is lost.

There is no third way.  After a cut the job is taken up again in each of `HOWS`: "snapshot" asks
nothing of dmcopy, it has the kernel put its snapshot together again from what the COW file and
the source hold, and compares that with the witness; "resume" is ``dmcopy resume``, whose
destination is compared.

DMCOPY_CUTS in the environment is the number of random cuts, for a longer soak; DMCOPY_CUTS_SEED
is the first one's seed.
"""

from __future__ import annotations

import json
import os
import random
from typing import Any, Final

import pytest

from lab.guest import CUT
from tests.cuts.guest_side import CHUNK, SLOW_MS
from tests.cuts.layout import SIZE
from tests.cuts.machine import TALLY, Machine

pytestmark = [pytest.mark.cuts, pytest.mark.timeout(600)]

HOWS: Final = ("snapshot", "resume")
CYCLES: Final = int(os.environ.get("DMCOPY_CUTS", "8"))
FIRST: Final = int(os.environ.get("DMCOPY_CUTS_SEED", "1"))
COPY_SECONDS: Final = 5.0  # from the witness to the end of the job, and a little more

_COMMITS: Final = ("commit", "commit#2", "commit#7")

# Before the begin time is recorded the job may be lost; from then on it must not be.
BEFORE: Final = ("define", "may_leave", "intend", "intend#7", "set_facts")
BEGUN: Final = ("note begun", "move begun", "move copying", "note progress", *_COMMITS)
COPIED: Final = ("move copied", "move verified", "forget_leftovers", "note ended", "move ended")

Found = dict[str, Any]  # Any: JSON


def judge(machine: Machine, found: Found) -> str:
    """Give "right" or "lost"; a wrong image that nobody said is lost fails the test.

    Only a job whose begin time was never recorded may be lost.
    """
    before, after, image = found["before"], found["after"], found["image"]
    TALLY.wrong += bool(image and image["wrong"])
    assert not (image and image["wrong"]), machine.tell()
    assert found["table_is_back"], machine.tell()
    assert found["left"] == [], machine.tell()
    assert found.get("rescue_status", 0) == 0, machine.tell()
    assert before["devices"] == [], "no device outlives a power cut"
    assert before["dead"] is (before["state"] != "ended" or found["cow_before"]), machine.tell()
    assert after is not None, machine.tell()
    assert after["dead"] is False, machine.tell()
    if image is not None:
        TALLY.right += 1
        return "right"
    assert before["state"] == "defined", machine.tell()
    assert after["state"] == "failed", machine.tell()
    TALLY.lost += 1
    return "lost"


def take_up(machine: Machine, how: str, *, chance: random.Random, blow: str | None = None) -> Found:
    """Take the job up again, to its end; with "resume" the power fails on the way again.

    Up to three times anywhere, or once after transition *blow* if there is one again.
    """
    if how == "resume":
        cuts = (
            [machine.when_asked()]
            if blow
            else [
                machine.after_ready(chance.uniform(0, COPY_SECONDS))
                for _ in range(chance.randrange(4))
            ]
        )
        words = ("--blow", blow) if blow else ()
        for cut in cuts:
            result = machine.boot(
                "again", "--how", how, "--write-ms", str(SLOW_MS), *words, cut=cut
            )
            if result.status != CUT:  # it was quicker
                assert result.status == 0, machine.tell(result)
                found: Found = json.loads(machine.read("found"))
                return found
    return machine.again("--how", how)


def test_copy_that_is_not_cut_is_right(machine: Machine) -> None:
    result = machine.boot("begin", "--to-the-end")
    assert result.status == 0, machine.tell(result)
    assert machine.read("ended") == "0"
    assert machine.destination.read_bytes() == machine.witness
    events = [json.loads(line)["event"] for line in machine.read("events").splitlines()]
    assert events[-2:] == ["verified", "ended"]
    assert {*BEFORE, *BEGUN, *COPIED} <= {*machine.transitions}, "each is met on the way"


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("seed", range(FIRST, FIRST + CYCLES))
def test_cut_at_any_moment_of_the_copy(machine: Machine, seed: int, how: str) -> None:
    chance = random.Random(seed)
    machine.begin(cut=machine.after_ready(chance.uniform(0, COPY_SECONDS)))
    assert judge(machine, take_up(machine, how, chance=chance)) == "right"


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("transition", [*BEGUN, *COPIED])
def test_cut_after_a_transition_of_the_journal(machine: Machine, transition: str, how: str) -> None:
    slow = str(0 if transition in COPIED else SLOW_MS)
    machine.begin("--blow", transition, "--write-ms", slow, cut=machine.when_asked())
    assert machine.read("cut-now").strip() == transition
    found = take_up(machine, how, chance=random.Random(transition), blow=transition)
    assert judge(machine, found) == "right"


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("transition", BEFORE)
def test_cut_before_begin_time_is_no_job_to_go_on_with(
    machine: Machine, transition: str, how: str
) -> None:
    machine.begin("--blow", transition, cut=machine.when_asked())
    assert machine.read("cut-now").strip() == transition
    found = machine.again("--how", how)
    # the kernel's snapshot may be there already, but the journal does not know of it
    is_there = how == "snapshot" and machine.has("witness")
    assert judge(machine, found) == ("right" if is_there else "lost")
    if how == "resume":
        assert found["exit_status"] in (3, 4), machine.tell()
        assert found["said"].startswith("dmcopy: "), machine.tell()


def test_lost_job_can_be_copied_anew(machine: Machine) -> None:
    machine.begin("--blow", "intend#7", cut=machine.when_asked())
    assert judge(machine, machine.again("--how", "snapshot")) == "lost"
    result = machine.boot("begin", "--to-the-end", "--write-ms", "0")
    assert (result.status, machine.read("ended")) == (0, "0"), machine.tell(result)
    assert machine.destination.read_bytes() == machine.witness


@pytest.mark.parametrize("how", HOWS)
def test_source_written_between_the_boots_is_noticed(machine: Machine, how: str) -> None:
    """dmcopy must say that the point in time is lost; the comparison must see a wrong image."""
    machine.begin(cut=machine.after_ready(0.2))
    with machine.source.open("r+b") as disk:
        for offset in range(0, SIZE, CHUNK):
            disk.seek(offset + CHUNK // 2)
            disk.write(b"touched by the host")
    found = machine.again("--how", how, "--touch")
    if how == "resume":
        assert (found["exit_status"], found["image"]) == (4, None), machine.tell()
    else:
        assert found["image"]["wrong"], machine.tell()
