"""``python -m benchmarks.stage``: the part that runs in the guest.

Writes ``samples.json`` into the artefacts after every round, so that a run that was cut short
is not lost.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from benchmarks.devices import CHUNK, Devices, call, ram_disks
from benchmarks.load import application
from benchmarks.memory import measure
from benchmarks.methods import METHODS, Method, MethodFailed
from benchmarks.samples import IDLE, LOAD, Run, Sample

GIB: Final = 1 << 30
TIB: Final = 1 << 40

_TOOLS: Final = (
    ("dd", "--version"),
    ("qemu-img", "--version"),
    ("nbdcopy", "--version"),
    ("dmsetup", "version"),
    ("lvm", "version"),
    ("python3", "--version"),
)


def _say(text: str) -> None:
    print(text, flush=True)


def machine() -> dict[str, object]:
    """Describe the guest."""
    versions = {}
    for argv in _TOOLS:
        said = subprocess.run(argv, capture_output=True, text=True, check=False).stdout
        versions[argv[0]] = said.strip().splitlines()[0] if said.strip() else "not there"
    return {
        "kernel": platform.release(),
        "cpus": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "versions": versions,
        "dm_targets": sorted(line.split()[0] for line in call("dmsetup", "targets").splitlines()),
    }


def _run_one(method: Method, devices: Devices, state: str, iops: int) -> Sample:
    startup = None
    if method.startup is not None and state == IDLE:
        devices.settle()
        startup = method.startup(devices)
    devices.settle()
    if state == IDLE:
        timed, load = method.run(devices, state), None
    else:
        with application(devices.data, iops) as load:
            timed = method.run(devices, state)
    return Sample(
        method=method.name,
        state=state,
        round=0,  # the caller knows
        order=0,
        command_seconds=timed.command_seconds,
        copy_seconds=timed.copy_seconds,
        startup_seconds=startup,
        latency=load.latency(*timed.window) if load else None,
        baseline=load.baseline() if load else None,
        hold_seconds=timed.hold_seconds,
        bytes_cow=timed.bytes_cow,
    )


def _rounds(run: Run, options: argparse.Namespace, devices: Devices, save: Path) -> None:
    methods = [one for one in METHODS if not options.only or one.name in options.only]
    for number in range(options.rounds):
        turn = number % len(methods)
        for state in (IDLE, LOAD):
            for order, method in enumerate(methods[turn:] + methods[:turn]):
                try:
                    sample = _run_one(method, devices, state, options.iops)
                except (MethodFailed, subprocess.CalledProcessError) as exc:
                    detail = getattr(exc, "stderr", "") or ""
                    run.failures.append(
                        f"round {number + 1}, {state}, {method.name}: {exc} {detail}"
                    )
                    _say(run.failures[-1])
                    continue
                exact = devices.same() if state == IDLE and number == 0 else None
                run.samples.append(replace(sample, round=number, order=order, exact=exact))
                late = f", p99 {sample.latency.p99 * 1e3:.2f} ms" if sample.latency else ""
                _say(
                    f"round {number + 1} {state} {method.name}: copy {sample.copy_seconds:.3f} s, "
                    f"command {sample.command_seconds:.3f} s{late}"
                )
        _save(run, save)


def _save(run: Run, path: Path) -> None:
    new = path.with_suffix(".new")
    new.write_text(json.dumps(run.as_json()))
    new.rename(path)


def _memory(run: Run, options: argparse.Namespace, devices: Devices) -> None:
    limit = options.memory_seconds
    cases = [
        ("1 GiB", GIB, 0),
        ("1 TiB", TIB, 0),
        # as fast as the COW device can stand for so long
        (
            "1 TiB, written at random",
            TIB,
            min(options.iops, int(devices.size // CHUNK / limit / 2)),
        ),
    ]
    for name, size, iops in cases:
        try:
            found = measure(devices, name, size, seconds=limit, iops=iops)
        except (MethodFailed, subprocess.CalledProcessError) as exc:
            run.failures.append(f"memory, {name}: {exc} {getattr(exc, 'stderr', '')}")
            _say(run.failures[-1])
            continue
        run.memory.append(found)
        _say(
            f"memory {name}: {found.peak_rss_bytes >> 20} MiB at most, "
            f"{found.copied_bytes / GIB:.1f} GiB in {found.seconds:.0f} s"
        )


def main(argv: Sequence[str]) -> int:
    """Measure; the exit status is 0 when every method ran."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stage", description=__doc__)
    parser.add_argument("--size", type=int, required=True, metavar="BYTES")
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--iops", type=int, required=True)
    parser.add_argument("--memory-seconds", type=float, required=True)
    parser.add_argument("--only", action="append", default=[], metavar="METHOD")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(argv)
    # the guest's disk is a layer in memory: state goes to a tmpfs, as a fast disk would have it
    os.environ["DMCOPY_STATE_DIR"] = "/run/dmcopy-bench/state"
    os.environ["DMCOPY_RUN_DIR"] = "/run/dmcopy-bench/run"
    run = Run()
    started = time.monotonic()
    with ram_disks(options.size) as devices:
        run.machine = machine()
        _say(f"devices are there after {time.monotonic() - started:.0f} s")
        if options.memory_seconds:
            _memory(run, options, devices)
        _rounds(run, options, devices, options.out)
    return 1 if run.failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
