"""How much memory one dmcopy takes: all its processes together, sampled while it copies.

The source is the zero target, so that it may be of any size, spliced like any live device; the
destination is another one.  A copy of 1 TiB takes minutes even so: it is stopped at a time
limit, given up, and the curve until then is what is told.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Final

from benchmarks.devices import SECTOR, Devices, create, remove
from benchmarks.load import application
from benchmarks.methods import MethodFailed, dmcopy_argv
from benchmarks.samples import Memory

_ZERO: Final = "bench-zero"
_SINK: Final = "bench-sink"
_EVERY: Final = 0.2  # seconds: a copy of 1 GiB takes about one
_INTERRUPTED: Final = 5  # dmcopy's exit status: the job is kept, for it could go on


def family(pid: int) -> list[int]:
    """Give *pid* and all its descendants."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            words = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        children.setdefault(int(words[1]), []).append(int(path.parent.name))
    found = [pid]
    for one in found:
        found += children.get(one, [])
    return found


def _kib(path: str, *names: str) -> dict[str, int]:
    """Read ``Name:   123 kB`` lines; nothing of a process that is gone."""
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return {}
    return {
        name: int(words[1]) << 10
        for line in lines
        if (words := line.split()) and (name := words[0].rstrip(":")) in names
    }


class Sampler(threading.Thread):
    """Looks at a process and its descendants five times a second."""

    def __init__(self, pid: int) -> None:
        """Begin with `start`, end with `stop`."""
        super().__init__(daemon=True)
        self._pid = pid
        self._end = threading.Event()
        self._began = time.monotonic()
        self.curve: list[tuple[float, int]] = []
        self.peak_rss = 0
        self._high: dict[int, int] = {}

    def run(self) -> None:
        """Sample until stopped."""
        while not self._end.wait(_EVERY):
            pss = rss = 0
            for pid in family(self._pid):
                rolled = _kib(f"/proc/{pid}/smaps_rollup", "Pss", "Rss")
                pss += rolled.get("Pss", 0)
                rss += rolled.get("Rss", 0)
                high = _kib(f"/proc/{pid}/status", "VmHWM").get("VmHWM", 0)
                self._high[pid] = max(high, self._high.get(pid, 0))
            if pss:
                self.curve.append((round(time.monotonic() - self._began, 2), pss))
                self.peak_rss = max(self.peak_rss, rss)

    def stop(self) -> None:
        """End, and wait for it."""
        self._end.set()
        self.join()

    @property
    def high_water(self) -> int:
        """The sum of what each process ever had at most."""
        return sum(self._high.values())


def measure(
    devices: Devices, name: str, size: int, *, seconds: float, iops: int, segment: str | None = None
) -> Memory:
    """Copy *size* bytes of zeroes for at most *seconds*, under *iops* writes (0: none)."""
    devices.settle()
    source = create(_ZERO, f"0 {size // SECTOR} zero")
    sink = create(_SINK, f"0 {size // SECTOR} zero")
    try:
        argv = dmcopy_argv(
            devices, "--digest", "none", *(["--segment", segment] if segment else [])
        )
        argv[-2:] = [source, sink]
        if not iops:
            return _sampled(argv, name, size, seconds, load=False)
        with application(source, iops):
            return _sampled(argv, name, size, seconds, load=True)
    finally:
        remove(_ZERO, _SINK)


def _sampled(argv: list[str], name: str, size: int, seconds: float, *, load: bool) -> Memory:
    process = subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    sampler = Sampler(process.pid)
    sampler.start()
    timer = threading.Timer(seconds, process.send_signal, [signal.SIGINT])
    began = time.monotonic()
    last: dict[str, Any] = {}  # Any: JSON
    job = ""
    for line in process.stdout:
        event = json.loads(line)
        job = event.get("job", job)
        if event["event"] == "begun":
            began = time.monotonic()
            timer.start()
        last = event if event["event"] == "progress" or not last else last
        last |= {"error": event["error"]} if "error" in event else {}
    seconds = time.monotonic() - began
    _, said = process.communicate()
    timer.cancel()
    sampler.stop()
    if process.returncode == _INTERRUPTED:
        _give_up(job)
    elif process.returncode:
        raise MethodFailed(f"status {process.returncode}: {last.get('error')} {said}")
    return Memory(
        name=name,
        source_bytes=size,
        copied_bytes=last.get("bytes_done", 0),
        seconds=seconds,
        finished=not process.returncode,
        load=load,
        exceptions=last.get("exceptions", 0),
        peak_pss_bytes=max((pss for _, pss in sampler.curve), default=0),
        peak_rss_bytes=sampler.peak_rss,
        high_water_bytes=sampler.high_water,
        curve=tuple(sampler.curve),
    )


def _give_up(job: str) -> None:
    """Cancel a job that was interrupted: it has its snapshot and its COW device still."""
    done = subprocess.run(
        [sys.executable, "-m", "dmcopy", "cancel", job],
        check=False,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise MethodFailed(f"dmcopy cancel {job}: status {done.returncode}: {done.stderr}")
