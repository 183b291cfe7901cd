"""The host's side of a benchmark in the guest: what is needed, what is frozen, what is said."""

from __future__ import annotations

import compileall
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from lab.guest import CHECKOUT
from lab.guest import run as run_guest

GIB: Final = 1 << 30
_PACKAGES: Final = {
    "qemu-img": "qemu-utils",
    "nbdcopy": "libnbd-bin",
    "dmsetup": "dmsetup",
    "lvcreate": "lvm2",
}


def install() -> None:
    """Install what the peers need; says what, and does nothing when all is there."""
    path = "/usr/sbin:/sbin:" + os.environ.get("PATH", "/usr/bin:/bin")
    missing = sorted({pkg for tool, pkg in _PACKAGES.items() if not shutil.which(tool, path=path)})
    if not missing:
        return
    print(f"benchmarks: installing {', '.join(missing)}", flush=True)
    subprocess.run(
        ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing], check=True
    )


def machine() -> dict[str, Any]:  # Any: JSON
    """Describe the machine that the guest runs on."""
    cpu = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.partition(":")[2].strip()
            break
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.release(),
        "load_average": os.getloadavg(),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": _commit(),
    }


def _commit() -> str:
    git = ["git", "-C", str(CHECKOUT)]
    done = subprocess.run(
        [*git, "describe", "--always", "--abbrev=10"], capture_output=True, text=True, check=False
    )
    return done.stdout.strip()


def frozen(where: Path) -> Path:
    """Unpack what is committed, and give the directory: nobody's edits get into a run."""
    where.mkdir(parents=True)
    archive = subprocess.run(
        ["git", "-C", str(CHECKOUT), "archive", "HEAD", "dmcopy", "benchmarks", "lab"],
        check=True, stdout=subprocess.PIPE,
    ).stdout  # fmt: skip
    subprocess.run(["tar", "-x", "-C", str(where)], check=True, input=archive)
    compileall.compile_dir(where, quiet=2)  # as an installed package is
    return where


class Measured(NamedTuple):
    """What a guest's part has written, and how it went."""

    data: Mapping[str, Any]  # Any: JSON
    machine: Mapping[str, Any]  # the host
    seconds: int
    why: str  # it did not end well; empty: it did
    work: Path  # what the guest left


def measure_in_guest(
    module: str, *words: str, name: str, engine: str, memory_bytes: int, timeout: float
) -> Measured | None:
    """Run *module* of what is committed in a guest; None, and said why, when nothing came of it."""
    work = CHECKOUT / ".lab" / f"{name}-{os.getpid()}"
    tree = frozen(work / "tree")
    host = machine()
    samples = work / "samples.json"
    result = run_guest(
        [sys.executable, "-m", module, *words, "--out", str(samples)],
        engine=engine,
        memory=f"{memory_bytes >> 20}M",
        timeout=timeout,
        artefacts=work,
        cwd=tree,
        # without what the lab's tests preload, so that nobody gains by it
        env={"PYTHONPATH": str(tree), "LD_PRELOAD": ""},
    )
    if not samples.exists():
        print(f"benchmarks: nothing was measured: {result.why or result.status}", file=sys.stderr)
        return None
    host["load_average_after"] = os.getloadavg()
    data = json.loads(samples.read_text())
    return Measured(data, host, round(result.seconds), result.why or "", work)


def finish(measured: Measured, failures: Sequence[str]) -> int:
    """Remove what the guest left, unless there are *failures*; give the exit status."""
    if failures:
        print(f"benchmarks: what the guest left is in {measured.work}", file=sys.stderr)
        return 1
    shutil.rmtree(measured.work)
    return 0
