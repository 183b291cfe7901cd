"""What happens inside the guest whose interrupted copy goes on by itself after each boot.

``begin`` wraps the disk, mounts it, has it written to, and writes a policy for the disk that is
there, whose copy begins; the power fails.  ``under-way`` and ``to-the-end`` are the boots after
it: they look on, and nobody asks dmcopy for anything.  ``load`` is the application, a unit of its
own.  As in `wrap_side` nothing is judged here.

    python -m tests.cuts.boot_side begin|under-way|to-the-end|load SEED
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from dmcopy.jobs.journal import Journal, Record
from dmcopy.jobs.spec import Places
from dmcopy.jobs.state import State, is_final
from tests.cuts.guest_side import SHARE, tell
from tests.cuts.wrap_side import BIG, DATA, NAME, PARTITION, WRAP, Load, dmcopy
from tests.lab.harness import read_device
from tests.lab.stage import sh

POLICY: Final = "offsite"
LABEL: Final = "dmcopy-offsite"
TARGET: Final = "/dev/ubdb1"
AGENT: Final = "dmcopy-agent.service"
UNITS: Final = ("dmcopy-resume.service", AGENT, "dmcopy-wrap-note.service")
_FAILED: Final = Path("/run/failed")
_SLOW: Final = "64k"  # a second: the witness is read before the first batch is retired
_RATE: Final = "1500k"  # slow enough that the agent is up, in the second life, before the end
_TEXT: Final = f"""\
source = "{WRAP}"
destination = {{ partlabel = "{LABEL}" }}
when = {{ on = ["plug"] }}
rate = "{_SLOW}"
segment = "256k"
batch = "2m"
cow = "26m"
overwrite_signature = true
on_failure = ["/bin/sh", "-c", "echo $DMCOPY_JOB: $DMCOPY_ERROR >>{_FAILED}"]
"""
_PATIENCE: Final = 120.0
_PART: Final = 2 << 20  # bytes that the copy comes on in one life


def eventually(is_so: Callable[[], object], what: str) -> None:
    """Wait, and leave the guest's one CPU to those who are waited for."""
    end = time.monotonic() + _PATIENCE
    while not is_so():
        assert time.monotonic() < end, f"not within {_PATIENCE} s: {what}: {found()}"
        time.sleep(0.2)


def records() -> list[Record]:
    """Look into the journal, past ``dmcopy``."""
    path = Places.from_environment().journal
    if not path.exists():
        return []
    with Journal(path, read_only=True) as journal:
        return journal.records()


def record() -> Record | None:
    """Give the first job that has a begin time."""
    return next((one for one in records() if one.begun is not None), None)


def copied() -> int:
    """Give the bytes that the job has at its destination."""
    known = record()
    if known is None or known.progress is None:
        return 0
    return int(known.progress["bytes_done"])


def is_at_work() -> bool:
    known = record()
    return known is not None and known.state is State.COPYING


def table() -> str:
    return sh("dmsetup", "table", NAME)


def plug_unit() -> str:
    path = str(Path("/sys/class/block", Path(TARGET).name).resolve())
    return sh("systemd-escape", "--path", "--template=dmcopy-plug@.service", path)


def begin() -> None:
    """Wrap, mount, write; write the policy, and have its copy begin; the host cuts the power."""
    status, _, said = dmcopy("wrap", PARTITION, NAME)
    assert status == 0, said
    DATA.mkdir(exist_ok=True)
    sh("mount", WRAP, str(DATA))
    (DATA / "big").write_bytes(random.Random(9).randbytes(BIG))
    sh("sync")
    load = Load(1, most=BIG // 4)
    with load.running():
        synced = load.number
        policies = Path("/etc/dmcopy/policies.d")
        policies.mkdir()
        (policies / f"{POLICY}.toml").write_text(_TEXT)
        sh("dmcopy", "policy", "check")
        for part in ("dmcopy", "udev/rules.d"):
            shutil.copytree(Path("/etc", part), SHARE / "etc" / part)
        # with a directory of policies the device wants the unit
        sh("udevadm", "trigger", "--action=change", "--name-match", TARGET)
        eventually(lambda: (one := record()) and one.begun, "the copy begins")
        known = record()
        assert known is not None
        tell("bounds", json.dumps({"synced": synced, "after": load.number + 1}).encode())
        tell("witness", read_device(f"/dev/mapper/dmcopy-{known.name}-snap"))
        assert "linear" not in table(), "nothing was retired before the witness was read"
        sh("dmcopy", "set", known.name, f"rate={_RATE}")
        eventually(lambda: "linear" in table(), "something is retired")
        tell("ready")
        time.sleep(60)


def under_way() -> None:
    """Look on until the copy has come on; then the machine is started again in good order."""
    before = copied()
    eventually(lambda: is_at_work() and copied() > before + _PART, "the copy comes on by itself")
    eventually(lambda: _said("systemctl", "is-active", AGENT) == "active", "the agent is up")
    tell("found", json.dumps(found()).encode())


def to_the_end() -> None:
    """Look on until the copy has ended, and nothing more is about to happen."""
    eventually(lambda: (one := record()) and is_final(one.state), "the copy ends by itself")
    sh("udevadm", "settle", "--timeout=60")  # the destination is shown again
    eventually(is_quiet, "whatever that began has ended")
    tell("found", json.dumps(found()).encode())


def is_quiet() -> bool:
    """Tell whether systemd starts nothing more, but for us, and no job runs."""
    waiting = [line for line in sh("systemctl", "list-jobs", "--no-legend").splitlines() if line]
    active = sh(
        "systemctl", "list-units", "--no-legend", "--state=active,activating", "dmcopy-plug@*"
    )
    return len(waiting) <= 2 and not active and all(is_final(one.state) for one in records())


def found() -> dict[str, Any]:  # Any: JSON
    """Tell everything that the host may want to know."""
    plug = plug_unit()
    keys = "--property=Result,ActiveState,ExecMainStatus"
    names = sh("dmsetup", "info", "-c", "--noheadings", "-o", "name").split()
    return {
        "mounted": _said("findmnt", "--noheadings", "--output", "SOURCE", str(DATA)),
        "table": table(),
        "jobs": [
            {"job": one.name, "state": str(one.state), "ended": one.ended} for one in records()
        ],
        "copied": copied(),
        "units": {unit: _said("systemctl", "show", keys, unit) for unit in (*UNITS, plug)},
        "left": [name for name in names if name.startswith("dmcopy-")],
        "on_failure": _FAILED.read_text() if _FAILED.exists() else "",
        "failed": _said("systemctl", "--failed", "--no-legend", "--plain"),
        "files": sum(1 for path in DATA.iterdir() if path.name[:1] != "1"),
        "journal": _said("journalctl", "--boot", "--output=short-monotonic", "--no-hostname",
                         "--unit=dmcopy-*", "--unit=lab-load*").splitlines(),
    }  # fmt: skip


def _said(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    return (done.stdout + done.stderr).strip()


def load(seed: int) -> None:
    """Be the application, until we are told to stop."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    with Load(seed, most=BIG).running():
        while True:
            time.sleep(1)


if __name__ == "__main__":
    words = sys.argv[1:]
    os.environ.setdefault("LAB_ARTEFACTS", "/nonexistent")
    if words[0] == "load":
        load(int(words[1]))
    else:
        {"begin": begin, "under-way": under_way, "to-the-end": to_the_end}[words[0]]()
