"""What the commands share: the host they work on, how they print, and the argument types."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from dmcopy.errors import DmcopyError, UsageError
from dmcopy.jobs.host import Host
from dmcopy.jobs.spec import Places
from dmcopy.kernel.command import Commander
from dmcopy.kernel.cookie import Cookies
from dmcopy.kernel.dm import Dm
from dmcopy.kernel.dmioctl import DmIoctl
from dmcopy.kernel.dmrequest import CONTROL
from dmcopy.kernel.sysfs import Sysfs
from dmcopy.units import Bytes, parse_size

if TYPE_CHECKING:  # the real name of Commands is private
    from rich.console import Console

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]
else:
    Commands = object


_ODD: Final = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True, kw_only=True)
class Context:
    """What a command gets: where it works and where it prints.

    Tests put a device-mapper of their own in *dm*; None means the kernel's.
    """

    dm: Dm | None = None
    places: Places | None = None

    def host(self, *, need_root: bool = True) -> Host:
        """Open the host; raises `DmcopyError` when we are not root and must be."""
        if need_root and os.geteuid() != 0:
            raise DmcopyError("must be run as root: it works on block devices")
        places = self.places or Places.from_environment()
        return Host(dm=self.dm or open_dm(places), sysfs=Sysfs(), run=Commander(), places=places)


def open_dm(places: Places) -> Dm | None:
    """Open device-mapper's control device, None when this kernel has none."""
    run = Commander()
    if not os.path.exists(CONTROL) and run.find("modprobe"):
        run.run("modprobe", "--quiet", "dm-mod", ok=(0, 1))
    if not os.path.exists(CONTROL):
        return None
    return DmIoctl(cookies=open_cookies(places))


def open_cookies(places: Places) -> Cookies:
    """Give the records of udev cookies under way."""
    return Cookies(places.cookies)


def load_targets(host: Host) -> None:
    """Load the modules of the targets that a splice needs; built-in ones are fine too."""
    assert host.dm is not None
    missing = {"snapshot", "snapshot-origin", "linear"} - host.dm.targets().keys()
    if missing and host.run.find("modprobe"):
        host.run.run("modprobe", "--quiet", "dm-snapshot", ok=(0, 1))


def consoles() -> tuple[Console, Console]:
    """Give the consoles for results (stdout) and for progress and messages (stderr)."""
    from rich.console import Console  # takes long, and --json needs none

    return (
        Console(file=sys.stdout, highlight=False, soft_wrap=not sys.stdout.isatty()),
        Console(file=sys.stderr, highlight=False),
    )


def size(text: str) -> Bytes:
    """Read a size argument."""
    try:
        return parse_size(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from exc


def seconds(text: str) -> float:
    """Read a time in seconds, above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of seconds above 0")
    return value


def parsed(read: Callable[[str], object]) -> Callable[[str], object]:
    """Make an argument type of a parser that raises `UsageError`."""

    def convert(text: str) -> object:
        try:
            return read(text)
        except UsageError as exc:
            raise argparse.ArgumentTypeError(str(exc)) from exc

    return convert


def default_name(source: str) -> str:
    """Make a job's name from its source and the time: ``data-20260131-235959``."""
    stem = _ODD.sub("-", os.path.basename(source.rstrip("/"))).strip("-._") or "job"
    return f"{stem[:60]}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
