"""What the tests of plugs share: policies, what becomes of them, and a disk with many slots."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from dmcopy.jobs.journal import Journal, Record
from dmcopy.jobs.spec import Places
from dmcopy.jobs.state import State
from lab.guest import CHECKOUT
from tests.lab import stamp
from tests.lab.harness import read_device
from tests.lab.scene import Scene, until
from tests.lab.stage import patiently, sh

MIB: Final = 12  # of the disk that has many slots
POLICIES: Final = Path("/etc/dmcopy/policies.d")
_DRIVER: Final = Path("/sys/bus/pseudo/drivers/scsi_debug")
_PATIENCE: Final = 60.0
SLOW: Final = '"256k"'  # a second, of 6 MiB at least
MORE: Final = """\
rate = {rate}
no-retire = true
segment = "256k"
batch = "512k"
on_failure = ["/bin/sh", "-c", "echo $DMCOPY_POLICY $DMCOPY_JOB: $DMCOPY_ERROR >/run/told"]
"""
_POLICY: Final = (
    MORE
    + """\
source = "{source}"
destination = {destination}
when = {{ on = ["plug"] }}
verify = true
"""
)


def dmcopy(*argv: str) -> list[dict[str, Any]]:  # Any: JSON
    """Run ``dmcopy``; give what it says as JSON."""
    return [json.loads(line) for line in sh("dmcopy", *argv, "--json").splitlines()]


def eventually(is_so: Callable[[], object], what: str) -> None:
    """Wait, and leave the guest's one CPU to those who are waited for."""
    end = time.monotonic() + _PATIENCE
    while not is_so():
        assert time.monotonic() < end, f"not within {_PATIENCE} s: {what}"
        time.sleep(0.2)


def commands(manual: str, after: str, names: Mapping[str, tuple[str, int]]) -> str:
    """Give the first block of commands behind a text of a manual, as a script.

    *names* are those in it: the one of this host to put in its place, and how often it is there.
    """
    text = (CHECKOUT / manual).read_text().partition(after)[2].partition("::\n\n")[2]
    script = text.partition("\n\n")[0].replace("\n    ", "\n").removeprefix("    ") + "\n"
    for old, (new, times) in names.items():
        assert script.count(old) == times, script
        script = script.replace(old, new)
    return script


def source_of(at: Scene, seed: int, mib: int = MIB) -> str:
    """Give an origin whose blocks a load's log can prove."""
    path = at.origin(mib)
    stamp.fill(path, seed=seed, processes=1)
    return path


def jobs(policy: str) -> list[dict[str, Any]]:  # Any: JSON
    return [job for job in dmcopy("list") if job["job"].startswith(f"{policy}-")]


def write_policy(name: str, source: str, destination: str, rate: str = SLOW) -> None:
    text = _POLICY.format(source=source, destination=destination, rate=rate)
    (POLICIES / f"{name}.toml").write_text(text)
    sh("dmcopy", "policy", "check")


def disks() -> dict[str, str]:
    """Give the SCSI disks: kernel name -> path in sysfs."""
    return {path.name: str(path.resolve()) for path in Path("/sys/block").glob("sd*")}


def unit_of(syspath: str) -> str:
    return sh("systemd-escape", "--path", "--template=dmcopy-plug@.service", syspath)


def unit(syspath: str, key: str) -> str:
    return sh("systemctl", "show", "--value", f"--property={key}", unit_of(syspath))


def said(syspath: str) -> str:
    return sh("journalctl", "--output=cat", "--unit", unit_of(syspath))


def is_over(syspath: str) -> bool:
    return unit(syspath, "ActiveState") in ("inactive", "failed")


def witness_of(policy: str) -> bytes:
    """Wait for the begin time of a policy's job, and read its snapshot, past the page cache."""
    eventually(
        lambda: any(one.begun is not None for one in records(policy)), f"a job of {policy} begins"
    )
    return read_device(f"/dev/mapper/dmcopy-{records(policy)[-1].name}-snap")


def records(policy: str) -> list[Record]:
    """Look into the journal: it takes less than to start a program."""
    if not Places.from_environment().journal.exists():
        return []
    with Journal(Places.from_environment().journal, read_only=True) as journal:
        return [one for one in journal.records() if one.name.startswith(f"{policy}-")]


def begun(policy: str) -> list[Mapping[str, Any]]:  # Any: JSON
    """Give what the journal has of the begin time of each job of a policy."""
    return [one.begun for one in records(policy) if one.begun is not None]


def is_copying(policy: str, more_than: int = 0) -> bool:
    (job,) = records(policy)
    if job.state is not State.COPYING or job.progress is None:
        return False
    return int(job.progress["bytes_done"]) > more_than


def interrupted(policy: str, syspath: str) -> dict[str, Any]:  # Any: JSON
    """Give the job of a policy whose disk was pulled out: it waits for the disk."""
    ended(syspath, "the unit ends with its disk")
    (job,) = jobs(policy)
    assert (job["state"], job["can_resume"]) == ("paused", True), said(syspath)
    assert not Path("/run/told").exists(), "to be unplugged is no failure"
    return job


def assert_gone_on(policy: str, name: str, syspath: str) -> None:
    """The job *name* of a policy has ended well; it was interrupted, and is the only one."""
    (job,) = jobs(policy)
    assert job["job"] == name, "one job, from the first plug to the last"
    assert (job["state"], job["ended"]["exit_status"]) == ("ended", 0), said(syspath)
    assert job["ended"]["verified"]
    assert job["ended"]["bytes_resumed"] > 0


class Adapter:
    """scsi_debug: its hosts are slots, and the disk in each is the same."""

    def __init__(self) -> None:
        subprocess.run(["modprobe", "--remove", "scsi_debug"], check=False, capture_output=True)
        sh("modprobe", "sd_mod")
        sh("modprobe", "scsi_debug", f"dev_size_mb={MIB}", "delay=0", "add_host=0",
           "vpd_use_hostno=0")  # fmt: skip

    def plug(self, *, slot: int | None = None) -> tuple[str, str]:
        """Plug the disk in, in a new slot or in one that there is; give name and path in sysfs."""
        before = disks()
        if slot is None:
            (_DRIVER / "add_host").write_text("1")
        else:
            Path(f"/sys/class/scsi_host/host{slot}/scan").write_text("- - -")
        until(lambda: disks().keys() - before.keys(), "the disk appears")
        (name,) = disks().keys() - before.keys()
        return name, disks()[name]

    def unplug(self, name: str) -> None:
        (Path("/sys/block") / name / "device/delete").write_text("1")

    def wwn(self, name: str) -> str:
        return (Path("/sys/block") / name / "device/wwid").read_text().strip()

    def close(self) -> None:
        patiently("modprobe", "--remove", "scsi_debug")


def settled(syspath: str) -> None:
    """Wait until systemd has asked whether the unit of a device that appeared has work to do."""
    sh("udevadm", "settle", "--timeout=60")
    eventually(
        lambda: unit(syspath, "ConditionTimestampMonotonic") not in ("", "0"),
        "its appearance is over",
    )


def ended(syspath: str, what: str) -> None:
    eventually(lambda: is_over(syspath), what)
