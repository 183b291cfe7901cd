"""Run one command in a guest; what every engine has in common.

A *job* is a directory of the host that the guest sees read-write: settings, the command as a
script, its output, its exit status.  An engine (`lab.uml`, `lab.qemu`, `lab.host`) only says
which program to start for a job.  Whatever happens - the guest panics, hangs, never boots, we
are interrupted - the status is never 0 by accident, and nothing that was started stays.
"""

from __future__ import annotations

import compileall
import importlib
import os
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from lab import follow, terminal

CHECKOUT: Final = Path(__file__).resolve().parent.parent
GUESTS: Final = ("uml", "qemu")
ENGINES: Final = (*GUESTS, "host")

NO_STATUS: Final = 255  # the guest did not boot, panicked, or gave no exit status
TIME_LIMIT: Final = 124  # as timeout(1) says it
CUT: Final = 254  # the power was cut because the caller asked for it; no shell makes this one

_UNITS: Final = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class LabError(Exception):
    """The lab cannot do what was asked; nothing was started."""


def parse_size(text: str) -> int:
    """Parse ``1536M``, ``4GiB`` or ``4096`` into bytes; raises `LabError` for anything else."""
    number = text.strip().lower().removesuffix("b").removesuffix("i")
    unit = number[-1:] if number[-1:] in _UNITS else ""
    digits = number.removesuffix(unit)
    if not digits.isdecimal():
        raise LabError(f"'{text}' is not a size; write it like 512M or 4G")
    return int(digits) * _UNITS[unit]


@dataclass(frozen=True)
class Disk:
    """A disk of the guest: an existing file of the host, or *size* bytes made for the run."""

    path: Path | None = None
    size: int = 0

    @classmethod
    def parse(cls, text: str) -> Disk:
        """Parse a size or the path of an existing file; raises `LabError` for neither."""
        if os.path.exists(text):
            return cls(path=Path(text).resolve())
        if "/" in text:
            raise LabError(f"disk {text} does not exist")
        return cls(size=parse_size(text))


class Result(NamedTuple):
    """How a command in a guest ended."""

    status: int  # the command's exit status, or NO_STATUS, TIME_LIMIT, CUT
    output: Path  # what it wrote
    artefacts: Path  # what it left
    seconds: float  # wall time, boot included
    console: Path  # what the guest's kernel said
    why: str = ""  # for a person, when the guest itself failed


@dataclass(frozen=True)
class Job:
    """Everything that an engine needs to know about one run."""

    directory: Path
    artefacts: Path
    disks: tuple[Path, ...]
    memory: int  # bytes
    udev: bool
    terminal: terminal.Pty | None = None

    @property
    def output(self) -> Path:
        """Give the file that the command's output goes to."""
        return self.directory / "output"

    @property
    def console(self) -> Path:
        """Give the file that the guest kernel's messages go to."""
        return self.directory / "console"

    def refuse_paths(self, characters: str) -> None:
        """Raise `LabError` for a path of the host that an engine's command line cannot take."""
        for path in (*self.disks, self.directory, self.artefacts):
            if odd := set(str(path)) & set(characters):
                raise LabError(f"the engine cannot take the path {path}: it has {sorted(odd)}")


@dataclass(frozen=True)
class Launch:
    """The program to start for a job."""

    argv: Sequence[str]
    env: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    pass_fds: tuple[int, ...] = ()
    stdout: Path | None = None  # where its own output goes (default: the console file)
    direct: bool = False  # no guest: the program's exit status is the command's


class Engine(Protocol):
    """One way to run a job."""

    name: str

    def missing(self) -> list[str]:
        """Name what has to be installed first (empty: ready)."""

    def variables(self) -> dict[str, str]:
        """Give what the engine adds to the environment of the command."""

    def settings(self, job: Job) -> dict[str, str]:
        """Give the shell variables that the guest's start needs."""

    def disk_names(self, count: int) -> list[str]:
        """Give the guest's paths of the first *count* disks."""

    def launch(self, job: Job, stack: ExitStack) -> Launch:
        """Say what to start; what must be undone afterwards goes on *stack*."""


def missing_programs(packages: Mapping[str, str]) -> list[str]:
    """Give the Debian packages (by program) of the programs that are not there."""
    path = "/usr/sbin:/sbin:" + os.environ.get("PATH", "/usr/bin:/bin")
    return [package for name, package in packages.items() if not shutil.which(name, path=path)]


def disk_names(prefix: str, count: int, *, most: int) -> list[str]:
    """Give *prefix* with a, b, c ...; raises `LabError` for more than *most*."""
    if count > most:
        raise LabError(f"the engine takes {most} disks, not {count}")
    return [f"{prefix}{chr(ord('a') + number)}" for number in range(count)]


def engine_of(name: str) -> Engine:
    """Give the engine called *name*; raises `LabError` when there is none."""
    if name not in ENGINES:
        raise LabError(f"no engine '{name}'; there are {', '.join(ENGINES)}")
    engine: Engine = importlib.import_module(f"lab.{name}").ENGINE
    return engine


def cache_dir() -> Path:
    """Give the directory for what is unpacked or compiled once."""
    default = Path.home() / ".cache" / "dmcopy-lab"
    path = Path(os.environ.get("DMCOPY_LAB_CACHE") or default)
    path.mkdir(parents=True, exist_ok=True)
    return path


def venv() -> Path:
    """Give the virtual environment whose programs the guest shall find first."""
    return Path(sys.prefix) if sys.prefix != sys.base_prefix else CHECKOUT / ".venv"


GUEST_TMP: Final = "/var/tmp/lab-guest"


def environment(
    engine: str, disks: Sequence[str], artefacts: Path, *, udev: bool
) -> dict[str, str]:
    """Give the environment of the command in the guest."""
    env = {
        "PATH": f"{venv()}/bin:{_PATH}",
        "HOME": os.environ.get("HOME", "/root"),
        "LANG": "C.UTF-8",
        "TERM": os.environ.get("TERM", "dumb"),
        "PYTHONPATH": str(CHECKOUT),
        "PYTHONDONTWRITEBYTECODE": "1",
        "LVM_SUPPRESS_FD_WARNINGS": "1",
        "LAB_GUEST": engine,
        "LAB_ARTEFACTS": str(artefacts),
        "LAB_DISKS": " ".join(disks),
    }
    if engine != "host":
        # The host's /tmp shows through, and what the host makes there is no leftover of a test.
        env["TMPDIR"] = GUEST_TMP
    if not udev:
        env["DM_DISABLE_UDEV"] = (
            "1"  # else libdevmapper leaves the nodes to a udev that is not there
        )
    return env


def script(command: Sequence[str], env: Mapping[str, str], cwd: Path) -> str:
    """Give the shell script that runs *command* in *cwd* with *env* and nothing else."""
    words = shlex.join(f"{name}={value}" for name, value in sorted(env.items()))
    lines = ["#!/bin/sh", f"cd -- {shlex.quote(str(cwd))} || exit 126"]
    lines += [f"exec env -i {words} {shlex.join(command)}"]
    return "\n".join(lines) + "\n"


def panic_in(console: Path) -> str:
    """Give the line in which the guest's kernel said that it panicked, "" if it did not."""
    said = console.read_text(errors="replace") if console.exists() else ""
    return next((line.strip() for line in said.splitlines() if "Kernel panic" in line), "")


def read_status(job: Path, console: Path) -> tuple[int, str]:
    """Give the exit status that the guest wrote, or `NO_STATUS` and the reason."""
    if panic := panic_in(console):
        return NO_STATUS, panic
    try:
        text = (job / "status").read_text().strip()
    except FileNotFoundError:
        return NO_STATUS, "the guest ended without an exit status of the command"
    if not text.isdecimal() or int(text) > NO_STATUS:
        return NO_STATUS, f"the guest wrote '{text}' as exit status"
    return int(text), ""


@contextmanager
def _disks(disks: Sequence[Disk], where: Path) -> Iterator[tuple[Path, ...]]:
    paths: list[Path] = []
    made: list[Path] = []
    try:
        for number, disk in enumerate(disks):
            path = disk.path
            if path is None:
                path = where / f"disk{number}-{os.getpid()}.img"
                made.append(path)
                with path.open("wb") as file:
                    file.truncate(disk.size)
            paths.append(path)
        yield tuple(paths)
    finally:
        for path in made:
            path.unlink(missing_ok=True)


def _runs_dir(engine: str) -> Path:
    """Make a directory for the artefacts of a run that nobody gave one for."""
    base = Path(os.environ.get("DMCOPY_LAB_RUNS") or CHECKOUT / ".lab")
    base.mkdir(parents=True, exist_ok=True)
    old = sorted(base.glob("run-*"), key=lambda path: path.stat().st_mtime)
    for path in old[:-20]:
        shutil.rmtree(path, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"run-{engine}-", dir=base))


def _compile() -> None:
    """Write the bytecode of the checkout, which a guest could not keep: its root is the host's.

    Without it each start of ``dmcopy`` in a guest compiles all of its modules again.
    """
    for tree in ("dmcopy", "lab", "tests", "benchmarks"):
        compileall.compile_dir(CHECKOUT / tree, quiet=2)


def _job_dir() -> Path:
    """Make the job's directory, in memory where possible: the guest syncs each write to it.

    Those of runs that were killed, and could not remove theirs, are removed.
    """
    base = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else Path(tempfile.gettempdir())
    for old in base.glob("dmcopy-lab-*-*"):
        pid = old.name.split("-")[2]
        if pid.isdecimal() and not Path(f"/proc/{pid}").exists():
            shutil.rmtree(old, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"dmcopy-lab-{os.getpid()}-", dir=base))


def run(
    command: Sequence[str],
    *,
    engine: str = "uml",
    disks: Sequence[Disk] = (),
    memory: str = "1536M",
    timeout: float = 600.0,
    artefacts: Path | None = None,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    tty: bool = False,
    udev: bool = True,
    quiet: bool = False,
    cut: Callable[[], bool] | None = None,
    systemd: bool = False,
    overlay: Path | None = None,
) -> Result:
    """Run *command* in a guest and wait for it; its output appears on our stdout as it comes.

    *timeout* is in seconds and covers the boot.  *cut* is asked every 10 ms; when it gives True
    all of the guest is killed at that moment, as by a power failure: nothing is synced, and what
    its disks' files hold then is what they hold when this returns; nobody has them open.
    With *systemd* the guest's first process is systemd, and the command is run when basic.target
    is reached; *overlay* is a directory whose files are laid over the guest's root before (its
    ``/etc/fstab`` is empty otherwise).
    Raises `LabError` when the engine is not installed or a disk is not there; whatever the guest
    does is in the result.
    """
    chosen = engine_of(engine)
    if cut is not None and engine not in GUESTS:
        raise LabError(f"engine {engine} has no power to cut")
    if systemd and engine != "uml":
        raise LabError(f"engine {engine} does not boot systemd")
    if need := chosen.missing():
        raise LabError(f"engine {engine} needs {', '.join(need)}: python -m lab install")
    started = time.monotonic()
    artefacts = (artefacts or _runs_dir(engine)).resolve()
    artefacts.mkdir(parents=True, exist_ok=True)
    _compile()
    with ExitStack() as stack:
        directory = _job_dir()
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        where = artefacts if any(disk.path is None for disk in disks) else directory
        job = Job(
            directory=directory,
            artefacts=artefacts,
            disks=stack.enter_context(_disks(disks, where)),
            memory=parse_size(memory),
            udev=udev,
            terminal=stack.enter_context(terminal.Pty()) if tty else None,
        )
        names = chosen.disk_names(len(job.disks))
        variables = environment(engine, names, artefacts, udev=udev)
        variables |= chosen.variables() | dict(env or {})
        (directory / "command").write_text(script(command, variables, cwd or Path.cwd()))
        settings = {
            "LAB_UDEV": str(int(udev)),
            "LAB_SYSTEMD": str(int(systemd)),
            "LAB_SHARE": str(artefacts),
            "LAB_ROWS": str(job.terminal.rows if job.terminal else 24),
            "LAB_COLUMNS": str(job.terminal.columns if job.terminal else 80),
            "LAB_TTY": "",
        } | chosen.settings(job)
        lines = [f"{name}={shlex.quote(value)}\n" for name, value in settings.items()]
        (directory / "settings").write_text("".join(lines))
        for name in ("guest.sh", "systemd.sh"):
            shutil.copy(Path(__file__).with_name(name), directory / name)
        if overlay is not None:
            shutil.copytree(overlay, directory / "overlay", symlinks=True)
        job.output.touch()
        job.console.touch()

        launch = chosen.launch(job, stack)
        remaining = timeout - (time.monotonic() - started)
        try:
            ended = follow.supervise(launch, job, timeout=remaining, quiet=quiet, cut=cut)
        except follow.PowerCut:
            # A guest that had panicked before was not cut in what it was doing.
            panic = panic_in(job.console)
            status, why = (NO_STATUS, panic) if panic else (CUT, "power cut")
        else:
            if ended is None:
                status, why = TIME_LIMIT, f"ended at the time limit of {timeout:.0f} s"
            elif launch.direct:
                status, why = ended, ""
            else:
                status, why = read_status(directory, job.console)
        for path in (job.output, job.console):
            shutil.copy(path, artefacts / f"lab-{path.name}.txt")
    return Result(
        status=status,
        output=artefacts / "lab-output.txt",
        artefacts=artefacts,
        seconds=time.monotonic() - started,
        console=artefacts / "lab-console.txt",
        why=why,
    )
