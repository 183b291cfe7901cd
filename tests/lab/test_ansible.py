"""``ansible-playbook`` over ssh to three hosts with devices of their own; the README as written.

What is copied is compared with what the test itself wrote, and has since overwritten.
"""

from __future__ import annotations

import os
import re
import subprocess
import textwrap
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest

from dmcopy.jobs.journal import Journal
from dmcopy.jobs.state import State
from dmcopy.units import MIB
from lab.guest import CHECKOUT
from tests.lab import harness
from tests.lab.fleet import Fleet, Play, fleet, link
from tests.lab.stage import Stage, sh

pytestmark = [pytest.mark.lab, pytest.mark.timeout(400)]

MIBS: Final = 8
COPY: Final = "Copy each as it is now, and read the copy back"
# in the result of a real run, and not in that of check mode: documented as such
MEASURED: Final = {
    "begin_time", "hold_ms", "bytes_source", "bytes_cow", "bytes_zero", "exceptions",
    "cow_used_bytes", "cow_predicted_bytes", "digest", "verified", "seconds", "members",
}  # fmt: skip
README: Final = (CHECKOUT / "README.rst").read_text()


def example(name: str) -> str:
    """Give a file that the README shows."""
    found = re.search(rf"^``{re.escape(name)}``::\n\n((?:    .*\n|\n)+)", README, re.MULTILINE)
    assert found is not None, name
    return textwrap.dedent(found[1]).rstrip() + "\n"


class Site:
    """The fleet with its devices: on each host a volume in use, and a disk for its copy."""

    def __init__(self, stage: Stage, hosts: Fleet) -> None:
        self.hosts = hosts
        self.content = {}
        for number, host in enumerate(hosts.hosts, start=1):
            volume = volume_of(stage, f"{host.name}-data", seed=number)
            disk = stage.disk(MIBS)
            link(stage, disk, f"/dev/disk/by-id/wwn-0x5000c500a1b2c3d{number}")
            self.content[host.name] = (volume, disk)
        for name in ("hosts.ini", "replicate.yml"):
            (hosts.folder / name).write_text(example(name))

    def copied(self, host: str, seed: int) -> bool:
        return harness.read_device(self.content[host][1]) == pattern(seed)


def volume_of(stage: Stage, name: str, *, seed: int) -> str:
    """Make a dm device that somebody has open, with content of its own."""
    disk = stage.disk(MIBS)
    sh("dmsetup", "create", name, "--table", f"0 {MIBS * MIB // 512} linear {disk} 0")
    path = f"/dev/mapper/{name}"
    stage.later(sh, "dmsetup", "remove", "--retry", name)
    harness.write_device(path, pattern(seed))
    fd = os.open(path, os.O_RDWR)
    stage.later(os.close, fd)
    return path


def pattern(seed: int) -> bytes:
    """Give content of which no two blocks are alike, nor two seeds."""
    block = b"".join(b"%04d %010d\n" % (seed, number) for number in range(MIBS * MIB // 16))
    return block


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with fleet(3) as (stage, hosts):
        yield Site(stage, hosts)


@pytest.fixture
def stage() -> Iterator[Stage]:
    made = Stage("dmant")
    try:
        yield made
    finally:
        made.close()


def facts(result: dict[str, Any]) -> dict[str, Any]:  # Any: JSON
    """Give what a module returned, without what Ansible adds to it."""
    return {
        name: value
        for name, value in result.items()
        if name not in ("invocation", "how") and not name.startswith("_")
    }


def states(play: Play, task: str = COPY) -> dict[str, str]:
    found = {}
    for line in play.lines:
        if line["task"] == task:
            changed = "changed" if line["result"].get("changed") else "unchanged"
            found[line["host"]] = changed if line["how"] == "ok" else line["how"]
    return found


def test_readme_is_done_as_predicted_on_each_host_and_repaired_where_it_failed(site: Site) -> None:
    sh("mkfs.ext4", "-q", site.content["db2"][1])  # a stranger's file system is in the way
    check = site.hosts.play("replicate.yml", "--check", "--diff")
    assert not any(site.copied(f"db{number}", number) for number in (1, 2, 3)), check.out
    first = site.hosts.play("replicate.yml")
    expected = {"db1": "changed", "db2": "failed", "db3": "changed"}
    assert (states(check), states(first)) == (expected, expected), first.out
    assert (check.status, first.status) == (2, 2)
    refusal = first["db2", COPY]
    assert refusal["exit_status"] == 3
    assert "it carries ext4" in refusal["msg"]
    assert check["db2", COPY]["msg"] == refusal["msg"]
    for number in (1, 3):
        predicted, done = (facts(play[f"db{number}", COPY]) for play in (check, first))
        assert done.keys() - predicted.keys() == MEASURED
        assert {name: done[name] for name in predicted} == predicted
        assert site.copied(f"db{number}", number)
        assert done["verified"] is True
        assert done["provider"] == "splice"
    assert not site.copied("db2", 2)

    sh("wipefs", "--all", "--quiet", site.content["db2"][1])
    second = site.hosts.play("replicate.yml")
    assert states(second) == {"db1": "unchanged", "db2": "changed", "db3": "unchanged"}
    assert second.status == 0
    assert all(site.copied(f"db{number}", number) for number in (1, 2, 3))
    for number in (1, 3):
        done, again = (facts(play[f"db{number}", COPY]) for play in (first, second))
        assert {name: done[name] for name in MEASURED} == {name: again[name] for name in MEASURED}


FIX: Final = """\
- hosts: db1
  remote_user: root
  gather_facts: false
  tasks:
    - name: fix
      dmcopy.dmcopy.dmcopy_copy:
        name: db1-live
        pairs: "{{ group_pairs }}"
        state: paused
        verify: true
    - name: overwrite
      shell: |
        for name in data wal; do
          dd if=/dev/urandom of=/dev/mapper/db1-$name bs=1M count=4 conv=notrunc oflag=direct
        done
"""
REST: Final = """\
- hosts: db1
  remote_user: root
  gather_facts: false
  tasks:
    - name: hold
      dmcopy.dmcopy.dmcopy_copy:
        name: db1-held
        state: paused
        source: /dev/mapper/db1-data
        destination: image:FOLDER/held.img
    - name: give up
      dmcopy.dmcopy.dmcopy_copy: {name: db1-held, state: absent}
    - name: wrap
      dmcopy.dmcopy.dmcopy_wrap: {name: dman-wrap, device: PART}
    - name: unwrap
      dmcopy.dmcopy.dmcopy_wrap: {name: dman-wrap, state: absent}
"""
GROUP: Final = "Copy all of it"  # the task of the playbook replicate_group


def volumes(site: Site, *names: str) -> dict[str, dict[str, str]]:
    """Give names of devices with a source, and an image as destination."""
    return {
        name: {
            "source": f"/dev/mapper/{name}",
            "destination": f"image:{site.hosts.folder}/{name}.img",
        }
        for name in names
    }


def test_group_is_copied_as_of_the_instant_when_it_was_paused_and_the_rest_does_what_it_says(
    site: Site, stage: Stage
) -> None:
    volume_of(stage, "db1-wal", seed=9)
    part = stage.partition(stage.disk(16))
    folder = site.hosts.folder
    names = ("db1-data", "db1-wal")
    tables = [harness.table_text(f"/dev/mapper/{name}") for name in names]
    (folder / "fix.yml").write_text(FIX)
    (folder / "rest.yml").write_text(REST.replace("FOLDER", str(folder)).replace("PART", part))
    known = {
        "group_name": "db1-live",
        "group_pairs": list(volumes(site, *names).values()),
        "group_hosts": "db1",
    }
    play = site.hosts.play("fix.yml", "dmcopy.dmcopy.replicate_group", "rest.yml", **known)
    result = {line["task"]: play["db1", line["task"]] for line in play.lines}
    assert [name for name, one in result.items() if one["changed"]] == [
        "fix", "overwrite", GROUP, "hold", "give up", "wrap", "unwrap",
    ], play.out  # fmt: skip
    for name, seed in zip(names, (1, 9), strict=True):
        assert (folder / f"{name}.img").read_bytes() == pattern(seed)
        assert harness.read_device(f"/dev/mapper/{name}") != pattern(seed)
    fixed, group = result["fix"], result[GROUP]
    assert group["begin_time"] == fixed["begin_time"]
    assert group["bytes_cow"] > 0
    assert (fixed["job_state"], group["job_state"]) == ("paused", "finished")
    assert [(one["state"], one["verified"]) for one in group["members"]] == [("ended", True)] * 2
    assert (result["hold"]["job_state"], result["give up"]["job_state"]) == ("paused", "over")
    with Journal(site.hosts.hosts[0].folder / "state/journal.sqlite", read_only=True) as journal:
        ended = [journal.state(job) for job in ("db1-live", "db1-held")]
    assert ended == [State.ENDED, State.CANCELLED]
    assert not Path(folder / "held.img").exists()
    assert tables == [harness.table_text(f"/dev/mapper/{name}") for name in names]
    assert result["wrap"]["said"] != []
    assert not os.path.exists("/dev/mapper/dman-wrap")


def test_disk_is_emptied_and_a_fleet_is_copied_host_by_host(site: Site, stage: Stage) -> None:
    source = site.content["db2"][0]
    target = stage.disk(MIBS)
    sh("mkfs.ext4", "-q", source)
    point = os.path.join(stage.folder, "mnt")
    os.mkdir(point)
    sh("mount", source, point)
    stage.later(partial(subprocess.run, ["umount", "--quiet", point], check=False))
    Path(point, "kept").write_bytes(os.urandom(1 << 20))
    known: dict[str, Any] = {
        "evacuate_host": "db2",
        "evacuate_name": "away",
        "evacuate_pairs": [{"source": source, "destination": target}],
        "evacuate_mounts": [point],
        "fleet_hosts": "db1,db3",
        "fleet_run": "today",
        "fleet_batch": 1,
        "fleet_volumes": "{{ [{'name': inventory_hostname, 'source': volume, 'destination': "
        f"'image:{site.hosts.folder}/' ~ inventory_hostname ~ '.img'}}] }}}}",
    }
    play = site.hosts.play("dmcopy.dmcopy.evacuate", "dmcopy.dmcopy.fleet", **known)
    assert play.status == 0, play.out
    rehearsal = play["db2", "Copy all of it while it is in use"]
    final = play["db2", "Copy what nobody writes to any more"]
    assert rehearsal["digest"] != final["digest"], "the file system was unmounted in between"
    assert harness.read_device(target) == harness.read_device(source)
    for number in (1, 3):
        image = site.hosts.folder / f"db{number}.img"
        assert image.read_bytes() == harness.read_device(site.content[f"db{number}"][0])
    fleet = [play[f"db{number}", "Copy the volumes of the host"]["results"][0] for number in (1, 3)]
    assert [one["job"] for one in fleet] == ["db1-today", "db3-today"]
    times = [one["begin_time"] for one in fleet]
    assert times == sorted(times), "one host a batch"
    assert not os.path.ismount(point)
