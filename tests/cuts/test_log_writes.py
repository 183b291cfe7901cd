"""Every write of a copy is logged, and the power fails after any of them.

Source, destination, journal and COW file are on one disk under dm-log-writes.  Harsher than
`test_power_cut`: what no flush made durable is lost, all of it or some.

DMCOPY_CUTS_MOMENTS in the environment is how many moments of each kind, for a longer soak.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from lab.guest import CUT
from tests.cuts.guest_side import RETIRES_MS
from tests.cuts.logwrites import Replay
from tests.cuts.machine import TALLY, Cut, Machine, Media, live, said
from tests.cuts.recorder import moments, survives
from tests.cuts.verdict import judge

pytestmark = [pytest.mark.cuts, pytest.mark.timeout(1200)]

MOMENTS: Final = int(os.environ.get("DMCOPY_CUTS_MOMENTS", "8"))
# of each kind again, from which a job is resumed, in a boot of its own
RESUMED: Final = int(os.environ.get("DMCOPY_CUTS_MOMENTS", "2"))
_SHARES: Final = (0.0, 0.5, 1.0)  # of the volatile cache that is there after all
_CAUGHT_UP: Final = 1.0  # seconds; the log is written behind what it logs
_LOG_SIZE: Final = 1 << 30  # bytes; the file has holes


class Recorded(NamedTuple):
    """A copy that went to its end on one disk, and all that it wrote."""

    before: Path  # the disk before it
    log: Path
    share: Path


@pytest.fixture(scope="module")
def recorded(place: Path, media: Media) -> Iterator[Recorded]:
    """Record a copy, once."""
    with _recorded(place / "recorded", media) as recorded:
        yield recorded


@pytest.fixture(scope="module")
def recorded_whole(place: Path, media: Media) -> Iterator[Recorded]:
    """The same, without retiring: the kernel's snapshot is the image at every moment."""
    with _recorded(place / "recorded-whole", media, "--copy-options=--no-retire") as recorded:
        yield recorded


@contextmanager
def _recorded(folder: Path, media: Media, *words: str) -> Iterator[Recorded]:
    share = folder / "share"
    share.mkdir(parents=True)
    before = media.joined(folder / "before")
    disk = Path(shutil.copyfile(before, folder / "disk"))
    log = folder / "log"
    with log.open("wb") as file:
        file.truncate(_LOG_SIZE)
    result = live("recorder", "record", *words, disks=[disk, log], share=share)
    assert result.status == 0, said(result)
    assert (share / "ended").read_text() == "0"
    yield Recorded(before, log, share)
    shutil.rmtree(folder)


def test_snapshot_is_the_image_whatever_of_the_cache_is_lost(
    recorded_whole: Recorded, folder: Path
) -> None:
    recorded = recorded_whole
    disk = Path(shutil.copyfile(recorded.before, folder / "disk"))
    words = ("replay", "--flushes", str(MOMENTS), "--others", str(MOMENTS), "--seed", str(MOMENTS))
    result = live("recorder", *words, disks=[disk, recorded.log], share=recorded.share)
    assert result.status == 0, said(result)
    found = json.loads((recorded.share / "moments").read_text())
    TALLY.replayed += len(found)
    assert len(found) > MOMENTS
    assert [moment for moment in found if moment["image"]["wrong"]] == []
    # else the comparison would have been with the finished copy only
    assert sum(moment["image"]["where"] == "snapshot" for moment in found) > MOMENTS // 2


def test_job_is_resumed_whatever_of_the_cache_is_lost(recorded: Recorded, folder: Path) -> None:
    chance = random.Random(RESUMED)
    disk = Path(shutil.copyfile(recorded.before, folder / "disk"))
    verdicts = []
    with recorded.log.open("rb") as log, disk.open("r+b") as image:
        replay = Replay(log.fileno(), image.fileno())
        counts = moments(replay.entries, RESUMED, RESUMED, chance)
        for number, count in enumerate(counts):
            share = _SHARES[number % len(_SHARES)]
            replay.to(count, partial(survives, chance, share))
            machine = Machine(folder / str(number), [disk], runs="recorder")
            shutil.copyfile(recorded.share / "witness", machine.share / "witness")
            machine.story.append(
                f"{count} of {len(replay.entries)} entries, and {share} of the cache"
            )
            verdicts.append(judge(machine, machine.again()))
            TALLY.replayed += 1
            machine.discard()
    assert verdicts.count("right") > len(verdicts) // 2
    assert len(verdicts) > RESUMED


def test_what_was_written_before_begin_time_is_durable_when_the_job_has_begun(
    folder: Path, machine: Machine
) -> None:
    """The source's disk loses its cache; the application had flushed nothing itself."""
    _lose_the_cache(folder, machine, "source", machine.source, cut=machine.after_ready(1))
    found = machine.again("--how", "snapshot")
    assert found["image"] == {"wrong": [], "where": "snapshot"}, machine.tell()


def test_batch_is_durable_at_the_destination_before_it_is_on_record(
    folder: Path, machine: Machine
) -> None:
    """The destination's disk loses its cache right after a batch came into the journal."""
    before = machine.destination.read_bytes()
    cut = machine.when_asked(behind=_CAUGHT_UP)
    words = ("--blow", "commit#3")
    _lose_the_cache(folder, machine, "target", machine.destination, *words, cut=cut)
    assert machine.destination.read_bytes() != before, "nothing was made durable"
    assert judge(machine, machine.again("--how", "resume")) == "right"


@pytest.mark.parametrize("transition", ["retire#4"])
def test_what_is_retired_is_durable_at_the_destination(
    folder: Path, machine: Machine, transition: str
) -> None:
    """Its disk loses its cache when writes have gone into what is retired."""
    cut = machine.when_asked(behind=_CAUGHT_UP)
    words = ("--blow", transition, "--write-ms", str(RETIRES_MS))
    _lose_the_cache(folder, machine, "target", machine.destination, *words, cut=cut)
    assert judge(machine, machine.again("--how", "resume")) == "right"


def test_retire_before_the_destination_is_durable_broken_gives_a_wrong_image(
    folder: Path, machine: Machine
) -> None:
    cut = machine.when_asked(behind=_CAUGHT_UP)
    words = ("--blow", "retire#4", "--broken", "destination", "--write-ms", str(RETIRES_MS))
    _lose_the_cache(folder, machine, "target", machine.destination, *words, cut=cut)
    found = machine.again("--how", "resume")
    # nobody has what was there any more: reading it back is all that is left to notice it
    assert found["exit_status"] == 1, machine.tell()
    assert "digest" in found["said"], machine.tell()
    assert machine.destination.read_bytes() != machine.witness


def _lose_the_cache(
    folder: Path, machine: Machine, what: str, disk: Path, *words: str, cut: Cut
) -> None:
    """Copy until *cut*; then *disk* holds what flushes made durable, and nothing else."""
    log, durable = folder / "log", folder / "durable"
    with log.open("wb") as file:
        file.truncate(_LOG_SIZE)
    shutil.copyfile(disk, durable)
    disks = [*machine.disks, log]
    result = live("recorder", "begin", what, *words, disks=disks, share=machine.share, cut=cut)
    assert result.status == CUT, said(result)
    with log.open("rb") as entries, durable.open("r+b") as image:
        replayed = Replay(entries.fileno(), image.fileno(), cut=True)
        replayed.to(len(replayed.entries), lambda _: False)
    shutil.copyfile(durable, disk)
