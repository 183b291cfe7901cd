"""What wipefs and blkid say."""

from __future__ import annotations

from pathlib import Path

import pytest
from pytest_subprocess import FakeProcess

from dmcopy.errors import CommandFailed
from dmcopy.kernel.command import Commander, launch_subprocess
from dmcopy.kernel.signature import Signature, parse, signatures, table_ids
from dmcopy.units import Bytes

DATA = Path(__file__).parents[2] / "data"
WIPEFS = ["wipefs", "--no-act", "--json", "--output", "OFFSET,TYPE,USAGE,LABEL,UUID", "--"]


@pytest.fixture
def commander() -> Commander:
    return Commander(launch_subprocess)


def test_every_signature_is_listed_not_only_the_first() -> None:
    assert parse((DATA / "wipefs-2.38.1-ext4-and-dos.json").read_text()) == [
        Signature(
            "ext4", "filesystem", Bytes(0x438), "data", "7b13b516-e106-4a48-8a7d-02322795d42e"
        ),
        Signature("dos", "partition-table", Bytes(0x1FE)),
    ]


def test_swap_has_its_uuid() -> None:
    (swap,) = parse((DATA / "wipefs-2.38.1-swap.json").read_text())
    assert (swap.kind, swap.usage, swap.offset, str(swap)) == ("swap", "other", 0xFF6, "swap")


def test_nothing_is_nothing() -> None:
    assert parse((DATA / "wipefs-2.38.1-nothing.json").read_text()) == []
    assert parse("") == []


def test_device_that_cannot_be_read_is_an_error_not_empty(
    commander: Commander, fp: FakeProcess
) -> None:
    fp.register([*WIPEFS, "/dev/sdz"], stderr="wipefs: error: /dev/sdz: gone\n", returncode=1)
    with pytest.raises(CommandFailed, match="gone"):
        signatures(commander, "/dev/sdz")


def test_partition_and_table_ids_are_picked_from_blkid(
    commander: Commander, fp: FakeProcess
) -> None:
    argv = ["blkid", "--probe", "--output", "export", "--", "/dev/sda1"]
    fp.register(argv, stdout="DEVNAME=/dev/sda1\nTYPE=ext4\nPTUUID=12345678\nPART_ENTRY_UUID=a-1\n")
    assert table_ids(commander, "/dev/sda1") == {"ptuuid": "12345678", "partuuid": "a-1"}
    fp.register(argv, returncode=2)
    assert table_ids(commander, "/dev/sda1") == {}
