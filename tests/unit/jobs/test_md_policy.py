"""What is done about what an array does."""

from __future__ import annotations

import pytest

from dmcopy.errors import Refused
from dmcopy.jobs import md_policy
from dmcopy.kernel.md import Array
from dmcopy.units import Bytes


def array(**words: object) -> Array:
    known: dict[str, object] = {
        "devno": "9:0", "name": "md0", "uuid": "u", "level": "raid5", "disks": 4, "degraded": 0,
        "state": "active", "action": "idle", "last_action": "none", "resync_due": False,
        "mismatches": 0, "done": None, "total": None, "stripe": Bytes(0),
    }  # fmt: skip
    return Array(**(known | words))  # type: ignore[arg-type]  # they are what they must be


@pytest.mark.parametrize("policy", ["wait", "pause", "ignore"])
def test_what_was_asked_for_is_done(policy: str) -> None:
    for action in ("resync", "recover", "check", "repair"):
        assert md_policy.treatment(policy, array(action=action)) == policy
    for action in ("idle", "frozen"):
        assert md_policy.treatment(policy, array(action=action)) == ""


@pytest.mark.parametrize(
    ("level", "action", "does"),
    [
        ("raid1", "resync", "wait"),
        ("raid10", "repair", "wait"),
        ("raid1", "recover", "ignore"),
        ("raid10", "check", "ignore"),
        ("raid5", "resync", "ignore"),
        ("raid6", "repair", "ignore"),
    ],
)
def test_by_itself_it_waits_only_where_members_may_differ(
    level: str, action: str, does: str
) -> None:
    assert md_policy.treatment("auto", array(level=level, action=action)) == does


@pytest.mark.parametrize(
    "words", [{"action": "reshape"}, {"state": "inactive"}, {"state": "broken"}, {"state": "clear"}]
)
def test_array_that_moves_or_stands_is_refused(words: dict[str, object]) -> None:
    with pytest.raises(Refused, match="/dev/md0 is"):
        md_policy.refuse([array(), array(**words)])


def test_degraded_array_is_not_refused() -> None:
    md_policy.refuse([array(degraded=1), array(state="clean"), array(state="read-auto")])


def test_plan_says_what_is_done() -> None:
    (pause,) = md_policy.lines("pause", [array(action="recover"), array()])
    assert pause.startswith("echo frozen > /sys/block/md0/md/sync_action")
    assert md_policy.lines("wait", [array(action="check")]) == ("mdadm --wait /dev/md0  # check",)
    assert md_policy.lines("auto", [array(action="check")]) == ("# /dev/md0: its check goes on",)
