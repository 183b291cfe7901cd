"""Install what a fresh Debian lacks for the lab and the tests; say what; do nothing twice.

Runs with the standard library only, for it is what makes the virtual environment.  Needs root
for apt-get, and nothing but Debian's and Python's registries.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from lab import prometheus, qemu
from lab.guest import CHECKOUT, LabError

# What the tests use, in a guest or on the host.
COMMON: Final = (
    "btrfs-progs", "chromium", "cryptsetup-bin", "dmsetup", "dosfstools", "e2fsprogs", "fdisk",
    "fio", "iproute2", "kmod", "libnbd-bin", "lvm2", "mariadb-client-core", "mariadb-server-core",
    "mdadm", "nbdkit", "open-iscsi", "openssh-client", "openssh-server", "postgresql", "systemd",
    "tgt", "thin-provisioning-tools", "tmux", "udev", "util-linux", "xfsprogs",
)  # fmt: skip
# What the Debian package is built, checked and run with, and the man page and completions read.
PACKAGING: Final = (
    "debhelper", "dh-python", "dpkg-dev", "groff-base", "lintian", "pybuild-plugin-pyproject",
    "python3-all", "python3-psutil", "python3-pyudev", "python3-rich", "python3-setuptools",
    "python3-sh", "python3-tomlkit", "zsh",
    # what Ansible needs of a host: to install a package there, to make a virtual environment
    "python3-apt", "python3-venv",
)  # fmt: skip
ENGINES: Final = {
    "uml": ("user-mode-linux", "gcc", "libc6-dev"),
    "qemu": ("qemu-system-x86", "qemu-utils", "busybox-static"),
    "host": (),
}
_POLICY: Final = Path("/usr/sbin/policy-rc.d")
_VENV: Final = CHECKOUT / ".venv"


def packages(engines: Iterable[str]) -> list[str]:
    """Name the Debian packages for these engines."""
    wanted = {*COMMON, *PACKAGING}
    for engine in engines:
        wanted.update(ENGINES[engine])
    return sorted(wanted)


def installed(text: str) -> set[str]:
    """Give the names of installed packages from dpkg-query's lines (status, name)."""
    lines = (line.rpartition(" ") for line in text.splitlines())
    return {name for status, _, name in lines if status == "install ok installed"}


def _run(*argv: str, env: dict[str, str] | None = None) -> None:
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, env=env, check=False)
    if done.returncode:
        raise LabError(f"{' '.join(argv)} returned {done.returncode}")


def missing_packages(wanted: Sequence[str]) -> list[str]:
    """Give those of *wanted* that dpkg does not know as installed."""
    query = ["dpkg-query", "--show", "--showformat=${Status} ${Package}\n", *wanted]
    answer = subprocess.run(query, capture_output=True, text=True, check=False)
    have = installed(answer.stdout)
    return [name for name in wanted if name not in have]


def apt(wanted: Sequence[str]) -> None:
    """Install the Debian packages that are not there."""
    need = missing_packages(wanted)
    if not need:
        return
    if os.geteuid():
        raise LabError(f"not root; as root: apt-get install {' '.join(need)}")
    print(f"lab: installing from Debian: {' '.join(need)}", flush=True)
    env = dict(os.environ, DEBIAN_FRONTEND="noninteractive")
    _run("apt-get", "-qq", "update", env=env)
    with _nothing_started():
        _run(
            "apt-get", "-qq", "-o", "Dpkg::Use-Pty=0", "install", "-y", "--no-install-recommends",
            *need, env=env,
        )  # fmt: skip


@contextmanager
def _nothing_started() -> Iterator[None]:
    """Keep packages from starting their servers here: invoke-rc.d(8) asks the policy.

    A container's image has one already, which says the same.
    """
    if _POLICY.exists():
        yield
        return
    _POLICY.write_text("#!/bin/sh\nexit 101\n")
    _POLICY.chmod(0o755)
    try:
        yield
    finally:
        _POLICY.unlink()


def _stamp() -> Path:
    text = (CHECKOUT / "setup.cfg").read_bytes()
    return _VENV / f".dmcopy-{hashlib.sha256(text).hexdigest()[:16]}"


def virtual_environment() -> None:
    """Make ``.venv`` with dmcopy and its test extra, unless it is there for this setup.cfg."""
    stamp = _stamp()
    if stamp.exists():
        return
    python = _VENV / "bin/python"
    if not python.exists():
        # Debian's python3 has no ensurepip of its own.
        probe = [sys.executable, "-c", "import ensurepip, venv"]
        if subprocess.run(probe, capture_output=True, check=False).returncode:
            apt(["python3-venv"])
        print(f"lab: making {_VENV}", flush=True)
        _run(sys.executable, "-m", "venv", str(_VENV))
    print("lab: installing from PyPI: dmcopy's requirements and its test extra", flush=True)
    _run(
        str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
        # a plain path: the other kind of editable install costs each start of Python an import
        "--config-settings", "editable_mode=compat", "--editable", f"{CHECKOUT}[test]",
    )  # fmt: skip
    for old in _VENV.glob(".dmcopy-*"):
        old.unlink()
    stamp.touch()


def install(engines: Sequence[str]) -> None:
    """Install all that *engines* and the tests need."""
    apt(packages(engines))
    virtual_environment()
    if not prometheus.is_unpacked():
        print("lab: unpacking prometheus (not installing it)", flush=True)
        prometheus.unpack()
    if "qemu" in engines and qemu.unpacked_kernel() is None:
        print(f"lab: unpacking {qemu.newest_package()} (not installing it)", flush=True)
        qemu.install_kernel()
