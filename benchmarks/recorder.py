"""``python -m benchmarks.recorder DIR``: the part of the forecast's benchmark that records.

Runs in the guest: copies a volume of 512 MiB to a destination that is a delay target, so that
it takes a minute, while fio writes to the volume; what dmcopy's progress events say becomes a
series in DIR.  `benchmarks.forecast` replays them.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from benchmarks.devices import MIB, SECTOR, call, create, fill, remove

SIZE: Final = 512 * MIB
_RAM: Final = 544 * MIB  # of each disk: a COW device that never fills is larger than the source
_SOURCE, _COW, _SINK, _SLOW = "record-source", "record-cow", "record-sink", "record-slow"
_SEGMENT: Final = 2 * MIB
_DELAY_MS: Final = 220  # of a write, which is a segment: 256 of them take a minute
_CHUNK: Final = 64 << 10
_FEWEST_MIB: Final = 520  # of a COW device for 512 MiB that cannot overflow


class Phase(NamedTuple):
    """What fio does for a while; no writes a second: it pauses."""

    seconds: float
    iops: int
    options: tuple[str, ...] = ("--random_distribution=random",)


@dataclass(frozen=True, kw_only=True)
class Load:
    """A series to record: the phases go round until the copy ends."""

    name: str
    about: str
    phases: tuple[Phase, ...]
    cow_mib: int = _FEWEST_MIB
    filesystem: bool = False


LOADS: Final = (
    Load(name="uniform", about="random writes, 120 a second", phases=(Phase(600, 120),)),
    Load(
        name="overflow",
        about="random writes, 60 a second; the COW device overflows",
        phases=(Phase(600, 60),),
        cow_mib=150,
    ),
    Load(
        name="bursts",
        about="3 s of 150 writes a second, 7 s of nothing",
        phases=(Phase(3, 150), Phase(7, 0)),
    ),
    Load(
        name="idle",
        about="a second of 10 writes, 12 s of nothing",
        phases=(Phase(6, 0), Phase(1, 10), Phase(6, 0)),
    ),
    Load(
        name="growing",
        about="from 5 writes a second to 120 in steps of 4 s; the COW device overflows",
        phases=tuple(Phase(4, min(5 + 8 * step, 120)) for step in range(100)),
        cow_mib=110,
    ),
    Load(
        name="step",
        about="3 writes a second, from 25 s on 150; the COW device overflows",
        phases=(Phase(25, 3), Phase(600, 150)),
        cow_mib=200,
    ),
    Load(
        name="zipf",
        about="200 writes a second, zipf 1.1: most go where there were some before",
        phases=(Phase(600, 200, ("--random_distribution=zipf:1.1",)),),
    ),
    Load(
        name="files",
        about="ext4, 80 buffered random writes a second: written back when the kernel likes",
        phases=(Phase(600, 80),),
        filesystem=True,
    ),
)


def _fio(target: str, phase: Phase, seed: int, *, filesystem: bool) -> list[str]:
    where = (
        [f"--directory={target}", "--nrfiles=4", "--size=320M", "--fallocate=none"]
        if filesystem
        else [f"--filename={target}", "--direct=1", "--norandommap"]
    )
    return [
        "fio", "--name=load", *where, "--rw=randwrite", "--bs=4k", "--ioengine=psync",
        "--time_based", f"--runtime={phase.seconds}", f"--rate_iops={phase.iops}",
        "--randrepeat=0", f"--randseed={seed}", "--output=/dev/null", *phase.options,
    ]  # fmt: skip


class _Application(threading.Thread):
    """Goes through a load's phases until it is stopped."""

    def __init__(self, load: Load, target: str) -> None:
        super().__init__(daemon=True)
        self._load = load
        self._target = target
        self._end = threading.Event()
        self._fio: subprocess.Popen[bytes] | None = None

    def run(self) -> None:
        seed = 0
        while True:
            for phase in self._load.phases:
                seed += 1
                if phase.iops:
                    argv = _fio(self._target, phase, seed, filesystem=self._load.filesystem)
                    self._fio = subprocess.Popen(argv, stdin=subprocess.DEVNULL)
                    while self._fio.poll() is None and not self._end.wait(0.05):
                        pass
                    self._fio.terminate()
                    self._fio.wait()
                if self._end.wait(0 if phase.iops else phase.seconds):
                    return

    def stop(self) -> None:
        self._end.set()
        self.join()


@contextmanager
def _volume(load: Load) -> Iterator[str]:
    """Make the devices of one series; gives what the application writes to."""
    with ExitStack() as stack:

        def made(name: str, length: int, target: str) -> str:
            path = create(name, f"0 {length // SECTOR} {target}")
            stack.callback(remove, name)
            return path

        with open("/dev/ram1", "r+b", buffering=0) as cow:
            cow.write(bytes(MIB))  # no signature of the last one
        source = made(_SOURCE, SIZE, "linear /dev/ram0 0")
        made(_COW, load.cow_mib * MIB, "linear /dev/ram1 0")
        sink = made(_SINK, SIZE, "zero")
        made(_SLOW, SIZE, f"delay {sink} 0 0 {sink} 0 {_DELAY_MS}")
        if not load.filesystem:
            yield source
            return
        call("mkfs.ext4", "-q", "-F", "-E", "nodiscard", source)
        with tempfile.TemporaryDirectory() as point:
            call("mount", source, point)
            try:
                yield point
            finally:
                call("umount", point)
        fill("/dev/ram0", MIB, salt=1)


def record(load: Load) -> dict[str, Any]:  # Any: JSON
    """Copy under *load*; give the series."""
    argv = [
        sys.executable, "-m", "dmcopy", "copy", "--json", "--digest", "none",
        "--chunk", str(_CHUNK), "--segment", str(_SEGMENT), "--cow", f"/dev/mapper/{_COW}",
        f"/dev/mapper/{_SOURCE}", f"/dev/mapper/{_SLOW}",
    ]  # fmt: skip
    points: list[tuple[float, int, int, int]] = []
    last: dict[str, Any] = {}  # Any: JSON
    with _volume(load) as target:
        application = _Application(load, target)
        copy = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
        assert copy.stdout is not None
        began = ended = 0.0
        for line in copy.stdout:
            last, ended = json.loads(line), time.monotonic()
            if last["event"] == "begun":
                began = ended
                application.start()
            elif last["event"] == "progress":
                seen = (last["cow_used_bytes"], last["bytes_done"], last["cow_total_bytes"])
                points.append((round(ended - began, 2), *seen))
        copy.wait()
        application.stop()
    return {
        "name": load.name,
        "about": load.about,
        "kernel": platform.release(),
        "size": SIZE,
        "chunk": _CHUNK,
        "state": last["state"],
        "ended": round(ended - began, 2),
        "points": points,
    }


def _text(series: dict[str, Any]) -> str:  # Any: JSON
    """Write a series with a point a line."""
    rest = dict(series)
    points = ",\n".join(json.dumps(point) for point in rest.pop("points"))
    return f'{json.dumps(rest)[:-1]}, "points": [\n{points}\n]}}\n'


def main(argv: Sequence[str]) -> int:
    """Record the series that are named, or all."""
    out = Path(argv[0])
    os.environ["DMCOPY_STATE_DIR"] = "/run/dmcopy-record/state"
    os.environ["DMCOPY_RUN_DIR"] = "/run/dmcopy-record/run"
    with suppress(subprocess.CalledProcessError):
        call("modprobe", "-r", "brd")
    call("modprobe", "brd", "rd_nr=2", f"rd_size={_RAM >> 10}")
    call("modprobe", "-a", "dm-mod", "dm-snapshot", "dm-delay")
    fill("/dev/ram0", SIZE, salt=1)  # zeroes would be copied in no time
    for load in LOADS:
        if argv[1:] and load.name not in argv[1:]:
            continue
        series = record(load)
        (out / f"{load.name}.json").write_text(_text(series))
        print(
            f"{load.name}: {series['state']} after {series['ended']} s, "
            f"{len(series['points'])} points, {series['points'][-1]}",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
