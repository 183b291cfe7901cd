"""What happens inside the guest, with systemd as first process, whose wrapped disk is copied.

``begin`` wraps the disk, mounts it, writes to it, copies it in the background, and goes on until
the power fails.  ``again`` is the next boot, in which systemd has mounted the wrap before we are
started: it writes, and then has the job resumed.  ``rescue`` is a boot of another system, which
mounts the disk itself.  As in `guest_side` nothing is judged here.

    python -m tests.cuts.wrap_side begin|again|rescue
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from tests.cuts.guest_side import SHARE, tell
from tests.lab.harness import read_device, until
from tests.lab.stage import sh

JOB: Final = "cut"
NAME: Final = "data"
PARTITION, TARGET = "/dev/ubda1", "/dev/ubdb"
WRAP: Final = f"/dev/mapper/{NAME}"
SNAPSHOT: Final = f"/dev/mapper/dmcopy-{JOB}-snap"
DATA: Final = Path("/data")
UUID: Final = "5d0c2a51-1f3d-4c55-9e0b-6a1f3d4c559e"
BIG: Final = 8 << 20  # bytes of the file that is overwritten
COPY: Final = (
    "copy", WRAP, f"block:{TARGET}", "--name", JOB, "--segment", "256k", "--batch", "1m",
    "--rate", "2m", "--cow", "26m", "--hold-start", "--detach", "--json",
)  # fmt: skip
_BLOCK: Final = 4096
_PAUSE: Final = 0.02  # seconds between two writes
_COPY_SECONDS: Final = 2.5  # of 11 that the copy takes


def dmcopy(*argv: str) -> tuple[int, str, str]:
    """Run ``dmcopy`` as a user would: status, stdout, stderr."""
    done = subprocess.run(["dmcopy", *argv], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


class Load:
    """Overwrites blocks of one file, and makes numbered files; each is durable before the next."""

    def __init__(self, seed: int, *, most: int) -> None:
        """*most*: it overwrites only so many bytes of the file's beginning."""
        self._chance = random.Random(seed)
        self._most = most
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._seed = seed
        self.number = 0  # of the last file that is durable
        self.failure: OSError | None = None

    def _run(self) -> None:
        try:
            fd = os.open(DATA / "big", os.O_RDWR)
            while not self._stop.wait(_PAUSE):
                at = self._chance.randrange(self._most // _BLOCK) * _BLOCK
                os.pwrite(fd, self._chance.randbytes(_BLOCK), at)
                os.fsync(fd)
                path = DATA / f"{self._seed}-{self.number + 1}"
                with path.open("w") as file:
                    file.write(str(self.number + 1))
                    file.flush()
                    os.fsync(file.fileno())
                self.number += 1
            os.close(fd)
        except OSError as exc:
            self.failure = exc

    @contextmanager
    def running(self) -> Iterator[None]:
        self._thread.start()
        try:
            until(lambda: self.number > 2 or self.failure is not None)
            yield
            assert self.failure is None, f"a write failed: {self.failure}"
        finally:
            self._stop.set()
            self._thread.join()


def links() -> dict[str, str]:
    """Give what the links lead to that speak of the file system, and of the partition."""
    found = {}
    for folder in ("by-uuid", "by-partuuid", "by-dmcopy"):
        for link in sorted(Path("/dev/disk", folder).glob("*")):
            found[f"{folder}/{link.name}"] = os.path.basename(os.path.realpath(link))
    return found


def begin() -> None:
    """Wrap, mount, write, copy; the host cuts the power."""
    before = links()
    status, out, said = dmcopy("wrap", PARTITION, NAME)
    assert status == 0, said
    again = dmcopy("wrap", PARTITION, NAME)
    tell("wrapped", json.dumps({"before": before, "out": out, "again": again}).encode())
    shutil.copytree("/etc/dmcopy", SHARE / "etc/dmcopy")
    shutil.copytree("/etc/udev/rules.d", SHARE / "etc/udev/rules.d")
    DATA.mkdir(exist_ok=True)
    sh("mount", WRAP, str(DATA))
    (DATA / "big").write_bytes(random.Random(9).randbytes(BIG))
    sh("sync")
    load = Load(1, most=BIG // 4)
    with load.running():
        synced = load.number
        status, _, said = dmcopy(*COPY)
        assert status == 0, said
        tell("bounds", json.dumps({"synced": synced, "after": load.number + 1}).encode())
        tell("witness", read_device(SNAPSHOT))
        status, _, said = dmcopy("resume", JOB)
        assert status == 0, said
        tell("links", json.dumps(links()).encode())
        time.sleep(_COPY_SECONDS)
        tell("ready")
        time.sleep(60)


def again() -> None:
    """Write, then resume the job, in the boot after the cut."""
    sh("systemctl", "is-active", "local-fs.target")
    found: dict[str, Any] = {  # Any: JSON
        "mounted": sh("findmnt", "--noheadings", "--output", "SOURCE", str(DATA)).strip(),
        "links": links(),
        "list": json.loads(dmcopy("wrap", "--list", "--json")[1]),
        "unit": sh("systemctl", "show", "--property=Result", f"dmcopy-wrap@{NAME}.service").strip(),
        "note": sh("systemctl", "show", "--property=Result", "dmcopy-wrap-note.service").strip(),
        "said": sh("journalctl", "--unit", f"dmcopy-wrap@{NAME}.service", "--output=cat"),
    }
    try:
        _write_and_resume(found)
    finally:
        tell("found", json.dumps(found).encode())


def _write_and_resume(found: dict[str, Any]) -> None:  # Any: JSON
    load = Load(2, most=BIG)
    with load.running():
        until(lambda: load.number > 40)  # before anybody resumes the job
        if Path("/run/broken").exists():
            until(lambda: Path("/run/broken").read_text() == "done")
        found["before_resume"] = sh("dmsetup", "table", NAME)
        dmcopy("set", JOB, "rate=none")
        found["resume"] = dmcopy("resume", JOB, "--json")
    found["table"] = sh("dmsetup", "table", NAME)
    names = sh("dmsetup", "info", "-c", "--noheadings", "-o", "name").split()
    found["left"] = [name for name in names if name.startswith("dmcopy-")]
    found["files"] = load.number


def rescue() -> None:
    """Mount the disk in another system, which knows nothing of a wrap, and write to it."""
    Path("/mnt").mkdir(exist_ok=True)
    sh("mount", "-t", "ext4", PARTITION, "/mnt")
    Path("/mnt/intruder").write_text("was here")
    sh("umount", "/mnt")


if __name__ == "__main__":
    {"begin": begin, "again": again, "rescue": rescue}[sys.argv[1]]()
