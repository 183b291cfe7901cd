"""What happens inside the guest whose power is cut: begin a copy, and take it up again.

``begin`` starts the job under a load, keeps the kernel's own view of the image as the *witness*,
and goes on until the power fails.  ``again``, in the next boot, says what became of the job.
Nothing is judged here: what was found goes into the share, a directory of the host, in which each
write is at the host when it returns (hostfs writes through; a mapping would not).

    python -m tests.cuts.guest_side begin [--blow TRANSITION] [--to-the-end] [--steer]
        [--copy-options WORDS] [--burst SECONDS] [--broken HOW] [--lvm]
    python -m tests.cuts.guest_side again --how snapshot|resume [--blow TRANSITION]
        [--touch] [--stretch] [--lvm]
"""

from __future__ import annotations

import argparse
import gc
import importlib
import io
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from dmcopy.cli.main import COMMANDS
from dmcopy.cli.main import main as dmcopy
from tests.cuts.broken import BROKEN
from tests.cuts.fuse import Fuse
from tests.lab import stamp
from tests.lab.harness import differing, read_device, until, writes_of
from tests.lab.scene import fill_fork
from tests.lab.stage import patiently, sh

for _command in ("copy", "resume", "rescue", "status"):  # the forks would import them anew
    importlib.import_module(f"dmcopy.cli.{COMMANDS[_command]}")

JOB: Final = "cut"
SOURCE, TARGET, STATE = ("/dev/ubda", "/dev/ubdb", "/dev/ubdc")  # the same in each boot
ORIGIN: Final = "/dev/mapper/cut-origin"
DESTINATION: Final = "/dev/mapper/cut-destination"
SNAPSHOT: Final = f"/dev/mapper/dmcopy-{JOB}-snap"
LVM_SNAPSHOT: Final = f"/dev/mapper/cut-dmcopy_{JOB}"
LVM_MIB: Final = 8  # of the volume, where the origin is one
MOUNT: Final = Path("/run/cut-state")
CHUNK: Final = 64 << 10  # bytes
SLOW_MS: Final = 40  # a write to the destination takes at least so long
RETIRES_MS: Final = 150  # where each batch shall be retired for itself
# What the command line of a job that is cut adds; what takes it up again.
COPY_OPTIONS: Final = ("--segment", "256k", "--batch", "1m", "--verify")
RESUME: Final = ("resume", JOB, "--json")
PAUSE: Final = 0.02  # seconds between two writes of the load
# What a running job is told, one after the other.
STEERING: Final = (("pause", JOB), ("set", JOB, "rate=100m"), ("resume", JOB))
_GOES_ON: Final = frozenset({"begun", "resumed", "progress"})  # events of a job under way
_PATIENCE: Final = 60.0

SHARE: Final = Path(os.environ.get("LAB_ARTEFACTS", "/nonexistent"))


# the files in the share


def tell(name: str, data: bytes = b"") -> None:
    """Write a file that the host sees whole or not at all."""
    new = SHARE / f"{name}.new"
    with new.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    new.rename(SHARE / name)


# devices


def state_disk(device: str = STATE) -> None:
    """Mount the disk that keeps the journal and the COW file; ext4 replays its own journal."""
    MOUNT.mkdir(exist_ok=True)
    sh("mount", "-t", "ext4", device, str(MOUNT))
    os.environ["DMCOPY_STATE_DIR"] = str(MOUNT / "dmcopy")


def devices(
    source: str = SOURCE,
    target: str = TARGET,
    *,
    write_ms: int = SLOW_MS,
    lvm: bool = False,
    new: bool = False,
) -> None:
    """Make the origin and the destination, which are the same after each boot."""
    sh("modprobe", "-a", "dm-snapshot", "dm-delay")
    if lvm:
        volume(source, new=new)
    else:
        size = stamp.device_length(source) >> 9
        sh("dmsetup", "create", "cut-origin", "--table", f"0 {size} linear {source} 0")
    size = stamp.device_length(target) >> 9
    slow = f"0 {size} delay {target} 0 0 {target} 0 {write_ms}"
    sh("dmsetup", "create", "cut-destination", "--uuid", "LAB-cut-destination", "--table", slow)


def volume(source: str = SOURCE, *, new: bool) -> None:
    """Make the origin a logical volume, or activate it as a booting machine does."""
    types = 'devices {\n\ttypes = [ "ubd", 16 ]\n}\n'  # LVM does not know such disks
    Path("/etc/lvm/lvmlocal.conf").write_text(types)
    if not new:
        sh("vgchange", "--quiet", "--activate", "y", "cut")
        return
    sh("wipefs", "--all", "--force", source)
    sh("vgcreate", "--quiet", "--yes", "--physicalextentsize", "1m", "cut", source)
    size = ("--size", f"{LVM_MIB}m", "--name", "origin")
    sh("lvcreate", "--quiet", "--yes", "--zero", "n", "--wipesignatures", "n", *size, "cut")
    stamp.fill(ORIGIN, seed=1)


@contextmanager
def load(*, seed: int, pause: float = PAUSE) -> Iterator[None]:
    """Write to the origin all the time; its log dies with the guest."""
    argv = [sys.executable, stamp.__file__, "load", ORIGIN, "--log", f"/run/cut-log-{seed}"]
    argv += ["--seed", str(seed), "--seconds", "120", "--pause", str(pause), "--max-blocks", "8"]
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL)
    try:
        before = writes_of(ORIGIN)
        until(lambda: writes_of(ORIGIN) > before or process.poll() is not None)
        yield
        assert process.poll() is None, "the load ended: a write failed"
    finally:
        process.terminate()
        process.wait()


# dmcopy


class Forked:
    """A ``dmcopy`` in a fork of this process, which has everything imported.

    Its journal is watched by a `Fuse`; its events go to the share as they come.  Where *pauses*,
    it stops when its plan has run, which is when the begin time is fixed, until `go_on`.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        blow: str | None = None,
        pauses: bool = False,
        broken: str | None = None,
    ) -> None:
        self.events_file = SHARE / "events"
        self.errors_file = SHARE / "errors"
        self._told, say = os.pipe()
        hear, self._go = os.pipe()
        gc.freeze()
        self._pid = os.fork()
        if self._pid:
            os.close(say)
            os.close(hear)
            return

        def wait() -> None:
            os.write(say, b"!")
            os.read(hear, 1)

        if broken is not None:
            BROKEN[broken]()
        fuse = Fuse(SHARE, blow, when_planned=wait if pauses else None)
        self._child(argv, fuse)

    def _child(self, argv: Sequence[str], fuse: Fuse) -> None:
        status = 99
        try:
            fill_fork()
            os.setsid()
            for number, path in ((1, self.events_file), (2, self.errors_file)):
                fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                os.dup2(fd, number)
                os.close(fd)
            sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), write_through=True)
            sys.stderr = io.TextIOWrapper(io.FileIO(2, "w", closefd=False), write_through=True)
            fuse.arm()
            status = dmcopy(argv)
            sys.stdout.flush()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)

    def has_planned(self) -> bool:
        """Wait until it has a begin time; False when it ended before."""
        return os.read(self._told, 1) == b"!"

    def go_on(self) -> None:
        os.write(self._go, b"!")

    def events(self) -> list[dict[str, Any]]:  # Any: JSON
        found = []
        with suppress(FileNotFoundError):
            for line in self.events_file.read_text().splitlines(keepends=True):
                if line.endswith("\n"):
                    found.append(json.loads(line))
        return found

    def is_under_way(self) -> bool:
        """Wait until it copies; False when it ended before."""
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline:
            ended = self.poll() is not None
            if any(event["event"] in _GOES_ON for event in self.events()):
                return True
            if ended:
                return False
            time.sleep(0.01)
        raise AssertionError("the job neither goes on nor ends")

    _status: int | None = None

    def poll(self) -> int | None:
        if self._status is None:
            done, status = os.waitpid(self._pid, os.WNOHANG)
            if done:
                self._status = os.waitstatus_to_exitcode(status)
        return self._status

    def ended(self) -> int:
        """Wait for its end and give its exit status."""
        while (status := self.poll()) is None:
            time.sleep(0.01)
        return status


def ask(*argv: str) -> tuple[int, str, str]:
    """Run a short ``dmcopy`` to its end: status, stdout, stderr."""
    _forget_output()
    forked = Forked(argv)
    status = forked.ended()
    return status, forked.events_file.read_text(), forked.errors_file.read_text()


def _forget_output() -> None:
    for name in ("events", "errors"):
        (SHARE / name).unlink(missing_ok=True)


# the first boot


def copy_with_witness(
    *,
    blow: str | None,
    until_cut: bool,
    when_ready: Callable[[], None] = lambda: None,
    options: Sequence[str] = (),
    burst: float | None = None,
    steer: bool = False,
    broken: str | None = None,
    snapshot: str = SNAPSHOT,
) -> None:
    """Start the job; its witness is in the share before its first segment is copied.

    It waits for that: later, what a copied segment leaves of the snapshot is not the image.
    With *burst* the load begins only then, with so many seconds between two writes.  With
    *steer* it is told what `STEERING` says while it copies.
    """
    with ExitStack() as stack:
        if burst is None:
            stack.enter_context(load(seed=1))
        argv = ["copy", ORIGIN, f"block:{DESTINATION}", "--name", JOB, "--json"]
        argv += [*COPY_OPTIONS, *options]
        job = Forked(argv, blow=blow, pauses=True, broken=broken)
        if job.has_planned():
            tell("witness", read_device(snapshot))
            when_ready()
            if burst is not None:
                stack.enter_context(load(seed=1, pause=burst))
            job.go_on()
            tell("ready")
        if steer and job.is_under_way():
            for words in STEERING:
                sh(sys.executable, "-m", "dmcopy", *words)
        status = job.ended()
    tell("ended", b"%d" % status)
    if until_cut:
        time.sleep(_PATIENCE)  # the cut may come after the end as well


# the boots after it


def again(
    how: str,
    *,
    blow: str | None = None,
    touch: bool = False,
    stretch: bool = False,
    write_ms: int = 0,
    lvm: bool = False,
    disks: tuple[str, str, str] = (SOURCE, TARGET, STATE),
) -> None:
    """Say what became of the job.

    *touch*: after somebody wrote to the origin before us; *stretch*: its COW file is longer than
    what the kernel used of it, as it is while it grows.
    """
    source, target, state = disks
    state_disk(state)
    devices(source, target, write_ms=write_ms, lvm=lvm)
    found: dict[str, Any] = {"before": job_status(), "cow_before": cow_file() is not None}
    below = f"{ORIGIN}-real"  # where LVM's snapshot is over it again
    table = sh("dmsetup", "table", below if lvm and os.path.exists(below) else ORIGIN)
    if touch:
        _touch()
    if stretch:
        path = cow_file()
        assert path is not None
        os.truncate(path, 2 * stamp.device_length(source))
    if how == "snapshot":
        found |= {"image": image_in_snapshot(source)}
    else:
        found |= _resume(blow)
    after = job_status()
    found |= {"after": after}
    if after and after["dead"]:
        status, _, said = ask("rescue", JOB)
        found |= {"rescue_status": status, "rescue_said": said, "after": job_status()}
    names = sh("dmsetup", "info", "-c", "--noheadings", "-o", "name,uuid").splitlines()
    found |= {
        "table_is_back": sh("dmsetup", "table", ORIGIN) == table,
        "left": [
            *(name for name in names if "DMCOPY-" in name),
            *sh("losetup", "--noheadings", "--output", "BACK-FILE").split(),
            *(path.name for path in (MOUNT / "dmcopy").rglob("*.cow")),
        ],
    }
    tell("found", json.dumps(found).encode())


def job_status() -> dict[str, Any] | None:  # Any: JSON
    """Give the job's status as ``dmcopy status`` tells it, None where there is no such job."""
    status, out, said = ask("status", JOB, "--json")
    if status == 2 and said == f"dmcopy: there is no job {JOB}\n":
        return None
    assert status == 0, said
    found: dict[str, Any] = json.loads(out)  # Any: JSON
    return found


def _resume(blow: str | None) -> dict[str, Any]:  # Any: JSON
    _forget_output()
    with ExitStack() as stack:
        job = Forked(RESUME, blow=blow)
        if job.is_under_way():
            stack.enter_context(load(seed=2))
            tell("ready")
        status = job.ended()
    said = job.errors_file.read_text()
    after = job_status()
    has_image = after is not None and after["state"] == "ended"
    return {
        "exit_status": status,
        "said": said,
        "image": image_on(DESTINATION) if has_image else None,
    }


def _touch() -> None:
    """Write to each chunk of the origin, as somebody would who came first after the boot."""
    fd = os.open(ORIGIN, os.O_RDWR)
    try:
        for offset in range(0, stamp.device_length(ORIGIN), CHUNK):
            os.pwrite(fd, b"touched", offset)
        os.fsync(fd)
    finally:
        os.close(fd)


def image_on(device: str) -> dict[str, Any] | None:  # Any: JSON
    """Compare a device with the witness; None where there is none."""
    witness = SHARE / "witness"
    if not witness.exists():
        return None
    image = witness.read_bytes()
    return {"wrong": differing(read_device(device, len(image)), image)}


def cow_file() -> Path | None:
    """Give the job's COW file, if it has a store with a begin time in it."""
    for path in (MOUNT / "dmcopy").rglob(f"dmcopy-{JOB}.cow"):
        with path.open("rb") as file:
            if file.read(4) == b"SnAp":
                return path
    return None


@contextmanager
def snapshot_again(source: str, cow: Path) -> Iterator[str]:
    """Give the snapshot that *cow* and *source* make, by the kernel's own tools; read only."""
    undo: list[Callable[[], None]] = []
    try:
        loop = sh("losetup", "--find", "--show", str(cow))
        undo.append(lambda: patiently("losetup", "--detach", loop))
        size = stamp.device_length(source) >> 9
        table = f"0 {size} snapshot {source} {loop} P {CHUNK >> 9}"
        sh("dmsetup", "create", "cut-again", "--readonly", "--table", table)
        undo.append(lambda: patiently("dmsetup", "remove", "cut-again"))
        yield "/dev/mapper/cut-again"
    finally:
        for step in reversed(undo):
            step()


def image_in_snapshot(
    source: str = SOURCE, destination: str = DESTINATION
) -> dict[str, Any] | None:  # Any: JSON
    """Compare what source and COW file still say with the witness; None without either.

    When every segment is at the destination the layer is taken out, and the origin's writes pass
    the snapshot by; the COW file lives a little longer and looks well.  So a destination that is
    the image already settles it.
    """
    there = image_on(destination)
    cow = cow_file()
    if there is None or cow is None or not there["wrong"]:
        return there and {**there, "where": "destination"}
    with snapshot_again(source, cow) as snapshot:
        found = image_on(snapshot)
    return found and {**found, "where": "snapshot"}


def main(argv: Sequence[str]) -> int:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(prog="guest_side")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("begin")
    verb.add_argument("--blow")
    verb.add_argument("--to-the-end", action="store_true")
    verb.add_argument("--write-ms", type=int, default=SLOW_MS)
    verb.add_argument("--steer", action="store_true")
    verb.add_argument("--copy-options", type=str.split, default=[])
    verb.add_argument("--burst", type=float)
    verb.add_argument("--broken", choices=list(BROKEN))
    verb.add_argument("--lvm", action="store_true")
    verb = verbs.add_parser("again")
    verb.add_argument("--lvm", action="store_true")
    verb.add_argument("--how", choices=("snapshot", "resume"), required=True)
    verb.add_argument("--blow")
    verb.add_argument("--touch", action="store_true")
    verb.add_argument("--stretch", action="store_true")
    verb.add_argument("--write-ms", type=int, default=0)
    options = parser.parse_args(argv)
    if options.verb == "begin":
        state_disk()
        devices(write_ms=options.write_ms, lvm=options.lvm, new=True)
        copy_with_witness(
            blow=options.blow,
            snapshot=LVM_SNAPSHOT if options.lvm else SNAPSHOT,
            until_cut=not options.to_the_end,
            options=options.copy_options,
            burst=options.burst,
            steer=options.steer,
            broken=options.broken,
        )
    else:
        again(
            options.how,
            blow=options.blow,
            touch=options.touch,
            stretch=options.stretch,
            write_ms=options.write_ms,
            lvm=options.lvm,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
