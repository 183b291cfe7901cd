"""A disk opts in by a label file on a partition of its own: real udev rules, units, file systems.

The witness is the kernel's snapshot device, read by the test while the copy runs.  What must not
be written is compared as a whole: the label partitions, and the disks of strangers.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Final

import pytest

from dmcopy.jobs.state import State
from tests.lab.harness import read_device
from tests.lab.scene import Scene, digest, scene
from tests.lab.stage import patiently, sh
from tests.systemd.plugging import (
    POLICIES,
    Adapter,
    assert_gone_on,
    commands,
    ended,
    eventually,
    interrupted,
    is_copying,
    is_over,
    records,
    said,
    settled,
    source_of,
    unit,
    witness_of,
    write_policy,
)

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]

_IN_MANUAL: Final = "offsite-set-7f3a9c51"
MIB: Final = 4  # of a source, and of the partition that it is copied to
_UUID: Final = "{:08x}-6d63-4f70-8901-00000000000{}"  # of a partition, by its disk and number
_OTHER, _LIAR, _GROUP = 1, 2, 3  # disks


@pytest.fixture
def at() -> Iterator[Scene]:
    with scene("label") as made:
        yield made
    # pytest shows it when the test has failed
    print(sh("journalctl", "--output=short-monotonic", "--identifier=dmcopy"))


def partition(path: str, disk: int, *, volumes: int = 1) -> None:
    """Give a disk a partition for its label file, and one for each volume."""
    lines = [f"start=2048, size=2048, uuid={_UUID.format(disk, 1)}"]
    for number in range(volumes):
        uuid = _UUID.format(disk, number + 2)
        lines.append(f"start={4096 + number * (MIB << 11)}, size={MIB << 11}, uuid={uuid}")
    sh("sfdisk", "--quiet", "--wipe=never", path, stdin="\n".join(["label: gpt", *lines]))


def says(label: str, partuuid: str) -> str:
    return f'label = "{label}"\npartuuid = "{partuuid}"\n'


def prepare(disk: str) -> None:
    """Run what the manual says of such a disk."""
    names = {"/dev/sdx": (disk, 4), _IN_MANUAL: ("offsite-set", 1)}
    sh("sh", "-e", stdin=commands("docs/policies.rst", "To prepare one", names))


def disk_file(at: Scene, disk: int, text: str, *, volumes: int = 1) -> str:
    """Make a disk in a file, with an ext4 that has the label file."""
    file = at.stage.file(volumes * MIB + 3)
    partition(file, disk, volumes=volumes)
    root = Path(f"{file}-root")
    root.mkdir()
    (root / "dmcopy.toml").write_text(text)
    sh("mke2fs", "-q", "-F", "-t", "ext4", "-L", "DMCOPY", "-d", str(root), "-E",
       f"offset={1 << 20}", file, "1m")  # fmt: skip
    return file


def attach(at: Scene, file: str) -> str:
    node = sh("losetup", "--find", "--show", "--partscan", file)
    at.stage.later(patiently, "losetup", "--detach", node)
    return node


def syspath(node: str) -> str:
    return str(Path("/sys/class/block", Path(node).name).resolve())


def told(since: float) -> str:
    """Give what all units of plugs have said since a time: devices' numbers come again."""
    return sh("journalctl", "--output=cat", f"--since=@{int(since)}", "--identifier=dmcopy")


def test_disk_opts_in_by_its_label_file_and_no_other_is_touched(
    at: Scene, adapter: Adapter
) -> None:
    source = source_of(at, 1, MIB)
    name, _ = adapter.plug()
    prepare(f"/dev/{name}")
    for number in (1, 2):
        settled(syspath(f"/dev/{name}{number}"))
    uuid = sh("blkid", "--match-tag=PARTUUID", "--output=value", f"/dev/{name}2")
    file_system = digest(f"/dev/{name}1")
    write_policy("offsite", source, '{ label = "offsite-set" }')

    # the same label of the file system; one has another label, one names a partition elsewhere
    files = [
        disk_file(at, _OTHER, says("other-set", _UUID.format(_OTHER, 2))),
        disk_file(at, _LIAR, says("offsite-set", uuid)),
    ]
    before = [digest(file) for file in files]
    started = time.time()
    strangers = [attach(at, file) for file in files]
    looked_at = [
        f"no policy acts on {syspath(f'{node}p{number}')}: nothing is done"
        for node in strangers
        for number in (1, 2)
    ]
    eventually(lambda: all(one in told(started) for one in looked_at), "all are looked at")
    assert f"names the partition {uuid}, which is not on this disk" in told(started)
    assert records("offsite") == []

    with at.load(source, pause=0.05):
        # its label partition comes last: the policy is younger than the other's appearance
        where = syspath(f"/dev/{name}2")
        sh("partx", "--delete", "--nr", "1", f"/dev/{name}")
        sh("partx", "--add", "--nr", "1", f"/dev/{name}")
        witness = witness_of("offsite")
        eventually(lambda: is_copying("offsite"), "it copies")
        assert unit(where, "ActiveState") == "active", "the unit of what is written copies"
        assert digest(f"/dev/{name}1") == file_system
        (job,) = records("offsite")
        sh("dmcopy", "set", job.name, "rate=none")
        ended(where, "the copy is whole")
    sh("udevadm", "settle", "--timeout=60")
    for path in (f"/dev/{name}1", f"/dev/{name}2"):
        eventually(partial(is_over, syspath(path)), "nothing is begun again")
    (after,) = records("offsite")
    assert after.name == job.name, "it is begun once"
    assert after.state is State.ENDED, said(where)
    assert after.ended is not None
    assert after.ended["verified"]
    assert after.ended["bytes_resumed"] == 0
    copy = read_device(f"/dev/{name}2")  # which is larger than the source
    assert copy[: len(witness)] == witness
    assert not any(copy[len(witness) :])
    assert digest(f"/dev/{name}1") == file_system
    assert [digest(node) for node in strangers] == before, "of the devices, past the cache"
    assert [digest(file) for file in files] == before


def test_disk_with_a_label_file_that_is_unplugged_in_mid_copy_goes_on_in_another_slot(
    at: Scene, adapter: Adapter
) -> None:
    source = source_of(at, 4, MIB)
    name, _ = adapter.plug()
    prepare(f"/dev/{name}")
    file_system = digest(f"/dev/{name}1")
    adapter.unplug(name)
    write_policy("offsite", source, '{ label = "offsite-set" }')
    with at.load(source, pause=0.05):
        name, _ = adapter.plug()
        witness = witness_of("offsite")
        eventually(lambda: is_copying("offsite"), "it copies")
        where = syspath(f"/dev/{name}2")
        held = os.open(f"/dev/{name}", os.O_RDONLY)  # so that the name is not free again
        adapter.unplug(name)
        job = interrupted("offsite", where)

        other, _ = adapter.plug()
        assert other != name
        done = job["progress"]["bytes_done"]
        eventually(lambda: is_copying("offsite", done), "it goes on")
        sh("dmcopy", "set", job["job"], "rate=none")
        where = syspath(f"/dev/{other}2")
        ended(where, "the copy is whole")
    os.close(held)
    assert_gone_on("offsite", job["job"], where)
    assert read_device(f"/dev/{other}2", len(witness)) == witness
    assert digest(f"/dev/{other}1") == file_system


def test_group_is_copied_once_onto_the_partitions_of_one_disk(at: Scene) -> None:
    sources = [source_of(at, 2, MIB), source_of(at, 3, MIB)]
    text = "".join(f"[[destination]]\n{says(f'set-{n}', _UUID.format(_GROUP, n))}" for n in (2, 3))
    file = disk_file(at, _GROUP, text, volumes=2)
    pairs = "".join(
        f'[[pair]]\nsource = "{path}"\ndestination = {{ label = "set-{number}" }}\n'
        for number, path in enumerate(sources, start=2)
    )
    (POLICIES / "group.toml").write_text(f'when = {{ on = ["plug"] }}\n{pairs}')
    node = attach(at, file)
    volumes = 1 + len(sources)  # a job, and one for each volume
    eventually(
        lambda: [one.state for one in records("group")] == [State.ENDED] * volumes, "it is copied"
    )
    sh("udevadm", "settle", "--timeout=60")
    for number in (1, 2, 3):
        eventually(partial(is_over, syspath(f"{node}p{number}")), "all units end")
    # the one whose unit did not copy is ready again, now that it is written no more
    for number in (2, 3):
        would = sh("dmcopy", "policy", "simulate", f"{node}p{number}")
        assert "group: nothing: it has run since" in would
    assert len(records("group")) == volumes, "it is copied once"
    for number, source in enumerate(sources, start=2):
        assert read_device(f"{node}p{number}") == read_device(source)
