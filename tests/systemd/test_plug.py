"""A disk is plugged in, and its policy runs: real udev rules, real units, a load on the source.

The witness is the kernel's snapshot device, read by the test while the copy runs (nothing is
retired, so that it stays whole).  The disk is scsi_debug's: every host of it is another slot of
the same disk (one store, one WWN).  The second kind is a partition of a loop disk, which opts in
by its GPT label; it is also what no lock keeps udev from.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Final

import pytest

from dmcopy.jobs.state import State, is_final
from tests.lab import stamp
from tests.lab.harness import read_device
from tests.lab.scene import Scene, scene
from tests.lab.stage import patiently, sh
from tests.lab.volumes import Volumes, differences
from tests.systemd.plugging import (
    MIB,
    MORE,
    POLICIES,
    SLOW,
    Adapter,
    assert_gone_on,
    begun,
    commands,
    dmcopy,
    ended,
    eventually,
    interrupted,
    is_copying,
    is_over,
    jobs,
    records,
    said,
    settled,
    source_of,
    unit,
    unit_of,
    witness_of,
    write_policy,
)

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]

_SMALL: Final = 6  # MiB
_SLOWER: Final = '"160k"'  # a second: it outlasts a storm
_STORM: Final = 100  # events of each device
_LOST: Final = 250  # more than the agent's socket holds
_WWN: Final = "naa.33333330000007d0"  # of any scsi_debug disk without vpd_use_hostno


def example(source: str, wwn: str, node: str) -> None:
    """Run what the README says, with the names of this host; then make the copy slow."""
    names = {"/dev/mapper/data": source, "0x5000c500a1b2c3d4": wwn, "/dev/sdx": node}
    once = {old: (new, 1) for old, new in names.items()}
    script = commands("README.rst", "\nBy udev\n", once)
    assert f"block:{node}" in sh("sh", "-e", stdin=script)
    path = POLICIES / "offsite.toml"
    path.write_text(MORE.format(rate=SLOW) + path.read_text())
    sh("dmcopy", "policy", "check")


def slot_of(syspath: str) -> int:
    (host,) = (part for part in syspath.split("/") if part.startswith("host"))
    return int(host.removeprefix("host"))


def storm(events: int, *syspaths: str) -> None:
    """Have udev look at the devices again and again."""
    for _ in range(events):
        for path in syspaths:
            (Path(path) / "uevent").write_text("change")


@pytest.fixture
def at() -> Iterator[Scene]:
    with scene("plug") as made:
        yield made
    # pytest shows it when the test has failed
    print(sh("journalctl", "--output=short-monotonic", "--identifier=dmcopy"))


def partition(at: Scene, label: str, mib: int = MIB) -> tuple[str, str]:
    """Attach a loop disk with one GPT partition; give the partition and its path in sysfs."""
    file = at.stage.file(mib + 2)
    table = f"label: gpt\nstart=2048, size={mib << 11}, name={label}\n"
    sh("sfdisk", "--quiet", file, stdin=table)
    node = sh("losetup", "--find", "--show", "--partscan", file)
    at.stage.later(patiently, "losetup", "--detach", node)
    return f"{node}p1", str(Path(f"/sys/class/block/{Path(node).name}p1").resolve())


def test_disk_that_is_unplugged_in_mid_copy_goes_on_when_it_is_back_in_any_slot(
    at: Scene, adapter: Adapter
) -> None:
    source = source_of(at, 1)
    name, syspath = adapter.plug()  # before there is a policy: it is asked for its WWN
    settled(syspath)
    example(source, adapter.wwn(name), f"/dev/{name}")
    slot = slot_of(syspath)
    adapter.unplug(name)
    with at.load(source, pause=0.05):
        name, syspath = adapter.plug(slot=slot)
        witness = witness_of("offsite")
        eventually(lambda: is_copying("offsite"), "it copies")

        adapter.unplug(name)
        job = interrupted("offsite", syspath)
        assert not any(Path("/run/dmcopy/hidden").iterdir()), "its number is another's soon"

        name, syspath = adapter.plug(slot=slot)
        done = job["progress"]["bytes_done"]
        eventually(lambda: is_copying("offsite", done), "it goes on")
        held = os.open(f"/dev/{name}", os.O_RDONLY)  # so that the name is not free again
        adapter.unplug(name)
        ended(syspath, "the unit ends again")
        sh("dmcopy", "set", job["job"], "rate=none")
        other, elsewhere = adapter.plug()
        assert (other == name, elsewhere == syspath) == (False, False)
        eventually(lambda: is_final(records("offsite")[0].state), "all is copied")
        ended(elsewhere, "the copy is whole")
    os.close(held)
    assert_gone_on("offsite", job["job"], elsewhere)
    assert read_device(f"/dev/{other}") == witness
    assert unit(elsewhere, "Result") == "success"


def test_two_disks_at_once_in_a_storm_of_events_and_strangers(at: Scene, adapter: Adapter) -> None:
    one, two = source_of(at, 2), source_of(at, 3)
    write_policy("disk", one, f'{{ wwn = "{_WWN}" }}', rate=_SLOWER)
    write_policy("opted-in", two, '{ partlabel = "dmcopy-opted-in" }', rate=_SLOWER)
    with ExitStack() as stack:
        stack.enter_context(at.load(one, pause=0.05))
        stack.enter_context(at.load(two, pause=0.05))
        name, syspath = adapter.plug()
        assert adapter.wwn(name) == _WWN
        node, part = partition(at, "dmcopy-opted-in")
        witnesses = [witness_of("disk"), witness_of("opted-in")]
        for policy in ("disk", "opted-in"):
            eventually(partial(is_copying, policy), "it copies")
        storm(_STORM, syspath, part)
        # a stranger has the very content of a source, and a label that is no policy's
        stranger, path = partition(at, "opted-in")
        with open(stranger, "wb") as file:
            file.write(witnesses[1])
        eventually(lambda: "nothing is done" in said(path), "the stranger is looked at")
        for policy in ("disk", "opted-in"):
            (job,) = records(policy)
            assert job.state is State.COPYING, f"the storm came in mid-copy: {job.state}"
            sh("dmcopy", "set", job.name, "rate=none")
        ended(syspath, "the disk is done")
        ended(part, "the partition is done")
    storm(_STORM // 4, syspath, part)
    sh("udevadm", "settle", "--timeout=60")
    eventually(lambda: is_over(syspath) and is_over(part), "nothing was begun again")
    for policy, where, there, witness in zip(
        ("disk", "opted-in"), (f"/dev/{name}", node), (syspath, part), witnesses, strict=True
    ):
        (job,) = records(policy)
        assert job.state is State.ENDED, said(there)
        assert job.ended is not None
        assert job.ended["bytes_resumed"] == 0, "no event stopped it"
        assert read_device(where) == witness
    assert read_device(stranger) == witnesses[1]


def test_disk_that_a_policy_cannot_use_is_told_of_and_stays_as_it_is(at: Scene) -> None:
    source = source_of(at, 4)
    write_policy("small", source, '{ partlabel = "dmcopy-small" }')
    node, syspath = partition(at, "dmcopy-small", mib=4)
    before = read_device(node)
    eventually(lambda: Path("/run/told").exists(), "the policy's command runs")
    ended(syspath, "the unit ends")
    assert unit(syspath, "Result") == "exit-code"
    assert unit(syspath, "ExecMainStatus") == "3"
    text = Path("/run/told").read_text()
    Path("/run/told").unlink()
    assert text.startswith("small small-")
    assert "is too small" in text
    assert read_device(node) == before
    assert jobs("small") == []


def wrapped_array(at: Scene) -> str:
    """Make a mirror of md's, and wrap it as an administrator does."""
    array = at.stage.md(at.stage.disk(_SMALL), at.stage.disk(_SMALL))
    sh("dmcopy", "wrap", array, "plug-wal")
    at.stage.later(sh, "dmcopy", "unwrap", "plug-wal")
    return "/dev/mapper/plug-wal"


def test_group_of_a_volume_and_a_wrapped_array_begins_with_the_last_of_its_disks(
    at: Scene,
) -> None:
    volumes = Volumes(at.stage, mib=6 * _SMALL, disks=1)
    sources = [volumes.lv(mib=_SMALL), wrapped_array(at)]
    for seed, source in enumerate(sources, start=8):
        stamp.fill(source, seed=seed, processes=1)
    before = volumes.picture()
    labels = ("dmcopy-data", "dmcopy-wal")
    pairs = (
        f'[[pair]]\nsource = "{source}"\ndestination = {{ partlabel = "{label}" }}\n'
        for source, label in zip(sources, labels, strict=True)
    )
    when = 'when = { on = ["plug"] }\n'
    (POLICIES / "both.toml").write_text(MORE.format(rate=SLOW) + when + "".join(pairs))
    sh("dmcopy", "policy", "check")
    with ExitStack() as loads:
        for source in sources:
            loads.enter_context(at.load(source, pause=0.05))
        one, first = partition(at, labels[0], mib=_SMALL)
        eventually(lambda: f"it waits for partlabel {labels[1]}" in said(first), "it is looked at")
        ended(first, "it waits")
        # as when the device flaps: it is stopped before it has looked
        told = said(first).count("it waits for")
        sh("systemctl", "start", unit_of(first))
        sh("systemctl", "kill", "--signal=TERM", unit_of(first))
        eventually(lambda: said(first).count("it waits for") > told, "it is started again")
        ended(first, "it waits")
        assert records("both") == []
        two, second = partition(at, labels[1], mib=_SMALL)
        eventually(lambda: len(begun("both")) == 3, "the group and both volumes begin")
        assert len({one["begin_time"] for one in begun("both")}) == 1, "one begin time"
        snapshots = {one["source"]: one["snapshot"] for one in begun("both")}
        witnesses = [read_device(snapshots[source]) for source in sources]
        assert all(job.state is not State.ENDED for job in records("both")), "it copies yet"
        sh("dmcopy", "set", records("both")[0].name, "rate=none")
        eventually(lambda: all(is_final(job.state) for job in records("both")), "it is whole")
    sh("udevadm", "settle", "--timeout=60")  # both disks are shown again
    eventually(lambda: is_over(first) and is_over(second), "nothing was begun again")
    assert [job.state for job in records("both")] == [State.ENDED] * 3, said(first) + said(second)
    assert unit(second, "Result") == "success"
    for node, witness in zip((one, two), witnesses, strict=True):
        assert read_device(node, len(witness)) == witness
    assert differences(before, volumes.picture()) == []
    assert "dmcopy" not in sh("lvs", "--all", "--noheadings", "-o", "lv_name,tags", volumes.vg)


def test_source_that_retires_is_not_taken_for_a_new_disk_at_each_batch(at: Scene) -> None:
    """Each swap of its table is an event; a program at each would cost more than the copy."""
    source = source_of(at, 10)
    syspath = str(Path(f"/sys/class/block/{Path(source).resolve().name}").resolve())
    write_policy("other", source, '{ partlabel = "dmcopy-nobody" }')
    sh("udevadm", "settle", "--timeout=60")
    name = Path(source).name
    earlier = starts(syspath)  # as of a device that had this number in an earlier test
    sh("dmsetup", "suspend", name)
    sh("dmsetup", "resume", name)  # by who says so to udev: an appearance, for all one can know
    eventually(lambda: starts(syspath) > earlier, "its appearance is looked at")
    ended(syspath, "it was looked at")
    _, other = partition(at, "nobody's", mib=2)
    earlier = starts(other)
    eventually(lambda: starts(other) > earlier, "the other is looked at")
    ended(other, "it was looked at")
    before, earlier = starts(syspath), starts(other)
    with at.load(source, pause=0.05):
        argv = ("copy", source, at.stage.disk(MIB), "--name", "swaps", "--segment", "256k",
                "--batch", "512k", "--rate", "2m")  # fmt: skip
        sh("dmcopy", *argv)
    sh("udevadm", "settle", "--timeout=60")
    (job,) = dmcopy("list")
    assert job["progress"]["held"]["count"] >= 5, "each is an event of its source"
    storm(1, other)  # systemd hears of events in turn: of this one last
    eventually(lambda: starts(other) > earlier, "of a disk each event is looked at")
    ended(syspath, "what it has started")
    assert starts(syspath) == before, said(syspath)


def starts(syspath: str) -> int:
    """Give how often systemd has started the unit of a device that no policy is for."""
    return said(syspath).count("nothing is done")


def write_images_policy(name: str, source: str, folder: Path, when: str) -> Path:
    """Write a policy that copies into a new image each time; give its file."""
    path = POLICIES / f"{name}.toml"
    path.write_text(
        f'source = "{source}"\ndestination = {{ image = "{folder}/{{job}}.img" }}\n'
        f"when = {{ {when} }}\nverify = true\n"
    )
    sh("dmcopy", "policy", "check")
    return path


def assert_first_image(policy: str, source: str, folder: Path) -> None:
    """The first job has ended well, and its image is the source, which nobody writes to."""
    job = records(policy)[0]
    assert job.ended is not None
    assert job.ended["verified"]
    assert (folder / f"{job.name}.img").read_bytes() == read_device(source)


def test_policy_with_a_calendar_is_run_by_the_agent(at: Scene) -> None:
    source = source_of(at, 5)
    path = write_images_policy("often", source, at.folder, 'calendar = "*:*:0/5"')
    sh("systemctl", "start", "dmcopy-agent.service")
    try:
        eventually(
            lambda: any(one.state is State.ENDED for one in records("often")), "it is due, and done"
        )
        path.unlink()
        eventually(lambda: all(is_final(one.state) for one in records("often")), "all have ended")
    finally:
        sh("systemctl", "stop", "dmcopy-agent.service")
    assert_first_image("often", source, at.folder)


def test_policy_is_run_by_a_timer_of_systemd_without_the_agent(at: Scene) -> None:
    source = source_of(at, 11)
    write_images_policy("by-timer", source, at.folder, "on = []")
    assert "(when it is run)" in sh("dmcopy", "policy", "list")
    timer = "dmcopy-policy@by-timer.timer"
    drop_in = Path(f"/run/systemd/system/{timer}.d/when.conf")  # as systemctl edit --runtime makes
    drop_in.parent.mkdir(parents=True)
    drop_in.write_text("[Timer]\nOnCalendar=\nOnCalendar=*:*:0/5\nAccuracySec=100ms\n")
    sh("systemctl", "daemon-reload")
    try:
        sh("systemctl", "start", timer)
        eventually(lambda: done("by-timer") > 0, "it is due, and done")
    finally:
        sh("systemctl", "stop", timer)
        drop_in.unlink()
        drop_in.parent.rmdir()
        sh("systemctl", "daemon-reload")
    service = "dmcopy-policy@by-timer.service"
    eventually(
        lambda: sh("systemctl", "show", "--value", "--property=ActiveState", service) == "inactive",
        "its last run has ended",
    )
    assert_first_image("by-timer", source, at.folder)


def test_plug_that_systemd_did_not_act_on_is_the_agents(at: Scene, adapter: Adapter) -> None:
    """Its rule is taken away, and udev's events come faster than the agent takes them."""
    source = source_of(at, 6)
    rule = Path("/etc/udev/rules.d/58-dmcopy-plug.rules")
    kept = rule.rename("/etc/58-dmcopy-plug.rules")
    sh("udevadm", "control", "--reload")
    _, bystander = partition(at, "nobody's", mib=2)
    write_policy("missed", source, f'{{ wwn = "{_WWN}" }}', rate='"none"')
    before = said(bystander)  # of the device that had this number in an earlier test
    sh("systemctl", "start", "dmcopy-agent.service")
    agent = int(sh("systemctl", "show", "--value", "--property=MainPID", "dmcopy-agent.service"))
    try:
        name, syspath = adapter.plug()
        eventually(lambda: done("missed") == 1, "the agent starts its unit")
        ended(syspath, "the copy is whole")
        assert read_device(f"/dev/{name}") == read_device(source)
        os.kill(agent, signal.SIGSTOP)
        adapter.unplug(name)
        name, syspath = adapter.plug()
        storm(_LOST, bystander)
        sh("udevadm", "settle", "--timeout=100")
        stamp.fill(source, seed=7, processes=1)
        os.kill(agent, signal.SIGCONT)
        eventually(lambda: done("missed") == 2, "what was lost is made up for")
        ended(syspath, "the copy is whole again")
        assert read_device(f"/dev/{name}") == read_device(source)
        told = sh("journalctl", "--output=cat", "--unit=dmcopy-agent.service")
        assert "udev told more than could be taken" in told
    finally:
        os.kill(agent, signal.SIGCONT)
        sh("systemctl", "stop", "dmcopy-agent.service")
        kept.rename(rule)
        sh("udevadm", "control", "--reload")
    assert said(bystander) == before, "nothing was started for a disk that no policy is for"


def done(policy: str) -> int:
    """Give how many jobs of a policy have ended well."""
    return sum(one.state is State.ENDED for one in records(policy))
