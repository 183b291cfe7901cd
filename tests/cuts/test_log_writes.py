"""Every write of a copy is logged, and the power fails after any of them.

Source, destination, journal and COW file are on one disk under dm-log-writes.  Harsher than
`test_power_cut`: what no flush made durable is lost, all of it or some.

DMCOPY_CUTS_MOMENTS in the environment is how many moments of each kind, for a longer soak.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Final

import pytest

from lab.guest import CUT
from tests.cuts.logwrites import Replay
from tests.cuts.machine import TALLY, Machine, Media, live, said

pytestmark = [pytest.mark.cuts, pytest.mark.timeout(1200)]

MOMENTS: Final = int(os.environ.get("DMCOPY_CUTS_MOMENTS", "12"))
_LOG_SIZE: Final = 1 << 30  # bytes; the file has holes


def test_snapshot_is_the_image_whatever_of_the_cache_is_lost(folder: Path, media: Media) -> None:
    share = folder / "share"
    share.mkdir()
    disk = media.joined(folder / "disk")
    before = Path(shutil.copyfile(disk, folder / "before"))
    log = folder / "log"
    with log.open("wb") as file:
        file.truncate(_LOG_SIZE)
    result = live("recorder", "record", disks=[disk, log], share=share)
    assert result.status == 0, said(result)
    assert (share / "ended").read_text() == "0"
    words = ("replay", "--flushes", str(MOMENTS), "--others", str(MOMENTS), "--seed", str(MOMENTS))
    result = live("recorder", *words, disks=[before, log], share=share)
    assert result.status == 0, said(result)
    moments = json.loads((share / "moments").read_text())
    TALLY.replayed += len(moments)
    assert len(moments) > MOMENTS
    assert [moment for moment in moments if moment["image"]["wrong"]] == []
    # else the comparison would have been with the finished copy only
    assert sum(moment["image"]["where"] == "snapshot" for moment in moments) > MOMENTS // 2


def test_what_was_written_before_begin_time_is_durable_when_the_job_has_begun(
    folder: Path, machine: Machine
) -> None:
    """The source's disk loses its cache; the application had flushed nothing itself."""
    log, durable = folder / "log", folder / "durable"
    with log.open("wb") as file:
        file.truncate(_LOG_SIZE)
    shutil.copyfile(machine.source, durable)
    disks = [*machine.disks, log]
    result = live("recorder", "begin", disks=disks, share=machine.share, cut=machine.after_ready(1))
    assert result.status == CUT, said(result)
    with log.open("rb") as entries, durable.open("r+b") as image:
        replayed = Replay(entries.fileno(), image.fileno(), cut=True)
        replayed.to(len(replayed.entries), lambda _: False)
    shutil.copyfile(durable, machine.source)
    found = machine.again("--how", "snapshot")
    assert found["image"] == {"wrong": [], "where": "snapshot"}, machine.tell()
