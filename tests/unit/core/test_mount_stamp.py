"""What a superblock tells of a stranger, from one that mkfs.ext4 wrote."""

from __future__ import annotations

import gzip
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from dmcopy.core.mount_stamp import HEAD, MountStamp

DATA: Final = Path(__file__).parents[2] / "data" / "ext4-1.47.0-head.gz"
# as dumpe2fs -h says it
STAMP: Final = MountStamp(
    uuid="5d0c2a511f3d4c559e0b6a1f3d4c559e", mounts=7, mounted=1795705200, checked=1795707344,
    written=1795707344,
)  # fmt: skip


def test_stamp_is_what_dumpe2fs_says() -> None:
    head = gzip.decompress(DATA.read_bytes())
    assert len(head) == HEAD
    assert MountStamp.parse(head) == STAMP
    assert MountStamp.from_json(STAMP.as_json()) == STAMP


def test_what_is_no_ext_superblock_has_no_stamp() -> None:
    assert MountStamp.parse(bytes(HEAD)) is None


@pytest.mark.parametrize(
    ("now", "seen", "why"),
    [
        (STAMP, 1795707344.0, None),
        (None, None, "no ext superblock"),
        (replace(STAMP, uuid="00"), None, "another file system"),
        (replace(STAMP, mounts=8), None, "mounted since"),
        (replace(STAMP, mounted=STAMP.mounted + 1), None, "mounted since"),
        (replace(STAMP, checked=STAMP.checked + 1), None, "checked since"),
        # it may have been frozen, or unmounted, by the system that we know of
        (replace(STAMP, written=STAMP.written + 1000), None, None),
        (replace(STAMP, written=STAMP.written + 10), STAMP.written + 0.5, None),
        (replace(STAMP, written=STAMP.written + 60), STAMP.written + 0.5, "after the machine"),
    ],
)
def test_stranger_is_told_by_what_only_a_mount_a_check_or_time_can_change(
    now: MountStamp | None, seen: float | None, why: str | None
) -> None:
    told = STAMP.stranger(now, seen=seen)
    assert told is None if why is None else why in (told or "")
