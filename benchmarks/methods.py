"""Who is compared, and how each is run: its best documented flags.

A method that cannot make a point in time gets the kernel's snapshot device to read from when
the source is being written (`needs_snapshot`); on an idle source it reads the device itself,
which is in its favour.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from benchmarks.devices import DATA, SECTOR, Devices, call, swap
from benchmarks.samples import LOAD

_REGION: Final = 2 << 20  # of dm-mirror: LVM's default


class MethodFailed(Exception):
    """A method did not do what it was asked; the text says what it said."""


@dataclass(kw_only=True)
class Timed:
    """How one copy went; times are of time.time()."""

    command_seconds: float
    copy_seconds: float
    window: tuple[float, float]  # of the copy, the swap at begin time included
    hold_seconds: tuple[float, ...] = ()
    bytes_cow: int | None = None
    startup_seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class Method:
    """One contestant."""

    name: str
    label: str
    how: str  # for the table: what it read from under load
    command: str  # as an administrator would type it
    run: Callable[[Devices, str], Timed]
    startup: Callable[[Devices], float] | None = field(default=None)


def run_program(argv: Sequence[str]) -> tuple[float, float, str]:
    """Run a program; give when it began and ended, and its output."""
    began = time.time()
    done = subprocess.run(
        argv,
        check=False,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    ended = time.time()
    if done.returncode:
        raise MethodFailed(f"{' '.join(argv)}: status {done.returncode}: {done.stdout.strip()}")
    return began, ended, done.stdout


# dmcopy


def dmcopy_argv(devices: Devices, *options: str) -> list[str]:
    """Give dmcopy's command line."""
    return [
        sys.executable, "-m", "dmcopy", "copy", "--json", "--overwrite-signature",
        "--cow", devices.cow, *options, devices.data, devices.destination,
    ]  # fmt: skip


def _dmcopy(*options: str) -> Callable[[Devices, str], Timed]:
    def run(devices: Devices, state: str) -> Timed:
        del state  # it makes its own point in time, idle or not
        began = time.time()
        seen = dmcopy_events(devices, *options)
        return from_events(seen, began, time.time())

    return run


def dmcopy_events(devices: Devices, *options: str) -> list[tuple[float, dict[str, Any]]]:
    """Run dmcopy; give its events, and when each came."""
    process = subprocess.Popen(
        dmcopy_argv(devices, *options),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    seen: list[tuple[float, dict[str, Any]]] = []  # Any: JSON
    for line in process.stdout:
        seen.append((time.time(), json.loads(line)))
    status = process.wait()
    if status or not seen or seen[-1][1].get("state") != "ended":
        raise MethodFailed(f"dmcopy: status {status}: {seen[-1:]}")
    return seen


def from_events(seen: list[tuple[float, dict[str, Any]]], began: float, ended: float) -> Timed:
    """Read the times off the events; the copy's own is the worker's, its last flush included."""
    begin = end = 0.0
    last = seen[-1][1]
    for at, event in seen:
        if event["event"] == "begun":
            # nanoseconds are more than datetime takes
            text = re.sub(r"(\.\d{6})\d+Z$", r"\1+00:00", event["begin_time"])
            begin = datetime.fromisoformat(text).timestamp()
        elif event["event"] == "progress" and event["phase"] == "copy":
            end = at  # the last one comes when all is durable
    return Timed(
        command_seconds=ended - began,
        copy_seconds=last["copy_seconds"],
        window=(begin, end),
        hold_seconds=tuple(last["hold_seconds"]),
        bytes_cow=last["bytes_cow"],
    )


# peers


def dd_argv(source: str, destination: str) -> list[str]:
    """Give dd's command line."""
    return ["dd", f"if={source}", f"of={destination}", "bs=4M", "iflag=direct", "oflag=direct"]


def dd_seconds(output: str) -> float:
    """Read what dd says that it took."""
    found = re.search(r"copied, ([0-9.e-]+) s", output)
    if found is None:
        raise MethodFailed(f"dd said no time: {output}")
    return float(found[1])


def _raw_dd(devices: Devices, state: str) -> Timed:
    del state
    began, ended, output = run_program(dd_argv(devices.data, devices.destination))
    return Timed(
        command_seconds=ended - began, copy_seconds=dd_seconds(output), window=(began, ended)
    )


def _snapshot_dd(devices: Devices, state: str) -> Timed:
    del state
    start = time.time()
    with devices.snapshot() as snapshot:
        began, ended, output = run_program(dd_argv(snapshot, devices.destination))
    return Timed(
        command_seconds=time.time() - start,
        copy_seconds=dd_seconds(output),
        window=(began, ended),
    )


def _peer(argv: Callable[[str, str], list[str]]) -> Callable[[Devices, str], Timed]:
    """Run a program that says no times itself; its start-up is measured apart."""

    def run(devices: Devices, state: str) -> Timed:
        start = time.time()
        if state == LOAD:
            with devices.snapshot() as snapshot:
                began, ended, _ = run_program(argv(snapshot, devices.destination))
        else:
            began, ended, _ = run_program(argv(devices.data, devices.destination))
        return Timed(
            command_seconds=time.time() - start,
            copy_seconds=ended - began,
            window=(began, ended),
        )

    return run


def _startup(argv: Callable[[str, str], list[str]]) -> Callable[[Devices], float]:
    def run(devices: Devices) -> float:
        with devices.tiny() as (source, destination):
            began, ended, _ = run_program(argv(source, destination))
        return ended - began

    return run


def qemu_img_argv(source: str, destination: str) -> list[str]:
    """Give qemu-img's command line."""
    return [
        "qemu-img", "convert", "-n", "-t", "none", "-T", "none", "-W", "-m", "8",
        "-f", "raw", "-O", "raw", source, destination,
    ]  # fmt: skip


def _nbdcopy_argv(source: str, destination: str) -> list[str]:
    # Its default of 256 KiB a request was slower here: 4.0 s a GiB against 3.0 s.
    return ["nbdcopy", "--flush", "--request-size=1048576", source, destination]


def _mirror(devices: Devices, state: str) -> Timed:
    del state
    start = time.time()
    region, sectors = _REGION // SECTOR, devices.sectors
    event = call("dmsetup", "info", "-c", "--noheadings", "-o", "events", DATA).strip()
    call(
        "dmsetup", "load", DATA, "--table",
        f"0 {sectors} mirror core 1 {region} 2 {devices.base} 0 {devices.destination} 0",
    )  # fmt: skip
    began = time.time()
    try:
        call("dmsetup", "resume", DATA)
        call("dmsetup", "wait", DATA, event)
        ended = time.time()
        status = call("dmsetup", "status", DATA).split()
    finally:
        swap(DATA, devices.linear)  # the split
    done, total = next(word for word in status[4:] if "/" in word).split("/")
    if done != total:
        raise MethodFailed(f"dm-mirror sent an event before it was in sync: {status}")
    return Timed(
        command_seconds=time.time() - start, copy_seconds=ended - began, window=(began, ended)
    )


RAW = "dd"
DMCOPY = "dmcopy"
DMCOPY_SHA256 = "dmcopy-sha256"
SNAPSHOT_DD = "dd-snapshot"
QEMU_IMG = "qemu-img"
NBDCOPY = "nbdcopy"
MIRROR = "dm-mirror"

METHODS: Final = (
    Method(
        name=DMCOPY,
        label="dmcopy, no digest",
        how="its own point in time",
        command="dmcopy copy --digest none --cow /dev/ram2 /dev/mapper/data /dev/ram1",
        run=_dmcopy("--digest", "none"),
    ),
    Method(
        name=DMCOPY_SHA256,
        label="dmcopy, sha256",
        how="its own point in time",
        command="dmcopy copy --cow /dev/ram2 /dev/mapper/data /dev/ram1",
        run=_dmcopy(),
    ),
    Method(
        name=RAW,
        label="dd, raw device",
        how="no point in time: the limit",
        command="dd bs=4M iflag=direct oflag=direct if=/dev/mapper/data of=/dev/ram1",
        run=_raw_dd,
    ),
    Method(
        name=SNAPSHOT_DD,
        label="dd, snapshot device",
        how="kernel's snapshot",
        command="dd bs=4M iflag=direct oflag=direct if=/dev/mapper/snap of=/dev/ram1",
        run=_snapshot_dd,
    ),
    Method(
        name=QEMU_IMG,
        label="qemu-img convert",
        how="kernel's snapshot under load",
        command=" ".join(qemu_img_argv("SOURCE", "/dev/ram1")),
        run=_peer(qemu_img_argv),
        startup=_startup(qemu_img_argv),
    ),
    Method(
        name=NBDCOPY,
        label="nbdcopy",
        how="kernel's snapshot under load",
        command=" ".join(_nbdcopy_argv("SOURCE", "/dev/ram1")),
        run=_peer(_nbdcopy_argv),
        startup=_startup(_nbdcopy_argv),
    ),
    Method(
        name=MIRROR,
        label="dm-mirror, first sync",
        how="point in time is its end",
        command="dmsetup load data --table '0 N mirror core 1 4096 2 /dev/ram0 0 /dev/ram1 0'",
        run=_mirror,
    ),
)
