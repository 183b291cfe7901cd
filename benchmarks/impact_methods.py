"""Who copies while the application writes, and how each is run.

LVM's methods are a real snapshot of a logical volume; dmcopy's are one option each.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from benchmarks import impact_devices as lab
from benchmarks.devices import Devices
from benchmarks.impact_samples import Held
from benchmarks.methods import (
    dd_argv,
    dd_seconds,
    dmcopy_events,
    from_events,
    qemu_img_argv,
    run_program,
)


@dataclass(frozen=True, kw_only=True)
class Copied:
    """How one copy went; *window* is of time.time(), from begin time to the end of the copy."""

    command_seconds: float
    copy_seconds: float
    snapshot_seconds: float
    window: tuple[float, float]
    chunks: int | None = None
    holds: tuple[Held, ...] = ()
    retires: int = 0


@dataclass(frozen=True, kw_only=True)
class Method:
    """One contestant."""

    name: str
    label: str
    command: str  # as an administrator would type it
    run: Callable[[Devices, float], Copied]  # what a copy takes at least, for who copies nothing
    lvm: bool = False  # the application writes to the logical volume

    def source(self, devices: Devices) -> str:
        """Give what the application writes to."""
        return lab.ORIGIN if self.lvm else devices.data


def _nothing(devices: Devices, seconds: float) -> Copied:
    del devices
    began = time.time()
    time.sleep(seconds)
    return Copied(
        command_seconds=seconds, copy_seconds=seconds, snapshot_seconds=0.0,
        window=(began, time.time()),
    )  # fmt: skip


def _from_lvm(
    argv: Callable[[str, str], Sequence[str]], own: Callable[[str], float] | None
) -> Callable[[Devices, float], Copied]:
    """*own* reads the time off the output of a program that says one."""

    def run(devices: Devices, seconds: float) -> Copied:
        del seconds
        start = time.time()
        with lab.watched() as taking:
            lab.take_snapshot()
        # the snapshot is there from the swap on, not only when lvcreate ends; the swap is too
        # short to be seen at times, but not the table that is loaded just before it
        loaded = taking.changed or start
        held, taken = taking.held[-1] if taking.held else (loaded, loaded)
        dropping = lab.Watched()
        try:
            began, ended, output = run_program(argv(lab.SNAPSHOT, devices.destination))
            chunks, looked = lab.chunks_used(), time.time()
        finally:
            with lab.watched() as dropping:
                lab.drop_snapshot()
        return Copied(
            command_seconds=time.time() - start,
            copy_seconds=own(output) if own else ended - began,
            snapshot_seconds=looked - taken,
            window=(held, ended),
            chunks=chunks,
            holds=(
                *(Held("begin", until - since) for since, until in taking.held),
                *(Held("end", until - since) for since, until in dropping.held),
            ),
        )

    return run


def _dmcopy(*options: str) -> Callable[[Devices, float], Copied]:
    def run(devices: Devices, seconds: float) -> Copied:
        del seconds
        start = time.time()
        seen = dmcopy_events(devices, "--digest", "none", *options)
        timed = from_events(seen, start, time.time())
        events = [event for _, event in seen]
        last = events[-1]
        holds = [Held(one["reason"], one["seconds"]) for one in events if one["event"] == "hold"]
        holds += [
            Held("segment", one["hold_seconds"], one["writes_held"])
            for one in events
            if one["event"] == "segment"
        ]
        return Copied(
            command_seconds=timed.command_seconds,
            copy_seconds=timed.copy_seconds,
            snapshot_seconds=timed.window[1] - timed.window[0],
            window=timed.window,
            chunks=last["exceptions"],
            holds=tuple(holds),
            retires=last["retires"],
        )

    return run


NONE = "none"
LVM_DD = "lvm-dd"
LVM_QEMU = "lvm-qemu"
NO_RETIRE = "no-retire"
RETIRE = "retire"
HOT = "hot"
GATE = "gate"

_LVM: Final = f"lvcreate -s -c 64k -l 100%FREE -n snap {lab.VG}/origin; "
_OURS: Final = "dmcopy copy --digest none --cow /dev/ram2 "

METHODS: Final = (
    Method(name=NONE, label="no copy", command="", run=_nothing),
    Method(
        name=LVM_DD,
        label="LVM snapshot, dd",
        command=f"{_LVM}{' '.join(dd_argv(lab.SNAPSHOT, 'DESTINATION'))}; lvremove",
        run=_from_lvm(dd_argv, dd_seconds),
        lvm=True,
    ),
    Method(
        name=LVM_QEMU,
        label="LVM snapshot, qemu-img",
        command=f"{_LVM}{' '.join(qemu_img_argv(lab.SNAPSHOT, 'DESTINATION'))}; lvremove",
        run=_from_lvm(qemu_img_argv, None),
        lvm=True,
    ),
    Method(
        name=NO_RETIRE,
        label="dmcopy --no-retire",
        command=f"{_OURS}--no-retire SOURCE DESTINATION",
        run=_dmcopy("--no-retire"),
    ),
    Method(
        name=RETIRE,
        label="dmcopy",
        command=f"{_OURS}SOURCE DESTINATION",
        run=_dmcopy(),
    ),
    Method(
        name=HOT,
        label="dmcopy --order hot",
        command=f"{_OURS}--order hot SOURCE DESTINATION",
        run=_dmcopy("--order", "hot"),
    ),
    Method(
        name=GATE,
        label="dmcopy --gate segment",
        command=f"{_OURS}--gate segment SOURCE DESTINATION",
        run=_dmcopy("--gate", "segment"),
    ),
)
LABELS: Final = {one.name: one.label for one in METHODS}
