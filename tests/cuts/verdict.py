"""What becomes of a job after a power cut: the image is right, or the job says that it is lost."""

from __future__ import annotations

import re
from typing import Any

from tests.cuts.machine import TALLY, Machine

Found = dict[str, Any]  # Any: JSON; what guest_side.again tells


def judge(
    machine: Machine, found: Found, *, reason: str | None = None, by_lvm: bool = False
) -> str:
    """Give "right" or "lost"; a wrong image that nobody said is lost fails the test.

    Only a job whose begin time was never recorded may be lost, or one of which was said that it
    is, for that *reason* (a regular expression).  *by_lvm*: LVM brought its snapshot back.
    """
    before, after, image = found["before"], found["after"], found["image"]
    TALLY.wrong += bool(image and image["wrong"])
    assert not (image and image["wrong"]), machine.tell()
    assert found["table_is_back"], machine.tell()
    assert found["left"] == [], machine.tell()
    assert found.get("rescue_status", 0) == 0, machine.tell()
    assert by_lvm or before["devices"] == [], "no device outlives a power cut"
    assert before["dead"] is (before["state"] != "ended" or found["cow_before"]), machine.tell()
    assert after is not None, machine.tell()
    assert after["dead"] is False, machine.tell()
    if image is not None:
        TALLY.right += 1
        return "right"
    if before["begun"] is not None:
        assert reason is not None, machine.tell()
        assert re.search(reason, found["said"]), machine.tell()
    assert after["state"] == "failed", machine.tell()
    TALLY.lost += 1
    return "lost"
