"""Prove the lab itself: that a status comes back, and that nothing false ever does.

Each promise is one boot.  A lab that would say 0 for a guest that panicked would make every
other test worthless, so the suite runs this first.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, NamedTuple
from xml.etree import ElementTree as ET

from lab.guest import CUT, NO_STATUS, TIME_LIMIT, run

_SECONDS: Final = {"uml": 90.0, "qemu": 240.0, "host": 30.0}  # for a boot on a busy machine
_SYSRQ: Final = "echo %s >/proc/sysrq-trigger; sleep 60"


class Promise(NamedTuple):
    """A command and the status that must come back."""

    name: str
    command: str
    status: int
    guest: bool = True  # makes sense only where there is a guest to lose
    seconds: float = 0.0  # time limit, if not the engine's
    cut: bool = False  # the power is cut when the command makes the file "cut"
    systemd: bool = False


PROMISES: Final = (
    Promise("the status of a command that fails comes back", "exit 7", 7, guest=False),
    Promise("a guest that panics is no pass", _SYSRQ % "c", NO_STATUS),
    Promise("success is success", "true", 0, guest=False),
    Promise("a guest that resets is no pass", _SYSRQ % "b", NO_STATUS),
    Promise("a guest that switches itself off is no pass", _SYSRQ % "o", NO_STATUS),
    Promise("a guest that hangs ends at its time limit", "sleep 900", TIME_LIMIT, seconds=12.0),
    Promise("a command that is killed is no pass", "kill -KILL $$", 128 + 9, guest=False),
    Promise(
        "a guest with systemd gives the command's status",
        'test "$(cat /proc/1/comm)" = systemd && systemctl is-active basic.target && exit 9',
        9,
        systemd=True,
    ),
    Promise("a power cut is told and ends all", '>"$LAB_ARTEFACTS/cut"; sleep 900', CUT, cut=True),
)


class Outcome(NamedTuple):
    """What became of a promise."""

    engine: str
    name: str
    seconds: float
    fault: str  # empty: kept


def _traces(directory: Path) -> list[str]:
    """Name what a run left on the host: its files in shared memory, its processes."""
    left = [str(path) for path in directory.iterdir()]
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            try:
                words = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if os.fsencode(directory) in words:
                left.append(f"process {entry.name}")
    return left


def _check(engine: str, promise: Promise) -> Outcome:
    started = time.monotonic()
    base = Path(tempfile.mkdtemp(prefix="dmcopy-check-"))
    wants_cut = base / "artefacts" / "cut"
    try:
        result = run(
            ["sh", "-c", promise.command],
            engine=engine,
            timeout=promise.seconds or _SECONDS[engine],
            artefacts=base / "artefacts",
            quiet=True,
            cut=wants_cut.exists if promise.cut else None,
            systemd=promise.systemd,
        )
        shutil.rmtree(base / "artefacts")
        fault = ""
        if result.status != promise.status:
            fault = f"status {result.status}, not {promise.status} {result.why}"
        elif left := _traces(base):
            fault = f"left behind: {', '.join(left)}"
    finally:
        shutil.rmtree(base, ignore_errors=True)
    return Outcome(engine, promise.name, time.monotonic() - started, fault)


def check(engines: Sequence[str], *, brief: bool) -> list[Outcome]:
    """Boot each engine for each promise (the first two when *brief*), and tell as it goes."""
    outcomes = []
    for engine in engines:
        for promise in PROMISES[:2] if brief else PROMISES:
            if promise.guest and engine == "host":
                continue
            if promise.systemd and engine != "uml":
                continue
            outcome = _check(engine, promise)
            outcomes.append(outcome)
            kept = f"FAILED: {outcome.fault}" if outcome.fault else "PASSED"
            print(f"{engine}: {outcome.name} ({outcome.seconds:.1f} s) {kept}", flush=True)
    return outcomes


def write_junit(outcomes: Iterable[Outcome], path: Path) -> None:
    """Write the outcomes in the form that pytest's junit-xml has."""
    suite = ET.Element("testsuite", name="lab check")
    for outcome in outcomes:
        case = ET.SubElement(suite, "testcase", classname=outcome.engine, name=outcome.name)
        if outcome.fault:
            ET.SubElement(case, "failure", message=outcome.fault)
    ET.ElementTree(suite).write(path, encoding="unicode")
