"""``python -m benchmarks.impact_stage``: the part of the impact's benchmark in the guest.

Writes its samples into the artefacts after every load of every round, so that a run that was
cut short is not lost.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Final

from benchmarks.devices import CHUNK, DATA, MIB, SECTOR, Devices, create, remove, swap
from benchmarks.distribution import DISTRIBUTIONS
from benchmarks.impact_devices import devices as make_devices
from benchmarks.impact_methods import METHODS, Method
from benchmarks.impact_samples import Retired, Run, Sample, felt, windows
from benchmarks.load import application, percentile
from benchmarks.methods import MethodFailed
from benchmarks.stage import machine

_PIECE: Final = 4 * MIB
_BLOCK: Final = 4096
PARTS: Final = ("plain", "retired", "snapshot")


def _say(text: str) -> None:
    print(text, flush=True)


def _run_one(
    method: Method, devices: Devices, load: str, number: int, options: argparse.Namespace
) -> Sample:
    devices.settle()
    pause, least = options.pause, devices.size / _PIECE * options.delay / 1000
    source = method.source(devices)
    # the same writes in the same order for all methods of a round
    seed = f"{load} {number}"
    with application(source, options.iops, load, seed, warm_up=pause) as writer:
        copied = method.run(devices, least)
        done = time.time()
        time.sleep(pause)
        stopped = time.time()
    begin, end = copied.window
    return Sample(
        method=method.name,
        load=load,
        round=number,
        order=0,  # the caller knows
        command_seconds=copied.command_seconds,
        copy_seconds=copied.copy_seconds,
        snapshot_seconds=copied.snapshot_seconds,
        chunks=copied.chunks,
        before=felt(writer.log, writer.warm - pause, writer.warm),
        during=felt(writer.log, begin, end),
        after=felt(writer.log, done, stopped),
        holds=copied.holds,
        retires=copied.retires,
        windows=windows(writer.log, begin),
    )


def _rounds(run: Run, options: argparse.Namespace, devices: Devices) -> None:
    methods = [one for one in METHODS if not options.only or one.name in options.only]
    loads = [one for one in DISTRIBUTIONS if not options.load or one in options.load]
    for number in range(options.rounds):
        for index, load in enumerate(loads):
            turn = (2 * number + index) % len(methods)
            for order, method in enumerate(methods[turn:] + methods[:turn]):
                try:
                    sample = _run_one(method, devices, load, number, options)
                except (MethodFailed, subprocess.CalledProcessError, ValueError, KeyError) as exc:
                    detail = getattr(exc, "stderr", "") or ""
                    run.failures.append(
                        f"round {number + 1}, {load}, {method.name}: {exc} {detail}"
                    )
                    _say(run.failures[-1])
                    continue
                run.samples.append(replace(sample, order=order))
                _say(_line(sample))
            _save(run, options.out)


def _line(sample: Sample) -> str:
    during = sample.during
    late = f"p99 {during.p99 * 1e3:.2f} ms, {during.iops:.0f} IOPS" if during else "no writes"
    return (
        f"round {sample.round + 1} {sample.load} {sample.method}: "
        f"copy {sample.copy_seconds:.2f} s, command {sample.command_seconds:.2f} s, "
        f"{sample.chunks} chunks, {late}, {sample.retires} retires"
    )


def _save(run: Run, path: Path) -> None:
    new = path.with_suffix(".new")
    new.write_text(json.dumps(run.as_json()))
    new.rename(path)


# what is retired already


@contextmanager
def _half_retired(devices: Devices) -> Iterator[None]:
    """Give the application's volume the table that it has when its first half is retired."""
    source = create("bench-source", devices.linear)
    half = devices.sectors // 2
    try:
        create(
            "bench-snap",
            f"0 {devices.sectors} snapshot {source} {devices.cow} P {CHUNK // SECTOR}",
        )
        swap(
            DATA,
            f"0 {half} linear {source} 0\n{half} {devices.sectors - half} snapshot-origin {source}",
        )
        yield
    finally:
        swap(DATA, devices.linear)
        remove("bench-snap", "bench-source")


def _closed_loop(path: str, offset: int, length: int, seconds: float, seed: str) -> list[float]:
    """Write as fast as one can who waits for each write; give what each took."""
    place = random.Random(seed)  # noqa: S311 - a load, not a secret
    memory = mmap.mmap(-1, _BLOCK)
    memory.write(os.urandom(_BLOCK))
    blocks, took = length // _BLOCK, list[float]()
    file = os.open(path, os.O_RDWR | os.O_DIRECT)
    try:
        last = time.monotonic()
        until = last + seconds
        while last < until:
            os.pwrite(file, memory, offset + place.randrange(blocks) * _BLOCK)
            now = time.monotonic()
            took.append(now - last)
            last = now
    finally:
        os.close(file)
    return took


def _measure_part(part: str, number: int, devices: Devices, seconds: float) -> Retired:
    half = devices.size // 2
    offset = half if part == "snapshot" else 0
    devices.settle()

    with nullcontext() if part == "plain" else _half_retired(devices):
        took = _closed_loop(devices.data, offset, half, seconds, f"{number}")
    first = took[: half // CHUNK // 4]
    return Retired(
        part=part,
        round=number,
        iops=len(took) / sum(took),
        first_iops=len(first) / sum(first),
        p99=percentile(sorted(took), 0.99),
    )


def _retired(run: Run, options: argparse.Namespace, devices: Devices) -> None:
    for number in range(options.retired_rounds):
        turn = number % len(PARTS)
        for part in PARTS[turn:] + PARTS[:turn]:
            found = _measure_part(part, number, devices, options.retired_seconds)
            run.retired.append(found)
            _say(f"as fast as it can, {part}: {found.iops:.0f} IOPS ({found.first_iops:.0f} first)")
    _save(run, options.out)


def main(argv: Sequence[str]) -> int:
    """Measure; the exit status is 0 when every method ran."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.impact_stage", description=__doc__)
    parser.add_argument("--size", type=int, required=True, metavar="BYTES")
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--iops", type=int, required=True)
    parser.add_argument("--delay", type=int, required=True, metavar="MILLISECONDS")
    parser.add_argument("--pause", type=float, required=True, metavar="SECONDS")
    parser.add_argument("--retired-rounds", type=int, required=True)
    parser.add_argument("--retired-seconds", type=float, required=True)
    parser.add_argument("--only", action="append", default=[], metavar="METHOD")
    parser.add_argument("--load", action="append", default=[], metavar="DISTRIBUTION")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(argv)
    # the guest's disk is a layer in memory: state goes to a tmpfs, as a fast disk would have it
    os.environ["DMCOPY_STATE_DIR"] = "/run/dmcopy-bench/state"
    os.environ["DMCOPY_RUN_DIR"] = "/run/dmcopy-bench/run"
    run = Run()
    started = time.monotonic()
    try:
        with make_devices(options.size, options.delay) as devices:
            run.machine = machine()
            _say(f"devices are there after {time.monotonic() - started:.0f} s")
            _retired(run, options, devices)
            _rounds(run, options, devices)
    finally:
        shutil.rmtree("/run/dmcopy-bench", ignore_errors=True)
    return 1 if run.failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
