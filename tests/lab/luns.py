"""Disks that a SAN, or something like it, gives this machine: scsi_debug, and an iSCSI target.

The target is a tgtd of the test's own, on the loopback interface of the guest.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from tests.lab.stage import Stage, patiently, sh

_IQN: Final = "iqn.2026-01.test.dmcopy:lun"
_PORTAL: Final = "127.0.0.1:3260"
_PATIENCE: Final = 30.0


def _disks() -> set[str]:
    return {path.name for path in Path("/sys/block").glob("sd*")}


def _new_disk(before: set[str]) -> str:
    end = time.monotonic() + _PATIENCE
    while True:
        for name in sorted(_disks() - before):
            with suppress(OSError):
                fd = os.open(f"/dev/{name}", os.O_RDONLY)
                os.close(fd)
                return f"/dev/{name}"
        assert time.monotonic() < end, "no disk appeared"
        time.sleep(0.05)


@contextmanager
def scsi_debug(mib: int) -> Iterator[str]:
    """Give a LUN of the kernel's own simulated adapter."""
    subprocess.run(["modprobe", "--remove", "scsi_debug"], check=False, capture_output=True)
    sh("modprobe", "sd_mod")  # udev may not run
    before = _disks()
    sh("modprobe", "scsi_debug", f"dev_size_mb={mib}", "per_host_store=1", "delay=0")
    try:
        yield _new_disk(before)
    finally:
        patiently("modprobe", "--remove", "scsi_debug")


@contextmanager
def iscsi(stage: Stage, mib: int) -> Iterator[str]:
    """Give a LUN that an iSCSI target on loopback exports."""
    sh("modprobe", "-a", "iscsi_tcp", "sd_mod")
    for folder in ("/run/lock/iscsi", "/run/iscsi"):
        os.makedirs(folder, exist_ok=True)
    name = Path("/etc/iscsi/initiatorname.iscsi")  # of the guest's own root, in memory
    name.parent.mkdir(exist_ok=True)
    name.write_text("InitiatorName=iqn.2026-01.test.dmcopy:initiator\n")
    file = stage.file(mib)
    # in the foreground: the test ends them by their pids
    target = subprocess.Popen(
        ["tgtd", "--foreground", "--iscsi", "portal=127.0.0.1:3260"],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    initiator = subprocess.Popen(
        ["iscsid", "--foreground"],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    before = _disks()
    admin = ("tgtadm", "--lld", "iscsi")
    node = ("iscsiadm", "--mode", "node", "--targetname", _IQN, "--portal", _PORTAL)
    try:
        patiently(*admin, "--op", "new", "--mode", "target", "--tid", "1", "--targetname", _IQN)
        sh(
            *admin, "--op", "new", "--mode", "logicalunit", "--tid", "1", "--lun", "1",
            "--backing-store", file,
        )  # fmt: skip
        sh(*admin, "--op", "bind", "--mode", "target", "--tid", "1", "--initiator-address", "ALL")
        patiently("iscsiadm", "--mode", "discovery", "--type", "sendtargets", "--portal", _PORTAL)
        sh(*node, "--login")
        yield _new_disk(before)
    finally:
        for words in ((*node, "--logout"), (*node, "--op", "delete")):
            subprocess.run(words, check=False, capture_output=True)
        for process in (initiator, target):
            process.kill()
            process.wait(30)
        end = time.monotonic() + _PATIENCE
        while _disks() - before and time.monotonic() < end:
            time.sleep(0.05)
