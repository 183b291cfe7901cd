"""What a dmcopy from pip brings for udev and systemd, and what `dmcopy setup` makes of it.

Data files come with the program: in a checkout (an editable installation) under ``udev/``, else
under ``share/dmcopy`` of the prefix.  Whatever is in their directories is taken: there is no list
of names here.  A distribution's package has put its files where they belong itself, and has none
of these.

Not for: changing anything; that is `dmcopy.jobs.setup`.
"""

from __future__ import annotations

import re
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dmcopy.errors import DmcopyError, Refused

_CHECKOUT: Final = Path(__file__).resolve().parents[2] / "udev"
_SHARE: Final = Path(sysconfig.get_path("data")) / "share" / "dmcopy"
# systemd.service(5): "@", "-", ":", "+", "!" stand before the program
_CALLS: Final = re.compile(r"^(Exec[A-Za-z]+=[-@:+!]*)dmcopy(?=\s)", re.MULTILINE)
# What may stand in a unit as it is; "%" would be a specifier, a space would end the word.
_PLAIN: Final = re.compile(r"[A-Za-z0-9/._+@=-]+")
_SECTION: Final = re.compile(r"^\[Install\]\s*$", re.MULTILINE)
_ONESHOT: Final = re.compile(r"^Type=oneshot\s*$", re.MULTILINE)
_STOPS: Final = re.compile(r"^ExecStop=", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Shipped:
    """The directories that the data files are in; one may be missing when it would be empty."""

    rules: Path
    units: Path
    tmpfiles: Path


@dataclass(frozen=True)
class Unit:
    """A unit file as it is to be installed."""

    name: str
    text: str

    @property
    def is_wanted(self) -> bool:
        """Tell whether it is to be enabled: it says by whom it is wanted.

        Not a template: of which there shall be instances is for the administrator to say.
        """
        return "@." not in self.name and _SECTION.search(self.text) is not None

    @property
    def is_for_now(self) -> bool:
        """Tell whether it is also to be started: a oneshot is for the boot, unless it stops too."""
        return _ONESHOT.search(self.text) is None or _STOPS.search(self.text) is not None


def shipped(checkout: Path = _CHECKOUT, share: Path = _SHARE) -> Shipped:
    """Give where the data files of this dmcopy are; raises `Refused` when it has none."""
    if (checkout / "rules.d" / "57-dmcopy.rules").is_file():
        return Shipped(
            rules=checkout / "rules.d",
            units=checkout / "systemd",
            tmpfiles=checkout / "tmpfiles.d",
        )
    if (share / "udev" / "57-dmcopy.rules").is_file():
        return Shipped(rules=share / "udev", units=share / "systemd", tmpfiles=share / "tmpfiles.d")
    raise Refused(
        f"this dmcopy has no rules and units with it: there is no {share / 'udev'}",
        way_out="if it came with a distribution's package, that has installed them; else install "
        "dmcopy with pip",
    )


def program(scripts: Path | None = None) -> Path:
    """Give the path of this installation's ``dmcopy``; raises `DmcopyError` when there is none."""
    path = (scripts or Path(sysconfig.get_path("scripts"))) / "dmcopy"
    if not path.is_file():
        raise DmcopyError(f"there is no {path} for the units to call: install dmcopy with pip")
    if _PLAIN.fullmatch(str(path)) is None:
        raise DmcopyError(f"a unit cannot call {path}: install dmcopy under a plainer name")
    return path


def units(folder: Path, called: Path) -> Iterator[Unit]:
    """Give the units, each calling *called* wherever it says ``dmcopy``."""
    for path in _files(folder):
        yield Unit(path.name, _CALLS.sub(rf"\g<1>{called}", path.read_text()))


def files(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Give the names and contents of the data files in *folder*."""
    for path in _files(folder):
        yield path.name, path.read_bytes()


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_file() and path.name[0] != ".")


def is_managed() -> bool:
    """Tell whether a distribution's package brought this dmcopy, with its rules and units."""
    try:
        shipped()
    except Refused:
        return Path(__file__).is_relative_to(f"{sys.base_prefix}/lib/python3/dist-packages")
    return False
