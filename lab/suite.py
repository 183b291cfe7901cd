"""Everything that must hold, by one command: linters, unit tests, and both kernels.

What is counted comes from junit-xml, and is compared with what was collected beforehand: a
guest that did not boot, a test that was skipped, deselected or lost on the way is a failure.
Each step writes a log; the logs are printed whole at the end, then one line for each step, one
for each test that failed, and last of all ``N passed, N failed``.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple
from xml.etree import ElementTree as ET

from lab import deb
from lab.guest import CHECKOUT, LabError, venv

_HEARTBEAT: Final = 20.0  # seconds
_ENDS: Final = (" PASSED", " FAILED", " ERROR", " SKIPPED")
_WHY: Final = 240  # characters of a failed test's reason: who sees the output's end only sees that


# Each in a guest of its own; what no line names is run with udev, in "uml-udev".
_GUESTS: Final = {
    "uml-kill": ("test_kill",),
    "uml-agent": ("test_agent",),
    "uml-torture": ("test_deadman", "test_faults", "test_torture"),
    "uml-retire": ("test_retire",),
    "uml-resume": ("test_after_boot", "test_journal", "test_rate", "test_resume"),
    "uml-cow": ("test_brake", "test_growth", "test_on_full"),
    "uml-md": ("test_md", "test_md_split"),
    "uml-copy": ("test_copier", "test_copy", "test_top"),
    "uml-lvm": ("test_luns", "test_lvm"),
    "uml-begin": ("test_begin_time", "test_looking", "test_mounted"),
    "uml-hooks": ("test_hooks", "test_hooks_databases"),
    "uml-group": ("test_group",),
    "uml-database": ("test_database",),
    "uml-ansible": ("test_ansible",),
}


class Count(NamedTuple):
    """What a junit file says."""

    passed: int
    failed: int
    skipped: int

    @property
    def ran(self) -> int:
        """Give the number of tests that were begun."""
        return self.passed + self.failed + self.skipped


@dataclass
class Step:
    """One program of the suite, and where it writes what."""

    name: str
    argv: Sequence[str]
    directory: Path
    collect: Sequence[str] = ()  # pytest arguments: how many tests there must be
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    seconds: float = 0.0
    expected: int | None = None

    @property
    def log(self) -> Path:
        return self.directory / "log.txt"

    @property
    def junit(self) -> Path:
        return self.directory / "junit.xml"


def count(text: str) -> Count:
    """Count the test cases of a junit file.

    A case is listed twice by pytest when its test failed and its teardown as well.
    """
    worst: dict[tuple[str, str], int] = {}
    for case in ET.fromstring(text).iter("testcase"):  # noqa: S314 (our own file)
        kinds = {child.tag for child in case}
        rank = 2 if kinds & {"failure", "error"} else 1 if "skipped" in kinds else 0
        key = (case.get("classname", ""), case.get("name", ""))
        worst[key] = max(worst.get(key, 0), rank)
    ranks = list(worst.values())
    return Count(ranks.count(0), ranks.count(2), ranks.count(1))


def faults(text: str) -> list[str]:
    """Give a line for each case of a junit file that did not pass: which, and why."""
    found = []
    for case in ET.fromstring(text).iter("testcase"):  # noqa: S314 (our own file)
        name = f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name', '')}"
        for child in case:
            if child.tag in ("failure", "error", "skipped"):
                why = " ".join(child.get("message", "").split())
                found.append(f"{name}: {why}"[: len(name) + _WHY])
    return found


def judge(status: int, found: Count | None, expected: int | None) -> tuple[Count, list[str]]:
    """Turn a step's exit status and tests into the count to report, and the reasons.

    Whatever did not pass has failed: skipped, lost, or a status that no failed test explains.
    """
    if found is None:
        lost = max(expected or 0, 1)
        return Count(0, lost, 0), [f"no result of any test (exit status {status})"]
    why = []
    failed = found.failed
    if failed:
        why.append(f"{failed} failed")
    if found.skipped:
        failed += found.skipped
        why.append(f"{found.skipped} skipped")
    if expected is not None and found.ran < expected:
        failed += expected - found.ran
        why.append(f"{expected - found.ran} of {expected} did not run")
    if found.ran == 0:
        failed += 1
        why.append("no test ran")
    if status and not failed:
        failed += 1
        why.append(f"exit status {status}")
    return Count(found.passed, failed, 0), why


def collected(arguments: Sequence[str]) -> int | None:
    """Count the tests that pytest would run; None when it cannot even collect them."""
    argv = [str(venv() / "bin/python"), "-m", "pytest", "--collect-only", "-q", *arguments]
    env = dict(os.environ, LAB_GUEST="collect")
    env.pop("PYTHONDONTWRITEBYTECODE", None)  # pytest's own bytecode is for the guests too
    done = subprocess.run(argv, cwd=CHECKOUT, env=env, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 5):  # 5: there are none
        print(done.stdout + done.stderr, flush=True)
        return None
    return sum("::" in line for line in done.stdout.splitlines())


def _lab_tests(names: Sequence[str] = ()) -> list[str]:
    """Give the lab's test files *names*; without names, those that no other step has."""
    files = sorted(path.stem for path in (CHECKOUT / "tests/lab").glob("test_*.py"))
    others = {name for names in _GUESTS.values() for name in names}
    wanted = [name for name in files if (name in names if names else name not in others)]
    return [f"tests/lab/{name}.py" for name in wanted]


def steps(where: Path, wanted: Sequence[str]) -> dict[str, Step]:
    """Give the suite's steps by name."""
    python = str(venv() / "bin/python")
    pytest = [python, "-m", "pytest", "-v", "--color=no"]
    lab = [python, "-m", "lab"]

    def guest(name: str, seconds: int, tests: Sequence[str], *options: str) -> Step:
        directory = where / name
        return Step(
            name,
            [
                *lab, "run", "--engine", name.partition("-")[0], *options,
                "--memory", "2G", "--timeout", str(seconds), "--artefacts", str(directory), "--",
                *pytest, f"--junit-xml={directory / 'junit.xml'}", *tests,
            ],
            directory,
            collect=tests,
        )  # fmt: skip

    def boots(engine: str, *more: str) -> Step:
        directory = where / f"check-{engine}"
        junit = ["--junit", str(directory / "junit.xml")]
        return Step(directory.name, [*lab, "check", "--engine", engine, *junit, *more], directory)

    def here(name: str, *tests: str) -> Step:
        directory = where / name
        argv = [*pytest, f"--junit-xml={directory / 'junit.xml'}", *tests]
        return Step(name, argv, directory, collect=tests)

    host = ("linters", "lintian", "ansible")
    every = [*(f"tests/test_{name}.py" for name in host), "tests/unit", "tests/contract"]
    all_steps = [
        here("host", *every),
        here("uml-cuts", "tests/cuts"),  # boots its guests itself, one after the other
        boots("uml"),
        # udev makes each dm device some tenths of a second slower under user-mode Linux
        *(guest(name, 1800, _lab_tests(tests), "--no-udev") for name, tests in _GUESTS.items()),
        guest("uml-udev", 1800, _lab_tests()),
        guest("uml-package", 1800, ["tests/package"], "--systemd"),
        guest("uml-systemd", 1800, ["tests/systemd"], "--systemd"),
        boots("qemu", "--brief"),
        guest("qemu", 1800, ["tests/lab", "-m", "proof", "--timeout=600"], "--no-udev"),
    ]
    by_name = {step.name: step for step in all_steps}
    return {name: by_name[name] for name in wanted}


def _start(step: Step) -> None:
    step.directory.mkdir(parents=True, exist_ok=True)
    step.junit.unlink(missing_ok=True)
    with step.log.open("wb") as log:
        step.started = time.monotonic()
        step.process = subprocess.Popen(
            step.argv,
            cwd=CHECKOUT,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=dict(os.environ, PYTHONUNBUFFERED="1"),
        )


def _pulse(step: Step) -> str:
    text = step.log.read_text(errors="replace")
    ended = sum(any(end in line for end in _ENDS) for line in text.splitlines())
    return f"{step.name} {ended} done"


def _run(steps: Sequence[Step], *, slots: int = 1) -> None:
    """Run the steps in this order, at most *slots* of them at a time."""
    waiting = list(steps)
    running: list[Step] = []
    began = beat = time.monotonic()
    try:
        while waiting or running:
            while waiting and len(running) < slots:
                _start(waiting[0])
                running.append(waiting.pop(0))
            time.sleep(0.2)
            for step in list(running):
                if step.process is not None and step.process.poll() is not None:
                    step.seconds = time.monotonic() - step.started
                    running.remove(step)
                    print(f"[{time.monotonic() - began:4.0f} s] {_pulse(step)}, ended", flush=True)
            if time.monotonic() - beat > _HEARTBEAT and running:
                beat = time.monotonic()
                pulses = "; ".join(_pulse(step) for step in running)
                print(f"[{beat - began:4.0f} s] {pulses}", flush=True)
    finally:
        for step in running:
            if step.process is not None:
                with suppress(ProcessLookupError):
                    step.process.send_signal(signal.SIGTERM)
                step.process.wait()


def _package() -> str:
    """Have the Debian package for its tests; give what went wrong, or nothing."""
    try:
        deb.current()
    except (LabError, OSError) as exc:
        return f"lab: no package: {exc}"
    return ""


def _report(chosen: Sequence[Step]) -> int:
    passed = failed = 0
    lines, failures = [], []
    for step in chosen:
        print(f"\n===== {step.name} =====", flush=True)
        print(step.log.read_text(errors="replace") if step.log.exists() else "(not started)")
        found = None
        if step.junit.exists():
            with suppress(ET.ParseError):
                found = count(step.junit.read_text())
                failures += [f"{step.name}: {line}" for line in faults(step.junit.read_text())]
        status = step.process.returncode if step.process is not None else -1
        result, why = judge(status, found, step.expected)
        passed += result.passed
        failed += result.failed
        lines.append(
            f"{step.name:12} {result.passed:4} passed {result.failed:4} failed "
            f"{step.seconds:6.0f} s  {', '.join(why)}".rstrip()
        )
    print("\n" + "\n".join([*lines, *failures]))
    print(f"{passed} passed, {failed} failed", flush=True)
    return 1 if failed else 0


def main(argv: Sequence[str]) -> int:
    """Run the suite; 0 only when every test passed."""
    # the longest first, so that two slots end at about the same time
    first = (
        "uml-cuts",
        "uml-package",
        "uml-systemd",
        "uml-udev",
        "uml-lvm",
        "uml-resume",
        "uml-database",
        "uml-ansible",
    )
    longest = (*first, *(name for name in _GUESTS if name not in first))
    # a guest of QEMU that does not boot is seen by "qemu" as well: check-qemu is for who asks
    names = ("host", *longest, "check-uml", "qemu")
    parser = argparse.ArgumentParser(prog="python -m lab.suite", description=__doc__)
    parser.add_argument("--only", action="append", choices=(*names, "check-qemu"))
    parser.add_argument("--engine", choices=("uml", "qemu"), help="only what this engine runs")
    parser.add_argument("--one-by-one", action="store_true", help="the guests not side by side")
    options = parser.parse_args(argv)
    where = CHECKOUT / ".lab" / "suite"
    wanted = [n for n in options.only or names if not options.engine or options.engine in n]
    by_name = steps(where, wanted)
    chosen = list(by_name.values())
    counted = [step for step in chosen if step.collect]
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        package = pool.submit(_package) if "uml-package" in wanted else None
        found = pool.map(collected, [step.collect for step in counted])
        for step, number in zip(counted, found, strict=True):
            step.expected = number
    if package is not None and (why := package.result()):
        print(why)  # its tests fail, for they find none
    print("running: " + ", ".join(f"{s.name} ({s.expected or 'some'} tests)" for s in chosen))

    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    # QEMU alone, since it has two CPUs: beside a user-mode Linux guest, which has one, it takes
    # twice as long.
    small = [step for step in chosen if step.name != "qemu"]
    _run(small, slots=1 if options.one_by_one else 2)
    _run([step for step in chosen if step.name == "qemu"])
    return _report(chosen)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
