"""Which programs are the hooks of a copy, and whether they may be run: they run as root.

A hook is a file that nobody but root can change.  It comes from the hook directory
(``/etc/dmcopy/hooks.d``), where every executable file is a hook of every copy, or is named on the
command line, by its path or as one that comes with dmcopy.
"""

from __future__ import annotations

import os
import re
import shlex
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from dmcopy.errors import Refused, UsageError

SHIPPED: Final = Path(__file__).parents[1] / "hooks"

_ROOT: Final = 0
# run-parts(8): so that a package manager's or an editor's left-overs are no hooks
_NAME: Final = re.compile(r"[A-Za-z0-9_-]+")


def shipped() -> list[str]:
    """Name the hooks that come with dmcopy."""
    return sorted(path.name for path in SHIPPED.iterdir() if _NAME.fullmatch(path.name))


def find_hooks(directory: Path | None, commands: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Give the hooks of *directory* (None: none) in the order of their names, then *commands*.

    Raises `UsageError` for a command that there is not, `Refused` for a file that others than root
    can change.
    """
    found: list[tuple[str, ...]] = []
    if directory is not None and directory.is_dir():
        for path in sorted(directory.iterdir()):
            if _NAME.fullmatch(path.name) and path.is_file() and os.access(path, os.X_OK):
                found.append((str(path),))
    found += [_named(command) for command in commands]
    for hook in found:
        _refuse_unsafe(hook[0])
    return tuple(found)


def _named(command: str) -> tuple[str, ...]:
    try:
        words = shlex.split(command)
    except ValueError as exc:
        raise UsageError(f"hook '{command}': {exc}") from exc
    if not words:
        raise UsageError("a hook without a name: give the path of a program")
    path = words[0]
    if "/" not in path:
        if path not in shipped():
            raise UsageError(
                f"there is no hook '{path}'; those that come with dmcopy: {', '.join(shipped())}; "
                "name any other by its path"
            )
        path = str(SHIPPED / path)
    try:
        mode = os.stat(path).st_mode
    except OSError as exc:
        raise UsageError(f"hook {path}: {exc.strerror}") from exc
    if not stat.S_ISREG(mode) or not os.access(path, os.X_OK):
        raise UsageError(f"hook {path} is not an executable file; make it one: chmod +x {path}")
    return (os.path.abspath(path), *words[1:])


def _refuse_unsafe(path: str) -> None:
    """Refuse a file that somebody else than root, who runs it, can change or replace."""
    real = os.path.realpath(path)
    for one in dict.fromkeys((os.path.dirname(path), os.path.dirname(real), real)):
        found = os.stat(one)
        if found.st_uid not in (_ROOT, os.geteuid()):
            raise Refused(
                f"hook {path} runs as root, and {one} belongs to user {found.st_uid}",
                way_out=f"chown root {one}",
            )
        is_sticky = stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX
        if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not is_sticky:
            raise Refused(
                f"hook {path} runs as root, and others than root can write to {one}",
                way_out=f"chmod go-w {one}",
            )
