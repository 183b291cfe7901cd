"""User-mode Linux: Debian's kernel package that runs as an ordinary program.

Seconds to boot, native speed, the stock device-mapper and md code.  One CPU, no preemption:
what needs two CPUs is proved again under `lab.qemu`.  The root is the host's, read-only, under
a layer of memory (lab/init.sh).
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from lab.guest import Job, Launch, cache_dir, disk_names, missing_programs

_HERE: Final = Path(__file__).resolve().parent
_MAX_DISKS: Final = 8  # ubd0 to ubd7
_PROGRAMS: Final = {
    "linux.uml": "user-mode-linux",
    "modprobe": "kmod",
    "udevadm": "udev",
    "setpriv": "util-linux",
    "taskset": "util-linux",
    "gcc": "gcc",
}


def needs_xstate() -> bool:
    """Tell whether this CPU's register area is larger than what the UML kernel was built for."""
    if os.environ.get("LAB_FORCE_XSTATE"):
        return True
    return "amx_tile" in Path("/proc/cpuinfo").read_text()


def library(source: str) -> Path:
    """Compile one of the C files beside this one, once, and give the shared library."""
    text = (_HERE / source).read_bytes()
    made = cache_dir() / f"{Path(source).stem}-{hashlib.sha256(text).hexdigest()[:12]}.so"
    if not made.exists():
        new = made.with_suffix(f".{os.getpid()}")
        flags = ["-O2", "-Wall", "-Werror", "-shared", "-fPIC"]
        subprocess.run(["gcc", *flags, "-o", str(new), str(_HERE / source), "-ldl"], check=True)
        new.rename(made)
    return made


def memory_dir(size: int) -> Path | None:
    """Give a tmpfs with *size* bytes of room for the guest's memory, None for UML's own choice."""
    for path in (Path("/dev/shm"), Path("/tmp"), Path("/run")):
        if not os.access(path, os.W_OK):
            continue
        kind = subprocess.run(
            ["stat", "--file-system", "--format=%T", str(path)],
            check=True, capture_output=True, text=True,
        ).stdout.strip()  # fmt: skip
        if kind == "tmpfs" and shutil.disk_usage(path).free > size:
            return path
    return None


def on_one_cpu(stack: ExitStack) -> list[str]:
    """Give the words that keep a guest on a CPU which no other guest has; none when all are taken.

    The guest's kernel and the processes it traces take turns.  On two CPUs each turn wakes the
    other one up, and a page fault takes 100 us instead of 57, a system call 28 instead of 17.
    """
    for cpu in sorted(os.sched_getaffinity(0)):
        fd = os.open(cache_dir() / f"cpu{cpu}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            continue
        stack.callback(os.close, fd)
        return ["taskset", "--cpu-list", str(cpu)]
    return []


class Uml:
    """The engine."""

    name = "uml"

    def missing(self) -> list[str]:
        """Name the Debian packages that are not there."""
        return missing_programs(_PROGRAMS)

    def variables(self) -> dict[str, str]:
        """Have programs start faster: lab/prefault.c says how."""
        return {"LD_PRELOAD": str(library("prefault.c"))}

    def settings(self, job: Job) -> dict[str, str]:
        """Give the guest's end of the terminal, if there is one."""
        return {"LAB_TTY": "/dev/tty1" if job.terminal else ""}

    def disk_names(self, count: int) -> list[str]:
        """Give /dev/ubda and so on."""
        return disk_names("/dev/ubd", count, most=_MAX_DISKS)

    def launch(self, job: Job, stack: ExitStack) -> Launch:
        """Give linux.uml's command line."""
        job.refuse_paths(" ,:")
        argv = [
            *on_one_cpu(stack),
            "linux.uml", "rootfstype=hostfs", "rootflags=/", "ro", f"mem={job.memory >> 20}M",
            "con=null", "con0=null,fd:1", "noreboot", "panic=-1", "oops=panic", "quiet",
            f"init={_HERE / 'init.sh'}", f"LABJOB={job.directory}",
            f"uml_dir={job.directory}", "umid=uml",
        ]  # fmt: skip
        # d: the file is data, even if it looks like one of UML's own copy-on-write files.
        argv += [f"ubd{number}d={path}" for number, path in enumerate(job.disks)]
        fds: tuple[int, ...] = ()
        if job.terminal is not None:
            argv.append(f"con1=fd:{job.terminal.slave}")
            fds = (job.terminal.slave,)
        env = dict(os.environ)
        if (where := memory_dir(job.memory)) is not None:
            env["TMPDIR"] = str(where)
        if needs_xstate():
            env["LD_PRELOAD"] = str(library("xstate.c"))
        return Launch(argv=argv, env=env, pass_fds=fds)


ENGINE: Final = Uml()
