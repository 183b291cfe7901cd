"""Build the Debian package: ``python -m lab.deb DIRECTORY`` puts ``dmcopy_VERSION_all.deb`` there.

It is built from a copy of what belongs to it, so that the checkout stays as it is; with the man
page and the completions made beforehand, as they are for a release: what makes them is in PyPI's
versions, not in Debian's.  Everything else is debian/rules.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from dmcopy import __version__
from lab import manual
from lab.guest import CHECKOUT, LabError

_PARTS: Final = (
    "CHANGELOG.rst", "LICENSE", "README.rst", "debian", "dmcopy", "docs", "pyproject.toml",
    "setup.cfg", "udev",
)  # fmt: skip


def copy_sources(tree: Path) -> None:
    """Copy what belongs to a package into a directory that is not there yet."""
    tree.mkdir()
    for part in _PARTS:
        if (CHECKOUT / part).is_dir():
            unwanted = shutil.ignore_patterns("__pycache__", "*.svg", "*.json")
            shutil.copytree(CHECKOUT / part, tree / part, ignore=unwanted)
        else:
            shutil.copy(CHECKOUT / part, tree / part)


def build(directory: Path, *, quiet: bool = False) -> Path:
    """Build the package, into *directory*; give its path.  Raises `LabError`.

    An older one there is removed first, so that it is not taken for this one.
    """
    for old in directory.glob("dmcopy_*_all.deb"):
        old.unlink()
    with tempfile.TemporaryDirectory(prefix="dmcopy-deb-") as name:
        tree = Path(name) / f"dmcopy-{__version__}"
        copy_sources(tree)
        manual.main([str(tree / "man")])
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_"))}
        done = subprocess.run(
            # not what is implied for every package (build-essential): nothing here is compiled
            ["dpkg-buildpackage", "--build=binary", "--no-sign", "--no-check-builddeps"],
            # not the venv's Python: the package is built and runs with Debian's
            cwd=tree, stdin=subprocess.DEVNULL, check=False, text=True,
            stdout=subprocess.PIPE if quiet else None, stderr=subprocess.STDOUT if quiet else None,
            env=kept | {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DEB_BUILD_OPTIONS": "nocheck"},
        )  # fmt: skip
        if done.returncode:
            raise LabError(f"dpkg-buildpackage returned {done.returncode}\n{done.stdout or ''}")
        directory.mkdir(parents=True, exist_ok=True)
        made = tree.parent / f"dmcopy_{__version__}_all.deb"
        return Path(shutil.copyfile(made, directory / made.name))


def current(directory: Path = CHECKOUT / "dist") -> Path:
    """Give the package in *directory*; build it when it is missing or older than its sources."""
    found = directory / f"dmcopy_{__version__}_all.deb"
    if not found.exists() or found.stat().st_mtime < _newest():
        build(directory, quiet=True)
    return found


def _newest() -> float:
    """Give when a source was changed last."""
    sources = [
        path
        for part in _PARTS
        for path in [CHECKOUT / part, *(CHECKOUT / part).rglob("*")]
        if path.is_file() and path.suffix not in (".pyc", ".svg", ".json")
    ]
    return max(path.stat().st_mtime for path in sources)


def main(argv: Sequence[str]) -> int:
    """Build it and say where it is."""
    options = argparse.ArgumentParser(prog="python -m lab.deb", description=__doc__)
    options.add_argument("directory", type=Path)
    try:
        print(build(options.parse_args(argv).directory))
    except LabError as exc:
        print(f"lab: {exc}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
