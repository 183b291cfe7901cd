"""QEMU: Debian's own kernel on two CPUs, started by virtme-ng.

For what user-mode Linux cannot show: several CPUs, preemption, the very kernel that users run.
Slow where the host has no KVM, so only the proofs run here.  The root is the host's, read-only,
under a layer of memory (lab/init-qemu.sh).  The kernel comes from Debian's package, unpacked in
the cache directory: installed, it would have every later package rebuild an initramfs.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from lab.guest import Job, LabError, Launch, cache_dir, disk_names, missing_programs, venv

_HERE: Final = Path(__file__).resolve().parent
_CPUS: Final = 2
_MAX_DISKS: Final = 16
_PROGRAMS: Final = {
    "qemu-system-x86_64": "qemu-system-x86",
    "busybox": "busybox-static",
    "depmod": "kmod",
    "udevadm": "udev",
}


def has_kvm(modules: Path = Path("/sys/module")) -> bool:
    """Tell whether KVM can be trusted.

    /dev/kvm alone says little: on a machine that is a guest itself, with another kind of KVM,
    an ordinary kernel hung under it.
    """
    return any((modules / name).is_dir() for name in ("kvm_intel", "kvm_amd"))


def unpacked_kernel() -> Path | None:
    """Give the newest kernel image in the cache, None when there is none."""
    found = cache_dir().glob("linux-*/boot/vmlinuz-*")
    return max(
        found, key=lambda path: [int(n) for n in re.findall(r"\d+", path.name)], default=None
    )


def newest_package() -> str:
    """Give the name of the kernel package that Debian's linux-image-amd64 stands for."""
    text = subprocess.run(
        ["apt-cache", "depends", "linux-image-amd64"], check=True, capture_output=True, text=True
    ).stdout
    match = re.search(r"Depends: (linux-image-[0-9]\S*-amd64)", text)
    if match is None:
        raise LabError(f"apt-cache knows no kernel package: {text.strip()}")
    return match[1]


def install_kernel() -> Path:
    """Download and unpack Debian's kernel; gives its image."""
    package = newest_package()
    work = cache_dir() / f"new-{os.getpid()}"
    work.mkdir()
    try:
        subprocess.run(["apt-get", "-q", "download", package], cwd=work, check=True)
        (archive,) = work.glob("*.deb")
        subprocess.run(["dpkg", "-x", str(archive), str(work / "tree")], check=True)
        (image,) = (work / "tree/boot").glob("vmlinuz-*")
        version = image.name.removeprefix("vmlinuz-")
        subprocess.run(["depmod", "-b", str(work / "tree"), version], check=True)
        target = cache_dir() / f"linux-{version}"
        if not target.exists():
            (work / "tree").rename(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target / "boot" / image.name


class Qemu:
    """The engine."""

    name = "qemu"

    def missing(self) -> list[str]:
        """Name the packages that are not there."""
        need = missing_programs(_PROGRAMS)
        if not (venv() / "bin/vng").exists():
            need.append("virtme-ng (PyPI)")
        if unpacked_kernel() is None:
            need.append("linux-image-amd64 (unpacked)")
        return need

    def variables(self) -> dict[str, str]:
        """Give none."""
        return {}

    def settings(self, job: Job) -> dict[str, str]:
        """Give the guest's end of the terminal, if there is one."""
        return {"LAB_TTY": "/dev/hvc0" if job.terminal else ""}

    def disk_names(self, count: int) -> list[str]:
        """Give /dev/vda and so on."""
        return disk_names("/dev/vd", count, most=_MAX_DISKS)

    def launch(self, job: Job, stack: ExitStack) -> Launch:
        """Give virtme-ng's command line."""
        del stack
        job.refuse_paths(" ,")
        kernel = unpacked_kernel()
        if kernel is None:
            raise LabError("no kernel is unpacked: python -m lab install --engine qemu")
        options = [
            # Without this the main loop polls some 400 descriptors whenever a timer fires, which
            # takes one of two cores for itself.
            "-global", "virtio-serial-pci.ioeventfd=off",
            "-global", "virtio-9p-pci.ioeventfd=off",
            *_shared("labroot", Path("/"), ",readonly=on"),
            *_shared("labjob", job.directory),
            *_shared("labshare", job.artefacts),
            "-chardev", f"file,id=labconsole,path={job.console}",
            "-device", "isa-serial,chardev=labconsole",
        ]  # fmt: skip
        for disk in job.disks:
            options += ["-drive", f"file={disk},format=raw,if=virtio,cache=writeback"]
        if job.terminal is not None:
            options += [
                "-chardev", f"serial,id=labtty,path={job.terminal.path}",
                "-device", "virtio-serial-pci,id=labserial",
                "-device", "virtconsole,bus=labserial.0,chardev=labtty",
            ]  # fmt: skip
        argv = [str(venv() / "bin/vng"), "--force-9p", "--run", str(kernel), "--user", "root"]
        if not has_kvm():
            argv.append("--disable-kvm")
            options += ["-cpu", "qemu64"]
        argv += [
            "--cpus", str(_CPUS), "--memory", f"{job.memory >> 20}M",
            "--append", "console=ttyS1", "--append", "panic=-1", "--append", "mitigations=off",
            f"--qemu-opts={shlex.join(options)}",
            "--", f"sh {shlex.quote(str(_HERE / 'init-qemu.sh'))}",
        ]  # fmt: skip
        env = dict(os.environ)
        env["PATH"] = f"{venv()}/bin:/usr/sbin:/sbin:{env.get('PATH', '/usr/bin:/bin')}"
        env["TMPDIR"] = str(job.directory)
        return Launch(argv=argv, env=env, stdout=job.directory / "virtme")


def _shared(tag: str, path: Path, more: str = "") -> list[str]:
    device = f"local,id={tag},path={path},security_model=none,multidevs=remap{more}"
    return ["-fsdev", device, "-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag}"]


ENGINE: Final = Qemu()
