"""Debian's Prometheus, unpacked and not installed: its server and promtool, for the tests.

The package would bring a user, a service and node_exporter; the two programs need none of them.
Debian's client library is unpacked as well, for it is older than the one from PyPI.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

from lab.guest import LabError, cache_dir

_PACKAGES: Final = ("prometheus", "python3-prometheus-client", "python3-decorator")


def _tree() -> Path:
    return cache_dir() / "prometheus"


def is_unpacked() -> bool:
    """Tell whether it is there."""
    return _tree().exists()


def program(name: str) -> Path:
    """Give the path of ``prometheus`` or ``promtool``; raises `LabError` where it is not there."""
    path = _tree() / "usr/bin" / name
    if not path.exists():
        raise LabError(f"{path} is not there: python -m lab install")
    return path


def client_library() -> Path:
    """Give the directory, for PYTHONPATH, with Debian's client library."""
    return _tree() / "client"


def unpack() -> None:
    """Download and unpack it: 19 MB, some four seconds."""
    work = cache_dir() / f"new-{os.getpid()}"
    work.mkdir()
    try:
        subprocess.run(["apt-get", "-q", "download", *_PACKAGES], cwd=work, check=True)
        for archive in work.glob("*.deb"):
            subprocess.run(["dpkg", "-x", str(archive), str(work / "tree")], check=True)
        # on its own: the whole of dist-packages would come before the tests' own libraries
        (work / "tree/client").mkdir()
        for name in ("prometheus_client", "decorator.py"):
            library = work / "tree/usr/lib/python3/dist-packages" / name
            library.rename(work / "tree/client" / name)
        if not is_unpacked():
            (work / "tree").rename(_tree())
    finally:
        shutil.rmtree(work, ignore_errors=True)
