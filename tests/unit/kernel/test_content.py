"""What blkid and sfdisk say of a copy, as values."""

from __future__ import annotations

from pathlib import Path

import pytest
from pytest_subprocess import FakeProcess

from dmcopy.errors import Refused
from dmcopy.kernel.command import Commander, launch_subprocess
from dmcopy.kernel.content import Content, content_of, parse, parse_table

DATA = Path(__file__).parents[2] / "data"


def data(name: str) -> str:
    return (DATA / name).read_text()


TABLE = data("sfdisk-2.38.1-gpt.json")


@pytest.fixture
def run() -> Commander:
    return Commander(launch_subprocess)


def blkid(*more: str) -> list[str]:
    return ["blkid", "--probe", "--output", "export", *more, "--", "/dev/x"]


def test_file_system_has_uuid_and_label_as_they_are() -> None:
    found = parse(data("blkid-2.38.1-ext4-label.txt"))
    assert found == Content(kind="ext4", uuid="348ff179-0622-46bf-b494-cb3e16981fd9", label="a b$c")
    assert str(found) == "ext4 UUID=348ff179-0622-46bf-b494-cb3e16981fd9 LABEL=a b$c"


def test_partition_that_carries_nothing_is_nothing() -> None:
    assert parse("DEVNAME=/dev/x1\nPART_ENTRY_UUID=00c0ffee-01\n") is None


def test_partitions_have_numbers_and_a_sector_size() -> None:
    rows = list(parse_table(TABLE))
    assert [(number, row["name"], sector) for number, row, sector in rows] == [
        (1, "one", 512),
        (2, "two", 512),
    ]


def test_disk_is_told_with_all_that_is_seen_from_outside(run: Commander, fp: FakeProcess) -> None:
    fp.register(blkid(), stdout="PTUUID=bbeca505-85e1-f84a-bf46-7bf351c164a1\nPTTYPE=gpt\n")
    fp.register(["sfdisk", "--json", "--", "/dev/x"], stdout=TABLE)
    where = ("--offset", str(2048 * 512), "--size", str(16384 * 512))
    fp.register(blkid(*where), stdout="TYPE=ext4\nUUID=u1\n")
    where = ("--offset", str(18432 * 512), "--size", str(16384 * 512))
    fp.register(blkid(*where), returncode=2)
    found = content_of(run, "/dev/x")
    assert found is not None
    assert list(found.uuids()) == [
        "bbeca505-85e1-f84a-bf46-7bf351c164a1",
        "2e17dead-51f3-8747-96ff-80a720f3fe1c",
        "u1",
        "4c5710aa-0380-aa4a-8baa-b5ea0d7add87",
    ]
    assert list(found.lines())[1] == (
        "partition 1 PARTUUID=2e17dead-51f3-8747-96ff-80a720f3fe1c PARTLABEL=one: ext4 UUID=u1"
    )


def test_dos_table_gives_its_partitions_their_uuids_and_holds_no_second_table(
    run: Commander, fp: FakeProcess
) -> None:
    fp.register(blkid(), stdout="PTUUID=8b2d3cbc\nPTTYPE=dos\n")
    fp.register(["sfdisk", "--json", "--", "/dev/x"], stdout=data("sfdisk-2.38.1-dos.json"))
    for start, size in ((2048, 16384), (20480, 8192), (30720, 8192)):  # the second is the extended
        where = ("--offset", str(start * 512), "--size", str(size * 512))
        fp.register(blkid(*where), stdout=f"TYPE=ext4\nUUID=u{start}\n")
    found = content_of(run, "/dev/x")
    assert found is not None
    assert [(part.number, part.uuid, part.content is None) for part in found.parts] == [
        (1, "8b2d3cbc-01", False),
        (2, "8b2d3cbc-02", True),
        (5, "8b2d3cbc-05", False),
        (6, "8b2d3cbc-06", False),
    ]


def test_nothing_at_all(run: Commander, fp: FakeProcess) -> None:
    fp.register(blkid(), returncode=2)
    assert content_of(run, "/dev/x") is None


def test_signatures_that_contradict_each_other_are_refused(run: Commander, fp: FakeProcess) -> None:
    fp.register(blkid(), returncode=8)
    with pytest.raises(Refused, match="contradict"):
        content_of(run, "/dev/x")
