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

from dmcopy.agent.request import Answer
from dmcopy.errors import DmcopyError, UsageError
from dmcopy.jobs.host import Host, load_targets, open_cookies, open_host
from dmcopy.jobs.spec import Places
from dmcopy.kernel.dm import Dm
from dmcopy.units import Bytes, parse_size

if TYPE_CHECKING:  # the real name of Commands is private
    from rich.console import Console

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]
else:
    Commands = object


__all__ = [
    "Commands",
    "Context",
    "consoles",
    "default_name",
    "load_targets",
    "open_cookies",
    "parsed",
    "seconds",
    "size",
]

_ODD: Final = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True, kw_only=True)
class Context:
    """What a command gets: where it works and where it prints.

    Tests put a device-mapper of their own in *dm*; None means the kernel's.  With an
    *asker* this process is in the background already (`cli.job_unit`).
    """

    dm: Dm | None = None
    places: Places | None = None
    asker: Answer | None = None

    def host(self, *, need_root: bool = True, load: bool = True) -> Host:
        """Open the host; raises `DmcopyError` when we are not root and must be.

        Without *load* no module is loaded and no program started.
        """
        if need_root and os.geteuid() != 0:
            raise DmcopyError("must be run as root: it works on block devices")
        places = self.places or Places.from_environment()
        return open_host(places, dm=self.dm, load=load)


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
