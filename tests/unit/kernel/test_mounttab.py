"""What is said in fstab and crypttab about a device."""

from __future__ import annotations

from pathlib import Path

import pytest
from pytest_subprocess import FakeProcess

from dmcopy.kernel.command import Commander
from dmcopy.kernel.mounttab import entries_about, holds
from tests.unit.kernel.tree import Tree

SAID = """DEVNAME=/dev/sda1
UUID=5d0c2a51-1f3d-4c55-9e0b-6a1f3d4c559e
LABEL=data
PART_ENTRY_UUID=02ec4730-2bcc-e84d-a066-ba43f2491b93
"""


@pytest.fixture
def tree(tmp_path: Path, fp: FakeProcess) -> Tree:
    host = Tree(tmp_path / "host")
    host.disk("sda", "8:0")
    host.partition("8:0", 1, "8:1")
    argv = ["blkid", "--probe", "--output", "export", "--", str(host.dev / "sda1")]
    fp.register(argv, stdout=SAID)
    return host


@pytest.mark.parametrize(
    ("line", "place", "by_content"),
    [
        ("UUID=5d0c2a51-1f3d-4c55-9e0b-6a1f3d4c559e /data ext4 defaults 0 2", "/data", True),
        ('LABEL="data" /srv/my\\040data ext4 defaults', "/srv/my data", True),
        ("PARTUUID=02ec4730-2bcc-e84d-a066-ba43f2491b93 /data ext4 defaults", "/data", False),
        ("{dev}/sda1  /data  auto  defaults,nofail", "/data", False),
    ],
)
def test_line_that_leads_to_it_is_found(
    tree: Tree, run: Commander, line: str, place: str, by_content: bool
) -> None:
    text = line.format(dev=tree.dev)
    other = "UUID=ffffffff-1f3d-4c55-9e0b-6a1f3d4c559e / ext4 defaults 0 1"
    (tree.base / "fstab").write_text(f"# {text}\n\n{other}\n{text}\n")
    (entry,) = entries_about("8:1", tree.sysfs(), run, folder=tree.base)
    assert (entry.file, entry.line) == ("/etc/fstab", text)
    assert (entry.place, entry.by_content) == (place, by_content)


def test_crypttab_names_the_device_second(tree: Tree, run: Commander) -> None:
    (tree.base / "crypttab").write_text(f"secret {tree.dev}/sda1 none luks\n")
    (entry,) = entries_about("8:1", tree.sysfs(), run, folder=tree.base)
    assert (entry.file, entry.place, entry.by_content) == ("/etc/crypttab", "secret", False)


def test_without_these_files_there_is_nothing(tree: Tree, run: Commander) -> None:
    assert entries_about("8:1", tree.sysfs(), run, folder=tree.base) == []


def test_mount_point_holds_what_is_below_it() -> None:
    assert holds("/var", "/var/lib/dmcopy")
    assert holds("/var/lib/dmcopy", "/var/lib/dmcopy")
    assert holds("/", "/etc")
    assert not holds("/var/li", "/var/lib/dmcopy")
